//! Reading: a datagram into a message, or the one line that says why not.
//!
//! The lines stay where they are: only what a message keeps is copied. Work and memory are bounded
//! whatever comes in: at most [`LINES_MAX`] lines are looked at.

use std::net::SocketAddr;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::rules::{self, LINE_SEPARATOR, quoted};
use super::{
    AVATAR_MAX, Avatar, AvatarKind, DATAGRAM_MAX, Discovery, Dm, Features, LINES_MAX, Message, PeerList, Post, Profile,
    Refused, Stamp, UserId,
};

/// Standard base64, of which some leave out the padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads one datagram.
///
/// # Errors
/// [`Refused::Malformed`] names the key and says what was expected; [`Refused::UnknownType`] is told only
/// of a datagram that is otherwise in order.
pub fn read(datagram: &[u8]) -> Result<Message, Refused> {
    if datagram.len() > DATAGRAM_MAX {
        return Err(format!("datagram: expected at most {DATAGRAM_MAX} bytes, not {}", datagram.len()).into());
    }
    let text = std::str::from_utf8(datagram).map_err(|_| "datagram: expected UTF-8".to_owned())?;
    // Some editors and libraries begin every text with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text)?;
    let message = match lines.need("TYPE")? {
        "PEER_DISCOVERY" => Message::Discovery(discovery(&lines)?),
        "POST" => {
            let (user_id, content) = (lines.user_id("USER_ID")?, lines.text("CONTENT", rules::check_content)?);
            Message::Post(Post { user_id, content, stamp: lines.stamp()? })
        }
        "DM" => {
            let (from, to) = (lines.user_id("FROM")?, lines.user_id("TO")?);
            let content = lines.text("CONTENT", rules::check_content)?;
            Message::Dm(Dm { from, to, content, stamp: lines.stamp()? })
        }
        "PROFILE" => Message::Profile(profile(&lines)?),
        "PEER_LIST_REQUEST" => Message::PeerListRequest { from: lines.user_id("FROM")?, stamp: lines.stamp()? },
        "PEER_LIST_RESPONSE" => Message::PeerListResponse(peer_list(&lines)?),
        "ACK" => {
            let message_id = lines.id("MESSAGE_ID")?.ok_or_else(|| missing("MESSAGE_ID"))?;
            match lines.need("STATUS")? {
                "RECEIVED" => Message::Ack { message_id },
                other => return Err(format!("STATUS: expected RECEIVED, not {}", quoted(other)).into()),
            }
        }
        other => return Err(Refused::UnknownType(other.chars().take(rules::QUOTED_MAX).collect())),
    };
    Ok(message)
}

fn discovery(lines: &Lines<'_>) -> Result<Discovery, String> {
    let user_id = lines.user_id("USER_ID")?;
    let port = read_port(lines.need("PORT")?).map_err(named("PORT"))?;
    let instance = lines.id("INSTANCE")?;
    let mut features = Features::default();
    for feature in lines.get("FEATURES").unwrap_or_default().split(',') {
        match feature.trim_ascii() {
            "ack" => features.ack = true,
            "probe" => features.probe = true,
            _ => {}
        }
    }
    let serves = lines.get("SERVES").map_or(Ok(Vec::new()), services).map_err(named("SERVES"))?;
    let cert_sha256 = lines.get("CERT_SHA256");
    cert_sha256.map_or(Ok(()), rules::check_fingerprint).map_err(named("CERT_SHA256"))?;
    let cert_sha256 = cert_sha256.map(str::to_owned);
    Ok(Discovery { user_id, port, instance, features, serves, cert_sha256, stamp: lines.stamp()? })
}

/// `trade=7001,registry=9000`.
fn services(value: &str) -> Result<Vec<(String, u16)>, String> {
    if value.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    // Counted first: a list that is too long is not read at all.
    rules::check_service_count(value.split(',').count())?;
    let mut services: Vec<(String, u16)> = Vec::new();
    for part in value.split(',') {
        let part = part.trim_ascii();
        let (name, port) = part.split_once('=').ok_or_else(|| format!("expected name=port, not {}", quoted(part)))?;
        rules::check_service(name)?;
        if services.iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        services.push((name.to_owned(), read_port(port).map_err(|wrong| format!("{name}: {wrong}"))?));
    }
    Ok(services)
}

fn profile(lines: &Lines<'_>) -> Result<Profile, String> {
    Ok(Profile {
        user_id: lines.user_id("USER_ID")?,
        display_name: lines.text("DISPLAY_NAME", rules::check_display_name)?,
        status: lines.text("STATUS", rules::check_status)?,
        avatar: avatar(lines)?,
        stamp: lines.stamp()?,
    })
}

fn avatar(lines: &Lines<'_>) -> Result<Option<Avatar>, String> {
    let (mime, encoding, data) = (lines.get("AVATAR_TYPE"), lines.get("AVATAR_ENCODING"), lines.get("AVATAR_DATA"));
    let (mime, data) = match (mime, data) {
        (Some(mime), Some(data)) => (mime, data),
        (None, None) if encoding.is_none() => return Ok(None),
        (None, _) => return Err(missing("AVATAR_TYPE")),
        (_, None) => return Err(missing("AVATAR_DATA")),
    };
    // What the person says is worth showing without a picture that nobody here could show.
    let Some(kind) = AvatarKind::from_mime(mime).filter(|_| !data.is_empty()) else { return Ok(None) };
    if let Some(other) = encoding.filter(|encoding| *encoding != "base64") {
        return Err(format!("AVATAR_ENCODING: expected base64, not {}", quoted(other)));
    }
    // Of standard base64 the size is known beforehand; of other data it does not matter.
    let padding = data.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
    if (data.len() - padding) * 3 / 4 > AVATAR_MAX {
        return Ok(None);
    }
    let bytes = LENIENT.decode(data).map_err(|wrong| {
        format!("AVATAR_DATA: expected standard base64 ({})", wrong.to_string().trim_end_matches('.').to_lowercase())
    })?;
    rules::check_avatar_size(bytes.len()).map_err(named("AVATAR_DATA"))?;
    Ok(Some(Avatar { kind, bytes }))
}

fn peer_list(lines: &Lines<'_>) -> Result<PeerList, String> {
    let from = lines.user_id("FROM")?;
    let ids: Vec<String> = json_list("PEERS", lines.need("PEERS")?)?;
    let count = lines.need("COUNT")?;
    if whole_number(count) != Some(ids.len() as u64) {
        return Err(format!("COUNT: expected {}, the length of PEERS, not {}", ids.len(), quoted(count)));
    }
    let addresses: Vec<Option<String>> = match lines.get("ADDRS") {
        Some(list) => json_list("ADDRS", list)?,
        None => vec![None; ids.len()],
    };
    if addresses.len() != ids.len() {
        return Err(format!("ADDRS: expected {}, the length of PEERS, not {}", ids.len(), addresses.len()));
    }
    let mut peers = Vec::with_capacity(ids.len());
    for (place, (id, address)) in ids.iter().zip(addresses).enumerate() {
        let id = UserId::parse(id).map_err(|wrong| format!("PEERS: entry {}: {wrong}", place + 1))?;
        let address = address.as_deref().map(read_address).transpose();
        peers.push((id, address.map_err(|wrong| format!("ADDRS: entry {}: {wrong}", place + 1))?));
    }
    Ok(PeerList { from, peers, stamp: lines.stamp()? })
}

/// The error does not quote: what serde says may hold all of the input.
fn json_list<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Result<Vec<T>, String> {
    serde_json::from_str(value)
        .map_err(|error| format!("{key}: expected a JSON list of texts (see its character {})", error.column()))
}

fn read_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| format!("expected ip:port, not {}", quoted(text)))?;
    rules::check_address(address).map(SocketAddr::V4)
}

fn read_port(text: &str) -> Result<u16, String> {
    let port = whole_number(text).and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
    rules::check_port(port).map_err(|wrong| format!("{wrong}, not {}", quoted(text)))
}

/// Digits, and nothing else (`u64::from_str` takes a `+` too).
fn whole_number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn missing(key: &str) -> String {
    format!("{key}: missing")
}

fn named(key: &str) -> impl Fn(String) -> String + '_ {
    move |wrong| format!("{key}: {wrong}")
}

/// The lines of a datagram, by key.
struct Lines<'a> {
    lines: [(&'a str, &'a str); LINES_MAX],
    count: usize,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Result<Lines<'a>, String> {
        let mut lines = Lines { lines: [("", ""); LINES_MAX], count: 0 };
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.is_empty() {
                if !after.trim_ascii().is_empty() {
                    return Err(format!("line {}: expected nothing behind the empty line", lines.count + 2));
                }
                break;
            }
            lines.add(line)?;
            rest = after;
        }
        Ok(lines)
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

    fn need(&self, key: &str) -> Result<&'a str, String> {
        self.get(key).ok_or_else(|| missing(key))
    }

    fn user_id(&self, key: &str) -> Result<UserId, String> {
        UserId::parse(self.need(key)?).map_err(named(key))
    }

    /// A text that may have line breaks, unless the rule forbids them.
    fn text(&self, key: &str, rule: impl Fn(&str) -> Result<(), String>) -> Result<String, String> {
        let text = self.need(key)?.replace(LINE_SEPARATOR, "\n");
        rule(&text).map_err(named(key))?;
        Ok(text)
    }

    fn id(&self, key: &str) -> Result<Option<String>, String> {
        let Some(id) = self.get(key) else { return Ok(None) };
        rules::check_id(id).map_err(named(key))?;
        Ok(Some(id.to_owned()))
    }

    fn stamp(&self) -> Result<Stamp, String> {
        let timestamp = self.get("TIMESTAMP").map(|text| {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let is_fraction = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = whole_number(whole).filter(|_| is_fraction);
            seconds.ok_or_else(|| format!("TIMESTAMP: expected Unix seconds, not {}", quoted(text)))
        });
        Ok(Stamp { timestamp: timestamp.transpose()?, message_id: self.id("MESSAGE_ID")? })
    }
}
