//! The library: build a machine, run it, steer it.
//!
//! # Three steps
//!
//! ```no_run
//! use nyx::{SizeUnits, VmBuilder};
//!
//! let mut vm = VmBuilder::new().kernel("/boot/vmlinuz").memory(1.gib()).with_metrics().build()?;
//! let ending = vm.run()?;
//! println!("{ending}\n{}", vm.get_performance_report());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Steering
//!
//! [`Vm::start`] returns at once, with a [`RunningVm`]: pause, resume, reset, stop, disks and networks that
//! come and go, events, figures, consoles.
//!
//! ```no_run
//! # use nyx::{Net, SizeUnits, VmBuilder};
//! # use std::time::Duration;
//! let mut vm = VmBuilder::from_file("web1.toml")?.headless().with_pci_hotplug().build()?;
//! vm.on_transition(|from, to| {
//!     println!("{from} to {to}");
//!     true
//! });
//! let running = vm.start()?;
//! running.serial()?.wait_for("login:", Duration::from_secs(30))?;
//! running.add_disk("/srv/more.img")?;
//! running.pause()?;
//! running.resume()?;
//! for event in running.events() {
//!     println!("{} {:?}", event.time, event.what);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The machine lives in this process, on threads of its own; its guest is gone when the process is. One
//! process can have several machines. For a machine that outlives the program that made it, write the
//! description with [`VmBuilder::to_toml`] and give it to `nyx run --daemon`.
//!
//! # What is refused
//!
//! [`VmBuilder::build`] gives every problem at once, one sentence each, beginning with the method. What a
//! later version of Nyx will bring is refused by name:
//!
//! ```
//! use nyx::VmBuilder;
//!
//! let errors = VmBuilder::new().uefi("OVMF.fd").disk("c.vhdx").with_tpm().validate().unwrap_err();
//! assert_eq!(errors.not_in_this_version(), ["uefi", "disk", "with_tpm"]);
//! ```
//!
//! # Names from other documents of Nyx
//!
//! | There | Here |
//! |---|---|
//! | `ProductionVMBuilder`, `VMBuilder` | [`VmBuilder`] under these names too |
//! | `vm` | [`Vm`], [`RunningVm`] |
//! | `vm.run()` and its exit code | [`Vm::run`], [`Ending::exit_code`]; the codes are those of `nyx run`, so a triple fault is 4 and not 1 |
//! | `vmm.spawn_vm(vm)` | [`spawn_vm`] |
//! | `pause()`, `resume()`, `shutdown()`, `crashed`, `active_vcpu_count()` | on [`RunningVm`] and [`Vm`] |
//! | `read_serial_output()`, `serial(callback)` | [`RunningVm::read_serial_output`], [`VmBuilder::serial`] |
//! | `list_devices` | [`RunningVm::list_devices`] |
//! | `vm_metrics`; `metrics.get_performance_report()`, `register_export_callback` | [`Vm::metrics`], [`Vm::get_performance_report`], [`RunningVm::register_export_callback`]; the crate is [`metrics`] |
//! | `vm_logging`; `dump_buffer`, `dump_component`, `dump_since`, `get_logger_level`, `set_logger_level`, `register_output`, `set_output_callback` | [`Logger`]; the crate is [`journal`] |
//! | `set_rotation`, `enable_audit_trail` | `rotate=` of [`Logger::register_output`], [`VmBuilder::enable_audit_trail`] |
//! | `vm_errors`; `error_handler`, `get_recent_faults`, `get_fault_count`, `last_fault_time`, `is_device_operational` | [`RunningVm::error_handler`], [`Faults`] |
//! | `save_diagnostic_dump` | [`RunningVm::save_diagnostic_dump`]; also [`RunningVm::why`] |
//! | `vm_hotplug`; `dynamic_devices` | [`RunningVm::add_disk`], [`RunningVm::remove_disk`], [`RunningVm::add_net`], [`RunningVm::remove_net`] |
//! | `debug_ctx`, breakpoints | [`RunningVm::listen_for_gdb`] |
//! | `vm_production`; its examples | this crate; its folder `examples` |
//! | `hypervisor`, `vm_devices`, `vm_bios`, `vm_acpi` | inside: the crates `nyx-kvm`, `nyx-chipset`, `nyx-virtio-devices`, `nyx-boot`, `nyx-acpi` |
//! | `vm_tpm`, `vm_migration`, `vm_iommu`, `vm_acpi_advanced`; `snapshot()`, `restore()`, `get_display_info()` | not in this version |
#![forbid(unsafe_code)]

mod builder;
mod console;
mod door;
mod ending;
mod events;
mod faults;
mod features;
mod lifecycle;
mod logger;
mod parts;
mod profile;
mod refusal;
mod report;
mod running;
pub mod size;
#[cfg(test)]
mod tests;
mod vm;
mod written;

pub use builder::{ProductionVMBuilder, VMBuilder, VmBuilder};
pub use console::{ConsoleSession, WaitForError};
pub use ending::Ending;
pub use events::Events;
pub use faults::{FaultRecord, Faults};
pub use features::Feature;
pub use lifecycle::State;
pub use logger::Logger;
pub use parts::{Console, Disk, IntoIsolation, IntoPciId, Isolation, Net, PciId};
pub use profile::{Boot, BootNeeds, GuestProfile};
pub use refusal::{BuildError, BuildErrorKind, BuildErrors};
pub use report::PerformanceReport;
pub use running::RunningVm;
pub use size::{IntoSize, SizeUnits};
pub use vm::{RunMetrics, StartError, Vm, spawn_vm};

pub use nyx_api as api;
pub use nyx_diagnose as diagnose;
pub use nyx_journal as journal;
pub use nyx_metrics as metrics;
pub use nyx_spec::{
    ByteSize, ConsoleKind, DiskConfig, DiskEngine, DiskFormat, HugePageSize, NetConfig, OnEnospc,
    Transport, VmConfig,
};
pub use nyx_vmm::{Control, Request};
