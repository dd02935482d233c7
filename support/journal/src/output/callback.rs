//! An output that is a function of the program that embeds the library.

use super::{Fault, Sink};
use crate::entry::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) struct Callback<F> {
    call: F,
    panicked: Option<String>,
    is_broken: bool,
}

impl<F: FnMut(&Entry) + Send> Callback<F> {
    pub(crate) fn new(call: F) -> Self {
        Self {
            call,
            panicked: None,
            is_broken: false,
        }
    }
}

impl<F: FnMut(&Entry) + Send> Sink for Callback<F> {
    fn write(&mut self, entry: &Entry) -> Result<(), Fault> {
        if self.is_broken {
            return Err(Fault::Refused);
        }
        // Its state may be half changed after a panic, so it is not called again.
        if catch_unwind(AssertUnwindSafe(|| (self.call)(entry))).is_err() {
            self.is_broken = true;
            self.panicked = Some("its function panicked and is not called again".into());
        }
        Ok(())
    }

    fn trouble(&mut self) -> Option<String> {
        self.panicked.take()
    }
}
