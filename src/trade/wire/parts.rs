//! The values that messages hold.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::model::Cents;

/// The address at which a peer says it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEndpoint {
    /// Must equal the source address of the datagram that names it.
    pub ip: IpAddr,
    /// The port for datagrams. Wider than `u16`, so that 70000 gets a clear error.
    pub udp_port: u32,
    /// The port for settlement connections.
    pub tcp_port: u32,
}

/// What a seller actually offers, in its own words. Both fields are empty if it offers exactly what was searched for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goods {
    /// The wire field `offer_item`.
    pub item: Option<Arc<str>>,
    /// The wire field `offer_description`.
    pub description: Option<Arc<str>>,
}

impl Goods {
    /// Writes the fields by their names on the wire; rows have them by their own.
    pub(super) fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct GoodsOnTheWire<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            offer_item: &'a Option<Arc<str>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            offer_description: &'a Option<Arc<str>>,
        }
        GoodsOnTheWire { offer_item: &self.item, offer_description: &self.description }.serialize(serializer)
    }
}

/// One deal in a `DEALS` response, as seen by the requesting peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DealStatus {
    /// The number by which the requesting peer knows the deal.
    pub rq: u64,
    /// The requesting peer's side of the deal.
    pub side: Side,
    /// The item as the buyer named it.
    pub item_name: Arc<str>,
    pub state: DealPhase,
    /// The price that is offered, reserved or was paid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub price: Option<Cents>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Arc<str>>,
    /// The item that the seller actually offers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_item: Option<Arc<str>>,
    /// The seller's description of the item it offers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_description: Option<Arc<str>>,
    /// The time until the current window closes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ends_in_ms: Option<u64>,
}

/// A side of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The side that searches and pays.
    Buyer,
    /// The side that offers and ships.
    Seller,
}

/// The progress of a deal as reported by STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DealPhase {
    /// Offers are being collected.
    Searching,
    /// A seller has been asked for a better price.
    Negotiating,
    /// An offer is reserved; the buyer may buy.
    Reserved,
    /// The payment is in progress.
    Settling,
    /// The item was paid for and shipped.
    Completed,
    /// The deal ended without a sale.
    Cancelled,
}
