//! The controller.

use super::keyboard::{Keyboard, Translation};
use super::mouse::Mouse;
use super::saved::SavedI8042;
use crate::ports::{read_each, write_each};
use nyx_device::{
    AccessResult, BadAccess, Device, Hit, IrqLine, Lifecycle, PowerPort, PowerRequest, Registers,
    ResetKind,
};
use nyx_inspect::{Counter, Inspect};
use nyx_state::{Persist, RestoreError, SaveError};
use std::collections::VecDeque;

/// Replies of the controller that can wait.
pub(super) const REPLIES: usize = 16;

/// Region of the data port 0x60.
pub(super) const DATA: u8 = 0;
/// Region of the status and command port 0x64.
pub(super) const COMMAND: u8 = 1;

/// Status: the output buffer holds a byte.
const OUTPUT_FULL: u8 = 0x01;
/// Status: the self-test passed.
const SYSTEM: u8 = 0x04;
/// Status: the last byte written was a command.
const WAS_COMMAND: u8 = 0x08;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 0x10;
/// Status: the byte is the mouse's.
const FROM_MOUSE: u8 = 0x20;

/// Command byte: keyboard interrupt.
const KEYBOARD_IRQ: u8 = 0x01;
/// Command byte: mouse interrupt.
const MOUSE_IRQ: u8 = 0x02;
/// Command byte: keyboard clock off.
const KEYBOARD_OFF: u8 = 0x10;
/// Command byte: mouse clock off.
const MOUSE_OFF: u8 = 0x20;
/// Command byte: translate scan codes to set 1.
const TRANSLATE: u8 = 0x40;
/// The command byte as firmware leaves it: self-test passed, keyboard on and translated.
const FIRMWARE: u8 = KEYBOARD_IRQ | SYSTEM | MOUSE_OFF | TRANSLATE;

/// Output port: the reset line, active low.
const NO_RESET: u8 = 0x01;
/// Output port: address line 20.
const A20: u8 = 0x02;
/// Output port: the keyboard's clock and data, idle.
const IDLE: u8 = 0xc0;

/// A byte on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) byte: u8,
    pub(super) from_mouse: bool,
}

/// The controller and what is attached to it.
#[derive(Inspect)]
#[inspect(prefix = "i8042")]
pub struct I8042 {
    // Wiring
    #[inspect(skip)]
    keyboard_irq: IrqLine,
    #[inspect(skip)]
    mouse_irq: IrqLine,
    #[inspect(skip)]
    power: PowerPort,
    // State
    #[inspect(hex)]
    command_byte: u8,
    /// The command whose argument the data port takes next; zero for none.
    #[inspect(hex)]
    awaiting: u8,
    last_was_command: bool,
    a20: bool,
    /// What the data port reads while the output buffer is empty: the byte before.
    #[inspect(hex)]
    last_output: u8,
    #[inspect(skip)]
    output: Option<Output>,
    #[inspect(skip)]
    replies: VecDeque<Output>,
    translation: Translation,
    keyboard: Keyboard,
    mouse: Mouse,
    // Statistics
    /// Resets that the guest asked for through the keyboard controller.
    resets: Counter,
    /// Bytes for which a buffer of the keyboard controller had no room.
    #[inspect(metric = "lost_bytes", label(port = "controller"))]
    lost_replies: Counter,
}

impl I8042 {
    /// The controller after firmware has initialised it.
    pub fn new(keyboard_irq: IrqLine, mouse_irq: IrqLine, power: PowerPort) -> Self {
        Self {
            keyboard_irq,
            mouse_irq,
            power,
            command_byte: FIRMWARE,
            awaiting: 0,
            last_was_command: false,
            a20: true,
            last_output: 0,
            output: None,
            replies: VecDeque::new(),
            translation: Translation::default(),
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            resets: Counter::default(),
            lost_replies: Counter::default(),
        }
    }

    /// The keyboard sends `codes` of scan code set 2: makes, breaks (0xf0 first), prefixes. What
    /// does not fit its buffer is lost, all of it.
    pub fn press(&mut self, codes: &[u8]) {
        self.keyboard.press(codes);
        self.refill();
        self.drive();
    }

    fn reply(&mut self, byte: u8, from_mouse: bool) {
        if self.replies.len() < REPLIES {
            self.replies.push_back(Output { byte, from_mouse });
        } else {
            self.lost_replies.inc();
        }
    }

    /// Moves the next byte into the empty output buffer.
    fn refill(&mut self) {
        while self.output.is_none() {
            if let Some(reply) = self.replies.pop_front() {
                self.output = Some(reply);
            } else if let Some(byte) = self.next_key() {
                let byte = if self.command_byte & TRANSLATE != 0 {
                    self.translation.take(byte)
                } else {
                    Some(byte)
                };
                self.output = byte.map(|byte| Output {
                    byte,
                    from_mouse: false,
                });
            } else if let Some(byte) = self.next_movement() {
                self.output = Some(Output {
                    byte,
                    from_mouse: true,
                });
            } else {
                return;
            }
        }
    }

    fn next_key(&mut self) -> Option<u8> {
        if self.command_byte & KEYBOARD_OFF != 0 {
            None
        } else {
            self.keyboard.send()
        }
    }

    fn next_movement(&mut self) -> Option<u8> {
        if self.command_byte & MOUSE_OFF != 0 {
            None
        } else {
            self.mouse.send()
        }
    }

    fn drive(&self) {
        let (keyboard, mouse) = match self.output {
            Some(output) => (!output.from_mouse, output.from_mouse),
            None => (false, false),
        };
        self.keyboard_irq
            .set(keyboard && self.command_byte & KEYBOARD_IRQ != 0);
        self.mouse_irq
            .set(mouse && self.command_byte & MOUSE_IRQ != 0);
    }

    fn status(&self) -> u8 {
        let full = match self.output {
            Some(Output {
                from_mouse: true, ..
            }) => OUTPUT_FULL | FROM_MOUSE,
            Some(_) => OUTPUT_FULL,
            None => 0,
        };
        let command = if self.last_was_command {
            WAS_COMMAND
        } else {
            0
        };
        full | self.command_byte & SYSTEM | command | UNLOCKED
    }

    fn output_port(&self) -> u8 {
        let pending = match self.output {
            Some(Output {
                from_mouse: true, ..
            }) => 0x20,
            Some(_) => 0x10,
            None => 0,
        };
        IDLE | NO_RESET | if self.a20 { A20 } else { 0 } | pending
    }

    fn reset_machine(&mut self) {
        self.resets.inc();
        self.power.request(PowerRequest::Reset);
    }

    fn read_data(&mut self) -> u8 {
        if let Some(output) = self.output.take() {
            self.last_output = output.byte;
            // An edge-triggered pin must see each byte.
            self.drive();
            self.refill();
        }
        self.last_output
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.awaiting = 0;
        match command {
            0x20 => self.reply(self.command_byte, false),
            // The rest of the controller's memory holds nothing that anyone relies on.
            0x21..=0x3f => self.reply(0, false),
            0x60..=0x7f | 0xd1..=0xd4 => self.awaiting = command,
            0xa7 => self.command_byte |= MOUSE_OFF,
            0xa8 => self.command_byte &= !MOUSE_OFF,
            0xa9 => self.reply(0x00, false),
            0xaa => {
                self.command_byte |= SYSTEM;
                self.reply(0x55, false);
            }
            0xab => self.reply(0x00, false),
            0xad => self.command_byte |= KEYBOARD_OFF,
            0xae => self.command_byte &= !KEYBOARD_OFF,
            // Input port: bit 7 says that the keyboard is not locked.
            0xc0 => self.reply(0x80, false),
            0xd0 => self.reply(self.output_port(), false),
            // Pulses the output port's low bits that are zero; bit 0 is the reset line.
            0xf0..=0xff if command & NO_RESET == 0 => self.reset_machine(),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        self.last_was_command = false;
        match std::mem::take(&mut self.awaiting) {
            0x60 => self.command_byte = value,
            0xd1 => {
                self.a20 = value & A20 != 0;
                if value & NO_RESET == 0 {
                    self.reset_machine();
                }
            }
            0xd2 => self.reply(value, false),
            0xd3 => self.reply(value, true),
            0xd4 => {
                self.command_byte &= !MOUSE_OFF;
                self.mouse.receive(value);
            }
            0 => {
                // Sending to the keyboard starts its clock.
                self.command_byte &= !KEYBOARD_OFF;
                self.keyboard.receive(value);
            }
            _ => {}
        }
    }
}

impl Registers for I8042 {
    fn read(&mut self, at: Hit, data: &mut [u8]) -> AccessResult {
        let result = read_each(at.offset, data, |offset| match (at.region.0, offset) {
            (DATA, 0) => Some(self.read_data()),
            (COMMAND, 0) => Some(self.status()),
            _ => None,
        });
        self.drive();
        result
    }

    fn write(&mut self, at: Hit, data: &[u8]) -> AccessResult {
        if !matches!(at.region.0, DATA | COMMAND) {
            return Err(BadAccess::NoRegister);
        }
        let result = write_each(at.offset, data, |offset, value| {
            match (at.region.0, offset) {
                (DATA, 0) => self.data(value),
                (COMMAND, 0) => self.command(value),
                _ => return false,
            }
            true
        });
        self.refill();
        self.drive();
        result
    }
}

impl Lifecycle for I8042 {
    fn reset(&mut self, _: ResetKind) {
        let Self {
            keyboard_irq: _,
            mouse_irq: _,
            power: _,
            command_byte,
            awaiting,
            last_was_command,
            a20,
            last_output,
            output,
            replies,
            translation,
            keyboard,
            mouse,
            resets: _,
            lost_replies: _,
        } = self;
        *command_byte = FIRMWARE;
        (*awaiting, *last_was_command, *a20, *last_output) = (0, false, true, 0);
        *output = None;
        replies.clear();
        *translation = Translation::default();
        keyboard.power_on();
        mouse.power_on();
        self.drive();
    }
}

impl Persist for I8042 {
    type Saved = SavedI8042;

    fn save(&self) -> Result<SavedI8042, SaveError> {
        let Self {
            keyboard_irq: _,
            mouse_irq: _,
            power: _,
            command_byte,
            awaiting,
            last_was_command,
            a20,
            last_output,
            output,
            replies,
            translation,
            keyboard,
            mouse,
            resets: _,
            lost_replies: _,
        } = self;
        let pack = |o: &Output| u16::from(o.byte) | u16::from(o.from_mouse) << 8;
        Ok(SavedI8042 {
            command_byte: *command_byte,
            awaiting: *awaiting,
            last_was_command: *last_was_command,
            a20: *a20,
            last_output: *last_output,
            output: output.as_ref().map(pack),
            replies: replies.iter().map(pack).collect(),
            after_break: translation.after_break(),
            keyboard: keyboard.save(),
            mouse: mouse.save(),
        })
    }

    fn restore(&mut self, saved: SavedI8042) -> Result<(), RestoreError> {
        let SavedI8042 {
            command_byte,
            awaiting,
            last_was_command,
            a20,
            last_output,
            output,
            replies,
            after_break,
            keyboard,
            mouse,
        } = saved;
        if !matches!(awaiting, 0 | 0x60..=0x7f | 0xd1..=0xd4) {
            return Err(RestoreError::Invalid("that command takes no argument"));
        }
        if replies.len() > REPLIES {
            return Err(RestoreError::Invalid("more replies wait than fit"));
        }
        if output.iter().chain(&replies).any(|packed| *packed > 0x1ff) {
            return Err(RestoreError::Invalid(
                "an output byte has more than eight bits",
            ));
        }
        let unpack = |packed: u16| {
            let [byte, from_mouse] = packed.to_le_bytes();
            Output {
                byte,
                from_mouse: from_mouse != 0,
            }
        };
        let keyboard = Keyboard::restored(keyboard)?;
        let mouse = Mouse::restored(mouse)?;
        self.command_byte = command_byte;
        self.awaiting = awaiting;
        self.last_was_command = last_was_command;
        self.a20 = a20;
        self.last_output = last_output;
        self.output = output.map(unpack);
        self.replies = replies.into_iter().map(unpack).collect();
        self.translation = Translation::resumed(after_break);
        self.keyboard = keyboard;
        self.mouse = mouse;
        self.drive();
        Ok(())
    }
}

impl Device for I8042 {}
