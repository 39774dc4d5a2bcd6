//! Deduplication of a deal's requests, and its notifications: how they are kept, and in the words of the wire.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AnsweredRequest, Deal, DealLogEntry, DealStep, Party};
use crate::model::Cents;
use crate::trade::wire::{DealRequest, ErrorCode, Goods, Notification, RequestError};

/// The last notification to a side that it has not acknowledged. A newer one replaces it: peers act on the newest, and
/// an old RESERVE that arrives after its CANCEL would bind a unit for nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OutstandingNotification {
    pub(super) mid: u64,
    #[serde(rename = "note")]
    pub(super) body: NotificationBody,
}

/// What a side is told. Rows name it by its variant, so a variant is never renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum NotificationBody {
    Search,
    Negotiate,
    Reserve(Cents),
    Released,
    Found(Cents, usize),
    NotFound,
    NotAvailable,
    Cancel(Arc<str>),
}

impl Deal {
    /// Whether the same request was answered before. The same number with other content is refused: it stands for one
    /// request.
    pub(super) fn is_repeat(
        &self,
        party: Party,
        asked: AnsweredRequest,
        item_name: &str,
        request: &DealRequest,
    ) -> Result<bool, RequestError> {
        let answered = match party {
            Party::Buyer => &self.answered,
            Party::Seller(seller) => &self.sellers[seller].answered,
        };
        let same_item = item_name == &*self.item_name;
        match answered.iter().find(|before| before.kind == asked.kind) {
            Some(before) if same_item && *before == asked && self.has_recorded(party, request) => Ok(true),
            Some(_) => Err(RequestError::new(ErrorCode::BadRequest, "rq already used")),
            None if same_item => Ok(false),
            None => Err(RequestError::new(
                ErrorCode::BadRequest,
                format!("item_name: expected {:?}, as in the search", self.item_name),
            )),
        }
    }

    pub(super) fn answered_requests_mut(&mut self, party: Party) -> &mut Vec<AnsweredRequest> {
        match party {
            Party::Buyer => &mut self.answered,
            Party::Seller(seller) => &mut self.sellers[seller].answered,
        }
    }

    pub(super) fn mark_changed(&self, party: Party, step: &mut DealStep) {
        match party {
            Party::Buyer => step.effects.deal_changed = true,
            Party::Seller(seller) => step.effects.sellers_changed.push(seller),
        }
    }

    fn outstanding(&self, party: Party) -> Option<&OutstandingNotification> {
        match party {
            Party::Buyer => self.outstanding.as_ref(),
            Party::Seller(seller) => self.sellers[seller].outstanding.as_ref(),
        }
    }

    fn outstanding_mut(&mut self, party: Party) -> &mut Option<OutstandingNotification> {
        match party {
            Party::Buyer => &mut self.outstanding,
            Party::Seller(seller) => &mut self.sellers[seller].outstanding,
        }
    }

    pub(super) fn clear_outstanding(&mut self, party: Party) {
        *self.outstanding_mut(party) = None;
    }

    pub(super) fn notify(&mut self, party: Party, body: NotificationBody, step: &mut DealStep) {
        let gone = match party {
            Party::Buyer => self.buyer_gone,
            Party::Seller(seller) => self.sellers[seller].gone,
        };
        if gone {
            return;
        }
        *self.outstanding_mut(party) = Some(OutstandingNotification { mid: (step.context.next_mid)(), body });
        self.mark_changed(party, step);
        // If a step notifies a side more than once, only the newest notification is sent.
        if !step.effects.notified.contains(&party) {
            step.effects.notified.push(party);
        }
    }

    /// Repeated to this side until it is acknowledged.
    pub fn outstanding_notification(&self, party: Party) -> Option<Notification> {
        let OutstandingNotification { mid, body } = self.outstanding(party)?;
        let (mid, rq, item_name) = (*mid, self.rq_of(party), self.item_name.clone());
        Some(match body {
            NotificationBody::Search => {
                Notification::Search { rq, mid, item_name, description: self.description.clone() }
            }
            NotificationBody::Negotiate => Notification::Negotiate { rq, mid, item_name, max_price: self.max_price },
            NotificationBody::Reserve(price) => Notification::Reserve { rq, mid, item_name, price: *price },
            NotificationBody::Released => Notification::Released { rq, mid, item_name },
            NotificationBody::Found(price, seller) => {
                let Goods { item: offer_item, description: offer_description } = self.goods_of(*seller);
                let seller = self.sellers[*seller].name.clone();
                Notification::Found { rq, mid, item_name, price: *price, seller, offer_item, offer_description }
            }
            NotificationBody::NotFound => Notification::NotFound { rq, mid, item_name, max_price: self.max_price },
            NotificationBody::NotAvailable => Notification::NotAvailable { rq, mid, item_name },
            NotificationBody::Cancel(reason) => Notification::Cancel { rq, mid, item_name, reason: reason.clone() },
        })
    }

    pub fn outstanding_mid(&self, party: Party) -> Option<u64> {
        self.outstanding(party).map(|outstanding| outstanding.mid)
    }

    /// The side has received a notification. False if no such one is outstanding.
    pub fn acknowledge(&mut self, party: Party, mid: u64) -> bool {
        let known = self.outstanding_mid(party) == Some(mid);
        if known {
            self.clear_outstanding(party);
        }
        known
    }

    pub(super) fn log(
        &self,
        step: &mut DealStep,
        kind: &'static str,
        party: Party,
        price: Option<Cents>,
        detail: &str,
    ) {
        let peer = self.name_of(party).clone();
        step.effects.log.push(DealLogEntry { kind, peer, price, detail: detail.to_owned() });
    }
}
