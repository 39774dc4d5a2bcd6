//! Whole numbers in JSON, read alike at every port: `6001`, `6001.0` and `6.001e3` are one number.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The largest number up to which every reader of JSON holds every whole number exactly: 2^53 − 1. What is
/// written with a point or an exponent is whole up to there.
pub const EXACT_MAX: u64 = (1 << 53) - 1;

/// The whole number that a JSON value is; none if it is no number, or not a whole one.
pub fn whole(value: &Value) -> Option<i128> {
    Whole::deserialize(value).ok().map(|number| number.0)
}

/// The whole number that a JSON value is, if it is within a type.
pub fn fitting<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    T::try_from(whole(value)?).ok()
}

/// A whole number, for readers that take JSON apart by type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole(pub i128);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whole, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Whole, E> {
                Ok(Whole(value.into()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Whole, E> {
                if value.fract() == 0.0 && value.abs() <= EXACT_MAX as f64 {
                    return Ok(Whole(value as i128));
                }
                Err(E::custom("expected a whole number"))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_whole_however_it_is_written() {
        let read = |json: &str| whole(&serde_json::from_str(json).unwrap());
        for (json, number) in [
            ("6001", 6001),
            ("6001.0", 6001),
            ("6.001e3", 6001),
            ("1e2", 100),
            ("100e-2", 1),
            ("-0.0", 0),
            ("-2.0", -2),
            ("18446744073709551615", u64::MAX.into()),
            ("9007199254740991.0", EXACT_MAX.into()),
        ] {
            assert_eq!(read(json), Some(number), "{json}");
            assert_eq!(serde_json::from_str::<Whole>(json).unwrap(), Whole(number), "{json}");
        }
        for json in ["1.5", "1e-1", "1e17", "\"1\"", "null", "true", "[1]", "{}"] {
            assert_eq!(read(json), None, "{json}");
            let error = serde_json::from_str::<Whole>(json).unwrap_err().to_string();
            assert!(error.contains("expected a whole number"), "{json}: {error}");
        }
        assert_eq!(fitting::<u16>(&serde_json::json!(65_535.0)), Some(65_535));
        assert_eq!(fitting::<u16>(&serde_json::json!(65_536)), None);
        assert_eq!(fitting::<u64>(&serde_json::json!(-1.0)), None);
    }

    proptest! {
        #[test]
        fn with_a_point_it_is_the_same(number in -(EXACT_MAX as i64)..=EXACT_MAX as i64) {
            let plain: Value = serde_json::from_str(&number.to_string()).unwrap();
            let pointed: Value = serde_json::from_str(&format!("{number}.0")).unwrap();
            prop_assert_eq!(whole(&plain), Some(number.into()));
            prop_assert_eq!(whole(&pointed), Some(number.into()));
        }
    }
}
