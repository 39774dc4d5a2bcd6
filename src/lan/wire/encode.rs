//! Encoding of messages into datagrams that [`decode`](super::decode()) accepts.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::validation::{self, LINE_SEPARATOR};
use super::{DATAGRAM_MAX, Discovery, Dm, Message, MessageStamp, PeerList, Post, Profile, UserId, WireError};

/// Encodes a message.
///
/// # Errors
/// [`WireError::Malformed`] names the key whose value breaks a rule or makes the datagram too large. Nothing is
/// truncated.
pub fn encode(message: &Message) -> Result<Vec<u8>, WireError> {
    let mut writer = DatagramWriter::begin(message.type_name());
    match message {
        Message::Discovery(discovery) => writer.discovery(discovery)?,
        Message::Post(Post { user_id, content, stamp }) => {
            writer.user_id("USER_ID", user_id)?;
            writer.text("CONTENT", content, validation::check_content)?;
            writer.stamp(stamp)?;
        }
        Message::Dm(Dm { from, to, content, stamp }) => {
            writer.user_id("FROM", from)?;
            writer.user_id("TO", to)?;
            writer.text("CONTENT", content, validation::check_content)?;
            writer.stamp(stamp)?;
        }
        Message::Profile(profile) => writer.profile(profile)?,
        Message::PeerListRequest { from, stamp } => {
            writer.user_id("FROM", from)?;
            writer.stamp(stamp)?;
        }
        Message::PeerListResponse(list) => writer.peer_list(list)?,
        Message::Ack { message_id } => {
            writer.checked("MESSAGE_ID", message_id, validation::check_id)?;
            writer.line("STATUS", "RECEIVED");
        }
    }
    Ok(writer.finish()?)
}

impl PeerList {
    /// Removes peers from the end until the rest fits into a datagram. Returns how many were removed.
    pub fn truncate_to_fit(&mut self) -> usize {
        let empty = PeerList { from: self.from.clone(), peers: Vec::new(), stamp: self.stamp.clone() };
        // If this fails, encoding the whole list fails with the same error.
        let Ok(frame) = encode(&Message::PeerListResponse(empty)) else { return 0 };
        // COUNT has at most five digits, one of which is in the frame.
        let mut room = DATAGRAM_MAX.saturating_sub(frame.len() + 4);
        let fitting = self.peers.iter().take_while(|(id, address)| {
            let size = json_text(&id.to_string()).len() + 1 + json_address(*address).len() + 1;
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        });
        let fitting = fitting.count();
        let dropped = self.peers.len() - fitting;
        self.peers.truncate(fitting);
        dropped
    }
}

struct DatagramWriter {
    text: String,
    /// Key and length of the longest value, to be named if the datagram is too large.
    longest: (&'static str, usize),
}

impl DatagramWriter {
    fn begin(type_name: &str) -> DatagramWriter {
        let mut writer = DatagramWriter { text: String::with_capacity(256), longest: ("TYPE", 0) };
        writer.line("TYPE", type_name);
        writer
    }

    /// Writes a line. The value must not contain line breaks.
    fn line(&mut self, key: &'static str, value: &str) {
        if value.len() > self.longest.1 {
            self.longest = (key, value.len());
        }
        self.text.push_str(key);
        self.text.push(':');
        // Decoding drops one space after the colon: this one instead of the value's own.
        if value.starts_with(' ') {
            self.text.push(' ');
        }
        self.text.push_str(value);
        self.text.push('\n');
    }

    fn checked(
        &mut self,
        key: &'static str,
        value: &str,
        validate: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        validate(value).map_err(|problem| format!("{key}: {problem}"))?;
        self.line(key, value);
        Ok(())
    }

    /// Writes a text with its line breaks encoded; `validate` may forbid them.
    fn text(
        &mut self,
        key: &'static str,
        value: &str,
        validate: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        self.checked(key, &with_line_separators(value), validate)
    }

    fn user_id(&mut self, key: &'static str, id: &UserId) -> Result<(), String> {
        check_user_id(id).map_err(|problem| format!("{key}: {problem}"))?;
        self.line(key, &id.to_string());
        Ok(())
    }

    fn stamp(&mut self, stamp: &MessageStamp) -> Result<(), String> {
        if let Some(timestamp) = stamp.timestamp {
            self.line("TIMESTAMP", &timestamp.to_string());
        }
        stamp.message_id.as_ref().map_or(Ok(()), |id| self.checked("MESSAGE_ID", id, validation::check_id))
    }

    fn discovery(&mut self, discovery: &Discovery) -> Result<(), String> {
        self.user_id("USER_ID", &discovery.user_id)?;
        let port = validation::check_port(discovery.port).map_err(|problem| format!("PORT: {problem}"))?;
        self.line("PORT", &port.to_string());
        self.stamp(&discovery.stamp)?;
        if let Some(instance) = &discovery.instance {
            self.checked("INSTANCE", instance, validation::check_id)?;
        }
        let features = [("ack", discovery.features.ack), ("probe", discovery.features.probe)];
        let features: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        if !features.is_empty() {
            self.line("FEATURES", &features.join(","));
        }
        if !discovery.serves.is_empty() {
            self.line("SERVES", &services(&discovery.serves).map_err(|problem| format!("SERVES: {problem}"))?);
        }
        let cert = discovery.cert_sha256.as_ref();
        cert.map_or(Ok(()), |cert| self.checked("CERT_SHA256", cert, validation::check_fingerprint))
    }

    fn profile(&mut self, profile: &Profile) -> Result<(), String> {
        self.user_id("USER_ID", &profile.user_id)?;
        self.text("DISPLAY_NAME", &profile.display_name, validation::check_display_name)?;
        self.text("STATUS", &profile.status, validation::check_status)?;
        if let Some(avatar) = &profile.avatar {
            validation::check_avatar_size(avatar.bytes.len()).map_err(|problem| format!("AVATAR_DATA: {problem}"))?;
            self.line("AVATAR_TYPE", avatar.kind.mime());
            self.line("AVATAR_ENCODING", "base64");
            self.line("AVATAR_DATA", &STANDARD.encode(&avatar.bytes));
        }
        self.stamp(&profile.stamp)
    }

    fn peer_list(&mut self, list: &PeerList) -> Result<(), String> {
        self.user_id("FROM", &list.from)?;
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        for (index, (id, address)) in list.peers.iter().enumerate() {
            check_user_id(id).map_err(|problem| format!("PEERS: entry {}: {problem}", index + 1))?;
            ids.push(json_text(&id.to_string()));
            let checked = address.map(validation::check_address).transpose();
            checked.map_err(|problem| format!("ADDRS: entry {}: {problem}", index + 1))?;
            addresses.push(json_address(*address));
        }
        self.line("PEERS", &format!("[{}]", ids.join(",")));
        self.line("COUNT", &ids.len().to_string());
        // Omitted if no address is known, as older programs do.
        if list.peers.is_empty() || list.peers.iter().any(|(_, address)| address.is_some()) {
            self.line("ADDRS", &format!("[{}]", addresses.join(",")));
        }
        self.stamp(&list.stamp)
    }

    fn finish(mut self) -> Result<Vec<u8>, String> {
        self.text.push('\n');
        if self.text.len() > DATAGRAM_MAX {
            let (key, length) = (self.longest.0, self.text.len());
            return Err(format!("{key}: too long: the message has {length} bytes, expected at most {DATAGRAM_MAX}"));
        }
        Ok(self.text.into_bytes())
    }
}

/// Replaces line breaks (CR LF, CR or LF) by U+2028.
fn with_line_separators(text: &str) -> Cow<'_, str> {
    if !text.contains(['\r', '\n']) {
        return Cow::Borrowed(text);
    }
    let mut with_line_separators = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\r' | '\n' => {
                if c == '\r' {
                    characters.next_if_eq(&'\n');
                }
                with_line_separators.push(LINE_SEPARATOR);
            }
            other => with_line_separators.push(other),
        }
    }
    Cow::Owned(with_line_separators)
}

/// Stricter than [`Name`](crate::model::Name): a line separator is not allowed in a USER_ID.
fn check_user_id(id: &UserId) -> Result<(), String> {
    validation::check_printable(id.name.as_str(), 1, crate::model::text::NAME_MAX)
        .map_err(|problem| format!("name: {problem}"))
}

fn services(serves: &[(String, u16)]) -> Result<String, String> {
    validation::check_service_count(serves.len())?;
    let mut text = String::new();
    for (index, (name, port)) in serves.iter().enumerate() {
        validation::check_service(name)?;
        if serves[..index].iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        let port = validation::check_port(*port).map_err(|problem| format!("{name}: {problem}"))?;
        // Writing into a String cannot fail.
        let _ = write!(text, "{}{name}={port}", if index == 0 { "" } else { "," });
    }
    Ok(text)
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "null".to_owned(), |address| json_text(&address.to_string()))
}
