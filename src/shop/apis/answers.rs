//! The shapes of answers: how the JSON of a database's result is written in each dialect. What both dialects pass on as
//! it is needs none of its own: [`JSON`].

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Result, json};

use crate::model::{Cents, Millis};
use crate::shop::ops::{
    CompletedPurchase, Feedback, LineItem, RemainingQuantity, SellerRating, SessionInfo, unbounded_cents,
};

/// How the JSON of a result is written: as the payload of dialect 1, and as the response of dialect 2.
#[derive(Clone, Copy)]
pub struct Answer {
    pub write1: fn(&str, &mut Vec<u8>) -> Result<()>,
    pub write2: fn(&str) -> Result<Vec<u8>>,
}

pub const DONE: Answer = Answer {
    write1: |_, out| {
        out.extend_from_slice(br#"{"status":"OK"}"#);
        Ok(())
    },
    write2: |_| write_ok(json!({})),
};

/// The JSON object of the result, in dialect 2 with a status.
pub const JSON: Answer = Answer {
    write1: pass_on,
    write2: |json| {
        let fields = json.strip_prefix('{').ok_or_else(|| Error::custom("no object"))?;
        let comma = if fields == "}" { "" } else { "," };
        Ok([r#"{"status":"OK""#, comma, fields].concat().into_bytes())
    },
};

/// None of these: a frontend builds what is written, see `ResponsePayload` in `calls.rs`.
pub const BUILT: Answer =
    Answer { write1: |_, _| Err(Error::custom("not built")), write2: |_| Err(Error::custom("not built")) };

/// `results` in dialect 2.
pub const SEARCH: Answer = Answer { write1: pass_on, write2: view::<SearchPage> };

pub const ITEMS: Answer = Answer { write1: pass_on, write2: view::<ItemsPage> };

pub const ITEM: Answer = Answer { write1: pass_on, write2: |item| write_ok(json!({"item": parse::<ItemView>(item)?})) };

/// A list of [`LineItem`]s in dialect 1, units by item in dialect 2.
pub const CART: Answer = Answer {
    write1: |lines, out| {
        out.extend_from_slice(b"{\"cart\":");
        out.extend_from_slice(lines.as_bytes());
        out.push(b'}');
        Ok(())
    },
    write2: |lines| {
        let lines: Vec<LineItem> = parse(lines)?;
        let cart: BTreeMap<&str, u32> = lines.iter().map(|line| (line.item_id.as_str(), line.quantity)).collect();
        write_ok(json!({ "cart": cart }))
    },
};

/// The units that are left in the cart, or are for sale.
pub const QUANTITY: Answer = Answer {
    write1: |left, out| {
        let RemainingQuantity { quantity } = parse(left)?;
        serde_json::to_writer(out, &json!({"status": "OK", "quantity": quantity}))
    },
    write2: |left| write_ok(json!({"qty": parse::<RemainingQuantity>(left)?.quantity})),
};

pub const RATING: Answer = Answer {
    write1: |rating, out| {
        let SellerRating { feedback, items_sold } = parse(rating)?;
        let votes = feedback.thumbs_up + feedback.thumbs_down;
        let rating = (votes > 0).then(|| feedback.thumbs_up as f64 / votes as f64);
        serde_json::to_writer(out, &RatingView { feedback, rating, items_sold })
    },
    write2: |rating| {
        let Feedback { thumbs_up, thumbs_down } = parse::<SellerRating>(rating)?.feedback;
        write_ok(json!({"rating": [thumbs_up, thumbs_down]}))
    },
};

pub const PURCHASES: Answer = Answer { write1: list1::<HistoryEntryView>, write2: list2::<HistoryEntryView> };

pub const ORDERS: Answer = Answer { write1: list1::<OrderView>, write2: list2::<OrderView> };

pub const SESSION: Answer =
    Answer { write1: pass_on, write2: |session| write_ok(json!(parse::<SessionInfo>(session)?)) };

pub fn write_ok(fields: impl Serialize) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct OkResponse<T: Serialize> {
        status: &'static str,
        #[serde(flatten)]
        fields: T,
    }
    serde_json::to_vec(&OkResponse { status: "OK", fields })
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json)
}

fn pass_on(json: &str, out: &mut Vec<u8>) -> Result<()> {
    // There is space for the closing brace as well, so that a long page is not moved once more for it.
    out.reserve(json.len() + 1);
    out.extend_from_slice(json.as_bytes());
    Ok(())
}

fn view<V: DeserializeOwned + Serialize>(json: &str) -> Result<Vec<u8>> {
    write_ok(parse::<V>(json)?)
}

fn list1<V: DeserializeOwned + Serialize>(json: &str, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, &ListView { items: parse::<Vec<V>>(json)? })
}

fn list2<V: DeserializeOwned + Serialize>(json: &str) -> Result<Vec<u8>> {
    write_ok(ListView { items: parse::<Vec<V>>(json)? })
}

// Views are read from the result's JSON and written under the names that clients know; as [`serde_json::Value`]s they
// would have their sums rounded.

#[derive(Serialize)]
struct ListView<V> {
    items: Vec<V>,
}

#[derive(Serialize, Deserialize)]
struct SearchPage {
    #[serde(rename(serialize = "results"))]
    items: Vec<ItemView>,
    total: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    total_is_at_least: bool,
}

#[derive(Serialize, Deserialize)]
struct ItemsPage {
    items: Vec<ItemView>,
    total: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    total_is_at_least: bool,
}

/// An [`Item`](crate::shop::ops::Item) in dialect 2.
#[derive(Serialize, Deserialize)]
struct ItemView {
    item_id: String,
    #[serde(rename(serialize = "name"))]
    item_name: String,
    seller: String,
    category: u32,
    keywords: Vec<String>,
    #[serde(rename(serialize = "condition"), serialize_with = "condition")]
    condition_is_new: bool,
    price: Cents,
    #[serde(rename(serialize = "qty"))]
    quantity: u32,
    #[serde(serialize_with = "votes")]
    feedback: Feedback,
}

fn condition<S: Serializer>(is_new: &bool, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(if *is_new { "New" } else { "Used" })
}

fn votes<S: Serializer>(feedback: &Feedback, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    [feedback.thumbs_up, feedback.thumbs_down].serialize(serializer)
}

#[derive(Serialize)]
struct RatingView {
    feedback: Feedback,
    /// The fraction of votes that are thumbs up.
    rating: Option<f64>,
    items_sold: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(from = "Millis")]
struct UnixSeconds(u64);

impl From<Millis> for UnixSeconds {
    fn from(at: Millis) -> UnixSeconds {
        UnixSeconds(at.0 / 1000)
    }
}

/// A [`PurchaseHistoryEntry`](crate::shop::ops::PurchaseHistoryEntry).
#[derive(Serialize, Deserialize)]
struct HistoryEntryView {
    purchase_id: String,
    item_id: String,
    quantity: u32,
    price: Cents,
    purchased_at: UnixSeconds,
    shipped_at: Option<UnixSeconds>,
}

/// A [`SellerOrder`](crate::shop::ops::SellerOrder).
#[derive(Serialize, Deserialize)]
struct OrderView {
    purchase_id: String,
    item_id: String,
    quantity: u32,
    price: Cents,
    #[serde(deserialize_with = "unbounded_cents::deserialize")]
    payout: Cents,
    buyer_name: String,
    address: Option<String>,
    purchased_at: UnixSeconds,
    shipped_at: Option<UnixSeconds>,
}

/// A completed purchase, for both dialects.
#[derive(Serialize)]
pub struct PurchaseView<'a> {
    purchase_id: &'a str,
    total: Cents,
    items: Vec<PurchasedItemView<'a>>,
}

#[derive(Serialize)]
struct PurchasedItemView<'a> {
    item_id: &'a str,
    quantity: u32,
    price: Cents,
}

impl<'a> From<&'a CompletedPurchase> for PurchaseView<'a> {
    fn from(purchased: &'a CompletedPurchase) -> PurchaseView<'a> {
        let lines = purchased.items.iter();
        let items =
            lines.map(|line| PurchasedItemView { item_id: &line.item_id, quantity: line.quantity, price: line.price });
        PurchaseView { purchase_id: &purchased.purchase_id, total: purchased.total, items: items.collect() }
    }
}
