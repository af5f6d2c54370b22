//! Kernel families: each says what its kernels are, and the service does the rest.

pub mod template;
