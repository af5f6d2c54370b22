//! The arguments that say which RoPE: of a model, or given number by number.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ropejit::rope::model::{ModelConfig, SHIPPED};
use ropejit::rope::scaling::{Frequencies, RopeParameters};
use ropejit::{DType, Error, PositionForm, Result, RopeSpec, Rounding, TableForm, TableWidth};

/// Which RoPE.
#[derive(Args, Clone)]
pub struct SpecArgs {
    /// A Hugging Face config.json (or the folder that holds one), or the name of a configuration shipped with ropejit.
    #[arg(long, value_name = "CONFIG.json", conflicts_with_all = ["head_dim", "num_heads", "num_kv_heads", "rotary_dim"])]
    pub model: Option<String>,
    /// Elements per head.
    #[arg(long, value_name = "D", required_unless_present = "model")]
    pub head_dim: Option<u32>,
    /// Heads of q.
    #[arg(long, value_name = "H", required_unless_present = "model")]
    pub num_heads: Option<u32>,
    /// Heads of k; 0 for none [default: as many as q].
    #[arg(long, value_name = "K")]
    pub num_kv_heads: Option<u32>,
    #[command(flatten)]
    pub form: FormArgs,
}

/// How it is called.
#[derive(Args, Clone)]
pub struct FormArgs {
    /// Element type of q and k: f32, f16 or bf16 [default: the model's, else bf16].
    #[arg(long)]
    pub dtype: Option<DType>,
    /// Where results are rounded.
    #[arg(long, value_enum, default_value = "once")]
    pub rounding: RoundingArg,
    /// Element type of the cos/sin tables.
    #[arg(long, value_enum, default_value = "f32")]
    pub table: TableArg,
    /// Width of the cos/sin tables: `rotary_dim/2`, or `rotary_dim` (as transformers makes them).
    #[arg(long, value_enum, default_value = "half")]
    pub table_width: WidthArg,
    /// Where positions come from.
    #[arg(long, value_enum, default_value = "implicit")]
    pub positions: PositionArg,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum RoundingArg {
    /// Once, at the end.
    Once,
    /// After every operation, as PyTorch does.
    PerOp,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum TableArg {
    F32,
    /// That of q and k.
    Same,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum WidthArg {
    Half,
    Full,
}

#[derive(ValueEnum, Clone, Copy)]
pub enum PositionArg {
    /// 0, 1, 2, … in every sequence.
    Implicit,
    /// i32 `position_ids`.
    Ids32,
    /// i64 `position_ids`.
    Ids64,
}

/// A RoPE to run: a name for people, what is computed, and its frequencies.
pub struct Chosen {
    pub name: String,
    pub spec: RopeSpec,
    pub frequencies: Frequencies,
}

impl SpecArgs {
    /// The RoPE of each layer type of the model, or the one given by numbers. `tokens` is the longest sequence.
    pub fn choose(&self, tokens: u64) -> Result<Vec<Chosen>> {
        match (&self.model, self.head_dim, self.num_heads) {
            (Some(model), _, _) => of_model(model, &self.form, tokens),
            (None, Some(head_dim), Some(num_heads)) => {
                let kv_heads = self.num_kv_heads.unwrap_or(num_heads);
                let spec = self.form.apply(RopeSpec::new(DType::BF16, head_dim, num_heads, kv_heads));
                spec.validate()?;
                let frequencies = RopeParameters::new(10_000.0, head_dim).frequencies(Some(tokens))?;
                Ok(vec![Chosen { name: "custom".into(), spec, frequencies }])
            }
            _ => Err(Error::argument("--model", "is missing, and so are --head-dim and --num-heads")),
        }
    }
}

impl FormArgs {
    fn apply(&self, mut spec: RopeSpec) -> RopeSpec {
        if let Some(dtype) = self.dtype {
            spec.dtype = dtype;
        }
        spec.rounding = match self.rounding {
            RoundingArg::Once => Rounding::Once,
            RoundingArg::PerOp => Rounding::PerOp,
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
        spec.positions = match self.positions {
            PositionArg::Implicit => PositionForm::Implicit,
            PositionArg::Ids32 => PositionForm::Ids32,
            PositionArg::Ids64 => PositionForm::Ids64,
        };
        spec
    }
}

/// The distinct `RoPEs` of a model's layer types.
pub fn of_model(model: &str, form: &FormArgs, tokens: u64) -> Result<Vec<Chosen>> {
    let config = load(model)?;
    let mut all: Vec<Chosen> = Vec::new();
    for (layer, parameters) in &config.layers {
        let spec = form.apply(config.layer_spec(layer)?);
        let name = if config.layers.len() > 1 { format!("{model}/{layer}") } else { model.to_owned() };
        all.push(Chosen { name, spec, frequencies: parameters.frequencies(Some(tokens))? });
    }
    Ok(all)
}

/// Reads a configuration: a file, a folder with a config.json, or a shipped name.
pub fn load(model: &str) -> Result<ModelConfig> {
    let mut path = PathBuf::from(model);
    if path.is_dir() {
        path.push("config.json");
    }
    if !path.exists()
        && let Some(shipped) = ModelConfig::shipped(model)
    {
        return shipped;
    }
    let text = fs_err::read_to_string(&path).map_err(|e| {
        Error::io(&path, "the model's configuration cannot be read", e)
            .hint(format!("give a config.json, a folder with one, or one of {}", SHIPPED.join(", ")))
    })?;
    ModelConfig::from_json(&text).map_err(|e| {
        let key = e.subject().map_or_else(|| model.to_owned(), |s| format!("{model}: {s}"));
        e.subject_is(key)
    })
}

/// Token counts, separated by commas.
pub fn tokens(text: &str) -> std::result::Result<u64, String> {
    match text.trim().parse::<u64>() {
        Ok(n) if (1..=1 << 30).contains(&n) => Ok(n),
        _ => Err(format!("'{text}' is not a number of tokens from 1 to 2^30")),
    }
}
