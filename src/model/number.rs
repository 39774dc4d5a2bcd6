//! Whole numbers in JSON, parsed in the same way at every port: `6001`, `6001.0` and `6.001e3` are one number.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Up to this number (2^53 − 1) every JSON parser represents every whole number exactly. Numbers written with a point
/// or an exponent are whole up to there.
pub const EXACT_MAX: u64 = (1 << 53) - 1;

/// The whole number that a JSON value is.
pub fn integer(value: &Value) -> Option<i128> {
    IntegerValue::deserialize(value).ok().map(|number| number.0)
}

/// The whole number that a JSON value is, if it fits the type.
pub fn integer_as<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    T::try_from(integer(value)?).ok()
}

/// A whole number, for deserializing fields of that type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerValue(pub i128);

impl<'de> Deserialize<'de> for IntegerValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IntegerValue, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = IntegerValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<IntegerValue, E> {
                Ok(IntegerValue(value.into()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<IntegerValue, E> {
                Ok(IntegerValue(value.into()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<IntegerValue, E> {
                if value.fract() == 0.0 && value.abs() <= EXACT_MAX as f64 {
                    return Ok(IntegerValue(value as i128));
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
        let read = |json: &str| integer(&serde_json::from_str(json).unwrap());
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
            assert_eq!(serde_json::from_str::<IntegerValue>(json).unwrap(), IntegerValue(number), "{json}");
        }
        for json in ["1.5", "1e-1", "1e17", "\"1\"", "null", "true", "[1]", "{}"] {
            assert_eq!(read(json), None, "{json}");
            let error = serde_json::from_str::<IntegerValue>(json).unwrap_err().to_string();
            assert!(error.contains("expected a whole number"), "{json}: {error}");
        }
        assert_eq!(integer_as::<u16>(&serde_json::json!(65_535.0)), Some(65_535));
        assert_eq!(integer_as::<u16>(&serde_json::json!(65_536)), None);
        assert_eq!(integer_as::<u64>(&serde_json::json!(-1.0)), None);
    }

    proptest! {
        #[test]
        fn with_a_point_it_is_the_same(number in -(EXACT_MAX as i64)..=EXACT_MAX as i64) {
            let plain: Value = serde_json::from_str(&number.to_string()).unwrap();
            let pointed: Value = serde_json::from_str(&format!("{number}.0")).unwrap();
            prop_assert_eq!(integer(&plain), Some(number.into()));
            prop_assert_eq!(integer(&pointed), Some(number.into()));
        }
    }
}
