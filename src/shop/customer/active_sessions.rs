//! Open sessions and the buyers' carts, which the customer database holds in memory.
//!
//! Lock order: that of the open purchases, `last_session_end`, that of the sessions or of the buyers, that of one
//! buyer's carts. Changes are passed to the journal under the lock of what was changed. No response leaves before the
//! commit that it depends on is on disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::carts::{BuyerCarts, CartLines};
use super::store::{self, AnsweredRow, Journal, SessionChange, SessionSnapshot};
use super::{PendingResult, session_expired};
use crate::identity::sessions::{self, SessionUse};
use crate::identity::{SessionKey, Sessions};
use crate::model::Millis;
use crate::shop::ops::{Account, ErrorCode, Refusal, Role};
use crate::storage::{CommitHandle, StoreError};

/// The maximum number of sessions that expire at once: far fewer changes than the store's queue holds.
pub const EXPIRE_BATCH: usize = 1_000;

/// An open session with its owner.
pub type ActiveSession = sessions::Session<SessionOwner>;

/// The owner of a session.
#[derive(Debug)]
pub struct SessionOwner {
    pub account: Arc<Account>,
    /// The carts; `None` for a seller.
    pub buyer: Option<Arc<BuyerCarts>>,
}

impl SessionOwner {
    /// The role in which the session was opened.
    pub fn role(&self) -> Role {
        if self.buyer.is_some() { Role::Buyer } else { Role::Seller }
    }
}

/// All open sessions, and the carts of their buyers.
pub struct ActiveSessions {
    sessions: Sessions<SessionOwner>,
    buyers: Mutex<LoadedBuyers>,
    /// The commit of the newest end of a session, on which the response "there is no such session" depends.
    last_session_end: Mutex<CommitHandle>,
}

#[derive(Default)]
struct LoadedBuyers {
    by_id: HashMap<u64, Arc<BuyerCarts>>,
    /// How often buyers were evicted. A saved cart that was read from disk before an eviction may be outdated.
    evictions: u64,
}

impl ActiveSessions {
    /// Loads the state from a snapshot. Every session that was open then gets its full time again.
    pub fn load(journal: &Journal, timeout: Duration, snapshot: SessionSnapshot, now: Millis) -> ActiveSessions {
        let active_sessions = ActiveSessions {
            sessions: Sessions::new(timeout),
            buyers: Mutex::default(),
            last_session_end: Mutex::new(CommitHandle::committed()),
        };
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
        let mut expired = Vec::new();
        for row in snapshot.sessions {
            let key = row.session;
            if row.was_over {
                expired.push(SessionChange::CloseSession(key));
                continue;
            }
            let buyer = (row.role == Role::Buyer).then(|| {
                let user_id = row.account.user_id;
                let mut buyers = active_sessions.buyers.lock();
                let new = || Arc::new(BuyerCarts::new(user_id, saved.remove(&user_id).unwrap_or_default()));
                let buyer = Arc::clone(buyers.by_id.entry(user_id).or_insert_with(new));
                buyer.resume_session(
                    key,
                    carts.remove(&key).unwrap_or_default(),
                    answered.remove(&key).unwrap_or_default(),
                );
                buyer
            });
            let who = SessionOwner { account: Arc::new(row.account), buyer };
            if active_sessions.sessions.open(Arc::new(ActiveSession::new(key, who, now, row.used_at))).is_err() {
                expired.push(SessionChange::CloseSession(key));
            }
        }
        if !expired.is_empty() {
            *active_sessions.last_session_end.lock() = journal.append(expired);
        }
        active_sessions
    }

    /// Opens a session for a user whose password was right. The key must be that of a new, random session id. The
    /// result is BUSY if there are too many sessions.
    ///
    /// # Errors
    /// The buyer's saved cart cannot be read.
    pub fn open_session(
        &self,
        journal: &Journal,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
    ) -> Result<PendingResult<()>, StoreError> {
        let user_id = account.user_id;
        let (buyer, commit) = match role {
            Role::Buyer => {
                let buyer = self.load_buyer(journal, user_id)?;
                let commit = buyer.open_session(journal, key, now);
                (Some(buyer), commit)
            }
            Role::Seller => {
                (None, journal.append(vec![SessionChange::OpenSession { session: key, role, user_id, at: now }]))
            }
        };
        let session = Arc::new(ActiveSession::new(key, SessionOwner { account: Arc::new(account), buyer }, now, now));
        if self.sessions.open(Arc::clone(&session)).is_err() {
            let refusal = Refusal::new(ErrorCode::Busy, "there are too many sessions: try again later");
            return Ok((Err(refusal), self.close_session(journal, &session)));
        }
        Ok((Ok(()), commit))
    }

    /// Finds a session of this role and counts this as a use of it.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN, with the commit that this depends on.
    pub fn use_session(
        &self,
        now: Millis,
        role: Role,
        sid: &str,
    ) -> Result<Arc<ActiveSession>, (Refusal, CommitHandle)> {
        match self.sessions.touch(now, &SessionKey::of(sid), |who| who.role() == role) {
            SessionUse::Active(session) => Ok(session),
            other => Err(self.refusal_for(&other, role)),
        }
    }

    /// Finds a buyer's session with the buyer's carts and counts this as a use of it.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN, with the commit that this depends on.
    pub fn use_buyer_session(
        &self,
        now: Millis,
        sid: &str,
    ) -> Result<(Arc<ActiveSession>, Arc<BuyerCarts>), (Refusal, CommitHandle)> {
        let session = self.use_session(now, Role::Buyer, sid)?;
        let buyer = session.owner.buyer.clone().ok_or_else(|| self.refusal_for(&SessionUse::Forbidden, Role::Buyer))?;
        Ok((session, buyer))
    }

    /// Finds a session without counting this as a use.
    ///
    /// # Errors
    /// SESSION_EXPIRED, with the commit that this depends on.
    pub fn peek_session(&self, now: Millis, sid: &str) -> Result<Arc<ActiveSession>, (Refusal, CommitHandle)> {
        let found = self.sessions.find(now, &SessionKey::of(sid));
        found.ok_or_else(|| (session_expired(), self.last_session_end.lock().clone()))
    }

    pub fn end_session(&self, journal: &Journal, now: Millis, role: Role, sid: &str) -> PendingResult<()> {
        // Locked until the end is in the journal, so that anyone who misses the session meanwhile waits for its commit.
        let mut last_session_end = self.last_session_end.lock();
        match self.sessions.end(now, &SessionKey::of(sid), |who| who.role() == role) {
            SessionUse::Active(session) => {
                *last_session_end = self.close_session(journal, &session);
                (Ok(()), last_session_end.clone())
            }
            other => {
                drop(last_session_end);
                let (refusal, commit) = self.refusal_for(&other, role);
                (Err(refusal), commit)
            }
        }
    }

    /// Ends at most [`EXPIRE_BATCH`] expired sessions and evicts buyers who have none. Returns the number of sessions
    /// and their commit. (Expired sessions that are left cannot be used any more.)
    pub fn expire_sessions(&self, journal: &Journal, now: Millis) -> (usize, CommitHandle) {
        let mut last_session_end = self.last_session_end.lock();
        let expired = self.sessions.remove_expired(now, EXPIRE_BATCH);
        for session in &expired {
            *last_session_end = self.close_session(journal, session);
        }
        let done = (expired.len(), last_session_end.clone());
        drop(last_session_end);
        drop(expired);
        let mut buyers = self.buyers.lock();
        let before = buyers.by_id.len();
        // A buyer without other references can only get one under this lock.
        buyers.by_id.retain(|_, buyer| Arc::strong_count(buyer) > 1 || !buyer.is_committed());
        buyers.evictions += u64::from(buyers.by_id.len() < before);
        done
    }

    /// Writes the last uses of sessions that were used since the previous call. Sessions that have ended meanwhile stay
    /// deleted.
    ///
    /// # Errors
    /// The store cannot be written; the last uses are then written the next time.
    pub fn flush_last_uses(&self, journal: &Journal, now: Millis) -> Result<(), StoreError> {
        const FLUSH_BATCH: usize = 1_000;
        let uses = self.sessions.unsaved();
        let chunks = uses.chunks(FLUSH_BATCH).count();
        for (n, uses) in uses.chunks(FLUSH_BATCH).enumerate() {
            let rows = uses.to_vec();
            journal.store().write(move |tx| {
                store::write_last_uses(tx, &rows)?;
                // Only with the last chunk: by this time, sessions whose use is not written are taken for expired.
                if n + 1 == chunks { store::write_flush_time(tx, now) } else { Ok(()) }
            })?;
            self.sessions.mark_saved(uses);
        }
        Ok(())
    }

    /// Returns a buyer from memory, or loads one, for instance for a purchase whose buyer has logged out. A buyer stays
    /// in memory as long as there are references.
    ///
    /// # Errors
    /// The saved cart cannot be read.
    pub fn load_buyer(&self, journal: &Journal, user_id: u64) -> Result<Arc<BuyerCarts>, StoreError> {
        loop {
            let evictions = match self.loaded_buyer(user_id) {
                Ok(buyer) => return Ok(buyer),
                Err(evictions) => evictions,
            };
            let saved = journal.store().read(|reader| store::saved_cart(reader, user_id))?;
            if let Some(buyer) = self.insert_buyer(user_id, saved.into_iter().collect(), evictions) {
                return Ok(buyer);
            }
        }
    }

    /// Returns a buyer who is in memory; otherwise the number of evictions so far, for
    /// [`ActiveSessions::insert_buyer`].
    pub(super) fn loaded_buyer(&self, user_id: u64) -> Result<Arc<BuyerCarts>, u64> {
        let buyers = self.buyers.lock();
        buyers.by_id.get(&user_id).cloned().ok_or(buyers.evictions)
    }

    /// Inserts a buyer with the saved cart that was read after `evictions` was. `None` if a buyer was evicted
    /// meanwhile: it may have been this one, with a changed cart.
    pub(super) fn insert_buyer(&self, user_id: u64, saved: CartLines, evictions: u64) -> Option<Arc<BuyerCarts>> {
        let mut buyers = self.buyers.lock();
        if buyers.evictions != evictions {
            return None;
        }
        Some(Arc::clone(buyers.by_id.entry(user_id).or_insert_with(|| Arc::new(BuyerCarts::new(user_id, saved)))))
    }

    /// The number of sessions and of buyers in memory.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.len(), self.buyers.lock().by_id.len())
    }

    fn close_session(&self, journal: &Journal, session: &ActiveSession) -> CommitHandle {
        match &session.owner.buyer {
            Some(buyer) => buyer.close_session(journal, &session.key),
            None => journal.append(vec![SessionChange::CloseSession(session.key)]),
        }
    }

    fn refusal_for(&self, why: &SessionUse<SessionOwner>, role: Role) -> (Refusal, CommitHandle) {
        match why {
            SessionUse::Forbidden => {
                let text = format!("session_id: this session is not a {}'s", role.as_str());
                (Refusal::new(ErrorCode::Forbidden, text), CommitHandle::committed())
            }
            SessionUse::Ended | SessionUse::Active(_) => (session_expired(), self.last_session_end.lock().clone()),
        }
    }
}
