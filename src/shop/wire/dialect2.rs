//! Dialect 2: flat messages `{"type":T,"sid":…,…}` with the response `{"status":"OK",…}` or
//! `{"status":"ERR","error":…}`. Each is a shorthand for a call of dialect 1.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dialect1::{HistoryEntryView, ItemsView, OrderView, PurchaseView};
use super::{
    ApiCall, INT32_MAX, InvalidRequest, ItemRegistration, KEYWORD_MAX, MessageFields, PAGE_MAX, ParsedRequest,
    RequestError, ResponseEnvelope, ResponsePayload, SellerRef, ServerKind, SessionCall, bad_request, parse_in_session,
    unknown_api,
};
use crate::model::Cents;
use crate::shop::ops::{ErrorCode, Feedback, Item, ItemPage, LineItem, Refusal, RegisteredItem, Role, ShopResult};

pub(super) fn parse_request(
    server_kind: ServerKind,
    message: &Map<String, Value>,
) -> Result<ParsedRequest, InvalidRequest> {
    let envelope =
        ResponseEnvelope::Dialect2(FieldAliases::of(message.get("type").and_then(Value::as_str).unwrap_or_default()));
    match parse_call(server_kind, MessageFields(message)) {
        Ok(call) => Ok(ParsedRequest { envelope, call }),
        Err(error) => Err(error.with_envelope(envelope)),
    }
}

/// The names that fields of dialect 1 have in a message of dialect 2, as pairs (dialect 1, dialect 2). Errors that a
/// frontend or a database finds name the fields of dialect 1, and must be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldAliases(&'static [(&'static str, &'static str)]);

const SESSION: (&str, &str) = ("session_id", "sid");
const ITEM: (&str, &str) = ("item_id", "item");
const UNITS: (&str, &str) = ("quantity", "qty");
const USER: (&str, &str) = ("username", "user");
const PASSWORD: (&str, &str) = ("password", "pwd");

/// The aliases by type of the message. Fields that are not listed have the same name in both dialects.
const ALIASES_BY_TYPE: [(&str, FieldAliases); 19] = [
    ("CREATE", FieldAliases(&[USER, PASSWORD])),
    ("LOGIN", FieldAliases(&[USER, PASSWORD])),
    ("LOGOUT", FieldAliases(&[SESSION])),
    ("VALIDATE", FieldAliases(&[SESSION])),
    ("SEARCH", FieldAliases(&[SESSION])),
    ("GET_ITEM", FieldAliases(&[SESSION, ITEM])),
    ("ADD_CART", FieldAliases(&[SESSION, ITEM, UNITS])),
    ("REMOVE_CART", FieldAliases(&[SESSION, ITEM, UNITS])),
    ("GET_CART", FieldAliases(&[SESSION])),
    ("CLEAR_CART", FieldAliases(&[SESSION])),
    ("SAVE_CART", FieldAliases(&[SESSION])),
    (
        "FEEDBACK",
        FieldAliases(&[SESSION, ITEM, ("username", "seller"), ("seller_id", "seller"), ("thumbs_up", "vote")]),
    ),
    ("GET_PURCHASES", FieldAliases(&[SESSION])),
    // A purchase has none of these fields; errors of its cart and of its account name them.
    ("PURCHASE", FieldAliases(&[SESSION, ITEM, UNITS, USER])),
    ("GET_SELLER_RATING", FieldAliases(&[SESSION, ("username", "seller"), ("seller_id", "seller")])),
    ("ADD_ITEM", FieldAliases(&[SESSION, ("item_name", "name"), UNITS])),
    ("UPDATE_PRICE", FieldAliases(&[SESSION, ITEM])),
    ("UPDATE_QTY", FieldAliases(&[SESSION, ITEM, ("quantity", "delta")])),
    ("GET_ITEMS", FieldAliases(&[SESSION])),
];

impl FieldAliases {
    pub(super) const NONE: FieldAliases = FieldAliases(&[]);

    fn of(kind: &str) -> FieldAliases {
        ALIASES_BY_TYPE.iter().find(|(known, _)| *known == kind).map_or(FieldAliases::NONE, |(_, aliases)| *aliases)
    }

    /// Translates the field with which a refusal's message begins, if it does; the rest of the message stays.
    fn apply<'a>(self, refusal: &'a Refusal) -> Cow<'a, Refusal> {
        let prefixed = refusal.message.split_once(": ").and_then(|(field, rest)| {
            let (_, own) = self.0.iter().find(|(name, _)| *name == field)?;
            Some(Refusal::new(refusal.code, format!("{own}: {rest}")))
        });
        prefixed.map_or(Cow::Borrowed(refusal), Cow::Owned)
    }
}

fn parse_call(server_kind: ServerKind, message: MessageFields<'_>) -> Result<ApiCall, RequestError> {
    let frontends_only = || Refusal::new(ErrorCode::Forbidden, "only the frontends may ask this database");
    if server_kind == ServerKind::Product {
        return Err(frontends_only().into());
    }
    let Value::String(kind) = message.require("type")? else {
        return Err(bad_request("type: expected a text").into());
    };
    match (kind.as_str(), server_kind.role()) {
        ("CREATE", _) => {
            let role = role(server_kind, message)?;
            let (username, password) = (message.username("user")?, message.password("pwd")?);
            return Ok(ApiCall::Create { role, username, password, name: None });
        }
        ("LOGIN", _) => {
            let role = role(server_kind, message)?;
            return Ok(ApiCall::Login {
                role,
                username: message.username("user")?,
                password: message.password("pwd")?,
            });
        }
        ("LOGOUT", _) => return Ok(ApiCall::Logout { sid: message.session_id("sid")? }),
        ("VALIDATE", None) => return Ok(ApiCall::Validate { sid: message.session_id("sid")? }),
        (_, None) => return Err(frontends_only().into()),
        (kind, Some(role)) if !is_session_api(role, kind) => {
            return Err(unknown_api(kind, server_kind, is_session_api(role.opposite(), kind)).into());
        }
        _ => {}
    }
    // A missing session takes precedence over all other errors.
    let sid = message.session_id("sid")?;
    parse_in_session(sid, || parse_session_call(server_kind, kind, message))
}

fn parse_session_call(server_kind: ServerKind, kind: &str, message: MessageFields<'_>) -> Result<SessionCall, Refusal> {
    let item = || message.id("item");
    Ok(match kind {
        "SEARCH" => SessionCall::Search {
            category: message.optional_u32("category", 0)?,
            keywords: message.search_keywords("keywords")?,
            page: message.page(PAGE_MAX)?,
        },
        "GET_ITEM" => SessionCall::GetItem { item_id: item()? },
        "ADD_CART" => SessionCall::AddToCart { item_id: item()?, quantity: message.u32("qty", 1)? },
        "REMOVE_CART" => SessionCall::RemoveFromCart { item_id: item()?, quantity: message.optional_u32("qty", 1)? },
        "GET_CART" => SessionCall::ShowCart,
        "CLEAR_CART" => SessionCall::ClearCart,
        "SAVE_CART" => SessionCall::SaveCart,
        // A vote on an item also counts for its seller, so a message that names both means the item.
        "FEEDBACK" if message.get("item").is_some() => {
            SessionCall::VoteItem { item_id: item()?, up: message.vote("vote")? }
        }
        "FEEDBACK" if message.get("seller").is_some() => {
            SessionCall::VoteSeller { seller: message.username("seller")?, up: message.vote("vote")? }
        }
        "FEEDBACK" => return Err(bad_request("seller: missing (or item)")),
        "GET_PURCHASES" => SessionCall::Purchases(message.page(PAGE_MAX)?),
        "PURCHASE" => SessionCall::Purchase(Box::new(message.payment()?)),
        "GET_SELLER_RATING" if server_kind == ServerKind::Seller => SessionCall::OwnRating,
        "GET_SELLER_RATING" => SessionCall::RatingOf(SellerRef::Username(message.username("seller")?)),
        "ADD_ITEM" => SessionCall::Register(Box::new(ItemRegistration {
            item_name: message.text("name", 1, super::ITEM_NAME_MAX)?,
            category: message.u32("category", 0)?,
            keywords: message.keywords("keywords", KEYWORD_MAX)?,
            condition_is_new: message.condition("condition")?,
            price: message.price("price")?,
            quantity: message.u32("qty", 0)?,
        })),
        "UPDATE_PRICE" => SessionCall::ChangePrice { item_id: item()?, price: message.price("price")? },
        "UPDATE_QTY" => {
            SessionCall::UpdateUnits { item_id: item()?, delta: message.integer("delta", -INT32_MAX, INT32_MAX)? }
        }
        "GET_ITEMS" => SessionCall::OwnItems(message.page(PAGE_MAX)?),
        other => return Err(unknown_api(other, server_kind, false)),
    })
}

/// The role that a message names, which on a frontend must be the frontend's.
fn role(server_kind: ServerKind, message: MessageFields<'_>) -> Result<Role, Refusal> {
    let role = message.role("role")?;
    match server_kind.role() {
        Some(own) if own != role => {
            let whose = if own == Role::Buyer { "buyers" } else { "sellers" };
            Err(Refusal::new(ErrorCode::Forbidden, format!("role: this port is for {whose}")))
        }
        _ => Ok(role),
    }
}

/// Whether this is a message type of the role that needs a session.
fn is_session_api(role: Role, kind: &str) -> bool {
    const BUYER: [&str; 11] = [
        "SEARCH",
        "GET_ITEM",
        "ADD_CART",
        "REMOVE_CART",
        "GET_CART",
        "CLEAR_CART",
        "SAVE_CART",
        "FEEDBACK",
        "GET_PURCHASES",
        "PURCHASE",
        "GET_SELLER_RATING",
    ];
    const SELLER: [&str; 5] = ["ADD_ITEM", "UPDATE_PRICE", "UPDATE_QTY", "GET_ITEMS", "GET_SELLER_RATING"];
    match role {
        Role::Buyer => BUYER.contains(&kind),
        Role::Seller => SELLER.contains(&kind),
    }
}

#[derive(Serialize)]
struct ItemView<'a> {
    item_id: &'a str,
    name: &'a str,
    seller: &'a str,
    category: u32,
    keywords: &'a [String],
    condition: &'static str,
    price: Cents,
    qty: u32,
    feedback: [u64; 2],
}

impl<'a> From<&'a Item> for ItemView<'a> {
    fn from(item: &'a Item) -> ItemView<'a> {
        ItemView {
            item_id: &item.item_id,
            name: &item.item_name,
            seller: &item.seller,
            category: item.category,
            keywords: &item.keywords,
            condition: if item.condition_is_new { "New" } else { "Used" },
            price: item.price,
            qty: item.quantity,
            feedback: votes(&item.feedback),
        }
    }
}

fn votes(feedback: &Feedback) -> [u64; 2] {
    [feedback.thumbs_up, feedback.thumbs_down]
}

/// `{"status":"OK"}` with further fields.
#[derive(Serialize)]
struct OkResponse<T: Serialize> {
    status: &'static str,
    #[serde(flatten)]
    fields: T,
}

/// A page of items, in `results` for a search and in `items` for a seller's own.
#[derive(Serialize)]
struct ItemListResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<ItemView<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<Vec<ItemView<'a>>>,
    total: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    total_is_at_least: bool,
}

/// Writes the response to a message with these aliases.
pub(super) fn write_response(
    aliases: FieldAliases,
    answer: &ShopResult<ResponsePayload>,
) -> serde_json::Result<Vec<u8>> {
    let payload = match answer {
        Ok(payload) => payload,
        Err(refusal) => return serde_json::to_vec(&json!({"status": "ERR", "error": aliases.apply(refusal)})),
    };
    let fields = match payload {
        ResponsePayload::Done | ResponsePayload::Created(..) => json!({}),
        ResponsePayload::LoggedIn(_, session) => json!({"sid": session.sid}),
        ResponsePayload::Session(session) => json!(session),
        ResponsePayload::Search(found) | ResponsePayload::Items(found) => {
            let found: ItemPage = serde_json::from_str(found)?;
            let items = Some(found.items.iter().map(ItemView::from).collect());
            let (results, items) =
                if matches!(payload, ResponsePayload::Search(_)) { (items, None) } else { (None, items) };
            let list =
                ItemListResponse { results, items, total: found.total, total_is_at_least: found.total_is_at_least };
            return ok(list);
        }
        ResponsePayload::Item(item) => {
            let item: Item = serde_json::from_str(item)?;
            return ok(json!({"item": ItemView::from(&item)}));
        }
        ResponsePayload::Cart(lines) => {
            let lines: Vec<LineItem> = serde_json::from_str(lines)?;
            let cart: BTreeMap<&str, u32> = lines.iter().map(|line| (line.item_id.as_str(), line.quantity)).collect();
            json!({"cart": cart})
        }
        ResponsePayload::Quantity(quantity) => json!({"qty": quantity}),
        ResponsePayload::Registered(registered) => json!(serde_json::from_str::<RegisteredItem>(registered)?),
        ResponsePayload::Rating(rating) => json!({"rating": votes(&rating.feedback)}),
        ResponsePayload::Purchased(purchased) => return ok(PurchaseView::from(purchased)),
        ResponsePayload::Purchases(lines) => return ok(ItemsView::<HistoryEntryView<'_>>::of(lines)),
        ResponsePayload::Orders(lines) => return ok(ItemsView::<OrderView<'_>>::of(lines)),
    };
    ok(fields)
}

fn ok(fields: impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&OkResponse { status: "OK", fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_names_and_none_is_another_fields() {
        let known = [Role::Buyer, Role::Seller]
            .map(|role| ALIASES_BY_TYPE.iter().filter(move |(kind, _)| is_session_api(role, kind)));
        assert_eq!(known.map(Iterator::count), [11, 5], "each that needs a session");
        for (kind, FieldAliases(aliases)) in ALIASES_BY_TYPE {
            for (one, two) in aliases {
                // Otherwise an error that already names a field of dialect 2 would be translated once more.
                assert!(
                    !aliases.iter().any(|(other, _)| other == two),
                    "{kind}: {one} becomes {two}, which is another"
                );
            }
        }
        assert_eq!(FieldAliases::of("Nonsense"), FieldAliases::NONE);
    }

    #[test]
    fn only_the_field_that_leads_is_renamed() {
        let renamed = |kind: &str, message: &str| {
            FieldAliases::of(kind).apply(&Refusal::new(ErrorCode::BadRequest, message)).into_owned().message
        };
        for (kind, message, expected) in [
            ("UPDATE_QTY", "quantity: of item_id: 3 are left", "delta: of item_id: 3 are left"),
            ("ADD_ITEM", "quantity: too many", "qty: too many"),
            ("ADD_CART", "quantity:no", "quantity:no"),
            ("GET_CART", "session_id: over; quantity: 3", "sid: over; quantity: 3"),
            ("GET_CART", "the session_id: over", "the session_id: over"),
            ("FEEDBACK", "username: nobody", "seller: nobody"),
            ("Nonsense", "session_id: over", "session_id: over"),
            ("GET_CART", "", ""),
        ] {
            assert_eq!(renamed(kind, message), expected, "{kind}");
        }
    }
}
