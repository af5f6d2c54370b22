//! `ropejit doctor`

use std::path::Path;

use clap::{Args, ValueEnum};
use ropejit::device::{DeviceChoice, nvrtc_version, open};
use ropejit::store::{default_root, disk::Disk};
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use super::output;

/// Check what this machine has: GPU, NVRTC, C++ compiler, cache folder.
///
/// NVRTC compiles for GPUs; the C++ compiler stands in for it on the host device. Not all of them are needed: what is
/// missing fails only when it is required.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit doctor
  ropejit doctor --require gpu --require nvrtc    exit status 1 unless both are there")]
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
}

impl Doctor {
    pub fn run(self) -> Result<()> {
        let gpu = open(DeviceChoice::Cuda(0)).map(|d| {
            let f = d.facts();
            format!("{} ({}, driver {})", f.name, f.arch, f.driver)
        });
        let nvrtc = nvrtc_version().map(|(path, identity)| format!("{identity}, {}", path.display()));
        let host = open(DeviceChoice::Host).and_then(|d| d.compiler());
        let cache = match default_root() {
            None => Err(Error::new(ErrorKind::Io, "neither ROPEJIT_CACHE_DIR nor HOME is set: nothing is kept")),
            Some(root) => usable(&root),
        };
        let all = [
            (Need::Gpu, "gpu", gpu),
            (Need::Nvrtc, "nvrtc", nvrtc),
            (Need::HostCompiler, "host_compiler", host),
            (Need::Cache, "cache", cache),
        ];
        if self.json {
            let fields: serde_json::Map<_, _> = all
                .iter()
                .map(|(_, name, found)| {
                    let value = match found {
                        Ok(text) => json!({ "ok": true, "what": text }),
                        Err(e) => json!({ "ok": false, "what": e.to_string() }),
                    };
                    ((*name).to_owned(), value)
                })
                .collect();
            output::json(&output::without_engine(fields.into()))?;
        } else {
            for (_, name, found) in &all {
                match found {
                    Ok(text) => output::line(&format!("ok       {name:<15}{text}"))?,
                    Err(e) => {
                        let indented = e.to_string().replace('\n', &format!("\n{:24}", ""));
                        output::line(&format!("no       {name:<15}{indented}"))?;
                    }
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

/// Whether entries can be kept in the cache folder; one that is not there is not made.
fn usable(root: &Path) -> Result<String> {
    let there = root.exists();
    if there {
        Disk::open(root)?;
    }
    let nearest = root.ancestors().find(|folder| folder.exists()).unwrap_or(root);
    match tempfile::tempfile_in(nearest) {
        Ok(_) if there => Ok(root.display().to_string()),
        Ok(_) => Ok(format!("{} (will be made at the first use)", root.display())),
        Err(e) => Err(Error::new(ErrorKind::Io, "the cache folder cannot be written to")
            .subject_is(root.display().to_string())
            .caused_by(e)
            .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to")),
    }
}
