//! The operations of the customer database: what frontends ask for, and who carries it out.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::carts::{BuyerCarts, CartOf, IdempotentRequest, PendingResult};
use super::core::BeginRequest;
use super::purchasing::{answer_of, read_card};
use super::store::StoreJournal;
use super::{CustomerDbInner, sales, to_json};
use crate::identity::SessionKey;
use crate::model::Millis;
use crate::shop::ops::{CardDetails, LineItem, PAGE_MAX, PricedLine, Refusal, Role, SessionInfo, ShopResult};
use crate::shop::purchase::PurchaseEvent;
use crate::storage::CommitHandle;

/// An operation of the customer database. Each variant names the type of its result.
///
/// An operation with a session id, `sid`, is refused with SESSION_EXPIRED if there is no such session and with
/// FORBIDDEN if it is of the other role; otherwise it counts as a use of the session. `uses_saved_cart` is set for
/// dialect 2, in which the cart is the buyer's saved one rather than the session's.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum CustomerOp {
    /// → `Account`; `source` is the client's IP address, which bounds how many of its password hashes may wait.
    Create {
        request: String,
        role: Role,
        username: String,
        password: String,
        name: Option<String>,
        #[serde(default)]
        source: String,
    },
    /// → `NewSession`; `source` is the client's IP address, for the limit on failed logins.
    Login { role: Role, username: String, password: String, source: String },
    /// → `()`
    Logout { role: Role, sid: String },
    /// → [`SessionInfo`]; does not count as a use of the session.
    Validate { sid: String },
    /// → `Account` of the session.
    Touch { role: Role, sid: String },
    /// → `Account`, by user name or by id.
    FindUser { role: Role, username: Option<String>, user_id: Option<u64> },
    /// → `()`; OUT_OF_STOCK when the cart would hold more than `at_most`.
    AddToCart {
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        item_id: String,
        quantity: u32,
        at_most: u32,
    },
    /// → `RemainingQuantity` in the cart. Without a quantity, or with more than there is, all units go.
    RemoveFromCart {
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        item_id: String,
        quantity: Option<u32>,
    },
    /// → `BeginResponse`; who gets `BeginResponse::Drive` drives the purchase.
    Begin {
        /// It serves a driver whose response was lost.
        request: String,
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        idempotency_key: Option<String>,
        address: Option<String>,
    },
    /// → `()`: has the bank authorise the total. PAYMENT_DECLINED ends the attempt: the driver then releases the units
    /// and sends [`CustomerOp::Closed`].
    Authorise { purchase_id: String, lease: u64, lines: Vec<PricedLine>, card: CardDetails },
    /// → `CompletedPurchase`: the units are sold. This is the commit point: the bank captures the charge, and history,
    /// ledger and the emptied cart are written with it.
    Complete { purchase_id: String, lease: u64 },
    /// → `()`: the purchase is undone, whatever arrives later, and its authorisation voided. The driver releases the
    /// units next.
    Undo { purchase_id: String, lease: u64, why: Refusal },
    /// → `()`: the units of an undone purchase are back in stock.
    Closed { purchase_id: String, lease: u64 },
    /// → `()`: extends these leases (purchase and lease), whose drivers are still at work.
    Renew { leases: Vec<(String, u64)> },
    /// → `Option<OrphanedPurchase>`: one whose driver's lease has expired, with a new lease for the caller.
    TakeOver,
    /// What the call returns.
    InSession {
        sid: String,
        #[serde(rename = "users")]
        uses_saved_cart: bool,
        call: CustomerCall,
    },
}

/// What a client may ask in a session, with no more than the frontend's words. Each variant names the type of its
/// result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CustomerCall {
    /// → `()`
    SaveCart,
    /// → `()`
    ClearCart,
    /// → `Vec<LineItem>`, by item id.
    ShowCart,
    /// → `Vec<PurchaseHistoryEntry>`, newest first.
    Purchases { offset: u64, limit: u64 },
    /// → `Vec<SellerOrder>`, newest first.
    Orders { offset: u64, limit: u64 },
    /// → `()`: one line of a purchase.
    MarkShipped { purchase_id: String, item_id: String },
}

impl fmt::Debug for CustomerOp {
    /// The kind only, because an operation may carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        f.write_str(written["op"].as_str().unwrap_or_default())
    }
}

impl CustomerDbInner {
    pub(super) fn handle(&self, op: CustomerOp) -> ShopResult<String> {
        match op {
            CustomerOp::Create { request, role, username, password, name, source } => {
                to_json(&self.accounts.create(request, role, username, (&password, &source), name)?)
            }
            CustomerOp::Login { role, username, password, source } => {
                let account = self.accounts.authenticate(role, &username, (&password, &source))?;
                to_json(&self.open_session(role, account)?)
            }
            CustomerOp::Logout { role, sid } => self.answer(|core, now| core.end_session(now, role, &sid)),
            CustomerOp::Validate { sid } => self.look(|core, now| {
                let owner = core.look(now, &sid)?;
                Ok(SessionInfo { user: owner.account.username.clone(), role: owner.role })
            }),
            CustomerOp::Touch { role, sid } => {
                self.look(|core, now| core.use_session(now, role, &SessionKey::of(&sid)))
            }
            CustomerOp::FindUser { role, username, user_id } => {
                to_json(&self.accounts.find(role, username.as_deref(), user_id)?)
            }
            CustomerOp::AddToCart { request, sid, uses_saved_cart, item_id, quantity, at_most } => {
                let (cart, line) = (CartOf::new(&sid, uses_saved_cart), LineItem { item_id, quantity });
                self.in_cart(cart, |buyer, journal, cart, now| {
                    buyer.add(journal, cart, IdempotentRequest { id: &request, now }, &line, at_most)
                })
            }
            CustomerOp::RemoveFromCart { request, sid, uses_saved_cart, item_id, quantity } => {
                let cart = CartOf::new(&sid, uses_saved_cart);
                self.in_cart(cart, |buyer, journal, cart, now| {
                    buyer.remove(journal, cart, IdempotentRequest { id: &request, now }, &item_id, quantity)
                })
            }
            CustomerOp::Begin { request, sid, uses_saved_cart, idempotency_key, address } => {
                to_json(&self.begin(BeginRequest {
                    cart: CartOf::new(&sid, uses_saved_cart),
                    request: &request,
                    key: idempotency_key.as_deref(),
                    address: address.as_deref(),
                })?)
            }
            CustomerOp::Authorise { purchase_id, lease, lines, card } => {
                let (card, event) = (read_card(&card)?, PurchaseEvent::Authorise { lease, lines });
                to_json(&answer_of(self.drive(&purchase_id, event, Some(&card))?)?)
            }
            CustomerOp::Complete { purchase_id, lease } => self.complete(&purchase_id, lease),
            CustomerOp::Undo { purchase_id, lease, why } => {
                to_json(&answer_of(self.drive(&purchase_id, PurchaseEvent::Undo { lease, why }, None)?)?)
            }
            CustomerOp::Closed { purchase_id, lease } => {
                to_json(&answer_of(self.drive(&purchase_id, PurchaseEvent::Closed { lease }, None)?)?)
            }
            CustomerOp::Renew { leases } => {
                self.memory.current().lock().purchases.renew(self.config.clock.now(), &leases);
                to_json(&())
            }
            CustomerOp::TakeOver => self.answer(|core, now| core.take_over(now)),
            CustomerOp::InSession { sid, uses_saved_cart, call } => {
                self.handle_call(CartOf::new(&sid, uses_saved_cart), call)
            }
        }
    }

    fn in_cart<T: Serialize>(
        &self,
        cart: CartOf,
        work: impl FnOnce(&mut BuyerCarts<CommitHandle>, &StoreJournal, CartOf, Millis) -> PendingResult<T, CommitHandle>,
    ) -> ShopResult<String> {
        self.answer(|core, now| core.with_cart(now, cart, |buyer, journal, cart| work(buyer, journal, cart, now)))
    }

    fn handle_call(&self, cart: CartOf, call: CustomerCall) -> ShopResult<String> {
        match call {
            CustomerCall::SaveCart => self.in_cart(cart, |buyer, journal, cart, _| buyer.save(journal, cart)),
            CustomerCall::ClearCart => self.in_cart(cart, |buyer, journal, cart, _| buyer.clear(journal, cart)),
            CustomerCall::ShowCart => self.in_cart(cart, |buyer, journal, cart, _| buyer.show(journal, cart)),
            CustomerCall::Purchases { offset, limit } => {
                let buyer_id = self.user_of(Role::Buyer, &cart.session)?;
                self.page(|reader| sales::purchase_history(reader, buyer_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerCall::Orders { offset, limit } => {
                let seller_id = self.user_of(Role::Seller, &cart.session)?;
                self.page(|reader| sales::seller_orders(reader, seller_id, offset, limit.min(PAGE_MAX) as u32))
            }
            CustomerCall::MarkShipped { purchase_id, item_id } => {
                let seller_id = self.user_of(Role::Seller, &cart.session)?;
                to_json(&self.ship(seller_id, purchase_id, item_id)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let login = CustomerOp::Login {
            role: Role::Buyer,
            username: "u".to_owned(),
            password: "hunter2".to_owned(),
            source: "127.0.0.1".to_owned(),
        };
        assert_eq!(format!("{login:?}"), "login");
    }
}
