//! Reads back the texts that variants and layout classes are displayed as. One value has one text: what `Display` would
//! not write is refused.

use std::str::FromStr;

use super::variant::{Class, Hint, Variant};
use crate::error::{Error, Result, clip};

impl FromStr for Variant {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        variant(s).filter(|v| v.to_string() == s).ok_or_else(|| {
            Error::argument("variant", format!("'{}' is not a variant", clip(s)))
                .hint("a variant reads like this: t128 v8 h1 cs/wb keep pdl")
        })
    }
}

fn variant(s: &str) -> Option<Variant> {
    let mut words = s.split(' ').peekable();
    let mut number = |letter: char| words.next()?.strip_prefix(letter)?.parse::<u16>().ok();
    let (threads, vec, heads) = (number('t')?, number('v')?, number('h')?);
    let mut optional = |letter: char| match words.next_if(|word| word.starts_with(letter)) {
        None => Some(0),
        Some(word) => word[1..].parse::<u8>().ok().filter(|n| *n > 0),
    };
    let (lanes, blocks) = (optional('l')?, optional('b')?);
    let (load, store) = words.next()?.split_once('/')?;
    let mut v = Variant {
        threads,
        vec: vec.try_into().ok()?,
        heads: heads.try_into().ok()?,
        lanes,
        load: hint(load)?,
        store: hint(store)?,
        keep_tables: false,
        overlap: false,
        tableless: false,
        prefetch: false,
        early: false,
        blocks,
        shipped: false,
    };
    for word in words {
        match word {
            "keep" => v.keep_tables = true,
            "tableless" => v.tableless = true,
            "pdl" => v.overlap = true,
            "pf" => v.prefetch = true,
            "early" => v.early = true,
            "shipped" => v.shipped = true,
            _ => return None,
        }
    }
    Some(v)
}

fn hint(name: &str) -> Option<Hint> {
    [Hint::Default, Hint::Streaming, Hint::EvictFirst].into_iter().find(|h| h.name() == name)
}

impl FromStr for Class {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        class(s).filter(|c| c.to_string() == s).ok_or_else(|| {
            Error::argument("layout", format!("'{}' is not a layout class", clip(s)))
                .hint("a layout class reads like this: bshd/16B/t16B, or bhsd/8B/no-table+rest")
        })
    }
}

fn class(s: &str) -> Option<Class> {
    let (s, copy_rest) = match s.strip_suffix("+rest") {
        Some(s) => (s, true),
        None => (s, false),
    };
    let mut parts = s.splitn(3, '/');
    let head_major = match parts.next()? {
        "bshd" => false,
        "bhsd" => true,
        _ => return None,
    };
    let word = |text: &str| text.strip_suffix('B')?.parse::<u8>().ok().filter(|n| [2, 4, 8, 16].contains(n));
    let heads = word(parts.next()?)?;
    let table_word = match parts.next()? {
        "no-table" => 0,
        text => word(text.strip_prefix('t')?)?,
    };
    Some(Class { word: heads, table_word, head_major, copy_rest })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::bucket::Bucket;

    pub fn variants() -> impl Strategy<Value = Variant> {
        let hint = || prop::sample::select(vec![Hint::Default, Hint::Streaming, Hint::EvictFirst]);
        (any::<(u16, [u8; 4])>(), hint(), hint(), any::<[bool; 6]>()).prop_map(|(n, load, store, is)| Variant {
            threads: n.0,
            vec: n.1[0],
            heads: n.1[1],
            lanes: n.1[2],
            blocks: n.1[3],
            load,
            store,
            keep_tables: is[0],
            overlap: is[1],
            tableless: is[2],
            prefetch: is[3],
            early: is[4],
            shipped: is[5],
        })
    }

    pub fn classes() -> impl Strategy<Value = Class> {
        let word = prop::sample::select(vec![2u8, 4, 8, 16]);
        let table_word = prop::sample::select(vec![0u8, 2, 4, 8, 16]);
        (word, table_word, any::<(bool, bool)>()).prop_map(|(word, table_word, (head_major, copy_rest))| Class {
            word,
            table_word,
            head_major,
            copy_rest,
        })
    }

    proptest! {
        #[test]
        fn variants_read_back(v in variants()) {
            prop_assert_eq!(v.to_string().parse::<Variant>().expect("reads back"), v);
        }

        #[test]
        fn classes_read_back(class in classes()) {
            prop_assert_eq!(class.to_string().parse::<Class>().expect("reads back"), class);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", v in variants(), class in classes(), at in 0usize..60) {
            for base in [v.to_string(), class.to_string(), String::new()] {
                let mut near = base;
                near.insert_str(at.min(near.len()), &text); // these texts are ASCII
                if let Ok(read) = near.parse::<Variant>() { prop_assert_eq!(read.to_string(), &near[..]); }
                if let Ok(read) = near.parse::<Class>() { prop_assert_eq!(read.to_string(), &near[..]); }
                if let Ok(read) = near.parse::<Bucket>() { prop_assert_eq!(read.tokens().to_string(), &near[..]); }
            }
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for wrong in [
            "",
            "t128",
            "t128 v8 h1 wb/wb pdl keep",
            "t0128 v8 h1 wb/wb",
            "t128 v8 h1 wb/wb keep keep",
            "t128 v8 h1 xx/wb",
        ] {
            assert!(wrong.parse::<Variant>().is_err(), "{wrong}");
        }
        for wrong in ["", "bshd/16B", "bshd/16B/16B", "bshd/3B/t16B", "bshd/016B/t16B", "bshd/16B/t0B"] {
            assert!(wrong.parse::<Class>().is_err(), "{wrong}");
        }
    }
}
