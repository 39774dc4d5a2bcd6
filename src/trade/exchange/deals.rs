use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use super::{
    ENDED_MAX, Exchange, ExchangeEffects, NotificationId, OutgoingNotification, RegisteredPeer, RegisteredPeerState,
    RequestResult, SETTLEMENTS_MAX, SETTLEMENTS_PER_ADDRESS_MAX, TrackedDealState,
};
use crate::model::{Cents, Millis, Name, Token};
use crate::trade::deal::{Deal, DealContext, DealEffects, DealInput, DealPosting, Party, PaymentProgress};
use crate::trade::journal::{ExchangeChange, Journal, LedgerRow, LogRow};
use crate::trade::wire::{Ack, DealRequest, ErrorCode, Goods, Notification, RequestError, encode};

/// Its `Debug` output hides the tokens.
#[derive(Debug, Clone)]
pub struct SettlementOrder {
    pub deal: u64,
    pub key: String,
    pub item_name: std::sync::Arc<str>,
    /// What the seller offers, in its own words.
    pub goods: Goods,
    pub price: Cents,
    pub fee: Cents,
    /// The progress when the order was made.
    pub payment: PaymentProgress,
    pub buyer: SettlementParty,
    pub seller: SettlementParty,
}

#[derive(Debug, Clone)]
pub struct SettlementParty {
    pub name: Name,
    pub rq: u64,
    /// INFORM_RES must contain it; none if the peer is no longer registered.
    pub token: Option<Token>,
    /// The settlement port.
    pub tcp: Option<SocketAddr>,
    /// The address of this host that the peer expects.
    pub from: Option<IpAddr>,
}

impl<J: Journal> RegisteredPeer<J> {
    /// `None` if the peer has no address.
    fn outgoing(&self, notification: Notification) -> Option<OutgoingNotification> {
        let RegisteredPeerState { row, .. } = &*self.state.lock();
        let is_validated = row.validation.is_validated;
        let (to, from) = (row.addr, row.local_ip);
        (!row.displaced).then_some(OutgoingNotification { to, from, is_validated, notification })
    }
}

impl<J: Journal> Exchange<J> {
    pub(super) fn handle_deal_request(
        &self,
        now: Millis,
        peer: &RegisteredPeer<J>,
        rq: u64,
        item_name: &str,
        request: &DealRequest,
    ) -> RequestResult<J> {
        let (id, last) = {
            let state = peer.state.lock();
            (state.deal_by_rq.get(&rq).copied(), state.last_commit.clone())
        };
        let unknown =
            || (RequestError::new(ErrorCode::UnknownDeal, "rq: no deal of this peer has this number"), last.clone());
        let id = id.ok_or_else(unknown)?;
        let tracked = self.deal(id).ok_or_else(unknown)?;
        let mut state = tracked.state.lock();
        let party = state.deal.party_of(rq).filter(|_| !state.is_removed).ok_or_else(unknown)?;
        let is_buy = matches!(request, DealRequest::Buy { .. });
        let begins_settlement = is_buy && party == Party::Buyer && state.deal.reserved_seller().is_some();
        if begins_settlement {
            self.acquire_slot(&state.deal).map_err(|error| (error, state.last_commit.clone()))?;
        }
        let took_part = state.deal.takes_part(party);
        let is_first_offer = matches!(request, DealRequest::Offer { .. }) && !took_part;
        // Counted before the step, which may end the deal and decrement the count.
        peer.own_deals.fetch_add(usize::from(is_first_offer), Ordering::Relaxed);
        let result = self.step_deal(now, &mut state, DealInput::Request { party, item_name, request });
        if is_first_offer && !state.deal.takes_part(party) {
            peer.own_deals.fetch_sub(1, Ordering::Relaxed);
        }
        let begins_settlement = begins_settlement && state.deal.settling().is_some();
        if !begins_settlement && is_buy && state.deal.settling().is_none() {
            self.release_slot(id);
        }
        let mut effects = result.map_err(|error| (error, state.last_commit.clone()))?;
        drop(state);
        self.release_deals(&mut effects);
        effects.settlement = begins_settlement.then_some(id);
        effects.response = Some(request.accepted(rq));
        Ok(effects)
    }

    /// Lets time pass; does nothing if nothing is due. Returns the next deadline in any case.
    pub fn tick(&self, now: Millis, deal: u64) -> ExchangeEffects<J::Commit> {
        let Ok(mut effects) = self.handle_deal_input(now, deal, DealInput::Tick) else {
            return ExchangeEffects::default();
        };
        if effects.deadlines.is_empty() {
            let deadline = self.deal(deal).and_then(|tracked| tracked.state.lock().deal.deadline());
            effects.deadlines.extend(deadline.map(|at| (at, deal)));
        }
        effects
    }

    /// Moves a settlement one step on, if the deal is at that step.
    pub fn advance_settlement(
        &self,
        now: Millis,
        deal: u64,
        input: DealInput,
    ) -> Result<ExchangeEffects<J::Commit>, RequestError> {
        let effects = self.handle_deal_input(now, deal, input)?;
        let is_over = self.deal(deal).is_none_or(|tracked| tracked.state.lock().deal.settling().is_none());
        if is_over {
            self.release_slot(deal);
        }
        Ok(effects)
    }

    fn handle_deal_input(
        &self,
        now: Millis,
        deal: u64,
        input: DealInput,
    ) -> Result<ExchangeEffects<J::Commit>, RequestError> {
        let unknown = || RequestError::new(ErrorCode::UnknownDeal, "no such deal");
        let tracked = self.deal(deal).ok_or_else(unknown)?;
        let mut state = tracked.state.lock();
        if state.is_removed {
            return Err(unknown());
        }
        let mut effects = self.step_deal(now, &mut state, input)?;
        drop(state);
        self.release_deals(&mut effects);
        Ok(effects)
    }

    pub(super) fn step_deal(
        &self,
        now: Millis,
        state: &mut TrackedDealState<J>,
        input: DealInput,
    ) -> Result<ExchangeEffects<J::Commit>, RequestError> {
        let mut next_mid = || self.next_mid();
        let mut context =
            DealContext { now, windows: &self.rules.windows, fee: self.rules.fee, next_mid: &mut next_mid };
        let deadline = state.deal.deadline();
        let deal_effects = state.deal.handle(input, &mut context)?;
        Ok(self.record_effects(now, state, deal_effects, deadline))
    }

    /// Appends a step to the journal and updates the state in memory. A timer is already set for `armed`.
    pub(super) fn record_effects(
        &self,
        now: Millis,
        state: &mut TrackedDealState<J>,
        mut deal_effects: DealEffects,
        armed: Option<Millis>,
    ) -> ExchangeEffects<J::Commit> {
        let deal = &state.deal;
        let changes = self.changes_of(now, deal, &mut deal_effects);
        let mut effects = ExchangeEffects::default();
        let mut sent = Vec::new();
        for (party, notification) in deal_effects.notify_once {
            sent.push((notification.mid(), party));
            effects.notify_once.extend(self.party_peer(deal, party).and_then(|peer| peer.outgoing(notification)));
        }
        for party in deal_effects.notified {
            if let Some(mid) = deal.outstanding_mid(party) {
                sent.push((mid, party));
                effects.notifications.push(NotificationId { deal: deal.id, party, mid });
            }
        }
        state.mids.extend(sent.iter().map(|(mid, _)| *mid));
        self.parties_by_mid.lock().extend(sent.into_iter().map(|(mid, party)| (mid, (deal.id, party))));
        for seller in deal_effects.unresponsive {
            if let Some(peer) = self.party_peer(deal, Party::Seller(seller)) {
                // It stops counting far above the limit that matters.
                let _ =
                    peer.unanswered_searches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
            }
        }
        self.changed_deals.record(deal.id);
        if deal_effects.ended {
            self.open_deals.lock().remove(&deal.id);
            self.ended_deals.lock().push_back((now, deal.id));
            for party in deal.parties() {
                if let Some(peer) = self.party_peer(deal, party) {
                    effects.released_deals.extend(peer.end(&mut peer.state.lock(), deal, party, ENDED_MAX));
                }
            }
        } else {
            effects.deadlines.extend(deal.deadline().filter(|at| armed != Some(*at)).map(|at| (at, deal.id)));
        }
        if !changes.is_empty() {
            state.last_commit = self.journal.append(changes);
        }
        effects.commit = state.last_commit.clone();
        effects
    }

    /// The rows that a step changes. The log's lines are taken out of `effects`.
    fn changes_of(&self, now: Millis, deal: &Deal, effects: &mut DealEffects) -> Vec<ExchangeChange> {
        let mut changes = Vec::with_capacity(effects.sellers_changed.len() + effects.log.len() + 2);
        if effects.deal_changed {
            changes.push(deal_change(deal));
        }
        let mut seen = HashSet::with_capacity(effects.sellers_changed.len());
        let sellers = effects.sellers_changed.iter().filter(|seller| seen.insert(**seller));
        changes.extend(sellers.map(|seller| seller_change(deal, *seller)));
        changes.extend(effects.posting.map(|DealPosting { operation, seller, price, fee }| {
            ExchangeChange::Ledger(LedgerRow {
                key: charge_key(deal.id),
                operation,
                buyer: deal.buyer.clone(),
                seller: deal.name_of(Party::Seller(seller)).clone(),
                price,
                fee: self.rules.fee_of(price, fee),
                at: now,
            })
        }));
        changes.extend(std::mem::take(&mut effects.log).into_iter().map(|line| {
            ExchangeChange::Log(LogRow {
                at: now,
                kind: line.kind.to_owned(),
                rq: deal.parties().find(|party| *deal.name_of(*party) == line.peer).map(|party| deal.rq_of(party)),
                peer: line.peer,
                deal: Some(deal.id),
                item_name: Some(deal.item_name.to_string()),
                price: line.price,
                detail: line.detail,
            })
        }));
        changes
    }

    /// True if it ends the notification's repetition.
    pub fn acknowledge(&self, now: Millis, source: SocketAddr, ack: &Ack) -> bool {
        let Some((deal, party)) = self.parties_by_mid.lock().get(&ack.mid).copied() else { return false };
        let Some(tracked) = self.deal(deal) else { return false };
        let mut state = tracked.state.lock();
        let Some(peer) = self.party_peer(&state.deal, party) else { return false };
        {
            let mut peer_state = peer.state.lock();
            let has_token = ack.token.as_ref().is_some_and(|token| peer_state.row.token.matches(token));
            if (source != peer_state.row.addr || peer_state.row.displaced) && !has_token {
                return false;
            }
            if has_token {
                self.token_presented(&peer, &mut peer_state, source);
            }
            self.acknowledgement_received(&peer, &mut peer_state, source, ack.mid);
        }
        peer.mark_seen(now);
        if state.is_removed || !state.deal.acknowledge(party, ack.mid) {
            return false;
        }
        let change = match party {
            Party::Buyer => deal_change(&state.deal),
            Party::Seller(seller) => seller_change(&state.deal, seller),
        };
        state.last_commit = self.journal.append(vec![change]);
        true
    }

    /// `None` if it is acknowledged or superseded.
    pub fn outgoing_notification(&self, id: NotificationId) -> Option<OutgoingNotification> {
        let tracked = self.deal(id.deal)?;
        let state = tracked.state.lock();
        if state.deal.outstanding_mid(id.party) != Some(id.mid) {
            return None;
        }
        let peer = self.party_peer(&state.deal, id.party)?;
        let notification = state.deal.outstanding_notification(id.party)?;
        drop(state);
        peer.outgoing(notification)
    }

    pub(super) fn next_mid(&self) -> u64 {
        self.mid_cipher.encrypt(self.allocate_ids(1))
    }

    /// `None` if the deal is not being settled.
    pub fn settlement_order(&self, id: u64) -> Option<SettlementOrder> {
        let tracked = self.deal(id)?;
        let state = tracked.state.lock();
        let deal = &state.deal;
        let (seller, price, payment) = deal.settling()?;
        let side = |party| {
            let row = self.party_peer(deal, party).map(|peer| peer.state.lock().row.clone());
            SettlementParty {
                name: deal.name_of(party).clone(),
                rq: deal.rq_of(party),
                tcp: row.as_ref().map(|row| SocketAddr::new(row.addr.ip(), row.tcp_port)),
                from: row.as_ref().and_then(|row| row.local_ip),
                token: row.map(|row| row.token),
            }
        };
        Some(SettlementOrder {
            deal: id,
            key: charge_key(id),
            item_name: deal.item_name.clone(),
            goods: if let Party::Seller(seller) = seller { deal.goods_of(seller) } else { Goods::default() },
            price,
            fee: self.rules.fee_of(price, deal.fee()),
            payment,
            buyer: side(Party::Buyer),
            seller: side(seller),
        })
    }

    pub fn settlement_count(&self) -> usize {
        self.settlement_slots.lock().by_deal.len()
    }

    fn acquire_slot(&self, deal: &Deal) -> Result<(), RequestError> {
        let addresses = deal.reserved_seller().and_then(|seller| self.addresses_of(deal, seller));
        let addresses = addresses.ok_or_else(|| RequestError::new(ErrorCode::WrongState, "the other side has left"))?;
        let mut slots = self.settlement_slots.lock();
        let max = SETTLEMENTS_PER_ADDRESS_MAX;
        let is_full = |ip: &IpAddr| !ip.is_loopback() && slots.by_address.get(ip).is_some_and(|n| *n >= max);
        if slots.by_deal.len() >= SETTLEMENTS_MAX || addresses.iter().any(is_full) {
            return Err(RequestError::new(ErrorCode::Busy, "too many settlements are under way; try again"));
        }
        slots.acquire(deal.id, addresses.to_vec());
        Ok(())
    }

    fn release_slot(&self, deal: u64) {
        let mut slots = self.settlement_slots.lock();
        for ip in slots.by_deal.remove(&deal).into_iter().flatten() {
            if let Some(count) = slots.by_address.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    slots.by_address.remove(&ip);
                }
            }
        }
    }

    /// Removes the deals that no peer refers to any more.
    pub(super) fn release_deals(&self, effects: &mut ExchangeEffects<J::Commit>) {
        self.release_holders(std::mem::take(&mut effects.released_deals));
    }

    pub(super) fn release_holders(&self, deals: Vec<u64>) {
        for id in deals {
            if self.deal(id).is_some_and(|tracked| tracked.holder_count.fetch_sub(1, Ordering::AcqRel) == 1) {
                self.remove_deal(id);
            }
        }
    }

    pub(super) fn remove_deal(&self, id: u64) {
        let Some(tracked) = self.deal(id) else { return };
        let mut state = tracked.state.lock();
        if state.is_removed {
            return;
        }
        state.is_removed = true;
        self.open_deals.lock().remove(&id);
        self.journal.append(vec![ExchangeChange::DropDeal(id)]);
        {
            let mut mids = self.parties_by_mid.lock();
            for mid in std::mem::take(&mut state.mids) {
                mids.remove(&mid);
            }
        }
        for party in state.deal.parties() {
            if let Some(peer) = self.party_peer(&state.deal, party) {
                peer.state.lock().unlink(id);
            }
        }
        drop(state);
        self.deals.write().remove(&id);
    }
}

/// So that a deal is charged once.
fn charge_key(deal: u64) -> String {
    format!("{}{deal}", super::CHARGE_KEY_PREFIX)
}

fn deal_change(deal: &Deal) -> ExchangeChange {
    ExchangeChange::Deal { id: deal.id, body: json(deal) }
}

fn seller_change(deal: &Deal, seller: usize) -> ExchangeChange {
    let rq = deal.rq_of(Party::Seller(seller));
    ExchangeChange::Seller { deal: deal.id, rq, body: json(&deal.sellers()[seller]) }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    String::from_utf8(encode(value)).expect("JSON is UTF-8")
}
