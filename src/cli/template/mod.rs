//! `ropejit template`: kernels of the user's own.

mod bench;
mod check;
pub mod specs;

use clap::{Args, Subcommand};
use ropejit::Result;

/// Check and measure kernels of your own: a .toml and a .cu.
#[derive(Args)]
pub struct Template {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
    Bench(bench::Bench),
}

impl Template {
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Check(command) => command.run(),
            Command::Bench(command) => command.run(),
        }
    }
}
