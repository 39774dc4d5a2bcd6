//! The shop: sellers and buyers in a closed loop over kept-open TCP connections, four server processes.
//!
//! "N clients" are N sellers and N buyers, all signed in and connected; each operation is one side's, so N
//! of them call at once. Every operation has a `relay` of its own beside it: the same hops between as many
//! processes, and the same sizes, which are learned from a first answer.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::child::{self, Server};
use super::limits::relay::{self, Hop, Trip, Wire, framed};
use super::limits::{self, Kind};
use super::load::{self, Length, Sample};
use super::plan::{Bench, Group, Pair};
use super::run::Run;
use super::stop::Stop;
use crate::model::Cents;
use crate::net::frames::Framing;
use crate::shop::ops::{
    Account, Begun, CustomerOp, Line, LinkCard, PricedLine, ProductOp, Purchased, Quantity, Rating, Role,
};

mod mix;
mod people;

use mix::Mix;
use people::{Brand, CARD, Town, User};

/// What `--only` may name.
pub const OPERATIONS: &[&str] = &["SEARCH", "CART", "DISPLAY", "GETITEM", "ADDCART", "PRICE", "PURCHASE", "MIX", "ALL"];

const RELAY: &str = "relay";
const COMMIT_100: &str = "commit (100 changes)";
/// Which back of the relay stands for which database.
const CUSTOMER: usize = 0;
const PRODUCT: usize = 1;
/// A quick run is over within a minute: from here on it compares without repetitions what nothing is asked of.
const QUICK_LATE_S: u64 = 38;
/// Its turns, and how long each measurement is.
const QUICK_RUNS: usize = 5;
const QUICK_TIME: Duration = Duration::from_millis(120);
/// The connections of each user.
const BOTH: [Framing; 2] = [Framing::Frames, Framing::Lines];
/// How an answer begins that is no error.
const RESPONSE: &[u8] = b"{\"type\":\"response\"";

/// An operation.
#[derive(Debug, Clone, Copy)]
struct Operation {
    name: &'static str,
    framing: Framing,
    /// As reports call it.
    title: &'static str,
    role: Role,
    is_durable: bool,
}

fn operations(framing: Framing) -> impl Iterator<Item = Operation> {
    let table = [
        ("SEARCH", "SEARCH (lines)", Role::Buyer, false),
        ("CART", "CART (lines)", Role::Buyer, false),
        ("DISPLAY", "DISPLAY (lines)", Role::Seller, false),
        ("GETITEM", "GETITEM (lines)", Role::Buyer, false),
        ("ADDCART", "ADDCART (lines)", Role::Buyer, true),
        ("PRICE", "PRICE (lines)", Role::Seller, true),
        ("PURCHASE", "PURCHASE (lines)", Role::Buyer, true),
    ];
    table.into_iter().map(move |(name, over_lines, role, is_durable)| {
        let title = if framing == Framing::Lines { over_lines } else { name };
        Operation { name, framing, title, role, is_durable }
    })
}

/// Measures everything that is wanted, for each number of clients.
///
/// # Errors
/// A server that does not start or answer; the system's.
pub fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    if run.args.quick {
        // Seven operations, each with its limits: fewer and shorter turns than where there are three.
        run.effort.runs = run.args.runs.map_or(QUICK_RUNS, usize::from);
        if let Length::Time(time) = &mut run.effort.length {
            *time = (*time).min(QUICK_TIME);
        }
    }
    // Whole calls cost nearly the same in either: each by itself is measured over lines if there is time.
    let both = BOTH.as_slice();
    let framings = if run.args.full { both } else { &both[..1] };
    let wanted: Vec<Operation> =
        framings.iter().flat_map(|framing| operations(*framing)).filter(|one| run.wants(one.name)).collect();
    let benches: usize = wanted.iter().map(|one| if one.is_durable { 3 } else { 2 }).sum();
    run.announce(benches * run.args.clients().len());
    let mixes: Vec<(Mix, Framing)> = [Mix::Documents, Mix::Everything]
        .into_iter()
        .filter(|mix| run.wants(mix.name()))
        .flat_map(|mix| {
            let framings = if mix == Mix::Everything && !run.args.quick { both } else { framings };
            framings.iter().map(move |framing| (mix, *framing))
        })
        .collect();
    let of_mixes: usize = mixes.iter().map(|(mix, _)| mix::measurements(run, *mix)).sum();
    run.announce_all(of_mixes * run.args.clients().len());
    let most = run.args.clients().into_iter().max().unwrap_or(1);
    let processes = Processes::start(run)?;
    run.say("filling the catalogue");
    let brand = if processes.are_ours { Brand::alone() } else { Brand::random()? };
    let mut town = Town::settle(processes.seller, processes.buyer, &brand, most, both, run.stop)?;
    let mut relay = Relay::start(run)?;
    for is_durable in [false, true] {
        for clients in run.args.clients() {
            for operation in wanted.iter().filter(|one| one.is_durable == is_durable) {
                if run.stop.is_asked() {
                    return Ok(());
                }
                let quick_and_late = run.args.quick && started.elapsed().as_secs() >= QUICK_LATE_S;
                if is_durable && quick_and_late {
                    run.effort.runs = 1;
                }
                measure_operation(run, &processes, &mut relay, &mut town, *operation, clients)?;
            }
        }
    }
    for mix in mixes {
        for clients in run.args.clients() {
            if run.stop.is_asked() {
                return Ok(());
            }
            mix::measure(run, &processes, &mut relay, &mut town, mix, clients)?;
        }
    }
    Ok(())
}

fn measure_operation(
    run: &mut Run<'_>,
    processes: &Processes,
    relay: &mut Relay,
    town: &mut Town,
    operation: Operation,
    clients: usize,
) -> anyhow::Result<()> {
    run.say(&format!("preparing {}", operation.title));
    processes.prepare(town)?;
    let rounds = town.prepare(operation.name, operation.role, clients)?;
    let nth_framing = usize::from(operation.framing == Framing::Lines);
    let users = town.users(operation.role);
    let trips = learn(&mut users[0], operation.name, &rounds[0][0])?;
    let (relay_servers, mut echoing) = relay.clients(operation.framing, clients, &trips)?;
    let mut calling: Vec<Caller<'_>> = Vec::with_capacity(clients);
    for (user, rounds) in users.iter_mut().zip(&rounds) {
        let frame = |round: &Vec<Vec<u8>>| round.iter().map(|call| framed(operation.framing, call)).collect();
        calling.push(Caller::of_user(user, nth_framing, rounds.iter().map(frame).collect()));
    }
    let names: Vec<String> = (0..clients).map(|nth| format!("perf-shop-{nth:04}")).collect();
    let out = run.args.out.clone();
    let is_required = !operation.is_durable && [1, 100].contains(&clients) && operation.name != "GETITEM";
    let mut benches = vec![
        Bench::limit(RELAY, |length, stop| run_all(&mut echoing, length, stop)).on(relay_servers),
        Bench::new(operation.title, |length, stop| run_all(&mut calling, length, stop)).on(&processes.servers),
    ];
    let mut pairs = vec![Pair { result: operation.title, limits: &[RELAY], required: is_required.then_some(0.5) }];
    if operation.is_durable {
        let commit = move |length: Length, stop: &Stop| {
            let length = match length {
                Length::Calls(calls) => Length::Calls(calls * clients as u64),
                time => time,
            };
            limits::commit(&out, &names, 100, length, stop)
        };
        benches.push(Bench { begins_anew: true, ..Bench::limit(COMMIT_100, commit) });
        pairs.push(Pair { result: operation.title, limits: &[COMMIT_100], required: None });
    }
    run.measure(Group { clients, benches, pairs })
}

/// Checks the form of `--target`; an error says what was expected.
///
/// # Errors
/// It does not name two addresses.
pub fn check_target(target: &str) -> Result<(), String> {
    frontends(target).map(|_| ()).ok_or_else(|| {
        format!("--target: expected the sellers' frontend and the buyers', HOST:PORT,HOST:PORT, not {target:?}")
    })
}

/// The two frontends that `--target` names: the sellers' and the buyers'.
fn frontends(target: &str) -> Option<(&str, &str)> {
    let (seller, buyer) = target.split_once(',')?;
    let is_addr = |text: &str| {
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        port.is_some_and(|port: u16| port != 0) && !text.contains(',')
    };
    [seller, buyer].into_iter().all(is_addr).then_some((seller, buyer))
}

/// The four servers, or the frontends that were named.
struct Processes {
    /// None of what is not ours: nothing is known of their CPU time and memory.
    servers: Vec<Server>,
    are_ours: bool,
    seller: SocketAddr,
    buyer: SocketAddr,
    /// Of the cluster key; goes last.
    _dir: Option<child::WorkDir>,
}

impl Processes {
    /// Before a group of measurements.
    fn prepare(&self, town: &mut Town) -> anyhow::Result<()> {
        // Ours let nobody's session end.
        if self.are_ours { Ok(()) } else { town.stay_signed_in() }
    }

    fn start(run: &Run<'_>) -> anyhow::Result<Processes> {
        if let Some(target) = &run.args.target {
            let (seller, buyer) = frontends(target).with_context(|| format!("--target {target}: expected two"))?;
            let resolve = |name: &str| {
                let addrs = name.to_socket_addrs().with_context(|| format!("--target {name}"))?;
                addrs.into_iter().next().with_context(|| format!("--target {name}: no such host"))
            };
            let (seller, buyer) = (resolve(seller)?, resolve(buyer)?);
            return Ok(Processes { servers: Vec::new(), are_ours: false, seller, buyer, _dir: None });
        }
        run.say("starting the servers");
        let dir = child::WorkDir::create(&run.args.out)?;
        let key = dir.path().join("cluster.key").display().to_string();
        let program = child::sibling("p2s2")?;
        let mut servers = Vec::new();
        let mut start = |command: &str, name: &str, more: &[(&str, SocketAddr)]| {
            let words = |own: &std::path::Path| {
                let state = own.join("state").display().to_string();
                let mut words = [command, "--port", "0", "--cluster-key", &key].map(str::to_owned).to_vec();
                if more.is_empty() {
                    words.extend(["--data-dir".to_owned(), state]);
                }
                if command == "customer-db" {
                    // Who has to wait for his measurement stays signed in.
                    words.extend(["--session-timeout", "1d"].map(str::to_owned));
                }
                words.extend(more.iter().flat_map(|(flag, addr)| [(*flag).to_owned(), addr.to_string()]));
                words
            };
            let server = Server::start(command, &program, &run.args.out, words, run.stop)?;
            let addr = server.said::<SocketAddr>(&format!("{name}: tcp "))?;
            servers.push(server);
            anyhow::Ok(addr)
        };
        let databases = [
            ("--product", start("product-db", "product-db", &[])?),
            ("--customer", start("customer-db", "customer-db", &[])?),
        ];
        let seller = start("seller-server", "seller", &databases)?;
        let buyer = start("buyer-server", "buyer", &databases)?;
        Ok(Processes { servers, are_ours: true, seller, buyer, _dir: Some(dir) })
    }
}

/// The echo over as many processes as a call crosses.
struct Relay {
    servers: Vec<Server>,
    front: SocketAddr,
    /// Kept open: frames, lines.
    wires: [Vec<Wire>; 2],
}

impl Relay {
    fn start(run: &Run<'_>) -> anyhow::Result<Relay> {
        run.say("starting the limits");
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let mut servers = Vec::new();
        let mut start = |kind: Kind, backs: &[SocketAddr]| {
            let server = Server::start(kind.name(), &own, &run.args.out, |_| kind.relay_words(backs), run.stop)?;
            let addr = server.said::<SocketAddr>("tcp ")?;
            servers.push(server);
            anyhow::Ok(addr)
        };
        let backs = [start(Kind::RelayBack, &[])?, start(Kind::RelayBack, &[])?];
        let front = start(Kind::RelayFront, &backs)?;
        Ok(Relay { servers, front, wires: [Vec::new(), Vec::new()] })
    }

    /// So many clients that make these trips in each round.
    fn clients(
        &mut self,
        framing: Framing,
        count: usize,
        trips: &[Trip],
    ) -> anyhow::Result<(&[Server], Vec<Caller<'_>>)> {
        self.clients_of(framing, count, &[vec![trips.to_vec()]])
    }

    /// The same with several kinds of clients, so many of each, and the rounds of each kind.
    fn clients_of(
        &mut self,
        framing: Framing,
        count: usize,
        kinds: &[Vec<Vec<Trip>>],
    ) -> anyhow::Result<(&[Server], Vec<Caller<'_>>)> {
        let wires = &mut self.wires[usize::from(framing == Framing::Lines)];
        while wires.len() < count * kinds.len() {
            wires.push(people::connect(self.front, framing)?);
        }
        let mut clients = Vec::with_capacity(count * kinds.len());
        for (wires, rounds) in wires.chunks_mut(count).zip(kinds) {
            let message = |trip: &Trip| Ok(framed(framing, &trip.message()?));
            let rounds: Vec<Vec<Vec<u8>>> =
                rounds.iter().map(|round| round.iter().map(message).collect()).collect::<anyhow::Result<_>>()?;
            clients.extend(wires.iter_mut().map(|wire| Caller::new(wire, rounds.clone(), relay::ANSWER_HEAD)));
        }
        Ok((&self.servers, clients))
    }
}

/// A client in a closed loop: an operation is a round of one call or several, and the next round may be
/// another.
struct Caller<'a> {
    wire: &'a mut Wire,
    rounds: Vec<Vec<Vec<u8>>>,
    /// Of a mix, what each round is; else nothing.
    names: Vec<&'static str>,
    next: usize,
    /// How a good answer begins.
    answer_head: &'static [u8],
    /// Where to connect anew when a connection breaks, which fails the call; without it, it ends the run.
    home: Option<(SocketAddr, Framing)>,
}

impl<'a> Caller<'a> {
    fn new(wire: &'a mut Wire, rounds: Vec<Vec<Vec<u8>>>, answer_head: &'static [u8]) -> Caller<'a> {
        Caller { wire, rounds, names: Vec::new(), next: 0, answer_head, home: None }
    }

    /// One that calls as this user, over the connection of that framing.
    fn of_user(user: &'a mut User, nth_framing: usize, rounds: Vec<Vec<Vec<u8>>>) -> Caller<'a> {
        let home = Some((user.addr(), BOTH[nth_framing]));
        Caller { home, ..Caller::new(&mut user.wires[nth_framing], rounds, RESPONSE) }
    }

    fn drive(&mut self, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
        let mut sample = Sample::new();
        let started = Instant::now();
        let (mut before, mut calls) = (started, 0);
        while !length.is_over(calls, started, before) && !stop.is_asked() {
            let round = &self.rounds[self.next];
            let mut is_good = true;
            for call in round {
                match exchange(self.wire, call, self.answer_head) {
                    Ok(good) => is_good &= good,
                    Err(error) => {
                        let Some((addr, framing)) = self.home else { return Err(error) };
                        // Its answer, if one comes, is nobody's: it must not be taken for the next call's.
                        *self.wire = people::connect(addr, framing).context(error)?;
                        is_good = false;
                        break;
                    }
                }
            }
            let now = Instant::now();
            match (self.names.get(self.next), is_good) {
                (Some(name), _) => sample.of_part(name, is_good.then(|| now - before)),
                (None, true) => sample.answered(now - before),
                (None, false) => sample.failed += 1,
            }
            self.next = (self.next + 1) % self.rounds.len();
            before = now;
            calls += 1;
        }
        Ok(sample)
    }
}

/// One call; whether its answer is a good one.
fn exchange(wire: &mut Wire, call: &[u8], answer_head: &[u8]) -> anyhow::Result<bool> {
    wire.send(call)?;
    let answer = wire.receive()?.context("a server closed a connection")?;
    Ok(answer.starts_with(answer_head))
}

fn run_all(callers: &mut [Caller<'_>], length: Length, stop: &Stop) -> anyhow::Result<Sample> {
    load::run_all(callers, |caller| caller.drive(length, stop))
}

/// Makes one round, and tells what the same would be without work: sizes as they were, hops as the
/// frontends make them.
fn learn(user: &mut User, operation: &str, round: &[Vec<u8>]) -> anyhow::Result<Vec<Trip>> {
    let mut trips = Vec::with_capacity(round.len());
    for call in round {
        let wire = &mut user.wires[0];
        wire.send(&framed(Framing::Frames, call))?;
        let answer = wire.receive()?.context("the server closed the connection")?.to_vec();
        let text = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with(RESPONSE), "{operation} was refused: {text}");
        let request: Value = serde_json::from_slice(call)?;
        let (api, payload) = (request["api"].as_str().unwrap_or_default(), &request["payload"]);
        let result: Value = serde_json::from_slice(&answer)?;
        let payload_at = text.find("\"payload\":").context("payload: missing in an answer")? + "\"payload\":".len();
        // Without the envelope's last brace.
        let passed_on = answer.len() - payload_at - 1;
        let steps = steps(user, api, payload, &result["payload"], passed_on);
        trips.push(Trip { request_bytes: call.len(), answer_bytes: answer.len(), steps: steps? });
    }
    Ok(trips)
}

/// What a frontend asks of the databases for one call (`shop::frontend`), in bytes.
fn steps(user: &User, api: &str, payload: &Value, result: &Value, passed_on: usize) -> anyhow::Result<Vec<Vec<Hop>>> {
    const OK_BYTES: usize = "{\"ok\":}".len();
    let customer = |op: &CustomerOp, answer_bytes: usize| hop(CUSTOMER, op, answer_bytes + OK_BYTES);
    let product = |op: &ProductOp, answer_bytes: usize| hop(PRODUCT, op, answer_bytes + OK_BYTES);
    let (done, id) = ("null".len(), "0".repeat(32));
    let text = |field: &str| payload[field].as_str().unwrap_or_default().to_owned();
    let limit = |unless: u64| payload["limit"].as_u64().unwrap_or(unless);
    let (sid, users) = (user.sid.clone(), false);
    let account = Account { user_id: user.id, username: user.name.clone(), name: user.name.clone() };
    let touch = customer(&CustomerOp::Touch { role: user.role, sid: sid.clone() }, json_bytes(&account)?)?;
    let price = Cents(1250);
    let line = || Line { item_id: user.item.clone(), quantity: 1 };
    let priced = PricedLine {
        item_id: user.item.clone(),
        quantity: 1,
        price,
        seller_id: 1,
        seller: "perf-seller-0000".to_owned(),
    };
    Ok(match api {
        "SearchItemsForSale" => {
            let category = payload["category"].as_u64().map(u32::try_from).transpose()?;
            let keywords = Option::deserialize(&payload["keywords"])?.unwrap_or_default();
            let search = ProductOp::Search { category, keywords, offset: 0, limit: limit(50) };
            vec![vec![touch, product(&search, passed_on)?]]
        }
        "DisplayCart" => {
            let wrapped = "{\"cart\":}".len();
            vec![vec![customer(&CustomerOp::ShowCart { sid, users }, passed_on - wrapped)?]]
        }
        "DisplayItemsForSale" => {
            let items = ProductOp::ItemsOf { seller_id: user.id, offset: 0, limit: limit(500) };
            vec![vec![touch], vec![product(&items, passed_on)?]]
        }
        "GetItem" => vec![vec![touch, product(&ProductOp::GetItem { item_id: text("item_id") }, passed_on)?]],
        "AddItemToCart" => {
            let item_id = text("item_id");
            let item = product(&ProductOp::GetItem { item_id: item_id.clone() }, people::ITEM_BYTES)?;
            let add = CustomerOp::AddToCart { request: id, sid, users, item_id, quantity: 1, at_most: people::STOCK };
            vec![vec![item], vec![customer(&add, done)?]]
        }
        "RegisterItemForSale" => {
            let register = ProductOp::Register {
                request: id,
                seller_id: user.id,
                seller: user.name.clone(),
                item_name: text("item_name"),
                category: 3,
                keywords: serde_json::from_value(payload["keywords"].clone())?,
                condition_is_new: true,
                price,
                quantity: 100,
            };
            vec![vec![touch], vec![product(&register, passed_on)?]]
        }
        "UpdateUnitsForSale" => {
            let delta = payload["quantity"].as_i64().unwrap_or_default();
            let update = ProductOp::UpdateUnits { request: id, seller_id: user.id, item_id: text("item_id"), delta };
            vec![vec![touch], vec![product(&update, json_bytes(&Quantity::deserialize(result)?)?)?]]
        }
        "GetSellerRating" => {
            let rating = ProductOp::RatingOf { seller_id: user.id };
            vec![vec![touch], vec![product(&rating, json_bytes(&Rating::deserialize(result)?)?)?]]
        }
        "GetSellerOrders" => {
            let orders = CustomerOp::Orders { sid, offset: 0, limit: limit(500) };
            vec![vec![customer(&orders, json_bytes(&result["items"])?)?]]
        }
        "GetBuyerPurchases" => {
            let purchases = CustomerOp::Purchases { sid, offset: 0, limit: limit(500) };
            vec![vec![customer(&purchases, json_bytes(&result["items"])?)?]]
        }
        "RemoveItemFromCart" => {
            let quantity = payload["quantity"].as_u64().map(u32::try_from).transpose()?;
            let remove = CustomerOp::RemoveFromCart { request: id, sid, users, item_id: text("item_id"), quantity };
            vec![vec![customer(&remove, json_bytes(&Quantity::deserialize(result)?)?)?]]
        }
        "SaveCart" => vec![vec![customer(&CustomerOp::SaveCart { sid, users }, done)?]],
        "ClearCart" => vec![vec![customer(&CustomerOp::ClearCart { sid, users }, done)?]],
        "ProvideFeedback" => {
            let up = payload["thumbs_up"].as_bool().unwrap_or_default();
            let vote = ProductOp::VoteItem { buyer_id: user.id, item_id: text("item_id"), up };
            vec![vec![touch], vec![product(&vote, done)?]]
        }
        "ChangeItemPrice" => {
            let change = ProductOp::ChangePrice { seller_id: user.id, item_id: text("item_id"), price };
            vec![vec![touch], vec![product(&change, done)?]]
        }
        "MakePurchase" => {
            let purchase_id = result["purchase_id"].as_str().unwrap_or(&id).to_owned();
            let card = LinkCard { number: CARD.to_owned(), exp: "12/79".to_owned(), name: user.name.clone() };
            let (lease, lease_ms) = (1, 10_000);
            let address = payload["address"].as_str().map(str::to_owned);
            let begin = CustomerOp::Begin { request: id, sid, users, idempotency_key: None, address };
            let begun = Begun::Drive { purchase_id: purchase_id.clone(), lease, lease_ms, lines: vec![line()] };
            let hold =
                ProductOp::Hold { purchase_id: purchase_id.clone(), lines: vec![line()], expires_in_ms: 3_600_000 };
            let lines = vec![priced.clone()];
            let authorise =
                CustomerOp::Authorise { purchase_id: purchase_id.clone(), lease, lines: lines.clone(), card };
            let complete = CustomerOp::Complete { purchase_id: purchase_id.clone(), lease };
            let purchased = Purchased { purchase_id: purchase_id.clone(), total: price, items: lines.clone() };
            vec![
                vec![customer(&begin, json_bytes(&begun)?)?],
                vec![product(&hold, json_bytes(&lines)?)?],
                vec![customer(&authorise, done)?],
                vec![product(&ProductOp::Sell { purchase_id }, "\"sold\"".len())?],
                vec![customer(&complete, json_bytes(&purchased)?)?],
            ]
        }
        other => anyhow::bail!("{other} is not compared"),
    })
}

fn hop(back: usize, op: &impl Serialize, answer_bytes: usize) -> anyhow::Result<Hop> {
    Ok(Hop { back, request_bytes: json_bytes(op)?, answer_bytes })
}

fn json_bytes(value: &impl Serialize) -> anyhow::Result<usize> {
    Ok(serde_json::to_vec(value)?.len())
}

/// A call of dialect 1.
fn call(api: &str, sid: Option<&str>, payload: &Value) -> Vec<u8> {
    json!({"type": "request", "api": api, "session_id": sid, "payload": payload}).to_string().into_bytes()
}
