//! Reading a block request off its chain, and checking it against the medium.

use nyx_device::BlockOp;
use nyx_memory::DmaView;
use nyx_virtio::{Chain, TaskError};
use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// The unit of addresses and capacities (§5.2.4), whatever the block size.
pub(crate) const SECTOR: u64 = 512;
/// `struct virtio_blk_req` before the data: type, reserved, sector.
const HEADER: u64 = 16;
/// `struct virtio_blk_discard_write_zeroes`.
const SEGMENT: usize = 16;
/// Segments of one discard or write-zeroes request.
pub(crate) const MAX_SEGMENTS: usize = 32;
/// Sectors of one segment: 1 GiB.
pub(crate) const MAX_SEGMENT_SECTORS: u32 = 1 << 21;
/// Bytes of one read or write; far beyond what drivers send and within one `preadv(2)`.
const MAX_TRANSFER: u64 = 1 << 30;
/// Length of the identifier that GET_ID returns.
pub(crate) const ID_LEN: usize = 20;

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Capacity in bytes.
    pub(crate) capacity: u64,
    /// Writes of any kind fail.
    pub(crate) read_only: bool,
    /// DISCARD was offered.
    pub(crate) discard: bool,
    /// WRITE_ZEROES was offered.
    pub(crate) write_zeroes: bool,
}

/// A byte range of the medium, in bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) may_unmap: bool,
}

/// Ranges of a discard or write-zeroes request.
pub(crate) type Extents = SmallVec<[Extent; 1]>;

/// What the driver wants.
pub(crate) enum Request {
    /// Read or write, with the buffers pinned.
    Transfer { offset: u64, len: u64, op: BlockOp },
    /// Make writes durable.
    Flush,
    /// The identifier, into this many bytes.
    GetId(usize),
    /// Forget ranges.
    Discard(Extents),
    /// Zero ranges.
    WriteZeroes(Extents),
}

/// A request that fails, with its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) u8);

const IOERR: Refusal = Refusal(VIRTIO_BLK_S_IOERR as u8);
const UNSUPP: Refusal = Refusal(VIRTIO_BLK_S_UNSUPP as u8);

/// Where the status byte goes: the last writable byte, however the driver frames the request
/// (§2.7.4.1, §5.2.6).
pub(crate) fn status_at(chain: &Chain) -> Result<u64, TaskError> {
    let last = chain.writable_len().checked_sub(1);
    last.ok_or(TaskError::Protocol(
        "a block request has no room for its status",
    ))
}

/// Reads the request in `chain`.
pub(crate) fn parse(chain: &Chain, view: &DmaView<'_>, rules: &Rules) -> Result<Request, Refusal> {
    let header = chain.read::<16>(view, 0).map_err(|_| IOERR)?;
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let output = chain.readable_len().saturating_sub(HEADER);
    let input = chain.writable_len().saturating_sub(1);
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = transfer(sector, input, rules)?;
            let buffers = chain.pin_writable(view, 0, input).map_err(|_| IOERR)?;
            Ok(Request::Transfer {
                offset,
                len: input,
                op: BlockOp::Read(buffers),
            })
        }
        VIRTIO_BLK_T_OUT => {
            if rules.read_only {
                return Err(IOERR);
            }
            let offset = transfer(sector, output, rules)?;
            let buffers = chain
                .pin_readable(view, HEADER, output)
                .map_err(|_| IOERR)?;
            Ok(Request::Transfer {
                offset,
                len: output,
                op: BlockOp::Write(buffers),
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Request::GetId(input.min(ID_LEN as u64) as usize)),
        VIRTIO_BLK_T_DISCARD if rules.discard => {
            extents(chain, view, output, rules, false).map(Request::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if rules.write_zeroes => {
            extents(chain, view, output, rules, true).map(Request::WriteZeroes)
        }
        _ => Err(UNSUPP),
    }
}

/// Checks the range of a read or write and returns its byte offset.
fn transfer(sector: u64, len: u64, rules: &Rules) -> Result<u64, Refusal> {
    if len == 0 || !len.is_multiple_of(SECTOR) || len > MAX_TRANSFER {
        return Err(IOERR);
    }
    in_bounds(sector, len, rules)
}

fn in_bounds(sector: u64, len: u64, rules: &Rules) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(SECTOR).ok_or(IOERR)?;
    let end = offset.checked_add(len).ok_or(IOERR)?;
    if end <= rules.capacity {
        Ok(offset)
    } else {
        Err(IOERR)
    }
}

/// §5.2.6.1: a list of segments as data; checked in full before the first one takes effect.
fn extents(
    chain: &Chain,
    view: &DmaView<'_>,
    len: u64,
    rules: &Rules,
    zeroes: bool,
) -> Result<Extents, Refusal> {
    if rules.read_only {
        return Err(IOERR);
    }
    let mut bytes = [0; MAX_SEGMENTS * SEGMENT];
    let used = usize::try_from(len)
        .ok()
        .and_then(|len| bytes.get_mut(..len))
        .ok_or(IOERR)?;
    if used.is_empty() || !used.len().is_multiple_of(SEGMENT) {
        return Err(IOERR);
    }
    chain.read_into(view, HEADER, used).map_err(|_| IOERR)?;
    let (segments, _) = used.as_chunks::<SEGMENT>();
    let mut extents = Extents::new();
    for &[
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] in segments
    {
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        // §5.2.6.2: unknown flags, and unmap on a discard, are not supported.
        let allowed = if zeroes {
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        if flags & !allowed != 0 {
            return Err(UNSUPP);
        }
        if sectors > MAX_SEGMENT_SECTORS {
            return Err(IOERR);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = in_bounds(sector, len, rules)?;
        if len != 0 {
            extents.push(Extent {
                offset,
                len,
                may_unmap: flags != 0,
            });
        }
    }
    Ok(extents)
}
