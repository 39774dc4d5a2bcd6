use serde::Deserialize;
use serde_json::Value;

use super::NUMBER_MAX;
use crate::model::{Cents, number, text};

pub(super) fn required<'a>(value: &'a Option<Value>, field: &str) -> Result<&'a Value, String> {
    value.as_ref().filter(|value| !value.is_null()).ok_or_else(|| format!("{field}: missing"))
}

pub(super) fn required_string<'a>(
    value: &'a Option<Value>,
    field: &str,
    min: usize,
    max: usize,
) -> Result<&'a str, String> {
    let Value::String(text) = required(value, field)? else {
        return Err(format!("{field}: expected a text"));
    };
    text::check_length(text, min, max).map_err(|wrong| format!("{field}: {wrong}"))?;
    Ok(text)
}

pub(super) fn required_price(value: &Option<Value>, field: &str) -> Result<Cents, String> {
    Cents::deserialize(required(value, field)?).map_err(|wrong| format!("{field}: {wrong}"))
}

/// A whole number from 0 to 2^53 − 1 in any JSON notation (`1`, `1.0`, `1e0`).
pub(super) fn whole_number(value: &Value) -> Option<u64> {
    number::integer_as(value).filter(|number| *number <= NUMBER_MAX)
}

/// An array is rejected, although serde would accept one of the same values. Errors name those fields alone that are
/// listed in `fields`, and do not quote the input, as serde's message may.
pub(super) fn parse_object<'a, T: Deserialize<'a>>(json: &'a [u8], fields: &[&'static str]) -> Result<T, String> {
    let json = text::without_bom(json);
    match json.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        Some(b'{') => serde_json::from_slice(json).map_err(|error| json_error(&error, json, fields)),
        Some(_) => Err("expected one JSON object".to_owned()),
        None => Err("expected one JSON object, found nothing".to_owned()),
    }
}

fn json_error(error: &serde_json::Error, json: &[u8], fields: &[&'static str]) -> String {
    let message = error.to_string();
    let what = match error.classify() {
        serde_json::error::Category::Data => {
            let repeated = message.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`'));
            if let Some((field, _)) = repeated {
                // serde reports duplicates of known fields only, so this name is never taken from the input.
                return format!("{field}: expected once");
            }
            format!("found something else at column {}", error.column())
        }
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => {
            let field = message.starts_with("number out of range").then(|| field_before(error, json, fields)).flatten();
            if let Some(field) = field {
                return format!("{field}: expected a number that is not out of range");
            }
            format!("syntax error at line {}, column {}", error.line(), error.column())
        }
    };
    format!("expected one JSON object: {what}")
}

/// The one whose value the error is about.
fn field_before(error: &serde_json::Error, json: &[u8], fields: &[&'static str]) -> Option<&'static str> {
    let line = json.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let before = &line[..error.column().min(line.len())];
    let before = before[..before.iter().rposition(|byte| *byte == b':')?].trim_ascii_end();
    fields.iter().copied().find(|field| before.ends_with(format!("\"{field}\"").as_bytes()))
}
