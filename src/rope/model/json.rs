//! JSON as Python writes it.

use serde_json::{Result, Value};

/// The numbers that Python's `json` writes and that JSON has not. Here they are strings of the same name, so whoever asks for a
/// number gets an error that names the key, and nobody else notices.
pub(super) const NOT_FINITE: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// Reads a text.
pub(super) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).or_else(|e| match quoted(text) {
        Some(quoted) => serde_json::from_str(&quoted),
        None => Err(e),
    })
}

/// The text with quotes around what is not a finite number; none where there is no such thing.
fn quoted(text: &str) -> Option<String> {
    let mut out = String::new();
    let (mut rest, mut in_string) = (text, false);
    let mut found = false;
    while let Some(c) = rest.chars().next() {
        let number = NOT_FINITE.iter().find(|name| !in_string && rest.starts_with(**name));
        let taken = match (number, c) {
            (Some(name), _) => {
                found = true;
                out.extend(["\"", name, "\""]);
                name.len()
            }
            // An escaped quote does not end a string.
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, c) => {
                in_string ^= c == '"';
                c.len_utf8()
            }
        };
        if number.is_none() {
            out.push_str(&rest[..taken]);
        }
        rest = &rest[taken..];
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let text = r#"{"a": [0.0, Infinity, -Infinity], "b": NaN, "c\"NaN": "Infinity \\", "é": "NaN"}"#;
        let expected = json!({"a": [0.0, "Infinity", "-Infinity"], "b": "NaN", "c\"NaN": "Infinity \\", "é": "NaN"});
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_stays_wrong() {
        for text in
            ["", "NaN1", "[1NaN]", "[- Infinity]", "[NaN NaN]", "[+Infinity]", "[nan]", "\"NaN", "\"\\", "[Inf]"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
