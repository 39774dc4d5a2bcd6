//! What the client's threads bring: pushes, and the lines of settlements.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::{Inner, PUSHES_MAX};
use crate::model::{Card, Cents, Name};
use crate::trade::client::{Handler, Shipping};
use crate::trade::peer::wallet::Wallet;
use crate::trade::peer::{Event, Note, ShipTo};
use crate::trade::wire::{Amount, Inform, Purse, Push, Side};

/// What the client talks to. Weak, because the client is the inner one's own.
pub(super) struct Ear(pub(super) Weak<Inner>);

impl Handler for Ear {
    fn push(&self, push: Push) {
        if let Some(inner) = self.0.upgrade()
            && inner.events.len() < PUSHES_MAX
        {
            // Nobody reads any more only once the peer has closed.
            let _ = inner.events.send(Event::Push(push));
        }
    }

    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<Inform, String> {
        self.0.upgrade().ok_or("the peer is closed")?.inform(rq, item_name, price, deadline)
    }

    fn ship(&self, shipping: &Shipping) -> Result<(), String> {
        let Shipping { rq, price, ref name, ref address, .. } = *shipping;
        let to = ShipTo { name: name.clone(), address: address.clone() };
        let inner = self.0.upgrade().ok_or("the peer is closed")?;
        inner.step(vec![Event::Ship { rq, price, to }]).map_err(|error| error.to_string())
    }

    fn settled(&self, rq: u64, payout: Amount) {
        self.after_settlement(rq, Event::Settled { rq, payout });
    }

    fn receipt(&self, rq: u64, item_name: Arc<str>, price: Cents, seller: Name) {
        self.after_settlement(rq, Event::Receipt { rq, item_name, price, seller });
    }

    fn cancelled(&self, rq: u64, reason: Arc<str>) {
        self.after_settlement(rq, Event::SettlementCancelled { rq, reason });
    }

    fn broke(&self, rq: u64, why: &str) {
        if let Some(inner) = self.0.upgrade() {
            inner.trouble(Some(rq), format!("the settlement broke off: {why}; the server is asked how it ended"));
        }
        self.after_settlement(rq, Event::SettlementBroke { rq });
    }

    fn silent(&self, is_closed: bool) {
        if let Some(inner) = self.0.upgrade() {
            let cause = if is_closed { "nothing listens there" } else { "nothing comes from there" };
            inner.tell(&Note::Silent { server: inner.settings.client.server, cause });
        }
    }

    fn refused(&self, why: &str) {
        if let Some(inner) = self.0.upgrade() {
            inner.trouble(None, why);
        }
    }
}

impl Ear {
    fn after_settlement(&self, rq: u64, event: Event) {
        let Some(inner) = self.0.upgrade() else { return };
        // What could not be stored will be learnt from STATUS.
        if let Err(error) = inner.step(vec![event]) {
            inner.trouble(Some(rq), error.to_string());
        }
    }
}

impl Inner {
    fn inform(&self, rq: u64, item_name: &str, price: Cents, deadline: Instant) -> Result<Inform, String> {
        let mut why = String::new();
        let found = self.core.wait_for(deadline, |core| match core.may_inform(rq, item_name, price) {
            Ok(side) => ControlFlow::Break(Ok(side)),
            Err(not_held) if !not_held.may_come => ControlFlow::Break(Err(not_held.why)),
            Err(not_held) => {
                why = not_held.why;
                ControlFlow::Continue(None)
            }
        });
        let Some(found) = found else { return Err(why) };
        let side = self.core.wait(found).map_err(|error| error.to_string())??;
        let purse = match side {
            Side::Buyer => Some(self.wallet()?),
            // Nobody looks at a seller's: no sale is to fail for it.
            Side::Seller => self.wallet().ok(),
        };
        let purse = purse.map(|Wallet { cc_number: number, cc_exp: expiry, address }| Purse {
            card: Card { number, expiry },
            address,
        });
        let token = self.store.token(&self.settings.server).map_err(|error| error.to_string())?;
        let token = token.ok_or("we have left")?;
        Ok(Inform { name: self.settings.client.name.clone(), token, purse })
    }

    pub(super) fn wallet(&self) -> Result<Wallet, String> {
        let path = self.settings.wallet.as_deref();
        Wallet::read(path.ok_or("there is no wallet to pay with: start with --wallet FILE")?)
    }
}
