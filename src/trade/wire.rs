//! The messages of trade: what may be in a datagram or on a settlement line, and what is wrong with it.
//!
//! One JSON object a datagram or line. Reading is strict in what it needs and deaf to what it does not
//! know; every error names the field and says what was expected (SPEC section 2).

use std::fmt;

use serde::{Deserialize, Serialize};

mod field;
mod reply;
mod request;
mod settlement;
#[cfg(test)]
mod tests;

pub use self::field::read_object;
pub use self::reply::{DealStatus, Goods, Phase, Push, Reply, Secret, Side};
pub use self::request::{Ack, Ask, Inbound, Reach, Request, read};
pub use self::settlement::{Amount, Inform, Purse, SettlementAnswer, SettlementLine, read_settlement};

/// Most bytes of a datagram, either way.
pub const DATAGRAM_MAX: usize = 8 * 1024;
/// Peers pick their numbers below this; the server picks those of a seller's side from here on.
pub const SERVER_NUMBERS: u64 = 1 << 31;
/// Numbers stay below 2^53, so that every JSON reader holds them exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Most characters of a postal address.
pub const ADDRESS_MAX: usize = 1024;

/// Why a request is refused: the `code` of an `ERROR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The message breaks a rule of form.
    BadRequest,
    /// No peer of that name is registered.
    NotRegistered,
    /// The sender did not show that it is that peer.
    Forbidden,
    /// The peer has no deal of that number.
    UnknownDeal,
    /// The deal is past (or before) the point where this is possible.
    WrongState,
    /// A bound is reached.
    Busy,
    /// It could not be stored: nothing changed, try again.
    Unavailable,
}

/// A refusal: its code and what a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people; names the field where one is wrong.
    pub reason: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: Code, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// JSON bytes of a value that cannot fail to be written (no maps with odd keys, no I/O).
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    serde_json::to_writer(&mut bytes, value).expect("plain messages always serialise into memory");
    bytes
}
