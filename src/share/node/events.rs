//! What whoever watches a node is told, over bounded queues.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use crate::net::http::Event;

/// What a watcher has not taken yet. One that leaves more is cut off: it begins anew, and reads everything.
const WAITING_MAX: usize = 256;
/// Most watchers of one node.
const WATCHERS_MAX: usize = 64;

/// Those who watch one node.
#[derive(Debug, Default)]
pub struct Watchers {
    list: Mutex<Vec<Sender<Event>>>,
}

impl Watchers {
    /// One more; none when there are too many. Dropping the receiver ends it.
    pub fn add(&self) -> Option<Receiver<Event>> {
        let mut list = self.list.lock();
        // One that has gone is noticed when it is told something: make sure of those first. Nothing tells a
        // sender whether its receiver is there but sending.
        if list.len() >= WATCHERS_MAX {
            let hello = Event::json("node", &Value::Null);
            list.retain(|watcher| !matches!(watcher.try_send(hello.clone()), Err(TrySendError::Disconnected(_))));
        }
        if list.len() >= WATCHERS_MAX {
            return None;
        }
        let (watcher, receiver) = bounded(WAITING_MAX);
        list.push(watcher);
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
        self.list.lock().retain(|watcher| watcher.try_send(event.clone()).is_ok());
    }

    /// Ends all of them.
    pub fn end(&self) {
        self.list.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_are_told_and_one_that_does_not_listen_is_cut_off() {
        let watchers = Watchers::default();
        let (quick, slow) = (watchers.add().unwrap(), watchers.add().unwrap());
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
        let watchers = Watchers::default();
        let mut all: Vec<_> = (0..WATCHERS_MAX).map(|_| watchers.add().unwrap()).collect();
        assert!(watchers.add().is_none());
        all.pop();
        assert!(watchers.add().is_some());
        watchers.end();
        assert!(all[0].iter().all(|event| event.data == "null"));
    }
}
