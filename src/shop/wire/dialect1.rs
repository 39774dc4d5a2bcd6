//! Dialect 1: `{"type":"request","api":NAME,"session_id":…,"payload":{…}}`, answered by a `response` or an
//! `error` with the same `api`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Act, Call, Envelope, Fields, KEYWORD_MAX, NUMBER_MAX, NewItem, Outcome, PAGE_MAX, Port, Rejected, Request,
    SEARCH_PAGE, SellerRef, WHOLE_MAX, Wrong, bad, in_session, not_here,
};
use crate::model::Cents;
use crate::shop::ops::{Answer, Bought, Code, Feedback, Order, PricedLine, Purchased, Rating, Refusal, Role};

pub(super) fn read(port: Port, message: &Map<String, Value>) -> Result<Request, Rejected> {
    let text = |field| message.get(field).and_then(Value::as_str).map(str::to_owned);
    let envelope = Envelope::One { api: text("api"), session_id: text("session_id") };
    match call(port, Fields(message)) {
        Ok(call) => Ok(Request { envelope, call }),
        Err(wrong) => Err(wrong.answered_in(envelope)),
    }
}

fn call(port: Port, message: Fields<'_>) -> Result<Call, Wrong> {
    let Some(role) = port.role() else {
        return Err(Refusal::new(Code::Forbidden, "only the frontends may ask this database").into());
    };
    let Value::String(api) = message.need("api")? else {
        return Err(bad("api: expected a text").into());
    };
    let nothing = Map::new();
    let payload = match message.get("payload") {
        None => Ok(Fields(&nothing)),
        Some(Value::Object(payload)) => Ok(Fields(payload)),
        Some(_) => Err(bad("payload: expected an object")),
    };
    match api.as_str() {
        "CreateAccount" => {
            let payload = payload?;
            return Ok(Call::Create {
                role,
                username: payload.username("username")?,
                password: payload.password("password")?,
                name: payload.optional_text("name", 1, crate::model::text::NAME_MAX)?,
            });
        }
        "Login" => {
            let payload = payload?;
            let (username, password) = (payload.username("username")?, payload.password("password")?);
            return Ok(Call::Login { role, username, password });
        }
        _ if !is_known(role, api) => return Err(not_here(api, port, is_known(role.other(), api)).into()),
        _ => {}
    }
    // Who is not logged in hears that first, whatever else is wrong.
    let sid = message.session("session_id")?;
    match payload {
        Ok(_) if api == "Logout" => Ok(Call::Logout { sid }),
        payload => in_session(sid, || act((port, role), api, payload?)),
    }
}

fn act((port, role): (Port, Role), api: &str, p: Fields<'_>) -> Result<Act, Refusal> {
    Ok(match (role, api) {
        (Role::Buyer, "SearchItemsForSale") => Act::Search {
            category: p.optional_u32("category", 0)?,
            keywords: p.search_keywords("keywords")?,
            page: p.page(SEARCH_PAGE)?,
        },
        (Role::Buyer, "GetItem") => Act::GetItem { item_id: p.id("item_id")? },
        (Role::Buyer, "AddItemToCart") => Act::AddToCart { item_id: p.id("item_id")?, quantity: p.u32("quantity", 1)? },
        (Role::Buyer, "RemoveItemFromCart") => {
            Act::RemoveFromCart { item_id: p.id("item_id")?, quantity: p.optional_u32("quantity", 1)? }
        }
        (Role::Buyer, "SaveCart") => Act::SaveCart,
        (Role::Buyer, "ClearCart") => Act::ClearCart,
        (Role::Buyer, "DisplayCart") => Act::ShowCart,
        (Role::Buyer, "MakePurchase") => Act::Purchase(Box::new(p.payment()?)),
        (Role::Buyer, "ProvideFeedback") => Act::VoteItem { item_id: p.id("item_id")?, up: p.flag("thumbs_up")? },
        (Role::Buyer, "GetSellerRating") => {
            // Not negative, as just checked.
            Act::RatingOf(SellerRef::Id(p.whole("seller_id", 0, NUMBER_MAX)? as u64))
        }
        (Role::Buyer, "GetBuyerPurchases") => Act::Purchases(p.page(PAGE_MAX)?),
        (Role::Seller, "GetSellerRating") => Act::OwnRating,
        (Role::Seller, "RegisterItemForSale") => Act::Register(Box::new(NewItem {
            item_name: p.text("item_name", 1, super::ITEM_NAME_MAX)?,
            category: p.u32("category", 0)?,
            keywords: p.keywords("keywords", KEYWORD_MAX)?,
            condition_is_new: p.condition("condition")?,
            price: p.price("price")?,
            quantity: p.u32("quantity", 0)?,
        })),
        (Role::Seller, "ChangeItemPrice") => Act::ChangePrice { item_id: p.id("item_id")?, price: p.price("price")? },
        (Role::Seller, "UpdateUnitsForSale") => {
            Act::UpdateUnits { item_id: p.id("item_id")?, delta: p.whole("quantity", -WHOLE_MAX, WHOLE_MAX)? }
        }
        (Role::Seller, "DisplayItemsForSale") => Act::OwnItems(p.page(PAGE_MAX)?),
        (Role::Seller, "GetItem") => Act::GetOwnItem { item_id: p.id("item_id")? },
        (Role::Seller, "GetSellerOrders") => Act::Orders(p.page(PAGE_MAX)?),
        (Role::Seller, "MarkShipped") => {
            Act::MarkShipped { purchase_id: p.id("purchase_id")?, item_id: p.id("item_id")? }
        }
        _ => return Err(not_here(api, port, false)),
    })
}

/// The apis that need a session.
fn is_known(role: Role, api: &str) -> bool {
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
struct ErrorAnswer<'a> {
    r#type: &'a str,
    api: Option<&'a str>,
    session_id: Option<&'a str>,
    error: &'a Refusal,
}

/// A line of a purchase, as the buyer sees it.
#[derive(Serialize)]
pub(super) struct LineOut<'a> {
    item_id: &'a str,
    quantity: u32,
    price: Cents,
}

/// A completed purchase. A type of its own, as a [`Value`] would round the total.
#[derive(Serialize)]
pub(super) struct PurchasedOut<'a> {
    purchase_id: &'a str,
    total: Cents,
    items: Vec<LineOut<'a>>,
}

impl<'a> From<&'a Purchased> for PurchasedOut<'a> {
    fn from(purchased: &'a Purchased) -> PurchasedOut<'a> {
        let line =
            |line: &'a PricedLine| LineOut { item_id: &line.item_id, quantity: line.quantity, price: line.price };
        let items = purchased.items.iter().map(line).collect();
        PurchasedOut { purchase_id: &purchased.purchase_id, total: purchased.total, items }
    }
}

/// A list; a type of its own for the same reason.
#[derive(Serialize)]
pub(super) struct ItemsOut<T> {
    items: Vec<T>,
}

impl<T> ItemsOut<T> {
    /// Each of them as it is written.
    pub(super) fn of<'a, F>(all: &'a [F]) -> ItemsOut<T>
    where
        T: From<&'a F>,
    {
        ItemsOut { items: all.iter().map(T::from).collect() }
    }
}

#[derive(Serialize)]
pub(super) struct BoughtOut<'a> {
    purchase_id: &'a str,
    item_id: &'a str,
    quantity: u32,
    price: Cents,
    purchased_at: u64,
    shipped_at: Option<u64>,
}

impl<'a> From<&'a Bought> for BoughtOut<'a> {
    fn from(line: &'a Bought) -> BoughtOut<'a> {
        BoughtOut {
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
pub(super) struct OrderOut<'a> {
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

impl<'a> From<&'a Order> for OrderOut<'a> {
    fn from(line: &'a Order) -> OrderOut<'a> {
        OrderOut {
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
struct RatingOut {
    feedback: Feedback,
    /// The share of thumbs up.
    rating: Option<f64>,
    items_sold: u64,
}

impl From<&Rating> for RatingOut {
    fn from(rating: &Rating) -> RatingOut {
        let Feedback { thumbs_up, thumbs_down } = rating.feedback;
        let votes = thumbs_up + thumbs_down;
        let share = (votes > 0).then(|| thumbs_up as f64 / votes as f64);
        RatingOut { feedback: rating.feedback, rating: share, items_sold: rating.items_sold }
    }
}

/// Writes the answer; what a database said passes through as it is.
pub(super) fn write(
    api: Option<&str>,
    session_id: Option<&str>,
    answer: &Answer<Outcome>,
) -> serde_json::Result<Vec<u8>> {
    let outcome = match answer {
        Ok(outcome) => outcome,
        Err(error) => return serde_json::to_vec(&ErrorAnswer { r#type: "error", api, session_id, error }),
    };
    let session_id = match outcome {
        Outcome::LoggedIn(_, session) => Some(session.sid.as_str()),
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
    match outcome {
        Outcome::Done => out.extend_from_slice(b"{\"status\":\"OK\"}"),
        Outcome::Created(role, account) => {
            serde_json::to_writer(&mut out, &serde_json::json!({id(role): account.user_id}))?;
        }
        Outcome::LoggedIn(role, session) => {
            let payload = serde_json::json!({"session_id": session.sid, id(role): session.user_id});
            serde_json::to_writer(&mut out, &payload)?;
        }
        Outcome::Session(session) => serde_json::to_writer(&mut out, session)?,
        Outcome::Search(json) | Outcome::Items(json) | Outcome::Item(json) | Outcome::Registered(json) => {
            // A page is long: it is to be moved once, not again for the brace behind it.
            out.reserve(json.len() + 1);
            out.extend_from_slice(json.as_bytes());
        }
        Outcome::Cart(json) => {
            out.extend_from_slice(b"{\"cart\":");
            out.extend_from_slice(json.as_bytes());
            out.push(b'}');
        }
        Outcome::Quantity(quantity) => {
            serde_json::to_writer(&mut out, &serde_json::json!({"status": "OK", "quantity": quantity}))?;
        }
        Outcome::Rating(rating) => serde_json::to_writer(&mut out, &RatingOut::from(rating))?,
        Outcome::Purchased(purchased) => serde_json::to_writer(&mut out, &PurchasedOut::from(purchased))?,
        Outcome::Purchases(lines) => serde_json::to_writer(&mut out, &ItemsOut::<BoughtOut<'_>>::of(lines))?,
        Outcome::Orders(lines) => serde_json::to_writer(&mut out, &ItemsOut::<OrderOut<'_>>::of(lines))?,
    }
    out.push(b'}');
    Ok(out)
}
