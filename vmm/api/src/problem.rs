//! Refusals: RFC 9457 problem details, with the field, the value and the mend.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The body, query or path cannot be understood. 400.
    Malformed,
    /// A value is wrong. 422.
    Invalid,
    /// There is no such thing. 404.
    NotFound,
    /// Not with this method. 405.
    Method,
    /// Not in this phase, or not beside what goes on now. 409.
    Conflict,
    /// The body is too large. 413.
    TooLarge,
    /// The body is of another type than JSON. 415.
    MediaType,
    /// Too much is waiting already. 429.
    Busy,
    /// This machine cannot do that. 501.
    Unsupported,
    /// It was tried and did not work. 500.
    Failed,
    /// The machine has ended. 410.
    Ended,
}

impl Code {
    /// Its HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Conflict => 409,
            Self::Ended => 410,
            Self::TooLarge => 413,
            Self::MediaType => 415,
            Self::Invalid => 422,
            Self::Busy => 429,
            Self::Failed => 500,
            Self::Unsupported => 501,
        }
    }
}

/// Why something was refused or failed (`application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind.
    pub code: Code,
    /// The HTTP status that goes with it.
    pub status: u16,
    /// One sentence for a person: what, which value, how to mend it.
    pub detail: String,
    /// The field it is about, as a path (`disks[0].path`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The value that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Problem {
    /// A problem of kind `code`.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            status: code.status(),
            detail: detail.into(),
            field: None,
            value: None,
            mend: None,
        }
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Repeats the value.
    #[must_use]
    pub fn value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Says how to mend it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        match &self.mend {
            Some(mend) => write!(f, "; {mend}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
