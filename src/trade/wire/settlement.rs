//! The lines of a settlement, either way.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::{present, read_object, string, whole_number};
use super::{ADDRESS_MAX, Side};
use crate::model::text;
use crate::model::{Card, CardNumber, Cents, Expiry, Name, Token};

/// A line that the server writes in a settlement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SettlementLine {
    /// Who are you, and (buyer) what do you pay with?
    InformReq { rq: u64, item_name: Arc<str>, price: Cents },
    /// Ship it there; you will get so much.
    ShippingInfo { rq: u64, name: Name, address: String, price: Cents, fee: Amount, payout: Amount },
    /// You are paid.
    Settled { rq: u64, payout: Amount },
    /// You have paid.
    Receipt {
        rq: u64,
        item_name: Arc<str>,
        price: Cents,
        seller: Name,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        offer_item: Option<Arc<str>>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        offer_description: Option<Arc<str>>,
    },
    /// Nothing is charged.
    Cancel { rq: u64, item_name: Arc<str>, reason: Arc<str> },
}

/// An amount that, unlike a price, may be zero: a fee of nothing, a payout of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub Cents);

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.as_f64() == Some(0.0) || value.as_str().is_some_and(|text| matches!(text, "0" | "0.0" | "0.00")) {
            return Ok(Amount(Cents(0)));
        }
        Cents::deserialize(value).map(Amount).map_err(serde::de::Error::custom)
    }
}

/// What a peer answers to INFORM_REQ.
#[derive(Debug, Clone)]
pub struct Inform {
    /// Must be the peer's.
    pub name: Name,
    /// Must be the peer's.
    pub token: Token,
    /// What the buyer pays with. A seller's is not looked at, so it may have none.
    pub purse: Option<Purse>,
}

/// A card, and where goods go to (or come from). Its `Debug` output shows neither card nor address.
#[derive(Clone)]
pub struct Purse {
    /// What is charged.
    pub card: Card,
    /// A postal address.
    pub address: String,
}

impl fmt::Debug for Purse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Purse").field("card", &self.card.number).finish_non_exhaustive()
    }
}

/// A line that a peer writes in a settlement.
#[derive(Debug, Clone)]
pub enum SettlementAnswer {
    /// Answer to INFORM_REQ.
    InformRes(u64, Box<Inform>),
    /// The seller has sent the goods on their way.
    Shipped(u64),
}

/// Reads a settlement line of that side; the error says what is wrong with it, without quoting it.
pub fn read_settlement(line: &str, side: Side) -> Result<SettlementAnswer, String> {
    #[derive(Deserialize)]
    struct Line {
        r#type: Option<Value>,
        rq: Option<Value>,
        name: Option<Value>,
        token: Option<Value>,
        cc_number: Option<Value>,
        cc_exp: Option<Value>,
        address: Option<Value>,
    }
    let line: Line = read_object(line.as_bytes())?;
    let rq = whole_number(present(&line.rq, "rq")?).ok_or("rq: expected a whole number")?;
    match present(&line.r#type, "type")?.as_str() {
        Some("SHIPPED") => Ok(SettlementAnswer::Shipped(rq)),
        Some("INFORM_RES") => {
            let text = |value, field, max| string(value, field, 1, max);
            let named = |field: &'static str| move |wrong| format!("{field}: {wrong}");
            let name = Name::kept(text(&line.name, "name", text::NAME_MAX)?).map_err(named("name"))?;
            let token = Token::from_text(text(&line.token, "token", 256)?);
            let purse = match side {
                Side::Seller => None,
                Side::Buyer => Some(Purse {
                    card: Card {
                        number: CardNumber::new(text(&line.cc_number, "cc_number", 64)?).map_err(named("cc_number"))?,
                        expiry: Expiry::parse(text(&line.cc_exp, "cc_exp", 16)?).map_err(named("cc_exp"))?,
                    },
                    address: text(&line.address, "address", ADDRESS_MAX)?.to_owned(),
                }),
            };
            Ok(SettlementAnswer::InformRes(rq, Box::new(Inform { name, token, purse })))
        }
        _ => Err("type: expected INFORM_RES or SHIPPED".to_owned()),
    }
}
