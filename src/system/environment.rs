//! The environment's variables. All that this crate reads itself are read here, so that one rule holds: an empty variable is
//! an unset one. Libraries read `TMPDIR` (the standard library), and `HOME`, `XDG_CACHE_HOME`
//! and `XDG_DATA_HOME` (`directories`).
//!
//! | variable | says | read by |
//! |---|---|---|
//! | `ROPEJIT_DEVICE`, `ROPEJIT_TUNING`, `ROPEJIT_LOCK` | device, policy, lock file | `service/engine/builder.rs` |
//! | `ROPEJIT_CACHE_DIR`, `ROPEJIT_CACHE_PATH`, `ROPEJIT_CACHE_MAX_BYTES` | cache folders | `service/store/places.rs` |
//! | `ROPEJIT_TRUST_GROUP`, `ROPEJIT_STRICT` | who may write to folders | `service/store/places.rs`, `system/trust_unix.rs` |
//! | `ROPEJIT_NVRTC`, `LD_LIBRARY_PATH`, `CUDA_HOME` and others | where NVRTC is | `service/device/nvrtc_search.rs` |
//! | `CXX`, `PATH`, `ROPEJIT_HOST_CXXFLAGS` | the host's compiler | `service/device/host.rs` |
//! | `XDG_RUNTIME_DIR` | where temporary files are, if `TMPDIR` will not do | `system/private.rs` |
//! | `ROPEJIT_LOG`, `NO_COLOR`, `COLUMNS` | how the command prints | `cli/` |

use std::ffi::OsString;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A variable, whatever it holds.
pub fn raw(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A variable that holds text.
///
/// # Errors
/// When it does not.
pub fn text(name: &str) -> Result<Option<String>> {
    raw(name).map(|value| value.into_string().map_err(|_| Error::argument(name, "is not valid text"))).transpose()
}

/// The group that the operator trusts, by its number: `ROPEJIT_TRUST_GROUP`.
///
/// # Errors
/// When the variable holds something else.
pub fn trust_group() -> Result<Option<u32>> {
    let name = "ROPEJIT_TRUST_GROUP";
    let number = |text: String| {
        text.parse().map_err(|_| {
            Error::argument(name, format!("'{text}' is not the number of a group"))
                .hint("give the number, such as that of fsGroup: ROPEJIT_TRUST_GROUP=2000")
        })
    };
    text(name)?.map(number).transpose()
}

/// A variable that holds a value which its type reads.
///
/// # Errors
/// When it does not, with the variable as the subject.
pub fn parsed<T: FromStr<Err = Error>>(name: &str) -> Result<Option<T>> {
    text(name)?.map(|text| text.parse().map_err(|e: Error| e.subject_is(name))).transpose()
}
