//! The calls of the sellers' frontend.

use serde::Deserialize;

use super::{Frontend, parse_response};
use crate::shop::listener::request_id;
use crate::shop::ops::{Account, CustomerOp, ErrorCode, ProductOp, Refusal, RemainingQuantity, ShopResult};
use crate::shop::wire::{ItemRegistration, ResponsePayload, SessionCall};

/// The only field that is parsed of an item whose JSON is passed on.
#[derive(Deserialize)]
struct ItemOwner {
    seller_id: u64,
}

impl Frontend {
    pub(super) fn handle_seller_call(&self, sid: String, call: SessionCall) -> ShopResult<ResponsePayload> {
        match call {
            SessionCall::Register(item) => {
                let Account { user_id: seller_id, username: seller, .. } = self.touch_session(sid)?;
                let ItemRegistration { item_name, category, keywords, condition_is_new, price, quantity } = *item;
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
                self.call_product_raw(&op).map(ResponsePayload::Registered)
            }
            SessionCall::ChangePrice { item_id, price } => {
                let seller_id = self.touch_session(sid)?.user_id;
                self.call_product_raw(&ProductOp::ChangePrice { seller_id, item_id, price })
                    .map(|_| ResponsePayload::Done)
            }
            SessionCall::UpdateUnits { item_id, delta } => {
                let seller_id = self.touch_session(sid)?.user_id;
                let op = ProductOp::UpdateUnits { request: request_id(), seller_id, item_id, delta };
                let left: RemainingQuantity = self.call_product(&op)?;
                Ok(ResponsePayload::Quantity(left.quantity))
            }
            SessionCall::OwnItems(page) => {
                let seller_id = self.touch_session(sid)?.user_id;
                let op = ProductOp::ItemsOf { seller_id, offset: page.offset, limit: page.limit };
                self.call_product_raw(&op).map(ResponsePayload::Items)
            }
            SessionCall::GetOwnItem { item_id } => {
                let (account, item) = self.call_product_in_session(sid, &ProductOp::GetItem { item_id })?;
                let account: Account = parse_response(&account)?;
                let owner: ItemOwner = parse_response(&item)?;
                if owner.seller_id != account.user_id {
                    return Err(Refusal::new(ErrorCode::Forbidden, "item_id: that is another seller's item"));
                }
                Ok(ResponsePayload::Item(item))
            }
            SessionCall::OwnRating => {
                let seller_id = self.touch_session(sid)?.user_id;
                Ok(ResponsePayload::Rating(self.call_product(&ProductOp::RatingOf { seller_id })?))
            }
            SessionCall::Orders(page) => {
                let op = CustomerOp::Orders { sid, offset: page.offset, limit: page.limit };
                Ok(ResponsePayload::Orders(self.call_customer(&op)?))
            }
            SessionCall::MarkShipped { purchase_id, item_id } => self
                .call_customer_raw(&CustomerOp::MarkShipped { sid, purchase_id, item_id })
                .map(|_| ResponsePayload::Done),
            _ => Err(Refusal::new(ErrorCode::UnknownApi, "that is for buyers")),
        }
    }
}
