//! The clock as a device kind.

use super::Rtc;
use super::clock::MemorySize;
use crate::aml::isa_device;
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, IrqDemand, Placement,
    Space, Window, Wiring,
};
use serde::{Deserialize, Serialize};

const PORT: u16 = 0x70;
const IRQ: u32 = 8;

/// Configuration of a real-time clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcConfig {
    /// Bytes of RAM below 4 GiB, for firmware that asks the clock's memory.
    #[serde(default)]
    pub low_memory: u64,
    /// Bytes of RAM above 4 GiB.
    #[serde(default)]
    pub high_memory: u64,
}

impl DeviceKind for Rtc {
    const KIND: &'static str = "rtc";
    type Config = RtcConfig;

    fn demand(_: &RtcConfig, _: Attach) -> Result<Demand, ConfigError> {
        let fixed = Some(PORT.into());
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: 2,
                fixed,
            }],
            irqs: [("intr".into(), IrqDemand::Fixed(IRQ))].into(),
            ..Demand::default()
        })
    }

    fn build(config: RtcConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let size = MemorySize {
            low: config.low_memory,
            high: config.high_memory,
        };
        let irq = wiring.irq("intr")?;
        Ok(Box::new(Self::new(
            irq,
            wiring.clock.clone(),
            wiring.timer(),
            size,
        )))
    }

    fn acpi(_: &RtcConfig, placement: &Placement) -> Vec<Fragment> {
        let irq = placement.irqs.get("intr").copied().unwrap_or(IRQ);
        // PNP0B00: AT real-time clock.
        vec![isa_device(
            "RTC0",
            "PNP0B00",
            None,
            &[(PORT, 2)],
            &[irq],
            false,
        )]
    }
}
