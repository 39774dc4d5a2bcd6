//! LOOKING_FOR and STATUS.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{
    ANSWERS_KEPT, ASKED_MAX, DealCell, DealState, Exchange, Outcome, PeerCell, Refused, SEARCHES_MAX, SIDES_MAX,
    UNANSWERED_MAX,
};
use crate::model::{Cents, Millis, Name};
use crate::trade::deal::{Asked, Deal, Party, Step};
use crate::trade::journal::Journal;
use crate::trade::wire::{Code, DATAGRAM_MAX, Refusal, Reply};

/// Who was not heard for this long is not asked.
const ASKED_WITHIN: std::time::Duration = std::time::Duration::from_secs(86_400);

/// No entry of DEALS is shorter than this many bytes: more than fit need not be looked at.
const DEAL_STATUS_MIN: usize = 60;

impl<J: Journal> Exchange<J> {
    pub(super) fn look_for(
        &self,
        now: Millis,
        buyer: &PeerCell<J>,
        rq: u64,
        item_name: &Arc<str>,
        description: &Arc<str>,
        max_price: Cents,
    ) -> Result<Outcome<J::Receipt>, Refused<J>> {
        // The deal is locked from before anyone can find it until its rows are handed over.
        let id = self.number(1);
        let placeholder = Deal::placeholder(id, buyer.name.clone(), rq);
        let state = DealState { deal: placeholder, mids: Vec::new(), forgotten: false, last: J::Receipt::default() };
        let cell = Arc::new(DealCell { holders: AtomicUsize::new(1), state: Mutex::new(state) });
        let mut state = cell.state.lock();
        self.deals.write().insert(id, cell.clone());
        let begun = {
            let mut peer = buyer.state.lock();
            let last = peer.last.clone();
            match peer.rqs.get(&rq) {
                Some(before) => Ok(Some(*before)),
                None if peer.leaving => Err((Refusal::new(Code::WrongState, "this peer is about to leave"), last)),
                None if peer.open_searches >= SEARCHES_MAX => {
                    Err((Refusal::new(Code::Busy, format!("{SEARCHES_MAX} searches are open already")), last))
                }
                None => {
                    peer.link(id, rq, Party::Buyer);
                    buyer.own_deals.fetch_add(1, Ordering::Relaxed);
                    Ok(None)
                }
            }
        };
        if !matches!(begun, Ok(None)) {
            state.forgotten = true;
            drop(state);
            self.deals.write().remove(&id);
            return match begun? {
                Some(before) => self.look_for_again(before, rq, item_name, description, max_price),
                None => unreachable!("a search that began goes on"),
            };
        }
        let mut asked = Vec::new();
        for seller in self.most_recently_heard(now, &buyer.name, id) {
            let waited_for = seller.unanswered.load(Ordering::Relaxed) < UNANSWERED_MAX;
            let mut peer = seller.state.lock();
            if peer.leaving || peer.row.displaced || peer.open_sides >= SIDES_MAX {
                continue;
            }
            // The number is known once it is known how many are asked; the link waits for it.
            *peer.open_count(Party::Seller(0)) += 1;
            drop(peer);
            asked.push((seller, waited_for));
        }
        let first_rq = self.number(asked.len() as u64);
        // Before any of them can leave and let go of it.
        cell.holders.store(1 + asked.len(), Ordering::Relaxed);
        for (place, (seller, _)) in asked.iter().enumerate() {
            let mut peer = seller.state.lock();
            peer.open_sides -= 1;
            peer.link(id, first_rq + place as u64, Party::Seller(place));
        }
        let peers = asked.len();
        let sellers = asked.iter().map(|(seller, waited_for)| Asked {
            name: seller.name.clone(),
            waited_for: *waited_for,
            acknowledges: seller.acknowledges.load(Ordering::Relaxed),
        });
        let sellers = sellers.collect();
        let mut next_mid = || self.next_mid();
        let mut step = Step { now, windows: &self.rules.windows, fee: self.rules.fee, next_mid: &mut next_mid };
        let (deal, effects) = Deal::open(
            id,
            buyer.name.clone(),
            rq,
            first_rq,
            item_name.clone(),
            description.clone(),
            max_price,
            sellers,
            &mut step,
        );
        state.deal = deal;
        // It may end with its first step.
        self.open.lock().insert(id);
        let mut outcome = self.commit(now, &mut state, effects, None);
        // A seller that left between being chosen and being linked has not seen this deal among its own.
        for (place, (seller, _)) in asked.iter().enumerate() {
            if seller.state.lock().leaving
                && let Ok(step) = self.step(now, &mut state, crate::trade::deal::Event::Gone(Party::Seller(place)))
            {
                outcome.absorb::<J>(step);
            }
        }
        drop(state);
        self.let_go(&mut outcome);
        outcome.answer = Some(Reply::Searching { rq, peers });
        Ok(outcome)
    }

    fn look_for_again(
        &self,
        before: u64,
        rq: u64,
        item_name: &str,
        description: &str,
        max_price: Cents,
    ) -> Result<Outcome<J::Receipt>, Refused<J>> {
        let unknown = || (Refusal::new(Code::UnknownDeal, "this search is over and forgotten"), J::Receipt::default());
        let cell = self.deal(before).ok_or_else(unknown)?;
        let state = cell.state.lock();
        let Deal { item_name: item, description: text, max_price: max, .. } = &state.deal;
        if (&**item, &**text, *max) != (item_name, description, max_price) {
            return Err((Refusal::new(Code::BadRequest, "rq already used"), state.last.clone()));
        }
        let answer = Some(Reply::Searching { rq, peers: state.deal.sellers().len() });
        Ok(Outcome { receipt: state.last.clone(), answer, ..Outcome::default() })
    }

    /// Whom a search asks: everyone but the buyer, and of very many those heard last; by age of their
    /// registration. Who registered after the deal got its number is not in it: see `peer_in`.
    /// Who was not heard for a day is asked no more until it is.
    fn most_recently_heard(&self, now: Millis, buyer: &Name, deal: u64) -> Vec<Arc<PeerCell<J>>> {
        let peers = self.peers.read();
        let is_asked =
            |peer: &PeerCell<J>| peer.name != *buyer && peer.since < deal && peer.heard_at().until(now) < ASKED_WITHIN;
        let others = peers.values().filter(|peer| is_asked(peer));
        // The times are read once: they move while others sort by them.
        let mut heard: Vec<_> =
            others.map(|peer| (Reverse(peer.heard_at.load(Ordering::Relaxed)), peer.since, peer.clone())).collect();
        drop(peers);
        if heard.len() > ASKED_MAX {
            heard.select_nth_unstable_by_key(ASKED_MAX, |(heard_at, since, _)| (*heard_at, *since));
            heard.truncate(ASKED_MAX);
        }
        heard.sort_unstable_by_key(|(_, since, _)| *since);
        heard.into_iter().map(|(.., peer)| peer).collect()
    }

    pub(super) fn status(&self, now: Millis, peer: &PeerCell<J>, rq: u64, rq_deal: Option<u64>) -> Outcome<J::Receipt> {
        let (links, mut receipt) = {
            let state = peer.state.lock();
            let links: Vec<(u64, u64)> = state.links.iter().rev().map(|(deal, rq)| (*deal, *rq)).collect();
            (links, state.last.clone())
        };
        let mut deals = Vec::new();
        let mut more = false;
        for (id, own_rq) in links {
            if rq_deal.is_some_and(|wanted| wanted != own_rq) {
                continue;
            }
            if deals.len() > DATAGRAM_MAX / DEAL_STATUS_MIN {
                more = true;
                break;
            }
            let Some(cell) = self.deal(id) else { continue };
            let state = cell.state.lock();
            let recent = state.deal.ended_at().is_none_or(|at| at.until(now) < ANSWERS_KEPT);
            let party = state.deal.party_of(own_rq).filter(|_| recent && !state.forgotten);
            receipt = J::later(receipt, state.last.clone());
            deals.extend(party.and_then(|party| state.deal.status(party, now)));
        }
        Outcome { receipt, answer: Some(Reply::Deals { rq, deals, more }), ..Outcome::default() }
    }

    /// Where the two who settle a deal are.
    pub(super) fn addresses_of(&self, deal: &Deal, seller: Party) -> Option<[IpAddr; 2]> {
        let ip = |party| Some(self.peer_in(deal, party)?.state.lock().row.addr.ip());
        Some([ip(Party::Buyer)?, ip(seller)?])
    }
}
