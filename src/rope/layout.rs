//! How a tensor lies in memory.

use crate::error::{Error, Result};

/// A `[batch, tokens, heads, head_dim]` tensor in memory: its shape and its strides, in elements.
///
/// The strides of the first three dimensions are free (any order in memory, slices of a larger buffer, 0 to repeat);
/// elements of a head must be contiguous.
///
/// ```
/// use ropejit::rope::Layout;
/// assert_eq!(Layout::bhsd(2, 32, 100, 128).strides, [32 * 100 * 128, 128, 100 * 128, 1]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// `[batch, tokens, heads, head_dim]`, whatever the order in memory.
    pub shape: [usize; 4],
    /// Distance between neighbours along each dimension of `shape`, in elements.
    pub strides: [i64; 4],
}

impl Layout {
    /// Contiguous `[batch, tokens, heads, head_dim]`.
    pub const fn bshd(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        let (h, s) = (head_dim as i64, (heads * head_dim) as i64);
        Self { shape: [batch, tokens, heads, head_dim], strides: [tokens as i64 * s, s, h, 1] }
    }

    /// Contiguous `[batch, heads, tokens, head_dim]`.
    pub const fn bhsd(batch: usize, heads: usize, tokens: usize, head_dim: usize) -> Self {
        let (s, h) = (head_dim as i64, (tokens * head_dim) as i64);
        Self { shape: [batch, tokens, heads, head_dim], strides: [heads as i64 * h, s, h, 1] }
    }

    /// Packed `[tokens, heads, head_dim]`: sequences of a batch one after the other.
    pub const fn thd(tokens: usize, heads: usize, head_dim: usize) -> Self {
        Self::bshd(1, tokens, heads, head_dim)
    }

    /// The same shape with other strides, in elements, for `[batch, tokens, heads, head_dim]`.
    #[must_use]
    pub const fn with_strides(mut self, strides: [i64; 4]) -> Self {
        self.strides = strides;
        self
    }

    /// The heads `first .. first + heads` of this tensor's layout; add `first * strides[2]` to its start. A packed QKV
    /// buffer `[batch, tokens, (num_heads + 2·num_kv_heads), head_dim]` is read this way.
    #[must_use]
    pub const fn with_heads(mut self, heads: usize) -> Self {
        self.shape[2] = heads;
        self
    }

    /// Elements in the tensor.
    pub const fn len(&self) -> usize {
        self.shape[0].saturating_mul(self.shape[1]).saturating_mul(self.shape[2]).saturating_mul(self.shape[3])
    }

    /// Whether it has no element.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lowest and one past the highest element index that is touched, relative to the tensor's start; `None` when
    /// that does not fit an i64. An empty tensor touches nothing.
    pub fn extent(&self) -> Option<(i64, i64)> {
        if self.is_empty() {
            return Some((0, 0));
        }
        let (mut low, mut high) = (0i64, 0i64);
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = stride.checked_mul(i64::try_from(n - 1).ok()?)?;
            if reach < 0 {
                low = low.checked_add(reach)?;
            } else {
                high = high.checked_add(reach)?;
            }
        }
        Some((low, high.checked_add(1)?))
    }

    /// Checks strides; `name` is what the caller calls the tensor.
    pub(crate) fn validate(&self, name: &str) -> Result<()> {
        if self.shape[3] > 1 && self.strides[3] != 1 {
            return Err(Error::argument(
                name,
                format!("the last dimension (head_dim) must be contiguous, its stride is {}", self.strides[3]),
            )
            .hint("make the tensor contiguous in its last dimension, or pass the view before it was transposed"));
        }
        if self.extent().is_none() {
            return Err(Error::argument(name, "its shape and strides reach past a 64-bit offset"));
        }
        Ok(())
    }

    /// Whether two elements may lie at one place, so that writing it is no function. Dimensions are compared from the
    /// smallest stride up; layouts that interleave without meeting are taken to meet.
    pub(crate) fn overlaps(&self) -> bool {
        let mut axes = [0, 1, 2, 3].map(|axis| (self.strides[axis].unsigned_abs(), self.shape[axis] as u64));
        axes.sort_unstable();
        let mut reach = 1u64;
        !self.is_empty()
            && axes.iter().filter(|(_, n)| *n > 1).any(|&(stride, n)| {
                let meets = stride < reach;
                reach = reach.saturating_add(stride.saturating_mul(n - 1));
                meets
            })
    }

    /// The strides that matter, in bytes, or-ed together: their trailing zeros say how far heads are aligned.
    pub(crate) fn alignment_bytes(&self, element: usize) -> u64 {
        let strides = (0..3).filter(|&axis| self.shape[axis] > 1).map(|axis| self.strides[axis].unsigned_abs());
        strides.fold(0, |mix, stride| mix | stride).wrapping_mul(element as u64)
    }

    /// Whether tokens of one head lie closer together than heads of one token: `[B,H,S,D]` rather than `[B,S,H,D]`.
    pub(crate) fn head_major(&self) -> bool {
        self.shape[1] > 1 && self.shape[2] > 1 && self.strides[2].unsigned_abs() > self.strides[1].unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_cover_negative_strides_and_refuse_overflow() {
        assert_eq!(Layout::bshd(2, 3, 4, 8).extent(), Some((0, 192)));
        assert_eq!(Layout::bshd(1, 3, 1, 8).with_strides([0, -8, 8, 1]).extent(), Some((-16, 8)));
        assert_eq!(Layout::bshd(1, 0, 4, 8).extent(), Some((0, 0)));
        let wild = Layout::bshd(1, 3, 1, 8).with_strides([0, i64::MAX, 8, 1]);
        assert_eq!(wild.extent(), None);
        assert_eq!(wild.validate("q").expect_err("refused").subject(), Some("q"));
    }

    #[test]
    fn strided_last_dimension_is_refused_by_name() {
        let e = Layout::bshd(1, 2, 2, 8).with_strides([32, 16, 1, 2]).validate("k").expect_err("refused");
        assert_eq!(e.subject(), Some("k"));
        assert!(e.to_string().contains("contiguous"), "{e}");
    }

    #[test]
    fn overlaps_are_seen() {
        let base = Layout::bshd(2, 3, 4, 8);
        assert!(!base.overlaps() && !Layout::bhsd(2, 4, 3, 8).overlaps());
        assert!(!base.with_strides([300, 40, -9, 1]).overlaps());
        for bad in [[0, 32, 8, 1], [96, 0, 8, 1], [96, 32, 7, 1], [96, 31, 8, 1], [0, 0, 0, 1]] {
            assert!(base.with_strides(bad).overlaps(), "{bad:?}");
        }
        assert!(!Layout::bshd(1, 1, 4, 8).with_strides([0, 0, 8, 1]).overlaps());
        assert!(!Layout::bshd(0, 3, 4, 8).with_strides([0, 0, 0, 1]).overlaps());
    }

    #[test]
    fn alignment_ignores_dimensions_of_one() {
        assert_eq!(Layout::bshd(1, 7, 3, 128).with_strides([1, 384, 128, 1]).alignment_bytes(2), (384 | 128) * 2);
        assert_eq!(Layout::bshd(1, 7, 3, 128).with_strides([1, 388, 128, 1]).alignment_bytes(2) % 16, 8);
        assert!(Layout::bhsd(1, 4, 9, 8).head_major());
        assert!(!Layout::bshd(1, 9, 4, 8).head_major());
    }
}
