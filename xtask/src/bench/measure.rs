//! What is measured, and how.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nyx_harness::tool::Tool;
use nyx_harness::workspace;
use nyx_payload::{Command, Ending, FIRST_BYTE, Report};
use rustix::process::Signal;

use super::process::Process;
use super::table::{Table, median};
use super::vmm::{Disk, Output, Vmm};

/// One measure; a run of it adds one sample per row.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Vmm, &Place, &mut Table) -> Result<()>,
}

/// All measures.
pub(crate) const ALL: &[Measure] = &[
    Measure {
        name: "start",
        what: "exec to the first byte from ring 3 of the guest",
        run: start,
    },
    Measure {
        name: "memory",
        what: "memory of the VMM beside its guest's",
        run: memory,
    },
    Measure {
        name: "exits",
        what: "cycles of the VMM between two KVM_RUNs, and of a whole exit",
        run: exits,
    },
    Measure {
        name: "api",
        what: "exec to the control socket's first answer, start accepted, requests under an exit storm",
        run: super::api::run,
    },
    Measure {
        name: "block",
        what: "random reads and writes of 4 KiB: per second, and per second of the VMM's processor time",
        run: block,
    },
    Measure {
        name: "stop",
        what: "signal to reaped",
        run: stop,
    },
    Measure {
        name: "idle",
        what: "context switches per second of a VM whose guest has halted",
        run: idle,
    },
];

const MIB: u64 = 1 << 20;
/// What every guest has.
const GUEST_MEMORY: u64 = 128 * MIB;
/// Starts per round; the fastest runs are over in two milliseconds.
const STARTS: u32 = 20;
const STOPS: u32 = 5;
const EXITS: u64 = 20_000;
/// Short enough to repeat, long enough for processor time that the kernel tells in hundredths.
const REQUESTS: [(u64, u64); 2] = [(1, 40_000), (32, 400_000)];
const IDLE: Duration = Duration::from_secs(10);
const DISK_SIZE: u64 = 256 * MIB;

/// Files that measures need.
pub(crate) struct Place {
    folder: PathBuf,
    cached: PathBuf,
    direct: PathBuf,
    clock: PathBuf,
    floor: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let folder = workspace::target_folder().join("bench");
        fs::create_dir_all(&folder)?;
        let name = format!("nyx-bench-{}.img", std::process::id());
        let place = Self {
            cached: Path::new("/dev/shm").join(&name),
            direct: folder.join(&name),
            clock: folder.join("exit_clock.so"),
            floor: folder.join("exit_floor"),
            folder,
        };
        compile("exit_clock.rs", "cdylib", &place.clock)?;
        compile("exit_floor.rs", "bin", &place.floor)?;
        fill(&place.cached)?;
        fill(&place.direct)?;
        Ok(place)
    }
}

impl Place {
    /// Where runtime folders go: a name as short as a socket's path needs.
    pub(crate) fn runtime(&self) -> PathBuf {
        Path::new("/dev/shm").join(format!("nyx-bench-{}", std::process::id()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for image in [&self.cached, &self.direct] {
            // What is not there need not be removed.
            let _ = fs::remove_file(image);
        }
        let _ = fs::remove_dir_all(self.runtime());
    }
}

/// Writes an image that is neither sparse nor compressible.
fn fill(path: &Path) -> Result<()> {
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut random = File::open("/dev/urandom")?.take(DISK_SIZE);
    std::io::copy(&mut random, &mut file)?;
    file.sync_all()?;
    Ok(())
}

fn compile(source: &str, kind: &str, to: &Path) -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    Tool::new(rustc)
        .args(["--edition", "2024", "--crate-type", kind])
        .args(["-C", "opt-level=3", "-C", "panic=abort", "-o"])
        .arg(to)
        .arg(workspace::root().join("xtask/bench").join(source))
        .output()?;
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Runs the payload to the line `done` and beyond: it stays, halted.
fn halted(vmm: &Vmm) -> Result<Process> {
    let cmdline = Command::new().then(Ending::Idle);
    let mut process = Process::start(&vmm.command(&cmdline, Output::Serial, None))?;
    process.lines()?.until(|line| line == "done")?;
    Ok(process)
}

fn start(vmm: &Vmm, _: &Place, table: &mut Table) -> Result<()> {
    let cmdline = Command::new().then(Ending::Idle);
    let tool = vmm.command(&cmdline, Output::DebugPort, None);
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let mut process = Process::start(&tool)?;
        let (byte, when) = process.first_byte()?;
        if byte != FIRST_BYTE {
            bail!("the first byte is {byte:#x}, not the payload's");
        }
        times.push(milliseconds(when - process.started));
    }
    times.sort_by(f64::total_cmp);
    table.add(
        "exec to first guest byte, p50",
        "ms",
        vmm,
        median(&times).unwrap_or(f64::NAN),
    );
    let fastest = times.first().copied().unwrap_or(f64::NAN);
    table.add("exec to first guest byte, fastest", "ms", vmm, fastest);
    Ok(())
}

fn memory(vmm: &Vmm, _: &Place, table: &mut Table) -> Result<()> {
    let own = halted(vmm)?.own_memory(GUEST_MEMORY)?;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    table.add("own memory, resident", "MiB", vmm, mib(own.resident));
    table.add("own memory, private", "MiB", vmm, mib(own.private));
    Ok(())
}

fn exits(vmm: &Vmm, place: &Place, table: &mut Table) -> Result<()> {
    for bench in ["exit-pio", "exit-mmio", "exit-uart"] {
        let cmdline = Command::new().bench(bench, EXITS);
        let tool = || vmm.command(&cmdline, Output::Serial, None);
        // With the clock for the VMM's share, without for the whole: it must not count itself.
        let own = clocked(place, tool(), |tool| report(tool).map(drop))?;
        let whole = report(&tool())?;
        let whole = whole.bench(bench).context("the payload gave no figure")?;
        let row = format!("{bench}: VMM between KVM_RUNs, p50");
        table.add(&row, "cycles", vmm, own);
        let row = format!("{bench}: whole exit, mean");
        table.add(&row, "cycles", vmm, whole.cycles_each());
    }
    let floor = Tool::new(&place.floor).arg(EXITS.to_string());
    let floor = clocked(place, floor, |tool| tool.output().map(drop))?;
    table.add(
        "a loop that serves nothing: between KVM_RUNs, p50",
        "cycles",
        vmm,
        floor,
    );
    Ok(())
}

/// The median of what the preloaded clock notes while `tool` runs.
fn clocked(place: &Place, tool: Tool, run: impl FnOnce(&Tool) -> Result<()>) -> Result<f64> {
    let notes = place.folder.join("exit_notes");
    File::create(&notes)?.set_len(4 * (1 + (1 << 18)))?;
    let tool = tool
        .env("LD_PRELOAD", &place.clock)
        .env("EXIT_CLOCK", &notes);
    run(&tool)?;
    middle_note(&fs::read(&notes)?)
        .context("no KVM_RUN was seen: is the program linked statically?")
}

/// The median of the notes of the preloaded clock.
fn middle_note(file: &[u8]) -> Option<f64> {
    let mut words = file
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .map(u32::from_ne_bytes);
    let count = words.next()?;
    let mut notes: Vec<u32> = words.take(count as usize).collect();
    notes.sort_unstable();
    notes.get(notes.len() / 2).copied().map(f64::from)
}

/// Runs the payload to its end.
fn report(tool: &Tool) -> Result<Report> {
    let mut process = Process::start(tool)?;
    let lines = process.lines()?;
    let mut report = Report::default();
    while !report.done {
        let line = lines.next()?.context("the VMM ended before the payload")?;
        report.push(&line);
    }
    match report.fails.first() {
        Some(fail) => bail!("the payload's {}: {}", fail.test, fail.why),
        None => Ok(report),
    }
}

fn block(vmm: &Vmm, place: &Place, table: &mut Table) -> Result<()> {
    for (medium, path, is_direct) in [
        ("tmpfs", &place.cached, false),
        ("O_DIRECT", &place.direct, true),
    ] {
        for &engine in vmm.engines() {
            let disk = Disk {
                path: path.clone(),
                is_direct,
                engine,
            };
            for (kind, depth, count) in REQUESTS
                .into_iter()
                .flat_map(|(depth, requests)| ["read", "write"].map(|kind| (kind, depth, requests)))
            {
                // A device that is asked past the page cache may be slower by orders.
                let requests = if is_direct { count / 10 } else { count };
                let row = format!("{kind} 4 KiB, {medium}, QD {depth}, {}", engine.name());
                let bench = format!("blk-{kind}-qd{depth}");
                one_disk(vmm, &disk, &bench, requests, &row, table).with_context(|| row.clone())?;
            }
        }
    }
    Ok(())
}

fn one_disk(
    vmm: &Vmm,
    disk: &Disk,
    bench: &str,
    requests: u64,
    row: &str,
    table: &mut Table,
) -> Result<()> {
    // A run of one request is what start and set-up cost.
    let (_, before) = disk_run(vmm, disk, bench, 1)?;
    let (per_second, after) = disk_run(vmm, disk, bench, requests)?;
    table.add(row, "requests/s", vmm, per_second);
    let spent = after.saturating_sub(before).as_secs_f64();
    let row = format!("{row}, per CPU-second of the VMM");
    table.add(&row, "requests/s", vmm, requests as f64 / spent);
    Ok(())
}

/// Requests per second, and the processor time of all threads but those that run the guest. What ended
/// threads took is in it: a device's worker ends with the device's reset.
fn disk_run(vmm: &Vmm, disk: &Disk, bench: &str, requests: u64) -> Result<(f64, Duration)> {
    let cmdline = Command::new().bench(bench, requests).then(Ending::Idle);
    let mut process = Process::start(&vmm.command(&cmdline, Output::Serial, Some(disk)))?;
    let lines = process.lines()?;
    let mut report = Report::default();
    for wanted in ["note tsc-rate", "bench ", "done"] {
        report.push(&lines.until(|line| line.starts_with(wanted))?);
    }
    let vcpus = process.threads()?;
    let vcpus = vcpus.iter().filter(|thread| vmm.is_vcpu(&thread.name));
    let spent = process
        .cpu_time()?
        .saturating_sub(vcpus.map(|thread| thread.cpu).sum());
    // In order, so that the image is free for the next one.
    process.stop(Signal::TERM)?;
    let (Some(done), Some(rate)) = (report.bench(bench), report.tsc_rate()) else {
        bail!("the payload gave no figure");
    };
    let seconds = done.cycles as f64 / rate as f64;
    Ok((done.iterations as f64 / seconds, spent))
}

fn stop(vmm: &Vmm, _: &Place, table: &mut Table) -> Result<()> {
    for (signal, row) in [
        (Signal::KILL, "SIGKILL to reaped, p50"),
        (Signal::TERM, "SIGTERM to reaped, p50"),
    ] {
        let mut times = Vec::new();
        for _ in 0..STOPS {
            times.push(milliseconds(halted(vmm)?.stop(signal)?));
        }
        table.add(row, "ms", vmm, median(&times).unwrap_or(f64::NAN));
    }
    Ok(())
}

fn idle(vmm: &Vmm, _: &Place, table: &mut Table) -> Result<()> {
    let process = halted(vmm)?;
    // What the start left behind is over by then.
    std::thread::sleep(Duration::from_secs(1));
    let switches = || -> Result<u64> {
        let threads = process.threads()?;
        Ok(threads.iter().map(|thread| thread.switches).sum())
    };
    let before = switches()?;
    std::thread::sleep(IDLE);
    let per_second = switches()?.saturating_sub(before) as f64 / IDLE.as_secs_f64();
    table.add("wakeups of an idle VM", "1/s", vmm, per_second);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_notes_are_read() {
        let file = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        assert_eq!(middle_note(&file(&[3, 30, 10, 20, 0, 0])), Some(20.0));
        assert_eq!(middle_note(&file(&[0, 0, 0])), None);
        assert_eq!(middle_note(&[]), None);
        // A count beyond what was kept.
        assert_eq!(middle_note(&file(&[9, 5, 7])), Some(7.0));
    }
}
