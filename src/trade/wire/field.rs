//! Fields of JSON, read so that what is wrong with one names it.

use serde::Deserialize;
use serde_json::Value;

use super::NUMBER_MAX;
use crate::model::{Cents, number, text};

/// The names of all fields that may be in a message of a peer.
pub(super) const FIELDS: [&str; 18] = [
    "type",
    "rq",
    "mid",
    "name",
    "token",
    "ip",
    "udp_port",
    "tcp_port",
    "item_name",
    "description",
    "price",
    "max_price",
    "offer_item",
    "offer_description",
    "rq_deal",
    "cc_number",
    "cc_exp",
    "address",
];

pub(super) fn present<'a>(value: &'a Option<Value>, field: &str) -> Result<&'a Value, String> {
    value.as_ref().filter(|value| !value.is_null()).ok_or_else(|| format!("{field}: missing"))
}

pub(super) fn string<'a>(value: &'a Option<Value>, field: &str, min: usize, max: usize) -> Result<&'a str, String> {
    let Value::String(text) = present(value, field)? else {
        return Err(format!("{field}: expected a text"));
    };
    text::check_length(text, min, max).map_err(|wrong| format!("{field}: {wrong}"))?;
    Ok(text)
}

pub(super) fn price(value: &Option<Value>, field: &str) -> Result<Cents, String> {
    Cents::deserialize(present(value, field)?).map_err(|wrong| format!("{field}: {wrong}"))
}

/// A whole number from 0 to 2^53 − 1, however it is written.
pub(super) fn whole_number(value: &Value) -> Option<u64> {
    number::fitting(value).filter(|number| *number <= NUMBER_MAX)
}

/// Reads one JSON object. To serde an array of the same values would be as good; here it is not.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn read_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    let json = text::without_bom(json);
    match json.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        Some(b'{') => serde_json::from_slice(json).map_err(|error| json_error(&error, json)),
        Some(_) => Err("expected one JSON object".to_owned()),
        None => Err("expected one JSON object, found nothing".to_owned()),
    }
}

/// What serde says of JSON that cannot be read, without the input that it may quote; with the field's name
/// where that is one that we know.
pub(super) fn json_error(error: &serde_json::Error, json: &[u8]) -> String {
    let said = error.to_string();
    let what = match error.classify() {
        serde_json::error::Category::Data => {
            let repeated = said.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`'));
            if let Some((field, _)) = repeated {
                // The name of one of our own fields: of others nothing is noted that could be repeated.
                return format!("{field}: expected once");
            }
            format!("found something else at column {}", error.column())
        }
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => {
            let field = said.starts_with("number out of range").then(|| field_before(error, json)).flatten();
            if let Some(field) = field {
                return format!("{field}: expected a number that is not out of range");
            }
            format!("syntax error at line {}, column {}", error.line(), error.column())
        }
    };
    format!("expected one JSON object: {what}")
}

/// The field whose value an error is about.
pub(super) fn field_before(error: &serde_json::Error, json: &[u8]) -> Option<&'static str> {
    let line = json.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let before = &line[..error.column().min(line.len())];
    let before = before[..before.iter().rposition(|byte| *byte == b':')?].trim_ascii_end();
    FIELDS.into_iter().find(|field| before.ends_with(format!("\"{field}\"").as_bytes()))
}
