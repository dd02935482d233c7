//! Collects the fields of a `tracing` event or span.

use crate::entry::{Clipped, Fields, MAX_FIELD, MAX_MESSAGE, Value};
use crate::level::FATAL_MARKER;
use std::error::Error;
use std::fmt::{self, Write as _};
use tracing::field::{Field, Visit};

/// The message and the fields of an event.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) message: String,
    pub(crate) fields: Fields,
}

impl Collected {
    fn put(&mut self, field: &Field, value: Value) {
        match field.name() {
            FATAL_MARKER => {}
            "message" => {
                let mut message = Clipped::new(MAX_MESSAGE);
                // Writing to a text cannot fail.
                let _ = write!(message, "{value}");
                self.message = message.text;
            }
            name => {
                self.fields.insert(name.into(), value);
            }
        }
    }
}

impl Visit for Collected {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let limit = if field.name() == "message" {
            MAX_MESSAGE
        } else {
            MAX_FIELD
        };
        let mut text = Clipped::new(limit);
        // What a broken Debug has written so far is worth keeping.
        let _ = write!(text, "{value:?}");
        self.put(field, Value::Text(text.text));
    }
}
