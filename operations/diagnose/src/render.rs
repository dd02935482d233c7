//! A bundle for the screen.

use crate::bundle::Bundle;
use crate::stages::Reached;
use crate::text::clean;
use crate::verdict::{Confidence, Gravity, Verdict};
use std::fmt::Write;
use std::path::Path;

/// Columns that text is broken at.
const WIDTH: usize = 100;
/// Columns of the longest bar.
const BAR: u64 = 40;
/// Lines of a console that are shown where no verdict explains anything.
const LAST_LINES: usize = 10;

/// A time in nanoseconds, in the unit that suits it.
pub(crate) fn duration(ns: u64) -> String {
    match ns {
        0..10_000_000 => format!("{}.{:02} ms", ns / 1_000_000, ns / 10_000 % 100),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        1_000_000_000..120_000_000_000 => {
            format!("{}.{:02} s", ns / 1_000_000_000, ns / 10_000_000 % 100)
        }
        _ => {
            let seconds = ns / 1_000_000_000;
            match seconds {
                0..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
                _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
            }
        }
    }
}

/// A point in time as UTC: `2026-11-21 07:05:09 UTC` (days to date: H. Hinnant, "chrono-compatible low-level
/// date algorithms", civil_from_days).
fn date(ms: u64) -> String {
    let seconds = ms / 1000;
    let days = i64::try_from(seconds / 86_400).unwrap_or_default() + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let second = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Breaks `text` into lines, each behind `indent`, the first behind `first`.
fn wrap(out: &mut String, first: &str, indent: &str, text: &str) {
    let mut line = first.to_owned();
    let mut is_fresh = true;
    for word in text.split_whitespace() {
        if !is_fresh && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = indent.to_owned();
            is_fresh = true;
        }
        if !is_fresh {
            line.push(' ');
        }
        line.push_str(word);
        is_fresh = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

fn show(out: &mut String, number: usize, verdict: &Verdict) {
    let sure = match verdict.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
        Confidence::Possible => "possible",
    };
    let grave = match verdict.gravity {
        Gravity::Fatal => "",
        Gravity::Degraded => ", not fatal",
        Gravity::Benign => ", harmless",
    };
    let head = format!(
        "{} [{}; {sure}{grave}]",
        clean(&verdict.title, 200),
        clean(&verdict.id, 64)
    );
    wrap(out, &format!("{number}. "), "   ", &head);
    wrap(out, "   ", "   ", &clean(&verdict.explanation, 4000));
    for evidence in &verdict.evidence {
        let place = match evidence.line {
            Some(line) => format!("{}:{line}", clean(&evidence.source, 32)),
            None => clean(&evidence.source, 32),
        };
        // Not broken: somebody may want to search for it.
        let _ = writeln!(out, "     {place:<12} {}", clean(&evidence.text, 400));
    }
    wrap(out, "   Mend: ", "         ", &clean(&verdict.mend, 4000));
    out.push('\n');
}

/// A bar for each stage: how long it took to come from the one before.
fn show_stages(out: &mut String, stages: &[Reached]) {
    let Some(last) = stages
        .last()
        .map(|reached| reached.after_ns)
        .filter(|last| *last > 0)
    else {
        return;
    };
    out.push_str("stages, since the VMM started:\n");
    let mut before = 0;
    let column =
        |ns: u64| usize::try_from(u128::from(ns) * u128::from(BAR) / u128::from(last)).unwrap_or(0);
    for reached in stages {
        let (from, to) = (column(before), column(reached.after_ns));
        let took = reached.after_ns.saturating_sub(before);
        let mut bar = " ".repeat(from);
        bar.push_str(&"#".repeat(to.saturating_sub(from).max(1)));
        let guest = match reached.guest_us {
            Some(us) => format!("  (guest's clock {})", duration(us.saturating_mul(1000))),
            None => String::new(),
        };
        let line = format!(
            "  {:<16} {:>10} {:>11}  |{bar}{guest}",
            reached.stage.title(),
            duration(reached.after_ns),
            format!("+{}", duration(took)),
        );
        out.push_str(line.trim_end());
        out.push('\n');
        before = reached.after_ns;
    }
    out.push('\n');
}

/// What `nyx why NAME` prints: what happened, the verdicts with evidence and mend, the stages, and where the
/// bundle is (`folder`; none for a machine that still runs). Holds no control characters but line feeds,
/// whatever the guest said.
pub fn render(bundle: &Bundle, folder: Option<&Path>) -> String {
    let mut out = String::new();
    let scene = &bundle.scene;
    let what = format!(
        "{} {}",
        clean(&bundle.name, 128),
        clean(&scene.outcome.words(), 400)
    );
    wrap(&mut out, "", "  ", &what);
    let mut about = format!(
        "nyx {}, {}",
        clean(&bundle.version, 64),
        date(bundle.written_ms)
    );
    if scene.resets > 0 {
        let _ = write!(about, ", {} resets", scene.resets);
    }
    let _ = writeln!(out, "{about}\n");
    if bundle.verdicts.is_empty() {
        out.push_str("Nothing known to be wrong was found.\n");
        let index_of_longest = (0..scene.consoles.len()).max_by_key(|&index| {
            let console = &scene.consoles[index];
            console.head.len() + console.tail.len()
        });
        if let Some(index) = index_of_longest {
            let lines = crate::text::lines(&scene.consoles[index], index);
            let from = lines.len().saturating_sub(LAST_LINES);
            if from < lines.len() {
                let _ = writeln!(
                    out,
                    "The last lines of {}:",
                    clean(&scene.consoles[index].name, 64)
                );
            }
            for line in lines.iter().skip(from) {
                let _ = writeln!(out, "     {:<6} {}", line.number, clean(&line.text, 400));
            }
        }
        out.push('\n');
    }
    for (index, verdict) in bundle.verdicts.iter().enumerate() {
        show(&mut out, index + 1, verdict);
    }
    show_stages(&mut out, &scene.stages);
    for error in scene.errors.iter().rev().take(5) {
        wrap(&mut out, "the VMM said: ", "  ", &clean(error, 400));
    }
    match folder {
        Some(folder) => {
            let _ = writeln!(out, "all of it: {}", clean(&folder.to_string_lossy(), 4000));
        }
        None => out.truncate(out.trim_end().len()),
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Console, Outcome, Scene};
    use crate::stages::Stage;

    #[test]
    fn dates_and_durations() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_244_709_123), "2026-11-21 07:05:09 UTC");
        assert_eq!(duration(3_140_000), "3.14 ms");
        assert_eq!(duration(450_000_000), "450 ms");
        assert_eq!(duration(61_250_000_000), "61.25 s");
        assert_eq!(duration(600_000_000_000), "10 min 0 s");
        assert_eq!(duration(u64::MAX), "5124095 h 34 min");
    }

    fn bundle() -> Bundle {
        let reached = |stage, after_ns, guest_us| Reached {
            stage,
            after_ns,
            guest_us,
            by: String::new(),
        };
        let said = "[    1.000000] VFS: Cannot open root device \"vdb\" or unknown-block(0,0): error -6\n\
                    [    1.100000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\x1b[2J\n";
        let mut scene = Scene {
            outcome: Outcome::GuestPanicked,
            stages: vec![
                reached(Stage::Vmm, 0, None),
                reached(Stage::Guest, 3_140_000, None),
                reached(Stage::Kernel, 900_000_000, Some(0)),
            ],
            consoles: vec![Console {
                name: "com1".into(),
                device: "ttyS0".into(),
                head: said.into(),
                ..Console::default()
            }],
            ..Scene::default()
        };
        scene.machine.cmdline = "console=ttyS0 root=/dev/vdb".into();
        Bundle::new("0.1.0", "web", scene)
    }

    #[test]
    fn the_screen_says_what_happened_and_what_to_do() {
        let text = render(&bundle(), Some(Path::new("/state/web/bundles/1")));
        for part in [
            "web panicked (it said so through pvpanic)\nnyx 0.1.0, ",
            "1. no driver took the disk [disk-driver-missing; likely]\n",
            "     ttyS0:1      VFS: Cannot open root device \"vdb\"",
            "   Mend: Give the kernel the initramfs",
            "  guest entered       3.14 ms    +3.14 ms  |#\n",
            "  kernel speaks        900 ms     +896 ms  |########################################  (guest's clock 0.00 ms)\n",
            "all of it: /state/web/bundles/1\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(
            text.lines()
                .all(|line| line.chars().all(|c| !c.is_control()))
        );
        // One cause, one verdict: the panic is not told again.
        assert!(!text.contains("2. "));
    }

    #[test]
    fn where_nothing_is_known_the_last_lines_are_shown() {
        let mut bundle = bundle();
        bundle.scene.consoles[0].head = "hello\nbye\n".into();
        bundle.scene.outcome = Outcome::PoweredOff;
        bundle.verdicts = crate::diagnose(&bundle.scene);
        let text = render(&bundle, None);
        assert!(text.contains("Nothing known to be wrong was found.\nThe last lines of com1:\n     1      hello\n     2      bye\n"), "{text}");
    }
}
