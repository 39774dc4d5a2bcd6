//! Buyers. Each has one session and two hands, which share its cart and know nothing of each other.

use std::collections::BTreeMap;

use p2s2::shop::ops::{Answer, Code, Purchased};

use super::world::{Event, World};
use crate::rng::Rng;

/// How long a client waits for its answer.
const PATIENCE_MS: u64 = 25_000;

/// What a MakePurchase says.
#[derive(Debug, Clone)]
pub struct Wish {
    pub buyer: u64,
    pub serial: u64,
    /// The frontend's number of the message.
    pub request: String,
    pub key: Option<String>,
    pub address: Option<String>,
    pub card: &'static str,
}

pub struct Hand {
    pub buyer: u64,
    bad_card: bool,
    serial: u64,
    /// What was asked and not answered.
    pub waiting: Option<Wish>,
    /// What was answered without saying how it ended, under a key: to be asked again.
    pub in_doubt: Option<Wish>,
    /// What was answered under each key.
    pub answers: BTreeMap<String, String>,
}

impl Hand {
    pub fn new(buyer: u64, rng: &mut Rng) -> Hand {
        let bad_card = rng.permille(150);
        Hand { buyer, bad_card, serial: 0, waiting: None, in_doubt: None, answers: BTreeMap::new() }
    }
}

impl World {
    pub fn wake(&mut self, hand: usize) {
        let pause = self.rng.range(100, 5_000);
        self.at(pause, Event::Wake(hand));
        if self.hands[hand].waiting.is_some() {
            return;
        }
        let buyer = self.hands[hand].buyer;
        let again = self.hands[hand].in_doubt.take();
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
        let state = &mut self.hands[hand];
        state.serial += 1;
        let serial = state.serial;
        let request = format!("{hand}-{serial}");
        let wish = match again {
            Some(again) => Wish { serial, request, ..again },
            None if self.healed => return,
            None => {
                // Now and then both hands take the same key.
                let key = self.rng.permille(500).then(|| format!("key {}", self.rng.below(1 + serial)));
                let address = self.rng.permille(300).then(|| "1 Main Street".to_owned());
                let card = if self.hands[hand].bad_card { "4000000000000002" } else { "4111111111111111" };
                Wish { buyer, serial, request, key, address, card }
            }
        };
        let state = &mut self.hands[hand];
        state.waiting = Some(wish.clone());
        let frontend = self.rng.below(self.frontends.len() as u64) as usize;
        self.at(PATIENCE_MS, Event::GiveUp { hand, serial });
        self.network(Event::MakePurchase { frontend, hand, wish });
    }

    pub fn answered(&mut self, hand: usize, serial: u64, answer: Answer<Purchased>) {
        let state = &mut self.hands[hand];
        if state.waiting.as_ref().is_none_or(|wish| wish.serial != serial) {
            return;
        }
        let Some(wish) = state.waiting.take() else { return };
        match answer {
            Ok(purchased) => {
                self.tally.answered += 1;
                if let Some(key) = &wish.key {
                    let id = purchased.purchase_id.clone();
                    let before = state.answers.entry(key.clone()).or_insert_with(|| id.clone()).clone();
                    self.rules.same_key(wish.buyer, key, &before, &id);
                }
                self.rules.promised(wish.buyer, purchased);
            }
            Err(refusal) if matches!(refusal.code, Code::Unavailable | Code::Busy) => {
                state.in_doubt = wish.key.is_some().then_some(wish);
            }
            Err(_) => {}
        }
    }
}
