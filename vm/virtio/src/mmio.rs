//! virtio over MMIO, version 2 (Virtio 1.2 §4.2).

use crate::saved;
use crate::transport::{Area, Transport};
use nyx_device::{
    AccessResult, BadAccess, Device, Doorbell, Drain, Hit, Lifecycle, RegionId, Registers,
    ResetKind, read_register,
};
use nyx_inspect::{Inspect, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use std::sync::Arc;

/// The only window.
pub(crate) const REGION: u8 = 0;
/// Its length in bytes.
pub(crate) const LEN: u64 = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"Nyx ");
const QUEUE_NOTIFY: u64 = 0x50;
const CONFIG: u64 = 0x100;

/// A virtio device behind the MMIO register layout.
pub(crate) struct VirtioMmio {
    transport: Transport,
    device_id: u16,
}

impl VirtioMmio {
    pub(crate) fn new(transport: Transport, device_id: u16) -> Self {
        Self {
            transport,
            device_id,
        }
    }
}

impl Registers for VirtioMmio {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        if at.offset >= CONFIG {
            self.transport.read_config(at.offset - CONFIG, data);
            return Ok(());
        }
        // §4.2.2.2: registers are read whole.
        if data.len() != 4 {
            return Err(BadAccess::Width);
        }
        let t = &mut self.transport;
        let queue = t.queue();
        let value: u32 = match at.offset {
            0x00 => MAGIC,
            0x04 => 2,
            0x08 => self.device_id.into(),
            0x0c => VENDOR,
            0x10 => t.device_features(),
            0x34 => queue.map_or(0, |q| q.max_size).into(),
            0x44 => queue.is_some_and(|q| q.ready).into(),
            0x60 => t.interrupt.isr(),
            0x70 => t.status().into(),
            // §4.2.2: no shared memory regions, so every length reads as all-ones.
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => t.interrupt.generation().into(),
            _ => return Err(BadAccess::NoRegister),
        };
        read_register(value.into(), 4, 0, data)
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        if at.offset >= CONFIG {
            return self.transport.write_config(at.offset - CONFIG, data);
        }
        let value = u32::from_le_bytes(data.try_into().map_err(|_| BadAccess::Width)?);
        let t = &mut self.transport;
        match at.offset {
            0x14 => t.device_feature_select = value,
            0x20 => t.set_driver_features(value),
            0x24 => t.driver_feature_select = value,
            0x30 => t.queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            0x38 => t.set_queue_size(u16::try_from(value).unwrap_or(0)),
            0x44 => t.set_queue_ready(value & 1 != 0),
            QUEUE_NOTIFY => t.kick(value.into()),
            0x64 => t.interrupt.acknowledge(value),
            0x70 => t.set_status(value as u8),
            0x80 => t.set_queue_address(Area::Descriptors, false, value),
            0x84 => t.set_queue_address(Area::Descriptors, true, value),
            0x90 => t.set_queue_address(Area::Driver, false, value),
            0x94 => t.set_queue_address(Area::Driver, true, value),
            0xa0 => t.set_queue_address(Area::Device, false, value),
            0xa4 => t.set_queue_address(Area::Device, true, value),
            // Selecting a shared memory region that does not exist.
            0xac => {}
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }
}

impl Lifecycle for VirtioMmio {
    fn start(&mut self) {
        self.transport.start();
    }
    fn stop(&mut self) -> Drain {
        self.transport.stop()
    }
    fn reset(&mut self, _: ResetKind) {
        self.transport.reset();
    }
    fn wake(&mut self) {
        self.transport.device.wake();
    }
}

impl Inspect for VirtioMmio {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.transport.inspect(v);
    }
}

impl Persist for VirtioMmio {
    type Saved = saved::VirtioMmio;
    fn save(&self) -> Result<saved::VirtioMmio, SaveError> {
        let Self {
            transport,
            device_id: _,
        } = self;
        Ok(saved::VirtioMmio {
            transport: transport.save()?,
        })
    }
    fn restore(&mut self, saved: saved::VirtioMmio) -> Result<(), RestoreError> {
        self.transport.restore(saved.transport)
    }
}

impl Device for VirtioMmio {
    fn doorbells(&self) -> Vec<Doorbell> {
        let bell = |(index, kick): (usize, &Arc<_>)| Doorbell {
            region: RegionId(REGION),
            offset: QUEUE_NOTIFY,
            len: 4,
            value: u32::try_from(index).ok(),
            event: Arc::clone(kick),
        };
        self.transport.kicks().enumerate().map(bell).collect()
    }
}
