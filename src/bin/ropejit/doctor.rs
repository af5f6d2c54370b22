//! `ropejit doctor`

use clap::{Args, ValueEnum};
use ropejit::device::{DeviceChoice, nvrtc_version, open};
use ropejit::store::{default_root, disk::Disk};
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use crate::output;

/// Check what this machine has: GPU, NVRTC, C++ compiler, cache folder.
#[derive(Args)]
pub struct Doctor {
    /// Fail unless this is there.
    #[arg(long, value_enum)]
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
            Some(root) if root.exists() => Disk::open(&root).map(|_| root.display().to_string()),
            Some(root) => Ok(format!("{} (will be made at the first use)", root.display())),
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
            output::json(&fields)?;
        } else {
            for (_, name, found) in &all {
                match found {
                    Ok(text) => output::line(&format!("ok       {name:<15}{text}"))?,
                    Err(e) => {
                        output::line(&format!("missing  {name:<15}{}", e.to_string().replace('\n', "\n         ")))?;
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
