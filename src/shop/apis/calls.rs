//! What clients can call, and what they are answered, whatever the dialect.

use std::fmt;

use crate::model::Cents;
use crate::shop::customer::CustomerCall;
use crate::shop::ops::{Account, CardDetails, CompletedPurchase, NewSession, Role};
use crate::shop::product::{NewItem, ProductOp};

/// Which of the four servers received a message, and so which apis exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    Buyer,
    Seller,
    Customer,
    Product,
}

impl ServerKind {
    /// The role that a frontend serves; `None` for a database.
    pub fn role(self) -> Option<Role> {
        match self {
            ServerKind::Buyer => Some(Role::Buyer),
            ServerKind::Seller => Some(Role::Seller),
            ServerKind::Customer | ServerKind::Product => None,
        }
    }
}

/// A client's call of an api. Only the customer database has `Validate`; `InSession` needs a session of the frontend's
/// role.
#[derive(PartialEq)]
pub enum ApiCall {
    Create { role: Role, username: String, password: String, name: Option<String> },
    Login { role: Role, username: String, password: String },
    Logout { sid: String },
    Validate { sid: String },
    InSession { sid: String, call: SessionCall },
}

/// A call that a buyer or a seller makes in a session. Of the first two, each is one operation, whose answer is passed
/// on; one of the product database needs nothing of the session, which is checked at the same time.
#[derive(Debug, PartialEq)]
pub enum SessionCall {
    AskProduct(ProductOp),
    AskCustomer(CustomerCall),
    GetOwnItem { item_id: String },
    AddToCart { item_id: String, quantity: u32 },
    RemoveFromCart { item_id: String, quantity: Option<u32> },
    Purchase(Box<PaymentDetails>),
    VoteItem { item_id: String, up: bool },
    VoteSeller { seller: String, up: bool },
    RatingOf(SellerRef),
    OwnRating,
    OwnItems { offset: u64, limit: u64 },
    Register(Box<NewItem>),
    ChangePrice { item_id: String, price: Cents },
    UpdateUnits { item_id: String, delta: i64 },
}

/// A call names a seller by id in dialect 1, by user name in dialect 2.
#[derive(Debug, PartialEq)]
pub enum SellerRef {
    Id(u64),
    Username(String),
}

/// `Debug` shows neither card nor address.
#[derive(PartialEq)]
pub struct PaymentDetails {
    pub card: CardDetails,
    pub address: Option<String>,
    pub idempotency_key: Option<String>,
}

#[derive(Debug)]
pub enum ResponsePayload {
    /// A database's result, to be written in the [`Answer`](super::answers::Answer) of the api.
    Json(String),
    Created(Role, Account),
    LoggedIn(Role, NewSession),
    Purchased(CompletedPurchase),
}

impl fmt::Debug for ApiCall {
    /// Shows neither session id nor password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiCall::Create { role, username, .. } => write!(f, "Create({role:?}, {username:?})"),
            ApiCall::Login { role, username, .. } => write!(f, "Login({role:?}, {username:?})"),
            ApiCall::Logout { .. } => f.write_str("Logout"),
            ApiCall::Validate { .. } => f.write_str("Validate"),
            ApiCall::InSession { call, .. } => call.fmt(f),
        }
    }
}

impl fmt::Debug for PaymentDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentDetails")
    }
}
