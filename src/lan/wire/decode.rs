//! Decoding of datagrams.
//!
//! Lines are borrowed from the datagram; only the values of the message are copied. Work and memory are bounded for any
//! input: at most [`LINES_MAX`] lines are read.

use std::net::SocketAddr;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::validation::{self, LINE_SEPARATOR, quoted};
use super::{
    AVATAR_MAX, Avatar, AvatarKind, DATAGRAM_MAX, Discovery, Dm, Features, LINES_MAX, Message, MessageStamp, PeerList,
    Post, Profile, UserId, WireError,
};

/// Standard base64 with optional padding.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes a datagram.
///
/// # Errors
/// [`WireError::Malformed`] names the key and says what was expected. [`WireError::UnknownType`] is returned only for a
/// datagram whose lines are otherwise valid.
pub fn decode(datagram: &[u8]) -> Result<Message, WireError> {
    if datagram.len() > DATAGRAM_MAX {
        return Err(format!("datagram: expected at most {DATAGRAM_MAX} bytes, not {}", datagram.len()).into());
    }
    let text = std::str::from_utf8(datagram).map_err(|_| "datagram: expected UTF-8".to_owned())?;
    // Some editors and libraries start every text with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let reader = DatagramReader::parse(text)?;
    let message = match reader.require("TYPE")? {
        "PEER_DISCOVERY" => Message::Discovery(discovery(&reader)?),
        "POST" => {
            let (user_id, content) = (reader.user_id("USER_ID")?, reader.text("CONTENT", validation::check_content)?);
            Message::Post(Post { user_id, content, stamp: reader.stamp()? })
        }
        "DM" => {
            let (from, to) = (reader.user_id("FROM")?, reader.user_id("TO")?);
            let content = reader.text("CONTENT", validation::check_content)?;
            Message::Dm(Dm { from, to, content, stamp: reader.stamp()? })
        }
        "PROFILE" => Message::Profile(profile(&reader)?),
        "PEER_LIST_REQUEST" => Message::PeerListRequest { from: reader.user_id("FROM")?, stamp: reader.stamp()? },
        "PEER_LIST_RESPONSE" => Message::PeerListResponse(peer_list(&reader)?),
        "ACK" => {
            let message_id = reader.id("MESSAGE_ID")?.ok_or_else(|| missing_key("MESSAGE_ID"))?;
            match reader.require("STATUS")? {
                "RECEIVED" => Message::Ack { message_id },
                other => return Err(format!("STATUS: expected RECEIVED, not {}", quoted(other)).into()),
            }
        }
        other => return Err(WireError::UnknownType(other.chars().take(validation::QUOTED_MAX).collect())),
    };
    Ok(message)
}

fn discovery(reader: &DatagramReader<'_>) -> Result<Discovery, String> {
    let user_id = reader.user_id("USER_ID")?;
    let port = parse_port(reader.require("PORT")?).map_err(with_key("PORT"))?;
    let instance = reader.id("INSTANCE")?;
    let mut features = Features::default();
    for feature in reader.get("FEATURES").unwrap_or_default().split(',') {
        match feature.trim_ascii() {
            "ack" => features.ack = true,
            "probe" => features.probe = true,
            _ => {}
        }
    }
    let serves = reader.get("SERVES").map_or(Ok(Vec::new()), services).map_err(with_key("SERVES"))?;
    let cert_sha256 = reader.get("CERT_SHA256");
    cert_sha256.map_or(Ok(()), validation::check_fingerprint).map_err(with_key("CERT_SHA256"))?;
    let cert_sha256 = cert_sha256.map(str::to_owned);
    Ok(Discovery { user_id, port, instance, features, serves, cert_sha256, stamp: reader.stamp()? })
}

/// Parses a SERVES value such as `trade=7001,registry=9000`.
fn services(value: &str) -> Result<Vec<(String, u16)>, String> {
    if value.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    // Counted first, so that a list that is too long is not parsed at all.
    validation::check_service_count(value.split(',').count())?;
    let mut services: Vec<(String, u16)> = Vec::new();
    for part in value.split(',') {
        let part = part.trim_ascii();
        let (name, port) = part.split_once('=').ok_or_else(|| format!("expected name=port, not {}", quoted(part)))?;
        validation::check_service(name)?;
        if services.iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        services.push((name.to_owned(), parse_port(port).map_err(|problem| format!("{name}: {problem}"))?));
    }
    Ok(services)
}

fn profile(reader: &DatagramReader<'_>) -> Result<Profile, String> {
    Ok(Profile {
        user_id: reader.user_id("USER_ID")?,
        display_name: reader.text("DISPLAY_NAME", validation::check_display_name)?,
        status: reader.text("STATUS", validation::check_status)?,
        avatar: avatar(reader)?,
        stamp: reader.stamp()?,
    })
}

fn avatar(reader: &DatagramReader<'_>) -> Result<Option<Avatar>, String> {
    let (mime, encoding, data) = (reader.get("AVATAR_TYPE"), reader.get("AVATAR_ENCODING"), reader.get("AVATAR_DATA"));
    let (mime, data) = match (mime, data) {
        (Some(mime), Some(data)) => (mime, data),
        (None, None) if encoding.is_none() => return Ok(None),
        (None, _) => return Err(missing_key("AVATAR_TYPE")),
        (_, None) => return Err(missing_key("AVATAR_DATA")),
    };
    // Without a supported avatar, the rest of the profile is still worth showing.
    let Some(kind) = AvatarKind::from_mime(mime).filter(|_| !data.is_empty()) else { return Ok(None) };
    if let Some(other) = encoding.filter(|encoding| *encoding != "base64") {
        return Err(format!("AVATAR_ENCODING: expected base64, not {}", quoted(other)));
    }
    // The decoded size follows from the length. An avatar that is too large is ignored before it is decoded.
    let padding = data.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    if (data.len() - padding) * 3 / 4 > AVATAR_MAX {
        return Ok(None);
    }
    let bytes = LENIENT_BASE64.decode(data).map_err(|problem| {
        format!("AVATAR_DATA: expected standard base64 ({})", problem.to_string().trim_end_matches('.').to_lowercase())
    })?;
    validation::check_avatar_size(bytes.len()).map_err(with_key("AVATAR_DATA"))?;
    Ok(Some(Avatar { kind, bytes }))
}

fn peer_list(reader: &DatagramReader<'_>) -> Result<PeerList, String> {
    let from = reader.user_id("FROM")?;
    let ids: Vec<String> = json_list("PEERS", reader.require("PEERS")?)?;
    let count = reader.require("COUNT")?;
    if parse_digits(count) != Some(ids.len() as u64) {
        return Err(format!("COUNT: expected {}, the length of PEERS, not {}", ids.len(), quoted(count)));
    }
    let addresses: Vec<Option<String>> = match reader.get("ADDRS") {
        Some(list) => json_list("ADDRS", list)?,
        None => vec![None; ids.len()],
    };
    if addresses.len() != ids.len() {
        return Err(format!("ADDRS: expected {}, the length of PEERS, not {}", ids.len(), addresses.len()));
    }
    let mut peers = Vec::with_capacity(ids.len());
    for (index, (id, address)) in ids.iter().zip(addresses).enumerate() {
        let id = UserId::parse(id).map_err(|problem| format!("PEERS: entry {}: {problem}", index + 1))?;
        let address = address.as_deref().map(parse_address).transpose();
        peers.push((id, address.map_err(|problem| format!("ADDRS: entry {}: {problem}", index + 1))?));
    }
    Ok(PeerList { from, peers, stamp: reader.stamp()? })
}

/// The error gives only the position: serde's text may quote the whole input.
fn json_list<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Result<Vec<T>, String> {
    serde_json::from_str(value)
        .map_err(|error| format!("{key}: expected a JSON list of texts (see its character {})", error.column()))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| format!("expected ip:port, not {}", quoted(text)))?;
    validation::check_address(address).map(SocketAddr::V4)
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = parse_digits(text).and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
    validation::check_port(port).map_err(|problem| format!("{problem}, not {}", quoted(text)))
}

/// Parses digits only (`u64::from_str` also accepts a `+`).
fn parse_digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn missing_key(key: &str) -> String {
    format!("{key}: missing")
}

fn with_key(key: &str) -> impl Fn(String) -> String + '_ {
    move |problem| format!("{key}: {problem}")
}

/// The lines of a datagram, by key.
struct DatagramReader<'a> {
    lines: [(&'a str, &'a str); LINES_MAX],
    count: usize,
}

impl<'a> DatagramReader<'a> {
    fn parse(text: &'a str) -> Result<DatagramReader<'a>, String> {
        let mut reader = DatagramReader { lines: [("", ""); LINES_MAX], count: 0 };
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.is_empty() {
                if !after.trim_ascii().is_empty() {
                    return Err(format!("line {}: expected nothing behind the empty line", reader.count + 2));
                }
                break;
            }
            reader.add(line)?;
            rest = after;
        }
        Ok(reader)
    }

    fn add(&mut self, line: &'a str) -> Result<(), String> {
        let number = self.count + 1;
        if self.count == LINES_MAX {
            return Err(format!("line {number}: expected at most {LINES_MAX} lines"));
        }
        let (key, value) =
            line.split_once(':').ok_or_else(|| format!("line {number}: expected KEY:VALUE, found no colon"))?;
        if key.is_empty() {
            return Err(format!("line {number}: expected a key before the colon"));
        }
        if self.get(key).is_some() {
            let is_plain = key.len() <= 32 && key.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let key = if is_plain { key.to_owned() } else { quoted(key) };
            return Err(format!("{key}: expected once, found again in line {number}"));
        }
        self.lines[self.count] = (key, value.strip_prefix(' ').unwrap_or(value));
        self.count += 1;
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.lines[..self.count].iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn require(&self, key: &str) -> Result<&'a str, String> {
        self.get(key).ok_or_else(|| missing_key(key))
    }

    fn user_id(&self, key: &str) -> Result<UserId, String> {
        UserId::parse(self.require(key)?).map_err(with_key(key))
    }

    /// A text with line breaks decoded; `validate` may forbid them.
    fn text(&self, key: &str, validate: impl Fn(&str) -> Result<(), String>) -> Result<String, String> {
        let text = self.require(key)?.replace(LINE_SEPARATOR, "\n");
        validate(&text).map_err(with_key(key))?;
        Ok(text)
    }

    fn id(&self, key: &str) -> Result<Option<String>, String> {
        let Some(id) = self.get(key) else { return Ok(None) };
        validation::check_id(id).map_err(with_key(key))?;
        Ok(Some(id.to_owned()))
    }

    fn stamp(&self) -> Result<MessageStamp, String> {
        let timestamp = self.get("TIMESTAMP").map(|text| {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let is_fraction = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = parse_digits(whole).filter(|_| is_fraction);
            seconds.ok_or_else(|| format!("TIMESTAMP: expected Unix seconds, not {}", quoted(text)))
        });
        Ok(MessageStamp { timestamp: timestamp.transpose()?, message_id: self.id("MESSAGE_ID")? })
    }
}
