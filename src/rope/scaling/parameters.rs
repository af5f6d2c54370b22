//! The parameters of a model's rotation, checked.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

/// Largest head that frequencies are computed for: a bound on work, far beyond any model.
const MAX_WIDTH: u32 = 65_536;

/// How frequencies are scaled for contexts longer than those of pretraining: the `rope_type` of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scaling {
    /// Pair i of d/2 turns by θ^(−2i/d) per position, as first published (Su et al., 2021).
    Default,
    /// Position interpolation: ω/factor (Chen et al., 2023).
    Linear {
        /// By how much longer the context becomes.
        factor: f64,
    },
    /// Dynamic NTK: θ grows with the sequence once that is longer than `max_position_embeddings`.
    Dynamic {
        /// How strongly θ grows.
        factor: f64,
        /// Tokens up to which nothing changes.
        max_position_embeddings: u64,
    },
    /// `YaRN` (Peng et al., 2023): low frequencies interpolated, high ones kept, a ramp between; cos and sin scaled.
    Yarn {
        /// By how much longer the context becomes.
        factor: f64,
        /// Tokens of the context in pretraining.
        original_max_position_embeddings: u64,
        /// Rotations over the original context above which a frequency is kept (usually 32).
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is interpolated (usually 1).
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded outwards to whole pairs (usually true).
        truncate: bool,
        /// The factor on cos and sin, when the configuration states it.
        attention_factor: Option<f64>,
        /// Numerator's weight in the inferred attention factor; used when `mscale_all_dim` is given too.
        mscale: Option<f64>,
        /// Denominator's weight in the inferred attention factor.
        mscale_all_dim: Option<f64>,
    },
    /// `LongRoPE` (Ding et al., 2024): one divisor per pair, in two sets.
    LongRope {
        /// Divisors up to `original_max_position_embeddings` tokens, one a pair.
        short_factor: Vec<f64>,
        /// Divisors beyond that, one a pair.
        long_factor: Vec<f64>,
        /// Tokens of the context in pretraining.
        original_max_position_embeddings: u64,
        /// By how much longer the context becomes; decides the attention factor when that is not stated.
        factor: f64,
        /// The factor on cos and sin, when the configuration states it.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1: long wavelengths interpolated, short ones kept, a blend between.
    Llama3 {
        /// By how much low frequencies are divided.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are interpolated.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Tokens of the context in pretraining.
        original_max_position_embeddings: u64,
    },
    /// Gemma 4: pairs span the whole head, the last of them stand still. Not the same as partial rotary.
    Proportional {
        /// Divisor of all frequencies (usually 1).
        factor: f64,
        /// The fraction of the pairs that turn.
        partial_rotary_factor: f64,
    },
    /// None of these: frequencies as somebody else has computed them.
    Given {
        /// ω of each pair, in radians per position.
        inv_freq: Vec<f32>,
        /// The factor on cos and sin.
        attention_factor: f32,
    },
}

/// Scaling of q by its position, as Ministral 3 and Llama 4 have it: q·(1 + β·ln(1 + ⌊p/original⌋)).
///
/// Not part of the rotation; kept so that whoever builds a model from this does not lose it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueryScaling {
    /// β, the key `llama_4_scaling_beta`.
    pub beta: f64,
    /// Tokens of the context in pretraining.
    pub original_max_position_embeddings: u64,
}

impl QueryScaling {
    /// What q at this position is multiplied with.
    pub fn factor(&self, position: u64) -> f64 {
        let steps = position.checked_div(self.original_max_position_embeddings).unwrap_or(0);
        1.0 + self.beta * (steps as f64).ln_1p()
    }
}

/// All that decides the frequencies of one layer type.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RopeParameters {
    /// θ, the base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// Elements per head.
    pub head_dim: u32,
    /// Elements that turn, from the first on: twice the number of frequencies.
    pub rotary_dim: u32,
    /// What is done to the frequencies.
    pub scaling: Scaling,
    /// Scaling of q by its position, which is not part of the rotation.
    pub query_scaling: Option<QueryScaling>,
}

/// Frequencies of the pairs, and the factor on cos and sin.
///
/// ```
/// use ropejit::rope::scaling::RopeParameters;
/// let frequencies = RopeParameters::new(10_000.0, 128).frequencies(None)?;
/// assert_eq!(frequencies.inv_freq[..2], [1.0, 0.865_964_35]);
/// # Ok::<(), ropejit::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frequencies {
    /// ω of each pair, in radians per position.
    pub inv_freq: Vec<f32>,
    /// A: cos and sin are multiplied with it.
    pub attention_factor: f32,
}

impl RopeParameters {
    /// Unscaled, over the whole head. The fields are public: change what differs.
    pub fn new(theta: f64, head_dim: u32) -> Self {
        Self { theta, head_dim, rotary_dim: head_dim, scaling: Scaling::Default, query_scaling: None }
    }

    /// The same with another scaling.
    #[must_use]
    pub fn with_scaling(mut self, scaling: Scaling) -> Self {
        self.scaling = scaling;
        self
    }

    /// Whether the frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, Scaling::Dynamic { .. } | Scaling::LongRope { .. })
    }

    /// Checks every field against what the formulas need.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the key.
    pub fn validate(&self) -> Result<()> {
        positive("rope_theta", self.theta)?;
        if self.head_dim == 0 || self.head_dim > MAX_WIDTH {
            return Err(wrong("head_dim", format!("must be 1 to {MAX_WIDTH}, got {}", self.head_dim)));
        }
        if self.rotary_dim < 2 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > self.head_dim {
            let rule = format!("must be even and between 2 and head_dim ({}), got {}", self.head_dim, self.rotary_dim);
            return Err(wrong("rotary_dim", rule));
        }
        match &self.scaling {
            Scaling::Default => Ok(()),
            Scaling::Linear { factor } => positive("factor", *factor),
            Scaling::Dynamic { factor, max_position_embeddings } => {
                if self.rotary_dim == 2 {
                    return Err(wrong(
                        "rotary_dim",
                        "must be more than 2 for dynamic scaling: its exponent is d/(d−2)",
                    ));
                }
                count("max_position_embeddings", *max_position_embeddings)?;
                positive("factor", *factor)
            }
            Scaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, .. } => {
                if self.theta <= 1.0 {
                    return Err(wrong("rope_theta", format!("must be more than 1 for yarn, got {}", self.theta)));
                }
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                if beta_fast < beta_slow {
                    let rule = format!("must not be less than beta_slow ({beta_slow}), got {beta_fast}");
                    return Err(wrong("beta_fast", rule));
                }
                count("original_max_position_embeddings", *original_max_position_embeddings)
            }
            Scaling::LongRope { short_factor, long_factor, original_max_position_embeddings, factor, .. } => {
                self.one_a_pair("short_factor", short_factor)?;
                self.one_a_pair("long_factor", long_factor)?;
                positive("factor", *factor)?;
                count("original_max_position_embeddings", *original_max_position_embeddings)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                // Equal is fine, and Llama 4 Scout has it so: nothing lies between, and nothing is blended.
                if high_freq_factor < low_freq_factor {
                    let rule =
                        format!("must not be less than low_freq_factor ({low_freq_factor}), got {high_freq_factor}");
                    return Err(wrong("high_freq_factor", rule));
                }
                count("original_max_position_embeddings", *original_max_position_embeddings)
            }
            Scaling::Proportional { factor, partial_rotary_factor } => {
                if !(0.0..=1.0).contains(partial_rotary_factor) {
                    let rule = format!("must be between 0 and 1, got {partial_rotary_factor}");
                    return Err(wrong("partial_rotary_factor", rule));
                }
                if self.rotary_dim != self.head_dim {
                    return Err(wrong("rotary_dim", "must be head_dim: proportional pairs span the whole head"));
                }
                positive("factor", *factor)
            }
            Scaling::Given { inv_freq, attention_factor } => {
                let finite = |x: &f32| x.is_finite() && *x >= 0.0;
                if !inv_freq.iter().all(finite) {
                    return Err(wrong("inv_freq", "must be finite numbers from 0 on"));
                }
                if !finite(attention_factor) {
                    return Err(wrong(
                        "attention_factor",
                        format!("must be a number from 0 on, got {attention_factor}"),
                    ));
                }
                self.as_many_as_pairs("inv_freq", inv_freq.len())
            }
        }
    }

    fn as_many_as_pairs(&self, key: &str, n: usize) -> Result<()> {
        let pairs = self.rotary_dim as usize / 2;
        if n == pairs {
            return Ok(());
        }
        Err(wrong(key, format!("must hold {pairs} numbers, one a pair, got {n}")))
    }

    fn one_a_pair(&self, key: &str, list: &[f64]) -> Result<()> {
        self.as_many_as_pairs(key, list.len())?;
        list.iter().try_for_each(|x| positive(key, *x))
    }
}

/// An error about a key of the configuration.
pub(super) fn wrong(key: impl Into<String>, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message).subject_is(key)
}

/// Refuses what is not a positive number, also once it is rounded to f32.
fn positive(key: &str, x: f64) -> Result<()> {
    let single = x as f32;
    if single.is_finite() && single > 0.0 {
        return Ok(());
    }
    Err(wrong(key, format!("must be a positive number, got {x}")))
}

fn count(key: &str, n: u64) -> Result<()> {
    if n == 0 { Err(wrong(key, "must be at least 1 token, got 0")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rope: &RopeParameters) -> String {
        let error = rope.frequencies(None).expect_err("should be refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        error.subject().expect("has a subject").to_owned()
    }

    #[test]
    fn wrong_fields_are_named() {
        let rope = |theta, head_dim| RopeParameters::new(theta, head_dim);
        assert_eq!(key(&rope(f64::NAN, 64)), "rope_theta");
        assert_eq!(key(&rope(-1.0, 64)), "rope_theta");
        assert_eq!(key(&rope(1e4, 0)), "head_dim");
        assert_eq!(key(&rope(1e4, 63)), "rotary_dim");
        assert_eq!(key(&rope(1e4, u32::MAX)), "head_dim");
        let dynamic = Scaling::Dynamic { factor: 2.0, max_position_embeddings: 2048 };
        assert_eq!(key(&rope(1e4, 2).with_scaling(dynamic)), "rotary_dim");
        assert_eq!(key(&rope(1e4, 64).with_scaling(Scaling::Linear { factor: f64::INFINITY })), "factor");
        let lists = Scaling::LongRope {
            short_factor: vec![1.0; 32],
            long_factor: vec![1.0; 31],
            original_max_position_embeddings: 4096,
            factor: 1.0,
            attention_factor: None,
        };
        assert_eq!(key(&rope(1e4, 64).with_scaling(lists)), "long_factor");
        let wide = Scaling::Proportional { factor: 1.0, partial_rotary_factor: 1.5 };
        assert_eq!(key(&rope(1e4, 64).with_scaling(wide)), "partial_rotary_factor");
    }

    #[test]
    fn given_frequencies_are_taken_as_they_are() {
        let given = |inv_freq: &[f32]| Scaling::Given { inv_freq: inv_freq.to_vec(), attention_factor: 0.5 };
        let rope = RopeParameters::new(1e4, 4);
        let taken = rope.clone().with_scaling(given(&[0.3, 0.0])).frequencies(None).unwrap();
        assert_eq!(taken, Frequencies { inv_freq: vec![0.3, 0.0], attention_factor: 0.5 });
        assert_eq!(key(&rope.clone().with_scaling(given(&[0.3]))), "inv_freq");
        assert_eq!(key(&rope.with_scaling(given(&[0.3, f32::NAN]))), "inv_freq");
    }

    #[test]
    fn dynamic_changes_only_beyond_the_context() {
        let scaling = Scaling::Dynamic { factor: 2.0, max_position_embeddings: 2048 };
        let rope = RopeParameters::new(1e4, 128).with_scaling(scaling);
        let plain = RopeParameters::new(1e4, 128).frequencies(None).unwrap();
        for length in [None, Some(0), Some(2048)] {
            assert_eq!(rope.frequencies(length).unwrap(), plain);
        }
        assert_ne!(rope.frequencies(Some(2049)).unwrap(), plain);
    }

    #[test]
    fn equal_llama3_bounds_blend_nothing() {
        let scaling = |high_freq_factor| Scaling::Llama3 {
            factor: 16.0,
            low_freq_factor: 1.0,
            high_freq_factor,
            original_max_position_embeddings: 8192,
        };
        let plain = RopeParameters::new(5e5, 128).frequencies(None).unwrap();
        let scaled = RopeParameters::new(5e5, 128).with_scaling(scaling(1.0)).frequencies(None).unwrap();
        let ratios = scaled.inv_freq.iter().zip(&plain.inv_freq).map(|(a, b)| b / a);
        assert!(
            ratios.clone().is_sorted() && ratios.clone().all(|r| [1.0, 16.0].contains(&r)),
            "{:?}",
            ratios.collect::<Vec<_>>()
        );
        assert_eq!(key(&RopeParameters::new(5e5, 128).with_scaling(scaling(0.5))), "high_freq_factor");
    }

    #[test]
    fn queries_are_scaled_from_the_original_context_on() {
        let scaling = QueryScaling { beta: 0.1, original_max_position_embeddings: 100 };
        assert!((scaling.factor(99) - 1.0).abs() < f64::EPSILON);
        assert!((scaling.factor(250) - (1.0 + 0.1 * 3f64.ln())).abs() < 1e-15);
    }
}
