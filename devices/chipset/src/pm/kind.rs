//! The fixed hardware as a device kind.

use super::{LEN, Pm};
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, GeneralEvents, IrqDemand,
    PowerButton, Space, Window, Wiring,
};
use serde::{Deserialize, Serialize};

/// Configuration of the ACPI fixed hardware.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmConfig {
    /// First port; a multiple of 64.
    #[serde(default = "usual_base")]
    pub base: u16,
    /// Global system interrupt of the SCI.
    #[serde(default = "usual_sci")]
    pub sci: u32,
}

fn usual_base() -> u16 {
    0x600
}

fn usual_sci() -> u32 {
    9
}

impl Default for PmConfig {
    fn default() -> Self {
        Self {
            base: usual_base(),
            sci: usual_sci(),
        }
    }
}

impl DeviceKind for Pm {
    const KIND: &'static str = "pm";
    type Config = PmConfig;

    fn demand(config: &PmConfig, _: Attach) -> Result<Demand, ConfigError> {
        if config.base == 0 || !config.base.is_multiple_of(64) {
            let reason = format!("{:#x} is not a multiple of 64, as 0x600 is", config.base);
            return Err(ConfigError::new("pm.base", reason));
        }
        let fixed = Some(config.base.into());
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: LEN.into(),
                fixed,
            }],
            irqs: [("sci".into(), IrqDemand::Fixed(config.sci))].into(),
            ..Demand::default()
        })
    }

    fn build(_: PmConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let sci = wiring.irq("sci")?;
        let button = wiring.extensions.get::<PowerButton>();
        if let Some(button) = &button {
            button.bind(&wiring.waker);
        }
        let events = wiring.extensions.get::<GeneralEvents>();
        if let Some(events) = &events {
            events.bind(&wiring.waker);
        }
        let (clock, power) = (wiring.clock.clone(), wiring.power.clone());
        Ok(Box::new(Self::new(
            sci,
            clock,
            wiring.timer(),
            power,
            button,
            events,
        )))
    }
}
