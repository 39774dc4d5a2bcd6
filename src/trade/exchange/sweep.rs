//! What has had its time is forgotten: names that nobody answers for, deals that ended, old farewells.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ANSWERS_KEPT, Exchange, Outcome, PeerCell, PeerState};
use crate::model::Millis;
use crate::trade::journal::{Change, Journal};

/// A peer silent for this long loses its name, if it has no open deal.
const NAME_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// A name that never proved that it hears is kept for this long after its last request.
const UNPROVED_KEPT: Duration = Duration::from_secs(600);
/// When a peer was heard is written down this often, not at every word.
const HEARD_SAVED_EVERY: Duration = Duration::from_secs(600);

impl<J: Journal> PeerCell<J> {
    /// Whether its name is free for another.
    pub(super) fn has_lapsed(&self, now: Millis, state: &PeerState<J>) -> bool {
        let silent_for = self.heard_at().until(now);
        let idle = self.own_deals.load(Ordering::Relaxed) == 0;
        silent_for >= UNPROVED_KEPT && !state.row.hearing.ever || silent_for >= NAME_KEPT && idle
    }
}

impl<J: Journal> Exchange<J> {
    /// Forgets what has had its time: deals that ended ten minutes ago, old farewells, names whose holders
    /// are gone. Writes down who was heard.
    pub fn sweep(&self, now: Millis) -> Outcome<J::Receipt> {
        loop {
            let due = {
                let mut ended = self.ended.lock();
                ended.front().copied().filter(|(at, _)| at.until(now) >= ANSWERS_KEPT).inspect(|_| {
                    ended.pop_front();
                })
            };
            let Some((_, id)) = due else { break };
            self.forget(id);
        }
        let forgotten_before = Millis(now.0.saturating_sub(ANSWERS_KEPT.as_millis() as u64));
        let mut farewells = self.farewells.lock();
        let before = farewells.len();
        farewells.retain(|_, farewell| farewell.at > forgotten_before);
        if farewells.len() != before {
            self.journal.append(vec![Change::DropFarewells(forgotten_before)]);
        }
        drop(farewells);
        let outcome = self.drop_names(now);
        self.save_heard(HEARD_SAVED_EVERY);
        outcome
    }

    fn drop_names(&self, now: Millis) -> Outcome<J::Receipt> {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        let mut outcome = Outcome::default();
        for peer in peers {
            if self.begins_to_lapse(now, &peer) {
                let departure = self.depart(now, &peer);
                if departure.leaving.is_some() {
                    // It is being paid: it lapses when that is over.
                    self.stay(&peer.name, peer.since);
                } else {
                    self.remove(now, &peer, None);
                }
                outcome.absorb::<J>(departure);
            }
        }
        outcome
    }

    /// Whether a name's time is over; nothing new begins with it then.
    fn begins_to_lapse(&self, now: Millis, peer: &Arc<PeerCell<J>>) -> bool {
        if peer.heard_at().until(now) < UNPROVED_KEPT {
            return false;
        }
        let mut state = peer.state.lock();
        let lapses = !state.leaving && peer.has_lapsed(now, &state);
        state.leaving |= lapses;
        lapses
    }

    /// Writes down when peers were heard, for those where it has moved by at least this much.
    pub fn save_heard(&self, at_least: Duration) {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        let moved = peers.iter().filter_map(|peer| {
            let heard = peer.heard_at.load(Ordering::Relaxed);
            let saved = peer.heard_saved_at.load(Ordering::Relaxed);
            if heard == saved || Millis(saved).until(Millis(heard)) < at_least {
                return None;
            }
            peer.heard_saved_at.store(heard, Ordering::Relaxed);
            Some(Change::Heard { name: peer.name.clone(), at: Millis(heard) })
        });
        let changes: Vec<Change> = moved.collect();
        if !changes.is_empty() {
            self.journal.append(changes);
        }
    }
}
