//! What frontends ask of the databases, and what they get: the bodies of a link's messages.
//!
//! Both ends are ours, so these types may change from version to version. What a client may write was
//! checked by the frontend; the databases check what only they can know. An operation that would do its
//! work twice when repeated bears a request id; the database remembers the answer for ten minutes.

use serde::{Deserialize, Serialize};

use crate::model::{Cents, Millis};

/// A buyer or a seller; their ids and user names are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Searches, fills carts, purchases, votes.
    Buyer,
    /// Lists items and gets paid.
    Seller,
}

impl Role {
    /// Whoever is on the other side of the counter.
    pub fn other(self) -> Role {
        match self {
            Role::Buyer => Role::Seller,
            Role::Seller => Role::Buyer,
        }
    }
}

/// Why something is refused, as clients see it (SPEC.md section 4, Codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The message breaks a rule of form.
    BadRequest,
    /// No such api, or not on this port.
    UnknownApi,
    /// There is no session id.
    NotLoggedIn,
    /// The session is unknown or has ended.
    SessionExpired,
    /// User name or password is wrong.
    BadCredentials,
    /// The user name is taken within its role.
    UsernameTaken,
    /// There is no such item, user or purchase.
    NotFound,
    /// Another seller's item, the other role's api, a stranger at a database.
    Forbidden,
    /// There are not as many units.
    OutOfStock,
    /// There is nothing in the cart.
    EmptyCart,
    /// The card was refused.
    PaymentDeclined,
    /// A component cannot be reached, or could not store it: nothing changed, try again.
    Unavailable,
    /// A bound is reached.
    Busy,
}

/// A refusal: its code and what a person should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people; names the field where one is wrong.
    pub message: String,
}

impl Refusal {
    /// A refusal with its message.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// What a link's request is answered with: the answer of the operation, or why not.
pub type Answer<T> = Result<T, Refusal>;

// What both databases speak of.

/// An item as it is shown (dialect 1; `seller` and the two lists of votes serve dialect 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// `<category>-<number>`; numbers grow, so the older of two items has the smaller one.
    pub item_id: String,
    /// 1 to 32 characters.
    pub item_name: String,
    /// 0 to 2147483647.
    pub category: u32,
    /// At most five of at most eight characters.
    pub keywords: Vec<String>,
    /// New rather than used.
    pub condition_is_new: bool,
    /// Of one unit.
    pub price: Cents,
    /// Units that can be bought now (what is held for a purchase is not).
    pub quantity: u32,
    /// Whose it is.
    pub seller_id: u64,
    /// The seller's user name.
    pub seller: String,
    /// The item's votes.
    pub feedback: Feedback,
}

/// Votes, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feedback {
    /// For it.
    pub thumbs_up: u64,
    /// Against it.
    pub thumbs_down: u64,
}

/// So many of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The item.
    pub item_id: String,
    /// Units, from 1 on.
    pub quantity: u32,
}

/// A line whose price and seller are known: what a purchase consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricedLine {
    /// The item.
    pub item_id: String,
    /// Units.
    pub quantity: u32,
    /// Of one unit, when it was held.
    pub price: Cents,
    /// Who is paid.
    pub seller_id: u64,
    /// The seller's user name, for the ledger.
    pub seller: String,
}

// The product database.

/// What the product database does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ProductOp {
    /// → [`Found`]
    Search {
        /// Exactly this category.
        category: Option<u32>,
        /// Distinct, lowercase; at most five.
        keywords: Vec<String>,
        /// How many of the best to skip.
        offset: u64,
        /// How many to give at most.
        limit: u64,
    },
    /// → [`Item`]
    GetItem { item_id: String },
    /// → [`Registered`]
    Register {
        /// For repeats.
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
    /// → `()`; FORBIDDEN for another's item.
    ChangePrice { seller_id: u64, item_id: String, price: Cents },
    /// → [`Quantity`]; OUT_OF_STOCK when more are taken away than there are.
    UpdateUnits {
        /// For repeats.
        request: String,
        seller_id: u64,
        item_id: String,
        /// What is added; negative takes away.
        delta: i64,
    },
    /// → [`Found`]: a seller's own items, also those without stock, oldest first.
    ItemsOf { seller_id: u64, offset: u64, limit: u64 },
    /// → `()`: one vote per buyer and item, which may be changed; it counts for the item's seller too.
    VoteItem { buyer_id: u64, item_id: String, up: bool },
    /// → `()`: one vote per buyer and seller, added to the seller's.
    VoteSeller { buyer_id: u64, seller_id: u64, up: bool },
    /// → [`Rating`]; zeros for a seller nobody has heard of here.
    RatingOf { seller_id: u64 },
    /// → `Vec<`[`PricedLine`]`>`: takes all lines out of stock or none, until sold, released or expired.
    /// The same purchase again: the same answer. OUT_OF_STOCK or NOT_FOUND names the item. After a release
    /// (or expiry): WRONG, see [`Hold`].
    Hold { purchase_id: String, lines: Vec<Line>, expires_in_ms: u64 },
    /// → [`Hold`]: held becomes sold, which does not expire. Repeating it changes nothing.
    Sell { purchase_id: String },
    /// → [`Hold`] `Released`: units go back, held or sold; one that comes before its hold refuses that.
    Release { purchase_id: String },
    /// → [`Hold`]
    HoldState { purchase_id: String },
}

/// What a search found, or a seller has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// This page.
    pub items: Vec<Item>,
    /// How many there are in all, exact up to 10,000.
    pub total: u64,
    /// There are more than `total`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub total_is_at_least: bool,
}

/// A new item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id.
    pub item_id: String,
}

/// Units that there are now, or that are left in a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantity {
    /// Units.
    pub quantity: u32,
}

/// A seller's votes and sales.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rating {
    /// Votes on the seller's items and on the seller.
    pub feedback: Feedback,
    /// Units sold.
    pub items_sold: u64,
}

/// What became of a purchase's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Nothing was held under this id.
    Unknown,
    /// Out of stock for a while.
    Held,
    /// Out of stock for good.
    Sold,
    /// Back in stock, and refused from now on (also because it expired).
    Released,
}

// The customer database.

/// What the customer database does. `sid` is a session id; an operation that bears one is refused with
/// SESSION_EXPIRED, or FORBIDDEN for one of the other role, and counts as a use of the session.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum CustomerOp {
    /// → [`Account`]; `source` is the client's IP address, whose share of the passwords that wait it is of.
    Create {
        request: String,
        role: Role,
        username: String,
        password: String,
        name: Option<String>,
        #[serde(default)]
        source: String,
    },
    /// → [`LoggedIn`]; `source` is the client's IP address, for the bound of failures.
    Login { role: Role, username: String, password: String, source: String },
    /// → `()`
    Logout { role: Role, sid: String },
    /// → [`Session`]; does not count as a use.
    Validate { sid: String },
    /// → [`Account`]: who is this? Counts as a use of the session.
    Touch { role: Role, sid: String },
    /// → [`Account`], by user name or by id.
    FindUser { role: Role, username: Option<String>, user_id: Option<u64> },
    /// → `()`; OUT_OF_STOCK when the cart would hold more than `at_most`.
    AddToCart { request: String, sid: String, users: bool, item_id: String, quantity: u32, at_most: u32 },
    /// → [`Quantity`] left; without a quantity, or with more than there is, all of it goes.
    RemoveFromCart { request: String, sid: String, users: bool, item_id: String, quantity: Option<u32> },
    /// → `()`
    SaveCart { sid: String, users: bool },
    /// → `()`
    ClearCart { sid: String, users: bool },
    /// → `Vec<`[`Line`]`>`, by item id.
    ShowCart { sid: String, users: bool },
    /// → [`Begun`]: a purchase of what is in the cart, driven by whoever gets [`Begun::Drive`].
    Begin {
        /// For repeats: the one that drives may not have heard that it does.
        request: String,
        sid: String,
        /// Dialect 2: the cart is the user's saved one.
        users: bool,
        idempotency_key: Option<String>,
        address: Option<String>,
    },
    /// → `()`: the prices are known; the card is charged with them. PAYMENT_DECLINED ends the attempt:
    /// release, then [`CustomerOp::Closed`].
    Authorise { purchase_id: String, lease: u64, lines: Vec<PricedLine>, card: LinkCard },
    /// → [`Purchased`]: the units are sold. The commit point: history, ledger, emptied cart; then captures.
    Complete { purchase_id: String, lease: u64 },
    /// → `()`: from now on it is undone, whatever comes late; the authorisation is void. Release follows.
    Undo { purchase_id: String, lease: u64, why: Refusal },
    /// → `()`: the units of an undone purchase are back.
    Closed { purchase_id: String, lease: u64 },
    /// → `()`: these purchases' drivers, each with its lease, are still at work.
    Renew { leases: Vec<(String, u64)> },
    /// → `Option<`[`Orphan`]`>`: a purchase whose driver's lease ran out, under a lease of the asker.
    TakeOver,
    /// → `Vec<`[`Bought`]`>`, newest first.
    Purchases { sid: String, offset: u64, limit: u64 },
    /// → `Vec<`[`Order`]`>`, newest first.
    Orders { sid: String, offset: u64, limit: u64 },
    /// → `()`: one line of a purchase is on its way.
    MarkShipped { sid: String, purchase_id: String, item_id: String },
}

/// A card on its way to the bank. Never stored, never shown.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkCard {
    /// 12 to 19 digits.
    pub number: String,
    /// `MM/YY`.
    pub exp: String,
    /// The name on it.
    pub name: String,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Unique within the role.
    pub user_id: u64,
    /// Unique within the role.
    pub username: String,
    /// As the user wants to be called; else the user name.
    pub name: String,
}

/// A session that was opened.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {
    /// What proves it.
    pub sid: String,
    /// Whose it is.
    pub user_id: u64,
}

/// A session, as VALIDATE shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The user name.
    pub user: String,
    /// The role.
    pub role: Role,
}

/// What came of an attempt to purchase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "begun", rename_all = "snake_case")]
pub enum Begun {
    /// It is to be driven by the asker, within the lease's time.
    Drive { purchase_id: String, lease: u64, lease_ms: u64, lines: Vec<Line> },
    /// This key has been answered before: the same answer.
    Done { purchased: Purchased },
}

/// A completed purchase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purchased {
    /// Its id.
    pub purchase_id: String,
    /// Of all lines; may exceed what a price may be.
    #[serde(with = "sum")]
    pub total: Cents,
    /// What was bought, at which price.
    pub items: Vec<PricedLine>,
}

/// A purchase that lost its driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orphan {
    /// Its id.
    pub purchase_id: String,
    /// The asker's lease.
    pub lease: u64,
    /// How long that lasts.
    pub lease_ms: u64,
    /// It is undone: only the release is missing.
    pub is_undone: bool,
    /// The card may have been charged: if the units are sold, it is completed.
    pub is_authorised: bool,
}

/// A line of a buyer's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bought {
    pub purchase_id: String,
    pub item_id: String,
    pub quantity: u32,
    /// Of one unit.
    pub price: Cents,
    pub purchased_at: Millis,
    pub shipped_at: Option<Millis>,
}

/// A line that a seller has to ship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub purchase_id: String,
    pub item_id: String,
    pub quantity: u32,
    /// Of one unit.
    pub price: Cents,
    /// Of the line, less the fee.
    #[serde(with = "sum")]
    pub payout: Cents,
    pub buyer_name: String,
    pub address: Option<String>,
    pub purchased_at: Millis,
    pub shipped_at: Option<Millis>,
}

impl std::fmt::Debug for CustomerOp {
    /// The kind alone: what it carries may be a secret.
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

impl std::fmt::Debug for LinkCard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkCard")
    }
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// An amount that no price rule binds, as whole cents.
mod sum {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::model::Cents;

    pub(super) fn serialize<S: Serializer>(sum: &Cents, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(sum.0)
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
        let purchased = Purchased { purchase_id: "p".to_owned(), total: Cents(5_000_000_000), items: Vec::new() };
        let json = serde_json::to_string(&purchased).unwrap();
        assert_eq!(serde_json::from_str::<Purchased>(&json).unwrap(), purchased);
        let login = CustomerOp::Login {
            role: Role::Buyer,
            username: "u".to_owned(),
            password: "hunter2".to_owned(),
            source: "127.0.0.1".to_owned(),
        };
        assert_eq!(format!("{login:?}"), "login");
        let card = LinkCard { number: "4111".to_owned(), exp: "12/79".to_owned(), name: "n".to_owned() };
        assert_eq!(format!("{card:?}"), "LinkCard");
        let session = LoggedIn { sid: "secret".to_owned(), user_id: 7 };
        assert!(!format!("{session:?}").contains("secret"));
    }
}
