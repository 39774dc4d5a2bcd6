//! Reading the fields of a message: what a rule accepts, and the error that names the field and what was expected.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::identity::users::PASSWORD_CHARS_MAX;
use crate::model::text::{self, nfc};
use crate::model::{CardNumber, Cents, Expiry, number};
use crate::shop::ops::{CardDetails, ErrorCode, Refusal, Role};

/// The keywords of an item and of a search.
pub const KEYWORDS_MAX: usize = 5;
/// An id's characters. The shop assigns no longer ones.
const ID_MAX: usize = 64;
/// The characters of a postal address.
const ADDRESS_MAX: usize = 1024;
/// The maximum of categories and quantities.
pub const INT32_MAX: i64 = i32::MAX as i64;
/// Numbers stay below 2^53, so that every JSON parser represents them exactly.
pub const SAFE_INTEGER_MAX: i64 = (1 << 53) - 1;

/// The two forms of a message (`docs/spec/shop.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    One,
    Two,
}

/// A name in dialect 1 and in dialect 2; the empty string if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names(pub &'static str, pub &'static str);

impl Names {
    pub fn of(self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::One => self.0,
            Dialect::Two => self.1,
        }
    }
}

pub struct Field<T> {
    pub names: Names,
    /// Fields that the rule reads too, or that an error may name.
    pub others: &'static [Names],
    pub read: fn(FieldReader<'_>, &'static str) -> Result<T, Refusal>,
}

/// Typed access to the fields of a message, or of a part of it.
#[derive(Clone, Copy)]
pub struct FieldReader<'a> {
    pub fields: &'a Map<String, Value>,
    pub dialect: Dialect,
    /// The role of the server; `None` for a database.
    pub role: Option<Role>,
}

pub fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

impl<'a> FieldReader<'a> {
    pub fn read<T>(self, field: &Field<T>) -> Result<T, Refusal> {
        (field.read)(self, field.names.of(self.dialect))
    }

    /// A field that is present and not null.
    pub fn get(self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub fn require(self, field: &str) -> Result<&'a Value, Refusal> {
        self.get(field).ok_or_else(|| Refusal::wrong(field, "missing"))
    }

    pub fn optional<T>(self, field: &str, read: impl FnOnce() -> Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        self.get(field).map(|_| read()).transpose()
    }

    pub fn string(self, field: &str) -> Result<&'a str, Refusal> {
        self.require(field)?.as_str().ok_or_else(|| Refusal::wrong(field, "expected a text"))
    }

    /// `min` to `max` characters, no control characters.
    pub fn text(self, field: &str, min: usize, max: usize) -> Result<String, Refusal> {
        let value = self.string(field)?;
        text::check(value, min, max).map_err(|rule| Refusal::wrong(field, rule))?;
        Ok(value.to_owned())
    }

    pub fn id(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, ID_MAX)
    }

    /// A user name, or a name that is shown.
    pub fn name(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, text::NAME_MAX)
    }

    /// Any characters.
    pub fn password(self, field: &str) -> Result<String, Refusal> {
        let value = self.string(field)?;
        text::check_length(value, 1, PASSWORD_CHARS_MAX).map_err(|rule| Refusal::wrong(field, rule))?;
        Ok(value.to_owned())
    }

    /// NOT_LOGGED_IN if it is missing or empty.
    pub fn session_id(self, field: &str) -> Result<String, Refusal> {
        match self.get(field) {
            Some(Value::String(sid)) if !sid.is_empty() => Ok(sid.clone()),
            None | Some(Value::String(_)) => {
                Err(Refusal::new(ErrorCode::NotLoggedIn, format!("{field}: missing; log in first")))
            }
            Some(_) => Err(Refusal::wrong(field, "expected a text")),
        }
    }

    /// Any JSON notation is accepted, such as `1e3`.
    pub fn integer(self, field: &str, min: i64, max: i64) -> Result<i64, Refusal> {
        number::integer_as(self.require(field)?)
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| Refusal::wrong(field, format_args!("expected a whole number from {min} to {max}")))
    }

    /// A number from `min` to the maximum of categories and quantities.
    pub fn u32(self, field: &str, min: u32) -> Result<u32, Refusal> {
        // The range fits a u32.
        self.integer(field, min.into(), INT32_MAX).map(|number| number as u32)
    }

    pub fn u64(self, field: &str, max: i64) -> Result<u64, Refusal> {
        // It is not negative.
        self.integer(field, 0, max).map(|number| number as u64)
    }

    /// A number from 0 on.
    pub fn u64_or(self, field: &str, max: i64, default: u64) -> Result<u64, Refusal> {
        Ok(self.optional(field, || self.u64(field, max))?.unwrap_or(default))
    }

    pub fn price(self, field: &str) -> Result<Cents, Refusal> {
        Cents::deserialize(self.require(field)?).map_err(|rule| Refusal::wrong(field, rule))
    }

    /// A text that stands for a value.
    fn word<T>(self, field: &str, expected: &str, value: impl FnOnce(&str) -> Option<T>) -> Result<T, Refusal> {
        let word = self.require(field)?.as_str();
        word.and_then(value).ok_or_else(|| Refusal::wrong(field, format_args!("expected {expected}")))
    }

    /// `New` or `Used`, in any letter case.
    pub fn condition(self, field: &str) -> Result<bool, Refusal> {
        self.word(field, "New or Used", |word| match word {
            _ if word.eq_ignore_ascii_case("new") => Some(true),
            _ if word.eq_ignore_ascii_case("used") => Some(false),
            _ => None,
        })
    }

    /// A boolean in dialect 1, `up` or `down` in dialect 2.
    pub fn vote(self, field: &str) -> Result<bool, Refusal> {
        match self.dialect {
            Dialect::One => {
                self.require(field)?.as_bool().ok_or_else(|| Refusal::wrong(field, "expected true or false"))
            }
            Dialect::Two => self.word(field, "up or down", |word| match word {
                "up" => Some(true),
                "down" => Some(false),
                _ => None,
            }),
        }
    }

    /// The server's, which dialect 2 also names.
    pub fn role(self, field: &str) -> Result<Role, Refusal> {
        let named = match (self.dialect, self.role) {
            (Dialect::One, Some(own)) => return Ok(own),
            _ => self.word(field, "buyer or seller", |word| match word {
                "buyer" => Some(Role::Buyer),
                "seller" => Some(Role::Seller),
                _ => None,
            })?,
        };
        match self.role {
            Some(own) if own != named => {
                Err(Refusal::new(ErrorCode::Forbidden, format!("{field}: this port is for {}", own.plural())))
            }
            _ => Ok(named),
        }
    }

    /// At most five texts of 1 to `max` characters.
    pub fn keywords(self, field: &str, max: usize) -> Result<Vec<String>, Refusal> {
        let no_texts = || Refusal::wrong(field, "expected a list of texts");
        let values = self.require(field)?.as_array().ok_or_else(no_texts)?;
        if values.len() > KEYWORDS_MAX {
            return Err(Refusal::wrong(field, format_args!("expected at most {KEYWORDS_MAX}")));
        }
        let keyword = |value: &Value| {
            let keyword = value.as_str().ok_or_else(no_texts)?;
            text::check(keyword, 1, max).map_err(|rule| Refusal::wrong(field, rule))?;
            Ok(keyword.to_owned())
        };
        values.iter().map(keyword).collect()
    }

    /// They are distinct, in lowercase and Unicode's form C.
    pub fn search_keywords(self, field: &str, max: usize) -> Result<Vec<String>, Refusal> {
        let mut distinct: Vec<String> = Vec::new();
        for keyword in self.optional(field, || self.keywords(field, max))?.unwrap_or_default() {
            let keyword = nfc(&keyword.to_lowercase()).into_owned();
            if !distinct.contains(&keyword) {
                distinct.push(keyword);
            }
        }
        Ok(distinct)
    }

    /// It may contain line breaks.
    pub fn address(self, field: &str) -> Result<String, Refusal> {
        let address = self.get(field).and_then(Value::as_str);
        let address = address.filter(|address| (1..=ADDRESS_MAX).contains(&address.chars().count()));
        let rule = || Refusal::wrong(field, format_args!("expected a text of 1 to {ADDRESS_MAX} characters"));
        address.map(str::to_owned).ok_or_else(rule)
    }

    /// An object or flat fields. Only the form is checked; the bank decides whether the card is valid.
    pub fn card(self, field: &str) -> Result<CardDetails, Refusal> {
        let (card, [number, exp, name], prefix) = match self.get(field) {
            Some(Value::Object(fields)) => (FieldReader { fields, ..self }, ["number", "exp", "name"], "card."),
            Some(_) => return Err(Refusal::wrong(field, "expected an object with number, exp and name")),
            None if self.get("card_number").is_none() => return Err(Refusal::wrong(field, "missing")),
            None => (self, ["card_number", "expiration_date", "name"], ""),
        };
        let prefixed = |refusal: Refusal| bad_request(format!("{prefix}{}", refusal.message));
        let digits = card.text(number, 1, 64).map_err(prefixed)?;
        let digits = CardNumber::new(&digits).map_err(|rule| prefixed(Refusal::wrong(number, rule)))?;
        let month = card.text(exp, 1, 16).map_err(prefixed)?;
        let month = Expiry::parse(&month).map_err(|rule| prefixed(Refusal::wrong(exp, rule)))?;
        let name = card.name(name).map_err(prefixed)?;
        Ok(CardDetails { number: digits.reveal().to_owned(), exp: month.to_string(), name })
    }
}
