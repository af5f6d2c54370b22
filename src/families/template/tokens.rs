//! A look at a `.cu` without compiling it: its words and signs, without comments and texts.

/// A word, a number, or a sign of one letter, with its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
    /// It is the first of its line.
    pub first: bool,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    }
}

/// The tokens of a C++ text. A text in quotes is one token, with its quotes.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let (mut at, mut line, mut first) = (0, 1, true);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let skipped = if rest.starts_with("//") {
            Some(line_comment(rest))
        } else if let Some(inside) = rest.strip_prefix("/*") {
            Some(inside.find("*/").map_or(rest.len(), |end| end + 4))
        } else if splice(rest) > 0 {
            // The next line is part of this one.
            Some(splice(rest))
        } else {
            None
        };
        if let Some(len) = skipped {
            line += newlines(&rest[..len]);
            at += len;
            continue;
        }
        if c == '\n' {
            (line, first) = (line + 1, true);
        }
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        let len = match c {
            'R' if rest.starts_with("R\"") => raw_text(rest),
            '"' | '\'' => quoted(rest, c),
            c if c.is_ascii_alphanumeric() || c == '_' => {
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        all.push(Token { text: &rest[..len], line, first });
        line += newlines(&rest[..len]);
        (at, first) = (at + len, false);
    }
    all
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'\n').count()
}

/// The length of a backslash with the line's end behind it.
fn splice(text: &str) -> usize {
    ["\\\n", "\\\r\n"].into_iter().find(|s| text.starts_with(s)).map_or(0, str::len)
}

/// Up to the line's end, which a backslash puts off.
fn line_comment(text: &str) -> usize {
    let mut at = 0;
    while let Some(end) = text[at..].find('\n') {
        let line = text[..at + end].trim_end_matches('\r');
        if !line.ends_with('\\') {
            return at + end;
        }
        at += end + 1;
    }
    text.len()
}

/// A text or letter in quotes, up to the closing one or the line's end.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => return at,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `R"name( … )name"`.
fn raw_text(text: &str) -> usize {
    let Some(open) = text.find('(') else { return 2 };
    let end = format!("){}\"", &text[2..open]);
    text[open..].find(&end).map_or(text.len(), |at| open + at + end.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn comments_are_skipped_and_texts_are_whole() {
        assert_eq!(texts("a /* b \n c */ d // e \\\n f\ng"), ["a", "d", "g"]);
        assert_eq!(
            texts(r#"s = "/* no \" */"; c = '"'; R"x(")" // )x" e"#),
            ["s", "=", r#""/* no \" */""#, ";", "c", "=", "'\"'", ";", r#"R"x(")" // )x""#, "e"]
        );
        assert_eq!(texts("float4 x_1=1.5f;"), ["float4", "x_1", "=", "1", ".", "5f", ";"]);
    }

    #[test]
    fn lines_are_counted_through_all_of_it() {
        let all = tokens("/*\n\n*/ # \\\n include \"x\"\ny");
        let lines: Vec<_> = all.iter().map(|t| (t.text, t.line, t.first)).collect();
        assert_eq!(lines, [("#", 3, true), ("include", 4, false), ("\"x\"", 4, false), ("y", 5, true)]);
    }

    proptest! {
        #[test]
        fn any_text_has_tokens(text in "[a\"'R()/*\\\\\n\r é]{0,40}|\\PC{0,40}") {
            tokens(&text);
        }
    }
}
