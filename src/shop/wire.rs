//! What clients say and hear: two framings ([`crate::net::frames`]), two dialects, every limit.
//!
//! A message whose `type` is `request` is dialect 1 (an envelope with a payload), any other is dialect 2
//! (flat); both are read into the same [`Call`]s, and what comes of them, an [`Outcome`], is written in
//! the dialect that was asked in. Reading is strict in what it needs and deaf to what it does not know;
//! every error names the field and says what was expected (SPEC.md section 2).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ops::{Account, Answer, Bought, Code, LinkCard, LoggedIn, Order, Purchased, Rating, Refusal, Role, Session};
use crate::model::text::nfc;
use crate::model::{CardNumber, Cents, Expiry, number, text};

mod bounded;
mod dialect1;
mod dialect2;
#[cfg(test)]
mod tests;

pub use dialect2::Names;

/// Most bytes of a message that comes in.
pub const MESSAGE_MAX: usize = 1 << 20;
/// Most characters of an item's name.
pub const ITEM_NAME_MAX: usize = 32;
/// Most keywords, of an item and of a search.
pub const KEYWORDS_MAX: usize = 5;
/// Most characters of an item's own keyword.
pub const KEYWORD_MAX: usize = 8;
/// Most characters of a keyword that is searched for.
pub const SEARCH_KEYWORD_MAX: usize = 64;
/// Most characters of a password.
pub const PASSWORD_MAX: usize = 256;
/// Most characters of a postal address.
pub const ADDRESS_MAX: usize = 1024;
/// Most entries of an answer's list.
pub const PAGE_MAX: u64 = 500;
/// Entries of a search without a limit, in dialect 1.
const SEARCH_PAGE: u64 = 50;
/// Most characters of an id that the shop has made; longer ones are none of ours.
const ID_MAX: usize = 64;
/// Categories and quantities end here.
const WHOLE_MAX: i64 = i32::MAX as i64;
/// Numbers stay below 2^53, so that every JSON reader holds them exactly.
const NUMBER_MAX: i64 = (1 << 53) - 1;

/// Which door a message came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The buyers' frontend.
    Buyer,
    /// The sellers' frontend.
    Seller,
    /// The customer database, for strangers.
    Customer,
    /// The product database, for strangers.
    Product,
}

impl Port {
    /// Whose frontend it is.
    pub fn role(self) -> Option<Role> {
        match self {
            Port::Buyer => Some(Role::Buyer),
            Port::Seller => Some(Role::Seller),
            Port::Customer | Port::Product => None,
        }
    }
}

/// A message that was understood.
#[derive(Debug)]
pub struct Request {
    /// How it is to be answered.
    pub envelope: Envelope,
    /// What is asked.
    pub call: Call,
}

/// A message that was refused as it was read.
#[derive(PartialEq, Eq)]
pub struct Rejected {
    /// How it is to be answered.
    pub envelope: Envelope,
    /// With what.
    pub refusal: Refusal,
    /// The session that it was to be done in. Whoever may look into it does so first: that a session is
    /// over, or of the other role, goes before whatever is wrong with the fields.
    pub sid: Option<String>,
}

/// What is wrong with a message, before it is known how it is answered.
struct Wrong {
    refusal: Refusal,
    /// As in [`Rejected`].
    sid: Option<String>,
}

impl Wrong {
    fn answered_in(self, envelope: Envelope) -> Rejected {
        Rejected { envelope, refusal: self.refusal, sid: self.sid }
    }
}

/// What is wrong before any session is spoken of.
impl From<Refusal> for Wrong {
    fn from(refusal: Refusal) -> Wrong {
        Wrong { refusal, sid: None }
    }
}

/// What is said in a session, whose id is known before the fields are read.
fn in_session(sid: String, act: impl FnOnce() -> Result<Act, Refusal>) -> Result<Call, Wrong> {
    match act() {
        Ok(act) => Ok(Call::Act { sid, act }),
        Err(refusal) => Err(Wrong { refusal, sid: Some(sid) }),
    }
}

/// In which form a message is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envelope {
    /// Dialect 1.
    One {
        /// As it was asked.
        api: Option<String>,
        /// As it was asked.
        session_id: Option<String>,
    },
    /// Dialect 2.
    Two(Names),
}

impl Envelope {
    /// For what is no message: dialect 2, to no request in particular.
    pub const NO_MESSAGE: Envelope = Envelope::Two(Names::NONE);

    /// Dialect 2, where the cart is the user's.
    pub fn is_flat(&self) -> bool {
        matches!(self, Envelope::Two(_))
    }
}

/// What a client asks.
#[derive(PartialEq)]
pub enum Call {
    /// A new account.
    Create { role: Role, username: String, password: String, name: Option<String> },
    /// A new session.
    Login { role: Role, username: String, password: String },
    /// The session ends.
    Logout { sid: String },
    /// Whose session is it? On the customer database alone.
    Validate { sid: String },
    /// Anything that needs a session of the frontend's role.
    Act { sid: String, act: Act },
}

/// What a buyer or a seller does in a session.
#[derive(Debug, PartialEq)]
pub enum Act {
    Search { category: Option<u32>, keywords: Vec<String>, page: Page },
    GetItem { item_id: String },
    GetOwnItem { item_id: String },
    AddToCart { item_id: String, quantity: u32 },
    RemoveFromCart { item_id: String, quantity: Option<u32> },
    SaveCart,
    ClearCart,
    ShowCart,
    Purchase(Box<Payment>),
    VoteItem { item_id: String, up: bool },
    VoteSeller { seller: String, up: bool },
    RatingOf(SellerRef),
    OwnRating,
    Purchases(Page),
    Orders(Page),
    OwnItems(Page),
    Register(Box<NewItem>),
    ChangePrice { item_id: String, price: Cents },
    UpdateUnits { item_id: String, delta: i64 },
    MarkShipped { purchase_id: String, item_id: String },
}

/// A part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// How many to skip.
    pub offset: u64,
    /// How many to give at most.
    pub limit: u64,
}

/// A seller, as the two dialects name one.
#[derive(Debug, PartialEq)]
pub enum SellerRef {
    Id(u64),
    Username(String),
}

/// How a purchase is paid and where it goes. Its `Debug` output shows neither card nor address.
#[derive(PartialEq)]
pub struct Payment {
    pub card: LinkCard,
    pub address: Option<String>,
    pub idempotency_key: Option<String>,
}

/// An item to be sold.
#[derive(Debug, PartialEq)]
pub struct NewItem {
    pub item_name: String,
    pub category: u32,
    pub keywords: Vec<String>,
    pub condition_is_new: bool,
    pub price: Cents,
    pub quantity: u32,
}

/// What came of a call. Texts that only pass through are the JSON of a database's answer.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to say but that it was done.
    Done,
    Created(Role, Account),
    LoggedIn(Role, LoggedIn),
    Session(Session),
    /// The JSON of [`Found`](super::ops::Found), for a search.
    Search(String),
    /// The JSON of [`Found`](super::ops::Found), for a seller's own items.
    Items(String),
    /// The JSON of an [`Item`](super::ops::Item).
    Item(String),
    /// The JSON of a list of [`Line`](super::ops::Line)s.
    Cart(String),
    /// How many units are left in the cart, or are for sale.
    Quantity(u32),
    /// The JSON of [`Registered`](super::ops::Registered).
    Registered(String),
    Rating(Rating),
    Purchased(Purchased),
    Purchases(Vec<Bought>),
    Orders(Vec<Order>),
}

/// Reads a message; if it cannot be, how and with what to answer.
///
/// # Errors
/// The refusal, with the form that it must have.
pub fn read(port: Port, message: &[u8]) -> Result<Request, Rejected> {
    let no_message = |why: String| Err(Wrong::from(bad(why)).answered_in(Envelope::NO_MESSAGE));
    // All of it: what no call knows is not looked at otherwise.
    let Ok(message) = std::str::from_utf8(message) else {
        return no_message("expected one JSON object: it is not UTF-8".to_owned());
    };
    let message = message.strip_prefix('\u{feff}').unwrap_or(message);
    let value = match bounded::read(message) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return no_message("expected one JSON object".to_owned()),
        Err(error) => return no_message(format!("expected one JSON object: {}", json_error(&error))),
    };
    let is_one = value.get("type").and_then(Value::as_str) == Some("request");
    if is_one { dialect1::read(port, &value) } else { dialect2::read(port, &value) }
}

/// Writes the answer to a call.
pub fn write(envelope: &Envelope, answer: &Answer<Outcome>) -> Vec<u8> {
    let written = match envelope {
        Envelope::One { api, session_id } => dialect1::write(api.as_deref(), session_id.as_deref(), answer),
        Envelope::Two(names) => dialect2::write(*names, answer),
    };
    written.unwrap_or_else(|_| {
        // A database's answer that is not what it must be.
        let refusal = Refusal::new(Code::Unavailable, "a database gave no proper answer");
        let failed = match envelope {
            Envelope::One { api, session_id } => dialect1::write(api.as_deref(), session_id.as_deref(), &Err(refusal)),
            Envelope::Two(names) => dialect2::write(*names, &Err(refusal)),
        };
        // Texts alone: writing them to memory cannot fail.
        failed.unwrap_or_default()
    })
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadRequest, message)
}

/// An api that this port does not have: nobody's, or the other role's.
fn not_here(api: &str, port: Port, is_the_other_roles: bool) -> Refusal {
    let whose = match port {
        Port::Buyer => "buyers",
        Port::Seller => "sellers",
        Port::Customer | Port::Product => "strangers",
    };
    let api: String = api.chars().filter(|c| !c.is_control()).take(64).collect();
    let code = if is_the_other_roles { Code::Forbidden } else { Code::UnknownApi };
    Refusal::new(code, format!("there is no {api} for {whose}"))
}

/// What serde says of JSON that cannot be read, without the input that it may quote.
fn json_error(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("syntax error at line {}, column {}", error.line(), error.column()),
    }
}

/// The fields of a message, or of its payload.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    fn get(self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn need(self, field: &str) -> Result<&'a Value, Refusal> {
        self.get(field).ok_or_else(|| bad(format!("{field}: missing")))
    }

    /// A text of so many characters, none of them a control character.
    fn text(self, field: &str, min: usize, max: usize) -> Result<String, Refusal> {
        let Value::String(value) = self.need(field)? else {
            return Err(bad(format!("{field}: expected a text")));
        };
        text::check(value, min, max).map_err(|wrong| bad(format!("{field}: {wrong}")))?;
        Ok(value.clone())
    }

    fn optional_text(self, field: &str, min: usize, max: usize) -> Result<Option<String>, Refusal> {
        self.get(field).map(|_| self.text(field, min, max)).transpose()
    }

    /// A password may have any characters.
    fn password(self, field: &str) -> Result<String, Refusal> {
        let Value::String(value) = self.need(field)? else {
            return Err(bad(format!("{field}: expected a text")));
        };
        let length = value.chars().count();
        if !(1..=PASSWORD_MAX).contains(&length) {
            return Err(bad(format!("{field}: expected 1 to {PASSWORD_MAX} characters, not {length}")));
        }
        Ok(value.clone())
    }

    /// The session id: none if there is nothing that could be one.
    fn session(self, field: &str) -> Result<String, Refusal> {
        match self.get(field) {
            Some(Value::String(sid)) if !sid.is_empty() => Ok(sid.clone()),
            None | Some(Value::String(_)) => {
                Err(Refusal::new(Code::NotLoggedIn, format!("{field}: missing; log in first")))
            }
            Some(_) => Err(bad(format!("{field}: expected a text"))),
        }
    }

    fn id(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, ID_MAX)
    }

    /// A whole number, however it is written.
    fn whole(self, field: &str, min: i64, max: i64) -> Result<i64, Refusal> {
        number::fitting(self.need(field)?)
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| bad(format!("{field}: expected a whole number from {min} to {max}")))
    }

    fn u32(self, field: &str, min: i64) -> Result<u32, Refusal> {
        // Within the limits, which a u32 holds.
        self.whole(field, min, WHOLE_MAX).map(|number| number as u32)
    }

    fn optional_u32(self, field: &str, min: i64) -> Result<Option<u32>, Refusal> {
        self.get(field).map(|_| self.u32(field, min)).transpose()
    }

    fn flag(self, field: &str) -> Result<bool, Refusal> {
        self.need(field)?.as_bool().ok_or_else(|| bad(format!("{field}: expected true or false")))
    }

    fn price(self, field: &str) -> Result<Cents, Refusal> {
        Cents::deserialize(self.need(field)?).map_err(|wrong| bad(format!("{field}: {wrong}")))
    }

    /// New or Used, in any case.
    fn condition(self, field: &str) -> Result<bool, Refusal> {
        match self.need(field)?.as_str() {
            Some(text) if text.eq_ignore_ascii_case("new") => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("used") => Ok(false),
            _ => Err(bad(format!("{field}: expected New or Used"))),
        }
    }

    /// At most five texts of so many characters.
    fn keywords(self, field: &str, max: usize) -> Result<Vec<String>, Refusal> {
        let Value::Array(values) = self.need(field)? else {
            return Err(bad(format!("{field}: expected a list of texts")));
        };
        if values.len() > KEYWORDS_MAX {
            return Err(bad(format!("{field}: expected at most {KEYWORDS_MAX}")));
        }
        let keyword = |value: &Value| {
            let keyword = value.as_str().ok_or_else(|| bad(format!("{field}: expected a list of texts")))?;
            text::check(keyword, 1, max).map_err(|wrong| bad(format!("{field}: {wrong}")))?;
            Ok(keyword.to_owned())
        };
        values.iter().map(keyword).collect()
    }

    /// What is searched for: lowercase, each once.
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

    fn page(self, limit: u64) -> Result<Page, Refusal> {
        let number = |field, max, default| match self.get(field) {
            // Not negative, as just checked.
            Some(_) => self.whole(field, 0, max).map(|number| number as u64),
            None => Ok(default),
        };
        Ok(Page { offset: number("offset", NUMBER_MAX, 0)?, limit: number("limit", PAGE_MAX as i64, limit)? })
    }

    /// The card, as an object or flat, and what goes with it. Whether it is good is the bank's to say.
    fn payment(self) -> Result<Payment, Refusal> {
        let (card, [number, exp, name], prefix) = match self.get("card") {
            Some(Value::Object(card)) => (Fields(card), ["number", "exp", "name"], "card."),
            Some(_) => return Err(bad("card: expected an object with number, exp and name")),
            None if self.get("card_number").is_none() => return Err(bad("card: missing")),
            None => (self, ["card_number", "expiration_date", "name"], ""),
        };
        let named = |refusal: Refusal| bad(format!("{prefix}{}", refusal.message));
        let digits = card.text(number, 1, 64).map_err(named)?;
        let digits = CardNumber::new(&digits).map_err(|wrong| bad(format!("{prefix}{number}: {wrong}")))?;
        let month = card.text(exp, 1, 16).map_err(named)?;
        let month = Expiry::parse(&month).map_err(|wrong| bad(format!("{prefix}{exp}: {wrong}")))?;
        let name = card.text(name, 1, text::NAME_MAX).map_err(named)?;
        Ok(Payment {
            card: LinkCard { number: digits.reveal().to_owned(), exp: month.to_string(), name },
            address: self.address()?,
            idempotency_key: self.optional_text("idempotency_key", 1, 64)?,
        })
    }

    /// May have line breaks, as addresses do.
    fn address(self) -> Result<Option<String>, Refusal> {
        match self.get("address") {
            None => Ok(None),
            Some(Value::String(address)) if (1..=ADDRESS_MAX).contains(&address.chars().count()) => {
                Ok(Some(address.clone()))
            }
            Some(_) => Err(bad(format!("address: expected a text of 1 to {ADDRESS_MAX} characters"))),
        }
    }

    fn vote(self, field: &str) -> Result<bool, Refusal> {
        match self.need(field)?.as_str() {
            Some("up") => Ok(true),
            Some("down") => Ok(false),
            _ => Err(bad(format!("{field}: expected up or down"))),
        }
    }

    fn role(self, field: &str) -> Result<Role, Refusal> {
        match self.need(field)?.as_str() {
            Some("buyer") => Ok(Role::Buyer),
            Some("seller") => Ok(Role::Seller),
            _ => Err(bad(format!("{field}: expected buyer or seller"))),
        }
    }

    fn username(self, field: &str) -> Result<String, Refusal> {
        self.text(field, 1, text::NAME_MAX)
    }
}

impl std::fmt::Debug for Rejected {
    /// No session id.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rejected").field("refusal", &self.refusal).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Call {
    /// No session id, no password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Call::Create { role, username, .. } => write!(f, "Create({role:?}, {username:?})"),
            Call::Login { role, username, .. } => write!(f, "Login({role:?}, {username:?})"),
            Call::Logout { .. } => f.write_str("Logout"),
            Call::Validate { .. } => f.write_str("Validate"),
            Call::Act { act, .. } => act.fmt(f),
        }
    }
}

impl std::fmt::Debug for Payment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payment")
    }
}
