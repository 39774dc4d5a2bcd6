//! The persisted rows of trade, and the interface through which changes reach the disk.

use std::net::{IpAddr, SocketAddr};
use std::ops::Not;

use serde::{Deserialize, Serialize};

use super::deal::{Deal, LedgerOperation, SellerSide};
use super::wire::PeerEndpoint;
use crate::model::{Cents, Millis, Name, Token};
use crate::storage;

/// Accepts the changes of trade, in the order in which they are made. The exchange is shared by threads, and so is its
/// journal.
pub trait Journal: storage::Journal<Change = ExchangeChange, Commit: Send + 'static> + Send + Sync + 'static {}

impl<J: storage::Journal<Change = ExchangeChange, Commit: Send + 'static> + Send + Sync + 'static> Journal for J {}

/// A change to one row.
#[derive(Debug, Clone)]
pub enum ExchangeChange {
    /// Numbers from this one on have never been used.
    Ceiling(u64),
    /// The key that makes the numbers of notifications unpredictable; created once.
    MidKey(Token),
    /// A peer was registered or has changed.
    Peer(Box<PeerRow>),
    /// The time of a peer's last request.
    PeerSeen {
        name: Name,
        at: Millis,
    },
    /// A peer's registration has ended.
    DropPeer(Name),
    /// The answered DE-REGISTER of a peer.
    Departure(DepartureRow),
    /// Removes a departure: that peer has registered again.
    DropDeparture {
        name: Name,
        rq: u64,
    },
    /// Removes all departures before this time.
    DropDeparturesBefore(Millis),
    /// A deal without its sellers, as JSON.
    Deal {
        id: u64,
        body: String,
    },
    /// A seller's side of a deal, as JSON.
    Seller {
        deal: u64,
        rq: u64,
        body: String,
    },
    /// Removes a deal with its sellers. (The log and the ledger are kept for ever.)
    DropDeal(u64),
    Log(LogRow),
    Ledger(LedgerRow),
}

/// A registered peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRow {
    pub name: Name,
    /// The address that datagrams are sent to.
    pub addr: SocketAddr,
    /// The settlement port, at the same IP address.
    pub tcp_port: u16,
    /// The token that proves the peer's identity.
    pub token: Token,
    /// The number of this registration. Deals with an earlier holder of the name have smaller numbers.
    #[serde(rename = "since")]
    pub registration_id: u64,
    /// When the peer registered.
    pub registered_at: Millis,
    /// The source of the first REGISTER; a repeat from there gets the same token.
    pub first_source: SocketAddr,
    /// Ended deals whose numbers the peer's last REGISTER made available again.
    pub forgotten: Vec<u64>,
    /// The LOGINs of the last minutes, so that a repeat does not move the peer back to an old address.
    pub logins: Vec<LoginRow>,
    /// The sequence number taken when the peer named its address. Notifications with later sequence numbers have gone
    /// to no other address.
    #[serde(default, rename = "addr_since")]
    pub addr_sequence: u64,
    /// Another peer has taken this address. The peer has none until it names one with its token.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub displaced: bool,
    /// Whether the peer is known to receive at its address.
    #[serde(default, rename = "hearing")]
    pub validation: AddressValidation,
    /// The server's address that the peer used when it named its own; notifications are sent from there.
    #[serde(default, rename = "asked")]
    pub local_ip: Option<IpAddr>,
}

/// What is known about whether a peer receives what is sent to its address (`docs/spec/trade.md`). Every REGISTER
/// writes the row, so fields that are false are omitted to keep it small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressValidation {
    /// The current address is validated.
    #[serde(default, rename = "here", skip_serializing_if = "Not::not")]
    pub is_validated: bool,
    /// Some address of the peer was validated; otherwise the name lapses soon after its last request.
    #[serde(default, rename = "ever", skip_serializing_if = "Not::not")]
    pub was_validated: bool,
    /// The peer has acknowledged a notification.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub acknowledges: bool,
    /// The peer named a new address with its token, so a token that comes from there does not prove the address.
    #[serde(default, rename = "moved", skip_serializing_if = "Not::not")]
    pub has_moved: bool,
}

impl AddressValidation {
    /// The state of a new registration.
    pub const UNVALIDATED: AddressValidation =
        AddressValidation { is_validated: false, was_validated: false, acknowledges: false, has_moved: false };
}

impl Default for AddressValidation {
    /// Rows of earlier versions: their names do not lapse for lack of a validation that was not required then.
    fn default() -> AddressValidation {
        AddressValidation { was_validated: true, ..AddressValidation::UNVALIDATED }
    }
}

/// A LOGIN that was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoginRow {
    /// The number of the request.
    pub rq: u64,
    /// The address that the request named.
    #[serde(rename = "reach")]
    pub endpoint: PeerEndpoint,
    /// When the request was handled.
    pub at: Millis,
}

/// A DE-REGISTER that was answered, kept so that a late repeat does not remove the next holder of the name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DepartureRow {
    pub name: Name,
    pub rq: u64,
    /// The source address of the request.
    pub source: SocketAddr,
    /// When the registration ended.
    pub at: Millis,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    pub at: Millis,
    /// The kind of event: `register`, `search`, `offer`, `purchase`, …
    pub kind: String,
    /// The peer that acted or was affected.
    pub peer: Name,
    pub deal: Option<u64>,
    /// The number by which the peer knows the deal.
    pub rq: Option<u64>,
    pub item_name: Option<String>,
    pub price: Option<Cents>,
    pub detail: String,
}

/// A movement of money that belongs to a deal.
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

/// The state on disk at the start.
#[derive(Debug, Default)]
pub struct ExchangeSnapshot {
    /// Numbers from this one on have never been used.
    pub ceiling: u64,
    /// The key for the numbers of notifications; none in a new data directory.
    pub mid_key: Option<Token>,
    /// All registered peers, each with the time of its last request.
    pub peers: Vec<(PeerRow, Millis)>,
    pub departures: Vec<DepartureRow>,
    /// All deals by id, each with its sellers in the order of their numbers.
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
