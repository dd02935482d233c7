//! What commands print: text for people, JSON for programs, colours on terminals only.

use crate::exit::{Failure, REFUSED};
use clap::ValueEnum;
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::sync::OnceLock;

/// How results and errors are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people.
    #[default]
    Text,
    // For programs.
    Json,
}

static FORMAT: OnceLock<Format> = OnceLock::new();

/// Chooses how this process prints, once.
pub(crate) fn choose(format: Format) {
    // The first choice stays.
    let _ = FORMAT.set(format);
}

/// How this process prints.
pub(crate) fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Whether JSON is wanted.
pub(crate) fn json() -> bool {
    format() == Format::Json
}

/// Writes to standard output. A reader that has seen enough (`| head`) ends the command quietly.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::quiet()),
        Err(e) => Err(Failure::new(
            REFUSED,
            format!("standard output cannot be written: {e}"),
        )),
    }
}

/// Writes one JSON document, indented.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(to_json(value, true)?)
}

/// Writes one JSON document on one line, for streams.
pub(crate) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    print(to_json(value, false)?)
}

fn to_json(value: &impl Serialize, indent: bool) -> Result<String, Failure> {
    let text = if indent {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    text.map(|text| text + "\n")
        .map_err(|e| Failure::new(REFUSED, e.to_string()))
}

/// A colour or weight, as terminals are told (ECMA-48, SGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Style {
    /// `text` in this style, if standard output is a terminal that wants colours (no-color.org).
    pub(crate) fn paint(self, text: &str) -> String {
        static WANTED: OnceLock<bool> = OnceLock::new();
        let wanted = *WANTED.get_or_init(|| {
            let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
        });
        if !wanted {
            return text.into();
        }
        let code = match self {
            Self::Bold => 1,
            Self::Dim => 2,
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// What a guest or a peer said, fit for a terminal: control characters are shown, not obeyed.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A table with a head, columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<(&'static str, Align)>,
    rows: Vec<Vec<(String, Option<Style>)>>,
}

/// On which side a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

impl Table {
    pub(crate) fn new(head: &[(&'static str, Align)]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of plain cells.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.styled(cells.into_iter().map(|cell| (cell, None)));
    }

    /// Adds a row.
    pub(crate) fn styled(&mut self, cells: impl IntoIterator<Item = (String, Option<Style>)>) {
        let cells = cells
            .into_iter()
            .map(|(cell, style)| (printable(&cell), style));
        self.rows.push(cells.collect());
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|(title, _)| width(title)).collect();
        for row in &self.rows {
            for (widest, (cell, _)) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        let head = self
            .head
            .iter()
            .map(|(title, _)| ((*title).to_string(), Some(Style::Bold)));
        let mut text = self.line(&head.collect::<Vec<_>>(), &widths);
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
        }
        text
    }

    fn line(&self, cells: &[(String, Option<Style>)], widths: &[usize]) -> String {
        let mut line = String::new();
        let last = widths.len().saturating_sub(1);
        for (index, ((cell, style), widest)) in cells.iter().zip(widths).enumerate() {
            let pad = " ".repeat(widest.saturating_sub(width(cell)));
            let shown = style.map_or_else(|| cell.clone(), |style| style.paint(cell));
            match self.head.get(index).map(|(_, align)| *align) {
                Some(Align::Right) => {
                    line.push_str(&pad);
                    line.push_str(&shown);
                }
                _ => {
                    line.push_str(&shown);
                    if index != last {
                        line.push_str(&pad);
                    }
                }
            }
            if index != last {
                line.push_str("  ");
            }
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Bytes as people write them: `512M`, `1.5G`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit.is_empty() {
        return format!("{count}B");
    }
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

/// A time span with its two largest units: `3h 12m`.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10 => format!("{}.{}s", rest, milliseconds % 1000 / 100),
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest:02}s"),
        (0, _, _) => format!("{hours}h {minutes:02}m"),
        _ => format!("{days}d {hours:02}h"),
    }
}

/// A count as people read it: `12.3k`.
pub(crate) fn count(value: f64) -> String {
    match value {
        v if !v.is_finite() || v < 0.0 => "–".into(),
        v if v < 10.0 && v.fract() > 0.05 => format!("{v:.1}"),
        v if v < 10_000.0 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1}k", v / 1e3),
        v if v < 1e9 => format!("{:.1}M", v / 1e6),
        v => format!("{:.1}G", v / 1e9),
    }
}

/// The time of day of an RFC 3339 time.
pub(crate) fn time_of_day(time: &str) -> &str {
    let time = time.split_once('T').map_or(time, |(_, time)| time);
    time.trim_end_matches('Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let sizes = [0, 1023, 1024, 1536, 512 << 20, 10 << 30, (3 << 30) / 2];
        assert_eq!(
            sizes.map(bytes),
            ["0B", "1023B", "1K", "1.5K", "512M", "10G", "1.5G"]
        );
        assert_eq!(bytes(u64::MAX), "16E");
        let spans = [0, 1_250, 59_999, 60_000, 3_725_000, 90_000_000, u64::MAX];
        assert_eq!(
            spans.map(span)[..6],
            ["0.0s", "1.2s", "59s", "1m 00s", "1h 02m", "1d 01h"]
        );
        let counts = [0.0, 1.5, 9999.0, 12_345.0, 2.5e6, 7e9, f64::NAN];
        assert_eq!(
            counts.map(count),
            ["0", "1.5", "9999", "12.3k", "2.5M", "7.0G", "–"]
        );
        assert_eq!(time_of_day("2026-11-21T06:00:01.5Z"), "06:00:01.5");
    }

    #[test]
    fn a_table_is_aligned_and_no_line_ends_in_blanks() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("CPUS", Align::Right),
            ("X", Align::Left),
        ]);
        table.row(["a".into(), "12".into(), String::new()]);
        table.row(["longer".into(), "1".into(), "x\x1b[2J".into()]);
        assert_eq!(
            table.render(),
            "NAME    CPUS  X\na         12\nlonger     1  x\\u{1b}[2J\n"
        );
    }
}
