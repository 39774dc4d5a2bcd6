//! What clients ask the registry: one JSON object a line, read into a [`Request`] or refused with a reason
//! that names the field.
//!
//! Fields are taken apart as raw JSON first and read one by one, so that each error can say which one it
//! was; what is not known is skipped and costs nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Digest, FEATURE_LENGTH_MAX, FEATURES_MAX, FILE_SIZE_MAX, FileEntry, FileName, PORT_MIN, Seconds};
use crate::model::number::Whole;
use crate::model::{Name, Token, text};

/// Most bytes of a request.
pub const REQUEST_MAX: usize = 16 << 20;
/// Most files of one host.
pub const FILES_MAX: usize = 100_000;
/// Most characters of a state that PING tells.
const STATE_MAX: usize = 32;
/// Most bytes of a token or secret; what is longer is none of ours.
pub(in crate::share) const SECRET_MAX: usize = 8 * 1024;
/// Most characters of a reason that quotes the sender, and of a file's name in it: there is room for what was expected.
const SAID_SHOWN: usize = 200;
const NAME_SHOWN: usize = 80;

/// A host's files.
pub type Files = BTreeMap<FileName, Arc<FileEntry>>;

/// What is asked of the registry.
#[derive(Debug)]
pub enum Request {
    /// A host is there.
    Register(Box<Register>),
    /// A host has a file.
    Publish(Box<Publish>),
    /// A file is not to be shown any more.
    Unpublish(Unpublish),
    /// Who has a file of that name?
    Request(Wanted),
    /// Which files has that host, and where is it?
    Discover(Hostname),
    /// Who is there, with what?
    List(List),
    /// What has changed since?
    Changes(Changes),
    /// Is that host there?
    Ping(Ping),
    /// A host leaves.
    Unregister(Hostname),
}

/// The data of REGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct Register {
    /// Whose files they are. Whether it can be seen is for whoever knows the accounts to check: one of an earlier
    /// version may bear any name.
    pub hostname: Name,
    /// Where the files can be had.
    pub port: u16,
    /// At which address, if not the connection's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The name for people; without it the hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Name>,
    /// All files; without it none, or with a valid `resume` those of before.
    #[serde(rename = "files_metadata", skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// That of the user account whose name the hostname is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// What the last REGISTER answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Token>,
}

/// The data of PUBLISH.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Who has it.
    pub hostname: Name,
    /// Its name.
    pub fname: FileName,
    /// What it is; always published.
    pub entry: Arc<FileEntry>,
}

/// The data of UNPUBLISH.
#[derive(Debug, Clone, Serialize)]
pub struct Unpublish {
    /// Who has it.
    pub hostname: Name,
    /// Its name.
    pub fname: FileName,
}

/// The data of REQUEST.
#[derive(Debug, Clone, Serialize)]
pub struct Wanted {
    /// The file's name.
    pub fname: FileName,
    /// Who looks for duplicates of a file of that size, bytes, as well; the answer has the most alike then, each with
    /// its name, and not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// And of that time of change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified: Option<Seconds>,
}

/// The data of DISCOVER and UNREGISTER.
#[derive(Debug, Clone, Serialize)]
pub struct Hostname {
    /// Which host.
    pub hostname: Name,
}

/// The data of LIST; both count hostnames, in the order of the names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct List {
    /// How many are passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many are shown at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Longest that CHANGES may wait, seconds.
pub const WAIT_MAX_S: f64 = 25.0;

/// The data of CHANGES.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Changes {
    /// What came behind this number, of an earlier answer; without it, how to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// How long the first change is waited for, seconds, at most [`WAIT_MAX_S`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Seconds>,
}

/// The data of PING.
#[derive(Debug, Clone, Serialize)]
pub struct Ping {
    /// Whose presence is asked for.
    pub hostname: Name,
    /// How busy the sender is; for people who look at the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Reads one line.
///
/// # Errors
/// The reason: which field is missing or wrong, and what was expected.
pub fn parse(line: &[u8]) -> Result<Request, String> {
    let line = std::str::from_utf8(text::without_bom(line)).map_err(|_| "the message is not UTF-8".to_owned())?;
    // A list would do for serde.
    if !line.trim_start().starts_with('{') {
        return Err("expected an object {\"action\":…,\"data\":{…}}".to_owned());
    }
    let Envelope { action, data } = serde_json::from_str(line)
        .map_err(|error| format!("expected {{\"action\":…,\"data\":{{…}}}}: {}", plain(&error)))?;
    let action: String = required("action", action)?;
    match action.as_str() {
        "REGISTER" => register(&fields(data)?).map(|register| Request::Register(Box::new(register))),
        "PUBLISH" => publish(data).map(|publish| Request::Publish(Box::new(publish))),
        "UNPUBLISH" => {
            let data: Data<'_> = fields(data)?;
            let (hostname, fname) = (required("hostname", data.hostname)?, required("fname", data.fname)?);
            Ok(Request::Unpublish(Unpublish { hostname, fname }))
        }
        "REQUEST" => {
            let data: Data<'_> = fields(data)?;
            let (fname, size) = (required("fname", data.fname)?, whole("size", data.size)?);
            Ok(Request::Request(Wanted { fname, size, modified: optional("modified", data.modified)? }))
        }
        "DISCOVER" => Ok(Request::Discover(hostname(data)?)),
        "LIST" => {
            let data: Data<'_> = fields(data)?;
            let (offset, limit) = (whole("offset", data.offset)?, whole("limit", data.limit)?);
            Ok(Request::List(List { offset, limit }))
        }
        "CHANGES" => {
            let data: Data<'_> = fields(data)?;
            let wait: Option<Seconds> = optional("wait", data.wait)?;
            if wait.is_some_and(|wait| !(0.0..=WAIT_MAX_S).contains(&wait.get())) {
                return Err(format!("wait: expected 0 to {WAIT_MAX_S} seconds"));
            }
            Ok(Request::Changes(Changes { since: whole("since", data.since)?, wait }))
        }
        "PING" => {
            let data: Data<'_> = fields(data)?;
            let state: Option<String> = optional("state", data.state)?;
            if let Some(state) = &state {
                text::check(state, 0, STATE_MAX).map_err(|error| format!("state: {error}"))?;
            }
            Ok(Request::Ping(Ping { hostname: required("hostname", data.hostname)?, state }))
        }
        "UNREGISTER" => Ok(Request::Unregister(hostname(data)?)),
        _ => {
            let known = "REGISTER, PUBLISH, UNPUBLISH, REQUEST, DISCOVER, LIST, CHANGES, PING or UNREGISTER";
            Err(format!("action: expected {known}"))
        }
    }
}

/// Writes one line, without its end.
pub fn write(request: &Request) -> Vec<u8> {
    fn line(action: &str, data: &impl Serialize) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a, D> {
            action: &'a str,
            data: &'a D,
        }
        // Texts and numbers alone: writing them to memory cannot fail.
        serde_json::to_vec(&Line { action, data }).unwrap_or_default()
    }
    match request {
        Request::Register(data) => line("REGISTER", data),
        Request::Publish(data) => line("PUBLISH", data),
        Request::Unpublish(data) => line("UNPUBLISH", data),
        Request::Request(data) => line("REQUEST", data),
        Request::Discover(data) => line("DISCOVER", data),
        Request::List(data) => line("LIST", data),
        Request::Changes(data) => line("CHANGES", data),
        Request::Ping(data) => line("PING", data),
        Request::Unregister(data) => line("UNREGISTER", data),
    }
}

impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            hostname: &'a Name,
            fname: &'a FileName,
            #[serde(flatten)]
            entry: &'a FileEntry,
        }
        Flat { hostname: &self.hostname, fname: &self.fname, entry: &self.entry }.serialize(serializer)
    }
}

type Raw<'a> = Option<&'a RawValue>;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    action: Raw<'a>,
    #[serde(borrow)]
    data: Raw<'a>,
}

/// Every field that some action knows.
#[derive(Default, Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    hostname: Raw<'a>,
    #[serde(borrow)]
    fname: Raw<'a>,
    #[serde(borrow)]
    port: Raw<'a>,
    #[serde(borrow)]
    ip: Raw<'a>,
    #[serde(borrow)]
    display_name: Raw<'a>,
    #[serde(borrow)]
    files_metadata: Raw<'a>,
    #[serde(borrow)]
    token: Raw<'a>,
    #[serde(borrow)]
    resume: Raw<'a>,
    #[serde(borrow)]
    offset: Raw<'a>,
    #[serde(borrow)]
    limit: Raw<'a>,
    #[serde(borrow)]
    state: Raw<'a>,
    #[serde(borrow)]
    size: Raw<'a>,
    #[serde(borrow)]
    modified: Raw<'a>,
    #[serde(borrow)]
    since: Raw<'a>,
    #[serde(borrow)]
    wait: Raw<'a>,
}

/// Every field of a file.
#[derive(Default, Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    size: Raw<'a>,
    #[serde(borrow)]
    modified: Raw<'a>,
    #[serde(borrow)]
    created: Raw<'a>,
    #[serde(borrow)]
    published_at: Raw<'a>,
    #[serde(borrow)]
    is_published: Raw<'a>,
    #[serde(borrow)]
    blake3: Raw<'a>,
    #[serde(borrow)]
    pieces_root: Raw<'a>,
    #[serde(borrow)]
    features: Raw<'a>,
}

/// The data of an action; without it, no field.
fn fields<'a, T: Default + Deserialize<'a>>(data: Raw<'a>) -> Result<T, String> {
    let Some(data) = data else { return Ok(T::default()) };
    if !data.get().starts_with('{') {
        return Err("data: expected an object".to_owned());
    }
    serde_json::from_str(data.get()).map_err(|error| format!("data: {}", plain(&error)))
}

fn hostname(data: Raw<'_>) -> Result<Hostname, String> {
    Ok(Hostname { hostname: required("hostname", fields::<Data<'_>>(data)?.hostname)? })
}

fn register(data: &Data<'_>) -> Result<Register, String> {
    let port = match whole("port", data.port)?.map(u16::try_from) {
        Some(Ok(port)) if port >= PORT_MIN => port,
        Some(_) => return Err(format!("port: expected a whole number from {PORT_MIN} to 65535")),
        None => return Err(missing("port")),
    };
    Ok(Register {
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

/// An empty one counts as none.
fn display_name(raw: Raw<'_>) -> Result<Option<Name>, String> {
    let given = optional::<String>("display_name", raw)?.filter(|name| !name.is_empty());
    given.map(|name| Name::new(&name).map_err(|wrong| format!("display_name: {wrong}"))).transpose()
}

/// The file's fields stand beside the others.
fn publish(raw: Raw<'_>) -> Result<Publish, String> {
    let data: Data<'_> = fields(raw)?;
    let (hostname, fname) = (required("hostname", data.hostname)?, required("fname", data.fname)?);
    let entry = entry(&fields(raw)?, true)?;
    Ok(Publish { hostname, fname, entry: Arc::new(entry) })
}

fn secret(field: &str, raw: Raw<'_>) -> Result<Option<Token>, String> {
    let Some(secret) = optional::<String>(field, raw)? else { return Ok(None) };
    if secret.len() > SECRET_MAX {
        return Err(format!("{field}: expected at most {SECRET_MAX} bytes"));
    }
    Ok(Some(Token::from_text(secret)))
}

/// One file's fields. PUBLISH says by itself that the file is published.
fn entry(raw: &Entry<'_>, is_published: bool) -> Result<FileEntry, String> {
    let size = whole("size", raw.size)?.ok_or_else(|| missing("size"))?;
    if size > FILE_SIZE_MAX {
        return Err(format!("size: expected at most {FILE_SIZE_MAX} bytes"));
    }
    Ok(FileEntry {
        size,
        modified: required("modified", raw.modified)?,
        created: optional("created", raw.created)?,
        published_at: optional::<Seconds>("published_at", raw.published_at)?,
        is_published: is_published || required("is_published", raw.is_published)?,
        blake3: optional::<Digest>("blake3", raw.blake3)?,
        pieces_root: optional::<Digest>("pieces_root", raw.pieces_root)?,
        features: features(optional::<Vec<String>>("features", raw.features)?.unwrap_or_default())
            .map_err(|error| format!("features: {error}"))?,
    })
}

/// Checks what a file lists. The lists that nearly all files have are shared.
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

/// The whole list of REGISTER. Reading ends at the first file that is wrong, and at the bound.
fn files(raw: &RawValue) -> Result<Files, String> {
    struct All;

    impl<'de> Visitor<'de> for All {
        type Value = Files;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of files")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
            let mut files = Files::new();
            while let Some(name) = map.next_key::<String>()? {
                let said = |error: String| A::Error::custom(format!("{}: {error}", short(&name, NAME_SHOWN)));
                let fname = FileName::new(&name).map_err(said)?;
                let raw: &RawValue = map.next_value()?;
                if !raw.get().starts_with('{') {
                    return Err(said("expected an object".to_owned()));
                }
                let fields: Entry<'_> = serde_json::from_str(raw.get()).map_err(|error| said(plain(&error)))?;
                let entry = entry(&fields, false).map_err(said)?;
                if files.insert(fname, Arc::new(entry)).is_some() {
                    return Err(said("expected once".to_owned()));
                }
                if files.len() > FILES_MAX {
                    return Err(A::Error::custom(format!("expected at most {FILES_MAX} files")));
                }
            }
            Ok(files)
        }
    }

    let mut source = serde_json::Deserializer::from_str(raw.get());
    source.deserialize_map(All).map_err(|error| format!("files_metadata: {}", plain(&error)))
}

fn required<T: DeserializeOwned>(field: &str, raw: Raw<'_>) -> Result<T, String> {
    optional(field, raw)?.ok_or_else(|| missing(field))
}

fn optional<T: DeserializeOwned>(field: &str, raw: Raw<'_>) -> Result<Option<T>, String> {
    let read = |raw: &RawValue| serde_json::from_str(raw.get()).map_err(|error| format!("{field}: {}", plain(&error)));
    raw.map(read).transpose()
}

/// A number that counts something.
fn whole(field: &str, raw: Raw<'_>) -> Result<Option<u64>, String> {
    let read = |raw: &RawValue| {
        let number = serde_json::from_str(raw.get()).ok().and_then(|Whole(number)| u64::try_from(number).ok());
        number.ok_or_else(|| format!("{field}: expected a whole number"))
    };
    raw.map(read).transpose()
}

fn missing(field: &str) -> String {
    format!("{field}: expected, but missing")
}

/// What serde says, without its place: that counts from where the field begins. Types by their names in JSON.
fn plain(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let said = short(said.rsplit_once(" at line ").map_or(&*said, |(what, _place)| what), SAID_SHOWN);
    said.replace("expected f64", "expected a number").replace("expected a sequence", "expected a list")
}

/// Its beginning, where it may be as long as a message.
fn short(said: &str, chars: usize) -> &str {
    said.char_indices().nth(chars).map_or(said, |(end, _)| &said[..end])
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
            // What is not known is skipped, and null is as good as nothing.
            let more =
                with(with(line, "x", json!([1])), "data", with(with(data, "y", json!({})), "state", json!(null)));
            parse(more.to_string().as_bytes()).unwrap();
        }
        for line in [r#"{"action":"LIST"}"#, r#" {"action":"LIST","data":null} "#, r#"{"data":{},"action":"LIST"}"#] {
            assert!(matches!(parse(line.as_bytes()), Ok(Request::List(list)) if list == List::default()));
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
            matches!(files(FILES_MAX), Ok(Request::Register(register)) if register.files.as_ref().unwrap().len() == FILES_MAX)
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
