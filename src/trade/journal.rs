//! What trade keeps: the rows, and the door through which changes go to disk.

use std::net::{IpAddr, SocketAddr};
use std::ops::Not;

use serde::{Deserialize, Serialize};

use super::deal::{Deal, Money, SellerSide};
use super::wire::Reach;
use crate::model::{Cents, Millis, Name, Token};
use crate::storage;

/// Takes trade's changes, in the order in which they are made. Exchange and settlements are shared by threads, so a
/// journal is as well.
pub trait Journal: storage::Journal<Change = Change, Receipt: Send + 'static> + Send + Sync + 'static {}

impl<J: storage::Journal<Change = Change, Receipt: Send + 'static> + Send + Sync + 'static> Journal for J {}

/// One row's change.
#[derive(Debug, Clone)]
pub enum Change {
    /// No number from here on was used yet.
    Ceiling(u64),
    /// What makes the numbers of pushes unguessable; made once.
    MidKey(Token),
    /// A peer is registered, or something of it has changed.
    Peer(Box<PeerRow>),
    /// A peer was heard.
    Heard { name: Name, at: Millis },
    /// A peer has left.
    DropPeer(Name),
    /// What a peer that left was answered.
    Farewell(FarewellRow),
    /// A farewell is forgotten: who left is back.
    DropFarewell { name: Name, rq: u64 },
    /// Farewells from before this time are forgotten.
    DropFarewells(Millis),
    /// A deal, without its sellers; as JSON.
    Deal { id: u64, body: String },
    /// A seller's side of a deal; as JSON.
    Seller { deal: u64, rq: u64, body: String },
    /// A deal is forgotten, with its sellers. (The log and the ledger never forget.)
    DropDeal(u64),
    /// A line of the log.
    Log(LogRow),
    /// Money that moves.
    Money(MoneyRow),
}

/// A registered peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its name.
    pub name: Name,
    /// Where datagrams go.
    pub addr: SocketAddr,
    /// Where settlement connects to, at the same IP.
    pub tcp_port: u16,
    /// What proves that it is this peer.
    pub token: Token,
    /// The number of this registration: deals of an earlier holder of the name have smaller ones.
    pub since: u64,
    /// When it registered.
    pub registered_at: Millis,
    /// Where the first REGISTER came from; its repeat gets the same token.
    pub first_source: SocketAddr,
    /// Ended deals whose answers its last REGISTER forgot: their numbers may be used again.
    pub forgotten: Vec<u64>,
    /// LOGINs of the last minutes: a repeat must not move the peer back.
    pub logins: Vec<LoginRow>,
    /// The number that was taken when it named its address: pushes whose place in the sequence is later
    /// went to no other one.
    #[serde(default)]
    pub addr_since: u64,
    /// Another peer is at its address now: it has none until it names one, with its token.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub displaced: bool,
    /// What is known of whether it hears.
    #[serde(default)]
    pub hearing: Hearing,
    /// Which of the server's addresses it spoke to when it named its own: what it is told leaves from there.
    #[serde(default)]
    pub asked: Option<IpAddr>,
}

/// What is known of whether a peer hears what it is sent (SPEC section 3, "Pushes"). A row is written with every
/// REGISTER: what does not hold takes no room in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearing {
    /// Its present address is proved.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub here: bool,
    /// One of its addresses was; else the name lapses soon after its last request.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub ever: bool,
    /// It has acknowledged a push.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub acknowledges: bool,
    /// Its address was named anew by its token: that this comes from there proves nothing then.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub moved: bool,
}

impl Hearing {
    /// Of a name that has just registered.
    pub const UNPROVED: Hearing = Hearing { here: false, ever: false, acknowledges: false, moved: false };
}

impl Default for Hearing {
    /// Of a row that an earlier version wrote: its name does not lapse for what was not asked of it.
    fn default() -> Hearing {
        Hearing { ever: true, ..Hearing::UNPROVED }
    }
}

/// A LOGIN that was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoginRow {
    /// Its number.
    pub rq: u64,
    /// What it said.
    pub reach: Reach,
    /// When.
    pub at: Millis,
}

/// A DE-REGISTER that was answered: its late repeat must not remove whoever has the name then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FarewellRow {
    /// Who left.
    pub name: Name,
    /// The number of the DE-REGISTER.
    pub rq: u64,
    /// Where it came from.
    pub source: SocketAddr,
    /// When.
    pub at: Millis,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// When it happened.
    pub at: Millis,
    /// What: `register`, `search`, `offer`, `purchase`, …
    pub kind: String,
    /// Who did it, or to whom it happened.
    pub peer: Name,
    /// The deal, where there is one.
    pub deal: Option<u64>,
    /// The number by which that peer knows the deal.
    pub rq: Option<u64>,
    /// The item, where there is one.
    pub item_name: Option<String>,
    /// The price in question.
    pub price: Option<Cents>,
    /// What a person may want to know besides.
    pub detail: String,
}

/// Money that moves with a deal.
#[derive(Debug, Clone)]
pub struct MoneyRow {
    /// The idempotency key, the bank's as well.
    pub key: String,
    /// Which way.
    pub money: Money,
    /// Who pays.
    pub buyer: Name,
    /// Who is paid.
    pub seller: Name,
    /// How much in all.
    pub price: Cents,
    /// What the house keeps of it.
    pub fee: Cents,
    /// When.
    pub at: Millis,
}

/// What is on disk at start.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// No number from here on was used yet.
    pub ceiling: u64,
    /// What makes the numbers of pushes unguessable; none in a new data dir.
    pub mid_key: Option<Token>,
    /// Everyone, with when each was heard.
    pub peers: Vec<(PeerRow, Millis)>,
    /// Who left lately.
    pub farewells: Vec<FarewellRow>,
    /// Deals with their sellers in the order of their numbers; by id.
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
            since: 7,
            registered_at: Millis(1),
            first_source: "192.0.2.1:5000".parse().unwrap(),
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_since: 7,
            displaced: false,
            hearing: Hearing::UNPROVED,
            asked: None,
        };
        let written = |row: &PeerRow| serde_json::to_value(row).unwrap();
        let read = |value: Value| serde_json::from_value::<PeerRow>(value).unwrap();
        assert_eq!((&written(&row)["hearing"], written(&row).get("displaced")), (&json!({}), None));
        for n in 0..16 {
            let [here, ever, acknowledges, moved] = [1, 2, 4, 8].map(|bit| n & bit != 0);
            let hearing = Hearing { here, ever, acknowledges, moved };
            let again = read(written(&PeerRow { hearing, displaced: ever, ..row.clone() }));
            assert_eq!((again.hearing, again.displaced), (hearing, ever));
            let mut in_full = written(&row);
            in_full["hearing"] = json!({"here": here, "ever": ever, "acknowledges": acknowledges, "moved": moved});
            assert_eq!(read(in_full).hearing, hearing, "as it was written before");
        }
        // Before that nothing was known of it.
        let mut first = written(&row);
        for key in ["hearing", "addr_since", "asked"] {
            first.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(read(first).hearing, Hearing::default());
    }
}
