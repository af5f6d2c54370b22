//! The families of kernels that the service serves.

pub mod rope;
