//! Tables that fit the page: a cell that would make a line too long is cut (…), and no line is wrapped.
//!
//! Programs read `--json` and `--tsv`, which are never cut. Neither is a table that goes to a pipe or a file, unless `COLUMNS` says
//! how wide it may be: there is no page there, and what is cut cannot be searched.

use ropejit::Result;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::output;

/// No column is cut to less than this.
const LEAST: usize = 8;

/// A table to be laid out.
pub struct Table<'a> {
    pub header: &'a [&'a str],
    pub rows: Vec<Vec<String>>,
    /// So many columns from the right are numbers: aligned to the right, and never cut.
    pub numbers: usize,
    /// The columns that are cut first, in this order; then all others but the first.
    pub gives: &'a [&'a str],
}

impl Table<'_> {
    /// Prints it between rules.
    pub fn print(self) -> Result<()> {
        let page = self.lay_out(page_width());
        let width = page.iter().map(|line| line.width()).max().unwrap_or(0);
        let (thin, thick) = ("─".repeat(width), "═".repeat(width));
        let Some((header, rows)) = page.split_first() else { return Ok(()) };
        for line in [&thin, header, &thick].into_iter().chain(rows).chain([&thin]) {
            output::line(line)?;
        }
        Ok(())
    }

    /// Its lines without rules, the header first: for rows that are printed in groups, or `indent` columns from the left.
    pub fn lines(self, indent: usize) -> Vec<String> {
        self.lay_out(page_width().saturating_sub(indent))
    }

    fn lay_out(&self, page: usize) -> Vec<String> {
        let header = self.header.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> =
            std::iter::once(header).chain(self.rows.iter().map(|row| printable(row))).collect();
        let columns = self.header.len();
        let widest = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.width())).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns).map(widest).collect();
        let gap = self.cut(&mut widths, page);
        let numbers_from = columns.saturating_sub(self.numbers);
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let cell = fitted(cell, width);
                let space = " ".repeat(width.saturating_sub(cell.width()));
                let (before, after) = if column >= numbers_from { (space.as_str(), "") } else { ("", space.as_str()) };
                line.push_str(if column == 0 { " " } else { &"   "[..gap] });
                line.extend([before, &cell, after]);
            }
            line.truncate(line.trim_end().len());
            line
        };
        rows.iter().map(line).collect()
    }

    /// Makes columns narrower until a line fits, or none can give more; returns the room between them, which goes first.
    fn cut(&self, widths: &mut [usize], page: usize) -> usize {
        let cells: usize = widths.iter().sum();
        let gap = if cells + 2 * widths.len() <= page { 2 } else { 1 };
        let first = self.gives.iter().filter_map(|name| self.header.iter().position(|column| column == name));
        let texts = widths.len().saturating_sub(self.numbers);
        let order: Vec<usize> = first.chain(1..texts).collect();
        let mut over = (cells + gap * widths.len()).saturating_sub(page);
        for column in order {
            let least = LEAST.max(self.header[column].width()).min(widths[column]);
            let given = over.min(widths[column] - least);
            widths[column] -= given;
            over -= given;
        }
        gap
    }
}

/// What entries have in common, as a line above them, or as two where it is too long for the page.
pub fn heading(first: &str, second: &str) -> Vec<String> {
    let page = page_width();
    let whole = format!("{first}, {second}");
    if whole.width() <= page {
        return vec![whole];
    }
    vec![fitted(first, page), fitted(&format!(" {second}"), page)]
}

/// Cells with no character that moves the cursor: they come from files.
fn printable(row: &[String]) -> Vec<String> {
    row.iter().map(|cell| cell.replace(char::is_control, " ")).collect()
}

/// A cell in so many columns of the page.
fn fitted(cell: &str, width: usize) -> String {
    if cell.width() <= width {
        return cell.to_owned();
    }
    let mut cut = String::new();
    let mut taken = 1; // the ellipsis
    for c in cell.chars() {
        taken += c.width().unwrap_or(0);
        if taken > width {
            break;
        }
        cut.push(c);
    }
    cut.truncate(cut.trim_end().len());
    cut.push('…');
    cut
}

/// Columns of the page: what `COLUMNS` says, else the terminal's, else no end.
fn page_width() -> usize {
    let stated = ropejit::system::environment::text("COLUMNS")
        .ok()
        .flatten()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .filter(|n| *n > 0);
    stated.or_else(terminal_width).unwrap_or(usize::MAX)
}

fn terminal_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(width.0.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table<'a>(device: &str) -> Table<'a> {
        let row = |key: &str| [key, device, "t128 v8 h2 wb/wb", "tuned", "8192", "0.987"].map(String::from).to_vec();
        Table {
            header: &["key", "for", "variant", "choice", "tokens", "of copy"],
            rows: vec![row("874054930179"), row("3b8da7cf1345")],
            numbers: 2,
            gives: &["for"],
        }
    }

    const NAMES: [&str; 5] = [
        "x",
        "AMD EPYC 9B14",
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with a very long suffix",
        "飞腾 腾云 S5000C 处理器 飞腾 腾云 S5000C 处理器",
        "\x1b[31mred\n",
    ];

    #[test]
    fn lines_fit_the_page_whatever_the_device_is_called() {
        for name in NAMES {
            for page in [70, 80, 100] {
                let lines = table(name).lay_out(page);
                assert!(lines.iter().all(|line| line.width() <= page), "{lines:#?}");
                // Only the name gave way.
                assert!(
                    ["874054930179", "t128 v8 h2 wb/wb", "tuned", "8192", "0.987"]
                        .iter()
                        .all(|cell| lines[1].contains(cell)),
                    "{lines:#?}"
                );
                assert!(!lines[1].contains(char::is_control), "{lines:#?}");
            }
        }
        let full = &table(NAMES[2]).lay_out(80)[1];
        assert!(full.width() == 80 && full.contains("Intel(R) Xeon(R) Plat") && full.contains('…'), "{full}");
    }

    #[test]
    fn where_that_is_not_enough_others_are_cut_but_no_number_and_no_key() {
        let lines = table(NAMES[2]).lay_out(40);
        assert!(lines[1].starts_with(" 874054930179 Intel(R… t128 v8… tuned "), "{lines:#?}");
        assert!(lines[1].ends_with("8192   0.987"), "{lines:#?}");
        let whole = table(NAMES[2]).lay_out(usize::MAX);
        assert!(whole[1].contains(NAMES[2]), "{whole:#?}");
    }
}
