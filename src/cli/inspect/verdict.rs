//! What a record says about its candidates, in words: which was chosen, and how sure that is.

use ropejit::jit::{Prior, Record};
use ropejit::tune::{Behind, CLEARLY_BEHIND};

use super::super::output;

/// How a choice was made.
pub fn told_how(r: &Record) -> String {
    let sure = sureness(r).map_or_else(String::new, |sure| format!("; {sure}"));
    let tuned = || format!("tuned in {}{sure}", output::ms(r.took_ms));
    match &r.prior {
        Some(Prior::Ordered(model)) if r.tuned => format!("{}, among what is fast on {model}", tuned()),
        _ if r.tuned => tuned(),
        Some(Prior::Chose(model)) => format!("prior, measured on another {model}"),
        _ => "default, not tuned".into(),
    }
}

/// The order to show candidates in: the chosen one, then from fast to slow.
pub fn order(r: &Record) -> Vec<usize> {
    let mut order: Vec<usize> = (0..r.candidates.len()).collect();
    let median = |i: usize| r.candidates[i].median_ns().unwrap_or(f64::INFINITY);
    order.sort_by(|&a, &b| (a != r.winner).cmp(&(b != r.winner)).then(median(a).total_cmp(&median(b))));
    order
}

/// How far a candidate is behind the chosen one; `None` where one of them was not measured.
pub fn behind(r: &Record, index: usize) -> Option<Behind> {
    Behind::of(&r.candidates.get(index)?.samples_ns, &r.chosen()?.samples_ns).filter(|_| index != r.winner)
}

/// What became of a candidate.
pub fn verdict(r: &Record, index: usize) -> String {
    if index == r.winner {
        return "chosen".into();
    }
    if r.near_ties.contains(&index) {
        return "near-tie".into();
    }
    let dropped = r.candidates.get(index).and_then(|c| c.dropped.clone());
    match (dropped, behind(r, index)) {
        (Some(why), None) => why,
        // Not for being slow.
        (Some(why), Some(_)) if !why.starts_with(CLEARLY_BEHIND) => why,
        (_, Some(behind)) => behind.to_string(),
        (None, None) => String::new(),
    }
}

/// How sure a measured choice is: what it ties with, and how far behind the next candidate is.
pub fn sureness(r: &Record) -> Option<String> {
    let ties = r.near_ties.iter().filter(|&&i| i != r.winner).count();
    let next = order(r).into_iter().filter(|i| !r.near_ties.contains(i)).find_map(|i| behind(r, i));
    let ties = (ties > 0).then(|| format!("near-ties {ties}"));
    let next = next.map(|next| match next.by {
        // Slower by its own median, faster by that of the rounds: it is the noise that differs.
        by if by < 0.0 => format!("the next is as fast as can be told: {next} rounds"),
        _ => format!("the next is {next} rounds"),
    });
    let all: Vec<String> = ties.into_iter().chain(next).collect();
    (r.tuned && !all.is_empty()).then(|| all.join(", "))
}
