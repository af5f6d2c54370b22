//! Which device to open.

use crate::error::{Error, Result};

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first GPU when there is a CUDA driver with one, else the host.
    #[default]
    Auto,
    /// The GPU of this ordinal.
    Cuda(u32),
    /// The processor.
    Host,
}

impl std::str::FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.split_once(':') {
            None if s == "auto" => Ok(Self::Auto),
            None if s == "host" => Ok(Self::Host),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", n)) if n.parse::<u32>().is_ok() => Ok(Self::Cuda(n.parse().unwrap_or(0))),
            _ => Err(Error::argument("device", format!("unknown device '{s}'")).hint("use auto, host, cuda or cuda:N")),
        }
    }
}
