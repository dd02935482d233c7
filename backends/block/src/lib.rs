//! Block backends: raw files and block devices through io_uring or worker threads.
//!
//! ```text
//! request ─▶ Task (transfer) ─▶ next step ─▶ engine: at once │ io_uring │ threads ─▶ result ─▶ Task ─▶ done
//! ```
//!
//! A task (module `transfer`) knows how a request is carried out: continuing short transfers, bouncing what
//! O_DIRECT cannot take, falling back where the file system cannot punch or zero. The engines only
//! perform single system calls, each in its way, so all of them behave alike.
//!
//! The image format is always `raw`, as the configuration says: content that a guest can write is
//! never looked at to guess another.
//!
//! `unsafe` is used to hand pinned guest buffers to system calls and to io_uring.

mod lock;
mod medium;
mod ring;
mod sync;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;

pub use lock::Holder;
pub use medium::{Engine, Locking, Raw, RawConfig};

use nyx_device::{BackendKind, BackendSpec, BlockBackend};
use std::io;
use std::path::PathBuf;

/// A block backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such kind.
    #[error("`{0}` is not a block backend: use raw")]
    Kind(String),
    /// The configuration does not fit the kind.
    #[error("block backend `{kind}`: {source}")]
    Config {
        /// The kind.
        kind: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The path cannot be used.
    #[error("disk `{}` {why}", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// Somebody else has the image.
    #[error("disk `{}` is in use{}: stop it, or open the image read-only on both sides",
        .path.display(), lock::by(.holder.as_ref()))]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who, if that can be seen.
        holder: Option<Holder>,
    },
    /// The size does not fit the block size.
    #[error("disk `{}` has {size} bytes, which is not a multiple of its {block}-byte blocks: \
        `truncate -s {rounded} {}` adds the rest", .path.display(), .path.display())]
    Size {
        /// The path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size in bytes.
        block: u32,
        /// The next size that fits, in bytes.
        rounded: u64,
    },
    /// A field's value cannot be used.
    #[error("disk `{}`: {field} is {value}: {why}", .path.display())]
    Field {
        /// The path.
        path: PathBuf,
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// The kernel refused.
    #[error("cannot {action} disk `{}`: {source}", .path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The kinds [`open`] knows.
pub const fn kinds() -> &'static [BackendKind] {
    &[BackendKind {
        name: "raw",
        summary: "a raw image file or a block device",
        example: r#"{"path": "web1.img", "read_only": false, "direct": false, "engine": "auto", "block_size": 512, "lock": "auto"}"#,
    }]
}

/// Opens the backend that `spec` describes.
///
/// # Errors
///
/// One sentence naming field, value and mend. Nothing is left behind.
pub fn open(spec: &BackendSpec) -> Result<Box<dyn BlockBackend>, OpenError> {
    if spec.kind != "raw" {
        return Err(OpenError::Kind(spec.kind.clone()));
    }
    let config =
        serde_json::from_value(spec.config.clone()).map_err(|source| OpenError::Config {
            kind: spec.kind.clone(),
            source,
        })?;
    Ok(Box::new(Raw::open(config)?))
}
