//! Kernels of users, each from one `.toml` and one `.cu`.

mod description;
mod element;
mod expr;
mod fill;
mod kernel_text;
mod names;
mod read;
mod source;
mod space;
mod tokens;
