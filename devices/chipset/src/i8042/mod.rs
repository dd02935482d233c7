//! The keyboard controller of a PC (Intel 8042 with IBM's program; IBM PC AT and PS/2 Technical
//! References, "Keyboard Controller"), with a keyboard and a PS/2 mouse attached.
//!
//! Everything happens at once, so the input buffer is never full. Replies of the controller itself
//! go before bytes of the keyboard, and these before bytes of the mouse; all queues are bounded and
//! lose what does not fit. Keys come from [`I8042::press`], in scan code set 2 as the wire carries
//! them; the mouse stays where it is.

mod controller;
mod keyboard;
mod kind;
mod mouse;
mod saved;
#[cfg(test)]
mod tests;

pub use controller::I8042;
pub use kind::I8042Config;
pub use saved::{SavedI8042, SavedKeyboard, SavedMouse};
