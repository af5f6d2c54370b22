//! The `ropejit` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::current_exe().map(|path| vec![path.into_os_string()]).unwrap_or_default();
    ExitCode::from(ropejit::cli::run(program, std::env::args_os()))
}
