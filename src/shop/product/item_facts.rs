//! An item that is registered, and its immutable fields, which its row holds and from which the search's index is made.

use serde::{Deserialize, Serialize};

use crate::model::Cents;
use crate::storage::{StoreError, from_json};

/// The caller has validated it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewItem {
    /// Not in a client's message: the frontend knows whose session it is.
    pub seller_id: u64,
    pub seller: String,
    /// 1 to 32 characters.
    pub item_name: String,
    /// 0 to 2147483647.
    pub category: u32,
    /// At most five, of at most eight characters each.
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    /// The price of one unit.
    pub price: Cents,
    pub quantity: u32,
}

/// Immutable, under the names that clients see.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ItemFacts {
    pub item_id: String,
    pub item_name: String,
    pub category: u32,
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    pub seller_id: u64,
    pub seller: String,
}

impl ItemFacts {
    pub(super) fn read(json: &str) -> Result<ItemFacts, StoreError> {
        from_json("an item's facts", json)
    }
}

/// A value beyond the maximum of a column becomes the maximum, which is no id in use.
pub(super) fn id_column(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}
