//! A session ends when it was not used for the timeout. Its last use is held in memory and written behind: a request
//! costs no disk write. Only active sessions are held.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use ring::digest::{SHA256, digest};

use crate::model::{Millis, secret, serde_as_text};

pub const SESSIONS_MAX: usize = 100_000;

/// Half of the SHA-256 of a session's id, for lookups and storage. The id itself is a secret and is stored nowhere: a
/// copy of the store authenticates nobody, and the timing of a lookup by hash reveals nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// `sid` is the id as a client sends it.
    pub fn of(sid: &str) -> SessionKey {
        let digest = digest(&SHA256, sid.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        SessionKey(key)
    }

    /// The key as it is stored: 32 lowercase hex digits.
    pub fn to_text(self) -> String {
        secret::hex(&self.0)
    }

    pub fn from_text(text: &str) -> Option<SessionKey> {
        secret::from_hex(text).map(SessionKey)
    }
}

serde_as_text!(
    SessionKey,
    |text: &str| SessionKey::from_text(text).ok_or("expected 32 lowercase hex digits"),
    |key, serializer| serializer.serialize_str(&key.to_text())
);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

#[derive(Debug)]
pub struct Session<W> {
    pub key: SessionKey,
    /// The user, and what the room stores with it.
    pub owner: W,
    used_at: Millis,
    /// The `used_at` that was last written to disk.
    saved_at: Millis,
}

impl<W> Session<W> {
    pub fn new(key: SessionKey, owner: W, used_at: Millis, saved_at: Millis) -> Session<W> {
        Session { key, owner, used_at, saved_at }
    }
}

/// What a request finds when it looks a session up.
#[derive(Debug)]
pub enum SessionUse<S> {
    Active(S),
    /// It is active, but not allowed for this request.
    Forbidden,
    /// It is not known, or has ended.
    Ended,
}

pub struct Sessions<W> {
    timeout: Duration,
    capacity: usize,
    by_key: HashMap<SessionKey, Session<W>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimitReached;

impl<W> Sessions<W> {
    /// Each session ends `timeout` after its last use.
    pub fn new(timeout: Duration) -> Sessions<W> {
        Sessions::with_capacity(timeout, SESSIONS_MAX)
    }

    pub fn with_capacity(timeout: Duration, capacity: usize) -> Sessions<W> {
        Sessions { timeout, capacity, by_key: HashMap::new() }
    }

    pub fn is_expired(timeout: Duration, used_at: Millis, now: Millis) -> bool {
        used_at.plus(timeout) <= now
    }

    /// The session's key must be that of a new, random id.
    pub fn open(&mut self, session: Session<W>) -> Result<(), SessionLimitReached> {
        if self.by_key.len() >= self.capacity {
            return Err(SessionLimitReached);
        }
        self.by_key.insert(session.key, session);
        Ok(())
    }

    /// Uses a session, if `may` allows it: its timeout starts again.
    pub fn touch(&mut self, now: Millis, key: &SessionKey, may: impl FnOnce(&W) -> bool) -> SessionUse<&Session<W>> {
        let timeout = self.timeout;
        let Some(session) = self.by_key.get_mut(key) else { return SessionUse::Ended };
        if Sessions::<W>::is_expired(timeout, session.used_at, now) {
            return SessionUse::Ended;
        }
        if !may(&session.owner) {
            return SessionUse::Forbidden;
        }
        // A request that read the clock earlier does not set it back.
        session.used_at = session.used_at.max(now);
        SessionUse::Active(session)
    }

    /// Finds the session without using it.
    pub fn find(&self, now: Millis, key: &SessionKey) -> Option<&Session<W>> {
        self.by_key.get(key).filter(|session| !self.has_expired(session, now))
    }

    /// Ends the session if `may` allows it. Only one of several callers gets it as active.
    pub fn end(&mut self, now: Millis, key: &SessionKey, may: impl FnOnce(&W) -> bool) -> SessionUse<Session<W>> {
        match self.by_key.get(key) {
            Some(session) if self.has_expired(session, now) => SessionUse::Ended,
            Some(session) if !may(&session.owner) => SessionUse::Forbidden,
            Some(_) => self.by_key.remove(key).map_or(SessionUse::Ended, SessionUse::Active),
            None => SessionUse::Ended,
        }
    }

    pub fn remove_expired(&mut self, now: Millis, at_most: usize) -> Vec<Session<W>> {
        let timeout = self.timeout;
        let over = self.by_key.extract_if(|_, session| Sessions::<W>::is_expired(timeout, session.used_at, now));
        over.take(at_most).map(|(_, session)| session).collect()
    }

    /// The last uses that are not written to disk yet.
    pub fn unsaved(&self) -> Vec<(SessionKey, Millis)> {
        let unsaved = self.by_key.values().filter(|session| session.saved_at != session.used_at);
        unsaved.map(|session| (session.key, session.used_at)).collect()
    }

    /// Notes that these last uses are on disk.
    pub fn mark_saved(&mut self, uses: &[(SessionKey, Millis)]) {
        for (key, at) in uses {
            if let Some(session) = self.by_key.get_mut(key) {
                session.saved_at = *at;
            }
        }
    }

    /// Expired sessions that were not yet removed are counted, too.
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    fn has_expired(&self, session: &Session<W>, now: Millis) -> bool {
        Sessions::<W>::is_expired(self.timeout, session.used_at, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_795_253_400_000);
    const TIMEOUT: Duration = Duration::from_secs(300);

    fn sessions() -> Sessions<&'static str> {
        Sessions::new(TIMEOUT)
    }

    fn open(sessions: &mut Sessions<&'static str>, sid: &str, owner: &'static str, at: Millis) -> SessionKey {
        let key = SessionKey::of(sid);
        sessions.open(Session::new(key, owner, at, at)).unwrap();
        key
    }

    fn is_alive<W>(used: &SessionUse<W>) -> bool {
        matches!(used, SessionUse::Active(_))
    }

    #[test]
    fn a_session_ends_after_the_timeout_and_not_before() {
        let mut sessions = sessions();
        let key = open(&mut sessions, "a", "ann", NOW);
        let last = NOW.plus_ms(299_999);
        assert!(is_alive(&sessions.touch(last, &key, |_| true)));
        let later = last.plus_ms(299_999);
        assert_eq!(sessions.find(later, &key).map(|session| session.owner), Some("ann"));
        assert!(sessions.remove_expired(later, 9).is_empty(), "looking at it is no use, yet it is not over");
        let over = last.plus(TIMEOUT);
        assert!(sessions.find(over, &key).is_none());
        assert!(matches!(sessions.touch(over, &key, |_| true), SessionUse::Ended), "it is not revived");
        assert!(matches!(sessions.end(over, &key, |_| true), SessionUse::Ended));
        assert_eq!(sessions.remove_expired(over, 9).len(), 1);
        assert!(sessions.count() == 0 && sessions.remove_expired(over, 9).is_empty());
    }

    #[test]
    fn a_session_that_is_not_for_this_is_neither_used_nor_ended() {
        let mut sessions = sessions();
        let key = open(&mut sessions, "a", "ann", NOW);
        assert!(matches!(sessions.touch(NOW.plus_ms(5), &key, |owner| *owner == "bob"), SessionUse::Forbidden));
        assert!(matches!(sessions.end(NOW.plus_ms(5), &key, |owner| *owner == "bob"), SessionUse::Forbidden));
        assert_eq!(sessions.find(NOW, &key).map(|session| session.used_at), Some(NOW));
    }

    #[test]
    fn ending_one_leaves_the_others_and_happens_once() {
        let mut sessions = sessions();
        let (one, two) = (open(&mut sessions, "a", "ann", NOW), open(&mut sessions, "b", "ann", NOW));
        assert!(is_alive(&sessions.end(NOW, &one, |_| true)));
        assert!(!is_alive(&sessions.end(NOW, &one, |_| true)));
        assert!(!is_alive(&sessions.touch(NOW, &one, |_| true)));
        assert!(is_alive(&sessions.touch(NOW, &two, |_| true)));
    }

    #[test]
    fn only_news_is_written() {
        let mut sessions = sessions();
        let (used, _unused) = (open(&mut sessions, "a", "ann", NOW), open(&mut sessions, "b", "bob", NOW));
        assert!(sessions.unsaved().is_empty());
        sessions.touch(NOW.plus_ms(7), &used, |_| true);
        // A clock that another thread has read earlier does not turn it back.
        sessions.touch(NOW.plus_ms(3), &used, |_| true);
        let uses = sessions.unsaved();
        assert_eq!(uses, [(used, NOW.plus_ms(7))]);
        assert_eq!(sessions.unsaved(), uses, "until it is on disk");
        sessions.mark_saved(&uses);
        assert!(sessions.unsaved().is_empty());
    }

    #[test]
    fn those_whose_time_is_up_go_some_at_a_time_and_the_others_stay() {
        let mut sessions = sessions();
        for n in 0..5 {
            open(&mut sessions, &n.to_string(), "ann", NOW);
        }
        let alive = open(&mut sessions, "alive", "ann", NOW.plus_ms(1));
        let over = NOW.plus(TIMEOUT);
        assert_eq!([(); 4].map(|()| sessions.remove_expired(over, 2).len()), [2, 2, 1, 0]);
        assert!(sessions.count() == 1 && sessions.find(over, &alive).is_some());
    }

    #[test]
    fn there_is_a_bound() {
        let mut sessions = Sessions::with_capacity(TIMEOUT, 1);
        open(&mut sessions, "a", "ann", NOW);
        let second = || Session::new(SessionKey::of("b"), "bob", NOW, NOW);
        assert_eq!(sessions.open(second()), Err(SessionLimitReached));
        assert_eq!(sessions.count(), 1);
        sessions.remove_expired(NOW.plus(TIMEOUT), 9);
        assert_eq!(sessions.open(second()), Ok(()));
    }

    #[test]
    fn keys_are_no_ids_and_read_as_they_are_written() {
        let key = SessionKey::of("abc");
        assert_eq!(key.to_text(), "ba7816bf8f01cfea414140de5dae2223");
        assert_eq!(SessionKey::from_text(&key.to_text()), Some(key));
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<SessionKey>(&json).unwrap(), key);
        for text in ["", "ba", "BA7816BF8F01CFEA414140DE5DAE2223", "zz7816bf8f01cfea414140de5dae2223"] {
            assert_eq!(SessionKey::from_text(text), None, "{text}");
        }
    }
}
