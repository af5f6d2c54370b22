//! `tests/data/templates`: one description that is right, and beside it a folder with one file for each thing that can be
//! wrong. The first lines of such a file, from `#! ` on, are the error that it must give.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::families::template::description::{Allowed, Kind, Role, Same};
use crate::families::template::element::Element;
use crate::families::template::names::ElementOf;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates")
}

fn right() -> String {
    std::fs::read_to_string(folder().join("add_rmsnorm.toml")).expect("is there")
}

#[test]
fn reads_what_is_right() {
    let read = read("add_rmsnorm.toml", &right()).expect("is right");
    assert_eq!((read.family.as_str(), read.source.as_str()), ("add_rmsnorm", "add_rmsnorm.cu"));
    assert!(matches!(&read.spec[0].values, Allowed::Words(words) if words.len() == 3));
    assert!(matches!(&read.spec[1].values, Allowed::Any(Element::U32)));
    let tune: Vec<_> = read.tune.iter().map(|t| (t.name.as_str(), t.values.as_slice(), t.default)).collect();
    assert_eq!(tune, [("threads", &[128, 256, 512][..], 256), ("vec", &[8, 4, 1][..], 1)]);
    assert_eq!(read.rules.len(), 2);
    let names: Vec<_> = read.args.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["x", "residual", "weight", "y", "rows", "eps"]);
    let Kind::Tensor { role: Role::InOut, element: ElementOf::Word(0), shape } = &read.args[1].kind else {
        panic!("{:?}", read.args[1])
    };
    assert_eq!(shape.iter().map(|s| s.text().trim()).collect::<Vec<_>>(), ["rows", "hidden"]);
    assert_eq!(read.names.get(read.launch.bucket_arg).name, "rows");
    assert_eq!(read.test.numbers[4], [1.0, 7.0, 64.0]);
    assert_eq!(read.test.numbers[5], [1.0]);
    assert_eq!(read.test.same, Same::Bits);
}

#[test]
fn everything_that_is_wrong_has_its_message() {
    let (mut seen, mut wrong) = (0, String::new());
    for entry in std::fs::read_dir(folder().join("bad")).expect("is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("text");
        let wanted: Vec<_> = text.lines().map_while(|l| l.strip_prefix("#! ")).collect();
        let got = match read(&name, &text) {
            Ok(_) => "nothing is wrong".to_owned(),
            Err(e) => e.to_string(),
        };
        if got != wanted.join("\n") {
            let _ =
                writeln!(wrong, "{name}\n{}\n", got.lines().map(|l| format!("#! {l}")).collect::<Vec<_>>().join("\n"));
        }
        seen += 1;
    }
    assert!(seen > 60, "the files were not found");
    assert!(wrong.is_empty(), "other errors than the files say:\n{wrong}");
}

#[test]
fn a_file_and_its_names_are_bounded() {
    let error = |text: &str| read("big.toml", text).map(|_| ()).expect_err("is refused").to_string();
    assert_eq!(error(&" ".repeat(300_000)), "big.toml: is larger than 262144 bytes");
    let many = (0..70).map(|i| format!("k{i} = \"u32\"")).collect::<Vec<_>>().join("\n");
    let text = right().replace("hidden = \"u32\"\n", &format!("hidden = \"u32\"\n{many}\n"));
    assert_eq!(error(&text), "big.toml:69: [spec] k62: is one name too many: 64 in [spec], [tune] and [args] together");
    let deep = format!("family = {}1{}", "[".repeat(5000), "]".repeat(5000));
    assert!(error(&deep).starts_with("big.toml:1: "), "{}", error(&deep));
}

proptest! {
    /// No text makes it panic; most of these are near to what is right.
    #[test]
    fn any_text_is_read_or_refused(at in 0usize..900, len in 0usize..40, put in "[\\[\\]{}=\",a-z0-9 \n(+*)-]{0,12}|\\PC{0,6}") {
        let mut text = right();
        let at = at.min(text.len());
        let end = (at + len).min(text.len());
        text.replace_range(at..end, &put); // the file is ASCII
        let _ = read("near.toml", &text);
    }
}
