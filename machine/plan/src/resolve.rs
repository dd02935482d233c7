//! Placing everything.

use crate::boot::{self, BootDisk, BootPlan};
use crate::layout::{self, Layout, Range};
use nyx_device::{
    AnyKind, Attach, BarSpace, Bdf, ConfigError, Demand, FunctionDemand, IrqDemand, Placement,
    Space,
};
use nyx_spec::{CpuSpec, HugePageSize, Transport, VmSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the host can do. Injected, so that planning is testable without a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Physical address width offered to the guest.
    pub physical_address_bits: u8,
    /// The hypervisor's limit.
    pub max_vcpus: u32,
}

/// One vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPlan {
    /// Its index.
    pub index: u32,
    /// Its local APIC's id.
    pub apic_id: u32,
}

/// How guest memory is backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamPlan {
    /// Huge pages behind it.
    pub huge_pages: HugePageSize,
    /// Shared with other processes.
    pub shared: bool,
    /// Committed before the guest starts.
    pub prefault: bool,
}

/// Where a PCI interrupt pin ends: an entry of `_PRT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntxRoute {
    /// Device number on bus 0.
    pub device: u8,
    /// Pin: 0 for INTA#.
    pub pin: u8,
    /// Global system interrupt.
    pub gsi: u32,
}

/// Every address, interrupt and slot of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Version of this form.
    pub version: u32,
    /// Name of the machine.
    pub name: String,
    /// Topology.
    pub topology: CpuSpec,
    /// vCPUs.
    pub cpus: Vec<CpuPlan>,
    /// How guest memory is backed.
    pub ram: RamPlan,
    /// The guest-physical memory map.
    pub layout: Layout,
    /// Routing of PCI interrupt pins.
    pub intx: Vec<IntxRoute>,
    /// Devices, in building order.
    pub placements: Vec<Placement>,
    /// What is booted.
    pub boot: BootPlan,
}

/// Version of [`MachinePlan`].
const VERSION: u32 = 1;
/// Number of I/O APIC pins.
const GSIS: u32 = 24;
/// Interrupts behind the four PCI pins.
const PIRQ: u32 = 16;
/// ISA interrupts that no platform device uses, for devices that take any.
const FREE_ISA: [u32; 5] = [5, 10, 11, 7, 15];
const IOAPIC: u64 = 0xfec0_0000;
pub(crate) const PAGE: u64 = 4096;
/// The kind of the unit that tells the guest of devices that come and go.
pub(crate) const HOTPLUG: &str = "pci-hotplug";

/// A device to place: the platform's own come first, then the user's.
struct Wanted {
    name: String,
    kind: String,
    config: Value,
    attach: Attach,
    field: String,
}

/// Places everything, or reports all problems at once. `disks` is what the boot disks were found to
/// hold; see [`BootDisk`].
pub fn resolve(
    spec: &VmSpec,
    host: &HostFacts,
    catalog: &[&dyn AnyKind],
    disks: &[BootDisk],
) -> Result<MachinePlan, Vec<ConfigError>> {
    let mut errors = Vec::new();
    if spec.cpus.count > host.max_vcpus {
        errors.push(ConfigError::new(
            "cpus",
            format!(
                "{} vCPUs are too many for this host; use at most {}",
                spec.cpus.count, host.max_vcpus
            ),
        ));
    }
    let pci = spec.transport == Transport::Pci;
    let page = match spec.memory.huge_pages {
        HugePageSize::Off | HugePageSize::Transparent => PAGE,
        HugePageSize::Size2M => 2 << 20,
        HugePageSize::Size1G => 1 << 30,
    };
    let wanted = wanted(spec, pci, page);
    check_names(&wanted, &mut errors);
    let mut demands = Vec::new();
    for want in &wanted {
        match demand(want, catalog) {
            Ok(demand) => demands.push(demand),
            Err(e) => {
                errors.push(e);
                demands.push(Demand::default());
            }
        }
    }
    let reserved = demands
        .iter()
        .map(|d| d.reserved_ram.next_multiple_of(PAGE))
        .sum();
    // MADT and DSDT grow by some hundred bytes with each vCPU.
    let acpi = (64 << 10) + (u64::from(spec.cpus.count) * 512).next_multiple_of(PAGE);
    let bits = host.physical_address_bits;
    let laid = layout::lay_out(spec.memory.size, page, acpi, reserved, pci, bits);
    let (layout, aside) = match laid {
        Ok(laid) => laid,
        Err(reason) => {
            errors.push(ConfigError::new("memory", reason));
            (Layout::default(), Range::default())
        }
    };
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut placer = Placer::new(&layout, aside, pci);
    // Fixed addresses are taken before anything is allocated around them.
    placer.claim_fixed(&wanted, &demands, &mut errors);
    let mut placements = Vec::new();
    for (want, demand) in wanted.into_iter().zip(demands) {
        let field = want.field.clone();
        match placer.place(want, demand) {
            Ok(placement) => placements.push(placement),
            Err(reason) => errors.push(ConfigError::new(field, reason)),
        }
    }
    let composed = boot::command_line(&spec.boot.cmdline, &spec.devices, disks);
    let (cmdline, notes) = composed.unwrap_or_else(|reason| {
        errors.push(ConfigError::new("boot.cmdline", reason));
        Default::default()
    });
    if !errors.is_empty() {
        return Err(errors);
    }
    let intx = if pci { intx_routes() } else { Vec::new() };
    Ok(MachinePlan {
        version: VERSION,
        name: spec.name.clone(),
        topology: spec.cpus,
        cpus: cpus(spec.cpus),
        ram: RamPlan {
            huge_pages: spec.memory.huge_pages,
            shared: spec.memory.shared,
            prefault: spec.memory.prefault,
        },
        layout,
        intx,
        placements,
        boot: BootPlan {
            kernel: spec.boot.kernel.clone(),
            initrd: spec.boot.initrd.clone(),
            cmdline,
            notes,
        },
    })
}

fn cpus(spec: CpuSpec) -> Vec<CpuPlan> {
    let topology = nyx_hypervisor::Topology {
        cpus: spec.count,
        sockets: spec.sockets,
        cores: spec.cores,
        threads: spec.threads,
    };
    (0..spec.count)
        .map(|index| CpuPlan {
            index,
            apic_id: topology.apic_id(index),
        })
        .collect()
}

/// Names under which the machine's own state stands among its units'.
const OWN_NAMES: [&str; 2] = ["vm", "clock"];

/// Refuses a name that the platform or the machine has already: units go by their names.
fn check_names(wanted: &[Wanted], errors: &mut Vec<ConfigError>) {
    let mut seen = BTreeSet::new();
    for want in wanted {
        if !seen.insert(&want.name) || is_own_name(&want.name) {
            errors.push(name_taken(&want.field, &want.name));
        }
    }
}

/// Whether `name` is that of a part of the machine that is no device.
pub(crate) fn is_own_name(name: &str) -> bool {
    let cpu = name.strip_prefix("vcpu");
    OWN_NAMES.contains(&name) || cpu.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) fn name_taken(field: &str, name: &str) -> ConfigError {
    let reason = format!("{name:?} is the name of another unit; choose another");
    ConfigError::new(format!("{field}.name"), reason)
}

/// The platform's own devices, then the user's. RAM comes in pages of `page` bytes.
fn wanted(spec: &VmSpec, pci: bool, page: u64) -> Vec<Wanted> {
    let low = layout::low_ram(spec.memory.size, page);
    let platform = |name: &str, kind: &str, config: Value| Wanted {
        name: name.into(),
        kind: kind.into(),
        config,
        attach: Attach::Pci,
        field: name.into(),
    };
    let mut wanted = vec![
        platform("ioapic", "ioapic", json!({ "id": 0, "address": IOAPIC })),
        platform("pm", "pm", json!({ "base": 0x600, "sci": 9 })),
        platform(
            "rtc",
            "rtc",
            json!({ "low_memory": low, "high_memory": spec.memory.size - low }),
        ),
        platform("i8042", "i8042", json!({ "present_in_acpi": true })),
        platform("post", "post-port", json!({})),
        platform("pvpanic", "pvpanic", json!({})),
        platform("vmgenid", "vmgenid", json!({})),
    ];
    if pci {
        let ecam = json!({
            "ecam": layout::ECAM.base, "start_bus": 0, "end_bus": 255,
        });
        wanted.push(platform("pci-host", "pci-host", ecam));
        wanted.push(platform("host-bridge", "host-bridge", json!({})));
        wanted.push(platform("pci-hotplug", HOTPLUG, json!({ "base": 0xae00 })));
    }
    wanted.extend(spec.devices.iter().map(|device| Wanted {
        name: device.name.clone(),
        kind: device.kind.clone(),
        config: device.config.clone(),
        attach: if pci { Attach::Pci } else { Attach::Mmio },
        field: device.field.clone(),
    }));
    wanted
}

fn demand(want: &Wanted, catalog: &[&dyn AnyKind]) -> Result<Demand, ConfigError> {
    demand_of(&want.kind, &want.config, want.attach, &want.field, catalog)
}

/// What a device of `kind` needs; problems are those of `field`.
pub(crate) fn demand_of(
    kind: &str,
    config: &Value,
    attach: Attach,
    field: &str,
    catalog: &[&dyn AnyKind],
) -> Result<Demand, ConfigError> {
    let unknown = || ConfigError::new(field, format!("there is no device of kind {kind:?}"));
    let found = catalog.iter().find(|k| k.kind() == kind);
    found
        .ok_or_else(unknown)?
        .demand(config, attach)
        .map_err(|e| ConfigError::new(field, e.reason))
}

/// Every device's four pins, swizzled over four interrupts as boards do it.
fn intx_routes() -> Vec<IntxRoute> {
    (0..32)
        .flat_map(|device| {
            (0..4).map(move |pin| IntxRoute {
                device,
                pin,
                gsi: intx_gsi(device, pin),
            })
        })
        .collect()
}

pub(crate) fn intx_gsi(device: u8, pin: u8) -> u32 {
    PIRQ + (u32::from(device) + u32::from(pin)) % 4
}

/// Hands out addresses, slots and interrupts, ascending.
struct Placer {
    taken: Vec<(Space, Range, String)>,
    gsis: BTreeMap<u32, String>,
    any: Vec<u32>,
    next_any: usize,
    /// Pins that were given to devices which can share them.
    shared: Vec<u32>,
    slots: BTreeMap<Bdf, String>,
    mmio32: Range,
    next_mmio32: u64,
    mmio64: Option<Range>,
    next_mmio64: u64,
    io: Range,
    next_io: u64,
    aside: Range,
    next_aside: u64,
}

impl Placer {
    fn new(layout: &Layout, aside: Range, pci: bool) -> Self {
        // Pins beyond the PCI interrupts first, then free ISA ones.
        let first = if pci { PIRQ + 4 } else { PIRQ };
        Self {
            taken: Vec::new(),
            gsis: BTreeMap::new(),
            any: (first..GSIS).chain(FREE_ISA).collect(),
            next_any: 0,
            shared: Vec::new(),
            slots: BTreeMap::new(),
            mmio32: layout.mmio32,
            next_mmio32: layout.mmio32.base,
            mmio64: layout.mmio64,
            next_mmio64: layout.mmio64.map_or(0, |r| r.base),
            io: layout.io_ports,
            next_io: layout.io_ports.base,
            aside,
            next_aside: aside.base,
        }
    }

    fn claim_fixed(
        &mut self,
        wanted: &[Wanted],
        demands: &[Demand],
        errors: &mut Vec<ConfigError>,
    ) {
        for (want, demand) in wanted.iter().zip(demands) {
            for window in &demand.windows {
                let Some(base) = window.fixed else { continue };
                let range = Range {
                    base,
                    len: window.len,
                };
                let clash = self.taken.iter().find(|(space, other, _)| {
                    *space == window.space && base < other.end() && other.base < range.end()
                });
                match clash {
                    Some((.., other)) => errors.push(ConfigError::new(
                        &want.field,
                        format!("{base:#x} is taken by {other}; choose another address"),
                    )),
                    None => self.taken.push((window.space, range, want.name.clone())),
                }
            }
            for irq in demand.irqs.values() {
                let IrqDemand::Fixed(gsi) = irq else { continue };
                if let Some(other) = self.gsis.insert(*gsi, want.name.clone()) {
                    errors.push(ConfigError::new(
                        &want.field,
                        format!("interrupt {gsi} is taken by {other}; choose another"),
                    ));
                }
            }
            if let Some(fixed) = demand.pci.as_ref().and_then(|f| f.fixed)
                && let Some(other) = self.slots.insert(fixed, want.name.clone())
            {
                errors.push(ConfigError::new(
                    &want.field,
                    format!("PCI slot {fixed} is taken by {other}; choose another"),
                ));
            }
        }
        self.any.retain(|gsi| !self.gsis.contains_key(gsi));
    }

    fn place(&mut self, want: Wanted, demand: Demand) -> Result<Placement, String> {
        let mut windows = BTreeMap::new();
        for window in &demand.windows {
            let base = match (window.fixed, window.space) {
                (Some(base), _) => base,
                (None, Space::Mmio) => self.mmio32(window.len)?,
                (None, Space::Pio) => self.ports(window.len)?,
            };
            windows.insert(window.region, base);
        }
        let mut irqs = BTreeMap::new();
        for (role, irq) in &demand.irqs {
            let gsi = match irq {
                IrqDemand::Fixed(gsi) => *gsi,
                IrqDemand::Any => self.gsi(want.attach)?,
            };
            irqs.insert(role.clone(), gsi);
        }
        let (mut bdf, mut bars) = (None, BTreeMap::new());
        if let Some(function) = &demand.pci {
            let at = self.slot(&want, function)?;
            for bar in function.all_bars() {
                let base = match bar.space {
                    BarSpace::Io => self.ports(bar.len)?,
                    BarSpace::Memory32 => self.mmio32(bar.len)?,
                    BarSpace::Memory64 => self.mmio64(bar.len)?,
                };
                bars.insert(bar.index, base);
            }
            if function.intx {
                irqs.insert("intx".into(), intx_gsi(at.device, 0));
            }
            bdf = Some(at);
        }
        let reserved_ram = (demand.reserved_ram != 0).then(|| {
            let base = self.next_aside;
            self.next_aside += demand.reserved_ram.next_multiple_of(PAGE);
            debug_assert!(self.next_aside <= self.aside.end());
            base
        });
        Ok(Placement {
            name: want.name,
            kind: want.kind,
            attach: want.attach,
            config: want.config,
            demand,
            windows,
            irqs,
            bdf,
            bars,
            reserved_ram,
        })
    }

    fn slot(&mut self, want: &Wanted, function: &FunctionDemand) -> Result<Bdf, String> {
        if let Some(fixed) = function.fixed {
            return Ok(fixed);
        }
        let free = (1..32)
            .map(|d| Bdf::new(d, 0))
            .find(|bdf| !self.slots.contains_key(bdf));
        let bdf = free.ok_or("all 31 PCI slots are taken; use fewer devices")?;
        self.slots.insert(bdf, want.name.clone());
        Ok(bdf)
    }

    /// A pin of its own. Once they have run out, devices attached by MMIO share theirs among each
    /// other: they are level-triggered, and drivers know. Others may be neither.
    fn gsi(&mut self, attach: Attach) -> Result<u32, String> {
        let at = self.next_any;
        self.next_any += 1;
        let sharable = attach == Attach::Mmio;
        if let Some(&gsi) = self.any.get(at) {
            if sharable {
                self.shared.push(gsi);
            }
            return Ok(gsi);
        }
        let at = at.checked_rem(self.shared.len()).filter(|_| sharable);
        at.and_then(|at| self.shared.get(at).copied())
            .ok_or_else(|| "all interrupts are taken; use fewer devices".into())
    }

    fn mmio32(&mut self, len: u64) -> Result<u64, String> {
        let full = "the 32-bit device window is full; use fewer devices";
        bump(&mut self.next_mmio32, self.mmio32, len.max(PAGE)).ok_or_else(|| full.into())
    }

    fn mmio64(&mut self, len: u64) -> Result<u64, String> {
        let Some(range) = self.mmio64 else {
            return self.mmio32(len);
        };
        let full = "the 64-bit device window is full; use fewer devices";
        bump(&mut self.next_mmio64, range, len.max(PAGE)).ok_or_else(|| full.into())
    }

    fn ports(&mut self, len: u64) -> Result<u64, String> {
        let full = "the I/O port window is full; use fewer devices";
        bump(&mut self.next_io, self.io, len).ok_or_else(|| full.into())
    }
}

/// The next naturally aligned run of `len` bytes.
fn bump(next: &mut u64, range: Range, len: u64) -> Option<u64> {
    let base = next.checked_next_multiple_of(len.checked_next_power_of_two()?)?;
    let end = base.checked_add(len).filter(|end| *end <= range.end())?;
    *next = end;
    Some(base)
}
