//! Finds running machines and talks to them over their control sockets.
//!
//! [`Folder`] is where machines leave word of themselves, [`Client`] calls one of them, [`blocking`] does so
//! without a runtime of one's own. Nothing that a server sends makes this crate wait for ever, allocate without
//! bound or panic.
#![forbid(unsafe_code)]

pub mod blocking;
mod call;
mod client;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod find;
mod path;
mod stream;

pub use call::{CallError, MOST_BYTES};
pub use client::{Attached, Client, LogQuery, MemoryQuery, Patience};
pub use find::{FindError, Folder, Found, State, exists, nearest};
pub use stream::{Messages, SseError, SseMessage, SseParser};
