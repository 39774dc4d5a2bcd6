//! The event streams of a node.

use serde_json::Value;

use crate::model::{Clock, Millis};
use crate::net::http::EventStream;
use crate::net::http::event_hub::{self, EventHubLimits, Subscriber};

const SUBSCRIBERS_MAX: usize = 64;

/// The session that an event stream was opened with, and with which it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchSession {
    /// The token's SHA-256.
    pub token: [u8; 32],
    /// When the token expires, by the process's clock.
    pub expires_at: Millis,
}

impl Subscriber for WatchSession {
    /// There are no topics: every subscriber of a node is its user and receives all events.
    type Topic = ();

    fn wants(&self, (): &()) -> bool {
        true
    }

    fn expires_at(&self) -> Millis {
        self.expires_at
    }

    fn is_same_account(&self, _: &WatchSession) -> bool {
        true
    }
}

#[derive(Debug)]
pub struct NodeEventHub(event_hub::EventHub<WatchSession>);

impl NodeEventHub {
    pub fn new(clock: Clock) -> NodeEventHub {
        NodeEventHub(event_hub::EventHub::new(clock, EventHubLimits::for_subscribers(SUBSCRIBERS_MAX, SUBSCRIBERS_MAX)))
    }

    /// Opens a stream that continues after `last_event_id` if that is given; none if there are too many. The stream
    /// ends when it is dropped or the session ends.
    pub fn add(&self, session: WatchSession, last_event_id: Option<&str>) -> Option<EventStream> {
        self.0.subscribe(session, last_event_id)
    }

    pub fn has_subscribers(&self) -> bool {
        self.0.has_subscribers()
    }

    /// Sends an event to all streams; its name is `files`, `fetches`, `peers`, `node` or `reset`. Never blocks.
    pub fn notify(&self, name: &str, data: &Value) {
        self.0.publish((), name, data);
    }

    pub fn end_session(&self, token: &[u8; 32]) {
        self.0.close_where(|session| session.token == *token);
    }

    pub fn end_expired(&self) {
        self.0.close_expired();
    }

    pub fn end(&self) {
        self.0.close_all();
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
        let hub = NodeEventHub::new(clock);
        let add = |number: u8, lasts: Duration| {
            hub.add(WatchSession { token: [number; 32], expires_at: clock.now().plus(lasts) }, None).unwrap()
        };
        let [a, also_a, b] = [1, 1, 2].map(|number| add(number, Duration::from_secs(60)));
        let over = add(3, Duration::ZERO);
        hub.end_session(&[1; 32]);
        hub.notify("files", &json!(1));
        for ended in [&a, &also_a, &over] {
            assert_eq!(ended.queue().try_recv(), Err(TryRecvError::Disconnected), "and nothing came before the end");
        }
        let event = b.queue().try_recv().unwrap();
        assert_eq!((&*event.name, &*event.data), ("files", "1"));
        let over = add(4, Duration::ZERO);
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Empty));
        hub.end_expired();
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Disconnected), "whether anything happens or not");
        assert_eq!(b.queue().try_recv(), Err(TryRecvError::Empty));
        assert!(hub.has_subscribers());
        drop(b);
        assert!(!hub.has_subscribers());
    }

    #[test]
    fn a_user_has_so_many_streams_and_no_more() {
        let clock = Clock::start();
        let hub = NodeEventHub::new(clock);
        let session =
            |number| WatchSession { token: [number; 32], expires_at: clock.now().plus(Duration::from_secs(60)) };
        let all: Vec<EventStream> = (0..64).map(|number| hub.add(session(number), None).unwrap()).collect();
        assert!(hub.add(session(64), None).is_none());
        hub.end();
        assert!(all.iter().all(|events| events.queue().recv().is_err()));
    }
}
