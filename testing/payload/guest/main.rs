//! A bare-metal x86-64 guest that tests and measures the machine it runs on.
//!
//! It is entered through the PVH note, leaves ring 0 after some twenty instructions and does all its
//! work in ring 3, where the TSS lets it use every port and the page tables every address: on a
//! software KVM ring 3 runs at full speed, ring 0 does not.
//!
//! The command line says what to run: `test=NAME,...` (`tests/mod.rs`), `bench=NAME:COUNT,...`
//! (`bench.rs`), `run=NAME` (`endless.rs`), `then=HOW` (`ending.rs`). What came out is told in lines
//! on a serial port (`out.rs`).
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn, unused_must_use)]
#![allow(
    clippy::deref_addrof,
    clippy::mut_from_ref,
    reason = "boot-time statics and memory shared with devices are reached through raw pointers"
)]
#![allow(
    dead_code,
    reason = "a driver names the registers that it does not use, too"
)]

mod acpi;
mod apic;
mod bench;
mod boot;
mod cmdline;
mod cpu;
mod ending;
mod endless;
mod mem;
mod out;
mod pci;
mod smp;
mod tests;
mod time;
mod virtio;

use boot::StartInfo;

/// Where ring 3 begins, on the first CPU.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(start_info: *const StartInfo) -> ! {
    boot::init(start_info);
    tests::run();
    bench::run();
    endless::run();
    ending::end()
}

#[panic_handler]
fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
    out::line(format_args!("fail payload: {panic}"));
    ending::broken()
}
