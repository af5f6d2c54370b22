//! `ropejit template`: kernels of the user's own.

mod bench;
mod check;
pub mod specs;

use clap::{Args, Subcommand};
use ropejit::Result;

/// Check and measure kernels of your own: a .toml and a .cu.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit template check my_kernel.toml  before it serves: does every candidate
                                         do what it may?
  ropejit template bench my_kernel.toml --size rows=8192

docs/your-own-kernels.md says what the two files hold; ropejit test runs a
kernel's reference.")]
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
