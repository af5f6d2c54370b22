//! The whole text of a kernel: `#define` lines for the spec and the tunables, the prelude, and the `.cu` as it stands.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::description::{Allowed, Description, Kind};
use super::names::Values;
use super::on_host::OnHost;
use super::prelude::{ATOMICS, COMMON, CUDA, ENTRY, FIBERS, HOST, PLACE, THREADS};
use crate::service::family::{Dialect, Source};

/// The kernel of one spec and one assignment of the tunables, whose values are among `values`.
pub fn source(d: &Description, body: &str, on_host: &OnHost, dialect: Dialect, values: &Values) -> Source {
    let mut text = String::with_capacity(16 << 10);
    defines(d, values, &mut text);
    let mut part = |name: &str, body: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "#line 1 \"{name}\"\n{body}");
    };
    match dialect {
        Dialect::Cuda => {
            part("ropejit/cuda.h", CUDA);
            part("ropejit/common.h", COMMON);
        }
        Dialect::Host => {
            part("ropejit/host.h", HOST);
            part("ropejit/common.h", COMMON);
            part("ropejit/atomics.h", ATOMICS);
            part("ropejit/place.h", PLACE);
            let threads = if *on_host == OnHost::Waiting { FIBERS } else { THREADS };
            part("ropejit/threads.h", threads);
        }
    }
    part(&d.source, body);
    if dialect == Dialect::Host {
        part(
            "ropejit/names.h",
            &format!(
                "#define ROPEJIT_ENTRY {0}\n#define ROPEJIT_BLOCKS {0}_blocks\n#define ROPEJIT_FAULT {0}_fault",
                d.family
            ),
        );
        part("ropejit/entry.h", ENTRY);
    }
    let mut options = d.launch.options.clone();
    if dialect == Dialect::Host {
        // The others are NVRTC's.
        options = options.into_iter().filter_map(|o| Some(format!("-D{}", define_option(&o)?))).collect();
    }
    Source { text, entry: d.family.clone(), options }
}

fn define_option(option: &str) -> Option<&str> {
    option.strip_prefix("-D").or_else(|| option.strip_prefix("--define-macro="))
}

/// `hidden = 4096` is `#define HIDDEN 4096`, `dtype = bf16` is `#define DTYPE bf16` and `#define DTYPE_BF16 1`.
fn defines(d: &Description, values: &Values, text: &mut String) {
    let spec = d.spec.iter().map(|s| (&s.name, matches!(s.values, Allowed::Words(_))));
    let tune = d.tune.iter().map(|t| (&t.name, t.words));
    for (i, (name, is_word)) in spec.chain(tune).enumerate() {
        let (name, value) = (name.to_uppercase(), values[i]);
        if is_word {
            let word = d.names.word_text(value);
            let _ = writeln!(text, "#define {name} {word}\n#define {name}_{} 1", word.to_uppercase());
        } else {
            let suffix = match value {
                i64::MIN..=-0x8000_0001 | 0x1_0000_0000.. => "ll",
                0x8000_0000..=0xffff_ffff => "u",
                _ => "",
            };
            let _ = writeln!(text, "#define {name} {value}{suffix}");
        }
    }
}

/// SHA-256, in hexadecimal, over all that kernels and their launches are made of, beside the values of spec and tunables. How
/// they are checked is no part of it, nor are comments of the description.
pub fn digest(d: &Description, body: &str) -> String {
    let mut parts: Vec<String> =
        [COMMON, CUDA, HOST, ATOMICS, PLACE, THREADS, FIBERS, ENTRY, &d.family, body].map(str::to_owned).to_vec();
    for arg in &d.args {
        parts.push(match &arg.kind {
            Kind::Number(element) => format!("{} {element}", arg.name),
            Kind::Tensor { role, element, shape } => {
                let shape: Vec<_> = shape.iter().map(super::expr::Expr::text).collect();
                format!("{} {} {element:?} {shape:?}", arg.name, role.name())
            }
        });
    }
    let launch = &d.launch;
    let rules = d.rules.iter().map(|r| &r.expr);
    let single = [&launch.shared, &launch.bucket].into_iter();
    let exprs = launch.grid.iter().chain(&launch.block).chain(single).chain(rules);
    parts.extend(exprs.map(|e| e.text().to_owned()));
    parts.push(format!("{} {}", launch.grid.len(), launch.block.len()));
    parts.extend(launch.options.iter().cloned());
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    crate::service::digest::hex(&hasher.finalize())
}

#[cfg(test)]
#[path = "source_tests.rs"]
pub(super) mod tests;
