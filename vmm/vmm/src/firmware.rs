//! What firmware would have left in memory: ACPI and SMBIOS tables and the loaded kernel.

use nyx_acpi::{
    AcpiPlatform, BuildError as AcpiError, CpuEntry, Ecam, GpeBlock, IoapicEntry, NATIVE_CONTROL,
    PciRoot, PmBlock, Polarity, PrtEntry, ResetRegister, Scope, SourceOverride, Spcr, Trigger,
};
use nyx_boot::{
    BootPlanError, BootRequest, Initrd, Kernel, LoadError, MemoryKind, MemoryMap, MemoryMapError,
    MemoryRange, RamContent, SegmentRegister,
};
use nyx_device::{AnyKind, ConfigError, Fragment, Placement};
use nyx_hypervisor::{EntryState, Segment};
use nyx_memory::DmaSpace;
use nyx_plan::MachinePlan;
use nyx_smbios::{BuildError as SmbiosError, Identity, Processors, Smbios};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Firmware's part could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A device's part of the DSDT.
    #[error(transparent)]
    Device(#[from] ConfigError),
    /// The ACPI tables.
    #[error("ACPI tables: {0}")]
    Acpi(#[from] AcpiError),
    /// The SMBIOS tables.
    #[error("SMBIOS tables: {0}")]
    Smbios(#[from] SmbiosError),
    /// The tables outgrew the room planned for them.
    #[error("the {what} tables take {len} bytes, but {room} were planned; use fewer vCPUs")]
    Room {
        /// Which.
        what: &'static str,
        /// Bytes they take.
        len: u64,
        /// Bytes planned.
        room: u64,
    },
    /// The memory map.
    #[error("memory map: {0}")]
    Map(#[from] MemoryMapError),
    /// The kernel does not fit.
    #[error("boot: {0}")]
    Placement(#[from] BootPlanError),
    /// Reading the kernel or writing guest memory failed.
    #[error("boot: {0}")]
    Load(#[from] LoadError),
    /// Guest memory does not take the tables.
    #[error("cannot write tables to guest memory: {0}")]
    Write(String),
}

/// Everything firmware says about a machine: a pure function of its plan.
pub struct Tables {
    acpi: nyx_acpi::Tables,
    smbios: Smbios,
}

/// SLP_TYP of S5, as the power-management device understands it.
const S5: u8 = 5;
const PM_GPE_OFFSET: u16 = 0x20;
const PM_GPE_LEN: u8 = 8;

fn placement<'p>(plan: &'p MachinePlan, kind: &str) -> Option<&'p Placement> {
    plan.placements.iter().find(|p| p.kind == kind)
}

fn port(placement: &Placement, region: u8) -> Option<u16> {
    placement
        .windows
        .get(&region)
        .and_then(|base| u16::try_from(*base).ok())
}

fn platform(plan: &MachinePlan, kinds: &[&dyn AnyKind]) -> Result<AcpiPlatform, ConfigError> {
    let mut fragments = Vec::new();
    for p in &plan.placements {
        let Some(kind) = kinds.iter().find(|k| k.kind() == p.kind) else {
            continue;
        };
        for fragment in kind.acpi(p)? {
            fragments.push(match fragment {
                Fragment::SystemBus(aml) => nyx_acpi::Fragment {
                    scope: Scope::SystemBus,
                    aml,
                },
                Fragment::PciRoot(aml) => nyx_acpi::Fragment {
                    scope: Scope::Pci0,
                    aml,
                },
                Fragment::Events(aml) => nyx_acpi::Fragment {
                    scope: Scope::Gpe,
                    aml,
                },
            });
        }
    }
    let layout = &plan.layout;
    let pci = layout.ecam.is_some();
    let sci = placement(plan, "pm")
        .and_then(|p| p.irqs.get("sci"))
        .copied();
    let pm = placement(plan, "pm")
        .and_then(|p| port(p, 0))
        .zip(sci)
        .map(|(base, sci_gsi)| {
            let gpe0 = Some(GpeBlock {
                port: base + PM_GPE_OFFSET,
                len: PM_GPE_LEN,
            });
            PmBlock {
                base,
                sci_gsi,
                gpe0,
                s5_type: S5,
            }
        });
    let serial = plan.placements.iter().find(|p| p.kind == "serial");
    let spcr = serial.and_then(|p| {
        let gsi = *p.irqs.values().next()?;
        Some(Spcr {
            port: port(p, 0)?,
            gsi,
            baud: 115_200,
        })
    });
    let range = |r: nyx_plan::Range| r.base..r.end();
    Ok(AcpiPlatform {
        cpus: plan
            .cpus
            .iter()
            .map(|c| CpuEntry {
                apic_id: c.apic_id,
                processor_uid: c.index,
                enabled: true,
            })
            .collect(),
        ioapics: placement(plan, "ioapic")
            .and_then(|p| p.windows.values().next())
            .and_then(|base| u32::try_from(*base).ok())
            .map(|address| IoapicEntry {
                id: 0,
                address,
                gsi_base: 0,
            })
            .into_iter()
            .collect(),
        overrides: sci
            .and_then(|gsi| Some((gsi, u8::try_from(gsi).ok()?)))
            .map(|(gsi, isa_irq)| SourceOverride {
                isa_irq,
                gsi,
                polarity: Polarity::High,
                trigger: Trigger::Level,
            })
            .into_iter()
            .collect(),
        pm,
        // The host bridge resets through CF9; without PCI the keyboard controller does.
        reset: Some(if pci {
            ResetRegister {
                port: 0xcf9,
                value: 0x06,
            }
        } else {
            ResetRegister {
                port: 0x64,
                value: 0xfe,
            }
        }),
        ecam: layout.ecam.map(|r| Ecam {
            base: r.base,
            start_bus: 0,
            end_bus: 255,
        }),
        pci_root: pci.then(|| PciRoot {
            buses: 0..=255,
            io: vec![0x0000..=0x0cf7, 0x0d00..=0xffff],
            mmio32: range(layout.mmio32),
            mmio64: layout.mmio64.map(range),
            prt: plan
                .intx
                .iter()
                .map(|r| PrtEntry {
                    device: r.device,
                    pin: r.pin,
                    gsi: r.gsi,
                })
                .collect(),
            native_control: NATIVE_CONTROL,
        }),
        spcr,
        i8042: placement(plan, "i8042").is_some(),
        rtc: placement(plan, "rtc").is_some(),
        fragments,
        ..AcpiPlatform::default()
    })
}

fn identity(plan: &MachinePlan) -> Identity {
    let count = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Identity {
        uuid: uuid(&plan.name),
        serial: plan.name.clone(),
        processors: Processors {
            sockets: count(plan.topology.sockets).min(nyx_smbios::MAX_SOCKETS),
            cores: count(plan.topology.cores),
            threads: count(plan.topology.threads),
            ..Processors::default()
        },
        memory: plan.layout.ram.iter().map(|r| r.base..r.end()).collect(),
        ..Identity::default()
    }
}

/// A stable UUID from the machine's name (RFC 9562 version 8: custom).
fn uuid(name: &str) -> [u8; 16] {
    let hash = |basis: u64| {
        name.bytes().fold(basis, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    };
    let bits =
        u128::from(hash(0xcbf2_9ce4_8422_2325)) << 64 | u128::from(hash(0x6c62_272e_07bb_0142));
    let bits = bits & !(0xf << 76) | 8 << 76;
    let bits = bits & !(3 << 62) | 2 << 62;
    bits.to_be_bytes()
}

impl Tables {
    /// Builds the tables of `plan`.
    pub fn build(plan: &MachinePlan, kinds: &[&dyn AnyKind]) -> Result<Self, FirmwareError> {
        let acpi = nyx_acpi::build(&platform(plan, kinds)?, plan.layout.acpi.base)?;
        let smbios = nyx_smbios::build(&identity(plan), plan.layout.smbios.base)?;
        for (what, range, room) in [
            ("ACPI", acpi.range(), plan.layout.acpi),
            ("SMBIOS", smbios.range(), plan.layout.smbios),
        ] {
            let len = range.end - range.start;
            if range.end > room.end() {
                return Err(FirmwareError::Room {
                    what,
                    len,
                    room: room.len,
                });
            }
        }
        Ok(Self { acpi, smbios })
    }

    /// Every table: name, address, length.
    pub fn list(&self) -> Vec<(String, u64, u64)> {
        let mut list = vec![("RSDP".to_string(), self.acpi.range().start, 36)];
        list.extend(self.acpi.tables.iter().map(|t| {
            let signature = String::from_utf8_lossy(&t.signature).into_owned();
            (signature, t.address, t.bytes.len() as u64)
        }));
        let range = self.smbios.range();
        list.push(("SMBIOS".into(), range.start, range.end - range.start));
        list
    }

    /// The ACPI tables and their bytes, for tools.
    pub fn acpi(&self) -> &nyx_acpi::Tables {
        &self.acpi
    }

    pub(crate) fn boot_plan(
        &self,
        plan: &MachinePlan,
        kernel: &Kernel,
        initrd: Option<&Initrd>,
    ) -> Result<nyx_boot::BootPlan, FirmwareError> {
        let ranges = plan.layout.map.iter().map(|entry| MemoryRange {
            base: entry.range.base,
            len: entry.range.len,
            kind: match entry.kind {
                nyx_plan::MemoryKind::Ram => MemoryKind::Ram,
                nyx_plan::MemoryKind::Reserved => MemoryKind::Reserved,
                nyx_plan::MemoryKind::Acpi => MemoryKind::Acpi,
            },
        });
        let request = BootRequest {
            memory_map: MemoryMap::build(ranges.collect())?,
            command_line: &plan.boot.cmdline,
            initrd_len: initrd.map(Initrd::size),
            rsdp: Some(self.acpi.range().start),
        };
        Ok(nyx_boot::BootPlan::build(kernel, request)?)
    }

    /// Writes tables, kernel and initrd to guest memory.
    pub(crate) fn install(
        &self,
        ram: &DmaSpace,
        boot: &nyx_boot::BootPlan,
        kernel: &Kernel,
        initrd: Option<&Initrd>,
        content: RamContent,
    ) -> Result<(), FirmwareError> {
        let view = ram.view();
        let failed = |e: vm_memory::GuestMemoryError| FirmwareError::Write(e.to_string());
        for (address, bytes) in self.acpi.writes() {
            view.write_slice(bytes, GuestAddress(address))
                .map_err(failed)?;
        }
        let at = self.smbios.range().start;
        view.write_slice(&self.smbios.entry_point, GuestAddress(at))
            .map_err(failed)?;
        view.write_slice(&self.smbios.table, GuestAddress(self.smbios.table_address))
            .map_err(failed)?;
        let physical = view
            .physical_memory()
            .ok_or_else(|| FirmwareError::Write("it is translated".into()))?;
        boot.load(physical, kernel, initrd, content)?;
        Ok(())
    }
}

fn segment(s: &SegmentRegister) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        kind: s.type_,
        s: s.s,
        dpl: s.dpl,
        present: s.present,
        l: s.l,
        db: s.db,
        g: s.g,
    }
}

/// The register values of vCPU 0 in the hypervisor's terms.
pub(crate) fn entry_state(entry: &nyx_boot::CpuEntry) -> EntryState {
    EntryState {
        rip: entry.rip,
        rsp: entry.rsp,
        rbx: entry.rbx,
        rsi: entry.rsi,
        rflags: entry.rflags,
        cr0: entry.cr0,
        cr3: entry.cr3,
        cr4: entry.cr4,
        efer: entry.efer,
        cs: segment(&entry.cs),
        data: segment(&entry.data),
        tr: segment(&entry.tr),
        gdt: (entry.gdt.base, entry.gdt.limit),
        idt: (entry.idt.base, entry.idt.limit),
    }
}
