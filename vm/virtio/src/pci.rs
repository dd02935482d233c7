//! virtio over PCI, modern only (Virtio 1.2 §4.1).

use crate::saved;
use crate::transport::{Area, Transport};
use crate::{Interrupt, NO_VECTOR};
use nyx_device::{
    AccessResult, BadAccess, BarDemand, BarSpace, Device, Doorbell, Drain, FunctionDemand, Hit,
    Lifecycle, PciHooks, RegionId, Registers, ResetKind, read_register,
};
use nyx_inspect::{Inspect, Visitor};
use nyx_state::{Persist, RestoreError, SaveError};
use std::sync::Arc;

use crate::device::Shape;

/// BAR 0 holds all four structures, a page each.
const BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PAGE: u64 = 0x1000;
/// Distance of the notification registers of two queues.
const NOTIFY_STRIDE: u64 = 4;

/// `struct virtio_pci_cap` (§4.1.4): configuration types.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_ACCESS: u8 = 5;
/// Position of the access capability among ours.
const ACCESS_INDEX: usize = 4;
/// Offset of `bar` in a capability's body (which begins at `cap_len`).
const BODY_BAR: usize = 2;
/// Offset of `pci_cfg_data` in the body of the access capability.
const BODY_DATA: usize = 14;

/// The function that a virtio device of `shape` asks for.
pub(crate) fn demand(shape: &Shape) -> FunctionDemand {
    FunctionDemand {
        vendor: 0x1af4,
        device: 0x1040 + shape.device_id,
        // §4.1.2.1: modern-only devices have revision 1 or higher.
        revision: 1,
        class: shape.class,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        bars: vec![BarDemand {
            index: BAR,
            len: 4 * PAGE,
            space: BarSpace::Memory32,
            prefetchable: false,
        }],
        msix_vectors: shape.queues + 1,
        msix_bar: MSIX_BAR,
        intx: true,
        fixed: None,
    }
}

/// A virtio device behind the PCI register layout.
pub(crate) struct VirtioPci {
    transport: Transport,
    vectors: u16,
    /// Body bytes 2..14 of the access capability: bar, id, padding, offset, length.
    access: [u8; 12],
}

impl VirtioPci {
    pub(crate) fn new(transport: Transport) -> Self {
        let vectors = transport.queue_count() + 1;
        Self {
            transport,
            vectors,
            access: [0; 12],
        }
    }

    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.transport.interrupt
    }

    /// §4.1.5.1.2: a vector that cannot be used reads back as none.
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn read_common(&mut self, offset: u64, data: &mut [u8]) -> AccessResult {
        let Some((start, len)) = common_field(offset) else {
            return Err(BadAccess::NoRegister);
        };
        let t = &mut self.transport;
        let queue = t.queue();
        let value: u64 = match start {
            0 => t.device_feature_select.into(),
            4 => t.device_features().into(),
            8 => t.driver_feature_select.into(),
            12 => t.driver_features().into(),
            16 => t.interrupt.config_vector().into(),
            18 => t.queue_count().into(),
            20 => t.status().into(),
            21 => t.interrupt.generation().into(),
            22 => t.queue_select.into(),
            24 => queue.map_or(0, |q| q.layout.size).into(),
            26 => t.interrupt.queue_vector(t.queue_select).into(),
            28 => queue.is_some_and(|q| q.ready).into(),
            30 => queue.map_or(0, |_| t.queue_select).into(),
            32 => t.queue_address(Area::Descriptors),
            40 => t.queue_address(Area::Driver),
            48 => t.queue_address(Area::Device),
            _ => 0,
        };
        let shift = usize::try_from(offset - start).unwrap_or(usize::MAX);
        read_register(value, len, shift, data)
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) -> AccessResult {
        let Some((start, len)) = common_field(offset) else {
            return Err(BadAccess::NoRegister);
        };
        let value = u64::from_le_bytes({
            let mut bytes = [0; 8];
            bytes
                .get_mut(..data.len())
                .ok_or(BadAccess::Width)?
                .copy_from_slice(data);
            bytes
        });
        // §4.1.3.1: fields are written whole, 64-bit ones also by halves.
        let half = len == 8 && data.len() == 4 && (offset - start).is_multiple_of(4);
        if !half && (offset != start || data.len() != len) {
            return Err(BadAccess::Width);
        }
        let t = &mut self.transport;
        match start {
            0 => t.device_feature_select = value as u32,
            8 => t.driver_feature_select = value as u32,
            12 => t.set_driver_features(value as u32),
            16 => {
                let vector = self.vector(value as u16);
                self.interrupt().set_config_vector(vector);
            }
            20 => t.set_status(value as u8),
            22 => t.queue_select = value as u16,
            24 => t.set_queue_size(value as u16),
            26 => {
                let (vector, queue) = (self.vector(value as u16), t_select(&self.transport));
                self.interrupt().set_queue_vector(queue, vector);
            }
            28 => t.set_queue_ready(value & 1 != 0),
            32 | 40 | 48 => {
                let area = match start {
                    32 => Area::Descriptors,
                    40 => Area::Driver,
                    _ => Area::Device,
                };
                if !half || offset == start {
                    t.set_queue_address(area, false, value as u32);
                }
                if !half {
                    t.set_queue_address(area, true, (value >> 32) as u32);
                } else if offset != start {
                    t.set_queue_address(area, true, value as u32);
                }
            }
            // Read-only fields.
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }

    /// The window the access capability points at: offset and length in BAR 0.
    fn access_window(&self) -> Option<(u64, usize)> {
        let [bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3] = self.access;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let offset = u32::from_le_bytes([o0, o1, o2, o3]);
        // §4.1.4.9.1: 1, 2 or 4 bytes at a multiple of that.
        (bar == BAR && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len))
            .then_some((offset.into(), len as usize))
    }
}

fn t_select(transport: &Transport) -> u16 {
    transport.queue_select
}

/// Start and length of the field of `struct virtio_pci_common_cfg` (§4.1.4.3) at `offset`.
fn common_field(offset: u64) -> Option<(u64, usize)> {
    const FIELDS: [(u64, usize); 18] = [
        (0, 4),
        (4, 4),
        (8, 4),
        (12, 4),
        (16, 2),
        (18, 2),
        (20, 1),
        (21, 1),
        (22, 2),
        (24, 2),
        (26, 2),
        (28, 2),
        (30, 2),
        (32, 8),
        (40, 8),
        (48, 8),
        (56, 2),
        (58, 2),
    ];
    FIELDS
        .into_iter()
        .find(|&(start, len)| offset >= start && offset < start + len as u64)
}

impl Registers for VirtioPci {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        if at.region != RegionId(BAR) {
            return Err(BadAccess::NoRegister);
        }
        match at.offset {
            COMMON..ISR => self.read_common(at.offset - COMMON, data),
            ISR => {
                let isr = self.interrupt().take_isr();
                read_register(isr.into(), 8, 0, data)
            }
            DEVICE..NOTIFY => {
                self.transport.read_config(at.offset - DEVICE, data);
                Ok(())
            }
            NOTIFY.. => {
                data.fill(0);
                Ok(())
            }
            _ => Err(BadAccess::NoRegister),
        }
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        if at.region != RegionId(BAR) {
            return Err(BadAccess::NoRegister);
        }
        match at.offset {
            COMMON..ISR => self.write_common(at.offset - COMMON, data),
            DEVICE..NOTIFY => self.transport.write_config(at.offset - DEVICE, data),
            NOTIFY.. => {
                self.transport.kick((at.offset - NOTIFY) / NOTIFY_STRIDE);
                Ok(())
            }
            _ => Err(BadAccess::NoRegister),
        }
    }
}

impl PciHooks for VirtioPci {
    fn vendor_capabilities(&self) -> Vec<Vec<u8>> {
        let cap = |kind: u8, offset: u64, len: u64, extra: &[u8]| {
            // The length counts the two header bytes in front of the body.
            let total = 16 + extra.len();
            let mut body = vec![u8::try_from(total).unwrap_or(u8::MAX), kind, BAR, 0, 0, 0];
            body.extend((offset as u32).to_le_bytes());
            body.extend((len as u32).to_le_bytes());
            body.extend(extra);
            body
        };
        let stride = (NOTIFY_STRIDE as u32).to_le_bytes();
        vec![
            cap(CAP_COMMON, COMMON, PAGE, &[]),
            cap(CAP_NOTIFY, NOTIFY, PAGE, &stride),
            cap(CAP_ISR, ISR, PAGE, &[]),
            cap(CAP_DEVICE, DEVICE, PAGE, &[]),
            cap(CAP_ACCESS, 0, 0, &[0; 4]),
        ]
    }

    fn read_capability(&mut self, index: usize, offset: usize, data: &mut [u8]) -> bool {
        if index != ACCESS_INDEX || offset < BODY_DATA {
            return false;
        }
        if let Some((at, len)) = self.access_window()
            && offset == BODY_DATA
            && data.len() >= len
            && let Some(data) = data.get_mut(..len)
            && self
                .read(
                    Hit {
                        region: RegionId(BAR),
                        offset: at,
                    },
                    data,
                )
                .is_err()
        {
            data.fill(0xff);
        }
        true
    }

    fn write_capability(&mut self, index: usize, offset: usize, data: &[u8]) -> bool {
        if index != ACCESS_INDEX {
            return false;
        }
        if offset >= BODY_DATA {
            if let Some((at, len)) = self.access_window()
                && offset == BODY_DATA
                && let Some(data) = data.get(..len)
            {
                // An access that the BAR refuses has no effect, as on the bus.
                let _ = self.write(
                    Hit {
                        region: RegionId(BAR),
                        offset: at,
                    },
                    data,
                );
            }
            return true;
        }
        let Some(start) = offset.checked_sub(BODY_BAR) else {
            return false;
        };
        match self.access.get_mut(start..start + data.len()) {
            Some(bytes) => {
                bytes.copy_from_slice(data);
                true
            }
            None => false,
        }
    }
}

impl Lifecycle for VirtioPci {
    fn start(&mut self) {
        self.transport.start();
    }
    fn stop(&mut self) -> Drain {
        self.transport.stop()
    }
    fn reset(&mut self, _: ResetKind) {
        self.access = [0; 12];
        self.transport.reset();
    }
    fn wake(&mut self) {
        self.transport.device.wake();
    }
}

impl Inspect for VirtioPci {
    fn inspect(&self, v: &mut dyn Visitor) {
        self.transport.inspect(v);
    }
}

impl Persist for VirtioPci {
    type Saved = saved::VirtioPci;
    fn save(&self) -> Result<saved::VirtioPci, SaveError> {
        let Self {
            transport,
            vectors: _,
            access,
        } = self;
        Ok(saved::VirtioPci {
            transport: transport.save()?,
            access: *access,
        })
    }
    fn restore(&mut self, saved: saved::VirtioPci) -> Result<(), RestoreError> {
        let vectors = saved.transport.queues.iter().map(|q| q.vector);
        if vectors
            .chain([saved.transport.config_vector])
            .any(|v| v != NO_VECTOR && v >= self.vectors)
        {
            return Err(RestoreError::Invalid(
                "an interrupt vector that does not exist",
            ));
        }
        self.transport.restore(saved.transport)?;
        self.access = saved.access;
        Ok(())
    }
}

impl Device for VirtioPci {
    fn as_pci_function(&mut self) -> Option<&mut dyn PciHooks> {
        Some(self)
    }
    fn doorbells(&self) -> Vec<Doorbell> {
        let bell = |(index, kick): (usize, &Arc<_>)| Doorbell {
            region: RegionId(BAR),
            offset: NOTIFY + index as u64 * NOTIFY_STRIDE,
            len: 0,
            value: None,
            event: Arc::clone(kick),
        };
        self.transport.kicks().enumerate().map(bell).collect()
    }
}
