//! Opening `/dev/kvm`.

use crate::capabilities::Capabilities;
use crate::refused;
use crate::saved::SavedVcpu;
use crate::vm::KvmVm;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use nyx_hypervisor::{HvError, Hypervisor, Topology, Vm};
use std::io;
use std::sync::{Arc, OnceLock};

/// KVM cannot be used. The message is one sentence for the user: what, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The module is not loaded, though the CPU could.
    #[error("/dev/kvm does not exist: load KVM with `modprobe {module}`")]
    NotLoaded {
        /// The module for this CPU.
        module: &'static str,
    },
    /// The CPU shows no virtualization extension.
    #[error(
        "/dev/kvm does not exist and this CPU shows neither VT-x nor AMD-V: enable virtualization \
         in the firmware settings, or nested virtualization if this is itself a virtual machine"
    )]
    NoVirtualization,
    /// The device node exists without a driver behind it.
    #[error(
        "/dev/kvm exists but KVM is not running: load `kvm_intel` or `kvm_amd`, and enable \
         virtualization in the firmware settings if that fails"
    )]
    NoDriver,
    /// The user may not open it.
    #[error(
        "/dev/kvm may not be opened by this user: join the group that owns it (`sudo usermod -aG \
         kvm $USER`, then log in again)"
    )]
    NotPermitted,
    /// A kernel with another interface.
    #[error("KVM speaks API version {found} instead of 12: update the host kernel")]
    Version {
        /// Its version.
        found: i32,
    },
    /// A kernel too old.
    #[error("KVM lacks {}: update the host kernel (4.12 or newer has them)", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// Anything else.
    #[error("cannot use /dev/kvm: {0}")]
    Io(#[source] io::Error),
}

/// What is the same for all VMs.
pub(crate) struct Host {
    pub(crate) kvm: kvm_ioctls::Kvm,
    pub(crate) capabilities: Capabilities,
    /// CPUID as KVM can offer it.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    /// MSRs that make up a vCPU's state.
    pub(crate) msrs: Vec<u32>,
    /// Those of `msrs` that can be read, once the first vCPU has shown which.
    pub(crate) readable_msrs: OnceLock<Vec<u32>>,
    /// A vCPU that was just made, once there was one.
    pub(crate) power_on: OnceLock<SavedVcpu>,
    /// Whether INT3 stops a vCPU for its debugger, once somebody asked.
    pub(crate) stops_at_int3: OnceLock<bool>,
    /// Bytes of `kvm_run`'s mapping.
    pub(crate) run_size: usize,
}

/// KVM on this host.
#[derive(Clone)]
pub struct Kvm(pub(crate) Arc<Host>);

impl Kvm {
    /// Opens `/dev/kvm` and asks what it can do.
    pub fn open() -> Result<Self, OpenError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|e| {
            let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            explain(e.errno(), &flags)
        })?;
        let found = kvm.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(OpenError::Version { found });
        }
        let capabilities = Capabilities::read(&kvm);
        let missing = capabilities.missing_essentials();
        if !missing.is_empty() {
            return Err(OpenError::Lacks(missing));
        }
        // The size of the FPU area depends on what may be requested.
        let capabilities = if request_guest_amx() {
            Capabilities::read(&kvm).max_xsave(capabilities)
        } else {
            capabilities
        };
        let io = |e: kvm_ioctls::Error| OpenError::Io(io::Error::from_raw_os_error(e.errno()));
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(io)?
            .as_slice()
            .to_vec();
        let listed = kvm.get_msr_index_list().map_err(io)?;
        let msrs = msrs_of_state(listed.as_slice());
        let run_size = kvm.get_vcpu_mmap_size().map_err(io)?;
        Ok(Self(Arc::new(Host {
            kvm,
            capabilities,
            cpuid,
            msrs,
            readable_msrs: OnceLock::new(),
            power_on: OnceLock::new(),
            stops_at_int3: OnceLock::new(),
            run_size,
        })))
    }

    /// What this host's KVM can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// [`Hypervisor::max_vcpus`], for callers that do not know the seam.
    pub fn most_vcpus(&self) -> u32 {
        Hypervisor::max_vcpus(self)
    }

    /// [`Hypervisor::physical_address_bits`], for callers that do not know the seam.
    pub fn address_bits(&self) -> u8 {
        Hypervisor::physical_address_bits(self)
    }
}

impl Hypervisor for Kvm {
    fn max_vcpus(&self) -> u32 {
        let caps = &self.0.capabilities;
        // A kernel without KVM_CAP_MAX_VCPUS means its recommendation, and 4 without that
        // (Linux, Documentation/virt/kvm/api.rst).
        match (caps.max_vcpus, caps.nr_vcpus) {
            (0, 0) => 4,
            (0, n) | (n, _) => n,
        }
    }

    fn physical_address_bits(&self) -> u8 {
        let entry = self.0.cpuid.iter().find(|e| e.function == 0x8000_0008);
        let Some(eax) = entry.map(|e| e.eax) else {
            return 36; // Intel SDM vol. 2, CPUID: what a processor without this leaf has
        };
        // Bits 23:16, if given, are what the guest's page tables can really map.
        match ((eax & 0xff) as u8, (eax >> 16 & 0xff) as u8) {
            (own, 0) => own,
            (own, mappable) => own.min(mappable),
        }
    }

    fn create_vm(&self, topology: Topology) -> Result<Box<dyn Vm>, HvError> {
        Ok(Box::new(KvmVm::create(self.0.clone(), topology)?))
    }
}

impl Host {
    /// `KVM_CREATE_VM`. A signal may interrupt it on a busy host; then it is tried again.
    pub(crate) fn create_vm(&self) -> Result<kvm_ioctls::VmFd, HvError> {
        loop {
            match self.kvm.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                other => return other.map_err(refused("KVM_CREATE_VM")),
            }
        }
    }
}

/// The memory type range registers, which kernels before 6.11 do not list: default type, fixed
/// ranges, and eight variable ones (Intel SDM vol. 3 §12.11).
const MTRRS: [u32; 28] = [
    0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x200,
    0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d,
    0x20e, 0x20f,
];

/// The MSRs that are state, from those that KVM lists.
///
/// Not among them: the wall clock requests, which make KVM write guest memory (Linux,
/// Documentation/virt/kvm/x86/msr.rst), and Hyper-V's synthetic registers: guests are offered no
/// Hyper-V, some of these count by themselves, and some accept no write.
fn msrs_of_state(listed: &[u32]) -> Vec<u32> {
    const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
    const HYPER_V: std::ops::Range<u32> = 0x4000_0000..0x4000_1000;
    let mut msrs: Vec<u32> = listed
        .iter()
        .copied()
        .filter(|msr| !WALL_CLOCKS.contains(msr) && !HYPER_V.contains(msr))
        .collect();
    for msr in MTRRS {
        if !msrs.contains(&msr) {
            msrs.push(msr);
        }
    }
    msrs
}

/// Why `/dev/kvm` did not open, given the text of `/proc/cpuinfo`.
fn explain(errno: i32, cpuinfo: &str) -> OpenError {
    let flag = |name: &str| {
        cpuinfo
            .lines()
            .filter(|l| l.starts_with("flags"))
            .any(|l| l.split_whitespace().any(|f| f == name))
    };
    match errno {
        libc::ENOENT if flag("vmx") => OpenError::NotLoaded {
            module: "kvm_intel",
        },
        libc::ENOENT if flag("svm") => OpenError::NotLoaded { module: "kvm_amd" },
        libc::ENOENT => OpenError::NoVirtualization,
        libc::ENODEV | libc::ENXIO => OpenError::NoDriver,
        libc::EACCES | libc::EPERM => OpenError::NotPermitted,
        _ => OpenError::Io(io::Error::from_raw_os_error(errno)),
    }
}

/// Asks the kernel to let guests use AMX tile data (Linux, Documentation/arch/x86/xstate.rst).
/// Without AMX, or on a kernel that knows no such request, nothing changes: then it says `false`.
fn request_guest_amx() -> bool {
    const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_ulong = 0x1025;
    const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
    // SAFETY: this request takes a number and touches no memory of this process.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_GUEST_PERM,
            XFEATURE_XTILE_DATA,
        ) == 0
    }
}

impl Capabilities {
    fn max_xsave(mut self, before: Self) -> Self {
        self.xsave2 = self.xsave2.max(before.xsave2);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_that_are_no_state_are_left_out_and_the_memory_types_are_in() {
        let msrs = msrs_of_state(&[
            0x10,
            0x11,
            0x4b56_4d00,
            0x4b56_4d01,
            0x4000_0020,
            0x277,
            0x2ff,
        ]);
        assert_eq!(msrs[..4], [0x10, 0x4b56_4d01, 0x277, 0x2ff]);
        assert_eq!(msrs.len(), 4 + 27);
        assert!(msrs.contains(&0x26f) && msrs.contains(&0x20f));
    }

    #[test]
    fn each_cause_has_its_own_mend() {
        let say =
            |errno, flags: &str| explain(errno, &format!("flags\t: fpu {flags} sse\n")).to_string();
        assert!(say(libc::ENOENT, "vmx").contains("modprobe kvm_intel"));
        assert!(say(libc::ENOENT, "svm").contains("modprobe kvm_amd"));
        assert!(say(libc::ENOENT, "avx").contains("firmware settings"));
        assert!(say(libc::ENODEV, "vmx").contains("kvm_intel"));
        assert!(say(libc::EACCES, "vmx").contains("usermod -aG kvm"));
        assert!(say(libc::EMFILE, "vmx").contains("Too many open files"));
        // vmx in another word or another line is not the flag.
        assert!(matches!(
            explain(libc::ENOENT, "vmx flags: ept\nflags: novmx"),
            OpenError::NoVirtualization
        ));
        assert!(
            OpenError::Version { found: 11 }
                .to_string()
                .contains("11 instead of 12")
        );
        let lacks = OpenError::Lacks(vec!["KVM_CAP_A", "KVM_CAP_B"]).to_string();
        assert!(lacks.contains("KVM_CAP_A, KVM_CAP_B: update"), "{lacks}");
    }
}
