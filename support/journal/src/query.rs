//! Questions to the journal.

use crate::entry::Entry;
use crate::filter::Pattern;
use crate::level::Level;
use crate::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Which entries are wanted. All conditions must hold; none are set by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// At most so many, the newest of those that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
    /// Not older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// With a sequence number above this: what came after the last entry seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Of this component, or of those with this prefix: `device`, `dev*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<Pattern>,
    /// At least this severe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
}

impl Query {
    /// The newest `count` entries.
    pub fn last(count: usize) -> Self {
        Self {
            last: Some(count),
            ..Self::default()
        }
    }

    /// Whether `entry` is wanted, [`Query::last`] aside.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.after.is_none_or(|after| entry.sequence > after)
            && self.since.is_none_or(|since| entry.time >= since)
            && self.level.is_none_or(|level| entry.level >= level)
            && self
                .component
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&entry.component))
    }
}
