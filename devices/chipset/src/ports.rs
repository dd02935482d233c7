//! Devices with 8-bit registers on a bus that also carries wider accesses.

use nyx_device::{AccessResult, BadAccess};

/// Reads a run of byte registers, as a bridge splits a wide access to an 8-bit device into several
/// (82371SB §2.1.3 routes each byte lane on its own). The first byte decides whether anything is
/// there at all; beyond it, absent registers float high.
pub(crate) fn read_each(
    offset: u64,
    data: &mut [u8],
    mut port: impl FnMut(u64) -> Option<u8>,
) -> AccessResult {
    for (step, byte) in data.iter_mut().enumerate() {
        *byte = match offset.checked_add(step as u64).and_then(&mut port) {
            Some(value) => value,
            None if step == 0 => return Err(BadAccess::NoRegister),
            None => 0xff,
        };
    }
    Ok(())
}

/// Writes a run of byte registers, likewise; `false` from `port` means that nothing is there.
pub(crate) fn write_each(
    offset: u64,
    data: &[u8],
    mut port: impl FnMut(u64, u8) -> bool,
) -> AccessResult {
    for (step, &byte) in data.iter().enumerate() {
        let taken = offset
            .checked_add(step as u64)
            .is_some_and(|at| port(at, byte));
        if step == 0 && !taken {
            return Err(BadAccess::NoRegister);
        }
    }
    Ok(())
}
