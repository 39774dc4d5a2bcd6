//! What the operations of the two databases take and return: the bodies of the messages on a link. The operations are
//! in `product/operations.rs` and `customer/operations.rs`.
//!
//! Both ends belong to this program, so these types may change between versions. The frontend has validated the form of
//! client input; the databases check only what they alone can know. An operation that is not idempotent carries a
//! request id, and the database remembers its response for ten minutes.

use serde::{Deserialize, Serialize};

use crate::model::{Cents, Millis, debug_fields};

/// Entries of a list in a response.
pub const PAGE_MAX: u64 = 500;

/// Each role has its own ids and user names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Buyer,
    Seller,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Buyer => "buyer",
            Role::Seller => "seller",
        }
    }

    pub fn plural(self) -> &'static str {
        match self {
            Role::Buyer => "buyers",
            Role::Seller => "sellers",
        }
    }

    pub fn opposite(self) -> Role {
        match self {
            Role::Buyer => Role::Seller,
            Role::Seller => Role::Buyer,
        }
    }
}

/// The codes that clients see (`docs/spec/shop.md`, "Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// Malformed.
    BadRequest,
    /// It does not exist, or not on this port.
    UnknownApi,
    /// There is no session id.
    NotLoggedIn,
    SessionExpired,
    /// User name or password is wrong.
    BadCredentials,
    /// Another account of the role has this user name.
    UsernameTaken,
    /// No such item, user or purchase.
    NotFound,
    /// The item is another seller's, the api is the other role's, or an unauthenticated client asked a database.
    Forbidden,
    OutOfStock,
    EmptyCart,
    PaymentDeclined,
    /// A component cannot be reached, or could not store the change. Nothing has changed; the client may try again.
    Unavailable,
    /// A limit on concurrent work is reached; the client may try again.
    Busy,
}

/// A code for programs and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: ErrorCode,
    /// Begins with the name of the offending field, if there is one.
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }

    /// BAD_REQUEST for this field.
    pub fn wrong(field: &str, rule: impl std::fmt::Display) -> Refusal {
        Refusal::new(ErrorCode::BadRequest, format!("{field}: {rule}"))
    }

    pub fn no_proper_answer() -> Refusal {
        Refusal::new(ErrorCode::Unavailable, "a database gave no proper answer")
    }
}

pub type ShopResult<T> = Result<T, Refusal>;

/// An item as clients see it in dialect 1. Dialect 2 is derived from it, and alone needs `seller`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// `<category>-<number>`. Numbers increase, so the older of two items has the smaller one.
    pub item_id: String,
    /// 1 to 32 characters.
    pub item_name: String,
    /// 0 to 2147483647.
    pub category: u32,
    /// At most five, of at most eight characters each.
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    /// The price of one unit.
    pub price: Cents,
    /// What can be bought now, without what is held for a purchase.
    pub quantity: u32,
    pub seller_id: u64,
    pub seller: String,
    pub feedback: Feedback,
}

/// Votes of an item or a seller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    pub thumbs_up: u64,
    pub thumbs_down: u64,
}

/// Units of one item, in a cart or a purchase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineItem {
    pub item_id: String,
    /// At least 1.
    pub quantity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricedLine {
    pub item_id: String,
    pub quantity: u32,
    /// The price of one unit when it was held.
    pub price: Cents,
    pub seller_id: u64,
    /// The user name, which names the account in the ledger.
    pub seller: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemPage {
    pub items: Vec<Item>,
    /// The number on all pages, exact up to 10,000.
    pub total: u64,
    /// There are more than `total`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub total_is_at_least: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredItem {
    pub item_id: String,
}

/// The units that are left in stock, or in a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemainingQuantity {
    pub quantity: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SellerRating {
    /// The votes on the seller's items and on the seller.
    pub feedback: Feedback,
    pub items_sold: u64,
}

/// The state of what is held for a purchase. The numbers are those in the product database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldState {
    /// Nothing was ever held.
    Unknown = 0,
    /// Out of stock until sold, released or expired.
    Held = 1,
    /// Out of stock for good, unless released.
    Sold = 2,
    /// Back in stock, by a release or by expiry. Another hold for this purchase is refused.
    Released = 3,
}

/// Card details on their way to the bank. They are never stored, and `Debug` does not show them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CardDetails {
    /// 12 to 19 digits.
    pub number: String,
    /// `MM/YY`.
    pub exp: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Unique within the role.
    pub user_id: u64,
    /// Unique within the role.
    pub username: String,
    /// The name that is shown; the user name if none was chosen.
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSession {
    /// A secret: `Debug` does not show it.
    pub sid: String,
    pub user_id: u64,
}

/// What VALIDATE returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The user name.
    pub user: String,
    pub role: Role,
}

/// The result of an attempt to purchase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "begun", rename_all = "snake_case")]
pub enum BeginResponse {
    /// The caller drives the purchase, as long as it holds the lease.
    Drive { purchase_id: String, lease: u64, lease_ms: u64, lines: Vec<LineItem> },
    /// The idempotency key has been used before; this is the purchase that it made.
    Done { purchased: CompletedPurchase },
}

/// A completed purchase as its buyer is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedPurchase {
    pub purchase_id: String,
    /// The sum of all lines, which may exceed the maximum of a price.
    #[serde(with = "unbounded_cents")]
    pub total: Cents,
    pub items: Vec<PricedLine>,
}

/// Its driver's lease expired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrphanedPurchase {
    pub purchase_id: String,
    /// The new driver's.
    pub lease: u64,
    /// How long the lease lasts unless renewed.
    pub lease_ms: u64,
    /// Only its units remain to be released.
    pub is_undone: bool,
    /// The bank holds the total: the purchase is completed if its units are sold, and undone otherwise.
    pub is_authorised: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurchaseHistoryEntry {
    pub purchase_id: String,
    pub item_id: String,
    pub quantity: u32,
    /// The price of one unit.
    pub price: Cents,
    pub purchased_at: Millis,
    pub shipped_at: Option<Millis>,
}

/// A line as its seller sees it: what to ship, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SellerOrder {
    pub purchase_id: String,
    pub item_id: String,
    pub quantity: u32,
    /// The price of one unit.
    pub price: Cents,
    /// The line's price less the fee.
    #[serde(with = "unbounded_cents")]
    pub payout: Cents,
    pub buyer_name: String,
    pub address: Option<String>,
    pub purchased_at: Millis,
    pub shipped_at: Option<Millis>,
}

impl std::fmt::Debug for CardDetails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CardDetails")
    }
}

debug_fields!(NewSession, |session| user_id: session.user_id);

/// Whole cents, without the upper limit of a price.
pub(super) mod unbounded_cents {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::Cents;

    pub fn serialize<S: Serializer>(cents: &Cents, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(cents.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cents, D::Error> {
        i64::deserialize(deserializer).map(Cents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_may_exceed_a_price_and_no_secret_is_shown() {
        let purchased =
            CompletedPurchase { purchase_id: "p".to_owned(), total: Cents(5_000_000_000), items: Vec::new() };
        let json = serde_json::to_string(&purchased).unwrap();
        assert_eq!(serde_json::from_str::<CompletedPurchase>(&json).unwrap(), purchased);
        let card = CardDetails { number: "4111".to_owned(), exp: "12/79".to_owned(), name: "n".to_owned() };
        assert_eq!(format!("{card:?}"), "CardDetails");
        let session = NewSession { sid: "secret".to_owned(), user_id: 7 };
        assert!(!format!("{session:?}").contains("secret"));
    }
}
