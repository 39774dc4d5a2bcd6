//! Which messages were taken already.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use crate::lan::wire::UserId;
use crate::model::Millis;

/// How long a message is remembered.
const KEPT_MS: u64 = 3_600_000;
/// Messages of one sender.
pub(super) const OF_SENDER_MAX: usize = 10_000;
/// Messages of all.
pub(super) const SEEN_MAX: usize = 200_000;
/// Senders.
pub(super) const SENDERS_MAX: usize = 10_000;

struct Taken {
    at: Millis,
    sender: u64,
    message: u64,
}

/// The messages of the last hour, as keyed hashes: nobody can choose two that collide.
#[derive(Default)]
pub(super) struct Seen {
    hash: RandomState,
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Taken>,
    messages: HashSet<u64>,
    /// The places of each sender's messages in `taken`, by age.
    senders: HashMap<u64, VecDeque<u64>>,
}

impl Seen {
    fn hashes(&self, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> (u64, u64) {
        (self.hash.hash_one((ip, sender)), self.hash.hash_one((ip, sender, message_id)))
    }

    /// Whether the message is new; from now on it is not.
    pub fn take(&mut self, now: Millis, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> bool {
        while self.taken.first_key_value().is_some_and(|(_, oldest)| oldest.at.plus_ms(KEPT_MS) <= now) {
            self.drop_oldest();
        }
        let (sender, message) = self.hashes(ip, sender, message_id);
        if self.messages.contains(&message) {
            return false;
        }
        if let Some(places) = self.senders.get(&sender)
            && places.len() >= OF_SENDER_MAX
            && let Some(oldest) = places.front().copied()
        {
            self.drop(oldest);
        }
        while self.taken.len() >= SEEN_MAX || self.senders.len() >= SENDERS_MAX && !self.senders.contains_key(&sender) {
            self.drop_oldest();
        }
        let place = self.next;
        self.next += 1;
        self.taken.insert(place, Taken { at: now, sender, message });
        self.messages.insert(message);
        self.senders.entry(sender).or_default().push_back(place);
        true
    }

    /// The message is to be taken once more: it could not be kept.
    pub fn forget(&mut self, ip: Ipv4Addr, sender: &UserId, message_id: &str) {
        let (sender, message) = self.hashes(ip, sender, message_id);
        let places = self.senders.get(&sender);
        // It is among the latest: what failed to be kept has just come.
        let place = places.and_then(|places| {
            places
                .iter()
                .rev()
                .copied()
                .find(|place| self.taken.get(place).is_some_and(|taken| taken.message == message))
        });
        if let Some(place) = place {
            self.drop(place);
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(place) = self.taken.first_key_value().map(|(place, _)| *place) {
            self.drop(place);
        }
    }

    fn drop(&mut self, place: u64) {
        let Some(taken) = self.taken.remove(&place) else { return };
        self.messages.remove(&taken.message);
        let Some(places) = self.senders.get_mut(&taken.sender) else { return };
        if let Ok(at) = places.binary_search(&place) {
            places.remove(at);
        }
        if places.is_empty() {
            self.senders.remove(&taken.sender);
        }
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.taken.len(), self.messages.len());
        self.taken.len()
    }

    pub fn senders(&self) -> usize {
        self.senders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn user(name: &str) -> UserId {
        UserId { name: Name::new(name).unwrap(), ip: IP }
    }

    #[test]
    fn a_message_is_taken_once_an_hour() {
        let mut seen = Seen::default();
        let now = Millis(1_000);
        assert!(seen.take(now, IP, &user("a"), "1"));
        assert!(!seen.take(now.plus_ms(KEPT_MS - 1), IP, &user("a"), "1"));
        // Another source, sender or id is another message.
        assert!(seen.take(now, Ipv4Addr::LOCALHOST, &user("a"), "1"));
        assert!(seen.take(now, IP, &user("b"), "1"));
        assert!(seen.take(now, IP, &user("a"), "2"));
        assert!(seen.take(now.plus_ms(KEPT_MS), IP, &user("a"), "1"));
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn what_was_not_kept_is_taken_again() {
        let mut seen = Seen::default();
        for id in ["1", "2", "3"] {
            assert!(seen.take(Millis(1), IP, &user("a"), id));
        }
        seen.forget(IP, &user("a"), "2");
        seen.forget(IP, &user("b"), "2");
        assert!(!seen.take(Millis(1), IP, &user("a"), "1") && !seen.take(Millis(1), IP, &user("a"), "3"));
        assert!(seen.take(Millis(1), IP, &user("a"), "2"));
        seen.forget(IP, &user("a"), "1");
        seen.forget(IP, &user("a"), "2");
        seen.forget(IP, &user("a"), "3");
        assert_eq!((seen.len(), seen.senders()), (0, 0));
    }

    #[test]
    fn a_sender_has_ten_thousand_and_the_oldest_leave() {
        let mut seen = Seen::default();
        assert!(seen.take(Millis(0), IP, &user("b"), "first"));
        for n in 0..OF_SENDER_MAX + 5 {
            assert!(seen.take(Millis(n as u64), IP, &user("a"), &n.to_string()));
        }
        assert_eq!(seen.len(), OF_SENDER_MAX + 1);
        assert!(!seen.take(Millis(20_000), IP, &user("a"), "5"));
        assert!(seen.take(Millis(20_000), IP, &user("a"), "4"));
        // Another's message does not leave for that.
        assert!(!seen.take(Millis(20_000), IP, &user("b"), "first"));
    }

    #[test]
    fn all_together_are_bounded() {
        let mut seen = Seen::default();
        for sender in 0..SENDERS_MAX + 100 {
            assert!(seen.take(Millis(0), IP, &user(&format!("s{sender}")), "1"));
        }
        assert_eq!((seen.len(), seen.senders()), (SENDERS_MAX, SENDERS_MAX));
        assert!(!seen.take(Millis(0), IP, &user("s100"), "1"));
        for n in 0..SEEN_MAX + 100 {
            assert!(seen.take(Millis(1), IP, &user(&format!("s{}", n % 50 + 5_000)), &format!("m{n}")));
        }
        assert_eq!(seen.len(), SEEN_MAX);
        assert!(seen.senders() <= SENDERS_MAX);
    }
}
