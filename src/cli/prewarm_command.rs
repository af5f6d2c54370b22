//! The command that fills the cache for a call: whoever runs it as it stands has the call served.

use ropejit::families::rope::prepared_classes;
use ropejit::jit::{Bucket, Class};
use ropejit::rope::scaling::TableMode;
use ropejit::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth};

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
        PositionForm::CuSeqlens64 => Some("cu-seqlens64"),
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
