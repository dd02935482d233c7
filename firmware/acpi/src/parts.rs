//! AML of legacy devices that several machines have, as raw terms for a [`Fragment`](crate::Fragment) in
//! [`Scope::SystemBus`](crate::Scope::SystemBus).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Path, ResourceTemplate};

use crate::platform::Trigger;

fn encode(part: &dyn Aml) -> Vec<u8> {
    let mut aml = Vec::new();
    part.to_aml_bytes(&mut aml);
    aml
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// An ISA interrupt: active high, not shared.
fn irq(gsi: u32, trigger: Trigger) -> Interrupt {
    Interrupt::new(true, trigger == Trigger::Edge, false, false, gsi)
}

/// A 16550 serial port `COM1` to `COM9` (PNP0501) with eight ports from `port`; `number` counts from 1 and is
/// taken modulo 10.
pub fn uart(number: u8, port: u16, gsi: u32, trigger: Trigger) -> Vec<u8> {
    let (ports, interrupt) = (IO::new(port, port, 1, 8), irq(gsi, trigger));
    encode(&Device::new(
        Path::new(&format!("COM{}", number % 10)),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &number),
            &name("_DDN", &format!("COM{}", number % 10)),
            &name("_STA", &0x0fu8),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

/// The CMOS clock (PNP0B00) at ports 0x70 and 0x71.
pub fn rtc(gsi: u32) -> Vec<u8> {
    let (ports, interrupt) = (IO::new(0x70, 0x70, 1, 2), irq(gsi, Trigger::Edge));
    encode(&Device::new(
        Path::new("RTC_"),
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

/// The 8042 controller's keyboard (PNP0303) and, with an interrupt for it, its mouse (PNP0F13).
pub fn i8042(keyboard_gsi: u32, mouse_gsi: Option<u32>) -> Vec<u8> {
    let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
    let interrupt = irq(keyboard_gsi, Trigger::Edge);
    let mut aml = encode(&Device::new(
        Path::new("KBD_"),
        vec![
            &name("_HID", &EISAName::new("PNP0303")),
            &name("_STA", &0x0fu8),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&data, &command, &interrupt]),
            ),
        ],
    ));
    if let Some(gsi) = mouse_gsi {
        let interrupt = irq(gsi, Trigger::Edge);
        aml.extend(encode(&Device::new(
            Path::new("MOU_"),
            vec![
                &name("_HID", &EISAName::new("PNP0F13")),
                &name("_STA", &0x0fu8),
                &name("_CRS", &ResourceTemplate::new(vec![&interrupt])),
            ],
        )));
    }
    aml
}
