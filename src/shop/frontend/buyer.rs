//! What the buyers' frontend does.

use super::{Frontend, parse};
use crate::shop::door::request_id;
use crate::shop::ops::{Answer, Begun, Code, CustomerOp, Item, ProductOp, Purchased, Quantity, Refusal, Role};
use crate::shop::purchase::driver::Driver;
use crate::shop::wire::{Act, Outcome, Payment, SellerRef};

/// How long units are held for a purchase at most; how long in truth, the product database decides.
const HOLD_MS: u64 = 3_600_000;

impl Frontend {
    /// `users`: dialect 2, where the cart is the user's.
    pub(super) fn buyer_act(&self, sid: String, users: bool, act: Act) -> Answer<Outcome> {
        match act {
            Act::Search { category, keywords, page } => {
                let op = ProductOp::Search { category, keywords, offset: page.offset, limit: page.limit };
                self.ask_in_session(sid, &op).map(|(_, found)| Outcome::Search(found))
            }
            Act::GetItem { item_id } => {
                self.ask_in_session(sid, &ProductOp::GetItem { item_id }).map(|(_, item)| Outcome::Item(item))
            }
            Act::AddToCart { item_id, quantity } => self.add_to_cart(sid, users, item_id, quantity),
            Act::RemoveFromCart { item_id, quantity } => {
                let op = CustomerOp::RemoveFromCart { request: request_id(), sid, users, item_id, quantity };
                let left: Quantity = self.customer(&op)?;
                Ok(Outcome::Quantity(left.quantity))
            }
            Act::SaveCart => self.ask_customer(&CustomerOp::SaveCart { sid, users }).map(|_| Outcome::Done),
            Act::ClearCart => self.ask_customer(&CustomerOp::ClearCart { sid, users }).map(|_| Outcome::Done),
            Act::ShowCart => self.ask_customer(&CustomerOp::ShowCart { sid, users }).map(Outcome::Cart),
            Act::Purchase(payment) => self.purchase(sid, users, *payment).map(Outcome::Purchased),
            Act::VoteItem { item_id, up } => {
                let buyer_id = self.touch(sid)?.user_id;
                self.ask_product(&ProductOp::VoteItem { buyer_id, item_id, up }).map(|_| Outcome::Done)
            }
            Act::VoteSeller { seller, up } => {
                let buyer_id = self.touch(sid)?.user_id;
                let seller_id = self.seller(Some(seller), None)?;
                self.ask_product(&ProductOp::VoteSeller { buyer_id, seller_id, up }).map(|_| Outcome::Done)
            }
            Act::RatingOf(SellerRef::Id(seller_id)) => {
                let (_, rating) = self.ask_in_session(sid, &ProductOp::RatingOf { seller_id })?;
                self.seller(None, Some(seller_id))?;
                Ok(Outcome::Rating(parse(&rating)?))
            }
            Act::RatingOf(SellerRef::Username(seller)) => {
                self.touch(sid)?;
                let seller_id = self.seller(Some(seller), None)?;
                Ok(Outcome::Rating(self.product(&ProductOp::RatingOf { seller_id })?))
            }
            Act::Purchases(page) => {
                let op = CustomerOp::Purchases { sid, offset: page.offset, limit: page.limit };
                Ok(Outcome::Purchases(self.customer(&op)?))
            }
            _ => Err(Refusal::new(Code::UnknownApi, "that is for sellers")),
        }
    }

    /// How many there are is asked first; the cart's operation looks at the session itself.
    fn add_to_cart(&self, sid: String, users: bool, item_id: String, quantity: u32) -> Answer<Outcome> {
        let item: Answer<Item> = self.product(&ProductOp::GetItem { item_id: item_id.clone() });
        let at_most = match item {
            Ok(item) => item.quantity,
            Err(refusal) => {
                // Who is not logged in hears that first.
                self.touch(sid)?;
                return Err(refusal);
            }
        };
        let op = CustomerOp::AddToCart { request: request_id(), sid, users, item_id, quantity, at_most };
        self.ask_customer(&op).map(|_| Outcome::Done)
    }

    fn seller(&self, username: Option<String>, user_id: Option<u64>) -> Answer<u64> {
        let op = CustomerOp::FindUser { role: Role::Seller, username, user_id };
        let account: crate::shop::ops::Account = self.customer(&op)?;
        Ok(account.user_id)
    }

    fn purchase(&self, sid: String, users: bool, payment: Payment) -> Answer<Purchased> {
        let Payment { card, address, idempotency_key } = payment;
        let op = CustomerOp::Begin { request: request_id(), sid, users, idempotency_key, address };
        match self.customer(&op)? {
            Begun::Done { purchased } => Ok(purchased),
            Begun::Drive { purchase_id, lease, lines, .. } => {
                self.counters.purchases.add(1);
                self.drive(Driver::begin(self.clock.now(), purchase_id, lease, lines, HOLD_MS, card))
            }
        }
    }
}
