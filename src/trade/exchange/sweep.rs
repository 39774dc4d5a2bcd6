//! The periodic removal of what has expired: names of absent peers, ended deals and old departures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ANSWER_RETENTION, Exchange, ExchangeEffects, RegisteredPeer, RegisteredPeerState};
use crate::model::Millis;
use crate::trade::journal::{ExchangeChange, Journal};

/// A peer that is silent for this long loses its name, unless it has an open deal.
const NAME_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// A name whose address was never validated is kept for this long.
const UNVALIDATED_RETENTION: Duration = Duration::from_secs(600);
/// A peer's last request is stored at most this often.
const LAST_SEEN_SAVE_INTERVAL: Duration = Duration::from_secs(600);

impl<J: Journal> RegisteredPeer<J> {
    /// Whether the peer's name may be given to another.
    pub(super) fn has_lapsed(&self, now: Millis, state: &RegisteredPeerState<J>) -> bool {
        let silent_for = self.last_seen_at().until(now);
        let idle = self.own_deals.load(Ordering::Relaxed) == 0;
        silent_for >= UNVALIDATED_RETENTION && !state.row.validation.was_validated
            || silent_for >= NAME_RETENTION && idle
    }
}

impl<J: Journal> Exchange<J> {
    /// Removes what has expired, and stores when peers were last active.
    pub fn sweep(&self, now: Millis) -> ExchangeEffects<J::Commit> {
        loop {
            let due = {
                let mut ended = self.ended_deals.lock();
                ended.front().copied().filter(|(at, _)| at.until(now) >= ANSWER_RETENTION).inspect(|_| {
                    ended.pop_front();
                })
            };
            let Some((_, id)) = due else { break };
            self.remove_deal(id);
        }
        let forgotten_before = Millis(now.0.saturating_sub(ANSWER_RETENTION.as_millis() as u64));
        let mut departures = self.departures.lock();
        let before = departures.len();
        departures.retain(|_, departure| departure.at > forgotten_before);
        if departures.len() != before {
            self.journal.append(vec![ExchangeChange::DropDeparturesBefore(forgotten_before)]);
        }
        drop(departures);
        let effects = self.remove_lapsed_peers(now);
        self.save_last_seen(LAST_SEEN_SAVE_INTERVAL);
        effects
    }

    fn remove_lapsed_peers(&self, now: Millis) -> ExchangeEffects<J::Commit> {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        let mut effects = ExchangeEffects::default();
        for peer in peers {
            if self.mark_lapsed(now, &peer) {
                let departure = self.begin_departure(now, &peer);
                if departure.departing.is_some() {
                    // A payment is in progress; the name lapses when that is over.
                    self.cancel_departure(&peer.name, peer.registration_id);
                } else {
                    self.remove_peer(now, &peer, None);
                }
                effects.absorb::<J>(departure);
            }
        }
        effects
    }

    /// Whether a name lapses now. If so, no new deal begins with the peer.
    fn mark_lapsed(&self, now: Millis, peer: &Arc<RegisteredPeer<J>>) -> bool {
        if peer.last_seen_at().until(now) < UNVALIDATED_RETENTION {
            return false;
        }
        let mut state = peer.state.lock();
        let lapses = !state.is_leaving && peer.has_lapsed(now, &state);
        state.is_leaving |= lapses;
        lapses
    }

    pub fn save_last_seen(&self, at_least: Duration) {
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        let moved = peers.iter().filter_map(|peer| {
            let heard = peer.last_seen_at.load(Ordering::Relaxed);
            let saved = peer.last_seen_saved_at.load(Ordering::Relaxed);
            if heard == saved || Millis(saved).until(Millis(heard)) < at_least {
                return None;
            }
            peer.last_seen_saved_at.store(heard, Ordering::Relaxed);
            Some(ExchangeChange::PeerSeen { name: peer.name.clone(), at: Millis(heard) })
        });
        let changes: Vec<ExchangeChange> = moved.collect();
        if !changes.is_empty() {
            self.journal.append(changes);
        }
    }
}
