//! One choice as a picture: a row a candidate, a dot a sample, a line for the copy.

use std::fmt::Write as _;

use ropejit::jit::Record;

use super::super::output;
use super::verdict::{order, verdict};

const LEFT: f64 = 210.0;
const WIDTH: f64 = 560.0;
const RIGHT: f64 = 150.0;
const ROW: f64 = 22.0;
const TOP: f64 = 34.0;

/// Text inside HTML or SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An inline SVG, coloured by the classes of the page's style sheet; `None` where nothing was measured.
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
    let x = |ns: f64| LEFT + WIDTH * ((ns - from) / (to - from)).clamp(0.0, 1.0);
    let bottom = TOP + ROW * order.len() as f64;
    let (width, height) = (LEFT + WIDTH + RIGHT, bottom + 16.0);
    // Writing to a String cannot fail.
    let mut svg =
        format!("<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"time of every candidate\">\n");
    for step in 0..=5 {
        let ns = from + (to - from) * f64::from(step) / 5.0;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"axis\" x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{3}</text>",
            x(ns),
            TOP - 6.0,
            TOP - 12.0,
            escape(&output::us(ns / 1e3))
        );
    }
    for (row, &i) in order.iter().enumerate() {
        let c = &r.candidates[i];
        let (y, Some(median)) = (TOP + ROW * (row as f64 + 0.5), c.median_ns()) else { continue };
        let verdict = verdict(r, i);
        let class = match verdict.as_str() {
            "chosen" => "chosen",
            "near-tie" => "tie",
            _ => "other",
        };
        let of_copy = r.copy_ns.map_or_else(String::new, |copy| format!(" {:.3}", copy / median));
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
        let _ = write!(
            svg,
            "<g class=\"{class}\"><title>{}</title><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"range\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"8\" rx=\"4\"/>",
            escape(&title),
            LEFT - 10.0,
            y + 4.0,
            escape(&c.config.to_string()),
            x(low),
            y - 4.0,
            (x(high) - x(low)).max(1.0)
        );
        for &ns in c.samples_ns.iter().filter(|ns| **ns <= to) {
            let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>", x(ns));
        }
        let beyond = c.samples_ns.iter().filter(|ns| **ns > to).count();
        let beyond = if beyond > 0 { format!(" (+{beyond} beyond)") } else { String::new() };
        let _ = writeln!(
            svg,
            "<rect class=\"median\" x=\"{:.1}\" y=\"{:.1}\" width=\"2.4\" height=\"14\" rx=\"1\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{of_copy}{beyond}</text></g>",
            x(median) - 1.2,
            y - 7.0,
            LEFT + WIDTH + 6.0,
            y + 4.0
        );
    }
    if let Some(copy) = r.copy_ns {
        let _ = writeln!(
            svg,
            "<g class=\"copy\"><title>a copy of the same bytes: {1}</title><line x1=\"{0:.1}\" y1=\"{2:.1}\" x2=\"{0:.1}\" \
             y2=\"{bottom:.1}\"/><text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\">copy</text></g>",
            x(copy),
            escape(&output::us(copy / 1e3)),
            TOP - 6.0,
            bottom + 10.0
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// The ends of the axis, with a little room.
fn axis(least: f64, most: f64) -> (f64, f64) {
    let room = ((most - least) * 0.04).max(most * 0.002).max(0.001);
    ((least - room).max(0.0), most + room)
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
        let svg = draw(&r).expect("measured");
        assert_eq!((svg.matches("<circle").count(), svg.matches("(+1 beyond)").count()), (6, 1));
        assert_eq!(["\"chosen\"", "\"tie\"", "\"other\"", "\"copy\""].map(|c| svg.matches(c).count()), [1; 4]);
        r.candidates.iter_mut().for_each(|c| c.samples_ns.clear());
        assert_eq!(draw(&r), None);
        r.winner = 99;
        r.candidates[0].samples_ns = vec![f64::MAX, f64::MIN_POSITIVE];
        assert!(draw(&r).is_some_and(|svg| !svg.contains("NaN")));
    }
}
