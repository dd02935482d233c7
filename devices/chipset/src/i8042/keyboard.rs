//! The keyboard (IBM PS/2 Technical Reference, "101- and 102-Key Keyboards").

use super::saved::SavedKeyboard;
use nyx_inspect::{Counter, Inspect};
use nyx_state::RestoreError;
use std::collections::VecDeque;

/// Bytes the keyboard can hold.
pub(super) const BUFFER: usize = 16;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// Identification of an enhanced keyboard.
const IDENTITY: [u8; 2] = [0xab, 0x83];
/// Prefix of a key's release in sets 2 and 3.
const BREAK: u8 = 0xf0;
/// 10.9 characters a second after half a second.
const TYPEMATIC: u8 = 0x2b;

/// A keyboard.
#[derive(Debug, Inspect)]
#[inspect(prefix = "i8042")]
pub(super) struct Keyboard {
    scanning: bool,
    #[inspect(hex)]
    leds: u8,
    scan_code_set: u8,
    #[inspect(hex)]
    typematic: u8,
    /// The command whose argument comes next; zero for none.
    #[inspect(hex)]
    awaiting: u8,
    #[inspect(hex)]
    last_sent: u8,
    #[inspect(skip)]
    buffer: VecDeque<u8>,
    /// Bytes for which a buffer of the keyboard controller had no room.
    #[inspect(metric = "lost_bytes", label(port = "keyboard"))]
    lost: Counter,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            scanning: true,
            leds: 0,
            scan_code_set: 2,
            typematic: TYPEMATIC,
            awaiting: 0,
            last_sent: 0,
            buffer: VecDeque::new(),
            lost: Counter::default(),
        }
    }
}

impl Keyboard {
    pub(super) fn power_on(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        *self = Self {
            lost,
            ..Self::default()
        };
    }

    fn set_defaults(&mut self) {
        self.scan_code_set = 2;
        self.typematic = TYPEMATIC;
        self.buffer.clear();
    }

    /// Keys: all of them fit, or none is sent.
    pub(super) fn press(&mut self, codes: &[u8]) {
        if self.scanning && self.buffer.len() + codes.len() <= BUFFER {
            self.buffer.extend(codes);
        } else {
            self.lost.inc();
        }
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
        let byte = self.buffer.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    /// A byte from the controller.
    pub(super) fn receive(&mut self, byte: u8) {
        let awaiting = std::mem::take(&mut self.awaiting);
        // A command where an argument was due takes its place.
        if awaiting != 0 && byte < 0xed {
            return self.argument(awaiting, byte);
        }
        match byte {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.awaiting = byte;
                self.reply(&[ACKNOWLEDGE]);
            }
            0xee => self.reply(&[0xee]),
            0xf2 => {
                self.reply(&[ACKNOWLEDGE]);
                self.reply(&IDENTITY);
            }
            0xf4 => {
                self.buffer.clear();
                self.scanning = true;
                self.reply(&[ACKNOWLEDGE]);
            }
            0xf5 | 0xf6 => {
                self.set_defaults();
                // F5 also stops scanning; F6 leaves it as it is.
                self.scanning &= byte == 0xf6;
                self.reply(&[ACKNOWLEDGE]);
            }
            // Key types of set 3.
            0xf7..=0xfa => self.reply(&[ACKNOWLEDGE]),
            0xfe => self.reply(&[self.last_sent]),
            0xff => {
                self.power_on();
                self.reply(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }

    fn argument(&mut self, command: u8, value: u8) {
        match command {
            0xed => self.leds = value & 7,
            0xf0 if value == 0 => return self.reply(&[ACKNOWLEDGE, self.scan_code_set]),
            0xf0 if value <= 3 => self.scan_code_set = value,
            0xf0 => return self.reply(&[RESEND]),
            0xf3 => self.typematic = value & 0x7f,
            // Key types of set 3, per key.
            _ => {}
        }
        self.reply(&[ACKNOWLEDGE]);
    }

    pub(super) fn save(&self) -> SavedKeyboard {
        let Self {
            scanning,
            leds,
            scan_code_set,
            typematic,
            awaiting,
            last_sent,
            buffer,
            lost: _,
        } = self;
        SavedKeyboard {
            scanning: *scanning,
            leds: *leds,
            scan_code_set: *scan_code_set,
            typematic: *typematic,
            awaiting: *awaiting,
            last_sent: *last_sent,
            buffer: buffer.iter().copied().collect(),
        }
    }

    pub(super) fn restored(saved: SavedKeyboard) -> Result<Self, RestoreError> {
        let SavedKeyboard {
            scanning,
            leds,
            scan_code_set,
            typematic,
            awaiting,
            last_sent,
            buffer,
        } = saved;
        let faults = [
            (leds > 7, "the keyboard has three lights"),
            (
                !(1..=3).contains(&scan_code_set),
                "there are three scan code sets",
            ),
            (typematic > 0x7f, "the typematic rate has seven bits"),
            (
                !matches!(awaiting, 0 | 0xed | 0xf0 | 0xf3 | 0xfb..=0xfd),
                "that keyboard command takes no argument",
            ),
            (buffer.len() > BUFFER, "the keyboard holds 16 bytes"),
        ];
        if let Some((_, what)) = faults.into_iter().find(|(wrong, _)| *wrong) {
            return Err(RestoreError::Invalid(what));
        }
        let (buffer, lost) = (buffer.into(), Counter::default());
        Ok(Self {
            scanning,
            leds,
            scan_code_set,
            typematic,
            awaiting,
            last_sent,
            buffer,
            lost,
        })
    }
}

/// What the controller makes of scan code set 2 on its way to a guest that expects set 1.
#[derive(Clone, Copy, Debug, Default, Inspect)]
pub(super) struct Translation {
    after_break: bool,
}

impl Translation {
    pub(super) fn resumed(after_break: bool) -> Self {
        Self { after_break }
    }
    pub(super) fn after_break(self) -> bool {
        self.after_break
    }

    /// The translated byte; none for the release prefix, which becomes bit 7 of the next code.
    pub(super) fn take(&mut self, byte: u8) -> Option<u8> {
        if byte == BREAK {
            self.after_break = true;
            return None;
        }
        let code = SET1.get(usize::from(byte)).copied().unwrap_or(match byte {
            0x83 => 0x41,
            0x84 => 0x54,
            _ => byte,
        });
        Some(
            code | if std::mem::take(&mut self.after_break) {
                0x80
            } else {
                0
            },
        )
    }
}

/// Codes of set 1 by code of set 2 (IBM PS/2 Technical Reference, "Keyboard Controller", scan code
/// translation).
const SET1: [u8; 0x80] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];
