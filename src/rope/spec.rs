//! What is computed: one rotary position embedding, stated completely.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::append::{Append, Fp8};
use super::dtype::DType;
use super::forms::{Direction, PairStyle, PositionForm, RotaryPart, Rounding, TableForm, TableWidth};
use super::norm::Norm;
use super::scaling::{Mrope, TableMode};
use crate::error::{Error, Result};

/// One rotary position embedding, stated completely: everything that decides a bit of the result or the form of an
/// argument. Not the shapes and strides of a call, which may differ from call to call.
///
/// ```
/// use ropejit::{DType, RopeSpec};
/// let llama = RopeSpec::new(DType::BF16, 128, 32, 8);
/// llama.validate()?;
/// # Ok::<(), ropejit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RopeSpec {
    /// Element type of q and k.
    pub dtype: DType,
    /// Elements per head, even, 2 to 512.
    pub head_dim: u32,
    /// So many elements of a head turn, the first ones or those that `part` says; the rest stays. Even, at most `head_dim`.
    pub rotary_dim: u32,
    /// Heads of q.
    pub num_heads: u32,
    /// Heads of k; 0 when there is no k.
    pub num_kv_heads: u32,
    /// Which elements turn together.
    pub style: PairStyle,
    /// Where results are rounded.
    pub rounding: Rounding,
    /// Forward, or the gradient.
    pub direction: Direction,
    /// Form of the cos/sin tables.
    pub table: TableForm,
    /// Where positions come from.
    pub positions: PositionForm,
    /// cos and sin come from the engine ([`Engine::angles`](crate::Engine::angles)), made in this mode: read from a table
    /// or computed by the kernel, whichever is faster, with the same bits. `None`: tables are the caller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub angles: Option<TableMode>,
    /// Three position axes (multimodal RoPE): `position_ids` are `[3, batch, tokens]`, and each pair follows one axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mrope: Option<Mrope>,
    /// Which elements of a head turn.
    #[serde(default, skip_serializing_if = "RotaryPart::is_first")]
    pub part: RotaryPart,
    /// Elements of a head of k, where they are not `head_dim`: all of them turn (`rotary_dim`), as the `k_pe` of MLA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k_head_dim: Option<u32>,
    /// q and k are normalised in the same launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<Norm>,
    /// k and v go to a paged cache in the same launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<Append>,
}

/// Largest supported `head_dim`.
pub const MAX_HEAD_DIM: u32 = 512;
/// Largest supported number of heads.
pub const MAX_HEADS: u32 = 65_536;

/// Tiles in which the gradient of a norm's weight is added up: each has 32 heads, numbered as (token, head).
pub fn weight_tiles(tokens: u64, heads: u32) -> u64 {
    (tokens * u64::from(heads)).div_ceil(32)
}

impl RopeSpec {
    /// Llama-style RoPE: full rotary, half-split, forward, rounded once, f32 tables of half width, implicit positions.
    /// The fields are public: change what differs.
    pub fn new(dtype: DType, head_dim: u32, num_heads: u32, num_kv_heads: u32) -> Self {
        Self {
            dtype,
            head_dim,
            rotary_dim: head_dim,
            num_heads,
            num_kv_heads,
            style: PairStyle::default(),
            rounding: Rounding::default(),
            direction: Direction::default(),
            table: TableForm { dtype: DType::F32, width: TableWidth::default() },
            positions: PositionForm::default(),
            angles: None,
            mrope: None,
            part: RotaryPart::default(),
            k_head_dim: None,
            norm: None,
            append: None,
        }
    }

    /// The same with a norm of q and k in the same launch.
    #[must_use]
    pub fn with_norm(mut self, norm: Norm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// The same with k and v appended to a cache in the same launch.
    #[must_use]
    pub fn with_append(mut self, append: Append) -> Self {
        self.append = Some(append);
        self
    }

    /// f32 numbers that a backward call of a spec with a norm needs to add up the weights' gradients, for as many tokens in all:
    /// a sum a tile of 32 heads and element. 0 where there is no weight.
    pub fn weight_workspace(&self, tokens: u64) -> u64 {
        if !self.norm.is_some_and(Norm::has_weight) {
            return 0;
        }
        let tiles = weight_tiles(tokens, self.num_heads) + weight_tiles(tokens, self.num_kv_heads);
        tiles * u64::from(self.head_dim)
    }

    /// Heads of q and k that a launch has for each token, and of v where it is appended.
    pub fn items(&self) -> u32 {
        let v = self.append.is_some_and(|append| append.v_head_dim > 0);
        self.num_heads + self.num_kv_heads * if v { 2 } else { 1 }
    }

    /// The gradient of a norm, which a launch works off in tiles of heads.
    pub fn is_norm_gradient(&self) -> bool {
        self.norm.is_some() && self.direction == Direction::Backward
    }

    /// Whether a launch may meet a position outside of the tables, or a slot outside of the cache, which its kernel reports.
    /// Implicit positions are looked at before the launch.
    pub fn may_report(&self) -> bool {
        self.positions != PositionForm::Implicit || self.append.is_some()
    }

    /// The type that q is written as.
    pub fn q_out_dtype(&self) -> DType {
        self.stored_as(self.append.and_then(|append| append.q))
    }

    /// The type that a cache holds.
    pub fn cache_dtype(&self) -> DType {
        self.stored_as(self.append.and_then(|append| append.cache))
    }

    fn stored_as(&self, fp8: Option<Fp8>) -> DType {
        if fp8.is_some() { DType::E4M3 } else { self.dtype }
    }

    /// Elements of a head of k.
    pub fn k_dim(&self) -> u32 {
        self.k_head_dim.unwrap_or(self.head_dim)
    }

    /// Whether more is done to a head than each of its pairs by itself: a norm, a cache, pairs that move, another part that
    /// turns. Such specs have kernels of their own (`templates/fused.h`).
    pub fn is_fused(&self) -> bool {
        self.norm.is_some()
            || self.append.is_some()
            || self.k_head_dim.is_some()
            || self.part != RotaryPart::First
            || self.style == PairStyle::Deinterleave
    }

    /// The same with another element type for the tables.
    #[must_use]
    pub fn with_table(mut self, dtype: DType, width: TableWidth) -> Self {
        self.table = TableForm { dtype, width };
        self
    }

    /// The same with another position form.
    #[must_use]
    pub fn with_positions(mut self, positions: PositionForm) -> Self {
        self.positions = positions;
        self
    }

    /// The same with cos and sin from the engine.
    #[must_use]
    pub fn with_angles(mut self, mode: TableMode) -> Self {
        self.angles = Some(mode);
        self.with_table(DType::F32, TableWidth::Half)
    }

    /// The same with another rounding contract.
    #[must_use]
    pub fn with_rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = rounding;
        self
    }

    /// Elements in a row of the cos/sin tables.
    pub fn table_width(&self) -> u32 {
        match self.table.width {
            TableWidth::Half => self.rotary_dim / 2,
            TableWidth::Full => self.rotary_dim,
        }
    }

    /// Checks that the spec is a computation that exists.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the field.
    pub fn validate(&self) -> Result<()> {
        let even = |name: &str, value: u32, max: u32, max_name: &str| {
            if value.is_multiple_of(2) && (2..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::argument(name, format!("must be even and between 2 and {max_name}, got {value}")))
        };
        if self.dtype == DType::E4M3 {
            return Err(Error::argument("dtype", "must be f32, f16 or bf16: e4m3 is for caches"));
        }
        even("head_dim", self.head_dim, MAX_HEAD_DIM, "512")?;
        even("rotary_dim", self.rotary_dim, self.head_dim, &format!("head_dim ({})", self.head_dim))?;
        if self.num_heads == 0 || self.num_heads > MAX_HEADS {
            return Err(Error::argument("num_heads", format!("must be 1 to {MAX_HEADS}, got {}", self.num_heads)));
        }
        if self.num_kv_heads > MAX_HEADS {
            return Err(Error::argument(
                "num_kv_heads",
                format!("must be 0 (no k) to {MAX_HEADS}, got {}", self.num_kv_heads),
            ));
        }
        if self.table.dtype != DType::F32 && self.table.dtype != self.dtype {
            return Err(Error::argument(
                "table.dtype",
                format!("must be f32 or the dtype of the tensors ({}), got {}", self.dtype, self.table.dtype),
            ));
        }
        if self.angles.is_some() && self.table != (TableForm { dtype: DType::F32, width: TableWidth::Half }) {
            return Err(Error::argument("table", "must be f32 of half width where cos and sin come from the engine"));
        }
        if let Some(mrope) = &self.mrope {
            if mrope.pairs() != u64::from(self.rotary_dim / 2) {
                let what =
                    format!("{:?} sum to {}, rotary_dim / 2 is {}", mrope.sections, mrope.pairs(), self.rotary_dim / 2);
                return Err(Error::argument("mrope.sections", what));
            }
            if !matches!(self.positions, PositionForm::Ids32 | PositionForm::Ids64) {
                return Err(Error::argument("positions", "must be position_ids where there are three axes"));
            }
        }
        self.validate_neighbours()
    }

    /// What stands beside the rotation.
    fn validate_neighbours(&self) -> Result<()> {
        if self.k_head_dim.is_some_and(|dim| dim != self.rotary_dim || dim == self.head_dim) {
            let what = format!("must be rotary_dim ({}) where it is not head_dim", self.rotary_dim);
            return Err(Error::argument("k_head_dim", what));
        }
        if self.k_head_dim.is_some() && self.num_kv_heads == 0 {
            return Err(Error::argument("k_head_dim", "is given, and there is no k"));
        }
        if self.k_head_dim.is_some() && self.norm.is_some() {
            return Err(Error::argument("norm", "is of heads of one size, and k_head_dim differs from head_dim"));
        }
        if self.part == RotaryPart::Last && self.rotary_dim == self.head_dim {
            return Err(Error::argument("part", "the whole head turns: it has no last part"));
        }
        let Some(append) = &self.append else { return Ok(()) };
        if self.direction == Direction::Backward {
            return Err(Error::argument("append", "has no gradient: a cache is written forward"));
        }
        if self.num_kv_heads == 0 {
            return Err(Error::argument("append", "needs k: num_kv_heads is 0"));
        }
        if append.v_head_dim > MAX_HEAD_DIM || !append.v_head_dim.is_multiple_of(2) {
            let what = format!("must be even, 0 (no v) to {MAX_HEAD_DIM}, got {}", append.v_head_dim);
            return Err(Error::argument("append.v_head_dim", what));
        }
        if self.dtype == DType::F32 && (append.cache.is_some() || append.q.is_some()) {
            return Err(Error::argument("append", "stores f16 and bf16 as fp8, not f32"));
        }
        Ok(())
    }
}

impl fmt::Display for RopeSpec {
    /// One line, such as `bf16 d128 h32/8 half_split once table=f32/half pos=implicit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |v: &dyn fmt::Debug| snake(&format!("{v:?}"));
        write!(f, "{} d{}", self.dtype, self.head_dim)?;
        if self.rotary_dim != self.head_dim {
            write!(f, "[..{}]", self.rotary_dim)?;
        }
        write!(f, " h{}/{} {} {}", self.num_heads, self.num_kv_heads, word(&self.style), word(&self.rounding))?;
        if self.direction == Direction::Backward {
            f.write_str(" backward")?;
        }
        match self.angles {
            None => write!(f, " table={}/{}", self.table.dtype, word(&self.table.width))?,
            Some(mode) => write!(f, " angles={}", word(&mode))?,
        }
        write!(f, " pos={}", word(&self.positions))?;
        if let Some(mrope) = &self.mrope {
            write!(f, " mrope={mrope}")?;
        }
        if self.part == RotaryPart::Last {
            f.write_str(" part=last")?;
        }
        if let Some(dim) = self.k_head_dim {
            write!(f, " k_dim={dim}")?;
        }
        if let Some(norm) = &self.norm {
            write!(f, " norm={norm}")?;
        }
        if let Some(append) = &self.append {
            write!(f, " append={append}")?;
        }
        Ok(())
    }
}

/// `HalfSplit` → `half_split`.
fn snake(camel: &str) -> String {
    let mut out = String::with_capacity(camel.len() + 2);
    for (i, ch) in camel.chars().enumerate() {
        if ch.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(ch.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(change: impl FnOnce(&mut RopeSpec)) -> String {
        let mut spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        change(&mut spec);
        spec.validate().expect_err("should be refused").subject().expect("has a subject").to_owned()
    }

    #[test]
    fn wrong_fields_are_named() {
        assert_eq!(names(|s| s.head_dim = 63), "head_dim");
        assert_eq!(names(|s| s.head_dim = 0), "head_dim");
        assert_eq!(names(|s| s.head_dim = 514), "head_dim");
        assert_eq!(names(|s| s.rotary_dim = 130), "rotary_dim");
        assert_eq!(names(|s| s.rotary_dim = 3), "rotary_dim");
        assert_eq!(names(|s| s.num_heads = 0), "num_heads");
        assert_eq!(names(|s| s.table.dtype = DType::F16), "table.dtype");
        let sections = |sections| Some(Mrope { sections, interleaved: false });
        assert_eq!(names(|s| s.mrope = sections([16, 24, 25])), "mrope.sections");
        assert_eq!(names(|s| s.mrope = sections([16, 24, 24])), "positions");
    }

    /// Lock files and caches hold these words.
    #[test]
    fn forms_of_positions_keep_their_names() {
        use PositionForm::{CuSeqlens, CuSeqlens64, Ids32, Ids64, Implicit, Offsets32, Offsets64};
        for (form, word) in [
            (Implicit, "implicit"),
            (Ids32, "ids32"),
            (Ids64, "ids64"),
            (Offsets32, "offsets32"),
            (Offsets64, "offsets64"),
            (CuSeqlens, "cu_seqlens"),
            (CuSeqlens64, "cu_seqlens64"),
        ] {
            let spec = RopeSpec::new(DType::BF16, 128, 32, 8).with_positions(form);
            let line = format!("bf16 d128 h32/8 half_split once table=f32/half pos={word}");
            assert_eq!(spec.to_string(), line);
            assert_eq!(line.parse::<RopeSpec>().expect("reads back").positions, form);
            let json = serde_json::to_string(&form).expect("JSON");
            assert_eq!(json, format!("\"{word}\""));
            assert_eq!(serde_json::from_str::<PositionForm>(&json).expect("reads back"), form);
        }
    }

    #[test]
    fn display_is_one_readable_line() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        assert_eq!(spec.to_string(), "bf16 d128 h32/8 half_split once table=f32/half pos=implicit");
    }
}
