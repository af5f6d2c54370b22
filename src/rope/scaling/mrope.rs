//! Multimodal rotary embedding: which of three position axes a pair follows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, clip};

/// How the pairs of a head are divided among the temporal, height and width axes of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mrope {
    /// Pairs of the temporal, height and width axes (`mrope_section`); their sum is `rotary_dim / 2`.
    pub sections: [u32; 3],
    /// Whether the axes alternate from pair to pair (Qwen3-VL) instead of following each other (Qwen2-VL).
    pub interleaved: bool,
}

impl Mrope {
    /// The axis of pair `pair`: 0 temporal, 1 height, 2 width.
    ///
    /// Chunked, section k of the pairs follows axis k. Interleaved, pair c follows h if c mod 3 = 1 and
    /// c < 3·sections\[1\], w if c mod 3 = 2 and c < 3·sections\[2\], else t.
    pub fn axis(&self, pair: u32) -> usize {
        let [t, h, w] = self.sections.map(u64::from);
        let c = u64::from(pair);
        match (self.interleaved, c % 3) {
            (true, 1) if c < 3 * h => 1,
            (true, 2) if c < 3 * w => 2,
            (false, _) if c >= t + h => 2,
            (false, _) if c >= t => 1,
            _ => 0,
        }
    }

    /// Pairs in all sections.
    pub fn pairs(&self) -> u64 {
        self.sections.iter().copied().map(u64::from).sum()
    }
}

impl fmt::Display for Mrope {
    /// Such as `16/24/24`, or `24/20/20/interleaved`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [t, h, w] = self.sections;
        write!(f, "{t}/{h}/{w}{}", if self.interleaved { "/interleaved" } else { "" })
    }
}

impl FromStr for Mrope {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let (numbers, interleaved) = s.strip_suffix("/interleaved").map_or((s, false), |rest| (rest, true));
        let sections: Option<Vec<u32>> = numbers.splitn(3, '/').map(|n| n.parse().ok()).collect();
        let read = sections.and_then(|s| s.try_into().ok()).map(|sections| Self { sections, interleaved });
        read.filter(|mrope| mrope.to_string() == s).ok_or_else(|| {
            Error::argument("mrope", format!("'{}' does not divide pairs among three axes", clip(s)))
                .hint("sections read like this: 16/24/24, or 24/20/20/interleaved")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_read_back() {
        for text in ["16/24/24", "24/20/20/interleaved", "0/1/2"] {
            assert_eq!(text.parse::<Mrope>().expect("reads").to_string(), text);
        }
        for wrong in ["", "16", "16/24", "16/24/24/8", "016/24/24", "16/24/24/", "16/24/24/chunked", "-1/2/3"] {
            assert!(wrong.parse::<Mrope>().is_err(), "{wrong}");
        }
    }

    fn axes(sections: [u32; 3], interleaved: bool) -> String {
        let mrope = Mrope { sections, interleaved };
        (0..mrope.pairs() as u32).map(|c| char::from(b"thw"[mrope.axis(c)])).collect()
    }

    #[test]
    fn chunked_sections_follow_each_other() {
        assert_eq!(axes([2, 3, 3], false), "tthhhwww");
    }

    #[test]
    fn interleaved_sections_alternate_and_leave_the_rest_to_time() {
        assert_eq!(axes([4, 2, 2], true), "thwthwtt");
        assert_eq!(axes([24, 20, 20], true), format!("{}tttt", "thw".repeat(20)));
    }

    #[test]
    fn every_section_is_served_in_full() {
        for interleaved in [false, true] {
            let got = axes([24, 20, 20], interleaved);
            assert_eq!(["t", "h", "w"].map(|a| got.matches(a).count()), [24, 20, 20]);
        }
    }
}
