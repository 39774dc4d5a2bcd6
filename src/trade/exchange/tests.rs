//! The rules of the exchange, over messages as they come and a journal in memory.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::*;
use crate::trade::deal::{Event, Money, SellerSide};
use crate::trade::journal::MoneyRow;
use crate::trade::wire::{Ack, Inbound, read};

/// Keeps every change; a receipt says how many there were.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Change>>>);

impl Journal for Memory {
    type Receipt = usize;

    fn append(&self, changes: Vec<Change>) -> usize {
        let mut all = self.0.lock();
        all.extend(changes);
        all.len()
    }

    fn later(a: usize, b: usize) -> usize {
        a.max(b)
    }
}

impl Memory {
    /// What a start would find.
    fn snapshot(&self) -> Snapshot {
        let mut peers: BTreeMap<Name, (PeerRow, Millis)> = BTreeMap::new();
        let mut farewells = BTreeMap::new();
        let mut deals: BTreeMap<u64, Deal> = BTreeMap::new();
        let mut sides: BTreeMap<(u64, u64), SellerSide> = BTreeMap::new();
        let mut ceiling = 0;
        for change in self.0.lock().iter().cloned() {
            match change {
                Change::Ceiling(number) => ceiling = number,
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
        Snapshot { ceiling, peers, farewells: farewells.into_values().collect(), deals }
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
        let (exchange, _) = Exchange::load(Memory::default(), rules(), Snapshot::default(), false, now);
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
        self.homes.insert(name.to_owned(), home);
        self.tokens.insert(name.to_owned(), answer["token"].as_str().unwrap().to_owned());
    }

    fn via(&mut self, source: &str, via: Via, message: Value) -> Value {
        let Inbound::Request(request) = read(message.to_string().as_bytes()) else { panic!("no request: {message}") };
        self.last = self.exchange.request(self.now, source.parse().unwrap(), via, &request);
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
        let mids: BTreeMap<u64, (u64, Party)> = self.exchange.mids.lock().iter().map(|(k, v)| (*k, *v)).collect();
        let pushes = mids.into_iter().filter_map(|(mid, (deal, party))| {
            let (_, push) = self.exchange.push(Told { deal, party, mid })?;
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
        self.exchange.peer(name).unwrap().state.lock().rqs[&rq]
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
        let (exchange, resumed) = Exchange::load(journal, rules(), snapshot, false, self.now);
        self.exchange = exchange;
        resumed
    }

    /// All that can be seen from outside, and all numbers that are known.
    fn view(&mut self) -> Vec<String> {
        let mut view = Vec::new();
        for name in self.homes.keys().cloned().collect::<Vec<_>>() {
            if self.exchange.peer(&name).is_none() {
                continue;
            }
            view.push(format!("{name}: {:?}", self.deals(&name)));
            view.push(format!("{name} is told {:?}", self.told(&name)));
            let peer = self.exchange.peer(&name).unwrap();
            let state = peer.state.lock();
            let rqs: BTreeMap<_, _> = state.rqs.iter().collect();
            let ended: BTreeMap<_, _> = state.ended.iter().chain(&state.ended_aside).map(|id| (id, ())).collect();
            view.push(format!(
                "{name}: {rqs:?} {:?} {ended:?} {} {} {:?}",
                state.links, state.open_searches, state.open_sides, state.row
            ));
        }
        view.push(format!("{} settle", self.exchange.settlements()));
        view
    }

    /// Nothing is left of any deal.
    fn assert_no_trace(&self) {
        let exchange = &self.exchange;
        assert_eq!(exchange.deals.read().len(), 0, "deals");
        assert_eq!(exchange.mids.lock().len(), 0, "mids");
        assert_eq!(exchange.ended.lock().len(), 0, "ended");
        assert_eq!(exchange.farewells.lock().len(), 0, "farewells");
        let slots = exchange.settling.lock();
        assert_eq!((slots.by_deal.len(), slots.by_address.len()), (0, 0), "slots");
        for peer in exchange.peers.read().values() {
            let state = peer.state.lock();
            let ended = state.ended.len() + state.ended_aside.len();
            let left = (state.rqs.len(), state.links.len(), ended, state.open_searches, state.open_sides);
            assert_eq!(left, (0, 0, 0, 0, 0), "{}", peer.name);
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

mod registration {
    use super::*;

    #[test]
    fn an_address_must_be_the_datagrams_own_and_no_services() {
        let mut world = World::new();
        let answer = world.from("127.0.0.1:5000", register("al", "127.0.0.2", 5000));
        assert_eq!(answer["type"], "REGISTER-DENIED");
        assert!(answer["reason"].as_str().unwrap().starts_with("ip: expected 127.0.0.1"), "{answer}");
        for (udp, tcp, field) in [
            (1023, 9000, "udp_port: "),
            (5000, 80, "tcp_port: "),
            (70_000, 9000, "udp_port: "),
            (5000, 0, "tcp_port: "),
        ] {
            let mut message = register("al", "127.0.0.1", 5000);
            message["udp_port"] = udp.into();
            message["tcp_port"] = tcp.into();
            let answer = world.from("127.0.0.1:5000", message);
            assert_eq!(answer["type"], "REGISTER-DENIED");
            assert!(answer["reason"].as_str().unwrap().starts_with(field), "{answer}");
        }
        assert_eq!(world.exchange.sizes().0, 0);
        for port in [1024, 65535] {
            let answer = world.from("127.0.0.1:5000", register(&format!("p{port}"), "127.0.0.1", port));
            assert_eq!(answer["type"], "REGISTERED");
            assert_eq!(answer["cert_sha256"], "ab");
            assert_eq!(answer["token"].as_str().unwrap().len(), 32);
        }
    }

    #[test]
    fn a_taken_name_is_given_to_its_own_address_or_token_alone() {
        let mut world = World::with(&["al"]);
        let token = world.tokens["al"].clone();
        let stranger = world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000));
        assert_eq!(stranger["type"], "REGISTER-DENIED");
        let mut wrong = register("al", "127.0.0.1", 5000);
        wrong["token"] = "00".into();
        assert_eq!(world.from("127.0.0.1:5000", wrong)["type"], "REGISTER-DENIED", "a wrong token proves nothing");
        let again = world.from("127.0.0.1:5000", register("al", "127.0.0.1", 5000));
        assert_eq!(again["token"], token.as_str(), "the same token for its own address");
        let mut elsewhere = register("al", "127.0.0.1", 6001);
        elsewhere["token"] = token.as_str().into();
        assert_eq!(world.from("127.0.0.1:6000", elsewhere)["token"], token.as_str());
        assert!(world.exchange.is_registered("127.0.0.1:6001".parse().unwrap()));
        assert!(!world.exchange.is_registered("127.0.0.1:5000".parse().unwrap()));
    }

    #[test]
    fn the_repeat_of_a_first_register_from_another_port_gets_the_same_token_for_ten_minutes() {
        let mut world = World::new();
        let message = register("al", "127.0.0.1", 5000);
        let first = world.from("127.0.0.1:7777", message.clone());
        world.pass(599_999);
        assert_eq!(world.from("127.0.0.1:7777", message.clone())["token"], first["token"]);
        assert_eq!(world.from("127.0.0.1:7778", message.clone())["type"], "REGISTER-DENIED");
        world.reload();
        assert_eq!(world.from("127.0.0.1:7777", message.clone())["token"], first["token"], "also after a restart");
        world.pass(1);
        assert_eq!(world.from("127.0.0.1:7777", message.clone())["type"], "REGISTER-DENIED");
        assert_eq!(world.from("127.0.0.1:5000", message)["token"], first["token"], "its own address still may");
    }

    #[test]
    fn the_repeat_of_a_first_register_moves_nobody_back() {
        let mut world = World::new();
        let message = register("al", "127.0.0.1", 5000);
        let token = world.from("127.0.0.1:7777", message.clone())["token"].as_str().unwrap().to_owned();
        world.from("127.0.0.1:7777", login("al", 2, &token, 5005));
        assert_eq!(world.from("127.0.0.1:7777", message)["type"], "REGISTER-DENIED");
        assert!(world.exchange.is_registered("127.0.0.1:5005".parse().unwrap()));
    }

    #[test]
    fn a_login_moves_once() {
        let mut world = World::with(&["al"]);
        let token = world.tokens["al"].clone();
        assert_eq!(world.from("127.0.0.1:1", login("nobody", 1, &token, 5001))["type"], "LOGIN-DENIED");
        assert_eq!(world.from("127.0.0.1:1", login("al", 1, "x", 5001))["type"], "LOGIN-DENIED");
        let first = login("al", 7, &token, 5001);
        let answer = world.from("127.0.0.1:1", first.clone());
        assert_eq!(
            (&answer["type"], &answer["rq"], &answer["cert_sha256"]),
            (&json!("LOGGED-IN"), &json!(7), &json!("ab"))
        );
        world.from("127.0.0.1:1", login("al", 8, &token, 5002));
        let at = |world: &World| world.exchange.peer("al").unwrap().state.lock().row.addr.port();
        assert_eq!(at(&world), 5002);
        assert_eq!(world.from("127.0.0.1:1", first.clone())["type"], "LOGGED-IN", "the same answer");
        assert_eq!(at(&world), 5002, "and nothing changes");
        let other = world.from("127.0.0.1:1", login("al", 7, &token, 5003));
        assert_eq!((code(&other), &other["reason"]), ("BAD_REQUEST", &json!("rq already used")));
        // Neither a restart nor a REGISTER makes a late repeat move the peer back.
        world.reload();
        let mut again = register("al", "127.0.0.1", 5004);
        again["token"] = token.as_str().into();
        world.homes.insert("al".to_owned(), "127.0.0.1:5002".parse().unwrap());
        world.search("al", 1);
        assert_eq!(world.from("127.0.0.1:1", again)["type"], "REGISTERED");
        assert_eq!(world.from("127.0.0.1:1", first.clone())["type"], "LOGGED-IN");
        assert_eq!(at(&world), 5004);
        world.pass(600_000);
        world.from("127.0.0.1:1", first);
        assert_eq!(at(&world), 5001, "after ten minutes it is a request of its own");
    }

    #[test]
    fn who_asks_must_show_who_it_is() {
        let mut world = World::with(&["al"]);
        let status = json!({"type": "STATUS", "rq": 1, "name": "al"});
        let with = |token: &str| json!({"type": "STATUS", "rq": 1, "name": "al", "token": token});
        let token = world.tokens["al"].clone();
        assert_eq!(world.from("127.0.0.1:5000", status.clone())["type"], "DEALS");
        assert_eq!(code(&world.from("127.0.0.1:5001", status.clone())), "FORBIDDEN");
        assert_eq!(code(&world.from("127.0.0.2:5000", status.clone())), "FORBIDDEN");
        assert_eq!(code(&world.from("127.0.0.1:5000", with("x"))), "FORBIDDEN", "a wrong token, whatever the address");
        assert_eq!(world.from("10.0.0.9:5001", with(&token))["type"], "DEALS");
        assert_eq!(code(&world.via("127.0.0.1:5000", Via::Tcp, status)), "FORBIDDEN", "TCP proves nothing");
        assert_eq!(world.via("127.0.0.1:9", Via::Tcp, with(&token))["type"], "DEALS");
        assert_eq!(code(&world.from("127.0.0.1:5000", json!({"type":"STATUS","rq":1,"name":"b"}))), "NOT_REGISTERED");
    }

    #[test]
    fn leaving_twice_is_leaving_once() {
        let mut world = World::with(&["al", "bo"]);
        let leave = json!({"type": "DE-REGISTER", "rq": 5, "name": "al"});
        assert_eq!(code(&world.from("127.0.0.1:5001", leave.clone())), "FORBIDDEN");
        assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 5}));
        assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 5}));
        assert_eq!(world.from("127.0.0.1:5009", leave.clone())["type"], "DE-REGISTERED", "of a name nobody holds");
        // The name has a holder again, at the very same address, and its numbers go on: the late repeat does
        // not remove it.
        world.join_with("al", "127.0.0.1:5000", 6);
        assert_eq!(world.from("127.0.0.1:5000", leave.clone())["type"], "DE-REGISTERED");
        world.reload();
        assert_eq!(world.from("127.0.0.1:5000", leave.clone())["type"], "DE-REGISTERED");
        assert!(world.exchange.peer("al").is_some());
        // The new holder's own, with its own token, is no repeat.
        let mut own = leave.clone();
        own["token"] = world.tokens["al"].as_str().into();
        assert_eq!(world.from("127.0.0.1:5000", own)["type"], "DE-REGISTERED");
        assert!(world.exchange.peer("al").is_none());
        world.pass(600_000);
        world.exchange.sweep(world.now);
        world.assert_no_trace();
    }

    #[test]
    fn who_comes_and_goes_with_the_same_numbers_comes_and_goes() {
        let mut world = World::new();
        let leave = json!({"type": "DE-REGISTER", "rq": 2, "name": "al"});
        for reloads in [false, true, false] {
            world.join("al", "127.0.0.1:5000");
            if reloads {
                world.reload();
            }
            for _ in 0..2 {
                assert_eq!(world.from("127.0.0.1:5000", leave.clone()), json!({"type": "DE-REGISTERED", "rq": 2}));
                assert!(world.exchange.peer("al").is_none());
            }
        }
        // A stranger who takes the name is not removed by a late repeat.
        world.join("al", "127.0.0.1:5001");
        assert_eq!(world.from("127.0.0.1:5000", leave)["type"], "DE-REGISTERED");
        assert!(world.exchange.peer("al").is_some());
    }

    #[test]
    fn a_new_holder_of_a_name_sees_nothing_of_the_former_one() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(80));
        assert_eq!(world.newest("bo")["type"], "FOUND");
        world.search("al", 3);
        assert_eq!(world.newest("bo")["type"], "SEARCH");
        world.say("al", json!({"type": "DE-REGISTER", "rq": 5}));
        assert_eq!(world.newest("bo")["type"], "CANCEL", "the other side is told");
        world.join("al", "127.0.0.1:5000");
        for _ in 0..2 {
            assert!(world.deals("al").is_empty());
            assert_eq!(code(&world.act("al", "CANCEL", number, None)), "UNKNOWN_DEAL");
            assert_eq!(code(&world.act("al", "CANCEL", 3, None)), "UNKNOWN_DEAL");
            assert_eq!(world.deals("bo").len(), 1);
            world.reload();
        }
        assert!(world.told("al").is_empty());
        assert_eq!(world.search("al", 3)["type"], "SEARCHING", "its numbers are its own");
    }

    #[test]
    fn a_name_silent_for_a_month_is_free_again() {
        let mut world = World::with(&["al", "bo"]);
        let month = 30 * 86_400_000;
        world.pass(month - 1);
        assert_eq!(world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000))["type"], "REGISTER-DENIED");
        world.deals("bo");
        world.pass(1);
        assert_eq!(world.from("127.0.0.1:6000", register("al", "127.0.0.1", 6000))["type"], "REGISTERED");
        assert_eq!(world.from("127.0.0.1:6000", register("bo", "127.0.0.1", 6000))["type"], "REGISTER-DENIED");
    }

    #[test]
    fn a_departure_waits_for_a_settlement_under_way_and_for_nothing_else() {
        let mut world = World::with(&["al", "bo", "cy"]);
        let deal = world.bought("bo", "al", 1);
        world.search("cy", 2);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(70));
        let home = world.homes["al"];
        assert!(world.say("al", json!({"type": "DE-REGISTER", "rq": 5})).is_null(), "no answer yet");
        let since = world.last.leaving.unwrap();
        assert_eq!(code(&world.search("al", 9)), "WRONG_STATE", "it begins nothing new");
        let name = Name::new("al").unwrap();
        assert_eq!(world.exchange.leave(world.now, home, 5, &name, since).leaving, Some(since));
        assert!(world.say("al", json!({"type": "DE-REGISTER", "rq": 5})).is_null(), "a repeat waits as well");
        let token = world.tokens["al"].clone();
        assert_eq!(world.from("127.0.0.1:1", login("al", 6, &token, 5001))["type"], "LOGIN-DENIED");
        world.settle(deal, &[Event::Authorised, Event::Shipped, Event::Captured]);
        let left = world.exchange.leave(world.now, home, 5, &name, since);
        assert!(matches!(left.answer, Some(Reply::DeRegistered { rq: 5 })));
        assert_eq!(world.deals("bo")[0]["state"], "completed");
        // The second waiter finds someone else under that name, and leaves it alone.
        world.join("al", "127.0.0.1:6000");
        let late = world.exchange.leave(world.now, home, 6, &name, since);
        assert!(matches!(late.answer, Some(Reply::DeRegistered { rq: 6 })));
        world.exchange.stay(&name, since);
        assert!(world.exchange.peer("al").is_some());
    }

    #[test]
    fn a_departure_that_cannot_wait_leaves_the_peer_as_it_was() {
        let mut world = World::with(&["al", "bo"]);
        world.bought("bo", "al", 1);
        world.say("bo", json!({"type": "DE-REGISTER", "rq": 5}));
        world.exchange.stay(&Name::new("bo").unwrap(), world.last.leaving.unwrap());
        assert_eq!(world.search("bo", 2)["type"], "SEARCHING");
    }

    #[test]
    fn leaving_ends_every_deal_in_every_state_and_tells_the_others() {
        // The state, what the other side is told when the buyer leaves, and when the seller does.
        for (state, by_buyer, by_seller) in [
            ("searching", "RELEASED", "NOT_AVAILABLE"),
            ("negotiating", "CANCEL", "NOT_FOUND"),
            ("reserved", "CANCEL", "CANCEL"),
        ] {
            for (leaver, other, told) in [("bo", "al", by_buyer), ("al", "bo", by_seller)] {
                // The third keeps a search open; where it is over, it has left before.
                let mut world = World::with(&["al", "bo", "cy"]);
                world.search("bo", 1);
                let number = world.newest("al")["rq"].as_u64().unwrap();
                world.act("al", "OFFER", number, Some(if state == "negotiating" { 150 } else { 80 }));
                if state != "searching" {
                    world.say("cy", json!({"type": "DE-REGISTER", "rq": 1}));
                }
                assert_eq!(world.deals("bo")[0]["state"], state);
                world.say(leaver, json!({"type": "DE-REGISTER", "rq": 5}));
                if state == "searching" && leaver == "al" {
                    world.say("cy", json!({"type": "DE-REGISTER", "rq": 1}));
                }
                assert_eq!(world.newest(other)["type"], told, "{leaver} leaves while {state}");
                assert_eq!(world.deals(other)[0]["state"], "cancelled");
                assert!(world.told(leaver).is_empty());
                let (before, again) = (world.view(), world.reload());
                assert_eq!(world.view(), before);
                assert!(again.deadlines.is_empty() && again.settlements.is_empty());
            }
        }
    }

    #[test]
    fn those_who_left_are_bounded_too() {
        let mut world = World::with(&["al"]);
        for rq in 0..2 * PEERS_MAX as u64 {
            let name = Name::new("ghost").unwrap();
            let row = FarewellRow { name: name.clone(), rq, source: world.homes["al"], at: world.now };
            world.exchange.farewells.lock().insert((name, rq), row);
        }
        assert_eq!(code(&world.from("127.0.0.1:6000", register("bo", "127.0.0.1", 6000))), "BUSY");
        world.pass(600_000);
        world.exchange.sweep(world.now);
        world.join("bo", "127.0.0.1:6000");
    }
}

mod requests {
    use super::*;

    #[test]
    fn every_kind_of_request_is_answered_the_same_and_done_once() {
        let mut world = World::with(&["al", "bo", "cy"]);
        let journal = world.exchange.journal().clone();
        let again = |world: &mut World, name: &str, message: Value, expected: &str| {
            let first = world.say(name, message.clone());
            assert_eq!(first["type"], expected, "{first}");
            let written = journal.0.lock().len();
            assert_eq!(world.say(name, message.clone()), first, "another answer to the same {message}");
            assert!(world.last.pushes.is_empty() && world.last.settle.is_none());
            assert_eq!(journal.0.lock().len(), written, "the repeat of {message} wrote something");
            // With another price or item: refused, and nothing changes.
            let mut other = message.clone();
            other["item_name"] = "lump".into();
            assert_eq!(world.say(name, other)["reason"], "rq already used");
            for amount in ["price", "max_price"] {
                if message.get(amount).is_some() {
                    let mut other = message.clone();
                    other[amount] = 1.into();
                    let answer = world.say(name, other);
                    assert_eq!((code(&answer), &answer["reason"]), ("BAD_REQUEST", &json!("rq already used")));
                }
            }
            assert_eq!(journal.0.lock().len(), written, "a refusal wrote something");
            message["rq"].as_u64().unwrap()
        };
        let search =
            |rq| json!({"type": "LOOKING_FOR", "rq": rq, "item_name": "lamp", "description": "d", "max_price": 100});
        let side = |kind: &str, rq: &Value| json!({"type": kind, "rq": rq, "item_name": "lamp"});
        let priced =
            |kind: &str, rq: &Value, price: i64| json!({"type": kind, "rq": rq, "item_name": "lamp", "price": price});
        let haggled = |kind: &str, rq: &Value| json!({"type": kind, "rq": rq, "item_name": "lamp", "max_price": 100});

        again(&mut world, "bo", search(1), "SEARCHING");
        let (al, cy) = (world.newest("al")["rq"].clone(), world.newest("cy")["rq"].clone());
        again(&mut world, "al", side("NOT_AVAILABLE", &al), "NOTED");
        again(&mut world, "cy", priced("OFFER", &cy, 80), "OFFERED");
        again(&mut world, "bo", priced("BUY", &json!(1), 80), "BUYING");

        again(&mut world, "bo", search(2), "SEARCHING");
        let (al, cy) = (world.newest("al")["rq"].clone(), world.newest("cy")["rq"].clone());
        again(&mut world, "al", priced("OFFER", &al, 150), "OFFERED");
        again(&mut world, "cy", priced("OFFER", &cy, 160), "OFFERED");
        again(&mut world, "al", haggled("REFUSE", &al), "NOTED");
        again(&mut world, "cy", haggled("ACCEPT", &cy), "NOTED");
        again(&mut world, "cy", side("CANCEL", &cy), "CANCELLED");

        again(&mut world, "bo", search(3), "SEARCHING");
        again(&mut world, "bo", side("CANCEL", &json!(3)), "CANCELLED");
        // All of it holds across a restart.
        world.reload();
        assert_eq!(world.say("bo", priced("BUY", &json!(1), 80))["type"], "BUYING");
        assert!(world.last.settle.is_none());
        assert_eq!(world.say("cy", haggled("ACCEPT", &cy))["type"], "NOTED");
        assert_eq!(world.say("bo", search(3)), json!({"type": "SEARCHING", "rq": 3, "peers": 2}));
        let mut other = search(3);
        other["description"] = "e".into();
        assert_eq!(world.say("bo", other)["reason"], "rq already used");
    }

    #[test]
    fn an_error_is_not_remembered() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        assert_eq!(code(&world.act("bo", "BUY", 1, Some(80))), "WRONG_STATE");
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(80));
        assert_eq!(code(&world.act("bo", "BUY", 1, Some(81))), "BAD_REQUEST");
        assert_eq!(world.exchange.settlements(), 0, "a refused BUY holds no slot");
        assert_eq!(world.act("bo", "BUY", 1, Some(80))["type"], "BUYING");
        assert_eq!(world.exchange.settlements(), 1);
    }

    #[test]
    fn a_deal_is_known_to_its_own_sides_alone() {
        let mut world = World::with(&["al", "bo", "cy"]);
        world.search("bo", 1);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        assert!(number >= SERVER_NUMBERS);
        for (name, rq) in [("cy", number), ("bo", number), ("al", 1), ("bo", 2)] {
            assert_eq!(code(&world.act(name, "CANCEL", rq, None)), "UNKNOWN_DEAL");
        }
    }

    #[test]
    fn a_register_forgets_the_answers_of_ended_deals_alone() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        world.act("bo", "CANCEL", 1, None);
        world.search("bo", 2);
        assert_eq!(world.from("127.0.0.1:5001", register("bo", "127.0.0.1", 5001))["type"], "REGISTERED");
        assert_eq!(world.deals("bo").len(), 2, "STATUS still tells of both");
        // The open one ends afterwards: its answers are kept, also across a restart.
        world.act("bo", "CANCEL", 2, None);
        for _ in 0..2 {
            assert_eq!(code(&world.act("bo", "CANCEL", 1, None)), "UNKNOWN_DEAL");
            assert_eq!(world.act("bo", "CANCEL", 2, None)["type"], "CANCELLED");
            let before = world.view();
            world.reload();
            assert_eq!(world.view(), before);
        }
        // A second REGISTER forgets that one too.
        world.from("127.0.0.1:5001", register("bo", "127.0.0.1", 5001));
        assert_eq!(code(&world.act("bo", "CANCEL", 2, None)), "UNKNOWN_DEAL");
        // The number means the new deal from now on.
        assert_eq!(world.search("bo", 1)["type"], "SEARCHING");
        let before = world.view();
        world.reload();
        assert_eq!(world.view(), before);
        assert_eq!(world.act("bo", "CANCEL", 1, None)["type"], "CANCELLED");
        let seller = world.told("al").pop().map(|push| push["type"].clone());
        assert_eq!(seller, None, "a search that is off is not asked further");
    }

    #[test]
    fn status_tells_ones_own_deals_newest_first() {
        let mut world = World::with(&["al", "bo", "cy"]);
        world.search("bo", 1);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(80));
        world.search("bo", 2);
        world.search("al", 3);
        world.pass(1_000);
        let bo = world.deals("bo");
        assert_eq!(
            bo,
            [
                json!({"rq": 2, "side": "buyer", "item_name": "lamp", "state": "searching", "ends_in_ms": 4_000}),
                json!({"rq": 1, "side": "buyer", "item_name": "lamp", "state": "searching", "ends_in_ms": 4_000}),
            ]
        );
        assert!(world.deals("cy").is_empty(), "who never offered is not told");
        let al = world.deals("al");
        assert_eq!(al.len(), 2);
        assert_eq!(
            al[1],
            json!({"rq": number, "side": "seller", "item_name": "lamp", "state": "searching", "price": 80,
                   "ends_in_ms": 4_000})
        );
        let one = world.say("bo", json!({"type": "STATUS", "rq": 1, "rq_deal": 2}));
        assert_eq!(one["deals"], json!([bo[0]]));
        assert_eq!(world.say("bo", json!({"type": "STATUS", "rq": 1, "rq_deal": 77}))["deals"], json!([]));
        world.act("bo", "CANCEL", 2, None);
        assert_eq!(world.deals("bo")[0]["reason"], "cancelled by the buyer");
        world.pass(599_999);
        assert_eq!(world.deals("bo").len(), 2);
        world.pass(1);
        assert_eq!(world.deals("bo").len(), 1, "ten minutes after its end nobody hears of it, swept or not");
    }

    #[test]
    fn an_ack_counts_from_the_peers_address_or_with_its_token() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        let ack = |world: &World, source: &str, mid, token: Option<&str>| {
            let ack = Ack { mid, token: token.map(Token::from_text) };
            world.exchange.ack(world.now, source.parse().unwrap(), &ack)
        };
        let mid = world.newest("al")["mid"].as_u64().unwrap();
        let token = world.tokens["al"].clone();
        assert!(!ack(&world, "127.0.0.1:5001", mid, None), "another's address");
        assert!(!ack(&world, "127.0.0.1:5001", mid, Some("x")));
        assert!(!ack(&world, "127.0.0.1:5000", mid + 1_000, None));
        assert_eq!(world.told("al").len(), 1);
        assert!(ack(&world, "10.0.0.1:1", mid, Some(&token)));
        assert!(world.told("al").is_empty());
        assert!(!ack(&world, "127.0.0.1:5000", mid, None), "once is enough");
        world.reload();
        assert!(world.told("al").is_empty(), "it is on disk");
        world.tick_all();
        world.pass(5_000);
        world.tick_all();
        let mid = world.newest("bo")["mid"].as_u64().unwrap();
        assert!(ack(&world, "127.0.0.1:5001", mid, None));
    }

    #[test]
    fn pushes_go_where_the_peer_is_now() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        let told = world.last.pushes[0];
        assert_eq!(world.exchange.push(told).unwrap().0, world.homes["al"]);
        let token = world.tokens["al"].clone();
        world.from("127.0.0.1:1", login("al", 1, &token, 5999));
        assert_eq!(world.exchange.push(told).unwrap().0, "127.0.0.1:5999".parse().unwrap());
        world.pass(5_000);
        world.tick_all();
        assert!(world.exchange.push(told).is_none(), "a SEARCH is not repeated after its window");
    }
}

mod bounds {
    use super::*;

    #[test]
    fn sixty_four_searches_and_no_more() {
        let mut world = World::with(&["al", "bo"]);
        for rq in 0..SEARCHES_MAX as u64 {
            assert_eq!(world.search("bo", rq)["type"], "SEARCHING");
        }
        assert_eq!(code(&world.search("bo", 64)), "BUSY");
        assert_eq!(world.exchange.sizes().1, 64);
        assert_eq!(world.search("bo", 63)["type"], "SEARCHING", "a repeat is answered");
        world.act("bo", "CANCEL", 5, None);
        assert_eq!(world.search("bo", 64)["type"], "SEARCHING");
        world.reload();
        assert_eq!(code(&world.search("bo", 65)), "BUSY");
    }

    #[test]
    fn who_is_in_four_thousand_deals_is_not_asked() {
        let mut world = World::with(&["al", "bo", "cy"]);
        world.exchange.peer("al").unwrap().state.lock().open_sides = SIDES_MAX - 1;
        assert_eq!(world.search("bo", 1)["peers"], 2);
        assert_eq!(world.search("bo", 2)["peers"], 1);
        world.act("bo", "CANCEL", 1, None);
        assert_eq!(world.search("bo", 3)["peers"], 2);
    }

    #[test]
    fn of_more_than_a_thousand_those_heard_last_are_asked() {
        let mut world = World::with(&["bo"]);
        for peer in 0..1_010 {
            world.join(&format!("s{peer}"), &format!("127.0.0.1:{}", 6_000 + peer));
        }
        world.pass(1);
        // All but the first five and the last five speak again.
        for peer in 5..1_005 {
            world.deals(&format!("s{peer}"));
        }
        assert_eq!(world.search("bo", 1)["peers"], ASKED_MAX);
        for peer in 0..1_010 {
            let asked = world.exchange.peer(&format!("s{peer}")).unwrap().state.lock().open_sides;
            assert_eq!(asked, usize::from((5..1_005).contains(&peer)), "s{peer}");
        }
    }

    #[test]
    fn who_is_silent_three_times_is_asked_but_not_waited_for() {
        let mut world = World::with(&["al", "bo", "cy"]);
        let answers = |world: &mut World, name: &str| {
            let number = world.newest(name)["rq"].as_u64().unwrap();
            world.act(name, "NOT_AVAILABLE", number, None);
        };
        for rq in 1..=3 {
            world.search("bo", rq);
            answers(&mut world, "cy");
            assert_eq!(world.deals("bo")[0]["state"], "searching", "al is waited for");
            world.pass(5_000);
            world.tick_all();
        }
        assert_eq!(world.search("bo", 4)["peers"], 2);
        let mid = world.newest("al")["mid"].as_u64().unwrap();
        let ack = Ack { mid, token: None };
        assert!(world.exchange.ack(world.now, world.homes["al"], &ack), "it is asked");
        answers(&mut world, "cy");
        assert_eq!(world.deals("bo")[0]["state"], "cancelled", "but not waited for: an ACK is no request");
        // It says something: the next search waits.
        world.deals("al");
        world.search("bo", 5);
        answers(&mut world, "cy");
        assert_eq!(world.deals("bo")[0]["state"], "searching");
    }

    #[test]
    fn who_is_asked_alone_and_not_waited_for_still_hears_of_it_once() {
        let mut world = World::with(&["al", "bo"]);
        for rq in 1..=3 {
            world.search("bo", rq);
            world.pass(5_000);
            world.tick_all();
        }
        assert_eq!(world.search("bo", 4)["peers"], 1);
        assert_eq!(world.deals("bo")[0]["reason"], "NOT_AVAILABLE");
        world.search("bo", 5);
        let once = std::mem::take(&mut world.last.once);
        let [(to, Push::Search { rq, .. })] = &once[..] else { panic!("{once:?}") };
        assert_eq!(*to, world.homes["al"]);
        // Its late offer comes to nothing, but from now on it is waited for.
        assert_eq!(code(&world.act("al", "OFFER", *rq, Some(1))), "WRONG_STATE");
        world.search("bo", 6);
        assert_eq!(world.deals("bo")[0]["state"], "searching");
        assert!(world.last.once.is_empty());
    }

    #[test]
    fn of_ended_deals_two_hundred_and_fifty_six_are_kept() {
        let mut world = World::with(&["al", "bo"]);
        for rq in 0..300 {
            world.search("bo", rq);
            world.act("bo", "CANCEL", rq, None);
        }
        assert_eq!(world.exchange.sizes().1, ENDED_MAX);
        assert_eq!(world.exchange.journal().snapshot().deals.len(), ENDED_MAX, "on disk as well");
        assert_eq!(code(&world.act("bo", "CANCEL", 43, None)), "UNKNOWN_DEAL");
        assert_eq!(world.act("bo", "CANCEL", 44, None)["type"], "CANCELLED");
        assert_eq!(world.search("bo", 43)["type"], "SEARCHING", "the number is free again");
        world.reload();
        assert_eq!(world.act("bo", "CANCEL", 43, None)["type"], "CANCELLED");
        world.pass(600_000);
        world.exchange.sweep(world.now);
        world.assert_no_trace();
    }

    #[test]
    fn other_peoples_searches_push_out_nobodys_own_deals() {
        let mut world = World::with(&["al", "bo", "cy"]);
        world.search("cy", 7);
        world.act("cy", "CANCEL", 7, None);
        for rq in 0..300 {
            world.search("bo", rq);
            world.act("bo", "CANCEL", rq, None);
        }
        for _ in 0..2 {
            assert_eq!(world.act("cy", "CANCEL", 7, None)["type"], "CANCELLED");
            assert_eq!(world.exchange.sizes().1, ENDED_MAX + 1);
            assert_eq!(world.deals("cy").len(), 1);
            world.reload();
        }
        // One that was asked and comes too late is told so.
        world.search("bo", 999);
        let number = world.newest("cy")["rq"].as_u64().unwrap();
        world.act("bo", "CANCEL", 999, None);
        assert_eq!(code(&world.act("cy", "OFFER", number, Some(1))), "WRONG_STATE");
    }

    #[test]
    fn settlements_are_bounded_in_all_and_per_address() {
        let mut world = World::new();
        world.join("bo", "10.0.0.1:5000");
        world.join("al", "127.0.0.1:5001");
        let mut deals = Vec::new();
        for rq in 0..SETTLEMENTS_PER_ADDRESS_MAX as u64 {
            deals.push(world.bought("bo", "al", rq));
        }
        world.search("bo", 100);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(80));
        assert_eq!(code(&world.act("bo", "BUY", 100, Some(80))), "BUSY");
        assert_eq!(world.deals("bo")[0]["state"], "reserved", "and it may be tried again");
        world.settle(deals[0], &[Event::SettlementFailed("x")]);
        assert_eq!(world.act("bo", "BUY", 100, Some(80))["type"], "BUYING");
        // The loopback seller was in all of them; another buyer on loopback is not held up by that.
        world.join("cy", "127.0.0.1:5002");
        let busy = world.bought("cy", "al", 1);
        world.reload();
        assert_eq!(world.exchange.settlements(), 9, "they go on after a restart");
        for deal in deals.into_iter().skip(1).chain([busy, world.deal_of("bo", 100)]) {
            world.settle(deal, &[Event::SettlementFailed("x")]);
        }
        assert_eq!(world.exchange.settlements(), 0);
        assert!(world.exchange.settling.lock().by_address.is_empty());
        for deal in 0..SETTLEMENTS_MAX as u64 {
            world.exchange.settling.lock().take(deal, vec!["127.0.0.1".parse().unwrap(); 2]);
        }
        world.search("cy", 200);
        let number = world.newest("al")["rq"].as_u64().unwrap();
        world.act("al", "OFFER", number, Some(80));
        world.pass(5_000);
        world.tick_all();
        assert_eq!(code(&world.act("cy", "BUY", 200, Some(80))), "BUSY");
    }

    #[test]
    fn two_sides_at_one_address_are_one_settlement_there() {
        let mut world = World::new();
        world.join("bo", "10.0.0.1:5000");
        world.join("al", "10.0.0.1:5001");
        for rq in 0..SETTLEMENTS_PER_ADDRESS_MAX as u64 {
            world.bought("bo", "al", rq);
        }
    }

    #[test]
    fn a_slot_is_free_again_however_a_settlement_ends() {
        let paid: &[Event] = &[Event::Authorised, Event::Shipped, Event::Captured];
        let failed = Event::SettlementFailed("x");
        let (asked, held) = ([failed.clone()], [Event::Authorised, failed.clone()]);
        let shipped = [Event::Authorised, Event::Shipped, failed];
        for (events, money) in [
            (paid, vec![Money::Authorise, Money::Capture]),
            (&asked, vec![]),
            (&held, vec![Money::Authorise, Money::Void]),
            (&shipped, vec![Money::Authorise, Money::Void]),
        ] {
            for reloaded in [false, true] {
                let mut world = World::with(&["al", "bo"]);
                let deal = world.bought("bo", "al", 1);
                for (place, event) in events.iter().enumerate() {
                    if reloaded {
                        assert_eq!(world.reload().settlements.len(), 1);
                    }
                    assert_eq!(world.exchange.settlements(), 1, "before step {place}");
                    world.settle(deal, std::slice::from_ref(event));
                    // A late repeat of BUY changes nothing about it.
                    assert_eq!(world.act("bo", "BUY", 1, Some(80))["type"], "BUYING");
                }
                assert_eq!(world.exchange.settlements(), 0);
                assert_eq!(world.exchange.journal().money(), money);
                world.pass(600_000);
                world.exchange.sweep(world.now);
                world.assert_no_trace();
            }
        }
    }
}

mod disk {
    use super::*;

    #[test]
    fn a_start_finds_all_as_it_was() {
        let mut world = World::with(&["al", "bo", "cy", "di"]);
        world.bought("bo", "al", 1);
        world.search("bo", 2); // searching
        world.search("cy", 2);
        for (seller, price) in [("al", 150), ("bo", 160), ("di", 170)] {
            let number = world.newest(seller)["rq"].as_u64().unwrap();
            world.act(seller, "OFFER", number, Some(price)); // negotiating
        }
        world.search("di", 2);
        for (seller, price) in [("al", 50), ("bo", 60), ("cy", 70)] {
            let number = world.newest(seller)["rq"].as_u64().unwrap();
            world.act(seller, "OFFER", number, Some(price)); // reserved
        }
        world.search("di", 3);
        world.act("di", "CANCEL", 3, None);
        world.say("cy", json!({"type": "DE-REGISTER", "rq": 9}));
        let token = world.tokens["al"].clone();
        world.from("127.0.0.1:1", login("al", 1, &token, 5999));
        world.homes.insert("al".to_owned(), "127.0.0.1:5999".parse().unwrap());
        let before = world.view();
        let mut mids: Vec<u64> = world.exchange.mids.lock().keys().copied().collect();
        mids.sort();
        let resumed = world.reload();
        assert_eq!(world.view(), before);
        let mut again: Vec<u64> = resumed.pushes.iter().map(|told| told.mid).collect();
        again.sort();
        assert_eq!(again, mids, "with their old numbers");
        assert_eq!(resumed.settlements.len(), 1);
        assert_eq!(resumed.deadlines.len(), 2);
        assert_eq!(world.exchange.addresses.read().len(), 3);
    }

    #[test]
    fn pushes_of_deals_that_ended_long_ago_do_not_go_out_again() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        world.pass(5_000);
        world.tick_all();
        world.pass(599_999);
        assert_eq!(world.reload().pushes.len(), 1);
        world.pass(1);
        assert_eq!(world.reload().pushes.len(), 0);
        world.exchange.sweep(world.now);
        world.assert_no_trace();
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let mut world = World::new();
        let mut seen = HashSet::new();
        for start in 0..20 {
            for _ in 0..50 {
                let first = world.exchange.number(3);
                assert!(first >= SERVER_NUMBERS);
                for number in first..first + 3 {
                    assert!(seen.insert(number), "{number} was given again after start {start}");
                }
            }
            world.reload();
        }
        let highest = *seen.iter().max().unwrap();
        let journal = world.exchange.journal().clone();
        let snapshot = journal.snapshot();
        let (restored, _) = Exchange::load(journal.clone(), rules(), snapshot, true, world.now);
        assert!(restored.number(1) > highest + (1 << 35), "a backup does not know what was given since");
        let snapshot = journal.snapshot();
        assert!(snapshot.ceiling > highest + (1 << 35), "on disk at once");
    }

    #[test]
    fn ten_minutes_after_its_end_a_deal_has_left_no_trace() {
        let mut world = World::with(&["al", "bo", "cy"]);
        let deal = world.bought("bo", "al", 1);
        world.settle(deal, &[Event::Authorised, Event::Shipped, Event::Captured]);
        world.search("al", 2);
        world.act("al", "CANCEL", 2, None);
        world.search("cy", 3);
        world.say("cy", json!({"type": "DE-REGISTER", "rq": 9}));
        world.pass(599_999);
        world.exchange.sweep(world.now);
        assert_eq!(world.exchange.sizes().1, 3);
        world.pass(1);
        world.exchange.sweep(world.now);
        world.assert_no_trace();
        assert_eq!(code(&world.act("bo", "BUY", 1, Some(80))), "UNKNOWN_DEAL");
        assert_eq!(world.search("bo", 1)["type"], "SEARCHING", "the number is free");
    }

    #[test]
    fn a_deal_is_forgotten_with_the_last_who_was_in_it() {
        let mut world = World::with(&["al", "bo"]);
        world.search("bo", 1);
        world.say("bo", json!({"type": "DE-REGISTER", "rq": 9}));
        assert_eq!(world.exchange.sizes().1, 1);
        world.say("al", json!({"type": "DE-REGISTER", "rq": 9}));
        assert_eq!(world.exchange.sizes().1, 0);
    }

    #[test]
    fn money_is_booked_with_the_fee_of_the_house() {
        let mut world = World::with(&["al", "bo"]);
        let deal = world.bought("bo", "al", 1);
        world.settle(deal, &[Event::Authorised]);
        let rows = world.exchange.journal().0.lock();
        let Some(Change::Money(MoneyRow { key, price, fee, .. })) =
            rows.iter().find(|change| matches!(change, Change::Money(_)))
        else {
            panic!("nothing was booked")
        };
        assert_eq!((price, fee), (&Cents(8_000), &Cents(800)));
        assert_eq!(*key, world.exchange.settling(deal).unwrap().key);
    }

    #[test]
    fn the_fee_is_that_of_the_moment_of_buy() {
        let mut world = World::with(&["al", "bo"]);
        let deal = world.bought("bo", "al", 1);
        let other_rate = || Rules { fee: FeeRate::parse_percent("25").unwrap(), ..rules() };
        let reload = |world: &mut World, snapshot| {
            let journal = world.exchange.journal().clone();
            world.exchange = Exchange::load(journal, other_rate(), snapshot, false, world.now).0;
        };
        let snapshot = world.exchange.journal().snapshot();
        reload(&mut world, snapshot);
        assert_eq!(world.exchange.settling(deal).unwrap().fee, Cents(800), "8 of 80, as was said");
        world.settle(deal, &[Event::Authorised, Event::Shipped, Event::Captured]);
        let fees: Vec<Cents> = world.exchange.journal().money_rows().into_iter().map(|row| row.fee).collect();
        assert_eq!(fees, [Cents(800), Cents(800)]);

        // A row from before the fee was kept.
        let deal = world.bought("bo", "al", 2);
        let mut snapshot = world.exchange.journal().snapshot();
        for (row, _) in &mut snapshot.deals {
            let mut older = serde_json::to_value(&*row).unwrap();
            if let Some(settling) = older["state"].get_mut("Settling").and_then(Value::as_object_mut) {
                assert_eq!(settling.remove("fee"), Some(json!(20)), "25 % of 80");
            }
            *row = serde_json::from_value(older).unwrap();
        }
        reload(&mut world, snapshot);
        assert_eq!(world.exchange.settling(deal).unwrap().fee, Cents(2_000), "by the rate of now");
    }

    use crate::model::Cents;
}
