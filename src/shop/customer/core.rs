//! The core of the customer database: sessions, carts and purchases as a value. It has no lock, thread, clock, bank or
//! store: the time comes in as an argument, changes go to the journal that it was given, and each answer bears the
//! commit of the newest change that it is built on. Whoever drives it sends no answer before that commit is on disk.
//!
//! What is on disk alone (accounts, saved carts of those who are not here, purchases that were made) is read by the
//! driver and handed in.

use std::sync::Arc;
use std::time::Duration;

use super::active_sessions::{ActiveSessions, Refused, SavedCart, SessionOwner};
use super::carts::{self, CartOf, IdempotentRequest, PendingResult};
use super::purchases::{Beginning, MadeUnderKey, OpenPurchases, Stepped};
use super::store::{CustomerChange, CustomerSnapshot};
use crate::identity::SessionKey;
use crate::model::{FeeRate, Millis, Name};
use crate::shop::ops::{Account, ErrorCode, LineItem, OrphanedPurchase, Refusal, RemainingQuantity, Role};
use crate::shop::purchase::{BankRequest, BuyerIdentity, CartSnapshot, Purchase, PurchaseAttempt, PurchaseEvent};
use crate::storage::Journal;

/// What is held in memory of the customer database.
pub struct CustomerCore<J: Journal> {
    journal: J,
    active_sessions: ActiveSessions<J::Commit>,
    purchases: OpenPurchases<J::Commit>,
}

/// Whose session a request names, and whether it is about the user's cart (dialect 2) or the session's.
#[derive(Debug, Clone, Copy)]
pub struct CartRequest<'r> {
    /// The session's id.
    pub sid: &'r str,
    /// The user's saved cart, which is loaded into the session's.
    pub uses_saved_cart: bool,
}

/// A request to begin a purchase of what is in a cart.
#[derive(Debug, Clone, Copy)]
pub struct BeginRequest<'r> {
    /// Which cart.
    pub cart: CartRequest<'r>,
    /// The number of the message: a repeat gets the same answer.
    pub request: &'r str,
    /// The buyer's idempotency key.
    pub key: Option<&'r str>,
    /// Where to.
    pub address: Option<&'r str>,
}

/// What becomes of a request to open a session.
#[derive(Debug)]
pub enum Opening<C> {
    /// It is decided.
    Decided(PendingResult<(), C>),
    /// To be tried again with the saved cart, which is read after this.
    ReadSavedCart {
        /// For [`SavedCart::evictions`].
        evictions: u64,
    },
}

impl<J: Journal<Change = CustomerChange>> CustomerCore<J> {
    /// Memory as the disk has it. The journal was begun before that was read.
    pub fn load(journal: J, session_timeout: Duration, fee: FeeRate, snapshot: CustomerSnapshot, now: Millis) -> Self {
        let under_way = snapshot.open_purchases.clone();
        let active_sessions = ActiveSessions::load(&journal, session_timeout, snapshot, now);
        CustomerCore { journal, active_sessions, purchases: OpenPurchases::load(fee, under_way, now) }
    }

    /// Opens a session of a user whose password was right. The key must be that of a new, random id. BUSY when there
    /// are too many.
    pub fn open_session(
        &mut self,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
        saved: Option<SavedCart>,
    ) -> Opening<J::Commit> {
        let user_id = account.user_id;
        if role == Role::Buyer
            && !self.active_sessions.has_buyer(user_id)
            && !saved.is_some_and(|saved| self.active_sessions.put_buyer(user_id, saved))
        {
            return Opening::ReadSavedCart { evictions: self.active_sessions.evictions() };
        }
        Opening::Decided(self.active_sessions.open_session(&self.journal, now, role, account, key))
    }

    /// Ends a session, if it is of this role.
    pub fn end_session(&mut self, now: Millis, role: Role, sid: &str) -> PendingResult<(), J::Commit> {
        self.active_sessions.end_session(&self.journal, now, role, &SessionKey::of(sid))
    }

    /// The account of a request's session, which is used from now on, if it is of this role.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN.
    pub fn use_session(&mut self, now: Millis, role: Role, sid: &str) -> Result<Arc<Account>, Refused<J::Commit>> {
        self.active_sessions.use_session(now, role, &SessionKey::of(sid)).map(|owner| Arc::clone(&owner.account))
    }

    /// The owner of a session, which is not used by this.
    ///
    /// # Errors
    /// SESSION_EXPIRED.
    pub fn look(&self, now: Millis, sid: &str) -> Result<SessionOwner, Refused<J::Commit>> {
        self.active_sessions.look(now, &SessionKey::of(sid)).cloned()
    }

    /// Ends sessions whose time is up, some at a time, and evicts buyers who have left. AnsweredRequests how many sessions were
    /// ended.
    pub fn expire(&mut self, now: Millis) -> (usize, J::Commit) {
        let CustomerCore { journal, active_sessions, purchases } = self;
        active_sessions.expire(journal, now, |user_id| purchases.has_buyer(user_id))
    }

    /// Which sessions were used since that was last written.
    pub fn unsaved_uses(&self) -> Vec<(SessionKey, Millis)> {
        self.active_sessions.unsaved_uses()
    }

    /// These last uses are on disk.
    pub fn saved_uses(&mut self, uses: &[(SessionKey, Millis)]) {
        self.active_sessions.saved_uses(uses);
    }

    /// Puts units into a cart, if it then holds at most `at_most` of them. The request does its work once.
    pub fn add_to_cart(
        &mut self,
        now: Millis,
        cart: CartRequest<'_>,
        request: &str,
        line: &LineItem,
        at_most: u32,
    ) -> PendingResult<(), J::Commit> {
        self.with_cart(now, cart, |buyer, journal, cart| {
            buyer.add(journal, cart, IdempotentRequest { id: request, now }, line, at_most)
        })
    }

    /// Takes units out of a cart, all of them if no number or a larger one is named; answers what is left. The request
    /// does its work once.
    pub fn remove_from_cart(
        &mut self,
        now: Millis,
        cart: CartRequest<'_>,
        request: &str,
        item_id: &str,
        quantity: Option<u32>,
    ) -> PendingResult<RemainingQuantity, J::Commit> {
        self.with_cart(now, cart, |buyer, journal, cart| {
            buyer.remove(journal, cart, IdempotentRequest { id: request, now }, item_id, quantity)
        })
    }

    /// Saves a session's cart for its buyer.
    pub fn save_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> PendingResult<(), J::Commit> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.save(journal, cart))
    }

    /// Empties a cart.
    pub fn clear_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> PendingResult<(), J::Commit> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.clear(journal, cart))
    }

    /// What is in a cart, by item id.
    pub fn show_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> PendingResult<Vec<LineItem>, J::Commit> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.show(journal, cart))
    }

    /// Begins to purchase what is in a cart. `id` is new and random: the purchase's, if it becomes one. `made` is what
    /// stands on disk under the request's key, if that has been asked for.
    pub fn begin_purchase(
        &mut self,
        now: Millis,
        id: String,
        begin: BeginRequest<'_>,
        made: Option<&MadeUnderKey>,
    ) -> Beginning<J::Commit> {
        let CartRequest { sid, uses_saved_cart } = begin.cart;
        let session = SessionKey::of(sid);
        let (account, buyer) = match self.active_sessions.use_buyers_session(now, &session) {
            Ok(found) => found,
            Err((refusal, newest)) => return Beginning::Decided((Err(refusal), newest)),
        };
        let username = match Name::from_stored(&account.username) {
            Ok(username) => username,
            Err(rule) => {
                let text = format!("username: {rule}, so nobody can be charged");
                return Beginning::Decided((Err(Refusal::new(ErrorCode::BadRequest, text)), J::Commit::default()));
            }
        };
        let (lines, cart_read) = match buyer.show(&self.journal, CartOf { session, uses_saved_cart }) {
            (Ok(lines), cart_read) => (lines, cart_read),
            (Err(refusal), newest) => return Beginning::Decided((Err(refusal), newest)),
        };
        let attempt = PurchaseAttempt {
            buyer: BuyerIdentity { user_id: account.user_id, username, name: account.name.clone() },
            request: begin.request.to_owned(),
            cart: CartSnapshot { session, uses_saved_cart, lines },
            key: begin.key.map(str::to_owned),
            address: begin.address.map(str::to_owned),
        };
        self.purchases.begin(&self.journal, now, id, attempt, made, cart_read)
    }

    /// Takes a step of a purchase; `None` if there is no such purchase under way.
    pub fn step(&mut self, now: Millis, id: &str, event: PurchaseEvent<'_>) -> Option<Stepped<J::Commit>> {
        self.purchases.step(&self.journal, &mut self.active_sessions, now, id, event)
    }

    /// The drivers of these are at work: their leases are renewed.
    pub fn renew(&mut self, now: Millis, leases: &[(String, u64)]) {
        self.purchases.renew(now, leases);
    }

    /// Gives the purchase that has waited longest for its driver to another.
    pub fn take_over(&mut self, now: Millis) -> PendingResult<Option<OrphanedPurchase>, J::Commit> {
        self.purchases.take_over(&self.journal, now)
    }

    /// Forgets a purchase that is over, and is so on disk: its buyer may begin the next one. AnsweredRequests whose it was.
    pub fn forget(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.purchases.forget(id)?;
        self.active_sessions.buyer_may_leave(buyer_id);
        Some(buyer_id)
    }

    /// Forgets all purchases that are over, and are so on disk. AnsweredRequests whose they were.
    pub fn forget_over(&mut self) -> Vec<u64> {
        let over = self.purchases.over(&self.journal);
        over.iter().filter_map(|id| self.forget(id)).collect()
    }

    /// What the bank has to be asked again, and is not being asked; by id.
    pub fn unanswered(&self) -> Vec<(String, BankRequest)> {
        self.purchases.unanswered()
    }

    /// The bank has charged what it was told to void: nobody asks again.
    pub fn dispute(&mut self, id: &str) {
        self.purchases.dispute(id);
    }

    /// The bank is being asked about a purchase: until it has answered, nobody takes it over or asks of his own accord.
    pub fn bank_is_asked(&mut self, id: &str) {
        self.purchases.bank_is_asked(id);
    }

    /// A question to the bank is answered, or given up.
    pub fn bank_has_answered(&mut self, id: &str) {
        self.purchases.bank_has_answered(id);
    }

    /// A purchase under way.
    pub fn purchase(&self, id: &str) -> Option<&Purchase> {
        self.purchases.get(id)
    }

    /// Every purchase under way.
    pub fn purchases(&self) -> impl Iterator<Item = &Purchase> {
        self.purchases.iter()
    }

    /// How many sessions and buyers are in memory.
    pub fn sizes(&self) -> (usize, usize) {
        self.active_sessions.sizes()
    }

    /// As if the drivers of all purchases had been silent for ages.
    #[cfg(test)]
    pub fn expire_leases(&mut self) {
        self.purchases.expire_leases();
    }

    /// The uses_saved_cart, and where their changes go.
    #[cfg(test)]
    pub fn parts(&mut self) -> (&mut ActiveSessions<J::Commit>, &J) {
        (&mut self.active_sessions, &self.journal)
    }

    fn with_cart<T>(
        &mut self,
        now: Millis,
        cart: CartRequest<'_>,
        work: impl FnOnce(&mut carts::BuyerCarts<J::Commit>, &J, CartOf) -> PendingResult<T, J::Commit>,
    ) -> PendingResult<T, J::Commit> {
        let session = SessionKey::of(cart.sid);
        match self.active_sessions.use_buyers_session(now, &session) {
            Ok((_account, buyer)) => {
                work(buyer, &self.journal, CartOf { session, uses_saved_cart: cart.uses_saved_cart })
            }
            Err((refusal, newest)) => (Err(refusal), newest),
        }
    }
}
