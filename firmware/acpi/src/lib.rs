//! ACPI tables as a pure function of a machine description.
//!
//! ```text
//! AcpiPlatform ──build(base)──▶ Tables { RSDP, XSDT, RSDT, FACP, FACS, DSDT, APIC, MCFG, SPCR, … }
//! ```
//!
//! The machine is "fixed hardware" ACPI when it has a power management block, else hardware-reduced.
//! Device kinds add AML as raw [`Fragment`]s and whole tables as [`ExtraTable`]s; [`parts`] builds the AML of
//! common legacy devices. Nothing here reads a device, so the same description always gives the same bytes.
//!
//! Sources: ACPI 6.5 (section numbers in the code), PCI Firmware 3.3 (MCFG, `_OSC`), Microsoft's SPCR.
#![forbid(unsafe_code)]

mod dsdt;
pub mod parts;
mod platform;
mod resources;
mod tables;
#[cfg(test)]
mod tests;

pub use platform::{
    AcpiPlatform, CpuEntry, Ecam, ExtraTable, Fragment, GpeBlock, IoapicEntry, NATIVE_CONTROL,
    PciRoot, PmBlock, Polarity, PrtEntry, ResetRegister, Scope, SleepRegisters, SourceOverride,
    Spcr, Trigger,
};
pub use tables::{BuildError, Table, Tables, build};
