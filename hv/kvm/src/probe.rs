//! Whether this host runs guest kernels natively: measured, not guessed.
//!
//! A KVM without hardware behind it (a software backend inside a cloud virtual machine, say) looks
//! like any other but emulates every guest instruction in ring 0. The CPU's flags do not tell; the
//! time of a few thousand instructions does.

use crate::{Kvm, OpenError};
use nyx_hypervisor::{
    DebugControl, EntryState, Exit, HvError, Hypervisor, Segment, Topology, Vcpu, Vm,
};
use nyx_memory::{AllocateError, Extent, Memory, RamConfig};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// How fast this host runs guest code in ring 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuestKernelSpeed {
    /// Nanoseconds for one instruction, the best of several runs, without the cost of an exit.
    pub nanoseconds_per_instruction: f64,
}

impl GuestKernelSpeed {
    /// Slower than this is emulation. For the simple instructions measured a processor needs less
    /// than 1 ns, an emulated processor that runs KVM itself a few, an instruction emulator some
    /// 300, and several times that for instructions that a kernel is full of.
    pub const NATIVE_BELOW_NANOSECONDS: f64 = 60.0;

    /// Whether guest kernels run at the processor's speed.
    pub fn is_native(&self) -> bool {
        self.nanoseconds_per_instruction < Self::NATIVE_BELOW_NANOSECONDS
    }
}

/// The measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory for the scratch VM.
    #[error("cannot allocate a scratch VM: {0}")]
    Memory(#[from] AllocateError),
    /// KVM refused a step.
    #[error("cannot run a scratch VM: {0}")]
    Hypervisor(#[from] HvError),
    /// The guest did something else than count.
    #[error("the scratch VM ended unexpectedly: {0}")]
    Unexpected(String),
}

const CODE: u64 = 0x1000;
/// One table of each upper level; the third maps the first 2 MiB to themselves.
const TABLES: [u64; 3] = [0x2000, 0x3000, 0x4000];
const DONE: u16 = 0x80;

/// `mov ecx, count; again: dec ecx; jnz again; out 0x80, al`.
fn program(count: u32) -> [u8; 11] {
    let [a, b, c, d] = count.to_le_bytes();
    [0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0xe6, DONE as u8]
}

/// Page table entries: present and writable, and a large page at the third level
/// (Intel SDM vol. 3 §4.5).
fn page_tables() -> [(u64, u64); 3] {
    let [top, middle, last] = TABLES;
    [(top, middle | 3), (middle, last | 3), (last, 1 << 7 | 3)]
}

/// 64-bit mode with paging, as kernels run: a software backend takes its usual way, and no
/// processor, however old, needs KVM to emulate.
fn entry() -> EntryState {
    let flat = Segment {
        limit: 0xffff_ffff,
        kind: 3,
        s: true,
        present: true,
        g: true,
        ..Segment::default()
    };
    EntryState {
        rip: CODE,
        rflags: 2,
        cr0: 1 << 31 | 0x11, // paging, protection; ET reads as one
        cr3: TABLES[0],
        cr4: 1 << 5,            // physical address extension
        efer: 1 << 10 | 1 << 8, // long mode, active
        cs: Segment {
            selector: 8,
            kind: 0xb,
            l: true,
            ..flat
        },
        data: Segment {
            selector: 16,
            db: true,
            ..flat
        },
        ..EntryState::default()
    }
}

/// A VM of one vCPU and a few pages.
struct Scratch {
    // Dropped in this order.
    vcpu: Box<dyn Vcpu>,
    vm: Box<dyn Vm>,
    memory: Memory,
}

impl Scratch {
    fn new(kvm: &Kvm) -> Result<Self, ProbeError> {
        let extents = vec![Extent {
            base: GuestAddress(0),
            len: 0x5000,
        }];
        let mut memory = Memory::allocate(&RamConfig {
            extents,
            ..RamConfig::default()
        })?;
        let vm = kvm.create_vm(Topology::flat(1))?;
        memory.subscribe(vm.ram_observer())?;
        vm.power_interrupts(24)?;
        let vcpu = vm.create_vcpu(0)?;
        for (at, entry) in page_tables() {
            memory
                .space()
                .view()
                .write_obj(entry, GuestAddress(at))
                .map_err(|e| ProbeError::Unexpected(e.to_string()))?;
        }
        Ok(Self { vcpu, vm, memory })
    }
}

/// Whether INT3 under guest debugging leaves the guest, as the interface says: a KVM that emulates guest
/// kernels, and one on a processor that is itself emulated, may give it to the guest instead.
pub(crate) fn stops_at_int3(kvm: &Kvm) -> Result<bool, ProbeError> {
    const INT3: u8 = 0xcc;
    let mut scratch = Scratch::new(kvm)?;
    scratch
        .memory
        .space()
        .view()
        .write_obj(INT3, GuestAddress(CODE))
        .map_err(|e| ProbeError::Unexpected(e.to_string()))?;
    scratch.vcpu.set_entry(&entry())?;
    let control = DebugControl {
        software: true,
        ..DebugControl::default()
    };
    match scratch.vcpu.debug() {
        Some(debug) => debug.control(&control)?,
        None => return Ok(false),
    }
    loop {
        match scratch.vcpu.run()? {
            Exit::Interrupted => {}
            // Without a table of handlers, an exception that the guest gets is a triple fault.
            exit => return Ok(matches!(exit, Exit::Debug(_))),
        }
    }
}

/// Runs a few thousand ring-0 instructions in a scratch VM and times them, millions where they are fast: some
/// milliseconds in all on hardware, 30 or so under emulation.
pub fn measure_guest_kernel(kvm: &Kvm) -> Result<GuestKernelSpeed, ProbeError> {
    const FEW: u32 = 100;
    const MANY: u32 = 2_100;
    const NATIVE_MANY: u32 = 1_000_100;
    let Scratch {
        mut vcpu,
        memory,
        vm: _vm,
    } = Scratch::new(kvm)?;
    let mut best = |count| -> Result<Duration, ProbeError> {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            best = best.min(time(&memory, vcpu.as_mut(), count)?);
        }
        Ok(best)
    };
    let few = best(FEW)?;
    let mut per_instruction = |count| -> Result<f64, ProbeError> {
        let instructions = f64::from(2 * (count - FEW));
        Ok(best(count)?.saturating_sub(few).as_nanos() as f64 / instructions)
    };
    let mut speed = GuestKernelSpeed {
        nanoseconds_per_instruction: per_instruction(MANY)?,
    };
    if speed.is_native() {
        // So few pass within the uncertainty of one exit; a number needs more.
        speed.nanoseconds_per_instruction = per_instruction(NATIVE_MANY)?;
    }
    Ok(speed)
}

fn time(memory: &Memory, vcpu: &mut dyn Vcpu, count: u32) -> Result<Duration, ProbeError> {
    let unexpected = |what: String| ProbeError::Unexpected(what);
    memory
        .space()
        .view()
        .write_slice(&program(count), GuestAddress(CODE))
        .map_err(|e| unexpected(e.to_string()))?;
    vcpu.set_entry(&entry())?;
    let begin = Instant::now();
    loop {
        match vcpu.run()? {
            Exit::Pio { port: DONE, .. } => break,
            Exit::Interrupted => {}
            other => return Err(unexpected(format!("{other:?}"))),
        }
    }
    let elapsed = begin.elapsed();
    // The output instruction is still half done; finish it before the registers are set again.
    while vcpu.settle()?.is_some() {}
    Ok(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_divides_processors_from_emulators() {
        let native = |nanoseconds_per_instruction| {
            GuestKernelSpeed {
                nanoseconds_per_instruction,
            }
            .is_native()
        };
        assert!(native(0.3) && native(20.0));
        assert!(!native(200.0) && !native(1600.0) && !native(f64::NAN));
    }
}
