//! The plan as text.

use crate::{MachinePlan, MemoryKind, Range};
use nyx_device::Space;
use nyx_spec::ByteSize;
use std::fmt;

/// A plan with what the firmware makes of it, for people.
pub struct Listing<'p> {
    /// The plan.
    pub plan: &'p MachinePlan,
    /// Tables: signature, address, length.
    pub tables: Vec<(String, u64, u64)>,
}

fn line(f: &mut fmt::Formatter<'_>, range: Range, what: &str) -> fmt::Result {
    let last = range.end().saturating_sub(1);
    writeln!(
        f,
        "  {:#014x}-{last:#014x} {:>9}  {what}",
        range.base,
        ByteSize(range.len).to_string()
    )
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan;
        let t = plan.topology;
        writeln!(f, "machine {}", plan.name)?;
        writeln!(
            f,
            "  {} vCPUs: {} sockets x {} cores x {} threads; APIC ids {} to {}",
            t.count,
            t.sockets,
            t.cores,
            t.threads,
            plan.cpus.first().map_or(0, |c| c.apic_id),
            plan.cpus.last().map_or(0, |c| c.apic_id),
        )?;
        let total = plan.layout.ram.iter().map(|r| r.len).sum();
        writeln!(f, "  {} of memory", ByteSize(total))?;
        writeln!(f, "\nmemory map for the guest")?;
        for entry in &plan.layout.map {
            let what = match entry.kind {
                MemoryKind::Ram => "RAM",
                MemoryKind::Reserved => "reserved",
                MemoryKind::Acpi => "ACPI tables",
            };
            line(f, entry.range, what)?;
        }
        writeln!(f, "\nwindows")?;
        if let Some(ecam) = plan.layout.ecam {
            line(f, ecam, "PCI configuration (ECAM)")?;
        }
        line(f, plan.layout.mmio32, "32-bit devices")?;
        if let Some(mmio64) = plan.layout.mmio64 {
            line(f, mmio64, "64-bit devices")?;
        }
        writeln!(f, "\ndevices")?;
        for p in &plan.placements {
            let slot = p.bdf.map_or("-".into(), |bdf| bdf.to_string());
            writeln!(f, "  {slot:<8} {:<14} {}", p.name, p.kind)?;
            for window in &p.demand.windows {
                let base = p.windows.get(&window.region).copied().unwrap_or(0);
                let last = base + window.len.saturating_sub(1);
                let space = match window.space {
                    Space::Pio => "ports",
                    Space::Mmio => "memory",
                };
                writeln!(f, "             {space} {base:#x}-{last:#x}")?;
            }
            for bar in p.demand.pci.iter().flat_map(|d| d.all_bars()) {
                let base = p.bars.get(&bar.index).copied().unwrap_or(0);
                let last = base + bar.len.saturating_sub(1);
                writeln!(f, "             BAR {} {base:#x}-{last:#x}", bar.index)?;
            }
            for (role, gsi) in &p.irqs {
                writeln!(f, "             {role}: interrupt {gsi}")?;
            }
            if let Some(n) = p
                .demand
                .pci
                .as_ref()
                .map(|d| d.msix_vectors)
                .filter(|n| *n != 0)
            {
                writeln!(f, "             {n} MSI-X vectors")?;
            }
            if let Some(at) = p.reserved_ram {
                writeln!(f, "             page at {at:#x}")?;
            }
        }
        writeln!(f, "\ntables")?;
        for (signature, address, len) in &self.tables {
            writeln!(f, "  {address:#014x} {len:>7} bytes  {signature}")?;
        }
        writeln!(f, "\nboot")?;
        writeln!(f, "  kernel  {}", plan.boot.kernel.display())?;
        if let Some(initrd) = &plan.boot.initrd {
            writeln!(f, "  initrd  {}", initrd.display())?;
        }
        writeln!(f, "  cmdline {}", plan.boot.cmdline)?;
        for note in &plan.boot.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
