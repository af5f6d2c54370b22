//! Where warnings go.

use std::sync::Once;

/// Warnings of the library go to stderr, as `ROPEJIT_LOG` says; where a program has set up its own, they go there.
pub fn to_stderr() {
    static ONCE: Once = Once::new();
    ONCE.call_once(ropejit::cli::log::to_stderr);
}
