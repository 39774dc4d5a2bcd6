//! What each event does to a deal: what sides ask for, what time and departures do.

use super::{
    Booking, Deal, Effects, Kind, Money, NEGOTIATIONS_MAX, Note, Offer, Outstanding, Party, Payment, Standing, State,
    Step,
};
use crate::model::Cents;
use crate::trade::wire::{Amount, Code, Goods, Refusal};

impl Deal {
    // What sides ask for.

    pub(super) fn ask(
        &mut self,
        party: Party,
        kind: Kind,
        amount: Option<Cents>,
        goods: Option<&Goods>,
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match (party, kind) {
            (Party::Seller(seller), Kind::Offer) => {
                let goods = goods.cloned().unwrap_or_default();
                self.offer(seller, amount.unwrap_or_default(), goods, step, effects)
            }
            (Party::Seller(seller), Kind::NotAvailable) => self.not_available(seller, step, effects),
            (Party::Seller(seller), Kind::Accept | Kind::Refuse) => self.haggle(seller, kind, amount, step, effects),
            (Party::Seller(seller), Kind::Cancel) => self.seller_cancels(seller, step, effects),
            (Party::Buyer, Kind::Buy) => self.buy(amount.unwrap_or_default(), step, effects),
            (Party::Buyer, Kind::Cancel) => self.buyer_cancels(step, effects),
            _ => Err(Refusal::new(Code::WrongState, "this is not for this side of the deal")),
        }
    }

    fn offer(
        &mut self,
        seller: usize,
        price: Cents,
        goods: Goods,
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if !matches!(self.state, State::Searching { .. }) {
            return Err(Refusal::new(Code::WrongState, "the window for offers is closed"));
        }
        if self.sellers[seller].replied {
            return Err(Refusal::new(Code::WrongState, "this search is answered already"));
        }
        self.offers_made += 1;
        let place = self.offers_made;
        let side = &mut self.sellers[seller];
        side.replied = true;
        side.offer = Some(Offer { price, place, standing: Standing::Bound, negotiated: false, goods });
        effects.deal_changed = true;
        self.log(effects, "offer", Party::Seller(seller), Some(price), "");
        self.close_window_if_answered(step, effects);
        Ok(())
    }

    fn not_available(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        if !matches!(self.state, State::Searching { .. }) {
            return Err(Refusal::new(Code::WrongState, "the window for offers is closed"));
        }
        if self.sellers[seller].replied {
            return Err(Refusal::new(Code::WrongState, "this search is answered already"));
        }
        self.sellers[seller].replied = true;
        self.log(effects, "not_available", Party::Seller(seller), None, "");
        self.close_window_if_answered(step, effects);
        Ok(())
    }

    fn haggle(
        &mut self,
        seller: usize,
        kind: Kind,
        amount: Option<Cents>,
        step: &mut Step,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if !matches!(self.state, State::Negotiating { seller: asked, .. } if asked == seller) {
            return Err(Refusal::new(Code::WrongState, "no negotiation is open with this seller"));
        }
        if amount != Some(self.max_price) {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("max_price: expected {}, as in NEGOTIATE", self.max_price),
            ));
        }
        if kind == Kind::Accept {
            if let Some(offer) = &mut self.sellers[seller].offer {
                offer.price = self.max_price;
            }
            self.log(effects, "accept", Party::Seller(seller), amount, "");
            self.reserve(seller, self.max_price, step, effects);
        } else {
            self.log(effects, "refuse", Party::Seller(seller), amount, "");
            self.negotiate_next(step, effects);
        }
        Ok(())
    }

    fn seller_cancels(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        let bound = self.sellers[seller].offer.as_ref().is_some_and(|offer| offer.standing != Standing::Withdrawn);
        if !bound || !self.open_for_cancel() {
            return Err(self.wrong_state());
        }
        self.log(effects, "cancel", Party::Seller(seller), None, "");
        self.withdraw(seller, step, effects);
        Ok(())
    }

    fn buy(&mut self, price: Cents, step: &Step, effects: &mut Effects) -> Result<(), Refusal> {
        let State::Reserved { seller, price: reserved, .. } = self.state else {
            return Err(self.wrong_state());
        };
        if price != reserved {
            return Err(Refusal::new(Code::BadRequest, format!("price: expected {reserved}, as in the newest FOUND")));
        }
        self.state = State::Settling { seller, price, fee: Some(Amount(step.fee.of(price))), payment: Payment::Asked };
        effects.deal_changed = true;
        self.log(effects, "buy", Party::Buyer, Some(price), &format!("from {}", self.sellers[seller].name));
        Ok(())
    }

    fn buyer_cancels(&mut self, step: &mut Step, effects: &mut Effects) -> Result<(), Refusal> {
        if !self.open_for_cancel() {
            return Err(self.wrong_state());
        }
        self.log(effects, "cancel", Party::Buyer, None, "");
        self.call_off("cancelled by the buyer", step, effects);
        Ok(())
    }

    fn open_for_cancel(&self) -> bool {
        matches!(self.state, State::Searching { .. } | State::Negotiating { .. } | State::Reserved { .. })
    }

    // What time and departures do.

    pub(super) fn tick(&mut self, step: &mut Step, effects: &mut Effects) {
        match self.state {
            State::Searching { until } if until <= step.now => self.close_window(step, effects),
            State::Searching { .. } if self.acks_due.is_some_and(|due| due <= step.now) => {
                self.wait_for_the_silent_no_more(step, effects);
            }
            State::Negotiating { seller, until, .. } if until <= step.now => {
                self.log(effects, "refuse", Party::Seller(seller), Some(self.max_price), "no answer in time");
                self.negotiate_next(step, effects);
            }
            State::Reserved { seller, until, .. } if until <= step.now => {
                let reason = "the reservation ran out";
                self.log(effects, "cancel", Party::Buyer, None, reason);
                self.cancel(reason, step, effects);
                self.tell(Party::Buyer, Note::Cancel(reason.into()), step, effects);
                self.tell(Party::Seller(seller), Note::Cancel(reason.into()), step, effects);
            }
            _ => {}
        }
    }

    pub(super) fn gone(&mut self, party: Party, step: &mut Step, effects: &mut Effects) {
        self.drop_outstanding(party);
        self.changed(party, effects);
        match party {
            Party::Buyer => {
                self.buyer_gone = true;
                if self.open_for_cancel() {
                    self.call_off("the buyer has left", step, effects);
                }
            }
            Party::Seller(seller) => {
                self.sellers[seller].gone = true;
                self.sellers[seller].replied = true;
                self.withdraw(seller, step, effects);
            }
        }
    }

    // The rules that several events share.

    /// The seller's offer is off: a search no longer waits for it, a negotiation goes to the next, a
    /// reservation to the next offer at or below the maximum.
    fn withdraw(&mut self, seller: usize, step: &mut Step, effects: &mut Effects) {
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.standing = Standing::Withdrawn;
            effects.sellers_changed.push(seller);
        }
        match self.state {
            State::Searching { .. } => self.close_window_if_answered(step, effects),
            State::Negotiating { seller: asked, .. } if asked == seller => self.negotiate_next(step, effects),
            State::Reserved { seller: taken, .. } if taken == seller => {
                match self.cheapest(|offer, max| offer.price <= max) {
                    Some((next, price)) => self.reserve(next, price, step, effects),
                    None => {
                        let reason = "the seller has cancelled";
                        self.cancel(reason, step, effects);
                        self.tell(Party::Buyer, Note::Cancel(reason.into()), step, effects);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn close_window_if_answered(&mut self, step: &mut Step, effects: &mut Effects) {
        let searching = matches!(self.state, State::Searching { .. });
        if searching && self.sellers.iter().all(|side| side.replied || !side.waited_for) {
            self.close_window(step, effects);
        }
    }

    /// Who acknowledges what it gets, and has not acknowledged the search by now, is not there: the window
    /// does not wait for it.
    fn wait_for_the_silent_no_more(&mut self, step: &mut Step, effects: &mut Effects) {
        self.acks_due = None;
        for (seller, side) in self.sellers.iter_mut().enumerate() {
            let unheard = matches!(side.outstanding, Some(Outstanding { note: Note::Search, .. }));
            if side.waited_for && side.acknowledges && !side.replied && unheard {
                side.waited_for = false;
                effects.sellers_changed.push(seller);
            }
        }
        self.close_window_if_answered(step, effects);
    }

    fn close_window(&mut self, step: &mut Step, effects: &mut Effects) {
        effects.silent.extend((0..self.sellers.len()).filter(|&seller| !self.sellers[seller].replied));
        self.drop_searches(effects);
        match self.cheapest(|_, _| true) {
            None => {
                self.cancel("NOT_AVAILABLE", step, effects);
                self.log(effects, "not_available", Party::Buyer, None, "no offer");
                self.tell(Party::Buyer, Note::NotAvailable, step, effects);
            }
            Some((seller, price)) if price <= self.max_price => self.reserve(seller, price, step, effects),
            Some(_) => self.negotiate_next(step, effects),
        }
    }

    /// Asks the cheapest seller that was not asked yet; when there is none (or five have refused), the
    /// buyer is told NOT_FOUND.
    fn negotiate_next(&mut self, step: &mut Step, effects: &mut Effects) {
        let round = if let State::Negotiating { round, .. } = self.state { round } else { 0 };
        let next = self.cheapest(|offer, _| !offer.negotiated).filter(|_| round < NEGOTIATIONS_MAX);
        effects.deal_changed = true;
        let Some((seller, _)) = next else {
            self.cancel("NOT_FOUND", step, effects);
            self.log(effects, "not_found", Party::Buyer, Some(self.max_price), "every offer is above the maximum");
            self.release_offers(None, step, effects);
            self.tell(Party::Buyer, Note::NotFound, step, effects);
            return;
        };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.negotiated = true;
        }
        self.state = State::Negotiating { seller, until: step.now.plus(step.windows.negotiate), round: round + 1 };
        self.log(effects, "negotiate", Party::Seller(seller), Some(self.max_price), "");
        self.tell(Party::Seller(seller), Note::Negotiate, step, effects);
    }

    fn reserve(&mut self, seller: usize, price: Cents, step: &mut Step, effects: &mut Effects) {
        self.state = State::Reserved { seller, price, until: step.now.plus(step.windows.reserve) };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.standing = Standing::Bound;
        }
        effects.deal_changed = true;
        self.log(effects, "reserve", Party::Seller(seller), Some(price), "");
        self.tell(Party::Seller(seller), Note::Reserve(price), step, effects);
        self.tell(Party::Buyer, Note::Found(price, seller), step, effects);
        self.release_offers(Some(seller), step, effects);
    }

    /// The cheapest offer that still counts, earlier ones first; `fits` sees the offer and the maximum.
    fn cheapest(&self, fits: impl Fn(&Offer, Cents) -> bool) -> Option<(usize, Cents)> {
        let offers = self.sellers.iter().enumerate().filter_map(|(seller, side)| Some((seller, side.offer.as_ref()?)));
        offers
            .filter(|(_, offer)| offer.standing != Standing::Withdrawn && fits(offer, self.max_price))
            .min_by_key(|(_, offer)| (offer.price, offer.place))
            .map(|(seller, offer)| (seller, offer.price))
    }

    /// Tells everyone whose offer still binds, but for the one that was taken.
    fn release_offers(&mut self, taken: Option<usize>, step: &mut Step, effects: &mut Effects) {
        for seller in (0..self.sellers.len()).filter(|&seller| Some(seller) != taken) {
            if let Some(offer) = self.sellers[seller].offer.as_mut().filter(|offer| offer.standing == Standing::Bound) {
                offer.standing = Standing::Released;
                self.tell(Party::Seller(seller), Note::Released, step, effects);
            }
        }
    }

    /// The buyer's side is off: the seller it stood with gets CANCEL, the others RELEASED.
    fn call_off(&mut self, reason: &str, step: &mut Step, effects: &mut Effects) {
        let with = match self.state {
            State::Negotiating { seller, .. } | State::Reserved { seller, .. } => Some(seller),
            _ => None,
        };
        self.cancel(reason, step, effects);
        if let Some(seller) = with {
            self.tell(Party::Seller(seller), Note::Cancel(reason.into()), step, effects);
        }
        self.release_offers(with, step, effects);
        self.drop_searches(effects);
    }

    /// A search is not repeated after its window.
    fn drop_searches(&mut self, effects: &mut Effects) {
        for seller in 0..self.sellers.len() {
            if matches!(self.sellers[seller].outstanding, Some(Outstanding { note: Note::Search, .. })) {
                self.drop_outstanding(Party::Seller(seller));
                effects.sellers_changed.push(seller);
            }
        }
    }

    pub(super) fn cancel(&mut self, reason: &str, step: &Step, effects: &mut Effects) {
        self.end(State::Cancelled { reason: reason.into(), at: step.now }, effects);
    }

    pub(super) fn end(&mut self, state: State, effects: &mut Effects) {
        debug_assert!(self.ended_at().is_none(), "a deal ends once");
        self.state = state;
        effects.deal_changed = true;
        effects.ended = true;
    }

    pub(super) fn pay(&mut self, from: Payment, to: Payment, effects: &mut Effects) -> Result<(), Refusal> {
        match &mut self.state {
            State::Settling { seller, price, fee, payment } if *payment == from => {
                *payment = to;
                let authorise = Booking { money: Money::Authorise, seller: *seller, price: *price, fee: *fee };
                effects.money = (to == Payment::Authorised).then_some(authorise);
            }
            _ => return Err(self.wrong_state()),
        }
        effects.deal_changed = true;
        Ok(())
    }

    pub(super) fn wrong_state(&self) -> Refusal {
        let state = match &self.state {
            State::Searching { .. } => "offers are still awaited".to_owned(),
            State::Negotiating { .. } => "a price is being negotiated".to_owned(),
            State::Reserved { .. } => "it is reserved".to_owned(),
            State::Settling { .. } => "it is being settled".to_owned(),
            State::Completed { .. } => "it is completed".to_owned(),
            State::Cancelled { reason, .. } => format!("it is cancelled: {reason}"),
        };
        Refusal::new(Code::WrongState, state)
    }
}
