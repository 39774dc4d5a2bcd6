//! How often a node says that it is there: the more it does, the more often. A pure state machine.
//!
//! No clock, no thread, no allocation: a hundred thousand of them are simulated for a day in a second or two.
//! SPEC.md section 6, Heartbeat.

use std::fmt;
use std::time::Duration;

use crate::model::Millis;

/// Between heartbeats of a node that nobody uses.
pub const IDLE_EVERY: Duration = Duration::from_secs(300);
/// Between heartbeats of one that somebody uses, unless it is told otherwise.
pub const ACTIVE_EVERY: Duration = Duration::from_secs(60);
/// Between heartbeats while a file is sent or fetched.
pub const BUSY_EVERY: Duration = Duration::from_secs(30);
/// A node is idle after so long without work.
pub const IDLE_AFTER: Duration = Duration::from_secs(300);

/// What a node is doing, as `PING` and the client API name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// No connection to the registry.
    Disconnected,
    /// On the way to one.
    Connecting,
    /// Nobody has used it for [`IDLE_AFTER`].
    Idle,
    /// Somebody uses it.
    Active,
    /// A file is being sent or fetched.
    Busy,
}

impl State {
    /// As messages name it.
    pub fn as_text(self) -> &'static str {
        match self {
            State::Disconnected => "disconnected",
            State::Connecting => "connecting",
            State::Idle => "idle",
            State::Active => "active",
            State::Busy => "busy",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_text())
    }
}

/// What happened to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is about to reach the registry.
    Connecting,
    /// The registry knows it now, which counts as a heartbeat.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// Somebody used it.
    Work,
    /// A file begins to be sent or fetched.
    TransferBegan,
    /// One of those that began has ended.
    TransferEnded,
    /// A heartbeat was sent.
    Sent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Opening,
    Up,
}

/// One node's heartbeat.
///
/// ```
/// use p2s2::model::Millis;
/// use p2s2::share::heartbeat::{ACTIVE_EVERY, Event, Heartbeat, State};
///
/// let mut heartbeat = Heartbeat::new(ACTIVE_EVERY);
/// heartbeat.handle(Millis(0), Event::Connected);
/// assert_eq!(heartbeat.next_at(), Some(Millis(60_000)));
/// heartbeat.handle(Millis(60_000), Event::Sent);
/// assert_eq!(heartbeat.state(Millis(300_000)), State::Idle);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    active_ms: u64,
    link: Link,
    transfers: u32,
    worked_at: Millis,
    sent_at: Millis,
}

impl Heartbeat {
    /// Of a node that is not connected yet. `active` is the time between heartbeats while it is used; one that
    /// is less busy or more busy than that never has a shorter or longer one.
    pub fn new(active: Duration) -> Heartbeat {
        Heartbeat {
            active_ms: u64::try_from(active.as_millis()).unwrap_or(u64::MAX).max(1),
            link: Link::Down,
            transfers: 0,
            worked_at: Millis::default(),
            sent_at: Millis::default(),
        }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, now: Millis, event: Event) {
        match event {
            Event::Connecting => self.link = Link::Opening,
            Event::Connected => {
                self.link = Link::Up;
                // Whoever connects is there to use it; after a pulled cable as well.
                (self.worked_at, self.sent_at) = (now, now);
            }
            Event::Disconnected => self.link = Link::Down,
            Event::Work => self.worked_at = self.worked_at.max(now),
            Event::TransferBegan => {
                self.transfers = self.transfers.saturating_add(1);
                self.worked_at = self.worked_at.max(now);
            }
            Event::TransferEnded => {
                self.transfers = self.transfers.saturating_sub(1);
                // From busy to active, not at once to idle.
                self.worked_at = self.worked_at.max(now);
            }
            Event::Sent => self.sent_at = self.sent_at.max(now),
        }
    }

    /// What the node is doing.
    pub fn state(&self, now: Millis) -> State {
        match self.link {
            Link::Down => State::Disconnected,
            Link::Opening => State::Connecting,
            Link::Up if self.transfers > 0 => State::Busy,
            Link::Up if now < self.idle_from() => State::Active,
            Link::Up => State::Idle,
        }
    }

    /// The time between heartbeats in a state; of one without a connection that which it will have.
    pub fn interval(&self, state: State) -> Duration {
        match state {
            State::Disconnected | State::Connecting | State::Active => Duration::from_millis(self.active_ms),
            State::Idle => IDLE_EVERY.max(Duration::from_millis(self.active_ms)),
            State::Busy => BUSY_EVERY.min(Duration::from_millis(self.active_ms)),
        }
    }

    /// When the next heartbeat is due, if nothing happens until then; it may be in the past. None without a
    /// connection.
    pub fn next_at(&self) -> Option<Millis> {
        if self.link != Link::Up {
            return None;
        }
        if self.transfers > 0 {
            return Some(self.sent_at.plus(self.interval(State::Busy)));
        }
        let as_active = self.sent_at.plus(self.interval(State::Active));
        // Idle before that: then the longer interval counts from the last heartbeat.
        Some(if as_active < self.idle_from() { as_active } else { self.sent_at.plus(self.interval(State::Idle)) })
    }

    fn idle_from(&self) -> Millis {
        self.worked_at.plus(IDLE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn s(seconds: u64) -> Millis {
        Millis(seconds * 1000)
    }

    fn connected(at: Millis) -> Heartbeat {
        let mut heartbeat = Heartbeat::new(ACTIVE_EVERY);
        heartbeat.handle(at, Event::Connected);
        heartbeat
    }

    #[test]
    fn a_node_goes_from_connecting_to_active_to_idle_and_back() {
        let mut node = Heartbeat::new(ACTIVE_EVERY);
        assert_eq!((node.state(s(0)), node.next_at()), (State::Disconnected, None));
        node.handle(s(1), Event::Connecting);
        assert_eq!((node.state(s(1)), node.next_at()), (State::Connecting, None));
        node.handle(s(2), Event::Connected);
        assert_eq!((node.state(s(2)), node.next_at()), (State::Active, Some(s(62))));
        assert_eq!(node.state(s(301)), State::Active);
        assert_eq!(node.state(s(302)), State::Idle);
        node.handle(s(302), Event::Sent);
        assert_eq!(node.next_at(), Some(s(602)));
        // Somebody comes back: the registry is to know it soon.
        node.handle(s(500), Event::Work);
        assert_eq!((node.state(s(500)), node.next_at()), (State::Active, Some(s(362))));
        node.handle(s(501), Event::Disconnected);
        assert_eq!((node.state(s(501)), node.next_at()), (State::Disconnected, None));
    }

    #[test]
    fn the_heartbeat_that_would_be_due_while_idle_waits_for_the_longer_time() {
        let mut node = connected(s(0));
        for at in [60, 120, 180, 240] {
            assert_eq!(node.next_at(), Some(s(at)));
            node.handle(s(at), Event::Sent);
        }
        assert_eq!(node.next_at(), Some(s(540)));
    }

    #[test]
    fn a_node_is_busy_until_its_last_transfer_has_ended() {
        let mut node = connected(s(0));
        node.handle(s(10), Event::TransferBegan);
        node.handle(s(11), Event::TransferBegan);
        assert_eq!((node.state(s(1000)), node.next_at()), (State::Busy, Some(s(30))));
        node.handle(s(1000), Event::TransferEnded);
        assert_eq!(node.state(s(1000)), State::Busy);
        node.handle(s(2000), Event::TransferEnded);
        assert_eq!((node.state(s(2000)), node.state(s(2300))), (State::Active, State::Idle));
        // One more end than beginnings harms nothing.
        node.handle(s(2001), Event::TransferEnded);
        node.handle(s(2002), Event::TransferBegan);
        assert_eq!(node.state(s(2002)), State::Busy);
    }

    #[test]
    fn another_active_interval_never_makes_less_of_more() {
        for (active, busy, idle) in [(10, 10, 300), (60, 30, 300), (600, 30, 600)] {
            let node = Heartbeat::new(Duration::from_secs(active));
            assert_eq!(node.interval(State::Active), Duration::from_secs(active));
            assert_eq!(node.interval(State::Busy), Duration::from_secs(busy));
            assert_eq!(node.interval(State::Idle), Duration::from_secs(idle));
        }
    }

    /// A day of clients that stay what they are; the seconds between two looks of each are as in life: whoever
    /// is active works every few minutes, and whoever is busy has transfers that follow one another.
    #[test]
    fn a_day_of_80_15_5_saves_what_the_closed_form_says() {
        const CLIENTS: u64 = 2_000;
        const DAY: Millis = s(24 * 3600);
        const WORKS_EVERY_MS: u64 = 240_000;
        let mut sent: u64 = 0;
        for client in 0..CLIENTS {
            let began = Millis(client * 300_000 / CLIENTS);
            let mut node = connected(began);
            // It is what it is from before the day's beginning.
            let kind = match client % 20 {
                0..16 => State::Idle,
                16..19 => State::Active,
                _ => State::Busy,
            };
            let mut works_at = began;
            match kind {
                State::Idle => node.worked_at = Millis(0),
                State::Busy => node.handle(began, Event::TransferBegan),
                _ => {}
            }
            if kind == State::Idle {
                // Its next one is due as an idle one's, whenever it worked last.
                node.sent_at = began;
            }
            loop {
                let due = node.next_at().unwrap();
                if kind == State::Active && works_at < due {
                    node.handle(works_at, Event::Work);
                    works_at = works_at.plus_ms(WORKS_EVERY_MS);
                    continue;
                }
                if due > began.plus_ms(DAY.0) {
                    break;
                }
                if kind != State::Idle || due >= s(600) {
                    assert_eq!(node.state(due), kind, "client {client} at {due:?}");
                }
                node.handle(due, Event::Sent);
                sent += 1;
            }
        }
        let fixed = CLIENTS * 24 * 60;
        let saved = 1.0 - sent as f64 / fixed as f64;
        let per_s: f64 = 0.80 / 300.0 + 0.15 / 60.0 + 0.05 / 30.0;
        let closed_form = 1.0 - per_s * 60.0;
        assert!((closed_form - 0.59_f64).abs() < 0.001, "{closed_form}");
        assert!((saved - closed_form).abs() < 0.01, "saved {saved}, closed form {closed_form}");
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Connecting),
            Just(Event::Connected),
            Just(Event::Disconnected),
            Just(Event::Work),
            Just(Event::TransferBegan),
            Just(Event::TransferEnded),
            Just(Event::Sent),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_connected_node_is_due_within_its_interval(
            active_s in 1_u64..1_000,
            events in prop::collection::vec((0_u64..400_000, any_event()), 0..60),
        ) {
            let mut node = Heartbeat::new(Duration::from_secs(active_s));
            let mut now = s(1);
            let mut transfers = 0_u32;
            for (passed, event) in events {
                now = now.plus_ms(passed);
                node.handle(now, event);
                match event {
                    Event::TransferBegan => transfers += 1,
                    Event::TransferEnded => transfers = transfers.saturating_sub(1),
                    _ => {}
                }
                let state = node.state(now);
                let is_up = !matches!(state, State::Disconnected | State::Connecting);
                prop_assert_eq!(node.next_at().is_some(), is_up);
                prop_assert_eq!(state == State::Busy, is_up && transfers > 0);
                if let Some(due) = node.next_at() {
                    let longest = node.interval(State::Idle);
                    prop_assert!(due <= node.sent_at.plus(longest));
                    prop_assert!(due >= node.sent_at.plus(node.interval(State::Busy)));
                    // Once sent, it is not due again at once.
                    let mut after = node;
                    let at = due.max(now);
                    after.handle(at, Event::Sent);
                    prop_assert!(after.next_at() > Some(at));
                }
                if matches!(event, Event::Work | Event::Connected) {
                    prop_assert!(state != State::Idle);
                }
            }
        }
    }
}
