//! The calls in a session: which database is asked what.

use serde::Deserialize;

use super::{Frontend, parse_response};
use crate::shop::apis::{PaymentDetails, ResponsePayload, SellerRef, SessionCall};
use crate::shop::customer::CustomerOp;
use crate::shop::listener::request_id;
use crate::shop::ops::{Account, BeginResponse, CompletedPurchase, ErrorCode, Item, Refusal, Role, ShopResult};
use crate::shop::product::{NewItem, ProductOp};
use crate::shop::purchase::driver::Driver;

/// How long units are to be held. The product database has a lower limit of its own.
const HOLD_MS: u64 = 3_600_000;

impl Frontend {
    /// `uses_saved_cart` is set for dialect 2.
    pub(super) fn handle_session_call(
        &self,
        sid: String,
        uses_saved_cart: bool,
        call: SessionCall,
    ) -> ShopResult<ResponsePayload> {
        let json = match call {
            SessionCall::AskProduct(op) => self.call_product_in_session(sid, &op).map(|(_account, json)| json),
            SessionCall::AskCustomer(call) => {
                self.call_customer_raw(&CustomerOp::InSession { sid, uses_saved_cart, call })
            }
            SessionCall::GetOwnItem { item_id } => self.own_item(sid, item_id),
            SessionCall::AddToCart { item_id, quantity } => self.add_to_cart(sid, uses_saved_cart, item_id, quantity),
            SessionCall::RemoveFromCart { item_id, quantity } => {
                let request = request_id();
                self.call_customer_raw(&CustomerOp::RemoveFromCart { request, sid, uses_saved_cart, item_id, quantity })
            }
            SessionCall::Purchase(payment) => {
                return self.purchase(sid, uses_saved_cart, *payment).map(ResponsePayload::Purchased);
            }
            SessionCall::VoteItem { item_id, up } => {
                self.call_product_as_user(sid, |user| ProductOp::VoteItem { buyer_id: user.user_id, item_id, up })
            }
            SessionCall::VoteSeller { seller, up } => {
                let buyer_id = self.touch_session(sid)?.user_id;
                let seller_id = self.seller_id(Some(seller), None)?;
                self.call_product_raw(&ProductOp::VoteSeller { buyer_id, seller_id, up })
            }
            SessionCall::RatingOf(SellerRef::Id(seller_id)) => {
                let (_account, rating) = self.call_product_in_session(sid, &ProductOp::RatingOf { seller_id })?;
                self.seller_id(None, Some(seller_id)).map(|_| rating)
            }
            SessionCall::RatingOf(SellerRef::Username(seller)) => {
                self.touch_session(sid)?;
                let seller_id = self.seller_id(Some(seller), None)?;
                self.call_product_raw(&ProductOp::RatingOf { seller_id })
            }
            SessionCall::OwnRating => {
                self.call_product_as_user(sid, |user| ProductOp::RatingOf { seller_id: user.user_id })
            }
            SessionCall::OwnItems { offset, limit } => {
                self.call_product_as_user(sid, |user| ProductOp::ItemsOf { seller_id: user.user_id, offset, limit })
            }
            SessionCall::Register(item) => self.call_product_as_user(sid, |user| ProductOp::Register {
                request: request_id(),
                item: NewItem { seller_id: user.user_id, seller: user.username, ..*item },
            }),
            SessionCall::ChangePrice { item_id, price } => self
                .call_product_as_user(sid, |user| ProductOp::ChangePrice { seller_id: user.user_id, item_id, price }),
            SessionCall::UpdateUnits { item_id, delta } => self.call_product_as_user(sid, |user| {
                ProductOp::UpdateUnits { request: request_id(), seller_id: user.user_id, item_id, delta }
            }),
        };
        json.map(ResponsePayload::Json)
    }

    /// Asks for what the account of the session is part of.
    fn call_product_as_user(&self, sid: String, op: impl FnOnce(Account) -> ProductOp) -> ShopResult<String> {
        let account = self.touch_session(sid)?;
        self.call_product_raw(&op(account))
    }

    fn own_item(&self, sid: String, item_id: String) -> ShopResult<String> {
        #[derive(Deserialize)]
        struct ItemOwner {
            seller_id: u64,
        }
        let (account, item) = self.call_product_in_session(sid, &ProductOp::GetItem { item_id })?;
        let account: Account = parse_response(&account)?;
        let owner: ItemOwner = parse_response(&item)?;
        if owner.seller_id != account.user_id {
            return Err(Refusal::new(ErrorCode::Forbidden, "item_id: that is another seller's item"));
        }
        Ok(item)
    }

    /// Asks for the item's stock first, because a cart may not hold more; the cart's operation checks the session.
    fn add_to_cart(&self, sid: String, uses_saved_cart: bool, item_id: String, quantity: u32) -> ShopResult<String> {
        let item = self.call_product_raw(&ProductOp::GetItem { item_id: item_id.clone() });
        let at_most = match item.and_then(|json| parse_response::<Item>(&json)) {
            Ok(item) => item.quantity,
            Err(refusal) => {
                // Errors of the session take precedence over those of the item.
                self.touch_session(sid)?;
                return Err(refusal);
            }
        };
        let request = request_id();
        self.call_customer_raw(&CustomerOp::AddToCart { request, sid, uses_saved_cart, item_id, quantity, at_most })
    }

    fn seller_id(&self, username: Option<String>, user_id: Option<u64>) -> ShopResult<u64> {
        let op = CustomerOp::FindUser { role: Role::Seller, username, user_id };
        let account: Account = self.call_customer(&op)?;
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
