//! Hot-plug of bus 0 as ACPI does it (ACPI 6.5 §6.3): registers that tell the guest which slots to
//! look at, and the AML that reads them.
//!
//! ```text
//!   machine plugs n ─▶ ARRIVED bit n, GPE 1 ─▶ _E01 ─▶ Notify (Sn, device check) ─▶ the guest scans the slot
//!   machine asks n  ─▶ ASKED bit n,   GPE 1 ─▶ _E01 ─▶ Notify (Sn, eject request) ─▶ driver unbound, Sn._EJ0
//!                                                          _EJ0 ─▶ EJECT bit n ─▶ function unreachable, owner told
//!   machine pulls n ─▶ GONE bit n,    GPE 1 ─▶ _E01 ─▶ Notify (PCI0, bus check) ─▶ the guest finds it missing
//! ```
//!
//! An ejected function stops answering configuration accesses within `_EJ0`, so that the guest finds
//! the slot empty right after it; the machine's owner takes the device apart afterwards, outside of
//! the register access. Without `_STA` a guest takes the vendor id in configuration space for an
//! answer, which is thus always true.

use crate::saved::SavedPciHotplug;
use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, And, Arg, Device as AmlDevice, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Local, Method, MethodCall, Mutex, Name, Notify,
    OpRegion, OpRegionSpace, Path, Release, ResourceTemplate, Store, ZERO,
};
use nyx_device::{
    AccessResult, Attach, BadAccess, Bdf, BoxError, ConfigError, Demand, Device, DeviceKind,
    Fragment, Hit, Lifecycle, PciSlots, Placement, Registers, ResetKind, Space, Window, Wiring,
};
use nyx_inspect::{Counter, Inspect};
use nyx_pci::Topology;
use nyx_state::{Persist, RestoreError, SaveError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Offset of ARRIVED: slots to be looked at. Writing ones clears.
const ARRIVED: u64 = 0x00;
/// Offset of ASKED: slots whose function the guest is to let go. Writing ones clears.
const ASKED: u64 = 0x04;
/// Offset of EJECT: writing ones lets functions go; reads as slots that are being emptied.
const EJECT: u64 = 0x08;
/// Offset of REMOVABLE: slots that hold something to let go of. Read-only.
const REMOVABLE: u64 = 0x0c;
/// Offset of the bus that all other registers are about. Only bus 0 has slots.
const BUS: u64 = 0x10;
/// Offset of GONE: slots emptied behind the guest's back. Writing ones clears.
const GONE: u64 = 0x14;
/// Length of the window.
const LEN: u64 = 0x18;

/// The host bridge is no slot.
const SLOTS: u32 = !1;

/// Notifications (ACPI 6.5 table 5.169).
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The hot-plug registers of bus 0.
///
/// | Offset | Register | Read | Write |
/// |---|---|---|---|
/// | 00 | arrived | slots to look at | ones clear |
/// | 04 | asked | slots to let go | ones clear |
/// | 08 | eject | slots being emptied | ones eject |
/// | 0C | removable | slots in use | – |
/// | 10 | bus | bus number | bus number |
/// | 14 | gone | slots found empty | ones clear |
///
/// Accesses are double words; on buses other than 0 there is nothing.
#[derive(Inspect)]
#[inspect(prefix = "hotplug")]
pub struct PciHotplug {
    // Wiring
    #[inspect(skip)]
    topology: Arc<Topology>,
    #[inspect(skip)]
    slots: Arc<PciSlots>,
    // State
    #[inspect(hex)]
    arrived: u32,
    #[inspect(hex)]
    asked: u32,
    #[inspect(hex)]
    gone: u32,
    bus: u32,
    // Statistics
    /// Devices that came while the guest ran.
    arrivals: Counter,
    /// Times the guest was asked to let a device go.
    requests: Counter,
    /// Devices that the guest let go.
    ejections: Counter,
}

/// Configuration of [`PciHotplug`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciHotplugConfig {
    /// First port; a multiple of 32.
    #[serde(default = "usual_base")]
    pub base: u16,
}

fn usual_base() -> u16 {
    0xae00
}

impl DeviceKind for PciHotplug {
    const KIND: &'static str = "pci-hotplug";
    type Config = PciHotplugConfig;

    fn demand(config: &PciHotplugConfig, _: Attach) -> Result<Demand, ConfigError> {
        if config.base == 0 || !config.base.is_multiple_of(32) {
            let reason = format!("{:#x} is not a multiple of 32, as 0xae00 is", config.base);
            return Err(ConfigError::new("base", reason));
        }
        Ok(Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Pio,
                len: LEN,
                fixed: Some(config.base.into()),
            }],
            ..Demand::default()
        })
    }

    fn build(_: PciHotplugConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let topology = wiring
            .extensions
            .get::<Topology>()
            .ok_or("this machine has no PCI topology")?;
        let slots = wiring
            .extensions
            .get::<PciSlots>()
            .ok_or("this machine has no hot-plug slots")?;
        slots.bind(&wiring.waker);
        Ok(Box::new(Self {
            topology,
            slots,
            arrived: 0,
            asked: 0,
            gone: 0,
            bus: 0,
            arrivals: Counter::default(),
            requests: Counter::default(),
            ejections: Counter::default(),
        }))
    }

    fn acpi(config: &PciHotplugConfig, _: &Placement) -> Vec<Fragment> {
        vec![
            Fragment::PciRoot(slots_aml(config.base)),
            Fragment::Events(event_aml()),
        ]
    }
}

fn push(aml: &mut Vec<u8>, part: &dyn Aml) {
    part.to_aml_bytes(aml);
}

fn slot_name(slot: u8) -> Path {
    Path::new(&format!("S{slot:02X}_"))
}

/// Everything under `PCI0`: registers, slots, and the methods between them.
///
/// `PHPL` keeps an event and an ejection, or two ejections, from meeting over the bus selection.
fn slots_aml(base: u16) -> Vec<u8> {
    let named = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    let path = Path::new;
    let (arrived, asked, eject) = (path("PHPA"), path("PHPR"), path("PHPE"));
    let (bus, gone) = (path("PHPB"), path("PHPG"));
    let mut aml = Vec::new();
    let len = LEN as u8;
    push(
        &mut aml,
        &OpRegion::new(path("PHPW"), OpRegionSpace::SystemIO, &base, &len),
    );
    // In the order of the registers; the fourth has no reader.
    let fields = vec![
        named(b"PHPA"),
        named(b"PHPR"),
        named(b"PHPE"),
        FieldEntry::Reserved(32),
        named(b"PHPB"),
        named(b"PHPG"),
    ];
    push(
        &mut aml,
        &Field::new(
            path("PHPW"),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            fields,
        ),
    );
    push(&mut aml, &Mutex::new(path("PHPL"), 0));
    // The ports are the board's: nobody is to place a BAR on them.
    let ports = IO::new(base, base, 1, len);
    push(
        &mut aml,
        &AmlDevice::new(
            path("PHPD"),
            vec![
                &Name::new(path("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(path("_UID"), &"hotplug"),
                &Name::new(path("_CRS"), &ResourceTemplate::new(vec![&ports])),
            ],
        ),
    );
    push(
        &mut aml,
        &Method::new(
            path("PHPJ"),
            1,
            false,
            vec![
                &Acquire::new(path("PHPL"), 0xffff),
                &Store::new(&bus, &ZERO),
                &Store::new(&eject, &Arg(0)),
                &Release::new(path("PHPL")),
            ],
        ),
    );
    for slot in 1..32u8 {
        let bit = 1u32 << slot;
        let address = u32::from(slot) << 16;
        push(
            &mut aml,
            &AmlDevice::new(
                slot_name(slot),
                vec![
                    &Name::new(path("_ADR"), &address),
                    &Name::new(path("_SUN"), &slot),
                    &Method::new(
                        path("_EJ0"),
                        1,
                        false,
                        vec![&MethodCall::new(path("PHPJ"), vec![&bit])],
                    ),
                ],
            ),
        );
    }
    // Notifies the slots in Arg0 of Arg1.
    let mut notify = Vec::new();
    for slot in 1..32u8 {
        let bit = 1u32 << slot;
        push(
            &mut notify,
            &If::new(
                &And::new(&ZERO, &Arg(0), &bit),
                vec![&Notify::new(&slot_name(slot), &Arg(1))],
            ),
        );
    }
    push(
        &mut aml,
        &Method::new(path("PHPN"), 2, false, vec![&Raw(&notify)]),
    );
    let notify = |slots: u8, what: &u8| {
        let mut aml = Vec::new();
        push(
            &mut aml,
            &MethodCall::new(path("PHPN"), vec![&Local(slots), what]),
        );
        aml
    };
    // What is read is cleared before it is passed on, so that news of the meantime are not lost:
    // they raise the event once more.
    push(
        &mut aml,
        &Method::new(
            path("PHPS"),
            0,
            false,
            vec![
                &Acquire::new(path("PHPL"), 0xffff),
                &Store::new(&bus, &ZERO),
                &Store::new(&Local(0), &gone),
                &Store::new(&gone, &Local(0)),
                &Store::new(&Local(1), &arrived),
                &Store::new(&arrived, &Local(1)),
                &Store::new(&Local(2), &asked),
                &Store::new(&asked, &Local(2)),
                &Release::new(path("PHPL")),
                &If::new(
                    &Local(0),
                    vec![&Notify::new(&path("\\_SB_.PCI0"), &BUS_CHECK)],
                ),
                &If::new(&Local(1), vec![&Raw(&notify(1, &DEVICE_CHECK))]),
                &If::new(&Local(2), vec![&Raw(&notify(2, &EJECT_REQUEST))]),
            ],
        ),
    );
    aml
}

/// The method of general purpose event 1 (ACPI 6.5 §5.6.4.1): edge-triggered, since what raised it is
/// cleared by the method.
fn event_aml() -> Vec<u8> {
    let mut aml = Vec::new();
    let scan = MethodCall::new(Path::new("\\_SB_.PCI0.PHPS"), vec![]);
    let name = format!("_E{:02X}", nyx_device::HOTPLUG_EVENT);
    push(
        &mut aml,
        &Method::new(Path::new(&name), 0, false, vec![&scan]),
    );
    aml
}

/// AML already encoded.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

impl PciHotplug {
    /// Takes in what happened to slots since anyone looked.
    fn take_news(&mut self) {
        let news = self.slots.take_news();
        self.arrivals.add(news.arrived.count_ones().into());
        self.requests.add(news.asked.count_ones().into());
        // A slot that was emptied has no older news; what came after it has.
        let stale = news.freed | news.vanished;
        self.arrived = (self.arrived & !stale | news.arrived) & SLOTS;
        self.asked = (self.asked & !stale & !news.retracted | news.asked) & SLOTS;
        self.gone = (self.gone | news.vanished) & SLOTS;
    }

    fn register(&self, offset: u64) -> Option<u32> {
        let here = |value| if self.bus == 0 { value } else { 0 };
        Some(match offset {
            ARRIVED => here(self.arrived),
            ASKED => here(self.asked),
            EJECT => here(self.slots.ejected()),
            REMOVABLE => here(self.slots.occupied() & SLOTS),
            BUS => self.bus,
            GONE => here(self.gone),
            _ => return None,
        })
    }

    /// Makes the function in `slot` answer configuration accesses, or not.
    fn show(&self, slot: u8, present: bool) {
        self.topology.set_present(Bdf::new(slot, 0), present);
    }

    fn eject(&mut self, slots: u32) {
        // Unreachable first: the owner may be quick.
        let leaving = slots & SLOTS & self.slots.occupied() & !self.slots.ejected();
        each(leaving, |slot| self.show(slot, false));
        let new = self.slots.eject(leaving);
        self.ejections.add(new.count_ones().into());
    }
}

/// Calls `act` for each slot in `slots`.
fn each(slots: u32, act: impl FnMut(u8)) {
    (0..32u8)
        .filter(|slot| slots >> slot & 1 != 0)
        .for_each(act);
}

impl Registers for PciHotplug {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        let value = self.register(at.offset).ok_or(BadAccess::NoRegister)?;
        if data.len() != 4 {
            return Err(BadAccess::Width);
        }
        data.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        self.register(at.offset).ok_or(BadAccess::NoRegister)?;
        let value = u32::from_le_bytes(data.try_into().map_err(|_| BadAccess::Width)?);
        match at.offset {
            BUS => self.bus = value,
            _ if self.bus != 0 => {}
            ARRIVED => self.arrived &= !value,
            ASKED => self.asked &= !value,
            GONE => self.gone &= !value,
            EJECT => self.eject(value),
            _ => {}
        }
        Ok(())
    }
}

impl Lifecycle for PciHotplug {
    /// Also reports ejections that a snapshot was taken in the middle of.
    fn start(&mut self) {
        self.take_news();
        self.slots.remind();
    }

    /// News are void: the guest looks at every slot when it starts. The owner has emptied slots that
    /// were being emptied; a function that it left is there again.
    fn reset(&mut self, _: ResetKind) {
        self.take_news();
        each(self.slots.ejected(), |slot| self.show(slot, true));
        self.slots.restore_ejected(0);
        self.arrived = 0;
        self.asked = 0;
        self.gone = 0;
        self.bus = 0;
    }

    fn wake(&mut self) {
        self.take_news();
    }
}

impl Persist for PciHotplug {
    type Saved = SavedPciHotplug;

    fn save(&self) -> Result<SavedPciHotplug, SaveError> {
        let Self {
            topology: _,
            slots,
            arrived,
            asked,
            gone,
            bus,
            arrivals: _,
            requests: _,
            ejections: _,
        } = self;
        Ok(SavedPciHotplug {
            arrived: *arrived,
            asked: *asked,
            gone: *gone,
            bus: *bus,
            ejected: slots.ejected(),
        })
    }

    fn restore(&mut self, saved: SavedPciHotplug) -> Result<(), RestoreError> {
        let SavedPciHotplug {
            arrived,
            asked,
            gone,
            bus,
            ejected,
        } = saved;
        if (arrived | asked | gone | ejected) & !SLOTS != 0 {
            return Err(RestoreError::Invalid("there is no such slot"));
        }
        if ejected & !self.slots.occupied() != 0 {
            return Err(RestoreError::Invalid("an empty slot is being emptied"));
        }
        self.slots.take_news();
        self.arrived = arrived;
        self.asked = asked;
        self.gone = gone;
        self.bus = bus;
        self.slots.restore_ejected(ejected);
        each(self.slots.occupied(), |slot| {
            self.show(slot, ejected >> slot & 1 == 0);
        });
        Ok(())
    }
}

impl Device for PciHotplug {}
