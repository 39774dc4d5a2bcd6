//! Parses JSON into no more memory than a request can need. A mebibyte of `[0,0,0,…` would become half a million values
//! of many bytes each. So only fields that some call knows are kept, and at most [`VALUES_MAX`] values; the syntax of
//! the rest is checked only.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::model::money;
use crate::shop::apis;

/// Kept of one message. The longest call has some thirty.
const VALUES_MAX: u32 = 256;

pub(super) fn parse(message: &str) -> serde_json::Result<Value> {
    let left = Cell::new(VALUES_MAX);
    let mut source = serde_json::Deserializer::from_str(message);
    let value = BoundedValue(&left).deserialize(&mut source)?;
    source.end()?;
    Ok(value)
}

/// Keeps the value, unless the number of values left is zero.
#[derive(Clone, Copy)]
struct BoundedValue<'a>(&'a Cell<u32>);

impl<'de> DeserializeSeed<'de> for BoundedValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => {
                self.0.set(left);
                source.deserialize_any(self)
            }
            None => source.deserialize_ignored_any(IgnoredAny).map(|_| Value::Null),
        }
    }
}

impl<'de> Visitor<'de> for BoundedValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while self.0.get() > 0
            && let Some(value) = list.next_element_seed(self)?
        {
            values.push(value);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(known) = map.next_key_seed(KnownField)? {
            match known {
                // A price is parsed from its text, so that it is exact: see `money::value_of`. It counts as one value.
                Some("price") if self.0.get() > 0 => {
                    self.0.set(self.0.get() - 1);
                    let written: &RawValue = map.next_value()?;
                    let value = if written.get().starts_with(['[', '{']) {
                        Value::Bool(false)
                    } else {
                        money::parse_verbatim(written.get()).map_err(A::Error::custom)?
                    };
                    fields.insert("price".to_owned(), value);
                }
                Some(field) => drop(fields.insert(field.to_owned(), map.next_value_seed(self)?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(fields))
    }
}

/// Reads a field's name, if some call knows it.
struct KnownField;

impl<'de> DeserializeSeed<'de> for KnownField {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownField {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(apis::known_field(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(values) => values.iter().map(count).sum(),
            Value::Object(fields) => fields.values().map(count).sum(),
            _ => 0,
        }
    }

    #[test]
    fn what_a_call_needs_is_kept_and_nothing_else() {
        let card = json!({"number": "4111", "exp": "12/79", "name": "n"});
        let message = json!({
            "type": "request", "payload": {"card": card, "keywords": ["a", "b"], "price": 1.5, "x": [1]}, "y": {"type": 1}
        });
        let kept = json!({"type": "request", "payload": {"card": card, "keywords": ["a", "b"], "price": 1.5}});
        assert_eq!(parse(&message.to_string()).unwrap(), kept);
        for wrong in ["", "{", "{\"a\":[}", "{} x", "[1,]", "{\"type\":1,}", "nul", "\"\\u12\""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn however_much_is_sent_little_is_kept() {
        let zeros = format!("[{}0]", "0,".repeat(500_000));
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        for list in [&zeros, &format!("[{}[]]", format!("{nested},").repeat(1000))] {
            let message = format!("{{\"x\":{list},\"keywords\":{list},\"type\":\"SEARCH\",\"card\":{list}}}");
            let value = parse(&message).unwrap();
            assert!(count(&value) <= VALUES_MAX as usize + 4, "{}", count(&value));
            assert!(value["keywords"].is_array());
        }
        // Nested deeper than any call, and than a thread's stack could bear.
        assert!(parse(&format!("{{\"keywords\":{}", "[".repeat(500_000))).is_err());
        assert!(parse(&format!("{{\"x\":{}", "[".repeat(500_000))).is_err());
    }

    proptest! {
        #[test]
        fn it_takes_what_is_json_and_nothing_else(text in "[\\[\\]{}:,\"0-9a-c\\\\ .eE+-]{0,40}") {
            // In what is not kept, numbers may be out of range and escapes are not decoded.
            let is_taken = parse(&text).is_ok();
            prop_assert!(is_taken || serde_json::from_str::<Value>(&text).is_err(), "{}", text);
            prop_assert!(!is_taken || serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{}", text);
        }
    }
}
