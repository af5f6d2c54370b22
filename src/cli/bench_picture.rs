//! The picture of a bench: `of copy` of every case, and the landscape of its tuning.

use std::fmt::Write as _;

use super::bench_case::Case;

/// Narrow, so that a narrow page shows it with letters that can be read.
const WIDTH: f64 = 480.0;
const LEFT: f64 = 100.0;
/// Room for the figure behind a bar.
const RIGHT: f64 = 44.0;
const TOP: f64 = 118.0;
const ROW: f64 = 17.0;
/// What stands above the rows of one shape and element type.
const HEADING: f64 = 26.0;
const STYLE: &str = "text{fill:#1d2126}.faint{fill:#666}.paper{fill:#fff}.bar{fill:#76b5a0}circle{fill:#20506a}.grid{stroke:#ddd}\
    .one{stroke:#444}@media(prefers-color-scheme:dark){text{fill:#e6e8ea}.faint{fill:#98a1aa}.paper{fill:#14171a}.bar{fill:#2f7d66}\
    circle{fill:#a8d4ee}.grid{stroke:#2a3036}.one{stroke:#bbb}}";

/// An SVG: one row a case, a bar up to its share of the copy's speed, a dot for each candidate of its tuning.
/// In the colours of the reader; `made` is when it was measured.
pub fn draw(device: &str, made: &str, cases: &[Case]) -> String {
    let shares = cases.iter().flat_map(|c| c.landscape.iter().map(|l| l.of_copy).chain([c.of_copy]));
    let widest = shares.fold(1.25f64, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / widest;
    let (mut rows, mut y, mut last) = (String::new(), TOP, None);
    // Writing to a String cannot fail.
    for case in cases {
        let heading = (&case.shape, case.dtype);
        if last.replace(heading) != Some(heading) {
            y += HEADING;
            let _ = writeln!(
                rows,
                "<text x=\"12\" y=\"{:.1}\" font-weight=\"600\">{} {}</text>",
                y - 6.0,
                escape(&case.shape),
                case.dtype
            );
        }
        let place = if case.in_place { ", in place" } else { "" };
        let _ = writeln!(
            rows,
            "<text x=\"12\" y=\"{0:.1}\">{1}{place}</text><rect class=\"bar\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{2:.1}\" \
             height=\"13\"/><text x=\"{3:.1}\" y=\"{0:.1}\" text-anchor=\"end\">{4:.2}</text>",
            y + 11.0,
            escape(&case.layout),
            scale * case.of_copy,
            WIDTH - 8.0,
            case.of_copy
        );
        for candidate in &case.landscape {
            let _ = writeln!(
                rows,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"><title>{}: {:.3}</title></circle>",
                LEFT + scale * candidate.of_copy,
                y + 6.5,
                escape(&candidate.variant),
                candidate.of_copy
            );
        }
        y += ROW;
    }
    let height = y + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"600\">Speed of RoPE, of a copy's</text>\n\
         <text x=\"12\" y=\"44\" class=\"faint\">{}, {}</text>\n\
         <text x=\"12\" y=\"62\" class=\"faint\">1.0: as fast as a device-to-device copy of the same bytes.</text>\n\
         <text x=\"12\" y=\"80\" class=\"faint\">Bar and figure: the chosen variant. Dots: every candidate.</text>\n",
        escape(device),
        escape(made)
    );
    // In tenths: as many as have room.
    for tenth in (0..=(widest * 10.0) as u32).step_by(2 * (widest / 2.0).ceil() as usize) {
        let (x, ratio) = (LEFT + scale * f64::from(tenth) / 10.0, f64::from(tenth) / 10.0);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{1:.1}\" text-anchor=\"middle\" class=\"faint\">{ratio:.1}</text>",
            TOP - 8.0,
            TOP - 14.0
        );
    }
    let one = LEFT + scale;
    let _ =
        writeln!(svg, "<line class=\"one\" x1=\"{one:.1}\" y1=\"{:.1}\" x2=\"{one:.1}\" y2=\"{y:.1}\"/>", TOP - 8.0);
    svg + &rows + "</svg>\n"
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
            layout: "bshd".into(),
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
        assert!(svg.contains("GPU &amp; co, 2026-01-02") && svg.contains("prefers-color-scheme:dark"));
        assert!(svg.contains("1×8 &lt;2>") && svg.ends_with("</svg>\n"));
    }

    /// The picture that is kept is drawn of the figures that are kept. `ROPEJIT_TEST_BLESS=1` draws it.
    #[test]
    fn the_picture_of_the_results_is_what_they_say() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/h200");
        // The published crate has no results.
        let Ok(text) = fs_err::read_to_string(folder.join("bench.json")) else { return };
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases: Vec<Case> = serde_json::from_value(report["cases"].clone()).expect("cases");
        // Older reports do not say when they were made.
        let made = report["made"].as_str().unwrap_or("November 2026");
        let drawn = draw(report["device"].as_str().expect("a name"), made, &cases);
        let picture = folder.join("bench.svg");
        if std::env::var_os("ROPEJIT_TEST_BLESS").is_some() {
            fs_err::write(&picture, &drawn).expect("written");
        }
        assert!(fs_err::read_to_string(&picture).expect("a picture") == drawn, "draw it: ROPEJIT_TEST_BLESS=1");
    }
}
