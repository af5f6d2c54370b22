//! The rotation, as programs call it.

use candle_core::{Result, Tensor};

use crate::form::Rope;
use crate::launch::{Launch, launch};
use crate::operation::{Gradient, attach, with_whole_heads};

impl Rope {
    /// Turns q and k in one launch. Returns new, contiguous tensors of the same shapes.
    ///
    /// q and k are f32, f16 or bf16. cos and sin have one value a pair, `[rows, rotary_dim / 2]` or `[batch, rows,
    /// rotary_dim / 2]`; or the same twice, as transformers makes them, `rotary_dim` wide. They are f32 or of the type
    /// of q, and constants: they have no gradient.
    ///
    /// # Errors
    /// When a tensor does not fit, by its name, or no kernel can be had.
    pub fn apply(&self, q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
        let results = launch(&Launch::new(self, q, k, cos, sin))?;
        let turned = || Turned { rope: self.clone(), cos: cos.clone(), sin: sin.clone() };
        let k_result = results.k.ok_or_else(|| crate::wrong("k", "is absent"))?;
        Ok((attach(q, None, results.q, turned())?, attach(k, None, k_result, turned())?))
    }

    /// Turns one tensor.
    ///
    /// # Errors
    /// As [`Rope::apply`]; the tensor's name is q.
    pub fn apply_one(&self, q: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let results = launch(&Launch::new(self, q, None, cos, sin))?;
        attach(q, None, results.q, Turned { rope: self.clone(), cos: cos.clone(), sin: sin.clone() })
    }
}

/// A rotation that has been.
struct Turned {
    rope: Rope,
    cos: Tensor,
    sin: Tensor,
}

impl Gradient for Turned {
    fn of(&self, _: &Tensor, _: Option<&Tensor>, dy: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let dx = self.rope.reversed().apply_one(&with_whole_heads(dy)?, &self.cos, &self.sin)?;
        Ok((dx, None))
    }
}

/// Turns q and k, `[batch, heads, tokens, head_dim]`, halves of a head together: `candle_nn::rotary_emb::rope` for
/// both, with a gradient. See [`Rope::apply`] for cos and sin.
///
/// # Errors
/// As [`Rope::apply`].
pub fn rope(q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
    Rope::new().apply(q, k, cos, sin)
}

/// As [`rope`], neighbours together: `candle_nn::rotary_emb::rope_i`.
///
/// # Errors
/// As [`Rope::apply`].
pub fn rope_i(q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
    Rope::new().interleaved().apply(q, k, cos, sin)
}

/// As [`rope`], of `[batch, tokens, heads, head_dim]`: `candle_nn::rotary_emb::rope_thd`.
///
/// # Errors
/// As [`Rope::apply`].
pub fn rope_thd(q: &Tensor, k: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
    Rope::new().thd().apply(q, k, cos, sin)
}
