//! The command that fills the cache for a call: whoever runs it as it stands has the call served.

use ropejit::families::rope::prepared_classes;
use ropejit::jit::{Bucket, Class};
use ropejit::rope::scaling::TableMode;
use ropejit::rope::{Fp8, Norm, RotaryPart, ScaleUse, SlotForm};
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
    flag(spec.style == PairStyle::Deinterleave, "--style deinterleave");
    flag(spec.part == RotaryPart::Last, "--part last");
    flag(spec.k_head_dim.is_some(), &format!("--k-head-dim {}", spec.k_head_dim.unwrap_or_default()));
    flag(spec.direction == Direction::Backward, "--backward");
    flag(spec.rounding == Rounding::PerOp, "--rounding per-op");
    flag(spec.rounding == Rounding::Contracted, "--rounding contracted");
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
    for word in beside(spec) {
        flag(true, &word);
    }
    if prepared_classes(spec, class.head_major).contains(&class) {
        flag(class.head_major, "--bhsd");
    } else {
        flag(true, &format!("--layout {class}"));
    }
    command
}

/// The arguments that say what is done beside the rotation.
fn beside(spec: &RopeSpec) -> Vec<String> {
    let mut words = Vec::new();
    match &spec.append {
        Some(_) => words.push("--fused append".into()),
        None if spec.norm.is_some() => words.push("--fused qk-norm".into()),
        None => {}
    }
    if let Some(norm) = spec.norm {
        words.push(format!("--norm {}", Norm { after_rope: false, ..norm }));
        words.extend(norm.after_rope.then(|| "--after-rope".into()));
    }
    let Some(append) = &spec.append else { return words };
    words.push(format!("--v-head-dim {}", append.v_head_dim));
    words.extend((append.slots == SlotForm::Pages).then(|| "--slots pages".into()));
    words.extend(append.cache.map(|_| "--cache fp8".into()));
    words.extend(append.q.map(|_| "--q-fp8".into()));
    let multiplies = |fp8: Option<Fp8>| fp8.map(|fp8| fp8.scale == ScaleUse::Multiply);
    match (multiplies(append.cache), multiplies(append.q)) {
        (Some(false), Some(true)) => words.push("--q-scale multiply".into()),
        (Some(true), Some(false)) => words.push("--scale multiply --q-scale divide".into()),
        (cache, q) => words.extend(cache.or(q).filter(|multiplies| *multiplies).map(|_| "--scale multiply".into())),
    }
    let per_head = |fp8: Option<Fp8>| fp8.is_some_and(|fp8| fp8.per_head);
    match (per_head(append.cache), per_head(append.q)) {
        (false, false) => {}
        (true, true) => words.push("--per-head".into()),
        (true, false) => words.push("--per-head cache".into()),
        (false, true) => words.push("--per-head q".into()),
    }
    words
}
