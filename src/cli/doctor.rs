//! `ropejit doctor`

use std::path::Path;

use clap::{Args, ValueEnum};
use ropejit::device::{DeviceChoice, nvrtc_version, open};
use ropejit::store::disk::Disk;
use ropejit::store::layers::Places;
use ropejit::store::{Kind, Store as _};
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use super::output;
use super::table::wrapped;

/// Check what this machine has: GPU, NVRTC, C++ compiler, cache folder, and the folders of `ROPEJIT_CACHE_PATH`.
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
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        let gpu = open(DeviceChoice::Cuda(0)).map(|d| {
            let f = d.facts();
            format!("{} ({}, driver {})", f.name, f.arch, f.driver)
        });
        let nvrtc = nvrtc_version().map(|(path, identity)| format!("{identity}, {}", path.display()));
        let host = open(DeviceChoice::Host).and_then(|d| d.compiler());
        let places = Places::from_environment()?;
        let mut all = vec![
            (Need::Gpu, "gpu", gpu),
            (Need::Nvrtc, "nvrtc", nvrtc),
            (Need::HostCompiler, "host_compiler", host),
            (Need::Cache, "cache", usable(&places)),
        ];
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
                if matches!(need, Need::CachePath | Need::Packs) {
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

/// Owner, mode and number of entries of a folder.
fn holding(disk: &Disk) -> Result<String> {
    let entries = disk.heads(Kind::Choice)?.len() + disk.heads(Kind::Artifact)?.len();
    let Some(meta) = disk.root().and_then(|root| root.metadata().ok()) else { return Ok(format!("entries {entries}")) };
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
    Ok(format!("{owner}entries {entries}"))
}
