use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{RequestOrigin, Transport};
use crate::model::{Millis, Name, Token};
use crate::trade::deal::{Deal, Party};
use crate::trade::journal::{ExchangeChange, Journal, LogRow, PeerRow};
use crate::trade::wire::{ErrorCode, RequestError};

pub(super) struct RegisteredPeer<J: Journal> {
    pub(super) name: Name,
    pub(super) registration_id: u64,
    pub(super) last_seen_at: AtomicU64,
    pub(super) last_seen_saved_at: AtomicU64,
    pub(super) unanswered_searches: AtomicU8,
    /// Like `acknowledges` it is copied from the row, to be read without the lock.
    pub(super) is_validated: AtomicBool,
    pub(super) acknowledges: AtomicBool,
    /// The open deals in which the peer buys or has offered.
    pub(super) own_deals: AtomicUsize,
    pub(super) state: Mutex<RegisteredPeerState<J>>,
}

pub(super) struct RegisteredPeerState<J: Journal> {
    pub(super) row: PeerRow,
    /// The peer has left or is about to. No new deal may begin with it, and its row is no longer written: a thread that
    /// found the peer before could write it again, perhaps over that of the name's next holder.
    pub(super) is_leaving: bool,
    /// The deal for each number that the peer may use in requests.
    pub(super) deal_by_rq: HashMap<u64, u64>,
    /// The peer's number in each of its deals, by the deal's id.
    pub(super) rq_by_deal: BTreeMap<u64, u64>,
    /// The deals in which the peer bought or offered, oldest first.
    pub(super) ended: VecDeque<u64>,
    /// Those in which it was merely asked. They are released first, so that other peers' searches do not displace its
    /// own deals.
    pub(super) ended_as_recipient: VecDeque<u64>,
    pub(super) open_searches: usize,
    pub(super) open_received: usize,
    pub(super) last_commit: J::Commit,
}

impl PeerRow {
    /// Whether a request comes from this peer: by its token, or by its source address.
    pub(super) fn proves(&self, token: Option<&Token>, origin: &RequestOrigin) -> Result<(), RequestError> {
        let RequestOrigin { source, transport, .. } = *origin;
        let reason = match token {
            Some(token) if self.token.matches(token) => return Ok(()),
            Some(_) => "token: this is not the token of that name",
            None if transport == Transport::Tcp => "token: needed on a connection",
            None if source == self.addr && !self.displaced => return Ok(()),
            None => "token: needed from an address that is not the peer's own",
        };
        Err(RequestError::new(ErrorCode::Forbidden, reason))
    }

    pub(super) fn log(&self, kind: &str, at: Millis, detail: String) -> ExchangeChange {
        ExchangeChange::Log(LogRow {
            at,
            kind: kind.to_owned(),
            peer: self.name.clone(),
            deal: None,
            rq: None,
            item_name: None,
            price: None,
            detail,
        })
    }
}

impl<J: Journal> RegisteredPeer<J> {
    pub(super) fn new(row: PeerRow, last_seen_at: Millis) -> RegisteredPeer<J> {
        RegisteredPeer {
            name: row.name.clone(),
            registration_id: row.registration_id,
            last_seen_at: AtomicU64::new(last_seen_at.0),
            last_seen_saved_at: AtomicU64::new(last_seen_at.0),
            unanswered_searches: AtomicU8::new(0),
            is_validated: AtomicBool::new(row.validation.is_validated),
            acknowledges: AtomicBool::new(row.validation.acknowledges),
            own_deals: AtomicUsize::new(0),
            state: Mutex::new(RegisteredPeerState {
                row,
                is_leaving: false,
                deal_by_rq: HashMap::new(),
                rq_by_deal: BTreeMap::new(),
                ended: VecDeque::new(),
                ended_as_recipient: VecDeque::new(),
                open_searches: 0,
                open_received: 0,
                last_commit: J::Commit::default(),
            }),
        }
    }

    pub(super) fn mark_seen(&self, now: Millis) {
        self.last_seen_at.fetch_max(now.0, Ordering::Relaxed);
    }

    pub(super) fn last_seen_at(&self) -> Millis {
        Millis(self.last_seen_at.load(Ordering::Relaxed))
    }

    pub(super) fn link(&self, state: &mut RegisteredPeerState<J>, deal: &Deal, party: Party) {
        state.link(deal.id, deal.rq_of(party), party);
        if deal.takes_part(party) {
            self.own_deals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the ended deals that are released to stay within `max`.
    pub(super) fn end(&self, state: &mut RegisteredPeerState<J>, deal: &Deal, party: Party, max: usize) -> Vec<u64> {
        if deal.takes_part(party) && state.rq_by_deal.contains_key(&deal.id) {
            self.own_deals.fetch_sub(1, Ordering::Relaxed);
        }
        state.end(deal, party, max)
    }
}

impl<J: Journal> RegisteredPeerState<J> {
    pub(super) fn link(&mut self, deal: u64, rq: u64, party: Party) {
        self.deal_by_rq.insert(rq, deal);
        self.rq_by_deal.insert(deal, rq);
        *self.open_count(party) += 1;
    }

    pub(super) fn end(&mut self, deal: &Deal, party: Party, max: usize) -> Vec<u64> {
        if !self.rq_by_deal.contains_key(&deal.id) {
            return Vec::new();
        }
        *self.open_count(party) -= 1;
        let ended = if deal.takes_part(party) { &mut self.ended } else { &mut self.ended_as_recipient };
        ended.push_back(deal.id);
        let mut released_deals = Vec::new();
        while self.ended.len() + self.ended_as_recipient.len() > max {
            let Some(oldest) = self.ended_as_recipient.pop_front().or_else(|| self.ended.pop_front()) else { break };
            self.free_rq(oldest);
            self.rq_by_deal.remove(&oldest);
            released_deals.push(oldest);
        }
        released_deals
    }

    pub(super) fn unlink(&mut self, deal: u64) {
        self.free_rq(deal);
        self.rq_by_deal.remove(&deal);
        self.ended.retain(|ended| *ended != deal);
        self.ended_as_recipient.retain(|ended| *ended != deal);
    }

    /// Makes the peer's number for the deal available again.
    pub(super) fn free_rq(&mut self, deal: u64) {
        if self.owns_rq(deal) {
            self.deal_by_rq.remove(&self.rq_by_deal[&deal]);
        }
    }

    pub(super) fn owns_rq(&self, deal: u64) -> bool {
        self.rq_by_deal.get(&deal).is_some_and(|rq| self.deal_by_rq.get(rq) == Some(&deal))
    }

    pub(super) fn open_count(&mut self, party: Party) -> &mut usize {
        match party {
            Party::Buyer => &mut self.open_searches,
            Party::Seller(_) => &mut self.open_received,
        }
    }
}
