//! The engines of this process, one a device, and the handles in use.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, DeviceLocation, Result};
use ropejit::{DeviceChoice, Engine, RopeSpec};

use crate::{raise, wrong};

struct Engines {
    opened: Vec<(DeviceLocation, Engine)>,
    /// A program uses few: forward and backward, perhaps of two kinds of layers.
    in_use: Vec<(DeviceLocation, ropejit::Rope)>,
}

static ENGINES: Mutex<Engines> = Mutex::new(Engines { opened: Vec::new(), in_use: Vec::new() });

fn engines() -> MutexGuard<'static, Engines> {
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine that serves a device, opened at its first use: to prewarm, to freeze, to count what was compiled.
///
/// # Errors
/// When the device cannot be opened, or is none of ropejit's (Metal).
pub fn engine(device: &Device) -> Result<Engine> {
    let location = device.location();
    if let Some((_, engine)) = engines().opened.iter().find(|(opened, _)| *opened == location) {
        return Ok(engine.clone());
    }
    let choice = match location {
        DeviceLocation::Cpu => DeviceChoice::Host,
        DeviceLocation::Cuda { gpu_id } => DeviceChoice::Cuda(gpu_id as u32),
        DeviceLocation::Metal { .. } => return Err(wrong("q", "is on Metal: the CPU and CUDA are served")),
    };
    let built = Engine::builder().device(choice).build().map_err(raise)?;
    let mut all = engines();
    if let Some((_, engine)) = all.opened.iter().find(|(opened, _)| *opened == location) {
        return Ok(engine.clone()); // another thread was faster
    }
    all.opened.push((location, built.clone()));
    Ok(built)
}

/// Has an engine of the caller's serve a device from now on: one with a lock file, another cache folder, another
/// policy. Handles of the engine before it are let go.
///
/// # Errors
/// When the engine's device is not of the kind: one of the host for the CPU, a GPU's for CUDA.
pub fn set_engine(device: &Device, engine: Engine) -> Result<()> {
    let location = device.location();
    let is_gpu = engine.device().context() != 0;
    if is_gpu != matches!(location, DeviceLocation::Cuda { .. }) || !engine.device().runs() {
        return Err(wrong("engine", format!("computes on {}, the device is {location:?}", engine.facts().name)));
    }
    let mut all = engines();
    all.opened.retain(|(opened, _)| *opened != location);
    let (before, kept) = all.in_use.drain(..).partition(|(used, _)| *used == location);
    all.in_use = kept;
    all.opened.push((location, engine));
    drop(all);
    let before: Vec<(DeviceLocation, ropejit::Rope)> = before;
    drop(before); // without the lock: the end of an engine waits for its background work
    Ok(())
}

/// The handle of a spec on a device: no hash, few comparisons.
pub fn rope(device: &Device, spec: &RopeSpec) -> Result<ropejit::Rope> {
    let location = device.location();
    let is = |(used, rope): &&(DeviceLocation, ropejit::Rope)| *used == location && rope.spec() == spec;
    if let Some((_, rope)) = engines().in_use.iter().find(is) {
        return Ok(rope.clone());
    }
    let rope = engine(device)?.rope(spec).map_err(raise)?;
    let mut all = engines();
    if all.in_use.iter().find(is).is_none() {
        all.in_use.push((location, rope.clone()));
    }
    Ok(rope)
}

/// Reports a token whose position lay outside of cos and sin in an earlier call on the device: it has become NaN. Waits
/// for the device. Calls on the CPU report it themselves.
///
/// # Errors
/// One that names such a token, once.
pub fn check(device: &Device) -> Result<()> {
    device.synchronize()?;
    let location = device.location();
    let used = |(used, _): &&(DeviceLocation, ropejit::Rope)| *used == location;
    let ropes: Vec<ropejit::Rope> = engines().in_use.iter().filter(used).map(|(_, rope)| rope.clone()).collect();
    ropes.iter().try_for_each(|rope| rope.check().map_err(raise))
}
