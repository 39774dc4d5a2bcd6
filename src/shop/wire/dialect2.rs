//! Dialect 2: flat, `{"type":T,"sid":…,…}` → `{"status":"OK",…}` or `{"status":"ERR","error":…}`; each a
//! shorthand for a call of dialect 1.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dialect1::{BoughtOut, OrderOut, lines_out};
use super::{
    Act, Call, Envelope, Fields, KEYWORD_MAX, NewItem, Outcome, PAGE_MAX, Port, Rejected, Request, SellerRef,
    WHOLE_MAX, Wrong, bad, in_session, not_here,
};
use crate::model::Cents;
use crate::shop::ops::{Answer, Code, Feedback, Found, Item, Line, Refusal, Registered, Role};

pub(super) fn read(port: Port, message: &Map<String, Value>) -> Result<Request, Rejected> {
    match call(port, Fields(message)) {
        Ok(call) => Ok(Request { envelope: Envelope::Two, call }),
        Err(wrong) => Err(wrong.answered_in(Envelope::Two)),
    }
}

fn call(port: Port, m: Fields<'_>) -> Result<Call, Wrong> {
    let stranger = || Refusal::new(Code::Forbidden, "only the frontends may ask this database");
    if port == Port::Product {
        return Err(stranger().into());
    }
    let Value::String(kind) = m.need("type")? else {
        return Err(bad("type: expected a text").into());
    };
    match (kind.as_str(), port.role()) {
        ("CREATE", _) => {
            let role = role(port, m)?;
            let (username, password) = (m.username("user")?, m.password("pwd")?);
            return Ok(Call::Create { role, username, password, name: None });
        }
        ("LOGIN", _) => {
            let role = role(port, m)?;
            return Ok(Call::Login { role, username: m.username("user")?, password: m.password("pwd")? });
        }
        ("LOGOUT", _) => return Ok(Call::Logout { sid: m.session("sid")? }),
        ("VALIDATE", None) => return Ok(Call::Validate { sid: m.session("sid")? }),
        (_, None) => return Err(stranger().into()),
        (kind, Some(role)) if !is_known(role, kind) => {
            return Err(not_here(kind, port, is_known(role.other(), kind)).into());
        }
        _ => {}
    }
    // Who is not logged in hears that first, whatever else is wrong.
    let sid = m.session("sid")?;
    in_session(sid, || act(port, kind, m))
}

fn act(port: Port, kind: &str, m: Fields<'_>) -> Result<Act, Refusal> {
    let item = || m.id("item");
    Ok(match kind {
        "SEARCH" => Act::Search {
            category: m.optional_u32("category", 0)?,
            keywords: m.search_keywords("keywords")?,
            page: m.page(PAGE_MAX)?,
        },
        "GET_ITEM" => Act::GetItem { item_id: item()? },
        "ADD_CART" => Act::AddToCart { item_id: item()?, quantity: m.u32("qty", 1)? },
        "REMOVE_CART" => Act::RemoveFromCart { item_id: item()?, quantity: m.optional_u32("qty", 1)? },
        "GET_CART" => Act::ShowCart,
        "CLEAR_CART" => Act::ClearCart,
        "SAVE_CART" => Act::SaveCart,
        // A vote on an item counts for its seller, too: who names both means the item.
        "FEEDBACK" if m.get("item").is_some() => Act::VoteItem { item_id: item()?, up: m.vote("vote")? },
        "FEEDBACK" if m.get("seller").is_some() => {
            Act::VoteSeller { seller: m.username("seller")?, up: m.vote("vote")? }
        }
        "FEEDBACK" => return Err(bad("seller: missing (or item)")),
        "GET_PURCHASES" => Act::Purchases(m.page(PAGE_MAX)?),
        "PURCHASE" => Act::Purchase(Box::new(m.payment()?)),
        "GET_SELLER_RATING" if port == Port::Seller => Act::OwnRating,
        "GET_SELLER_RATING" => Act::RatingOf(SellerRef::Username(m.username("seller")?)),
        "ADD_ITEM" => Act::Register(Box::new(NewItem {
            item_name: m.text("name", 1, super::ITEM_NAME_MAX)?,
            category: m.u32("category", 0)?,
            keywords: m.keywords("keywords", KEYWORD_MAX)?,
            condition_is_new: m.condition("condition")?,
            price: m.price("price")?,
            quantity: m.u32("qty", 0)?,
        })),
        "UPDATE_PRICE" => Act::ChangePrice { item_id: item()?, price: m.price("price")? },
        "UPDATE_QTY" => Act::UpdateUnits { item_id: item()?, delta: m.whole("delta", -WHOLE_MAX, WHOLE_MAX)? },
        "GET_ITEMS" => Act::OwnItems(m.page(PAGE_MAX)?),
        other => return Err(not_here(other, port, false)),
    })
}

/// On a frontend it must be the port's.
fn role(port: Port, m: Fields<'_>) -> Result<Role, Refusal> {
    let role = m.role("role")?;
    match port.role() {
        Some(own) if own != role => {
            let whose = if own == Role::Buyer { "buyers" } else { "sellers" };
            Err(Refusal::new(Code::Forbidden, format!("role: this port is for {whose}")))
        }
        _ => Ok(role),
    }
}

/// The types that need a session.
fn is_known(role: Role, kind: &str) -> bool {
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
struct ItemOut<'a> {
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

impl<'a> From<&'a Item> for ItemOut<'a> {
    fn from(item: &'a Item) -> ItemOut<'a> {
        ItemOut {
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

/// `{"status":"OK"}` and these.
#[derive(Serialize)]
struct Ok_<T: Serialize> {
    status: &'static str,
    #[serde(flatten)]
    fields: T,
}

/// A page of items under the name that the call has for them.
#[derive(Serialize)]
struct List<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<ItemOut<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<Vec<ItemOut<'a>>>,
    total: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    total_is_at_least: bool,
}

/// Writes the answer.
pub(super) fn write(answer: &Answer<Outcome>) -> serde_json::Result<Vec<u8>> {
    let outcome = match answer {
        Ok(outcome) => outcome,
        Err(refusal) => return serde_json::to_vec(&json!({"status": "ERR", "error": refusal})),
    };
    let fields = match outcome {
        Outcome::Done | Outcome::Created(..) => json!({}),
        Outcome::LoggedIn(_, session) => json!({"sid": session.sid}),
        Outcome::Session(session) => json!(session),
        Outcome::Search(found) | Outcome::Items(found) => {
            let found: Found = serde_json::from_str(found)?;
            let items = Some(found.items.iter().map(ItemOut::from).collect());
            let (results, items) = if matches!(outcome, Outcome::Search(_)) { (items, None) } else { (None, items) };
            let list = List { results, items, total: found.total, total_is_at_least: found.total_is_at_least };
            return ok(list);
        }
        Outcome::Item(item) => {
            let item: Item = serde_json::from_str(item)?;
            return ok(json!({"item": ItemOut::from(&item)}));
        }
        Outcome::Cart(lines) => {
            let lines: Vec<Line> = serde_json::from_str(lines)?;
            let cart: BTreeMap<&str, u32> = lines.iter().map(|line| (line.item_id.as_str(), line.quantity)).collect();
            json!({"cart": cart})
        }
        Outcome::Quantity(quantity) => json!({"qty": quantity}),
        Outcome::Registered(registered) => json!(serde_json::from_str::<Registered>(registered)?),
        Outcome::Rating(rating) => json!({"rating": votes(&rating.feedback)}),
        Outcome::Purchased(purchased) => json!({
            "purchase_id": purchased.purchase_id, "total": purchased.total, "items": lines_out(&purchased.items)
        }),
        Outcome::Purchases(lines) => json!({"items": lines.iter().map(BoughtOut::from).collect::<Vec<_>>()}),
        Outcome::Orders(lines) => json!({"items": lines.iter().map(OrderOut::from).collect::<Vec<_>>()}),
    };
    ok(fields)
}

fn ok(fields: impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Ok_ { status: "OK", fields })
}
