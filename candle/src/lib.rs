//! `RoPE`, and QK-norm + `RoPE`, for candle: ropejit's kernels as candle operations, with gradients.
//!
//! [`rope`], [`rope_i`] and [`rope_thd`] take candle's layouts and tables, and turn q and k in one launch; [`Rope`] has
//! what differs: partial rotary, positions, rounding, one tensor alone. [`qk_norm_rope`] and [`QkNormRope`] normalise
//! each head in the same launch. All run on candle's stream and on its memory; nothing is copied. Tensors may be
//! strided (a transposed view, a part of a packed QKV), as long as a head lies contiguous.
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//! let device = Device::Cpu; // or Device::new_cuda(0)?
//! let q = Var::randn(0f32, 1., (1, 8, 16, 64), &device)?; // [batch, heads, tokens, head_dim]
//! let k = Tensor::randn(0f32, 1., (1, 2, 16, 64), &device)?;
//! let angles = Tensor::arange(0u32, 16 * 32, &device)?.to_dtype(DType::F32)?.reshape((16, 32))?;
//! let (cos, sin) = (angles.cos()?, angles.sin()?); // [tokens, head_dim / 2]
//! let (q_out, k_out) = ropejit_candle::rope(&q, &k, &cos, &sin)?;
//! let gradients = (q_out.sum_all()? + k_out.sum_all()?)?.backward()?;
//! assert_eq!(gradients.get(&q).expect("q has a gradient").dims(), q.dims());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! The CPU computes what ropejit's reference says, bit for bit, and a GPU the same. With the default rounding that is
//! also what `candle_nn::rotary_emb` gives on the CPU.

mod check;
mod engines;
mod form;
mod launch;
mod norm;
mod operation;
mod rope;

pub use engines::{check, engine, set_engine};
pub use form::Rope;
pub use norm::{QkNormRope, qk_norm_rope};
pub use rope::{rope, rope_i, rope_thd};
// What a form is stated in.
pub use ropejit::rope::{Flavour, Rsqrt, SumOrder};
pub use ropejit::{Engine, Rounding};

/// An error of ropejit's, as candle's.
fn raise(e: ropejit::Error) -> candle_core::Error {
    candle_core::Error::wrap(e)
}

/// An argument that is wrong, by its name.
fn wrong(argument: &str, what: impl Into<String>) -> candle_core::Error {
    raise(ropejit::Error::argument(argument, what))
}

/// The page's program is run as it stands.
#[cfg(doctest)]
#[doc = include_str!("../../docs/candle.md")]
struct Page;
