//! What differs between the fields of two keys, in words.

use std::collections::BTreeMap;

use ropejit::jit::KeyFields;
use serde::Serialize;
use serde_json::Value;

/// A field whose values differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub field: String,
    pub expected: String,
    pub found: String,
    /// What that says.
    pub meaning: String,
}

/// The fields in which `found` is not what was `expected`. What follows from others comes last.
pub fn differences(expected: &KeyFields, found: &KeyFields) -> Vec<Difference> {
    let mut all = Vec::new();
    for (name, wanted) in &expected.0 {
        let have = found.get(name).unwrap_or("–");
        if have == wanted {
            continue;
        }
        match name.as_str() {
            "spec" => all.extend(of_spec(wanted, have)),
            "space" | "source" => {}
            _ => all.push(Difference {
                field: name.clone(),
                expected: shown(name, wanted),
                found: shown(name, have),
                meaning: meaning(name).into(),
            }),
        }
    }
    let cause = all.iter().any(|d| d.field != "device" && d.field != "compiler" && d.field != "policy");
    for (name, wanted) in &expected.0 {
        let have = found.get(name).unwrap_or("–");
        if have == wanted {
            continue;
        }
        let (expected, found, meaning) = match name.as_str() {
            "space" => {
                let [here, there] = [wanted, have].map(|list| list.split("; ").collect::<Vec<_>>());
                let only = |of: &[&str], other: &[&str]| {
                    let only: Vec<&str> = of.iter().filter(|v| !other.contains(v)).copied().collect();
                    if only.is_empty() { "–".to_owned() } else { only.join("; ") }
                };
                let meaning = if cause {
                    "other candidates, as follows from the above"
                } else {
                    "the program offers other candidates"
                };
                (only(&here, &there), only(&there, &here), meaning)
            }
            "source" if cause => (shown(name, wanted), shown(name, have), "another text, as follows from the above"),
            "source" => (shown(name, wanted), shown(name, have), "the program's templates changed"),
            _ => continue,
        };
        all.push(Difference { field: name.clone(), expected, found, meaning: meaning.into() });
    }
    all
}

/// How far an entry is from what is wanted. Another computation or device is farther than another bucket or layout, and
/// what follows from others does not count.
pub fn distance(differences: &[Difference]) -> usize {
    differences
        .iter()
        .filter(|d| !d.meaning.ends_with("from the above"))
        .map(|d| if d.field.starts_with("spec") || matches!(d.field.as_str(), "device" | "arch") { 2 } else { 1 })
        .sum()
}

fn of_spec(wanted: &str, have: &str) -> Vec<Difference> {
    let [wanted, have] = [wanted, have].map(leaves);
    let mut names: Vec<&String> = wanted.keys().chain(have.keys()).collect();
    names.sort();
    names.dedup();
    let value = |of: &BTreeMap<String, String>, name: &String| of.get(name).cloned().unwrap_or_else(|| "–".into());
    let differs = |name: &&String| value(&wanted, name) != value(&have, name);
    let difference = |name: &String| Difference {
        field: format!("spec.{name}"),
        expected: value(&wanted, name),
        found: value(&have, name),
        meaning: "another computation".into(),
    };
    names.into_iter().filter(differs).map(difference).collect()
}

/// The values of a JSON object, those inside of others by their path.
fn leaves(text: &str) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, value, into);
                }
            }
            Value::String(text) => drop(into.insert(path.to_owned(), text.clone())),
            other => drop(into.insert(path.to_owned(), other.to_string())),
        }
    }
    let mut all = BTreeMap::new();
    walk("", &serde_json::from_str(text).unwrap_or_default(), &mut all);
    all
}

/// A value as people read it: of a digest, enough to tell it from another.
fn shown(name: &str, value: &str) -> String {
    match name {
        "templates" | "source" => value.get(..12).unwrap_or(value).to_owned(),
        _ => value.replace('\n', " "),
    }
}

fn meaning(name: &str) -> &'static str {
    match name {
        "format" => "another version of the cache's format",
        "family" => "another family of kernels",
        "templates" => "the program's templates changed",
        "bucket" => "another number of tokens",
        "class" => "another layout or alignment of the tensors",
        "device" => "another device",
        "policy" => "another way of measuring",
        "options" => "other compiler options",
        "compiler" => "another compiler",
        "arch" => "another architecture",
        "variant" => "another variant",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use ropejit::jit::{Bucket, Class, variant};
    use ropejit::{DType, RopeSpec};

    use super::*;

    fn fields(spec: &RopeSpec, tokens: u64, device: &str) -> KeyFields {
        let class = Class::contiguous(spec, false, true);
        let can = variant::Abilities { dialect: ropejit::jit::render::Dialect::Cuda, overlap: true, cubins: None };
        let space = variant::space(spec, class, Bucket::of(tokens), can);
        ropejit::families::rope::choice_fields(spec, Bucket::of(tokens), class, &space, device)
    }

    #[test]
    fn fields_are_told_apart_and_consequences_come_last() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let wanted = fields(&spec, 8192, "GPU");
        assert_eq!(differences(&wanted, &wanted), []);
        let other = RopeSpec::new(DType::F32, 128, 32, 4);
        let all = differences(&wanted, &fields(&other, 16, "another GPU"));
        let names: Vec<_> = all.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(names, ["spec.dtype", "spec.num_kv_heads", "bucket", "device", "space"]);
        assert_eq!((&*all[0].expected, &*all[0].found), ("bf16", "f32"));
        assert!(all[4].meaning.ends_with("from the above"));
        assert_eq!(distance(&all), 2 + 2 + 1 + 2);
    }

    #[test]
    fn digests_are_said_in_words() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let wanted = fields(&spec, 8192, "GPU");
        let mut found = wanted.clone();
        for (name, value) in &mut found.0 {
            match name.as_str() {
                "templates" => *value = "0".repeat(64),
                "space" => value.push_str("; t32 v8 h1 wb/wb"),
                _ => {}
            }
        }
        let all = differences(&wanted, &found);
        assert_eq!(all[0].meaning, "the program's templates changed");
        assert_eq!((&*all[1].found, &*all[1].expected), ("t32 v8 h1 wb/wb", "–"));
        let broken = KeyFields(vec![("kind".into(), "choice".into()), ("spec".into(), "{".into())]);
        assert!(differences(&wanted, &broken).len() > 5, "what is no JSON has no fields");
    }
}
