//! The bridge's CPU side: configuration mechanism #1, ECAM and the reset control register.

use crate::saved::SavedPciHost;
use nyx_device::{
    AccessResult, Attach, BadAccess, Bdf, BoxError, ConfigError, Demand, Device, DeviceKind, Hit,
    Lifecycle, PowerPort, PowerRequest, RegionId, Registers, ResetKind, Space, Window, Wiring,
};
use nyx_inspect::{Counter, Inspect};
use nyx_pci::Topology;
use nyx_state::{Persist, RestoreError, SaveError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Window of ports CF8 to CFF.
const PORTS: u8 = 0;
/// Window of ECAM.
const ECAM: u8 = 1;
const PORTS_BASE: u64 = 0xcf8;
const PORTS_LEN: u64 = 8;
/// Port CF9, counted from CF8.
const RESET_CONTROL: u64 = 1;
/// Port CFC, counted from CF8.
const DATA: u64 = 4;

/// CONFIG_ADDRESS (PCI Local Bus 3.0 §3.2.2.3.2): configuration cycles are enabled.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: bits 30:24 are reserved, bits 1:0 are zero.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;

/// RST_CNT (Intel ICH9 datasheet §13.7.5): system reset, reset CPU, full reset.
const RESET_BITS: u8 = 1 << 1 | RESET_CPU | 1 << 3;
/// RST_CNT: its rising edge resets the platform.
const RESET_CPU: u8 = 1 << 2;

/// Bytes of ECAM for one bus and one function (PCI Express Base 5.0 §7.2.2).
const BUS_LEN: u64 = 1 << 20;
const FUNCTION_LEN: u64 = 1 << 12;

/// The registers through which CPUs reach configuration space.
///
/// | Window | Register |
/// |---|---|
/// | ports CF8, 4 bytes | CONFIG_ADDRESS |
/// | port CF9, 1 byte | reset control |
/// | ports CFC to CFF, 1, 2 or 4 bytes | the addressed double word |
/// | ECAM | 4 KiB for each function, any width |
#[derive(Inspect)]
#[inspect(prefix = "pci")]
pub struct PciHost {
    // Wiring
    #[inspect(skip)]
    topology: Arc<Topology>,
    #[inspect(skip)]
    power: PowerPort,
    // Configuration
    first_bus: u8,
    // State
    #[inspect(hex)]
    address: u32,
    #[inspect(hex)]
    reset_control: u8,
    // Statistics
    /// Accesses to PCI configuration space.
    #[inspect(metric = "config_accesses", label(direction = "read"))]
    config_reads: Counter,
    /// Accesses to PCI configuration space.
    #[inspect(metric = "config_accesses", label(direction = "write"))]
    config_writes: Counter,
}

/// Configuration of a [`PciHost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciHostConfig {
    /// Guest-physical address of the ECAM of bus 0, whether or not that is the first bus, as the
    /// MCFG table gives it (PCI Firmware 3.2 §4.1.2).
    pub ecam: u64,
    /// First bus with ECAM.
    #[serde(default)]
    pub start_bus: u8,
    /// Last bus with ECAM.
    #[serde(default = "last_bus")]
    pub end_bus: u8,
}

fn last_bus() -> u8 {
    u8::MAX
}

impl DeviceKind for PciHost {
    const KIND: &'static str = "pci-host";
    type Config = PciHostConfig;

    fn demand(config: &PciHostConfig, _: Attach) -> Result<Demand, ConfigError> {
        let PciHostConfig {
            ecam,
            start_bus,
            end_bus,
        } = *config;
        if start_bus > end_bus {
            return Err(ConfigError::new("end_bus", "must not be below start_bus"));
        }
        let buses = u64::from(end_bus) + 1;
        // PCI Express Base 5.0 §7.2.2: the bus number takes address bits 20 and up.
        let whole = buses.next_power_of_two() * BUS_LEN;
        if ecam == 0 || !ecam.is_multiple_of(whole) {
            let reason = format!("must be a multiple of {whole:#x} for buses up to {end_bus}");
            return Err(ConfigError::new("ecam", reason));
        }
        let first = u64::from(start_bus) * BUS_LEN;
        let len = buses * BUS_LEN - first;
        Ok(Demand {
            windows: vec![
                Window {
                    region: PORTS,
                    space: Space::Pio,
                    len: PORTS_LEN,
                    fixed: Some(PORTS_BASE),
                },
                Window {
                    region: ECAM,
                    space: Space::Mmio,
                    len,
                    fixed: Some(ecam + first),
                },
            ],
            ..Demand::default()
        })
    }

    fn build(config: PciHostConfig, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
        let topology = wiring
            .extensions
            .get::<Topology>()
            .ok_or("this machine has no PCI topology")?;
        Ok(Box::new(Self {
            topology,
            power: wiring.power.clone(),
            first_bus: config.start_bus,
            address: 0,
            reset_control: 0,
            config_reads: Counter::default(),
            config_writes: Counter::default(),
        }))
    }
}

/// What an access to ports CF8 to CFF is.
enum PortAccess {
    Address,
    ResetControl,
    Data(Bdf, u16),
}

impl PciHost {
    fn decode_port(&self, offset: u64, len: usize) -> Result<PortAccess, BadAccess> {
        match (offset, len) {
            (0, 4) => Ok(PortAccess::Address),
            (RESET_CONTROL, 1) => Ok(PortAccess::ResetControl),
            (DATA..PORTS_LEN, 1 | 2 | 4) if self.address & ENABLE == 0 => {
                Err(BadAccess::NoRegister)
            }
            (DATA..PORTS_LEN, 1 | 2 | 4) if offset + len as u64 <= PORTS_LEN => {
                let [register, devfn, bus, _] = self.address.to_le_bytes();
                let bdf = Bdf {
                    bus,
                    device: devfn >> 3,
                    function: devfn & 7,
                };
                let byte = u16::try_from(offset - DATA).map_err(|_| BadAccess::NoRegister)?;
                Ok(PortAccess::Data(bdf, u16::from(register) + byte))
            }
            // PCI Local Bus 3.0 §3.2.2.3.2: only double words are configuration addresses, all
            // else passes on to the bus, where nothing answers.
            _ => Err(BadAccess::Width),
        }
    }

    /// The function and the register at `offset` of ECAM, and how many bytes the function has from
    /// there.
    fn decode_ecam(&self, offset: u64) -> Result<(Bdf, u16, usize), BadAccess> {
        let bus = u64::from(self.first_bus)
            .checked_add(offset / BUS_LEN)
            .and_then(|bus| u8::try_from(bus).ok())
            .ok_or(BadAccess::NoRegister)?;
        let [devfn, ..] = (offset / FUNCTION_LEN).to_le_bytes();
        let bdf = Bdf {
            bus,
            device: devfn >> 3,
            function: devfn & 7,
        };
        let register = offset % FUNCTION_LEN;
        let room = usize::try_from(FUNCTION_LEN - register).map_err(|_| BadAccess::NoRegister)?;
        Ok((
            bdf,
            u16::try_from(register).map_err(|_| BadAccess::NoRegister)?,
            room,
        ))
    }
}

impl Registers for PciHost {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        match at.region {
            RegionId(PORTS) => match self.decode_port(at.offset, data.len())? {
                PortAccess::Address => data.copy_from_slice(&self.address.to_le_bytes()),
                PortAccess::ResetControl => data.fill(self.reset_control),
                PortAccess::Data(bdf, register) => {
                    self.config_reads.inc();
                    self.topology.read(bdf, register, data);
                }
            },
            RegionId(ECAM) => {
                let (mut offset, mut rest) = (at.offset, data);
                while !rest.is_empty() {
                    let (bdf, register, room) = self.decode_ecam(offset)?;
                    let (part, tail) = rest.split_at_mut(room.min(rest.len()));
                    self.config_reads.inc();
                    self.topology.read(bdf, register, part);
                    offset = offset.saturating_add(part.len() as u64);
                    rest = tail;
                }
            }
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        match at.region {
            RegionId(PORTS) => match self.decode_port(at.offset, data.len())? {
                PortAccess::Address => {
                    let bytes = data.try_into().map_err(|_| BadAccess::Width)?;
                    self.address = u32::from_le_bytes(bytes) & ADDRESS_BITS;
                }
                PortAccess::ResetControl => {
                    let value = data.first().copied().unwrap_or_default() & RESET_BITS;
                    let rises = value & !self.reset_control & RESET_CPU != 0;
                    self.reset_control = value;
                    if rises {
                        self.power.request(PowerRequest::Reset);
                    }
                }
                PortAccess::Data(bdf, register) => {
                    self.config_writes.inc();
                    self.topology.write(bdf, register, data);
                }
            },
            RegionId(ECAM) => {
                let (mut offset, mut rest) = (at.offset, data);
                while !rest.is_empty() {
                    let (bdf, register, room) = self.decode_ecam(offset)?;
                    let (part, tail) = rest.split_at(room.min(rest.len()));
                    self.config_writes.inc();
                    self.topology.write(bdf, register, part);
                    offset = offset.saturating_add(part.len() as u64);
                    rest = tail;
                }
            }
            _ => return Err(BadAccess::NoRegister),
        }
        Ok(())
    }
}

impl Lifecycle for PciHost {
    fn reset(&mut self, _: ResetKind) {
        self.address = 0;
        self.reset_control = 0;
    }
}

impl Persist for PciHost {
    type Saved = SavedPciHost;

    fn save(&self) -> Result<SavedPciHost, SaveError> {
        let Self {
            address,
            reset_control,
            topology: _,
            power: _,
            first_bus: _,
            config_reads: _,
            config_writes: _,
        } = self;
        Ok(SavedPciHost {
            address: *address,
            reset_control: *reset_control,
        })
    }

    fn restore(&mut self, saved: SavedPciHost) -> Result<(), RestoreError> {
        let SavedPciHost {
            address,
            reset_control,
        } = saved;
        if address & !ADDRESS_BITS != 0 {
            return Err(RestoreError::Invalid(
                "reserved bits of CONFIG_ADDRESS are set",
            ));
        }
        if reset_control & !RESET_BITS != 0 {
            return Err(RestoreError::Invalid(
                "reserved bits of the reset control are set",
            ));
        }
        self.address = address;
        self.reset_control = reset_control;
        Ok(())
    }
}

impl Device for PciHost {}
