//! Instants and days. The service counts milliseconds since 1970 in UTC and shows Asia/Shanghai,
//! which has been UTC+8 without daylight saving since 1991. No clock is read here.

use std::fmt::{self, Write as _};

use ::time::format_description::well_known::Rfc3339;
use ::time::{Date, Month, OffsetDateTime};
use serde::{Deserialize, Serialize};

use crate::bytes::{Ascii, Shown};

const SHANGHAI_OFFSET_MS: i64 = 8 * 3_600_000;
const DAY_MS: i64 = 86_400_000;
/// Years outside this range are refused when read.
const YEARS: std::ops::RangeInclusive<i32> = 1970..=9998;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// An instant `ms` milliseconds after 1970 began in UTC.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970 began in UTC.
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// This instant moved by `ms` milliseconds, saturating at the ends of the range.
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Reads RFC 3339 with an offset; anything finer than a millisecond is dropped.
    pub fn parse(text: &str) -> Option<Self> {
        // RFC 3339 needs no more than this; the bound keeps a hostile fraction short.
        if text.len() > 40 {
            return None;
        }
        let instant = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let ms = i64::try_from(instant.unix_timestamp_nanos().div_euclid(1_000_000)).ok()?;
        let instant = Self(ms);
        YEARS.contains(&instant.year()).then_some(instant)
    }

    /// The day this instant falls on in Asia/Shanghai.
    pub const fn day(self) -> Day {
        // 32 bits of days reach past the year 5,000,000.
        Day(self.0.saturating_add(SHANGHAI_OFFSET_MS).div_euclid(DAY_MS) as i32)
    }

    /// The calendar year this instant falls in, in Asia/Shanghai.
    pub fn year(self) -> i32 {
        self.day().date().year()
    }
}

/// `2026-11-23T10:15:00+08:00`, with milliseconds where there are any.
impl Shown for Timestamp {
    fn shown(&self) -> Ascii {
        let in_day = self.0.saturating_add(SHANGHAI_OFFSET_MS).rem_euclid(DAY_MS);
        let (s, ms) = (in_day / 1000, in_day % 1000);
        let ([h1, h2], [m1, m2], [s1, s2]) =
            (two_digits(s / 3600), two_digits(s / 60 % 60), two_digits(s % 60));
        let mut text = self.day().shown();
        text.push(&[b'T', h1, h2, b':', m1, m2, b':', s1, s2]);
        if ms != 0 {
            let ([t1, t2], [_, t3]) = (two_digits(ms / 10), two_digits(ms % 10));
            text.push(&[b'.', t1, t2, t3]);
        }
        text.push(b"+08:00");
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown().as_str())
    }
}

/// The last two digits of a number.
const fn two_digits(number: i64) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

/// A day in Asia/Shanghai, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Day(i32);

impl Day {
    /// The day `number` days after 1970-01-01.
    pub const fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// Days since 1970-01-01.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Reads `2026-11-23`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u16>().ok())?;
        let year = i32::from(number(text.get(..4)?)?);
        let month = Month::try_from(u8::try_from(number(text.get(5..7)?)?).ok()?).ok()?;
        let day = u8::try_from(number(text.get(8..)?)?).ok()?;
        let date = Date::from_calendar_date(year, month, day).ok()?;
        YEARS.contains(&year).then(|| Self(date.to_julian_day() - UNIX_JULIAN_DAY))
    }

    /// The first millisecond of the day.
    pub const fn first_instant(self) -> Timestamp {
        Timestamp(self.0 as i64 * DAY_MS - SHANGHAI_OFFSET_MS)
    }

    /// The last millisecond of the day.
    pub const fn last_instant(self) -> Timestamp {
        Timestamp((self.0 as i64 + 1) * DAY_MS - SHANGHAI_OFFSET_MS - 1)
    }

    /// The calendar date; clamped to what a calendar can say.
    pub fn date(self) -> Date {
        Date::from_julian_day(self.0.saturating_add(UNIX_JULIAN_DAY)).unwrap_or(Date::MAX)
    }
}

/// The Julian day of 1970-01-01.
const UNIX_JULIAN_DAY: i32 = 2_440_588;

/// `2026-11-23`.
impl Shown for Day {
    fn shown(&self) -> Ascii {
        let date = self.date();
        let year = i64::from(date.year());
        let mut text = Ascii::EMPTY;
        if !(0..=9999).contains(&year) {
            // There is room for the longest date.
            let _ = write!(text, "{date}");
            return text;
        }
        let ([y1, y2], [y3, y4]) = (two_digits(year / 100), two_digits(year % 100));
        let ([m1, m2], [d1, d2]) = (two_digits(u8::from(date.month()).into()), two_digits(date.day().into()));
        text.push(&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2]);
        text
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_shown_in_shanghai_whatever_offset_it_came_with() {
        let utc = Timestamp::parse("2026-11-23T02:15:00Z").unwrap();
        assert_eq!(utc, Timestamp::parse("2026-11-23T10:15:00+08:00").unwrap());
        assert_eq!(utc.to_string(), "2026-11-23T10:15:00+08:00");
        assert_eq!(utc.plus_ms(7).to_string(), "2026-11-23T10:15:00.007+08:00");
        assert_eq!(utc.plus_ms(59_987).to_string(), "2026-11-23T10:15:59.987+08:00");
        assert_eq!(
            Timestamp::parse("1999-12-31T23:59:59.120+08:00").unwrap().to_string(),
            "1999-12-31T23:59:59.120+08:00"
        );
        assert_eq!(Timestamp::parse("2026-11-23T10:15:00"), None, "an offset is required");
    }

    #[test]
    fn a_day_is_a_day_in_shanghai() {
        let day = Day::parse("2027-12-31").unwrap();
        assert_eq!(day.to_string(), "2027-12-31");
        assert_eq!(day.first_instant().to_string(), "2027-12-31T00:00:00+08:00");
        assert_eq!(day.last_instant().to_string(), "2027-12-31T23:59:59.999+08:00");
        assert_eq!(day.last_instant().day(), day);
        assert_eq!(day.last_instant().plus_ms(1).year(), 2028);
        for bad in ["2027-02-29", "2027-13-01", "27-01-01", "2027/01/01", "+027-01-01", ""] {
            assert_eq!(Day::parse(bad), None, "{bad}");
        }
    }
}
