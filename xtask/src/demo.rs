//! `cargo xtask demo`: a stock Debian under Nyx, on this machine or in the lab.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nyx_harness::guests::{self, Flavour};
use nyx_harness::lab::{Ending, Input, Lab, LabCommand};
use nyx_harness::packages::{self, Need};
use nyx_harness::tool::Tool;
use nyx_harness::{initramfs, userland, workspace};

use crate::nyx::{self, Guest, GuestKernels};
use crate::stages::Stages;

/// What `nyx` itself uses of the system in the demo.
const NEEDS: &[Need] = &[Need {
    package: "slirp4netns",
    why: "the guest's network without privileges (--net user)",
}];

const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 512;

/// How long the guest may take, wherever it runs.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Where the disk is while it is used in the lab: in the lab's memory.
const DISK_IN_LAB: &str = "/dev/shm/demo.img";

/// What to know before the terminal is the guest's.
const KEYS: &str =
    "poweroff ends the guest; so does Ctrl-A x, at any time, and Ctrl-A h lists the other keys.";

/// Runs `cargo xtask demo`.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let mut is_interactive = false;
    let mut built = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_string_lossy().as_ref() {
            "--interactive" | "-i" => is_interactive = true,
            "--nyx" => {
                built = Some(PathBuf::from(
                    arguments.next().context("--nyx needs a path")?,
                ))
            }
            other => bail!("demo has no option {other:?}, only --interactive and --nyx PATH"),
        }
    }
    let mut stages = Stages::new();
    let result = demo(&mut stages, is_interactive, built);
    println!("\nHow long it took:\n{}", stages.table());
    result?;
    if !is_interactive {
        println!("The guest's self-check passed.");
    }
    Ok(ExitCode::SUCCESS)
}

fn demo(stages: &mut Stages, is_interactive: bool, built: Option<PathBuf>) -> Result<()> {
    stages.run("packages", || {
        packages::install(NEEDS)?;
        packages::install(packages::GUEST_KERNELS)?;
        packages::install_userland_tools()
    })?;
    let program = match built {
        Some(program) => std::path::absolute(program)?,
        None => stages.run("build nyx", nyx::build)?,
    };
    let kernel = stages.run("guest kernel", || guests::kernel(Flavour::Cloud))?;
    let initrd = stages.run("guest initramfs", || initramfs::guest(&kernel, None))?;
    let system = stages.run("guest system", userland::userland)?;
    let ground = stages.run("ask nyx doctor", || nyx::guest_kernels(&program))?;
    let check = if is_interactive {
        ""
    } else {
        " nyx.demo=check"
    };
    let mut guest = Guest {
        // Unpacked already: unpacking a bzImage again would be the slowest part of an emulated boot.
        kernel: kernel.vmlinux,
        initrd,
        disk: system.gpt_disk,
        cmdline: format!("quiet nyx.cpus={CPUS} nyx.memory={MEMORY_MIB}{check}"),
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
    };
    match ground {
        GuestKernels::Native => {
            stages.remark("this host's KVM runs guest kernels: the guest boots here");
            let folder = workspace::cache_folder().join("demo");
            fs::create_dir_all(&folder)?;
            let copy = folder.join("disk.img");
            stages.run("copy the disk", || {
                userland::copy_sparse(&guest.disk, &copy)
            })?;
            guest.disk = copy;
            boot_here(stages, &guest.run(&program), is_interactive)
        }
        GuestKernels::Emulated | GuestKernels::Unavailable => {
            let why = match ground {
                GuestKernels::Emulated => "this host's KVM emulates guest kernels",
                _ => "this host has no usable KVM",
            };
            stages.remark(format!("{why}: the guest boots in the lab"));
            println!("{why}, so the demo runs in an emulated machine that has one: the lab.");
            let disk = guest.disk.clone();
            let booted = boot_in_lab(
                stages,
                &mut guest,
                &program,
                is_interactive,
                &Lab::default(),
            );
            match booted {
                Err(error) if !is_interactive && is_the_emulators(&error) => {
                    println!(
                        "{error:#}: the emulator's fault, perhaps; once more, with one processor"
                    );
                    guest.disk = disk;
                    let lab = Lab {
                        cpus: 1,
                        ..Lab::default()
                    };
                    boot_in_lab(stages, &mut guest, &program, false, &lab)
                }
                booted => booted,
            }
        }
    }
}

fn boot_here(stages: &mut Stages, argv: &[OsString], is_interactive: bool) -> Result<()> {
    let (program, arguments) = argv.split_first().context("no command")?;
    let mut command = Tool::new(program).args(arguments).command();
    if is_interactive {
        println!("{KEYS}");
        let status = stages.run("guest", || command.status())?;
        return match status.code() {
            Some(0 | nyx::STOPPED) => Ok(()),
            _ => bail!("nyx run: {status}"),
        };
    }
    println!("==> guest");
    let mut console = Console::new(std::io::stdout());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("no pipe from nyx")?;
    let mut buffer = vec![0; 4096];
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        console.write_all(&buffer[..count])?;
        if console.start.elapsed() > TIMEOUT {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    console.report(stages);
    if !status.success() {
        bail!("nyx run: {status}");
    }
    console.verdict()
}

fn boot_in_lab(
    stages: &mut Stages,
    guest: &mut Guest,
    program: &Path,
    is_interactive: bool,
    lab: &Lab,
) -> Result<()> {
    stages.run("prepare the lab", Lab::prepare)?;
    let mut session = stages.run("boot the lab", || lab.boot())?;
    // Nyx writes to the disk, so it gets a copy of its own.
    let copy = userland::copy_script(&guest.disk, Path::new(DISK_IN_LAB))?;
    let copy = LabCommand::script(&copy);
    stages.run("copy the disk", || session.run(&copy)?.success())?;
    guest.disk = DISK_IN_LAB.into();
    let mut command = LabCommand::new(guest.run(program)).within(TIMEOUT);
    command.env = crate::lab::environment();
    if is_interactive {
        command.timeout = Duration::from_secs(24 * 3600);
        println!("{KEYS}");
        let ending = stages.run("guest", || session.interact(&command))?;
        session.end()?;
        return match ending {
            Ending::Exited(0 | nyx::STOPPED) => Ok(()),
            ending => bail!("nyx run ended with {ending:?}"),
        };
    }
    println!("==> guest");
    let mut console = Console::new(std::io::stdout());
    let (ending, _) = session.stream(
        &command,
        Input::Nothing,
        &mut console,
        &mut std::io::stderr(),
    )?;
    console.report(stages);
    match ending {
        Ending::Exited(0) => {}
        Ending::Exited(code) => bail!("nyx run ended with exit code {code}"),
        Ending::TimedOut => bail!("the guest did not finish within {} s", TIMEOUT.as_secs()),
    }
    session.end()?;
    console.verdict()
}

/// Whether a failure may be QEMU's: with several processors its emulation of AMD-V rarely lets an interrupt through
/// that the processor holds back, and one of the kernels dies or stops. It does not with one.
fn is_the_emulators(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}");
    let signs = ["did not finish within", "exit code 4", "ended by itself"];
    signs.iter().any(|sign| said.contains(sign))
}

/// The lines of the guest's console that the demo times.
const MARKS: [(&str, &str); 3] = [
    ("nyx-guest: root is ", "guest: kernel and initramfs"),
    (
        "nyx-demo: userland reached",
        "guest: Debian's first process",
    ),
    ("nyx-demo: self-check ", "guest: network and self-check"),
];

/// Passes the guest's console on and notes when the lines came that tell how far it is.
#[derive(Debug)]
struct Console<W> {
    out: W,
    start: Instant,
    line: Vec<u8>,
    reached: Vec<(&'static str, Instant)>,
    last: String,
}

impl<W: Write> Console<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            start: Instant::now(),
            line: Vec::new(),
            reached: Vec::new(),
            last: String::new(),
        }
    }

    fn finish_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        for (mark, stage) in MARKS {
            if line.contains(mark) && !self.reached.iter().any(|(known, _)| *known == stage) {
                self.reached.push((stage, Instant::now()));
            }
        }
        if line.contains(userland::PASSED) || line.contains(userland::FAILED) {
            self.last = line;
        }
    }

    fn report(&self, stages: &mut Stages) {
        let mut before = self.start;
        for (stage, at) in &self.reached {
            stages.add(stage, at.duration_since(before));
            before = *at;
        }
        stages.add("guest: power-off", before.elapsed());
    }

    fn verdict(&self) -> Result<()> {
        if self.last.contains(userland::PASSED) {
            return Ok(());
        }
        match self.last.as_str() {
            "" => bail!("the guest ended without finishing its self-check"),
            last => bail!("{last}"),
        }
    }
}

impl<W: Write> Write for Console<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        for &byte in &bytes[..count] {
            match byte {
                b'\n' => self.finish_line(),
                _ => self.line.push(byte),
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console<Vec<u8>> {
        let mut console = Console::new(Vec::new());
        for byte in text.bytes() {
            console.write_all(&[byte]).unwrap();
        }
        console
    }

    #[test]
    fn a_passed_check_is_seen_and_timed() {
        let text = "x\r\nnyx-guest: root is PARTUUID=1\r\nnyx-demo: userland reached after 1 s\r\n\
                    nyx-demo: self-check passed\r\nbye\r\n";
        let console = console(text);
        assert_eq!(console.out, text.as_bytes());
        assert_eq!(console.reached.len(), 3);
        console.verdict().unwrap();
        let mut stages = Stages::new();
        console.report(&mut stages);
        assert!(stages.table().contains("guest: power-off"));
    }

    #[test]
    fn a_failed_or_missing_check_is_no_success() {
        let failed = console("nyx-demo: self-check failed: only 1 of 2 cpus are online\r\n");
        assert!(
            failed
                .verdict()
                .unwrap_err()
                .to_string()
                .ends_with("cpus are online")
        );
        let cut = console("nyx-demo: userland reached\r\nnyx-demo: self-check passed");
        assert!(cut.verdict().is_err(), "the line has no end yet");
    }
}
