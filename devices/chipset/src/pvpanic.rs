//! A port through which a guest says that it panicked (QEMU, docs/specs/pvpanic.rst).

use crate::ports::{read_each, write_each};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device as AmlDevice, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    IO, Method, Name, OpRegion, OpRegionSpace, Path, ResourceTemplate, Return, Store,
};
use nyx_device::{
    AccessResult, Attach, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, Hit,
    Lifecycle, Placement, PowerPort, PowerRequest, Registers, ResetKind, Space, Window, Wiring,
};
use nyx_inspect::{Counter, Inspect};
use nyx_state::{Persist, RestoreError, SaveError, Stateless};
use serde::{Deserialize, Serialize};

/// The guest panicked and is on its own from here.
const PANICKED: u8 = 0x01;
/// The guest panicked and loads a crash kernel, which will live on.
const CRASH_LOADED: u8 = 0x02;
/// The guest powers itself off in this way.
const SHUTDOWN: u8 = 0x04;
/// The events this device understands, which a read gives.
const EVENTS: u8 = PANICKED | CRASH_LOADED | SHUTDOWN;

/// The panic port.
#[derive(Inspect)]
#[inspect(prefix = "pvpanic")]
pub struct PvPanic {
    // Wiring
    #[inspect(skip)]
    power: PowerPort,
    // Statistics
    /// Times the guest said what became of it.
    #[inspect(metric = "events", label(event = "panicked"))]
    panics: Counter,
    /// Times the guest said what became of it.
    #[inspect(metric = "events", label(event = "crash_loaded"))]
    crash_kernels: Counter,
    /// Times the guest said what became of it.
    #[inspect(metric = "events", label(event = "shutdown"))]
    shutdowns: Counter,
}

impl PvPanic {
    fn report(&mut self, events: u8) {
        if events & PANICKED != 0 {
            self.panics.inc();
            self.power.request(PowerRequest::GuestPanic);
        } else if events & CRASH_LOADED != 0 {
            // The crash kernel takes its dump and reboots: the machine must be left alone.
            self.crash_kernels.inc();
        } else if events & SHUTDOWN != 0 {
            self.shutdowns.inc();
            self.power.request(PowerRequest::Off);
        }
    }
}

impl Registers for PvPanic {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        read_each(at.offset, data, |offset| (offset == 0).then_some(EVENTS))
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        write_each(at.offset, data, |offset, value| {
            let hit = offset == 0;
            if hit {
                self.report(value);
            }
            hit
        })
    }
}

impl Lifecycle for PvPanic {
    fn reset(&mut self, _: ResetKind) {
        let Self {
            power: _,
            panics: _,
            crash_kernels: _,
            shutdowns: _,
        } = self;
    }
}

impl Persist for PvPanic {
    type Saved = Stateless;
    fn save(&self) -> Result<Stateless, SaveError> {
        let Self {
            power: _,
            panics: _,
            crash_kernels: _,
            shutdowns: _,
        } = self;
        Ok(Stateless {})
    }
    fn restore(&mut self, saved: Stateless) -> Result<(), RestoreError> {
        let Stateless {} = saved;
        Ok(())
    }
}

impl Device for PvPanic {}

/// Configuration of a panic port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PvPanicConfig {
    /// Its port.
    #[serde(default = "usual_port")]
    pub port: u16,
}

fn usual_port() -> u16 {
    0x505
}

impl Default for PvPanicConfig {
    fn default() -> Self {
        Self { port: usual_port() }
    }
}

impl DeviceKind for PvPanic {
    const KIND: &'static str = "pvpanic";
    type Config = PvPanicConfig;

    fn demand(config: &PvPanicConfig, _: Attach) -> Result<Demand, ConfigError> {
        let fixed = Some(config.port.into());
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: 1,
                fixed,
            }],
            ..Demand::default()
        })
    }

    fn build(_: PvPanicConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let (panics, crash_kernels, shutdowns) = Default::default();
        Ok(Box::new(Self {
            power: wiring.power.clone(),
            panics,
            crash_kernels,
            shutdowns,
        }))
    }

    /// `QEMU0001`, as Linux's driver expects it: the port in `_CRS`, and methods that read and
    /// write it for guests which would rather not.
    fn acpi(config: &PvPanicConfig, _: &Placement) -> Vec<Fragment> {
        let io = IO::new(config.port, config.port, 1, 1);
        let event: Path = "PEPT".into();
        let mut bytes = Vec::new();
        AmlDevice::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_STA".into(), &0xfu8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io])),
                &OpRegion::new("PEOR".into(), OpRegionSpace::SystemIO, &config.port, &1u8),
                &Field::new(
                    "PEOR".into(),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::Preserve,
                    vec![FieldEntry::Named(*b"PEPT", 8)],
                ),
                &Method::new("RDPT".into(), 0, false, vec![&Return::new(&event)]),
                &Method::new("WRPT".into(), 1, false, vec![&Store::new(&event, &Arg(0))]),
            ],
        )
        .to_aml_bytes(&mut bytes);
        vec![Fragment::SystemBus(bytes)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_testkit::{Bench, conformance, json};

    conformance!(conforms, PvPanic, json!({}));

    #[test]
    fn a_panic_is_told_apart_from_a_crash_kernel_and_a_shutdown() {
        let bench = Bench::new::<PvPanic>(json!({}));
        let mut port = bench.build::<PvPanic>();
        let mut data = [0; 2];
        port.read(Hit::new(0, 0), &mut data).unwrap();
        assert_eq!(data, [0x07, 0xff]);
        for (events, requests) in [
            (0x01, vec![PowerRequest::GuestPanic]),
            (0x02, vec![]),
            (0x04, vec![PowerRequest::Off]),
            (0x03, vec![PowerRequest::GuestPanic]),
            (0xf8, vec![]),
        ] {
            port.write(Hit::new(0, 0), &[events]).unwrap();
            assert_eq!(bench.power.take(), requests, "{events:#x}");
        }
        let tree = nyx_inspect::Json::of(&*port);
        assert_eq!(
            tree,
            json!({"panics": 2, "crash_kernels": 1, "shutdowns": 1})
        );
    }
}
