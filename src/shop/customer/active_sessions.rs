//! The open sessions, and the carts of their buyers: plain values, whose changes go to the journal that is passed in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::carts::{BuyerCarts, CartLines, PendingResult, session_expired};
use super::store::{AnsweredRow, CustomerChange, CustomerJournal, CustomerSnapshot};
use crate::identity::SessionKey;
use crate::identity::sessions::{Session, SessionUse, Sessions};
use crate::model::Millis;
use crate::shop::ops::{Account, ErrorCode, Refusal, Role};

/// Sessions that expire at once: far fewer changes than the store's queue holds.
pub const EXPIRE_BATCH: usize = 1_000;

#[derive(Debug, Clone)]
pub struct SessionOwner {
    /// The role in which the session was opened.
    pub role: Role,
    pub account: Arc<Account>,
}

/// A saved cart that was read from disk, for a buyer who is not in memory.
#[derive(Debug)]
pub struct SavedCart {
    pub lines: CartLines,
    /// [`ActiveSessions::evictions`] before the cart was read.
    pub evictions: u64,
}

/// A refusal, with the commit that it depends on.
pub type Refused<C> = (Refusal, C);

/// `C` is the journal's type of commits.
pub struct ActiveSessions<C> {
    sessions: Sessions<SessionOwner>,
    buyers: HashMap<u64, BuyerCarts<C>>,
    /// Whose last session may have ended. They are checked when sessions expire.
    leaving: HashSet<u64>,
    /// How often buyers were evicted. A saved cart that was read before may be outdated.
    evictions: u64,
    /// The commit of the newest end of a session, on which "there is no such session" depends.
    ended: C,
}

impl<C: Clone + Default> ActiveSessions<C> {
    /// Every session that was open in the snapshot gets its full time again.
    pub fn load<J: CustomerJournal<C>>(
        journal: &J,
        timeout: Duration,
        snapshot: CustomerSnapshot,
        now: Millis,
    ) -> ActiveSessions<C> {
        let mut carts: HashMap<SessionKey, CartLines> = HashMap::new();
        for (session, item_id, quantity) in snapshot.lines {
            carts.entry(session).or_default().insert(item_id, quantity);
        }
        let mut saved: HashMap<u64, CartLines> = HashMap::new();
        for (user_id, item_id, quantity) in snapshot.saved {
            saved.entry(user_id).or_default().insert(item_id, quantity);
        }
        let mut answered: HashMap<SessionKey, Vec<AnsweredRow>> = HashMap::new();
        for row in snapshot.answered {
            answered.entry(row.session).or_default().push(row);
        }
        let mut active_sessions = ActiveSessions {
            sessions: Sessions::new(timeout),
            buyers: HashMap::new(),
            leaving: HashSet::new(),
            evictions: 0,
            ended: C::default(),
        };
        let mut over = Vec::new();
        for row in snapshot.sessions {
            let key = row.session;
            let owner = SessionOwner { role: row.role, account: Arc::new(row.account) };
            let user_id = owner.account.user_id;
            let session = Session::new(key, owner, now, row.used_at);
            if row.was_over || active_sessions.sessions.open(session).is_err() {
                over.push(CustomerChange::CloseSession(key));
                continue;
            }
            if row.role == Role::Buyer {
                let new = || BuyerCarts::new(user_id, saved.remove(&user_id).unwrap_or_default());
                let buyer = active_sessions.buyers.entry(user_id).or_insert_with(new);
                let (lines, answered) = (carts.remove(&key), answered.remove(&key));
                buyer.resume_session(key, lines.unwrap_or_default(), answered.unwrap_or_default());
            }
        }
        // What a purchase takes is removed from its buyer's carts, so they are loaded for open purchases too.
        for purchase in &snapshot.open_purchases {
            let user_id = purchase.buyer.user_id;
            let new = || BuyerCarts::new(user_id, saved.remove(&user_id).unwrap_or_default());
            active_sessions.buyers.entry(user_id).or_insert_with(new);
            active_sessions.leaving.insert(user_id);
        }
        if !over.is_empty() {
            active_sessions.ended = journal.append(over);
        }
        active_sessions
    }

    /// Otherwise the saved cart must be read before the buyer can sign in.
    pub fn has_buyer(&self, user_id: u64) -> bool {
        self.buyers.contains_key(&user_id)
    }

    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// False if a buyer was evicted since the cart was read: it may have been this one, who had signed in and changed
    /// it.
    pub fn put_buyer(&mut self, user_id: u64, saved: SavedCart) -> bool {
        if saved.evictions != self.evictions {
            return false;
        }
        self.buyers.entry(user_id).or_insert_with(|| BuyerCarts::new(user_id, saved.lines));
        // In case the session cannot be opened.
        self.leaving.insert(user_id);
        true
    }

    /// The password was verified, and a buyer's carts are in memory. The key must be that of a new, random id. BUSY
    /// when there are too many sessions.
    pub fn open_session<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
    ) -> PendingResult<(), C> {
        let user_id = account.user_id;
        let owner = SessionOwner { role, account: Arc::new(account) };
        if self.sessions.open(Session::new(key, owner, now, now)).is_err() {
            let refusal = Refusal::new(ErrorCode::Busy, "there are too many sessions: try again later");
            return (Err(refusal), C::default());
        }
        let newest = match role {
            Role::Buyer => {
                let buyer = self.buyers.entry(user_id).or_insert_with(|| BuyerCarts::new(user_id, CartLines::new()));
                buyer.open_session(journal, key, now)
            }
            Role::Seller => journal.append(vec![CustomerChange::OpenSession { session: key, role, user_id, at: now }]),
        };
        (Ok(()), newest)
    }

    /// Uses the session of a request; FORBIDDEN if it was opened in the other role.
    pub fn use_session(&mut self, now: Millis, role: Role, key: &SessionKey) -> Result<&SessionOwner, Refused<C>> {
        match self.sessions.touch(now, key, |owner| owner.role == role) {
            SessionUse::Active(session) => Ok(&session.owner),
            SessionUse::Forbidden => Err((not_of_role(role), C::default())),
            SessionUse::Ended => Err((session_expired(), self.ended.clone())),
        }
    }

    /// Uses the session of a buyer's request.
    pub fn use_buyers_session(
        &mut self,
        now: Millis,
        key: &SessionKey,
    ) -> Result<(Arc<Account>, &mut BuyerCarts<C>), Refused<C>> {
        let account = Arc::clone(&self.use_session(now, Role::Buyer, key)?.account);
        let ended = &self.ended;
        let buyer = self.buyers.get_mut(&account.user_id).ok_or_else(|| (session_expired(), ended.clone()))?;
        Ok((account, buyer))
    }

    /// Does not count as a use.
    pub fn look(&self, now: Millis, key: &SessionKey) -> Result<&SessionOwner, Refused<C>> {
        let session = self.sessions.find(now, key);
        session.map(|session| &session.owner).ok_or_else(|| (session_expired(), self.ended.clone()))
    }

    pub fn end_session<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        now: Millis,
        role: Role,
        key: &SessionKey,
    ) -> PendingResult<(), C> {
        match self.sessions.end(now, key, |owner| owner.role == role) {
            SessionUse::Active(session) => {
                self.ended = self.close(journal, &session);
                (Ok(()), self.ended.clone())
            }
            SessionUse::Forbidden => (Err(not_of_role(role)), C::default()),
            SessionUse::Ended => (Err(session_expired()), self.ended.clone()),
        }
    }

    /// Ends at most [`EXPIRE_BATCH`] expired sessions at a time (the rest count as expired all the same), and evicts
    /// buyers without a session; `is_needed` tells for whom a purchase is open. Returns how many sessions were ended.
    pub fn expire<J: CustomerJournal<C>>(
        &mut self,
        journal: &J,
        now: Millis,
        is_needed: impl Fn(u64) -> bool,
    ) -> (usize, C) {
        let over = self.sessions.remove_expired(now, EXPIRE_BATCH);
        for session in &over {
            self.ended = self.close(journal, session);
        }
        let before = self.buyers.len();
        let ActiveSessions { leaving, buyers, .. } = self;
        leaving.retain(|user_id| {
            let Some(buyer) = buyers.get(user_id) else { return false };
            if buyer.has_session() {
                return false;
            }
            // A later session would read an outdated saved cart before the newest change is on disk.
            if is_needed(*user_id) || !journal.is_committed(buyer.newest()) {
                return true;
            }
            buyers.remove(user_id);
            false
        });
        self.evictions += u64::from(self.buyers.len() < before);
        (over.len(), self.ended.clone())
    }

    pub fn buyer_mut(&mut self, user_id: u64) -> Option<&mut BuyerCarts<C>> {
        self.buyers.get_mut(&user_id)
    }

    /// The purchase that needed the buyer's carts has ended.
    pub fn buyer_may_leave(&mut self, user_id: u64) {
        self.leaving.insert(user_id);
    }

    /// Last uses that are not on disk yet.
    pub fn unsaved_uses(&self) -> Vec<(SessionKey, Millis)> {
        self.sessions.unsaved()
    }

    pub fn saved_uses(&mut self, uses: &[(SessionKey, Millis)]) {
        self.sessions.mark_saved(uses);
    }

    /// Sessions, and buyers in memory.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.count(), self.buyers.len())
    }

    fn close<J: CustomerJournal<C>>(&mut self, journal: &J, session: &Session<SessionOwner>) -> C {
        let user_id = session.owner.account.user_id;
        match self.buyers.get_mut(&user_id).filter(|_| session.owner.role == Role::Buyer) {
            Some(buyer) => {
                self.leaving.insert(user_id);
                buyer.close_session(journal, &session.key)
            }
            None => journal.append(vec![CustomerChange::CloseSession(session.key)]),
        }
    }
}

fn not_of_role(role: Role) -> Refusal {
    Refusal::new(ErrorCode::Forbidden, format!("session_id: this session is not a {}'s", role.as_str()))
}
