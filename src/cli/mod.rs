//! The `ropejit` command, for the program of that name and for the Python package's. Not part of the API.
//!
//! Everything here uses the crate's public API only, by the name that others know it by (`ropejit::`).

// Help is plain text: `[B,H,S,D]` is a layout there, not a link.
#![allow(rustdoc::broken_intra_doc_links)]

pub mod advice;
mod bench;
mod bench_case;
mod bench_picture;
mod bench_shapes;
mod demo;
mod doctor;
mod fused;
mod inspect;
mod library;
mod lock;
pub mod log;
mod model;
mod output;
mod pack;
mod pages;
mod prewarm;
mod prewarm_command;
mod prewarm_remote;
mod prewarm_template;
mod prewarmed;
mod program;
mod remote;
mod run;
mod spec;
mod table;
mod template;
mod test;
mod values;
mod workload;

use std::ffi::OsString;

use clap::error::ErrorKind as Usage;
use clap::{CommandFactory as _, Parser, Subcommand};
use ropejit::ErrorKind;

/// Autotuning JIT service for rotary position embedding (RoPE) kernels.
///
/// Kernels are compiled for one model's RoPE, tuned on the GPU they run on, and kept in a cache folder, so that later
/// processes neither compile nor tune. Without a GPU the same path runs on the processor.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 80,
    after_help = "\
Examples:
  ropejit demo                                    what it is about, in a minute
  ropejit prewarm --model config.json --tokens 1,8192
                                                  fill the cache at deploy time
  ropejit prewarm --model llama-3.1-8b --arch sm_90
                                                  the same where there is no GPU
  ropejit pack OUT.pack --model config.json       what is in the cache as one
                                                  file, for other machines
  ropejit inspect                                 what was chosen, and why
  ropejit run --model llama-3.1-8b --tokens 8192  one application, checked and
                                                  timed
  ropejit pull s3://bucket/packs --pubkey RW…     a machine that starts warm
  ropejit template check my_kernel.toml           a kernel of your own, checked
                                                  before it serves

Environment:
  ROPEJIT_CACHE_DIR       the cache folder (default: ropejit in the user's cache
                          folder)
  ROPEJIT_CACHE_PATH      read-only cache folders, separated by ':'
  ROPEJIT_CACHE_MAX_BYTES size that the cache folder may have (default: 1G)
  ROPEJIT_TRUST_GROUP     number of a group that may write to the cache folders,
                          and to libraries that are loaded
  ROPEJIT_STRICT          1: a cache folder that others can write to is an error
  ROPEJIT_TUNING          background, blocking, never or frozen
  ROPEJIT_DEVICE          auto, cuda, cuda:N or host
  ROPEJIT_LOCK            a tuning lock file, as prewarm --lock writes it: its
                          variants serve
  ROPEJIT_NVRTC           absolute path of the NVRTC library
  ROPEJIT_LOG             what is logged to stderr, such as debug or
                          ropejit=info (default: warn)
  ROPEJIT_HOST_CXXFLAGS   further options for the host device's C++ compiler
  NO_COLOR, CLICOLOR, CLICOLOR_FORCE
                          1, 0, 1: no colours, no colours, colours in pipes too

Data goes to stdout, everything else to stderr.
Exit status: 0 done, 1 failed, 2 bad usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Run(run::Run),
    Prewarm(Box<prewarm::Prewarm>),
    Pack(pack::Pack),
    Inspect(inspect::Inspect),
    Model(model::Model),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Push(remote::Push),
    Pull(remote::Pull),
    Template(template::Template),
    Test(test::Test),
    Completions(pages::Completions),
    Man(pages::Man),
}

/// Runs the command with these arguments, the program's name first. Returns the exit status. `program` is the command line
/// that starts it in another process.
#[must_use]
pub fn run(program: Vec<OsString>, arguments: impl IntoIterator<Item = OsString>) -> u8 {
    program::set(program);
    log::to_stderr();
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(e) => {
            let _ = e.print(); // help goes to stdout, what is wrong to stderr; where neither can be written, nobody reads
            if e.kind() == Usage::DisplayVersion {
                let _ = output::line(&pages::around());
            }
            return e.exit_code() as u8;
        }
    };
    let done = match command {
        Command::Demo(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Prewarm(command) => command.run(),
        Command::Pack(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Push(command) => command.run(),
        Command::Pull(command) => command.run(),
        Command::Template(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Completions(command) => command.run(Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
    };
    match done {
        Ok(()) => 0,
        Err(e) => {
            let e = advice::advised(e);
            eprintln!("error: {e}");
            // A model's configuration is an argument too.
            let usage = matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::Config);
            if usage { 2 } else { 1 }
        }
    }
}
