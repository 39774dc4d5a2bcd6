//! Broadcasts events to subscribers over bounded queues.
//!
//! Each event has an id, `BOOT-NUMBER`. The newest are kept, so that a client that lost its connection, or was dropped
//! because it read too slowly, gets what it missed by sending the last id that it has seen. If that is not possible
//! any more, the first event is `reset`: the client has to read everything anew. The history is read and the
//! subscription added under one lock, so no event is lost or sent twice between them.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use super::body::{EventStream, ServerSentEvent};
use super::{HeaderMap, header};
use crate::model::{Clock, Millis, debug_fields, secret};

/// Tells a client that it cannot resume.
pub const RESET_EVENT: &str = "reset";

pub trait Subscriber: Send + 'static {
    /// What an event is about, as far as that decides who receives it.
    type Topic: Send;

    fn wants(&self, topic: &Self::Topic) -> bool;

    /// The end of the subscription, by the process's clock.
    fn expires_at(&self) -> Millis;

    fn is_same_account(&self, other: &Self) -> bool;
}

#[derive(Debug, Clone, Copy)]
pub struct EventHubLimits {
    pub subscribers: usize,
    pub per_account: usize,
    /// A subscriber that leaves more unread is dropped.
    pub queue_capacity: usize,
    /// Events kept for clients that reconnect.
    pub history: usize,
    pub history_bytes: usize,
}

impl EventHubLimits {
    /// The numbers of events are those that `docs/spec/share.md` requires at least.
    pub fn for_subscribers(subscribers: usize, per_account: usize) -> EventHubLimits {
        EventHubLimits { subscribers, per_account, queue_capacity: 256, history: 1024, history_bytes: 1 << 20 }
    }
}

/// The subscribers of one kind of event.
pub struct EventHub<W: Subscriber> {
    limits: EventHubLimits,
    clock: Clock,
    /// Distinguishes this hub's event numbers from those of another process or hub.
    boot_id: String,
    state: Mutex<HubState<W>>,
}

struct HubState<W: Subscriber> {
    last_number: u64,
    /// The newest events, without a gap up to `last_number`.
    history: VecDeque<(W::Topic, Arc<ServerSentEvent>)>,
    history_bytes: usize,
    subscriptions: Vec<Subscription<W>>,
}

struct Subscription<W> {
    subscriber: W,
    queue: Sender<Arc<ServerSentEvent>>,
    /// Dead once the other end of the queue is dropped, which a sender would otherwise notice only by sending.
    is_read: Weak<()>,
}

impl<W: Subscriber> EventHub<W> {
    pub fn new(clock: Clock, limits: EventHubLimits) -> EventHub<W> {
        let state = HubState { last_number: 0, history: VecDeque::new(), history_bytes: 0, subscriptions: Vec::new() };
        EventHub { limits, clock, boot_id: secret::random_hex::<8>(), state: Mutex::new(state) }
    }

    /// `None` if there are too many. The stream has the events from now on, or those after `last_event_id` from an
    /// earlier stream. Dropping it ends the subscription, and so does its expiry.
    pub fn subscribe(&self, subscriber: W, last_event_id: Option<&str>) -> Option<EventStream> {
        let mut state = self.state.lock();
        state.remove_ended(self.clock.now());
        let open_for_account =
            state.subscriptions.iter().filter(|open| open.subscriber.is_same_account(&subscriber)).count();
        if state.subscriptions.len() >= self.limits.subscribers || open_for_account >= self.limits.per_account {
            return None;
        }
        let missed = match last_event_id {
            None => Vec::new(),
            Some(id) => self.number_of(id).and_then(|number| state.since(number, &subscriber)).unwrap_or_else(|| {
                // It has the number of the newest event, so that the client can resume from there.
                vec![Arc::new(ServerSentEvent {
                    id: Some(self.id(state.last_number)),
                    name: RESET_EVENT.to_owned(),
                    data: "{}".to_owned(),
                })]
            }),
        };
        // In addition to what it missed, which is not due to slow reading.
        let (queue, receiver) = bounded(self.limits.queue_capacity + missed.len());
        for event in missed {
            queue.try_send(event).ok()?;
        }
        let (events, is_read) = EventStream::with_liveness(receiver);
        state.subscriptions.push(Subscription { subscriber, queue, is_read });
        Some(events)
    }

    pub fn has_subscribers(&self) -> bool {
        self.state.lock().subscriptions.iter().any(Subscription::is_read)
    }

    /// The number of open streams.
    pub fn subscriber_count(&self) -> usize {
        self.state.lock().subscriptions.iter().filter(|open| open.is_read()).count()
    }

    /// It never blocks.
    pub fn publish(&self, topic: W::Topic, name: &str, data: &Value) {
        let data = data.to_string();
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.last_number += 1;
        let event = Arc::new(ServerSentEvent { id: Some(self.id(state.last_number)), name: name.to_owned(), data });
        state.subscriptions.retain(|open| {
            now < open.subscriber.expires_at()
                && (!open.subscriber.wants(&topic) || open.queue.try_send(Arc::clone(&event)).is_ok())
        });
        state.history_bytes += event.len();
        state.history.push_back((topic, event));
        while state.history.len() > self.limits.history || state.history_bytes > self.limits.history_bytes {
            let Some((_, oldest)) = state.history.pop_front() else { break };
            state.history_bytes -= oldest.len();
        }
    }

    pub fn close_where(&self, mut is_over: impl FnMut(&W) -> bool) {
        self.state.lock().subscriptions.retain(|open| !is_over(&open.subscriber));
    }

    pub fn close_expired(&self) {
        self.state.lock().remove_ended(self.clock.now());
    }

    pub fn close_all(&self) {
        self.state.lock().subscriptions.clear();
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.boot_id)
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        let number = id.trim().strip_prefix(&*self.boot_id)?.strip_prefix('-')?;
        // `parse` would accept a sign.
        number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())?
    }
}

impl<W: Subscriber> HubState<W> {
    /// The events after that number; `None` if they are not kept any more.
    fn since(&self, number: u64, subscriber: &W) -> Option<Vec<Arc<ServerSentEvent>>> {
        let missed = usize::try_from(self.last_number.checked_sub(number)?).ok()?;
        let first = self.history.len().checked_sub(missed)?;
        let missed = self.history.range(first..).filter(|(topic, _)| subscriber.wants(topic));
        Some(missed.map(|(_, event)| Arc::clone(event)).collect())
    }

    fn remove_ended(&mut self, now: Millis) {
        self.subscriptions.retain(|open| now < open.subscriber.expires_at() && open.is_read());
    }
}

impl<W> Subscription<W> {
    fn is_read(&self) -> bool {
        self.is_read.strong_count() > 0
    }
}

debug_fields!(EventHub<W: Subscriber>, |hub| bounds: hub.limits, open: hub.subscriber_count());

pub fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(header::HeaderName::from_static("last-event-id"))?;
    // A value that is not text is an unknown id, which is not the same as none.
    Some(id.to_str().unwrap_or("?")).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// Whose, and until when.
    #[derive(Debug, Clone, Copy)]
    struct Someone(u8, Millis);

    impl Subscriber for Someone {
        /// Whom it concerns; 0: all.
        type Topic = u8;

        fn wants(&self, topic: &u8) -> bool {
            *topic == 0 || *topic == self.0
        }

        fn expires_at(&self) -> Millis {
            self.1
        }

        fn is_same_account(&self, other: &Someone) -> bool {
            self.0 == other.0
        }
    }

    const BOUNDS: EventHubLimits =
        EventHubLimits { subscribers: 6, per_account: 3, queue_capacity: 4, history: 8, history_bytes: 1000 };

    fn watchers() -> EventHub<Someone> {
        EventHub::new(Clock::start(), BOUNDS)
    }

    fn add(watchers: &EventHub<Someone>, subscriber: u8, last: Option<&str>) -> Option<EventStream> {
        watchers.subscribe(Someone(subscriber, watchers.clock.now().plus(Duration::from_secs(60))), last)
    }

    /// What is there by now: ids and data.
    fn taken(events: &EventStream) -> Vec<(String, String)> {
        events.queue().try_iter().map(|event| (event.id.clone().unwrap(), event.data.clone())).collect()
    }

    fn data(events: &EventStream) -> Vec<String> {
        taken(events).into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn who_was_away_goes_on_where_it_was() {
        let watchers = watchers();
        let first = add(&watchers, 1, None).unwrap();
        for n in 1..=3 {
            watchers.publish(0, "n", &json!(n));
        }
        let seen = taken(&first);
        assert_eq!(seen.iter().map(|(_, data)| &**data).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert!(seen[0].0.ends_with("-1") && seen[2].0.ends_with("-3"), "{seen:?}");
        drop(first);
        for n in 4..=9 {
            watchers.publish(0, "n", &json!(n));
        }
        // More than may wait of what is state live; and what is state live comes after it.
        let back = add(&watchers, 1, Some(&seen[2].0)).unwrap();
        watchers.publish(0, "n", &json!(10));
        assert_eq!(data(&back), ["4", "5", "6", "7", "8", "9", "10"]);
        // The oldest that is kept is 3: of who has 1 the event 2 is missing.
        let all = |last: &str| data(&add(&watchers, 2, Some(last)).unwrap());
        assert_eq!(all(&seen[1].0).len(), 8);
        assert_eq!(all(&seen[0].0), ["{}"]);
        assert_eq!(all(&watchers.id(10)), Vec::<String>::new(), "it has everything");
        assert_eq!(data(&add(&watchers, 3, None).unwrap()), Vec::<String>::new(), "who was never there missed nothing");
    }

    #[test]
    fn who_cannot_go_on_is_told_to_begin_anew_and_goes_on_from_there() {
        let watchers = watchers();
        for n in 1..=20 {
            watchers.publish(0, "n", &json!(n));
        }
        let boot = watchers.boot_id.clone();
        let of_another = EventHub::<Someone>::new(Clock::start(), BOUNDS).id(20);
        for last in ["", "x", "20", "-20", &boot, &format!("{boot}-"), &format!("{boot}-+20"), &of_another] {
            let reset = add(&watchers, 1, Some(last)).unwrap();
            let event = reset.queue().try_recv().unwrap();
            assert_eq!((&*event.name, &*event.data), (RESET_EVENT, "{}"), "{last}");
            watchers.publish(0, "n", &json!("next"));
            assert_eq!(data(&reset), ["\"next\""]);
            let back = add(&watchers, 1, event.id.as_deref()).unwrap();
            assert_eq!(data(&back), ["\"next\""]);
        }
        // Ahead of all that was state.
        let ahead = add(&watchers, 2, Some(&watchers.id(1000))).unwrap();
        assert_eq!(ahead.queue().try_recv().unwrap().name, RESET_EVENT);
    }

    #[test]
    fn one_that_reads_too_slowly_is_cut_off_and_comes_back_by_its_id() {
        let watchers = watchers();
        let (quick, slow) = (add(&watchers, 1, None).unwrap(), add(&watchers, 2, None).unwrap());
        let mut seen = Vec::new();
        for n in 1..=7 {
            watchers.publish(0, "n", &json!(n));
            seen.extend(data(&quick));
        }
        assert_eq!(seen, ["1", "2", "3", "4", "5", "6", "7"]);
        // What it had before comes, then the end.
        let had: Vec<Arc<ServerSentEvent>> = slow.queue().iter().collect();
        assert_eq!(had.len(), BOUNDS.queue_capacity);
        let back = add(&watchers, 2, had[3].id.as_deref()).unwrap();
        assert_eq!(data(&back), ["5", "6", "7"]);
    }

    #[test]
    fn each_is_told_of_what_concerns_it_then_and_later() {
        let watchers = watchers();
        let (ann, bob) = (add(&watchers, 1, None).unwrap(), add(&watchers, 2, None).unwrap());
        watchers.publish(1, "n", &json!("ann"));
        watchers.publish(2, "n", &json!("bob"));
        watchers.publish(0, "n", &json!("all"));
        assert_eq!(
            (data(&ann), data(&bob)),
            (vec!["\"ann\"".into(), "\"all\"".into()], vec!["\"bob\"".into(), "\"all\"".into()])
        );
        drop(ann);
        assert_eq!(data(&add(&watchers, 1, Some(&watchers.id(1))).unwrap()), ["\"all\""]);
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_too() {
        let watchers = watchers();
        for n in 0..5 {
            watchers.publish(0, "n", &json!("x".repeat(300 + n)));
        }
        let state = watchers.state.lock();
        assert!(state.history_bytes <= BOUNDS.history_bytes && state.history.len() < 4 && !state.history.is_empty());
        drop(state);
        let last = watchers.id(5);
        watchers.publish(0, "n", &json!("x".repeat(2000)));
        assert!(watchers.state.lock().history.is_empty());
        assert_eq!(add(&watchers, 1, Some(&last)).unwrap().queue().try_recv().unwrap().name, RESET_EVENT);
    }

    #[test]
    fn there_are_so_many_in_all_and_of_each_account_and_no_more() {
        let watchers = watchers();
        let mut ann: Vec<EventStream> = (0..3).map(|_| add(&watchers, 1, None).unwrap()).collect();
        assert!(add(&watchers, 1, None).is_none(), "of one account");
        let bob: Vec<EventStream> = (0..3).map(|_| add(&watchers, 2, None).unwrap()).collect();
        assert!(add(&watchers, 3, None).is_none(), "in all");
        // One that has gone is noticed though nothing is state.
        ann.pop();
        assert_eq!(watchers.subscriber_count(), 5);
        let third = add(&watchers, 3, None).unwrap();
        assert!(ann.iter().chain(&bob).chain([&third]).all(|events| events.queue().is_empty()));
        watchers.close_where(|someone| someone.0 == 2);
        assert_eq!(watchers.subscriber_count(), 3);
        watchers.close_all();
        assert!(!watchers.has_subscribers() && third.queue().recv().is_err());
        // Whose time is over is state nothing more.
        let over = watchers.subscribe(Someone(1, watchers.clock.now()), None).unwrap();
        watchers.publish(0, "n", &json!(1));
        assert!(over.queue().recv().is_err());
    }

    #[test]
    fn nothing_is_lost_or_told_twice_between_what_is_kept_and_what_is_told_live() {
        let limits = EventHubLimits { queue_capacity: 10_000, history: 10_000, history_bytes: 1 << 20, ..BOUNDS };
        let watchers = Arc::new(EventHub::<Someone>::new(Clock::start(), limits));
        let teller = std::thread::spawn({
            let watchers = Arc::clone(&watchers);
            move || (1..=5000).for_each(|n| watchers.publish(0, "n", &json!(n)))
        });
        let mut last = watchers.id(0);
        let mut seen = 0;
        while seen < 5000 {
            let events = add(&watchers, 1, Some(&last)).unwrap();
            for event in events.queue().iter().take(37.min(5000 - seen)) {
                seen += 1;
                assert_eq!(event.data, seen.to_string());
                last = event.id.clone().unwrap();
            }
        }
        teller.join().unwrap();
    }

    #[test]
    fn the_last_id_is_what_the_header_says() {
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", header::HeaderValue::from_bytes(value).unwrap());
            last_event_id(&headers).map(str::to_owned)
        };
        assert_eq!(of(b"ab-7").as_deref(), Some("ab-7"));
        assert_eq!(of(b""), None);
        assert_eq!(of("é".as_bytes()).as_deref(), Some("?"));
        assert_eq!(last_event_id(&HeaderMap::new()), None);
    }
}
