use std::sync::Arc;

use super::{CommandError, PeerCore, PeerEffects, PeerEvent};
use crate::trade::client::ClientError;
use crate::trade::wire::{DealRequest, ErrorCode, Goods, Notification, RequestBody, Response};

/// What the user requests of the server about a deal, on either side.
#[derive(Debug, Clone)]
pub enum DealCommand {
    Buy,
    Cancel,
}

impl PeerCore {
    pub(super) fn handle_deal_command(
        &mut self,
        rq: u64,
        command: DealCommand,
        effects: &mut PeerEffects,
    ) -> Result<(), CommandError> {
        match command {
            DealCommand::Buy => self.buy(rq, effects),
            DealCommand::Cancel if self.sales.contains_key(&rq) => self.cancel_sale(rq, effects),
            DealCommand::Cancel => self.cancel_purchase(rq, effects),
        }
    }

    /// Acknowledges every copy of a notification and handles only the first.
    pub(super) fn handle_notification(&mut self, notification: Notification, effects: &mut PeerEffects) {
        let mid = notification.mid();
        effects.acks.push(mid);
        if !self.seen.insert(self.now, mid, effects) {
            return;
        }
        match notification {
            Notification::Search { rq, item_name, description, .. } => {
                self.search(rq, item_name, &description, effects)
            }
            Notification::Negotiate { rq, item_name, max_price, .. } => {
                self.negotiate(rq, item_name, max_price, effects)
            }
            Notification::Reserve { rq, item_name, price, .. } => self.reserve(rq, item_name, price, effects),
            Notification::Released { rq, .. } => self.released(rq, effects),
            Notification::Found { rq, item_name, price, seller, offer_item, offer_description, .. } => {
                let goods = Goods { item: offer_item, description: offer_description };
                self.found(Some(mid), rq, item_name, price, Some(seller), goods, effects);
            }
            Notification::NotFound { rq, .. } => self.search_failed(rq, "NOT_FOUND", effects),
            Notification::NotAvailable { rq, .. } => self.search_failed(rq, "NOT_AVAILABLE", effects),
            Notification::Cancel { rq, reason, .. } => self.end_deal(rq, &reason, effects),
        }
    }

    pub(super) fn handle_response(
        &mut self,
        rq: u64,
        body: &RequestBody,
        response: Result<Response, ClientError>,
        effects: &mut PeerEffects,
    ) {
        if matches!(response, Err(ClientError::Superseded)) {
            return;
        }
        if let Some(purchase) = self.purchases.get_mut(&rq) {
            purchase.is_pending = false;
        }
        if let Some(sale) = self.sales.get_mut(&rq) {
            sale.is_pending = false;
        }
        // The request may have arrived nevertheless; STATUS will tell.
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                self.status_requests.remove(&rq);
                let reason = error.to_string();
                effects.trouble(self.has_deal(rq).then_some(rq), reason);
                return;
            }
        };
        match (body, response) {
            (_, Response::Error { code, reason, .. }) => self.request_refused(rq, body, code, &reason, effects),
            (RequestBody::Status { .. }, Response::Deals { deals, more, .. }) => {
                if let Some((step, about)) = self.status_requests.remove(&rq) {
                    self.reconcile(step, about, &deals, more, effects);
                }
            }
            (RequestBody::LookingFor { item_name, .. }, Response::Searching { peers, .. }) => {
                effects.events.push(PeerEvent::Searching { rq, item_name: item_name.clone(), peers });
            }
            (RequestBody::Deal { item_name, request }, _) => {
                self.deal_request_accepted(rq, item_name, request, effects)
            }
            // The client hands on only responses that fit, and the node takes those about the registration.
            (
                RequestBody::Register { .. }
                | RequestBody::Login { .. }
                | RequestBody::DeRegister
                | RequestBody::LookingFor { .. }
                | RequestBody::Status { .. },
                _,
            ) => {}
        }
    }

    fn deal_request_accepted(
        &mut self,
        rq: u64,
        item_name: &Arc<str>,
        request: &DealRequest,
        effects: &mut PeerEffects,
    ) {
        match request {
            DealRequest::Buy { price } => {
                effects.events.push(PeerEvent::Buying { rq, item_name: item_name.clone(), price: *price });
            }
            DealRequest::Cancel => self.end_deal(rq, "cancelled by us", effects),
            // What these mean for us was recorded when they were sent.
            DealRequest::Offer { .. }
            | DealRequest::NotAvailable
            | DealRequest::Accept { .. }
            | DealRequest::Refuse { .. } => {}
        }
    }

    fn request_refused(
        &mut self,
        rq: u64,
        body: &RequestBody,
        code: ErrorCode,
        reason: &str,
        effects: &mut PeerEffects,
    ) {
        self.status_requests.remove(&rq);
        match body {
            RequestBody::LookingFor { .. } => self.end_purchase(rq, reason, effects),
            RequestBody::Deal { request, .. } => self.deal_request_refused(rq, request, code, reason, effects),
            RequestBody::Register { .. }
            | RequestBody::Login { .. }
            | RequestBody::DeRegister
            | RequestBody::Status { .. } => {
                effects.trouble(None, reason);
            }
        }
    }

    fn deal_request_refused(
        &mut self,
        rq: u64,
        request: &DealRequest,
        code: ErrorCode,
        reason: &str,
        effects: &mut PeerEffects,
    ) {
        let is_retryable = matches!(code, ErrorCode::Busy | ErrorCode::Unavailable);
        match request {
            // Nothing changed on the server, so our own change still waits, perhaps for STATUS.
            DealRequest::Offer { .. } | DealRequest::Accept { .. } if is_retryable => {
                effects.trouble(None, reason);
            }
            DealRequest::Offer { .. } => self.offer_refused(rq, reason, effects),
            DealRequest::Accept { .. } => self.accept_refused(rq, reason, effects),
            DealRequest::Buy { .. } => self.buy_refused(rq, is_retryable, reason, effects),
            DealRequest::Cancel if code == ErrorCode::UnknownDeal => self.end_deal(rq, reason, effects),
            DealRequest::Cancel => self.report_and_ask(rq, format!("not cancelled: {reason}"), effects),
            // A late NOT_AVAILABLE or REFUSE makes no difference.
            DealRequest::NotAvailable | DealRequest::Refuse { .. } => {}
        }
    }

    pub(super) fn report_and_ask(&mut self, rq: u64, reason: String, effects: &mut PeerEffects) {
        effects.trouble(Some(rq), reason);
        self.ask_status(Some(rq), effects);
    }
}
