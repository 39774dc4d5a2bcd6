//! What happens to deals: what their sides ask, what time does, how payment goes, how they are forgotten.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use super::{
    DealState, ENDED_MAX, Exchange, Outcome, Outgoing, PeerCell, PeerState, Refused, SETTLEMENTS_MAX,
    SETTLEMENTS_PER_ADDRESS_MAX, Told,
};
use crate::model::{Cents, Millis, Name, Token};
use crate::trade::deal::{Booking, Deal, Effects, Event, Kind, Party, Payment, Step};
use crate::trade::journal::{Change, Journal, LogRow, MoneyRow};
use crate::trade::wire::{Ack, Ask, Code, Goods, Push, Refusal, Reply, Request, encode};

/// What a settlement needs to know. Its `Debug` hides the tokens.
#[derive(Debug, Clone)]
pub struct Settling {
    /// The deal.
    pub deal: u64,
    /// The idempotency key of its charge.
    pub key: String,
    /// As the buyer wrote it.
    pub item_name: std::sync::Arc<str>,
    /// What the seller really offers.
    pub goods: Goods,
    /// What the buyer pays.
    pub price: Cents,
    /// What the house keeps of it.
    pub fee: Cents,
    /// How far it was when this was asked for.
    pub payment: Payment,
    /// Who pays.
    pub buyer: SettlingPeer,
    /// Who is paid.
    pub seller: SettlingPeer,
}

/// One side of a settlement.
#[derive(Debug, Clone)]
pub struct SettlingPeer {
    /// Its name.
    pub name: Name,
    /// The number by which it knows the deal.
    pub rq: u64,
    /// What its INFORM_RES must bear. None for a peer that is not registered any more.
    pub token: Option<Token>,
    /// Where it listens.
    pub tcp: Option<SocketAddr>,
    /// Which of this host's addresses it expects to be connected from.
    pub from: Option<IpAddr>,
}

impl<J: Journal> PeerCell<J> {
    /// A push as it goes to this peer; nothing for one that has no address.
    fn outgoing(&self, push: Push) -> Option<Outgoing> {
        let PeerState { row, .. } = &*self.state.lock();
        let proved = row.hearing.here;
        (!row.displaced).then_some(Outgoing { to: row.addr, from: row.asked, proved, push })
    }
}

impl<J: Journal> Exchange<J> {
    pub(super) fn ask(
        &self,
        now: Millis,
        peer: &PeerCell<J>,
        request: &Request,
    ) -> Result<Outcome<J::Receipt>, Refused<J>> {
        let (kind, item_name, amount) = match &request.ask {
            Ask::Offer { item_name, price, .. } => (Kind::Offer, item_name, Some(*price)),
            Ask::NotAvailable { item_name } => (Kind::NotAvailable, item_name, None),
            Ask::Accept { item_name, max_price } => (Kind::Accept, item_name, Some(*max_price)),
            Ask::Refuse { item_name, max_price } => (Kind::Refuse, item_name, Some(*max_price)),
            Ask::Buy { item_name, price } => (Kind::Buy, item_name, Some(*price)),
            Ask::Cancel { item_name } => (Kind::Cancel, item_name, None),
            Ask::Register(_) | Ask::Login(_) | Ask::DeRegister | Ask::LookingFor { .. } | Ask::Status { .. } => {
                unreachable!("these are not asked of a deal")
            }
        };
        let (id, last) = {
            let state = peer.state.lock();
            (state.rqs.get(&request.rq).copied(), state.last.clone())
        };
        let unknown = || (Refusal::new(Code::UnknownDeal, "rq: no deal of this peer has this number"), last.clone());
        let id = id.ok_or_else(unknown)?;
        let cell = self.deal(id).ok_or_else(unknown)?;
        let mut state = cell.state.lock();
        let party = state.deal.party_of(request.rq).filter(|_| !state.forgotten).ok_or_else(unknown)?;
        let settles = kind == Kind::Buy && party == Party::Buyer && state.deal.reserved_seller().is_some();
        if settles {
            self.take_slot(&state.deal).map_err(|refusal| (refusal, state.last.clone()))?;
        }
        let concerned = state.deal.concerns(party);
        let goods = if let Ask::Offer { goods, .. } = &request.ask { Some(goods) } else { None };
        let event = Event::Ask { party, kind, item_name, amount, goods };
        let offers = kind == Kind::Offer && !concerned;
        // Before the step, which may end the deal and count it out again.
        peer.own_deals.fetch_add(usize::from(offers), Ordering::Relaxed);
        let result = self.step(now, &mut state, event);
        if offers && !state.deal.concerns(party) {
            peer.own_deals.fetch_sub(1, Ordering::Relaxed);
        }
        let settles = settles && state.deal.settling().is_some();
        if !settles && kind == Kind::Buy && state.deal.settling().is_none() {
            self.free_slot(id);
        }
        let mut outcome = result.map_err(|refusal| (refusal, state.last.clone()))?;
        drop(state);
        self.let_go(&mut outcome);
        let rq = request.rq;
        outcome.settle = settles.then_some(id);
        outcome.answer = Some(match kind {
            Kind::Offer => Reply::Offered { rq },
            Kind::NotAvailable | Kind::Accept | Kind::Refuse => Reply::Noted { rq },
            Kind::Buy => Reply::Buying { rq },
            Kind::Cancel => Reply::Cancelled { rq },
        });
        Ok(outcome)
    }

    /// Lets time do its work on a deal. Harmless when nothing is due; what is still to come is named
    /// again.
    pub fn tick(&self, now: Millis, deal: u64) -> Outcome<J::Receipt> {
        let Ok(mut outcome) = self.apply(now, deal, Event::Tick) else { return Outcome::default() };
        if outcome.deadlines.is_empty() {
            let deadline = self.deal(deal).and_then(|cell| cell.state.lock().deal.deadline());
            outcome.deadlines.extend(deadline.map(|at| (at, deal)));
        }
        outcome
    }

    /// Takes a settlement a step further. An `Err` means that the deal is not at that step.
    pub fn settlement(&self, now: Millis, deal: u64, event: Event) -> Result<Outcome<J::Receipt>, Refusal> {
        let outcome = self.apply(now, deal, event)?;
        let over = self.deal(deal).is_none_or(|cell| cell.state.lock().deal.settling().is_none());
        if over {
            self.free_slot(deal);
        }
        Ok(outcome)
    }

    fn apply(&self, now: Millis, deal: u64, event: Event) -> Result<Outcome<J::Receipt>, Refusal> {
        let unknown = || Refusal::new(Code::UnknownDeal, "no such deal");
        let cell = self.deal(deal).ok_or_else(unknown)?;
        let mut state = cell.state.lock();
        if state.forgotten {
            return Err(unknown());
        }
        let mut outcome = self.step(now, &mut state, event)?;
        drop(state);
        self.let_go(&mut outcome);
        Ok(outcome)
    }

    /// One event for one locked deal: handled, and handed to the journal.
    pub(super) fn step(
        &self,
        now: Millis,
        state: &mut DealState<J>,
        event: Event,
    ) -> Result<Outcome<J::Receipt>, Refusal> {
        let mut next_mid = || self.next_mid();
        let mut step = Step { now, windows: &self.rules.windows, fee: self.rules.fee, next_mid: &mut next_mid };
        let deadline = state.deal.deadline();
        let effects = state.deal.handle(event, &mut step)?;
        Ok(self.commit(now, state, effects, deadline))
    }

    /// Hands the effects of a step to the journal and does what is done in memory.
    /// `armed` is the deadline that is armed already.
    pub(super) fn commit(
        &self,
        now: Millis,
        state: &mut DealState<J>,
        effects: Effects,
        armed: Option<Millis>,
    ) -> Outcome<J::Receipt> {
        let deal = &state.deal;
        let mut changes = Vec::with_capacity(effects.sellers_changed.len() + effects.log.len() + 2);
        if effects.deal_changed {
            changes.push(deal_change(deal));
        }
        let mut seen = HashSet::with_capacity(effects.sellers_changed.len());
        changes.extend(
            effects
                .sellers_changed
                .iter()
                .filter(|seller| seen.insert(**seller))
                .map(|seller| seller_change(deal, *seller)),
        );
        changes.extend(effects.money.map(|Booking { money, seller, price, fee }| {
            Change::Money(MoneyRow {
                key: charge_key(deal.id),
                money,
                buyer: deal.buyer.clone(),
                seller: deal.name_of(Party::Seller(seller)).clone(),
                price,
                fee: self.rules.fee_of(price, fee),
                at: now,
            })
        }));
        changes.extend(effects.log.into_iter().map(|line| {
            Change::Log(LogRow {
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
        let mut outcome = Outcome::default();
        let mut sent = Vec::new();
        for (party, push) in effects.told_once {
            sent.push((push.mid(), party));
            outcome.once.extend(self.peer_in(deal, party).and_then(|peer| peer.outgoing(push)));
        }
        for party in effects.told {
            if let Some(mid) = deal.outstanding_mid(party) {
                sent.push((mid, party));
                outcome.pushes.push(Told { deal: deal.id, party, mid });
            }
        }
        state.mids.extend(sent.iter().map(|(mid, _)| *mid));
        self.mids.lock().extend(sent.into_iter().map(|(mid, party)| (mid, (deal.id, party))));
        for seller in effects.silent {
            if let Some(peer) = self.peer_in(deal, Party::Seller(seller)) {
                // Saturates far above the bound that matters.
                let _ = peer.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
            }
        }
        self.touched.note(deal.id);
        if effects.ended {
            self.open.lock().remove(&deal.id);
            self.ended.lock().push_back((now, deal.id));
            for party in deal.parties() {
                if let Some(peer) = self.peer_in(deal, party) {
                    outcome.let_go.extend(peer.end(&mut peer.state.lock(), deal, party, ENDED_MAX));
                }
            }
        } else {
            outcome.deadlines.extend(deal.deadline().filter(|at| armed != Some(*at)).map(|at| (at, deal.id)));
        }
        if !changes.is_empty() {
            state.last = self.journal.append(changes);
        }
        outcome.receipt = state.last.clone();
        outcome
    }

    /// A peer has got a push. True if that ends its repetition.
    pub fn ack(&self, now: Millis, source: SocketAddr, ack: &Ack) -> bool {
        let Some((deal, party)) = self.mids.lock().get(&ack.mid).copied() else { return false };
        let Some(cell) = self.deal(deal) else { return false };
        let mut state = cell.state.lock();
        let Some(peer) = self.peer_in(&state.deal, party) else { return false };
        {
            let mut own = peer.state.lock();
            let by_token = ack.token.as_ref().is_some_and(|token| own.row.token.matches(token));
            if (source != own.row.addr || own.row.displaced) && !by_token {
                return false;
            }
            if by_token {
                self.token_came(&peer, &mut own, source);
            }
            self.ack_came(&peer, &mut own, source, ack.mid);
        }
        peer.heard(now);
        if state.forgotten || !state.deal.acknowledge(party, ack.mid) {
            return false;
        }
        let change = match party {
            Party::Buyer => deal_change(&state.deal),
            Party::Seller(seller) => seller_change(&state.deal, seller),
        };
        state.last = self.journal.append(vec![change]);
        true
    }

    /// A push as it goes out now, and where to; nothing if it is acknowledged or overtaken.
    pub fn push(&self, told: Told) -> Option<Outgoing> {
        let cell = self.deal(told.deal)?;
        let state = cell.state.lock();
        if state.deal.outstanding_mid(told.party) != Some(told.mid) {
            return None;
        }
        let peer = self.peer_in(&state.deal, told.party)?;
        let push = state.deal.push(told.party)?;
        drop(state);
        peer.outgoing(push)
    }

    pub(super) fn next_mid(&self) -> u64 {
        self.mid_key.of(self.number(1))
    }

    // Settlement.

    /// What a settlement needs to know; nothing if the deal is not being settled.
    pub fn settling(&self, id: u64) -> Option<Settling> {
        let cell = self.deal(id)?;
        let state = cell.state.lock();
        let deal = &state.deal;
        let (seller, price, payment) = deal.settling()?;
        let side = |party| {
            let row = self.peer_in(deal, party).map(|peer| peer.state.lock().row.clone());
            SettlingPeer {
                name: deal.name_of(party).clone(),
                rq: deal.rq_of(party),
                tcp: row.as_ref().map(|row| SocketAddr::new(row.addr.ip(), row.tcp_port)),
                from: row.as_ref().and_then(|row| row.asked),
                token: row.map(|row| row.token),
            }
        };
        Some(Settling {
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

    /// Settlements under way.
    pub fn settlements(&self) -> usize {
        self.settling.lock().by_deal.len()
    }

    fn take_slot(&self, deal: &Deal) -> Result<(), Refusal> {
        let addresses = deal.reserved_seller().and_then(|seller| self.addresses_of(deal, seller));
        let addresses = addresses.ok_or_else(|| Refusal::new(Code::WrongState, "the other side has left"))?;
        let mut slots = self.settling.lock();
        let crowded = |ip| {
            !std::net::IpAddr::is_loopback(ip)
                && slots.by_address.get(ip).is_some_and(|n| *n >= SETTLEMENTS_PER_ADDRESS_MAX)
        };
        if slots.by_deal.len() >= SETTLEMENTS_MAX || addresses.iter().any(crowded) {
            return Err(Refusal::new(Code::Busy, "too many settlements are under way; try again"));
        }
        slots.take(deal.id, addresses.to_vec());
        Ok(())
    }

    fn free_slot(&self, deal: u64) {
        let mut slots = self.settling.lock();
        for ip in slots.by_deal.remove(&deal).into_iter().flatten() {
            if let Some(count) = slots.by_address.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    slots.by_address.remove(&ip);
                }
            }
        }
    }

    // Forgetting.

    /// Deals that nobody in them keeps any more are forgotten.
    pub(super) fn let_go(&self, outcome: &mut Outcome<J::Receipt>) {
        self.release_holders(std::mem::take(&mut outcome.let_go));
    }

    pub(super) fn release_holders(&self, deals: Vec<u64>) {
        for id in deals {
            if self.deal(id).is_some_and(|cell| cell.holders.fetch_sub(1, Ordering::AcqRel) == 1) {
                self.forget(id);
            }
        }
    }

    pub(super) fn forget(&self, id: u64) {
        let Some(cell) = self.deal(id) else { return };
        let mut state = cell.state.lock();
        if state.forgotten {
            return;
        }
        state.forgotten = true;
        self.open.lock().remove(&id);
        self.journal.append(vec![Change::DropDeal(id)]);
        {
            let mut mids = self.mids.lock();
            for mid in std::mem::take(&mut state.mids) {
                mids.remove(&mid);
            }
        }
        for party in state.deal.parties() {
            if let Some(peer) = self.peer_in(&state.deal, party) {
                peer.state.lock().unlink(id);
            }
        }
        drop(state);
        self.deals.write().remove(&id);
    }
}

/// The idempotency key of a deal's charge: one deal is charged once.
fn charge_key(deal: u64) -> String {
    format!("{}{deal}", super::CHARGE_KEYS)
}

fn deal_change(deal: &Deal) -> Change {
    Change::Deal { id: deal.id, body: json(deal) }
}

fn seller_change(deal: &Deal, seller: usize) -> Change {
    let rq = deal.rq_of(Party::Seller(seller));
    Change::Seller { deal: deal.id, rq, body: json(&deal.sellers()[seller]) }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    String::from_utf8(encode(value)).expect("JSON is UTF-8")
}
