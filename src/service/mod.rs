//! What any kernel needs: compiled once, kept on disk, tuned on the device, explained. It knows no kernel: what a family of
//! kernels has to say stands on one page, [`family`].

pub mod bucket;
pub mod device;
pub mod digest;
pub mod engine;
pub mod family;
pub mod key;
pub mod lock;
pub mod record;
pub mod stated;
pub mod store;
pub mod tune;
