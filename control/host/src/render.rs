//! The report as text for a terminal: aligned, lines of at most 100 columns.

use crate::report::{Finding, GuestKernels, Report, Status};

/// Width of a line, and of the columns before the text.
const WIDTH: usize = 100;
const STATUS: usize = 9;
const TITLE: usize = 32;

impl Report {
    /// The report for people; `color` adds terminal colors.
    pub fn render(&self, color: bool) -> String {
        let mut out = match (self.guest_kernels, self.nanoseconds_per_instruction) {
            (GuestKernels::Native, _) => "This host runs guest kernels natively.",
            (GuestKernels::Emulated, _) => {
                "This host emulates guest kernels: they run, but very slowly."
            }
            (GuestKernels::Unavailable, _) => "This host cannot run virtual machines as it is.",
        }
        .to_string();
        out.push_str("\n\n");
        for finding in &self.findings {
            line(&mut out, finding, color);
        }
        let count = |status| self.findings.iter().filter(|f| f.status == status).count();
        out.push_str(&format!(
            "\n{} ok, {} with a cost, {} missing\n",
            count(Status::Ok),
            count(Status::Warning),
            count(Status::Missing)
        ));
        out
    }
}

fn line(out: &mut String, finding: &Finding, color: bool) {
    let (word, code) = match finding.status {
        Status::Ok => ("ok", "32"),
        Status::Warning => ("warning", "33"),
        Status::Missing => ("missing", "31"),
    };
    let padding = " ".repeat(STATUS - word.len());
    if color {
        out.push_str(&format!("\x1b[{code}m{word}\x1b[0m{padding}"));
    } else {
        out.push_str(word);
        out.push_str(&padding);
    }
    out.push_str(&format!("{:<width$}", finding.title, width = TITLE));
    if finding.title.chars().count() >= TITLE {
        out.push(' ');
    }
    wrapped(out, "", &finding.evidence);
    if finding.status == Status::Ok {
        return;
    }
    let rows = [("costs ", &finding.consequence), ("mend  ", &finding.fix)];
    for (label, text) in rows {
        if let Some(text) = text {
            out.push_str(&" ".repeat(STATUS + TITLE));
            wrapped(out, label, text);
        }
    }
}

/// Writes `label` and `text` from the text column on, with continuation lines below the text.
fn wrapped(out: &mut String, label: &str, text: &str) {
    let indent = STATUS + TITLE + label.len();
    out.push_str(label);
    let mut column = indent;
    for (i, word) in text.split_whitespace().enumerate() {
        let len = word.chars().count();
        if i > 0 {
            if column + 1 + len > WIDTH {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.push_str(word);
        column += len;
    }
    out.push('\n');
}
