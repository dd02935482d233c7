//! A number, or why there is none.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// A figure that may not be measurable here. Serialises as the value, or as
/// `{"unavailable": "reason"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured<T> {
    /// It was measured.
    Value(T),
    /// It was not, and this is why.
    Absent(&'static str),
}

impl<T: Copy> Measured<T> {
    /// The value, if there is one.
    pub fn get(&self) -> Option<T> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Absent(_) => None,
        }
    }

    /// Of an option and the reason for its absence.
    pub fn of(value: Option<T>, why: &'static str) -> Self {
        value.map_or(Self::Absent(why), Self::Value)
    }

    /// Converts the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Measured<U> {
        match self {
            Self::Value(value) => Measured::Value(f(value)),
            Self::Absent(why) => Measured::Absent(why),
        }
    }
}

impl<T> Default for Measured<T> {
    fn default() -> Self {
        Self::Absent("not measured yet")
    }
}

impl<T: Serialize> Serialize for Measured<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Absent(why) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("unavailable", why)?;
                map.end()
            }
        }
    }
}
