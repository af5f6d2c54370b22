//! Any text as the `.toml` of a kernel, and as its `.cu`: an error that names file and line, or a description whose candidates
//! read back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ropejit::families::template::fuzzing;

fuzz_target!(|text: &str| {
    let _ = fuzzing::description(text);
});
