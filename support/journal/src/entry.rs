//! One entry of the journal, and its text form.

use crate::level::Level;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// Longest message in bytes; what is longer is cut and ends in `…`.
pub const MAX_MESSAGE: usize = 4096;
/// Longest text of a field in bytes; what is longer is cut and ends in `…`.
pub const MAX_FIELD: usize = 1024;

/// The fields of an entry, by name.
pub type Fields = BTreeMap<Cow<'static, str>, Value>;

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1, without gaps in the journal of one process. 0: made by an output itself,
    /// to say that entries were lost on the way.
    pub sequence: u64,
    /// When it was written.
    pub time: Timestamp,
    /// How severe it is.
    pub level: Level,
    /// What wrote it: the target of the `tracing` event.
    pub component: Cow<'static, str>,
    /// What happened. May hold any character: it may quote a guest.
    pub message: String,
    /// Particulars.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: Fields,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Flag(bool),
    /// A number that is not negative.
    Count(u64),
    /// A negative number.
    Integer(i64),
    /// A number with a fraction; always finite.
    Real(f64),
    /// Anything else.
    Text(String),
}

impl Value {
    /// The number, if it is one and not negative.
    pub fn as_count(&self) -> Option<u64> {
        match self {
            Self::Count(n) => Some(*n),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Count(n)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        u64::try_from(n).map_or(Self::Integer(n), Self::Count)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        // JSON has no NaN and no infinity.
        if n.is_finite() {
            Self::Real(n)
        } else {
            Self::Text(n.to_string())
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        let mut clipped = Clipped::new(MAX_FIELD);
        clipped.push(text);
        Self::Text(clipped.text)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Count(n) => n.fmt(f),
            Self::Integer(n) => n.fmt(f),
            Self::Real(n) => n.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A text that stops growing at a limit, so that nobody's `Debug` can fill the memory.
#[derive(Debug, Default)]
pub(crate) struct Clipped {
    pub(crate) text: String,
    limit: usize,
    full: bool,
}

impl Clipped {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            text: String::new(),
            limit,
            full: false,
        }
    }

    pub(crate) fn push(&mut self, more: &str) {
        if self.full {
            return;
        }
        let room = self.limit.saturating_sub(self.text.len());
        if more.len() <= room {
            self.text.push_str(more);
            return;
        }
        self.full = true;
        self.text
            .push_str(more.get(..more.floor_char_boundary(room)).unwrap_or(""));
        self.text.push('…');
    }
}

impl fmt::Write for Clipped {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.push(more);
        Ok(())
    }
}

impl Entry {
    /// The text form without the time: `[LEVEL] component: message key=value`.
    pub fn without_time(&self) -> impl fmt::Display + '_ {
        Text {
            entry: self,
            time: false,
            colour: false,
        }
    }

    /// The text form with options.
    pub(crate) fn text(&self, time: bool, colour: bool) -> impl fmt::Display + '_ {
        Text {
            entry: self,
            time,
            colour,
        }
    }

    /// Roughly what it takes in memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let fields: usize = self
            .fields
            .iter()
            .map(|(name, value)| {
                64 + name.len()
                    + match value {
                        Value::Text(text) => text.len(),
                        _ => 0,
                    }
            })
            .sum();
        128 + self.component.len() + self.message.len() + fields
    }
}

/// `TIME [LEVEL] component: message key=value`. Control characters are escaped, since a guest may
/// be quoted; values with spaces, quotes or `=` are quoted.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text(true, false).fmt(f)
    }
}

struct Text<'a> {
    entry: &'a Entry,
    time: bool,
    colour: bool,
}

/// Select Graphic Rendition sequences (ECMA-48, section 8.3.117).
fn sgr(level: Level) -> &'static str {
    match level {
        Level::Trace | Level::Off => "\x1b[2m",
        Level::Debug => "\x1b[36m",
        Level::Info => "\x1b[32m",
        Level::Warn => "\x1b[33m",
        Level::Error => "\x1b[31m",
        Level::Fatal => "\x1b[1;31m",
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry {
            time,
            level,
            component,
            message,
            fields,
            ..
        } = self.entry;
        if self.time {
            write!(f, "{time} ")?;
        }
        if self.colour {
            write!(f, "{}[{}]\x1b[0m ", sgr(*level), level.label())?;
        } else {
            write!(f, "[{}] ", level.label())?;
        }
        escape(f, component, false)?;
        f.write_str(": ")?;
        escape(f, message, false)?;
        for (name, value) in fields {
            f.write_char(' ')?;
            escape(f, name, false)?;
            f.write_char('=')?;
            match value {
                Value::Text(text) if is_plain(text) => f.write_str(text)?,
                Value::Text(text) => {
                    f.write_char('"')?;
                    escape(f, text, true)?;
                    f.write_char('"')?;
                }
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| !is_unsafe(c) && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\'))
}

/// Characters that would let a quoted guest forge lines or drive a terminal: controls, and those
/// that change the direction of text or separate lines.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes `text` with unsafe characters escaped, and with `quotes` also `"` and `\`.
pub(crate) fn escape(out: &mut dyn fmt::Write, text: &str, quotes: bool) -> fmt::Result {
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '"' | '\\' if quotes => write!(out, "\\{c}")?,
            c if is_unsafe(c) => write!(out, "\\u{{{:x}}}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            sequence: 7,
            time: "2026-11-21T07:31:26.25Z".parse().unwrap(),
            level: Level::Warn,
            component: "device".into(),
            message: "disk is slow".into(),
            fields: [
                ("unit".into(), "disk0".into()),
                ("ms".into(), Value::Count(120)),
                ("why".into(), "a \"b\"\n".into()),
            ]
            .into(),
        }
    }

    #[test]
    fn text_form() {
        assert_eq!(
            entry().to_string(),
            "2026-11-21T07:31:26.250000Z [WARN] device: disk is slow ms=120 unit=disk0 why=\"a \\\"b\\\"\\n\""
        );
        assert_eq!(
            entry().text(false, true).to_string(),
            "\x1b[33m[WARN]\x1b[0m device: disk is slow ms=120 unit=disk0 why=\"a \\\"b\\\"\\n\""
        );
    }

    #[test]
    fn a_guest_cannot_forge_lines_or_drive_the_terminal() {
        let mut forged = entry();
        forged.fields.clear();
        forged.message = "x\n2026 [INFO] audit: fine\x1b]0;y\x07\u{202e}".into();
        let text = forged.to_string();
        assert!(!text.chars().any(is_unsafe), "{text:?}");
        assert!(text.ends_with("x\\n2026 [INFO] audit: fine\\u{1b}]0;y\\u{7}\\u{202e}"));
    }

    #[test]
    fn json_and_back() {
        let mut entry = entry();
        entry.fields.insert("low".into(), Value::Integer(-3));
        entry.fields.insert("ok".into(), Value::Flag(true));
        entry.fields.insert("load".into(), Value::Real(0.5));
        entry.fields.insert("nan".into(), f64::NAN.into());
        let json = serde_json::to_string(&entry).unwrap();
        assert!(json.starts_with(
            r#"{"sequence":7,"time":"2026-11-21T07:31:26.250000Z","level":"warn","component":"device","#
        ));
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut clipped = Clipped::new(5);
        clipped.push("äöü");
        clipped.push("more");
        assert_eq!(clipped.text, "äö…");
    }
}
