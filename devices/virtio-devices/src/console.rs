//! Console device (Virtio 1.2 §5.3): terminals, and named byte channels.

mod port;
mod task;
#[cfg(test)]
mod tests;

use crate::loan::Shelf;
use crate::queues;
use nyx_device::{BackendSpec, BoxError, CharBackend, ConfigError, WindowSize, Wiring};
use nyx_inspect::{Counter, Field, Inspect, Leaf, Visitor};
use nyx_reactor::EventFd;
use nyx_state::{Persist, RestoreError, SaveError};
use nyx_virtio::{Activation, QueueTask, Shape, TaskError, VirtQueue, VirtioDevice, VirtioKind};
use parking_lot::Mutex;
use port::{News, PortState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use task::{ConsoleTask, PortTask, control_queues, port_queues};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

// Feature bits (§5.3.3).
const F_SIZE: u32 = 0;
const F_MULTIPORT: u32 = 1;
const F_EMERG_WRITE: u32 = 2;

/// Most ports of one device; Linux takes no more.
const MAX_PORTS: usize = 31;
const QUEUE_SIZE: u16 = 64;
/// Longest port name in bytes.
const MAX_NAME: usize = 64;
/// Offset of `emerg_wr` in the configuration space.
const EMERGENCY: u64 = 8;
/// Emergency characters kept while the task is busy.
const MAX_EMERGENCY: usize = 4096;

/// Configuration of one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// How the guest finds it: `/dev/virtio-ports/NAME` in Linux.
    #[serde(default)]
    pub name: Option<String>,
    /// Where the bytes go.
    pub backend: BackendSpec,
    /// Whether it is a terminal (`/dev/hvcN` in Linux) or a plain channel.
    #[serde(default = "yes")]
    pub console: bool,
}

fn yes() -> bool {
    true
}

/// Configuration of a console device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Its ports, 1 to 31. A single console without a name makes the simple device of old, which
    /// every driver knows; anything else has a control queue.
    pub ports: Vec<PortConfig>,
}

impl ConsoleConfig {
    fn is_simple(&self) -> bool {
        matches!(
            self.ports.as_slice(),
            [PortConfig {
                name: None,
                console: true,
                ..
            }]
        )
    }

    fn queues(&self) -> u16 {
        if self.is_simple() {
            2
        } else {
            self.ports.len() as u16 * 2 + 2
        }
    }
}

/// The kind `virtio-console`.
#[derive(Clone, Copy, Debug)]
pub struct ConsoleKind;

impl VirtioKind for ConsoleKind {
    const KIND: &'static str = "virtio-console";
    type Config = ConsoleConfig;

    fn shape(config: &ConsoleConfig) -> Result<Shape, ConfigError> {
        if config.ports.is_empty() || config.ports.len() > MAX_PORTS {
            let reason = format!("{} ports are not from 1 to {MAX_PORTS}", config.ports.len());
            return Err(ConfigError::new("ports", reason));
        }
        let mut names = BTreeSet::new();
        for (index, port) in config.ports.iter().enumerate() {
            let Some(name) = &port.name else { continue };
            let path = format!("ports.{index}.name");
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                let reason = format!("{name:?} is not 1 to {MAX_NAME} printable bytes");
                return Err(ConfigError::new(path, reason));
            }
            if !names.insert(name) {
                return Err(ConfigError::new(path, format!("{name:?} names two ports")));
            }
        }
        // Simple communication controller, other.
        let class = [0x07, 0x80, 0x00];
        Ok(Shape {
            device_id: VIRTIO_ID_CONSOLE as u16,
            queues: config.queues(),
            class,
        })
    }

    fn build(
        config: ConsoleConfig,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn VirtioDevice>, BoxError> {
        let backends: Result<Vec<_>, _> = config
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| {
                let unnamed = || format!("{}.{index}", wiring.placement.name);
                let name = port.name.clone().unwrap_or_else(unnamed);
                wiring.backends.char(&name, &port.backend)
            })
            .collect();
        Ok(Box::new(Console::new(&config, backends?)?))
    }
}

/// What a console device has done.
#[derive(Debug, Default, Inspect)]
#[inspect(prefix = "console")]
pub(crate) struct ConsoleCounters {
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "rx"))]
    input_bytes: Counter,
    /// Bytes carried: rx to the guest, tx from it.
    #[inspect(metric = "bytes", label(direction = "tx"))]
    output_bytes: Counter,
    /// Times a backend took no more output.
    output_stalls: Counter,
    /// Failed reads and writes of backends, and buffers that are not memory.
    errors: Counter,
    /// Control messages that made no sense, or found no room.
    refused_messages: Counter,
}

/// What does not change about a port, and its backend's bell.
pub(crate) struct Port {
    name: Option<String>,
    console: bool,
    describe: String,
    /// The backend said that something changed.
    news: Arc<AtomicBool>,
}

/// What the device, its task and its backends share.
pub(crate) struct Shared {
    ports: Vec<Port>,
    states: Mutex<Vec<PortState>>,
    /// Signalled when a backend has news, or for emergency output.
    event: Arc<EventFd>,
    emergency: Mutex<Vec<u8>>,
    /// Of the first port's terminal: columns, and rows in the upper half.
    size: AtomicU32,
    counters: ConsoleCounters,
}

impl Shared {
    fn set_size(&self, size: Option<WindowSize>) {
        if let Some(WindowSize { columns, rows }) = size {
            self.size.store(
                u32::from(rows) << 16 | u32::from(columns),
                Ordering::Release,
            );
        }
    }
}

/// A console device.
pub struct Console {
    // Wiring
    backends: Vec<Shelf<Box<dyn CharBackend>>>,
    shared: Arc<Shared>,
    // Configuration
    queues: u16,
    simple: bool,
}

impl Console {
    /// A device whose ports have `backends`, in order.
    pub fn new(
        config: &ConsoleConfig,
        mut backends: Vec<Box<dyn CharBackend>>,
    ) -> Result<Self, BoxError> {
        if backends.len() != config.ports.len() {
            let reason = format!("{} backends for them", backends.len());
            return Err(ConfigError::new("ports", reason).into());
        }
        let event = Arc::new(EventFd::new()?);
        let (mut ports, mut states) = (Vec::new(), Vec::new());
        for (port, backend) in config.ports.iter().zip(&mut backends) {
            let news = Arc::new(AtomicBool::new(false));
            let bell = (event.clone(), news.clone());
            backend.notify(Box::new(move || {
                bell.1.store(true, Ordering::Release);
                bell.0.signal();
            }))?;
            let describe = backend.describe();
            ports.push(Port {
                name: port.name.clone(),
                console: port.console,
                describe,
                news,
            });
            states.push(initial(&**backend));
        }
        let shared = Shared {
            ports,
            event,
            emergency: Mutex::default(),
            size: AtomicU32::new(0),
            counters: ConsoleCounters::default(),
            states: Mutex::new(states),
        };
        shared.set_size(shared.states.lock().first().and_then(|s| s.size));
        Ok(Self {
            backends: backends.into_iter().map(Shelf::new).collect(),
            shared: Arc::new(shared),
            queues: config.queues(),
            simple: config.is_simple(),
        })
    }

    /// `struct virtio_console_config` (§5.3.4).
    fn config_space(&self) -> [u8; 12] {
        let [c0, c1, r0, r1] = self.shared.size.load(Ordering::Acquire).to_le_bytes();
        let [n0, n1, n2, n3] = (self.backends.len() as u32).to_le_bytes();
        [c0, c1, r0, r1, n0, n1, n2, n3, 0, 0, 0, 0]
    }
}

/// What is known of a port that no driver has spoken of.
fn initial(backend: &dyn CharBackend) -> PortState {
    PortState {
        host_open: backend.is_connected(),
        size: backend.window_size(),
        ..PortState::default()
    }
}

impl VirtioDevice for Console {
    fn features(&self) -> u64 {
        1 << F_SIZE | 1 << F_EMERG_WRITE | u64::from(!self.simple) << F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        queues::read_config(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // A character is written as four bytes, the lowest of which counts (§5.3.4).
        let Some(byte) = queues::written_byte(offset, data, EMERGENCY) else {
            return;
        };
        let Some(shelf) = self.backends.first() else {
            return;
        };
        if shelf.with(|backend| backend.write(&[byte])).is_none() {
            let mut waiting = self.shared.emergency.lock();
            if waiting.len() < MAX_EMERGENCY {
                waiting.push(byte);
            }
            drop(waiting);
            self.shared.event.signal();
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Box<dyn QueueTask>>, TaskError> {
        let Activation {
            features,
            mut queues,
            dma,
            interrupt,
        } = activation;
        let multiport = !self.simple && features & 1 << F_MULTIPORT != 0;
        let mut take = |index: u16| -> Option<VirtQueue> {
            let at = queues.iter().position(|q| q.index() == index)?;
            Some(queues.remove(at))
        };
        let mut ports = Vec::new();
        // A driver without MULTIPORT has the first port only.
        let count = if multiport { self.backends.len() } else { 1 };
        for (id, shelf) in (0..).zip(self.backends.iter().take(count)) {
            let backend = shelf.lend()?;
            let (input, output) = port_queues(id);
            ports.push(PortTask {
                backend,
                input: take(input),
                output: take(output),
            });
        }
        let (to, from) = control_queues();
        let control = if multiport {
            take(to).zip(take(from))
        } else {
            None
        };
        Ok(vec![Box::new(ConsoleTask {
            ports,
            control,
            dma,
            shared: self.shared.clone(),
            interrupt,
            multiport,
            draining: false,
        })])
    }

    fn reset(&mut self) {
        self.shared.emergency.lock().clear();
        for (state, shelf) in self.shared.states.lock().iter_mut().zip(&self.backends) {
            *state = shelf
                .with(|backend| initial(&**backend))
                .unwrap_or_default();
        }
    }
}

impl Inspect for Console {
    fn inspect(&self, v: &mut dyn Visitor) {
        struct Ports<'a>(&'a Shared);
        struct One<'a>(&'a Port, PortState);
        impl Inspect for Ports<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                let states = self.0.states.lock().clone();
                for (index, (port, state)) in self.0.ports.iter().zip(states).enumerate() {
                    v.child(&index.to_string(), &One(port, state));
                }
            }
        }
        impl Inspect for One<'_> {
            fn inspect(&self, v: &mut dyn Visitor) {
                let Self(port, state) = self;
                port.name.visit("name", v);
                port.describe.visit("backend", v);
                port.console.visit("console", v);
                state.guest_open.visit("guest_open", v);
                state.host_open.visit("host_open", v);
                if let Some(WindowSize { columns, rows }) = state.size {
                    v.leaf("size", Leaf::Text(format!("{columns}x{rows}")));
                }
            }
        }
        v.child("ports", &Ports(&self.shared));
        self.shared.counters.inspect(v);
    }
}

/// Saved form.
mod saved {
    use nyx_state::{Saved, minicbor};

    #[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct ConsoleState {
        /// In the order of the configuration.
        #[n(0)]
        pub ports: Vec<SavedPort>,
    }

    #[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    pub struct SavedPort {
        /// The guest said PORT_READY.
        #[n(0)]
        pub ready: bool,
        /// The guest has it open.
        #[n(1)]
        pub guest_open: bool,
        /// What the guest believes of the host's end, or is about to be told.
        #[n(2)]
        pub host_open: bool,
        /// What it still has to be told.
        #[n(3)]
        pub news: u8,
        /// Bytes of the next chain of output that are already out.
        #[n(4)]
        pub written: u64,
        /// Columns and rows.
        #[n(5)]
        pub size: Option<(u16, u16)>,
    }

    impl Saved for ConsoleState {
        const NAME: &'static str = "virtio-console/1";
    }
}

impl Persist for Console {
    type Saved = saved::ConsoleState;

    fn save(&self) -> Result<Self::Saved, SaveError> {
        // The size in the configuration space follows from the ports' own.
        let Self {
            backends: _,
            shared,
            queues: _,
            simple: _,
        } = self;
        let port = |state: &PortState| {
            let PortState {
                ready,
                guest_open,
                host_open,
                news,
                written,
                size,
            } = *state;
            let size = size.map(|s| (s.columns, s.rows));
            saved::SavedPort {
                ready,
                guest_open,
                host_open,
                news,
                written,
                size,
            }
        };
        Ok(saved::ConsoleState {
            ports: shared.states.lock().iter().map(port).collect(),
        })
    }

    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError> {
        if saved.ports.len() != self.backends.len() {
            return Err(RestoreError::Invalid("another number of ports"));
        }
        let mut states = self.shared.states.lock();
        for (state, saved) in states.iter_mut().zip(saved.ports) {
            let saved::SavedPort {
                ready,
                guest_open,
                host_open,
                news,
                written,
                size,
            } = saved;
            let size = size.map(|(columns, rows)| WindowSize { columns, rows });
            let news = news & News::MASK;
            // The task compares this with the backends there are now, and tells the difference.
            *state = PortState {
                ready,
                guest_open,
                host_open,
                news,
                written,
                size,
            };
        }
        self.shared.set_size(states.first().and_then(|s| s.size));
        Ok(())
    }
}
