//! Fields of JSON responses, as they are shown to people.

use serde_json::Value;

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

pub(super) fn rows(list: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    list.as_array().into_iter().flatten().map(row).collect()
}

/// `1 item`, `2 items`.
pub(super) fn counted_noun(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
