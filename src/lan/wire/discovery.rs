//! PEER_DISCOVERY.

use std::fmt::Write as _;

use super::reader::{DatagramReader, parse_digits, with_key};
use super::validation::{check_id, quoted};
use super::writer::DatagramWriter;
use super::{MessageStamp, SERVES_MAX, UserId};

/// PEER_DISCOVERY: the announcement of a peer, a server or a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    pub user_id: UserId,
    pub port: u16,
    /// Random, one per run. Other implementations may have none.
    pub instance: Option<String>,
    pub features: Features,
    /// Names and ports; empty unless it is a server.
    pub serves: Vec<(String, u16)>,
    /// SHA-256 of a server's certificate, in lower-case hex.
    pub cert_sha256: Option<String>,
    pub stamp: MessageStamp,
}

/// The features that a peer announces. Unknown ones are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// The peer acknowledges DMs.
    pub ack: bool,
    /// The sender only asks who is there: it is answered but not listed.
    pub probe: bool,
}

impl Discovery {
    pub(super) const TYPE: &'static str = "PEER_DISCOVERY";

    pub(super) fn read(reader: &DatagramReader<'_>) -> Result<Discovery, String> {
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
        let serves = reader.get("SERVES").map_or(Ok(Vec::new()), read_services).map_err(with_key("SERVES"))?;
        let cert_sha256 = reader.get("CERT_SHA256");
        cert_sha256.map_or(Ok(()), check_fingerprint).map_err(with_key("CERT_SHA256"))?;
        let cert_sha256 = cert_sha256.map(str::to_owned);
        Ok(Discovery { user_id, port, instance, features, serves, cert_sha256, stamp: reader.stamp()? })
    }

    pub(super) fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        writer.user_id("USER_ID", &self.user_id)?;
        let port = check_port(self.port).map_err(with_key("PORT"))?;
        writer.line("PORT", &port.to_string());
        writer.stamp(&self.stamp)?;
        if let Some(instance) = &self.instance {
            writer.checked("INSTANCE", instance, check_id)?;
        }
        let features = [("ack", self.features.ack), ("probe", self.features.probe)];
        let features: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        if !features.is_empty() {
            writer.line("FEATURES", &features.join(","));
        }
        if !self.serves.is_empty() {
            writer.line("SERVES", &write_services(&self.serves).map_err(with_key("SERVES"))?);
        }
        let cert = self.cert_sha256.as_ref();
        cert.map_or(Ok(()), |cert| writer.checked("CERT_SHA256", cert, check_fingerprint))
    }
}

/// Parses a SERVES value such as `trade=7001,registry=9000`.
fn read_services(value: &str) -> Result<Vec<(String, u16)>, String> {
    if value.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    // Counted first, so that a list that is too long is not parsed at all.
    check_service_count(value.split(',').count())?;
    let mut services: Vec<(String, u16)> = Vec::new();
    for part in value.split(',') {
        let part = part.trim_ascii();
        let (name, port) = part.split_once('=').ok_or_else(|| format!("expected name=port, not {}", quoted(part)))?;
        check_service(name)?;
        if services.iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        services.push((name.to_owned(), parse_port(port).map_err(with_key(name))?));
    }
    Ok(services)
}

fn write_services(serves: &[(String, u16)]) -> Result<String, String> {
    check_service_count(serves.len())?;
    let mut text = String::new();
    for (index, (name, port)) in serves.iter().enumerate() {
        check_service(name)?;
        if serves[..index].iter().any(|(known, _)| known == name) {
            return Err(format!("{name}: expected once"));
        }
        let port = check_port(*port).map_err(with_key(name))?;
        // Writing into a String cannot fail.
        let _ = write!(text, "{}{name}={port}", if index == 0 { "" } else { "," });
    }
    Ok(text)
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = parse_digits(text).and_then(|number| u16::try_from(number).ok()).unwrap_or(0);
    check_port(port).map_err(|problem| format!("{problem}, not {}", quoted(text)))
}

fn check_port(port: u16) -> Result<u16, String> {
    if port == 0 { Err("expected a port from 1 to 65535".to_owned()) } else { Ok(port) }
}

fn check_service(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > SERVES_MAX || !name.chars().all(allowed) {
        let name = quoted(name);
        return Err(format!("expected the name of a service (1 to {SERVES_MAX} letters, digits, - _ .), not {name}"));
    }
    Ok(())
}

fn check_service_count(count: usize) -> Result<(), String> {
    if count > SERVES_MAX {
        return Err(format!("expected at most {SERVES_MAX} services, not {count}"));
    }
    Ok(())
}

fn check_fingerprint(text: &str) -> Result<(), String> {
    if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("expected 64 lower-case hex digits".to_owned());
    }
    Ok(())
}
