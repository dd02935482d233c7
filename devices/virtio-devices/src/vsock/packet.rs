//! The packet header (Virtio 1.2 §5.10.6).

/// Length of `struct virtio_vsock_hdr`.
pub(crate) const HEADER: usize = 44;
/// The host's address.
pub(crate) const HOST: u64 = 2;
/// The only type of socket here.
pub(crate) const STREAM: u16 = 1;
/// In a shutdown: the sender will receive no more.
pub(crate) const NO_RECEIVE: u32 = 1;
/// In a shutdown: the sender will send no more.
pub(crate) const NO_SEND: u32 = 2;
/// Both.
pub(crate) const CLOSED: u32 = NO_RECEIVE | NO_SEND;

/// What a packet asks for.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// A decoded header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Length of the payload.
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Bytes that the sender buffers.
    pub(crate) buf_alloc: u32,
    /// Bytes that the sender took out of that buffer so far, modulo 2³².
    pub(crate) fwd_cnt: u32,
}

impl Header {
    pub(crate) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = bytes.as_slice();
        let mut u64_ = || {
            let (head, tail) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
            rest = tail;
            u64::from_le_bytes(*head)
        };
        let (src_cid, dst_cid) = (u64_(), u64_());
        let mut u32_ = || {
            let (head, tail) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
            rest = tail;
            u32::from_le_bytes(*head)
        };
        let (src_port, dst_port, len) = (u32_(), u32_(), u32_());
        let kind_and_op = u32_();
        let (flags, buf_alloc, fwd_cnt) = (u32_(), u32_(), u32_());
        let (kind, op) = (kind_and_op as u16, (kind_and_op >> 16) as u16);
        Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields = [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The answer that says that there is no such connection.
    pub(crate) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_standard_says() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes = header.to_bytes();
        assert!(
            bytes.iter().zip(1u8..).all(|(&byte, n)| byte == n),
            "{bytes:x?}"
        );
        assert_eq!(Header::from_bytes(&bytes), header);
    }
}
