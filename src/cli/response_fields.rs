//! Fields of JSON responses, as they are shown to people.

use serde::Serialize;
use serde_json::Value;

use super::table::{Column, table_of};
use crate::model::Millis;

/// A string without its quotes, or any other value as JSON.
pub(super) fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A time that is given in Unix seconds.
pub(super) fn time(seconds: &Value) -> String {
    let seconds = seconds.as_f64().filter(|seconds| *seconds >= 0.0);
    seconds.map(|seconds| Millis::from_unix_s(seconds as u64).to_iso()).unwrap_or_default()
}

/// The items of a list; none if it is no list.
pub(super) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// A table of a list, or `none` where there is nothing in it.
pub(super) fn listing(items: &[Value], columns: &[Column<Value>], none: &str) -> String {
    if items.is_empty() { none.to_owned() } else { table_of(columns, items) }
}

/// The name under which a value without fields is serialized.
pub(super) fn serialized_name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `1 item`, `2 items`.
pub(super) fn counted_noun(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
