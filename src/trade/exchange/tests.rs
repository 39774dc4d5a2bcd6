//! The exchange, tested with messages as they arrive and a journal in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Weak;

use serde_json::{Value, json};

use super::*;
use crate::trade::deal::{DealInput, LedgerOperation, SellerSide};
use crate::trade::journal::{LedgerRow, PeerRow};
use crate::trade::wire::{Ack, PeerMessage, parse_message};

mod addresses;
mod bounds;
mod disk;
mod open_deals;
mod registration;
mod requests;

/// A journal that keeps every change; a commit is the number of changes so far. For the peers it watches, it checks
/// that their rows are appended in the order in which they change.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<ExchangeChange>>>, Arc<Mutex<BTreeMap<u64, Weak<RegisteredPeer<Memory>>>>>);

impl crate::storage::Journal for Memory {
    type Change = ExchangeChange;
    type Commit = usize;

    fn append(&self, changes: Vec<ExchangeChange>) -> usize {
        changes.iter().for_each(|change| self.check_order(change));
        let mut all = self.0.lock();
        all.extend(changes);
        all.len()
    }

    fn latest(a: usize, b: usize) -> usize {
        a.max(b)
    }

    fn is_committed(&self, _commit: &usize) -> bool {
        true
    }
}

impl Memory {
    fn watch(&self, peer: &Arc<RegisteredPeer<Memory>>) {
        self.1.lock().insert(peer.registration_id, Arc::downgrade(peer));
    }

    fn check_order(&self, change: &ExchangeChange) {
        let watched: Vec<_> = self.1.lock().values().filter_map(Weak::upgrade).collect();
        for peer in watched {
            match change {
                ExchangeChange::Peer(row) if row.registration_id == peer.registration_id => {
                    assert!(peer.state.is_locked(), "{}: another change may come between", row.name);
                }
                ExchangeChange::DropPeer(name) if *name == peer.name => {
                    assert!(peer.state.lock().is_leaving, "{name}: its row may be written after this");
                }
                _ => {}
            }
        }
    }

    /// What a restart would load.
    fn snapshot(&self) -> ExchangeSnapshot {
        let mut peers: BTreeMap<Name, (PeerRow, Millis)> = BTreeMap::new();
        let mut departures = BTreeMap::new();
        let mut deals: BTreeMap<u64, Deal> = BTreeMap::new();
        let mut sides: BTreeMap<(u64, u64), SellerSide> = BTreeMap::new();
        let (mut ceiling, mut mid_key) = (0, None);
        for change in self.0.lock().iter().cloned() {
            match change {
                ExchangeChange::Ceiling(number) => ceiling = number,
                ExchangeChange::MidKey(key) => mid_key = Some(key),
                ExchangeChange::Peer(row) => {
                    let last_seen_at =
                        peers.get(&row.name).map_or(row.registered_at, |(_, last_seen_at)| *last_seen_at);
                    peers.insert(row.name.clone(), (*row, last_seen_at));
                }
                ExchangeChange::PeerSeen { name, at } => {
                    peers.entry(name).and_modify(|peer| peer.1 = at);
                }
                ExchangeChange::DropPeer(name) => drop(peers.remove(&name)),
                ExchangeChange::Departure(row) => drop(departures.insert((row.name.clone(), row.rq), row)),
                ExchangeChange::DropDeparture { name, rq } => drop(departures.remove(&(name, rq))),
                ExchangeChange::DropDeparturesBefore(before) => {
                    departures.retain(|_, row: &mut DepartureRow| row.at > before)
                }
                ExchangeChange::Deal { id, body } => drop(deals.insert(id, serde_json::from_str(&body).unwrap())),
                ExchangeChange::Seller { deal, rq, body } => {
                    drop(sides.insert((deal, rq), serde_json::from_str(&body).unwrap()));
                }
                ExchangeChange::DropDeal(id) => {
                    deals.remove(&id);
                    sides.retain(|(deal, _), _| *deal != id);
                }
                ExchangeChange::Log(_) | ExchangeChange::Ledger(_) => {}
            }
        }
        let sides_of = |id| sides.range((id, 0)..=(id, u64::MAX)).map(|(_, side)| side.clone()).collect();
        let deals = deals.into_iter().map(|(id, deal)| (deal, sides_of(id))).collect();
        let peers = peers.into_values().collect();
        ExchangeSnapshot { ceiling, mid_key, peers, departures: departures.into_values().collect(), deals }
    }

    fn money(&self) -> Vec<LedgerOperation> {
        self.money_rows().into_iter().map(|row| row.operation).collect()
    }

    fn money_rows(&self) -> Vec<LedgerRow> {
        let rows = self.0.lock();
        rows.iter()
            .filter_map(|change| if let ExchangeChange::Ledger(row) = change { Some(row.clone()) } else { None })
            .collect()
    }
}

struct World {
    exchange: Exchange<Memory>,
    now: Millis,
    last: ExchangeEffects<usize>,
    homes: BTreeMap<String, SocketAddr>,
    tokens: BTreeMap<String, String>,
    rq: u64,
}

fn rules() -> ExchangeRules {
    let windows = Windows {
        offer: Duration::from_secs(5),
        negotiate: Duration::from_secs(10),
        reserve: Duration::from_secs(120),
    };
    ExchangeRules { windows, fee: FeeRate::default(), cert_sha256: Some("ab".into()) }
}

impl World {
    fn new() -> World {
        let now = Millis(1_000_000_000);
        let (exchange, _) = Exchange::load(Memory::default(), rules(), ExchangeSnapshot::default(), 0, now);
        World {
            exchange,
            now,
            last: ExchangeEffects::default(),
            homes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            rq: 1_000_000,
        }
    }

    /// Peers at 127.0.0.1 on consecutive ports from 5000 on.
    fn with(names: &[&str]) -> World {
        let mut world = World::new();
        for (place, name) in names.iter().enumerate() {
            world.join(name, &format!("127.0.0.1:{}", 5000 + place));
        }
        world
    }

    fn join(&mut self, name: &str, home: &str) {
        self.join_with(name, home, 1);
    }

    fn join_with(&mut self, name: &str, home: &str, rq: u64) {
        let home: SocketAddr = home.parse().unwrap();
        let mut message = register(name, &home.ip().to_string(), home.port());
        message["rq"] = rq.into();
        let response = self.from(&home.to_string(), message);
        assert_eq!(response["type"], "REGISTERED", "{response}");
        self.exchange.journal().watch(&self.exchange.peer_named(name).unwrap());
        self.homes.insert(name.to_owned(), home);
        self.tokens.insert(name.to_owned(), response["token"].as_str().unwrap().to_owned());
    }

    fn transport(&mut self, source: &str, transport: Transport, message: Value) -> Value {
        let PeerMessage::Request(request) = parse_message(message.to_string().as_bytes()) else {
            panic!("no request: {message}")
        };
        let source: SocketAddr = source.parse().unwrap();
        let origin = RequestOrigin { source, local_ip: Some(IpAddr::from([127, 0, 0, 1])), transport };
        self.last = self.exchange.handle_request(self.now, &origin, &request);
        serde_json::to_value(&self.last.response).unwrap()
    }

    fn from(&mut self, source: &str, message: Value) -> Value {
        self.transport(source, Transport::Udp, message)
    }

    /// Sends a request from the peer's own address.
    fn say(&mut self, name: &str, mut message: Value) -> Value {
        message["name"] = name.into();
        let home = self.homes[name].to_string();
        self.from(&home, message)
    }

    fn search(&mut self, buyer: &str, rq: u64) -> Value {
        self.say(
            buyer,
            json!({"type": "LOOKING_FOR", "rq": rq, "item_name": "lamp", "description": "", "max_price": 100}),
        )
    }

    /// Sends a request about a deal, with its amount if it has one.
    fn act(&mut self, name: &str, kind: &str, rq: u64, amount: Option<i64>) -> Value {
        let mut message = json!({"type": kind, "rq": rq, "item_name": "lamp"});
        if let Some(amount) = amount {
            message[if matches!(kind, "ACCEPT" | "REFUSE") { "max_price" } else { "price" }] = amount.into();
        }
        self.say(name, message)
    }

    /// The peer's outstanding notifications, oldest first.
    fn told(&self, name: &str) -> Vec<Value> {
        // Sorted by their sequence numbers, since the notification numbers have no order.
        let place = |mid: u64| self.exchange.mid_cipher.decrypt(mid).unwrap();
        let mids: BTreeMap<u64, (u64, (u64, Party))> =
            self.exchange.parties_by_mid.lock().iter().map(|(mid, told)| (place(*mid), (*mid, *told))).collect();
        let notifications = mids.into_values().filter_map(|(mid, (deal, party))| {
            let OutgoingNotification { notification, .. } =
                self.exchange.outgoing_notification(NotificationId { deal, party, mid })?;
            let tracked = self.exchange.deal(deal)?;
            let named = tracked.state.lock().deal.name_of(party).as_str() == name;
            named.then(|| serde_json::to_value(notification).unwrap())
        });
        notifications.collect()
    }

    fn newest(&self, name: &str) -> Value {
        self.told(name).pop().unwrap_or_default()
    }

    fn deals(&mut self, name: &str) -> Vec<Value> {
        self.rq += 1;
        let response = self.say(name, json!({"type": "STATUS", "rq": self.rq}));
        response["deals"].as_array().unwrap_or_else(|| panic!("{response}")).clone()
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    fn tick_all(&mut self) {
        let mut deals: Vec<u64> = self.exchange.deals.read().keys().copied().collect();
        deals.sort();
        for deal in deals {
            self.exchange.tick(self.now, deal);
        }
    }

    fn deal_of(&self, name: &str, rq: u64) -> u64 {
        self.exchange.peer_named(name).unwrap().state.lock().deal_by_rq[&rq]
    }

    /// Brings a search to its settlement: the seller offers at 80 and the buyer buys.
    fn bought(&mut self, buyer: &str, seller: &str, rq: u64) -> u64 {
        assert_eq!(self.search(buyer, rq)["type"], "SEARCHING");
        let number = self.newest(seller)["rq"].as_u64().unwrap();
        assert_eq!(self.act(seller, "OFFER", number, Some(80))["type"], "OFFERED");
        self.pass(5_000);
        self.tick_all();
        assert_eq!(self.act(buyer, "BUY", rq, Some(80))["type"], "BUYING");
        let deal = self.deal_of(buyer, rq);
        assert_eq!(self.last.settlement, Some(deal));
        deal
    }

    fn settle(&mut self, deal: u64, events: &[DealInput]) {
        for event in events {
            self.exchange.advance_settlement(self.now, deal, event.clone()).unwrap();
        }
    }

    fn reload(&mut self) -> ResumedWork {
        let journal = self.exchange.journal().clone();
        let snapshot = journal.snapshot();
        let (exchange, resumed) = Exchange::load(journal, rules(), snapshot, 0, self.now);
        self.exchange = exchange;
        self.exchange.peers.read().values().for_each(|peer| self.exchange.journal().watch(peer));
        resumed
    }

    /// All that is visible from outside, and all numbers in memory.
    fn view(&mut self) -> Vec<String> {
        let mut view = Vec::new();
        for name in self.homes.keys().cloned().collect::<Vec<_>>() {
            if self.exchange.peer_named(&name).is_none() {
                continue;
            }
            view.push(format!("{name}: {:?}", self.deals(&name)));
            view.push(format!("{name} is told {:?}", self.told(&name)));
            let peer = self.exchange.peer_named(&name).unwrap();
            let state = peer.state.lock();
            let deal_by_rq: BTreeMap<_, _> = state.deal_by_rq.iter().collect();
            let ended: BTreeMap<_, _> =
                state.ended.iter().chain(&state.ended_as_recipient).map(|id| (id, ())).collect();
            view.push(format!(
                "{name}: {deal_by_rq:?} {:?} {ended:?} {} {} {:?}",
                state.rq_by_deal, state.open_searches, state.open_received, state.row
            ));
        }
        view.push(format!("{} settle", self.exchange.settlement_count()));
        let deals = self.exchange.deals.read();
        let is_open = |tracked: &Arc<TrackedDeal<Memory>>| tracked.state.lock().deal.ended_at().is_none();
        let open: BTreeSet<u64> = deals.iter().filter(|(_, tracked)| is_open(tracked)).map(|(id, _)| *id).collect();
        assert_eq!(*self.exchange.open_deals.lock(), open, "those that are open");
        drop(deals);
        view.push(format!("{open:?} are open"));
        view
    }

    /// Asserts that nothing is left of any deal, in memory or on disk.
    fn assert_no_trace(&self) {
        let exchange = &self.exchange;
        assert_eq!(exchange.deals.read().len(), 0, "deals");
        assert_eq!(exchange.parties_by_mid.lock().len(), 0, "mids");
        assert_eq!(exchange.ended_deals.lock().len(), 0, "ended");
        assert_eq!(exchange.open_deals_len(), 0, "open");
        assert_eq!(exchange.departures.lock().len(), 0, "farewells");
        let slots = exchange.settlement_slots.lock();
        assert_eq!((slots.by_deal.len(), slots.by_address.len()), (0, 0), "slots");
        for peer in exchange.peers.read().values() {
            let state = peer.state.lock();
            let ended = state.ended.len() + state.ended_as_recipient.len();
            let left =
                (state.deal_by_rq.len(), state.rq_by_deal.len(), ended, state.open_searches, state.open_received);
            assert_eq!(left, (0, 0, 0, 0, 0), "{}", peer.name);
            assert_eq!(peer.own_deals.load(Ordering::Relaxed), 0, "{}", peer.name);
        }
        let snapshot = exchange.journal().snapshot();
        assert_eq!((snapshot.deals.len(), snapshot.departures.len()), (0, 0), "on disk");
    }
}

fn register(name: &str, ip: &str, udp_port: u16) -> Value {
    json!({"type": "REGISTER", "rq": 1, "name": name, "ip": ip, "udp_port": udp_port, "tcp_port": 9000})
}

fn login(name: &str, rq: u64, token: &str, udp_port: u16) -> Value {
    json!({"type": "LOGIN", "rq": rq, "name": name, "token": token, "ip": "127.0.0.1", "udp_port": udp_port,
           "tcp_port": 9000})
}

fn code(response: &Value) -> &str {
    response["code"].as_str().unwrap_or_else(|| panic!("not refused: {response}"))
}
