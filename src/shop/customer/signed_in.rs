//! Who is signed in: sessions, and the carts of the buyers among them. A part of the customer database's core: plain
//! values, whose changes go to the journal that is handed in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::carts::{Answered, Buyer, Cart, session_expired};
use super::store::{AnsweredRow, Change, Snapshot};
use crate::identity::SessionKey;
use crate::identity::sessions::{Session, Sessions, Use};
use crate::model::Millis;
use crate::shop::ops::{Account, Code, Refusal, Role};
use crate::storage::Journal;

/// Sessions ended at once by time: far fewer changes than the store takes on.
pub const ENDED_AT_ONCE: usize = 1_000;

/// Whose a session is.
#[derive(Debug, Clone)]
pub struct Owner {
    /// What the session is good for.
    pub role: Role,
    /// The account.
    pub account: Arc<Account>,
}

/// A saved cart as it was read from disk, for a buyer who is not in memory.
#[derive(Debug)]
pub struct SavedCart {
    /// What is in it.
    pub lines: Cart,
    /// [`SignedIn::evictions`] as it was before it was read.
    pub evictions: u64,
}

/// A refusal, and the receipt of the newest change that it is built on.
pub type Refused<R> = (Refusal, R);

/// Everyone who is signed in. `R` is the journal's receipt.
pub struct SignedIn<R> {
    sessions: Sessions<Owner>,
    buyers: HashMap<u64, Buyer<R>>,
    /// Buyers who may have left: looked at when sessions are expired.
    leaving: HashSet<u64>,
    /// How many buyers have been evicted: a saved cart that was read from disk before may be old by now.
    evictions: u64,
    /// The newest end of a session: what "there is no such session" is built on.
    ended: R,
}

impl<R: Clone + Default> SignedIn<R> {
    /// Builds memory from what is on disk. Every session that was alive then has its full time.
    pub fn load<J>(journal: &J, timeout: Duration, snapshot: Snapshot, now: Millis) -> SignedIn<R>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let mut carts: HashMap<SessionKey, Cart> = HashMap::new();
        for (session, item_id, quantity) in snapshot.lines {
            carts.entry(session).or_default().insert(item_id, quantity);
        }
        let mut saved: HashMap<u64, Cart> = HashMap::new();
        for (user_id, item_id, quantity) in snapshot.saved {
            saved.entry(user_id).or_default().insert(item_id, quantity);
        }
        let mut answered: HashMap<SessionKey, Vec<AnsweredRow>> = HashMap::new();
        for row in snapshot.answered {
            answered.entry(row.session).or_default().push(row);
        }
        let mut signed_in = SignedIn {
            sessions: Sessions::new(timeout),
            buyers: HashMap::new(),
            leaving: HashSet::new(),
            evictions: 0,
            ended: R::default(),
        };
        let mut over = Vec::new();
        for row in snapshot.sessions {
            let key = row.session;
            let owner = Owner { role: row.role, account: Arc::new(row.account) };
            let user_id = owner.account.user_id;
            let session = Session::new(key, owner, now, row.used_at);
            if row.was_over || signed_in.sessions.open(session).is_err() {
                over.push(Change::Close(key));
                continue;
            }
            if row.role == Role::Buyer {
                let new = || Buyer::new(user_id, saved.remove(&user_id).unwrap_or_default());
                let buyer = signed_in.buyers.entry(user_id).or_insert_with(new);
                let (lines, answered) = (carts.remove(&key), answered.remove(&key));
                buyer.resume_session(key, lines.unwrap_or_default(), answered.unwrap_or_default());
            }
        }
        // Those for whom a purchase is under way need a cart that it can be taken from.
        for purchase in &snapshot.under_way {
            let user_id = purchase.buyer.user_id;
            let new = || Buyer::new(user_id, saved.remove(&user_id).unwrap_or_default());
            signed_in.buyers.entry(user_id).or_insert_with(new);
            signed_in.leaving.insert(user_id);
        }
        if !over.is_empty() {
            signed_in.ended = journal.append(over);
        }
        signed_in
    }

    /// Whether a buyer's carts are in memory. Else they have to be read before the buyer can sign in.
    pub fn has_buyer(&self, user_id: u64) -> bool {
        self.buyers.contains_key(&user_id)
    }

    /// How many buyers have been evicted so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// A buyer comes, with a saved cart. Refused (`false`) if a buyer was evicted since that was read: perhaps this
    /// one, who had come and changed it.
    pub fn put_buyer(&mut self, user_id: u64, saved: SavedCart) -> bool {
        if saved.evictions != self.evictions {
            return false;
        }
        self.buyers.entry(user_id).or_insert_with(|| Buyer::new(user_id, saved.lines));
        // Should the session not come about.
        self.leaving.insert(user_id);
        true
    }

    /// Opens a session of a user whose password was right; a buyer's carts must be in memory. The key must be that of
    /// a new, random id. BUSY when there are too many.
    pub fn open_session<J>(
        &mut self,
        journal: &J,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
    ) -> Answered<(), R>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let user_id = account.user_id;
        let owner = Owner { role, account: Arc::new(account) };
        if self.sessions.open(Session::new(key, owner, now, now)).is_err() {
            let refusal = Refusal::new(Code::Busy, "there are too many sessions: try again later");
            return (Err(refusal), R::default());
        }
        let newest = match role {
            Role::Buyer => {
                let buyer = self.buyers.entry(user_id).or_insert_with(|| Buyer::new(user_id, Cart::new()));
                buyer.open_session(journal, key, now)
            }
            Role::Seller => journal.append(vec![Change::Open { session: key, role, user_id, at: now }]),
        };
        (Ok(()), newest)
    }

    /// The owner of a request's session, which is used from now on, if it is of this role.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN.
    pub fn use_session(&mut self, now: Millis, role: Role, key: &SessionKey) -> Result<&Owner, Refused<R>> {
        match self.sessions.use_it(now, key, |owner| owner.role == role) {
            Use::Alive(session) => Ok(&session.who),
            Use::NotForThis => Err((not_of_role(role), R::default())),
            Use::Ended => Err((session_expired(), self.ended.clone())),
        }
    }

    /// The buyer of a request's session, which is used from now on.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN.
    pub fn use_buyers_session(
        &mut self,
        now: Millis,
        key: &SessionKey,
    ) -> Result<(Arc<Account>, &mut Buyer<R>), Refused<R>> {
        let account = Arc::clone(&self.use_session(now, Role::Buyer, key)?.account);
        let ended = &self.ended;
        let buyer = self.buyers.get_mut(&account.user_id).ok_or_else(|| (session_expired(), ended.clone()))?;
        Ok((account, buyer))
    }

    /// The owner of a session, which is not used by this.
    ///
    /// # Errors
    /// SESSION_EXPIRED.
    pub fn look(&self, now: Millis, key: &SessionKey) -> Result<&Owner, Refused<R>> {
        let session = self.sessions.find(now, key);
        session.map(|session| &session.who).ok_or_else(|| (session_expired(), self.ended.clone()))
    }

    /// Ends a session, if it is of this role.
    pub fn end_session<J>(&mut self, journal: &J, now: Millis, role: Role, key: &SessionKey) -> Answered<(), R>
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        match self.sessions.end(now, key, |owner| owner.role == role) {
            Use::Alive(session) => {
                self.ended = self.close(journal, &session);
                (Ok(()), self.ended.clone())
            }
            Use::NotForThis => (Err(not_of_role(role)), R::default()),
            Use::Ended => (Err(session_expired()), self.ended.clone()),
        }
    }

    /// Ends sessions whose time is up, [`ENDED_AT_ONCE`] at most (those that are left are over all the same), and
    /// evicts buyers who have left; `is_needed` tells for whom a purchase is under way. Answers how many sessions
    /// were ended.
    pub fn expire<J>(&mut self, journal: &J, now: Millis, is_needed: impl Fn(u64) -> bool) -> (usize, R)
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let over = self.sessions.expire(now, ENDED_AT_ONCE);
        for session in &over {
            self.ended = self.close(journal, session);
        }
        let before = self.buyers.len();
        let SignedIn { leaving, buyers, .. } = self;
        leaving.retain(|user_id| {
            let Some(buyer) = buyers.get(user_id) else { return false };
            if buyer.has_session() {
                return false;
            }
            // As long as a change of the carts is on its way, the disk does not hold what the next session needs.
            if is_needed(*user_id) || !journal.is_committed(buyer.newest()) {
                return true;
            }
            buyers.remove(user_id);
            false
        });
        self.evictions += u64::from(self.buyers.len() < before);
        (over.len(), self.ended.clone())
    }

    /// A buyer's carts, for a purchase that has come to its end.
    pub fn buyer_mut(&mut self, user_id: u64) -> Option<&mut Buyer<R>> {
        self.buyers.get_mut(&user_id)
    }

    /// The purchase that a buyer was needed for is over.
    pub fn buyer_may_leave(&mut self, user_id: u64) {
        self.leaving.insert(user_id);
    }

    /// Which sessions were used since that was last written.
    pub fn unsaved_uses(&self) -> Vec<(SessionKey, Millis)> {
        self.sessions.unsaved()
    }

    /// These last uses are on disk.
    pub fn saved_uses(&mut self, uses: &[(SessionKey, Millis)]) {
        self.sessions.saved(uses);
    }

    /// How many sessions and buyers are in memory.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.len(), self.buyers.len())
    }

    fn close<J>(&mut self, journal: &J, session: &Session<Owner>) -> R
    where
        J: Journal<Change = Change, Receipt = R>,
    {
        let user_id = session.who.account.user_id;
        match self.buyers.get_mut(&user_id).filter(|_| session.who.role == Role::Buyer) {
            Some(buyer) => {
                self.leaving.insert(user_id);
                buyer.close_session(journal, &session.key)
            }
            None => journal.append(vec![Change::Close(session.key)]),
        }
    }
}

fn not_of_role(role: Role) -> Refusal {
    Refusal::new(Code::Forbidden, format!("session_id: this session is not a {}'s", role.as_text()))
}
