//! When the guest got how far: a streaming search of console output for the few lines that tell.

use crate::text::{LONGEST, Strip, time_stamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How far a boot got. Later stages are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The VMM process started.
    Vmm,
    /// vCPUs began to run.
    Guest,
    /// A console heard its first byte.
    FirstOutput,
    /// The kernel names itself.
    Kernel,
    /// The kernel starts the first process of an initramfs.
    Initramfs,
    /// The root file system is mounted.
    Root,
    /// The system's own first process runs.
    Init,
    /// The network is up.
    Network,
    /// Programs of the user run, or somebody may log in.
    Userland,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Self; 9] = [
        Self::Vmm,
        Self::Guest,
        Self::FirstOutput,
        Self::Kernel,
        Self::Initramfs,
        Self::Root,
        Self::Init,
        Self::Network,
        Self::Userland,
    ];

    /// What it is called on the screen.
    pub fn title(self) -> &'static str {
        match self {
            Self::Vmm => "VMM started",
            Self::Guest => "guest entered",
            Self::FirstOutput => "first output",
            Self::Kernel => "kernel speaks",
            Self::Initramfs => "initramfs runs",
            Self::Root => "root mounted",
            Self::Init => "init started",
            Self::Network => "network up",
            Self::Userland => "userland reached",
        }
    }

    /// The stage that a line of a console, without its time stamp, is a sign of.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        SIGNS
            .iter()
            .find(|sign| sign.parts.iter().all(|part| line.contains(part)))
            .map(|sign| sign.stage)
    }
}

/// What a line must contain, all of it, to be the sign of a stage.
struct Sign {
    stage: Stage,
    parts: &'static [&'static str],
}

const fn sign(stage: Stage, parts: &'static [&'static str]) -> Sign {
    Sign { stage, parts }
}

/// Signs, those that are to win first. Linux 4.14 to 6.12, systemd, sysvinit, OpenRC, busybox.
const SIGNS: &[Sign] = &[
    sign(Stage::Kernel, &["Linux version "]),
    sign(Stage::Initramfs, &["Run /init as init process"]),
    sign(Stage::Root, &["VFS: Mounted root ("]),
    sign(Stage::Root, &["mounted filesystem", "EXT4-fs ("]),
    sign(Stage::Root, &["Ending clean mount", "XFS ("]),
    sign(Stage::Root, &["nyx-guest: root is "]),
    sign(Stage::Init, &["Run /", " as init process"]),
    sign(
        Stage::Init,
        &["systemd[1]: systemd ", " running in system mode"],
    ),
    sign(Stage::Init, &["INIT: version ", " booting"]),
    sign(Stage::Init, &["OpenRC ", " is starting up"]),
    sign(Stage::Network, &["IP-Config: Complete"]),
    sign(Stage::Network, &["link becomes ready"]),
    sign(Stage::Network, &["Reached target", "etwork"]),
    sign(Stage::Network, &["lease of ", " obtained"]),
    sign(Stage::Userland, &["login: "]),
    sign(Stage::Userland, &["nyx-demo: userland reached"]),
    sign(Stage::Userland, &["Reached target", "ulti-"]),
    sign(Stage::Userland, &["Startup finished in "]),
];

/// A stage that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Which.
    pub stage: Stage,
    /// When, in nanoseconds of the host's monotonic clock since the VMM started.
    pub after_ns: u64,
    /// The kernel's own time stamp of that line in microseconds, if it printed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_us: Option<u64>,
    /// The line that told, without control characters; empty for stages that the VMM itself knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

/// Bytes of a telling line that are kept.
const TOLD: usize = 120;
/// Bytes of a line that are looked at while it passes.
const LOOKED_AT: usize = 240;

/// The line that a console is in the middle of: bounded, allocated once.
#[derive(Clone, Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    strip: Strip,
}

/// Notes when each stage is reached. Fed with what consoles say, in whatever pieces it comes.
#[derive(Clone, Debug, Default)]
pub struct StageWatch {
    reached: [Option<Reached>; Stage::ALL.len()],
}

impl StageWatch {
    fn place(stage: Stage) -> usize {
        stage as usize
    }

    /// Notes a stage that the caller knows of; the first time counts. `now` is the time since the VMM started.
    pub fn mark(&mut self, stage: Stage, now: Duration) {
        self.note(stage, now, None, "");
    }

    fn note(&mut self, stage: Stage, now: Duration, guest_us: Option<u64>, by: &str) {
        if let Some(place @ None) = self.reached.get_mut(Self::place(stage)) {
            *place = Some(Reached {
                stage,
                after_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                guest_us,
                by: crate::text::clean(by, TOLD),
            });
        }
    }

    /// Hears a piece of what a console says; `line` is that console's own. `now` is the time since the VMM
    /// started. Costs a few comparisons for a byte, and a search of the line where one ends.
    pub fn hear(&mut self, line: &mut LineBuffer, bytes: &[u8], now: Duration) {
        if bytes.is_empty() || self.has(Stage::Userland) {
            return;
        }
        self.mark(Stage::FirstOutput, now);
        for &byte in bytes {
            match byte {
                b'\n' | b'\r' => {
                    self.look(line, now);
                    line.bytes.clear();
                    line.strip = Strip::default();
                }
                // Bytes of UTF-8 beyond ASCII are never part of a sign, and no control function here.
                0x80.. => line.push(byte),
                _ if line.strip.take(char::from(byte)) => {
                    line.push(byte);
                    // A prompt has no line feed behind it.
                    if byte == b' ' && line.bytes.ends_with(b"login: ") {
                        self.look(line, now);
                    }
                }
                _ => {}
            }
        }
    }

    fn look(&mut self, line: &LineBuffer, now: Duration) {
        if line.bytes.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&line.bytes);
        let (at, said) = time_stamp(&text);
        if let Some(stage) = Stage::of_line(said) {
            self.note(stage, now, at, said);
        }
    }

    /// Whether a stage was reached.
    pub fn has(&self, stage: Stage) -> bool {
        matches!(self.reached.get(Self::place(stage)), Some(Some(_)))
    }

    /// The machine was reset: what the guest reached is forgotten, the VMM's own start stays.
    pub fn restart(&mut self, now: Duration) {
        for place in self.reached.iter_mut().skip(1) {
            *place = None;
        }
        self.mark(Stage::Guest, now);
    }

    /// The stages reached, in the order of time.
    pub fn reached(&self) -> Vec<Reached> {
        let mut list: Vec<Reached> = self.reached.iter().flatten().cloned().collect();
        list.sort_by_key(|reached| (reached.after_ns, reached.stage));
        list
    }
}

impl LineBuffer {
    fn push(&mut self, byte: u8) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(LOOKED_AT);
        }
        if self.bytes.len() < LOOKED_AT {
            self.bytes.push(byte);
        }
    }
}

// What passes is looked at no longer than what was kept would be.
const _: () = assert!(LOOKED_AT <= LONGEST);

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "\
[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org)\r
[    1.300000] Run /init as init process\r
[    1.900000] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.\r
[    2.100000] systemd[1]: systemd 252.39-1~deb12u1 running in system mode (+PAM +AUDIT)\r
[    3.000000] systemd[1]: Reached target \x1b[0;1;39mnetwork.target\x1b[0m - Network.\r
nyx-guest login: ";

    fn stages(watch: &StageWatch) -> Vec<Stage> {
        watch
            .reached()
            .iter()
            .map(|reached| reached.stage)
            .collect()
    }

    #[test]
    fn a_boot_is_followed_byte_by_byte_as_in_one_piece() {
        let mut whole = StageWatch::default();
        whole.mark(Stage::Vmm, Duration::ZERO);
        whole.mark(Stage::Guest, Duration::from_millis(3));
        let mut pieces = whole.clone();
        whole.hear(
            &mut LineBuffer::default(),
            BOOT.as_bytes(),
            Duration::from_secs(9),
        );
        assert_eq!(stages(&whole), Stage::ALL);
        let mut line = LineBuffer::default();
        for (n, byte) in BOOT.bytes().enumerate() {
            pieces.hear(&mut line, &[byte], Duration::from_millis(4 + n as u64));
        }
        assert_eq!(stages(&pieces), Stage::ALL);
        let reached = pieces.reached();
        assert_eq!(reached[2].after_ns, 4_000_000);
        assert_eq!(reached[5].guest_us, Some(1_900_000));
        assert!(reached[5].by.starts_with("EXT4-fs (vda1): mounted"));
        assert_eq!(
            reached[7].by,
            "systemd[1]: Reached target network.target - Network."
        );
        assert_eq!(reached[8].by, "nyx-guest login: ");
        assert!(
            reached
                .windows(2)
                .all(|pair| pair[0].after_ns <= pair[1].after_ns)
        );
    }

    #[test]
    fn what_only_resembles_a_sign_is_none() {
        let mut watch = StageWatch::default();
        let said = "[  OK  ] Reached target paths.target - Path Units.\nLast login: never\n\
                    Kernel command line: console=ttyS0\n";
        let mut line = LineBuffer::default();
        // "Last login: " is no prompt of a boot, but it takes a login to come there.
        watch.hear(
            &mut line,
            said.replace("Last login: ", "").as_bytes(),
            Duration::ZERO,
        );
        assert_eq!(stages(&watch), [Stage::FirstOutput]);
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut watch = StageWatch::default();
        watch.mark(Stage::Vmm, Duration::ZERO);
        watch.hear(
            &mut LineBuffer::default(),
            BOOT.as_bytes(),
            Duration::from_secs(1),
        );
        watch.restart(Duration::from_secs(2));
        assert_eq!(stages(&watch), [Stage::Vmm, Stage::Guest]);
        assert_eq!(watch.reached()[1].after_ns, 2_000_000_000);
    }

    #[test]
    fn a_line_without_end_costs_no_memory() {
        let mut watch = StageWatch::default();
        let mut line = LineBuffer::default();
        for _ in 0..1000 {
            watch.hear(&mut line, &[b'x'; 1000], Duration::ZERO);
        }
        assert!(line.bytes.capacity() <= LOOKED_AT);
    }
}
