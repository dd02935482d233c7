//! What ISA devices look like in the DSDT.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate};
use nyx_device::Fragment;

/// An ISA device under `\_SB`: PNP id, unique id, ports (base, length) and interrupts. `shared`
/// interrupts are those that another device of the same kind may use too, as COM1 and COM3 do.
///
/// Interrupts are described as edge-triggered and active high, which is what ISA is (ACPI 6.4
/// §6.4.3.6 for the descriptor). With a level they would cost an end-of-interrupt exit each.
pub(crate) fn isa_device(
    name: &str,
    hid: &str,
    uid: Option<u8>,
    ports: &[(u16, u8)],
    irqs: &[u32],
    shared: bool,
) -> Fragment {
    let ports: Vec<IO> = ports
        .iter()
        .map(|&(base, len)| IO::new(base, base, 1, len))
        .collect();
    let irqs: Vec<Interrupt> = irqs
        .iter()
        .map(|&gsi| Interrupt::new(true, true, false, shared, gsi))
        .collect();
    let resources: Vec<&dyn Aml> = ports
        .iter()
        .map(|io| io as &dyn Aml)
        .chain(irqs.iter().map(|irq| irq as &dyn Aml))
        .collect();
    let resources = ResourceTemplate::new(resources);
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = uid.map(|uid| Name::new("_UID".into(), &uid));
    let crs = Name::new("_CRS".into(), &resources);
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend(uid.iter().map(|uid| uid as &dyn Aml));
    children.push(&crs);
    let mut bytes = Vec::new();
    Device::new(name.into(), children).to_aml_bytes(&mut bytes);
    Fragment::SystemBus(bytes)
}
