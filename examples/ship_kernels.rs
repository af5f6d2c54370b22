//! Compiles the kernels that are shipped for all architectures and writes them to `cache/`, or with `--check` says whether what is
//! there is what comes out. `make kernels` runs it with the NVRTC that the project pins: another one makes other bytes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use rayon::prelude::*;
use ropejit::Error;
use ropejit::device::{Device as _, Target, nvrtc_version};

use ropejit::jit::render::{Dialect, source};
use ropejit::jit::shipped::{ARCHS, PTX_ARCH, Shipped, sources_digest};

fn packed(arch: &str, shipped: Shipped) -> Result<Vec<u8>, Error> {
    let ptx = arch == PTX_ARCH;
    let binary = Target::new(&arch.replace("compute_", "sm_"))?.compile(&source(shipped.render(Dialect::Cuda)))?;
    let code = if ptx { binary.ptx() } else { binary.image() };
    let mut packer = DeflateEncoder::new(Vec::new(), Compression::best());
    packer
        .write_all(code)
        .and_then(|()| packer.finish())
        .map_err(|e| Error::new(ropejit::ErrorKind::Io, "a kernel cannot be packed").caused_by(e))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let check = std::env::args().nth(1).is_some_and(|a| a == "--check");
    let work: Vec<(&str, Shipped)> =
        ARCHS.into_iter().chain([PTX_ARCH]).flat_map(|arch| Shipped::all().map(move |p| (arch, p))).collect();
    let all: Vec<Vec<u8>> = work.par_iter().map(|&(arch, p)| packed(arch, p)).collect::<Result<_, Error>>()?;
    let (_, compiler) = nvrtc_version()?;
    let mut index = format!(
        "# Kernels compiled ahead of time from templates/: where each lies in kernels.bin, and its length there.\n\
         # Written by `make kernels`.\ncompiler = {compiler}\nsources = {}\n",
        sources_digest()
    );
    let mut kernels = Vec::new();
    for ((arch, shipped), code) in work.iter().zip(&all) {
        let _ = writeln!(index, "{arch} {shipped} = {} {}", kernels.len(), code.len());
        kernels.extend_from_slice(code);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache");
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
