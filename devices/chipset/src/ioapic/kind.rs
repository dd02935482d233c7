//! The I/O APIC as a device kind.

use super::Ioapic;
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, IoapicRoutePort, Space, Window,
    Wiring,
};
use serde::{Deserialize, Serialize};

/// Configuration of an I/O APIC.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoapicConfig {
    /// Its APIC id, as the MADT gives it; below 16.
    #[serde(default)]
    pub id: u8,
    /// Guest-physical address of its registers; a multiple of 4096.
    #[serde(default = "usual_address")]
    pub address: u64,
}

fn usual_address() -> u64 {
    0xfec0_0000
}

impl Default for IoapicConfig {
    fn default() -> Self {
        Self {
            id: 0,
            address: usual_address(),
        }
    }
}

impl DeviceKind for Ioapic {
    const KIND: &'static str = "ioapic";
    type Config = IoapicConfig;

    fn demand(config: &IoapicConfig, _: Attach) -> Result<Demand, ConfigError> {
        if config.id > 15 {
            let reason = format!("{} does not fit the 4-bit id register", config.id);
            return Err(ConfigError::new("ioapic.id", reason));
        }
        if !config.address.is_multiple_of(0x1000) {
            let reason = format!("{:#x} is not a multiple of 4096", config.address);
            return Err(ConfigError::new("ioapic.address", reason));
        }
        let fixed = Some(config.address);
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Mmio,
                len: 0x1000,
                fixed,
            }],
            ..Demand::default()
        })
    }

    fn build(config: IoapicConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let routes = wiring.extensions.get::<IoapicRoutePort>();
        Ok(Box::new(Self::new(config.id, wiring.msi.clone(), routes)))
    }
}
