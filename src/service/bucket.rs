//! Sizes that are told apart.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, clip};

/// A size (tokens over the whole batch, rows), rounded up to a power of two. It decides which config is fast; every config
/// is correct for every size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bucket(u8);

impl Bucket {
    /// Buckets that are told apart; more tokens than 2^24 share the last.
    pub const COUNT: usize = 25;

    /// The bucket of a token count: the power of two at or above it.
    pub fn of(tokens: u64) -> Self {
        let log2 = tokens.max(1).checked_next_power_of_two().map_or(63, u64::trailing_zeros);
        Self(log2.min(Self::COUNT as u32 - 1) as u8)
    }

    /// The largest token count of the bucket, for which it is tuned.
    pub fn tokens(self) -> u64 {
        1 << self.0
    }

    /// Its number, below [`Bucket::COUNT`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl FromStr for Bucket {
    type Err = Error;

    /// The largest token count of a bucket, which is a power of two.
    fn from_str(s: &str) -> Result<Self> {
        let whole = |n: &u64| Bucket::of(*n).tokens() == *n && n.to_string() == s;
        s.parse().ok().filter(whole).map(Bucket::of).ok_or_else(|| {
            Error::argument("tokens", format!("'{}' is not a bucket of token counts", clip(s)))
                .hint("buckets are the powers of two up to 2^24")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 5, 8192, 8193].map(|t| Bucket::of(t).tokens()), [1, 2, 4, 4, 8, 8192, 16384]);
        assert_eq!(Bucket::of(0).tokens(), 1);
        assert_eq!(Bucket::of(u64::MAX).index(), Bucket::COUNT - 1);
    }

    #[test]
    fn one_bucket_has_one_text() {
        for wrong in ["", "0", "3", "+4", "04", "33554432", "18446744073709551616"] {
            assert!(wrong.parse::<Bucket>().is_err(), "{wrong}");
        }
    }
}
