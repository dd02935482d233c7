//! What kinds of guests are best given, and how they are best booted.

use crate::builder::VmBuilder;
use crate::size::SizeUnits;
use nyx_spec::ByteSize;
use std::fmt;
use std::ops::RangeInclusive;

/// A kind of guest with known wishes.
///
/// ```
/// use nyx::{GuestProfile, VmBuilder};
///
/// let linux = VmBuilder::new().kernel("/boot/vmlinuz").profile(GuestProfile::Linux);
/// assert!(linux.validate().is_ok());
/// // What this version does not have is refused by name.
/// let windows = VmBuilder::new().profile(GuestProfile::Windows).validate().unwrap_err();
/// assert_eq!(windows.not_in_this_version(), ["uefi", "nic", "ahci", "gpu", "with_tpm"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestProfile {
    /// A Linux server or desktop.
    Linux,
    /// Windows, 11 included.
    Windows,
    /// A guest with deadlines: its vCPUs on CPUs of their own, its memory committed.
    RealTime,
}

impl GuestProfile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Linux, Self::Windows, Self::RealTime];

    /// From the least to the most memory that is sensible without knowing the guest's data; see
    /// [`recommend`](crate::size::recommend) for when it is known.
    pub fn memory(self) -> RangeInclusive<ByteSize> {
        match self {
            Self::Linux | Self::RealTime => 2.gib()..=4.gib(),
            Self::Windows => 4.gib()..=8.gib(),
        }
    }

    /// From the least to the most vCPUs that are sensible.
    pub fn cpus(self) -> RangeInclusive<u32> {
        match self {
            Self::Linux | Self::RealTime => 2..=4,
            Self::Windows => 4..=8,
        }
    }

    /// Gives `builder` the least of what this guest wants.
    pub fn apply(self, builder: VmBuilder) -> VmBuilder {
        let builder = builder
            .memory(*self.memory().start())
            .cpus(*self.cpus().start());
        match self {
            Self::Linux => {
                if builder.has_user_net() {
                    builder
                } else {
                    builder.nic("virtio")
                }
            }
            Self::RealTime => builder.prefault(true),
            Self::Windows => builder
                .uefi("OVMF.fd")
                .nic("e1000")
                .ahci(true)
                .gpu(true)
                .with_tpm(),
        }
    }
}

/// How a machine comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Nyx loads the kernel itself: the fastest, and nothing but Linux and PVH kernels.
    Kernel,
    /// Legacy firmware.
    Bios,
    /// Modern firmware.
    Uefi,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        })
    }
}

/// What decides how to boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootNeeds {
    /// The kernel is at hand as a file of the host's.
    pub kernel_at_hand: bool,
    /// Windows 11.
    pub windows_11: bool,
    /// Secure Boot.
    pub secure_boot: bool,
    /// The largest disk it boots from.
    pub largest_disk: ByteSize,
    /// The UEFI shell, for debugging.
    pub uefi_shell: bool,
    /// Code that runs in real mode, or drivers from before UEFI.
    pub real_mode: bool,
}

impl BootNeeds {
    /// How to boot, and why; a reason for both kinds of firmware is a contradiction, which is told.
    ///
    /// # Errors
    ///
    /// The needs contradict each other.
    pub fn choose(&self) -> Result<(Boot, &'static str), &'static str> {
        // MBR partition tables count 512-byte sectors in 32 bits.
        let beyond_mbr = self.largest_disk > 2.tib();
        let uefi = match self {
            Self {
                windows_11: true, ..
            } => Some("Windows 11 boots from nothing else"),
            Self {
                secure_boot: true, ..
            } => Some("Secure Boot is part of UEFI"),
            Self {
                uefi_shell: true, ..
            } => Some("the shell is part of UEFI"),
            _ if beyond_mbr => Some("a BIOS does not boot from disks beyond 2 TiB"),
            _ => None,
        };
        match (uefi, self.real_mode) {
            (Some(_), true) => Err(
                "real-mode code and old drivers want a BIOS, but something else wants UEFI; use two machines",
            ),
            (Some(why), false) => Ok((Boot::Uefi, why)),
            (None, true) => Ok((Boot::Bios, "real-mode code and old drivers want a BIOS")),
            (None, false) if self.kernel_at_hand => Ok((
                Boot::Kernel,
                "nothing wants firmware, and without it the guest starts at once",
            )),
            (None, false) => Ok((Boot::Uefi, "it is what installers expect today")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nyx_spec::MemoryValue;

    #[test]
    fn linux_and_real_time_can_be_built() {
        for profile in [GuestProfile::Linux, GuestProfile::RealTime] {
            let config = VmBuilder::new()
                .kernel("k")
                .profile(profile)
                .to_config()
                .unwrap();
            assert_eq!(config.memory.table().size, 2.gib());
            assert_eq!(config.cpus, nyx_spec::Cpus::Count(2));
        }
        let linux = VmBuilder::new().nic("virtio").profile(GuestProfile::Linux);
        assert_eq!(linux.to_config().unwrap().nets.len(), 1, "one is enough");
        let real_time = VmBuilder::new().profile(GuestProfile::RealTime);
        let MemoryValue::Table(memory) = real_time.to_config().unwrap().memory else {
            panic!("its memory is committed");
        };
        assert!(memory.prefault);
    }

    #[test]
    fn what_is_recommended_is_a_range() {
        for profile in GuestProfile::ALL {
            assert!(profile.memory().start() < profile.memory().end());
            assert!(profile.cpus().start() < profile.cpus().end());
        }
    }

    #[test]
    fn firmware_is_chosen_by_what_needs_it() {
        let needs = BootNeeds {
            kernel_at_hand: true,
            ..BootNeeds::default()
        };
        let chosen = |needs: BootNeeds| needs.choose().map(|(boot, _)| boot);
        assert_eq!(chosen(needs), Ok(Boot::Kernel));
        assert_eq!(chosen(BootNeeds::default()), Ok(Boot::Uefi));
        let real_mode = BootNeeds {
            real_mode: true,
            ..needs
        };
        assert_eq!(chosen(real_mode), Ok(Boot::Bios));
        for uefi in [
            BootNeeds {
                windows_11: true,
                ..needs
            },
            BootNeeds {
                secure_boot: true,
                ..needs
            },
            BootNeeds {
                uefi_shell: true,
                ..needs
            },
            BootNeeds {
                largest_disk: 3.tib(),
                ..needs
            },
        ] {
            assert_eq!(chosen(uefi), Ok(Boot::Uefi));
            let torn = BootNeeds {
                real_mode: true,
                ..uefi
            };
            assert!(torn.choose().is_err());
        }
        let just_fits = BootNeeds {
            largest_disk: 2.tib(),
            ..needs
        };
        assert_eq!(chosen(just_fits), Ok(Boot::Kernel));
        assert_eq!(Boot::Bios.to_string(), "BIOS");
    }
}
