//! The engines of this process, one a device, and the `Rope`s in use.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use ropejit::{DeviceChoice, Engine, Rope, RopeSpec};

use crate::dlpack::Device;
use crate::errors::raise;

/// A RoPE in use.
pub struct InUse {
    device: Device,
    pub rope: Rope,
}

struct Engines {
    opened: Vec<(Device, Engine)>,
    /// A program uses few: forward and backward, perhaps of two kinds of layers.
    in_use: Vec<Arc<InUse>>,
    /// Where the last one was found.
    last: usize,
    frozen: bool,
}

static ENGINES: Mutex<Engines> = Mutex::new(Engines { opened: Vec::new(), in_use: Vec::new(), last: 0, frozen: false });

/// Held by who holds the GIL only, so that it is free in a child of `os.fork()`, which takes the GIL first.
fn engines(_: Python<'_>) -> MutexGuard<'static, Engines> {
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The RoPE of a spec on a device: no hash, and one comparison where it is the last one's.
pub fn rope(py: Python<'_>, device: Device, spec: &RopeSpec) -> PyResult<Arc<InUse>> {
    let is = |r: &InUse| r.device == device && r.rope.spec() == spec;
    {
        let mut all = engines(py);
        if let Some(found) = all.in_use.get(all.last).filter(|r| is(r)) {
            return Ok(Arc::clone(found));
        }
        if let Some(at) = all.in_use.iter().position(|r| is(r)) {
            all.last = at;
            return Ok(Arc::clone(&all.in_use[at]));
        }
    }
    let rope = engine(py, device)?.rope(spec).map_err(raise)?;
    let found = Arc::new(InUse { device, rope });
    let mut all = engines(py);
    all.in_use.push(Arc::clone(&found));
    all.last = all.in_use.len() - 1;
    Ok(found)
}

/// The engine of a device, opened at its first use.
pub fn engine(py: Python<'_>, device: Device) -> PyResult<Engine> {
    if let Some((_, engine)) = engines(py).opened.iter().find(|(d, _)| *d == device) {
        return Ok(engine.clone());
    }
    crate::log::to_stderr();
    find_nvrtc(py);
    let choice = match device {
        Device::Host => DeviceChoice::Host,
        Device::Cuda(gpu) => DeviceChoice::Cuda(gpu),
    };
    let built = py.detach(|| Engine::builder().device(choice).build()).map_err(raise)?;
    let mut all = engines(py);
    if let Some((_, engine)) = all.opened.iter().find(|(d, _)| *d == device) {
        return Ok(engine.clone()); // another thread was faster
    }
    if all.frozen {
        built.freeze();
    }
    all.opened.push((device, built.clone()));
    Ok(built)
}

/// Has NVRTC searched for where PyTorch's own wheels keep it: beside PyTorch, which need not be in the active virtual
/// environment. Not in the current folder, which Python may have put on its path: what lies there may be anybody's.
pub fn find_nvrtc(py: Python<'_>) {
    let path: Vec<PathBuf> = py.import("sys").and_then(|sys| sys.getattr("path")?.extract()).unwrap_or_default();
    let here = std::env::current_dir().ok();
    let path = path.iter().filter(|p| p.is_absolute() && Some(*p) != here.as_ref());
    let nvidia = path.map(|p| p.join("nvidia")).filter(|p| p.is_dir());
    for folder in nvidia.flat_map(|n| ["cu13/lib", "cuda_nvrtc/lib", "cu12/lib"].map(|l| n.join(l))) {
        ropejit::device::search_nvrtc_in(folder);
    }
}

/// All engines that are open.
pub fn opened(py: Python<'_>) -> Vec<Engine> {
    engines(py).opened.iter().map(|(_, engine)| engine.clone()).collect()
}

/// All `Rope`s in use.
pub fn in_use(py: Python<'_>) -> Vec<Arc<InUse>> {
    engines(py).in_use.clone()
}

/// Forbids work in all engines, open and to be opened.
pub fn freeze(py: Python<'_>) {
    let mut all = engines(py);
    all.frozen = true;
    for (_, engine) in &all.opened {
        engine.freeze();
    }
}

/// Ends background work and closes the engines: called when the interpreter exits, because threads that run on beside the
/// driver's own shutdown may crash. Other threads of Python's may still be in a call, and hold what they use.
pub fn close(py: Python<'_>) {
    let (in_use, opened) = {
        let mut all = engines(py);
        all.last = 0;
        (std::mem::take(&mut all.in_use), std::mem::take(&mut all.opened))
    };
    py.detach(|| {
        for (_, engine) in &opened {
            engine.close();
        }
        drop((in_use, opened));
    });
}
