//! How q and k turn.

use candle_core::Tensor;
use ropejit::rope::PairStyle;
use ropejit::{Direction, Rounding};

/// How q and k turn, where it is not candle's way in all: each method says one thing that differs.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use ropejit_candle::Rope;
/// # let device = Device::Cpu;
/// # let q = Tensor::zeros((2, 4, 3, 64), DType::F32, &device)?;
/// # let k = Tensor::zeros((2, 2, 3, 64), DType::F32, &device)?;
/// # let (cos, sin) = (Tensor::ones((32, 16), DType::F32, &device)?, Tensor::zeros((32, 16), DType::F32, &device)?);
/// let ids = Tensor::new(&[[4u32, 5, 6], [0, 1, 2]], &device)?;
/// let (q, k) = Rope::new().rotary_dim(32).position_ids(&ids).apply(&q, &k, &cos, &sin)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Rope {
    pub(crate) style: PairStyle,
    pub(crate) rotary_dim: Option<usize>,
    pub(crate) thd: bool,
    pub(crate) rounding: Rounding,
    pub(crate) direction: Direction,
    pub(crate) offset: usize,
    pub(crate) position_ids: Option<Tensor>,
}

impl Default for Rope {
    fn default() -> Self {
        Self::new()
    }
}

impl Rope {
    /// As `candle_nn::rotary_emb::rope`: `[batch, heads, tokens, head_dim]`, halves of a head turn together (NeoX,
    /// Llama), token `t` stands at row `t` of cos and sin, and every operation is rounded.
    pub fn new() -> Self {
        Self {
            style: PairStyle::HalfSplit,
            rotary_dim: None,
            thd: false,
            rounding: Rounding::PerOp,
            direction: Direction::Forward,
            offset: 0,
            position_ids: None,
        }
    }

    /// Neighbours turn together (GPT-J), as in `rope_i`.
    #[must_use]
    pub fn interleaved(mut self) -> Self {
        self.style = PairStyle::Interleaved;
        self
    }

    /// Tensors are `[batch, tokens, heads, head_dim]`, as in `rope_thd`.
    #[must_use]
    pub fn thd(mut self) -> Self {
        self.thd = true;
        self
    }

    /// So many elements of a head turn, the first ones; the rest stays. Default: all of them.
    #[must_use]
    pub fn rotary_dim(mut self, elements: usize) -> Self {
        self.rotary_dim = Some(elements);
        self
    }

    /// Where results are rounded; in f32, [`Rounding::Once`] and [`Rounding::PerOp`] are one. Default: [`Rounding::PerOp`], as candle
    /// on the CPU.
    #[must_use]
    pub fn rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = rounding;
        self
    }

    /// Token `t` stands at row `offset + t` of cos and sin: tokens that a cache of keys holds already. Default: 0.
    #[must_use]
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Each token's row of cos and sin: u32, i32 or i64, `[tokens]` or `[batch, tokens]`. They take the place of the
    /// offset. On the CPU one that lies outside is an error; on a GPU its token becomes NaN, and
    /// [`check`](crate::check) says so.
    #[must_use]
    pub fn position_ids(mut self, ids: &Tensor) -> Self {
        self.position_ids = Some(ids.clone());
        self
    }

    /// The gradient's way back.
    pub(crate) fn reversed(&self) -> Self {
        let direction = match self.direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        Self { direction, ..self.clone() }
    }
}
