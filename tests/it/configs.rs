//! A case is a file: `tests/data/configs/NAME.json`, and beside it `NAME.out`, what is understood of it or why it is refused.
//!
//! `ROPEJIT_TEST_BLESS=1` writes what is understood now: look at what changed before it is kept.

use std::fmt::Write as _;
use std::path::Path;

use ropejit::DType;
use ropejit::rope::model::ModelConfig;

fn understood(text: &str) -> String {
    let config = match ModelConfig::from_json(text) {
        Ok(config) => config,
        Err(e) => return format!("error: {e}\n"),
    };
    let mut out = String::new();
    for (layer, rope) in &config.layers {
        let frequencies = rope.frequencies(None).unwrap();
        let (first, last) = (frequencies.inv_freq[0], frequencies.inv_freq[rope.rotary_dim as usize / 2 - 1]);
        writeln!(out, "{layer}: theta {}, inv_freq {first} … {last}, A {}", rope.theta, frequencies.attention_factor)
            .unwrap();
        match config.layer_spec(layer) {
            Ok(spec) => writeln!(out, "  {spec}").unwrap(),
            Err(e) => writeln!(out, "  error: {e}").unwrap(),
        }
        let mut of_flag = config.clone();
        of_flag.dtype = Some(DType::F16);
        assert_eq!(of_flag.layer_spec(layer).unwrap().dtype, DType::F16, "a type that is set goes before the file's");
    }
    if !config.unread.is_empty() {
        writeln!(out, "not read: {}", config.unread.join(", ")).unwrap();
    }
    out
}

#[test]
fn files_are_understood_or_refused_as_written_beside_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs");
    let mut cases = 0;
    let mut wrong = String::new();
    for entry in fs_err::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        cases += 1;
        let got = understood(&fs_err::read_to_string(&path).unwrap());
        let expected = path.with_extension("out");
        if std::env::var_os("ROPEJIT_TEST_BLESS").is_some() {
            fs_err::write(&expected, &got).unwrap();
        }
        let expected = fs_err::read_to_string(&expected).unwrap_or_default();
        if got != expected {
            writeln!(wrong, "{}:\n{got}expected:\n{expected}", path.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(cases > 20, "{cases} cases in {}", folder.display());
}
