//! Who is signed in. No I/O; the time is an argument.
//!
//! A session ends when nothing was heard of it for the timeout. Its last use is kept in memory and
//! written behind: a request costs no disk write. Only the sessions that are alive are held.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Millis, secret};

/// Most sessions at once.
pub const SESSIONS_MAX: usize = 100_000;

/// What stands for a session wherever it is looked for or kept: half of the SHA-256 of its id.
///
/// The id itself is a secret and is kept nowhere: a copy of the store signs nobody in, and a lookup by
/// hash tells nothing by its time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// The key of an id as a client says it.
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

    /// Reads what [`SessionKey::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<SessionKey> {
        let mut key = [0; 16];
        if text.len() != 32 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(SessionKey(key))
    }
}

impl Serialize for SessionKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for SessionKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionKey, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        SessionKey::from_text(&text).ok_or_else(|| serde::de::Error::custom("expected 32 lowercase hex digits"))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// Someone's session.
#[derive(Debug)]
pub struct Session<W> {
    /// Which one.
    pub key: SessionKey,
    /// Whose, and what goes with it.
    pub who: W,
    used_at: AtomicU64,
    /// What of `used_at` was written.
    saved_at: AtomicU64,
}

impl<W> Session<W> {
    /// A session that was last used at that time, and is written down as last used at that other time.
    pub fn new(key: SessionKey, who: W, used_at: Millis, saved_at: Millis) -> Session<W> {
        Session { key, who, used_at: AtomicU64::new(used_at.0), saved_at: AtomicU64::new(saved_at.0) }
    }

    /// When it was last used.
    pub fn used_at(&self) -> Millis {
        Millis(self.used_at.load(Ordering::Relaxed))
    }
}

/// What becomes of a request that names a session.
#[derive(Debug)]
pub enum Use<W> {
    /// It is alive.
    Alive(Arc<Session<W>>),
    /// It is alive, but not for this.
    NotForThis,
    /// It is not known, or has ended.
    Ended,
}

/// Every session that is alive.
pub struct Sessions<W> {
    timeout: Duration,
    most: usize,
    alive: RwLock<HashMap<SessionKey, Arc<Session<W>>>>,
}

/// There are as many as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<W> Sessions<W> {
    /// None yet; each will end that long after its last use.
    pub fn new(timeout: Duration) -> Sessions<W> {
        Sessions::with_bound(timeout, SESSIONS_MAX)
    }

    /// The same with another bound than [`SESSIONS_MAX`].
    pub fn with_bound(timeout: Duration, most: usize) -> Sessions<W> {
        Sessions { timeout, most, alive: RwLock::default() }
    }

    /// Whether a session that was last used then has ended by now.
    pub fn is_over(timeout: Duration, used_at: Millis, now: Millis) -> bool {
        used_at.plus(timeout) <= now
    }

    /// Opens one. The key must be that of a new, random id.
    ///
    /// # Errors
    /// [`Full`] when there are too many; nothing was opened.
    pub fn open(&self, session: Arc<Session<W>>) -> Result<(), Full> {
        let mut alive = self.alive.write();
        if alive.len() >= self.most {
            return Err(Full);
        }
        alive.insert(session.key, session);
        Ok(())
    }

    /// Uses a session, if it may be used for this: its time begins anew.
    pub fn use_it(&self, now: Millis, key: &SessionKey, may: impl FnOnce(&W) -> bool) -> Use<W> {
        // Within the lock, so that none is used that `expire` has just taken out.
        let alive = self.alive.read();
        let Some(session) = alive.get(key).filter(|session| !self.is_dead(session, now)) else { return Use::Ended };
        if !may(&session.who) {
            return Use::NotForThis;
        }
        session.used_at.fetch_max(now.0, Ordering::Relaxed);
        Use::Alive(Arc::clone(session))
    }

    /// Looks at a session without using it.
    pub fn find(&self, now: Millis, key: &SessionKey) -> Option<Arc<Session<W>>> {
        let alive = self.alive.read();
        alive.get(key).filter(|session| !self.is_dead(session, now)).cloned()
    }

    /// Ends a session, if it may be ended by this. Only one of several callers gets it as alive.
    pub fn end(&self, now: Millis, key: &SessionKey, may: impl FnOnce(&W) -> bool) -> Use<W> {
        let mut alive = self.alive.write();
        match alive.get(key) {
            Some(session) if self.is_dead(session, now) => Use::Ended,
            Some(session) if !may(&session.who) => Use::NotForThis,
            Some(_) => alive.remove(key).map_or(Use::Ended, Use::Alive),
            None => Use::Ended,
        }
    }

    /// Takes out some of those whose time is up.
    pub fn expire(&self, now: Millis, at_most: usize) -> Vec<Arc<Session<W>>> {
        // Most of the time there is none: that needs no writing lock.
        if !self.alive.read().values().any(|session| self.is_dead(session, now)) {
            return Vec::new();
        }
        let mut alive = self.alive.write();
        alive.extract_if(|_, session| self.is_dead(session, now)).take(at_most).map(|(_, session)| session).collect()
    }

    /// The last uses that are not written yet.
    pub fn unsaved(&self) -> Vec<(SessionKey, Millis)> {
        let alive = self.alive.read();
        let unsaved = alive.values().filter_map(|session| {
            let used_at = session.used_at();
            (session.saved_at.load(Ordering::Relaxed) != used_at.0).then_some((session.key, used_at))
        });
        unsaved.collect()
    }

    /// These last uses are on disk.
    pub fn saved(&self, uses: &[(SessionKey, Millis)]) {
        let alive = self.alive.read();
        for (session, at) in uses.iter().filter_map(|(key, at)| Some((alive.get(key)?, at))) {
            session.saved_at.store(at.0, Ordering::Relaxed);
        }
    }

    /// How many are alive, or dead and not yet taken out.
    pub fn len(&self) -> usize {
        self.alive.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_dead(&self, session: &Session<W>, now: Millis) -> bool {
        Sessions::<W>::is_over(self.timeout, session.used_at(), now)
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

    fn open(sessions: &Sessions<&'static str>, sid: &str, who: &'static str, at: Millis) -> SessionKey {
        let key = SessionKey::of(sid);
        sessions.open(Arc::new(Session::new(key, who, at, at))).unwrap();
        key
    }

    fn is_alive<W>(used: &Use<W>) -> bool {
        matches!(used, Use::Alive(_))
    }

    #[test]
    fn a_session_ends_after_the_timeout_and_not_before() {
        let sessions = sessions();
        let key = open(&sessions, "a", "ann", NOW);
        let last = NOW.plus_ms(299_999);
        assert!(is_alive(&sessions.use_it(last, &key, |_| true)));
        let later = last.plus_ms(299_999);
        assert_eq!(sessions.find(later, &key).map(|session| session.who), Some("ann"));
        assert!(sessions.expire(later, 9).is_empty(), "looking at it is no use, yet it is not over");
        let over = last.plus(TIMEOUT);
        assert!(sessions.find(over, &key).is_none());
        assert!(matches!(sessions.use_it(over, &key, |_| true), Use::Ended), "it is not revived");
        assert!(matches!(sessions.end(over, &key, |_| true), Use::Ended));
        assert_eq!(sessions.expire(over, 9).len(), 1);
        assert!(sessions.is_empty() && sessions.expire(over, 9).is_empty());
    }

    #[test]
    fn a_session_that_is_not_for_this_is_neither_used_nor_ended() {
        let sessions = sessions();
        let key = open(&sessions, "a", "ann", NOW);
        assert!(matches!(sessions.use_it(NOW.plus_ms(5), &key, |who| *who == "bob"), Use::NotForThis));
        assert!(matches!(sessions.end(NOW.plus_ms(5), &key, |who| *who == "bob"), Use::NotForThis));
        assert_eq!(sessions.find(NOW, &key).map(|session| session.used_at()), Some(NOW));
    }

    #[test]
    fn ending_one_leaves_the_others_and_happens_once() {
        let sessions = sessions();
        let (one, two) = (open(&sessions, "a", "ann", NOW), open(&sessions, "b", "ann", NOW));
        assert!(is_alive(&sessions.end(NOW, &one, |_| true)));
        assert!(!is_alive(&sessions.end(NOW, &one, |_| true)));
        assert!(!is_alive(&sessions.use_it(NOW, &one, |_| true)));
        assert!(is_alive(&sessions.use_it(NOW, &two, |_| true)));
    }

    #[test]
    fn only_news_is_written() {
        let sessions = sessions();
        let (used, _unused) = (open(&sessions, "a", "ann", NOW), open(&sessions, "b", "bob", NOW));
        assert!(sessions.unsaved().is_empty());
        sessions.use_it(NOW.plus_ms(7), &used, |_| true);
        // A clock that another thread has read earlier does not turn it back.
        sessions.use_it(NOW.plus_ms(3), &used, |_| true);
        let uses = sessions.unsaved();
        assert_eq!(uses, [(used, NOW.plus_ms(7))]);
        assert_eq!(sessions.unsaved(), uses, "until it is on disk");
        sessions.saved(&uses);
        assert!(sessions.unsaved().is_empty());
    }

    #[test]
    fn those_whose_time_is_up_go_some_at_a_time_and_the_others_stay() {
        let sessions = sessions();
        for n in 0..5 {
            open(&sessions, &n.to_string(), "ann", NOW);
        }
        let alive = open(&sessions, "alive", "ann", NOW.plus_ms(1));
        let over = NOW.plus(TIMEOUT);
        assert_eq!([(); 4].map(|()| sessions.expire(over, 2).len()), [2, 2, 1, 0]);
        assert!(sessions.len() == 1 && sessions.find(over, &alive).is_some());
    }

    #[test]
    fn there_is_a_bound() {
        let sessions = Sessions::with_bound(TIMEOUT, 1);
        open(&sessions, "a", "ann", NOW);
        let second = Arc::new(Session::new(SessionKey::of("b"), "bob", NOW, NOW));
        assert_eq!(sessions.open(Arc::clone(&second)), Err(Full));
        assert_eq!(sessions.len(), 1);
        sessions.expire(NOW.plus(TIMEOUT), 9);
        assert_eq!(sessions.open(second), Ok(()));
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
