//! The rules for values, applied both in decoding and in encoding.

use std::net::{SocketAddr, SocketAddrV4};

use super::{AVATAR_MAX, DATAGRAM_MAX, DISPLAY_NAME_MAX, ID_MAX, SERVES_MAX, STATUS_MAX};
use crate::model::text;

/// The encoding of a line break inside a value.
pub(super) const LINE_SEPARATOR: char = '\u{2028}';
/// How many characters of a received value an error quotes.
pub(super) const QUOTED_MAX: usize = 40;

/// A received value for an error text: shortened and without control characters.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Checks a text of one line.
pub(super) fn check_printable(text: &str, min: usize, max: usize) -> Result<(), String> {
    text::check(text, min, max)?;
    if text.contains(LINE_SEPARATOR) {
        return Err("expected no line breaks".to_owned());
    }
    Ok(())
}

/// Checks a MESSAGE_ID or an INSTANCE.
pub(super) fn check_id(text: &str) -> Result<(), String> {
    check_printable(text, 1, ID_MAX)
}

/// Checks a CONTENT. Its length is limited only by the datagram.
pub(super) fn check_content(text: &str) -> Result<(), String> {
    text::check_length(text, 1, DATAGRAM_MAX)
}

/// Checks a DISPLAY_NAME. Unlike names, it need not be unique.
pub(super) fn check_display_name(text: &str) -> Result<(), String> {
    check_printable(text, 1, DISPLAY_NAME_MAX)
}

/// Checks the STATUS of a PROFILE.
pub(super) fn check_status(text: &str) -> Result<(), String> {
    text::check_length(text, 0, STATUS_MAX)
}

/// Checks the name of a service in SERVES.
pub(super) fn check_service(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > SERVES_MAX || !name.chars().all(allowed) {
        return Err(format!(
            "expected the name of a service (1 to {SERVES_MAX} letters, digits, - _ .), not {}",
            quoted(name)
        ));
    }
    Ok(())
}

/// Checks the number of services in SERVES.
pub(super) fn check_service_count(count: usize) -> Result<(), String> {
    if count > SERVES_MAX {
        return Err(format!("expected at most {SERVES_MAX} services, not {count}"));
    }
    Ok(())
}

/// Checks a CERT_SHA256.
pub(super) fn check_fingerprint(text: &str) -> Result<(), String> {
    if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("expected 64 lower-case hex digits".to_owned());
    }
    Ok(())
}

/// Checks that a port can be sent to.
pub(super) fn check_port(port: u16) -> Result<u16, String> {
    if port == 0 { Err("expected a port from 1 to 65535".to_owned()) } else { Ok(port) }
}

/// Checks an entry of ADDRS.
pub(super) fn check_address(address: SocketAddr) -> Result<SocketAddrV4, String> {
    match address {
        SocketAddr::V4(v4) if v4.port() != 0 => Ok(v4),
        other => Err(format!("expected an IPv4 address and a port from 1 to 65535, not {other}")),
    }
}

/// Checks the size of an avatar.
pub(super) fn check_avatar_size(bytes: usize) -> Result<(), String> {
    match bytes {
        0 => Err("expected a picture, found no bytes".to_owned()),
        1..=AVATAR_MAX => Ok(()),
        _ => Err(format!("expected at most {AVATAR_MAX} bytes, not {bytes}")),
    }
}
