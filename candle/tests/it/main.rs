//! candle on the CPU: bits against ropejit's plain reference, gradients against candle's own of plain formulas.

mod data;
mod errors;
mod gradients;
mod norm;
mod rope;
