//! What is tuned, and what a call's layout allows: the words that variants, kernels and lock files share.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rope::{PairStyle, RopeSpec};

/// What the layout of a call allows and asks for: decides which variants are legal, and which is fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Class {
    /// Bytes by which every head of q and k is aligned, in and out: 2 to 16.
    pub word: u8,
    /// Bytes by which every row of the tables is aligned: 2 to 16; 0 when there is no table and angles are computed.
    pub table_word: u8,
    /// `[B,H,S,D]` rather than `[B,S,H,D]` in memory.
    pub head_major: bool,
    /// Out of place with partial rotary: what does not turn is copied. Never of fused specs, whose kernels see that themselves.
    pub copy_rest: bool,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 64;

    /// Contiguous tensors, aligned as far as the spec's dimensions allow.
    pub fn contiguous(spec: &RopeSpec, head_major: bool, out_of_place: bool) -> Self {
        let aligned = |elements: u32, size: usize| 1u8 << (elements as usize * size).trailing_zeros().min(4);
        let v_head_dim = spec.append.map_or(0, |append| append.v_head_dim);
        Self {
            word: aligned(spec.head_dim | spec.k_dim() | v_head_dim, spec.dtype.size()),
            table_word: aligned(spec.table_width(), spec.table.dtype.size()),
            head_major,
            copy_rest: out_of_place && spec.rotary_dim < spec.head_dim && !spec.is_fused(),
        }
    }

    /// Whether calls of a spec can be of this class.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), saying what does not fit.
    pub fn check(self, spec: &RopeSpec) -> Result<()> {
        let what = if usize::from(self.word) < spec.dtype.size() {
            format!("heads are aligned to their elements at least: {} bytes", spec.dtype.size())
        } else if self.table_word == 0 && spec.angles.is_none() {
            "calls without tables need a spec whose angles come from the engine".into()
        } else if self.table_word > 0 && usize::from(self.table_word) < spec.table.dtype.size() {
            format!("tables are aligned to their elements at least: {} bytes", spec.table.dtype.size())
        } else if self.copy_rest && spec.rotary_dim == spec.head_dim {
            "the whole head turns, there is no rest to copy".into()
        } else if self.copy_rest && spec.is_fused() {
            "a launch with a norm, a cache or pairs that move sees by itself what it has to copy".into()
        } else {
            return Ok(());
        };
        Err(Error::argument("layout", format!("'{self}' has no calls of this spec: {what}")))
    }

    /// Its number, below [`Class::COUNT`].
    pub fn index(self) -> usize {
        // No table shares its number with rows aligned to 2 bytes: a spec has the one or the other.
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
        match self.table_word {
            0 => write!(f, "{order}/{}B/no-table{rest}", self.word),
            word => write!(f, "{order}/{}B/t{word}B{rest}", self.word),
        }
    }
}

/// What the caches are told about an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// Nothing.
    #[default]
    Default,
    /// Evict first everywhere (`.cs`).
    Streaming,
    /// Keep out of the L1, evict first from the L2 (`L1::no_allocate` and an L2 policy; compute capability 8.0).
    EvictFirst,
}

impl Hint {
    /// Its number in `templates/cuda.h`.
    pub const fn code(self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Streaming => 1,
            Self::EvictFirst => 2,
        }
    }

    /// Its name in a variant's text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "wb",
            Self::Streaming => "cs",
            Self::EvictFirst => "ef",
        }
    }
}

/// One way to run the kernel. All give the same bits.
#[allow(clippy::struct_excessive_bools)] // independent switches, each of them tuned
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Threads per block.
    pub threads: u16,
    /// Elements in the piece that a thread moves at once.
    pub vec: u8,
    /// Heads per thread: they share the thread's cos/sin.
    pub heads: u8,
    /// Of fused kernels: threads that share a head, a power of two; one has it whole. 0 of all others, whose threads need not
    /// know of each other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lanes: u8,
    /// Hint of loads of q and k.
    pub load: Hint,
    /// Hint of stores.
    pub store: Hint,
    /// The tables are to stay in the L2.
    pub keep_tables: bool,
    /// Launched before the kernel ahead of it on the stream has ended (programmatic dependent launch): its blocks are
    /// placed and its indices computed while that one drains; it waits before it reads or writes.
    pub overlap: bool,
    /// Computes its angles in place of reading them from a table, for specs whose angles are the engine's.
    #[serde(default)]
    pub tableless: bool,
    /// With `overlap`: asks for its inputs to be brought into the L2 before it waits. The L2 is where memory is coherent,
    /// so what the kernel ahead still writes is seen.
    pub prefetch: bool,
    /// Of fused kernels: asks for weights and scales before what they are multiplied with is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
    /// Of fused kernels: blocks that a multiprocessor has to hold, so that a thread gets no more registers than that leaves; 0: as
    /// the compiler likes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocks: u8,
    /// The kernel is one that comes with the crate, compiled ahead of time ([`KnownHead`](super::known_head::KnownHead)).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shipped: bool,
}

impl Variant {
    /// Threads that share a head: those that turn its pairs, and those that copy the rest. Of a fused kernel: what
    /// the variant says.
    pub fn lanes(self, spec: &RopeSpec, class: Class) -> u32 {
        if spec.is_fused() {
            return self.lanes.into();
        }
        let vec = u32::from(self.vec);
        let pairs = if spec.style == PairStyle::Interleaved { vec / 2 } else { vec };
        let rest = if class.copy_rest { spec.head_dim - spec.rotary_dim } else { 0 };
        spec.rotary_dim / 2 / pairs + rest / vec
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn is_zero(n: &u8) -> bool {
    *n == 0
}

impl fmt::Display for Variant {
    /// Such as `t128 v8 h2 cs/wb keep pdl`: threads, elements, heads, hints of loads and stores, and what is switched on; with
    /// the lanes of a fused kernel `t128 v8 h2 l8 cs/wb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{} v{} h{}", self.threads, self.vec, self.heads)?;
        for (name, value) in [("l", self.lanes), ("b", self.blocks)] {
            if value > 0 {
                write!(f, " {name}{value}")?;
            }
        }
        write!(f, " {}/{}", self.load.name(), self.store.name())?;
        for (name, on) in [
            ("keep", self.keep_tables),
            ("tableless", self.tableless),
            ("pdl", self.overlap),
            ("pf", self.prefetch),
            ("early", self.early),
            ("shipped", self.shipped),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}

/// A tunable, and why its value is refused.
pub(super) type Why = (&'static str, &'static str);
