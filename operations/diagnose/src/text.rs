//! Console text as lines: decoded, stripped of everything that is not text, bounded.

use crate::scene::Console;

/// Longest line that is looked at, in bytes; the rest of it is dropped.
pub(crate) const LONGEST: usize = 512;
/// Most lines of one console that are looked at: the first half and the last half of them.
pub(crate) const MOST_LINES: usize = 8192;

/// One line of a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Which console, by position.
    pub(crate) console: usize,
    /// Its number, from 1.
    pub(crate) number: u64,
    /// The kernel's time stamp in microseconds, where there is one.
    pub(crate) at: Option<u64>,
    /// What it says, without the time stamp.
    pub(crate) text: String,
}

/// A filter that lets text through and swallows control functions (ECMA-48): escape sequences, control
/// strings, control characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strip {
    /// Outside of any.
    #[default]
    Text,
    /// Behind an escape.
    Escape,
    /// Within a control sequence: parameters, then a final byte.
    Sequence,
    /// Within a control string, ended by BEL or ESC \.
    ControlString,
    /// Behind an escape within a control string.
    ControlStringEscape,
}

impl Strip {
    /// Takes a character; true if it is text.
    pub(crate) fn take(&mut self, c: char) -> bool {
        let (next, is_text) = match (*self, c) {
            (Self::ControlString, '\u{7}') | (Self::ControlStringEscape, '\\') => {
                (Self::Text, false)
            }
            (Self::ControlString, '\u{1b}') => (Self::ControlStringEscape, false),
            // A line feed ends whatever was begun: text must not hide behind a sequence never ended.
            (_, '\n' | '\r') => (Self::Text, false),
            (Self::ControlString | Self::ControlStringEscape, _) => (Self::ControlString, false),
            (_, '\u{1b}') => (Self::Escape, false),
            (Self::Escape, '[') => (Self::Sequence, false),
            (Self::Escape, ']' | 'P' | 'X' | '^' | '_') => (Self::ControlString, false),
            (Self::Escape, ' '..='/') => (Self::Escape, false),
            (Self::Escape, _) => (Self::Text, false),
            (Self::Sequence, '\u{20}'..='\u{3f}') => (Self::Sequence, false),
            (Self::Sequence, _) => (Self::Text, false),
            (Self::Text, '\t') => (Self::Text, true),
            (Self::Text, _) => (Self::Text, !is_control(c)),
        };
        *self = next;
        is_text
    }
}

/// Control characters, and those that reorder or hide text (Unicode 15, general category Cf of that kind).
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `text` as one line without control functions, at most `most` bytes long.
pub(crate) fn clean(text: &str, most: usize) -> String {
    let mut strip = Strip::default();
    let mut line = String::new();
    for c in text.chars() {
        let c = if matches!(c, '\n' | '\r' | '\t') {
            ' '
        } else {
            c
        };
        if strip.take(c) {
            if line.len() + c.len_utf8() > most {
                break;
            }
            line.push(c);
        }
    }
    line
}

/// Takes the time stamp off a kernel's line: `[    1.234567] text`.
pub(crate) fn time_stamp(line: &str) -> (Option<u64>, &str) {
    let stamp = || {
        let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
        let (seconds, fraction) = inside.trim_start().split_once('.')?;
        // With CONFIG_PRINTK_CALLER an identifier follows in brackets of its own; it is left where it is.
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(seconds) || !digits(fraction) || fraction.len() != 6 {
            return None;
        }
        let seconds: u64 = seconds.parse().ok()?;
        let micros: u64 = fraction.parse().ok()?;
        let at = seconds.checked_mul(1_000_000)?.checked_add(micros)?;
        Some((at, rest.strip_prefix(' ').unwrap_or(rest)))
    };
    match stamp() {
        Some((at, rest)) => (Some(at), rest),
        None => (None, line),
    }
}

/// Lines of one part of a console that is contiguous.
struct Splitter<'l> {
    lines: &'l mut Vec<Line>,
    console: usize,
    number: u64,
}

impl Splitter<'_> {
    fn take(&mut self, text: &str) {
        let mut strip = Strip::default();
        let mut line = String::new();
        let mut has_more = false;
        for c in text.chars() {
            if c == '\n' || c == '\r' {
                self.push(&mut line);
                self.number = self.number.saturating_add(u64::from(c == '\n'));
                has_more = false;
                strip = Strip::default();
                continue;
            }
            if !strip.take(c) {
                continue;
            }
            has_more = true;
            if line.len() + c.len_utf8() <= LONGEST {
                line.push(c);
            }
        }
        if has_more {
            self.push(&mut line);
        }
    }

    fn push(&mut self, line: &mut String) {
        let whole = std::mem::take(line);
        if whole.trim().is_empty() {
            return;
        }
        let (at, text) = time_stamp(&whole);
        self.lines.push(Line {
            console: self.console,
            number: self.number.saturating_add(1),
            at,
            text: text.to_owned(),
        });
    }
}

/// The lines of a console that are not blank.
pub(crate) fn lines(console: &Console, index: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut splitter = Splitter {
        lines: &mut lines,
        console: index,
        number: 0,
    };
    splitter.take(&console.head);
    if !console.tail.is_empty() {
        splitter.number = splitter.number.saturating_add(console.lost_lines);
        splitter.take(&console.tail);
    }
    if let Some(over) = lines.len().checked_sub(MOST_LINES) {
        lines.drain(MOST_LINES / 2..MOST_LINES / 2 + over);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(head: &str) -> Vec<(u64, Option<u64>, String)> {
        let console = Console {
            head: head.into(),
            ..Console::default()
        };
        lines(&console, 0)
            .into_iter()
            .map(|line| (line.number, line.at, line.text))
            .collect()
    }

    #[test]
    fn time_stamps_come_off() {
        assert_eq!(
            time_stamp("[    1.234567] hello"),
            (Some(1_234_567), "hello")
        );
        assert_eq!(
            time_stamp("[12345.000001]   x"),
            (Some(12_345_000_001), "  x")
        );
        for other in [
            "[vda] 1",
            "[  OK  ] x",
            "[1.5] x",
            "[ 99999999999999999999.000000] x",
            "[",
        ] {
            assert_eq!(time_stamp(other), (None, other));
        }
    }

    #[test]
    fn lines_are_numbered_and_clean() {
        let said =
            "\x1b[31m[    0.500000] red\x1b[0m\r\n\r\nthree\x07\x1b]0;title\x07!\r\n\u{202e}four";
        assert_eq!(
            of(said),
            [
                (1, Some(500_000), "red".into()),
                (3, None, "three!".into()),
                (4, None, "four".into())
            ]
        );
        // A lone carriage return overwrites: what it overwrites was said too.
        assert_eq!(
            of("a\rb\nc"),
            [
                (1, None, "a".into()),
                (1, None, "b".into()),
                (2, None, "c".into())
            ]
        );
        // A sequence without an end hides no more than its line.
        assert_eq!(
            of("x\x1b]never\nshown"),
            [(1, None, "x".into()), (2, None, "shown".into())]
        );
        assert_eq!(clean("a\nb\x1b[2Jc\u{9b}d", 9), "a bcd");
        assert_eq!(clean("äöü", 3), "ä");
    }

    #[test]
    fn what_was_not_kept_still_counts() {
        let console = Console {
            head: "one\ntwo\n".into(),
            tail: "ten\n".into(),
            lost_lines: 7,
            ..Console::default()
        };
        let numbers: Vec<u64> = lines(&console, 0).iter().map(|line| line.number).collect();
        assert_eq!(numbers, [1, 2, 10]);
    }

    #[test]
    fn floods_are_bounded() {
        let console = Console {
            head: format!("first\n{}last", "x\n".repeat(3 * MOST_LINES)),
            tail: "y".repeat(4 * LONGEST),
            ..Console::default()
        };
        let lines = lines(&console, 0);
        assert_eq!(lines.len(), MOST_LINES);
        assert_eq!(lines[0].text, "first");
        assert_eq!(lines[MOST_LINES - 1].text.len(), LONGEST);
    }
}
