use std::sync::Arc;

use super::*;
use crate::device::{Device, Target, host::Host};
use crate::families::template::element::Element;
use crate::families::template::kernel_text;
use crate::families::template::names::MOST;
use crate::families::template::read::read;

/// A family of `tests/data/templates`: its description, its text and what the host device makes of it.
pub fn family(name: &str) -> (Description, String, OnHost) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    let text = |ending: &str| std::fs::read_to_string(folder.join(format!("{name}.{ending}"))).expect("is there");
    let description = read(&format!("{name}.toml"), &text("toml")).expect("is right");
    let body = text("cu");
    let on_host = kernel_text::check(&format!("{name}.cu"), &body, &description).expect("is right");
    (description, body, on_host)
}

fn values(d: &Description, dtype: Element, hidden: i64, assignment: &[i64]) -> Values {
    let mut values = [0; MOST];
    (values[0], values[1]) = (dtype.id(), hidden);
    d.assign(&mut values, assignment);
    values
}

#[test]
fn the_kernel_sees_what_was_chosen() {
    let (d, body, on_host) = family("add_rmsnorm");
    let values = values(&d, Element::Bf16, 4096, &[256, 8]);
    let text = source(&d, &body, &on_host, Dialect::Cuda, &values).text;
    let defines = "#define DTYPE bf16\n#define DTYPE_BF16 1\n#define HIDDEN 4096\n#define THREADS 256\n#define VEC 8\n";
    assert!(text.starts_with(&format!("{defines}#line 1 \"ropejit/cuda.h\"\n")), "{text}");
    assert!(text.contains("#line 1 \"add_rmsnorm.cu\"\n// residual += x"));
}

#[test]
fn large_numbers_have_their_types() {
    let (d, body, on_host) = family("add_rmsnorm");
    for (n, text) in
        [(0x7fff_ffff, "2147483647"), (0xffff_ffff, "4294967295u"), (1 << 40, "1099511627776ll"), (-5, "-5")]
    {
        let values = values(&d, Element::F32, n, &[256, 8]);
        assert!(source(&d, &body, &on_host, Dialect::Host, &values).text.contains(&format!("#define HIDDEN {text}\n")));
    }
}

#[test]
fn the_digest_tells_texts_apart_and_not_comments() {
    let text = include_str!("../../../tests/data/templates/scale.toml");
    let digest_of = |text: &str, body: &str| digest(&read("scale.toml", text).expect("is right"), body);
    let own = digest_of(text, "body");
    assert_eq!(own, digest_of(&format!("# more\n{}", text.replace("n = [1, 1000]", "n = 5")), "body"));
    for (from, to) in [
        ("block = [\"threads\"]", "block = [\"threads\", \"1\"]"),
        ("bucket = \"n\"", "bucket = \"n * 2\""),
        (">= vec", "> vec"),
        ("y = \"out dtype[n]\"", "y = \"out dtype[n + 0]\""),
        ("factor = \"f32\"", "factor = \"f64\""),
        ("bucket = \"n\"", "bucket = \"n\"\noptions = [\"--fmad=true\"]"),
    ] {
        assert!(text.contains(from));
        assert_ne!(own, digest_of(&text.replace(from, to), "body"), "{to}");
    }
    assert_ne!(own, digest_of(text, "other"));
}

#[test]
fn options_of_nvrtc_are_not_for_the_host() {
    let text = include_str!("../../../tests/data/templates/scale.toml")
        .replace("bucket = \"n\"", "bucket = \"n\"\noptions = [\"--fmad=true\", \"-DA=1\", \"--define-macro=B\"]");
    let d = read("scale.toml", &text).expect("is right");
    let of = |dialect| source(&d, "", &OnHost::InTurn, dialect, &[0; MOST]).options;
    assert_eq!(of(Dialect::Cuda), ["--fmad=true", "-DA=1", "--define-macro=B"]);
    assert_eq!(of(Dialect::Host), ["-DA=1", "-DB"]);
}

/// Every type, both ways to run threads, both dialects: NVRTC where there is one.
#[test]
fn sources_compile() {
    let host: Arc<dyn Device> = Arc::new(Host::open());
    let gpu = Target::new("sm_90").expect("an architecture");
    for name in ["add_rmsnorm", "scale"] {
        let (d, body, on_host) = family(name);
        for dtype in
            [Element::F32, Element::F16, Element::Bf16].into_iter().filter(|e| name != "scale" || *e != Element::F16)
        {
            let mut values = values(&d, dtype, 4096, &[]);
            d.assign(&mut values, &d.default_assignment());
            host.compile(&source(&d, &body, &on_host, Dialect::Host, &values)).expect("compiles");
            match gpu.compile(&source(&d, &body, &on_host, Dialect::Cuda, &values)) {
                Err(e) if e.kind() == crate::ErrorKind::CompilerMissing => eprintln!("skipped: no NVRTC"),
                compiled => drop(compiled.expect("compiles")),
            }
        }
    }
}
