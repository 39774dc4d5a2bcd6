//! Parsing of requests. Fields are first split into raw JSON and then parsed one by one, so that each error can name
//! its field. Unknown fields are skipped at no cost.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{FILES_MAX, FileMap, SECRET_MAX};
use crate::model::number::IntegerValue;
use crate::model::{Name, Token, text};
use crate::share::wire::{Digest, FILE_SIZE_MAX, FileEntry, FileName, Seconds, features};

/// The longest reason that quotes the sender, and file name in it: there must be room for what was expected.
const REASON_CHARS_MAX: usize = 200;
const NAME_CHARS_MAX: usize = 80;

pub(super) type RawField<'a> = Option<&'a RawValue>;

macro_rules! raw_fields {
    ($(#[doc = $doc:literal])+ $Name:ident: $($field:ident),+) => {
        $(#[doc = $doc])+
        #[derive(Default, Deserialize)]
        pub struct $Name<'a> {
            $(#[serde(borrow)]
            pub(super) $field: RawField<'a>,)+
        }
    };
}

raw_fields! {
    /// A request.
    RequestEnvelope: action, data
}

raw_fields! {
    /// The fields of all actions.
    RequestFields: hostname, fname, port, ip, display_name, files_metadata, token, resume, offset, limit, state, size,
    modified, since, wait
}

raw_fields! {
    /// The fields of a file.
    FileFields: size, modified, created, published_at, is_published, blake3, pieces_root, features
}

/// The data of a request, whose fields are not parsed yet.
pub struct RequestData<'a> {
    fields: RequestFields<'a>,
    whole: RawField<'a>,
}

impl<'a> RequestData<'a> {
    pub(super) fn new(whole: RawField<'a>) -> Result<RequestData<'a>, String> {
        Ok(RequestData { fields: fields(whole)?, whole })
    }

    /// The file's fields are beside those of the action.
    pub(super) fn published_entry(&self) -> Result<FileEntry, String> {
        entry(&fields(self.whole)?, true)
    }
}

impl<'a> Deref for RequestData<'a> {
    type Target = RequestFields<'a>;

    fn deref(&self) -> &RequestFields<'a> {
        &self.fields
    }
}

/// The action of a line, and its data.
pub(super) fn envelope(line: &[u8]) -> Result<(String, RawField<'_>), String> {
    let line = std::str::from_utf8(text::without_bom(line)).map_err(|_| "the message is not UTF-8".to_owned())?;
    // Serde would also accept an array.
    if !line.trim_start().starts_with('{') {
        return Err("expected an object {\"action\":…,\"data\":{…}}".to_owned());
    }
    let RequestEnvelope { action, data } = serde_json::from_str(line)
        .map_err(|error| format!("expected {{\"action\":…,\"data\":{{…}}}}: {}", describe_error(&error)))?;
    Ok((required("action", action)?, data))
}

/// Absent data has none.
fn fields<'a, T: Default + Deserialize<'a>>(data: RawField<'a>) -> Result<T, String> {
    let Some(data) = data else { return Ok(T::default()) };
    if !data.get().starts_with('{') {
        return Err("data: expected an object".to_owned());
    }
    serde_json::from_str(data.get()).map_err(|error| format!("data: {}", describe_error(&error)))
}

/// An empty display name counts as absent.
pub(super) fn display_name(value: RawField<'_>) -> Result<Option<Name>, String> {
    let given = optional::<String>("display_name", value)?.filter(|name| !name.is_empty());
    given.map(|name| Name::new(&name).map_err(|wrong| format!("display_name: {wrong}"))).transpose()
}

pub(super) fn secret(field: &str, value: RawField<'_>) -> Result<Option<Token>, String> {
    let Some(secret) = optional::<String>(field, value)? else { return Ok(None) };
    if secret.len() > SECRET_MAX {
        return Err(format!("{field}: expected at most {SECRET_MAX} bytes"));
    }
    Ok(Some(Token::from_text(secret)))
}

/// With PUBLISH, `is_published` is implied.
fn entry(value: &FileFields<'_>, is_published: bool) -> Result<FileEntry, String> {
    let size = optional_integer("size", value.size)?.ok_or_else(|| missing("size"))?;
    if size > FILE_SIZE_MAX {
        return Err(format!("size: expected at most {FILE_SIZE_MAX} bytes"));
    }
    Ok(FileEntry {
        size,
        modified: required("modified", value.modified)?,
        created: optional("created", value.created)?,
        published_at: optional::<Seconds>("published_at", value.published_at)?,
        is_published: is_published || required("is_published", value.is_published)?,
        blake3: optional::<Digest>("blake3", value.blake3)?,
        pieces_root: optional::<Digest>("pieces_root", value.pieces_root)?,
        features: features(optional::<Vec<String>>("features", value.features)?.unwrap_or_default())
            .map_err(|error| format!("features: {error}"))?,
    })
}

/// The file list of REGISTER. Parsing stops at the first invalid file and at the limit.
pub(super) fn files(value: &RawValue) -> Result<FileMap, String> {
    struct FilesVisitor;

    impl<'de> Visitor<'de> for FilesVisitor {
        type Value = FileMap;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of files")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FileMap, A::Error> {
            let mut files = FileMap::new();
            while let Some(name) = map.next_key::<String>()? {
                let message =
                    |error: String| A::Error::custom(format!("{}: {error}", truncated(&name, NAME_CHARS_MAX)));
                let fname = FileName::new(&name).map_err(message)?;
                let value: &RawValue = map.next_value()?;
                if !value.get().starts_with('{') {
                    return Err(message("expected an object".to_owned()));
                }
                let fields: FileFields<'_> =
                    serde_json::from_str(value.get()).map_err(|error| message(describe_error(&error)))?;
                let entry = entry(&fields, false).map_err(message)?;
                if files.insert(fname, Arc::new(entry)).is_some() {
                    return Err(message("expected once".to_owned()));
                }
                if files.len() > FILES_MAX {
                    return Err(A::Error::custom(format!("expected at most {FILES_MAX} files")));
                }
            }
            Ok(files)
        }
    }

    let mut source = serde_json::Deserializer::from_str(value.get());
    source.deserialize_map(FilesVisitor).map_err(|error| format!("files_metadata: {}", describe_error(&error)))
}

pub(super) fn required<T: DeserializeOwned>(field: &str, value: RawField<'_>) -> Result<T, String> {
    optional(field, value)?.ok_or_else(|| missing(field))
}

pub(super) fn optional<T: DeserializeOwned>(field: &str, value: RawField<'_>) -> Result<Option<T>, String> {
    let read = |value: &RawValue| {
        serde_json::from_str(value.get()).map_err(|error| format!("{field}: {}", describe_error(&error)))
    };
    value.map(read).transpose()
}

pub(super) fn optional_integer(field: &str, value: RawField<'_>) -> Result<Option<u64>, String> {
    let read = |value: &RawValue| {
        let number = serde_json::from_str(value.get()).ok().and_then(|IntegerValue(number)| u64::try_from(number).ok());
        number.ok_or_else(|| format!("{field}: expected a whole number"))
    };
    value.map(read).transpose()
}

pub(super) fn missing(field: &str) -> String {
    format!("{field}: expected, but missing")
}

/// The position is left out, as it would count from the start of the field, and types are named as in JSON.
fn describe_error(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message =
        truncated(message.rsplit_once(" at line ").map_or(&*message, |(what, _place)| what), REASON_CHARS_MAX);
    message.replace("expected f64", "expected a number").replace("expected a sequence", "expected a list")
}

/// The beginning of a text that may be as long as a message.
fn truncated(message: &str, chars: usize) -> &str {
    message.char_indices().nth(chars).map_or(message, |(end, _)| &message[..end])
}
