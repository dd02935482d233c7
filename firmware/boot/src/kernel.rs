//! Recognising a kernel file and saying clearly why another file is none.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::bzimage::{self, BzImage};
use crate::elf::{self, ElfKernel};
use crate::entry::Protocol;
use crate::source::{Payload, le};

/// A piece of the kernel file and where it goes in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Guest physical address.
    pub address: u64,
    /// Bytes that come from the file.
    pub file_len: u64,
    /// Bytes occupied in memory; those beyond `file_len` are zero.
    pub memory_len: u64,
}

/// What kind of kernel a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// An ELF executable (`vmlinux`, unikernels, test payloads).
    Elf(ElfKernel),
    /// A Linux bzImage (`vmlinuz`).
    BzImage(BzImage),
}

/// A recognised kernel and the bytes to load it from.
#[derive(Debug)]
pub struct Kernel<S = File> {
    name: String,
    source: S,
    image: Image,
}

/// Why a file is not a kernel that can be started, worded to follow the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelFault {
    /// No such file, or no permission to read it.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A directory, device, pipe or socket.
    #[error("is not a regular file")]
    NotAFile,
    /// No bytes at all.
    #[error("is empty")]
    Empty,
    /// Shorter than its own headers say.
    #[error("is truncated: it has {has} bytes, but its headers speak of at least {needs}")]
    Truncated {
        /// Bytes the headers require.
        needs: u64,
        /// Bytes present.
        has: u64,
    },
    /// A kernel for other processors.
    #[error("is a program for {0}, but this machine is x86-64: give it an x86-64 kernel")]
    ForeignMachine(String),
    /// A 32-bit ELF file that lacks the PVH note.
    #[error(
        "is a 32-bit ELF file without a PVH entry note: give a 64-bit kernel, or one built with CONFIG_PVH"
    )]
    ThirtyTwoBit,
    /// A bzImage without a 64-bit entry.
    #[error("is a 32-bit Linux kernel (its header has no 64-bit entry): give a 64-bit kernel")]
    ThirtyTwoBitBzImage,
    /// A bzImage of a protocol before 2.06.
    #[error("speaks Linux boot protocol {}.{:02}, but 2.12 or newer is needed: give a newer kernel", .version >> 8, .version & 0xff)]
    OldBzImage {
        /// Version field of the setup header.
        version: u16,
    },
    /// A compressed file around the kernel.
    #[error("is compressed with {tool}: unpack it first (`{command}`)")]
    Compressed {
        /// Name of the compression.
        tool: &'static str,
        /// Command that unpacks it.
        command: &'static str,
    },
    /// Something else that was recognised.
    #[error("is {0}, not a kernel: give an ELF kernel (vmlinux) or a bzImage (vmlinuz)")]
    NotAKernel(String),
    /// Neither ELF nor bzImage nor anything else known.
    #[error("is neither an ELF kernel (vmlinux) nor a bzImage (vmlinuz)")]
    Unknown,
    /// Headers that contradict themselves.
    #[error("is malformed: {0}")]
    Malformed(&'static str),
}

/// A kernel file that cannot be started; one sentence with the file's name.
#[derive(Debug, thiserror::Error)]
#[error("kernel {name} {fault}")]
pub struct OpenKernelError {
    /// Path or name of the file.
    pub name: String,
    /// What is wrong with it.
    pub fault: KernelFault,
}

/// Enough for every header this crate reads, in one read.
const HEAD: u64 = 4096;

impl Kernel<File> {
    /// Opens and recognises the kernel at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenKernelError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        match open_regular(path) {
            Ok(file) => Kernel::read(file, name),
            Err(fault) => Err(OpenKernelError { name, fault }),
        }
    }
}

/// Opens `path` for reading if it is a regular file.
pub(crate) fn open_regular(path: &Path) -> Result<File, KernelFault> {
    // Asked before opening: opening a pipe would wait for its writer.
    let found = std::fs::metadata(path).map_err(KernelFault::Open)?;
    if !found.is_file() {
        return Err(KernelFault::NotAFile);
    }
    File::open(path).map_err(KernelFault::Open)
}

impl<S: Payload> Kernel<S> {
    /// Recognises the kernel in `source`; `name` is for messages.
    pub fn read(source: S, name: impl Into<String>) -> Result<Self, OpenKernelError> {
        let name = name.into();
        match identify(&source) {
            Ok(image) => Ok(Kernel {
                name,
                source,
                image,
            }),
            Err(fault) => Err(OpenKernelError { name, fault }),
        }
    }

    /// Path or name of the kernel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the headers say.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The bytes of the kernel.
    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    /// How this kernel will be entered: PVH where it is offered, else Linux's 64-bit protocol.
    pub fn protocol(&self) -> Protocol {
        match &self.image {
            Image::Elf(ElfKernel {
                pvh_entry: Some(_), ..
            }) => Protocol::Pvh,
            Image::Elf(_) | Image::BzImage(_) => Protocol::Linux64,
        }
    }

    /// Where the pieces of the file go.
    pub fn segments(&self) -> Vec<Segment> {
        match &self.image {
            Image::Elf(elf) => elf.segments.clone(),
            Image::BzImage(bz) => vec![Segment {
                offset: bz.payload_offset,
                address: bz.load_address,
                file_len: bz.payload_len,
                memory_len: bz.memory_len(),
            }],
        }
    }
}

fn identify<S: Payload>(source: &S) -> Result<Image, KernelFault> {
    let size = source.size()?;
    if size == 0 {
        return Err(KernelFault::Empty);
    }
    let mut head = vec![0; size.min(HEAD) as usize];
    source.read_exact_at(0, &mut head)?;
    if head.starts_with(b"\x7fELF") {
        return elf::parse(source, size, &head).map(Image::Elf);
    }
    if bzimage::is_bzimage(&head) {
        return bzimage::parse(&head, size).map(Image::BzImage);
    }
    Err(name_stranger(&head))
}

/// Says what a file that is no kernel looks like.
fn name_stranger(head: &[u8]) -> KernelFault {
    const COMPRESSED: [(&[u8], &str, &str); 6] = [
        (b"\x1f\x8b", "gzip", "gunzip"),
        (b"\xfd7zXZ\0", "xz", "unxz"),
        (b"BZh", "bzip2", "bunzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
        (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
        (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    ];
    const OTHERS: [(usize, &[u8], &str); 5] = [
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0, b"070701", "a cpio archive (an initrd?)"),
        (0, b"#!", "a script"),
        (257, b"ustar", "a tar archive"),
        (0, b"!<arch>\n", "a package or library archive"),
    ];
    for (magic, tool, command) in COMPRESSED {
        if head.starts_with(magic) {
            return KernelFault::Compressed { tool, command };
        }
    }
    if head.get(0x38..0x3c) == Some(b"ARM\x64") {
        return KernelFault::ForeignMachine("aarch64".into());
    }
    if head.get(0x38..0x3c) == Some(b"RSC\x05") {
        return KernelFault::ForeignMachine("RISC-V".into());
    }
    for (offset, magic, what) in OTHERS {
        if head
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
        {
            return KernelFault::NotAKernel(what.into());
        }
    }
    if head.starts_with(b"MZ") {
        return KernelFault::NotAKernel(
            "an EFI or Windows program without Linux's setup header".into(),
        );
    }
    if le::<2>(head, 0x1fe) == Some(0xaa55) {
        return KernelFault::NotAKernel("a boot sector or a disk image".into());
    }
    KernelFault::Unknown
}
