//! Deduplication of received messages.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use crate::lan::wire::UserId;
use crate::model::Millis;

const RETENTION_MS: u64 = 3_600_000;
pub(super) const MESSAGES_PER_SENDER_MAX: usize = 10_000;
const MESSAGES_PER_SOURCE_MAX: usize = 5 * MESSAGES_PER_SENDER_MAX;
pub(super) const MESSAGES_MAX: usize = 200_000;
/// A host can invent any number of names.
const SENDERS_PER_SOURCE_MAX: usize = 1_000;
pub(super) const SENDERS_MAX: usize = 10_000;

struct SeenMessage {
    at: Millis,
    sender: u64,
    message: u64,
}

struct SeenSender {
    source: Ipv4Addr,
    last_seq: u64,
    /// The sequence numbers of its messages, oldest first.
    seqs: VecDeque<u64>,
}

#[derive(Default)]
struct SeenSource {
    messages: usize,
    /// Its senders with the sequence numbers of their newest messages, oldest first.
    senders: BTreeSet<(u64, u64)>,
}

/// The messages of the last hour, as keyed hashes, so that nobody can construct collisions. Messages are numbered in
/// the order of arrival. If there is no room for another sender, the one that was silent longest is evicted, first
/// among those of the same source.
#[derive(Default)]
pub(super) struct SeenMessages {
    hasher: RandomState,
    next_seq: u64,
    by_age: BTreeMap<u64, SeenMessage>,
    messages: HashSet<u64>,
    senders: HashMap<u64, SeenSender>,
    /// The senders of all sources, ordered as in [`SeenSource::senders`].
    senders_by_age: BTreeSet<(u64, u64)>,
    sources: HashMap<Ipv4Addr, SeenSource>,
}

impl SeenMessages {
    fn hashes(&self, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> (u64, u64) {
        (self.hasher.hash_one((ip, sender)), self.hasher.hash_one((ip, sender, message_id)))
    }

    /// Returns whether the message is new.
    pub fn insert(&mut self, now: Millis, ip: Ipv4Addr, sender: &UserId, message_id: &str) -> bool {
        while let Some((seq, _)) =
            self.by_age.first_key_value().filter(|(_, oldest)| oldest.at.plus_ms(RETENTION_MS) <= now)
        {
            self.remove_seq(*seq);
        }
        let (sender, message) = self.hashes(ip, sender, message_id);
        if self.messages.contains(&message) {
            return false;
        }
        self.make_room(ip, sender);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.by_age.insert(seq, SeenMessage { at: now, sender, message });
        self.messages.insert(message);
        let new_sender = || SeenSender { source: ip, last_seq: seq, seqs: VecDeque::new() };
        let of_sender = self.senders.entry(sender).or_insert_with(new_sender);
        let source = self.sources.entry(ip).or_default();
        for index in [&mut self.senders_by_age, &mut source.senders] {
            index.remove(&(of_sender.last_seq, sender));
            index.insert((seq, sender));
        }
        of_sender.last_seq = seq;
        of_sender.seqs.push_back(seq);
        source.messages += 1;
        true
    }

    fn make_room(&mut self, ip: Ipv4Addr, sender: u64) {
        if let Some(entry) = self.senders.get(&sender)
            && entry.seqs.len() >= MESSAGES_PER_SENDER_MAX
            && let Some(oldest) = entry.seqs.front().copied()
        {
            self.remove_seq(oldest);
        }
        let is_new = !self.senders.contains_key(&sender);
        // One sender alone cannot fill its source, so there is always another one to evict.
        while let Some(idle) = self.sources.get(&ip).and_then(|source| {
            let is_full =
                source.messages >= MESSAGES_PER_SOURCE_MAX || is_new && source.senders.len() >= SENDERS_PER_SOURCE_MAX;
            source.senders.iter().map(|(_, other)| *other).find(|other| is_full && *other != sender)
        }) {
            self.evict_sender(idle);
        }
        if is_new
            && self.senders.len() >= SENDERS_MAX
            && let Some((_, idle)) = self.senders_by_age.first().copied()
        {
            self.evict_sender(idle);
        }
        if self.by_age.len() >= MESSAGES_MAX
            && let Some(oldest) = self.by_age.first_key_value().map(|(seq, _)| *seq)
        {
            self.remove_seq(oldest);
        }
    }

    /// Forgets a message that could not be stored, so that its next copy is accepted.
    pub fn remove(&mut self, ip: Ipv4Addr, sender: &UserId, message_id: &str) {
        let (sender, message) = self.hashes(ip, sender, message_id);
        let seqs = self.senders.get(&sender).map(|sender| &sender.seqs);
        // Searched from the newest on: the message has only just arrived.
        let seq = seqs.and_then(|seqs| {
            seqs.iter().rev().copied().find(|seq| self.by_age.get(seq).is_some_and(|seen| seen.message == message))
        });
        if let Some(seq) = seq {
            self.remove_seq(seq);
        }
    }

    fn evict_sender(&mut self, sender: u64) {
        let seqs = self.senders.get(&sender).map(|sender| sender.seqs.clone()).unwrap_or_default();
        seqs.into_iter().for_each(|seq| self.remove_seq(seq));
    }

    fn remove_seq(&mut self, seq: u64) {
        let Some(removed) = self.by_age.remove(&seq) else { return };
        self.messages.remove(&removed.message);
        let Some(sender) = self.senders.get_mut(&removed.sender) else { return };
        if let Ok(at) = sender.seqs.binary_search(&seq) {
            sender.seqs.remove(at);
        }
        let (ip, age_key, is_last) = (sender.source, (sender.last_seq, removed.sender), sender.seqs.is_empty());
        if is_last {
            self.senders.remove(&removed.sender);
            self.senders_by_age.remove(&age_key);
        }
        let Some(source) = self.sources.get_mut(&ip) else { return };
        source.messages -= 1;
        if is_last {
            source.senders.remove(&age_key);
        }
        if source.messages == 0 {
            self.sources.remove(&ip);
        }
    }

    pub fn len(&self) -> usize {
        debug_assert_eq!(self.by_age.len(), self.messages.len());
        debug_assert!(self.sources.len() <= self.senders.len());
        self.by_age.len()
    }

    pub fn sender_count(&self) -> usize {
        debug_assert_eq!(self.senders.len(), self.senders_by_age.len());
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
        let mut seen = SeenMessages::default();
        let now = Millis(1_000);
        assert!(seen.insert(now, IP, &user("a"), "1"));
        assert!(!seen.insert(now.plus_ms(RETENTION_MS - 1), IP, &user("a"), "1"));
        // Another source, sender or id is another message.
        assert!(seen.insert(now, Ipv4Addr::LOCALHOST, &user("a"), "1"));
        assert!(seen.insert(now, IP, &user("b"), "1"));
        assert!(seen.insert(now, IP, &user("a"), "2"));
        assert!(seen.insert(now.plus_ms(RETENTION_MS), IP, &user("a"), "1"));
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn what_was_not_kept_is_taken_again() {
        let mut seen = SeenMessages::default();
        for id in ["1", "2", "3"] {
            assert!(seen.insert(Millis(1), IP, &user("a"), id));
        }
        seen.remove(IP, &user("a"), "2");
        seen.remove(IP, &user("b"), "2");
        assert!(!seen.insert(Millis(1), IP, &user("a"), "1") && !seen.insert(Millis(1), IP, &user("a"), "3"));
        assert!(seen.insert(Millis(1), IP, &user("a"), "2"));
        seen.remove(IP, &user("a"), "1");
        seen.remove(IP, &user("a"), "2");
        seen.remove(IP, &user("a"), "3");
        assert_eq!((seen.len(), seen.sender_count()), (0, 0));
    }

    #[test]
    fn a_sender_has_ten_thousand_and_the_oldest_leave() {
        let mut seen = SeenMessages::default();
        assert!(seen.insert(Millis(0), IP, &user("b"), "first"));
        for n in 0..MESSAGES_PER_SENDER_MAX + 5 {
            assert!(seen.insert(Millis(n as u64), IP, &user("a"), &n.to_string()));
        }
        assert_eq!(seen.len(), MESSAGES_PER_SENDER_MAX + 1);
        assert!(!seen.insert(Millis(20_000), IP, &user("a"), "5"));
        assert!(seen.insert(Millis(20_000), IP, &user("a"), "4"));
        // This evicts no messages of other senders.
        assert!(!seen.insert(Millis(20_000), IP, &user("b"), "first"));
    }

    fn source(n: usize) -> Ipv4Addr {
        Ipv4Addr::from(0x0b00_0000 + n as u32)
    }

    #[test]
    fn all_together_are_bounded() {
        let mut seen = SeenMessages::default();
        for sender in 0..SENDERS_MAX + 100 {
            assert!(seen.insert(Millis(0), source(sender), &user("s"), "1"));
        }
        assert_eq!((seen.len(), seen.sender_count()), (SENDERS_MAX, SENDERS_MAX));
        assert!(!seen.insert(Millis(0), source(100), &user("s"), "1"));
        assert!(seen.insert(Millis(0), source(99), &user("s"), "1"), "the first one was forgotten");
        for n in 0..MESSAGES_MAX + 100 {
            assert!(seen.insert(Millis(1), source(n % 50 + 5_000), &user("s"), &format!("m{n}")));
        }
        assert_eq!(seen.len(), MESSAGES_MAX);
        assert!(seen.sender_count() <= SENDERS_MAX);
        seen.insert(Millis(RETENTION_MS + 1), IP, &user("s"), "1");
        assert_eq!((seen.len(), seen.sender_count(), seen.sources.len()), (1, 1, 1));
    }

    #[test]
    fn a_new_sender_takes_the_place_of_the_one_who_was_silent_longest() {
        let mut seen = SeenMessages::default();
        for sender in 0..SENDERS_MAX {
            seen.insert(Millis(0), source(sender), &user("s"), "first");
        }
        // The first one has the most messages, and stays active.
        for n in 0..1_000 {
            seen.insert(Millis(1), source(0), &user("s"), &n.to_string());
        }
        for sender in 0..SENDERS_MAX / 2 {
            assert!(seen.insert(Millis(2), source(SENDERS_MAX + sender), &user("s"), "1"));
        }
        assert!(!seen.insert(Millis(2), source(0), &user("s"), "first"));
        assert!((0..1_000).all(|n| !seen.insert(Millis(2), source(0), &user("s"), &n.to_string())));
        assert!(!seen.insert(Millis(2), source(SENDERS_MAX - 1), &user("s"), "first"));
        assert!(seen.insert(Millis(2), source(1), &user("s"), "first"));
        assert_eq!(seen.sender_count(), SENDERS_MAX);
    }

    #[test]
    fn names_that_one_host_invents_cost_nobody_else_his_place() {
        let mut seen = SeenMessages::default();
        assert!(seen.insert(Millis(0), source(1), &user("b"), "first"));
        for n in 0..SENDERS_MAX + MESSAGES_MAX {
            assert!(seen.insert(Millis(1), IP, &user(&format!("s{n}")), "1"));
        }
        assert_eq!(seen.sender_count(), SENDERS_PER_SOURCE_MAX + 1);
        // Nor do many messages of a few senders.
        for n in 0..MESSAGES_MAX {
            assert!(seen.insert(Millis(1), IP, &user(&format!("s{}", n % 20)), &format!("m{n}")));
        }
        assert!(seen.len() <= MESSAGES_PER_SOURCE_MAX + 1, "{}", seen.len());
        assert!(!seen.insert(Millis(1), source(1), &user("b"), "first"));
    }
}
