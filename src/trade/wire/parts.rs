use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::model::Cents;

/// Where a peer says it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEndpoint {
    /// The source address of the datagram that names it.
    pub ip: IpAddr,
    /// Wider than `u16`, so that 70000 gets a clear error.
    pub udp_port: u32,
    /// The port for settlements.
    pub tcp_port: u32,
}

/// What a seller offers in its own words. Both are empty if it offers exactly what was searched for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goods {
    pub item: Option<Arc<str>>,
    pub description: Option<Arc<str>>,
}

impl Goods {
    /// Writes the names of the wire; rows have the fields by their own.
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

/// A deal in DEALS, as the requesting peer sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DealStatus {
    pub rq: u64,
    pub side: Side,
    /// The item as the buyer named it.
    pub item_name: Arc<str>,
    pub state: DealPhase,
    /// The price that is offered, reserved or was paid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub price: Option<Cents>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offer_item: Option<Arc<str>>,
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
    /// Searches and pays.
    Buyer,
    /// Offers and ships.
    Seller,
}

/// The progress of a deal as STATUS reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DealPhase {
    Searching,
    /// A seller is asked for a better price.
    Negotiating,
    /// The buyer may buy.
    Reserved,
    Settling,
    /// Paid and shipped.
    Completed,
    /// The deal ended without a sale.
    Cancelled,
}
