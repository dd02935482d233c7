//! Packets of GDB's remote protocol as units, and the few that gdbstub does not know.
//!
//! gdbstub takes bytes; what it must not be given is sorted out here: noise between packets, reads so
//! long that it would loop, packets without end.

/// Bytes of the longest packet; told to gdb as `PacketSize`.
pub(crate) const PACKET: usize = 16 << 10;
/// Most bytes of one memory read; gdb asks for the rest.
const MOST_READ: u64 = (PACKET / 4) as u64;

/// One unit of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Something for gdbstub, to the byte: a packet, or an interrupt.
    Pass(Vec<u8>),
    /// `qqemu.PhyMemMode`: are addresses physical?
    AskPhysical,
    /// `Qqemu.PhyMemMode:n`: addresses are physical (or not).
    SetPhysical(bool),
    /// `vKill`: gdbstub ends there without the answer that gdb waits for.
    Kill,
}

/// A packet is longer than any may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of more than {PACKET} bytes")]
pub(crate) struct Oversize;

/// Collects bytes into units.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// The packet so far, from `$` on.
    packet: Vec<u8>,
    /// Bytes of the checksum still to come, once `#` was there.
    checksum: Option<u8>,
    /// The client has switched acknowledgements off.
    no_acks: bool,
}

impl Frames {
    /// Takes one byte; a unit if it completes one.
    pub(crate) fn push(&mut self, byte: u8) -> Result<Option<Unit>, Oversize> {
        if self.packet.is_empty() {
            match byte {
                b'$' => self.packet.push(byte),
                0x03 => return Ok(Some(Unit::Pass(vec![byte]))),
                // Acknowledgements need no answer over a reliable stream; noise gets none.
                _ => {}
            }
            return Ok(None);
        }
        if self.packet.len() >= PACKET {
            return Err(Oversize);
        }
        self.packet.push(byte);
        match &mut self.checksum {
            None if byte == b'#' => self.checksum = Some(2),
            None => {}
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    self.checksum = None;
                    let packet = std::mem::take(&mut self.packet);
                    return Ok(Some(self.sort(packet)));
                }
            }
        }
        Ok(None)
    }

    fn sort(&mut self, packet: Vec<u8>) -> Unit {
        let body = packet.get(1..packet.len().saturating_sub(3));
        match body.unwrap_or_default() {
            b"QStartNoAckMode" => self.no_acks = true,
            b"qqemu.PhyMemMode" => return Unit::AskPhysical,
            b"Qqemu.PhyMemMode:0" => return Unit::SetPhysical(false),
            b"Qqemu.PhyMemMode:1" => return Unit::SetPhysical(true),
            [b'v', b'K', b'i', b'l', b'l', ..] => return Unit::Kill,
            [b'm', rest @ ..] => {
                if let Some(shorter) = shorten(rest) {
                    return Unit::Pass(frame(&shorter));
                }
            }
            _ => {}
        }
        Unit::Pass(packet)
    }

    /// The answer `body`, as the client expects it.
    pub(crate) fn answer(&self, body: &str) -> Vec<u8> {
        let mut answer = if self.no_acks { vec![] } else { vec![b'+'] };
        answer.extend(frame(body.as_bytes()));
        answer
    }
}

/// `m` with the length that we answer, if `rest` asks for more.
fn shorten(rest: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(rest).ok()?;
    let (address, len) = text.split_once(',')?;
    let digits = len.trim_start_matches('0');
    let fits = digits.len() <= 16 && u64::from_str_radix(len, 16).is_ok_and(|n| n <= MOST_READ);
    (!fits).then(|| format!("m{address},{MOST_READ:x}").into_bytes())
}

fn frame(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let mut packet = vec![b'$'];
    packet.extend_from_slice(body);
    packet.extend_from_slice(format!("#{sum:02x}").as_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(frames: &mut Frames, bytes: &[u8]) -> Vec<Unit> {
        bytes
            .iter()
            .filter_map(|&byte| frames.push(byte).unwrap())
            .collect()
    }

    #[test]
    fn packets_pass_to_the_byte_and_noise_does_not() {
        let mut frames = Frames::default();
        let got = units(&mut frames, b"+-zz$g#67+\x03$?#3f");
        let pass = |bytes: &[u8]| Unit::Pass(bytes.to_vec());
        assert_eq!(got, [pass(b"$g#67"), pass(b"\x03"), pass(b"$?#3f")]);
        // Ctrl-C within binary data is data.
        let packet = b"$X1,1:\x03#aa";
        assert_eq!(units(&mut frames, packet), [pass(packet)]);
    }

    #[test]
    fn endless_packets_and_reads_are_cut() {
        let mut frames = Frames::default();
        assert_eq!(frames.push(b'$'), Ok(None));
        let end = (0..PACKET).find_map(|_| frames.push(b'a').err());
        assert_eq!(end, Some(Oversize));
        let mut frames = Frames::default();
        for len in ["ffffffffffffffff", "1001", "10000000000000000000", "x"] {
            let asked = frame(format!("m10,{len}").as_bytes());
            assert_eq!(
                units(&mut frames, &asked),
                [Unit::Pass(frame(b"m10,1000"))],
                "{len}"
            );
        }
        let asked = frame(b"m10,1000");
        assert_eq!(units(&mut frames, &asked), [Unit::Pass(asked)]);
    }

    #[test]
    fn physical_memory_is_asked_for_as_qemu_does() {
        let mut frames = Frames::default();
        let got = units(&mut frames, &frame(b"qqemu.PhyMemMode"));
        assert_eq!(got, [Unit::AskPhysical]);
        assert_eq!(frames.answer("1"), b"+$1#31");
        units(&mut frames, &frame(b"QStartNoAckMode"));
        assert_eq!(units(&mut frames, &frame(b"vKill;1")), [Unit::Kill]);
        let got = units(&mut frames, &frame(b"Qqemu.PhyMemMode:1"));
        assert_eq!(got, [Unit::SetPhysical(true)]);
        assert_eq!(frames.answer("OK"), b"$OK#9a");
    }
}
