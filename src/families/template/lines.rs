//! Lines of a lock file that are of a kernel of a user's, read without its description.

use serde_json::Value;

use super::element::Element;
use super::names::is_name;
use crate::error::{Error, Result, clip};
use crate::service::family::{Line, Stated};

/// Whether a line is of such a kernel: its spec is a name, and one more word at most.
pub fn is_own(line: &Line<'_>) -> bool {
    let mut words = line.spec.split(' ');
    let family = words.next().unwrap_or_default();
    is_name(family) && Element::of(family).is_none() && words.count() <= 1
}

/// Whether a line can be read.
///
/// # Errors
/// When a part of it is none of such a kernel's.
pub fn read(line: &Line<'_>) -> Result<()> {
    let pairs = |text: &str, apart: char, sign: char| {
        text.split(apart)
            .all(|pair| pair.split_once(sign).is_some_and(|(name, value)| is_name(name) && is_value(value)))
    };
    let spec = line.spec.split_once(' ').map_or("", |(_, values)| values);
    let wrong = |what: &str, text: &str, hint: &str| {
        Err(Error::argument(what, format!("'{}' is none", clip(text))).hint(format!("it reads like this: {hint}")))
    };
    if !spec.is_empty() && !pairs(spec, ',', '=') {
        return wrong("spec", spec, "dtype=bf16,hidden=4096");
    }
    if line.class != "any" && !pairs(line.class, ' ', ':') {
        return wrong("layout", line.class, "x:16 y:16, or any");
    }
    if line.config != "default" && !pairs(line.config, ' ', '=') {
        return wrong("variant", line.config, "threads=256 vec=8");
    }
    Ok(())
}

/// Gives what an entry holds the family's words, as far as they are known without its description.
pub fn restate(family: &str, spec: &mut Stated, class: &mut Stated) {
    let pairs = |json: &Value, sign: &str| -> Vec<String> {
        let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        json.as_object().into_iter().flatten().map(|(name, value)| format!("{name}{sign}{}", word(value))).collect()
    };
    let aligned = pairs(class.json(), ":");
    let class_text = if aligned.is_empty() { "any".to_owned() } else { aligned.join(" ") };
    let spec_text = format!("{family} {}", pairs(spec.json(), "=").join(","));
    *spec = Stated::new(spec.json().clone(), spec_text.trim_end());
    *class = Stated::new(class.json().clone(), class_text);
}

/// A word, or an integer.
fn is_value(text: &str) -> bool {
    is_name(text) || text.parse::<i64>().is_ok_and(|n| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(spec: &'a str, class: &'a str, config: &'a str) -> Line<'a> {
        Line { spec, class, config }
    }

    #[test]
    fn entries_are_restated_with_their_familys_name() {
        let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let mut spec = Stated::new(json(r#"{"dtype": "bf16", "hidden": 64}"#), "");
        let (mut class, mut none) = (Stated::new(json(r#"{"x": 16}"#), ""), Stated::new(json("{}"), ""));
        restate("norm", &mut spec, &mut class);
        assert_eq!((spec.text(), class.text()), ("norm dtype=bf16,hidden=64", "x:16"));
        restate("norm", &mut none, &mut class);
        assert_eq!(none.text(), "norm");
    }

    #[test]
    fn lines_are_told_apart_and_read() {
        let right = line("add_rmsnorm dtype=bf16,hidden=4096", "x:16 y:8", "threads=256 mode=fast");
        assert!(is_own(&right) && read(&right).is_ok());
        assert!(read(&line("plain", "any", "default")).is_ok());
        assert!(!is_own(&line("bf16 d128 h32/8 half_split once table=f32/half pos=implicit", "", "")));
        for (wrong, what) in [
            (
                line("a dtype", "any", "default"),
                "spec: 'dtype' is none\nhint: it reads like this: dtype=bf16,hidden=4096",
            ),
            (line("a b=1", "x16", "default"), "layout: 'x16' is none\nhint: it reads like this: x:16 y:16, or any"),
            (line("a b=1", "any", "a=01"), "variant: 'a=01' is none\nhint: it reads like this: threads=256 vec=8"),
        ] {
            assert_eq!(read(&wrong).expect_err("is wrong").to_string(), what);
        }
    }
}
