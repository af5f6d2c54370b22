//! Kernels of users, each from one `.toml` and one `.cu`.
//!
//! [`Template::load`] reads and checks both. [`Engine::template`](crate::Engine::template) puts it on an engine's device,
//! [`OnEngine::spec`] gives the kernel of one spec, and [`TemplateKernel::launch`] launches it. The service does the rest, as
//! for any family: compiled kernels and choices are cached, candidates are compared with the default and tuned.
//!
//! `docs/your-own-kernels.md` says what the two files hold.
//!
//! ```no_run
//! use ropejit::families::template::{Arg, Template};
//! use ropejit::{Engine, Stream};
//!
//! let template = Template::load("add_rmsnorm.toml")?;
//! let engine = Engine::global()?;
//! let kernel = engine.template(&template)?.spec([("dtype", "f32"), ("hidden", "64")])?;
//!
//! let (x, mut residual, weight, mut y) = (vec![1f32; 192], vec![0f32; 192], vec![1f32; 64], vec![0f32; 192]);
//! let args = [
//!     Arg::host(&x, &[3, 64])?, // on a GPU: Arg::cuda, Arg::cuda_mut, or from_raw for an address
//!     Arg::host_mut(&mut residual, &[3, 64])?,
//!     Arg::host(&weight, &[64])?,
//!     Arg::host_mut(&mut y, &[3, 64])?,
//!     3u32.into(),
//!     1e-6f32.into(),
//! ];
//! kernel.launch(Stream::DEFAULT, &args)?; // after the first call: no hash, lock, allocation, sync or log
//! # Ok::<(), ropejit::Error>(())
//! ```

pub(crate) mod argument;
mod call;
mod description;
mod element;
mod expr;
mod fill;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod infer;
mod kernel_text;
pub(crate) mod lines;
mod loaded;
mod names;
mod on_host;
mod prelude;
mod prewarm;
mod problem;
mod ptx;
mod read;
mod source;
mod space;
mod spec;
mod testing;
mod tokens;
mod trial;

pub use crate::service::family::Provenance;
pub use argument::{Arg, ElementType};
pub use element::Element;
pub use handle::{OnEngine, Serving, TemplateKernel};
pub use infer::{Given, Inferred};
pub use loaded::Template;
pub use prewarm::PrewarmedTemplate;
pub use testing::{Checked, TestNumber, TestRun, TestTensor};
