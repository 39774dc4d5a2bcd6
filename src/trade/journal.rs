//! The persisted rows of trade, and the interface through which changes reach the disk.

use std::net::{IpAddr, SocketAddr};
use std::ops::Not;

use serde::{Deserialize, Serialize};

use super::deal::{Deal, LedgerOperation, SellerSide};
use super::wire::PeerEndpoint;
use crate::model::{Cents, Millis, Name, Token};
use crate::storage;

/// Accepts the changes of trade in their order. Threads share the exchange, and so its journal.
pub trait Journal: storage::Journal<Change = ExchangeChange, Commit: Send + 'static> + Send + Sync + 'static {}

impl<J: storage::Journal<Change = ExchangeChange, Commit: Send + 'static> + Send + Sync + 'static> Journal for J {}

/// A change to one row. `Deal` and `Seller` hold JSON, a deal without its sellers. Numbers from `Ceiling` on have never
/// been used. `DropDeal` takes the sellers along, but the log and the ledger are kept for ever.
#[derive(Debug, Clone)]
pub enum ExchangeChange {
    Ceiling(u64),
    MidKey(Token),
    Peer(Box<PeerRow>),
    PeerSeen { name: Name, at: Millis },
    DropPeer(Name),
    Departure(DepartureRow),
    DropDeparture { name: Name, rq: u64 },
    DropDeparturesBefore(Millis),
    Deal { id: u64, body: String },
    Seller { deal: u64, rq: u64, body: String },
    DropDeal(u64),
    Log(LogRow),
    Ledger(LedgerRow),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRow {
    pub name: Name,
    pub addr: SocketAddr,
    /// The settlement port, at the same IP address.
    pub tcp_port: u16,
    pub token: Token,
    /// Deals with an earlier holder of the name have smaller numbers.
    #[serde(rename = "since")]
    pub registration_id: u64,
    pub registered_at: Millis,
    /// The source of the first REGISTER; a repeat from there gets the same token.
    pub first_source: SocketAddr,
    /// Ended deals whose numbers the peer's last REGISTER made available again.
    pub forgotten: Vec<u64>,
    /// The LOGINs of the last minutes, so that a repeat does not move the peer back to an old address.
    pub logins: Vec<LoginRow>,
    /// It was taken when the peer named its address. Notifications with later numbers have gone to no other address.
    #[serde(default, rename = "addr_since")]
    pub addr_sequence: u64,
    /// Another peer has taken this address. The peer has none until it names one with its token.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub displaced: bool,
    #[serde(default, rename = "hearing")]
    pub validation: AddressValidation,
    /// The server's address that the peer used when it named its own; notifications are sent from there.
    #[serde(default, rename = "asked")]
    pub local_ip: Option<IpAddr>,
}

/// What is known about whether a peer receives at its address (`docs/spec/trade.md`). Every REGISTER writes the row, so
/// what is false is omitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressValidation {
    /// The current address is validated.
    #[serde(default, rename = "here", skip_serializing_if = "Not::not")]
    pub is_validated: bool,
    /// Some address was validated; otherwise the name lapses soon after the peer's last request.
    #[serde(default, rename = "ever", skip_serializing_if = "Not::not")]
    pub was_validated: bool,
    #[serde(default, skip_serializing_if = "Not::not")]
    pub acknowledges: bool,
    /// The peer named a new address with its token, so a token that comes from there does not prove the address.
    #[serde(default, rename = "moved", skip_serializing_if = "Not::not")]
    pub has_moved: bool,
}

impl AddressValidation {
    pub const UNVALIDATED: AddressValidation =
        AddressValidation { is_validated: false, was_validated: false, acknowledges: false, has_moved: false };
}

impl Default for AddressValidation {
    /// Rows of earlier versions: their names do not lapse for lack of a validation that was not required then.
    fn default() -> AddressValidation {
        AddressValidation { was_validated: true, ..AddressValidation::UNVALIDATED }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoginRow {
    pub rq: u64,
    #[serde(rename = "reach")]
    pub endpoint: PeerEndpoint,
    pub at: Millis,
}

/// A DE-REGISTER that was answered, kept so that a late repeat does not remove the next holder of the name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DepartureRow {
    pub name: Name,
    pub rq: u64,
    pub source: SocketAddr,
    pub at: Millis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    pub at: Millis,
    /// The kind of event: `register`, `search`, `offer`, `purchase`, …
    pub kind: String,
    pub peer: Name,
    pub deal: Option<u64>,
    pub rq: Option<u64>,
    pub item_name: Option<String>,
    pub price: Option<Cents>,
    pub detail: String,
}

#[derive(Debug, Clone)]
pub struct LedgerRow {
    /// The idempotency key, shared with the bank.
    pub key: String,
    pub operation: LedgerOperation,
    pub buyer: Name,
    pub seller: Name,
    pub price: Cents,
    pub fee: Cents,
    pub at: Millis,
}

#[derive(Debug, Default)]
pub struct ExchangeSnapshot {
    /// See [`ExchangeChange::Ceiling`].
    pub ceiling: u64,
    pub mid_key: Option<Token>,
    /// Each with the time of its last request.
    pub peers: Vec<(PeerRow, Millis)>,
    pub departures: Vec<DepartureRow>,
    /// The deals by id, each with its sellers in the order of their numbers.
    pub deals: Vec<(Deal, Vec<SellerSide>)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_does_not_hold_of_a_peer_takes_no_room_and_rows_of_earlier_versions_are_read() {
        let row = PeerRow {
            name: Name::new("alice").unwrap(),
            addr: "192.0.2.1:5000".parse().unwrap(),
            tcp_port: 6000,
            token: Token::random(),
            registration_id: 7,
            registered_at: Millis(1),
            first_source: "192.0.2.1:5000".parse().unwrap(),
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_sequence: 7,
            displaced: false,
            validation: AddressValidation::UNVALIDATED,
            local_ip: None,
        };
        let written = |row: &PeerRow| serde_json::to_value(row).unwrap();
        let read = |value: Value| serde_json::from_value::<PeerRow>(value).unwrap();
        assert_eq!((&written(&row)["hearing"], written(&row).get("displaced")), (&json!({}), None));
        for n in 0..16 {
            let [is_validated, was_validated, acknowledges, has_moved] = [1, 2, 4, 8].map(|bit| n & bit != 0);
            let validation = AddressValidation { is_validated, was_validated, acknowledges, has_moved };
            let again = read(written(&PeerRow { validation, displaced: was_validated, ..row.clone() }));
            assert_eq!((again.validation, again.displaced), (validation, was_validated));
            let mut in_full = written(&row);
            in_full["hearing"] =
                json!({"here": is_validated, "ever": was_validated, "acknowledges": acknowledges, "moved": has_moved});
            assert_eq!(read(in_full).validation, validation, "as it was written before");
        }
        // Rows from before these fields existed.
        let mut first = written(&row);
        for key in ["hearing", "addr_since", "asked"] {
            first.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(read(first).validation, AddressValidation::default());
    }
}
