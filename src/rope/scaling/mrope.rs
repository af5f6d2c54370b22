//! Multimodal rotary embedding: which of three position axes a pair follows.

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

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
