//! The picture of a bench: `of copy` of every case, and the landscape of its tuning.

use std::fmt::Write as _;

use super::bench_case::Case;

const LEFT: f64 = 250.0;
const SCALE: f64 = 420.0;
const ROW: f64 = 20.0;
const STYLE: &str = "text{fill:#1d2126}.faint{fill:#666}.paper{fill:#fff}.bar{fill:#76b5a0}circle{fill:#20506a}.grid{stroke:#ddd}\
    .one{stroke:#444}@media(prefers-color-scheme:dark){text{fill:#e6e8ea}.faint{fill:#98a1aa}.paper{fill:#14171a}.bar{fill:#2f7d66}\
    circle{fill:#a8d4ee}.grid{stroke:#2a3036}.one{stroke:#bbb}}";

/// An SVG: one row a case, a bar up to its share of the copy's speed, a dot for each candidate of its tuning.
/// In the colours of the reader; `made` is when it was measured.
pub fn draw(device: &str, made: &str, cases: &[Case]) -> String {
    let height = 90.0 + ROW * cases.len() as f64;
    let widest = cases.iter().map(|c| c.of_copy).fold(1.25f64, f64::max);
    let width = LEFT + SCALE * widest + 90.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\">RoPE on {}, {}</text>\n\
         <text x=\"12\" y=\"42\" class=\"faint\">of copy: 1.00 is as fast as a device-to-device copy of the same bytes. \
         Bar: the chosen variant; dots: every candidate.</text>\n",
        escape(device),
        escape(made)
    );
    // Writing to a String cannot fail.
    for tenth in (0..=(widest * 10.0) as u32).step_by(2) {
        let (x, ratio) = (LEFT + SCALE * f64::from(tenth) / 10.0, f64::from(tenth) / 10.0);
        let class = if tenth == 10 { "one" } else { "grid" };
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"66\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{x:.1}\" y=\"62\" text-anchor=\"middle\" class=\"faint\">{ratio:.1}</text>",
            height - 20.0
        );
    }
    for (i, case) in cases.iter().enumerate() {
        let y = 72.0 + ROW * i as f64;
        let place = if case.in_place { "in place" } else { "" };
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\">{} {} {} {place}</text>\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"13\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            y + 11.0,
            escape(&case.shape),
            case.dtype,
            case.layout,
            SCALE * case.of_copy,
            LEFT + SCALE * case.of_copy + 6.0,
            y + 11.0,
            case.of_copy
        );
        for candidate in &case.landscape {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"><title>{}: {:.3}</title></circle>",
                LEFT + SCALE * candidate.of_copy,
                y + 6.5,
                escape(&candidate.variant),
                candidate.of_copy
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use ropejit::DType;

    use super::super::bench_case::Candidate;
    use super::*;

    #[test]
    fn every_case_and_candidate_is_drawn() {
        let case = |of_copy| Case {
            shape: "1×8 <2>".into(),
            dtype: DType::BF16,
            spec: String::new(),
            layout: "bshd",
            in_place: false,
            bytes: 1,
            copy_us: 1.0,
            device_us: 1.0,
            of_copy,
            shipped_of_copy: None,
            variant: String::new(),
            host_us: 0.0,
            bare_us: None,
            landscape: vec![
                Candidate { variant: "t128".into(), of_copy: 0.5 },
                Candidate { variant: "t64".into(), of_copy },
            ],
            tuning_ms: 0.0,
        };
        let svg = draw("GPU & co", "2026-01-02", &[case(0.97), case(1.4)]);
        assert_eq!((svg.matches("<rect").count(), svg.matches("<circle").count()), (3, 4));
        assert!(svg.contains("RoPE on GPU &amp; co, 2026-01-02") && svg.contains("prefers-color-scheme:dark"));
        assert!(svg.contains("1×8 &lt;2>") && svg.ends_with("</svg>\n"));
    }
}
