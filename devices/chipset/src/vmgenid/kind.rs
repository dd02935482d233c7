//! The generation id as a device kind.

use super::VmGenId;
use super::generation::OFFSET;
use super::uuid::Uuid;
use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device as AmlDevice, Equal, If, Interrupt, Method, Name, Notify, Package, Path,
    ResourceTemplate,
};
use nyx_device::{
    Attach, BoxError, ConfigError, Demand, Device, DeviceKind, Fragment, GenerationChange,
    IrqDemand, Placement, Wiring,
};
use nyx_memory::PAGE;
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

/// Configuration of a VM generation id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmGenIdConfig {
    /// The first id; a random one if absent.
    #[serde(default)]
    pub guid: Option<Uuid>,
}

impl DeviceKind for VmGenId {
    const KIND: &'static str = "vmgenid";
    type Config = VmGenIdConfig;

    fn demand(_: &VmGenIdConfig, _: Attach) -> Result<Demand, ConfigError> {
        Ok(Demand {
            irqs: [("event".into(), IrqDemand::Any)].into(),
            reserved_ram: PAGE,
            ..Demand::default()
        })
    }

    fn build(config: VmGenIdConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let page = wiring
            .placement
            .reserved_ram
            .ok_or("no RAM was reserved for the id")?;
        let id = match config.guid {
            Some(id) => id,
            None => Uuid::random()?,
        };
        let change = wiring.extensions.get::<GenerationChange>();
        if let Some(change) = &change {
            change.bind(&wiring.waker);
        }
        let event = wiring.irq("event")?;
        let (memory, faults) = (wiring.dma.clone(), wiring.faults.clone());
        Ok(Box::new(Self::new(
            event,
            memory,
            change,
            faults,
            GuestAddress(page),
            id,
        )))
    }

    /// The device that says where the id is, and a generic event device (ACPI 6.5 §5.6.9) that
    /// turns the interrupt into the notification 0x80 which the specification asks for.
    fn acpi(_: &VmGenIdConfig, placement: &Placement) -> Vec<Fragment> {
        let (Some(page), Some(&gsi)) = (placement.reserved_ram, placement.irqs.get("event")) else {
            return Vec::new();
        };
        let address = page.saturating_add(OFFSET);
        let (low, high) = (address as u32, (address >> 32) as u32);
        let mut bytes = Vec::new();
        AmlDevice::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"NYX0001"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(&mut bytes);
        let interrupt = Interrupt::new(true, true, false, false, gsi);
        let target: Path = "\\_SB_.VGEN".into();
        AmlDevice::new(
            "VGED".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &"vmgenid"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![&If::new(
                        &Equal::new(&Arg(0), &gsi),
                        vec![&Notify::new(&target, &0x80u8)],
                    )],
                ),
            ],
        )
        .to_aml_bytes(&mut bytes);
        vec![Fragment::SystemBus(bytes)]
    }
}
