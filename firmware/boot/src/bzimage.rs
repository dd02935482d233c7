//! Linux's bzImage: the setup header and what it says about loading
//! (Linux, Documentation/arch/x86/boot.rst).

use crate::kernel::KernelFault;
use crate::source::le;

/// First byte of the setup header, in the file and in `boot_params`.
pub(crate) const SETUP_HEADER: usize = 0x1f1;
/// The header may not run into the EDD signatures that follow it in `boot_params`.
const SETUP_HEADER_END: usize = 0x290;
const SECTOR: u64 = 512;
/// From this version on a kernel says how long its command line may be.
const OLDEST_VERSION: u16 = 0x206;
/// From this version on `xloadflags` exists.
const XLOADFLAGS_VERSION: u16 = 0x20c;
const XLF_KERNEL_64: u64 = 1;
const LOADED_HIGH: u64 = 1;
/// Distance from the load address to the 64-bit entry (boot.rst, "64-bit Boot Protocol").
pub(crate) const LONG_ENTRY: u64 = 0x200;

/// What a bzImage's setup header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BzImage {
    /// Boot protocol version, 0x20f for 2.15.
    pub version: u16,
    /// Where the kernel wants to run; protected-mode code is loaded here.
    pub load_address: u64,
    /// Bytes from the load address that the kernel uses before it reads the memory map.
    pub init_size: u64,
    /// File offset of the protected-mode code.
    pub payload_offset: u64,
    /// Bytes of protected-mode code in the file.
    pub payload_len: u64,
    /// Highest address an initrd byte may have.
    pub initrd_addr_max: u64,
    /// Longest command line, its NUL not counted.
    pub command_line_max: u64,
    /// The setup header as in the file, to be copied into `boot_params`.
    pub(crate) setup_header: Vec<u8>,
}

/// Does `head` start a file with Linux's setup header?
pub(crate) fn is_bzimage(head: &[u8]) -> bool {
    le::<2>(head, 0x1fe) == Some(0xaa55) && head.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the setup header in the first bytes `head` of a file of `size` bytes.
pub(crate) fn parse(head: &[u8], size: u64) -> Result<BzImage, KernelFault> {
    let truncated = KernelFault::Truncated {
        needs: SETUP_HEADER_END as u64,
        has: size,
    };
    let read = || -> Option<Result<BzImage, KernelFault>> {
        let version = le::<2>(head, 0x206)? as u16;
        if version < OLDEST_VERSION {
            return Some(Err(KernelFault::OldBzImage { version }));
        }
        let long = version >= XLOADFLAGS_VERSION && le::<2>(head, 0x236)? & XLF_KERNEL_64 != 0;
        if !long {
            return Some(Err(KernelFault::ThirtyTwoBitBzImage));
        }
        if *head.get(0x211)? as u64 & LOADED_HIGH == 0 {
            return Some(Err(KernelFault::Malformed(
                "it is a zImage, to be loaded below 1 MiB",
            )));
        }
        let setup_sectors = match *head.get(SETUP_HEADER)? {
            0 => 4, // boot.rst: for backwards compatibility
            n => u64::from(n),
        };
        let payload_offset = (setup_sectors + 1) * SECTOR;
        // Measured in 16-byte units, rounded up: the file may lack up to 15 bytes of the last.
        let declared = le::<4>(head, 0x1f4)? * 16;
        let needs = payload_offset + declared.saturating_sub(15);
        if size < needs || size <= payload_offset {
            return Some(Err(KernelFault::Truncated { needs, has: size }));
        }
        let header_end = (0x202 + usize::from(*head.get(0x201)?)).min(SETUP_HEADER_END);
        let image = BzImage {
            version,
            load_address: le::<8>(head, 0x258)?,
            init_size: le::<4>(head, 0x260)?,
            payload_offset,
            payload_len: size - payload_offset,
            initrd_addr_max: le::<4>(head, 0x22c)?,
            command_line_max: le::<4>(head, 0x238)?,
            setup_header: head.get(SETUP_HEADER..header_end)?.to_vec(),
        };
        if image.load_address.checked_add(image.memory_len()).is_none() {
            return Some(Err(KernelFault::Malformed(
                "its preferred address lies beyond 2^64",
            )));
        }
        Some(Ok(image))
    };
    read().unwrap_or(Err(truncated))
}

impl BzImage {
    /// Bytes of RAM the kernel occupies from its load address.
    pub fn memory_len(&self) -> u64 {
        self.init_size.max(self.payload_len)
    }
}
