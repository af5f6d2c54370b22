//! What other libraries' calls compute: the specs that a prewarm prepares for them.
//!
//! A library hands over cos and sin of a form of its own, rounds where its own code rounds, and asks for gradients of q and k
//! together or of one alone. transformers has a function per model; most are Llama's, and the others are listed here.

use super::model::attention::deinterleaves;
use super::{DType, Direction, Norm, PairStyle, PositionForm, RopeSpec, Rounding, TableWidth};
use crate::error::{Error, Result};

/// Elements of a head at most that are normalised: beyond, PyTorch's order of a sum follows the number of rows.
const NORMALISED: u32 = 256;

/// A library whose calls can be prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Library {
    /// Models of Hugging Face's transformers: their `apply_rotary_pos_emb`.
    Transformers,
    /// Unsloth's `fast_rope_embedding`.
    Unsloth,
    /// flash-attn's `apply_rotary_emb`.
    FlashAttn,
}

impl Library {
    /// All of them, by the names that they are asked for by.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Transformers, "transformers"), (Self::Unsloth, "unsloth"), (Self::FlashAttn, "flash-attn")];

    /// What its calls compute for a model whose RoPE is `spec`, of which types, dimensions, heads and pair style are taken;
    /// with `gradients`, their backward passes too. What is fused ([`fused`](Self::fused)) is not among them.
    pub fn specs(self, model_type: &str, spec: &RopeSpec, gradients: bool) -> Vec<RopeSpec> {
        let mut base = spec.clone();
        // One row of the tables per token: where positions have three axes, the model has resolved them.
        (base.mrope, base.angles, base.direction) = (None, None, Direction::Forward);
        base.positions = PositionForm::Implicit;
        if self == Self::Transformers && base.style == PairStyle::Interleaved && deinterleaves(model_type) {
            base.style = PairStyle::Deinterleave;
        }
        let of = |rounding: Rounding, table: DType, width: TableWidth| {
            base.clone().with_rounding(rounding.of(spec.dtype)).with_table(table, width)
        };
        let either = |width| [of(Rounding::Once, spec.dtype, width), of(Rounding::Once, DType::F32, width)];
        let mut all: Vec<RopeSpec> = Vec::new();
        // What gradients are the transpose of, where that is not what the call computes.
        let mut gradient_of = None;
        match self {
            Self::Transformers => {
                use Rounding::{Contracted, Once, PerOp};
                use TableWidth::{Full, Half};
                let (form, alone) = match model_type {
                    "cohere" | "cohere2" => (of(Once, spec.dtype, Half), false),
                    "modernbert" | "esm" | "evolla" => {
                        // Their text widens q twice, so autograd rounds each part of the gradient.
                        gradient_of = Some(of(PerOp, spec.dtype, Full));
                        (of(Once, spec.dtype, Full), false)
                    }
                    "ernie4_5" | "ernie4_5_moe" | "flex_olmo" | "olmo" | "olmo2" | "olmo3" => {
                        (of(Once, DType::F32, Full), false)
                    }
                    // Complex products, as a GPU computes them.
                    "llama4" | "llama4_text" | "deepseek_v2" => (of(Contracted, DType::F32, Half), false),
                    "gpt_oss" => (of(PerOp, spec.dtype, Half), false),
                    "gptj" | "codegen" => (of(PerOp, spec.dtype, Half), true),
                    "gemma3n_text" | "gemma4_text" => (of(PerOp, spec.dtype, Full), true),
                    _ => (of(PerOp, spec.dtype, Full), false),
                };
                if alone { all.extend(each_alone(&form)) } else { all.push(form) }
            }
            Self::Unsloth => {
                for spec in either(TableWidth::Full) {
                    for positions in [PositionForm::Implicit, PositionForm::Ids32, PositionForm::Ids64] {
                        all.push(spec.clone().with_positions(positions));
                    }
                }
            }
            Self::FlashAttn => {
                use PositionForm::{CuSeqlens, Implicit, Offsets32, Offsets64};
                for spec in either(TableWidth::Half).iter().flat_map(each_alone) {
                    for positions in [Implicit, Offsets32, Offsets64, CuSeqlens] {
                        all.push(spec.clone().with_positions(positions));
                    }
                }
            }
        }
        if gradients {
            let forward = gradient_of.map_or_else(|| all.clone(), |spec| vec![spec]);
            let back: Vec<RopeSpec> = forward.iter().flat_map(gradients_of).collect();
            all.extend(back);
        }
        each_once(all)
    }

    /// Its calls that normalise q and k and turn them in one launch, for a model that has this norm before the rotation: what
    /// `ropejit.patch("transformers")` calls, with the bits of the model's own functions. Arguments as of
    /// [`specs`](Self::specs).
    pub fn fused(self, model_type: &str, norm: Norm, spec: &RopeSpec, gradients: bool) -> Vec<RopeSpec> {
        if self != Self::Transformers || spec.head_dim > NORMALISED {
            return Vec::new();
        }
        let forward: Vec<RopeSpec> =
            self.specs(model_type, spec, false).into_iter().map(|s| s.with_norm(norm)).collect();
        // Their norms take a power of −0.5, whose gradient is another.
        let gradients = gradients && !model_type.starts_with("gemma3n") && !model_type.starts_with("gemma4");
        let back = forward.iter().filter(|_| gradients).flat_map(gradients_of).collect::<Vec<_>>();
        each_once(forward.into_iter().chain(back))
    }

    /// Token counts of [`fused`](Self::fused) calls that are computed once beside those of the program: by them
    /// `ropejit.patch` makes sure that PyTorch adds up squares in the kernels' order.
    pub const COMPARED: [u64; 3] = [1, 13, 700];

    /// In which orders its tensors lie in memory: `[B,H,S,D]`, or not.
    pub fn head_major(self) -> &'static [bool] {
        match self {
            // A projection's view, and what became contiguous after it was transposed.
            Self::Transformers | Self::Unsloth => &[false, true],
            Self::FlashAttn => &[false],
        }
    }
}

impl std::str::FromStr for Library {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, name)| *name == s).map(|(library, _)| *library).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            Error::argument("library", format!("'{}' is not a library whose calls are known", crate::error::clip(s)))
                .hint(format!("known are {}", names.join(", ")))
        })
    }
}

/// The gradients that may be asked of a call: of q and k together, and of each alone where only one of them needs any.
pub fn gradients_of(spec: &RopeSpec) -> Vec<RopeSpec> {
    let mut all = vec![spec.clone()];
    all.extend(each_alone(spec));
    for spec in &mut all {
        spec.direction = match spec.direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
    }
    all.dedup();
    all
}

fn each_once(specs: impl IntoIterator<Item = RopeSpec>) -> Vec<RopeSpec> {
    let mut once: Vec<RopeSpec> = Vec::new();
    for spec in specs {
        if !once.contains(&spec) {
            once.push(spec);
        }
    }
    once
}

/// q alone, and k alone where there is one and it has other heads.
fn each_alone(spec: &RopeSpec) -> Vec<RopeSpec> {
    let alone = |num_heads| RopeSpec { num_heads, num_kv_heads: 0, ..spec.clone() };
    let mut all = vec![alone(spec.num_heads)];
    if spec.num_kv_heads > 0 && spec.num_kv_heads != spec.num_heads {
        all.push(alone(spec.num_kv_heads));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::Flavour;

    fn texts(library: &str, model_type: &str, spec: &RopeSpec, gradients: bool) -> Vec<String> {
        let library: Library = library.parse().expect("known");
        let specs = library.specs(model_type, spec, gradients);
        assert!(specs.iter().all(|spec| spec.validate().is_ok()));
        specs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn transformers_calls_are_its_functions() {
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        assert_eq!(
            texts("transformers", "llama", &spec, true),
            [
                "bf16 d128 h32/8 half_split per_op table=bf16/full pos=implicit",
                "bf16 d128 h32/8 half_split per_op backward table=bf16/full pos=implicit",
                "bf16 d128 h32/0 half_split per_op backward table=bf16/full pos=implicit",
                "bf16 d128 h8/0 half_split per_op backward table=bf16/full pos=implicit",
            ]
        );
        assert_eq!(
            texts("transformers", "olmo2", &spec, false),
            ["bf16 d128 h32/8 half_split once table=f32/full pos=implicit"]
        );
        assert_eq!(
            texts("transformers", "modernbert", &RopeSpec { num_kv_heads: 32, ..spec.clone() }, true),
            [
                "bf16 d128 h32/32 half_split once table=bf16/full pos=implicit",
                "bf16 d128 h32/32 half_split per_op backward table=bf16/full pos=implicit",
                "bf16 d128 h32/0 half_split per_op backward table=bf16/full pos=implicit",
            ]
        );
        assert_eq!(
            texts("transformers", "cohere", &spec, false),
            ["bf16 d128 h32/8 half_split once table=bf16/half pos=implicit"]
        );
        assert_eq!(
            texts("transformers", "gemma4_text", &spec, false),
            [
                "bf16 d128 h32/0 half_split per_op table=bf16/full pos=implicit",
                "bf16 d128 h8/0 half_split per_op table=bf16/full pos=implicit",
            ]
        );
        let f32 = RopeSpec::new(DType::F32, 128, 4, 4);
        assert_eq!(
            texts("transformers", "llama", &f32, false),
            ["f32 d128 h4/4 half_split once table=f32/full pos=implicit"]
        );
        assert_eq!(texts("transformers", "llama", &f32, true).len(), 3, "q alone is k alone");
    }

    #[test]
    fn norms_are_of_the_functions_contract() {
        let norm = Norm::new(Flavour::WeightAfter);
        let texts = |model_type: &str, spec: &RopeSpec, gradients: bool| {
            let specs = Library::Transformers.fused(model_type, norm, spec, gradients);
            assert!(specs.iter().all(|spec| spec.validate().is_ok()));
            specs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let spec = RopeSpec::new(DType::BF16, 128, 32, 8);
        assert_eq!(
            texts("qwen3", &spec, false),
            ["bf16 d128 h32/8 half_split per_op table=bf16/full pos=implicit norm=weight_after/torch/approx"]
        );
        let trained = texts("qwen3", &spec, true);
        assert_eq!(trained.len(), 4);
        assert_eq!(
            trained[1],
            "bf16 d128 h32/8 half_split per_op backward table=bf16/full pos=implicit norm=weight_after/torch/approx"
        );
        let f32 = RopeSpec { dtype: DType::F32, ..spec.clone() };
        assert_eq!(
            texts("qwen3", &f32, false),
            ["f32 d128 h32/8 half_split once table=f32/full pos=implicit norm=weight_after/torch/approx"]
        );
        assert_eq!(texts("gemma4_text", &spec, true).len(), 2, "q and k alone, and no gradients");
        assert!(texts("qwen3", &RopeSpec::new(DType::BF16, 512, 8, 8), false).is_empty());
        assert!(Library::Unsloth.fused("qwen3", norm, &spec, false).is_empty());
    }

    #[test]
    fn pairs_leave_as_halves_where_transformers_text_says_so() {
        let mut spec = RopeSpec::new(DType::BF16, 64, 128, 1);
        spec.style = PairStyle::Interleaved;
        for (model_type, style) in
            [("deepseek_v3", "deinterleave"), ("kimi_k2", "deinterleave"), ("glm_moe_dsa", "deinterleave")]
        {
            let line = format!("bf16 d64 h128/1 {style} per_op table=bf16/full pos=implicit");
            assert_eq!(texts("transformers", model_type, &spec, false), [line]);
        }
        for model_type in ["deepseek_v2", "llama4", "llama4_text"] {
            let line = "bf16 d64 h128/1 interleaved contracted table=f32/half pos=implicit";
            assert_eq!(texts("transformers", model_type, &spec, false), [line]);
        }
        spec.style = PairStyle::HalfSplit;
        let halves = texts("transformers", "deepseek_v3", &spec, false);
        assert_eq!(halves, ["bf16 d64 h128/1 half_split per_op table=bf16/full pos=implicit"]);
    }

    #[test]
    fn others_take_positions_too() {
        let spec = RopeSpec::new(DType::F16, 64, 4, 2);
        let unsloth = texts("unsloth", "llama", &spec, false);
        assert_eq!(unsloth.len(), 6);
        assert!(unsloth.contains(&"f16 d64 h4/2 half_split once table=f16/full pos=ids64".to_owned()), "{unsloth:?}");
        let flash = texts("flash-attn", "llama", &spec, false);
        assert_eq!(flash.len(), 16);
        assert!(flash.contains(&"f16 d64 h2/0 half_split once table=f32/half pos=cu_seqlens".to_owned()), "{flash:?}");
        let e = "vllm".parse::<Library>().expect_err("not known");
        assert!(e.advice().is_some_and(|hint| hint.contains("flash-attn")), "{e}");
    }
}
