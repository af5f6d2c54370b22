//! The shapes that a bench measures.

use clap::{Args, ValueEnum};
use ropejit::rope::scaling::{RopeParameters, TableMode};
use ropejit::{DType, Engine, Error, Result, RopeSpec, TableWidth};

use super::fused::{Fused, FusedArgs};
use super::spec::{self, AnglesArg, Chosen, FormArgs, NumberArgs, PositionArg, RoundingArg, TableArg, WidthArg};

/// batch, tokens, `num_heads`, `num_kv_heads`, `head_dim`.
const SHAPES: [[u32; 5]; 8] = [
    [1, 8192, 32, 32, 128],
    [1, 8192, 32, 8, 128],
    [4, 4096, 32, 8, 128],
    [8, 2048, 32, 8, 64],
    [1, 8192, 16, 8, 256],
    [1, 512, 32, 8, 128],
    [128, 1, 32, 8, 128],
    [1, 1, 32, 8, 128],
];

/// Batch and tokens of what is fused, for one attention.
const FUSED: [[u32; 2]; 5] = [[1, 8192], [4, 4096], [1, 512], [128, 1], [1, 1]];

fn name_of([batch, tokens, heads, kv_heads, dim]: [u32; 5]) -> String {
    format!("{batch}×{tokens} {heads}/{kv_heads}/{dim}")
}

/// One spec to measure.
pub struct Asked {
    pub chosen: Chosen,
    /// Sequences, and tokens of each.
    pub size: [u32; 2],
    /// `[B,H,S,D]` in memory or not, in place or not.
    pub forms: Vec<(bool, bool)>,
}

/// Which shapes, and what is done with them.
#[derive(Args)]
pub struct ShapeArgs {
    /// Element types [default: bf16,f16,f32; bf16 with --fused].
    #[arg(long, value_delimiter = ',', value_parser = spec::parse::<DType>)]
    pub dtype: Vec<DType>,
    /// The cos/sin tables: in the type of q and k (as transformers passes them), in f32, or made by the engine.
    #[arg(long, value_enum, default_value = "same")]
    pub table: Table,
    /// Only shapes whose name contains this, such as 1x8192 or 32/8.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    #[command(flatten)]
    pub beside: FusedArgs,
    /// With --fused: the gradient of the norm.
    #[arg(long)]
    pub backward: bool,
    /// With --fused: where results are rounded [default: per-op for qk-norm of 16-bit types, as eager, else once].
    #[arg(long, value_enum)]
    pub rounding: Option<RoundingArg>,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
pub enum Table {
    /// In the type of q and k.
    Same,
    /// In f32.
    F32,
    /// By the engine, in f32; kernels that compute their angles compete with those that read.
    Made,
}

impl ShapeArgs {
    /// What is to be measured, on an engine's device.
    pub fn asked(&self, engine: &Engine) -> Result<Vec<Asked>> {
        let fused = self.beside.fused;
        let given = [
            ("--head-dim", self.numbers.head_dim.is_some()),
            ("--backward", self.backward),
            ("--rounding", self.rounding.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given && fused.is_none()) {
            return Err(Error::argument(*name, "is of --fused: without it the shapes of common models are measured")
                .hint("give --fused qk-norm, append or mla, or leave it out"));
        }
        let dtypes = match (&self.dtype[..], fused) {
            ([], None) => vec![DType::BF16, DType::F16, DType::F32],
            ([], Some(_)) => vec![DType::BF16],
            (given, _) => given.to_vec(),
        };
        let mut all = Vec::new();
        for dtype in dtypes {
            match fused {
                None => all.extend(SHAPES.iter().map(|&shape| self.plain(shape, dtype)).collect::<Result<Vec<_>>>()?),
                Some(fused) => {
                    for size in FUSED {
                        all.push(self.fused(fused, size, dtype, engine)?);
                    }
                }
            }
        }
        // Each once, though there is one for every element type.
        let mut names: Vec<String> = Vec::new();
        for Asked { chosen, .. } in &all {
            if !names.contains(&chosen.name) {
                names.push(chosen.name.clone());
            }
        }
        if let Some(only) = &self.only {
            all.retain(|asked| asked.chosen.name.contains(&only.replace('x', "×")));
        }
        if all.is_empty() {
            return Err(Error::argument("--only", "no shape's name contains that")
                .hint(format!("the shapes are {}", names.join(", "))));
        }
        Ok(all)
    }

    fn plain(&self, shape: [u32; 5], dtype: DType) -> Result<Asked> {
        let [batch, tokens, heads, kv_heads, dim] = shape;
        let table = if self.table == Table::Same { dtype } else { DType::F32 };
        let mut spec = RopeSpec::new(dtype, dim, heads, kv_heads).with_table(table, TableWidth::Half);
        spec.angles = (self.table == Table::Made).then_some(TableMode::Accurate);
        let parameters = RopeParameters::new(10_000.0, dim);
        let chosen = Chosen {
            name: name_of(shape),
            model_type: String::new(),
            spec,
            frequencies: parameters.frequencies(None)?,
            parameters,
            norm: None,
            root_is_open: false,
        };
        let forms = [false, true].into_iter().flat_map(|head_major| [(head_major, false), (head_major, true)]);
        Ok(Asked { chosen, size: [batch, tokens], forms: forms.collect() })
    }

    /// Of one attention: Qwen3-8B's, for latent attention DeepSeek-V3's, where no numbers say which.
    fn fused(&self, fused: Fused, size: [u32; 2], dtype: DType, engine: &Engine) -> Result<Asked> {
        let numbers = match (self.numbers.head_dim, fused) {
            (Some(_), _) => self.numbers.clone(),
            (None, Fused::Mla) => {
                NumberArgs { head_dim: Some(192), num_heads: Some(128), rotary_dim: Some(64), ..NumberArgs::default() }
            }
            (None, Fused::QkNorm | Fused::Append) => {
                NumberArgs { head_dim: Some(128), num_heads: Some(32), num_kv_heads: Some(8), ..NumberArgs::default() }
            }
        };
        // As those round that have it: eager's bits for norms, one rounding in serving engines.
        let usual = if fused == Fused::QkNorm && dtype != DType::F32 { RoundingArg::PerOp } else { RoundingArg::Once };
        let form = FormArgs {
            dtype: Some(dtype),
            rounding: self.rounding.unwrap_or(usual),
            table: if self.table == Table::Same { TableArg::Same } else { TableArg::F32 },
            table_width: WidthArg::Half,
            angles: (self.table == Table::Made).then_some(AnglesArg::Accurate),
            positions: PositionArg::Implicit,
            backward: self.backward,
            beside: self.beside.clone(),
        };
        let [batch, tokens] = size;
        let mut chosen = numbers.choose(&form, tokens.into())?.on(engine)?;
        let spec = &chosen.spec;
        chosen.name = name_of([batch, tokens, spec.num_heads, spec.num_kv_heads, spec.head_dim]);
        // What has another type than it had is written elsewhere.
        let moves = spec.append.is_some_and(|append| append.q.is_some());
        let forms = if moves { vec![(false, false)] } else { vec![(false, false), (false, true)] };
        Ok(Asked { chosen, size, forms })
    }
}
