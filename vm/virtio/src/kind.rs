//! A device kind out of every virtio kind, over PCI or MMIO.

use crate::device::VirtioKind;
use crate::interrupt::Exit;
use crate::mmio::{self, VirtioMmio};
use crate::pci::{self, VirtioPci};
use crate::transport::Transport;
use acpi_tables::{Aml, aml};
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, IrqDemand, Placement,
    Space, Window, Wiring,
};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// The wire of a device attached by MMIO.
const WIRE: &str = "intr";

/// Makes a [`DeviceKind`] of a [`VirtioKind`].
pub struct Virtio<K>(PhantomData<fn(K)>);

impl<K: VirtioKind> DeviceKind for Virtio<K> {
    const KIND: &'static str = K::KIND;
    type Config = K::Config;

    fn demand(config: &K::Config, attach: Attach) -> Result<Demand, ConfigError> {
        let shape = K::shape(config)?;
        Ok(match attach {
            Attach::Pci => Demand {
                pci: Some(pci::demand(&shape)),
                ..Demand::default()
            },
            Attach::Mmio => Demand {
                windows: vec![Window {
                    region: mmio::REGION,
                    space: Space::Mmio,
                    len: mmio::LEN,
                    fixed: None,
                }],
                irqs: BTreeMap::from([(WIRE.into(), IrqDemand::Any)]),
                ..Demand::default()
            },
        })
    }

    fn build(config: K::Config, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let device_id = K::shape(&config)?.device_id;
        let device = K::build(config, wiring)?;
        let exit = match wiring.placement.attach {
            Attach::Pci => Exit::Pci(wiring.pci()?),
            Attach::Mmio => Exit::Line(wiring.irq(WIRE)?),
        };
        let transport = Transport::new(
            device,
            exit,
            wiring.dma.clone(),
            wiring.threads.clone(),
            wiring.faults.clone(),
        )?;
        Ok(match wiring.placement.attach {
            Attach::Pci => Box::new(VirtioPci::new(transport)),
            Attach::Mmio => Box::new(VirtioMmio::new(transport, device_id)),
        })
    }

    /// A device attached by MMIO is found through ACPI (`LNRO0005`, as Linux knows it).
    fn acpi(_: &K::Config, placement: &Placement) -> Vec<Fragment> {
        let (Some((window, base)), Some(&gsi)) =
            (placement.window(mmio::REGION), placement.irqs.get(WIRE))
        else {
            return Vec::new();
        };
        let (Ok(address), Ok(len)) = (u32::try_from(base), u32::try_from(window.len)) else {
            return Vec::new();
        };
        let path = aml::Path::new(&format!("V{:03X}", (base / mmio::LEN) & 0xfff));
        let hid = aml::Name::new("_HID".into(), &"LNRO0005");
        let uid = (base / mmio::LEN) as u32;
        let uid = aml::Name::new("_UID".into(), &uid);
        let cca = aml::Name::new("_CCA".into(), &aml::ONE);
        let memory = aml::Memory32Fixed::new(true, address, len);
        // Level-triggered, active high, shareable.
        let interrupt = aml::Interrupt::new(true, false, false, true, gsi);
        let resources = aml::ResourceTemplate::new(vec![&memory, &interrupt]);
        let crs = aml::Name::new("_CRS".into(), &resources);
        let mut bytes = Vec::new();
        aml::Device::new(path, vec![&hid, &uid, &cca, &crs]).to_aml_bytes(&mut bytes);
        vec![Fragment::SystemBus(bytes)]
    }
}
