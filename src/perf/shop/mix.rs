//! Mixes: sellers and buyers at once, each with a fixed sequence of calls, again and again.
//!
//! | mix | sellers | buyers |
//! |---|---|---|
//! | `MIX` | add items and change prices | search and show the cart |
//! | `ALL` | everything a seller can do | everything a buyer can do, purchases with it |
//!
//! "N clients" are N sellers and N buyers, and all 2 N call. Sellers add items in every run, so later ones meet a
//! larger catalogue.
//!
//! The `relay` beside a mix makes the same sequence of calls, each with its own hops and sizes, learned from the
//! first seller and the first buyer before the measurement. Pages of what was bought or is for sale grow until
//! they are full, and then the relay's answers are smaller than the measured ones: a share is rather too low
//! than too high. The operations of a mix have no limit of their own: in a closed loop how often each is called
//! follows from the sequence, so its share is the whole's.

use anyhow::ensure;
use serde_json::{Value, json};

use super::people::{CARD, Town, User};
use super::{Caller, Processes, RELAY, Relay, learn, run_all};
use crate::net::frames::Framing;
use crate::perf::limits::relay::{Trip, framed};
use crate::perf::load::Length;
use crate::perf::plan::{Bench, Effort, Group, Pair};
use crate::perf::run::Run;
use crate::shop::ops::Role;

/// The documents measured ten runs of a thousand calls of each client.
const RUNS: usize = 10;
const CALLS: u64 = 1000;
/// Of everything, purchases with it, which cost ten commits each: fewer, unless there is time.
const CALLS_OF_ALL: u64 = 100;
const RUNS_OF_ALL: usize = 5;
/// A quick run has time for hardly more than a look.
const QUICK_RUNS: usize = 5;
const QUICK_CALLS: u64 = 12;
/// Lists are asked for in pages of so many: sellers have more from run to run.
const PAGE: u32 = 25;

/// A mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// What the documents measured.
    Documents,
    /// Everything.
    Everything,
}

impl Mix {
    /// As `--only` names it.
    pub fn name(self) -> &'static str {
        match self {
            Mix::Documents => "MIX",
            Mix::Everything => "ALL",
        }
    }

    /// As reports call it.
    pub fn title(self, framing: Framing) -> &'static str {
        match (self, framing) {
            (Mix::Documents, Framing::Frames) => "MIX",
            (Mix::Documents, Framing::Lines) => "MIX (lines)",
            (Mix::Everything, Framing::Frames) => "ALL",
            (Mix::Everything, Framing::Lines) => "ALL (lines)",
        }
    }

    fn effort(self, run: &Run<'_>) -> Effort {
        let args = run.args;
        let (runs, calls) = match (args.quick, args.full, self) {
            (true, ..) => (QUICK_RUNS, QUICK_CALLS),
            (false, false, Mix::Everything) => (RUNS_OF_ALL, CALLS_OF_ALL),
            _ => (RUNS, CALLS),
        };
        let runs = args.runs.map_or(runs, usize::from);
        Effort { runs, length: Length::Calls(args.calls.unwrap_or(calls)), ..run.effort }
    }

    fn calls(self, user: &User, nth: usize, items: &[String]) -> Vec<(&'static str, Value)> {
        match (self, user.role) {
            (Mix::Documents, Role::Seller) => documents_seller(user),
            (Mix::Documents, Role::Buyer) => documents_buyer(user, nth),
            (Mix::Everything, Role::Seller) => whole_seller(user),
            (Mix::Everything, Role::Buyer) => whole_buyer(user, nth, &items[nth % items.len()]),
        }
    }
}

fn new_item(user: &User) -> Value {
    json!({
        "item_name": format!("Tin Lamp {}", user.name), "category": 3, "keywords": ["tin", "own"],
        "condition": "New", "price": 7.5, "quantity": 100,
    })
}

fn price_of(item: &str, price: f64) -> (&'static str, Value) {
    ("ChangeItemPrice", json!({"item_id": item, "price": price}))
}

fn documents_seller(user: &User) -> Vec<(&'static str, Value)> {
    // Another price each time: the same one would be no change.
    let prices = [12.75, 12.25].into_iter().flat_map(|price| user.items.iter().map(move |item| price_of(item, price)));
    prices.flat_map(|change| [("RegisterItemForSale", new_item(user)), change]).collect()
}

fn documents_buyer(user: &User, nth: usize) -> Vec<(&'static str, Value)> {
    let search = |at| ("SearchItemsForSale", json!({"keywords": [user.group(nth + at)]}));
    (0..20).flat_map(|at| [search(at), ("DisplayCart", json!({}))]).collect()
}

fn whole_seller(user: &User) -> Vec<(&'static str, Value)> {
    let (item, page) = (&user.items[0], json!({"limit": PAGE}));
    let mut calls = vec![("RegisterItemForSale", new_item(user))];
    for price in [12.75, 12.25] {
        calls.extend([
            price_of(item, price),
            ("UpdateUnitsForSale", json!({"item_id": item, "quantity": 1})),
            ("DisplayItemsForSale", page.clone()),
            ("GetItem", json!({"item_id": item})),
            ("GetSellerRating", json!({})),
            ("GetSellerOrders", page.clone()),
        ]);
    }
    calls
}

fn whole_buyer(user: &User, nth: usize, item: &str) -> Vec<(&'static str, Value)> {
    let (one, page) = (json!({"item_id": item, "quantity": 1}), json!({"limit": PAGE}));
    let of_item = json!({"item_id": item});
    let card = json!({"card": {"number": CARD, "exp": "12/79", "name": user.name}, "address": "1 Elm Street"});
    vec![
        ("SearchItemsForSale", json!({"keywords": [user.group(nth)]})),
        ("GetItem", of_item.clone()),
        ("AddItemToCart", one.clone()),
        ("DisplayCart", json!({})),
        ("SearchItemsForSale", json!({"category": nth % 10, "limit": PAGE})),
        ("AddItemToCart", one.clone()),
        ("RemoveItemFromCart", one.clone()),
        ("SaveCart", json!({})),
        ("MakePurchase", card),
        ("ProvideFeedback", json!({"item_id": item, "thumbs_up": !nth.is_multiple_of(3)})),
        ("GetBuyerPurchases", page),
        ("AddItemToCart", one),
        ("ClearCart", json!({})),
    ]
}

/// Measures a mix with so many sellers and as many buyers.
///
/// # Errors
/// A server that refuses or does not answer; the system's.
pub fn measure(
    run: &mut Run<'_>,
    processes: &Processes,
    relay: &mut Relay,
    town: &mut Town,
    (mix, framing): (Mix, Framing),
    clients: usize,
) -> anyhow::Result<()> {
    let title = mix.title(framing);
    run.say(&format!("preparing {title}"));
    processes.prepare(town)?;
    let nth_framing = usize::from(framing == Framing::Lines);
    let items = town.items().to_vec();
    let mut rounds = Vec::with_capacity(2 * clients);
    let mut trips: Vec<Vec<Vec<Trip>>> = Vec::new();
    for role in [Role::Seller, Role::Buyer] {
        let users = &mut town.users(role)[..clients];
        for user in users.iter_mut() {
            user.reconnect()?;
            // Whatever another operation has left in the cart.
            if role == Role::Buyer {
                user.ask("ClearCart", &json!({}))?;
            }
        }
        let mut of_role = Vec::with_capacity(clients);
        for (nth, user) in users.iter().enumerate() {
            let calls = mix.calls(user, nth, &items);
            ensure!(!calls.is_empty(), "{title} has no calls for {}", user.name);
            let called = calls.iter().map(|(api, payload)| (*api, super::call(api, Some(&user.sid), payload)));
            of_role.push(called.collect::<Vec<(&'static str, Vec<u8>)>>());
        }
        let learned = of_role[0].iter().map(|(api, call)| learn(&mut users[0], api, std::slice::from_ref(call)));
        trips.push(learned.collect::<anyhow::Result<_>>()?);
        rounds.extend(of_role);
    }
    let (relay_servers, mut echoing) = relay.clients_of(framing, clients, &trips)?;
    let (sellers, buyers) = town.both();
    let users = sellers[..clients].iter_mut().chain(&mut buyers[..clients]);
    let mut calling: Vec<Caller<'_>> = users
        .zip(rounds)
        .map(|(user, calls)| {
            let (names, rounds) = calls.into_iter().map(|(api, call)| (api, vec![framed(framing, &call)])).unzip();
            Caller { names, ..Caller::of_user(user, nth_framing, rounds) }
        })
        .collect();
    let benches = vec![
        Bench::limit(RELAY, |length, stop| run_all(&mut echoing, length, stop)).on(relay_servers),
        Bench::new(title, |length, stop| run_all(&mut calling, length, stop)).on(&processes.servers),
    ];
    let pairs = vec![Pair { result: title, limits: &[RELAY], required: None }];
    let effort = mix.effort(run);
    let usual = std::mem::replace(&mut run.effort, effort);
    let result = run.measure(Group { clients, benches, pairs });
    run.effort = usual;
    result
}

/// How many measurements it announces.
pub fn measurements(run: &Run<'_>, mix: Mix) -> usize {
    // The relay as well.
    2 * mix.effort(run).runs
}
