//! The saved controller.

use nyx_state::Saved;

/// State of the controller and what is attached.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedI8042 {
    /// The command byte.
    #[n(0)]
    pub command_byte: u8,
    /// The command whose argument comes next; zero for none.
    #[n(1)]
    pub awaiting: u8,
    /// Whether the last byte written was a command.
    #[n(2)]
    pub last_was_command: bool,
    /// Address line 20.
    #[n(3)]
    pub a20: bool,
    /// The byte last read.
    #[n(4)]
    pub last_output: u8,
    /// The output buffer: a byte, with bit 8 set if it is the mouse's.
    #[n(5)]
    pub output: Option<u16>,
    /// Replies that wait, likewise.
    #[n(6)]
    pub replies: Vec<u16>,
    /// Translation has seen the release prefix.
    #[n(7)]
    pub after_break: bool,
    /// The keyboard.
    #[n(8)]
    pub keyboard: SavedKeyboard,
    /// The mouse.
    #[n(9)]
    pub mouse: SavedMouse,
}

impl Saved for SavedI8042 {
    const NAME: &'static str = "i8042/1";
}

/// State of a keyboard.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedKeyboard {
    /// It sends keys.
    #[n(0)]
    pub scanning: bool,
    /// Its lights.
    #[n(1)]
    pub leds: u8,
    /// Its scan code set.
    #[n(2)]
    pub scan_code_set: u8,
    /// Its typematic rate and delay.
    #[n(3)]
    pub typematic: u8,
    /// The command whose argument comes next; zero for none.
    #[n(4)]
    pub awaiting: u8,
    /// The byte last sent, for a resend.
    #[n(5)]
    pub last_sent: u8,
    /// Bytes that wait.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub buffer: Vec<u8>,
}

/// State of a mouse.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedMouse {
    /// It reports movement by itself.
    #[n(0)]
    pub reporting: bool,
    /// Remote mode.
    #[n(1)]
    pub remote: bool,
    /// Wrap mode.
    #[n(2)]
    pub wrapping: bool,
    /// 2:1 scaling.
    #[n(3)]
    pub double_scale: bool,
    /// Resolution, 0 to 3.
    #[n(4)]
    pub resolution: u8,
    /// Reports a second.
    #[n(5)]
    pub sample_rate: u8,
    /// The command whose argument comes next; zero for none.
    #[n(6)]
    pub awaiting: u8,
    /// Bytes that wait.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub buffer: Vec<u8>,
}
