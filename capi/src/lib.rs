//! ropejit for C.
//!
//! `include/ropejit.h` is made of this crate by cbindgen: the comments of what is exported are the header's. `calls`
//! has the functions, `args` and `dlpack` what they are given; `pointers` is where a pointer of C becomes a reference,
//! and `status` where an error becomes a number and a text.

mod args;
mod calls;
mod dlpack;
mod pointers;
mod status;
mod view;

pub use args::Args;
pub use calls::*;
pub use dlpack::{DLDataType, DLDevice, DLTensor};
pub use status::Status;
