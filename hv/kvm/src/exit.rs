//! Decoding of `kvm_run` after `KVM_RUN` returned zero.
//!
//! `kvm_ioctls::VcpuExit` is not used: it multiplies the size and count of string I/O and drops
//! both, and loses the sub-error and the evidence of internal errors. This decoder works on plain
//! bytes, so a hand-made image tests it, and trusts no length or offset in them.
//!
//! The layout is Linux's `struct kvm_run` (include/uapi/linux/kvm.h), part of its stable ABI.

use crate::run_page::BODY;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use nyx_hypervisor::{Broken, DebugStop, Direction, Exit, SystemEvent};
use std::mem::offset_of;

/// Offset of the union of exit reasons.
const UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);
const REASON: usize = offset_of!(kvm_run, exit_reason);

const IO_DIRECTION: usize = UNION;
const IO_SIZE: usize = UNION + 1;
const IO_PORT: usize = UNION + 2;
const IO_COUNT: usize = UNION + 4;
const IO_DATA_OFFSET: usize = UNION + 8;

const MMIO_ADDRESS: usize = UNION;
const MMIO_DATA: usize = UNION + 8;
const MMIO_LEN: usize = UNION + 16;
const MMIO_IS_WRITE: usize = UNION + 20;

/// Most data words of an internal error.
const EVIDENCE: usize = 16;

fn u8_at(body: &[u8], at: usize) -> u8 {
    body.get(at - BODY).copied().unwrap_or(0)
}

fn bytes_at<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    body.get(at - BODY..)
        .and_then(<[u8]>::first_chunk::<N>)
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(body: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes_at(body, at))
}

fn u32_at(body: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes_at(body, at))
}

fn u64_at(body: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes_at(body, at))
}

/// The exit that `body`, the mapping of `kvm_run` from byte [`BODY`] on, describes.
#[inline]
pub(crate) fn decode(body: &mut [u8]) -> Exit<'_> {
    match u32_at(body, REASON) {
        KVM_EXIT_IO => port_access(body),
        KVM_EXIT_MMIO => memory_access(body),
        reason => rare(reason, body),
    }
}

/// The reason of the exit, also when the ioctl failed.
pub(crate) fn reason(body: &[u8]) -> u32 {
    u32_at(body, REASON)
}

#[inline]
fn port_access(body: &mut [u8]) -> Exit<'_> {
    let direction = match u32::from(u8_at(body, IO_DIRECTION)) {
        KVM_EXIT_IO_IN => Direction::In,
        KVM_EXIT_IO_OUT => Direction::Out,
        _ => return unknown(KVM_EXIT_IO),
    };
    let width = u8_at(body, IO_SIZE);
    let count = u32_at(body, IO_COUNT) as usize;
    let port = u16_at(body, IO_PORT);
    let start = u64_at(body, IO_DATA_OFFSET);
    // The data lies behind the structure, never in it.
    let start = usize::try_from(start)
        .ok()
        .filter(|&s| s >= size_of::<kvm_run>());
    let data = match (width, count, start) {
        (1 | 2 | 4, 1.., Some(start)) => count
            .checked_mul(width.into())
            .and_then(|len| (start - BODY).checked_add(len))
            .and_then(|end| body.get_mut(start - BODY..end)),
        _ => None,
    };
    match data {
        Some(data) => Exit::Pio {
            port,
            width,
            direction,
            data,
        },
        None => unknown(KVM_EXIT_IO),
    }
}

#[inline]
fn memory_access(body: &mut [u8]) -> Exit<'_> {
    let address = u64_at(body, MMIO_ADDRESS);
    let len = u32_at(body, MMIO_LEN) as usize;
    let write = u8_at(body, MMIO_IS_WRITE) != 0;
    if !(1..=8).contains(&len) {
        return unknown(KVM_EXIT_MMIO);
    }
    match body.get_mut(MMIO_DATA - BODY..MMIO_DATA - BODY + len) {
        Some(data) => Exit::Mmio {
            address,
            write,
            data,
        },
        None => unknown(KVM_EXIT_MMIO),
    }
}

#[cold]
fn rare(reason: u32, body: &[u8]) -> Exit<'_> {
    match reason {
        KVM_EXIT_IOAPIC_EOI => Exit::EndOfInterrupt {
            vector: u8_at(body, UNION),
        },
        KVM_EXIT_HLT => Exit::Halt,
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Interrupted,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => Exit::System(match u32_at(body, UNION) {
            KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::Shutdown,
            KVM_SYSTEM_EVENT_RESET => SystemEvent::Reset,
            KVM_SYSTEM_EVENT_CRASH => SystemEvent::Crash,
            other => SystemEvent::Other(other),
        }),
        KVM_EXIT_DEBUG => Exit::Debug(DebugStop {
            exception: u32_at(body, UNION),
            pc: u64_at(body, UNION + 8),
            dr6: u64_at(body, UNION + 16),
            dr7: u64_at(body, UNION + 24),
        }),
        KVM_EXIT_FAIL_ENTRY => Exit::Broken(Broken::FailEntry {
            reason: u64_at(body, UNION),
            cpu: u32_at(body, UNION + 8),
        }),
        KVM_EXIT_INTERNAL_ERROR => {
            let words = (u32_at(body, UNION + 4) as usize).min(EVIDENCE);
            let evidence = (0..words)
                .map(|i| u64_at(body, UNION + 8 + 8 * i))
                .collect();
            Exit::Broken(Broken::Internal {
                suberror: u32_at(body, UNION),
                evidence,
            })
        }
        KVM_EXIT_MEMORY_FAULT => Exit::Broken(Broken::MemoryFault {
            address: u64_at(body, UNION + 8),
            len: u64_at(body, UNION + 16),
        }),
        // KVM_EXIT_HYPERCALL is among them: no capability that causes it is enabled.
        reason => unknown(reason),
    }
}

#[cold]
fn unknown<'v>(reason: u32) -> Exit<'v> {
    Exit::Broken(Broken::Unknown { reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_EXIT_HYPERCALL;

    const SIZE: usize = 3 * 4096;

    struct Image(Vec<u8>);

    impl Image {
        fn new(reason: u32) -> Self {
            Self(vec![0; SIZE - BODY]).put(REASON, &reason.to_ne_bytes())
        }
        fn put(mut self, at: usize, bytes: &[u8]) -> Self {
            self.0[at - BODY..at - BODY + bytes.len()].copy_from_slice(bytes);
            self
        }
        fn io(direction: u8, size: u8, port: u16, count: u32, offset: u64) -> Self {
            Self::new(KVM_EXIT_IO)
                .put(UNION, &[direction, size])
                .put(IO_PORT, &port.to_ne_bytes())
                .put(IO_COUNT, &count.to_ne_bytes())
                .put(IO_DATA_OFFSET, &offset.to_ne_bytes())
        }
    }

    fn is_unknown(mut image: Image, reason: u32) -> bool {
        matches!(decode(&mut image.0), Exit::Broken(Broken::Unknown { reason: r }) if r == reason)
    }

    #[test]
    fn the_offsets_are_the_kernels() {
        // include/uapi/linux/kvm.h
        assert_eq!((REASON, UNION), (8, 32));
        assert_eq!(offset_of!(kvm_run, immediate_exit), 1);
    }

    #[test]
    fn string_io_keeps_width_and_count() {
        let mut image = Image::io(1, 2, 0x3f8, 3, 4096).put(4096, &[1, 2, 3, 4, 5, 6, 7]);
        let Exit::Pio {
            port,
            width,
            direction,
            data,
        } = decode(&mut image.0)
        else {
            panic!("not a port access");
        };
        assert_eq!((port, width, direction), (0x3f8, 2, Direction::Out));
        assert_eq!(data, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn input_is_written_where_the_kernel_looks() {
        let mut image = Image::io(0, 4, 0xcfc, 1, 4096);
        let Exit::Pio {
            direction: Direction::In,
            data,
            ..
        } = decode(&mut image.0)
        else {
            panic!("not an input");
        };
        data.copy_from_slice(&[9, 8, 7, 6]);
        assert_eq!(image.0[4096 - BODY..4100 - BODY], [9, 8, 7, 6]);
    }

    #[test]
    fn hostile_port_accesses_are_refused() {
        let end = SIZE as u64;
        for (size, count, offset) in [
            (1, 1, end),
            (1, 1, u64::MAX),
            (4, 1, u64::MAX - 3),
            (4, 1, end - 3),
            (4, u32::MAX, 4096),
            (1, 1, 0),
            (1, 1, 1),
            (1, 1, 32),
            (0, 1, 4096),
            (3, 1, 4096),
            (8, 1, 4096),
            (255, 255, 4096),
            (1, 0, 4096),
        ] {
            assert!(
                is_unknown(Image::io(0, size, 1, count, offset), KVM_EXIT_IO),
                "{offset:#x}"
            );
        }
        assert!(is_unknown(Image::io(2, 1, 1, 1, 4096), KVM_EXIT_IO));
        // The very last byte is still inside.
        assert!(matches!(
            decode(&mut Image::io(0, 4, 1, 1, end - 4).0),
            Exit::Pio {
                data: [0, 0, 0, 0],
                ..
            }
        ));
    }

    #[test]
    fn mmio_of_every_length() {
        for len in 1..=8u32 {
            let mut image = Image::new(KVM_EXIT_MMIO)
                .put(MMIO_ADDRESS, &0xfee0_0000u64.to_ne_bytes())
                .put(MMIO_DATA, &[1, 2, 3, 4, 5, 6, 7, 8])
                .put(MMIO_LEN, &len.to_ne_bytes())
                .put(MMIO_IS_WRITE, &[(len & 1) as u8]);
            let Exit::Mmio {
                address,
                write,
                data,
            } = decode(&mut image.0)
            else {
                panic!("not a memory access");
            };
            assert_eq!((address, write), (0xfee0_0000, len & 1 == 1));
            assert_eq!(data, &[1, 2, 3, 4, 5, 6, 7, 8][..len as usize]);
        }
        for len in [0u32, 9, 4096, u32::MAX] {
            let image = Image::new(KVM_EXIT_MMIO).put(MMIO_LEN, &len.to_ne_bytes());
            assert!(is_unknown(image, KVM_EXIT_MMIO));
        }
    }

    #[test]
    fn internal_errors_keep_their_evidence() {
        let mut image = Image::new(KVM_EXIT_INTERNAL_ERROR)
            .put(UNION, &3u32.to_ne_bytes())
            .put(UNION + 4, &2u32.to_ne_bytes())
            .put(UNION + 8, &0xaau64.to_ne_bytes())
            .put(UNION + 16, &0xbbu64.to_ne_bytes());
        let Exit::Broken(Broken::Internal { suberror, evidence }) = decode(&mut image.0) else {
            panic!("not an internal error");
        };
        assert_eq!((suberror, evidence), (3, vec![0xaa, 0xbb]));
        let mut image = Image::new(KVM_EXIT_INTERNAL_ERROR).put(UNION + 4, &u32::MAX.to_ne_bytes());
        let Exit::Broken(Broken::Internal { evidence, .. }) = decode(&mut image.0) else {
            panic!("not an internal error");
        };
        assert_eq!(evidence.len(), EVIDENCE);
    }

    #[test]
    fn the_rare_ones() {
        let mut image = Image::new(KVM_EXIT_IOAPIC_EOI).put(UNION, &[0x41]);
        assert!(matches!(
            decode(&mut image.0),
            Exit::EndOfInterrupt { vector: 0x41 }
        ));
        assert!(matches!(
            decode(&mut Image::new(KVM_EXIT_HLT).0),
            Exit::Halt
        ));
        assert!(matches!(
            decode(&mut Image::new(KVM_EXIT_INTR).0),
            Exit::Interrupted
        ));
        assert!(matches!(
            decode(&mut Image::new(KVM_EXIT_SHUTDOWN).0),
            Exit::Shutdown
        ));
        for (kind, event) in [
            (1u32, SystemEvent::Shutdown),
            (2, SystemEvent::Reset),
            (3, SystemEvent::Crash),
            (77, SystemEvent::Other(77)),
        ] {
            let mut image = Image::new(KVM_EXIT_SYSTEM_EVENT).put(UNION, &kind.to_ne_bytes());
            assert!(matches!(decode(&mut image.0), Exit::System(e) if e == event));
        }
        let mut image = Image::new(KVM_EXIT_DEBUG)
            .put(UNION, &1u32.to_ne_bytes())
            .put(UNION + 8, &0x1000u64.to_ne_bytes())
            .put(UNION + 16, &0xffff_4ff2u64.to_ne_bytes())
            .put(UNION + 24, &0x402u64.to_ne_bytes());
        let Exit::Debug(stop) = decode(&mut image.0) else {
            panic!("not a debug event");
        };
        assert_eq!((stop.pc, stop.dr7), (0x1000, 0x402));
        assert!(stop.is_step() && stop.met().eq([1]));
        let mut image = Image::new(KVM_EXIT_FAIL_ENTRY)
            .put(UNION, &0x8000_0021u64.to_ne_bytes())
            .put(UNION + 8, &5u32.to_ne_bytes());
        let Exit::Broken(broken) = decode(&mut image.0) else {
            panic!("not broken");
        };
        assert_eq!(
            broken,
            Broken::FailEntry {
                reason: 0x8000_0021,
                cpu: 5
            }
        );
        let mut image = Image::new(KVM_EXIT_MEMORY_FAULT)
            .put(UNION + 8, &0x2000u64.to_ne_bytes())
            .put(UNION + 16, &4096u64.to_ne_bytes());
        let Exit::Broken(broken) = decode(&mut image.0) else {
            panic!("not broken");
        };
        assert_eq!(
            broken,
            Broken::MemoryFault {
                address: 0x2000,
                len: 4096
            }
        );
        assert!(is_unknown(
            Image::new(KVM_EXIT_HYPERCALL),
            KVM_EXIT_HYPERCALL
        ));
        assert!(is_unknown(Image::new(12345), 12345));
    }

    #[test]
    fn a_truncated_image_decodes_to_something_harmless() {
        let full = Image::io(0, 1, 1, 1, 4096).0;
        for len in 0..64 {
            let mut short = full[..len].to_vec();
            assert!(matches!(
                decode(&mut short),
                Exit::Broken(Broken::Unknown { .. })
            ));
        }
    }
}
