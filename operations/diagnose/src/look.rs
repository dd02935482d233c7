//! What rules look at a scene with.

use crate::scene::{Device, Outcome, Scene};
use crate::stages::Stage;
use crate::text::{self, Line};
use crate::verdict::{Confidence, Evidence, Verdict};
use std::collections::BTreeSet;

/// Longest piece of evidence in bytes.
const LONGEST_EVIDENCE: usize = 240;
/// Most devices of the guest that are named.
const MOST_NAMES: usize = 16;

/// A scene, prepared for looking at.
pub(crate) struct Look<'s> {
    pub(crate) scene: &'s Scene,
    /// The lines of all consoles; those of one console stand together, in order.
    pub(crate) lines: Vec<Line>,
    /// The stages that were reached, by the lines and by the scene's own list.
    pub(crate) stages: BTreeSet<Stage>,
}

/// What a rule found.
pub(crate) struct Finding {
    pub(crate) confidence: Confidence,
    pub(crate) evidence: Vec<Evidence>,
    /// What to say beyond the rule's meaning.
    pub(crate) details: String,
    /// What to do, where it is not what the rule always says.
    pub(crate) mend: Option<String>,
}

impl Finding {
    pub(crate) fn new(confidence: Confidence) -> Self {
        Self {
            confidence,
            evidence: Vec::new(),
            details: String::new(),
            mend: None,
        }
    }

    pub(crate) fn certain() -> Self {
        Self::new(Confidence::Certain)
    }

    pub(crate) fn likely() -> Self {
        Self::new(Confidence::Likely)
    }

    pub(crate) fn possible() -> Self {
        Self::new(Confidence::Possible)
    }

    /// Adds a line.
    pub(crate) fn line(mut self, look: &Look<'_>, line: &Line) -> Self {
        let console = look.scene.consoles.get(line.console);
        let source = console.map_or("console", |console| match console.device.as_str() {
            "" => console.name.as_str(),
            device => device,
        });
        self.add(source, Some(line.number), &line.text);
        self
    }

    /// Adds lines.
    pub(crate) fn lines<'l>(
        mut self,
        look: &Look<'_>,
        lines: impl IntoIterator<Item = &'l Line>,
    ) -> Self {
        for line in lines.into_iter().take(Verdict::MOST_EVIDENCE) {
            self = self.line(look, line);
        }
        self
    }

    /// Adds a fact: where it comes from, and it in words.
    pub(crate) fn fact(mut self, source: &str, fact: &str) -> Self {
        self.add(source, None, fact);
        self
    }

    fn add(&mut self, source: &str, line: Option<u64>, text: &str) {
        let evidence = Evidence {
            source: text::clean(source, 32),
            line,
            text: text::clean(text, LONGEST_EVIDENCE),
        };
        let is_new = !self
            .evidence
            .iter()
            .any(|known| known.text == evidence.text);
        if is_new && self.evidence.len() < Verdict::MOST_EVIDENCE {
            self.evidence.push(evidence);
        }
    }

    /// Says more.
    pub(crate) fn say(mut self, details: impl AsRef<str>) -> Self {
        if !self.details.is_empty() {
            self.details.push(' ');
        }
        self.details.push_str(&text::clean(details.as_ref(), 1000));
        self
    }

    /// Says what to do instead of what the rule always says.
    pub(crate) fn mend(mut self, mend: impl AsRef<str>) -> Self {
        self.mend = Some(text::clean(mend.as_ref(), 1000));
        self
    }
}

impl<'s> Look<'s> {
    /// Looks at the current boot, or at all that was ever said.
    pub(crate) fn new(scene: &'s Scene, with_earlier_boots: bool) -> Self {
        let mut lines = Vec::new();
        for (index, console) in scene.consoles.iter().enumerate().take(MOST_NAMES) {
            let all = text::lines(console, index);
            let from = if with_earlier_boots {
                0
            } else {
                console.boot_line
            };
            lines.extend(all.into_iter().filter(|line| line.number > from));
        }
        let mut stages: BTreeSet<Stage> =
            scene.stages.iter().map(|reached| reached.stage).collect();
        stages.extend(lines.iter().filter_map(|line| Stage::of_line(&line.text)));
        Self {
            scene,
            lines,
            stages,
        }
    }

    /// The first line that contains all of `parts`.
    pub(crate) fn first(&self, parts: &[&str]) -> Option<&Line> {
        self.lines
            .iter()
            .find(|line| parts.iter().all(|part| line.text.contains(part)))
    }

    /// The lines that contain all of `parts`.
    pub(crate) fn all<'l>(&'l self, parts: &'l [&str]) -> impl Iterator<Item = &'l Line> {
        self.lines
            .iter()
            .filter(move |line| parts.iter().all(|part| line.text.contains(part)))
    }

    /// The first line that contains one of `parts`.
    pub(crate) fn first_of(&self, parts: &[&str]) -> Option<&Line> {
        self.lines
            .iter()
            .find(|line| parts.iter().any(|part| line.text.contains(part)))
    }

    /// The lines that contain one of `parts`.
    pub(crate) fn any_of<'l>(&'l self, parts: &'l [&str]) -> impl Iterator<Item = &'l Line> {
        self.lines
            .iter()
            .filter(move |line| parts.iter().any(|part| line.text.contains(part)))
    }

    /// The last line of the console that spoke most.
    pub(crate) fn last_line(&self) -> Option<&Line> {
        let count = |console: usize| {
            self.lines
                .iter()
                .filter(|line| line.console == console)
                .count()
        };
        let busiest =
            (0..self.scene.consoles.len().min(MOST_NAMES)).max_by_key(|&console| count(console))?;
        self.lines.iter().rfind(|line| line.console == busiest)
    }

    /// The kernel's panic, if it panicked.
    pub(crate) fn panic(&self) -> Option<&Line> {
        self.first(&["Kernel panic - not syncing"])
    }

    /// How far it came.
    pub(crate) fn furthest(&self) -> Option<Stage> {
        self.stages.last().copied()
    }

    pub(crate) fn has_reached(&self, stage: Stage) -> bool {
        self.furthest().is_some_and(|furthest| furthest >= stage)
    }

    /// Whether any console said anything.
    pub(crate) fn is_silent(&self) -> bool {
        self.lines.is_empty()
    }

    /// For how long the machine has been silent, or had been when it ended, in milliseconds, where known.
    pub(crate) fn silent_ms(&self) -> Option<u64> {
        match self.scene.outcome {
            Outcome::Running { silent_ms, .. } => Some(silent_ms),
            _ => self.scene.silent_ms,
        }
    }

    /// Whether it came to rest without having got anywhere: it ended, or says nothing any more.
    pub(crate) fn has_stuck_for(&self, ms: u64) -> bool {
        match self.scene.outcome {
            Outcome::Running { .. } | Outcome::Stopped | Outcome::Vanished { .. } => {
                // Where that is not known: it was stopped by somebody who did not want to wait longer.
                self.silent_ms().is_none_or(|silent| silent >= ms)
            }
            _ => false,
        }
    }

    /// The words of the kernel's command line: the plan's, or what the kernel printed of it.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        let line = match self.scene.machine.cmdline.as_str() {
            "" => self
                .first(&["Kernel command line: "])
                .or_else(|| self.first(&["Command line: "]))
                .and_then(|line| Some(line.text.split_once("ommand line: ")?.1))
                .unwrap_or_default(),
            known => known,
        };
        line.split_whitespace()
    }

    /// The values of an option of the kernel's command line, in order.
    pub(crate) fn options(&self, name: &str) -> Vec<&str> {
        self.words()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .collect()
    }

    /// The value that counts: the last.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options(name).last().copied()
    }

    /// Whether a word stands on the kernel's command line.
    pub(crate) fn flag(&self, word: &str) -> bool {
        self.words().any(|given| given == word)
    }

    /// Devices of a kind.
    pub(crate) fn devices<'l>(&'l self, kind: &'l str) -> impl Iterator<Item = &'l Device> {
        self.scene
            .machine
            .devices
            .iter()
            .filter(move |device| device.kind == kind)
    }

    /// Whether the guest's drivers took a device of this kind into use; none if that is not known.
    pub(crate) fn is_driven(&self, kind: &str) -> Option<bool> {
        self.devices(kind)
            .map(|device| device.activations.map(|count| count > 0))
            .try_fold(false, |sum, driven| Some(sum || driven?))
            .filter(|_| self.devices(kind).next().is_some())
    }

    /// Block devices and partitions that the kernel names.
    pub(crate) fn block_devices(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        let mut is_listing = false;
        for line in &self.lines {
            let text = line.text.trim();
            // `[vda] 524288 512-byte logical blocks`
            if text.contains("logical blocks") {
                names.extend(bracketed(text));
            }
            // ` vda: vda1 vda2 < vda5 >`
            if let Some((disk, partitions)) = text.split_once(": ")
                && is_disk(disk)
                && partitions
                    .split_whitespace()
                    .any(|part| part.starts_with(disk))
            {
                names.insert(disk.to_owned());
                let parts = partitions
                    .split_whitespace()
                    .filter(|part| part.starts_with(disk));
                names.extend(parts.map(str::to_owned));
            }
            // `fe00          262144 vda `, below "here are the available partitions:"
            is_listing |= text.contains("here are the available partitions");
            if is_listing && let Some(name) = listed(text) {
                names.insert(name);
            }
            // The generic guest's own list.
            if let Some((_, list)) = text.split_once("; block devices: ") {
                names.extend(list.split_whitespace().map(str::to_owned));
            }
            if names.len() >= MOST_NAMES {
                break;
            }
        }
        names.into_iter().take(MOST_NAMES).collect()
    }
}

/// The name in `[vda] …`.
fn bracketed(text: &str) -> Option<String> {
    let (name, _) = text.split_once('[')?.1.split_once(']')?;
    is_disk(name).then(|| name.to_owned())
}

/// The name in a line of the kernel's list of partitions: number, blocks, name.
fn listed(text: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let (number, blocks, name) = (words.next()?, words.next()?, words.next()?);
    let is_number = number.len() >= 4 && number.bytes().all(|b| b.is_ascii_hexdigit());
    (is_number && blocks.bytes().all(|b| b.is_ascii_digit()) && is_disk(name))
        .then(|| name.to_owned())
}

/// Whether this can be the name of a disk or a partition.
fn is_disk(name: &str) -> bool {
    let prefixes = [
        "vd", "sd", "hd", "xvd", "nvme", "mmcblk", "dm-", "md", "sr", "pmem",
    ];
    name.len() <= 24
        && prefixes.iter().any(|prefix| name.starts_with(prefix))
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}
