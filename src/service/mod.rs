//! What any kernel needs: compiled once, kept on disk, tuned on the device, explained. It knows no kernel: what a family of
//! kernels has to say stands on one page, [`family`].

pub mod bucket;
pub mod digest;
pub mod family;
pub mod stated;
