//! Boots tests in a lab.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nyx_harness::guests;
use nyx_harness::lab::{Ending, Lab, LabCommand, Session};
use nyx_harness::tool::Tool;
use nyx_harness::{initramfs, userland, workspace};

use crate::report::Report;
use crate::script::{GuestTest, Initrd, guest_script};

/// How long one test may take, preparations included.
const TIMEOUT: Duration = Duration::from_secs(240);

/// What a kernel says, the lab's or a guest's, when the lab's emulator has let an interrupt through where AMD64
/// holds it back: between a guest's exit and the end of its hypervisor's switch back (APM volume 2, section 15.17),
/// while GS is still the other kernel's. QEMU 10.0 does so with several processors, in one boot of some fifty, and
/// whichever VMM runs in the lab.
const EMULATOR_FAULTS: &[&str] = &[
    "stack guard page was hit",
    "address: 00000000000008e0",
    "gave up (triple fault)",
    // A kernel whose GS is another's may also just stop. What hangs by itself hangs again.
    "did not end in time",
    "nyx ran longer than",
];

/// Where the masters of the Debian disks are in the lab's memory.
const DEBIAN: &str = "/dev/shm/debian.ext4";
const DEBIAN_GPT: &str = "/dev/shm/debian-gpt.img";

/// A lab with everything that guests need.
#[derive(Debug)]
pub struct Ground {
    session: Session,
    nyx: PathBuf,
    script: String,
}

impl Ground {
    /// Boots a lab. `tests` are all tests there are, whose guest halves share one initramfs.
    pub fn new(tests: &[&GuestTest]) -> Result<Self> {
        Ok(Self {
            session: boot(&Lab::default())?,
            nyx: nyx()?,
            script: guest_script(tests),
        })
    }

    /// Runs one test.
    pub fn run(&mut self, test: &GuestTest) -> Result<Report> {
        let kernel = guests::kernel(test.flavour)?;
        let initrd = match test.initrd {
            Initrd::Checks => Some(initramfs::guest(&kernel, Some(&self.script))?),
            Initrd::Absent => None,
            Initrd::Made(make) => Some(make(&kernel)?),
        };
        let text = |path: &Path| {
            path.to_str()
                .map(str::to_owned)
                .context("a path is no text")
        };
        let initrd = initrd.as_deref().map(text).transpose()?;
        let script = test.host_script(&text(&self.nyx)?, &kernel, initrd.as_deref());
        let mut command = LabCommand::script(&script).within(TIMEOUT);
        command.env = vec![
            ("DEBIAN".into(), DEBIAN.into()),
            ("DEBIAN_GPT".into(), DEBIAN_GPT.into()),
        ];
        let output = self.session.run(&command)?;
        let mut said = output.text();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        if output.ending == Ending::TimedOut {
            bail!("{} did not end in time; it said:\n{said}", test.name);
        }
        Ok(Report::new(test, said, output.took))
    }

    /// Runs tests one after the other, prints what came of each, and says which failed.
    pub fn run_all(self, tests: &[&GuestTest]) -> Result<()> {
        self.run_judged(tests, |_, _| Ok(()))
    }

    /// Like [`Self::run_all`], with checks that `judge` adds to each report.
    pub fn run_judged(
        mut self,
        tests: &[&GuestTest],
        judge: impl Fn(&GuestTest, &mut Report) -> Result<()>,
    ) -> Result<()> {
        let mut bad = Vec::new();
        for test in tests {
            let run = |ground: &mut Self| {
                let mut report = ground.run(test)?;
                judge(test, &mut report)?;
                Ok(report)
            };
            let mut result = run(&mut self);
            if let Some(fault) = emulator_fault(test, &result) {
                println!(
                    "{}: \"{fault}\": the emulator's fault; again in another lab",
                    test.name
                );
                // The fault needs several processors.
                self.session = boot(&Lab {
                    cpus: 1,
                    ..Lab::default()
                })?;
                result = run(&mut self);
            }
            let report = result?;
            print!("{}", report.text());
            if !report.is_good() {
                bad.push(report.name);
            }
        }
        self.session.end()?;
        if !bad.is_empty() {
            bail!("failed: {}", bad.join(", "));
        }
        Ok(())
    }
}

/// The sign of the emulator's fault in a result that is not good, if there is one.
fn emulator_fault(test: &GuestTest, result: &Result<Report>) -> Option<&'static str> {
    let said = match result {
        // The code of a triple fault that the test is about.
        Ok(report) if report.is_good() || test.exit == 4 => return None,
        Ok(report) => report.output.clone(),
        Err(error) => format!("{error:#}"),
    };
    EMULATOR_FAULTS
        .iter()
        .find(|fault| said.contains(**fault))
        .copied()
}

/// Boots a lab and puts the masters of the disks into its memory.
fn boot(lab: &Lab) -> Result<Session> {
    let mut session = lab.boot()?;
    let images = userland::userland()?;
    for (from, to) in [(images.whole_disk, DEBIAN), (images.gpt_disk, DEBIAN_GPT)] {
        let copy = userland::copy_script(&from, Path::new(to))?;
        session.run(&LabCommand::script(&copy))?.success()?;
    }
    Ok(session)
}

/// The `nyx` to test: `$NYX_BIN`, as `cargo xtask test` sets it, or one built now.
fn nyx() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NYX_BIN") {
        return Ok(std::path::absolute(path)?);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo)
        .args(["build", "--release", "--package", "nyx-cli", "--bin", "nyx"])
        .folder(workspace::root())
        .output()?;
    Ok(workspace::target_folder().join("release/nyx"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulators_faults_are_forgiven_once() {
        let report = |said: &str| {
            Ok(Report::new(
                &GuestTest::NOTHING,
                said.into(),
                Duration::ZERO,
            ))
        };
        let fault = |result| emulator_fault(&GuestTest::NOTHING, &result);
        assert_eq!(
            fault(report("check ok: exit code\ngave up (triple fault)")),
            None
        );
        assert_eq!(fault(report("check failed: exit code: no")), None);
        assert_eq!(
            fault(report("nyx: the guest's CPU 1 gave up (triple fault); the")),
            Some("gave up (triple fault)")
        );
        let died = Err(anyhow::anyhow!("BUG: TASK stack guard page was hit at").context("ended"));
        assert!(fault(died).is_some());
        let stuck = Err(anyhow::anyhow!("boot did not end in time; it said:\n"));
        assert!(fault(stuck).is_some());
        assert_eq!(fault(Err(anyhow::anyhow!("no such lab"))), None);
        let expected = GuestTest {
            exit: 4,
            ..GuestTest::NOTHING
        };
        assert_eq!(
            emulator_fault(&expected, &report("gave up (triple fault)")),
            None
        );
    }
}
