//! The rules of the exchange, over messages as they come and a journal in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Weak;

use serde_json::{Value, json};

use super::*;
use crate::trade::deal::{Event, Money, SellerSide};
use crate::trade::journal::MoneyRow;
use crate::trade::wire::{Ack, Inbound, read};

mod bounds;
mod disk;
mod hearing;
mod open;
mod registration;
mod requests;

/// Keeps every change; a receipt says how many there were. Of the peers that it knows it sees to it that their rows
/// come in the order in which they change.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Change>>>, Arc<Mutex<BTreeMap<u64, Weak<PeerCell<Memory>>>>>);

impl crate::storage::Journal for Memory {
    type Change = Change;
    type Receipt = usize;

    fn append(&self, changes: Vec<Change>) -> usize {
        changes.iter().for_each(|change| self.check_order(change));
        let mut all = self.0.lock();
        all.extend(changes);
        all.len()
    }

    fn later(a: usize, b: usize) -> usize {
        a.max(b)
    }

    fn is_committed(&self, _receipt: &usize) -> bool {
        true
    }
}

impl Memory {
    fn watch(&self, peer: &Arc<PeerCell<Memory>>) {
        self.1.lock().insert(peer.since, Arc::downgrade(peer));
    }

    fn check_order(&self, change: &Change) {
        let watched: Vec<_> = self.1.lock().values().filter_map(Weak::upgrade).collect();
        for peer in watched {
            match change {
                Change::Peer(row) if row.since == peer.since => {
                    assert!(peer.state.is_locked(), "{}: another change may come between", row.name);
                }
                Change::DropPeer(name) if *name == peer.name => {
                    assert!(peer.state.lock().leaving, "{name}: its row may be written after this");
                }
                _ => {}
            }
        }
    }

    /// What a start would find.
    fn snapshot(&self) -> Snapshot {
        let mut peers: BTreeMap<Name, (PeerRow, Millis)> = BTreeMap::new();
        let mut farewells = BTreeMap::new();
        let mut deals: BTreeMap<u64, Deal> = BTreeMap::new();
        let mut sides: BTreeMap<(u64, u64), SellerSide> = BTreeMap::new();
        let (mut ceiling, mut mid_key) = (0, None);
        for change in self.0.lock().iter().cloned() {
            match change {
                Change::Ceiling(number) => ceiling = number,
                Change::MidKey(key) => mid_key = Some(key),
                Change::Peer(row) => {
                    let heard_at = peers.get(&row.name).map_or(row.registered_at, |(_, heard_at)| *heard_at);
                    peers.insert(row.name.clone(), (*row, heard_at));
                }
                Change::Heard { name, at } => {
                    peers.entry(name).and_modify(|peer| peer.1 = at);
                }
                Change::DropPeer(name) => drop(peers.remove(&name)),
                Change::Farewell(row) => drop(farewells.insert((row.name.clone(), row.rq), row)),
                Change::DropFarewell { name, rq } => drop(farewells.remove(&(name, rq))),
                Change::DropFarewells(before) => farewells.retain(|_, row: &mut FarewellRow| row.at > before),
                Change::Deal { id, body } => drop(deals.insert(id, serde_json::from_str(&body).unwrap())),
                Change::Seller { deal, rq, body } => {
                    drop(sides.insert((deal, rq), serde_json::from_str(&body).unwrap()));
                }
                Change::DropDeal(id) => {
                    deals.remove(&id);
                    sides.retain(|(deal, _), _| *deal != id);
                }
                Change::Log(_) | Change::Money(_) => {}
            }
        }
        let sides_of = |id| sides.range((id, 0)..=(id, u64::MAX)).map(|(_, side)| side.clone()).collect();
        let deals = deals.into_iter().map(|(id, deal)| (deal, sides_of(id))).collect();
        let peers = peers.into_values().collect();
        Snapshot { ceiling, mid_key, peers, farewells: farewells.into_values().collect(), deals }
    }

    fn money(&self) -> Vec<Money> {
        self.money_rows().into_iter().map(|row| row.money).collect()
    }

    fn money_rows(&self) -> Vec<MoneyRow> {
        let rows = self.0.lock();
        rows.iter()
            .filter_map(|change| if let Change::Money(row) = change { Some(row.clone()) } else { None })
            .collect()
    }
}

struct World {
    exchange: Exchange<Memory>,
    now: Millis,
    last: Outcome<usize>,
    homes: BTreeMap<String, SocketAddr>,
    tokens: BTreeMap<String, String>,
    rq: u64,
}

fn rules() -> Rules {
    let windows = Windows {
        offer: Duration::from_secs(5),
        negotiate: Duration::from_secs(10),
        reserve: Duration::from_secs(120),
    };
    Rules { windows, fee: FeeRate::default(), cert_sha256: Some("ab".into()) }
}

impl World {
    fn new() -> World {
        let now = Millis(1_000_000_000);
        let (exchange, _) = Exchange::load(Memory::default(), rules(), Snapshot::default(), 0, now);
        World {
            exchange,
            now,
            last: Outcome::default(),
            homes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            rq: 1_000_000,
        }
    }

    /// Peers at 127.0.0.1, ports from 5000 on, in this order.
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
        let answer = self.from(&home.to_string(), message);
        assert_eq!(answer["type"], "REGISTERED", "{answer}");
        self.exchange.journal().watch(&self.exchange.named(name).unwrap());
        self.homes.insert(name.to_owned(), home);
        self.tokens.insert(name.to_owned(), answer["token"].as_str().unwrap().to_owned());
    }

    fn via(&mut self, source: &str, via: Via, message: Value) -> Value {
        let Inbound::Request(request) = read(message.to_string().as_bytes()) else { panic!("no request: {message}") };
        let source: SocketAddr = source.parse().unwrap();
        let origin = Origin { source, asked: Some(IpAddr::from([127, 0, 0, 1])), via };
        self.last = self.exchange.request(self.now, &origin, &request);
        serde_json::to_value(&self.last.answer).unwrap()
    }

    fn from(&mut self, source: &str, message: Value) -> Value {
        self.via(source, Via::Udp, message)
    }

    /// A peer asks from its own address.
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

    /// What that side of a request says: OFFER with 80, and so on.
    fn act(&mut self, name: &str, kind: &str, rq: u64, amount: Option<i64>) -> Value {
        let mut message = json!({"type": kind, "rq": rq, "item_name": "lamp"});
        if let Some(amount) = amount {
            message[if matches!(kind, "ACCEPT" | "REFUSE") { "max_price" } else { "price" }] = amount.into();
        }
        self.say(name, message)
    }

    /// Everything that this peer is told and has not acknowledged.
    fn told(&self, name: &str) -> Vec<Value> {
        // By their place in the sequence: the numbers themselves tell no order.
        let place = |mid: u64| self.exchange.mid_key.place(mid).unwrap();
        let mids: BTreeMap<u64, (u64, (u64, Party))> =
            self.exchange.mids.lock().iter().map(|(mid, told)| (place(*mid), (*mid, *told))).collect();
        let pushes = mids.into_values().filter_map(|(mid, (deal, party))| {
            let Outgoing { push, .. } = self.exchange.push(Told { deal, party, mid })?;
            let cell = self.exchange.deal(deal)?;
            let named = cell.state.lock().deal.name_of(party).as_str() == name;
            named.then(|| serde_json::to_value(push).unwrap())
        });
        pushes.collect()
    }

    fn newest(&self, name: &str) -> Value {
        self.told(name).pop().unwrap_or_default()
    }

    fn deals(&mut self, name: &str) -> Vec<Value> {
        self.rq += 1;
        let answer = self.say(name, json!({"type": "STATUS", "rq": self.rq}));
        answer["deals"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
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
        self.exchange.named(name).unwrap().state.lock().rqs[&rq]
    }

    /// The buyer's search `rq` is answered by the seller with 80 and bought.
    fn bought(&mut self, buyer: &str, seller: &str, rq: u64) -> u64 {
        assert_eq!(self.search(buyer, rq)["type"], "SEARCHING");
        let number = self.newest(seller)["rq"].as_u64().unwrap();
        assert_eq!(self.act(seller, "OFFER", number, Some(80))["type"], "OFFERED");
        self.pass(5_000);
        self.tick_all();
        assert_eq!(self.act(buyer, "BUY", rq, Some(80))["type"], "BUYING");
        let deal = self.deal_of(buyer, rq);
        assert_eq!(self.last.settle, Some(deal));
        deal
    }

    fn settle(&mut self, deal: u64, events: &[Event]) {
        for event in events {
            self.exchange.settlement(self.now, deal, event.clone()).unwrap();
        }
    }

    fn reload(&mut self) -> Resumed {
        let journal = self.exchange.journal().clone();
        let snapshot = journal.snapshot();
        let (exchange, resumed) = Exchange::load(journal, rules(), snapshot, 0, self.now);
        self.exchange = exchange;
        self.exchange.peers.read().values().for_each(|peer| self.exchange.journal().watch(peer));
        resumed
    }

    /// All that can be seen from outside, and all numbers that are known.
    fn view(&mut self) -> Vec<String> {
        let mut view = Vec::new();
        for name in self.homes.keys().cloned().collect::<Vec<_>>() {
            if self.exchange.named(&name).is_none() {
                continue;
            }
            view.push(format!("{name}: {:?}", self.deals(&name)));
            view.push(format!("{name} is told {:?}", self.told(&name)));
            let peer = self.exchange.named(&name).unwrap();
            let state = peer.state.lock();
            let rqs: BTreeMap<_, _> = state.rqs.iter().collect();
            let ended: BTreeMap<_, _> = state.ended.iter().chain(&state.ended_aside).map(|id| (id, ())).collect();
            view.push(format!(
                "{name}: {rqs:?} {:?} {ended:?} {} {} {:?}",
                state.links, state.open_searches, state.open_sides, state.row
            ));
        }
        view.push(format!("{} settle", self.exchange.settlements()));
        let deals = self.exchange.deals.read();
        let is_open = |cell: &Arc<DealCell<Memory>>| cell.state.lock().deal.ended_at().is_none();
        let open: BTreeSet<u64> = deals.iter().filter(|(_, cell)| is_open(cell)).map(|(id, _)| *id).collect();
        assert_eq!(*self.exchange.open.lock(), open, "those that are open");
        drop(deals);
        view.push(format!("{open:?} are open"));
        view
    }

    /// Nothing is left of any deal.
    fn assert_no_trace(&self) {
        let exchange = &self.exchange;
        assert_eq!(exchange.deals.read().len(), 0, "deals");
        assert_eq!(exchange.mids.lock().len(), 0, "mids");
        assert_eq!(exchange.ended.lock().len(), 0, "ended");
        assert_eq!(exchange.open_deals_len(), 0, "open");
        assert_eq!(exchange.farewells.lock().len(), 0, "farewells");
        let slots = exchange.settling.lock();
        assert_eq!((slots.by_deal.len(), slots.by_address.len()), (0, 0), "slots");
        for peer in exchange.peers.read().values() {
            let state = peer.state.lock();
            let ended = state.ended.len() + state.ended_aside.len();
            let left = (state.rqs.len(), state.links.len(), ended, state.open_searches, state.open_sides);
            assert_eq!(left, (0, 0, 0, 0, 0), "{}", peer.name);
            assert_eq!(peer.own_deals.load(Ordering::Relaxed), 0, "{}", peer.name);
        }
        let snapshot = exchange.journal().snapshot();
        assert_eq!((snapshot.deals.len(), snapshot.farewells.len()), (0, 0), "on disk");
    }
}

fn register(name: &str, ip: &str, udp_port: u16) -> Value {
    json!({"type": "REGISTER", "rq": 1, "name": name, "ip": ip, "udp_port": udp_port, "tcp_port": 9000})
}

fn login(name: &str, rq: u64, token: &str, udp_port: u16) -> Value {
    json!({"type": "LOGIN", "rq": rq, "name": name, "token": token, "ip": "127.0.0.1", "udp_port": udp_port,
           "tcp_port": 9000})
}

fn code(answer: &Value) -> &str {
    answer["code"].as_str().unwrap_or_else(|| panic!("not refused: {answer}"))
}
