//! Money in whole fen, rates, and the named rounding. No floats anywhere.

use std::fmt::{self, Write as _};

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

use crate::bytes::{Ascii, Shown};
use crate::limits;

/// An amount of money in fen (1 yuan = 100 fen). Never a float; arithmetic is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fen(i64);

impl Fen {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount of `fen` fen.
    pub const fn new(fen: i64) -> Self {
        Self(fen)
    }

    /// The number of fen.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The sum, or `None` where it would not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or `None` where it would not fit.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The same amount with the opposite sign.
    pub const fn negated(self) -> Self {
        Self(-self.0)
    }

    /// Reads yuan as the wire writes them: `(0|[1-9]\d{0,7})(\.\d{1,2})?`, e.g. `"4000.00"`.
    /// `None` for anything else: signs, exponents, leading zeros, a third decimal.
    pub fn parse_yuan(text: &str) -> Option<Self> {
        Self::parse_yuan_digits(text, limits::PRICE_YUAN_DIGITS_MAX)
    }

    /// Reads a fund's budget: as [`Fen::parse_yuan`], with up to thirteen digits of yuan.
    pub fn parse_budget_yuan(text: &str) -> Option<Self> {
        Self::parse_yuan_digits(text, limits::BUDGET_YUAN_DIGITS_MAX)
    }

    fn parse_yuan_digits(text: &str, digits_max: usize) -> Option<Self> {
        let (whole, fraction) = match text.split_once('.') {
            Some((whole, fraction)) if matches!(fraction.len(), 1 | 2) => (whole, fraction),
            Some(_) => return None,
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > digits_max || !digits(whole) || !digits(fraction) {
            return None;
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return None;
        }
        let yuan: i64 = whole.parse().ok()?;
        let fen: i64 = match fraction.len() {
            0 => 0,
            1 => fraction.parse::<i64>().ok()? * 10,
            _ => fraction.parse().ok()?,
        };
        yuan.checked_mul(100)?.checked_add(fen).map(Self)
    }

    /// `rate` of this amount, rounded as `rounding` says; `None` where it does not fit.
    pub fn at_rate(self, rate: Rate, rounding: Rounding) -> Option<Self> {
        let exact = Decimal::from(self.0).checked_mul(rate.value)?;
        let rounded = match rounding {
            Rounding::DownToFen => exact.floor(),
        };
        rounded.to_i64().map(Self)
    }
}

/// Two decimals, as every answer writes money: `600.00`.
impl Shown for Fen {
    fn shown(&self) -> Ascii {
        let (yuan, fen) = (self.0.unsigned_abs() / 100, (self.0.unsigned_abs() % 100) as u8);
        let mut text = Ascii::EMPTY;
        if self.0 < 0 {
            text.push(b"-");
        }
        text.push(itoa::Buffer::new().format(yuan).as_bytes());
        text.push(&[b'.', b'0' + fen / 10, b'0' + fen % 10]);
        text
    }
}

impl fmt::Display for Fen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown().as_str())
    }
}

/// A share of a price, between 0 and 1 inclusive, held as an exact decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    value: Decimal,
    /// As it is shown: every answer shows the rates of some programmes.
    text: Ascii,
}

impl Rate {
    /// Reads a rate such as `0.15`; `None` unless it is a decimal between 0 and 1.
    pub fn parse(text: &str) -> Option<Self> {
        let rate = Decimal::from_str_exact(text).ok()?;
        let value = (rate >= Decimal::ZERO && rate <= Decimal::ONE).then(|| rate.normalize())?;
        let mut text = Ascii::EMPTY;
        write!(text, "{value}").ok()?;
        Some(Self { value, text })
    }
}

impl Shown for Rate {
    fn shown(&self) -> Ascii {
        self.text
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.as_str())
    }
}

/// How a computed subsidy becomes whole fen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Down to the fen, so that no subsidy ever exceeds the rate. An administrative choice:
    /// no rule text names a rounding.
    DownToFen,
}

impl Rounding {
    /// The name used in programme data and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DownToFen => "down_to_fen",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yuan_are_read_as_the_wire_writes_them() {
        assert_eq!(Fen::parse_yuan("4000.00"), Some(Fen::new(400_000)));
        assert_eq!(Fen::parse_yuan("0.5"), Some(Fen::new(50)));
        assert_eq!(Fen::parse_yuan("0"), Some(Fen::ZERO));
        assert_eq!(Fen::parse_yuan("99999999.99"), Some(Fen::new(9_999_999_999)));
        for bad in ["", ".", "1.", ".5", "01", "1.234", "-1", "+1", "1e3", "100000000", "１", " 1", "1,000"]
        {
            assert_eq!(Fen::parse_yuan(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_subsidy_is_rounded_down_to_the_fen() {
        let rate = Rate::parse("0.15").unwrap();
        let subsidy = |fen| Fen::new(fen).at_rate(rate, Rounding::DownToFen).unwrap();
        assert_eq!(subsidy(1_333_333), Fen::new(199_999));
        assert_eq!(subsidy(1_333_334), Fen::new(200_000));
        assert_eq!(subsidy(459_900).to_string(), "689.85");
        assert_eq!(Fen::new(-5).to_string(), "-0.05");
        assert_eq!(Fen::ZERO.to_string(), "0.00");
        assert_eq!(Fen::new(i64::MIN).to_string(), "-92233720368547758.08");
    }
}
