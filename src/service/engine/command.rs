//! The command that fills the cache, as errors and `inspect` print it: whoever runs it as it stands has the call served.

use std::path::Path;

use super::Shared;
use super::prewarm::prepared_classes;
use crate::error::Error;
use crate::families::rope::variant::Class;
use crate::service::bucket::Bucket;
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth};

/// What to do about something that is not cached: the command that fills the cache, for the engine as it was built, behind
/// what keeps that from being found. `environment` goes in front of the command.
pub(super) fn fill(shared: &Shared, environment: &str, command: &str) -> String {
    let command = format!("{environment}{}{command}", shared.command_environment);
    match (shared.store.root(), shared.store.lost().as_ref().and_then(Error::advice)) {
        (Some(_), _) => command,
        (None, Some(cure)) => format!("{cure}; then: {command}"),
        (None, None) => {
            format!("give the engine a cache folder (ROPEJIT_CACHE_DIR, Builder::cache_dir); then: {command}")
        }
    }
}

/// The command that fills the cache for a spec, bucket and class.
pub fn prewarm_command(spec: &RopeSpec, bucket: Bucket, class: Class) -> String {
    let mut command = format!(
        "ropejit prewarm --dtype {} --head-dim {} --num-heads {} --num-kv-heads {} --tokens {}",
        spec.dtype,
        spec.head_dim,
        spec.num_heads,
        spec.num_kv_heads,
        bucket.tokens()
    );
    let mut flag = |on: bool, text: &str| {
        if on {
            command.push(' ');
            command.push_str(text);
        }
    };
    flag(spec.rotary_dim < spec.head_dim, &format!("--rotary-dim {}", spec.rotary_dim));
    flag(spec.style == PairStyle::Interleaved, "--style interleaved");
    flag(spec.direction == Direction::Backward, "--backward");
    flag(spec.rounding == Rounding::PerOp, "--rounding per-op");
    flag(spec.table.dtype != DType::F32, "--table same");
    flag(spec.table.width == TableWidth::Full, "--table-width full");
    let positions = match spec.positions {
        PositionForm::Implicit => None,
        PositionForm::Ids32 => Some("ids32"),
        PositionForm::Ids64 => Some("ids64"),
        PositionForm::Offsets32 => Some("offsets32"),
        PositionForm::Offsets64 => Some("offsets64"),
        PositionForm::CuSeqlens => Some("cu-seqlens"),
    };
    let angles = match spec.angles {
        Some(TableMode::F32) => "--angles f32",
        Some(TableMode::Accurate) => "--angles accurate",
        None => "",
    };
    flag(spec.angles.is_some(), angles);
    flag(positions.is_some(), &format!("--positions {}", positions.unwrap_or_default()));
    if let Some(mrope) = &spec.mrope {
        flag(true, &format!("--mrope {mrope}"));
    }
    if prepared_classes(spec, class.head_major).contains(&class) {
        flag(class.head_major, "--bhsd");
    } else {
        flag(true, &format!("--layout {class}"));
    }
    command
}

/// A path as a shell reads it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
