//! The VMMs that are compared, and how each is told to run the payload.

use std::ffi::OsString;
use std::path::PathBuf;

use nyx_harness::tool::Tool;

/// How a disk is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// What the VMM does by itself.
    Default,
    /// Threads that read and write.
    Threads,
    /// `io_uring`.
    IoUring,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Threads => "threads",
            Self::IoUring => "io_uring",
        }
    }
}

/// A disk of the guest.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    /// Past the page cache.
    pub(crate) is_direct: bool,
    pub(crate) engine: Engine,
}

/// What is on the program's standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Port 0xe9.
    DebugPort,
    /// COM1.
    Serial,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nyx,
    Qemu,
}

/// A VMM under measurement.
pub(crate) struct Vmm {
    kind: Kind,
    program: PathBuf,
}

impl Vmm {
    pub(crate) fn nyx(program: PathBuf) -> Self {
        let kind = Kind::Nyx;
        Self { kind, program }
    }

    pub(crate) fn qemu(program: PathBuf) -> Self {
        let kind = Kind::Qemu;
        Self { kind, program }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Nyx => "Nyx",
            Kind::Qemu => "QEMU microvm",
        }
    }

    /// Its version, as it says itself.
    pub(crate) fn version(&self) -> String {
        let said = Tool::new(&self.program).arg("--version").text();
        let said = said.unwrap_or_default();
        said.lines().next().unwrap_or("unknown").to_owned()
    }

    /// Engines worth comparing.
    pub(crate) fn engines(&self) -> &'static [Engine] {
        match self.kind {
            Kind::Nyx => &[Engine::Default, Engine::Threads, Engine::IoUring],
            Kind::Qemu => &[Engine::Threads, Engine::IoUring],
        }
    }

    /// Whether the thread with this name runs a vCPU.
    pub(crate) fn is_vcpu(&self, thread: &str) -> bool {
        match self.kind {
            Kind::Nyx => thread.starts_with("vcpu"),
            Kind::Qemu => thread.starts_with("CPU "),
        }
    }

    /// The command that runs the payload with one vCPU and 128 MiB.
    pub(crate) fn command(
        &self,
        cmdline: &nyx_payload::Command,
        output: Output,
        disk: Option<&Disk>,
    ) -> Tool {
        let arguments = match self.kind {
            Kind::Nyx => nyx_arguments(output, disk),
            Kind::Qemu => qemu_arguments(output, disk),
        };
        let append = match self.kind {
            Kind::Nyx => "--cmdline",
            Kind::Qemu => "-append",
        };
        Tool::new(&self.program)
            .args(arguments)
            .args([append, &cmdline.to_string()])
    }
}

fn nyx_arguments(output: Output, disk: Option<&Disk>) -> Vec<OsString> {
    let mut argv: Vec<OsString> = ["run", "--memory", "128M", "--kernel"]
        .map(Into::into)
        .into();
    argv.push(nyx_payload::elf_path().into());
    if output == Output::DebugPort {
        argv.extend(["--debug-console", "stdio"].map(Into::into));
    }
    if let Some(disk) = disk {
        let mut option = OsString::from("path=");
        option.push(&disk.path);
        if disk.is_direct {
            option.push(",direct");
        }
        match disk.engine {
            Engine::Default => {}
            Engine::Threads => option.push(",engine=threads"),
            Engine::IoUring => option.push(",engine=io_uring"),
        }
        argv.extend(["--disk".into(), option]);
    }
    argv
}

/// The lightest machine that QEMU has: no PCI, no legacy devices but one serial port.
fn qemu_arguments(output: Output, disk: Option<&Disk>) -> Vec<OsString> {
    let mut argv: Vec<OsString> = [
        "-name",
        "bench,debug-threads=on",
        "-machine",
        "microvm,isa-serial=on,rtc=off,pit=off,pic=off",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        "128",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-global",
        "virtio-mmio.force-legacy=false",
        "-kernel",
    ]
    .map(Into::into)
    .into();
    argv.push(nyx_payload::elf_path().into());
    match output {
        Output::Serial => argv.extend(["-serial", "stdio"].map(Into::into)),
        Output::DebugPort => argv.extend(
            [
                "-chardev",
                "stdio,id=debug",
                "-device",
                "isa-debugcon,iobase=0xe9,chardev=debug",
                "-serial",
                "null",
            ]
            .map(Into::into),
        ),
    }
    if let Some(disk) = disk {
        let mut node = OsString::from("file,node-name=disk,filename=");
        node.push(&disk.path);
        node.push(match disk.engine {
            Engine::IoUring => ",aio=io_uring",
            Engine::Default | Engine::Threads => ",aio=threads",
        });
        if disk.is_direct {
            node.push(",cache.direct=on");
        }
        argv.extend(["-object", "iothread,id=disk-thread", "-blockdev"].map(Into::into));
        argv.push(node);
        argv.extend(
            [
                "-device",
                "virtio-blk-device,drive=disk,iothread=disk-thread",
            ]
            .map(Into::into),
        );
    }
    argv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_carry_disk_and_payload() {
        let disk = Disk {
            path: "/d.img".into(),
            is_direct: true,
            engine: Engine::IoUring,
        };
        let words = |argv: Vec<OsString>| {
            let words: Vec<_> = argv.iter().map(|w| w.to_string_lossy()).collect();
            words.join(" ")
        };
        let nyx = words(nyx_arguments(Output::DebugPort, Some(&disk)));
        assert!(nyx.ends_with("--debug-console stdio --disk path=/d.img,direct,engine=io_uring"));
        let qemu = words(qemu_arguments(Output::Serial, Some(&disk)));
        assert!(qemu.contains("filename=/d.img,aio=io_uring,cache.direct=on"));
        assert!(qemu.contains("-serial stdio"));
        assert!(Vmm::nyx("nyx".into()).is_vcpu("vcpu0"));
        assert!(!Vmm::nyx("nyx".into()).is_vcpu("virtio-blk"));
        assert!(Vmm::qemu("q".into()).is_vcpu("CPU 0/KVM"));
    }
}
