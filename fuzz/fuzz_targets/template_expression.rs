//! Any text as an expression, over any numbers: an error that says where, a value, or none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ropejit::families::template::fuzzing;

fuzz_target!(|input: (&str, [i64; 3])| {
    let _ = fuzzing::expression(input.0, input.1);
});
