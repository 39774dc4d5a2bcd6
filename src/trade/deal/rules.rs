//! The transitions of a deal: requests of its sides, expired deadlines and departures.

use super::{
    Deal, DealPosting, DealState, DealStep, LedgerOperation, NEGOTIATIONS_MAX, NotificationBody, Offer, OfferStatus,
    Party, PaymentProgress,
};
use crate::model::Cents;
use crate::trade::wire::{Amount, DealRequest, ErrorCode, Goods, RequestError};

impl Deal {
    pub(super) fn apply_request(
        &mut self,
        party: Party,
        request: &DealRequest,
        step: &mut DealStep,
    ) -> Result<(), RequestError> {
        match (party, request) {
            (Party::Seller(seller), DealRequest::Offer { price, goods }) => self.offer(seller, *price, goods, step),
            (Party::Seller(seller), DealRequest::NotAvailable) => self.not_available(seller, step),
            (Party::Seller(seller), DealRequest::Accept { max_price }) => self.accept(seller, *max_price, step),
            (Party::Seller(seller), DealRequest::Refuse { max_price }) => self.refuse(seller, *max_price, step),
            (Party::Seller(seller), DealRequest::Cancel) => self.seller_cancels(seller, step),
            (Party::Buyer, DealRequest::Buy { price }) => self.buy(*price, step),
            (Party::Buyer, DealRequest::Cancel) => self.buyer_cancels(step),
            (
                Party::Buyer,
                DealRequest::Offer { .. }
                | DealRequest::NotAvailable
                | DealRequest::Accept { .. }
                | DealRequest::Refuse { .. },
            )
            | (Party::Seller(_), DealRequest::Buy { .. }) => {
                Err(RequestError::new(ErrorCode::WrongState, "this is not for this side of the deal"))
            }
        }
    }

    /// Whether the deal holds what this request, of which kind and amount were answered before, names besides.
    pub(super) fn has_recorded(&self, party: Party, request: &DealRequest) -> bool {
        match (party, request) {
            (Party::Seller(seller), DealRequest::Offer { goods, .. }) => self.goods_of(seller) == *goods,
            (Party::Buyer, DealRequest::Offer { .. })
            | (
                _,
                DealRequest::NotAvailable
                | DealRequest::Accept { .. }
                | DealRequest::Refuse { .. }
                | DealRequest::Buy { .. }
                | DealRequest::Cancel,
            ) => true,
        }
    }

    fn check_unanswered(&self, seller: usize) -> Result<(), RequestError> {
        if !matches!(self.state, DealState::Searching { .. }) {
            return Err(RequestError::new(ErrorCode::WrongState, "the window for offers is closed"));
        }
        if self.sellers[seller].replied {
            return Err(RequestError::new(ErrorCode::WrongState, "this search is answered already"));
        }
        Ok(())
    }

    fn offer(&mut self, seller: usize, price: Cents, goods: &Goods, step: &mut DealStep) -> Result<(), RequestError> {
        self.check_unanswered(seller)?;
        let goods = goods.clone();
        self.offers_made += 1;
        let place = self.offers_made;
        let side = &mut self.sellers[seller];
        side.replied = true;
        side.offer = Some(Offer { price, place, status: OfferStatus::Bound, negotiated: false, goods });
        step.effects.deal_changed = true;
        self.log(step, "offer", Party::Seller(seller), Some(price), "");
        self.close_window_if_answered(step);
        Ok(())
    }

    fn not_available(&mut self, seller: usize, step: &mut DealStep) -> Result<(), RequestError> {
        self.check_unanswered(seller)?;
        self.sellers[seller].replied = true;
        self.log(step, "not_available", Party::Seller(seller), None, "");
        self.close_window_if_answered(step);
        Ok(())
    }

    /// Checks that this seller is asked whether it would sell for this price.
    fn check_negotiating(&self, seller: usize, max_price: Cents) -> Result<(), RequestError> {
        if !matches!(self.state, DealState::Negotiating { seller: asked, .. } if asked == seller) {
            return Err(RequestError::new(ErrorCode::WrongState, "no negotiation is open with this seller"));
        }
        if max_price != self.max_price {
            return Err(RequestError::new(
                ErrorCode::BadRequest,
                format!("max_price: expected {}, as in NEGOTIATE", self.max_price),
            ));
        }
        Ok(())
    }

    fn accept(&mut self, seller: usize, max_price: Cents, step: &mut DealStep) -> Result<(), RequestError> {
        self.check_negotiating(seller, max_price)?;
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.price = max_price;
        }
        self.log(step, "accept", Party::Seller(seller), Some(max_price), "");
        self.reserve(seller, max_price, step);
        Ok(())
    }

    fn refuse(&mut self, seller: usize, max_price: Cents, step: &mut DealStep) -> Result<(), RequestError> {
        self.check_negotiating(seller, max_price)?;
        self.log(step, "refuse", Party::Seller(seller), Some(max_price), "");
        self.negotiate_next(step);
        Ok(())
    }

    fn seller_cancels(&mut self, seller: usize, step: &mut DealStep) -> Result<(), RequestError> {
        let bound = self.sellers[seller].offer.as_ref().is_some_and(|offer| offer.status != OfferStatus::Withdrawn);
        if !bound || !self.is_cancellable() {
            return Err(self.wrong_state());
        }
        self.log(step, "cancel", Party::Seller(seller), None, "");
        self.withdraw(seller, step);
        Ok(())
    }

    fn buy(&mut self, price: Cents, step: &mut DealStep) -> Result<(), RequestError> {
        let DealState::Reserved { seller, price: reserved, .. } = self.state else {
            return Err(self.wrong_state());
        };
        if price != reserved {
            return Err(RequestError::new(
                ErrorCode::BadRequest,
                format!("price: expected {reserved}, as in the newest FOUND"),
            ));
        }
        self.state = DealState::Settling {
            seller,
            price,
            fee: Some(Amount(step.context.fee.fee_on(price))),
            payment: PaymentProgress::Asked,
        };
        step.effects.deal_changed = true;
        self.log(step, "buy", Party::Buyer, Some(price), &format!("from {}", self.sellers[seller].name));
        Ok(())
    }

    fn buyer_cancels(&mut self, step: &mut DealStep) -> Result<(), RequestError> {
        if !self.is_cancellable() {
            return Err(self.wrong_state());
        }
        self.log(step, "cancel", Party::Buyer, None, "");
        self.end_for_buyer("cancelled by the buyer", step);
        Ok(())
    }

    fn is_cancellable(&self) -> bool {
        matches!(self.state, DealState::Searching { .. } | DealState::Negotiating { .. } | DealState::Reserved { .. })
    }

    pub(super) fn tick(&mut self, step: &mut DealStep) {
        match self.state {
            DealState::Searching { until } if until <= step.context.now => self.close_window(step),
            DealState::Searching { .. } if self.acks_due.is_some_and(|due| due <= step.context.now) => {
                self.stop_awaiting_unacknowledged(step);
            }
            DealState::Negotiating { seller, until, .. } if until <= step.context.now => {
                self.log(step, "refuse", Party::Seller(seller), Some(self.max_price), "no answer in time");
                self.negotiate_next(step);
            }
            DealState::Reserved { seller, until, .. } if until <= step.context.now => {
                let reason = "the reservation ran out";
                self.log(step, "cancel", Party::Buyer, None, reason);
                self.cancel(reason, step);
                self.notify(Party::Buyer, NotificationBody::Cancel(reason.into()), step);
                self.notify(Party::Seller(seller), NotificationBody::Cancel(reason.into()), step);
            }
            _ => {}
        }
    }

    pub(super) fn depart(&mut self, party: Party, step: &mut DealStep) {
        self.clear_outstanding(party);
        self.mark_changed(party, step);
        match party {
            Party::Buyer => {
                self.buyer_gone = true;
                if self.is_cancellable() {
                    self.end_for_buyer("the buyer has left", step);
                }
            }
            Party::Seller(seller) => {
                self.sellers[seller].gone = true;
                self.sellers[seller].replied = true;
                self.withdraw(seller, step);
            }
        }
    }

    /// Withdraws the offer: a search no longer waits for the seller, a negotiation moves on to the next one, a
    /// reservation to the next offer at or below the maximum.
    fn withdraw(&mut self, seller: usize, step: &mut DealStep) {
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.status = OfferStatus::Withdrawn;
            step.effects.sellers_changed.push(seller);
        }
        match self.state {
            DealState::Searching { .. } => self.close_window_if_answered(step),
            DealState::Negotiating { seller: asked, .. } if asked == seller => self.negotiate_next(step),
            DealState::Reserved { seller: taken, .. } if taken == seller => {
                match self.cheapest(|offer, max| offer.price <= max) {
                    Some((next, price)) => self.reserve(next, price, step),
                    None => {
                        let reason = "the seller has cancelled";
                        self.cancel(reason, step);
                        self.notify(Party::Buyer, NotificationBody::Cancel(reason.into()), step);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn close_window_if_answered(&mut self, step: &mut DealStep) {
        let searching = matches!(self.state, DealState::Searching { .. });
        if searching && self.sellers.iter().all(|side| side.replied || !side.waited_for) {
            self.close_window(step);
        }
    }

    /// A recipient that usually acknowledges but has not done so for this search is absent: the window no longer waits.
    fn stop_awaiting_unacknowledged(&mut self, step: &mut DealStep) {
        self.acks_due = None;
        for (seller, side) in self.sellers.iter_mut().enumerate() {
            if side.waited_for && side.acknowledges && !side.replied && side.is_search_outstanding() {
                side.waited_for = false;
                step.effects.sellers_changed.push(seller);
            }
        }
        self.close_window_if_answered(step);
    }

    fn close_window(&mut self, step: &mut DealStep) {
        step.effects.unresponsive.extend((0..self.sellers.len()).filter(|&seller| !self.sellers[seller].replied));
        self.clear_searches(step);
        match self.cheapest(|_, _| true) {
            None => {
                self.cancel("NOT_AVAILABLE", step);
                self.log(step, "not_available", Party::Buyer, None, "no offer");
                self.notify(Party::Buyer, NotificationBody::NotAvailable, step);
            }
            Some((seller, price)) if price <= self.max_price => self.reserve(seller, price, step),
            Some(_) => self.negotiate_next(step),
        }
    }

    /// Asks the cheapest seller that has not been asked yet. If none is left, or [`NEGOTIATIONS_MAX`] have refused, the
    /// buyer is told NOT_FOUND.
    fn negotiate_next(&mut self, step: &mut DealStep) {
        let round = if let DealState::Negotiating { round, .. } = self.state { round } else { 0 };
        let next = self.cheapest(|offer, _| !offer.negotiated).filter(|_| round < NEGOTIATIONS_MAX);
        step.effects.deal_changed = true;
        let Some((seller, _)) = next else {
            self.cancel("NOT_FOUND", step);
            self.log(step, "not_found", Party::Buyer, Some(self.max_price), "every offer is above the maximum");
            self.release_offers(None, step);
            self.notify(Party::Buyer, NotificationBody::NotFound, step);
            return;
        };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.negotiated = true;
        }
        self.state = DealState::Negotiating {
            seller,
            until: step.context.now.plus(step.context.windows.negotiate),
            round: round + 1,
        };
        self.log(step, "negotiate", Party::Seller(seller), Some(self.max_price), "");
        self.notify(Party::Seller(seller), NotificationBody::Negotiate, step);
    }

    fn reserve(&mut self, seller: usize, price: Cents, step: &mut DealStep) {
        self.state = DealState::Reserved { seller, price, until: step.context.now.plus(step.context.windows.reserve) };
        if let Some(offer) = &mut self.sellers[seller].offer {
            offer.status = OfferStatus::Bound;
        }
        step.effects.deal_changed = true;
        self.log(step, "reserve", Party::Seller(seller), Some(price), "");
        self.notify(Party::Seller(seller), NotificationBody::Reserve(price), step);
        self.notify(Party::Buyer, NotificationBody::Found(price, seller), step);
        self.release_offers(Some(seller), step);
    }

    /// The cheapest valid offer that `fits`, given the offer and the buyer's maximum; earlier offers win ties.
    fn cheapest(&self, fits: impl Fn(&Offer, Cents) -> bool) -> Option<(usize, Cents)> {
        let offers = self.sellers.iter().enumerate().filter_map(|(seller, side)| Some((seller, side.offer.as_ref()?)));
        offers
            .filter(|(_, offer)| offer.status != OfferStatus::Withdrawn && fits(offer, self.max_price))
            .min_by_key(|(_, offer)| (offer.price, offer.place))
            .map(|(seller, offer)| (seller, offer.price))
    }

    /// Tells all sellers whose offers still bind a unit, except the one that was `taken`.
    fn release_offers(&mut self, taken: Option<usize>, step: &mut DealStep) {
        for seller in (0..self.sellers.len()).filter(|&seller| Some(seller) != taken) {
            if let Some(offer) = self.sellers[seller].offer.as_mut().filter(|offer| offer.status == OfferStatus::Bound)
            {
                offer.status = OfferStatus::Released;
                self.notify(Party::Seller(seller), NotificationBody::Released, step);
            }
        }
    }

    /// Ends the deal from the buyer's side: the current seller is told CANCEL, the others RELEASED.
    fn end_for_buyer(&mut self, reason: &str, step: &mut DealStep) {
        let with = match self.state {
            DealState::Negotiating { seller, .. } | DealState::Reserved { seller, .. } => Some(seller),
            _ => None,
        };
        self.cancel(reason, step);
        if let Some(seller) = with {
            self.notify(Party::Seller(seller), NotificationBody::Cancel(reason.into()), step);
        }
        self.release_offers(with, step);
        self.clear_searches(step);
    }

    /// Stops repeating the search: that ends with its window.
    fn clear_searches(&mut self, step: &mut DealStep) {
        for seller in 0..self.sellers.len() {
            if self.sellers[seller].is_search_outstanding() {
                self.clear_outstanding(Party::Seller(seller));
                step.effects.sellers_changed.push(seller);
            }
        }
    }

    pub(super) fn cancel(&mut self, reason: &str, step: &mut DealStep) {
        self.end(DealState::Cancelled { reason: reason.into(), at: step.context.now }, step);
    }

    pub(super) fn end(&mut self, state: DealState, step: &mut DealStep) {
        debug_assert!(self.ended_at().is_none(), "a deal ends once");
        self.state = state;
        step.effects.deal_changed = true;
        step.effects.ended = true;
    }

    pub(super) fn advance_payment(
        &mut self,
        from: PaymentProgress,
        to: PaymentProgress,
        step: &mut DealStep,
    ) -> Result<(), RequestError> {
        match &mut self.state {
            DealState::Settling { seller, price, fee, payment } if *payment == from => {
                *payment = to;
                let authorise =
                    DealPosting { operation: LedgerOperation::Authorise, seller: *seller, price: *price, fee: *fee };
                step.effects.posting = (to == PaymentProgress::Authorised).then_some(authorise);
            }
            _ => return Err(self.wrong_state()),
        }
        step.effects.deal_changed = true;
        Ok(())
    }

    pub(super) fn wrong_state(&self) -> RequestError {
        let state = match &self.state {
            DealState::Searching { .. } => "offers are still awaited".to_owned(),
            DealState::Negotiating { .. } => "a price is being negotiated".to_owned(),
            DealState::Reserved { .. } => "it is reserved".to_owned(),
            DealState::Settling { .. } => "it is being settled".to_owned(),
            DealState::Completed { .. } => "it is completed".to_owned(),
            DealState::Cancelled { reason, .. } => format!("it is cancelled: {reason}"),
        };
        RequestError::new(ErrorCode::WrongState, state)
    }
}
