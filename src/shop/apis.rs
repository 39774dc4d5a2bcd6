//! The table of the shop's APIs: a row for each, with its names, who may call it, its fields and their rules, what it
//! asks for, and the shape of its answer. Both dialects, the bound on what is kept of a message, the names in errors
//! and the client's retries follow from it; so does what a frontend does, unless an API needs more than one operation.

use std::sync::LazyLock;

use super::customer::CustomerCall;
use super::ops::{CardDetails, PAGE_MAX, Refusal, Role};
use super::product::{NewItem, ProductOp};
use crate::model::Cents;

pub mod answers;
mod calls;
pub mod fields;

use answers::Answer;
use calls::SessionCall::*;
pub use calls::{ApiCall, PaymentDetails, ResponsePayload, SellerRef, ServerKind, SessionCall};
use fields::{Dialect, Field, FieldReader, INT32_MAX, Names, SAFE_INTEGER_MAX, bad_request};

/// The limit of a search in dialect 1 that names none.
const SEARCH_LIMIT_DEFAULT: u64 = 50;

pub struct Api {
    names: Names,
    servers: &'static [ServerKind],
    pub answer: Answer,
    pub request: Request,
    /// What it reads, each field with its other ones.
    fields: &'static [(Names, &'static [Names])],
    /// It can be sent again without further effect.
    is_idempotent: bool,
}

#[derive(Clone, Copy)]
pub enum Request {
    /// It is about an account and needs no session.
    OfAccount(fn(FieldReader<'_>) -> Result<ApiCall, Refusal>),
    /// It has no field but the session.
    OfSession(fn(String) -> ApiCall),
    /// It needs a session of the frontend's role.
    InSession(fn(FieldReader<'_>) -> Result<SessionCall, Refusal>),
}

/// A row: its servers, its names in dialect 1 / dialect 2, its answer, and its fields, which are read in this order.
macro_rules! api {
    ($servers:ident, $one:literal / $two:literal, $answer:ident, OfSession($call:expr)) => {
        api!($servers, $one / $two, $answer, Request::OfSession($call), [])
    };
    ($servers:ident, $one:literal / $two:literal, $answer:ident,
     $request:ident($($name:ident: $field:ident),*) => $call:expr) => {
        api!($servers, $one / $two, $answer, Request::$request(|_fields| {
            $(let $name = _fields.read(&$field)?;)*
            Ok($call)
        }), [$($field),*])
    };
    ($servers:ident, $one:literal / $two:literal, $answer:ident, $request:expr, [$($field:ident),*]) => {
        Api {
            names: Names($one, $two),
            servers: $servers,
            answer: answers::$answer,
            request: $request,
            fields: &[$(($field.names, $field.others)),*],
            is_idempotent: true,
        }
    };
}

const ALL: &[ServerKind] = &[ServerKind::Buyer, ServerKind::Seller, ServerKind::Customer];
const STRANGERS: &[ServerKind] = &[ServerKind::Customer];
const BUYERS: &[ServerKind] = &[ServerKind::Buyer];
const SELLERS: &[ServerKind] = &[ServerKind::Seller];

/// All APIs. An empty name means that the dialect does not have it, or has it in another row.
#[rustfmt::skip]
static APIS: &[Api] = &[
    api!(ALL, "CreateAccount" / "CREATE", BUILT,
        OfAccount(role: ROLE, username: USERNAME, password: PASSWORD, name: DISPLAY_NAME)
            => ApiCall::Create { role, username, password, name }).not_idempotent(),
    // The session of a repeated login expires on its own.
    api!(ALL, "Login" / "LOGIN", BUILT,
        OfAccount(role: ROLE, username: USERNAME, password: PASSWORD) => ApiCall::Login { role, username, password }),
    api!(ALL, "Logout" / "LOGOUT", DONE, OfSession(|sid| ApiCall::Logout { sid })).not_idempotent(),
    api!(STRANGERS, "" / "VALIDATE", SESSION, OfSession(|sid| ApiCall::Validate { sid })),

    api!(BUYERS, "SearchItemsForSale" / "SEARCH", SEARCH,
        InSession(category: ANY_CATEGORY, keywords: SEARCH_KEYWORDS, offset: OFFSET, limit: SEARCH_LIMIT)
            => AskProduct(ProductOp::Search { category, keywords, offset, limit })),
    api!(BUYERS, "GetItem" / "GET_ITEM", ITEM,
        InSession(item_id: ITEM_ID) => AskProduct(ProductOp::GetItem { item_id })),
    api!(BUYERS, "AddItemToCart" / "ADD_CART", DONE,
        InSession(item_id: ITEM_ID, quantity: UNITS) => AddToCart { item_id, quantity }).not_idempotent(),
    api!(BUYERS, "RemoveItemFromCart" / "REMOVE_CART", QUANTITY,
        InSession(item_id: ITEM_ID, quantity: UNITS_OR_ALL) => RemoveFromCart { item_id, quantity }).not_idempotent(),
    api!(BUYERS, "SaveCart" / "SAVE_CART", DONE, InSession() => AskCustomer(CustomerCall::SaveCart)),
    api!(BUYERS, "ClearCart" / "CLEAR_CART", DONE, InSession() => AskCustomer(CustomerCall::ClearCart)),
    api!(BUYERS, "DisplayCart" / "GET_CART", CART, InSession() => AskCustomer(CustomerCall::ShowCart)),
    api!(BUYERS, "MakePurchase" / "PURCHASE", BUILT,
        InSession(card: CARD, address: ADDRESS, idempotency_key: IDEMPOTENCY_KEY)
            => Purchase(Box::new(PaymentDetails { card, address, idempotency_key }))),
    api!(BUYERS, "ProvideFeedback" / "", DONE,
        InSession(item_id: ITEM_ID, up: VOTE) => VoteItem { item_id, up }),
    api!(BUYERS, "" / "FEEDBACK", DONE,
        InSession(target: VOTE_TARGET, up: VOTE) => match target {
            VoteTarget::Item(item_id) => VoteItem { item_id, up },
            VoteTarget::Seller(seller) => VoteSeller { seller, up },
        }),
    api!(BUYERS, "GetSellerRating" / "", RATING, InSession(seller: SELLER_ID) => RatingOf(SellerRef::Id(seller))),
    api!(BUYERS, "" / "GET_SELLER_RATING", RATING,
        InSession(seller: SELLER_NAME) => RatingOf(SellerRef::Username(seller))),
    api!(BUYERS, "GetBuyerPurchases" / "GET_PURCHASES", PURCHASES,
        InSession(offset: OFFSET, limit: LIMIT) => AskCustomer(CustomerCall::Purchases { offset, limit })),

    api!(SELLERS, "GetSellerRating" / "GET_SELLER_RATING", RATING, InSession() => OwnRating),
    api!(SELLERS, "RegisterItemForSale" / "ADD_ITEM", JSON,
        InSession(item_name: ITEM_NAME, category: CATEGORY, keywords: KEYWORDS, condition_is_new: CONDITION,
                  price: PRICE, quantity: STOCK)
            => Register(Box::new(NewItem {
                seller_id: 0, seller: String::new(), item_name, category, keywords, condition_is_new, price, quantity,
            }))).not_idempotent(),
    api!(SELLERS, "ChangeItemPrice" / "UPDATE_PRICE", DONE,
        InSession(item_id: ITEM_ID, price: PRICE) => ChangePrice { item_id, price }),
    api!(SELLERS, "UpdateUnitsForSale" / "UPDATE_QTY", QUANTITY,
        InSession(item_id: ITEM_ID, delta: DELTA) => UpdateUnits { item_id, delta }).not_idempotent(),
    api!(SELLERS, "DisplayItemsForSale" / "GET_ITEMS", ITEMS,
        InSession(offset: OFFSET, limit: LIMIT) => OwnItems { offset, limit }),
    api!(SELLERS, "GetItem" / "", ITEM, InSession(item_id: ITEM_ID) => GetOwnItem { item_id }),
    api!(SELLERS, "GetSellerOrders" / "", ORDERS,
        InSession(offset: OFFSET, limit: LIMIT) => AskCustomer(CustomerCall::Orders { offset, limit })),
    api!(SELLERS, "MarkShipped" / "", DONE,
        InSession(purchase_id: PURCHASE_ID, item_id: ITEM_ID)
            => AskCustomer(CustomerCall::MarkShipped { purchase_id, item_id })),
];

pub const SESSION: Names = Names("session_id", "sid");
const ITEM: Names = Names("item_id", "item");
const QUANTITY: Names = Names("quantity", "qty");
const USER: Names = Names("username", "user");

/// Each with its type, its names in dialect 1 / dialect 2 and its rule.
macro_rules! fields {
    ($($field:ident: $type:ty = $one:expr, $two:expr, |$message:ident, $name:ident| $read:expr;)*) => {
        $(const $field: Field<$type> =
            Field { names: Names($one, $two), others: &[], read: |$message, $name| $read };)*
    };
}

fields! {
    ROLE: Role = "role", "role", |message, name| message.role(name);
    USERNAME: String = USER.0, USER.1, |message, name| message.name(name);
    PASSWORD: String = "password", "pwd", |message, name| message.password(name);
    DISPLAY_NAME: Option<String> = "name", "", |message, name| message.optional(name, || message.name(name));
    ITEM_ID: String = ITEM.0, ITEM.1, |message, name| message.id(name);
    PURCHASE_ID: String = "purchase_id", "purchase_id", |message, name| message.id(name);
    SELLER_ID: u64 = "seller_id", "", |message, name| message.u64(name, SAFE_INTEGER_MAX);
    SELLER_NAME: String = "username", "seller", |message, name| message.name(name);
    OFFSET: u64 = "offset", "offset", |message, name| message.u64_or(name, SAFE_INTEGER_MAX, 0);
    LIMIT: u64 = "limit", "limit", |message, name| message.u64_or(name, PAGE_MAX as i64, PAGE_MAX);
    SEARCH_LIMIT: u64 = "limit", "limit", |message, name| match message.dialect {
        Dialect::One => message.u64_or(name, PAGE_MAX as i64, SEARCH_LIMIT_DEFAULT),
        Dialect::Two => message.u64_or(name, PAGE_MAX as i64, PAGE_MAX),
    };
    ANY_CATEGORY: Option<u32> = "category", "category", |message, name| message.optional(name, || message.u32(name, 0));
    SEARCH_KEYWORDS: Vec<String> = "keywords", "keywords", |message, name| message.search_keywords(name, 64);
    ITEM_NAME: String = "item_name", "name", |message, name| message.text(name, 1, 32);
    CATEGORY: u32 = "category", "category", |message, name| message.u32(name, 0);
    KEYWORDS: Vec<String> = "keywords", "keywords", |message, name| message.keywords(name, 8);
    CONDITION: bool = "condition", "condition", |message, name| message.condition(name);
    PRICE: Cents = "price", "price", |message, name| message.price(name);
    STOCK: u32 = QUANTITY.0, QUANTITY.1, |message, name| message.u32(name, 0);
    UNITS: u32 = QUANTITY.0, QUANTITY.1, |message, name| message.u32(name, 1);
    UNITS_OR_ALL: Option<u32> = QUANTITY.0, QUANTITY.1, |message, name| message.optional(name, || message.u32(name, 1));
    DELTA: i64 = "quantity", "delta", |message, name| message.integer(name, -INT32_MAX, INT32_MAX);
    VOTE: bool = "thumbs_up", "vote", |message, name| message.vote(name);
    ADDRESS: Option<String> = "address", "address", |message, name| message.optional(name, || message.address(name));
    IDEMPOTENCY_KEY: Option<String> = "idempotency_key", "idempotency_key",
        |message, name| message.optional(name, || message.text(name, 1, 64));
}

/// The card, and what errors of the cart and of the account name.
const CARD: Field<CardDetails> = Field {
    names: Names("card", "card"),
    others: &[
        Names("number", "number"),
        Names("exp", "exp"),
        Names("name", "name"),
        Names("card_number", "card_number"),
        Names("expiration_date", "expiration_date"),
        ITEM,
        QUANTITY,
        USER,
    ],
    read: |message, name| message.card(name),
};

/// A vote of dialect 2. One on an item also counts for its seller, so a message that names both means the item.
const VOTE_TARGET: Field<VoteTarget> = Field {
    names: SELLER_NAME.names,
    others: &[ITEM],
    read: |message, seller| match message.get(ITEM.1) {
        Some(_) => message.read(&ITEM_ID).map(VoteTarget::Item),
        None if message.get(seller).is_none() => Err(bad_request(format!("{seller}: missing (or {})", ITEM.1))),
        None => message.name(seller).map(VoteTarget::Seller),
    },
};

enum VoteTarget {
    Item(String),
    Seller(String),
}

impl Api {
    const fn not_idempotent(self) -> Api {
        Api { is_idempotent: false, ..self }
    }

    pub fn find(server: ServerKind, dialect: Dialect, name: &str) -> Option<&'static Api> {
        let is_named = |api: &&Api| api.names.of(dialect) == name && api.servers.contains(&server);
        if name.is_empty() { None } else { APIS.iter().find(is_named) }
    }

    /// The name in dialect 2 of a field that an error names as dialect 1 does.
    pub fn name_in_dialect2(&self, field: &str) -> Option<&'static str> {
        self.all_names().find(|names| names.0 == field && !names.1.is_empty()).map(|names| names.1)
    }

    fn all_names(&self) -> impl Iterator<Item = &'static Names> {
        let session = if matches!(self.request, Request::OfAccount(_)) { &[][..] } else { &[SESSION] };
        self.fields.iter().flat_map(|(names, others)| std::iter::once(names).chain(*others)).chain(session)
    }
}

/// Whether a call of this name in dialect 1 can be sent again without further effect.
pub fn is_idempotent(name: &str) -> bool {
    APIS.iter().find(|api| api.names.0 == name).is_none_or(|api| api.is_idempotent)
}

/// The field of this name, if any API reads it in any dialect.
pub fn known_field(name: &str) -> Option<&'static str> {
    static KNOWN: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let names = APIS.iter().flat_map(Api::all_names).flat_map(|names| [names.0, names.1]);
        let mut known: Vec<&str> = ["type", "api", "payload"].into_iter().chain(names).collect();
        known.sort_unstable();
        known.dedup();
        known.retain(|name| !name.is_empty());
        known
    });
    KNOWN.binary_search(&name).ok().map(|at| KNOWN[at])
}

impl PartialEq for Api {
    fn eq(&self, other: &Api) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Api {}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.names.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_has_its_names_and_no_field_has_anothers() {
        for server in [ServerKind::Buyer, ServerKind::Seller] {
            let in_session = |dialect| {
                let has = move |api: &&Api| api.servers.contains(&server) && !api.names.of(dialect).is_empty();
                APIS.iter().filter(has).filter(|api| matches!(api.request, Request::InSession(_))).count()
            };
            let counts = [in_session(Dialect::One), in_session(Dialect::Two)];
            // To be raised with each new one; a row that lost one of its names would be missing here.
            let expected = if server == ServerKind::Buyer { [11, 11] } else { [8, 5] };
            assert_eq!(counts, expected, "calls within a session, by dialect");
        }
        for api in APIS {
            for names in api.all_names().filter(|names| names.0 != names.1) {
                // Otherwise an error that already names a field of dialect 2 would be translated once more.
                let is_another = api.name_in_dialect2(names.1).is_some_and(|other| other != names.1);
                assert!(!is_another, "{api:?}: {names:?} becomes another");
            }
        }
        assert_eq!(Api::find(ServerKind::Buyer, Dialect::Two, "Nonsense"), None);
    }
}
