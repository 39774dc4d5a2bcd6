//! Mixes: sellers and buyers concurrently, each repeating a fixed sequence of calls.
//!
//! | mix | sellers | buyers |
//! |---|---|---|
//! | `MIX` | add items and change prices | search and show the cart |
//! | `ALL` | all calls of a seller | all calls of a buyer, including purchases |
//!
//! "N clients" are N sellers and N buyers, all of which call. Sellers add items in every run, so the catalogue grows.
//!
//! The `relay` of a mix makes the same sequence of calls, with hops and sizes learned from the first seller and the first
//! buyer before the measurement. Pages of purchases and items grow until they are full, so the relay's responses become
//! smaller than the measured ones, and a share is too low rather than too high. The operations of a mix have no limits
//! of their own: in a closed loop their frequencies follow from the sequence, so each has the share of the whole.

use anyhow::ensure;
use serde_json::{Value, json};

use super::users::{CARD, ShopPopulation, User};
use super::{ClosedLoopClient, RELAY, RelayProcesses, ShopProcesses, learn_relay_requests, run_all};
use crate::net::frames::Framing;
use crate::perf::limits::relay::{RelayRequest, framed};
use crate::perf::load::MeasurementLength;
use crate::perf::plan::{Benchmark, BenchmarkGroup, Comparison, SamplingPlan};
use crate::perf::run::ScenarioRun;
use crate::shop::ops::Role;

/// The original measurements were ten runs of a thousand calls of each client.
const RUNS: usize = 10;
const CALLS: u64 = 1000;
/// The full mix includes purchases, which cost ten commits each, so it has fewer calls and runs by default.
const CALLS_OF_ALL: u64 = 100;
const RUNS_OF_ALL: usize = 5;
const QUICK_RUNS: usize = 5;
const QUICK_CALLS: u64 = 12;
/// Page size of lists: sellers have more items from run to run.
const PAGE: u32 = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// The mix of the original measurements.
    Documents,
    /// All operations.
    Everything,
}

impl Mix {
    pub fn title(self, framing: Framing) -> &'static str {
        match (self, framing) {
            (Mix::Documents, Framing::Frames) => "MIX",
            (Mix::Documents, Framing::Lines) => "MIX (lines)",
            (Mix::Everything, Framing::Frames) => "ALL",
            (Mix::Everything, Framing::Lines) => "ALL (lines)",
        }
    }

    fn sampling(self, run: &ScenarioRun<'_>) -> SamplingPlan {
        let args = run.args;
        let (runs, calls) = match (args.quick, args.full, self) {
            (true, ..) => (QUICK_RUNS, QUICK_CALLS),
            (false, false, Mix::Everything) => (RUNS_OF_ALL, CALLS_OF_ALL),
            _ => (RUNS, CALLS),
        };
        let runs = args.runs.map_or(runs, usize::from);
        SamplingPlan { runs, length: MeasurementLength::Calls(args.calls.unwrap_or(calls)), ..run.sampling }
    }

    fn calls(self, user: &User, nth: usize, items: &[String]) -> Vec<(&'static str, Value)> {
        match (self, user.role) {
            (Mix::Documents, Role::Seller) => documents_seller_calls(user),
            (Mix::Documents, Role::Buyer) => documents_buyer_calls(user, nth),
            (Mix::Everything, Role::Seller) => all_seller_calls(user),
            (Mix::Everything, Role::Buyer) => all_buyer_calls(user, nth, &items[nth % items.len()]),
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

fn documents_seller_calls(user: &User) -> Vec<(&'static str, Value)> {
    // Prices alternate, because the same price again would be no change.
    let prices = [12.75, 12.25].into_iter().flat_map(|price| user.items.iter().map(move |item| price_of(item, price)));
    prices.flat_map(|change| [("RegisterItemForSale", new_item(user)), change]).collect()
}

fn documents_buyer_calls(user: &User, nth: usize) -> Vec<(&'static str, Value)> {
    let search = |at| ("SearchItemsForSale", json!({"keywords": [user.group(nth + at)]}));
    (0..20).flat_map(|at| [search(at), ("DisplayCart", json!({}))]).collect()
}

fn all_seller_calls(user: &User) -> Vec<(&'static str, Value)> {
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

fn all_buyer_calls(user: &User, nth: usize, item: &str) -> Vec<(&'static str, Value)> {
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

pub fn measure(
    run: &mut ScenarioRun<'_>,
    processes: &ShopProcesses,
    relay: &mut RelayProcesses,
    population: &mut ShopPopulation,
    (mix, framing): (Mix, Framing),
    clients: usize,
) -> anyhow::Result<()> {
    let title = mix.title(framing);
    run.set_status(&format!("preparing {title}"));
    processes.prepare(population)?;
    let nth_framing = usize::from(framing == Framing::Lines);
    let items = population.items().to_vec();
    let mut rounds = Vec::with_capacity(2 * clients);
    let mut relay_requests: Vec<Vec<Vec<RelayRequest>>> = Vec::new();
    for role in [Role::Seller, Role::Buyer] {
        let users = &mut population.users(role)[..clients];
        for user in users.iter_mut() {
            user.reconnect()?;
            // Another operation may have left items in the cart.
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
        let learned =
            of_role[0].iter().map(|(api, call)| learn_relay_requests(&mut users[0], api, std::slice::from_ref(call)));
        relay_requests.push(learned.collect::<anyhow::Result<_>>()?);
        rounds.extend(of_role);
    }
    let (relay_servers, mut relay_clients) = relay.clients(framing, clients, &relay_requests)?;
    let (sellers, buyers) = population.sellers_and_buyers();
    let users = sellers[..clients].iter_mut().chain(&mut buyers[..clients]);
    let mut shop_clients: Vec<ClosedLoopClient<'_>> = users
        .zip(rounds)
        .map(|(user, calls)| {
            let (names, rounds) = calls.into_iter().map(|(api, call)| (api, vec![framed(framing, &call)])).unzip();
            ClosedLoopClient { names, ..ClosedLoopClient::for_user(user, nth_framing, rounds) }
        })
        .collect();
    let benchmarks = vec![
        Benchmark::limit(RELAY, |length, stop| run_all(&mut relay_clients, length, stop)).on(relay_servers),
        Benchmark::new(title, |length, stop| run_all(&mut shop_clients, length, stop)).on(&processes.servers),
    ];
    let comparisons = vec![Comparison { result: title, limits: &[RELAY], required: None }];
    let sampling = mix.sampling(run);
    let previous_sampling = std::mem::replace(&mut run.sampling, sampling);
    let result = run.measure(BenchmarkGroup { clients, benchmarks, comparisons });
    run.sampling = previous_sampling;
    result
}

/// The number of measurements of a mix.
pub fn measurements(run: &ScenarioRun<'_>, mix: Mix) -> usize {
    2 * mix.sampling(run).runs
}
