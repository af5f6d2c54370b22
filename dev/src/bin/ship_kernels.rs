//! Compiles the kernels that are shipped for all architectures and writes them to `cache/`, or with `--check` says whether what is
//! there is what comes out, of all or of the architectures named behind it. `make kernels` runs it with the NVRTC that the project pins: another one makes other bytes.

use std::fmt::Write as _;
use std::path::Path;

use rayon::prelude::*;
use ropejit::Error;
use ropejit::device::{Device as _, Target, nvrtc_version};

use ropejit::jit::render::{Dialect, source};
use ropejit::jit::shipped::{ARCHS, DICTIONARY, PTX_ARCH, Shipped, overlaps, sources_digest};

/// What kernels are compressed with, so that what most of them share is stored once.
const DICTIONARY_BYTES: usize = 64 << 10;
const LEVEL: i32 = 22;

fn code(arch: &str, shipped: Shipped) -> Result<Vec<u8>, Error> {
    let text = shipped.render(Dialect::Cuda, overlaps(arch));
    let binary = Target::new(&arch.replace("compute_", "sm_"))?.compile(&source(text))?;
    Ok(if arch == PTX_ARCH { for_older_drivers(binary.ptx())?.into_bytes() } else { binary.image().to_vec() })
}

/// PTX for drivers from CUDA 12.3 on. NVRTC writes its own version into the head, whatever the text needs; these need no more than
/// this one has (`gpu::shipped_ptx_is_bit_exact` has a driver translate it).
fn for_older_drivers(ptx: &[u8]) -> Result<String, Error> {
    const VERSION: &str = ".version 8.3\n";
    let text = String::from_utf8_lossy(ptx);
    let at = text.find(".version ").ok_or_else(|| Error::new(ropejit::ErrorKind::Compile, "PTX without a version"))?;
    let end = text[at..].find('\n').map_or(text.len(), |length| at + length + 1);
    Ok([&text[..at], VERSION, &text[end..]].concat())
}

/// Compares what is shipped for some architectures with what comes out, kernel by kernel.
fn check_some(archs: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let known = ARCHS.into_iter().chain([PTX_ARCH]).filter(|arch| archs.iter().any(|named| named == arch));
    let work: Vec<(&str, Shipped)> =
        known.flat_map(|arch| Shipped::all().filter(move |s| s.is_for(arch)).map(move |s| (arch, s))).collect();
    let same = |&(arch, shipped): &(&str, Shipped)| Ok(shipped.code(arch) == Some(code(arch, shipped)?));
    let same: Vec<bool> = work.par_iter().map(same).collect::<Result<_, Error>>()?;
    if let Some(at) = same.iter().position(|same| !same) {
        let (arch, shipped) = work[at];
        return Err(format!("{shipped} for {arch} is stale: run `make kernels` and commit what it writes").into());
    }
    if work.is_empty() {
        return Err(format!("{} are no architectures that are shipped", archs.join(" ")).into());
    }
    println!("{} kernels of {} are what comes out", same.len(), archs.join(" "));
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = arguments.first().is_some_and(|a| a == "--check");
    if check && arguments.len() > 1 {
        return check_some(&arguments[1..]);
    }
    let all = ARCHS.into_iter().chain([PTX_ARCH]).flat_map(|arch| Shipped::all().map(move |p| (arch, p)));
    let work: Vec<(&str, Shipped)> = all.filter(|(arch, shipped)| shipped.is_for(arch)).collect();
    let codes: Vec<Vec<u8>> = work.par_iter().map(|&(arch, p)| code(arch, p)).collect::<Result<_, Error>>()?;
    let dictionary = zstd::dict::from_samples(&codes, DICTIONARY_BYTES)?;
    let prepared = zstd::dict::EncoderDictionary::copy(&dictionary, LEVEL);
    let mut packer = zstd::bulk::Compressor::with_prepared_dictionary(&prepared)?;
    let all: Vec<Vec<u8>> = codes.iter().map(|code| packer.compress(code)).collect::<Result<_, _>>()?;
    let (_, compiler) = nvrtc_version()?;
    let mut index = format!(
        "# Kernels compiled ahead of time from templates/: where each lies in kernels.bin, and its length there.\n\
         # Written by `make kernels`.\ncompiler = {compiler}\nsources = {}\n",
        sources_digest()
    );
    let mut kernels = Vec::new();
    let mut add = |name: &str, bytes: &[u8]| {
        let _ = writeln!(index, "{name} = {} {}", kernels.len(), bytes.len());
        kernels.extend_from_slice(bytes);
    };
    add(DICTIONARY, &dictionary);
    for ((arch, shipped), code) in work.iter().zip(&all) {
        add(&format!("{arch} {shipped}"), code);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cache");
    for (name, bytes) in [("kernels.txt", index.as_bytes()), ("kernels.bin", &kernels)] {
        let path = folder.join(name);
        if !check {
            fs_err::write(&path, bytes)?;
        } else if fs_err::read(&path)? != bytes {
            return Err(format!("{} is stale: run `make kernels` and commit what it writes", path.display()).into());
        }
    }
    println!("{} kernels, {} bytes, {compiler}", all.len(), kernels.len() + index.len());
    Ok(())
}
