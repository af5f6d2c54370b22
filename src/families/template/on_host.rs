//! Whether a processor runs a kernel, and how: told by the words of its text.

use super::expr::Expr;
use super::prelude::host_words;
use super::tokens::Token;

/// How the host device runs the threads of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnHost {
    /// One after another.
    InTurn,
    /// As fibers: they wait for each other.
    Waiting,
    /// Not at all, and why not: served on GPUs only.
    No(String),
}

/// What of CUDA the text uses decides whether and how a processor runs it.
pub fn on_host(all: &[Token<'_>], shared: &Expr) -> OnHost {
    const WAITS: [&str; 10] = [
        "__syncthreads",
        "__syncwarp",
        "__shfl_sync",
        "__shfl_xor_sync",
        "__shfl_down_sync",
        "__shfl_up_sync",
        "__ballot_sync",
        "__any_sync",
        "__all_sync",
        "__activemask",
    ];
    // Words that begin so are CUDA's, and those that the host's prelude has are all of these that it has.
    let offered = host_words();
    let no = |token: &Token<'_>, what: &str| OnHost::No(format!("line {}: {} {what}", token.line, token.text));
    let mut waits = false;
    for (i, token) in all.iter().enumerate() {
        match token.text {
            "asm" | "__asm__" => return no(token, "holds instructions of GPUs"),
            "extern" if all.get(i + 1).is_some_and(|t| t.text == "__shared__") => {
                return no(token, "__shared__ is memory whose size a launch says, which the host device has not");
            }
            text if WAITS.contains(&text) => waits = true,
            text if (text.starts_with("__") || text.starts_with("atomic"))
                && !offered.contains(text)
                && !is_common(text) =>
            {
                return no(token, "is nothing that the host device has");
            }
            _ => {}
        }
    }
    if shared.text().trim() != "0" {
        return OnHost::No("[launch] shared: memory whose size a launch says, which the host device has not".into());
    }
    if waits { OnHost::Waiting } else { OnHost::InTurn }
}

/// Words with two underscores that every C++ compiler has.
fn is_common(word: &str) -> bool {
    word.starts_with("__builtin_")
        || ["__restrict__", "__restrict", "__CUDA_ARCH__", "__attribute__", "__inline__", "__LINE__", "__func__"]
            .contains(&word)
}
