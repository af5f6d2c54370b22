//! One choice as a picture: a row a candidate, a dot a sample, a line for the copy.
//!
//! Names and figures are text of the page, beside or above a drawing whose widths are shares of the page's: it needs no other width
//! than the reader has, and its letters keep their size.

use std::fmt::Write as _;

use ropejit::jit::Record;

use super::super::output;
use super::verdict::{order, verdict};

/// Steps of the axis. A narrow page shows every other.
const STEPS: u32 = 4;

/// Text inside HTML or SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// HTML that is laid out and coloured by the page's style sheet; `None` where nothing was measured.
pub fn draw(r: &Record) -> Option<String> {
    let order: Vec<usize> = order(r).into_iter().filter(|&i| r.candidates[i].median_ns().is_some()).collect();
    let medians = || order.iter().filter_map(|&i| r.candidates[i].median_ns());
    let samples = || order.iter().flat_map(|&i| r.candidates[i].samples_ns.iter().copied());
    let slowest = medians().fold(0.0, f64::max);
    // A single slow sample must not press all others together.
    let most = samples().filter(|&ns| ns <= slowest * 1.15).fold(slowest, f64::max).max(r.copy_ns.unwrap_or(0.0));
    let least = samples().fold(f64::INFINITY, f64::min).min(r.copy_ns.unwrap_or(f64::INFINITY));
    if order.is_empty() || !least.is_finite() || most <= 0.0 {
        return None;
    }
    let (from, to) = axis(least, most);
    // Percent of the width.
    let x = |ns: f64| 100.0 * ((ns - from) / (to - from)).clamp(0.0, 1.0);
    let mut html = String::from("<div class=\"plot\">\n<div class=\"axis\"><svg aria-hidden=\"true\">");
    // Writing to a String cannot fail.
    for (step, text) in labels(from, to).iter().enumerate() {
        let at = 100.0 * step as f64 / f64::from(STEPS);
        let class = if step % 2 == 1 { " class=\"between\"" } else { "" };
        let _ = write!(html, "<text{class} x=\"{at}%\" y=\"13\" text-anchor=\"{}\">{text}</text>", anchor(at));
    }
    html.push_str("</svg></div>\n");
    let copy = r.copy_ns.map_or_else(String::new, |copy| {
        format!("<line class=\"copy\" x1=\"{0:.2}%\" x2=\"{0:.2}%\" y2=\"100%\"/>", x(copy))
    });
    for &i in &order {
        let c = &r.candidates[i];
        let Some(median) = c.median_ns() else { continue };
        let verdict = verdict(r, i);
        let class = match verdict.as_str() {
            "chosen" => "chosen",
            "near-tie" => "tie",
            _ => "other",
        };
        let of_copy = r.copy_ns.map_or_else(String::new, |copy| format!("{:.3}", copy / median));
        let note = if c.bit_equal == Some(false) { "bits differ" } else { &verdict };
        let title = format!(
            "{}: median {}, {} samples{}{note}",
            c.config,
            output::us(median / 1e3),
            c.samples_ns.len(),
            if note.is_empty() { "" } else { ", " }
        );
        let (low, high) =
            (c.samples_ns.iter().copied().fold(median, f64::min), c.samples_ns.iter().copied().fold(median, f64::max));
        let beyond = c.samples_ns.iter().filter(|ns| **ns > to).count();
        let beyond = if beyond > 0 { format!(" +{beyond}") } else { String::new() };
        let _ = write!(
            html,
            "<div class=\"{class}\"><code>{}</code><svg role=\"img\" aria-label=\"{1}\"><title>{1}</title>\
             <rect x=\"{2:.2}%\" y=\"7\" width=\"{3:.2}%\" height=\"8\" rx=\"4\"/>",
            escape(&c.config.to_string()),
            escape(&title),
            x(low),
            (x(high) - x(low)).max(0.2)
        );
        for &ns in c.samples_ns.iter().filter(|ns| **ns <= to) {
            let _ = write!(html, "<circle cx=\"{:.2}%\" cy=\"11\" r=\"2.2\"/>", x(ns));
        }
        let _ = writeln!(
            html,
            "<line class=\"median\" x1=\"{0:.2}%\" x2=\"{0:.2}%\" y1=\"4\" y2=\"18\"/>{copy}</svg><b>{of_copy}{beyond}</b></div>",
            x(median)
        );
    }
    if let Some(copy) = r.copy_ns {
        let _ = writeln!(
            html,
            "<div class=\"copied\"><svg><text x=\"{:.2}%\" y=\"12\" text-anchor=\"{}\">copy {}</text></svg></div>",
            x(copy),
            anchor(x(copy)),
            escape(&output::us(copy / 1e3))
        );
    }
    html.push_str("</div>\n");
    Some(html)
}

/// Where a text stands at such a share of the width, so that it does not leave the drawing.
fn anchor(percent: f64) -> &'static str {
    match percent {
        _ if percent < 20.0 => "start",
        _ if percent > 80.0 => "end",
        _ => "middle",
    }
}

/// The ends of the axis, with a little room.
fn axis(least: f64, most: f64) -> (f64, f64) {
    let room = ((most - least) * 0.04).max(most * 0.002).max(0.001);
    ((least - room).max(0.0), (most + room).min(f64::MAX))
}

/// Times along the axis: of one unit, with as many digits as tell a step from the next.
fn labels(from: f64, to: f64) -> Vec<String> {
    let (unit, ns) = if to >= 1e6 { ("ms", 1e6) } else { ("µs", 1e3) };
    let step = (to - from) / f64::from(STEPS) / ns;
    let digits = (1.0 - step.log10().floor()).clamp(0.0, 4.0) as usize;
    (0..=STEPS).map(|at| format!("{:.digits$} {unit}", from / ns + step * f64::from(at))).collect()
}

#[cfg(test)]
mod tests {
    use ropejit::jit::Candidate;

    use super::*;

    #[test]
    fn every_sample_is_drawn_and_what_was_chosen_is_marked() {
        let candidate = |text: &str, samples: &[f64]| Candidate {
            samples_ns: samples.to_vec(),
            ..Candidate::new(ropejit::families::Stated::new(serde_json::Value::Null, text))
        };
        let mut r = Record::new(
            8,
            vec![
                candidate("t128 v8 h1 wb/wb", &[10.0, 11.0, 12.0]),
                candidate("t256 v8 h1 wb/wb", &[11.0, 11.0, 400.0]),
                candidate("t512 v8 h1 wb/wb", &[20.0]),
                candidate("t64 v8 h1 wb/wb", &[]),
            ],
        );
        (r.copy_ns, r.near_ties) = (Some(9.0), vec![0, 1]);
        let html = draw(&r).expect("measured");
        assert_eq!((html.matches("<circle").count(), html.matches(" +1</b>").count()), (6, 1));
        assert_eq!(["\"chosen\"", "\"tie\"", "\"other\"", "\"copied\""].map(|c| html.matches(c).count()), [1; 4]);
        assert_eq!(html.matches("\"copy\"").count(), 3, "in every row");
        r.candidates.iter_mut().for_each(|c| c.samples_ns.clear());
        assert_eq!(draw(&r), None);
        r.winner = 99;
        r.candidates[0].samples_ns = vec![f64::MAX, f64::MIN_POSITIVE];
        assert!(draw(&r).is_some_and(|svg| !svg.contains("NaN")));
    }

    #[test]
    fn an_axis_tells_its_steps_apart() {
        assert_eq!(labels(65_200.0, 66_000.0), ["65.20 µs", "65.40 µs", "65.60 µs", "65.80 µs", "66.00 µs"]);
        assert_eq!(labels(0.0, 4e6), ["0.0 ms", "1.0 ms", "2.0 ms", "3.0 ms", "4.0 ms"]);
        assert_eq!(labels(0.0, 400_000.0), ["0 µs", "100 µs", "200 µs", "300 µs", "400 µs"]);
        let huge = labels(0.0, f64::MAX);
        assert!(huge.iter().all(|label| !label.contains("NaN")), "{huge:?}");
    }
}
