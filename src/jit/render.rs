//! The text of a kernel: a generated prelude of `#define` lines in front of the templates, which are C++ as they stand.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use super::variant::{Class, Variant};
use crate::rope::scaling::TableMode;
use crate::rope::{DType, Direction, PairStyle, PositionForm, RopeSpec, Rounding};

/// The name of every kernel's entry point.
pub const ENTRY: &str = "rope_kernel";

/// Which of the two kinds of device the text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// CUDA C++ for NVRTC.
    Cuda,
    /// C++ for the system's compiler.
    Host,
}

const PARAMS: &str = include_str!("../../templates/params.h");
const CUDA: &str = include_str!("../../templates/cuda.h");
const HOST: &str = include_str!("../../templates/host.h");
const NUMERIC: &str = include_str!("../../templates/numeric.h");
const ANGLES: &str = include_str!("../../templates/angles.h");
const ROPE: &str = include_str!("../../templates/rope.h");

/// SHA-256 over all templates, in hexadecimal: a choice made for other templates is not taken over.
pub fn templates_digest() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| {
        let mut hasher = Sha256::new();
        for text in [PARAMS, CUDA, HOST, NUMERIC, ANGLES, ROPE] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        super::key::hex(&hasher.finalize())
    });
    &DIGEST
}

/// The complete source of one kernel.
pub fn render(dialect: Dialect, spec: &RopeSpec, class: Class, v: Variant) -> String {
    let code = |dtype: DType| match dtype {
        DType::F32 => "ROPE_F32",
        DType::F16 => "ROPE_F16",
        DType::BF16 => "ROPE_BF16",
    };
    let positions = match spec.positions {
        PositionForm::Implicit => "ROPE_IMPLICIT",
        PositionForm::Ids32 => "ROPE_IDS32",
        PositionForm::Ids64 => "ROPE_IDS64",
        PositionForm::Offsets32 => "ROPE_OFFSETS32",
        PositionForm::Offsets64 => "ROPE_OFFSETS64",
        PositionForm::CuSeqlens => "ROPE_CU_SEQLENS",
    };
    let mut text = String::with_capacity(16 << 10);
    // Writing to a String cannot fail.
    let mut define = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "#define ROPE_{name} {value}");
    };
    define("DTYPE", &code(spec.dtype));
    define("TABLE_F32", &u8::from(spec.table.dtype == DType::F32));
    define("HEAD_DIM", &spec.head_dim);
    define("ROTARY_DIM", &spec.rotary_dim);
    define("NUM_HEADS", &spec.num_heads);
    define("NUM_KV_HEADS", &spec.num_kv_heads);
    define("INTERLEAVED", &u8::from(spec.style == PairStyle::Interleaved));
    define("PER_OP", &u8::from(spec.rounding == Rounding::PerOp));
    define("BACKWARD", &u8::from(spec.direction == Direction::Backward));
    define("POSITIONS", &positions);
    define("MROPE", &spec.mrope.map_or(0, |m| 1 + u8::from(m.interleaved)));
    if let Some(mrope) = &spec.mrope {
        for (axis, pairs) in ["MROPE_T", "MROPE_H", "MROPE_W"].into_iter().zip(&mrope.sections) {
            define(axis, pairs);
        }
    }
    define("WORD", &class.word);
    define("TABLE_WORD", &class.table_word.max(2));
    define("HEAD_MAJOR", &u8::from(class.head_major));
    define("COPY_REST", &u8::from(class.copy_rest));
    define("THREADS", &v.threads);
    define("VEC", &v.vec);
    define("HEADS_PER_THREAD", &v.heads);
    define("LOAD_HINT", &v.load.code());
    define("STORE_HINT", &v.store.code());
    define("KEEP_TABLES", &u8::from(v.keep_tables));
    define("TABLELESS", &u8::from(v.tableless));
    define("ACCURATE", &u8::from(spec.angles == Some(TableMode::Accurate)));
    define("OVERLAP", &u8::from(v.overlap));
    define("PREFETCH", &u8::from(v.prefetch));
    let device = match dialect {
        Dialect::Cuda => ("cuda.h", CUDA),
        Dialect::Host => ("host.h", HOST),
    };
    for (name, body) in [("params.h", PARAMS), device, ("numeric.h", NUMERIC), ("angles.h", ANGLES), ("rope.h", ROPE)] {
        let _ = writeln!(text, "#line 1 \"templates/{name}\"");
        text.push_str(body);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::variant::{Abilities, Bucket, space};

    #[test]
    fn every_variant_has_its_own_text() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        let class = Class::contiguous(&spec, false, true);
        let all = space(&spec, class, Bucket::of(8192), Abilities { dialect: Dialect::Cuda, overlap: true });
        let texts: std::collections::HashSet<_> = all.iter().map(|&v| render(Dialect::Cuda, &spec, class, v)).collect();
        assert_eq!(texts.len(), all.len());
    }
}
