//! The DSDT's AML: host bridge, processors, motherboard resources, soft-off, and the kinds' fragments.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Local, Memory32Fixed,
    Method, Name, NotEqual, ONE, Or, Package, PackageBuilder, Path, ResourceTemplate, Return,
    Scope as AmlScope, Store, Uuid, ZERO,
};

use crate::platform::{AcpiPlatform, PciRoot, Scope};
use crate::resources::{Addresses, Raw, Space};

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

fn push(aml: &mut Vec<u8>, part: &dyn Aml) {
    part.to_aml_bytes(aml);
}

/// The terms that follow the DSDT's header.
pub(crate) fn terms(platform: &AcpiPlatform) -> Vec<u8> {
    let mut aml = Vec::new();
    let s5 = match (platform.pm, platform.sleep) {
        (Some(pm), _) => Some(pm.s5_type),
        (None, Some(sleep)) => Some(sleep.s5_type),
        (None, None) => None,
    };
    if let Some(type_) = s5 {
        // §7.4.2: values for PM1a and PM1b control, the latter unused here, and two reserved.
        let (type_, zero) = (type_ & 7, 0u8);
        push(
            &mut aml,
            &name("_S5_", &Package::new(vec![&type_, &type_, &zero, &zero])),
        );
    }

    let mut system_bus = Vec::new();
    for cpu in &platform.cpus {
        processor(&mut system_bus, cpu.processor_uid, cpu.enabled);
    }
    motherboard(&mut system_bus, platform);
    if let Some(root) = &platform.pci_root {
        pci_root(
            &mut system_bus,
            root,
            platform.vga,
            &fragments(platform, Scope::Pci0),
        );
    }
    system_bus.extend(fragments(platform, Scope::SystemBus));
    if !system_bus.is_empty() {
        push(
            &mut aml,
            &AmlScope::new(Path::new("\\_SB_"), vec![&Raw(&system_bus)]),
        );
    }
    let events = fragments(platform, Scope::Gpe);
    if !events.is_empty() {
        push(
            &mut aml,
            &AmlScope::new(Path::new("\\_GPE"), vec![&Raw(&events)]),
        );
    }
    aml.extend(fragments(platform, Scope::Root));
    aml
}

fn fragments(platform: &AcpiPlatform, scope: Scope) -> Vec<u8> {
    let here = platform
        .fragments
        .iter()
        .filter(|fragment| fragment.scope == scope);
    here.flat_map(|fragment| fragment.aml.iter().copied())
        .collect()
}

/// A processor device (§8.4.1) `C000` to `CFFF`.
fn processor(aml: &mut Vec<u8>, uid: u32, enabled: bool) {
    let present: u8 = if enabled { 0x0f } else { 0 };
    push(
        aml,
        &Device::new(
            Path::new(&format!("C{:03X}", uid & 0xfff)),
            vec![
                &name("_HID", &"ACPI0007"),
                &name("_UID", &uid),
                &name("_STA", &present),
            ],
        ),
    );
}

/// Addresses that belong to the board, so that no one places a device on them (PNP0C02). PCI Firmware 3.3 §4.1.2
/// wants the configuration space reserved this way outside the host bridge's own windows.
fn motherboard(aml: &mut Vec<u8>, platform: &AcpiPlatform) {
    let mut resources = Vec::new();
    if let Some(ecam) = &platform.ecam {
        let range = ecam.range();
        match (
            u32::try_from(range.start),
            u32::try_from(range.end - range.start),
        ) {
            (Ok(base), Ok(len)) => push(&mut resources, &Memory32Fixed::new(true, base, len)),
            _ => push(
                &mut resources,
                &Addresses {
                    space: Space::Memory { cacheable: false },
                    first: range.start,
                    last: range.end - 1,
                    consumed: true,
                },
            ),
        }
    }
    if let Some(pm) = &platform.pm {
        push(&mut resources, &IO::new(pm.base, pm.base, 1, 12));
        if let Some(gpe) = pm.gpe0 {
            push(&mut resources, &IO::new(gpe.port, gpe.port, 1, gpe.len));
        }
    }
    if resources.is_empty() {
        return;
    }
    push(
        aml,
        &Device::new(
            Path::new("MBRD"),
            vec![
                &name("_HID", &EISAName::new("PNP0C02")),
                &name("_UID", &ZERO),
                &name("_CRS", &ResourceTemplate::new(vec![&Raw(&resources)])),
            ],
        ),
    );
}

fn pci_root(aml: &mut Vec<u8>, root: &PciRoot, vga: bool, fragments: &[u8]) {
    let mut resources = Vec::new();
    let mut window = |space, first, last| {
        push(
            &mut resources,
            &Addresses {
                space,
                first,
                last,
                consumed: false,
            },
        );
    };
    window(
        Space::Bus,
        u64::from(*root.buses.start()),
        u64::from(*root.buses.end()),
    );
    for io in &root.io {
        window(Space::Io, u64::from(*io.start()), u64::from(*io.end()));
    }
    if vga {
        window(Space::Memory { cacheable: true }, 0xa_0000, 0xb_ffff);
    }
    for memory in [Some(&root.mmio32), root.mmio64.as_ref()]
        .into_iter()
        .flatten()
    {
        if !memory.is_empty() {
            window(
                Space::Memory { cacheable: false },
                memory.start,
                memory.end - 1,
            );
        }
    }
    // The bridge's own configuration ports.
    push(&mut resources, &IO::new(0xcf8, 0xcf8, 1, 8));

    let mut routing = PackageBuilder::new();
    for entry in &root.prt {
        // §6.2.13: device in the upper half, any function, then pin, no link device, global interrupt.
        let address = u32::from(entry.device) << 16 | 0xffff;
        routing.add_element(&Package::new(vec![&address, &entry.pin, &ZERO, &entry.gsi]));
    }

    push(
        aml,
        &Device::new(
            Path::new("PCI0"),
            vec![
                &name("_HID", &EISAName::new("PNP0A08")),
                &name("_CID", &EISAName::new("PNP0A03")),
                &name("_UID", &ZERO),
                &name("_SEG", &ZERO),
                &name("_BBN", root.buses.start()),
                &name("_CRS", &ResourceTemplate::new(vec![&Raw(&resources)])),
                &name("_PRT", &routing),
                &Raw(&osc(root.native_control)),
                &Raw(fragments),
            ],
        ),
    );
}

/// `_OSC` (§6.2.11; PCI Firmware 3.3 §4.5): grants the guest the features in `native_control` and no others.
fn osc(native_control: u32) -> Vec<u8> {
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const MASKED: u8 = 1 << 4;
    let (status, control, granted) = (Path::new("CDW1"), Path::new("CDW3"), Local(0));
    let set = |bit: &u8| -> Vec<u8> {
        let mut aml = Vec::new();
        push(&mut aml, &Or::new(&status, &status, bit));
        aml
    };
    let mut aml = Vec::new();
    push(
        &mut aml,
        &Method::new(
            Path::new("_OSC"),
            4,
            true, // it creates named fields, so two callers may not be in it at once
            vec![
                &CreateDWordField::new(&status, &Arg(3), &ZERO),
                &If::new(
                    &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &And::new(&granted, &control, &native_control),
                        &If::new(
                            &NotEqual::new(&Arg(1), &ONE),
                            vec![&Raw(&set(&UNKNOWN_REVISION))],
                        ),
                        &If::new(
                            &NotEqual::new(&control, &granted),
                            vec![&Raw(&set(&MASKED))],
                        ),
                        &Store::new(&control, &granted),
                    ],
                ),
                &Else::new(vec![&Raw(&set(&UNKNOWN_UUID))]),
                &Return::new(&Arg(3)),
            ],
        ),
    );
    aml
}
