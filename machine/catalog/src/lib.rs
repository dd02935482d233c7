//! The list of device and backend kinds: the one place that names them all.
#![forbid(unsafe_code)]

mod attach;
mod tail;

use nyx_char::OnEscape;
use nyx_chipset as chipset;
use nyx_device::{
    AnyKind, BackendOpener, BackendSpec, BlockBackend, BoxError, CharBackend, Erased, NetBackend,
};
use nyx_pci_host::{HostBridge, PciHost, PciHotplug};
use nyx_virtio::Virtio;
use nyx_virtio_devices as virtio;

pub use attach::{Attachment, Console, Consoles};
pub use nyx_char::Escape;
pub use tail::{ConsoleTail, Listener};

/// Every device kind.
pub const KINDS: &[&dyn AnyKind] = &[
    &Erased::<chipset::Ioapic>::new(),
    &Erased::<chipset::Pm>::new(),
    &Erased::<chipset::Rtc>::new(),
    &Erased::<chipset::I8042>::new(),
    &Erased::<chipset::PostPort>::new(),
    &Erased::<chipset::PvPanic>::new(),
    &Erased::<chipset::VmGenId>::new(),
    &Erased::<chipset::DebugConsole>::new(),
    &Erased::<chipset::Serial>::new(),
    &Erased::<PciHost>::new(),
    &Erased::<HostBridge>::new(),
    &Erased::<PciHotplug>::new(),
    &Erased::<Virtio<virtio::BlkKind>>::new(),
    &Erased::<Virtio<virtio::ConsoleKind>>::new(),
    &Erased::<Virtio<virtio::NetKind>>::new(),
    &Erased::<Virtio<virtio::RngKind>>::new(),
    &Erased::<Virtio<virtio::VsockKind>>::new(),
];

/// Opens backends by kind. Cloning gives another handle of the same.
#[derive(Clone, Default)]
pub struct Backends {
    /// Hears escapes typed on a terminal console.
    pub on_escape: Option<OnEscape>,
    /// Remembers the last output of the consoles.
    pub tail: ConsoleTail,
    /// The consoles, for those who join them later.
    pub consoles: Consoles,
}

impl BackendOpener for Backends {
    fn block(&self, spec: &BackendSpec) -> Result<Box<dyn BlockBackend>, BoxError> {
        Ok(nyx_block::open(spec)?)
    }
    fn net(&self, spec: &BackendSpec) -> Result<Box<dyn NetBackend>, BoxError> {
        Ok(nyx_net::open(spec)?)
    }
    fn char(&self, name: &str, spec: &BackendSpec) -> Result<Box<dyn CharBackend>, BoxError> {
        let backend = nyx_char::open(spec, self.on_escape.clone())?;
        let remembered = Box::new(tail::Remembered {
            backend,
            tail: self.tail.clone(),
            listener: self.tail.listener(name),
        });
        Ok(self.consoles.add(name, &spec.kind, remembered))
    }
}
