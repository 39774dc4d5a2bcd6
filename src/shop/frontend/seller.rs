//! What the sellers' frontend does.

use serde::Deserialize;

use super::{Frontend, parse};
use crate::shop::door::request_id;
use crate::shop::ops::{Account, Answer, Code, CustomerOp, ProductOp, Quantity, Refusal};
use crate::shop::wire::{Act, NewItem, Outcome};

/// All that is looked at of an item that passes through.
#[derive(Deserialize)]
struct Whose {
    seller_id: u64,
}

impl Frontend {
    pub(super) fn seller_act(&self, sid: String, act: Act) -> Answer<Outcome> {
        match act {
            Act::Register(item) => {
                let Account { user_id: seller_id, username: seller, .. } = self.touch(sid)?;
                let NewItem { item_name, category, keywords, condition_is_new, price, quantity } = *item;
                let op = ProductOp::Register {
                    request: request_id(),
                    seller_id,
                    seller,
                    item_name,
                    category,
                    keywords,
                    condition_is_new,
                    price,
                    quantity,
                };
                self.ask_product(&op).map(Outcome::Registered)
            }
            Act::ChangePrice { item_id, price } => {
                let seller_id = self.touch(sid)?.user_id;
                self.ask_product(&ProductOp::ChangePrice { seller_id, item_id, price }).map(|_| Outcome::Done)
            }
            Act::UpdateUnits { item_id, delta } => {
                let seller_id = self.touch(sid)?.user_id;
                let op = ProductOp::UpdateUnits { request: request_id(), seller_id, item_id, delta };
                let left: Quantity = self.product(&op)?;
                Ok(Outcome::Quantity(left.quantity))
            }
            Act::OwnItems(page) => {
                let seller_id = self.touch(sid)?.user_id;
                let op = ProductOp::ItemsOf { seller_id, offset: page.offset, limit: page.limit };
                self.ask_product(&op).map(Outcome::Items)
            }
            Act::GetOwnItem { item_id } => {
                let (account, item) = self.ask_in_session(sid, &ProductOp::GetItem { item_id })?;
                let account: Account = parse(&account)?;
                let whose: Whose = parse(&item)?;
                if whose.seller_id != account.user_id {
                    return Err(Refusal::new(Code::Forbidden, "item_id: that is another seller's item"));
                }
                Ok(Outcome::Item(item))
            }
            Act::OwnRating => {
                let seller_id = self.touch(sid)?.user_id;
                Ok(Outcome::Rating(self.product(&ProductOp::RatingOf { seller_id })?))
            }
            Act::Orders(page) => {
                let op = CustomerOp::Orders { sid, offset: page.offset, limit: page.limit };
                Ok(Outcome::Orders(self.customer(&op)?))
            }
            Act::MarkShipped { purchase_id, item_id } => {
                self.ask_customer(&CustomerOp::MarkShipped { sid, purchase_id, item_id }).map(|_| Outcome::Done)
            }
            _ => Err(Refusal::new(Code::UnknownApi, "that is for buyers")),
        }
    }
}
