//! When a node sends heartbeats: the busier it is, the more often. A state machine without clock, thread or allocation:
//! a day of a hundred thousand nodes is simulated in a second or two. See `docs/spec/share.md`, "Heartbeat".

use std::time::Duration;

use crate::model::{Millis, named};

pub const IDLE_INTERVAL: Duration = Duration::from_secs(300);
/// The default for a node in use.
pub const ACTIVE_INTERVAL: Duration = Duration::from_secs(60);
pub const BUSY_INTERVAL: Duration = Duration::from_secs(30);
pub const IDLE_AFTER: Duration = Duration::from_secs(300);

named! {
    /// A node's state, as `PING` and the client API name it.
    #[derive(Hash)]
    pub enum PresenceState {
        Disconnected = "disconnected",
        Connecting = "connecting",
        /// The node has not been used for [`IDLE_AFTER`].
        Idle = "idle",
        Active = "active",
        /// The node sends or fetches a file.
        Busy = "busy",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatEvent {
    Connecting,
    /// The node has registered, which counts as a heartbeat.
    Connected,
    Disconnected,
    /// The user made a request.
    Used,
    TransferStarted,
    TransferEnded,
    HeartbeatSent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Down,
    Opening,
    Up,
}

/// The heartbeat schedule of one node.
///
/// ```
/// # use p2s2::internals::model::Millis;
/// # use p2s2::internals::share::heartbeat::{ACTIVE_INTERVAL, Heartbeat, HeartbeatEvent, PresenceState};
///
/// let mut heartbeat = Heartbeat::new(ACTIVE_INTERVAL);
/// heartbeat.handle(Millis(0), HeartbeatEvent::Connected);
/// assert_eq!(heartbeat.next_due_at(), Some(Millis(60_000)));
/// heartbeat.handle(Millis(60_000), HeartbeatEvent::HeartbeatSent);
/// assert_eq!(heartbeat.state(Millis(300_000)), PresenceState::Idle);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    active_interval_ms: u64,
    link: LinkState,
    transfers: u32,
    last_used_at: Millis,
    sent_at: Millis,
}

impl Heartbeat {
    /// For a node that is not connected yet. `active` is the heartbeat interval while it is in use; the interval of an
    /// idle node is never shorter, and that of a busy node never longer.
    pub fn new(active: Duration) -> Heartbeat {
        Heartbeat {
            active_interval_ms: u64::try_from(active.as_millis()).unwrap_or(u64::MAX).max(1),
            link: LinkState::Down,
            transfers: 0,
            last_used_at: Millis::default(),
            sent_at: Millis::default(),
        }
    }

    pub fn handle(&mut self, now: Millis, event: HeartbeatEvent) {
        match event {
            HeartbeatEvent::Connecting => self.link = LinkState::Opening,
            HeartbeatEvent::Connected => {
                self.link = LinkState::Up;
                // A node that connects counts as in use, also when it reconnects.
                (self.last_used_at, self.sent_at) = (now, now);
            }
            HeartbeatEvent::Disconnected => self.link = LinkState::Down,
            HeartbeatEvent::Used => self.last_used_at = self.last_used_at.max(now),
            HeartbeatEvent::TransferStarted => {
                self.transfers = self.transfers.saturating_add(1);
                self.last_used_at = self.last_used_at.max(now);
            }
            HeartbeatEvent::TransferEnded => {
                self.transfers = self.transfers.saturating_sub(1);
                // From busy to active first, not directly to idle.
                self.last_used_at = self.last_used_at.max(now);
            }
            HeartbeatEvent::HeartbeatSent => self.sent_at = self.sent_at.max(now),
        }
    }

    pub fn state(&self, now: Millis) -> PresenceState {
        match self.link {
            LinkState::Down => PresenceState::Disconnected,
            LinkState::Opening => PresenceState::Connecting,
            LinkState::Up if self.transfers > 0 => PresenceState::Busy,
            LinkState::Up if now < self.idle_at() => PresenceState::Active,
            LinkState::Up => PresenceState::Idle,
        }
    }

    /// The heartbeat interval in a state; without a connection, the one it will have when connected.
    pub fn interval(&self, state: PresenceState) -> Duration {
        let active = Duration::from_millis(self.active_interval_ms);
        match state {
            PresenceState::Disconnected | PresenceState::Connecting | PresenceState::Active => active,
            PresenceState::Idle => IDLE_INTERVAL.max(active),
            PresenceState::Busy => BUSY_INTERVAL.min(active),
        }
    }

    /// When the next heartbeat is due if no event comes before; it may be in the past. `None` without a connection.
    pub fn next_due_at(&self) -> Option<Millis> {
        if self.link != LinkState::Up {
            return None;
        }
        if self.transfers > 0 {
            return Some(self.sent_at.plus(self.interval(PresenceState::Busy)));
        }
        let as_active = self.sent_at.plus(self.interval(PresenceState::Active));
        // If it becomes idle before that, the longer interval counts from the last heartbeat.
        Some(if as_active < self.idle_at() { as_active } else { self.sent_at.plus(self.interval(PresenceState::Idle)) })
    }

    fn idle_at(&self) -> Millis {
        self.last_used_at.plus(IDLE_AFTER)
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
        let mut heartbeat = Heartbeat::new(ACTIVE_INTERVAL);
        heartbeat.handle(at, HeartbeatEvent::Connected);
        heartbeat
    }

    #[test]
    fn a_node_goes_from_connecting_to_active_to_idle_and_back() {
        let mut node = Heartbeat::new(ACTIVE_INTERVAL);
        assert_eq!((node.state(s(0)), node.next_due_at()), (PresenceState::Disconnected, None));
        node.handle(s(1), HeartbeatEvent::Connecting);
        assert_eq!((node.state(s(1)), node.next_due_at()), (PresenceState::Connecting, None));
        node.handle(s(2), HeartbeatEvent::Connected);
        assert_eq!((node.state(s(2)), node.next_due_at()), (PresenceState::Active, Some(s(62))));
        assert_eq!(node.state(s(301)), PresenceState::Active);
        assert_eq!(node.state(s(302)), PresenceState::Idle);
        node.handle(s(302), HeartbeatEvent::HeartbeatSent);
        assert_eq!(node.next_due_at(), Some(s(602)));
        // The user comes back: the registry should learn of it soon.
        node.handle(s(500), HeartbeatEvent::Used);
        assert_eq!((node.state(s(500)), node.next_due_at()), (PresenceState::Active, Some(s(362))));
        node.handle(s(501), HeartbeatEvent::Disconnected);
        assert_eq!((node.state(s(501)), node.next_due_at()), (PresenceState::Disconnected, None));
    }

    #[test]
    fn the_heartbeat_that_would_be_due_while_idle_waits_for_the_longer_time() {
        let mut node = connected(s(0));
        for at in [60, 120, 180, 240] {
            assert_eq!(node.next_due_at(), Some(s(at)));
            node.handle(s(at), HeartbeatEvent::HeartbeatSent);
        }
        assert_eq!(node.next_due_at(), Some(s(540)));
    }

    #[test]
    fn a_node_is_busy_until_its_last_transfer_has_ended() {
        let mut node = connected(s(0));
        node.handle(s(10), HeartbeatEvent::TransferStarted);
        node.handle(s(11), HeartbeatEvent::TransferStarted);
        assert_eq!((node.state(s(1000)), node.next_due_at()), (PresenceState::Busy, Some(s(30))));
        node.handle(s(1000), HeartbeatEvent::TransferEnded);
        assert_eq!(node.state(s(1000)), PresenceState::Busy);
        node.handle(s(2000), HeartbeatEvent::TransferEnded);
        assert_eq!((node.state(s(2000)), node.state(s(2300))), (PresenceState::Active, PresenceState::Idle));
        // An extra end without a start is harmless.
        node.handle(s(2001), HeartbeatEvent::TransferEnded);
        node.handle(s(2002), HeartbeatEvent::TransferStarted);
        assert_eq!(node.state(s(2002)), PresenceState::Busy);
    }

    #[test]
    fn another_active_interval_never_makes_less_of_more() {
        for (active, busy, idle) in [(10, 10, 300), (60, 30, 300), (600, 30, 600)] {
            let node = Heartbeat::new(Duration::from_secs(active));
            assert_eq!(node.interval(PresenceState::Active), Duration::from_secs(active));
            assert_eq!(node.interval(PresenceState::Busy), Duration::from_secs(busy));
            assert_eq!(node.interval(PresenceState::Idle), Duration::from_secs(idle));
        }
    }

    /// A day of nodes that each stay in one state, with realistic events: an active node is used every few minutes, and
    /// a busy node has one transfer after another.
    #[test]
    fn a_day_of_80_15_5_saves_what_the_closed_form_says() {
        const CLIENTS: u64 = 2_000;
        const DAY: Millis = s(24 * 3600);
        const WORKS_EVERY_MS: u64 = 240_000;
        let mut sent: u64 = 0;
        for client in 0..CLIENTS {
            let began = Millis(client * 300_000 / CLIENTS);
            let mut node = connected(began);
            // It is in this state from before the beginning of the day.
            let kind = match client % 20 {
                0..16 => PresenceState::Idle,
                16..19 => PresenceState::Active,
                _ => PresenceState::Busy,
            };
            let mut works_at = began;
            match kind {
                PresenceState::Idle => node.last_used_at = Millis(0),
                PresenceState::Busy => node.handle(began, HeartbeatEvent::TransferStarted),
                _ => {}
            }
            if kind == PresenceState::Idle {
                // Its next heartbeat is due at the idle interval, whenever it was last used.
                node.sent_at = began;
            }
            loop {
                let due = node.next_due_at().unwrap();
                if kind == PresenceState::Active && works_at < due {
                    node.handle(works_at, HeartbeatEvent::Used);
                    works_at = works_at.plus_ms(WORKS_EVERY_MS);
                    continue;
                }
                if due > began.plus_ms(DAY.0) {
                    break;
                }
                if kind != PresenceState::Idle || due >= s(600) {
                    assert_eq!(node.state(due), kind, "client {client} at {due:?}");
                }
                node.handle(due, HeartbeatEvent::HeartbeatSent);
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

    fn any_event() -> impl Strategy<Value = HeartbeatEvent> {
        prop_oneof![
            Just(HeartbeatEvent::Connecting),
            Just(HeartbeatEvent::Connected),
            Just(HeartbeatEvent::Disconnected),
            Just(HeartbeatEvent::Used),
            Just(HeartbeatEvent::TransferStarted),
            Just(HeartbeatEvent::TransferEnded),
            Just(HeartbeatEvent::HeartbeatSent),
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
                    HeartbeatEvent::TransferStarted => transfers += 1,
                    HeartbeatEvent::TransferEnded => transfers = transfers.saturating_sub(1),
                    _ => {}
                }
                let state = node.state(now);
                let is_up = !matches!(state, PresenceState::Disconnected | PresenceState::Connecting);
                prop_assert_eq!(node.next_due_at().is_some(), is_up);
                prop_assert_eq!(state == PresenceState::Busy, is_up && transfers > 0);
                if let Some(due) = node.next_due_at() {
                    let longest = node.interval(PresenceState::Idle);
                    prop_assert!(due <= node.sent_at.plus(longest));
                    prop_assert!(due >= node.sent_at.plus(node.interval(PresenceState::Busy)));
                    // Once sent, the next one is not due immediately.
                    let mut after = node;
                    let at = due.max(now);
                    after.handle(at, HeartbeatEvent::HeartbeatSent);
                    prop_assert!(after.next_due_at() > Some(at));
                }
                if matches!(event, HeartbeatEvent::Used | HeartbeatEvent::Connected) {
                    prop_assert!(state != PresenceState::Idle);
                }
            }
        }
    }
}
