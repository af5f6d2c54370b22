//! A norm of each head of q and k, and the rotation, in one launch.

use candle_core::op::BackpropOp;
use candle_core::{Result, Tensor};
use ropejit::rope::{Flavour, Norm, Rsqrt, SumOrder};

use crate::check::Normed;
use crate::form::Rope;
use crate::launch::{Launch, launch};
use crate::operation::{Gradient, attach, with_whole_heads};
use crate::{raise, wrong};

/// A root-mean-square norm over each head, then the rotation: what Qwen 3, Gemma 3 and others do to q and k.
///
/// Sums, roots and roundings are stated to the bit by ropejit ([`ropejit::rope::Norm`]), so the CPU and a GPU agree.
/// They are not those of `candle_nn::rms_norm`, which adds in another order: results differ in their last bits.
#[derive(Debug, Clone)]
pub struct QkNormRope {
    rope: Rope,
    norm: Norm,
    eps: f32,
}

impl QkNormRope {
    /// `eps` is added to the mean of the squares. The weight is applied to what has been rounded (Qwen 3), and then
    /// halves of a head turn.
    pub fn new(eps: f32) -> Self {
        let norm = Norm::new(Flavour::WeightAfter).with_rsqrt(Rsqrt::Ieee);
        Self { rope: Rope::new(), norm, eps }
    }

    /// How q and k turn.
    #[must_use]
    pub fn rope(mut self, rope: Rope) -> Self {
        self.rope = rope;
        self
    }

    /// How the weight is applied: [`Flavour::OnePlusWeight`] for Gemma 3, [`Flavour::WeightF32`] for Gemma 4,
    /// [`Flavour::NoWeight`] for Llama 4.
    #[must_use]
    pub fn flavour(mut self, flavour: Flavour) -> Self {
        self.norm.flavour = flavour;
        self
    }

    /// The reciprocal root. Default: [`Rsqrt::Ieee`], which the CPU has too; [`Rsqrt::Approx`] is PyTorch's on CUDA.
    #[must_use]
    pub fn rsqrt(mut self, rsqrt: Rsqrt) -> Self {
        self.norm.rsqrt = rsqrt;
        self
    }

    /// The order of the sum. Default: PyTorch's on CUDA.
    #[must_use]
    pub fn order(mut self, order: SumOrder) -> Self {
        self.norm.order = order;
        self
    }

    /// The rotation comes first (Llama 4).
    #[must_use]
    pub fn after_rope(mut self) -> Self {
        self.norm.after_rope = true;
        self
    }

    /// Normalises and turns q and k in one launch. Weights are `[head_dim]`, of the type of q; none with
    /// [`Flavour::NoWeight`]. For the rest see [`Rope::apply`].
    ///
    /// # Errors
    /// As [`Rope::apply`].
    pub fn apply<'a>(
        &self,
        q: &Tensor,
        k: &Tensor,
        q_weight: impl Into<Option<&'a Tensor>>,
        k_weight: impl Into<Option<&'a Tensor>>,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (q, k) = self.call(q, Some(k), [q_weight.into(), k_weight.into()], cos, sin)?;
        match k {
            Some(k) => Ok((q, k)),
            None => Err(wrong("k", "is absent")),
        }
    }

    /// Normalises and turns one tensor.
    ///
    /// # Errors
    /// As [`Rope::apply`]; the tensor's name is q.
    pub fn apply_one<'a>(
        &self,
        q: &Tensor,
        weight: impl Into<Option<&'a Tensor>>,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Tensor> {
        self.call(q, None, [weight.into(), None], cos, sin).map(|(q, _)| q)
    }

    fn call(
        &self,
        q: &Tensor,
        k: Option<&Tensor>,
        [q_weight, k_weight]: [Option<&Tensor>; 2],
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let save = [Some(q), k, q_weight, k_weight].into_iter().flatten().any(Tensor::track_op);
        let norm = Normed { norm: self.norm, eps: self.eps, q_weight, k_weight, save, before: None };
        let results = launch(&Launch { norm: Some(norm), ..Launch::new(&self.rope, q, k, cos, sin) })?;
        let [q_roots, k_roots] = results.saved;
        let normed = |roots| NormTurned { form: self.clone(), cos: cos.clone(), sin: sin.clone(), roots };
        let q_out = attach(q, q_weight, results.q, normed(q_roots))?;
        let k_out = k.zip(results.k).map(|(k, result)| attach(k, k_weight, result, normed(k_roots))).transpose()?;
        Ok((q_out, k_out))
    }
}

/// A norm and rotation that has been.
struct NormTurned {
    form: QkNormRope,
    cos: Tensor,
    sin: Tensor,
    roots: Option<Tensor>,
}

impl Gradient for NormTurned {
    fn of(&self, x: &Tensor, weight: Option<&Tensor>, dy: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let Some(roots) = &self.roots else { return Err(wrong("q", "is normalised, and its roots were not saved")) };
        if dy.track_op() {
            let what = "the second derivative of a norm and rotation is not implemented";
            let e = ropejit::Error::new(ropejit::ErrorKind::Unsupported, what).subject_is("q");
            return Err(raise(e.hint("unset CANDLE_GRAD_DO_NOT_DETACH")));
        }
        let (dy, rope) = (with_whole_heads(dy)?, self.form.rope.reversed());
        let norm = Normed {
            norm: self.form.norm,
            eps: self.form.eps,
            q_weight: weight,
            k_weight: None,
            save: false,
            before: Some([x, roots]),
        };
        let results = launch(&Launch { norm: Some(norm), ..Launch::new(&rope, &dy, None, &self.cos, &self.sin) })?;
        let dx = Tensor::from_storage(results.q, x.shape().clone(), BackpropOp::none(), false);
        Ok((dx, results.weight))
    }
}

/// Normalises each head of q and k, and turns them: Qwen 3's way, in candle's layout,
/// `[batch, heads, tokens, head_dim]`. Weights are `[head_dim]`. See [`QkNormRope`] for other ways.
///
/// # Errors
/// As [`Rope::apply`].
pub fn qk_norm_rope(
    q: &Tensor,
    k: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    QkNormRope::new(eps).apply(q, k, q_weight, k_weight, cos, sin)
}
