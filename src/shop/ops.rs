//! The operations that frontends request from the databases, and their results: the bodies of the messages on a link.
//!
//! Both ends belong to this program, so these types may change between versions. The frontend has validated the
//! form of client input; the databases check only what they alone can know. An operation that is not idempotent
//! carries a request id, and the database remembers its response for ten minutes.

use serde::{Deserialize, Serialize};

use crate::model::{Cents, Millis};

/// Whether an account is a buyer's or a seller's. Each role has its own id and user name space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Buyer,
    Seller,
}

impl Role {
    pub fn opposite(self) -> Role {
        match self {
            Role::Buyer => Role::Seller,
            Role::Seller => Role::Buyer,
        }
    }
}

/// The error code of a refusal, as clients see it (`docs/spec/shop.md`, "Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The message is malformed.
    BadRequest,
    /// This api does not exist, or not on this port.
    UnknownApi,
    /// The message has no session id.
    NotLoggedIn,
    /// The session is unknown or has ended.
    SessionExpired,
    /// The user name or the password is wrong.
    BadCredentials,
    /// Another account of the same role has this user name.
    UsernameTaken,
    /// There is no such item, user or purchase.
    NotFound,
    /// The item is another seller's, the api is the other role's, or an unauthenticated client asked a database.
    Forbidden,
    /// Fewer units are in stock than requested.
    OutOfStock,
    EmptyCart,
    /// The bank declined the card.
    PaymentDeclined,
    /// A component cannot be reached, or could not store the change. Nothing has changed; the client may try again.
    Unavailable,
    /// A limit on concurrent work is reached; the client may try again.
    Busy,
}

/// Why an operation was refused: a code for programs and a message for people.
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
}

/// The result of an operation.
pub type ShopResult<T> = Result<T, Refusal>;

// Types that both databases use.

/// An item as clients see it in dialect 1. Dialect 2 is derived from it, and is the only one that needs `seller`.
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
    /// Units that can be bought now, without those held for a purchase.
    pub quantity: u32,
    pub seller_id: u64,
    /// The seller's user name.
    pub seller: String,
    pub feedback: Feedback,
}

/// How many votes an item or a seller has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    pub thumbs_up: u64,
    pub thumbs_down: u64,
}

/// A number of units of one item, in a cart or a purchase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineItem {
    pub item_id: String,
    /// At least 1.
    pub quantity: u32,
}

/// A line item of a purchase, whose price and seller are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricedLine {
    pub item_id: String,
    pub quantity: u32,
    /// The price of one unit at the time when it was held.
    pub price: Cents,
    pub seller_id: u64,
    /// The seller's user name, which names the account in the ledger.
    pub seller: String,
}

// The product database.

/// An operation of the product database. Each variant names the type of its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ProductOp {
    /// → [`ItemPage`]
    Search {
        category: Option<u32>,
        /// Distinct and lowercase; at most five.
        keywords: Vec<String>,
        offset: u64,
        limit: u64,
    },
    /// → [`Item`]
    GetItem { item_id: String },
    /// → [`RegisteredItem`]
    Register {
        /// The request id.
        request: String,
        seller_id: u64,
        seller: String,
        item_name: String,
        category: u32,
        keywords: Vec<String>,
        condition_is_new: bool,
        price: Cents,
        quantity: u32,
    },
    /// → `()`; FORBIDDEN for another seller's item.
    ChangePrice { seller_id: u64, item_id: String, price: Cents },
    /// → [`RemainingQuantity`]; OUT_OF_STOCK when more units are removed than there are.
    UpdateUnits {
        /// The request id.
        request: String,
        seller_id: u64,
        item_id: String,
        /// Units to add; negative to remove.
        delta: i64,
    },
    /// → [`ItemPage`]: a seller's own items, including those without stock, oldest first.
    ItemsOf { seller_id: u64, offset: u64, limit: u64 },
    /// → `()`: one vote per buyer and item, which may be changed. It also counts for the item's seller.
    VoteItem { buyer_id: u64, item_id: String, up: bool },
    /// → `()`: one vote per buyer and seller, which may be changed.
    VoteSeller { buyer_id: u64, seller_id: u64, up: bool },
    /// → [`SellerRating`]; all zeros for an unknown seller.
    RatingOf { seller_id: u64 },
    /// → `Vec<`[`PricedLine`]`>`: takes all lines out of stock or none, until they are sold, released or expire.
    /// Idempotent per purchase. OUT_OF_STOCK or NOT_FOUND names the item; after a release or expiry, FORBIDDEN.
    Hold { purchase_id: String, lines: Vec<LineItem>, expires_in_ms: u64 },
    /// → [`HoldState`]: held units become sold, which does not expire. Idempotent.
    Sell { purchase_id: String },
    /// → [`HoldState`] `Released`: held or sold units return to stock. A release that arrives before its hold makes
    /// that hold fail.
    Release { purchase_id: String },
    /// → [`HoldState`]
    HoldState { purchase_id: String },
}

/// One page of a list of items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemPage {
    pub items: Vec<Item>,
    /// The number of items on all pages, exact up to 10,000.
    pub total: u64,
    /// Whether there are more than `total`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub total_is_at_least: bool,
}

/// The result of registering an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredItem {
    pub item_id: String,
}

/// The units that are left in stock, or in a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemainingQuantity {
    pub quantity: u32,
}

/// A seller's votes and sales.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SellerRating {
    /// Votes on the seller's items and on the seller.
    pub feedback: Feedback,
    pub items_sold: u64,
}

/// The state of the units that are held for a purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldState {
    /// Nothing was ever held for this purchase.
    Unknown,
    /// Out of stock until sold, released or expired.
    Held,
    /// Out of stock for good, unless released.
    Sold,
    /// Back in stock, by a release or by expiry. Another hold for this purchase is refused.
    Released,
}

// The customer database.

/// An operation of the customer database. Each variant names the type of its result.
///
/// `sid` is a session id. An operation that has one is refused with SESSION_EXPIRED if there is no such session and
/// with FORBIDDEN if it is of the other role; otherwise it counts as a use of the session.
///
/// `uses_saved_cart` is set for dialect 2, in which the cart is the buyer's saved one rather than the session's.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum CustomerOp {
    /// → [`Account`]; `source` is the client's IP address, which bounds how many of its password hashes may wait.
    Create {
        request: String,
        role: Role,
        username: String,
        password: String,
        name: Option<String>,
        #[serde(default)]
        source: String,
    },
    /// → [`NewSession`]; `source` is the client's IP address, for the limit on failed logins.
    Login { role: Role, username: String, password: String, source: String },
    /// → `()`
    Logout { role: Role, sid: String },
    /// → [`SessionInfo`]; does not count as a use of the session.
    Validate { sid: String },
    /// → [`Account`] of the session. Counts as a use of it.
    Touch { role: Role, sid: String },
    /// → [`Account`], by user name or by id.
    FindUser { role: Role, username: Option<String>, user_id: Option<u64> },
    /// → `()`; OUT_OF_STOCK when the cart would hold more than `at_most`.
    AddToCart {
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        item_id: String,
        quantity: u32,
        at_most: u32,
    },
    /// → [`RemainingQuantity`] in the cart. Without a quantity, or with more than there is, all units are removed.
    RemoveFromCart {
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        item_id: String,
        quantity: Option<u32>,
    },
    /// → `()`
    SaveCart {
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
    },
    /// → `()`
    ClearCart {
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
    },
    /// → `Vec<`[`LineItem`]`>`, by item id.
    ShowCart {
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
    },
    /// → [`BeginResponse`]: begins a purchase of what is in the cart. Who gets [`BeginResponse::Drive`] drives it.
    Begin {
        /// The request id, for a driver whose response was lost.
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        idempotency_key: Option<String>,
        address: Option<String>,
    },
    /// → `()`: has the bank authorise the total of these lines. PAYMENT_DECLINED ends the attempt: the driver then
    /// releases the units and sends [`CustomerOp::Closed`].
    Authorise { purchase_id: String, lease: u64, lines: Vec<PricedLine>, card: CardDetails },
    /// → [`CompletedPurchase`]: the units are sold. This is the commit point: the bank captures the charge, and
    /// history, ledger and the emptied cart are written with it.
    Complete { purchase_id: String, lease: u64 },
    /// → `()`: the purchase is undone, whatever arrives later, and its authorisation voided. The driver releases the
    /// units next.
    Undo { purchase_id: String, lease: u64, why: Refusal },
    /// → `()`: the units of an undone purchase are back in stock.
    Closed { purchase_id: String, lease: u64 },
    /// → `()`: extends the leases of these purchases (id and lease), whose drivers are still at work.
    Renew { leases: Vec<(String, u64)> },
    /// → `Option<`[`OrphanedPurchase`]`>`: a purchase whose driver's lease has expired, with a new lease for the
    /// caller.
    TakeOver,
    /// → `Vec<`[`PurchaseHistoryEntry`]`>`, newest first.
    Purchases { sid: String, offset: u64, limit: u64 },
    /// → `Vec<`[`SellerOrder`]`>`, newest first.
    Orders { sid: String, offset: u64, limit: u64 },
    /// → `()`: marks one line of a purchase as shipped.
    MarkShipped { sid: String, purchase_id: String, item_id: String },
}

/// Card details on their way to the bank. They are never stored, and `Debug` does not show them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CardDetails {
    /// 12 to 19 digits.
    pub number: String,
    /// `MM/YY`.
    pub exp: String,
    /// The card holder's name.
    pub name: String,
}

/// A buyer's or a seller's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Unique within the role.
    pub user_id: u64,
    /// Unique within the role.
    pub username: String,
    /// The display name; the user name if none was chosen.
    pub name: String,
}

/// A session that was just opened.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSession {
    /// The session id, which is a secret: `Debug` does not show it.
    pub sid: String,
    pub user_id: u64,
}

/// The description of a session that VALIDATE returns.
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
    /// This idempotency key has been used before; this is the purchase that it made.
    Done { purchased: CompletedPurchase },
}

/// A completed purchase, as its buyer is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedPurchase {
    pub purchase_id: String,
    /// The sum of all lines, which may exceed the maximum of a price.
    #[serde(with = "unbounded_cents")]
    pub total: Cents,
    pub items: Vec<PricedLine>,
}

/// A purchase whose driver's lease expired, for its next driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrphanedPurchase {
    pub purchase_id: String,
    /// The new driver's lease.
    pub lease: u64,
    /// How long the lease lasts unless renewed.
    pub lease_ms: u64,
    /// It is undone, and only its units remain to be released.
    pub is_undone: bool,
    /// The bank holds the total: the purchase is completed if its units are sold, and undone otherwise.
    pub is_authorised: bool,
}

/// A line of a buyer's purchase history.
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

/// A line of a purchase, as its seller sees it: what to ship, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SellerOrder {
    pub purchase_id: String,
    pub item_id: String,
    pub quantity: u32,
    /// The price of one unit.
    pub price: Cents,
    /// What the seller gets for the line: its price less the fee.
    #[serde(with = "unbounded_cents")]
    pub payout: Cents,
    pub buyer_name: String,
    pub address: Option<String>,
    pub purchased_at: Millis,
    pub shipped_at: Option<Millis>,
}

impl std::fmt::Debug for CustomerOp {
    /// Writes the kind only, because an operation may carry secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            CustomerOp::Create { .. } => "create",
            CustomerOp::Login { .. } => "login",
            CustomerOp::Logout { .. } => "logout",
            CustomerOp::Validate { .. } => "validate",
            CustomerOp::Touch { .. } => "touch",
            CustomerOp::FindUser { .. } => "find_user",
            CustomerOp::AddToCart { .. } => "add_to_cart",
            CustomerOp::RemoveFromCart { .. } => "remove_from_cart",
            CustomerOp::SaveCart { .. } => "save_cart",
            CustomerOp::ClearCart { .. } => "clear_cart",
            CustomerOp::ShowCart { .. } => "show_cart",
            CustomerOp::Begin { .. } => "begin",
            CustomerOp::Authorise { .. } => "authorise",
            CustomerOp::Complete { .. } => "complete",
            CustomerOp::Undo { .. } => "undo",
            CustomerOp::Closed { .. } => "closed",
            CustomerOp::Renew { .. } => "renew",
            CustomerOp::TakeOver => "take_over",
            CustomerOp::Purchases { .. } => "purchases",
            CustomerOp::Orders { .. } => "orders",
            CustomerOp::MarkShipped { .. } => "mark_shipped",
        };
        f.write_str(kind)
    }
}

impl std::fmt::Debug for CardDetails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CardDetails")
    }
}

impl std::fmt::Debug for NewSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSession").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// Serialises an amount as whole cents, without the upper limit of a price.
mod unbounded_cents {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::Cents;

    pub(super) fn serialize<S: Serializer>(cents: &Cents, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(cents.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cents, D::Error> {
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
        let login = CustomerOp::Login {
            role: Role::Buyer,
            username: "u".to_owned(),
            password: "hunter2".to_owned(),
            source: "127.0.0.1".to_owned(),
        };
        assert_eq!(format!("{login:?}"), "login");
        let card = CardDetails { number: "4111".to_owned(), exp: "12/79".to_owned(), name: "n".to_owned() };
        assert_eq!(format!("{card:?}"), "CardDetails");
        let session = NewSession { sid: "secret".to_owned(), user_id: 7 };
        assert!(!format!("{session:?}").contains("secret"));
    }
}
