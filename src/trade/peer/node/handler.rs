//! Handles notifications and settlements on the client's threads.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::{NodeInner, QUEUED_NOTIFICATIONS_MAX};
use crate::model::{Cents, Name, PaymentCard};
use crate::trade::client::{ClientHandler, ShippingOrder};
use crate::trade::peer::wallet::Wallet;
use crate::trade::peer::{PeerEvent, PeerInput, ShipTo};
use crate::trade::wire::{Amount, InformResponse, Notification, PaymentDetails, Side};

/// The reference is weak, since the client belongs to the [`NodeInner`].
pub(super) struct NodeHandler(pub(super) Weak<NodeInner>);

impl ClientHandler for NodeHandler {
    fn notification(&self, notification: Notification) {
        if let Some(inner) = self.0.upgrade()
            && inner.inputs.len() < QUEUED_NOTIFICATIONS_MAX
        {
            // Fails only if the peer has closed.
            let _ = inner.inputs.send(PeerInput::Notification(notification));
        }
    }

    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<InformResponse, String> {
        self.0.upgrade().ok_or("the peer is closed")?.inform(rq, item_name, price, deadline)
    }

    fn ship(&self, shipping: &ShippingOrder) -> Result<(), String> {
        let ShippingOrder { rq, price, ref name, ref address, .. } = *shipping;
        let to = ShipTo { name: name.clone(), address: address.clone() };
        let inner = self.0.upgrade().ok_or("the peer is closed")?;
        inner.step(vec![PeerInput::Ship { rq, price, to }]).map_err(|error| error.to_string())
    }

    fn settled(&self, rq: u64, payout: Amount) {
        self.after_settlement(rq, PeerInput::Settled { rq, payout });
    }

    fn receipt(&self, rq: u64, item_name: Arc<str>, price: Cents, seller: Name) {
        self.after_settlement(rq, PeerInput::Receipt { rq, item_name, price, seller });
    }

    fn cancelled(&self, rq: u64, reason: Arc<str>) {
        self.after_settlement(rq, PeerInput::SettlementCancelled { rq, reason });
    }

    fn interrupted(&self, rq: u64, why: &str) {
        if let Some(inner) = self.0.upgrade() {
            inner.emit_trouble(Some(rq), format!("the settlement broke off: {why}; the server is asked how it ended"));
        }
        self.after_settlement(rq, PeerInput::SettlementInterrupted { rq });
    }

    fn server_silent(&self, is_closed: bool) {
        if let Some(inner) = self.0.upgrade() {
            let cause = if is_closed { "nothing listens there" } else { "nothing comes from there" };
            inner.emit(&PeerEvent::Silent { server: inner.config.client.server, cause });
        }
    }

    fn rejected(&self, why: &str) {
        if let Some(inner) = self.0.upgrade() {
            inner.emit_trouble(None, why);
        }
    }
}

impl NodeHandler {
    fn after_settlement(&self, rq: u64, input: PeerInput) {
        let Some(inner) = self.0.upgrade() else { return };
        // STATUS will tell what could not be stored.
        if let Err(error) = inner.step(vec![input]) {
            inner.emit_trouble(Some(rq), error.to_string());
        }
    }
}

impl NodeInner {
    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<InformResponse, String> {
        let mut reason = String::new();
        let found = self.core.wait_for(deadline, |core| match core.check_inform(rq, item_name, price) {
            Ok(side) => ControlFlow::Break(Ok(side)),
            Err(error) if !error.is_retryable => ControlFlow::Break(Err(error.reason)),
            Err(error) => {
                reason = error.reason;
                ControlFlow::Continue(None)
            }
        });
        let Some(found) = found else { return Err(reason) };
        let side = self.core.wait(found).map_err(|error| error.to_string())??;
        let payment_details = match side {
            Side::Buyer => Some(self.wallet()?),
            // A seller's payment details are ignored, so no sale fails for lack of them.
            Side::Seller => self.wallet().ok(),
        };
        let payment_details = payment_details.map(|Wallet { cc_number: number, cc_exp: expiry, address }| {
            PaymentDetails { card: PaymentCard { number, expiry }, address }
        });
        let token = self.store.token(&self.config.server).map_err(|error| error.to_string())?;
        let token = token.ok_or("we have left")?;
        Ok(InformResponse { name: self.config.client.name.clone(), token, payment_details })
    }

    pub(super) fn wallet(&self) -> Result<Wallet, String> {
        let path = self.config.wallet.as_deref();
        Wallet::read(path.ok_or("there is no wallet to pay with: start with --wallet FILE")?)
    }
}
