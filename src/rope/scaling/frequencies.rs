//! The formulas, one function a scaling type.
//!
//! Each rounds where transformers rounds: tensors are f32, scalars are f64 until they meet a tensor. A scalar divided by
//! a tensor is the reciprocal times the scalar there (two roundings), and so it is here.

use std::f64::consts::PI;

use super::parameters::{Frequencies, RopeParameters, Scaling, wrong};
use crate::error::Result;

impl RopeParameters {
    /// Frequencies for a sequence of `seq_len` tokens (the largest position plus one), or as a model starts with.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key whose value cannot be or gives frequencies that are not finite numbers.
    pub fn frequencies(&self, seq_len: Option<u64>) -> Result<Frequencies> {
        self.validate()?;
        let frequencies = compute(self, seq_len);
        let finite = |x: &f32| x.is_finite() && *x >= 0.0;
        if !frequencies.inv_freq.iter().all(finite) {
            return Err(wrong("rope_theta", "with this scaling gives frequencies that are not finite numbers")
                .hint("check rope_theta, the factors and original_max_position_embeddings"));
        }
        if !finite(&frequencies.attention_factor) {
            return Err(wrong("attention_factor", "is not a finite number from 0 on"));
        }
        Ok(frequencies)
    }
}

/// Frequencies of parameters that have been validated.
fn compute(rope: &RopeParameters, seq_len: Option<u64>) -> Frequencies {
    let unscaled = || reciprocals(powers(rope.theta as f32, rope.rotary_dim, rope.rotary_dim));
    let (inv_freq, attention_factor) = match &rope.scaling {
        Scaling::Default => (unscaled(), 1.0),
        Scaling::Linear { factor } => (divided(unscaled(), *factor), 1.0),
        Scaling::Dynamic { factor, max_position_embeddings } => {
            let base = dynamic_base(rope, *factor, *max_position_embeddings, seq_len);
            (reciprocals(powers(base, rope.rotary_dim, rope.rotary_dim)), 1.0)
        }
        Scaling::Yarn { .. } => yarn(rope),
        Scaling::LongRope { .. } => longrope(rope, seq_len),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f64;
            (llama3(unscaled(), *factor, *low_freq_factor, *high_freq_factor, original), 1.0)
        }
        Scaling::Proportional { factor, partial_rotary_factor } => {
            let turning = 2 * (partial_rotary_factor * f64::from(rope.head_dim) / 2.0).floor() as u32;
            let mut inv_freq = reciprocals(powers(rope.theta as f32, turning, rope.head_dim));
            inv_freq.resize(rope.head_dim as usize / 2, 0.0);
            (divided(inv_freq, *factor), 1.0)
        }
        Scaling::Given { inv_freq, attention_factor } => (inv_freq.clone(), f64::from(*attention_factor)),
    };
    Frequencies { inv_freq, attention_factor: attention_factor as f32 }
}

/// `base^(2i/d)` for the even numbers 2i below `width`.
fn powers(base: f32, width: u32, d: u32) -> Vec<f32> {
    let power = |i: u32| f64::from(base).powf(f64::from(i as f32 / d as f32)) as f32;
    (0..width).step_by(2).map(power).collect()
}

fn reciprocals(mut xs: Vec<f32>) -> Vec<f32> {
    for x in &mut xs {
        *x = 1.0 / *x;
    }
    xs
}

fn divided(mut xs: Vec<f32>, by: f64) -> Vec<f32> {
    for x in &mut xs {
        *x /= by as f32;
    }
    xs
}

/// θ' = θ·(factor·L/max − (factor − 1))^(d/(d−2)), L = max(`seq_len`, max). Beyond max, L is a tensor in transformers and
/// the rest of the formula f32 with it; up to there everything is a scalar.
fn dynamic_base(rope: &RopeParameters, factor: f64, max: u64, seq_len: Option<u64>) -> f32 {
    let d = f64::from(rope.rotary_dim);
    let exponent = d / (d - 2.0);
    match seq_len {
        Some(length) if length > max => {
            let stretched = factor as f32 * length as f32 / max as f32 - (factor - 1.0) as f32;
            let growth = f64::from(stretched).powf(exponent) as f32;
            growth * rope.theta as f32
        }
        _ => {
            let max = max as f64;
            (rope.theta * (factor * max / max - (factor - 1.0)).powf(exponent)) as f32
        }
    }
}

fn yarn(rope: &RopeParameters) -> (Vec<f32>, f64) {
    let Scaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast,
        beta_slow,
        truncate,
        attention_factor,
        mscale,
        mscale_all_dim,
    } = &rope.scaling
    else {
        return (Vec::new(), 1.0);
    };
    let g = |m: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
        (Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => g(*m) / g(*all),
        _ => g(1.0),
    });

    let d = f64::from(rope.rotary_dim);
    let original = *original_max_position_embeddings as f64;
    let pair_with = |rotations: f64| (d * (original / (rotations * 2.0 * PI)).ln()) / (2.0 * rope.theta.ln());
    let (mut low, mut high) = (pair_with(*beta_fast), pair_with(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    low = low.max(0.0);
    high = high.min(d - 1.0);
    if low.total_cmp(&high).is_eq() {
        high += 0.001; // no division by zero
    }

    let blend = |(i, power): (usize, f32)| {
        let kept = 1.0 / power;
        let interpolated = 1.0 / (*factor as f32 * power);
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        interpolated * (1.0 - keep) + kept * keep
    };
    let powers = powers(rope.theta as f32, rope.rotary_dim, rope.rotary_dim);
    (powers.into_iter().enumerate().map(blend).collect(), attention)
}

fn longrope(rope: &RopeParameters, seq_len: Option<u64>) -> (Vec<f32>, f64) {
    let Scaling::LongRope { short_factor, long_factor, original_max_position_embeddings, factor, attention_factor } =
        &rope.scaling
    else {
        return (Vec::new(), 1.0);
    };
    let original = *original_max_position_embeddings;
    let attention = attention_factor
        .unwrap_or_else(|| if *factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() });
    let divisors = if seq_len.is_some_and(|length| length > original) { long_factor } else { short_factor };
    let powers = powers(rope.theta as f32, rope.rotary_dim, rope.rotary_dim);
    (powers.into_iter().zip(divisors).map(|(power, e)| 1.0 / (*e as f32 * power)).collect(), attention)
}

fn llama3(mut inv_freq: Vec<f32>, factor: f64, low: f64, high: f64, original: f64) -> Vec<f32> {
    let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
    let factor = factor as f32;
    for w in &mut inv_freq {
        let wavelength = 1.0 / *w * (2.0 * PI) as f32;
        if wavelength > longest {
            *w /= factor;
        } else if wavelength >= shortest {
            let smooth = (1.0 / wavelength * original as f32 - low as f32) / (high - low) as f32;
            *w = (1.0 - smooth) * *w / factor + smooth * *w;
        }
    }
    inv_freq
}
