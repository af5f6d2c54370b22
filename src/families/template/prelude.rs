//! What stands in front of every kernel's text: CUDA's words for processors, types and conversions for both.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::tokens::tokens;

pub const COMMON: &str = include_str!("prelude/common.h");
pub const CUDA: &str = include_str!("prelude/cuda.h");
pub const HOST: &str = include_str!("prelude/host.h");
pub const ATOMICS: &str = include_str!("prelude/atomics.h");
pub const PLACE: &str = include_str!("prelude/place.h");
pub const THREADS: &str = include_str!("prelude/threads.h");
pub const FIBERS: &str = include_str!("prelude/fibers.h");
pub const ENTRY: &str = include_str!("prelude/entry.h");

/// The words of CUDA that the host's prelude offers.
pub fn host_words() -> &'static HashSet<&'static str> {
    static WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
        let texts = [COMMON, HOST, ATOMICS, FIBERS].into_iter();
        texts.flat_map(tokens).map(|t| t.text).collect()
    });
    &WORDS
}
