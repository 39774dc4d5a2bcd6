//! Money in whole cents; on the wire a JSON number or string with at most two decimals.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The lowest price: 0.01.
pub const PRICE_MIN: Cents = Cents(1);
/// The highest price: 10000000.00. Totals may exceed it.
pub const PRICE_MAX: Cents = Cents(1_000_000_000);

macro_rules! price_rule {
    () => {
        "an amount from 0.01 to 10000000.00 with at most two decimals, as a number or a string"
    };
}
const PRICE_RULE: &str = concat!("expected ", price_rule!());

/// An amount of money in whole cents. Debits in a ledger are negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cents(pub i64);

impl Cents {
    /// Parses a price as people and JSON write it: `12`, `12.5`, `12.50`. The error does not repeat the input.
    pub fn parse_price(text: &str) -> Result<Cents, &'static str> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') || fraction.len() > 2 {
            return Err(PRICE_RULE);
        }
        let units: i64 = whole.parse().map_err(|_| PRICE_RULE)?;
        let hundredths: i64 = format!("{fraction:0<2}").parse().map_err(|_| PRICE_RULE)?;
        let cents = units.checked_mul(100).and_then(|cents| cents.checked_add(hundredths)).ok_or(PRICE_RULE)?;
        Cents(cents).as_price().ok_or(PRICE_RULE)
    }

    /// The amount as in JSON: a whole number if it is one (`12`), otherwise the shortest decimal (`12.5`).
    pub fn shortest(self) -> impl fmt::Display {
        Shortest(self)
    }

    /// The amount itself, or `None` beyond the limits of a price.
    pub fn as_price(self) -> Option<Cents> {
        (PRICE_MIN..=PRICE_MAX).contains(&self).then_some(self)
    }
}

struct Shortest(Cents);

impl fmt::Display for Shortest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0.0 < 0 { "-" } else { "" };
        let cents = self.0.0.unsigned_abs();
        match (cents / 100, cents % 100) {
            (whole, 0) => write!(f, "{sign}{whole}"),
            (whole, part) if part % 10 == 0 => write!(f, "{sign}{whole}.{}", part / 10),
            (whole, part) => write!(f, "{sign}{whole}.{part:02}"),
        }
    }
}

/// A sum of any number of amounts, in whole cents. It may exceed the largest amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Total(pub i128);

impl From<Cents> for Total {
    fn from(cents: Cents) -> Total {
        Total(cents.0.into())
    }
}

impl std::ops::AddAssign for Total {
    /// Cannot overflow: 2^64 of the largest amounts fit.
    fn add_assign(&mut self, other: Total) {
        self.0 += other.0;
    }
}

/// Always with two decimals: `12.50`, `-0.05`.
impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let cents = self.0.unsigned_abs();
        f.pad(&format!("{sign}{}.{:02}", cents / 100, cents % 100))
    }
}

/// Formatted like [`Total`].
impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Total::from(*self).fmt(f)
    }
}

/// A JSON number: whole if it is (`12`), otherwise the shortest decimal (`12.5`). It is exact, except that a
/// [`serde_json::Value`] cannot hold every large sum: so sums are never written through a `Value`.
impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        let shortest = text.strip_suffix(".00").or_else(|| text.strip_suffix('0')).unwrap_or(&text);
        RawValue::from_string(shortest.to_owned()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// Serialized like [`Total`].
impl Serialize for Cents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % 100 == 0 {
            serializer.serialize_i64(self.0 / 100)
        } else if self.0.unsigned_abs() <= PRICE_MAX.0.unsigned_abs() {
            // The fast path for prices, which are written often. It is exact for so few digits: the quotient of two
            // whole numbers is rounded once, and its shortest decimal is the one with two places.
            serializer.serialize_f64(self.0 as f64 / 100.0)
        } else {
            Total::from(*self).serialize(serializer)
        }
    }
}

/// Reads a price (not a sum): see [`Cents::parse_price`]. Prices from others are first read as they were written.
impl<'de> Deserialize<'de> for Cents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cents, D::Error> {
        struct Price;
        impl Visitor<'_> for Price {
            type Value = Cents;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Follows serde's own "expected".
                f.write_str(price_rule!())
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Cents, E> {
                Cents::parse_price(&value.to_string()).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Cents, E> {
                Cents::parse_price(&value.to_string()).map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Cents, E> {
                // Rust prints the shortest decimal that reads back as the same number, without an exponent: what the
                // sender wrote.
                Cents::parse_price(&value.to_string()).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Cents, E> {
                Cents::parse_price(value).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Price)
    }
}

/// For a field that is read as a [`Value`] first and as a price later: a number with more decimals than a price may
/// have is kept as its text, which is not a valid price. As a floating-point number it might be rounded to one.
/// `#[serde(default, deserialize_with = "money::deserialize_verbatim")] price: Option<Value>`.
pub fn deserialize_verbatim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let Some(written) = Option::<Box<RawValue>>::deserialize(deserializer)? else { return Ok(None) };
    parse_verbatim(written.get()).map(Some).map_err(de::Error::custom)
}

/// The value of a price field: see [`deserialize_verbatim`].
pub fn parse_verbatim(json: &str) -> serde_json::Result<Value> {
    let is_number = json.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    match serde_json::from_str(json) {
        Ok(value) if !is_number || has_at_most_two_decimals(json) => Ok(value),
        // Also a number that is out of range.
        _ if is_number => Ok(Value::String(json.to_owned())),
        other => other,
    }
}

/// `1.25e1` has one decimal, `50.050` has three.
fn has_at_most_two_decimals(number: &str) -> bool {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let fraction = mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    // An exponent that does not fit is far from that of any price.
    let Ok(exponent) = exponent.parse::<i32>() else { return false };
    i64::try_from(fraction).is_ok_and(|fraction| fraction - i64::from(exponent) <= 2)
}

/// The marketplace's fee on a sale, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeRate {
    basis_points: u32,
}

impl FeeRate {
    /// Parses a percentage from 0 to 100 with at most two decimals: `10`, `2.5`.
    pub fn parse_percent(text: &str) -> Result<FeeRate, String> {
        let expected = || format!("expected a percentage from 0 to 100, such as 10 or 2.5, not {text:?}");
        let basis_points = match text.parse::<f64>() {
            Ok(0.0) => 0,
            _ => Cents::parse_price(text).map_err(|_| expected())?.0,
        };
        if basis_points > 10_000 {
            return Err(expected());
        }
        Ok(FeeRate { basis_points: basis_points as u32 })
    }

    /// The fee on one line's amount, rounded half up to a cent.
    pub fn fee_on(self, amount: Cents) -> Cents {
        let product = i128::from(amount.0) * i128::from(self.basis_points);
        Cents(((product + 5_000).div_euclid(10_000)) as i64)
    }
}

impl Default for FeeRate {
    fn default() -> FeeRate {
        FeeRate { basis_points: 1_000 }
    }
}

impl fmt::Display for FeeRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Cents(i64::from(self.basis_points)).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prices_are_read_as_written() {
        for (text, cents) in
            [("12", 1200), ("12.5", 1250), ("12.05", 1205), ("0.01", 1), ("10000000.00", 1_000_000_000), ("7.0", 700)]
        {
            assert_eq!(Cents::parse_price(text), Ok(Cents(cents)), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "0",
            "0.00",
            "0.001",
            "1.005",
            "50.050",
            "50.000",
            "-1",
            "+1",
            "1e3",
            "10000000.01",
            "99999999999999999999",
            "1,5",
            " 1",
            "１",
        ] {
            assert!(Cents::parse_price(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn json_prices_may_be_numbers_or_strings() {
        for json in ["12.5", "\"12.5\"", "\"12.50\"", "12.50", "1.25e1", "125e-1", "1250E-2"] {
            assert_eq!(serde_json::from_str::<Cents>(json).unwrap(), Cents(1250), "{json}");
            assert_eq!(Cents::deserialize(parse_verbatim(json).unwrap()).unwrap(), Cents(1250), "{json}");
        }
        assert_eq!(serde_json::from_str::<Cents>("1e7").unwrap(), PRICE_MAX);
        for json in [
            "null",
            "true",
            "[]",
            "\"50.050\"",
            "50.050",
            "0.125",
            "-3",
            "0",
            "0e5",
            "1e300",
            "1e999999999999999999999",
            "1.2345e1",
            "1250e-3",
            // Rounded as floating-point numbers, these would be prices.
            "9.999999999999999999",
            "0.0100000000000000000001",
            "18446744073709551615",
        ] {
            let error = Cents::deserialize(parse_verbatim(json).unwrap()).expect_err(json).to_string();
            assert_eq!(error.matches("expected").count(), 1, "{json}: {error}");
        }
    }

    #[test]
    fn sums_are_written_exactly_however_large() {
        let json = |cents| serde_json::to_string(&Cents(cents)).unwrap();
        for (cents, shown, written) in [
            (0, "0.00", "0"),
            (-5, "-0.05", "-0.05"),
            (1250, "12.50", "12.5"),
            (1_000_000_000, "10000000.00", "10000000"),
            (1_000_000_001, "10000000.01", "10000000.01"),
            ((1 << 53) + 1, "90071992547409.93", "90071992547409.93"),
            (i64::MAX, "92233720368547758.07", "92233720368547758.07"),
            (i64::MAX - 7, "92233720368547758.00", "92233720368547758"),
            (i64::MIN, "-92233720368547758.08", "-92233720368547758.08"),
        ] {
            assert_eq!((Cents(cents).to_string().as_str(), json(cents).as_str()), (shown, written));
            assert_eq!(serde_json::to_string(&Total(cents.into())).unwrap(), written);
            assert_eq!(Cents(cents).shortest().to_string(), written);
        }
        let many = Total(i128::from(i64::MAX) * 9_000);
        assert_eq!(many.to_string(), "830103483316929822630.00");
        assert_eq!(serde_json::to_string(&many).unwrap(), "830103483316929822630");
    }

    #[test]
    fn fees_round_half_up() {
        let ten = FeeRate::default();
        assert_eq!(ten.fee_on(Cents(1)), Cents(0));
        assert_eq!(ten.fee_on(Cents(4)), Cents(0));
        assert_eq!(ten.fee_on(Cents(5)), Cents(1));
        assert_eq!(ten.fee_on(Cents(9500)), Cents(950));
        assert_eq!(FeeRate::parse_percent("2.5").unwrap().fee_on(Cents(100)), Cents(3));
        assert_eq!(FeeRate::parse_percent("0").unwrap().fee_on(Cents(100)), Cents(0));
        for text in ["-1", "101", "x", "", "1.234", "NaN"] {
            assert!(FeeRate::parse_percent(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(cents in 1i64..=1_000_000_000) {
            let json = serde_json::to_string(&Cents(cents)).unwrap();
            prop_assert_eq!(Cents(cents).shortest().to_string(), json.as_str());
            prop_assert_eq!(serde_json::from_str::<Cents>(&json).unwrap(), Cents(cents));
            prop_assert_eq!(Cents::parse_price(&Cents(cents).to_string()), Ok(Cents(cents)));
        }

        #[test]
        fn a_sum_is_written_as_it_is_shown(cents in any::<i64>()) {
            let json = serde_json::to_string(&Cents(cents)).unwrap();
            let (whole, fraction) = json.split_once('.').unwrap_or((&json, ""));
            prop_assert_eq!(format!("{whole}.{fraction:0<2}"), Cents(cents).to_string());
            prop_assert_eq!(Cents(cents).shortest().to_string(), json);
        }

        #[test]
        fn a_fee_is_never_more_than_the_amount(cents in 1i64..=i64::MAX, points in 0u32..=10_000) {
            let fee = FeeRate { basis_points: points }.fee_on(Cents(cents));
            prop_assert!(fee.0 >= 0 && fee.0 <= cents);
        }
    }
}
