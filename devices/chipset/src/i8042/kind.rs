//! The keyboard controller as a device kind.

use super::I8042;
use super::controller::{COMMAND, DATA};
use crate::aml::isa_device;
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, IrqDemand, Placement,
    Space, Window, Wiring,
};
use serde::{Deserialize, Serialize};

const KEYBOARD_IRQ: u32 = 1;
const MOUSE_IRQ: u32 = 12;

/// Configuration of a keyboard controller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042Config {
    /// Whether the guest finds a keyboard and a mouse in the DSDT. Without, the controller is
    /// there for its reset line.
    #[serde(default)]
    pub present_in_acpi: bool,
}

impl DeviceKind for I8042 {
    const KIND: &'static str = "i8042";
    type Config = I8042Config;

    fn demand(_: &I8042Config, _: Attach) -> Result<Demand, ConfigError> {
        // Not 0x61 to 0x63: the speaker and NMI port lies between.
        let port = |region, port| Window {
            region,
            space: Space::Pio,
            len: 1,
            fixed: Some(port),
        };
        Ok(Demand {
            windows: vec![port(DATA, 0x60), port(COMMAND, 0x64)],
            irqs: [
                ("keyboard".into(), IrqDemand::Fixed(KEYBOARD_IRQ)),
                ("mouse".into(), IrqDemand::Fixed(MOUSE_IRQ)),
            ]
            .into(),
            ..Demand::default()
        })
    }

    fn build(_: I8042Config, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let (keyboard, mouse) = (wiring.irq("keyboard")?, wiring.irq("mouse")?);
        Ok(Box::new(Self::new(keyboard, mouse, wiring.power.clone())))
    }

    fn acpi(config: &I8042Config, placement: &Placement) -> Vec<Fragment> {
        if !config.present_in_acpi {
            return Vec::new();
        }
        let irq = |role, usual| placement.irqs.get(role).copied().unwrap_or(usual);
        // PNP0303: IBM enhanced keyboard. PNP0F13: PS/2 mouse, on the keyboard's ports.
        vec![
            isa_device(
                "KBD0",
                "PNP0303",
                None,
                &[(0x60, 1), (0x64, 1)],
                &[irq("keyboard", KEYBOARD_IRQ)],
                false,
            ),
            isa_device(
                "MOU0",
                "PNP0F13",
                None,
                &[],
                &[irq("mouse", MOUSE_IRQ)],
                false,
            ),
        ]
    }
}
