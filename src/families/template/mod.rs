//! Kernels of users, each from one `.toml` and one `.cu`.

pub(crate) mod argument;
mod call;
mod description;
mod element;
mod expr;
mod fill;
//mod handle;
mod kernel_text;
mod names;
//mod prewarm;
mod problem;
mod read;
mod source;
mod space;
mod spec;
mod template;
mod tokens;
mod trial;

pub use argument::{Arg, ElementType};
pub use element::Element;
pub use template::Template;
