//! Values to check and to measure with: repeatable (xorshift64, Marsaglia 2003), the same for all candidates.

use half::{bf16, f16};

use crate::error::{Error, ErrorKind, Result};
use crate::families::template::element::Element;
use crate::families::template::expr::{Expr, Fault};
use crate::families::template::fill::Fill;
use crate::families::template::names::Values;

pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Even in `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Near to normal: the sum of four even ones of 16 bits.
    fn normal(&mut self) -> f64 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f64 / 65536.0 - 2.0) * 3f64.sqrt()
    }
}

/// A fill whose bounds are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filling {
    Normal,
    Uniform { low: f64, high: f64 },
    Integers { low: i64, span: u64, also: Option<i64> },
}

impl Filling {
    /// The bounds for these values; `name` is the tensor's.
    ///
    /// # Errors
    /// When they are no range of the element type.
    pub fn of(fill: &Fill, element: Element, values: &Values, name: &str) -> Result<Self> {
        let (low, high, also) = match fill {
            Fill::Normal => return Ok(Self::Normal),
            Fill::Uniform { low, high } => return Ok(Self::Uniform { low: *low, high: *high }),
            Fill::Randint { low, high, also } => (low, high, also),
        };
        let wrong = |what: String| {
            Error::new(ErrorKind::Template, format!("[test] fill {name}: {what}"))
                .subject_is("the check of a candidate")
        };
        let eval =
            |expr: &Expr| expr.eval(values).map_err(|fault: Fault| wrong(format!("'{}' {fault}", expr.text().trim())));
        let (low, high) = (eval(low)?, eval(high)?);
        let also = also.as_ref().map(eval).transpose()?;
        let (least, most) = element.range().unwrap_or((i64::MIN, i64::MAX));
        if low >= high || low < least || high - 1 > most || also.is_some_and(|n| n < least || n > most) {
            return Err(wrong(format!("{low} up to {high} is no range of {element}")));
        }
        Ok(Self::Integers { low, span: high.wrapping_sub(low) as u64, also })
    }

    /// Fills elements.
    pub fn fill(self, element: Element, noise: &mut Noise, bytes: &mut [u8]) {
        for cell in bytes.chunks_exact_mut(element.size()) {
            match self {
                Self::Normal => put_float(element, noise.normal(), cell),
                Self::Uniform { low, high } => put_float(element, low + (high - low) * noise.unit(), cell),
                Self::Integers { low, span, also } => {
                    let bits = noise.next();
                    let n = match also {
                        Some(also) if bits.is_multiple_of(8) => also,
                        _ => low.wrapping_add(((u128::from(bits) * u128::from(span)) >> 64) as i64),
                    };
                    cell.copy_from_slice(&n.to_le_bytes()[..cell.len()]);
                }
            }
        }
    }
}

fn put_float(element: Element, x: f64, cell: &mut [u8]) {
    match element {
        Element::F64 => cell.copy_from_slice(&x.to_le_bytes()),
        Element::F16 => cell.copy_from_slice(&f16::from_f64(x).to_le_bytes()),
        Element::Bf16 => cell.copy_from_slice(&bf16::from_f64(x).to_le_bytes()),
        _ => cell.copy_from_slice(&(x as f32).to_le_bytes()[..cell.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::template::expr::parse;
    use crate::families::template::names::{MOST, Meaning, Names, Section};

    fn integers(low: &str, high: &str, also: Option<&str>, element: Element) -> Result<Filling> {
        let mut names = Names::default();
        names.add("n", Section::Spec, Meaning::Number);
        let expr = |text: &str| parse(text, &names).expect("parses");
        let fill = Fill::Randint { low: expr(low), high: expr(high), also: also.map(expr) };
        Filling::of(&fill, element, &[100; MOST], "labels")
    }

    #[test]
    fn integers_stay_in_their_range_and_some_are_the_other() {
        let filling = integers("0", "n", Some("-1"), Element::I64).expect("is a range");
        let mut bytes = vec![0; 8 * 4000];
        filling.fill(Element::I64, &mut Noise::new(1), &mut bytes);
        let all: Vec<i64> = bytes.chunks(8).map(|c| i64::from_le_bytes(c.try_into().expect("eight"))).collect();
        assert!(all.iter().all(|n| (-1..100).contains(n)));
        let other = all.iter().filter(|n| **n == -1).count();
        assert!((300..700).contains(&other), "{other}");
        assert!((0..100).all(|n| all.contains(&n)));
    }

    #[test]
    fn what_is_no_range_says_so() {
        for (low, high, also) in [("5", "5", None), ("0", "300", None), ("0 - 1", "5", None), ("0", "n", Some("-1"))] {
            let error = integers(low, high, also, Element::U8).expect_err("is none").to_string();
            assert!(error.starts_with("the check of a candidate: [test] fill labels: "), "{error}");
            assert!(error.ends_with("is no range of u8"), "{error}");
        }
        assert_eq!(
            integers("0", "n / 0", None, Element::U8).expect_err("no value").to_string(),
            "the check of a candidate: [test] fill labels: 'n / 0' divides by zero"
        );
    }

    #[test]
    fn floats_have_their_moments() {
        let mut bytes = vec![0; 4 * 20000];
        Filling::Normal.fill(Element::F32, &mut Noise::new(2), &mut bytes);
        let all: Vec<f64> = bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().expect("four")).into()).collect();
        let mean = all.iter().sum::<f64>() / 20000.0;
        let deviation = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20000.0).sqrt();
        assert!(mean.abs() < 0.03 && (deviation - 1.0).abs() < 0.03, "{mean} {deviation}");
        Filling::Uniform { low: 0.5, high: 1.5 }.fill(Element::Bf16, &mut Noise::new(3), &mut bytes);
        assert!(bytes.chunks(2).all(|c| (0.5..=1.5).contains(&bf16::from_le_bytes([c[0], c[1]]).to_f32())));
    }
}
