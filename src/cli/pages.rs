//! `ropejit completions`, `ropejit man` and `ropejit --version`: what packagers install beside the command, and what it is.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;
use ropejit::device::nvrtc_version;
use ropejit::{Error, Result};

use super::output;

/// Print a script that completes commands and options in a shell.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit completions bash > ~/.local/share/bash-completion/completions/ropejit
  ropejit completions zsh > ~/.zfunc/_ropejit
  ropejit completions fish > ~/.config/fish/completions/ropejit.fish")]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(&self, mut command: clap::Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "ropejit", &mut script);
        output::bytes(&script)
    }
}

/// Print the manual page, or write the pages of all commands into a folder.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit man | man -l -
  ropejit man ~/.local/share/man/man1        then: man ropejit-inspect-list")]
pub struct Man {
    /// A folder that is there; files of the same names are replaced.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    pub fn run(&self, command: clap::Command) -> Result<()> {
        let Some(folder) = &self.folder else {
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(command).render(&mut page);
            return written
                .map_err(|e| Error::new(ropejit::ErrorKind::Io, "the page cannot be made").caused_by(e))
                .and_then(|()| output::bytes(&page));
        };
        clap_mangen::generate_to(command, folder).map_err(|e| {
            Error::io(folder, "the manual pages cannot be written", e)
                .hint("name a folder that is there and that you can write to")
        })
    }
}

/// What `--version` says beside the version: the NVRTC that compiles here, and the driver. The GPU is left alone.
pub fn around() -> String {
    let nvrtc = nvrtc_version().map_or_else(|_| "not found".to_owned(), |(_, identity)| identity.replace("nvrtc ", ""));
    // The module's own file: the library need not be loaded.
    let driver = std::fs::read_to_string("/sys/module/nvidia/version");
    let driver = driver.map_or_else(|_| "not found".to_owned(), |text| text.trim().to_owned());
    format!("NVRTC: {nvrtc}\nNVIDIA driver: {driver}")
}
