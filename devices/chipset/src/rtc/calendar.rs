//! Dates of the proleptic Gregorian calendar, and how the chip writes them down.

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;

/// A date and time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

/// Days from 1970-01-01 to the first of March of `year`: years that begin in March end with the
/// leap day, and months of 31 and 30 days then alternate in a line.
fn march_first(year: i64) -> i64 {
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps - 719_468
}

/// Days from the first of March to the first of the month `months` later.
fn month_start(months: i64) -> i64 {
    (months * 153 + 2) / 5
}

impl Civil {
    /// The date `seconds` after the Unix epoch.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // A year too late at most; step back.
        let mut year = 1970 + days.div_euclid(365) - days.div_euclid(365 * 1460) + 1;
        while march_first(year) > days {
            year -= ((march_first(year) - days) / 366).max(1);
        }
        while march_first(year + 1) <= days {
            year += 1;
        }
        let rest = days - march_first(year);
        let months = (rest * 5 + 2) / 153;
        let day = rest - month_start(months) + 1;
        let month = if months < 10 { months + 3 } else { months - 9 };
        Self {
            year: if month <= 2 { year + 1 } else { year },
            month: month as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds after the Unix epoch. Fields out of range carry over, as February 30 is March 2.
    pub(super) fn seconds(self) -> i64 {
        let months = i64::from(self.month) - 3;
        let year = self.year + months.div_euclid(12);
        let days = march_first(year) + month_start(months.rem_euclid(12)) + i64::from(self.day) - 1;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// Day of the week: Sunday is 1 (data sheet, table 3).
    pub(super) fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        (self.seconds().div_euclid(DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

/// How the chip writes numbers: register B, bits 2 (binary) and 1 (24 hours).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours24: bool,
}

impl Format {
    pub(super) fn write(self, value: u8) -> u8 {
        if self.binary {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    pub(super) fn read(self, byte: u8) -> u8 {
        if self.binary {
            byte
        } else {
            (byte >> 4) * 10 + (byte & 0xf)
        }
    }

    pub(super) fn write_hour(self, hour: u8) -> u8 {
        if self.hours24 {
            return self.write(hour);
        }
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.write(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    pub(super) fn read_hour(self, byte: u8) -> u8 {
        if self.hours24 {
            return self.read(byte);
        }
        self.read(byte & 0x7f) % 12 + if byte & 0x80 != 0 { 12 } else { 0 }
    }
}
