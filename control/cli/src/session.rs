//! The machines of this user, and calls to them.

use crate::exit::{Failure, REFUSED};
use nyx_client::blocking::Blocking;
use nyx_client::{CallError, Client, Folder, Found};
use std::future::Future;

/// What every command that talks to machines needs.
pub(crate) struct Session {
    pub(crate) blocking: Blocking,
    pub(crate) folder: Folder,
}

/// A machine that was named, and its client.
pub(crate) struct Named {
    pub(crate) found: Found,
    pub(crate) client: Client,
}

impl Named {
    pub(crate) fn name(&self) -> &str {
        &self.found.record.name
    }
}

impl Session {
    pub(crate) fn new() -> Result<Self, Failure> {
        let blocking = Blocking::new()
            .map_err(|e| Failure::new(REFUSED, format!("the kernel gives no event queue: {e}")))?;
        Ok(Self {
            blocking,
            folder: Folder::of_user(),
        })
    }

    /// The machine called `name`.
    pub(crate) fn find(&self, name: &str) -> Result<Named, Failure> {
        let found = self.folder.find(name)?;
        let client = Client::new(&found.record.socket);
        Ok(Named { found, client })
    }

    /// Waits for a call.
    pub(crate) fn call<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, Failure> {
        Ok(self.blocking.on(call)?)
    }
}
