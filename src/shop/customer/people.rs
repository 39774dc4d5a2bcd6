//! Who is signed in, and the buyers' carts: the part of the customer database that is held in memory.
//!
//! Locks: `ended`, then the sessions' or the buyers', then one buyer's carts; a purchase's own before all
//! of them. Changes are handed over under the lock of what was changed; no answer leaves before its ticket.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::carts::{Buyer, Cart};
use super::store::{self, AnsweredRow, Change, Journal, Snapshot};
use super::{Done, session_expired};
use crate::identity::sessions::{self, Use};
use crate::identity::{SessionKey, Sessions};
use crate::model::Millis;
use crate::shop::ops::{Account, Code, Refusal, Role};
use crate::storage::{StoreError, Ticket};

/// Sessions ended at once by time: far fewer changes than the store takes on.
pub const ENDED_AT_ONCE: usize = 1_000;

/// A session and whose it is.
pub type Session = sessions::Session<Who>;

/// Whose a session is.
#[derive(Debug)]
pub struct Who {
    /// The account.
    pub account: Arc<Account>,
    /// The carts; only buyers have any.
    pub buyer: Option<Arc<Buyer>>,
}

impl Who {
    /// What the session is good for.
    pub fn role(&self) -> Role {
        if self.buyer.is_some() { Role::Buyer } else { Role::Seller }
    }
}

/// Everyone who is signed in.
pub struct People {
    sessions: Sessions<Who>,
    buyers: Mutex<Buyers>,
    /// The newest end of a session: what "there is no such session" is built on.
    ended: Mutex<Ticket>,
}

#[derive(Default)]
struct Buyers {
    here: HashMap<u64, Arc<Buyer>>,
    /// How often some were let go: what was read from disk before may be old by now.
    gone: u64,
}

impl People {
    /// Builds memory from what is on disk. Every session that was alive then has its full time.
    pub fn load(journal: &Journal, timeout: Duration, snapshot: Snapshot, now: Millis) -> People {
        let people = People {
            sessions: Sessions::new(timeout),
            buyers: Mutex::default(),
            ended: Mutex::new(Ticket::committed()),
        };
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
        let mut over = Vec::new();
        for row in snapshot.sessions {
            let key = row.session;
            if row.was_over {
                over.push(Change::Close(key));
                continue;
            }
            let buyer = (row.role == Role::Buyer).then(|| {
                let user_id = row.account.user_id;
                let mut buyers = people.buyers.lock();
                let new = || Arc::new(Buyer::new(user_id, saved.remove(&user_id).unwrap_or_default()));
                let buyer = Arc::clone(buyers.here.entry(user_id).or_insert_with(new));
                buyer.resume(key, carts.remove(&key).unwrap_or_default(), answered.remove(&key).unwrap_or_default());
                buyer
            });
            let who = Who { account: Arc::new(row.account), buyer };
            if people.sessions.open(Arc::new(Session::new(key, who, now, row.used_at))).is_err() {
                over.push(Change::Close(key));
            }
        }
        if !over.is_empty() {
            *people.ended.lock() = journal.append(over);
        }
        people
    }

    /// Opens a session of a user whose password was right. The key must be that of a new, random id.
    ///
    /// # Errors
    /// BUSY when there are too many; or the store's, when the saved cart could not be read.
    pub fn open(
        &self,
        journal: &Journal,
        now: Millis,
        role: Role,
        account: Account,
        key: SessionKey,
    ) -> Result<Done<()>, StoreError> {
        let user_id = account.user_id;
        let (buyer, ticket) = match role {
            Role::Buyer => {
                let buyer = self.buyer(journal, user_id)?;
                let ticket = buyer.open(journal, key, now);
                (Some(buyer), ticket)
            }
            Role::Seller => (None, journal.append(vec![Change::Open { session: key, role, user_id, at: now }])),
        };
        let session = Arc::new(Session::new(key, Who { account: Arc::new(account), buyer }, now, now));
        if self.sessions.open(Arc::clone(&session)).is_err() {
            let refusal = Refusal::new(Code::Busy, "there are too many sessions: try again later");
            return Ok((Err(refusal), self.close(journal, &session)));
        }
        Ok((Ok(()), ticket))
    }

    /// The session of a request, used from now on, if it is of this role.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN, and what that is built on.
    pub fn session(&self, now: Millis, role: Role, sid: &str) -> Result<Arc<Session>, (Refusal, Ticket)> {
        match self.sessions.use_it(now, &SessionKey::of(sid), |who| who.role() == role) {
            Use::Alive(session) => Ok(session),
            other => Err(self.refused(&other, role)),
        }
    }

    /// The buyer's session of a request, used from now on, with the buyer.
    ///
    /// # Errors
    /// SESSION_EXPIRED or FORBIDDEN, and what that is built on.
    pub fn buyers_session(&self, now: Millis, sid: &str) -> Result<(Arc<Session>, Arc<Buyer>), (Refusal, Ticket)> {
        let session = self.session(now, Role::Buyer, sid)?;
        let buyer = session.who.buyer.clone().ok_or_else(|| self.refused(&Use::NotForThis, Role::Buyer))?;
        Ok((session, buyer))
    }

    /// A look at a session; no use of it.
    ///
    /// # Errors
    /// SESSION_EXPIRED, and what that is built on.
    pub fn look(&self, now: Millis, sid: &str) -> Result<Arc<Session>, (Refusal, Ticket)> {
        let found = self.sessions.find(now, &SessionKey::of(sid));
        found.ok_or_else(|| (session_expired(), self.ended.lock().clone()))
    }

    /// Ends a session.
    pub fn end(&self, journal: &Journal, now: Millis, role: Role, sid: &str) -> Done<()> {
        // Held until the end is on its way: who is told meanwhile that there is no such session waits for it.
        let mut ended = self.ended.lock();
        match self.sessions.end(now, &SessionKey::of(sid), |who| who.role() == role) {
            Use::Alive(session) => {
                *ended = self.close(journal, &session);
                (Ok(()), ended.clone())
            }
            other => {
                drop(ended);
                let (refusal, ticket) = self.refused(&other, role);
                (Err(refusal), ticket)
            }
        }
    }

    /// Ends sessions whose time is up, [`ENDED_AT_ONCE`] at most, and lets go of buyers who are no longer
    /// here. Gives how many, and when that is on disk. (Those that are left are over all the same.)
    pub fn expire(&self, journal: &Journal, now: Millis) -> (usize, Ticket) {
        let mut ended = self.ended.lock();
        let over = self.sessions.expire(now, ENDED_AT_ONCE);
        for session in &over {
            *ended = self.close(journal, session);
        }
        let done = (over.len(), ended.clone());
        drop(ended);
        drop(over);
        let mut buyers = self.buyers.lock();
        let before = buyers.here.len();
        // One who is held by nobody else gains no holder but under this lock.
        buyers.here.retain(|_, buyer| Arc::strong_count(buyer) > 1 || !buyer.is_settled());
        buyers.gone += u64::from(buyers.here.len() < before);
        done
    }

    /// Writes down which sessions were used since the last time. Those that ended meanwhile have no row any
    /// more, and get none.
    ///
    /// # Errors
    /// The store's; then they are written the next time.
    pub fn flush(&self, journal: &Journal, now: Millis) -> Result<(), StoreError> {
        const AT_ONCE: usize = 1_000;
        let uses = self.sessions.unsaved();
        let chunks = uses.chunks(AT_ONCE).count();
        for (n, uses) in uses.chunks(AT_ONCE).enumerate() {
            let rows = uses.to_vec();
            journal.store().write(move |tx| {
                store::write_uses(tx, &rows)?;
                // Of all or of none: who was not used since may be over by then.
                if n + 1 == chunks { store::write_flushed(tx, now) } else { Ok(()) }
            })?;
            self.sessions.saved(uses);
        }
        Ok(())
    }

    /// A buyer, here or (for a purchase whose buyer has left) fetched. Stays here as long as it is held.
    ///
    /// # Errors
    /// The store's, when the saved cart could not be read.
    pub fn buyer(&self, journal: &Journal, user_id: u64) -> Result<Arc<Buyer>, StoreError> {
        loop {
            let gone = match self.here(user_id) {
                Ok(buyer) => return Ok(buyer),
                Err(gone) => gone,
            };
            let saved = journal.store().read(|reader| store::saved_of(reader, user_id))?;
            if let Some(buyer) = self.come(user_id, saved.into_iter().collect(), gone) {
                return Ok(buyer);
            }
        }
    }

    /// A buyer who is here; else how often some were let go so far.
    pub(super) fn here(&self, user_id: u64) -> Result<Arc<Buyer>, u64> {
        let buyers = self.buyers.lock();
        buyers.here.get(&user_id).cloned().ok_or(buyers.gone)
    }

    /// A buyer comes, with the saved cart as it was read since `gone`. None if someone was let go in the
    /// meantime: perhaps this one, who had come and changed the cart.
    pub(super) fn come(&self, user_id: u64, saved: Cart, gone: u64) -> Option<Arc<Buyer>> {
        let mut buyers = self.buyers.lock();
        if buyers.gone != gone {
            return None;
        }
        Some(Arc::clone(buyers.here.entry(user_id).or_insert_with(|| Arc::new(Buyer::new(user_id, saved)))))
    }

    /// How many sessions and buyers are held.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.len(), self.buyers.lock().here.len())
    }

    fn close(&self, journal: &Journal, session: &Session) -> Ticket {
        match &session.who.buyer {
            Some(buyer) => buyer.close(journal, &session.key),
            None => journal.append(vec![Change::Close(session.key)]),
        }
    }

    fn refused(&self, why: &Use<Who>, role: Role) -> (Refusal, Ticket) {
        match why {
            Use::NotForThis => {
                let text = format!("session_id: this session is not a {}'s", role.as_text());
                (Refusal::new(Code::Forbidden, text), Ticket::committed())
            }
            Use::Ended | Use::Alive(_) => (session_expired(), self.ended.lock().clone()),
        }
    }
}
