//! Whether this host runs guest kernels natively: measured, not guessed.
//!
//! A KVM without hardware behind it (a software backend inside a cloud virtual machine, say) looks
//! like any other but emulates every guest instruction in ring 0. The CPU's flags do not tell; the
//! time of a few thousand instructions does.

use crate::{Kvm, OpenError};
use nyx_hypervisor::{EntryState, Exit, HvError, Hypervisor, Segment, Topology, Vcpu};
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
    /// Slower than this is emulation. A processor needs less than 1 ns, an emulated processor that
    /// runs KVM itself some ten; an instruction emulator needs a thousand and more.
    pub const NATIVE_BELOW_NANOSECONDS: f64 = 100.0;

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
const DONE: u16 = 0x80;

/// `mov ecx, count; again: dec ecx; jnz again; out 0x80, al`.
fn program(count: u32) -> [u8; 10] {
    let [a, b, c, d] = count.to_le_bytes();
    [0xb9, a, b, c, d, 0x49, 0x75, 0xfd, 0xe6, DONE as u8]
}

/// Flat 32-bit protected mode without paging: the simplest ring 0 in which no processor, however
/// old, needs KVM to emulate.
fn entry() -> EntryState {
    let flat = Segment {
        limit: 0xffff_ffff,
        kind: 3,
        s: true,
        present: true,
        db: true,
        g: true,
        ..Segment::default()
    };
    EntryState {
        rip: CODE,
        rflags: 2,
        cr0: 0x11, // protection on; ET reads as one
        cs: Segment { selector: 8, kind: 0xb, ..flat },
        data: Segment { selector: 16, ..flat },
        ..EntryState::default()
    }
}

/// Runs a few thousand ring-0 instructions in a scratch VM and times them: 20 ms or so under
/// emulation, microseconds on hardware.
pub fn measure_guest_kernel(kvm: &Kvm) -> Result<GuestKernelSpeed, ProbeError> {
    const FEW: u32 = 100;
    const MANY: u32 = 2_100;
    let extents = vec![Extent { base: GuestAddress(0), len: 0x4000 }];
    let mut memory = Memory::allocate(&RamConfig { extents, ..RamConfig::default() })?;
    let vm = kvm.create_vm(Topology::flat(1))?;
    memory.subscribe(vm.ram_observer())?;
    vm.power_interrupts(24)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut best = |count| -> Result<Duration, ProbeError> {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            best = best.min(time(&memory, vcpu.as_mut(), count)?);
        }
        Ok(best)
    };
    let (few, many) = (best(FEW)?, best(MANY)?);
    let instructions = f64::from(2 * (MANY - FEW));
    let nanoseconds = many.saturating_sub(few).as_nanos() as f64;
    Ok(GuestKernelSpeed { nanoseconds_per_instruction: nanoseconds / instructions })
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
