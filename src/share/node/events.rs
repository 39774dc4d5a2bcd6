//! The event streams of a node.

use crate::model::{Clock, Millis};
use crate::net::http::event_hub::{EventHub, EventHubLimits, Subscriber};

const SUBSCRIBERS_MAX: usize = 64;

/// The names of its events are `files`, `fetches`, `peers`, `node` and `reset`. A stream ends with its session.
pub type NodeEventHub = EventHub<WatchSession>;

pub(super) fn new_event_hub(clock: Clock) -> NodeEventHub {
    EventHub::new(clock, EventHubLimits::for_subscribers(SUBSCRIBERS_MAX, SUBSCRIBERS_MAX))
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::EventStream;
    use crossbeam_channel::TryRecvError;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_token_ends_its_own_streams_and_no_others() {
        let clock = Clock::start();
        let hub = new_event_hub(clock);
        let add = |number: u8, lasts: Duration| {
            hub.subscribe(WatchSession { token: [number; 32], expires_at: clock.now().plus(lasts) }, None).unwrap()
        };
        let [a, also_a, b] = [1, 1, 2].map(|number| add(number, Duration::from_secs(60)));
        let over = add(3, Duration::ZERO);
        hub.close_where(|session| session.token == [1; 32]);
        hub.publish((), "files", &json!(1));
        for ended in [&a, &also_a, &over] {
            assert_eq!(ended.queue().try_recv(), Err(TryRecvError::Disconnected), "and nothing came before the end");
        }
        let event = b.queue().try_recv().unwrap();
        assert_eq!((&*event.name, &*event.data), ("files", "1"));
        let over = add(4, Duration::ZERO);
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Empty));
        hub.close_expired();
        assert_eq!(over.queue().try_recv(), Err(TryRecvError::Disconnected), "whether anything happens or not");
        assert_eq!(b.queue().try_recv(), Err(TryRecvError::Empty));
        assert!(hub.has_subscribers());
        drop(b);
        assert!(!hub.has_subscribers());
    }

    #[test]
    fn a_user_has_so_many_streams_and_no_more() {
        let clock = Clock::start();
        let hub = new_event_hub(clock);
        let session =
            |number| WatchSession { token: [number; 32], expires_at: clock.now().plus(Duration::from_secs(60)) };
        let all: Vec<EventStream> = (0..64).map(|number| hub.subscribe(session(number), None).unwrap()).collect();
        assert!(hub.subscribe(session(64), None).is_none());
        hub.close_all();
        assert!(all.iter().all(|events| events.queue().recv().is_err()));
    }
}
