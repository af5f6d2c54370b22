//! Whether two outputs are the same, and in what they differ.

use half::{bf16, f16};

use crate::families::template::description::Same;
use crate::families::template::element::Element;

/// How two tensors of one type differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Elements that differ, and elements in all.
    pub count: usize,
    pub of: usize,
    /// The first that differs, and its two values.
    pub first: usize,
    pub expected: String,
    pub got: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, of, first, expected, got } = self;
        write!(f, "in {count} of {of} elements, the first number {first}: {got} where the default has {expected}")
    }
}

/// Compares tensors of one type and length; `None` when they are the same.
pub fn difference(element: Element, same: Same, expected: &[u8], got: &[u8]) -> Option<Difference> {
    if expected == got {
        return None;
    }
    let size = element.size();
    let pairs = || expected.chunks_exact(size).zip(got.chunks_exact(size));
    let mut differing = pairs().enumerate().filter(|(_, (a, b))| a != b && !near(element, same, a, b));
    let (first, (a, b)) = differing.next()?;
    let count = 1 + differing.count();
    Some(Difference { count, of: expected.len() / size, first, expected: show(element, a), got: show(element, b) })
}

/// Whether an element that has other bits is near enough.
fn near(element: Element, same: Same, expected: &[u8], got: &[u8]) -> bool {
    if !element.is_float() {
        return false;
    }
    let (a, b) = (float(element, expected), float(element, got));
    match same {
        Same::Bits => false,
        _ if a.is_nan() || b.is_nan() => a.is_nan() && b.is_nan(),
        Same::Ulp(most) => ordinal(element, expected).abs_diff(ordinal(element, got)) <= most,
        Same::Near { rtol, atol } => a == b || ((a - b).is_finite() && (a - b).abs() <= atol + rtol * a.abs()),
    }
}

/// The number of a float among all of its type, from the lowest on; both zeros have one.
fn ordinal(element: Element, bytes: &[u8]) -> i64 {
    let bits = u64::from_le_bytes(padded(bytes));
    let sign = 1u64 << (8 * element.size() - 1);
    let magnitude = (bits & (sign - 1)) as i64;
    if bits & sign == 0 { magnitude } else { -magnitude }
}

fn padded(bytes: &[u8]) -> [u8; 8] {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    all
}

fn float(element: Element, bytes: &[u8]) -> f64 {
    let bits = u64::from_le_bytes(padded(bytes));
    match element {
        Element::F64 => f64::from_bits(bits),
        Element::F16 => f16::from_bits(bits as u16).to_f64(),
        Element::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        _ => f32::from_bits(bits as u32).into(),
    }
}

/// An element as a number, whatever its type.
pub fn number(element: Element, bytes: &[u8]) -> f64 {
    if element.is_float() { float(element, bytes) } else { show(element, bytes).parse().unwrap_or(f64::NAN) }
}

/// An element as a person reads it.
fn show(element: Element, bytes: &[u8]) -> String {
    let bits = u64::from_le_bytes(padded(bytes));
    let unused = 64 - 8 * element.size() as u32;
    match element.range() {
        None => float(element, bytes).to_string(),
        Some((0, _)) => bits.to_string(),
        Some(_) => (((bits << unused) as i64) >> unused).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn differ(same: Same, a: f32, b: f32) -> bool {
        difference(Element::F32, same, &bytes(&[a]), &bytes(&[b])).is_some()
    }

    #[test]
    fn says_how_many_and_the_first() {
        let (a, b) = (bytes(&[1.0, 2.0, 3.0, 4.0]), bytes(&[1.0, 2.5, 3.0, 5.0]));
        let text = difference(Element::F32, Same::Bits, &a, &b).expect("differ").to_string();
        assert_eq!(text, "in 2 of 4 elements, the first number 1: 2.5 where the default has 2");
        assert_eq!(difference(Element::F32, Same::Bits, &a, &a), None);
        let integers = difference(Element::I8, Same::Ulp(9), &[1, 0xff], &[1, 0xfe]).expect("differ").to_string();
        assert_eq!(integers, "in 1 of 2 elements, the first number 1: -2 where the default has -1");
        let unsigned = difference(Element::U16, Same::Bits, &[0xff, 0xff], &[0, 0]).expect("differ").to_string();
        assert_eq!(unsigned, "in 1 of 1 elements, the first number 0: 0 where the default has 65535");
    }

    #[test]
    fn tolerances_are_what_they_say() {
        let next = |x: f32| f32::from_bits(x.to_bits() + 1);
        assert!(differ(Same::Bits, 1.0, next(1.0)) && differ(Same::Bits, 0.0, -0.0));
        assert!(!differ(Same::Ulp(1), 1.0, next(1.0)) && differ(Same::Ulp(1), 1.0, next(next(1.0))));
        assert!(!differ(Same::Ulp(0), 0.0, -0.0) && !differ(Same::Ulp(2), f32::from_bits(1), -f32::from_bits(1)));
        let near = Same::Near { rtol: 0.1, atol: 0.01 };
        assert!(!differ(near, 1.0, 1.1) && differ(near, 1.0, 1.12) && !differ(near, 0.0, 0.01));
        assert!(!differ(near, f32::NAN, -f32::NAN) && differ(near, f32::NAN, 1.0) && differ(near, 1.0, f32::NAN));
        assert!(!differ(near, f32::INFINITY, f32::INFINITY) && differ(near, 1.0, f32::INFINITY));
        assert!(differ(Same::Near { rtol: 1.0, atol: 0.0 }, f32::NEG_INFINITY, f32::INFINITY));
    }

    #[test]
    fn sixteen_bits_have_their_own_steps() {
        let one = bf16::ONE.to_bits();
        let differ =
            |n: u16, most| difference(Element::Bf16, Same::Ulp(most), &one.to_le_bytes(), &(one + n).to_le_bytes());
        assert!(differ(2, 2).is_none() && differ(3, 2).is_some());
    }
}
