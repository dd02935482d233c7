//! The hypervisor seam: virtual machines, vCPUs and the nine exits.
//!
//! The seam exists so that the vCPU loop and recovery can be tested with a scripted vCPU; KVM is the
//! only hypervisor behind it. Building order matters, and the types enforce it: memory is
//! registered while the machine is a [`Vm`] under construction, before [`Vm::power_interrupts`]
//! makes the interrupt controllers (a memory slot registered after them costs milliseconds), and
//! vCPUs come last.
#![forbid(unsafe_code)]

mod debug;

pub use debug::{
    Activity, DebugControl, DebugStop, FpuRegisters, HARDWARE_BREAKPOINTS, HardwareBreakpoint,
    Registers, Table, VcpuDebug, WatchAccess,
};

use nyx_device::{Doorbells, MsiSink};
use nyx_inspect::Inspect;
use nyx_memory::{DirtySource, RamObserver};
use nyx_state::{Blob, RestoreError, SaveError};
use std::sync::Arc;

/// The hypervisor failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct HvError {
    /// What was asked of it: `KVM_CREATE_VM`.
    pub operation: &'static str,
    /// The kernel's answer.
    pub source: std::io::Error,
}

/// How many CPUs there are, and how they are grouped. APIC ids follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all; `sockets * cores * threads` of it.
    pub cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Topology {
    /// One socket of single-threaded cores.
    pub const fn flat(cpus: u32) -> Self {
        Self {
            cpus,
            sockets: 1,
            cores: cpus,
            threads: 1,
        }
    }

    /// The x2APIC id of vCPU `index`: thread, core and socket each in a field as wide as its count
    /// needs (Intel SDM vol. 3 §9.9.1).
    pub const fn apic_id(self, index: u32) -> u32 {
        let threads = if self.threads == 0 { 1 } else { self.threads };
        let cores = if self.cores == 0 { 1 } else { self.cores };
        let thread = index % threads;
        let core = index / threads % cores;
        let socket = index / threads / cores;
        let thread_bits = threads.next_power_of_two().trailing_zeros();
        let core_bits = cores.next_power_of_two().trailing_zeros();
        socket << (core_bits + thread_bits) | core << thread_bits | thread
    }
}

/// Offset of a segment descriptor's fields, as the CPU caches them (Intel SDM vol. 3 §3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type field (4 bits).
    pub kind: u8,
    /// Code or data rather than system.
    pub s: bool,
    /// Privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code.
    pub l: bool,
    /// 32-bit default.
    pub db: bool,
    /// Limit in pages.
    pub g: bool,
}

/// Where a vCPU begins, for a direct kernel boot. What is not named keeps its reset value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryState {
    /// General registers.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// PVH: physical address of `hvm_start_info`.
    pub rbx: u64,
    /// Linux 64-bit boot: physical address of `boot_params`.
    pub rsi: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// GDT base and limit.
    pub gdt: (u64, u16),
    /// IDT base and limit.
    pub idt: (u64, u16),
}

/// A hypervisor on this host.
pub trait Hypervisor: Send + Sync {
    /// Most vCPUs one VM can have.
    fn max_vcpus(&self) -> u32;
    /// Physical address bits offered to the guest.
    fn physical_address_bits(&self) -> u8;
    /// Makes an empty VM.
    fn create_vm(&self, topology: Topology) -> Result<Box<dyn Vm>, HvError>;
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// Subscribes to guest RAM; register it before [`Vm::power_interrupts`].
    fn ram_observer(&self) -> Box<dyn RamObserver>;
    /// Makes the interrupt controllers that live in the kernel: one local APIC per vCPU, with the
    /// I/O APIC's `pins` left to user space.
    fn power_interrupts(&self, pins: u32) -> Result<(), HvError>;
    /// Makes vCPU `index`. Each is made once, after [`Vm::power_interrupts`].
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HvError>;
    /// Delivers messages to the local APICs.
    fn msi(&self) -> Arc<dyn MsiSink>;
    /// Tells the kernel which I/O APIC messages need an end-of-interrupt exit.
    fn ioapic_routes(&self) -> Arc<dyn IoapicRoutes>;
    /// Binds doorbells.
    fn doorbells(&self) -> Arc<dyn Doorbells>;
    /// The kernel's dirty log.
    fn dirty_source(&self) -> Box<dyn DirtySource>;
    /// State of the VM as a whole (clock), as a blob.
    fn save(&self) -> Result<Blob, SaveError>;
    /// Re-applies it.
    fn restore(&self, blob: &Blob) -> Result<(), RestoreError>;
}

/// Keeps the kernel informed of the I/O APIC's redirection table (split irqchip).
pub trait IoapicRoutes: Send + Sync {
    /// The messages of all pins; `None` for a masked or edge-triggered one that needs no exit. A pin
    /// whose interrupt is in service (remote IRR) keeps its message even while masked: without it
    /// the end of that interrupt would not be heard.
    fn set(&self, routes: &[Option<nyx_device::Msi>]);
}

/// Direction of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest reads.
    In,
    /// The guest writes.
    Out,
}

/// Why a vCPU left the guest.
#[derive(Debug)]
pub enum Exit<'v> {
    /// Port access: `data` holds the elements of `width` bytes each, all at `port` (string I/O has
    /// several). For [`Direction::In`] fill it before running again.
    Pio {
        /// I/O port.
        port: u16,
        /// Bytes of one element: 1, 2 or 4.
        width: u8,
        /// Who gives.
        direction: Direction,
        /// The elements.
        data: &'v mut [u8],
    },
    /// Access to an address that is not RAM, of 1 to 8 bytes. For a read fill `data` before running
    /// again.
    Mmio {
        /// Guest-physical address.
        address: u64,
        /// Whether the guest writes.
        write: bool,
        /// The bytes.
        data: &'v mut [u8],
    },
    /// The local APIC saw the end of an interrupt that the user-space I/O APIC asked to hear of.
    EndOfInterrupt {
        /// Vector.
        vector: u8,
    },
    /// The vCPU was kicked, or a signal arrived: look at the commands.
    Interrupted,
    /// HLT with nobody in the kernel to wait for interrupts.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The guest asks for something through the hypervisor's own interface (reset, crash).
    System(SystemEvent),
    /// A debug event: breakpoint or single step. The vCPU is at an instruction boundary.
    Debug(DebugStop),
    /// KVM could not go on.
    Broken(Broken),
}

/// See [`Exit::System`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// Power off.
    Shutdown,
    /// Reset.
    Reset,
    /// The guest crashed.
    Crash,
    /// One that has no name here.
    Other(u32),
}

/// Why KVM could not go on, with its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// `KVM_EXIT_FAIL_ENTRY`: the hardware refused the guest state.
    FailEntry {
        /// Vendor's reason code.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// `KVM_EXIT_INTERNAL_ERROR`.
    Internal {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// The data words KVM gave.
        evidence: Vec<u64>,
    },
    /// An access to guest memory that the host could not satisfy.
    MemoryFault {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// An exit reason without a meaning here.
    Unknown {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FailEntry { reason, cpu } => {
                write!(
                    f,
                    "the CPU refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
                )
            }
            Self::Internal { suberror, evidence } => {
                let name = match suberror {
                    1 => "KVM could not emulate an instruction",
                    2 => "simultaneous exceptions",
                    3 => "an event could not be delivered",
                    4 => "an unexpected exit reason",
                    _ => "internal error",
                };
                write!(
                    f,
                    "{name} (KVM internal error {suberror}, evidence {evidence:x?})"
                )
            }
            Self::MemoryFault { address, len } => {
                write!(
                    f,
                    "the host cannot provide {len} bytes of guest memory at {address:#x}"
                )
            }
            Self::Unknown { reason } => write!(f, "unknown KVM exit reason {reason}"),
        }
    }
}

/// Makes a vCPU leave the guest soon, from any thread.
pub trait Kick: Send + Sync {
    /// The current or the next [`Vcpu::run`] returns [`Exit::Interrupted`].
    fn kick(&self);
}

/// A virtual CPU, used by one thread.
pub trait Vcpu: Send {
    /// Runs the guest until it needs something. Completes the previous exit first.
    fn run(&mut self) -> Result<Exit<'_>, HvError>;
    /// Completes a half-done exit without executing another instruction, so that the registers
    /// describe an instruction boundary. An instruction that makes several accesses (a string move,
    /// an operand across two pages) needs the next one served first: `Some` is that exit; serve it
    /// and settle again. `None` means settled.
    fn settle(&mut self) -> Result<Option<Exit<'_>>, HvError>;
    /// Kicks this vCPU. Call on the thread that will run it.
    fn kick_handle(&mut self) -> Result<Arc<dyn Kick>, HvError>;
    /// Sets the registers for a direct kernel boot, on a vCPU in its reset state.
    fn set_entry(&mut self, entry: &EntryState) -> Result<(), HvError>;
    /// Puts the vCPU back into its power-on state.
    fn reset(&mut self) -> Result<(), HvError>;
    /// Captures all state. Only when settled.
    fn save(&mut self) -> Result<Blob, SaveError>;
    /// Re-applies it.
    fn restore(&mut self, blob: &Blob) -> Result<(), RestoreError>;
    /// Injects a non-maskable interrupt.
    fn inject_nmi(&mut self) -> Result<(), HvError>;
    /// Tells the guest that its time stood still, so that its watchdogs do not take the pause for a hang. Before
    /// the next run; a guest that does not listen is none the wiser.
    fn note_pause(&mut self) {}
    /// The instruction pointer, for people.
    fn program_counter(&mut self) -> Result<u64, HvError>;
    /// What the hypervisor itself counts of this vCPU, to be read by any thread while it runs; `None`
    /// where it tells nothing. Call on the thread that will run it, and drop it before the vCPU.
    fn statistics(&mut self) -> Option<Box<dyn Inspect + Send + Sync>> {
        None
    }
    /// The vCPU under a debugger; `None` where the hypervisor has no such thing. Only when settled.
    fn debug(&mut self) -> Option<&mut dyn VcpuDebug> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_ids_have_a_field_per_level() {
        let t = Topology {
            cpus: 12,
            sockets: 2,
            cores: 3,
            threads: 2,
        };
        let ids: Vec<_> = (0..12).map(|i| t.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(Topology::flat(300).apic_id(299), 299);
    }
}
