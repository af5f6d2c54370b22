//! The arguments that say what else the launch does that turns q and k: a norm, an append to a cache.

use clap::{Args, ValueEnum};
use ropejit::jit::render::Dialect;
use ropejit::rope::model::Latent;
use ropejit::rope::{Append, Flavour, Fp8, Norm, RotaryPart, Rsqrt, ScaleUse, SlotForm};
use ropejit::{Engine, Error, PairStyle, Result, RopeSpec};

/// Elements of a latent row (kv_lora_rank) where nothing says how many: DeepSeek's.
const LATENT: u32 = 512;

/// What one launch does beside the rotation.
#[derive(Args, Clone, Default)]
pub struct FusedArgs {
    /// What the same launch does beside: qk-norm (RMS norm of each head of q and k), append (k and v go to a paged cache), mla
    /// (append of a latent row and of the k that all heads share).
    #[arg(long, value_enum, value_name = "WHAT")]
    pub fused: Option<Fused>,
    /// The norm of q and k, also beside an append: how the weight is applied (weight_after, one_plus_weight, weight_f32,
    /// no_weight), the order of the sum (torch, tree), the reciprocal root (approx on a GPU, ieee) [default: the model's, else
    /// weight_after; torch; approx on a GPU, ieee on the processor].
    #[arg(long, value_name = "FLAVOUR[/ORDER[/ROOT]]", requires = "fused", value_parser = NormArg::parse)]
    pub norm: Option<NormArg>,
    /// The norm comes after the rotation, as in Llama 4.
    #[arg(long, requires = "fused")]
    pub after_rope: bool,
    /// What the cache stores: the type of q and k, or fp8 (e4m3) [default: same].
    #[arg(long, value_enum, requires = "fused")]
    pub cache: Option<CacheArg>,
    /// q is written as fp8.
    #[arg(long, requires = "fused")]
    pub q_fp8: bool,
    /// What scales do to what is stored as fp8: divide (vLLM) or multiply (FlashInfer) [default: divide].
    #[arg(long, value_enum, requires = "fused")]
    pub scale: Option<ScaleArg>,
    /// The same for q alone [default: as --scale].
    #[arg(long, value_enum, requires = "q_fp8")]
    pub q_scale: Option<ScaleArg>,
    /// One scale a head, not one a tensor: of the cache, of q, or of both.
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, default_missing_value = "both", requires = "fused")]
    pub per_head: Option<PerHead>,
    /// What says where tokens are stored: a slot for each (vLLM), or page tables (FlashInfer) [default: slot-mapping].
    #[arg(long, value_enum, requires = "fused")]
    pub slots: Option<SlotsArg>,
    /// Elements of a head of v; 0 for no v [default: as many as q has; mla: the model's kv_lora_rank, else 512].
    #[arg(long, value_name = "D", requires = "fused")]
    pub v_head_dim: Option<u32>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Fused {
    /// RMS norm of each head of q and k.
    QkNorm,
    /// k and v go to a paged cache.
    Append,
    /// Multi-head latent attention's append.
    Mla,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum CacheArg {
    /// The type of q and k.
    Same,
    /// e4m3, scaled.
    Fp8,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum ScaleArg {
    /// value / scale, as in vLLM.
    Divide,
    /// value · scale, as in FlashInfer.
    Multiply,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum PerHead {
    /// The cache's scales and q's.
    Both,
    /// Those of k and v.
    Cache,
    /// Those of q.
    Q,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum SlotsArg {
    /// A slot for each token.
    SlotMapping,
    /// Page tables.
    Pages,
}

/// A norm, and whether its root was given.
#[derive(Clone, Copy)]
pub struct NormArg {
    norm: Norm,
    has_root: bool,
}

impl NormArg {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let norm: Norm = super::spec::parse(text)?;
        if norm.after_rope {
            return Err("a norm after the rotation is said by --after-rope".into());
        }
        Ok(Self { norm, has_root: text.split('/').any(|word| matches!(word, "approx" | "ieee")) })
    }
}

/// What a model's configuration says of what can be fused.
#[derive(Clone, Copy, Default)]
pub struct OfModel {
    pub norm: Option<Flavour>,
    pub latent: Option<Latent>,
}

impl FusedArgs {
    /// Whether the reciprocal root is the device's to say.
    pub fn root_is_open(&self) -> bool {
        !self.norm.is_some_and(|norm| norm.has_root)
    }

    /// Adds to a rotation what is done beside. `of_model`: of the model whose rotation it is.
    pub fn apply(&self, mut spec: RopeSpec, of_model: Option<&OfModel>) -> Result<RopeSpec> {
        let Some(fused) = self.fused else { return Ok(spec) };
        let appends = fused != Fused::QkNorm;
        self.check(appends)?;
        if fused == Fused::QkNorm || self.norm.is_some() {
            let flavour = of_model.and_then(|model| model.norm).unwrap_or(Flavour::WeightAfter);
            let norm = self.norm.map_or_else(|| Norm::new(flavour), |norm| norm.norm);
            spec.norm = Some(Norm { after_rope: self.after_rope, ..norm });
        }
        if !appends {
            return Ok(spec);
        }
        let mut v_head_dim = spec.head_dim;
        if fused == Fused::Mla {
            v_head_dim = latent(&mut spec, of_model)?;
        }
        let v_head_dim = self.v_head_dim.unwrap_or(v_head_dim);
        let slots = match self.slots {
            None | Some(SlotsArg::SlotMapping) => SlotForm::SlotMapping,
            Some(SlotsArg::Pages) => SlotForm::Pages,
        };
        let per_head = |alone| self.per_head.is_some_and(|of| of == PerHead::Both || of == alone);
        let cache = (self.cache == Some(CacheArg::Fp8)).then(|| fp8(self.scale, per_head(PerHead::Cache)));
        let q = self.q_fp8.then(|| fp8(self.q_scale.or(self.scale), per_head(PerHead::Q)));
        Ok(spec.with_append(Append { slots, v_head_dim, cache, q }))
    }

    /// Refuses what means nothing for what is asked.
    fn check(&self, appends: bool) -> Result<()> {
        let of_append = [
            ("--cache", self.cache.is_some()),
            ("--q-fp8", self.q_fp8),
            ("--scale", self.scale.is_some()),
            ("--per-head", self.per_head.is_some()),
            ("--slots", self.slots.is_some()),
            ("--v-head-dim", self.v_head_dim.is_some()),
        ];
        if let Some((name, _)) = of_append.iter().find(|(_, given)| *given && !appends) {
            return Err(Error::argument(*name, "is of a cache, and nothing is appended to one")
                .hint("give --fused append (or mla), which may have --norm too"));
        }
        if self.after_rope && appends && self.norm.is_none() {
            return Err(Error::argument("--after-rope", "is of a norm, and there is none").hint("give --norm"));
        }
        let is_fp8 = self.cache == Some(CacheArg::Fp8) || self.q_fp8;
        for (name, given) in [("--scale", self.scale.is_some()), ("--per-head", self.per_head.is_some())] {
            if given && !is_fp8 {
                return Err(Error::argument(name, "is of what is stored as fp8, and nothing is")
                    .hint("give --cache fp8 or --q-fp8"));
            }
        }
        Ok(())
    }
}

fn fp8(scale: Option<ScaleArg>, per_head: bool) -> Fp8 {
    let scale = match scale {
        None | Some(ScaleArg::Divide) => ScaleUse::Divide,
        Some(ScaleArg::Multiply) => ScaleUse::Multiply,
    };
    Fp8 { scale, per_head }
}

/// Makes of a rotation that of latent attention: q has a part that rests in front, one k turns whole for all heads, and the
/// latent row is the v. Returns the elements of that row.
fn latent(spec: &mut RopeSpec, of_model: Option<&OfModel>) -> Result<u32> {
    let mut rank = LATENT;
    if let Some(model) = of_model {
        let Some(latent) = model.latent else {
            return Err(Error::argument(
                "--fused",
                "mla: the model has no multi-head latent attention, or does not state it",
            )
            .hint("give --fused append, or numbers: --head-dim 192 --rotary-dim 64 --num-heads 128"));
        };
        rank = latent.rank;
        spec.head_dim = spec.rotary_dim + latent.resting;
        if spec.style == PairStyle::Interleaved {
            spec.style = PairStyle::Deinterleave;
        }
    }
    if spec.rotary_dim < spec.head_dim {
        (spec.part, spec.k_head_dim) = (RotaryPart::Last, Some(spec.rotary_dim));
    }
    Ok(rank)
}

/// The reciprocal root that a device has where none was asked for.
pub fn root_of(engine: &Engine) -> Rsqrt {
    match engine.device().abilities().dialect {
        Dialect::Host => Rsqrt::Ieee,
        Dialect::Cuda => Rsqrt::Approx,
    }
}
