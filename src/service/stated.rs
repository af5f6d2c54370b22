//! Values whose meaning a family knows and the service does not: specs, layout classes, assignments of tunables.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A value as its family states it: JSON to keep, a text to print and to look up by. Two are equal when their JSON is.
#[derive(Debug, Clone)]
pub struct Stated {
    json: Value,
    text: String,
    /// The JSON as keys hash it: in the order in which the family wrote it.
    compact: String,
}

impl Stated {
    /// A value of the family's own.
    pub fn of(value: &(impl Serialize + fmt::Display)) -> Self {
        Self {
            json: serde_json::to_value(value).unwrap_or_default(),
            text: value.to_string(),
            compact: serde_json::to_string(value).unwrap_or_default(),
        }
    }

    /// JSON, with the text that the family gives it.
    pub fn new(json: Value, text: impl Into<String>) -> Self {
        Self { compact: json.to_string(), json, text: text.into() }
    }

    /// What is kept.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// What is printed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The JSON as keys hash it.
    pub fn compact(&self) -> &str {
        &self.compact
    }

    /// The value itself, for the family that has stated it; `None` where it is none of its values.
    pub fn to<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        T::deserialize(&self.json).ok()
    }
}

/// The text of JSON whose family is not at hand: `name=value` for each field, in the order of names.
pub fn words(json: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match json {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", word(value))).collect::<Vec<_>>().join(" ")
        }
        other => word(other),
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl PartialEq for Stated {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for Stated {}

impl Serialize for Stated {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Stated {
    /// With the text of `words`, until its family says how it reads.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let text = words(&json);
        Ok(Self::new(json, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_json_whatever_it_is_called() {
        let json: Value = serde_json::from_str(r#"{"vec": 4, "dtype": "bf16"}"#).expect("JSON");
        let stated = Stated::new(json, "bf16, by four");
        let back: Stated = serde_json::from_str(&serde_json::to_string(&stated).expect("kept")).expect("reads back");
        assert_eq!(back, stated);
        assert_eq!((stated.to_string(), back.to_string()), ("bf16, by four".into(), "dtype=bf16 vec=4".into()));
        assert_ne!(back, Stated::new(Value::Null, "bf16, by four"));
    }
}
