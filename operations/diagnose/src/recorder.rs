//! Listens to the consoles of a running machine.

use crate::scene::{Console, Machine, Outcome, Scene};
use crate::stages::{LineBuffer, Reached, Stage, StageWatch};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the first output that are kept of each console: a kernel's first messages, with its command line.
const HEAD: usize = 16 << 10;
/// Bytes of the last output that are kept of each console: a panic with the traces of a few processors.
const TAIL: usize = 48 << 10;

/// What hears one console. Called with each piece of output that its reader took.
pub type Listener = Box<dyn FnMut(&[u8]) + Send>;

/// What one console said. Grows with what is said, up to [`HEAD`] and [`TAIL`].
#[derive(Debug, Default)]
struct Heard {
    name: String,
    device: String,
    line: LineBuffer,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    lost_bytes: u64,
    lost_lines: u64,
    line_feeds: u64,
    boot_line: u64,
}

impl Heard {
    fn keep(&mut self, bytes: &[u8]) {
        let feeds = |bytes: &mut dyn Iterator<Item = u8>| -> u64 {
            bytes.fold(0, |sum, byte| sum + u64::from(byte == b'\n'))
        };
        self.line_feeds += feeds(&mut bytes.iter().copied());
        let first = HEAD.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at_checked(first).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(first);
        let skipped = rest.len().saturating_sub(TAIL);
        let (skipped, rest) = rest.split_at_checked(skipped).unwrap_or((&[], rest));
        let over = (self.tail.len() + rest.len())
            .saturating_sub(TAIL)
            .min(self.tail.len());
        if over > 0 {
            self.lost_bytes += over as u64;
            self.lost_lines += feeds(&mut self.tail.drain(..over));
        }
        if !skipped.is_empty() {
            self.lost_bytes += skipped.len() as u64;
            self.lost_lines += feeds(&mut skipped.iter().copied());
        }
        self.tail.extend(rest);
    }

    fn console(&self) -> Console {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        Console {
            name: self.name.clone(),
            device: self.device.clone(),
            head: String::from_utf8_lossy(&self.head).into_owned(),
            tail: String::from_utf8_lossy(&tail).into_owned(),
            lost_bytes: self.lost_bytes,
            lost_lines: self.lost_lines,
            boot_line: self.boot_line,
        }
    }
}

#[derive(Debug, Default)]
struct Record {
    consoles: Vec<Heard>,
    stages: StageWatch,
    /// When a console was last heard, since the VMM started.
    last: Option<Duration>,
    resets: u64,
}

/// Keeps what consoles say, and when the guest got how far. Cloning gives another handle of the same.
///
/// Hearing a piece takes a short lock, a look at the clock and a copy; nothing is allocated but the bounded
/// memory of what is kept.
#[derive(Clone, Debug)]
pub struct Recorder {
    start: Instant,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    /// Makes one for a machine of this plan (`MachinePlan` as JSON); `start` is when the VMM process started, or
    /// as near to it as is known.
    pub fn new(start: Instant, plan: &Value) -> Self {
        let mut record = Record::default();
        record.stages.mark(Stage::Vmm, Duration::ZERO);
        let facts = Machine::from_plan(plan);
        let is_console = |kind: &str| matches!(kind, "serial" | "virtio-console" | "debug-console");
        for device in facts
            .devices
            .into_iter()
            .filter(|device| is_console(&device.kind))
        {
            record.consoles.push(Heard {
                name: device.name,
                device: device.guest.unwrap_or_default(),
                ..Heard::default()
            });
        }
        Self {
            start,
            record: Arc::new(Mutex::new(record)),
        }
    }

    /// Gives what shall hear the console of that name: its unit's, as in the plan, or `UNIT.0` for the first port
    /// of a virtio console.
    pub fn listener(&self, name: &str) -> Listener {
        let mut record = self.record.lock();
        let unit = name.strip_suffix(".0").unwrap_or(name);
        let known = record
            .consoles
            .iter()
            .position(|heard| heard.name == name || heard.name == unit);
        let index = known.unwrap_or_else(|| {
            record.consoles.push(Heard {
                name: name.into(),
                ..Heard::default()
            });
            record.consoles.len() - 1
        });
        drop(record);
        let recorder = self.clone();
        Box::new(move |bytes| recorder.hear(index, bytes))
    }

    fn hear(&self, index: usize, bytes: &[u8]) {
        let now = self.start.elapsed();
        let mut record = self.record.lock();
        let Record {
            consoles,
            stages,
            last,
            ..
        } = &mut *record;
        if let Some(heard) = consoles.get_mut(index) {
            *last = Some(now);
            heard.keep(bytes);
            stages.hear(&mut heard.line, bytes, now);
        }
    }

    /// Notes a stage that the VMM knows of: [`Stage::Guest`] when vCPUs begin to run.
    pub fn mark(&self, stage: Stage) {
        let now = self.start.elapsed();
        self.record.lock().stages.mark(stage, now);
    }

    /// The machine was reset.
    pub fn restarted(&self) {
        let now = self.start.elapsed();
        let mut record = self.record.lock();
        record.resets += 1;
        record.stages.restart(now);
        for heard in &mut record.consoles {
            heard.boot_line = heard.line_feeds;
        }
    }

    /// The stages reached so far in this boot.
    pub fn stages(&self) -> Vec<Reached> {
        self.record.lock().stages.reached()
    }

    /// What the consoles said.
    pub fn consoles(&self) -> Vec<Console> {
        self.record
            .lock()
            .consoles
            .iter()
            .map(Heard::console)
            .collect()
    }

    /// That the machine still runs, since when, and since when silently.
    pub fn running(&self) -> Outcome {
        Outcome::Running {
            for_ms: millis(self.start.elapsed()),
            silent_ms: self.silent_ms(),
        }
    }

    /// How long no console has been heard, in milliseconds (since the start if none ever was).
    fn silent_ms(&self) -> u64 {
        let now = self.start.elapsed();
        let last = self.record.lock().last.unwrap_or_default();
        millis(now.saturating_sub(last))
    }

    /// Everything known inside the VMM process: the plan, the inspect tree (both as JSON, the latter may be
    /// `Null`), how it ended, and what there was to complain about; and what the host's files say of its TAPs.
    pub fn scene(
        &self,
        plan: &Value,
        inspect: &Value,
        outcome: Outcome,
        errors: Vec<String>,
    ) -> Scene {
        let mut machine = Machine::from_plan(plan);
        machine.observe(inspect);
        // Locked for this alone: what follows locks again.
        let resets = self.record.lock().resets;
        Scene {
            host: crate::probe::surroundings(&machine),
            machine,
            outcome,
            resets,
            silent_ms: Some(self.silent_ms()),
            consoles: self.consoles(),
            errors,
            stages: self.stages(),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan() -> Value {
        json!({ "placements": [
            { "name": "com1", "kind": "serial", "config": { "port": 0x3f8, "backend": { "kind": "stdio", "config": {} } } },
            { "name": "com2", "kind": "serial", "config": { "port": 0x2f8, "backend": { "kind": "null", "config": {} } } },
            { "name": "console", "kind": "virtio-console",
              "config": { "ports": [{ "backend": { "kind": "null", "config": {} } }] } },
        ]})
    }

    #[test]
    fn a_scene_is_made_of_what_was_heard() {
        let recorder = Recorder::new(Instant::now(), &plan());
        recorder.restarted();
        let scene = recorder.scene(
            &plan(),
            &Value::Null,
            recorder.running(),
            vec!["disk0: gone".into()],
        );
        assert_eq!((scene.resets, scene.errors.len()), (1, 1));
    }

    #[test]
    fn consoles_are_told_apart_by_name() {
        let recorder = Recorder::new(Instant::now(), &plan());
        for (name, said) in [
            ("console.0", "3"),
            ("com1", "1"),
            ("later", "4"),
            ("com2", "2"),
            ("com1", "!"),
        ] {
            recorder.listener(name)(said.as_bytes());
        }
        let said: Vec<_> = recorder
            .consoles()
            .into_iter()
            .map(|console| (console.device, console.head))
            .collect();
        let expected = [("ttyS0", "1!"), ("ttyS1", "2"), ("hvc0", "3"), ("", "4")];
        assert_eq!(
            said,
            expected.map(|(device, text)| (device.into(), text.into()))
        );
    }

    #[test]
    fn the_first_and_the_last_stay() {
        let recorder = Recorder::new(Instant::now(), &plan());
        let mut listener = recorder.listener("com1");
        let mut said = String::new();
        for n in 0..20_000 {
            said.push_str(&format!("line {n}\n"));
        }
        for piece in said.as_bytes().chunks(777) {
            listener(piece);
        }
        let console = recorder.consoles().swap_remove(0);
        assert_eq!((console.head.len(), console.tail.len()), (HEAD, TAIL));
        assert_eq!(console.lost_bytes as usize, said.len() - HEAD - TAIL);
        assert!(console.head.starts_with("line 0\n"));
        let lines = crate::text::lines(&console, 0);
        let last = lines.last().unwrap();
        assert_eq!((last.number, last.text.as_str()), (20_000, "line 19999"));
        // One piece greater than all that is kept.
        listener(said.as_bytes());
        let again = recorder.consoles().swap_remove(0);
        assert_eq!(again.tail, console.tail);
        assert_eq!(crate::text::lines(&again, 0).last().unwrap().number, 40_000);
    }

    #[test]
    fn resets_and_silence_are_noted() {
        let recorder = Recorder::new(Instant::now() - Duration::from_secs(5), &plan());
        let Outcome::Running { for_ms, silent_ms } = recorder.running() else {
            unreachable!();
        };
        assert!(for_ms >= 5000 && silent_ms == for_ms);
        let mut listener = recorder.listener("com1");
        recorder.mark(Stage::Guest);
        listener(b"Linux version 6.1\nx\n");
        assert_eq!(recorder.stages().len(), 4);
        recorder.restarted();
        let scene = recorder.scene(&plan(), &Value::Null, recorder.running(), Vec::new());
        assert_eq!(
            (
                scene.resets,
                scene.stages.len(),
                scene.consoles[0].boot_line
            ),
            (1, 2, 2)
        );
        assert!(matches!(scene.outcome, Outcome::Running { silent_ms, .. } if silent_ms < 1000));
    }
}
