//! `ropejit doctor`

use std::path::Path;

use clap::{Args, ValueEnum};
use ropejit::device::{DeviceChoice, nvrtc_version, open};
use ropejit::store::disk::Disk;
use ropejit::store::layers::Places;
use ropejit::store::{Kind, Store as _};
use ropejit::system::environment;
use ropejit::{Error, ErrorKind, Result, Tuning};
use serde_json::json;

use super::output;
use super::table::wrapped;

/// Check what this machine has: GPU, NVRTC, C++ compiler, cache folder, the folders of `ROPEJIT_CACHE_PATH`, and what the
/// environment chooses.
///
/// NVRTC compiles for GPUs; the C++ compiler stands in for it on the host device. Not all of them are needed: what is
/// missing fails only when it is required.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit doctor
  ropejit doctor --require gpu --require nvrtc  exit status 1 unless both are
                                                there")]
pub struct Doctor {
    /// Fail unless this is there; may be given several times.
    #[arg(long, value_name = "WHAT", value_enum)]
    require: Vec<Need>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum Need {
    Gpu,
    Nvrtc,
    HostCompiler,
    Cache,
    CachePath,
    /// Those in the user's data folder.
    Packs,
    /// `ROPEJIT_DEVICE` and `ROPEJIT_TUNING` hold what they may hold.
    Environment,
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        let device = environment::parsed::<DeviceChoice>("ROPEJIT_DEVICE");
        let gpu = gpu(device.as_ref().ok().copied().flatten());
        let nvrtc = nvrtc_version().map(|(path, identity)| format!("{identity}, {}", path.display()));
        let host = open(DeviceChoice::Host).and_then(|d| d.compiler());
        let places = Places::from_environment()?;
        let mut all = vec![
            (Need::Gpu, "gpu", gpu),
            (Need::Nvrtc, "nvrtc", nvrtc),
            (Need::HostCompiler, "host_compiler", host),
            (Need::Cache, "cache", usable(&places)),
        ];
        let device = told("ROPEJIT_DEVICE", device.map(drop));
        let tuning = told("ROPEJIT_TUNING", environment::parsed::<Tuning>("ROPEJIT_TUNING").map(drop));
        all.extend([device, tuning].into_iter().flatten().map(|found| (Need::Environment, "environment", found)));
        all.extend(
            places
                .read_only
                .iter()
                .flat_map(|root| readable(&places, root))
                .map(|found| (Need::CachePath, "cache_path", found)),
        );
        let packs = places.packs.iter().filter(|folder| folder.exists());
        all.extend(packs.flat_map(|root| readable(&places, root)).map(|found| (Need::Packs, "packs", found)));
        if self.json {
            let mut fields = serde_json::Map::new();
            for (need, name, found) in &all {
                let value = match found {
                    Ok(text) => json!({ "ok": true, "what": text }),
                    Err(e) => json!({ "ok": false, "what": e.to_string() }),
                };
                if matches!(need, Need::CachePath | Need::Packs | Need::Environment) {
                    // As many as there are.
                    let list = fields.entry(*name).or_insert_with(|| json!([]));
                    list.as_array_mut().into_iter().for_each(|list| list.push(value.clone()));
                } else {
                    fields.insert((*name).to_owned(), value);
                }
            }
            output::json(&output::without_engine(fields.into()))?;
        } else {
            for (_, name, found) in &all {
                match found {
                    Ok(text) => tell(&format!("ok       {name:<15}{text}"))?,
                    Err(e) => tell(&format!("no       {name:<15}{e}"))?,
                }
            }
        }
        for (need, _, found) in all {
            if self.require.contains(&need) {
                found?;
            }
        }
        Ok(())
    }
}

/// The GPU that the environment chooses, else the first.
fn gpu(chosen: Option<DeviceChoice>) -> Result<String> {
    let number = match chosen {
        Some(DeviceChoice::Cuda(number)) => number,
        _ => 0,
    };
    let opened = open(DeviceChoice::Cuda(number));
    let told = opened.map(|d| format!("{} ({}, driver {})", d.facts().name, d.facts().arch, d.facts().driver));
    told.map_err(|e| {
        let hidden = e.advice().is_some_and(|hint| hint.contains("CUDA_VISIBLE_DEVICES"));
        let container = if hidden {
            "CUDA_VISIBLE_DEVICES may hide some; in a container: docker run --gpus all"
        } else {
            "where there is one: install NVIDIA's driver; in a container: docker run --gpus all"
        };
        match chosen {
            Some(DeviceChoice::Host) => e.hint("none is needed: ROPEJIT_DEVICE=host chooses the processor"),
            Some(DeviceChoice::Cuda(n)) => {
                e.hint(format!("ROPEJIT_DEVICE chooses cuda:{n}, so programs fail; {container}"))
            }
            _ => e.hint(format!("the processor serves in its place; {container}")),
        }
    })
}

/// What a variable holds, where it is set.
fn told(name: &str, checked: Result<()>) -> Option<Result<String>> {
    let value = environment::raw(name)?;
    Some(checked.map(|()| format!("{name}={}", value.display())))
}

/// Prints what was found of one thing: its lines begin below each other.
fn tell(text: &str) -> Result<()> {
    let indented = text.replace('\n', &format!("\n{:24}", ""));
    let mut lines = indented.lines().flat_map(|line| wrapped(line, 24));
    lines.try_for_each(|line| output::line(&line))
}

/// Whether entries can be kept in the cache folder; one that is not there is not made.
fn usable(places: &Places) -> Result<String> {
    let Some(root) = places.user_folder() else {
        return Err(Error::new(ErrorKind::Io, "neither ROPEJIT_CACHE_DIR nor HOME is set: nothing is kept")
            .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to"));
    };
    let there = root.exists();
    let holds = if there {
        let disk = places.open_user(&root)?;
        let holds = holding(&disk)?;
        disk.can_write()?;
        holds
    } else {
        "will be made at the first use".into()
    };
    let nearest = root.ancestors().find(|folder| folder.exists()).unwrap_or(&root);
    match tempfile::tempfile_in(nearest) {
        Ok(_) => Ok(format!("{} ({holds})", root.display())),
        Err(e) => Err(Error::new(ErrorKind::Io, "the cache folder cannot be written to")
            .subject_is(root.display().to_string())
            .caused_by(e)
            .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")),
    }
}

/// Whether the layers of a folder that is only read are there and can be trusted.
fn readable(places: &Places, root: &Path) -> Vec<Result<String>> {
    let told = |disk: Disk| Ok(format!("{} ({})", disk.root().unwrap_or(root).display(), holding(&disk)?));
    match places.open_layers(root) {
        Ok(layers) => layers.into_iter().map(|layer| layer.and_then(told)).collect(),
        Err(e) => vec![Err(e)],
    }
}

/// Owner, mode and number of entries of a folder. Only their heads are read: whether the rest of them is whole, `inspect
/// verify` says.
fn holding(disk: &Disk) -> Result<String> {
    let heads = || -> Result<_> { Ok(disk.heads(Kind::Choice)?.into_iter().chain(disk.heads(Kind::Artifact)?)) };
    let (sound, damaged): (Vec<_>, Vec<_>) = heads()?.partition(|listed| listed.entry.is_ok());
    let entries = match (sound.len() + damaged.len(), damaged.len()) {
        (0, _) => "entries 0".to_owned(),
        (all, 0) => format!("entries {all}; ropejit inspect verify looks for damage"),
        (all, damaged) => format!("entries {all}, damaged {damaged} or more: ropejit inspect verify"),
    };
    let Some(meta) = disk.root().and_then(|root| root.metadata().ok()) else { return Ok(entries) };
    #[cfg(unix)]
    let owner = {
        use std::os::unix::fs::MetadataExt as _;
        format!("owner {}, group {}, mode {:o}, ", meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    #[cfg(not(unix))]
    let owner = {
        let _ = meta;
        String::new()
    };
    Ok(format!("{owner}{entries}"))
}
