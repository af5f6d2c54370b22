//! The arguments that say which RoPE: of a model, or given number by number.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ropejit::rope::model::{ModelConfig, SHIPPED};
use ropejit::rope::scaling::{Frequencies, Mrope, RopeParameters, TableMode};
use ropejit::rope::{Flavour, RotaryPart, Rsqrt};
use ropejit::system::read_config;
use ropejit::{
    DType, Direction, Engine, Error, ErrorKind, PairStyle, PositionForm, Result, RopeSpec, Rounding, TableForm,
    TableWidth,
};

use super::fused::{Fused, FusedArgs, OfModel, root_of};
pub use super::values::{parse, tokens};

/// Which RoPE.
#[derive(Args, Clone)]
pub struct SpecArgs {
    /// A Hugging Face config.json (or the folder that holds one), or the name of a configuration shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", conflicts_with_all = NumberArgs::NAMES)]
    pub model: Option<String>,
    #[command(flatten)]
    pub numbers: NumberArgs,
    #[command(flatten)]
    pub form: FormArgs,
}

/// A RoPE without a model's configuration.
#[derive(Args, Clone, Default)]
pub struct NumberArgs {
    /// Instead of a model: elements per head.
    #[arg(long, value_name = "D", requires = "num_heads")]
    pub head_dim: Option<u32>,
    /// Heads of q.
    #[arg(long, value_name = "H", requires = "head_dim")]
    pub num_heads: Option<u32>,
    /// Heads of k; 0 for none [default: as many as q; 1 for --fused mla].
    #[arg(long, value_name = "K", requires = "head_dim")]
    pub num_kv_heads: Option<u32>,
    /// Elements of a head that turn; the rest stays [default: all].
    #[arg(long, value_name = "R", requires = "head_dim")]
    pub rotary_dim: Option<u32>,
    /// Which elements turn together [default: half-split; deinterleave for --fused mla].
    #[arg(long, value_enum, requires = "head_dim")]
    pub style: Option<StyleArg>,
    /// Which part of a head turns, where not all does: the first elements, or the last [default: first; last for --fused mla].
    #[arg(long, value_enum, requires = "rotary_dim")]
    pub part: Option<PartArg>,
    /// Elements of a head of k, where they are not as many as q has: --rotary-dim [default for --fused mla].
    #[arg(long, value_name = "D", requires = "rotary_dim")]
    pub k_head_dim: Option<u32>,
    /// Pairs of the temporal, height and width axes of positions, such as 16/24/24 or 24/20/20/interleaved.
    #[arg(long, value_name = "T/H/W", requires = "head_dim", value_parser = parse::<Mrope>)]
    pub mrope: Option<Mrope>,
}

/// How it is called.
#[derive(Args, Clone)]
pub struct FormArgs {
    /// Element type of q and k: f32, f16 or bf16 [default: the model's, else bf16].
    #[arg(long, value_parser = parse::<DType>)]
    pub dtype: Option<DType>,
    /// Where results are rounded.
    #[arg(long, value_enum, default_value = "once")]
    pub rounding: RoundingArg,
    /// Element type of the cos/sin tables.
    #[arg(long, value_enum, default_value = "f32")]
    pub table: TableArg,
    /// Columns of the cos/sin tables.
    #[arg(long, value_enum, default_value = "half")]
    pub table_width: WidthArg,
    /// Tables made by the engine on the device, in this precision, in place of tables that the caller gives.
    #[arg(long, value_enum, conflicts_with_all = ["table", "table_width"])]
    pub angles: Option<AnglesArg>,
    /// Where positions come from.
    #[arg(long, value_enum, default_value = "implicit")]
    pub positions: PositionArg,
    /// The gradient: turns the other way.
    #[arg(long)]
    pub backward: bool,
    #[command(flatten)]
    pub beside: FusedArgs,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum StyleArg {
    /// Elements i and i + R/2, as in Llama and NeoX.
    HalfSplit,
    /// Elements 2i and 2i + 1, as in GPT-J.
    Interleaved,
    /// Elements 2i and 2i + 1, which leave as i and i + R/2, as in DeepSeek V3.
    Deinterleave,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum PartArg {
    /// The first elements of a head.
    First,
    /// The last ones.
    Last,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum RoundingArg {
    /// Once, at the end.
    Once,
    /// After every operation, as PyTorch does.
    PerOp,
    /// Once, with one product of each sum fused, as PyTorch's complex product on CUDA.
    Contracted,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum TableArg {
    /// Always f32.
    F32,
    /// That of q and k.
    Same,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum WidthArg {
    /// Each angle once: R/2 columns.
    Half,
    /// Each angle twice: R columns, as transformers makes them.
    Full,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum AnglesArg {
    /// Angles in f32, as transformers has them.
    F32,
    /// Angles in f64: accurate at any position.
    Accurate,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum PositionArg {
    /// 0, 1, 2, … in every sequence.
    Implicit,
    /// A tensor of `position_ids`, i32.
    Ids32,
    /// A tensor of `position_ids`, i64.
    Ids64,
    /// An offset per sequence, i32.
    Offsets32,
    /// An offset per sequence, i64.
    Offsets64,
    /// Packed sequences that begin where `cu_seqlens` (i32) says.
    CuSeqlens,
    /// Packed sequences that begin where `cu_seqlens` (i64) says.
    CuSeqlens64,
}

/// A RoPE to run: a name for people, what is computed, and its frequencies.
#[derive(Clone)]
pub struct Chosen {
    pub name: String,
    /// The model's type; empty for one given by numbers.
    pub model_type: String,
    pub spec: RopeSpec,
    pub frequencies: Frequencies,
    pub parameters: RopeParameters,
    /// The norm of each head of q and k that the model has.
    pub norm: Option<Flavour>,
    /// The spec's reciprocal root is the device's to say.
    pub root_is_open: bool,
}

impl Chosen {
    /// As it is on an engine's device: with the reciprocal root that it has, where none was asked for.
    ///
    /// # Errors
    /// Where one was asked for that it does not have.
    pub fn on(mut self, engine: &Engine) -> Result<Self> {
        let Some(norm) = self.spec.norm.as_mut() else { return Ok(self) };
        let root = root_of(engine);
        if self.root_is_open {
            norm.rsqrt = root;
        }
        if (root, norm.rsqrt) == (Rsqrt::Ieee, Rsqrt::Approx) {
            return Err(Error::argument("--norm", "the root 'approx' is a GPU's own, and this is the processor")
                .hint("give ieee, or leave the root out: weight_after/torch"));
        }
        Ok(self)
    }
}

impl SpecArgs {
    /// The RoPE of each layer type of the model, or the one given by numbers. `tokens` is the longest sequence.
    pub fn choose(&self, tokens: u64) -> Result<Vec<Chosen>> {
        match &self.model {
            Some(model) => of_model(model, &self.form, tokens),
            None => Ok(vec![self.numbers.choose(&self.form, tokens)?]),
        }
    }
}

impl NumberArgs {
    /// What cannot stand beside `--model`.
    pub const NAMES: [&str; 8] =
        ["head_dim", "num_heads", "num_kv_heads", "rotary_dim", "style", "part", "k_head_dim", "mrope"];

    /// The RoPE that the numbers say.
    pub fn choose(&self, form: &FormArgs, tokens: u64) -> Result<Chosen> {
        let (Some(head_dim), Some(num_heads)) = (self.head_dim, self.num_heads) else {
            return Err(Error::argument("--model", "is missing, and so are --head-dim and --num-heads")
                .hint(format!("give --model with a config.json or one of {}", SHIPPED.join(", "))));
        };
        let is_mla = form.beside.fused == Some(Fused::Mla);
        let num_kv_heads = self.num_kv_heads.unwrap_or(if is_mla { 1 } else { num_heads });
        let mut spec = RopeSpec::new(DType::BF16, head_dim, num_heads, num_kv_heads);
        spec.rotary_dim = self.rotary_dim.unwrap_or(head_dim);
        spec.style = match self.style {
            None if is_mla => PairStyle::Deinterleave,
            None | Some(StyleArg::HalfSplit) => PairStyle::HalfSplit,
            Some(StyleArg::Interleaved) => PairStyle::Interleaved,
            Some(StyleArg::Deinterleave) => PairStyle::Deinterleave,
        };
        spec.mrope = self.mrope;
        let mut spec = form.apply(spec, None)?;
        match self.part {
            Some(PartArg::First) => spec.part = RotaryPart::First,
            Some(PartArg::Last) => spec.part = RotaryPart::Last,
            None => {}
        }
        // As many as q has is what none says.
        spec.k_head_dim = self.k_head_dim.or(spec.k_head_dim).filter(|dim| *dim != head_dim);
        spec.validate().map_err(as_typed)?;
        let mut parameters = RopeParameters::new(10_000.0, head_dim);
        parameters.rotary_dim = spec.rotary_dim;
        let frequencies = parameters.frequencies(Some(tokens)).map_err(as_typed)?;
        let (name, model_type, root_is_open) = ("custom".into(), String::new(), form.beside.root_is_open());
        Ok(Chosen { name, model_type, spec, frequencies, parameters, norm: None, root_is_open })
    }
}

/// Names an argument as it is typed: `head_dim` is `--head-dim` here.
pub fn as_typed(e: Error) -> Error {
    let field = |s: &&str| s.starts_with(|c: char| c.is_ascii_lowercase());
    match e.subject().filter(field).filter(|_| e.kind() == ErrorKind::InvalidArgument) {
        Some("append") => e.subject_is("--fused append"),
        Some("append.v_head_dim") => e.subject_is("--v-head-dim"),
        Some(subject) => {
            let field = subject.split('.').next().unwrap_or(subject);
            let typed = format!("--{}", field.replace('_', "-"));
            e.subject_is(typed)
        }
        None => e,
    }
}

impl FormArgs {
    fn apply(&self, mut spec: RopeSpec, of_model: Option<&OfModel>) -> Result<RopeSpec> {
        if let Some(dtype) = self.dtype {
            spec.dtype = dtype;
        }
        spec.rounding = match self.rounding {
            RoundingArg::Once => Rounding::Once,
            RoundingArg::PerOp => Rounding::PerOp,
            RoundingArg::Contracted => Rounding::Contracted,
        };
        spec.table = TableForm {
            dtype: match self.table {
                TableArg::F32 => DType::F32,
                TableArg::Same => spec.dtype,
            },
            width: match self.table_width {
                WidthArg::Half => TableWidth::Half,
                WidthArg::Full => TableWidth::Full,
            },
        };
        spec.angles = self.angles.map(|mode| match mode {
            AnglesArg::F32 => TableMode::F32,
            AnglesArg::Accurate => TableMode::Accurate,
        });
        if self.backward {
            spec.direction = Direction::Backward;
        }
        spec.positions = match self.positions {
            // Models whose positions have three axes have position_ids.
            PositionArg::Implicit if spec.mrope.is_some() => spec.positions,
            PositionArg::Implicit => PositionForm::Implicit,
            PositionArg::Ids32 => PositionForm::Ids32,
            PositionArg::Ids64 => PositionForm::Ids64,
            PositionArg::Offsets32 => PositionForm::Offsets32,
            PositionArg::Offsets64 => PositionForm::Offsets64,
            PositionArg::CuSeqlens => PositionForm::CuSeqlens,
            PositionArg::CuSeqlens64 => PositionForm::CuSeqlens64,
        };
        self.beside.apply(spec, of_model)
    }
}

/// The RoPE of each layer type of a model.
pub fn of_model(model: &str, form: &FormArgs, tokens: u64) -> Result<Vec<Chosen>> {
    let mut config = load("--model", model)?;
    // What the caller says of q and k comes before what the file says of the weights.
    config.dtype = form.dtype.or(config.dtype);
    let of_model = OfModel { norm: config.qk_norm, latent: config.latent };
    let mut all: Vec<Chosen> = Vec::new();
    for (layer, parameters) in &config.layers {
        let named = |e: Error| about("--model", model, e);
        let spec = form.apply(config.layer_spec(layer).map_err(named)?, Some(&of_model))?;
        spec.validate().map_err(named)?;
        let name = if config.layers.len() > 1 { format!("{model}/{layer}") } else { model.to_owned() };
        let frequencies = parameters.frequencies(Some(tokens)).map_err(named)?;
        let (model_type, root_is_open) = (config.model_type.clone(), form.beside.root_is_open());
        let (parameters, norm) = (parameters.clone(), config.qk_norm);
        all.push(Chosen { name, model_type, spec, frequencies, parameters, norm, root_is_open });
    }
    Ok(all)
}

/// Reads a configuration: a file, a folder with a config.json, or a shipped name. `argument` is where it was given.
pub fn load(argument: &str, model: &str) -> Result<ModelConfig> {
    let mut path = PathBuf::from(model);
    if path.is_dir() {
        path.push("config.json");
    }
    if !path.exists()
        && let Some(shipped) = ModelConfig::shipped(model)
    {
        return shipped;
    }
    let text = read_config(&path).map_err(|e| {
        Error::argument(argument, format!("'{}' cannot be read", path.display()))
            .caused_by(std::error::Error::source(&e).map_or_else(String::new, ToString::to_string))
            .hint(format!("give a config.json, a folder with one, or one of {}", SHIPPED.join(", ")))
    })?;
    ModelConfig::from_json(&text).map_err(|e| about(argument, model, e))
}

/// Says which argument and file a configuration's error is about.
fn about(argument: &str, model: &str, e: Error) -> Error {
    let place = [Some(argument), Some(model), e.subject()].into_iter().flatten().collect::<Vec<_>>().join(": ");
    e.subject_is(place)
}
