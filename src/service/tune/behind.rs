//! Whether one candidate is slower than another, as far as their samples can tell.
//!
//! Samples of a round are taken one after the other, so they are compared in pairs, round by round. How sure that is comes from
//! the sign test: were both equally fast, a fair coin would decide each round, so the chance of as many lost rounds is known
//! whatever the noise looks like (Arbuthnot, 1710; Conover, Practical Nonparametric Statistics, section 3.4). It needs seven
//! rounds for a chance of 1 %. Two candidates that are far apart for how quiet they are need not wait for so many.

use super::statistics::median;

/// The chance at which two equal candidates may be taken for different ones.
const CHANCE: f64 = 0.01;

/// Far apart is this many times the larger spread. (Of equal candidates with log-normal noise as wild as ±80 % fewer than one in
/// ten is dropped in fifteen rounds; a device with 1 % of noise loses no round to it.)
const SPREADS: f64 = 3.0;

/// How one candidate compares with another over the rounds that both were measured in.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Behind {
    /// By which part of the other's time it is slower: the median over the rounds. Below 0 where it is faster.
    pub by: f64,
    /// Rounds in which it was slower.
    pub lost: usize,
    /// Rounds compared.
    pub rounds: usize,
}

impl Behind {
    /// Compares samples of two candidates; `None` without a round that both have.
    pub fn of(samples: &[f64], other: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = samples.iter().zip(other).map(|(a, b)| a / b).collect();
        let lost = ratios.iter().filter(|ratio| **ratio > 1.0).count();
        Some(Self { by: median(&ratios)? - 1.0, lost, rounds: ratios.len() })
    }
}

impl std::fmt::Display for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.by.abs();
        // A digit after the point where it says something.
        let digits = usize::from(percent < 10.0);
        if self.by < 0.0 {
            return write!(f, "{percent:.digits$} % ahead, slower in {} of {}", self.lost, self.rounds);
        }
        write!(f, "{percent:.digits$} % behind, {} of {}", self.lost, self.rounds)
    }
}

/// Whether the samples show that a candidate takes more than `ratio` times the other's time.
pub(super) fn is_clear(samples: &[f64], other: &[f64], ratio: f64) -> bool {
    match (median(samples), median(other)) {
        (Some(a), Some(b)) => a > ratio * b && (is_far(samples, other, ratio) || is_unlikely(samples, other, ratio)),
        _ => false,
    }
}

/// Whether even the fastest sample is far behind the other's median. What disturbs a sample makes it slower, so the spread that
/// counts is that of the faster half.
fn is_far(samples: &[f64], other: &[f64], ratio: f64) -> bool {
    let fastest = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
    let spread = |of: &[f64]| median(of).map_or(f64::INFINITY, |middle| (middle / fastest(of)).ln());
    let gap = median(other).map_or(0.0, |middle| (fastest(samples) / middle).ln());
    gap > ratio.ln() && gap > SPREADS * spread(samples).max(spread(other))
}

/// Whether it lost by more than `ratio` in more rounds than chance explains.
fn is_unlikely(samples: &[f64], other: &[f64], ratio: f64) -> bool {
    let rounds = samples.len().min(other.len());
    let lost = samples.iter().zip(other).filter(|&(a, b)| *a > ratio * b).count();
    chance(lost, rounds) <= CHANCE
}

/// The chance that a fair coin shows heads at least `heads` times in `tosses`.
fn chance(heads: usize, tosses: usize) -> f64 {
    let mut ways = 0.5f64.powi(i32::try_from(tosses).unwrap_or(i32::MAX));
    let mut sum = 0.0;
    for k in 0..=tosses {
        if k >= heads {
            sum += ways;
        }
        ways *= (tosses - k) as f64 / (k + 1) as f64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_overlap_show_nothing() {
        // 8 % behind by its median, and faster in the first round.
        let (a, b) = ([2650.0, 13038.0, 18003.0], [12024.0, 2960.0, 21279.0]);
        assert!(!is_clear(&a, &b, 1.06) && !is_clear(&b, &a, 1.06));
        let behind = Behind::of(&a, &b).unwrap();
        assert_eq!((behind.lost, behind.rounds), (1, 3));
        assert_eq!(behind.to_string(), "15 % ahead, slower in 1 of 3");
    }

    #[test]
    fn what_is_far_for_its_spread_is_clear_at_once_and_a_burst_hides_nothing() {
        assert!(is_clear(&[108.0, 108.5, 109.0], &[100.0, 100.4, 100.1], 1.06));
        assert!(is_clear(&[130.0, 131.0, 130.0], &[100.0, 500.0, 101.0], 1.06));
        assert!(is_clear(&[130.0, 650.0, 130.0], &[100.0, 101.0, 101.0], 1.06));
        assert!(!is_clear(&[105.0, 105.1, 105.0], &[100.0, 100.0, 100.1], 1.06), "behind, but not by so much");
        // A median that is as far behind, in samples that are as wide.
        assert!(!is_clear(&[100.0, 120.0, 125.0], &[85.0, 105.0, 130.0], 1.06));
    }

    #[test]
    fn what_is_noisy_is_clear_after_enough_rounds() {
        let (a, b) =
            ([130.0, 90.0, 210.0, 160.0, 140.0, 130.0, 170.0], [110.0, 70.0, 180.0, 140.0, 120.0, 100.0, 150.0]);
        assert!(!is_clear(&a[..6], &b[..6], 1.06));
        assert!(is_clear(&a, &b, 1.06));
        assert_eq!(Behind::of(&a, &b).unwrap().to_string(), "17 % behind, 7 of 7");
    }

    #[test]
    fn chances_are_those_of_a_coin() {
        assert!((chance(7, 7) - 1.0 / 128.0).abs() < 1e-12);
        assert!((chance(14, 15) - 16.0 / 32768.0).abs() < 1e-12);
        assert!((chance(0, 15) - 1.0).abs() < 1e-12);
        assert!(!is_clear(&[], &[1.0], 1.06) && Behind::of(&[], &[1.0]).is_none());
    }
}
