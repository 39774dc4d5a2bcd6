//! The simulated buyers. Each has two independent clients, which share one session and its cart.

use std::collections::BTreeMap;

use p2s2::internals::shop::ops::{CompletedPurchase, ErrorCode, ShopResult};

use super::world::{Event, World};
use crate::rng::Rng;

/// How long a client waits for a response.
const PATIENCE_MS: u64 = 25_000;

/// The content of a MakePurchase.
#[derive(Debug, Clone)]
pub struct PurchaseIntent {
    pub buyer: u64,
    pub serial: u64,
    /// The request id.
    pub request: String,
    pub key: Option<String>,
    pub address: Option<String>,
    pub card: &'static str,
}

pub struct BuyerClient {
    pub buyer: u64,
    bad_card: bool,
    serial: u64,
    /// The call without a response so far.
    pub waiting: Option<PurchaseIntent>,
    /// A call with an idempotency key whose response left the outcome open, to be retried.
    pub unresolved: Option<PurchaseIntent>,
    /// The purchase id that each idempotency key returned.
    pub answers: BTreeMap<String, String>,
}

impl BuyerClient {
    pub fn new(buyer: u64, rng: &mut Rng) -> BuyerClient {
        let bad_card = rng.permille(150);
        BuyerClient { buyer, bad_card, serial: 0, waiting: None, unresolved: None, answers: BTreeMap::new() }
    }
}

impl World {
    pub fn wake(&mut self, client: usize) {
        let pause = self.rng.range(100, 5_000);
        self.schedule(pause, Event::Wake(client));
        if self.clients[client].waiting.is_some() {
            return;
        }
        let buyer = self.clients[client].buyer;
        let again = self.clients[client].unresolved.take();
        if !self.healed && self.rng.permille(600) {
            let items: Vec<String> = self.product.shop.items.keys().cloned().collect();
            let item = self.rng.pick(&items).cloned().unwrap_or_default();
            let quantity = self.rng.range(1, 3) as u32;
            self.put_into_cart(buyer, &item, quantity);
        }
        if self.rng.permille(100)
            && let Some(item) = self.product.shop.items.values_mut().next()
        {
            item.price.0 = self.rng.range(1, 900) as i64;
        }
        let state = &mut self.clients[client];
        state.serial += 1;
        let serial = state.serial;
        let request = format!("{client}-{serial}");
        let intent = match again {
            Some(again) => PurchaseIntent { serial, request, ..again },
            None if self.healed => return,
            None => {
                // Sometimes both clients use the same key.
                let key = self.rng.permille(500).then(|| format!("key {}", self.rng.below(1 + serial)));
                let address = self.rng.permille(300).then(|| "1 Main Street".to_owned());
                let card = if self.clients[client].bad_card { "4000000000000002" } else { "4111111111111111" };
                PurchaseIntent { buyer, serial, request, key, address, card }
            }
        };
        let state = &mut self.clients[client];
        state.waiting = Some(intent.clone());
        let frontend = self.rng.below(self.frontends.len() as u64) as usize;
        self.schedule(PATIENCE_MS, Event::GiveUp { client, serial });
        self.network(Event::MakePurchase { frontend, client, intent });
    }

    pub fn answered(&mut self, client: usize, serial: u64, answer: ShopResult<CompletedPurchase>) {
        let state = &mut self.clients[client];
        if state.waiting.as_ref().is_none_or(|intent| intent.serial != serial) {
            return;
        }
        let Some(intent) = state.waiting.take() else { return };
        match answer {
            Ok(purchased) => {
                self.tally.answered += 1;
                if let Some(key) = &intent.key {
                    let id = purchased.purchase_id.clone();
                    let before = state.answers.entry(key.clone()).or_insert_with(|| id.clone()).clone();
                    self.rules.check_key(intent.buyer, key, &before, &id);
                }
                self.rules.record_promise(intent.buyer, purchased);
            }
            Err(refusal) if matches!(refusal.code, ErrorCode::Unavailable | ErrorCode::Busy) => {
                state.unresolved = intent.key.is_some().then_some(intent);
            }
            Err(_) => {}
        }
    }
}
