//! Kernels of users, each from one `.toml` and one `.cu`.

mod description;
mod element;
mod expr;
mod fill;
mod names;
mod read;
