//! What whoever watches a node is told.

use serde_json::Value;

use crate::model::{Clock, Millis};
use crate::net::http::Events;
use crate::net::http::watchers::{self, Watcher, WatchersBounds};

/// Most watchers of one node, which is one user's.
const WATCHERS_MAX: usize = 64;

/// A token that is good: what was opened with it ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The token's SHA-256.
    pub token: [u8; 32],
    /// From when on it is good no more, by the process's clock.
    pub ends_at: Millis,
}

impl Watcher for Session {
    /// Whoever watches a node is its user, and is told everything.
    type Topic = ();

    fn is_concerned(&self, (): &()) -> bool {
        true
    }

    fn ends_at(&self) -> Millis {
        self.ends_at
    }

    fn is_same_account(&self, _: &Session) -> bool {
        true
    }
}

/// Those who watch one node.
#[derive(Debug)]
pub struct Watchers(watchers::Watchers<Session>);

impl Watchers {
    /// Nobody yet.
    pub fn new(clock: Clock) -> Watchers {
        Watchers(watchers::Watchers::new(clock, WatchersBounds::of(WATCHERS_MAX, WATCHERS_MAX)))
    }

    /// One more, that goes on from that event if it is named; none when there are too many. Dropping what is given
    /// ends it, and so does the end of the session.
    pub fn add(&self, session: Session, last_event_id: Option<&str>) -> Option<Events> {
        self.0.add(session, last_event_id)
    }

    /// Whether somebody is there.
    pub fn any(&self) -> bool {
        self.0.any()
    }

    /// Tells all of them of `files`, `fetches`, `peers` or the `node` itself. Memory work only: nobody is waited
    /// for.
    pub fn tell(&self, name: &str, data: &Value) {
        self.0.tell((), name, data);
    }

    /// Ends those that were opened with a token, and no others.
    pub fn end_of(&self, token: &[u8; 32]) {
        self.0.end_where(|session| session.token == *token);
    }

    /// Ends those whose token is good no more.
    pub fn end_expired(&self) {
        self.0.end_expired();
    }

    /// Ends all of them.
    pub fn end(&self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::TryRecvError;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_token_ends_its_own_streams_and_no_others() {
        let clock = Clock::start();
        let watchers = Watchers::new(clock);
        let add = |number: u8, lasts: Duration| {
            watchers.add(Session { token: [number; 32], ends_at: clock.now().plus(lasts) }, None).unwrap()
        };
        let [a, also_a, b] = [1, 1, 2].map(|number| add(number, Duration::from_secs(60)));
        let over = add(3, Duration::ZERO);
        watchers.end_of(&[1; 32]);
        watchers.tell("files", &json!(1));
        for ended in [&a, &also_a, &over] {
            assert_eq!(ended.queue().try_recv(), Err(TryRecvError::Disconnected), "and nothing came before the end");
        }
        let event = b.queue().try_recv().unwrap();
        assert_eq!((&*event.name, &*event.data), ("files", "1"));
        let over = add(4, Duration::ZERO);
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Empty));
        watchers.end_expired();
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Disconnected), "whether anything happens or not");
        assert_eq!(b.queue().try_recv(), Err(TryRecvError::Empty));
        assert!(watchers.any());
        drop(b);
        assert!(!watchers.any());
    }

    #[test]
    fn a_user_has_so_many_streams_and_no_more() {
        let clock = Clock::start();
        let watchers = Watchers::new(clock);
        let session = |number| Session { token: [number; 32], ends_at: clock.now().plus(Duration::from_secs(60)) };
        let all: Vec<Events> = (0..64).map(|number| watchers.add(session(number), None).unwrap()).collect();
        assert!(watchers.add(session(64), None).is_none());
        watchers.end();
        assert!(all.iter().all(|events| events.queue().recv().is_err()));
    }
}
