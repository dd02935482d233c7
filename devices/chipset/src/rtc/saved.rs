//! The saved clock.

use super::clock::{A, BYTES, FLAGS, UIP};
use nyx_state::{RestoreError, Saved};

/// The furthest a guest can be from the host: ten thousand years, with some room.
const FURTHEST: i64 = 400_000_000_000;

/// State of a real-time clock.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedRtc {
    /// What was written to port 0x70.
    #[n(0)]
    pub index: u8,
    /// The 128 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub memory: Vec<u8>,
    /// Register C without IRQF.
    #[n(2)]
    pub flags: u8,
    /// Whole seconds from the host's wall clock to the guest's.
    #[n(3)]
    pub offset_seconds: i64,
    /// And nanoseconds.
    #[n(4)]
    pub offset_nanoseconds: u32,
    /// Up to which second (of the guest, since the Unix epoch) alarms are accounted for, if the
    /// guest waits for any.
    #[n(5)]
    pub seen_second: Option<i64>,
}

impl Saved for SavedRtc {
    const NAME: &'static str = "rtc/1";
}

impl SavedRtc {
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let seen = self.seen_second.unwrap_or(0);
        let faults = [
            (
                self.memory.len() != BYTES,
                "the clock's memory is not 128 bytes",
            ),
            (
                self.memory.get(A).is_some_and(|a| a & UIP != 0),
                "register A holds no update flag",
            ),
            (self.flags & !FLAGS != 0, "register C has unknown flags"),
            (
                self.offset_nanoseconds >= 1_000_000_000,
                "a second has fewer nanoseconds",
            ),
            (
                self.offset_seconds.unsigned_abs() > FURTHEST as u64,
                "the clock is centuries away",
            ),
            (
                seen.unsigned_abs() > 2 * FURTHEST as u64,
                "the last alarm is centuries away",
            ),
        ];
        match faults.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(RestoreError::Invalid(what)),
            None => Ok(()),
        }
    }
}
