//! The message types of trade, in datagrams and on settlement connections, and their parsing.
//!
//! A datagram or line holds one JSON object. Parsing is strict about required fields and ignores unknown ones; every
//! error names the field and says what was expected (`docs/spec/trade.md`).

use std::fmt;

use serde::{Deserialize, Serialize};

#[macro_use]
mod tables;
mod datagram;
mod field;
mod messages;
mod parts;
mod settlement;
#[cfg(test)]
mod tests;

pub use self::datagram::{
    Ack, PeerMessage, Request, ServerMessage, encode_ack, encode_request, parse_message, parse_server_message,
};
pub use self::messages::{DealRequest, Notification, RequestBody, RequestKind, Response};
pub use self::parts::{DealPhase, DealStatus, Goods, PeerEndpoint, Side};
pub use self::settlement::{
    Amount, InformResponse, PaymentDetails, SettlementMessage, SettlementResponse, encode_inform, encode_shipped,
    parse_settlement_message, parse_settlement_response,
};

/// The bytes of a datagram, in either direction.
pub const DATAGRAM_MAX: usize = 8 * 1024;
/// Peers choose numbers below this one; the server assigns the numbers of sellers' sides from here on.
pub const FIRST_SERVER_NUMBER: u64 = 1 << 31;
/// The largest number in a message. Below 2^53 every JSON reader represents integers exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;
/// The characters of a postal address.
pub const ADDRESS_MAX: usize = 1024;

/// Why a request is refused: the `code` of an `ERROR` message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// Malformed.
    BadRequest,
    /// No peer is registered under that name.
    NotRegistered,
    /// The sender did not prove that it is that peer.
    Forbidden,
    /// The peer has no deal with that number.
    UnknownDeal,
    /// The deal's current state does not allow the request.
    WrongState,
    /// A limit is reached; the request may succeed later.
    Busy,
    /// The change could not be stored. Nothing changed; the request can be repeated.
    Unavailable,
}

/// A refused request. The reason names the offending field if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    pub code: ErrorCode,
    pub reason: String,
}

impl RequestError {
    pub fn new(code: ErrorCode, reason: impl Into<String>) -> RequestError {
        RequestError { code, reason: reason.into() }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A message as JSON. That cannot fail: no map has other keys than strings, and no I/O takes place.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    serde_json::to_writer(&mut bytes, value).expect("plain messages always serialise into memory");
    bytes
}
