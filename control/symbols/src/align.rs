//! KASLR: how far the kernel in the guest lies from where its symbols say.

use crate::memory::{Cpu, GuestMemory, KERNEL_IMAGE, u16_at, u32_at};
use crate::table::Symbols;

/// The kernel moves by multiples of this (Linux, `CONFIG_PHYSICAL_ALIGN`, 2 MiB at least).
const STEP: u64 = 2 << 20;

/// Entries of the interrupt descriptor table whose handlers have had these names, by vector.
const HANDLERS: [(u64, &[&str]); 3] = [
    (14, &["asm_exc_page_fault", "page_fault"]),
    (13, &["asm_exc_general_protection", "general_protection"]),
    (0, &["asm_exc_divide_error", "divide_error"]),
];

impl Symbols {
    /// Finds out by how much KASLR has moved the kernel, from where it takes system calls and
    /// exceptions, and looks symbols up accordingly from then on. `None`: the guest is no Linux that
    /// these symbols belong to, or it has not got that far.
    pub fn align(&mut self, memory: &mut impl GuestMemory, cpus: &[Cpu]) -> Option<u64> {
        self.slide = 0;
        let by_call = cpus
            .iter()
            .find_map(|cpu| self.distance("entry_SYSCALL_64", cpu.lstar));
        let slide = by_call.or_else(|| {
            cpus.iter().find_map(|cpu| {
                HANDLERS.iter().find_map(|(vector, names)| {
                    let handler = gate(memory, cpu, *vector)?;
                    names.iter().find_map(|name| self.distance(name, handler))
                })
            })
        })?;
        self.slide = slide;
        Some(slide)
    }

    fn distance(&self, name: &str, found: u64) -> Option<u64> {
        let known = self.address_of(name)?;
        (KERNEL_IMAGE.contains(&known) && KERNEL_IMAGE.contains(&found)).then_some(())?;
        let slide = found.wrapping_sub(known);
        (slide % STEP == 0).then_some(slide)
    }
}

/// Where the handler of `vector` begins (Intel SDM vol. 3 figure 6-8).
fn gate(memory: &mut impl GuestMemory, cpu: &Cpu, vector: u64) -> Option<u64> {
    let mut gate = [0; 16];
    let address = cpu.idt_base.checked_add(16 * vector)?;
    if cpu.idt_base == 0 || !memory.read(cpu.index, address, &mut gate) {
        return None;
    }
    let low = u64::from(u16_at(&gate, 0)?) | u64::from(u16_at(&gate, 6)?) << 16;
    Some(low | u64::from(u32_at(&gate, 8)?) << 32)
}
