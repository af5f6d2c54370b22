//! Autotuning JIT service for rotary position embedding (RoPE) kernels.
//!
//! A [`RopeSpec`] states one computation: element type, dimensions, heads, pair style, rounding contract, direction, and
//! the form of tables and positions. An [`Engine`] holds one device and one cache. [`Engine::rope`] gives a [`Rope`] for
//! a spec, and [`Rope::apply`] launches it on a [`Stream`]. The first call of a token bucket and layout class finds a
//! kernel (loaded, in the cache folder, or by compiling it) and says which in an [`Origin`]; later ones launch it.
//!
//! On the processor, with nothing kept on disk:
//!
//! ```
//! use half::bf16;
//! use ropejit::rope::scaling::{RopeParameters, TableMode, cos_sin_table};
//! use ropejit::{
//!     Args, DType, DeviceChoice, Engine, Layout, Operand, Origin, Positions, RopeSpec, Stream, Tables, Tensor,
//! };
//!
//! let engine = Engine::builder().device(DeviceChoice::Host).in_memory().build()?;
//! let spec = RopeSpec::new(DType::BF16, 128, 32, 8); // head_dim 128, 32 heads of q, 8 of k
//! let rope = engine.rope(&spec)?;
//!
//! let tokens = 16;
//! let frequencies = RopeParameters::new(500_000.0, 128).frequencies(None)?;
//! let (cos, sin) = cos_sin_table(&frequencies, 0..16, TableMode::Accurate);
//! let (q_layout, k_layout) = (Layout::bshd(1, tokens, 32, 128), Layout::bshd(1, tokens, 8, 128));
//! let (q, mut q_out) = (vec![bf16::ONE; q_layout.len()], vec![bf16::ZERO; q_layout.len()]);
//! let mut k = vec![bf16::ONE; k_layout.len()];
//!
//! let args = Args::new(
//!     Operand::out_of_place(Tensor::host_input(&q, q_layout)?, Tensor::host(&mut q_out, q_layout)?),
//!     Some(Operand::in_place(Tensor::host(&mut k, k_layout)?)),
//!     Tables::host(&cos, &sin, 1, 64)?, // one set of rows for all sequences, 64 = rotary_dim / 2 wide
//!     Positions::Offset(0),
//! );
//! let first = rope.apply(Stream::DEFAULT, &args)?;
//! assert_ne!(first, Origin::Memory); // compiled; from disk in a later process that keeps a cache folder
//! let again = rope.apply(Stream::DEFAULT, &args)?; // k, in place, turns once more
//! assert_eq!(again, Origin::Memory);
//!
//! drop(args);
//! let token_1 = q_layout.strides[1] as usize;
//! assert_eq!(q_out[token_1], bf16::from_f32(cos[64] - sin[64])); // a·c − b·s, rounded once
//! # Ok::<(), ropejit::Error>(())
//! ```
//!
//! On a GPU the same call takes [`Tensor::cuda`] and [`Tables::cuda`] over cudarc's slices, or `from_raw` over addresses
//! that another library owns, and a stream from cudarc or [`Stream::from_raw`].
//!
//! - [`Tuning`] says when to compile and tune: beside the caller's work, before the first answer, never, or
//!   [`Frozen`](Tuning::Frozen), where anything that is not in the cache is an error.
//! - [`Engine::prewarm`] fills the cache ahead of time for a list of specs and numbers of tokens, with
//!   [`Builder::arch`](engine::Builder::arch) for a GPU that is not there. [`Engine::wait_tuned`] waits for what is tuned in
//!   the background, after [`Engine::freeze`] nothing is compiled, and [`Engine::stats`] counts what was done.
//! - The module `remote`, behind the feature of that name, makes a cache one signed file for other machines.
//! - [`Rope::check`] reports a token whose position lay outside the tables; such a token has become NaN.
//! - [`rope`] is the domain, pure: [`rope::model`] reads a `config.json`, [`rope::scaling`] turns it into frequencies and
//!   tables, [`rope::reference`] computes the rotation in plain Rust. [`engine`], [`store`] (the cache), [`tune`] (the search) and
//!   [`device`] (the machines) know no kernel; [`families`] are the kernels, [`jit`] the variants, source and keys of RoPE. The
//!   module map and its reasons are in `ARCHITECTURE.md`.

// The command uses the crate by its name, as others do.
#[cfg(feature = "cli")]
extern crate self as ropejit;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod error;
pub mod families;
pub mod jit;
#[cfg(feature = "remote")]
pub mod remote;
pub mod rope;
mod service;
pub mod system;

pub use families::rope::args;
pub use service::{device, engine, store, tune};

pub use args::{Args, CuSeqlens, Input, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
pub use device::{DeviceChoice, Stream};
pub use engine::{Engine, Stats, Tuning};
pub use error::{Error, ErrorKind, Result};
pub use families::rope::{Angles, Rope};
pub use rope::{
    Append, DType, Direction, Layout, Norm, PairStyle, PositionForm, RopeSpec, Rounding, TableForm, TableWidth,
};
pub use service::family::Origin;
