//! A bare-metal x86-64 guest that tests and measures the machine it runs on.
//!
//! It is entered through the PVH note, leaves ring 0 after some twenty instructions and does all its
//! work in ring 3, where the TSS lets it use every port and the page tables every address: on a
//! software KVM ring 3 runs at full speed, ring 0 does not.
//!
//! The command line says what to run (`cmdline.rs`), lines on a serial port what came out (`out.rs`).
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]
// A driver names the registers that it does not use too.
#![allow(dead_code)]

mod acpi;
mod apic;
mod boot;
mod cmdline;
mod cpu;
mod mem;
mod out;
mod pci;
mod smp;
mod time;

use boot::StartInfo;

/// Where ring 3 begins, on the first CPU.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(start_info: *const StartInfo) -> ! {
    boot::init(start_info);
    out::line(format_args!("hello"));
    out::line(format_args!("cr {:x?}", cpu::control_registers()));
    out::line(format_args!("rdmsr {:x?} {:x?}", cpu::rdmsr(0xc0000080), cpu::rdmsr(0x12345)));
    let t = cpu::tsc();
    for _ in 0..100 { let _ = cpu::ring0(cpu::r0_nop, Default::default()); }
    out::bench("gate", 100, cpu::tsc()-t);
    let t = cpu::tsc();
    for _ in 0..1000 { cpu::outb(0x80, 1); }
    out::bench("out", 1000, cpu::tsc()-t);
    apic::enable();
    out::line(format_args!("apic id {} version {:x}", apic::id(), cpu::read32(apic::LAPIC + 0x30)));
    cpu::irq_on();
    apic::send(apic::id(), 0x4060);
    let ok = time::until(1000_000_000, || cpu::taken(0x60) == 1);
    out::line(format_args!("ipi {ok}"));
    cpu::irq_off();
    apic::send(apic::id(), 0x4060);
    let ok = time::until(100_000_000, || cpu::taken(0x60) == 2);
    out::line(format_args!("ipi while off {ok}"));
    cpu::wait_for_interrupt();
    out::line(format_args!("ipi after wait {}", cpu::taken(0x60)));
    let t = cpu::tsc();
    let n = smp::start();
    out::line(format_args!("smp {n:?} {}", cpu::tsc() - t));
    fn work(cpu: usize) { out::line(format_args!("on {cpu}")); }
    out::line(format_args!("{}", smp::run(work, 1_000_000_000)));
    out::end();
    cpu::outb(0xf4, 0);
    loop {
        cpu::ring0_halt();
    }
}

#[panic_handler]
fn panic(panic: &core::panic::PanicInfo) -> ! {
    out::line(format_args!("fail payload: {panic}"));
    out::end();
    cpu::outb(0xf4, 1);
    loop {
        core::hint::spin_loop();
    }
}
