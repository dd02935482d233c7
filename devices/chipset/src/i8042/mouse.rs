//! The mouse (IBM PS/2 Technical Reference, "Auxiliary Device Controller"): it answers everything
//! and never moves.

use super::saved::SavedMouse;
use nyx_inspect::{Counter, Inspect};
use nyx_state::RestoreError;
use std::collections::VecDeque;

/// Bytes the mouse can hold.
pub(super) const BUFFER: usize = 16;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// Identification of a standard mouse.
const IDENTITY: u8 = 0x00;
/// A report of no movement: bit 3 is always set.
const STILL: [u8; 3] = [0x08, 0, 0];

/// A mouse.
#[derive(Debug, Inspect)]
#[inspect(prefix = "i8042")]
pub(super) struct Mouse {
    reporting: bool,
    remote: bool,
    wrapping: bool,
    double_scale: bool,
    resolution: u8,
    sample_rate: u8,
    /// The command whose argument comes next; zero for none.
    #[inspect(hex)]
    awaiting: u8,
    #[inspect(skip)]
    buffer: VecDeque<u8>,
    /// Bytes for which a buffer of the keyboard controller had no room.
    #[inspect(metric = "lost_bytes", label(port = "mouse"))]
    lost: Counter,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            reporting: false,
            remote: false,
            wrapping: false,
            double_scale: false,
            resolution: 2,
            sample_rate: 100,
            awaiting: 0,
            buffer: VecDeque::new(),
            lost: Counter::default(),
        }
    }
}

impl Mouse {
    pub(super) fn power_on(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        *self = Self {
            lost,
            ..Self::default()
        };
    }

    fn reply(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.buffer.len() < BUFFER {
                self.buffer.push_back(byte);
            } else {
                self.lost.inc();
            }
        }
    }

    /// The next byte for the controller.
    pub(super) fn send(&mut self) -> Option<u8> {
        self.buffer.pop_front()
    }

    /// A byte from the controller.
    pub(super) fn receive(&mut self, byte: u8) {
        // Wrap mode echoes everything but its own end and a reset.
        if self.wrapping && !matches!(byte, 0xec | 0xff) {
            return self.reply(&[byte]);
        }
        match std::mem::take(&mut self.awaiting) {
            0xe8 if byte <= 3 => {
                self.resolution = byte;
                return self.reply(&[ACKNOWLEDGE]);
            }
            0xf3 if (1..=200).contains(&byte) => {
                self.sample_rate = byte;
                return self.reply(&[ACKNOWLEDGE]);
            }
            _ => {}
        }
        match byte {
            0xe6 | 0xe7 => self.double_scale = byte == 0xe7,
            0xe8 | 0xf3 => self.awaiting = byte,
            0xe9 => return self.report_status(),
            0xea | 0xf0 => self.remote = byte == 0xf0,
            0xeb => {
                self.reply(&[ACKNOWLEDGE]);
                return self.reply(&STILL);
            }
            0xec | 0xee => self.wrapping = byte == 0xee,
            0xf2 => return self.reply(&[ACKNOWLEDGE, IDENTITY]),
            0xf4 | 0xf5 => self.reporting = byte == 0xf4,
            0xf6 => {
                let buffer = std::mem::take(&mut self.buffer);
                self.power_on();
                self.buffer = buffer;
            }
            0xff => {
                self.power_on();
                return self.reply(&[ACKNOWLEDGE, SELF_TEST_PASSED, IDENTITY]);
            }
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACKNOWLEDGE]);
    }

    fn report_status(&mut self) {
        let status = u8::from(self.remote) << 6
            | u8::from(self.reporting) << 5
            | u8::from(self.double_scale) << 4;
        self.reply(&[ACKNOWLEDGE, status, self.resolution, self.sample_rate]);
    }

    pub(super) fn save(&self) -> SavedMouse {
        let Self {
            reporting,
            remote,
            wrapping,
            double_scale,
            resolution,
            sample_rate,
            awaiting,
            buffer,
            lost: _,
        } = self;
        SavedMouse {
            reporting: *reporting,
            remote: *remote,
            wrapping: *wrapping,
            double_scale: *double_scale,
            resolution: *resolution,
            sample_rate: *sample_rate,
            awaiting: *awaiting,
            buffer: buffer.iter().copied().collect(),
        }
    }

    pub(super) fn restored(saved: SavedMouse) -> Result<Self, RestoreError> {
        let SavedMouse {
            reporting,
            remote,
            wrapping,
            double_scale,
            resolution,
            sample_rate,
            awaiting,
            buffer,
        } = saved;
        let faults = [
            (resolution > 3, "a mouse has four resolutions"),
            (
                !(1..=200).contains(&sample_rate),
                "a mouse reports 1 to 200 times a second",
            ),
            (
                !matches!(awaiting, 0 | 0xe8 | 0xf3),
                "that mouse command takes no argument",
            ),
            (buffer.len() > BUFFER, "the mouse holds 16 bytes"),
        ];
        if let Some((_, what)) = faults.into_iter().find(|(wrong, _)| *wrong) {
            return Err(RestoreError::Invalid(what));
        }
        let (buffer, lost) = (buffer.into(), Counter::default());
        Ok(Self {
            reporting,
            remote,
            wrapping,
            double_scale,
            resolution,
            sample_rate,
            awaiting,
            buffer,
            lost,
        })
    }
}
