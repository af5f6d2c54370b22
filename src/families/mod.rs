//! The families of kernels that the service serves.

pub mod rope;
pub mod template;
