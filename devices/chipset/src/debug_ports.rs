//! Ports that exist for whoever debugs a guest: the POST code at 0x80 and the console at 0xe9.

use crate::ports::{read_each, write_each};
use nyx_device::{
    AccessResult, Attach, BackendSpec, BoxError, CharBackend, ConfigError, Demand, Device,
    DeviceKind, Hit, Lifecycle, Registers, ResetKind, Space, Window, Wiring,
};
use nyx_inspect::{Counter, Inspect};
use nyx_state::{Persist, RestoreError, SaveError, Stateless};
use saved::SavedPostPort;
use serde::{Deserialize, Serialize};

/// The diagnostic port 0x80 of an IBM PC AT: firmware writes its progress to it. It reads back, and
/// older software writes to it for the delay.
#[derive(Inspect)]
#[inspect(prefix = "post")]
pub struct PostPort {
    // State
    #[inspect(hex)]
    code: u8,
    // Statistics
    /// Codes written to the diagnostic port.
    #[inspect(metric = "codes")]
    writes: Counter,
}

impl Registers for PostPort {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        read_each(at.offset, data, |offset| (offset == 0).then_some(self.code))
    }
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        write_each(at.offset, data, |offset, value| {
            let hit = offset == 0;
            if hit {
                self.code = value;
                self.writes.inc();
            }
            hit
        })
    }
}

impl Lifecycle for PostPort {
    fn reset(&mut self, _: ResetKind) {
        let Self { code, writes: _ } = self;
        *code = 0;
    }
}

impl Persist for PostPort {
    type Saved = SavedPostPort;
    fn save(&self) -> Result<SavedPostPort, SaveError> {
        let Self { code, writes: _ } = self;
        Ok(SavedPostPort { code: *code })
    }
    fn restore(&mut self, saved: SavedPostPort) -> Result<(), RestoreError> {
        let SavedPostPort { code } = saved;
        self.code = code;
        Ok(())
    }
}

impl Device for PostPort {}

/// Configuration of the diagnostic port: there is none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostPortConfig {}

impl DeviceKind for PostPort {
    const KIND: &'static str = "post-port";
    type Config = PostPortConfig;

    fn demand(_: &PostPortConfig, _: Attach) -> Result<Demand, ConfigError> {
        Ok(one_port(0x80))
    }
    fn build(_: PostPortConfig, _: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        Ok(Box::new(Self {
            code: 0,
            writes: Counter::default(),
        }))
    }
}

/// A debug console as Bochs and QEMU have it at port 0xe9: every byte written is output, and a read
/// gives 0xe9, by which software tells that it is there.
#[derive(Inspect)]
#[inspect(prefix = "debugcon")]
pub struct DebugConsole {
    // Wiring
    #[inspect(skip)]
    backend: Option<Box<dyn CharBackend>>,
    // Statistics
    /// Bytes written to the debug console.
    bytes: Counter,
    /// Bytes that the debug console's backend did not take.
    #[inspect(metric = "dropped_bytes")]
    dropped: Counter,
}

impl Registers for DebugConsole {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        read_each(at.offset, data, |offset| (offset == 0).then_some(0xe9))
    }
    /// What a busy backend does not take is dropped and counted: the port has no way to say wait.
    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        write_each(at.offset, data, |offset, value| {
            let hit = offset == 0;
            if hit {
                self.bytes.inc();
                let backend = self.backend.as_mut();
                if backend.is_some_and(|b| !matches!(b.write(&[value]), Ok(1..))) {
                    self.dropped.inc();
                }
            }
            hit
        })
    }
}

impl Lifecycle for DebugConsole {
    fn reset(&mut self, _: ResetKind) {
        let Self {
            backend: _,
            bytes: _,
            dropped: _,
        } = self;
    }
}

impl Persist for DebugConsole {
    type Saved = Stateless;
    fn save(&self) -> Result<Stateless, SaveError> {
        let Self {
            backend: _,
            bytes: _,
            dropped: _,
        } = self;
        Ok(Stateless {})
    }
    fn restore(&mut self, saved: Stateless) -> Result<(), RestoreError> {
        let Stateless {} = saved;
        Ok(())
    }
}

impl Device for DebugConsole {}

/// Configuration of a debug console.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// Its port.
    #[serde(default = "usual_port")]
    pub port: u16,
    /// Where output goes; it is only counted if absent.
    #[serde(default)]
    pub backend: Option<BackendSpec>,
}

fn usual_port() -> u16 {
    0xe9
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self {
            port: usual_port(),
            backend: None,
        }
    }
}

impl DeviceKind for DebugConsole {
    const KIND: &'static str = "debug-console";
    type Config = DebugConsoleConfig;

    fn demand(config: &DebugConsoleConfig, _: Attach) -> Result<Demand, ConfigError> {
        Ok(one_port(config.port))
    }
    fn build(
        config: DebugConsoleConfig,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn Device>, BoxError> {
        let backend = match &config.backend {
            Some(spec) => Some(wiring.backends.char(&wiring.placement.name, spec)?),
            None => None,
        };
        let (bytes, dropped) = Default::default();
        Ok(Box::new(Self {
            backend,
            bytes,
            dropped,
        }))
    }
}

fn one_port(port: u16) -> Demand {
    let fixed = Some(port.into());
    Demand {
        windows: vec![Window {
            region: 0,
            space: Space::Pio,
            len: 1,
            fixed,
        }],
        ..Demand::default()
    }
}

mod saved {
    //! The saved diagnostic port.

    use nyx_state::Saved;

    /// State of the diagnostic port.
    #[derive(minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct SavedPostPort {
        /// The last code written.
        #[n(0)]
        pub code: u8,
    }

    impl Saved for SavedPostPort {
        const NAME: &'static str = "post-port/1";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_testkit::{Bench, conformance, json};

    conformance!(post_port_conforms, PostPort, json!({}));
    conformance!(
        debug_console_conforms,
        DebugConsole,
        json!({"backend": {"kind": "debug"}})
    );

    #[test]
    fn the_post_code_reads_back_also_from_wide_writes() {
        let mut port = Bench::new::<PostPort>(json!({})).build::<PostPort>();
        port.write(Hit::new(0, 0), &[0x34, 0x12]).unwrap();
        let mut data = [0; 2];
        port.read(Hit::new(0, 0), &mut data).unwrap();
        assert_eq!(data, [0x34, 0xff]);
    }

    #[test]
    fn the_debug_console_identifies_itself_and_drops_what_is_not_taken() {
        let bench = Bench::new::<DebugConsole>(json!({"backend": {"kind": "debug"}}));
        let mut port = bench.build::<DebugConsole>();
        let mut data = [0];
        port.read(Hit::new(0, 0), &mut data).unwrap();
        assert_eq!(data, [0xe9]);
        bench.consoles.at("debug").set_room(Some(2));
        for byte in b"abc" {
            port.write(Hit::new(0, 0), &[*byte]).unwrap();
        }
        assert_eq!(bench.consoles.at("debug").take_output(), b"ab");
        let tree = nyx_inspect::Json::of(&*port);
        assert_eq!(tree, json!({"bytes": 3, "dropped": 1}));
    }
}
