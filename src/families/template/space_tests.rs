use std::time::{Duration, Instant};

use super::*;
use crate::families::template::element::Element;
use crate::families::template::names::MOST as NAMES;
use crate::families::template::read::read;

const TEXT: &str = include_str!("../../../tests/data/templates/add_rmsnorm.toml");

fn description(text: &str) -> Description {
    read("add.toml", text).expect("is right")
}

/// f32 elements, with these alignments of x, residual, weight and y.
fn values(hidden: i64, aligned: [i64; 4]) -> Values {
    let mut values = [0; NAMES];
    (values[0], values[1]) = (Element::F32.id(), hidden);
    values[4..8].copy_from_slice(&aligned);
    values
}

fn texts(d: &Description, values: &Values) -> Vec<String> {
    d.space(values).expect("is legal").iter().map(|a| d.assignment_text(a)).collect()
}

#[test]
fn the_default_is_first_and_rules_forbid() {
    let d = description(TEXT);
    let all = texts(&d, &values(4096, [32; 4]));
    assert_eq!(all.len(), 9);
    assert_eq!(all[..3], ["threads=256 vec=1", "threads=128 vec=8", "threads=128 vec=4"]);
    assert_eq!(texts(&d, &values(4096, [16, 32, 32, 32])).len(), 6);
    assert_eq!(texts(&d, &values(4095, [32; 4])), ["threads=256 vec=1", "threads=128 vec=1", "threads=512 vec=1"]);
}

#[test]
fn calls_that_no_rule_tells_apart_share_a_class() {
    let d = description(TEXT);
    let class = |hidden, aligned| d.class_text(&d.canonical_class(&values(hidden, aligned)).expect("is legal"));
    assert_eq!(class(4096, [32; 4]), "x:32 residual:32 weight:32 y:32");
    assert_eq!(class(4096, [16, 32, 32, 16]), "x:16 residual:16 weight:16 y:16");
    assert_eq!(class(4096, [4, 32, 32, 16]), class(4096, [8, 8, 8, 8]));
    // Without vectors no alignment matters beyond an element's.
    assert_eq!(class(4095, [32; 4]), class(4095, [4; 4]));
}

#[test]
fn a_default_that_a_rule_forbids_says_where() {
    let d = description(&TEXT.replace("vec = 1 }", "vec = 8 }"));
    let error = d.space(&values(4100, [32; 4])).expect_err("is illegal").to_string();
    assert_eq!(
        error,
        "add.toml:12: [tune] default: 'hidden % vec == 0' forbids it where hidden = 4100, vec = 8\n\
         hint: choose a default that is legal for every call: it answers the first one"
    );
    let error = d.space(&values(4096, [32, 8, 32, 32])).expect_err("is illegal").to_string();
    assert!(
        error.contains("where dtype = f32, vec = 8, align(x) = 32, align(residual) = 8, align(weight) = 32"),
        "{error}"
    );
}

#[test]
fn a_rule_without_a_value_says_for_which_candidate() {
    let d = description(&TEXT.replace("hidden % vec == 0", "hidden % (vec - 4) == 0"));
    let error = d.space(&values(4096, [32; 4])).expect_err("divides by zero").to_string();
    assert_eq!(error, "add.toml:12: [tune] where: 'hidden % (vec - 4) == 0' divides by zero for threads=128 vec=4");
}

#[test]
fn too_many_candidates_are_counted() {
    let list = |n: usize| (1..=n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let more = |n: usize, names: &[&str]| {
        let lists = names.iter().map(|name| format!("{name} = [{}]\n", list(n))).collect::<Vec<_>>().concat();
        let defaults = names.iter().map(|name| format!("{name} = 1, ")).collect::<Vec<_>>().concat();
        let text = TEXT.replace("[tune]\n", &format!("[tune]\n{lists}"));
        description(&text.replace("default = { ", &format!("default = {{ {defaults}")))
    };
    let d = more(20, &["unroll"]);
    assert!(d.check_combinations().is_ok());
    // One tunable more: the arguments' values lie one further on.
    let mut values = values(4096, [32; 4]);
    values[8] = 32;
    assert_eq!(
        d.space(&values).expect_err("too many").to_string(),
        "add.toml:8: [tune]: 180 candidates are legal, and 64 is the most\n\
         hint: shorten the lists, or forbid more by 'where'"
    );
    let started = Instant::now();
    for (n, names, count) in [
        (100, &["a", "b", "c"][..], "9000000"),
        (
            200,
            &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"],
            "58982400000000000000000000000000000000",
        ),
    ] {
        let error = more(n, names).check_combinations().expect_err("too many").to_string();
        assert_eq!(
            error.lines().next(),
            Some(&*format!("add.toml:8: [tune]: its lists make {count} combinations, and 64 candidates is the most"))
        );
    }
    assert!(started.elapsed() < Duration::from_secs(5), "counted, not tried");
}
