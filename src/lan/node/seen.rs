//! Which messages were taken already.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use crate::lan::wire::UserId;
use crate::model::Millis;

/// How long a message is remembered.
const KEPT_MS: u64 = 3_600_000;
/// Messages of one sender.
pub(super) const OF_SENDER_MAX: usize = 10_000;
/// Messages of one source address.
const OF_SOURCE_MAX: usize = 5 * OF_SENDER_MAX;
/// Messages of all.
pub(super) const SEEN_MAX: usize = 200_000;
/// Senders from one source address: names are free to invent.
const SENDERS_OF_SOURCE_MAX: usize = 1_000;
/// Senders.
pub(super) const SENDERS_MAX: usize = 10_000;

struct Taken {
    at: Millis,
    sender: u64,
    message: u64,
}

struct Sender {
    source: Ipv4Addr,
    /// When it was last heard, as a place.
    heard: u64,
    /// The places of its messages in `taken`, by age.
    places: VecDeque<u64>,
}

/// What comes from one address.
#[derive(Default)]
struct Source {
    messages: usize,
    /// Its senders, by when they were last heard.
    senders: BTreeSet<(u64, u64)>,
}

/// The messages of the last hour, as keyed hashes: nobody can choose two that collide. Where there is no room
/// for another sender, the one who was silent longest is forgotten, among those of the same source first.
#[derive(Default)]
pub(super) struct Seen {
    hash: RandomState,
    next: u64,
    /// By age.
    taken: BTreeMap<u64, Taken>,
    messages: HashSet<u64>,
    senders: HashMap<u64, Sender>,
    /// All of them, by when they were last heard.
    by_heard: BTreeSet<(u64, u64)>,
    sources: HashMap<Ipv4Addr, Source>,
}

impl Seen {
    fn hashes(&self, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> (u64, u64) {
        (self.hash.hash_one((ip, sender)), self.hash.hash_one((ip, sender, message_id)))
    }

    /// Whether the message is new; from now on it is not.
    pub fn take(&mut self, now: Millis, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> bool {
        while let Some((place, _)) =
            self.taken.first_key_value().filter(|(_, oldest)| oldest.at.plus_ms(KEPT_MS) <= now)
        {
            self.drop(*place);
        }
        let (sender, message) = self.hashes(ip, sender, message_id);
        if self.messages.contains(&message) {
            return false;
        }
        self.make_room(ip, sender);
        let place = self.next;
        self.next += 1;
        self.taken.insert(place, Taken { at: now, sender, message });
        self.messages.insert(message);
        let of_sender =
            self.senders.entry(sender).or_insert_with(|| Sender { source: ip, heard: place, places: VecDeque::new() });
        let source = self.sources.entry(ip).or_default();
        for by_heard in [&mut self.by_heard, &mut source.senders] {
            by_heard.remove(&(of_sender.heard, sender));
            by_heard.insert((place, sender));
        }
        of_sender.heard = place;
        of_sender.places.push_back(place);
        source.messages += 1;
        true
    }

    /// For one more message of this sender.
    fn make_room(&mut self, ip: Ipv4Addr, sender: u64) {
        if let Some(known) = self.senders.get(&sender)
            && known.places.len() >= OF_SENDER_MAX
            && let Some(oldest) = known.places.front().copied()
        {
            self.drop(oldest);
        }
        let is_new = !self.senders.contains_key(&sender);
        // One sender alone never fills its source, so that another one is found.
        while let Some(silent) = self.sources.get(&ip).and_then(|source| {
            let is_full = source.messages >= OF_SOURCE_MAX || is_new && source.senders.len() >= SENDERS_OF_SOURCE_MAX;
            source.senders.iter().map(|(_, other)| *other).find(|other| is_full && *other != sender)
        }) {
            self.forget_sender(silent);
        }
        if is_new
            && self.senders.len() >= SENDERS_MAX
            && let Some((_, silent)) = self.by_heard.first().copied()
        {
            self.forget_sender(silent);
        }
        if self.taken.len() >= SEEN_MAX
            && let Some(oldest) = self.taken.first_key_value().map(|(place, _)| *place)
        {
            self.drop(oldest);
        }
    }

    /// The message is to be taken once more: it could not be kept.
    pub fn forget(&mut self, ip: Ipv4Addr, sender: &UserId, message_id: &str) {
        let (sender, message) = self.hashes(ip, sender, message_id);
        let places = self.senders.get(&sender).map(|sender| &sender.places);
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

    fn forget_sender(&mut self, sender: u64) {
        let places = self.senders.get(&sender).map(|sender| sender.places.clone()).unwrap_or_default();
        places.into_iter().for_each(|place| self.drop(place));
    }

    fn drop(&mut self, place: u64) {
        let Some(taken) = self.taken.remove(&place) else { return };
        self.messages.remove(&taken.message);
        let Some(sender) = self.senders.get_mut(&taken.sender) else { return };
        if let Ok(at) = sender.places.binary_search(&place) {
            sender.places.remove(at);
        }
        let (ip, heard, is_gone) = (sender.source, (sender.heard, taken.sender), sender.places.is_empty());
        if is_gone {
            self.senders.remove(&taken.sender);
            self.by_heard.remove(&heard);
        }
        let Some(source) = self.sources.get_mut(&ip) else { return };
        source.messages -= 1;
        if is_gone {
            source.senders.remove(&heard);
        }
        if source.messages == 0 {
            self.sources.remove(&ip);
        }
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.taken.len(), self.messages.len());
        debug_assert!(self.sources.len() <= self.senders.len());
        self.taken.len()
    }

    pub fn senders(&self) -> usize {
        debug_assert_eq!(self.senders.len(), self.by_heard.len());
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

    fn source(n: usize) -> Ipv4Addr {
        Ipv4Addr::from(0x0b00_0000 + n as u32)
    }

    #[test]
    fn all_together_are_bounded() {
        let mut seen = Seen::default();
        for sender in 0..SENDERS_MAX + 100 {
            assert!(seen.take(Millis(0), source(sender), &user("s"), "1"));
        }
        assert_eq!((seen.len(), seen.senders()), (SENDERS_MAX, SENDERS_MAX));
        assert!(!seen.take(Millis(0), source(100), &user("s"), "1"));
        assert!(seen.take(Millis(0), source(99), &user("s"), "1"), "the first one was forgotten");
        for n in 0..SEEN_MAX + 100 {
            assert!(seen.take(Millis(1), source(n % 50 + 5_000), &user("s"), &format!("m{n}")));
        }
        assert_eq!(seen.len(), SEEN_MAX);
        assert!(seen.senders() <= SENDERS_MAX);
        seen.take(Millis(KEPT_MS + 1), IP, &user("s"), "1");
        assert_eq!((seen.len(), seen.senders(), seen.sources.len()), (1, 1, 1));
    }

    #[test]
    fn a_new_sender_takes_the_place_of_the_one_who_was_silent_longest() {
        let mut seen = Seen::default();
        for sender in 0..SENDERS_MAX {
            seen.take(Millis(0), source(sender), &user("s"), "first");
        }
        // The first one has more to lose than any other, and goes on.
        for n in 0..1_000 {
            seen.take(Millis(1), source(0), &user("s"), &n.to_string());
        }
        for sender in 0..SENDERS_MAX / 2 {
            assert!(seen.take(Millis(2), source(SENDERS_MAX + sender), &user("s"), "1"));
        }
        assert!(!seen.take(Millis(2), source(0), &user("s"), "first"));
        assert!((0..1_000).all(|n| !seen.take(Millis(2), source(0), &user("s"), &n.to_string())));
        assert!(!seen.take(Millis(2), source(SENDERS_MAX - 1), &user("s"), "first"));
        assert!(seen.take(Millis(2), source(1), &user("s"), "first"));
        assert_eq!(seen.senders(), SENDERS_MAX);
    }

    #[test]
    fn names_that_one_host_invents_cost_nobody_else_his_place() {
        let mut seen = Seen::default();
        assert!(seen.take(Millis(0), source(1), &user("b"), "first"));
        for n in 0..SENDERS_MAX + SEEN_MAX {
            assert!(seen.take(Millis(1), IP, &user(&format!("s{n}")), "1"));
        }
        assert_eq!(seen.senders(), SENDERS_OF_SOURCE_MAX + 1);
        // Nor do many messages of a few.
        for n in 0..SEEN_MAX {
            assert!(seen.take(Millis(1), IP, &user(&format!("s{}", n % 20)), &format!("m{n}")));
        }
        assert!(seen.len() <= OF_SOURCE_MAX + 1, "{}", seen.len());
        assert!(!seen.take(Millis(1), source(1), &user("b"), "first"));
    }
}
