//! Packs over stores, with servers on loopback that the tests start themselves: `make test-remote`.
//!
//! A binary of its own, since it takes minutes. The faults need a C++ compiler only; `servers` wants the programs of real servers, and
//! says loudly which of them is absent. Every count that a test makes is printed.
#![cfg(unix)]

mod faults;
mod kills;
mod many;
mod server;
mod servers;
mod site;

/// Says that something was left out, past the capture of tests' output.
fn skipped(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Says what was counted.
fn counted(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "counted: {what}");
}
