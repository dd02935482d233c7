//! From a description to a plan: everything that needs the host but changes nothing on it.

use crate::firmware::{FirmwareError, Tables};
use nyx_boot::disk_probe::find_root;
use nyx_boot::{Initrd, Kernel, OpenInitrdError, OpenKernelError};
use nyx_catalog::KINDS;
use nyx_device::ConfigError;
use nyx_hypervisor::Hypervisor;
use nyx_plan::{BootDisk, HostFacts, Listing, MachinePlan, resolve};
use nyx_spec::{Role, SpecError, VmConfig, VmSpec};
use std::fs::File;

/// Where facts about the host come from.
pub enum HostSource<'h> {
    /// The hypervisor that will run the machine.
    Hypervisor(&'h dyn Hypervisor),
    /// Assumed ones, for planning on a host without KVM.
    Assumed(HostFacts),
}

impl HostSource<'_> {
    fn facts(&self) -> HostFacts {
        match self {
            Self::Hypervisor(hv) => HostFacts {
                physical_address_bits: hv.physical_address_bits(),
                max_vcpus: hv.max_vcpus(),
            },
            Self::Assumed(facts) => *facts,
        }
    }
}

/// A description that cannot become a machine. Each problem is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The description is wrong.
    #[error("{}", sentences(.0))]
    Spec(Vec<SpecError>),
    /// The description does not fit this host or itself.
    #[error("{}", sentences(.0))]
    Plan(Vec<ConfigError>),
    /// The kernel.
    #[error("boot.kernel: {0}")]
    Kernel(#[from] OpenKernelError),
    /// The initial RAM disk.
    #[error("boot.initrd: {0}")]
    Initrd(#[from] OpenInitrdError),
    /// The tables or the kernel's placement.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
}

fn sentences<E: std::fmt::Display>(errors: &[E]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A machine ready to be assembled.
pub struct Prepared {
    /// What its user said.
    pub config: VmConfig,
    /// What it is.
    pub spec: VmSpec,
    /// Where everything is.
    pub plan: MachinePlan,
    /// What firmware says about it.
    pub tables: Tables,
    pub(crate) kernel: Kernel,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) boot: nyx_boot::BootPlan,
}

impl Prepared {
    /// Validates, opens the kernel, looks at the disks, plans, and builds the tables.
    pub fn new(config: &VmConfig, host: &HostSource<'_>) -> Result<Self, PrepareError> {
        let _span = tracing::info_span!(target: "boot", "prepare").entered();
        let spec = config.validate().map_err(PrepareError::Spec)?;
        let kernel = Kernel::open(&spec.boot.kernel)?;
        let initrd = spec.boot.initrd.as_ref().map(Initrd::open).transpose()?;
        let plan =
            resolve(&spec, &host.facts(), KINDS, &boot_disks(&spec)).map_err(PrepareError::Plan)?;
        let tables = Tables::build(&plan, KINDS)?;
        let boot = tables.boot_plan(&plan, &kernel, initrd.as_ref())?;
        Ok(Self {
            config: config.clone(),
            spec,
            plan,
            tables,
            kernel,
            initrd,
            boot,
        })
    }

    /// The plan as text.
    pub fn listing(&self) -> String {
        let tables = self.tables.list();
        let mut text = Listing {
            plan: &self.plan,
            tables,
        }
        .to_string();
        for line in self.boot.describe() {
            text.push_str("  ");
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// What each disk holds, as far as a root file system is concerned. A disk that cannot be opened
/// is reported when its device is built, with the reason; here it merely offers no root.
fn boot_disks(spec: &VmSpec) -> Vec<BootDisk> {
    spec.devices
        .iter()
        .filter_map(|device| match &device.role {
            Role::Disk(disk) => Some(disk),
            _ => None,
        })
        .map(|disk| BootDisk {
            index: disk.index,
            root: File::open(&disk.path)
                .map_err(|e| format!("cannot be read: {e}"))
                .and_then(|file| find_root(&file).map_err(|e| e.to_string())),
        })
        .collect()
}
