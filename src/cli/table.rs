//! Tables that fit the page: a cell that would make a line too long is cut (…), then whole columns are left out, and no line is
//! wrapped.
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
    /// The columns that are left out, in this order, where that is not enough.
    pub drops: &'a [&'a str],
}

/// A table's lines, the header first, and the columns that had no room.
struct Page<'a> {
    lines: Vec<String>,
    dropped: Vec<&'a str>,
}

impl<'a> Table<'a> {
    /// Prints it between rules.
    pub fn print(self) -> Result<()> {
        let page = self.lay_out(page_width());
        let width = page.lines.iter().map(|line| line.width()).max().unwrap_or(0);
        let (thin, thick) = ("─".repeat(width), "═".repeat(width));
        let Some((header, rows)) = page.lines.split_first() else { return Ok(()) };
        for line in [&thin, header, &thick].into_iter().chain(rows).chain([&thin]) {
            output::line(line)?;
        }
        page.tell();
        Ok(())
    }

    /// Its lines without rules, the header first: for rows that are printed in groups, or `indent` columns from the left.
    pub fn lines(self, indent: usize) -> Vec<String> {
        let page = self.lay_out(page_width().saturating_sub(indent));
        page.tell();
        page.lines
    }

    fn lay_out(&self, page: usize) -> Page<'a> {
        let header = self.header.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> =
            std::iter::once(header).chain(self.rows.iter().map(|row| printable(row))).collect();
        let widest = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.width())).max().unwrap_or(0);
        // Of each column that is there: which it is, and how wide.
        let mut columns: Vec<(usize, usize)> = (0..self.header.len()).map(|column| (column, widest(column))).collect();
        let mut dropped = Vec::new();
        let mut next = self.drops.iter();
        let gap = loop {
            if let Some(gap) = self.cut(&mut columns, page) {
                break gap;
            }
            let Some(name) = next.next() else { break 1 };
            columns.retain(|(column, _)| self.header[*column] != *name);
            for (column, width) in &mut columns {
                *width = widest(*column);
            }
            dropped.push(*name);
        };
        let numbers_from = self.header.len().saturating_sub(self.numbers);
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for &(column, width) in &columns {
                let cell = fitted(row.get(column).map_or("", String::as_str), width);
                let space = " ".repeat(width.saturating_sub(cell.width()));
                let (before, after) = if column >= numbers_from { (space.as_str(), "") } else { ("", space.as_str()) };
                line.push_str(if column == 0 { " " } else { &"   "[..gap] });
                line.extend([before, &cell, after]);
            }
            line.truncate(line.trim_end().len());
            line
        };
        Page { lines: rows.iter().map(line).collect(), dropped }
    }

    /// Makes columns (which they are, and how wide) narrower until a line fits; returns the room between them, which goes first.
    /// None where it does not fit.
    fn cut(&self, columns: &mut [(usize, usize)], page: usize) -> Option<usize> {
        let cells: usize = columns.iter().map(|(_, width)| width).sum();
        let gap = if cells + 2 * columns.len() <= page { 2 } else { 1 };
        let first = self.gives.iter().filter_map(|name| self.header.iter().position(|column| column == name));
        let texts = self.header.len().saturating_sub(self.numbers);
        let order: Vec<usize> = first.chain(1..texts).collect();
        let mut over = (cells + gap * columns.len()).saturating_sub(page);
        for gives in order {
            for (_, width) in columns.iter_mut().filter(|(column, _)| *column == gives) {
                let least = LEAST.max(self.header[gives].width()).min(*width);
                let given = over.min(*width - least);
                *width -= given;
                over -= given;
            }
        }
        (over == 0).then_some(gap)
    }
}

impl Page<'_> {
    /// Says what is not there.
    fn tell(&self) {
        if !self.dropped.is_empty() {
            output::note(&format!("no room for: {} (--json has all)", self.dropped.join(", ")));
        }
    }
}

/// Words in as many lines as the page needs, all but the first indented; what cannot be broken (a path, a key) is whole.
pub fn wrapped(text: &str, indent: usize) -> Vec<String> {
    broken(text, indent, page_width())
}

fn broken(text: &str, indent: usize, page: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    // With the spaces behind it: they stay within a line.
    for word in text.split_inclusive(' ') {
        let (is_begun, width) = (!line.trim().is_empty(), word.trim_end().width());
        if is_begun && line.width() + width > page && indent + width <= page {
            lines.push(line.trim_end().to_owned());
            line = format!("{:indent$}", "");
        }
        line.push_str(word);
    }
    lines.push(line.trim_end().to_owned());
    lines
}

/// A line of the page, cut where it is too long.
pub fn one_line(text: &str) -> String {
    fitted(text, page_width())
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
            drops: &["tokens", "choice"],
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
                let lines = table(name).lay_out(page).lines;
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
        let full = &table(NAMES[2]).lay_out(80).lines[1];
        assert!(full.width() == 80 && full.contains("Intel(R) Xeon(R) Plat") && full.contains('…'), "{full}");
    }

    #[test]
    fn words_are_wrapped_and_what_is_one_word_is_whole() {
        let key = "4a8e71ba46d64a8e71ba46d6";
        let text = format!("choice    hit: {key}: tuned  (as fast)");
        assert_eq!(broken(&text, 10, usize::MAX), [&*text]);
        assert_eq!(
            broken(&text, 10, 24),
            [&*format!("choice    hit: {key}:"), "          tuned  (as", "          fast)"]
        );
        assert_eq!(broken("", 4, 10), [""]);
    }

    #[test]
    fn where_that_is_not_enough_others_are_cut_but_no_number_and_no_key() {
        let Page { lines, dropped } = table(NAMES[2]).lay_out(53);
        assert!(dropped.is_empty(), "{dropped:?}");
        assert!(lines[1].starts_with(" 874054930179 Intel(R… t128 v8… tuned  "), "{lines:#?}");
        assert!(lines[1].ends_with("8192   0.987"), "{lines:#?}");
        let whole = table(NAMES[2]).lay_out(usize::MAX).lines;
        assert!(whole[1].contains(NAMES[2]), "{whole:#?}");
    }
    #[test]
    fn columns_are_left_out_where_cutting_is_not_enough_and_only_as_many_as_must() {
        for (page, left_out) in [(53, 0), (52, 1), (46, 1), (45, 2), (39, 2), (20, 2)] {
            let Page { lines, dropped } = table(NAMES[2]).lay_out(page);
            assert_eq!(dropped, ["tokens", "choice"][..left_out], "{page}");
            assert_eq!(lines[0].contains("tokens"), left_out == 0, "{lines:#?}");
            assert_eq!(lines[1].contains("tuned"), left_out < 2, "{lines:#?}");
            assert!(lines[1].ends_with("0.987"), "{lines:#?}");
            assert!(page == 20 || lines.iter().all(|line| line.width() <= page), "{lines:#?}");
        }
    }
}
