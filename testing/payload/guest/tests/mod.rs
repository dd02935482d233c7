//! The tests that need no virtio device, and the table of all tests.

mod chipset;
mod machine;
mod pci;
mod serial;
mod smp;

use crate::cmdline;
use crate::out::{self, Test};
use crate::virtio::{blk, broken, console, net, rng, transport_tests, vsock};

type Body = fn(&mut Test);

/// Every test by name, in the order in which `test=all` runs them.
const TESTS: &[(&str, Body)] = &[
    ("handover", machine::handover),
    ("acpi", machine::acpi),
    ("memory", machine::memory),
    ("cpuid", machine::cpuid),
    ("msr", machine::msr),
    ("exceptions", machine::exceptions),
    ("lapic", machine::lapic),
    ("serial", serial::registers),
    ("serial-irq", serial::interrupts),
    ("ioapic", chipset::ioapic),
    ("rtc", chipset::rtc),
    ("rtc-time", chipset::rtc_time),
    ("i8042", chipset::i8042),
    ("pm", chipset::pm),
    ("pvpanic", chipset::pvpanic),
    ("ports", chipset::ports),
    ("string-io", chipset::string_io),
    ("unclaimed", chipset::unclaimed),
    ("windows", chipset::windows),
    ("pci", pci::enumerate),
    ("pci-config", pci::config_space),
    ("pci-bars", pci::bars),
    ("pci-msix", pci::msix_tables),
    ("pci-wild", pci::wild_writes),
    ("virtio", transport_tests::registers),
    ("virtio-blk", blk::basic),
    ("virtio-blk-negotiation", blk::negotiation),
    ("virtio-blk-queue-sizes", blk::queue_sizes),
    ("virtio-blk-multi-queue", blk::multi_queue),
    ("virtio-blk-reset", blk::reset),
    ("virtio-blk-msix", blk::msix),
    ("virtio-blk-wire", blk::wire),
    ("virtio-rng", rng::basic),
    ("virtio-console", console::basic),
    ("virtio-net", net::basic),
    ("virtio-vsock", vsock::basic),
    ("virtio-broken-rings", broken::rings),
    ("virtio-broken-all", broken::all_devices),
    ("smp", smp::all_cpus),
    ("smp-ipi", smp::interrupts),
    ("smp-ioapic", smp::pin_targets),
    ("smp-hammer", smp::hammer),
    ("smp-msix", blk::msix_targets),
    ("smp-virtio-blk", blk::multi_cpu),
];

/// Tests that run only when named: they need a state that an earlier boot made.
const NAMED: &[(&str, Body)] = &[
    ("initrd", machine::initrd),
    ("blk-fill", blk::fill),
    ("blk-verify", blk::verify),
];

/// Runs the tests that `test=` names.
pub fn run() {
    for list in cmdline::values("test") {
        for word in list.split(',').filter(|word| !word.is_empty()) {
            if word == "all" {
                let without = cmdline::value("without_tests").unwrap_or("");
                for (name, body) in TESTS
                    .iter()
                    .filter(|(name, _)| !without.split(',').any(|w| w == *name))
                {
                    body(&mut Test::new(name));
                }
            } else if let Some((name, body)) =
                TESTS.iter().chain(NAMED).find(|(name, _)| *name == word)
            {
                body(&mut Test::new(name));
            } else {
                out::line(format_args!("fail {word}: no such test"));
            }
        }
    }
}
