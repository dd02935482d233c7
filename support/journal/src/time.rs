//! Wall-clock time of entries: microseconds, UTC, RFC 3339.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;
/// 9999-12-31T23:59:59.999999Z: RFC 3339 has four digits for the year.
const LATEST: u64 = 253_402_300_800 * SECOND - 1;

/// A moment: microseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with six decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// A text that is no RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time; write it like 2026-11-21T07:30:00Z")]
pub struct TimestampError(String);

/// The calendar's and the clock's fields of a moment, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) year: u64,
    pub(crate) month: u64,
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    pub(crate) second: u64,
    pub(crate) micros: u64,
}

impl Timestamp {
    /// The time now. A clock outside 1970 to 9999 is clamped.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From microseconds since 1970; clamped to the end of 9999.
    pub fn from_micros(micros: u64) -> Self {
        Self(micros.min(LATEST))
    }

    /// From seconds since 1970; clamped to the end of 9999.
    pub fn from_seconds(seconds: u64) -> Self {
        Self::from_micros(seconds.saturating_mul(SECOND))
    }

    /// Microseconds since 1970.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// This moment moved back by `span`, not before 1970.
    pub fn before(self, span: Duration) -> Self {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// Days since 1970.
    pub(crate) fn days(self) -> u64 {
        self.0 / DAY
    }

    /// Hours since 1970.
    pub(crate) fn hours(self) -> u64 {
        self.0 / (3600 * SECOND)
    }

    /// The civil date from the day number: eras of 400 years that begin in March, so that the leap
    /// day is the last of its year.
    pub(crate) fn fields(self) -> Fields {
        let shifted = self.days() + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let in_day = self.0 % DAY;
        Fields {
            year,
            month,
            day,
            hour: in_day / (3600 * SECOND),
            minute: in_day / (60 * SECOND) % 60,
            second: in_day / SECOND % 60,
            micros: in_day % SECOND,
        }
    }

    /// As file names have it: `20261121T073000Z`.
    pub(crate) fn compact(self) -> String {
        let f = self.fields();
        format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            f.year, f.month, f.day, f.hour, f.minute, f.second
        )
    }
}

/// Days since 1970 of a civil date that is known to be valid and not before 1970.
fn days_of(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let f = self.fields();
        write!(
            out,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            f.year, f.month, f.day, f.hour, f.minute, f.second, f.micros
        )
    }
}

/// Takes `digits` decimal digits off the front.
fn number(text: &mut &str, digits: usize) -> Option<u64> {
    let (head, rest) = text.split_at_checked(digits)?;
    *text = rest;
    head.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| head.parse().ok())?
}

fn mark(text: &mut &str, marks: &[char]) -> Option<char> {
    let found = text.chars().next().filter(|c| marks.contains(c))?;
    *text = text.get(found.len_utf8()..)?;
    Some(found)
}

fn parse(mut text: &str) -> Option<Timestamp> {
    let text = &mut text;
    let year = number(text, 4).filter(|year| *year >= 1970)?;
    mark(text, &['-'])?;
    let month = number(text, 2).filter(|month| (1..=12).contains(month))?;
    mark(text, &['-'])?;
    let day = number(text, 2).filter(|day| (1..=days_in(year, month)).contains(day))?;
    mark(text, &['T', 't', ' '])?;
    let hour = number(text, 2).filter(|hour| *hour < 24)?;
    mark(text, &[':'])?;
    let minute = number(text, 2).filter(|minute| *minute < 60)?;
    mark(text, &[':'])?;
    let second = number(text, 2).filter(|second| *second <= 60)?;
    let mut micros = 0;
    if mark(text, &['.']).is_some() {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (head, rest) = text.split_at_checked(digits)?;
        *text = rest;
        let head = head.get(..head.len().min(6))?;
        let scale = 10_u64.pow(u32::try_from(6 - head.len()).ok()?);
        micros = head.parse::<u64>().ok()? * scale;
    }
    let local =
        days_of(year, month, day) * DAY + ((hour * 60 + minute) * 60 + second) * SECOND + micros;
    let utc = match mark(text, &['Z', 'z', '+', '-'])? {
        sign @ ('+' | '-') => {
            let hours = number(text, 2).filter(|hours| *hours < 24)?;
            mark(text, &[':'])?;
            let minutes = number(text, 2).filter(|minutes| *minutes < 60)?;
            let offset = (hours * 60 + minutes) * 60 * SECOND;
            if sign == '+' {
                local.checked_sub(offset)?
            } else {
                local + offset
            }
        }
        _ => local,
    };
    (text.is_empty() && utc <= LATEST).then_some(Timestamp(utc))
}

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text).ok_or_else(|| TimestampError(text.chars().take(64).collect()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        let at = |seconds: u64| Timestamp::from_seconds(seconds).to_string();
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_246_286), "2026-11-21T07:31:26.000000Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000Z");
        assert_eq!(at(u64::MAX), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn offsets_and_fractions() {
        let same = |a: &str, b: &str| {
            assert_eq!(a.parse::<Timestamp>().unwrap(), b.parse().unwrap());
        };
        same("2026-11-21T09:00:00.5+02:00", "2026-11-21T07:00:00.500000Z");
        same("2026-11-20T23:30:00-07:30", "2026-11-21T07:00:00Z");
        same(
            "2026-11-21t07:00:00.1234567z",
            "2026-11-21T07:00:00.123456Z",
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T07:00:00",
            "2026-11-21T07:00:00Zx",
            "1969-12-31T23:59:59Z",
            "2026-11-21T07:00:00+1",
            "２026-11-21T07:00:00Z",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_back(micros in 0..=LATEST) {
            let stamp = Timestamp::from_micros(micros);
            prop_assert_eq!(stamp.to_string().parse::<Timestamp>().unwrap(), stamp);
        }
    }
}
