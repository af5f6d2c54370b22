//! `ropejit pack`

mod export;
mod install;
mod make;
pub mod sign;
mod told;
pub mod trust;
mod verify;

use clap::{Args, Subcommand};
use ropejit::Result;

/// Write what is in the cache to one file for other machines: sign it, verify it, install it, make an image of it.
///
/// A pack holds choices, each with the kernel that it names, and an index. The same entries make the same file. It serves programs
/// of this version of ropejit (more exactly: of the same kernel templates) on the architectures that it names.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  ropejit prewarm --model config.json --arch sm_90  fill the cache; needs no GPU
  ropejit pack OUT.pack --model config.json --arch sm_90
                                                    write the pack
  ropejit pack keygen --key ropejit.key             once: a key that signs
  ropejit pack sign OUT.pack --key ropejit.key      OUT.pack.minisig beside it
  ropejit pack verify OUT.pack --pubkey ropejit.pub
                                                    who made it, and is it whole
  ropejit pack install OUT.pack --pubkey ropejit.pub
                                                    on each node, before
                                                    programs start
  ropejit pack export OUT.pack --oci image          for registries and image
                                                    volumes
  ropejit inspect --pack OUT.pack                   what is in it

A program on a node that has the pack starts warm; ROPEJIT_TUNING=frozen proves
it."
)]
pub struct Pack {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    make: make::Make,
}

#[derive(Subcommand)]
enum Command {
    Sign(sign::Sign),
    Keygen(sign::Keygen),
    Verify(verify::Verify),
    Install(install::Install),
    Export(export::Export),
}

impl Pack {
    pub fn run(self) -> Result<()> {
        match self.command {
            None => self.make.run(),
            Some(Command::Sign(command)) => command.run(),
            Some(Command::Keygen(command)) => command.run(),
            Some(Command::Verify(command)) => command.run(),
            Some(Command::Install(command)) => command.run(),
            Some(Command::Export(command)) => command.run(),
        }
    }
}
