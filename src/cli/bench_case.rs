//! What a bench measures of one shape.

use ropejit::DType;
use serde::{Deserialize, Serialize};

/// One measured case.
#[derive(Serialize, Deserialize)]
pub struct Case {
    pub shape: String,
    pub dtype: DType,
    pub spec: String,
    pub layout: String,
    pub in_place: bool,
    /// Bytes of tensors and caches read and written.
    pub bytes: usize,
    pub copy_us: f64,
    pub device_us: f64,
    /// `copy_us / device_us`.
    pub of_copy: f64,
    /// The same of the kernel that answers first calls, where one comes with the crate.
    pub shipped_of_copy: Option<f64>,
    pub variant: String,
    /// Host time of one call.
    pub host_us: f64,
    /// Host time of one launch of the same kernel by the driver alone; none for the gradient of a norm, which is two.
    pub bare_us: Option<f64>,
    /// The tuning run's candidates.
    pub landscape: Vec<Candidate>,
    /// How long tuning took, compiling included, when it was done.
    pub tuning_ms: f64,
}

#[derive(Serialize, Deserialize)]
pub struct Candidate {
    pub variant: String,
    /// The copy's time over its own.
    pub of_copy: f64,
}
