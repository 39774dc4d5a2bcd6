//! The calls of the buyers' frontend.

use super::{Frontend, parse_response};
use crate::shop::listener::request_id;
use crate::shop::ops::{
    BeginResponse, CompletedPurchase, CustomerOp, ErrorCode, Item, ProductOp, Refusal, RemainingQuantity, Role,
    ShopResult,
};
use crate::shop::purchase::driver::Driver;
use crate::shop::wire::{PaymentDetails, ResponsePayload, SellerRef, SessionCall};

/// How long the frontend asks for units to be held for a purchase. The product database has a lower limit of its own.
const HOLD_MS: u64 = 3_600_000;

impl Frontend {
    /// Executes a call in a session. `uses_saved_cart` is set for dialect 2.
    pub(super) fn handle_buyer_call(
        &self,
        sid: String,
        uses_saved_cart: bool,
        call: SessionCall,
    ) -> ShopResult<ResponsePayload> {
        match call {
            SessionCall::Search { category, keywords, page } => {
                let op = ProductOp::Search { category, keywords, offset: page.offset, limit: page.limit };
                self.call_product_in_session(sid, &op).map(|(_, found)| ResponsePayload::Search(found))
            }
            SessionCall::GetItem { item_id } => self
                .call_product_in_session(sid, &ProductOp::GetItem { item_id })
                .map(|(_, item)| ResponsePayload::Item(item)),
            SessionCall::AddToCart { item_id, quantity } => self.add_to_cart(sid, uses_saved_cart, item_id, quantity),
            SessionCall::RemoveFromCart { item_id, quantity } => {
                let op = CustomerOp::RemoveFromCart { request: request_id(), sid, uses_saved_cart, item_id, quantity };
                let left: RemainingQuantity = self.call_customer(&op)?;
                Ok(ResponsePayload::Quantity(left.quantity))
            }
            SessionCall::SaveCart => {
                self.call_customer_raw(&CustomerOp::SaveCart { sid, uses_saved_cart }).map(|_| ResponsePayload::Done)
            }
            SessionCall::ClearCart => {
                self.call_customer_raw(&CustomerOp::ClearCart { sid, uses_saved_cart }).map(|_| ResponsePayload::Done)
            }
            SessionCall::ShowCart => {
                self.call_customer_raw(&CustomerOp::ShowCart { sid, uses_saved_cart }).map(ResponsePayload::Cart)
            }
            SessionCall::Purchase(payment) => {
                self.purchase(sid, uses_saved_cart, *payment).map(ResponsePayload::Purchased)
            }
            SessionCall::VoteItem { item_id, up } => {
                let buyer_id = self.touch_session(sid)?.user_id;
                self.call_product_raw(&ProductOp::VoteItem { buyer_id, item_id, up }).map(|_| ResponsePayload::Done)
            }
            SessionCall::VoteSeller { seller, up } => {
                let buyer_id = self.touch_session(sid)?.user_id;
                let seller_id = self.seller_id(Some(seller), None)?;
                self.call_product_raw(&ProductOp::VoteSeller { buyer_id, seller_id, up }).map(|_| ResponsePayload::Done)
            }
            SessionCall::RatingOf(SellerRef::Id(seller_id)) => {
                let (_, rating) = self.call_product_in_session(sid, &ProductOp::RatingOf { seller_id })?;
                self.seller_id(None, Some(seller_id))?;
                Ok(ResponsePayload::Rating(parse_response(&rating)?))
            }
            SessionCall::RatingOf(SellerRef::Username(seller)) => {
                self.touch_session(sid)?;
                let seller_id = self.seller_id(Some(seller), None)?;
                Ok(ResponsePayload::Rating(self.call_product(&ProductOp::RatingOf { seller_id })?))
            }
            SessionCall::Purchases(page) => {
                let op = CustomerOp::Purchases { sid, offset: page.offset, limit: page.limit };
                Ok(ResponsePayload::Purchases(self.call_customer(&op)?))
            }
            _ => Err(Refusal::new(ErrorCode::UnknownApi, "that is for sellers")),
        }
    }

    /// Asks for the item's stock first, because a cart may not hold more; the cart's operation itself checks the
    /// session.
    fn add_to_cart(
        &self,
        sid: String,
        uses_saved_cart: bool,
        item_id: String,
        quantity: u32,
    ) -> ShopResult<ResponsePayload> {
        let item: ShopResult<Item> = self.call_product(&ProductOp::GetItem { item_id: item_id.clone() });
        let at_most = match item {
            Ok(item) => item.quantity,
            Err(refusal) => {
                // Errors of the session take precedence over those of the item.
                self.touch_session(sid)?;
                return Err(refusal);
            }
        };
        let op = CustomerOp::AddToCart { request: request_id(), sid, uses_saved_cart, item_id, quantity, at_most };
        self.call_customer_raw(&op).map(|_| ResponsePayload::Done)
    }

    fn seller_id(&self, username: Option<String>, user_id: Option<u64>) -> ShopResult<u64> {
        let op = CustomerOp::FindUser { role: Role::Seller, username, user_id };
        let account: crate::shop::ops::Account = self.call_customer(&op)?;
        Ok(account.user_id)
    }

    fn purchase(&self, sid: String, uses_saved_cart: bool, payment: PaymentDetails) -> ShopResult<CompletedPurchase> {
        let PaymentDetails { card, address, idempotency_key } = payment;
        let op = CustomerOp::Begin { request: request_id(), sid, uses_saved_cart, idempotency_key, address };
        match self.call_customer(&op)? {
            BeginResponse::Done { purchased } => Ok(purchased),
            BeginResponse::Drive { purchase_id, lease, lines, .. } => {
                self.counters.purchases.add(1);
                self.drive(Driver::begin(self.clock.now(), purchase_id, lease, lines, HOLD_MS, card))
            }
        }
    }
}
