//! The messages of clients: parsing of requests and writing of responses, in both dialects, with every limit.
//!
//! A message whose `type` is `request` is dialect 1 (an envelope with a payload), any other is dialect 2 (flat). Both
//! are parsed into the same [`ApiCall`]s, and the resulting [`ResponsePayload`] is written in the dialect of the
//! request. Parsing is strict about the fields that it needs and ignores unknown ones; every error names the field and
//! says what was expected (`docs/spec/general.md`).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ops::{
    Account, CardDetails, CompletedPurchase, ErrorCode, NewSession, PurchaseHistoryEntry, Refusal, Role, SellerOrder,
    SellerRating, SessionInfo, ShopResult,
};
use crate::model::text::nfc;
use crate::model::{CardNumber, Cents, Expiry, number, text};

mod bounded;
mod dialect1;
mod dialect2;
#[cfg(test)]
mod tests;

pub use dialect2::FieldAliases;

/// The maximum number of bytes of a request.
pub const MESSAGE_MAX: usize = 1 << 20;
/// The maximum number of characters of an item's name.
pub const ITEM_NAME_MAX: usize = 32;
/// The maximum number of keywords, of an item and of a search.
pub const KEYWORDS_MAX: usize = 5;
/// The maximum number of characters of an item's keyword.
pub const KEYWORD_MAX: usize = 8;
/// The maximum number of characters of a search keyword.
pub const SEARCH_KEYWORD_MAX: usize = 64;
/// The maximum number of characters of a password.
pub const PASSWORD_MAX: usize = 256;
/// The maximum number of characters of a postal address.
pub const ADDRESS_MAX: usize = 1024;
/// The maximum number of entries of a list in a response.
pub const PAGE_MAX: u64 = 500;
/// The limit of a search in dialect 1 that names none.
const SEARCH_LIMIT_DEFAULT: u64 = 50;
/// The maximum number of characters of an id. The shop assigns no longer ones.
const ID_MAX: usize = 64;
/// The maximum of categories and quantities.
const INT32_MAX: i64 = i32::MAX as i64;
/// Numbers stay below 2^53, so that every JSON parser represents them exactly.
const SAFE_INTEGER_MAX: i64 = (1 << 53) - 1;

/// Which of the four servers received a message. This decides which apis exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    Buyer,
    Seller,
    /// The customer database, for unauthenticated clients.
    Customer,
    /// The product database, for unauthenticated clients.
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

/// A valid request: the call and the form of its response.
#[derive(Debug)]
pub struct ParsedRequest {
    pub envelope: ResponseEnvelope,
    pub call: ApiCall,
}

/// A request that was refused while it was parsed.
#[derive(PartialEq, Eq)]
pub struct InvalidRequest {
    pub envelope: ResponseEnvelope,
    pub refusal: Refusal,
    /// The session id of the request, if known. Errors of the session take precedence over this refusal.
    pub sid: Option<String>,
}

/// An [`InvalidRequest`] without its envelope.
struct RequestError {
    refusal: Refusal,
    sid: Option<String>,
}

impl RequestError {
    fn with_envelope(self, envelope: ResponseEnvelope) -> InvalidRequest {
        InvalidRequest { envelope, refusal: self.refusal, sid: self.sid }
    }
}

/// An error that takes precedence over those of the session.
impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> RequestError {
        RequestError { refusal, sid: None }
    }
}

/// Parses the fields of a call in a session, whose id is already known.
fn parse_in_session(
    sid: String,
    parse: impl FnOnce() -> Result<SessionCall, Refusal>,
) -> Result<ApiCall, RequestError> {
    match parse() {
        Ok(call) => Ok(ApiCall::InSession { sid, call }),
        Err(refusal) => Err(RequestError { refusal, sid: Some(sid) }),
    }
}

/// The dialect of a response, and what it repeats of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseEnvelope {
    Dialect1 {
        /// The api of the request.
        api: Option<String>,
        /// The session id of the request.
        session_id: Option<String>,
    },
    Dialect2(FieldAliases),
}

impl ResponseEnvelope {
    /// The envelope of a response to something that is not a request: dialect 2 without field aliases.
    pub const UNPARSED: ResponseEnvelope = ResponseEnvelope::Dialect2(FieldAliases::NONE);

    /// Whether the request came in dialect 2, in which the cart is the buyer's saved one.
    pub fn is_dialect2(&self) -> bool {
        matches!(self, ResponseEnvelope::Dialect2(_))
    }
}

/// A client's call of an api.
#[derive(PartialEq)]
pub enum ApiCall {
    Create {
        role: Role,
        username: String,
        password: String,
        name: Option<String>,
    },
    Login {
        role: Role,
        username: String,
        password: String,
    },
    Logout {
        sid: String,
    },
    /// Asks whose session this is. Only the customer database has this call.
    Validate {
        sid: String,
    },
    /// A call that needs a session of the frontend's role.
    InSession {
        sid: String,
        call: SessionCall,
    },
}

/// A call that a buyer or a seller makes in a session.
#[derive(Debug, PartialEq)]
pub enum SessionCall {
    Search { category: Option<u32>, keywords: Vec<String>, page: PageRequest },
    GetItem { item_id: String },
    GetOwnItem { item_id: String },
    AddToCart { item_id: String, quantity: u32 },
    RemoveFromCart { item_id: String, quantity: Option<u32> },
    SaveCart,
    ClearCart,
    ShowCart,
    Purchase(Box<PaymentDetails>),
    VoteItem { item_id: String, up: bool },
    VoteSeller { seller: String, up: bool },
    RatingOf(SellerRef),
    OwnRating,
    Purchases(PageRequest),
    Orders(PageRequest),
    OwnItems(PageRequest),
    Register(Box<ItemRegistration>),
    ChangePrice { item_id: String, price: Cents },
    UpdateUnits { item_id: String, delta: i64 },
    MarkShipped { purchase_id: String, item_id: String },
}

/// The part of a list that is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// The number of entries to skip.
    pub offset: u64,
    /// The maximum number of entries to return.
    pub limit: u64,
}

/// How a call names a seller: by id in dialect 1, by user name in dialect 2.
#[derive(Debug, PartialEq)]
pub enum SellerRef {
    Id(u64),
    Username(String),
}

/// How a purchase is paid and where it is sent. `Debug` shows neither card nor address.
#[derive(PartialEq)]
pub struct PaymentDetails {
    pub card: CardDetails,
    pub address: Option<String>,
    pub idempotency_key: Option<String>,
}

/// The fields of a call that registers an item for sale.
#[derive(Debug, PartialEq)]
pub struct ItemRegistration {
    pub item_name: String,
    pub category: u32,
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    pub price: Cents,
    pub quantity: u32,
}

/// The result of a call. A `String` is the JSON of a database's result, which is passed on.
#[derive(Debug)]
pub enum ResponsePayload {
    /// The call succeeded and returns nothing.
    Done,
    Created(Role, Account),
    LoggedIn(Role, NewSession),
    Session(SessionInfo),
    /// The JSON of [`ItemPage`](super::ops::ItemPage), for a search.
    Search(String),
    /// The JSON of [`ItemPage`](super::ops::ItemPage), for a seller's own items.
    Items(String),
    /// The JSON of an [`Item`](super::ops::Item).
    Item(String),
    /// The JSON of a list of [`LineItem`](super::ops::LineItem)s.
    Cart(String),
    /// The units that are left in the cart, or are for sale.
    Quantity(u32),
    /// The JSON of [`RegisteredItem`](super::ops::RegisteredItem).
    Registered(String),
    Rating(SellerRating),
    Purchased(CompletedPurchase),
    Purchases(Vec<PurchaseHistoryEntry>),
    Orders(Vec<SellerOrder>),
}

/// Parses a message of a client.
///
/// # Errors
/// The message is not a valid request of this server; the error tells how to respond.
pub fn parse_request(server_kind: ServerKind, message: &[u8]) -> Result<ParsedRequest, InvalidRequest> {
    let no_message = |why: String| Err(RequestError::from(bad_request(why)).with_envelope(ResponseEnvelope::UNPARSED));
    // Checks the whole message, because the parser skips unknown fields without decoding them.
    let Ok(message) = std::str::from_utf8(message) else {
        return no_message("expected one JSON object: it is not UTF-8".to_owned());
    };
    let message = message.strip_prefix('\u{feff}').unwrap_or(message);
    let value = match bounded::parse(message) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return no_message("expected one JSON object".to_owned()),
        Err(error) => return no_message(format!("expected one JSON object: {}", json_error_text(&error))),
    };
    let is_dialect1 = value.get("type").and_then(Value::as_str) == Some("request");
    if is_dialect1 {
        dialect1::parse_request(server_kind, &value)
    } else {
        dialect2::parse_request(server_kind, &value)
    }
}

/// Writes the response to a call.
pub fn write_response(envelope: &ResponseEnvelope, answer: &ShopResult<ResponsePayload>) -> Vec<u8> {
    let written = match envelope {
        ResponseEnvelope::Dialect1 { api, session_id } => {
            dialect1::write_response(api.as_deref(), session_id.as_deref(), answer)
        }
        ResponseEnvelope::Dialect2(aliases) => dialect2::write_response(*aliases, answer),
    };
    written.unwrap_or_else(|_| {
        // A database's JSON does not have the expected form.
        let refusal = Refusal::new(ErrorCode::Unavailable, "a database gave no proper answer");
        let failed = match envelope {
            ResponseEnvelope::Dialect1 { api, session_id } => {
                dialect1::write_response(api.as_deref(), session_id.as_deref(), &Err(refusal))
            }
            ResponseEnvelope::Dialect2(aliases) => dialect2::write_response(*aliases, &Err(refusal)),
        };
        // Serialising strings to memory cannot fail.
        failed.unwrap_or_default()
    })
}

fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

/// The refusal of an api that this server does not have, because it is unknown or the other role's.
fn unknown_api(api: &str, server_kind: ServerKind, belongs_to_other_role: bool) -> Refusal {
    let whose = match server_kind {
        ServerKind::Buyer => "buyers",
        ServerKind::Seller => "sellers",
        ServerKind::Customer | ServerKind::Product => "strangers",
    };
    let api: String = api.chars().filter(|c| !c.is_control()).take(64).collect();
    let code = if belongs_to_other_role { ErrorCode::Forbidden } else { ErrorCode::UnknownApi };
    Refusal::new(code, format!("there is no {api} for {whose}"))
}

/// Describes a JSON error without quoting the input, as serde's own text may.
fn json_error_text(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("syntax error at line {}, column {}", error.line(), error.column()),
    }
}

/// Typed access to the fields of a message or of its payload.
#[derive(Clone, Copy)]
struct MessageFields<'a>(&'a Map<String, Value>);

impl<'a> MessageFields<'a> {
    /// A field that is present and not null.
    fn get(self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn require(self, field: &str) -> Result<&'a Value, Refusal> {
        self.get(field).ok_or_else(|| bad_request(format!("{field}: missing")))
    }

    /// A string of `min` to `max` characters, none of which is a control character.
    fn text(self, field: &str, min: usize, max: usize) -> Result<String, Refusal> {
        let Value::String(value) = self.require(field)? else {
            return Err(bad_request(format!("{field}: expected a text")));
        };
        text::check(value, min, max).map_err(|error| bad_request(format!("{field}: {error}")))?;
        Ok(value.clone())
    }

    fn optional_text(self, field: &str, min: usize, max: usize) -> Result<Option<String>, Refusal> {
        self.get(field).map(|_| self.text(field, min, max)).transpose()
    }

    /// A password, which may contain any characters.
    fn password(self, field: &str) -> Result<String, Refusal> {
        let Value::String(value) = self.require(field)? else {
            return Err(bad_request(format!("{field}: expected a text")));
        };
        let length = value.chars().count();
        if !(1..=PASSWORD_MAX).contains(&length) {
            return Err(bad_request(format!("{field}: expected 1 to {PASSWORD_MAX} characters, not {length}")));
        }
        Ok(value.clone())
    }

    /// The session id. NOT_LOGGED_IN if it is missing or empty.
    fn session_id(self, field: &str) -> Result<String, Refusal> {
        match self.get(field) {
            Some(Value::String(sid)) if !sid.is_empty() => Ok(sid.clone()),
            None | Some(Value::String(_)) => {
                Err(Refusal::new(ErrorCode::NotLoggedIn, format!("{field}: missing; log in first")))
            }
            Some(_) => Err(bad_request(format!("{field}: expected a text"))),
        }
    }

    fn id(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, ID_MAX)
    }

    /// An integer in any JSON notation, such as `1e3`.
    fn integer(self, field: &str, min: i64, max: i64) -> Result<i64, Refusal> {
        number::integer_as(self.require(field)?)
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| bad_request(format!("{field}: expected a whole number from {min} to {max}")))
    }

    fn u32(self, field: &str, min: i64) -> Result<u32, Refusal> {
        // The range fits a u32.
        self.integer(field, min, INT32_MAX).map(|number| number as u32)
    }

    fn optional_u32(self, field: &str, min: i64) -> Result<Option<u32>, Refusal> {
        self.get(field).map(|_| self.u32(field, min)).transpose()
    }

    fn boolean(self, field: &str) -> Result<bool, Refusal> {
        self.require(field)?.as_bool().ok_or_else(|| bad_request(format!("{field}: expected true or false")))
    }

    fn price(self, field: &str) -> Result<Cents, Refusal> {
        Cents::deserialize(self.require(field)?).map_err(|error| bad_request(format!("{field}: {error}")))
    }

    /// Whether the condition is `New` rather than `Used`, in any letter case.
    fn condition(self, field: &str) -> Result<bool, Refusal> {
        match self.require(field)?.as_str() {
            Some(text) if text.eq_ignore_ascii_case("new") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("used") => Ok(false),
            _ => Err(bad_request(format!("{field}: expected New or Used"))),
        }
    }

    /// At most five strings of 1 to `max` characters.
    fn keywords(self, field: &str, max: usize) -> Result<Vec<String>, Refusal> {
        let Value::Array(values) = self.require(field)? else {
            return Err(bad_request(format!("{field}: expected a list of texts")));
        };
        if values.len() > KEYWORDS_MAX {
            return Err(bad_request(format!("{field}: expected at most {KEYWORDS_MAX}")));
        }
        let keyword = |value: &Value| {
            let keyword = value.as_str().ok_or_else(|| bad_request(format!("{field}: expected a list of texts")))?;
            text::check(keyword, 1, max).map_err(|error| bad_request(format!("{field}: {error}")))?;
            Ok(keyword.to_owned())
        };
        values.iter().map(keyword).collect()
    }

    /// The distinct search keywords in lowercase, in Unicode's form C.
    fn search_keywords(self, field: &str) -> Result<Vec<String>, Refusal> {
        if self.get(field).is_none() {
            return Ok(Vec::new());
        }
        let mut distinct: Vec<String> = Vec::new();
        for keyword in self.keywords(field, SEARCH_KEYWORD_MAX)? {
            let keyword = nfc(&keyword.to_lowercase()).into_owned();
            if !distinct.contains(&keyword) {
                distinct.push(keyword);
            }
        }
        Ok(distinct)
    }

    fn page(self, limit: u64) -> Result<PageRequest, Refusal> {
        let number = |field, max, default| match self.get(field) {
            // `integer` has checked that it is not negative.
            Some(_) => self.integer(field, 0, max).map(|number| number as u64),
            None => Ok(default),
        };
        Ok(PageRequest {
            offset: number("offset", SAFE_INTEGER_MAX, 0)?,
            limit: number("limit", PAGE_MAX as i64, limit)?,
        })
    }

    /// The payment details, with the card either as an object or as flat fields. Only its form is checked; the bank
    /// decides whether it is valid.
    fn payment(self) -> Result<PaymentDetails, Refusal> {
        let (card, [number, exp, name], prefix) = match self.get("card") {
            Some(Value::Object(card)) => (MessageFields(card), ["number", "exp", "name"], "card."),
            Some(_) => return Err(bad_request("card: expected an object with number, exp and name")),
            None if self.get("card_number").is_none() => return Err(bad_request("card: missing")),
            None => (self, ["card_number", "expiration_date", "name"], ""),
        };
        let prefixed = |refusal: Refusal| bad_request(format!("{prefix}{}", refusal.message));
        let digits = card.text(number, 1, 64).map_err(prefixed)?;
        let digits = CardNumber::new(&digits).map_err(|error| bad_request(format!("{prefix}{number}: {error}")))?;
        let month = card.text(exp, 1, 16).map_err(prefixed)?;
        let month = Expiry::parse(&month).map_err(|error| bad_request(format!("{prefix}{exp}: {error}")))?;
        let name = card.text(name, 1, text::NAME_MAX).map_err(prefixed)?;
        Ok(PaymentDetails {
            card: CardDetails { number: digits.reveal().to_owned(), exp: month.to_string(), name },
            address: self.address()?,
            idempotency_key: self.optional_text("idempotency_key", 1, 64)?,
        })
    }

    /// The postal address, which may contain line breaks.
    fn address(self) -> Result<Option<String>, Refusal> {
        match self.get("address") {
            None => Ok(None),
            Some(Value::String(address)) if (1..=ADDRESS_MAX).contains(&address.chars().count()) => {
                Ok(Some(address.clone()))
            }
            Some(_) => Err(bad_request(format!("address: expected a text of 1 to {ADDRESS_MAX} characters"))),
        }
    }

    fn vote(self, field: &str) -> Result<bool, Refusal> {
        match self.require(field)?.as_str() {
            Some("up") => Ok(true),
            Some("down") => Ok(false),
            _ => Err(bad_request(format!("{field}: expected up or down"))),
        }
    }

    fn role(self, field: &str) -> Result<Role, Refusal> {
        match self.require(field)?.as_str() {
            Some("buyer") => Ok(Role::Buyer),
            Some("seller") => Ok(Role::Seller),
            _ => Err(bad_request(format!("{field}: expected buyer or seller"))),
        }
    }

    fn username(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, text::NAME_MAX)
    }
}

impl std::fmt::Debug for InvalidRequest {
    /// Does not show the session id.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InvalidRequest").field("refusal", &self.refusal).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ApiCall {
    /// Shows neither session id nor password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApiCall::Create { role, username, .. } => write!(f, "Create({role:?}, {username:?})"),
            ApiCall::Login { role, username, .. } => write!(f, "Login({role:?}, {username:?})"),
            ApiCall::Logout { .. } => f.write_str("Logout"),
            ApiCall::Validate { .. } => f.write_str("Validate"),
            ApiCall::InSession { call, .. } => call.fmt(f),
        }
    }
}

impl std::fmt::Debug for PaymentDetails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PaymentDetails")
    }
}
