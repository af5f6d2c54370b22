//! Kernels of users, each from one `.toml` and one `.cu`.
//!
//! [`Template::load`] reads and checks both. [`Engine::template`](crate::Engine::template) puts it on an engine's device,
//! [`OnEngine::spec`] gives the kernel of one spec, and [`TemplateKernel::launch`] launches it. The service does the rest, as
//! for any family: compiled kernels and choices are cached, candidates are compared with the default and tuned.
//!
//! `docs/your-own-kernels.md` says what the two files hold.

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
