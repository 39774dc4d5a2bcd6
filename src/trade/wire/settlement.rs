use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::field::{parse_object, required, required_string, whole_number};
use super::messages::FIELDS;
use super::{ADDRESS_MAX, Side, encode};
use crate::model::{CardNumber, Cents, Expiry, Name, PaymentCard, Token, debug_fields, text};

server_messages! {
    /// A line that the server writes on a settlement connection.
    #[derive(Debug, Clone, PartialEq)]
    pub enum SettlementMessage by rq: u64 {
        /// Asks for the peer's identity and, from the buyer, for its payment details.
        "INFORM_REQ" InformReq { rq: u64, item_name: Arc<str>, price: Cents },
        /// Tells the seller where to ship, and the amount that it will be paid.
        "SHIPPING_INFO" ShippingInfo {
            rq: u64, name: Name, address: String, price: Cents, fee: Amount, payout: Amount
        },
        /// Tells the seller that it is paid.
        "SETTLED" Settled { rq: u64, payout: Amount },
        /// Tells the buyer that it has paid.
        "RECEIPT" Receipt {
            rq: u64,
            item_name: Arc<str>,
            price: Cents,
            seller: Name,
            #[serde(skip_serializing_if = "Option::is_none", default)]
            offer_item: Option<Arc<str>>,
            #[serde(skip_serializing_if = "Option::is_none", default)]
            offer_description: Option<Arc<str>>,
        },
        /// The settlement failed; nothing is charged.
        "CANCEL" Cancel { rq: u64, item_name: Arc<str>, reason: Arc<str> },
    }
}

/// A line of the server. An error does not quote it.
pub fn parse_settlement_message(line: &str) -> Result<SettlementMessage, String> {
    parse_object(line.as_bytes(), FIELDS)
}

/// A fee or a payout: it may be zero, unlike a price.
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

/// A peer's response to INFORM_REQ.
#[derive(Debug, Clone)]
pub struct InformResponse {
    pub name: Name,
    pub token: Token,
    /// How the buyer pays. A seller's details are ignored and may be absent.
    pub payment_details: Option<PaymentDetails>,
}

/// Its `Debug` output shows neither card nor address.
#[derive(Clone)]
pub struct PaymentDetails {
    pub card: PaymentCard,
    /// Where goods go to, or come from.
    pub address: String,
}

debug_fields!(PaymentDetails, |details| card: details.card.number);

/// What a peer writes.
#[derive(Debug, Clone)]
pub enum SettlementResponse {
    InformRes(u64, Box<InformResponse>),
    Shipped(u64),
}

/// A line of that side. An error does not quote it.
pub fn parse_settlement_response(line: &str, side: Side) -> Result<SettlementResponse, String> {
    #[derive(Deserialize)]
    struct RawLine {
        r#type: Option<Value>,
        rq: Option<Value>,
        name: Option<Value>,
        token: Option<Value>,
        cc_number: Option<Value>,
        cc_exp: Option<Value>,
        address: Option<Value>,
    }
    let line: RawLine = parse_object(line.as_bytes(), FIELDS)?;
    let rq = whole_number(required(&line.rq, "rq")?).ok_or("rq: expected a whole number")?;
    match required(&line.r#type, "type")?.as_str() {
        Some("SHIPPED") => Ok(SettlementResponse::Shipped(rq)),
        Some("INFORM_RES") => {
            let text = |value, field, max| required_string(value, field, 1, max);
            let named = |field: &'static str| move |wrong| format!("{field}: {wrong}");
            let name = Name::from_stored(text(&line.name, "name", text::NAME_MAX)?).map_err(named("name"))?;
            let token = Token::from_text(text(&line.token, "token", 256)?);
            let payment_details = match side {
                Side::Seller => None,
                Side::Buyer => Some(PaymentDetails {
                    card: PaymentCard {
                        number: CardNumber::new(text(&line.cc_number, "cc_number", 64)?).map_err(named("cc_number"))?,
                        expiry: Expiry::parse(text(&line.cc_exp, "cc_exp", 16)?).map_err(named("cc_exp"))?,
                    },
                    address: text(&line.address, "address", ADDRESS_MAX)?.to_owned(),
                }),
            };
            Ok(SettlementResponse::InformRes(rq, Box::new(InformResponse { name, token, payment_details })))
        }
        _ => Err("type: expected INFORM_RES or SHIPPED".to_owned()),
    }
}

/// It may contain a card number: never log it.
pub fn encode_inform(rq: u64, inform: &InformResponse) -> Vec<u8> {
    let mut message = json!({
        "type": "INFORM_RES",
        "rq": rq,
        "name": inform.name,
        "token": inform.token.reveal(),
        "cc_number": "",
        "cc_exp": "",
        "address": "",
    });
    if let Some(PaymentDetails { card, address }) = &inform.payment_details {
        message["cc_number"] = json!(card.number.reveal());
        message["cc_exp"] = json!(card.expiry);
        message["address"] = json!(address);
    }
    encode(&message)
}

/// The goods are shipped.
pub fn encode_shipped(rq: u64) -> Vec<u8> {
    encode(&json!({"type": "SHIPPED", "rq": rq}))
}
