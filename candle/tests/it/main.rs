//! In candle: bits against ropejit's plain reference, gradients against candle's own of plain formulas.

mod data;
mod errors;
#[cfg(feature = "cuda")]
mod gpu;
mod gradients;
mod norm;
mod rope;
