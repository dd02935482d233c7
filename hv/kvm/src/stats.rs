//! What KVM itself counts of a vCPU (Linux, Documentation/virt/kvm/api.rst, 4.131 KVM_GET_STATS_FD).

use crate::ioctl;
use nyx_inspect::{About, Inspect, Leaf, Visitor};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// A count that is shown: KVM's name, its name in the tree, and what is said of it.
struct Shown {
    kernel: &'static str,
    name: &'static str,
    about: About,
    leaf: fn(u64) -> Leaf,
}

const fn event(kernel: &'static str, labels: &'static [(&'static str, &'static str)]) -> Shown {
    Shown {
        kernel,
        name: kernel,
        about: About::metric(
            "kvm_events",
            "Events that KVM counts of a vCPU; exits among them are in the total of nyx_kvm_exits_total.",
        )
        .labels(labels),
        leaf: Leaf::Count,
    }
}

const SHOWN: &[Shown] = &[
    Shown {
        kernel: "exits",
        name: "exits",
        about: About::metric(
            "kvm_exits",
            "Exits of the guest to KVM, also those that the kernel served by itself.",
        ),
        leaf: Leaf::Count,
    },
    event("io_exits", &[("event", "pio_exit")]),
    event("mmio_exits", &[("event", "mmio_exit")]),
    event("halt_exits", &[("event", "halt_exit")]),
    event("irq_exits", &[("event", "host_interrupt_exit")]),
    event("irq_window_exits", &[("event", "interrupt_window_exit")]),
    event("signal_exits", &[("event", "signal_exit")]),
    event("hypercalls", &[("event", "hypercall")]),
    event("insn_emulation", &[("event", "emulated_instruction")]),
    event("pf_taken", &[("event", "page_fault")]),
    event("tlb_flush", &[("event", "tlb_flush")]),
    event("nmi_injections", &[("event", "nmi_injection")]),
    Shown {
        kernel: "irq_injections",
        name: "irq_injections",
        about: About::metric(
            "kvm_interrupt_injections",
            "Interrupts that KVM injected into a vCPU.",
        ),
        leaf: Leaf::Count,
    },
    Shown {
        kernel: "halt_wait_ns",
        name: "halt_wait",
        about: About::metric("kvm_halted", "Time that a vCPU waited halted."),
        leaf: Leaf::Time,
    },
];

/// Bytes of the header and of a descriptor without its name.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// Most descriptors looked at, and the longest name: several times what any kernel has.
const MOST: usize = 1024;
const LONGEST: usize = 256;

/// Statistics of one vCPU. Reading them disturbs nobody.
pub(crate) struct Statistics {
    file: File,
    /// Offsets in the file of what is shown, by index of [`SHOWN`]; read when first needed.
    offsets: OnceLock<Vec<(usize, u64)>>,
}

impl Statistics {
    /// Of the vCPU at `fd`; only on the thread that runs it, since KVM waits for it otherwise.
    pub(crate) fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            file: ioctl::get_stats_fd(fd)?.into(),
            offsets: OnceLock::new(),
        })
    }

    fn offsets(&self) -> &[(usize, u64)] {
        self.offsets.get_or_init(|| {
            // A kernel that describes them in another way is one that tells nothing.
            read_offsets(&self.file).unwrap_or_default()
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn read_offsets(file: &File) -> Option<Vec<(usize, u64)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    // struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    let name_size = word(&header, 4)? as usize;
    let count = word(&header, 8)? as usize;
    let (descriptors, data) = (word(&header, 16)?, word(&header, 20)?);
    if name_size > LONGEST || count > MOST {
        return None;
    }
    let mut bytes = vec![0; (DESCRIPTOR + name_size) * count];
    file.read_exact_at(&mut bytes, descriptors.into()).ok()?;
    let mut offsets = Vec::with_capacity(SHOWN.len());
    for descriptor in bytes.chunks_exact(DESCRIPTOR + name_size) {
        // struct kvm_stats_desc: flags, exponent (16 bits), size (16 bits), offset, bucket_size, name.
        let name = descriptor.get(DESCRIPTOR..)?.split(|b| *b == 0).next()?;
        let shown = SHOWN.iter().position(|s| s.kernel.as_bytes() == name);
        if let Some(shown) = shown {
            let offset = u64::from(data) + u64::from(word(descriptor, 8)?);
            offsets.push((shown, offset));
        }
    }
    offsets.sort_unstable();
    Some(offsets)
}

impl Inspect for Statistics {
    fn inspect(&self, v: &mut dyn Visitor) {
        for (index, offset) in self.offsets() {
            let mut value = [0; 8];
            if let Some(shown) = SHOWN.get(*index)
                && self.file.read_exact_at(&mut value, *offset).is_ok()
            {
                v.about(&shown.about);
                v.leaf(shown.name, (shown.leaf)(u64::from_ne_bytes(value)));
            }
        }
    }
}
