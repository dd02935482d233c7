//! The smallest device that keeps the whole contract: what a new one starts from.

use nyx_device::{
    AccessResult, Attach, BadAccess, BoxError, ConfigError, Demand, Device, DeviceKind, Hit,
    IrqDemand, IrqLine, Lifecycle, Registers, ResetKind, Space, Window, Wiring,
};
use nyx_inspect::{Counter, Inspect};
use nyx_state::{Persist, RestoreError, SaveError, Saved, minicbor};

/// A one-byte latch at a port; bit 0 drives its wire.
#[derive(Inspect)]
pub struct Latch {
    // Wiring
    #[inspect(skip)]
    irq: IrqLine,
    // State
    #[inspect(hex)]
    value: u8,
    // Statistics
    writes: Counter,
}

impl Latch {
    fn drive(&self) {
        self.irq.set(self.value & 1 != 0);
    }
}

impl Registers for Latch {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        match (at.offset, data) {
            (0, [byte]) => *byte = self.value,
            (0, _) => return Err(BadAccess::Width),
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        match (at.offset, data) {
            (0, [byte]) => self.value = *byte,
            (0, _) => return Err(BadAccess::Width),
            _ => return Err(BadAccess::NoRegister),
        }
        self.writes.inc();
        self.drive();
        Ok(())
    }
}

impl Lifecycle for Latch {
    fn reset(&mut self, _: ResetKind) {
        self.value = 0;
        self.drive();
    }
}

/// The saved latch.
#[derive(minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedLatch {
    #[n(0)]
    value: u8,
}

impl Saved for SavedLatch {
    const NAME: &'static str = "example-latch/1";
}

impl Persist for Latch {
    type Saved = SavedLatch;

    fn save(&self) -> Result<SavedLatch, SaveError> {
        let Self {
            irq: _,
            value,
            writes: _,
        } = self;
        Ok(SavedLatch { value: *value })
    }

    fn restore(&mut self, saved: SavedLatch) -> Result<(), RestoreError> {
        let SavedLatch { value } = saved;
        self.value = value;
        self.drive();
        Ok(())
    }
}

impl Device for Latch {}

/// Nothing can be configured.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatchConfig {}

impl DeviceKind for Latch {
    const KIND: &'static str = "example-latch";
    type Config = LatchConfig;

    fn demand(_: &LatchConfig, _: Attach) -> Result<Demand, ConfigError> {
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: 1,
                fixed: Some(0x5000),
            }],
            irqs: [("change".into(), IrqDemand::Any)].into(),
            ..Demand::default()
        })
    }

    fn build(_: LatchConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let irq = wiring.irq("change")?;
        Ok(Box::new(Self {
            irq,
            value: 0,
            writes: Counter::default(),
        }))
    }
}
