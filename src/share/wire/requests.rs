//! Requests to the registry: one JSON object per line, parsed into a [`RegistryRequest`] or refused with a reason that
//! names the field.
//!
//! Fields are first split into raw JSON and then parsed one by one, so that each error can name its field. Unknown
//! fields are skipped at no cost.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Digest, FEATURE_LENGTH_MAX, FEATURES_MAX, FILE_SIZE_MAX, FileEntry, FileName, PORT_MIN, Seconds};
use crate::model::number::IntegerValue;
use crate::model::{Name, Token, text};

/// Maximum size of a request, bytes.
pub const REQUEST_MAX: usize = 16 << 20;
/// Maximum number of files per host.
pub const FILES_MAX: usize = 100_000;
/// Maximum number of characters of PING's state.
const STATE_MAX: usize = 32;
/// Maximum length of a token or secret, bytes; ours are shorter.
pub(in crate::share) const SECRET_MAX: usize = 8 * 1024;
/// Maximum number of characters of a reason that quotes the sender, and of a file name in it, so that there is room
/// for what was expected.
const REASON_CHARS_MAX: usize = 200;
const NAME_CHARS_MAX: usize = 80;

/// A host's files by name.
pub type FileMap = BTreeMap<FileName, Arc<FileEntry>>;

/// A request to the registry.
#[derive(Debug)]
pub enum RegistryRequest {
    /// Registers a host.
    Register(Box<RegisterRequest>),
    /// Adds or changes a file of a host.
    Publish(Box<PublishRequest>),
    /// Stops listing a file.
    Unpublish(UnpublishRequest),
    /// Finds hosts that have a file.
    Request(FileRequest),
    /// Gets a host's files and address.
    Discover(HostRequest),
    /// Lists the hosts with their files.
    List(ListRequest),
    /// Gets the changes after a known point.
    Changes(ChangesRequest),
    /// Asks whether a host is live.
    Ping(PingRequest),
    /// Removes a host.
    Unregister(HostRequest),
}

/// The data of REGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct RegisterRequest {
    /// The hostname. Whether it contains only visible characters is checked by the caller, who knows the accounts: an
    /// account of an earlier version may have any name.
    pub hostname: Name,
    /// Port of the host's peer server.
    pub port: u16,
    /// Address of the peer server, if it is not the connection's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Name shown to people; defaults to the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Name>,
    /// All files. Without it there are none, or with a valid `resume` the former ones.
    #[serde(rename = "files_metadata", skip_serializing_if = "Option::is_none")]
    pub files: Option<FileMap>,
    /// Token of the user whose account has the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// The secret from the last REGISTER.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Token>,
}

/// The data of PUBLISH.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The host.
    pub hostname: Name,
    /// The file's name.
    pub fname: FileName,
    /// The file; always published.
    pub entry: Arc<FileEntry>,
}

/// The data of UNPUBLISH.
#[derive(Debug, Clone, Serialize)]
pub struct UnpublishRequest {
    /// The host.
    pub hostname: Name,
    /// The file's name.
    pub fname: FileName,
}

/// The data of REQUEST.
#[derive(Debug, Clone, Serialize)]
pub struct FileRequest {
    /// The file's name.
    pub fname: FileName,
    /// Size in bytes, when looking for duplicates: the response then has only the most similar files, each with its
    /// name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Modification time, when looking for duplicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<Seconds>,
}

/// The data of DISCOVER and UNREGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct HostRequest {
    /// The host.
    pub hostname: Name,
}

/// The data of LIST; both fields count hosts in the order of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ListRequest {
    /// Number of hosts to skip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Maximum number of hosts to return.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Longest wait of CHANGES, seconds.
pub const WAIT_MAX_S: f64 = 25.0;

/// The data of CHANGES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ChangesRequest {
    /// Returns the changes after this number of an earlier response; without it, only the number to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// How long to wait for the first change, seconds, at most [`WAIT_MAX_S`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Seconds>,
}

/// The data of PING.
#[derive(Debug, Clone, Serialize)]
pub struct PingRequest {
    /// The host whose presence is asked for.
    pub hostname: Name,
    /// How busy the sender is; only for people who inspect the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Parses one line.
///
/// # Errors
/// Which field is missing or invalid, and what was expected.
pub fn parse(line: &[u8]) -> Result<RegistryRequest, String> {
    let line = std::str::from_utf8(text::without_bom(line)).map_err(|_| "the message is not UTF-8".to_owned())?;
    // Serde would also accept an array.
    if !line.trim_start().starts_with('{') {
        return Err("expected an object {\"action\":…,\"data\":{…}}".to_owned());
    }
    let RequestEnvelope { action, data } = serde_json::from_str(line)
        .map_err(|error| format!("expected {{\"action\":…,\"data\":{{…}}}}: {}", describe_error(&error)))?;
    let action: String = required("action", action)?;
    match action.as_str() {
        "REGISTER" => register(&fields(data)?).map(|register| RegistryRequest::Register(Box::new(register))),
        "PUBLISH" => publish(data).map(|publish| RegistryRequest::Publish(Box::new(publish))),
        "UNPUBLISH" => {
            let data: RawRequestData<'_> = fields(data)?;
            let (hostname, fname) = (required("hostname", data.hostname)?, required("fname", data.fname)?);
            Ok(RegistryRequest::Unpublish(UnpublishRequest { hostname, fname }))
        }
        "REQUEST" => {
            let data: RawRequestData<'_> = fields(data)?;
            let (fname, size) = (required("fname", data.fname)?, optional_integer("size", data.size)?);
            Ok(RegistryRequest::Request(FileRequest { fname, size, modified: optional("modified", data.modified)? }))
        }
        "DISCOVER" => Ok(RegistryRequest::Discover(hostname(data)?)),
        "LIST" => {
            let data: RawRequestData<'_> = fields(data)?;
            let (offset, limit) = (optional_integer("offset", data.offset)?, optional_integer("limit", data.limit)?);
            Ok(RegistryRequest::List(ListRequest { offset, limit }))
        }
        "CHANGES" => {
            let data: RawRequestData<'_> = fields(data)?;
            let wait: Option<Seconds> = optional("wait", data.wait)?;
            if wait.is_some_and(|wait| !(0.0..=WAIT_MAX_S).contains(&wait.get())) {
                return Err(format!("wait: expected 0 to {WAIT_MAX_S} seconds"));
            }
            Ok(RegistryRequest::Changes(ChangesRequest { since: optional_integer("since", data.since)?, wait }))
        }
        "PING" => {
            let data: RawRequestData<'_> = fields(data)?;
            let state: Option<String> = optional("state", data.state)?;
            if let Some(state) = &state {
                text::check(state, 0, STATE_MAX).map_err(|error| format!("state: {error}"))?;
            }
            Ok(RegistryRequest::Ping(PingRequest { hostname: required("hostname", data.hostname)?, state }))
        }
        "UNREGISTER" => Ok(RegistryRequest::Unregister(hostname(data)?)),
        _ => {
            let known = "REGISTER, PUBLISH, UNPUBLISH, REQUEST, DISCOVER, LIST, CHANGES, PING or UNREGISTER";
            Err(format!("action: expected {known}"))
        }
    }
}

/// Serializes a request as one line, without the line end.
pub fn write(request: &RegistryRequest) -> Vec<u8> {
    fn line(action: &str, data: &impl Serialize) -> Vec<u8> {
        #[derive(Serialize)]
        struct RequestLine<'a, D> {
            action: &'a str,
            data: &'a D,
        }
        // Only strings and numbers: serializing them to memory cannot fail.
        serde_json::to_vec(&RequestLine { action, data }).unwrap_or_default()
    }
    match request {
        RegistryRequest::Register(data) => line("REGISTER", data),
        RegistryRequest::Publish(data) => line("PUBLISH", data),
        RegistryRequest::Unpublish(data) => line("UNPUBLISH", data),
        RegistryRequest::Request(data) => line("REQUEST", data),
        RegistryRequest::Discover(data) => line("DISCOVER", data),
        RegistryRequest::List(data) => line("LIST", data),
        RegistryRequest::Changes(data) => line("CHANGES", data),
        RegistryRequest::Ping(data) => line("PING", data),
        RegistryRequest::Unregister(data) => line("UNREGISTER", data),
    }
}

impl Serialize for PublishRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct FlatPublish<'a> {
            hostname: &'a Name,
            fname: &'a FileName,
            #[serde(flatten)]
            entry: &'a FileEntry,
        }
        FlatPublish { hostname: &self.hostname, fname: &self.fname, entry: &self.entry }.serialize(serializer)
    }
}

type RawField<'a> = Option<&'a RawValue>;

#[derive(Deserialize)]
struct RequestEnvelope<'a> {
    #[serde(borrow)]
    action: RawField<'a>,
    #[serde(borrow)]
    data: RawField<'a>,
}

/// The fields of all actions.
#[derive(Default, Deserialize)]
struct RawRequestData<'a> {
    #[serde(borrow)]
    hostname: RawField<'a>,
    #[serde(borrow)]
    fname: RawField<'a>,
    #[serde(borrow)]
    port: RawField<'a>,
    #[serde(borrow)]
    ip: RawField<'a>,
    #[serde(borrow)]
    display_name: RawField<'a>,
    #[serde(borrow)]
    files_metadata: RawField<'a>,
    #[serde(borrow)]
    token: RawField<'a>,
    #[serde(borrow)]
    resume: RawField<'a>,
    #[serde(borrow)]
    offset: RawField<'a>,
    #[serde(borrow)]
    limit: RawField<'a>,
    #[serde(borrow)]
    state: RawField<'a>,
    #[serde(borrow)]
    size: RawField<'a>,
    #[serde(borrow)]
    modified: RawField<'a>,
    #[serde(borrow)]
    since: RawField<'a>,
    #[serde(borrow)]
    wait: RawField<'a>,
}

/// The fields of a file.
#[derive(Default, Deserialize)]
struct RawFileEntry<'a> {
    #[serde(borrow)]
    size: RawField<'a>,
    #[serde(borrow)]
    modified: RawField<'a>,
    #[serde(borrow)]
    created: RawField<'a>,
    #[serde(borrow)]
    published_at: RawField<'a>,
    #[serde(borrow)]
    is_published: RawField<'a>,
    #[serde(borrow)]
    blake3: RawField<'a>,
    #[serde(borrow)]
    pieces_root: RawField<'a>,
    #[serde(borrow)]
    features: RawField<'a>,
}

/// Splits the data of an action into its fields; absent data has none.
fn fields<'a, T: Default + Deserialize<'a>>(data: RawField<'a>) -> Result<T, String> {
    let Some(data) = data else { return Ok(T::default()) };
    if !data.get().starts_with('{') {
        return Err("data: expected an object".to_owned());
    }
    serde_json::from_str(data.get()).map_err(|error| format!("data: {}", describe_error(&error)))
}

fn hostname(data: RawField<'_>) -> Result<HostRequest, String> {
    Ok(HostRequest { hostname: required("hostname", fields::<RawRequestData<'_>>(data)?.hostname)? })
}

fn register(data: &RawRequestData<'_>) -> Result<RegisterRequest, String> {
    let port = match optional_integer("port", data.port)?.map(u16::try_from) {
        Some(Ok(port)) if port >= PORT_MIN => port,
        Some(_) => return Err(format!("port: expected a whole number from {PORT_MIN} to 65535")),
        None => return Err(missing("port")),
    };
    Ok(RegisterRequest {
        hostname: required("hostname", data.hostname)?,
        port,
        ip: optional::<String>("ip", data.ip)?
            .map(|ip| ip.parse::<IpAddr>().map_err(|_| "ip: expected an IP address".to_owned()))
            .transpose()?
            .map(|ip| ip.to_canonical()),
        display_name: display_name(data.display_name)?,
        files: data.files_metadata.map(files).transpose()?,
        token: secret("token", data.token)?,
        resume: secret("resume", data.resume)?,
    })
}

/// An empty display name counts as absent.
fn display_name(value: RawField<'_>) -> Result<Option<Name>, String> {
    let given = optional::<String>("display_name", value)?.filter(|name| !name.is_empty());
    given.map(|name| Name::new(&name).map_err(|wrong| format!("display_name: {wrong}"))).transpose()
}

/// The file's fields are on the same level as the others.
fn publish(value: RawField<'_>) -> Result<PublishRequest, String> {
    let data: RawRequestData<'_> = fields(value)?;
    let (hostname, fname) = (required("hostname", data.hostname)?, required("fname", data.fname)?);
    let entry = entry(&fields(value)?, true)?;
    Ok(PublishRequest { hostname, fname, entry: Arc::new(entry) })
}

fn secret(field: &str, value: RawField<'_>) -> Result<Option<Token>, String> {
    let Some(secret) = optional::<String>(field, value)? else { return Ok(None) };
    if secret.len() > SECRET_MAX {
        return Err(format!("{field}: expected at most {SECRET_MAX} bytes"));
    }
    Ok(Some(Token::from_text(secret)))
}

/// Parses one file. With PUBLISH, `is_published` is implied.
fn entry(value: &RawFileEntry<'_>, is_published: bool) -> Result<FileEntry, String> {
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

/// Checks a file's feature list. The lists that nearly all files have are shared.
pub(super) fn features(listed: Vec<String>) -> Result<Arc<[Arc<str>]>, String> {
    static NONE: OnceLock<Arc<[Arc<str>]>> = OnceLock::new();
    static RANGE: OnceLock<Arc<[Arc<str>]>> = OnceLock::new();
    if listed.is_empty() {
        return Ok(Arc::clone(NONE.get_or_init(|| Arc::new([]))));
    }
    if matches!(&listed[..], [only] if only == super::RANGE_FEATURE) {
        return Ok(Arc::clone(RANGE.get_or_init(|| Arc::new([super::RANGE_FEATURE.into()]))));
    }
    if listed.len() > FEATURES_MAX {
        return Err(format!("expected at most {FEATURES_MAX}, not {}", listed.len()));
    }
    for feature in &listed {
        text::check(feature, 1, FEATURE_LENGTH_MAX)?;
    }
    Ok(listed.into_iter().map(Arc::from).collect())
}

/// Parses the file list of REGISTER. Parsing stops at the first invalid file and at the limit.
fn files(value: &RawValue) -> Result<FileMap, String> {
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
                let fields: RawFileEntry<'_> =
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

fn required<T: DeserializeOwned>(field: &str, value: RawField<'_>) -> Result<T, String> {
    optional(field, value)?.ok_or_else(|| missing(field))
}

fn optional<T: DeserializeOwned>(field: &str, value: RawField<'_>) -> Result<Option<T>, String> {
    let read = |value: &RawValue| {
        serde_json::from_str(value.get()).map_err(|error| format!("{field}: {}", describe_error(&error)))
    };
    value.map(read).transpose()
}

/// Parses a non-negative integer.
fn optional_integer(field: &str, value: RawField<'_>) -> Result<Option<u64>, String> {
    let read = |value: &RawValue| {
        let number = serde_json::from_str(value.get()).ok().and_then(|IntegerValue(number)| u64::try_from(number).ok());
        number.ok_or_else(|| format!("{field}: expected a whole number"))
    };
    value.map(read).transpose()
}

fn missing(field: &str) -> String {
    format!("{field}: expected, but missing")
}

/// Serde's message without the position, which would count from the start of the field, and with types named as in
/// JSON.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn refused(action: &str, data: Value) -> String {
        parse(json!({"action": action, "data": data}).to_string().as_bytes()).unwrap_err()
    }

    fn with(mut base: Value, field: &str, value: Value) -> Value {
        base[field] = value;
        base
    }

    fn without(mut base: Value, field: &str) -> Value {
        base.as_object_mut().unwrap().remove(field);
        base
    }

    #[test]
    fn every_action_is_read_and_written() {
        let file = json!({"size": 1, "modified": 1_699_267_200.5, "created": 1, "published_at": 2, "is_published": false,
            "blake3": "ab".repeat(32), "pieces_root": "cd".repeat(32), "features": ["range", "x"]});
        let bare = json!({"size": 0, "modified": 0, "is_published": true});
        let published =
            without(with(with(file.clone(), "hostname", json!("ann")), "fname", json!("a")), "is_published");
        for (action, data) in [
            ("REGISTER", json!({"hostname": "ann", "port": 1024})),
            (
                "REGISTER",
                json!({"hostname": "ü".repeat(64), "port": 65535, "ip": "2001:db8::1", "display_name": "Ann",
                    "files_metadata": {"a.txt": file, "b": bare}, "token": "t", "resume": "r"}),
            ),
            ("PUBLISH", with(published, "is_published", json!(true))),
            ("PUBLISH", json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2, "is_published": true})),
            ("UNPUBLISH", json!({"hostname": "ann", "fname": "a"})),
            ("REQUEST", json!({"fname": "a"})),
            ("DISCOVER", json!({"hostname": "ann"})),
            ("LIST", json!({"offset": 1, "limit": 0})),
            ("LIST", json!({})),
            ("PING", json!({"hostname": "ann", "state": "busy"})),
            ("UNREGISTER", json!({"hostname": "ann"})),
        ] {
            let line = json!({"action": action, "data": data});
            let read = parse(line.to_string().as_bytes()).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&write(&read)).unwrap(), line);
            // Unknown fields are skipped, and null counts as absent.
            let more =
                with(with(line, "x", json!([1])), "data", with(with(data, "y", json!({})), "state", json!(null)));
            parse(more.to_string().as_bytes()).unwrap();
        }
        for line in [r#"{"action":"LIST"}"#, r#" {"action":"LIST","data":null} "#, r#"{"data":{},"action":"LIST"}"#] {
            assert!(
                matches!(parse(line.as_bytes()), Ok(RegistryRequest::List(list)) if list == ListRequest::default())
            );
        }
    }

    #[test]
    fn errors_name_the_field() {
        let register = json!({"hostname": "ann", "port": 6001});
        let file = json!({"size": 1, "modified": 2, "is_published": true});
        let publish = json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2});
        for (field, action, data) in [
            ("hostname", "REGISTER", without(register.clone(), "hostname")),
            ("hostname", "REGISTER", with(register.clone(), "hostname", json!(""))),
            ("hostname", "REGISTER", with(register.clone(), "hostname", json!("x".repeat(65)))),
            ("hostname", "REGISTER", with(register.clone(), "hostname", json!("a\nb"))),
            ("hostname", "REGISTER", with(register.clone(), "hostname", json!(5))),
            ("port", "REGISTER", without(register.clone(), "port")),
            ("port", "REGISTER", with(register.clone(), "port", json!(1023))),
            ("port", "REGISTER", with(register.clone(), "port", json!(65536))),
            ("port", "REGISTER", with(register.clone(), "port", json!("6001"))),
            ("ip", "REGISTER", with(register.clone(), "ip", json!("localhost"))),
            ("ip", "REGISTER", with(register.clone(), "ip", json!(1))),
            ("display_name", "REGISTER", with(register.clone(), "display_name", json!("a\u{7}"))),
            ("token", "REGISTER", with(register.clone(), "token", json!(1))),
            ("token", "REGISTER", with(register.clone(), "token", json!("x".repeat(10_000)))),
            ("resume", "REGISTER", with(register.clone(), "resume", json!({}))),
            ("files_metadata", "REGISTER", with(register.clone(), "files_metadata", json!([]))),
            ("files_metadata: a", "REGISTER", with(register.clone(), "files_metadata", json!({"a": 1}))),
            ("files_metadata: a/b", "REGISTER", with(register.clone(), "files_metadata", json!({"a/b": file}))),
            ("fname", "PUBLISH", without(publish.clone(), "fname")),
            ("fname", "PUBLISH", with(publish.clone(), "fname", json!("../a"))),
            ("fname", "UNPUBLISH", json!({"hostname": "ann"})),
            ("fname", "REQUEST", json!({"fname": "x".repeat(256)})),
            ("fname", "REQUEST", json!({})),
            ("size", "PUBLISH", without(publish.clone(), "size")),
            ("size", "PUBLISH", with(publish.clone(), "size", json!(-1))),
            ("size", "PUBLISH", with(publish.clone(), "size", json!(1.5))),
            ("size", "PUBLISH", with(publish.clone(), "size", json!(FILE_SIZE_MAX + 1))),
            ("modified", "PUBLISH", without(publish.clone(), "modified")),
            ("modified", "PUBLISH", with(publish.clone(), "modified", json!("2026-01-01"))),
            ("created", "PUBLISH", with(publish.clone(), "created", json!(1e300))),
            ("published_at", "PUBLISH", with(publish.clone(), "published_at", json!([]))),
            ("blake3", "PUBLISH", with(publish.clone(), "blake3", json!("AB".repeat(32)))),
            ("pieces_root", "PUBLISH", with(publish.clone(), "pieces_root", json!("ab"))),
            ("features", "PUBLISH", with(publish.clone(), "features", json!("range"))),
            ("features", "PUBLISH", with(publish.clone(), "features", json!(vec!["x"; 17]))),
            ("features", "PUBLISH", with(publish.clone(), "features", json!(["x".repeat(33)]))),
            ("hostname", "DISCOVER", json!({})),
            ("hostname", "PING", json!({"state": "idle"})),
            ("state", "PING", json!({"hostname": "ann", "state": 1})),
            ("state", "PING", json!({"hostname": "ann", "state": "x".repeat(33)})),
            ("hostname", "UNREGISTER", json!({"hostname": [1]})),
            ("offset", "LIST", json!({"offset": -1})),
            ("limit", "LIST", json!({"limit": "all"})),
            ("action", "TELEPORT", json!({})),
            ("data", "LIST", json!([])),
            ("data", "LIST", json!("x")),
        ] {
            let reason = refused(action, data.clone());
            assert!(reason.starts_with(&format!("{field}: ")), "{action} {data}: {reason}");
            assert!(reason.contains("expected"), "{action} {data}: {reason}");
        }
        for field in ["size", "modified", "is_published"] {
            let files = json!({"a": without(file.clone(), field)});
            let reason = refused("REGISTER", with(register.clone(), "files_metadata", files));
            assert_eq!(reason, format!("files_metadata: a: {field}: expected, but missing"));
        }
        assert_eq!(parse(br#"{"data":{}}"#).unwrap_err(), "action: expected, but missing");
        assert_eq!(parse(b"\xff").unwrap_err(), "the message is not UTF-8");
        let twice = br#"{"action":"REGISTER","data":{"hostname":"a","port":6001,"port":6002}}"#;
        assert!(parse(twice).unwrap_err().contains("port"));
        let twice = br#"{"action":"REGISTER","data":{"hostname":"a","port":6001,"files_metadata":
            {"a":{"size":1,"modified":2,"is_published":true},"a":{"size":1,"modified":2,"is_published":true}}}}"#;
        assert_eq!(parse(twice).unwrap_err(), "files_metadata: a: expected once");
    }

    #[test]
    fn what_was_said_is_not_said_back_at_length() {
        let long = "x".repeat(1 << 20);
        let reason =
            refused("REGISTER", json!({"hostname": "ann", "port": 6001, "files_metadata": {long.clone(): long}}));
        assert!(reason.len() < 1000, "{}", reason.len());
        let reason = refused("PUBLISH", json!({"hostname": "ann", "fname": "a", "size": 1, "modified": long}));
        assert!(reason.starts_with("modified: ") && reason.len() < 1000, "{}", reason.len());
        let deep = format!("{{\"action\":{}", "[".repeat(1 << 20));
        assert!(parse(deep.as_bytes()).unwrap_err().starts_with("expected {"));
    }

    #[test]
    fn a_long_name_leaves_room_for_what_was_expected() {
        for name in ["x".repeat(256), "é".repeat(300), "x".repeat(1 << 20)] {
            let data = json!({"hostname": "a", "port": 6001, "files_metadata": {name: {}}});
            let reason = refused("REGISTER", data);
            assert!(reason.starts_with("files_metadata: ") && reason.contains("expected 1 to 255 bytes"), "{reason}");
        }
    }

    #[test]
    fn types_are_called_as_in_json() {
        let publish = |field: &str, value| {
            let mut data = json!({"hostname": "ann", "fname": "a", "size": 1, "modified": 2});
            data[field] = value;
            refused("PUBLISH", data)
        };
        assert_eq!(publish("modified", json!("x")), r#"modified: invalid type: string "x", expected a number"#);
        assert_eq!(publish("features", json!("range")), r#"features: invalid type: string "range", expected a list"#);
    }

    #[test]
    fn only_objects_are_requests() {
        for other in [r#"["UNREGISTER",{"hostname":"ann"}]"#, "[]", "7", r#""PING""#, "null"] {
            assert_eq!(
                parse(other.as_bytes()).unwrap_err(),
                r#"expected an object {"action":…,"data":{…}}"#,
                "{other}"
            );
        }
        assert!(parse(br#"  {"action":"UNREGISTER","data":{"hostname":"ann"}} "#).is_ok());
        assert_eq!(parse(br#"{"action":"UNREGISTER","data":["ann"]}"#).unwrap_err(), "data: expected an object");
    }

    #[test]
    fn a_host_may_have_so_many_files() {
        let files = |count: usize| {
            let files: Vec<String> =
                (0..count).map(|n| format!(r#""{n}":{{"size":1,"modified":2,"is_published":true}}"#)).collect();
            let list = files.join(",");
            parse(
                format!(r#"{{"action":"REGISTER","data":{{"hostname":"a","port":6001,"files_metadata":{{{list}}}}}}}"#)
                    .as_bytes(),
            )
        };
        assert!(
            matches!(files(FILES_MAX), Ok(RegistryRequest::Register(register)) if register.files.as_ref().unwrap().len() == FILES_MAX)
        );
        assert_eq!(files(FILES_MAX + 1).unwrap_err(), "files_metadata: expected at most 100000 files");
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn json_of_any_kind_never_panics(
            action in "REGISTER|PUBLISH|UNPUBLISH|REQUEST|DISCOVER|LIST|PING|UNREGISTER|x",
            fields in prop::collection::vec((
                "hostname|fname|port|ip|display_name|files_metadata|token|resume|offset|limit|state|size|modified|features",
                "[\\[\\]{}:,\"0-9a-c\\\\ .eE+-]{0,20}",
            ), 0..5),
        ) {
            let fields: Vec<String> = fields.iter().map(|(field, value)| format!("\"{field}\":{value}")).collect();
            let line = format!("{{\"action\":\"{action}\",\"data\":{{{}}}}}", fields.join(","));
            if let Ok(request) = parse(line.as_bytes()) {
                let written = write(&request);
                prop_assert_eq!(write(&parse(&written).unwrap()), written);
            }
        }
    }
}
