//! The search for the fastest candidate. It knows nothing of CUDA: it asks a [`Measure`] for samples and a clock.
//!
//! Rounds are interleaved (every live candidate once a round), so that a drift of clocks or temperature meets all alike.
//! After a few rounds, candidates that are clearly behind the best drop out: by more than a ratio, and by more than the spread of
//! their own samples explains (`behind.rs`). What remains inside the measured noise of the best is
//! a near-tie, and among near-ties the default wins, then the canonical order: two tunings of one device agree.

mod behind;
mod statistics;

use std::time::Duration;

pub use behind::Behind;
use statistics::deviation;
pub use statistics::median;

/// What is measured.
pub trait Measure {
    /// Nanoseconds of one launch of candidate `index`: one sample. An error drops the candidate.
    fn sample(&mut self, index: usize) -> Result<f64, String>;

    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// Whether to stop before the next sample.
    fn stopped(&self) -> bool {
        false
    }

    /// Called after each round with all that is known: a place to save progress, to show it, or to stop (`false`).
    fn round_done(&mut self, _samples: &[Vec<f64>]) -> bool {
        true
    }
}

/// How long and how sharply to search.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Rounds before anything is dropped.
    pub min_rounds: usize,
    /// Rounds at most.
    pub max_rounds: usize,
    /// A candidate is dropped where its samples show that it takes this many times what the best takes.
    pub drop_ratio: f64,
    /// Medians within this fraction of the best are a tie, however quiet the device is.
    pub tie: f64,
    /// Time at most; at least one round is always finished.
    pub budget: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { min_rounds: 3, max_rounds: 15, drop_ratio: 1.06, tie: 0.005, budget: Duration::from_secs(10) }
    }
}

/// Noise beyond this fraction of the best makes no tie: a choice must not cost more.
const MOST_NOISE: f64 = 0.01;

/// How the reason begins why a candidate that was measured to be slow was dropped.
pub const CLEARLY_BEHIND: &str = "clearly behind";

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Index of the winner.
    pub winner: usize,
    /// Candidates inside the noise of the best, the best included, in canonical order.
    pub near_ties: Vec<usize>,
    /// Samples of each candidate, one a round.
    pub samples: Vec<Vec<f64>>,
    /// Why a candidate was not measured to the end.
    pub dropped: Vec<Option<String>>,
    /// Whether the search came to its end: neither stopped nor out of budget.
    pub complete: bool,
}

/// Finds the fastest of the candidates `0..samples.len()`, where `samples` holds what an earlier, interrupted run has
/// measured (empty vectors for a new one) and `live[i]` says whether candidate `i` may win. Candidate 0 is the default.
///
/// `None` when no candidate could be measured.
pub fn search(measure: &mut impl Measure, samples: Vec<Vec<f64>>, live: &[bool], policy: &Policy) -> Option<Outcome> {
    let started = measure.now();
    let mut samples = samples;
    let mut dropped: Vec<Option<String>> = vec![None; samples.len()];
    let mut active: Vec<usize> = (0..samples.len()).filter(|&i| live.get(i).copied().unwrap_or(false)).collect();
    let mut rounds = active.iter().map(|&i| samples[i].len()).max().unwrap_or(0);
    let mut complete = true;
    while rounds < policy.max_rounds && !active.is_empty() {
        active.retain(|&i| {
            if samples[i].len() > rounds || measure.stopped() {
                return true;
            }
            match measure.sample(i) {
                Ok(ns) if ns.is_finite() && ns > 0.0 => {
                    samples[i].push(ns);
                    true
                }
                Ok(ns) => {
                    dropped[i] = Some(format!("measured {ns} ns"));
                    false
                }
                Err(why) => {
                    dropped[i] = Some(why);
                    false
                }
            }
        });
        rounds += 1;
        if !measure.round_done(&samples) || measure.stopped() {
            complete = false;
            break;
        }
        if rounds >= policy.min_rounds {
            drop_clearly_behind(&samples, &mut active, &mut dropped, policy);
            if active.len() == 1 {
                break;
            }
        }
        if measure.now().saturating_sub(started) > policy.budget {
            complete = false;
            break;
        }
    }
    let (winner, near_ties) = choose(&samples, &active, policy)?;
    Some(Outcome { winner, near_ties, samples, dropped, complete })
}

/// Takes those out of the race whose samples show that they are behind the best.
fn drop_clearly_behind(samples: &[Vec<f64>], active: &mut Vec<usize>, dropped: &mut [Option<String>], policy: &Policy) {
    let measured = active.iter().filter_map(|&i| Some((i, median(&samples[i])?)));
    let Some((best, _)) = measured.min_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    active.retain(|&i| {
        let clear = i != best && behind::is_clear(&samples[i], &samples[best], policy.drop_ratio);
        if let Some(behind) = Behind::of(&samples[i], &samples[best]).filter(|_| clear) {
            dropped[i] = Some(format!("{CLEARLY_BEHIND}: {behind} rounds"));
        }
        !clear
    });
}

/// The winner among the candidates still in the race, and those it ties with.
fn choose(samples: &[Vec<f64>], active: &[usize], policy: &Policy) -> Option<(usize, Vec<usize>)> {
    let measured: Vec<(usize, f64)> = active.iter().filter_map(|&i| Some((i, median(&samples[i])?))).collect();
    let &(best, best_ns) = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let noise = deviation(&samples[best]).unwrap_or(0.0);
    let mut ties: Vec<usize> = measured
        .iter()
        .filter(|&&(i, ns)| {
            let noise = noise.max(deviation(&samples[i]).unwrap_or(0.0)).min(best_ns * MOST_NOISE);
            ns - best_ns <= (policy.tie * best_ns).max(noise)
        })
        .map(|&(i, _)| i)
        .collect();
    ties.sort_unstable();
    Some((ties.first().copied().unwrap_or(best), ties))
}

#[cfg(test)]
mod tests;
