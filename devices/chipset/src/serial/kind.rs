//! The serial port as a device kind.

use super::Serial;
use crate::aml::isa_device;
use nyx_device::{
    Attach, BackendSpec, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, IrqDemand,
    Placement, Space, Window, Wiring,
};
use serde::{Deserialize, Serialize};

/// Where the four ports of a PC are, and which interrupts they use.
const STANDARD: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// Configuration of a serial port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// First of its eight ports; a multiple of 8. COM1 is 0x3f8.
    #[serde(default = "com1_port")]
    pub port: u16,
    /// Its interrupt. COM1 uses 4.
    #[serde(default = "com1_irq")]
    pub irq: u32,
    /// Where characters go; nowhere if absent.
    #[serde(default)]
    pub backend: Option<BackendSpec>,
}

fn com1_port() -> u16 {
    STANDARD[0].0
}

fn com1_irq() -> u32 {
    STANDARD[0].1
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self {
            port: com1_port(),
            irq: com1_irq(),
            backend: None,
        }
    }
}

impl DeviceKind for Serial {
    const KIND: &'static str = "serial";
    type Config = SerialConfig;

    fn demand(config: &SerialConfig, _: Attach) -> Result<Demand, ConfigError> {
        if config.port == 0 || !config.port.is_multiple_of(8) || config.port >= 0x8000 {
            let reason = format!(
                "{:#x} is not a multiple of 8 below 0x8000, as 0x3f8 is",
                config.port
            );
            return Err(ConfigError::new("serial.port", reason));
        }
        let fixed = Some(config.port.into());
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: 8,
                fixed,
            }],
            irqs: [("intr".into(), IrqDemand::Fixed(config.irq))].into(),
            ..Demand::default()
        })
    }

    fn build(config: SerialConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let irq = wiring.irq("intr")?;
        let mut backend = match &config.backend {
            Some(spec) => Some(wiring.backends.char(&wiring.placement.name, spec)?),
            None => None,
        };
        if let Some(backend) = &mut backend {
            let waker = wiring.waker.clone();
            backend.notify(Box::new(move || waker.wake()))?;
        }
        Ok(Box::new(Self::new(irq, backend, wiring.faults.clone())))
    }

    fn acpi(config: &SerialConfig, placement: &Placement) -> Vec<Fragment> {
        let number = STANDARD.iter().position(|(port, _)| *port == config.port);
        let (name, uid) = match number.and_then(|n| u8::try_from(n + 1).ok()) {
            Some(n) => (format!("COM{n}"), n),
            // Unique among ports: a multiple of 8 below 0x8000 has twelve bits to tell.
            None => (format!("U{:03X}", config.port >> 3), 0),
        };
        let uid = (uid != 0).then_some(uid);
        let irq = placement.irqs.get("intr").copied().unwrap_or(config.irq);
        // PNP0501: 16550A-compatible COM port.
        vec![isa_device(
            &name,
            "PNP0501",
            uid,
            &[(config.port, 8)],
            &[irq],
            true,
        )]
    }
}
