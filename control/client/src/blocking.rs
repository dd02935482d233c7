//! The same calls for programs that have no runtime of their own.

use crate::call::CallError;
use crate::stream::Messages;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A runtime on the calling thread.
#[derive(Debug)]
pub struct Blocking(Runtime);

impl Blocking {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// The kernel gives no epoll or timer.
    pub fn new() -> io::Result<Self> {
        Builder::new_current_thread().enable_all().build().map(Self)
    }

    /// Waits for `call`, a future of a [`Client`](crate::Client).
    pub fn on<T>(&self, call: impl Future<Output = T>) -> T {
        self.0.block_on(call)
    }

    /// The next message of a stream; `None` when none came within `limit`, `Some(None)` when the stream is over.
    ///
    /// # Errors
    ///
    /// As [`Messages::next`].
    pub fn next<T: DeserializeOwned>(
        &self,
        messages: &mut Messages<T>,
        limit: Duration,
    ) -> Result<Option<Option<T>>, CallError> {
        self.on(async { tokio::time::timeout(limit, messages.next()).await })
            .ok()
            .transpose()
    }
}
