//! Dialect 1: `{"type":"request","api":NAME,"session_id":…,"payload":{…}}`. The response is a message of type
//! `response` or `error` with the same `api`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    ApiCall, INT32_MAX, InvalidRequest, ItemRegistration, KEYWORD_MAX, MessageFields, PAGE_MAX, ParsedRequest,
    RequestError, ResponseEnvelope, ResponsePayload, SAFE_INTEGER_MAX, SEARCH_LIMIT_DEFAULT, SellerRef, ServerKind,
    SessionCall, bad_request, parse_in_session, unknown_api,
};
use crate::model::Cents;
use crate::shop::ops::{
    CompletedPurchase, ErrorCode, Feedback, PricedLine, PurchaseHistoryEntry, Refusal, Role, SellerOrder, SellerRating,
    ShopResult,
};

pub(super) fn parse_request(
    server_kind: ServerKind,
    message: &Map<String, Value>,
) -> Result<ParsedRequest, InvalidRequest> {
    let text = |field| message.get(field).and_then(Value::as_str).map(str::to_owned);
    let envelope = ResponseEnvelope::Dialect1 { api: text("api"), session_id: text("session_id") };
    match parse_call(server_kind, MessageFields(message)) {
        Ok(call) => Ok(ParsedRequest { envelope, call }),
        Err(error) => Err(error.with_envelope(envelope)),
    }
}

fn parse_call(server_kind: ServerKind, message: MessageFields<'_>) -> Result<ApiCall, RequestError> {
    let Some(role) = server_kind.role() else {
        return Err(Refusal::new(ErrorCode::Forbidden, "only the frontends may ask this database").into());
    };
    let Value::String(api) = message.require("api")? else {
        return Err(bad_request("api: expected a text").into());
    };
    let nothing = Map::new();
    let payload = match message.get("payload") {
        None => Ok(MessageFields(&nothing)),
        Some(Value::Object(payload)) => Ok(MessageFields(payload)),
        Some(_) => Err(bad_request("payload: expected an object")),
    };
    match api.as_str() {
        "CreateAccount" => {
            let payload = payload?;
            return Ok(ApiCall::Create {
                role,
                username: payload.username("username")?,
                password: payload.password("password")?,
                name: payload.optional_text("name", 1, crate::model::text::NAME_MAX)?,
            });
        }
        "Login" => {
            let payload = payload?;
            let (username, password) = (payload.username("username")?, payload.password("password")?);
            return Ok(ApiCall::Login { role, username, password });
        }
        _ if !is_session_api(role, api) => {
            return Err(unknown_api(api, server_kind, is_session_api(role.opposite(), api)).into());
        }
        _ => {}
    }
    // A missing session takes precedence over all other errors.
    let sid = message.session_id("session_id")?;
    match payload {
        Ok(_) if api == "Logout" => Ok(ApiCall::Logout { sid }),
        payload => parse_in_session(sid, || parse_session_call((server_kind, role), api, payload?)),
    }
}

fn parse_session_call(
    (server_kind, role): (ServerKind, Role),
    api: &str,
    payload: MessageFields<'_>,
) -> Result<SessionCall, Refusal> {
    Ok(match (role, api) {
        (Role::Buyer, "SearchItemsForSale") => SessionCall::Search {
            category: payload.optional_u32("category", 0)?,
            keywords: payload.search_keywords("keywords")?,
            page: payload.page(SEARCH_LIMIT_DEFAULT)?,
        },
        (Role::Buyer, "GetItem") => SessionCall::GetItem { item_id: payload.id("item_id")? },
        (Role::Buyer, "AddItemToCart") => {
            SessionCall::AddToCart { item_id: payload.id("item_id")?, quantity: payload.u32("quantity", 1)? }
        }
        (Role::Buyer, "RemoveItemFromCart") => SessionCall::RemoveFromCart {
            item_id: payload.id("item_id")?,
            quantity: payload.optional_u32("quantity", 1)?,
        },
        (Role::Buyer, "SaveCart") => SessionCall::SaveCart,
        (Role::Buyer, "ClearCart") => SessionCall::ClearCart,
        (Role::Buyer, "DisplayCart") => SessionCall::ShowCart,
        (Role::Buyer, "MakePurchase") => SessionCall::Purchase(Box::new(payload.payment()?)),
        (Role::Buyer, "ProvideFeedback") => {
            SessionCall::VoteItem { item_id: payload.id("item_id")?, up: payload.boolean("thumbs_up")? }
        }
        (Role::Buyer, "GetSellerRating") => {
            // `integer` has checked that it is not negative.
            SessionCall::RatingOf(SellerRef::Id(payload.integer("seller_id", 0, SAFE_INTEGER_MAX)? as u64))
        }
        (Role::Buyer, "GetBuyerPurchases") => SessionCall::Purchases(payload.page(PAGE_MAX)?),
        (Role::Seller, "GetSellerRating") => SessionCall::OwnRating,
        (Role::Seller, "RegisterItemForSale") => SessionCall::Register(Box::new(ItemRegistration {
            item_name: payload.text("item_name", 1, super::ITEM_NAME_MAX)?,
            category: payload.u32("category", 0)?,
            keywords: payload.keywords("keywords", KEYWORD_MAX)?,
            condition_is_new: payload.condition("condition")?,
            price: payload.price("price")?,
            quantity: payload.u32("quantity", 0)?,
        })),
        (Role::Seller, "ChangeItemPrice") => {
            SessionCall::ChangePrice { item_id: payload.id("item_id")?, price: payload.price("price")? }
        }
        (Role::Seller, "UpdateUnitsForSale") => SessionCall::UpdateUnits {
            item_id: payload.id("item_id")?,
            delta: payload.integer("quantity", -INT32_MAX, INT32_MAX)?,
        },
        (Role::Seller, "DisplayItemsForSale") => SessionCall::OwnItems(payload.page(PAGE_MAX)?),
        (Role::Seller, "GetItem") => SessionCall::GetOwnItem { item_id: payload.id("item_id")? },
        (Role::Seller, "GetSellerOrders") => SessionCall::Orders(payload.page(PAGE_MAX)?),
        (Role::Seller, "MarkShipped") => {
            SessionCall::MarkShipped { purchase_id: payload.id("purchase_id")?, item_id: payload.id("item_id")? }
        }
        _ => return Err(unknown_api(api, server_kind, false)),
    })
}

/// Whether this is an api of the role that needs a session.
fn is_session_api(role: Role, api: &str) -> bool {
    const BUYER: [&str; 12] = [
        "Logout",
        "SearchItemsForSale",
        "GetItem",
        "AddItemToCart",
        "RemoveItemFromCart",
        "SaveCart",
        "ClearCart",
        "DisplayCart",
        "MakePurchase",
        "ProvideFeedback",
        "GetSellerRating",
        "GetBuyerPurchases",
    ];
    const SELLER: [&str; 9] = [
        "Logout",
        "GetSellerRating",
        "RegisterItemForSale",
        "ChangeItemPrice",
        "UpdateUnitsForSale",
        "DisplayItemsForSale",
        "GetItem",
        "GetSellerOrders",
        "MarkShipped",
    ];
    match role {
        Role::Buyer => BUYER.contains(&api),
        Role::Seller => SELLER.contains(&api),
    }
}

#[derive(Serialize)]
struct ErrorResponse<'a> {
    r#type: &'a str,
    api: Option<&'a str>,
    session_id: Option<&'a str>,
    error: &'a Refusal,
}

/// A line of a purchase in the response to its buyer.
#[derive(Serialize)]
pub(super) struct PurchasedItemView<'a> {
    item_id: &'a str,
    quantity: u32,
    price: Cents,
}

/// A completed purchase in a response. It is not built as a [`Value`], which would round the total.
#[derive(Serialize)]
pub(super) struct PurchaseView<'a> {
    purchase_id: &'a str,
    total: Cents,
    items: Vec<PurchasedItemView<'a>>,
}

impl<'a> From<&'a CompletedPurchase> for PurchaseView<'a> {
    fn from(purchased: &'a CompletedPurchase) -> PurchaseView<'a> {
        let line = |line: &'a PricedLine| PurchasedItemView {
            item_id: &line.item_id,
            quantity: line.quantity,
            price: line.price,
        };
        let items = purchased.items.iter().map(line).collect();
        PurchaseView { purchase_id: &purchased.purchase_id, total: purchased.total, items }
    }
}

/// A list in a response, not built as a [`Value`] for the same reason.
#[derive(Serialize)]
pub(super) struct ItemsView<T> {
    items: Vec<T>,
}

impl<T> ItemsView<T> {
    pub(super) fn of<'a, F>(all: &'a [F]) -> ItemsView<T>
    where
        T: From<&'a F>,
    {
        ItemsView { items: all.iter().map(T::from).collect() }
    }
}

#[derive(Serialize)]
pub(super) struct HistoryEntryView<'a> {
    purchase_id: &'a str,
    item_id: &'a str,
    quantity: u32,
    price: Cents,
    purchased_at: u64,
    shipped_at: Option<u64>,
}

impl<'a> From<&'a PurchaseHistoryEntry> for HistoryEntryView<'a> {
    fn from(line: &'a PurchaseHistoryEntry) -> HistoryEntryView<'a> {
        HistoryEntryView {
            purchase_id: &line.purchase_id,
            item_id: &line.item_id,
            quantity: line.quantity,
            price: line.price,
            purchased_at: line.purchased_at.0 / 1000,
            shipped_at: line.shipped_at.map(|at| at.0 / 1000),
        }
    }
}

#[derive(Serialize)]
pub(super) struct OrderView<'a> {
    purchase_id: &'a str,
    item_id: &'a str,
    quantity: u32,
    price: Cents,
    payout: Cents,
    buyer_name: &'a str,
    address: Option<&'a str>,
    purchased_at: u64,
    shipped_at: Option<u64>,
}

impl<'a> From<&'a SellerOrder> for OrderView<'a> {
    fn from(line: &'a SellerOrder) -> OrderView<'a> {
        OrderView {
            purchase_id: &line.purchase_id,
            item_id: &line.item_id,
            quantity: line.quantity,
            price: line.price,
            payout: line.payout,
            buyer_name: &line.buyer_name,
            address: line.address.as_deref(),
            purchased_at: line.purchased_at.0 / 1000,
            shipped_at: line.shipped_at.map(|at| at.0 / 1000),
        }
    }
}

#[derive(Serialize)]
struct RatingView {
    feedback: Feedback,
    /// The fraction of votes that are thumbs up.
    rating: Option<f64>,
    items_sold: u64,
}

impl From<&SellerRating> for RatingView {
    fn from(rating: &SellerRating) -> RatingView {
        let Feedback { thumbs_up, thumbs_down } = rating.feedback;
        let votes = thumbs_up + thumbs_down;
        let share = (votes > 0).then(|| thumbs_up as f64 / votes as f64);
        RatingView { feedback: rating.feedback, rating: share, items_sold: rating.items_sold }
    }
}

/// Writes the response. The JSON of a database's result is copied as it is.
pub(super) fn write_response(
    api: Option<&str>,
    session_id: Option<&str>,
    answer: &ShopResult<ResponsePayload>,
) -> serde_json::Result<Vec<u8>> {
    let payload = match answer {
        Ok(payload) => payload,
        Err(error) => return serde_json::to_vec(&ErrorResponse { r#type: "error", api, session_id, error }),
    };
    let session_id = match payload {
        ResponsePayload::LoggedIn(_, session) => Some(session.sid.as_str()),
        _ => session_id,
    };
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"type\":\"response\",\"api\":");
    serde_json::to_writer(&mut out, &api)?;
    out.extend_from_slice(b",\"session_id\":");
    serde_json::to_writer(&mut out, &session_id)?;
    out.extend_from_slice(b",\"payload\":");
    let id = |role: &Role| match role {
        Role::Buyer => "buyer_id",
        Role::Seller => "seller_id",
    };
    match payload {
        ResponsePayload::Done => out.extend_from_slice(b"{\"status\":\"OK\"}"),
        ResponsePayload::Created(role, account) => {
            serde_json::to_writer(&mut out, &serde_json::json!({id(role): account.user_id}))?;
        }
        ResponsePayload::LoggedIn(role, session) => {
            let payload = serde_json::json!({"session_id": session.sid, id(role): session.user_id});
            serde_json::to_writer(&mut out, &payload)?;
        }
        ResponsePayload::Session(session) => serde_json::to_writer(&mut out, session)?,
        ResponsePayload::Search(json)
        | ResponsePayload::Items(json)
        | ResponsePayload::Item(json)
        | ResponsePayload::Registered(json) => {
            // Reserves space for the closing brace as well, so that a long page is not moved once more for it.
            out.reserve(json.len() + 1);
            out.extend_from_slice(json.as_bytes());
        }
        ResponsePayload::Cart(json) => {
            out.extend_from_slice(b"{\"cart\":");
            out.extend_from_slice(json.as_bytes());
            out.push(b'}');
        }
        ResponsePayload::Quantity(quantity) => {
            serde_json::to_writer(&mut out, &serde_json::json!({"status": "OK", "quantity": quantity}))?;
        }
        ResponsePayload::Rating(rating) => serde_json::to_writer(&mut out, &RatingView::from(rating))?,
        ResponsePayload::Purchased(purchased) => serde_json::to_writer(&mut out, &PurchaseView::from(purchased))?,
        ResponsePayload::Purchases(lines) => {
            serde_json::to_writer(&mut out, &ItemsView::<HistoryEntryView<'_>>::of(lines))?
        }
        ResponsePayload::Orders(lines) => serde_json::to_writer(&mut out, &ItemsView::<OrderView<'_>>::of(lines))?,
    }
    out.push(b'}');
    Ok(out)
}
