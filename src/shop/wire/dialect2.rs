//! Dialect 2: flat, `{"type":T,"sid":…,…}` → `{"status":"OK",…}` or `{"status":"ERR","error":…}`; each a
//! shorthand for a call of dialect 1.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dialect1::{BoughtOut, ItemsOut, OrderOut, PurchasedOut};
use super::{
    Act, Call, Envelope, Fields, KEYWORD_MAX, NewItem, Outcome, PAGE_MAX, Port, Rejected, Request, SellerRef,
    WHOLE_MAX, Wrong, bad, in_session, not_here,
};
use crate::model::Cents;
use crate::shop::ops::{Answer, Code, Feedback, Found, Item, Line, Refusal, Registered, Role};

pub(super) fn read(port: Port, message: &Map<String, Value>) -> Result<Request, Rejected> {
    let envelope = Envelope::Two(Names::of(message.get("type").and_then(Value::as_str).unwrap_or_default()));
    match call(port, Fields(message)) {
        Ok(call) => Ok(Request { envelope, call }),
        Err(wrong) => Err(wrong.answered_in(envelope)),
    }
}

/// What the fields of dialect 1 are called in a message of dialect 2: whoever finds something wrong with one
/// later (the frontend, a database) knows dialect 1's names alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names(&'static [(&'static str, &'static str)]);

/// Of every message that has one.
const SESSION: (&str, &str) = ("session_id", "sid");
const ITEM: (&str, &str) = ("item_id", "item");
const UNITS: (&str, &str) = ("quantity", "qty");
const USER: (&str, &str) = ("username", "user");
const PASSWORD: (&str, &str) = ("password", "pwd");

/// By the type of the message; what is not named is called the same in both.
const NAMES: [(&str, Names); 19] = [
    ("CREATE", Names(&[USER, PASSWORD])),
    ("LOGIN", Names(&[USER, PASSWORD])),
    ("LOGOUT", Names(&[SESSION])),
    ("VALIDATE", Names(&[SESSION])),
    ("SEARCH", Names(&[SESSION])),
    ("GET_ITEM", Names(&[SESSION, ITEM])),
    ("ADD_CART", Names(&[SESSION, ITEM, UNITS])),
    ("REMOVE_CART", Names(&[SESSION, ITEM, UNITS])),
    ("GET_CART", Names(&[SESSION])),
    ("CLEAR_CART", Names(&[SESSION])),
    ("SAVE_CART", Names(&[SESSION])),
    ("FEEDBACK", Names(&[SESSION, ITEM, ("username", "seller"), ("seller_id", "seller"), ("thumbs_up", "vote")])),
    ("GET_PURCHASES", Names(&[SESSION])),
    // Its items and units are those of the cart calls, its user the one who logged in.
    ("PURCHASE", Names(&[SESSION, ITEM, UNITS, USER])),
    ("GET_SELLER_RATING", Names(&[SESSION, ("username", "seller"), ("seller_id", "seller")])),
    ("ADD_ITEM", Names(&[SESSION, ("item_name", "name"), UNITS])),
    ("UPDATE_PRICE", Names(&[SESSION, ITEM])),
    ("UPDATE_QTY", Names(&[SESSION, ITEM, ("quantity", "delta")])),
    ("GET_ITEMS", Names(&[SESSION])),
];

impl Names {
    /// Those of no message.
    pub(super) const NONE: Names = Names(&[]);

    fn of(kind: &str) -> Names {
        NAMES.iter().find(|(known, _)| *known == kind).map_or(Names::NONE, |(_, names)| *names)
    }

    /// A refusal whose message begins with a field, with that field as its sender calls it. Nothing else of
    /// the message is touched.
    fn apply<'a>(self, refusal: &'a Refusal) -> Cow<'a, Refusal> {
        let named = refusal.message.split_once(": ").and_then(|(field, rest)| {
            let (_, own) = self.0.iter().find(|(name, _)| *name == field)?;
            Some(Refusal::new(refusal.code, format!("{own}: {rest}")))
        });
        named.map_or(Cow::Borrowed(refusal), Cow::Owned)
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

/// Writes the answer to a message with these names.
pub(super) fn write(names: Names, answer: &Answer<Outcome>) -> serde_json::Result<Vec<u8>> {
    let outcome = match answer {
        Ok(outcome) => outcome,
        Err(refusal) => return serde_json::to_vec(&json!({"status": "ERR", "error": names.apply(refusal)})),
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
        Outcome::Purchased(purchased) => return ok(PurchasedOut::from(purchased)),
        Outcome::Purchases(lines) => return ok(ItemsOut::<BoughtOut<'_>>::of(lines)),
        Outcome::Orders(lines) => return ok(ItemsOut::<OrderOut<'_>>::of(lines)),
    };
    ok(fields)
}

fn ok(fields: impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Ok_ { status: "OK", fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_names_and_none_is_another_fields() {
        let known = [Role::Buyer, Role::Seller].map(|role| NAMES.iter().filter(move |(kind, _)| is_known(role, kind)));
        assert_eq!(known.map(Iterator::count), [11, 5], "each that needs a session");
        for (kind, Names(names)) in NAMES {
            for (one, two) in names {
                // So that what is wrong with a field of dialect 2 stays as it is.
                assert!(!names.iter().any(|(other, _)| other == two), "{kind}: {one} becomes {two}, which is another");
            }
        }
        assert_eq!(Names::of("Nonsense"), Names::NONE);
    }

    #[test]
    fn only_the_field_that_leads_is_renamed() {
        let renamed = |kind: &str, message: &str| {
            Names::of(kind).apply(&Refusal::new(Code::BadRequest, message)).into_owned().message
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
