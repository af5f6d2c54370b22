//! The text of a kernel: a generated prelude of `#define` lines in front of the templates, which are C++ as they stand.

use std::fmt::Write as _;

use once_cell::race::OnceBox;
use sha2::{Digest, Sha256};

use super::tunables::{Class, Variant};
use crate::rope::scaling::{Mrope, TableMode};
use crate::rope::{
    Append, DType, Direction, Flavour, Fp8, Norm, PairStyle, PositionForm, RopeSpec, RotaryPart, Rounding, Rsqrt,
    ScaleUse, SlotForm, SumOrder,
};
pub use crate::service::device::Dialect;
use crate::service::device::Source;

/// The name of every kernel's entry point.
pub const ENTRY: &str = "rope_kernel";

const PARAMS: &str = include_str!("../../../templates/params.h");
const CUDA: &str = include_str!("../../../templates/cuda.h");
const HOST: &str = include_str!("../../../templates/host.h");
const NUMERIC: &str = include_str!("../../../templates/numeric.h");
const ANGLES: &str = include_str!("../../../templates/angles.h");
const TURN: &str = include_str!("../../../templates/turn.h");
const ROPE: &str = include_str!("../../../templates/rope.h");
const PACK: &str = include_str!("../../../templates/pack.h");
const SLOTS: &str = include_str!("../../../templates/slots.h");
const NORM: &str = include_str!("../../../templates/norm.h");
const STORE: &str = include_str!("../../../templates/store.h");
const GRADIENT: &str = include_str!("../../../templates/gradient.h");
const FUSED: &str = include_str!("../../../templates/fused.h");

const FUSED_FILES: [(&str, &str); 6] = [
    ("pack.h", PACK),
    ("slots.h", SLOTS),
    ("norm.h", NORM),
    ("store.h", STORE),
    ("gradient.h", GRADIENT),
    ("fused.h", FUSED),
];

/// SHA-256 over all templates, in hexadecimal: a choice made for other templates is not taken over.
pub fn templates_digest() -> &'static str {
    static DIGEST: OnceBox<String> = OnceBox::new();
    DIGEST.get_or_init(|| {
        let mut hasher = Sha256::new();
        for text in [PARAMS, CUDA, HOST, NUMERIC, ANGLES, TURN, ROPE, PACK, SLOTS, NORM, STORE, GRADIENT, FUSED] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        Box::new(crate::service::digest::hex(&hasher.finalize()))
    })
}

/// What makes the blocks of a kernel run on the host device, which hands over pointers to the values of its parameters.
const HOST_BLOCKS: &str = r#"
extern "C" void rope_kernel_blocks(const void* const* args, const u32*, u32 first, u32 last) {
    rope_kernel((const RopeParams*)args[0], (const RopeAngles*)args[1], (const RopeShape*)args[2], first, last);
}
"#;
const FUSED_HOST_BLOCKS: &str = r#"
extern "C" void rope_kernel_blocks(const void* const* args, const u32*, u32 first, u32 last) {
    rope_kernel((const RopeParams*)args[0], (const FusedParams*)args[1], (const RopeAngles*)args[2],
                (const RopeShape*)args[3], first, last);
}
"#;

/// A kernel's text as a device takes it.
pub fn source(text: String) -> Source {
    Source { text, entry: ENTRY.to_owned(), options: Vec::new() }
}

/// The complete source of one kernel.
pub fn render(dialect: Dialect, spec: &RopeSpec, class: Class, v: Variant) -> String {
    let [t, h, w] = spec.mrope.map_or([0; 3], |m| m.sections);
    let is_fused = spec.is_fused();
    let mut prelude: Vec<(&str, String)> = Vec::with_capacity(64);
    let mut all = |values: &[(&'static str, &dyn std::fmt::Display)]| {
        prelude.extend(values.iter().map(|(name, value)| (*name, value.to_string())));
    };
    all(&[
        ("PORTABLE", &0),
        ("DTYPE", &dtype_name(spec.dtype)),
        ("TABLE_F32", &u8::from(spec.table.dtype == DType::F32)),
        ("HEAD_DIM", &spec.head_dim),
        ("ROTARY_DIM", &spec.rotary_dim),
        ("NUM_HEADS", &spec.num_heads),
        ("NUM_KV_HEADS", &spec.num_kv_heads),
        ("ITEMS", &spec.items()),
        ("LANES", &v.lanes),
        // How a fused kernel's pairs lie it is told apart.
        ("INTERLEAVED", &u8::from(!is_fused && spec.style == PairStyle::Interleaved)),
        ("PER_OP", &u8::from(spec.rounding == Rounding::PerOp)),
        ("CONTRACTED", &u8::from(spec.rounding == Rounding::Contracted)),
        ("BACKWARD", &u8::from(spec.direction == Direction::Backward)),
        ("POSITIONS", &positions_code(spec.positions)),
        ("MROPE", &mrope_code(spec.mrope.as_ref())),
        ("MROPE_T", &t),
        ("MROPE_H", &h),
        ("MROPE_W", &w),
        ("ONE_AXIS", &u8::from(spec.mrope.is_none())),
        ("WORD", &class.word),
        ("TABLE_WORD", &class.table_word.max(2)),
        ("HEAD_MAJOR", &u8::from(class.head_major)),
        ("COPY_REST", &u8::from(class.copy_rest)),
        ("THREADS", &v.threads),
        ("VEC", &v.vec),
        ("HEADS_PER_THREAD", &v.heads),
        ("LOAD_HINT", &v.load.code()),
        ("STORE_HINT", &v.store.code()),
        ("KEEP_TABLES", &u8::from(v.keep_tables)),
        ("TABLELESS", &u8::from(v.tableless)),
        ("ACCURATE", &u8::from(spec.angles == Some(TableMode::Accurate))),
        ("OVERLAP", &u8::from(v.overlap)),
        ("PREFETCH", &u8::from(v.prefetch)),
    ]);
    if is_fused {
        prelude.extend(fused_prelude(spec, v));
    }
    assemble(dialect, &prelude, is_fused)
}

/// What the prelude of a fused kernel has beside: whatever stands beside the rotation.
pub(super) fn fused_prelude(spec: &RopeSpec, v: Variant) -> Vec<(&'static str, String)> {
    let backward = spec.direction == Direction::Backward;
    let pairs = |there: bool| spec.style == PairStyle::Interleaved || (spec.style == PairStyle::Deinterleave && there);
    let norm = spec.norm.unwrap_or(Norm::new(Flavour::NoWeight));
    let append = spec.append.unwrap_or(Append::new(0));
    let scale_use = |fp8: Option<Fp8>| match fp8.map(|fp8| fp8.scale) {
        None => 0,
        Some(ScaleUse::Divide) => 1,
        Some(ScaleUse::Multiply) => 2,
    };
    let per_head = |fp8: Option<Fp8>| u32::from(fp8.is_some_and(|fp8| fp8.per_head));
    let all = [
        ("EARLY", u32::from(v.early)),
        ("BLOCKS", v.blocks.into()),
        ("IN_PAIRS", u32::from(pairs(!backward))),
        ("OUT_PAIRS", u32::from(pairs(backward))),
        ("LAST", u32::from(spec.part == RotaryPart::Last)),
        ("K_DIM", spec.k_dim()),
        ("V_DIM", append.v_head_dim),
        ("NORM", u32::from(spec.norm.is_some())),
        ("FLAVOUR", flavour_code(norm.flavour)),
        ("TREE", u32::from(norm.order == SumOrder::Tree)),
        ("IEEE", u32::from(norm.rsqrt == Rsqrt::Ieee)),
        ("AFTER", u32::from(norm.after_rope)),
        ("APPEND", u32::from(spec.append.is_some())),
        ("PAGES", u32::from(append.slots == SlotForm::Pages)),
        ("CACHE_FP8", scale_use(append.cache)),
        ("CACHE_PER_HEAD", per_head(append.cache)),
        ("Q_FP8", scale_use(append.q)),
        ("Q_PER_HEAD", per_head(append.q)),
    ];
    all.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

/// The number that `templates/params.h` gives a flavour.
fn flavour_code(flavour: Flavour) -> u32 {
    match flavour {
        Flavour::WeightAfter => 0,
        Flavour::OnePlusWeight => 1,
        Flavour::WeightF32 => 2,
        Flavour::NoWeight => 3,
    }
}

/// The prelude, then the templates.
pub(super) fn assemble(dialect: Dialect, prelude: &[(&str, String)], is_fused: bool) -> String {
    let mut text = String::with_capacity(16 << 10);
    // Writing to a String cannot fail.
    for (name, value) in prelude {
        let _ = writeln!(text, "#define ROPE_{name} {value}");
    }
    let device = match dialect {
        Dialect::Cuda => ("cuda.h", CUDA),
        Dialect::Host => ("host.h", HOST),
    };
    let shared = [("params.h", PARAMS), device, ("numeric.h", NUMERIC), ("angles.h", ANGLES), ("turn.h", TURN)];
    let own: &[_] = if is_fused { &FUSED_FILES } else { &[("rope.h", ROPE)] };
    for (name, body) in shared.iter().chain(own) {
        let _ = writeln!(text, "#line 1 \"templates/{name}\"");
        text.push_str(body);
    }
    if dialect == Dialect::Host {
        text.push_str(if is_fused { FUSED_HOST_BLOCKS } else { HOST_BLOCKS });
    }
    text
}

pub(super) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "ROPE_F32",
        DType::F16 => "ROPE_F16",
        DType::BF16 => "ROPE_BF16",
        DType::E4M3 => unreachable!("no spec has it"),
    }
}

/// The number that `templates/params.h` gives a form of positions.
pub fn positions_code(form: PositionForm) -> u32 {
    match form {
        PositionForm::Implicit => 0,
        PositionForm::Ids32 => 1,
        PositionForm::Ids64 => 2,
        PositionForm::Offsets32 => 3,
        PositionForm::Offsets64 => 4,
        PositionForm::CuSeqlens => 5,
        PositionForm::CuSeqlens64 => 6,
    }
}

/// How `templates/rope.h` tells the kinds of mRoPE apart.
pub fn mrope_code(mrope: Option<&Mrope>) -> u32 {
    mrope.map_or(0, |m| 1 + u32::from(m.interleaved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::rope::variant::{Abilities, Bucket, space};

    #[test]
    fn every_variant_has_its_own_text() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let class = Class::contiguous(&spec, false, true);
        let all =
            space(&spec, class, Bucket::of(8192), Abilities { dialect: Dialect::Cuda, overlap: true, cubins: None });
        let texts: std::collections::HashSet<_> = all.iter().map(|&v| render(Dialect::Cuda, &spec, class, v)).collect();
        assert_eq!(texts.len(), all.len());
    }
}
