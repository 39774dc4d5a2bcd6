//! The core of the customer database: sessions, carts and purchases as a value. It has no lock, thread, clock, bank or
//! store: the time comes in as an argument, changes go to the journal that it was given, and each answer bears the
//! receipt of the newest change that it is built on. Whoever drives it sends no answer before that receipt is on disk.
//!
//! What is on disk alone (accounts, saved carts of those who are not here, purchases that were made) is read by the
//! driver and handed in.

use std::sync::Arc;
use std::time::Duration;

use super::carts::{self, Answered, CartOf, Once};
use super::purchases::{Beginning, MadeUnderKey, Purchases, Stepped};
use super::signed_in::{Owner, Refused, SavedCart, SignedIn};
use super::store::{Change, Snapshot};
use crate::identity::SessionKey;
use crate::model::{FeeRate, Millis, Name};
use crate::shop::ops::{Account, Code, Line, Orphan, Quantity, Refusal, Role};
use crate::shop::purchase::{Attempt, BankCall, Buyer, Cart, Event, Purchase};
use crate::storage::Journal;

/// What is held in memory of the customer database.
pub struct CustomerCore<J: Journal> {
    journal: J,
    signed_in: SignedIn<J::Receipt>,
    purchases: Purchases<J::Receipt>,
}

/// Whose session a request names, and whether it is about the user's cart (dialect 2) or the session's.
#[derive(Debug, Clone, Copy)]
pub struct CartRequest<'r> {
    /// The session's id.
    pub sid: &'r str,
    /// The user's saved cart, which is loaded into the session's.
    pub users: bool,
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
pub enum Opening<R> {
    /// It is decided.
    Decided(Answered<(), R>),
    /// To be tried again with the saved cart, which is read after this.
    ReadSavedCart {
        /// For [`SavedCart::evictions`].
        evictions: u64,
    },
}

impl<J: Journal<Change = Change>> CustomerCore<J> {
    /// Memory as the disk has it. The journal was begun before that was read.
    pub fn load(journal: J, session_timeout: Duration, fee: FeeRate, snapshot: Snapshot, now: Millis) -> Self {
        let under_way = snapshot.under_way.clone();
        let signed_in = SignedIn::load(&journal, session_timeout, snapshot, now);
        CustomerCore { journal, signed_in, purchases: Purchases::load(fee, under_way, now) }
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
    ) -> Opening<J::Receipt> {
        let user_id = account.user_id;
        if role == Role::Buyer
            && !self.signed_in.has_buyer(user_id)
            && !saved.is_some_and(|saved| self.signed_in.put_buyer(user_id, saved))
        {
            return Opening::ReadSavedCart { evictions: self.signed_in.evictions() };
        }
        Opening::Decided(self.signed_in.open_session(&self.journal, now, role, account, key))
    }

    /// Ends a session, if it is of this role.
    pub fn end_session(&mut self, now: Millis, role: Role, sid: &str) -> Answered<(), J::Receipt> {
        self.signed_in.end_session(&self.journal, now, role, &SessionKey::of(sid))
    }

    /// The account of a request's session, which is used from now on, if it is of this role.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN.
    pub fn use_session(&mut self, now: Millis, role: Role, sid: &str) -> Result<Arc<Account>, Refused<J::Receipt>> {
        self.signed_in.use_session(now, role, &SessionKey::of(sid)).map(|owner| Arc::clone(&owner.account))
    }

    /// The owner of a session, which is not used by this.
    ///
    /// # Errors
    /// SESSION_EXPIRED.
    pub fn look(&self, now: Millis, sid: &str) -> Result<Owner, Refused<J::Receipt>> {
        self.signed_in.look(now, &SessionKey::of(sid)).cloned()
    }

    /// Ends sessions whose time is up, some at a time, and evicts buyers who have left. Answers how many sessions were
    /// ended.
    pub fn expire(&mut self, now: Millis) -> (usize, J::Receipt) {
        let CustomerCore { journal, signed_in, purchases } = self;
        signed_in.expire(journal, now, |user_id| purchases.has_buyer(user_id))
    }

    /// Which sessions were used since that was last written.
    pub fn unsaved_uses(&self) -> Vec<(SessionKey, Millis)> {
        self.signed_in.unsaved_uses()
    }

    /// These last uses are on disk.
    pub fn saved_uses(&mut self, uses: &[(SessionKey, Millis)]) {
        self.signed_in.saved_uses(uses);
    }

    /// Puts units into a cart, if it then holds at most `at_most` of them. The request does its work once.
    pub fn add_to_cart(
        &mut self,
        now: Millis,
        cart: CartRequest<'_>,
        request: &str,
        line: &Line,
        at_most: u32,
    ) -> Answered<(), J::Receipt> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.add(journal, cart, Once { request, now }, line, at_most))
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
    ) -> Answered<Quantity, J::Receipt> {
        self.with_cart(now, cart, |buyer, journal, cart| {
            buyer.remove(journal, cart, Once { request, now }, item_id, quantity)
        })
    }

    /// Saves a session's cart for its buyer.
    pub fn save_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> Answered<(), J::Receipt> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.save(journal, cart))
    }

    /// Empties a cart.
    pub fn clear_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> Answered<(), J::Receipt> {
        self.with_cart(now, cart, |buyer, journal, cart| buyer.clear(journal, cart))
    }

    /// What is in a cart, by item id.
    pub fn show_cart(&mut self, now: Millis, cart: CartRequest<'_>) -> Answered<Vec<Line>, J::Receipt> {
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
    ) -> Beginning<J::Receipt> {
        let CartRequest { sid, users } = begin.cart;
        let session = SessionKey::of(sid);
        let (account, buyer) = match self.signed_in.use_buyers_session(now, &session) {
            Ok(found) => found,
            Err((refusal, newest)) => return Beginning::Decided((Err(refusal), newest)),
        };
        let username = match Name::kept(&account.username) {
            Ok(username) => username,
            Err(rule) => {
                let text = format!("username: {rule}, so nobody can be charged");
                return Beginning::Decided((Err(Refusal::new(Code::BadRequest, text)), J::Receipt::default()));
            }
        };
        let (lines, cart_read) = match buyer.show(&self.journal, CartOf { session, users }) {
            (Ok(lines), cart_read) => (lines, cart_read),
            (Err(refusal), newest) => return Beginning::Decided((Err(refusal), newest)),
        };
        let attempt = Attempt {
            buyer: Buyer { user_id: account.user_id, username, name: account.name.clone() },
            request: begin.request.to_owned(),
            cart: Cart { session, users, lines },
            key: begin.key.map(str::to_owned),
            address: begin.address.map(str::to_owned),
        };
        self.purchases.begin(&self.journal, now, id, attempt, made, cart_read)
    }

    /// Takes a step of a purchase; `None` if there is no such purchase under way.
    pub fn step(&mut self, now: Millis, id: &str, event: Event<'_>) -> Option<Stepped<J::Receipt>> {
        self.purchases.step(&self.journal, &mut self.signed_in, now, id, event)
    }

    /// The drivers of these are at work: their leases are renewed.
    pub fn renew(&mut self, now: Millis, leases: &[(String, u64)]) {
        self.purchases.renew(now, leases);
    }

    /// Gives the purchase that has waited longest for its driver to another.
    pub fn take_over(&mut self, now: Millis) -> Answered<Option<Orphan>, J::Receipt> {
        self.purchases.take_over(&self.journal, now)
    }

    /// Forgets a purchase that is over, and is so on disk: its buyer may begin the next one. Answers whose it was.
    pub fn forget(&mut self, id: &str) -> Option<u64> {
        let buyer_id = self.purchases.forget(id)?;
        self.signed_in.buyer_may_leave(buyer_id);
        Some(buyer_id)
    }

    /// Forgets all purchases that are over, and are so on disk. Answers whose they were.
    pub fn forget_over(&mut self) -> Vec<u64> {
        let over = self.purchases.over(&self.journal);
        over.iter().filter_map(|id| self.forget(id)).collect()
    }

    /// What the bank has to be asked again, and is not being asked; by id.
    pub fn unanswered(&self) -> Vec<(String, BankCall)> {
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
        self.signed_in.sizes()
    }

    /// As if the drivers of all purchases had been silent for ages.
    #[cfg(test)]
    pub fn let_leases_run_out(&mut self) {
        self.purchases.let_leases_run_out();
    }

    /// The users, and where their changes go.
    #[cfg(test)]
    pub fn users(&mut self) -> (&mut SignedIn<J::Receipt>, &J) {
        (&mut self.signed_in, &self.journal)
    }

    fn with_cart<T>(
        &mut self,
        now: Millis,
        cart: CartRequest<'_>,
        work: impl FnOnce(&mut carts::Buyer<J::Receipt>, &J, CartOf) -> Answered<T, J::Receipt>,
    ) -> Answered<T, J::Receipt> {
        let session = SessionKey::of(cart.sid);
        match self.signed_in.use_buyers_session(now, &session) {
            Ok((_account, buyer)) => work(buyer, &self.journal, CartOf { session, users: cart.users }),
            Err((refusal, newest)) => (Err(refusal), newest),
        }
    }
}
