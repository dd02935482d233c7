//! Saved state: tagged blobs with stable names, encoded apart from the runtime types.
//!
//! Saved types live in a `saved` module of their device and use explicit field numbers
//! (`#[derive(minicbor::Encode, minicbor::Decode)] #[cbor(map)]` with `#[n(..)]`), so a newer build
//! reads older state and an older build skips newer fields.
#![forbid(unsafe_code)]

pub use minicbor;

/// A saved-state type with a stable identity.
pub trait Saved: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> {
    /// Stable name; a breaking change takes a new name (`"uart16550/2"`).
    const NAME: &'static str;
}

/// A unit could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The unit cannot be saved in its present configuration or state.
    #[error("cannot be saved: {0}")]
    Unsupported(&'static str),
    /// The hypervisor refused to hand out state.
    #[error("cannot read state: {0}")]
    Read(String),
    /// Encoding failed.
    #[error("cannot encode saved state: {0}")]
    Encode(String),
}

/// A unit could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The blob belongs to another type of unit.
    #[error("saved state is {found}, expected {expected}")]
    WrongKind {
        /// Name in the blob.
        found: String,
        /// Name this unit understands.
        expected: &'static str,
    },
    /// The blob does not decode.
    #[error("cannot decode saved state: {0}")]
    Decode(#[from] minicbor::decode::Error),
    /// The blob decodes but describes an impossible state. Snapshots are untrusted input.
    #[error("invalid saved state: {0}")]
    Invalid(&'static str),
    /// The hypervisor refused the state.
    #[error("cannot apply state: {0}")]
    Apply(String),
}

/// An encoded saved state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// [`Saved::NAME`] of the type inside.
    pub name: String,
    /// CBOR (RFC 8949).
    pub bytes: Vec<u8>,
}

/// The stable name and the bytes of a nested blob, inside another saved type.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct SavedBlob {
    /// [`Blob::name`].
    #[n(0)]
    pub name: String,
    /// [`Blob::bytes`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

impl From<Blob> for SavedBlob {
    fn from(blob: Blob) -> Self {
        Self {
            name: blob.name,
            bytes: blob.bytes,
        }
    }
}

impl From<SavedBlob> for Blob {
    fn from(blob: SavedBlob) -> Self {
        Self {
            name: blob.name,
            bytes: blob.bytes,
        }
    }
}

/// Typed save and restore. Implemented by every unit.
pub trait Persist {
    /// The saved form.
    type Saved: Saved;
    /// Captures state. Only ever called while quiesced. Destructure `self` in full, so that a new
    /// field does not compile until someone decides its fate.
    fn save(&self) -> Result<Self::Saved, SaveError>;
    /// Re-applies state to a freshly built unit. `saved` is untrusted.
    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError>;
}

/// Object-safe form of [`Persist`]; implemented for free.
pub trait PersistBlob {
    /// See [`Persist::save`].
    fn save_blob(&self) -> Result<Blob, SaveError>;
    /// See [`Persist::restore`].
    fn restore_blob(&mut self, blob: &Blob) -> Result<(), RestoreError>;
}

impl<T: Persist> PersistBlob for T {
    fn save_blob(&self) -> Result<Blob, SaveError> {
        let bytes = minicbor::to_vec(self.save()?).map_err(|e| SaveError::Encode(e.to_string()))?;
        Ok(Blob {
            name: T::Saved::NAME.into(),
            bytes,
        })
    }

    fn restore_blob(&mut self, blob: &Blob) -> Result<(), RestoreError> {
        if blob.name != T::Saved::NAME {
            return Err(RestoreError::WrongKind {
                found: blob.name.clone(),
                expected: T::Saved::NAME,
            });
        }
        self.restore(minicbor::decode(&blob.bytes)?)
    }
}

/// The saved state of a unit that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Stateless {}

impl Saved for Stateless {
    const NAME: &'static str = "stateless/1";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
    #[cbor(map)]
    struct V1 {
        #[n(0)]
        level: u8,
    }
    impl Saved for V1 {
        const NAME: &'static str = "test/1";
    }
    #[derive(Default)]
    struct Unit(u8);
    impl Persist for Unit {
        type Saved = V1;
        fn save(&self) -> Result<V1, SaveError> {
            Ok(V1 { level: self.0 })
        }
        fn restore(&mut self, saved: V1) -> Result<(), RestoreError> {
            self.0 = saved.level;
            Ok(())
        }
    }

    #[test]
    fn an_older_build_skips_newer_fields() {
        // {0: 7, 9: "from the future"}
        let blob = Blob {
            name: "test/1".into(),
            bytes: vec![0xa2, 0, 7, 9, 0x61, b'z'],
        };
        let mut unit = Unit::default();
        unit.restore_blob(&blob).unwrap();
        assert_eq!(unit.0, 7);
    }

    #[test]
    fn a_blob_of_another_kind_is_refused_by_name() {
        let blob = Blob {
            name: "other/1".into(),
            bytes: vec![],
        };
        let error = Unit::default().restore_blob(&blob).unwrap_err();
        assert_eq!(error.to_string(), "saved state is other/1, expected test/1");
    }
}
