//! Programs in C, compiled by the system's compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of this crate's, which lies where this test does.
fn library(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let found = test.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} was not built beside {}", test.display()))
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// Compiles a program, and gives where it is.
fn compiled(folder: &Path, source: &str, last: &[&str]) -> PathBuf {
    let program = folder.join("program");
    let mut cc = Command::new("cc");
    // The formula is not to be contracted, where a processor could.
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-ffp-contract=off"]);
    cc.arg("-I").arg(root("include")).arg("-o").arg(&program).arg(root("tests/c").join(source)).args(last);
    succeeds(&mut cc);
    program
}

/// What a program in C needs beside the static library.
const SYSTEM: [&str; 4] = ["-lm", "-lpthread", "-ldl", "-lgcc_s"];

#[test]
fn a_program_links_the_shared_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = library("libropejit_c.so");
    let at = shared.parent().expect("a folder").display().to_string();
    let (search, run) = (format!("-L{at}"), format!("-Wl,-rpath,{at}"));
    let program = compiled(folder.path(), "call.c", &[&search, "-lropejit_c", &run, "-lm", "-lpthread"]);
    assert_eq!(succeeds(&mut Command::new(program)), "all is well\n");
}

#[test]
fn a_program_links_the_static_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = library("libropejit_c.a").display().to_string();
    let program = compiled(folder.path(), "call.c", &[&[archive.as_str()], &SYSTEM[..]].concat());
    assert_eq!(succeeds(&mut Command::new(program)), "all is well\n");
}

#[test]
fn a_program_loads_the_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compiled(folder.path(), "load.c", &["-ldl"]);
    assert_eq!(succeeds(Command::new(program).arg(library("libropejit_c.so"))), "all is well\n");
}

/// The page's program is compiled and run as it stands.
#[test]
fn the_pages_program_works() {
    let page = std::fs::read_to_string(root("../docs/c.md")).expect("the page");
    let program = page.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a program");
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("page.c");
    std::fs::write(&source, program).expect("written");
    let archive = library("libropejit_c.a").display().to_string();
    let compiled = compiled(folder.path(), &source.display().to_string(), &[&[archive.as_str()], &SYSTEM[..]].concat());
    let printed = program.split("/* ").last().and_then(|rest| rest.split(" */").next()).expect("what it prints");
    let cache = folder.path().join("cache");
    assert_eq!(succeeds(Command::new(compiled).env("ROPEJIT_CACHE_DIR", cache)), format!("{printed}\n"));
}

/// C++ takes the header, and so does a program that has `DLPack`'s own types.
#[test]
fn the_header_is_cpp_as_well_and_takes_dlpacks_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = "#define DLPACK_DLPACK_H_\n#include <stdint.h>\ntypedef struct { void *data; } DLTensor;\n";
    for (before, language) in [("", "c++"), ("", "c"), (own, "c")] {
        let file = folder.path().join("header");
        std::fs::write(&file, format!("{before}#include \"ropejit.h\"\nconst DLTensor *tensor;\n")).expect("written");
        let mut cc = Command::new(if language == "c" { "cc" } else { "c++" });
        cc.args(["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", language]).arg("-I").arg(root("include"));
        succeeds(cc.arg(file));
    }
}
