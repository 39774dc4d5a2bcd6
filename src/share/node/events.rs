//! What whoever watches a node is told, over bounded queues.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use crate::model::{Clock, Millis};
use crate::net::http::Event;

/// What a watcher has not taken yet. One that leaves more is cut off: it begins anew, and reads everything.
const WAITING_MAX: usize = 256;
/// Most watchers of one node.
const WATCHERS_MAX: usize = 64;

/// A token that is good: what was opened with it ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The token's SHA-256.
    pub token: [u8; 32],
    /// From when on it is good no more, by the process's clock.
    pub ends_at: Millis,
}

#[derive(Debug)]
struct Watcher {
    events: Sender<Event>,
    session: Session,
}

/// Those who watch one node.
#[derive(Debug)]
pub struct Watchers {
    clock: Clock,
    list: Mutex<Vec<Watcher>>,
}

impl Watchers {
    /// Nobody yet.
    pub fn new(clock: Clock) -> Watchers {
        Watchers { clock, list: Mutex::default() }
    }

    /// One more; none when there are too many. Dropping the receiver ends it, and so does the end of the session.
    pub fn add(&self, session: Session) -> Option<Receiver<Event>> {
        let mut list = self.list.lock();
        // One that has gone is noticed when it is told something: make sure of those first. Nothing tells a
        // sender whether its receiver is there but sending.
        if list.len() >= WATCHERS_MAX {
            let hello = Event::json("node", &Value::Null);
            list.retain(|watcher| {
                !matches!(watcher.events.try_send(hello.clone()), Err(TrySendError::Disconnected(_)))
            });
        }
        if list.len() >= WATCHERS_MAX {
            return None;
        }
        let (events, receiver) = bounded(WAITING_MAX);
        list.push(Watcher { events, session });
        Some(receiver)
    }

    /// Whether somebody is there.
    pub fn any(&self) -> bool {
        !self.list.lock().is_empty()
    }

    /// Tells all of them of `files`, `fetches`, `peers` or the `node` itself. Memory work only: nobody is waited
    /// for.
    pub fn tell(&self, name: &str, data: &Value) {
        let event = Event::json(name, data);
        let now = self.clock.now();
        let mut list = self.list.lock();
        list.retain(|watcher| now < watcher.session.ends_at && watcher.events.try_send(event.clone()).is_ok());
    }

    /// Ends those that were opened with a token, and no others.
    pub fn end_of(&self, token: &[u8; 32]) {
        self.list.lock().retain(|watcher| watcher.session.token != *token);
    }

    /// Ends those whose token is good no more.
    pub fn end_expired(&self) {
        let now = self.clock.now();
        self.list.lock().retain(|watcher| now < watcher.session.ends_at);
    }

    /// Ends all of them.
    pub fn end(&self) {
        self.list.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::TryRecvError;
    use serde_json::json;
    use std::time::Duration;

    fn watchers() -> Watchers {
        Watchers::new(Clock::start())
    }

    /// By the watchers' own clock: another one may be a millisecond ahead of it.
    fn session(watchers: &Watchers, number: u8, lasts: Duration) -> Session {
        Session { token: [number; 32], ends_at: watchers.clock.now().plus(lasts) }
    }

    fn add(watchers: &Watchers) -> Option<Receiver<Event>> {
        watchers.add(session(watchers, 0, Duration::from_secs(60)))
    }

    #[test]
    fn a_token_ends_its_own_streams_and_no_others() {
        let watchers = watchers();
        let [a, also_a, b] = [1, 1, 2].map(|n| watchers.add(session(&watchers, n, Duration::from_secs(60))).unwrap());
        let over = watchers.add(session(&watchers, 3, Duration::ZERO)).unwrap();
        watchers.end_of(&[1; 32]);
        watchers.tell("files", &json!(1));
        for ended in [&a, &also_a, &over] {
            assert_eq!(ended.try_recv(), Err(TryRecvError::Disconnected), "and nothing came before the end");
        }
        assert_eq!(b.try_recv(), Ok(Event::json("files", &json!(1))));
        let over = watchers.add(session(&watchers, 4, Duration::ZERO)).unwrap();
        assert_eq!(over.try_recv(), Err(TryRecvError::Empty));
        watchers.end_expired();
        assert_eq!(over.try_recv(), Err(TryRecvError::Disconnected), "whether anything happens or not");
        assert_eq!(b.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn all_are_told_and_one_that_does_not_listen_is_cut_off() {
        let watchers = watchers();
        let (quick, slow) = (add(&watchers).unwrap(), add(&watchers).unwrap());
        for number in 0..=WAITING_MAX {
            watchers.tell("files", &json!(number));
            assert_eq!(quick.recv().unwrap(), Event::json("files", &json!(number)));
        }
        // What it had before comes, then the end.
        assert_eq!(slow.iter().count(), WAITING_MAX);
        assert!(watchers.any());
        drop(quick);
        watchers.tell("node", &json!(1));
        assert!(!watchers.any());
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let watchers = watchers();
        let mut all: Vec<_> = (0..WATCHERS_MAX).map(|_| add(&watchers).unwrap()).collect();
        assert!(add(&watchers).is_none());
        all.pop();
        assert!(add(&watchers).is_some());
        watchers.end();
        assert!(all[0].iter().all(|event| event.data == "null"));
    }
}
