//! Writing: a message into a datagram that [`read`](super::read) takes, or the reason why there is none.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::rules::{self, LINE_SEPARATOR};
use super::{DATAGRAM_MAX, Discovery, Dm, Message, PeerList, Post, Profile, Refused, Stamp, UserId};

/// Writes one datagram.
///
/// # Errors
/// [`Refused::Malformed`] names the key whose value breaks a rule, or takes more room than there is:
/// nothing is ever cut.
pub fn write(message: &Message) -> Result<Vec<u8>, Refused> {
    let mut lines = Lines::begin(message.type_name());
    match message {
        Message::Discovery(discovery) => lines.discovery(discovery)?,
        Message::Post(Post { user_id, content, stamp }) => {
            lines.user_id("USER_ID", user_id)?;
            lines.text("CONTENT", content, rules::check_content)?;
            lines.stamp(stamp)?;
        }
        Message::Dm(Dm { from, to, content, stamp }) => {
            lines.user_id("FROM", from)?;
            lines.user_id("TO", to)?;
            lines.text("CONTENT", content, rules::check_content)?;
            lines.stamp(stamp)?;
        }
        Message::Profile(profile) => lines.profile(profile)?,
        Message::PeerListRequest { from, stamp } => {
            lines.user_id("FROM", from)?;
            lines.stamp(stamp)?;
        }
        Message::PeerListResponse(list) => lines.peer_list(list)?,
        Message::Ack { message_id } => {
            lines.checked("MESSAGE_ID", message_id, rules::check_id)?;
            lines.line("STATUS", "RECEIVED");
        }
    }
    Ok(lines.finish()?)
}

impl PeerList {
    /// Drops the last peers until the rest fits a datagram; tells how many were dropped.
    pub fn fit(&mut self) -> usize {
        let empty = PeerList { from: self.from.clone(), peers: Vec::new(), stamp: self.stamp.clone() };
        // What breaks a rule breaks it in the whole list too, and will be told of there.
        let Ok(frame) = write(&Message::PeerListResponse(empty)) else { return 0 };
        // COUNT has at most five digits, of which the frame has one.
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

struct Lines {
    text: String,
    /// The longest line, to be named when there is no room for all.
    longest: (&'static str, usize),
}

impl Lines {
    fn begin(type_name: &str) -> Lines {
        let mut lines = Lines { text: String::with_capacity(256), longest: ("TYPE", 0) };
        lines.line("TYPE", type_name);
        lines
    }

    /// One line; the value must have no line breaks.
    fn line(&mut self, key: &'static str, value: &str) {
        if value.len() > self.longest.1 {
            self.longest = (key, value.len());
        }
        self.text.push_str(key);
        self.text.push(':');
        // The reader drops one space: this one, instead of the value's own.
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
        rule: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        rule(value).map_err(|wrong| format!("{key}: {wrong}"))?;
        self.line(key, value);
        Ok(())
    }

    /// A text that may have line breaks, unless the rule forbids them.
    fn text(
        &mut self,
        key: &'static str,
        value: &str,
        rule: impl Fn(&str) -> Result<(), String>,
    ) -> Result<(), String> {
        self.checked(key, &folded(value), rule)
    }

    fn user_id(&mut self, key: &'static str, id: &UserId) -> Result<(), String> {
        check_user_id(id).map_err(|wrong| format!("{key}: {wrong}"))?;
        self.line(key, &id.to_string());
        Ok(())
    }

    fn stamp(&mut self, stamp: &Stamp) -> Result<(), String> {
        if let Some(timestamp) = stamp.timestamp {
            self.line("TIMESTAMP", &timestamp.to_string());
        }
        stamp.message_id.as_ref().map_or(Ok(()), |id| self.checked("MESSAGE_ID", id, rules::check_id))
    }

    fn discovery(&mut self, discovery: &Discovery) -> Result<(), String> {
        self.user_id("USER_ID", &discovery.user_id)?;
        let port = rules::check_port(discovery.port).map_err(|wrong| format!("PORT: {wrong}"))?;
        self.line("PORT", &port.to_string());
        self.stamp(&discovery.stamp)?;
        if let Some(instance) = &discovery.instance {
            self.checked("INSTANCE", instance, rules::check_id)?;
        }
        let features = [("ack", discovery.features.ack), ("probe", discovery.features.probe)];
        let features: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        if !features.is_empty() {
            self.line("FEATURES", &features.join(","));
        }
        if !discovery.serves.is_empty() {
            self.line("SERVES", &services(&discovery.serves).map_err(|wrong| format!("SERVES: {wrong}"))?);
        }
        let cert = discovery.cert_sha256.as_ref();
        cert.map_or(Ok(()), |cert| self.checked("CERT_SHA256", cert, rules::check_fingerprint))
    }

    fn profile(&mut self, profile: &Profile) -> Result<(), String> {
        self.user_id("USER_ID", &profile.user_id)?;
        self.text("DISPLAY_NAME", &profile.display_name, rules::check_display_name)?;
        self.text("STATUS", &profile.status, rules::check_status)?;
        if let Some(avatar) = &profile.avatar {
            rules::check_avatar_size(avatar.bytes.len()).map_err(|wrong| format!("AVATAR_DATA: {wrong}"))?;
            self.line("AVATAR_TYPE", avatar.kind.mime());
            self.line("AVATAR_ENCODING", "base64");
            self.line("AVATAR_DATA", &STANDARD.encode(&avatar.bytes));
        }
        self.stamp(&profile.stamp)
    }

    fn peer_list(&mut self, list: &PeerList) -> Result<(), String> {
        self.user_id("FROM", &list.from)?;
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        for (place, (id, address)) in list.peers.iter().enumerate() {
            check_user_id(id).map_err(|wrong| format!("PEERS: entry {}: {wrong}", place + 1))?;
            ids.push(json_text(&id.to_string()));
            let checked = address.map(rules::check_address).transpose();
            checked.map_err(|wrong| format!("ADDRS: entry {}: {wrong}", place + 1))?;
            addresses.push(json_address(*address));
        }
        self.line("PEERS", &format!("[{}]", ids.join(",")));
        self.line("COUNT", &ids.len().to_string());
        // Left out where nothing was told: older programs write none either.
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

/// With its line breaks (CR LF, CR or LF) as they travel.
fn folded(text: &str) -> Cow<'_, str> {
    if !text.contains(['\r', '\n']) {
        return Cow::Borrowed(text);
    }
    let mut folded = String::with_capacity(text.len() + 16);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\r' | '\n' => {
                if c == '\r' {
                    characters.next_if_eq(&'\n');
                }
                folded.push(LINE_SEPARATOR);
            }
            other => folded.push(other),
        }
    }
    Cow::Owned(folded)
}

/// [`UserId::parse`] knows more than a name's own rule: one could hold a line separator.
fn check_user_id(id: &UserId) -> Result<(), String> {
    rules::check_printable(id.name.as_str(), 1, crate::model::text::NAME_MAX).map_err(|wrong| format!("name: {wrong}"))
}

fn services(serves: &[(String, u16)]) -> Result<String, String> {
    rules::check_service_count(serves.len())?;
    let mut text = String::new();
    for (place, (name, port)) in serves.iter().enumerate() {
        rules::check_service(name)?;
        if serves[..place].iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        let port = rules::check_port(*port).map_err(|wrong| format!("{name}: {wrong}"))?;
        // Writing into a text cannot fail.
        let _ = write!(text, "{}{name}={port}", if place == 0 { "" } else { "," });
    }
    Ok(text)
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "null".to_owned(), |address| json_text(&address.to_string()))
}
