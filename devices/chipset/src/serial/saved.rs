//! The saved serial port.

use super::registers::{FCR_ENABLE, FCR_KEPT, FIFO, IER_MASK, LSR_ERRORS, MCR_MASK, MSR_DELTAS};
use super::uart::QUEUE;
use nyx_state::{RestoreError, Saved};

/// State of a 16550A.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedSerial {
    /// IER.
    #[n(0)]
    pub interrupt_enable: u8,
    /// FCR, without the bits that clear themselves.
    #[n(1)]
    pub fifo_control: u8,
    /// LCR.
    #[n(2)]
    pub line_control: u8,
    /// MCR.
    #[n(3)]
    pub modem_control: u8,
    /// SCR.
    #[n(4)]
    pub scratch: u8,
    /// DLM and DLL.
    #[n(5)]
    pub divisor: u16,
    /// The error bits of LSR.
    #[n(6)]
    pub line_errors: u8,
    /// The delta bits of MSR.
    #[n(7)]
    pub modem_deltas: u8,
    /// Whether the transmitter became empty unnoticed.
    #[n(8)]
    pub transmitter_event: bool,
    /// Whether IIR or LSR was read since the last character was written.
    #[n(9)]
    pub guest_looked: bool,
    /// Received characters, oldest first.
    #[cbor(n(10), with = "minicbor::bytes")]
    pub received: Vec<u8>,
    /// Which of them are breaks; bit 0 is the oldest.
    #[n(11)]
    pub breaks: u16,
    /// Output that the backend has not taken.
    #[cbor(n(12), with = "minicbor::bytes")]
    pub queue: Vec<u8>,
}

impl Saved for SavedSerial {
    const NAME: &'static str = "serial/1";
}

impl SavedSerial {
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let depth = if self.fifo_control & FCR_ENABLE != 0 {
            FIFO
        } else {
            1
        };
        let beyond = u32::from(self.breaks) >> self.received.len().min(FIFO);
        let faults = [
            (
                self.interrupt_enable & !IER_MASK != 0,
                "interrupt enable has unknown bits",
            ),
            (
                self.fifo_control & !FCR_KEPT != 0,
                "FIFO control has unknown bits",
            ),
            (
                self.fifo_control != 0 && self.fifo_control & FCR_ENABLE == 0,
                "FIFO control has bits of a disabled FIFO",
            ),
            (
                self.modem_control & !MCR_MASK != 0,
                "modem control has unknown bits",
            ),
            (
                self.line_errors & !LSR_ERRORS != 0,
                "line errors have unknown bits",
            ),
            (
                self.modem_deltas & !MSR_DELTAS != 0,
                "modem deltas have unknown bits",
            ),
            (
                self.received.len() > depth,
                "more was received than the FIFO holds",
            ),
            (beyond != 0, "a break lies beyond the FIFO"),
            (
                self.queue.len() > QUEUE,
                "more output waits than the queue holds",
            ),
        ];
        match faults.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(RestoreError::Invalid(what)),
            None => Ok(()),
        }
    }
}
