//! LOOKING_FOR and STATUS.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{
    ANSWER_RETENTION, Exchange, ExchangeEffects, FailedRequest, RECEIVED_SEARCHES_MAX, RECIPIENTS_MAX, RegisteredPeer,
    RequestResult, SEARCHES_MAX, TrackedDeal, TrackedDealState, UNANSWERED_MAX,
};
use crate::model::{Cents, Millis, Name};
use crate::trade::deal::{Deal, DealContext, DealInput, Party, SearchRecipient};
use crate::trade::journal::Journal;
use crate::trade::wire::{DATAGRAM_MAX, ErrorCode, RequestError, Response};

/// A peer that was silent for longer is not asked.
const RECIPIENT_SEEN_WITHIN: std::time::Duration = std::time::Duration::from_secs(86_400);

/// No entry of DEALS is shorter than this many bytes, which bounds how many can fit.
const DEAL_STATUS_MIN: usize = 60;

/// The peers that a search is sent to, each with whether the offer window waits for it.
type Recipients<J> = Vec<(Arc<RegisteredPeer<J>>, bool)>;

impl<J: Journal> Exchange<J> {
    pub(super) fn begin_search(
        &self,
        now: Millis,
        buyer: &RegisteredPeer<J>,
        rq: u64,
        item_name: &Arc<str>,
        description: &Arc<str>,
        max_price: Cents,
    ) -> RequestResult<J> {
        // The deal is locked from before it can be found until its rows have been appended.
        let id = self.allocate_ids(1);
        let deal = Deal::placeholder(id, buyer.name.clone(), rq);
        let state = TrackedDealState { deal, mids: Vec::new(), is_removed: false, last_commit: J::Commit::default() };
        let tracked = Arc::new(TrackedDeal { holder_count: AtomicUsize::new(1), state: Mutex::new(state) });
        let mut state = tracked.state.lock();
        self.deals.write().insert(id, tracked.clone());
        match self.claim_search(buyer, id, rq) {
            Ok(None) => {}
            other => {
                state.is_removed = true;
                drop(state);
                self.deals.write().remove(&id);
                return match other? {
                    Some(before) => self.repeat_search(before, rq, item_name, description, max_price),
                    None => unreachable!("a search that began goes on"),
                };
            }
        }
        let (recipients, first_rq) = self.claim_recipients(now, buyer, &tracked, id);
        let peers = recipients.len() as u64;
        let sellers = recipients.iter().map(|(seller, waited_for)| SearchRecipient {
            name: seller.name.clone(),
            waited_for: *waited_for,
            acknowledges: seller.acknowledges.load(Ordering::Relaxed),
        });
        let sellers = sellers.collect();
        let mut next_mid = || self.next_mid();
        let mut context =
            DealContext { now, windows: &self.rules.windows, fee: self.rules.fee, next_mid: &mut next_mid };
        let (deal, deal_effects) = Deal::open(
            id,
            buyer.name.clone(),
            rq,
            first_rq,
            item_name.clone(),
            description.clone(),
            max_price,
            sellers,
            &mut context,
        );
        state.deal = deal;
        // The deal may end with its first step.
        self.open_deals.lock().insert(id);
        let mut effects = self.record_effects(now, &mut state, deal_effects, None);
        for (index, (seller, _)) in recipients.iter().enumerate() {
            if seller.state.lock().is_leaving
                && let Ok(more) = self.step_deal(now, &mut state, DealInput::Departed(Party::Seller(index)))
            {
                effects.absorb::<J>(more);
            }
        }
        drop(state);
        self.release_deals(&mut effects);
        effects.response = Some(Response::Searching { rq, peers });
        Ok(effects)
    }

    /// Links the buyer to its new deal, or returns the deal that its number refers to already.
    fn claim_search(&self, buyer: &RegisteredPeer<J>, id: u64, rq: u64) -> Result<Option<u64>, FailedRequest<J>> {
        let mut peer = buyer.state.lock();
        if let Some(before) = peer.deal_by_rq.get(&rq) {
            return Ok(Some(*before));
        }
        let refusal = if peer.is_leaving {
            RequestError::new(ErrorCode::WrongState, "this peer is about to leave")
        } else if peer.open_searches >= SEARCHES_MAX {
            RequestError::new(ErrorCode::Busy, format!("{SEARCHES_MAX} searches are open already"))
        } else {
            peer.link(id, rq, Party::Buyer);
            buyer.own_deals.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        };
        Err((refusal, peer.last_commit.clone()))
    }

    /// Links the recipients of a search to the deal. Returns them and the number of the first; the others follow.
    fn claim_recipients(
        &self,
        now: Millis,
        buyer: &RegisteredPeer<J>,
        tracked: &TrackedDeal<J>,
        id: u64,
    ) -> (Recipients<J>, u64) {
        let mut recipients = Vec::new();
        for seller in self.select_recipients(now, &buyer.name, id) {
            let waited_for = seller.unanswered_searches.load(Ordering::Relaxed) < UNANSWERED_MAX;
            let mut peer = seller.state.lock();
            if peer.is_leaving || peer.row.displaced || peer.open_received >= RECEIVED_SEARCHES_MAX {
                continue;
            }
            // The recipient's number depends on how many are asked, so it is linked below.
            *peer.open_count(Party::Seller(0)) += 1;
            drop(peer);
            recipients.push((seller, waited_for));
        }
        let first_rq = self.allocate_ids(recipients.len() as u64);
        // Set before any of the recipients can leave and release the deal.
        tracked.holder_count.store(1 + recipients.len(), Ordering::Relaxed);
        for (index, (seller, _)) in recipients.iter().enumerate() {
            let mut peer = seller.state.lock();
            peer.open_received -= 1;
            peer.link(id, first_rq + index as u64, Party::Seller(index));
        }
        (recipients, first_rq)
    }

    fn repeat_search(
        &self,
        before: u64,
        rq: u64,
        item_name: &str,
        description: &str,
        max_price: Cents,
    ) -> RequestResult<J> {
        let unknown =
            || (RequestError::new(ErrorCode::UnknownDeal, "this search is over and forgotten"), J::Commit::default());
        let tracked = self.deal(before).ok_or_else(unknown)?;
        let state = tracked.state.lock();
        let Deal { item_name: item, description: text, max_price: max, .. } = &state.deal;
        if (&**item, &**text, *max) != (item_name, description, max_price) {
            return Err((RequestError::new(ErrorCode::BadRequest, "rq already used"), state.last_commit.clone()));
        }
        let response = Response::Searching { rq, peers: state.deal.sellers().len() as u64 };
        Ok(ExchangeEffects::answer(state.last_commit.clone(), response))
    }

    /// The recipients of a search in the order of their registration: all but the buyer, those silent for a day and, as
    /// `party_peer` requires, those registered after the deal got its number. If too many, the most recently active.
    fn select_recipients(&self, now: Millis, buyer: &Name, deal: u64) -> Vec<Arc<RegisteredPeer<J>>> {
        let peers = self.peers.read();
        let is_recipient = |peer: &RegisteredPeer<J>| {
            peer.name != *buyer && peer.registration_id < deal && peer.last_seen_at().until(now) < RECIPIENT_SEEN_WITHIN
        };
        let others = peers.values().filter(|peer| is_recipient(peer));
        // The times are read once, since they change while others are compared.
        let mut heard: Vec<_> = others
            .map(|peer| (Reverse(peer.last_seen_at.load(Ordering::Relaxed)), peer.registration_id, peer.clone()))
            .collect();
        drop(peers);
        if heard.len() > RECIPIENTS_MAX {
            heard.select_nth_unstable_by_key(RECIPIENTS_MAX, |(last_seen_at, registration_id, _)| {
                (*last_seen_at, *registration_id)
            });
            heard.truncate(RECIPIENTS_MAX);
        }
        heard.sort_unstable_by_key(|(_, registration_id, _)| *registration_id);
        heard.into_iter().map(|(.., peer)| peer).collect()
    }

    pub(super) fn status(
        &self,
        now: Millis,
        peer: &RegisteredPeer<J>,
        rq: u64,
        rq_deal: Option<u64>,
    ) -> ExchangeEffects<J::Commit> {
        let (rq_by_deal, mut commit) = {
            let state = peer.state.lock();
            let rq_by_deal: Vec<(u64, u64)> = state.rq_by_deal.iter().rev().map(|(deal, rq)| (*deal, *rq)).collect();
            (rq_by_deal, state.last_commit.clone())
        };
        let mut deals = Vec::new();
        let mut more = false;
        for (id, own_rq) in rq_by_deal {
            if rq_deal.is_some_and(|wanted| wanted != own_rq) {
                continue;
            }
            if deals.len() > DATAGRAM_MAX / DEAL_STATUS_MIN {
                more = true;
                break;
            }
            let Some(tracked) = self.deal(id) else { continue };
            let state = tracked.state.lock();
            let recent = state.deal.ended_at().is_none_or(|at| at.until(now) < ANSWER_RETENTION);
            let party = state.deal.party_of(own_rq).filter(|_| recent && !state.is_removed);
            commit = J::latest(commit, state.last_commit.clone());
            deals.extend(party.and_then(|party| state.deal.status(party, now)));
        }
        ExchangeEffects::answer(commit, Response::Deals { rq, deals, more })
    }

    /// The IP addresses of both sides of a settlement.
    pub(super) fn addresses_of(&self, deal: &Deal, seller: Party) -> Option<[IpAddr; 2]> {
        let ip = |party| Some(self.party_peer(deal, party)?.state.lock().row.addr.ip());
        Some([ip(Party::Buyer)?, ip(seller)?])
    }
}
