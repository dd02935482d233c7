//! Writes the guest's command line.

use std::fmt;

/// How the guest ends after the line `done` (`then=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// ACPI S5, as the FADT and `_S5_` say. The default.
    PowerOff,
    /// The FADT's reset register.
    Reset,
    /// The keyboard controller's reset command.
    ResetI8042,
    /// The reset control register at port 0xcf9.
    ResetCf9,
    /// An exception without an IDT.
    TripleFault,
    /// A panic of the guest itself, told to pvpanic.
    Panic,
    /// The event "panicked" at pvpanic's port.
    PvPanic,
    /// An endless loop in ring 3.
    Hang,
    /// HLT with interrupts off.
    Idle,
}

impl Ending {
    /// The word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reset => "reset",
            Self::ResetI8042 => "reset-i8042",
            Self::ResetCf9 => "reset-cf9",
            Self::TripleFault => "triple",
            Self::Panic => "panic",
            Self::PvPanic => "pvpanic",
            Self::Hang => "hang",
            Self::Idle => "idle",
        }
    }
}

/// A command line under construction.
#[derive(Clone, Debug, Default)]
pub struct Command {
    tests: Vec<String>,
    benches: Vec<String>,
    options: Vec<String>,
}

impl Command {
    /// Nothing to do but say `done` and power off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a test of [`crate::TESTS`], one of those that only run when named (`initrd`, `blk-fill`,
    /// `blk-verify`), or `all`.
    #[must_use]
    pub fn test(mut self, name: &str) -> Self {
        self.tests.push(name.to_owned());
        self
    }

    /// Runs a bench for `count` iterations.
    #[must_use]
    pub fn bench(mut self, name: &str, count: u64) -> Self {
        self.benches.push(format!("{name}:{count}"));
        self
    }

    /// Sets `key=value`. Numbers may be hexadecimal (`0x…`) and end in `K`, `M` or `G`.
    ///
    /// | key | meaning |
    /// |---|---|
    /// | `out=e9` | print on the debug port instead of COM1 |
    /// | `without_tests=a,b` | leave tests out of `test=all` |
    /// | `gentle=1` | leave out accesses that other VMMs are known to abort on |
    /// | `want_cpus=N`, `want_memory=BYTES` | what the firmware tables must add up to |
    /// | `initrd_len=`, `initrd_sum=` | length and sum of all bytes, for the test `initrd` |
    /// | `cpus=N` | start this many CPUs, ids from 0, also without a MADT; `x2apic=1` in x2APIC mode |
    /// | `hammer=N` | rounds of `smp-hammer` (500) |
    /// | `debugcon=1`, `ioapic_pins=N` | a machine that must have port 0xe9; one with other than 24 pins |
    /// | `unclaimed_mmio=ADDRESS` | memory that nobody claims (0xfed80000) |
    /// | `windows=BASE:LEN,…` | windows for the test `windows`; `windows_write=1` writes to them too |
    /// | `all_ports=1` | the test `ports` reads every port once |
    /// | `pci_mem=`, `pci_io=` | where BARs that are at zero are put (0xe8000000, 0xc000) |
    /// | `pci_free=` | a free place for a moved BAR (0xfd000000) |
    /// | `intx=GSI` | the pin of PCI wires, if the interrupt line registers do not say |
    /// | `virtio_mmio.device=SIZE@BASE:GSI` | as for Linux; without it the DSDT is searched |
    /// | `blk_base=`, `blk_sectors=` | the sectors that disk tests may overwrite (all) |
    /// | `blk_id=`, `blk_queues=` | the serial and the number of queues that disks must have |
    /// | `salt=N` | what `blk-fill` writes and `blk-verify` expects |
    /// | `net_frames=N`, `net_wait=MS` | frames to send (64); how long frames of type 0x88b5 are sent back (0) |
    /// | `vsock_port=`, `vsock_bytes=`, `vsock_cid=` | an echo service on the host (1024), how much to send, the id expected |
    /// | `vsock=refused` | nobody listens on the port |
    /// | `console=echo` | `virtio-console` echoes port 0 until `quit` |
    /// | `without=indirect,event-idx` | features that the disk benches do without |
    /// | `boots=N` | of endings that reset: the Nth boot powers off (if RAM or CMOS outlives a reset) |
    /// | `run=tick`, `tick_ms=`, `ticks=`, `hold=` | lines `tick N`, memory of `hold` bytes checked between |
    /// | `run=dirty`, `rate=`, `rounds=`, `hold=` | pages written per ms over `hold` bytes, checked each round |
    /// | `run=echo` | COM1 echoes in capitals until `quit` |
    #[must_use]
    pub fn option(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.options.push(format!("{key}={value}"));
        self
    }

    /// Ends in another way than by power-off.
    #[must_use]
    pub fn then(self, ending: Ending) -> Self {
        self.option("then", ending.word())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("test=", &self.tests, ","),
            ("bench=", &self.benches, ","),
            ("", &self.options, " "),
        ];
        let mut gap = "";
        for (key, words, between) in lists.into_iter().filter(|(_, words, _)| !words.is_empty()) {
            write!(f, "{gap}{key}{}", words.join(between))?;
            gap = " ";
        }
        Ok(())
    }
}
