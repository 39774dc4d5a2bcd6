//! The core of the customer database: sessions, carts and open purchases as a value. The time is an argument, changes
//! go to the core's journal, and each result comes with the commit that it depends on; whoever drives the core sends no
//! response before that is on disk. Accounts, the saved carts of buyers without a session, and completed purchases are
//! on disk only: the driver reads them and passes them in.

use std::sync::Arc;
use std::time::Duration;

use super::active_sessions::{ActiveSessions, Refused, SavedCart, SessionOwner};
use super::carts::{BuyerCarts, CartOf, PendingResult};
use super::purchases::{BeginResult, CompletedByKey, OpenPurchases, StepResult};
use super::store::{CustomerChange, CustomerSnapshot};
use crate::identity::SessionKey;
use crate::model::{FeeRate, Millis, Name};
use crate::shop::ops::{Account, ErrorCode, OrphanedPurchase, Refusal, Role};
use crate::shop::purchase::{BuyerIdentity, CartSnapshot, PurchaseAttempt, PurchaseEvent};
use crate::storage::Journal;

/// What changes rows or both parts is asked of it; the rest of its parts.
pub struct CustomerCore<J: Journal> {
    pub(super) journal: J,
    pub sessions: ActiveSessions<J::Commit>,
    pub purchases: OpenPurchases<J::Commit>,
}

#[derive(Debug, Clone, Copy)]
pub struct BeginRequest<'r> {
    pub cart: CartOf,
    /// The id of the message: a repetition gets the same response.
    pub request: &'r str,
    /// The buyer's, for idempotency.
    pub key: Option<&'r str>,
    pub address: Option<&'r str>,
}

#[derive(Debug)]
pub enum OpenSessionResult<C> {
    Decided(PendingResult<(), C>),
    // Try again with the saved cart, read after this, and this number in `SavedCart::evictions`.
    ReadSavedCart { evictions: u64 },
}

impl<J: Journal<Change = CustomerChange>> CustomerCore<J> {
    /// The snapshot was read after the journal's epoch had begun.
    pub fn load(journal: J, session_timeout: Duration, fee: FeeRate, snapshot: CustomerSnapshot, now: Millis) -> Self {
        let under_way = snapshot.open_purchases.clone();
        let sessions = ActiveSessions::load(&journal, session_timeout, snapshot, now);
        CustomerCore { journal, sessions, purchases: OpenPurchases::load(fee, under_way, now) }
    }

    /// See [`ActiveSessions::open_session`].
    pub fn open_session(
        &mut self,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
        saved: Option<SavedCart>,
    ) -> OpenSessionResult<J::Commit> {
        let user_id = account.user_id;
        if role == Role::Buyer
            && !self.sessions.has_buyer(user_id)
            && !saved.is_some_and(|saved| self.sessions.put_buyer(user_id, saved))
        {
            return OpenSessionResult::ReadSavedCart { evictions: self.sessions.evictions() };
        }
        OpenSessionResult::Decided(self.sessions.open_session(&self.journal, now, role, account, key))
    }

    pub fn end_session(&mut self, now: Millis, role: Role, sid: &str) -> PendingResult<(), J::Commit> {
        self.sessions.end_session(&self.journal, now, role, &SessionKey::of(sid))
    }

    /// See [`ActiveSessions::use_session`].
    pub fn use_session(
        &mut self,
        now: Millis,
        role: Role,
        key: &SessionKey,
    ) -> Result<Arc<Account>, Refused<J::Commit>> {
        self.sessions.use_session(now, role, key).map(|owner| Arc::clone(&owner.account))
    }

    /// Does not count as a use of the session.
    pub fn look(&self, now: Millis, sid: &str) -> Result<SessionOwner, Refused<J::Commit>> {
        self.sessions.look(now, &SessionKey::of(sid)).cloned()
    }

    /// See [`ActiveSessions::expire`].
    pub fn expire(&mut self, now: Millis) -> (usize, J::Commit) {
        let CustomerCore { journal, sessions, purchases } = self;
        sessions.expire(journal, now, |user_id| purchases.has_buyer(user_id))
    }

    pub fn with_cart<T>(
        &mut self,
        now: Millis,
        cart: CartOf,
        work: impl FnOnce(&mut BuyerCarts<J::Commit>, &J, CartOf) -> PendingResult<T, J::Commit>,
    ) -> PendingResult<T, J::Commit> {
        match self.sessions.use_buyers_session(now, &cart.session) {
            Ok((_account, buyer)) => work(buyer, &self.journal, cart),
            Err((refusal, newest)) => (Err(refusal), newest),
        }
    }

    /// `id` must be new and random; it becomes the purchase's. `made` is the result of looking for the request's key on
    /// disk, if that has been done.
    pub fn begin_purchase(
        &mut self,
        now: Millis,
        id: String,
        begin: BeginRequest<'_>,
        made: Option<&CompletedByKey>,
    ) -> BeginResult<J::Commit> {
        let CartOf { session, uses_saved_cart } = begin.cart;
        let (account, buyer) = match self.sessions.use_buyers_session(now, &session) {
            Ok(found) => found,
            Err((refusal, newest)) => return BeginResult::Decided((Err(refusal), newest)),
        };
        let username = match Name::from_stored(&account.username) {
            Ok(username) => username,
            Err(rule) => {
                let text = format!("username: {rule}, so nobody can be charged");
                return BeginResult::Decided((Err(Refusal::new(ErrorCode::BadRequest, text)), J::Commit::default()));
            }
        };
        let (lines, cart_read) = match buyer.show(&self.journal, begin.cart) {
            (Ok(lines), cart_read) => (lines, cart_read),
            (Err(refusal), newest) => return BeginResult::Decided((Err(refusal), newest)),
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

    /// `None` if the purchase is not open.
    pub fn step(&mut self, now: Millis, id: &str, event: PurchaseEvent) -> Option<StepResult<J::Commit>> {
        self.purchases.step(&self.journal, &mut self.sessions, now, id, event)
    }

    pub fn take_over(&mut self, now: Millis) -> PendingResult<Option<OrphanedPurchase>, J::Commit> {
        self.purchases.take_over(&self.journal, now)
    }

    /// The purchase's end is on disk, so its buyer may begin the next one. Returns the buyer's id.
    pub fn evict(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.purchases.evict(id)?;
        self.sessions.buyer_may_leave(buyer_id);
        Some(buyer_id)
    }

    /// All whose end is on disk. Returns their buyers.
    pub fn evict_finished(&mut self) -> Vec<u64> {
        let over = self.purchases.over(&self.journal);
        over.iter().filter_map(|id| self.evict(id)).collect()
    }
}
