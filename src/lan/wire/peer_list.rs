//! PEER_LIST_RESPONSE.

use std::net::{SocketAddr, SocketAddrV4};

use super::reader::{DatagramReader, parse_digits};
use super::validation::quoted;
use super::writer::{DatagramWriter, check_user_id};
use super::{DATAGRAM_MAX, Message, MessageStamp, UserId, encode};

/// PEER_LIST_RESPONSE: the peers that the sender knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerList {
    pub from: UserId,
    /// With their addresses, if the sender gives them.
    pub peers: Vec<(UserId, Option<SocketAddr>)>,
    pub stamp: MessageStamp,
}

impl PeerList {
    pub(super) const TYPE: &'static str = "PEER_LIST_RESPONSE";

    pub(super) fn read(reader: &DatagramReader<'_>) -> Result<PeerList, String> {
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

    pub(super) fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        writer.user_id("FROM", &self.from)?;
        let (mut ids, mut addresses) = (Vec::new(), Vec::new());
        for (index, (id, address)) in self.peers.iter().enumerate() {
            check_user_id(id).map_err(|problem| format!("PEERS: entry {}: {problem}", index + 1))?;
            ids.push(json_text(&id.to_string()));
            let checked = address.map(check_address).transpose();
            checked.map_err(|problem| format!("ADDRS: entry {}: {problem}", index + 1))?;
            addresses.push(json_address(*address));
        }
        writer.line("PEERS", &format!("[{}]", ids.join(",")));
        writer.line("COUNT", &ids.len().to_string());
        // Omitted if no address is known, as older programs do.
        if self.peers.is_empty() || self.peers.iter().any(|(_, address)| address.is_some()) {
            writer.line("ADDRS", &format!("[{}]", addresses.join(",")));
        }
        writer.stamp(&self.stamp)
    }

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

/// The error gives only the position: serde's text may quote the whole input.
fn json_list<T: serde::de::DeserializeOwned>(key: &str, value: &str) -> Result<Vec<T>, String> {
    serde_json::from_str(value)
        .map_err(|error| format!("{key}: expected a JSON list of texts (see its character {})", error.column()))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| format!("expected ip:port, not {}", quoted(text)))?;
    check_address(address).map(SocketAddr::V4)
}

fn check_address(address: SocketAddr) -> Result<SocketAddrV4, String> {
    match address {
        SocketAddr::V4(v4) if v4.port() != 0 => Ok(v4),
        other => Err(format!("expected an IPv4 address and a port from 1 to 65535, not {other}")),
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "null".to_owned(), |address| json_text(&address.to_string()))
}
