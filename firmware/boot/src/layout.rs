//! Where direct boot puts its own structures in the guest's first megabyte.
//!
//! ```text
//! 0x00000..0x00500  zero: the boot TSS (base 0), and what a PC keeps as interrupt vectors and BIOS data
//! 0x00500..0x00530  GDT
//! 0x06000..0x06038  PVH start info          (PVH entry)
//! 0x06040..0x06060  PVH module list         (PVH entry)
//! 0x06100..0x06d00  PVH memory map          (PVH entry)
//! 0x07000..0x08000  boot_params, "zero page" (64-bit Linux entry)
//! 0x08000..0x08ff0  boot stack
//! 0x09000..0x0f000  page tables: PML4, PDPT, four page directories (64-bit Linux entry)
//! 0x20000..0x30000  command line, NUL terminated
//! 0x9fc00..0xa0000  extended BIOS data area by convention: describe it as reserved
//! 0xa0000..0xc0000  VGA window: not RAM for the guest
//! 0xe0000..0xf0000  ACPI tables, as many as fit (a system without firmware is searched here for the RSDP)
//! 0xf0000..0x100000 SMBIOS (Linux searches here for `_SM3_` when there is no UEFI)
//! 0x100000          first address a kernel or initrd may use
//! ```

/// Guest physical address of the global descriptor table.
pub const GDT: u64 = 0x500;
/// Guest physical address of the PVH `hvm_start_info` block.
pub const PVH_START_INFO: u64 = 0x6000;
/// Guest physical address of the PVH module list (one entry: the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// Guest physical address of the PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// Guest physical address of Linux's `boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Initial stack pointer, growing down towards the end of `boot_params`.
pub const STACK_TOP: u64 = 0x8ff0;
/// Guest physical address of the PML4 of the identity map; the PDPT follows, then four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Guest physical address of the command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes kept for the command line, its terminating NUL included.
pub const COMMAND_LINE_SPACE: u64 = 0x1_0000;
/// End of everything direct boot itself writes: RAM must cover `0..LOW_RAM_NEEDED`.
pub const LOW_RAM_NEEDED: u64 = COMMAND_LINE + COMMAND_LINE_SPACE;
/// First byte of the extended BIOS data area: conventional RAM ends here.
pub const EBDA: u64 = 0x9_fc00;
/// Suggested address of the RSDP and the ACPI tables when they fit in 64 KiB.
pub const ACPI: u64 = 0xe_0000;
/// Bytes available at [`ACPI`].
pub const ACPI_SPACE: u64 = 0x1_0000;
/// Suggested address of the SMBIOS entry point; its table follows.
pub const SMBIOS: u64 = 0xf_0000;
/// Bytes available at [`SMBIOS`].
pub const SMBIOS_SPACE: u64 = 0x1_0000;
/// First address kernels and initrds may occupy: the end of the PC's first megabyte.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// End of the identity map and of what a 32-bit entry can address.
pub const FOUR_GIB: u64 = 1 << 32;
