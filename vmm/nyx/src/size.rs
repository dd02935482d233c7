//! Sizes as Rust code writes them, and how much memory a guest wants.
//!
//! ```
//! use nyx::size::{Sizing, SizeUnits, recommend};
//!
//! assert_eq!(4.gib().to_string(), "4G");
//! assert_eq!(recommend(Sizing::Linux, 10.gib())?.to_string(), "12800M");
//! # Ok::<(), nyx::size::SizingError>(())
//! ```

use nyx_spec::ByteSize;
use std::fmt;
use std::str::FromStr;

/// `512.mib()`, `4.gib()`: numbers of bytes in powers of 1024.
///
/// A negative number is nothing, and one that does not fit is as large as there is; both are refused
/// where a size is asked for.
pub trait SizeUnits: Copy {
    /// So many bytes.
    fn bytes(self) -> ByteSize;
    /// So many KiB.
    fn kib(self) -> ByteSize {
        ByteSize(self.bytes().0.saturating_mul(1 << 10))
    }
    /// So many MiB.
    fn mib(self) -> ByteSize {
        ByteSize(self.bytes().0.saturating_mul(1 << 20))
    }
    /// So many GiB.
    fn gib(self) -> ByteSize {
        ByteSize(self.bytes().0.saturating_mul(1 << 30))
    }
    /// So many TiB.
    fn tib(self) -> ByteSize {
        ByteSize(self.bytes().0.saturating_mul(1 << 40))
    }
}

macro_rules! units {
    ($($number:ty)*) => {
        $(
            impl SizeUnits for $number {
                fn bytes(self) -> ByteSize {
                    ByteSize(u64::try_from(self).unwrap_or(0))
                }
            }
            impl IntoSize for $number {
                fn into_size(self) -> Result<ByteSize, String> {
                    u64::try_from(self)
                        .map(ByteSize)
                        .map_err(|_| format!("{self} is not a size; give a number of bytes, or write it like 4.gib()"))
                }
            }
        )*
    };
}

/// What can be given where a size is asked for: a [`ByteSize`], a number of bytes, or text like `"4G"`
/// and `"4GB"` (powers of 1024).
pub trait IntoSize {
    /// The size, or one sentence about why it is none.
    ///
    /// # Errors
    ///
    /// When it is negative or cannot be read.
    fn into_size(self) -> Result<ByteSize, String>;
}

units!(i32 i64 u16 u32 u64 usize);

impl IntoSize for ByteSize {
    fn into_size(self) -> Result<ByteSize, String> {
        Ok(self)
    }
}

impl IntoSize for &str {
    fn into_size(self) -> Result<ByteSize, String> {
        self.parse().map_err(|e: nyx_spec::SizeError| e.to_string())
    }
}

impl IntoSize for String {
    fn into_size(self) -> Result<ByteSize, String> {
        self.as_str().into_size()
    }
}

/// What a guest does, as far as its memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// A Linux server: 512 MiB and 1.2 times its data.
    Linux,
    /// A Windows server: 2 GiB and 1.5 times its data.
    Windows,
    /// A data base: 4 GiB and twice its working set.
    Database,
    /// A developer's machine: 4 GiB, and a quarter more than its data, for growth.
    Development,
}

impl Sizing {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Linux,
        Self::Windows,
        Self::Database,
        Self::Development,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Database => "database",
            Self::Development => "development",
        }
    }

    /// What the guest takes before it has any data, and tenths of a byte for each byte of data.
    fn rule(self) -> (ByteSize, u64) {
        match self {
            Self::Linux => (512.mib(), 12),
            Self::Windows => (2.gib(), 15),
            Self::Database => (4.gib(), 20),
            Self::Development => (4.gib(), 12),
        }
    }
}

impl fmt::Display for Sizing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Sizing {
    type Err = SizingError;
    fn from_str(word: &str) -> Result<Self, SizingError> {
        Self::ALL
            .into_iter()
            .find(|sizing| sizing.name() == word)
            .ok_or_else(|| SizingError::Unknown(word.into()))
    }
}

/// There is no recommendation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizingError {
    /// No such kind of guest.
    #[error("{0:?} is not a kind of guest; use linux, windows, database or development")]
    Unknown(String),
    /// The data is beyond any machine.
    #[error(
        "{0} of data are beyond what memory can be sized for; give the part that is used at once"
    )]
    TooMuch(ByteSize),
}

/// Recommendations are whole huge pages, so that `huge_pages` needs no other number.
const STEP: u64 = 2 << 20;

/// The memory a guest wants that works on `data_set`: the whole of it, or for a data base the part in
/// constant use. Rounded up to a multiple of 2 MiB.
///
/// # Errors
///
/// When the sum does not fit 64 bits.
pub fn recommend(guest: Sizing, data_set: ByteSize) -> Result<ByteSize, SizingError> {
    let (base, tenths) = guest.rule();
    // A quarter is not a number of tenths.
    let (times, of) = match guest {
        Sizing::Development => (5, 4),
        _ => (tenths, 10),
    };
    let wanted = u128::from(base.0) + (u128::from(data_set.0) * u128::from(times)).div_ceil(of);
    let wanted = wanted.next_multiple_of(u128::from(STEP));
    u64::try_from(wanted)
        .map(ByteSize)
        .map_err(|_| SizingError::TooMuch(data_set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_become_sizes() {
        assert_eq!(512.mib(), ByteSize(512 << 20));
        assert_eq!(4_u64.gib(), ByteSize(4 << 30));
        assert_eq!(1_usize.tib(), ByteSize(1 << 40));
        assert_eq!(3.kib(), ByteSize(3072));
        assert_eq!(7.bytes(), ByteSize(7));
        assert_eq!((-1).gib(), ByteSize(0));
        assert_eq!(u64::MAX.gib(), ByteSize(u64::MAX));
    }

    #[test]
    fn sizes_are_read_in_every_form() {
        assert_eq!("4GB".into_size(), Ok(4.gib()));
        assert_eq!(String::from("512M").into_size(), Ok(512.mib()));
        assert_eq!((4 * 1024_u64.pow(3)).into_size(), Ok(4.gib()));
        assert_eq!((1 << 30).into_size(), Ok(1.gib()));
        assert!(
            (-5).into_size()
                .unwrap_err()
                .starts_with("-5 is not a size")
        );
        assert!("much".into_size().unwrap_err().contains("512M"));
    }

    #[test]
    fn recommendations_follow_the_table() {
        let data = 10.gib();
        assert_eq!(
            recommend(Sizing::Linux, data),
            Ok(ByteSize((512 << 20) + (12 << 30)))
        );
        assert_eq!(recommend(Sizing::Windows, data), Ok(17.gib()));
        assert_eq!(recommend(Sizing::Database, data), Ok(24.gib()));
        assert_eq!(
            recommend(Sizing::Development, data),
            Ok(ByteSize((4 << 30) + (10 << 30) + (5 << 29)))
        );
        assert_eq!(recommend(Sizing::Linux, ByteSize(0)), Ok(512.mib()));
        assert_eq!(recommend(Sizing::Linux, ByteSize(1)), Ok(514.mib()));
        let most = ByteSize(u64::MAX);
        assert_eq!(
            recommend(Sizing::Database, most),
            Err(SizingError::TooMuch(most))
        );
    }

    #[test]
    fn kinds_of_guest_are_read_back() {
        for sizing in Sizing::ALL {
            assert_eq!(sizing.to_string().parse(), Ok(sizing));
        }
        let refused = "macos".parse::<Sizing>().unwrap_err().to_string();
        assert!(refused.contains("macos") && refused.contains("linux"));
    }

    proptest! {
        #[test]
        fn more_data_never_wants_less(a in 0..1_u64 << 50, more in 0..1_u64 << 50) {
            for sizing in Sizing::ALL {
                let less = recommend(sizing, ByteSize(a)).unwrap();
                prop_assert!(less <= recommend(sizing, ByteSize(a + more)).unwrap());
                prop_assert!(less.0 > a);
                prop_assert_eq!(less.0 % STEP, 0);
            }
        }
    }
}
