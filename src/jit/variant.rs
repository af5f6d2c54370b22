//! The tunables of the kernel and their legal space.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::render::Dialect;
use crate::error::{Error, Result};
use crate::rope::{PairStyle, RopeSpec};

/// A power-of-two bucket of token counts (over the whole batch). It decides which variant is fast; every variant is
/// correct for every count.
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

/// What the layout of a call allows and asks for: decides which variants are legal, and which is fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Class {
    /// Bytes by which every head of q and k is aligned, in and out: 2 to 16.
    pub word: u8,
    /// Bytes by which every row of the tables is aligned: 2 to 16.
    pub table_word: u8,
    /// `[B,H,S,D]` rather than `[B,S,H,D]` in memory.
    pub head_major: bool,
    /// Out of place with partial rotary: what does not turn is copied.
    pub copy_rest: bool,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 64;

    /// Contiguous tensors, aligned as far as the spec's dimensions allow.
    pub fn contiguous(spec: &RopeSpec, head_major: bool, out_of_place: bool) -> Self {
        let aligned = |elements: u32, size: usize| 1u8 << (elements as usize * size).trailing_zeros().min(4);
        Self {
            word: aligned(spec.head_dim, spec.dtype.size()),
            table_word: aligned(spec.table_width(), spec.table.dtype.size()),
            head_major,
            copy_rest: out_of_place && spec.rotary_dim < spec.head_dim,
        }
    }

    /// Its number, below [`Class::COUNT`].
    pub fn index(self) -> usize {
        let log2 = |word: u8| (word.clamp(2, 16).trailing_zeros() - 1) as usize;
        log2(self.word) << 4
            | log2(self.table_word) << 2
            | usize::from(self.head_major) << 1
            | usize::from(self.copy_rest)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.head_major { "bhsd" } else { "bshd" };
        let rest = if self.copy_rest { "+rest" } else { "" };
        write!(f, "{order}/{}B/t{}B{rest}", self.word, self.table_word)
    }
}

/// One way to run the kernel. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Threads per block.
    pub threads: u16,
    /// Elements in the piece that a thread moves at once.
    pub vec: u8,
    /// Heads per thread: they share the thread's cos/sin.
    pub heads: u8,
    /// Neighbouring tokens per thread.
    pub tokens: u8,
    /// Loads of q and k that are evicted first.
    pub load_streaming: bool,
    /// Stores that are evicted first.
    pub store_streaming: bool,
}

impl fmt::Display for Variant {
    /// Such as `t128 v8 h1 k2 cs/wb`: threads, elements, heads, tokens, hints of loads and stores.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = |streaming| if streaming { "cs" } else { "wb" };
        write!(f, "t{} v{} h{} k{}", self.threads, self.vec, self.heads, self.tokens)?;
        write!(f, " {}/{}", hint(self.load_streaming), hint(self.store_streaming))
    }
}

/// The legal variants for a spec, class and bucket; the first is the default.
pub fn space(spec: &RopeSpec, class: Class, bucket: Bucket, dialect: Dialect) -> Vec<Variant> {
    let vec = widest_piece(spec, class);
    let default = Variant { threads: 128, vec, heads: 1, tokens: 1, load_streaming: false, store_streaming: false };
    let mut all = vec![default];
    let mut push = |v: Variant| {
        if check(spec, class, v).is_ok() && !all.contains(&v) {
            all.push(v);
        }
    };
    if dialect == Dialect::Host {
        // Cache hints mean nothing to a processor, and its compiler is slow.
        for (heads, tokens) in [(2, 1), (4, 1), (1, 2)] {
            push(Variant { heads, tokens, ..default });
        }
        push(Variant { threads: 512, ..default });
        return all;
    }
    // Few tokens: latency decides, so the work is spread thin. Many: bytes in flight decide. What stands here has won on
    // some shape; benches/NOTES.md has the figures, and what never did.
    if bucket.tokens() * u64::from(spec.num_heads + spec.num_kv_heads) <= 1 << 14 {
        for (threads, heads) in [(32, 1), (64, 1), (32, 2), (64, 2), (256, 2)] {
            push(Variant { threads, heads, ..default });
        }
        for threads in [64, 128] {
            push(Variant { threads, vec: (vec / 2).max(1), ..default });
        }
        return all;
    }
    for (threads, heads, tokens, load_streaming, store_streaming) in [
        (256, 1, 1, false, false),
        (512, 1, 1, false, false),
        (128, 1, 1, false, true),
        (256, 1, 1, false, true),
        (128, 1, 1, true, true),
        (128, 2, 1, false, false),
        (256, 2, 1, false, false),
        (128, 2, 1, true, true),
        (256, 2, 1, true, true),
        (128, 1, 2, false, false),
    ] {
        push(Variant { threads, heads, tokens, load_streaming, store_streaming, ..default });
    }
    all
}

/// Elements in the widest piece: 16 bytes where dimensions and alignment allow.
fn widest_piece(spec: &RopeSpec, class: Class) -> u8 {
    let span = match spec.style {
        PairStyle::HalfSplit => spec.rotary_dim / 2,
        PairStyle::Interleaved => spec.rotary_dim,
    };
    let rest = if class.copy_rest { spec.head_dim - spec.rotary_dim } else { 0 };
    let widest = 16 / spec.dtype.size() as u32;
    let vec = 1 << (span | rest | widest).trailing_zeros();
    // A wider piece than a word is moved in several accesses: better than one element at a time.
    if class.word as usize >= spec.dtype.size() { vec as u8 } else { 1 }
}

/// Whether a variant is legal for a spec and class.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the tunable.
pub fn check(spec: &RopeSpec, class: Class, v: Variant) -> Result<()> {
    let bad = |name: &str, why: &str| Err(Error::argument(format!("variant.{name}"), format!("{why}, in '{v}'")));
    if !(32..=1024).contains(&v.threads) || !v.threads.is_multiple_of(32) {
        return bad("threads", "must be a multiple of 32 up to 1024");
    }
    let vec = u32::from(v.vec);
    if !vec.is_power_of_two() || vec as usize * spec.dtype.size() > 16 {
        return bad("vec", "must be a power of two of at most 16 bytes");
    }
    let fits = match spec.style {
        PairStyle::HalfSplit => (spec.rotary_dim / 2).is_multiple_of(vec),
        PairStyle::Interleaved => vec >= 2 && spec.rotary_dim.is_multiple_of(vec),
    };
    if !fits || (class.copy_rest && !(spec.head_dim - spec.rotary_dim).is_multiple_of(vec)) {
        return bad("vec", "must divide what turns and what is copied");
    }
    let heads = spec.num_heads + spec.num_kv_heads;
    if v.heads == 0 || !heads.is_multiple_of(u32::from(v.heads)) {
        return bad("heads", "must divide num_heads + num_kv_heads");
    }
    if v.tokens == 0 || u32::from(v.heads) * u32::from(v.tokens) > 8 {
        return bad("tokens", "heads × tokens must be 1 to 8");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rope::DType;

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 5, 8192, 8193].map(|t| Bucket::of(t).tokens()), [1, 2, 4, 4, 8, 8192, 16384]);
        assert_eq!(Bucket::of(0).tokens(), 1);
        assert_eq!(Bucket::of(u64::MAX).index(), Bucket::COUNT - 1);
    }

    #[test]
    fn a_class_has_its_own_number() {
        let mut seen = std::collections::HashSet::new();
        for word in [2, 4, 8, 16] {
            for table_word in [2, 4, 8, 16] {
                for bits in 0..4 {
                    let class = Class { word, table_word, head_major: bits & 1 == 1, copy_rest: bits & 2 == 2 };
                    assert!(class.index() < Class::COUNT && seen.insert(class.index()), "{class}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_space_is_legal_and_starts_with_the_default(
            half in 1u32..=256, turning in 1u32..=256, q in 1u32..65, k in 0u32..33, tokens in 0u64..100_000,
            dtype in prop::sample::select(DType::ALL.to_vec()), interleaved: bool, head_major: bool, copy: bool,
        ) {
            let mut spec = RopeSpec::new(dtype, 2 * half, q, k);
            spec.rotary_dim = 2 * turning.min(half);
            if interleaved { spec.style = PairStyle::Interleaved; }
            let class = Class::contiguous(&spec, head_major, copy);
            let all = space(&spec, class, Bucket::of(tokens), Dialect::Cuda);
            prop_assert!(!all.is_empty() && all.len() <= 64);
            for &v in &all {
                prop_assert!(check(&spec, class, v).is_ok(), "{v} for {spec} {class}: {:?}", check(&spec, class, v));
            }
        }
    }
}
