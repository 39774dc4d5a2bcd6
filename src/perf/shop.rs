//! The shop: sellers and buyers in a closed loop over persistent TCP connections to four server processes.
//!
//! "N clients" are N sellers and N buyers, all signed in and connected. Each operation belongs to one role, so N of
//! them call concurrently. Every operation has its own `relay` limit: the same hops between as many processes with the
//! same message sizes, which are learned from a first response.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::child::{self, ServerProcess};
use super::limits::relay::{self, FramedConnection, Hop, RelayRequest, framed};
use super::limits::{self, LimitServerKind};
use super::load::{self, MeasurementLength, Sample};
use super::plan::{Benchmark, BenchmarkGroup, Comparison};
use super::run::ScenarioRun;
use super::stop::StopFlag;
use crate::model::Cents;
use crate::net::frames::Framing;
use crate::shop::apis::{ApiCall, PaymentDetails, ServerKind, SessionCall};
use crate::shop::customer::{CustomerCall, CustomerOp};
use crate::shop::ops::{
    Account, BeginResponse, CompletedPurchase, LineItem, PricedLine, RemainingQuantity, Role, SellerRating,
};
use crate::shop::product::{NewItem, ProductOp};
use crate::shop::wire::{self, ParsedRequest};

mod mix;
mod users;

use mix::Mix;
use users::{RunTag, ShopPopulation, User};

pub const OPERATIONS: &[&str] = &["SEARCH", "CART", "DISPLAY", "GETITEM", "ADDCART", "PRICE", "PURCHASE", "MIX", "ALL"];

const RELAY: &str = "relay";
const COMMIT_100: &str = "commit (100 changes)";
/// Which backend of the relay stands for which database.
const CUSTOMER: usize = 0;
const PRODUCT: usize = 1;
/// A quick run should end within a minute: from here on operations without requirements get a single turn.
const QUICK_LATE_S: u64 = 38;
const QUICK_RUNS: usize = 5;
const QUICK_TIME: Duration = Duration::from_millis(120);
/// Each user has one connection per framing.
const FRAMINGS: [Framing; 2] = [Framing::Frames, Framing::Lines];
/// How a response begins that is not an error.
const RESPONSE: &[u8] = b"{\"type\":\"response\"";

#[derive(Debug, Clone, Copy)]
struct ShopOperation {
    name: &'static str,
    framing: Framing,
    /// The name in reports.
    title: &'static str,
    role: Role,
    is_durable: bool,
}

fn operations(framing: Framing) -> impl Iterator<Item = ShopOperation> {
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
        ShopOperation { name, framing, title, role, is_durable }
    })
}

pub fn measure(run: &mut ScenarioRun<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    if run.args.quick {
        // There are seven operations with limits of their own, so turns are fewer and shorter than elsewhere.
        run.sampling.runs = run.args.runs.map_or(QUICK_RUNS, usize::from);
        if let MeasurementLength::Time(time) = &mut run.sampling.length {
            *time = (*time).min(QUICK_TIME);
        }
    }
    // The cost hardly depends on the framing, so single operations are measured over lines only in a full run.
    let both = FRAMINGS.as_slice();
    let framings = if run.args.full { both } else { &both[..1] };
    let wanted: Vec<ShopOperation> =
        framings.iter().flat_map(|framing| operations(*framing)).filter(|one| run.is_wanted(one.name)).collect();
    let benchmarks: usize = wanted.iter().map(|one| if one.is_durable { 3 } else { 2 }).sum();
    run.expect_benchmarks(benchmarks * run.args.clients().len());
    let mixes: Vec<(Mix, Framing)> = [Mix::Documents, Mix::Everything]
        .into_iter()
        .filter(|mix| run.is_wanted(mix.title(Framing::Frames)))
        .flat_map(|mix| {
            let framings = if mix == Mix::Everything && !run.args.quick { both } else { framings };
            framings.iter().map(move |framing| (mix, *framing))
        })
        .collect();
    let of_mixes: usize = mixes.iter().map(|(mix, _)| mix::measurements(run, *mix)).sum();
    run.expect_measurements(of_mixes * run.args.clients().len());
    let most = run.args.clients().into_iter().max().unwrap_or(1);
    let processes = ShopProcesses::start(run)?;
    run.set_status("filling the catalogue");
    let tag = if processes.servers.is_empty() { RunTag::random()? } else { RunTag::empty() };
    let mut population = ShopPopulation::create(processes.seller, processes.buyer, &tag, most, both, run.stop)?;
    let mut relay = RelayProcesses::start(run)?;
    for is_durable in [false, true] {
        for clients in run.args.clients() {
            for operation in wanted.iter().filter(|one| one.is_durable == is_durable) {
                if run.stop.is_set() {
                    return Ok(());
                }
                if is_durable && run.args.quick && started.elapsed().as_secs() >= QUICK_LATE_S {
                    run.sampling.runs = 1;
                }
                measure_operation(run, &processes, &mut relay, &mut population, *operation, clients)?;
            }
        }
    }
    for mix in mixes {
        for clients in run.args.clients() {
            if run.stop.is_set() {
                return Ok(());
            }
            mix::measure(run, &processes, &mut relay, &mut population, mix, clients)?;
        }
    }
    Ok(())
}

fn measure_operation(
    run: &mut ScenarioRun<'_>,
    processes: &ShopProcesses,
    relay: &mut RelayProcesses,
    population: &mut ShopPopulation,
    operation: ShopOperation,
    clients: usize,
) -> anyhow::Result<()> {
    run.set_status(&format!("preparing {}", operation.title));
    processes.prepare(population)?;
    let rounds = population.prepare(operation.name, operation.role, clients)?;
    let nth_framing = usize::from(operation.framing == Framing::Lines);
    let users = population.users(operation.role);
    let relay_requests = learn_relay_requests(&mut users[0], operation.name, &rounds[0][0])?;
    let (relay_servers, mut relay_clients) = relay.clients(operation.framing, clients, &[vec![relay_requests]])?;
    let mut shop_clients: Vec<ClosedLoopClient<'_>> = Vec::with_capacity(clients);
    for (user, rounds) in users.iter_mut().zip(&rounds) {
        let frame = |round: &Vec<Vec<u8>>| round.iter().map(|call| framed(operation.framing, call)).collect();
        shop_clients.push(ClosedLoopClient::for_user(user, nth_framing, rounds.iter().map(frame).collect()));
    }
    let names: Vec<String> = (0..clients).map(|nth| format!("perf-shop-{nth:04}")).collect();
    let out = run.args.out.clone();
    let is_required = !operation.is_durable && [1, 100].contains(&clients) && operation.name != "GETITEM";
    let mut benchmarks = vec![
        Benchmark::limit(RELAY, |length, stop| run_all(&mut relay_clients, length, stop)).on(relay_servers),
        Benchmark::new(operation.title, |length, stop| run_all(&mut shop_clients, length, stop)).on(&processes.servers),
    ];
    let mut comparisons =
        vec![Comparison { result: operation.title, limits: &[RELAY], required: is_required.then_some(0.5) }];
    if operation.is_durable {
        let commit = move |length: MeasurementLength, stop: &StopFlag| {
            limits::commit(&out, &names, 100, length.for_clients(clients), stop)
        };
        benchmarks.push(Benchmark { starts_fresh: true, ..Benchmark::limit(COMMIT_100, commit) });
        comparisons.push(Comparison { result: operation.title, limits: &[COMMIT_100], required: None });
    }
    run.measure(BenchmarkGroup { clients, benchmarks, comparisons })
}

pub fn check_target(target: &str) -> Result<(), String> {
    frontends(target).map(|_| ()).ok_or_else(|| {
        format!("--target: expected the sellers' frontend and the buyers', HOST:PORT,HOST:PORT, not {target:?}")
    })
}

/// The sellers' and the buyers' frontend named by `--target`.
fn frontends(target: &str) -> Option<(&str, &str)> {
    let (seller, buyer) = target.split_once(',')?;
    let is_addr = |text: &str| {
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        port.is_some_and(|port: u16| port != 0) && !text.contains(',')
    };
    [seller, buyer].into_iter().all(is_addr).then_some((seller, buyer))
}

/// The four server processes, or the frontends given with `--target`.
struct ShopProcesses {
    /// Empty if the servers are not ours; their CPU time and memory are then unknown.
    servers: Vec<ServerProcess>,
    seller: SocketAddr,
    buyer: SocketAddr,
    /// The folder of the cluster key; dropped last.
    _dir: Option<child::WorkDir>,
}

impl ShopProcesses {
    /// Prepares for a group of measurements.
    fn prepare(&self, population: &mut ShopPopulation) -> anyhow::Result<()> {
        if self.servers.is_empty() { population.stay_signed_in() } else { Ok(()) }
    }

    fn start(run: &ScenarioRun<'_>) -> anyhow::Result<ShopProcesses> {
        if let Some(target) = &run.args.target {
            let (seller, buyer) = frontends(target).with_context(|| format!("--target {target}: expected two"))?;
            let (seller, buyer) = (ScenarioRun::resolve(seller)?, ScenarioRun::resolve(buyer)?);
            return Ok(ShopProcesses { servers: Vec::new(), seller, buyer, _dir: None });
        }
        run.set_status("starting the servers");
        let dir = child::WorkDir::create(&run.args.out)?;
        let key = dir.path().join("cluster.key").display().to_string();
        let program = child::sibling_program("p2s2")?;
        let mut servers = Vec::new();
        let mut start = |command: &str, name: &str, more: &[(&str, SocketAddr)]| {
            let program_args = |own: &std::path::Path| {
                let state = own.join("state").display().to_string();
                let mut program_args = vec![command, "--port", "0", "--cluster-key", &key];
                if more.is_empty() {
                    program_args.extend(["--data-dir", &state]);
                }
                if command == "customer-db" {
                    // Users must stay signed in while others are measured.
                    program_args.extend(["--session-timeout", "1d"]);
                }
                let more = more.iter().flat_map(|(flag, addr)| [(*flag).to_owned(), addr.to_string()]);
                program_args.into_iter().map(str::to_owned).chain(more).collect()
            };
            let server = ServerProcess::start(command, &program, &run.args.out, program_args, run.stop)?;
            let addr = server.announced::<SocketAddr>(&format!("{name}: tcp "))?;
            servers.push(server);
            anyhow::Ok(addr)
        };
        let databases = [
            ("--product", start("product-db", "product-db", &[])?),
            ("--customer", start("customer-db", "customer-db", &[])?),
        ];
        let seller = start("seller-server", "seller", &databases)?;
        let buyer = start("buyer-server", "buyer", &databases)?;
        Ok(ShopProcesses { servers, seller, buyer, _dir: Some(dir) })
    }
}

/// The echo across as many processes as a call of the shop.
struct RelayProcesses {
    servers: Vec<ServerProcess>,
    front: SocketAddr,
    /// Open connections by framing: frames, lines.
    connections: [Vec<FramedConnection>; 2],
}

impl RelayProcesses {
    fn start(run: &ScenarioRun<'_>) -> anyhow::Result<RelayProcesses> {
        run.set_status("starting the limits");
        let mut servers = Vec::new();
        let mut start = |kind: LimitServerKind, name, backs: &[SocketAddr]| {
            let backs = backs.iter().flat_map(|back| ["--back".to_owned(), back.to_string()]);
            let (server, addr) = kind.start(run, name, backs)?;
            servers.push(server);
            anyhow::Ok(addr)
        };
        let mut start_back = || start(LimitServerKind::RelayBack, "relay-back", &[]);
        let backs = [start_back()?, start_back()?];
        let front = start(LimitServerKind::RelayFront, "relay-front", &backs)?;
        Ok(RelayProcesses { servers, front, connections: [Vec::new(), Vec::new()] })
    }

    /// Clients of several kinds, `count` of each, with the rounds of each kind.
    fn clients(
        &mut self,
        framing: Framing,
        count: usize,
        kinds: &[Vec<Vec<RelayRequest>>],
    ) -> anyhow::Result<(&[ServerProcess], Vec<ClosedLoopClient<'_>>)> {
        let connections = &mut self.connections[usize::from(framing == Framing::Lines)];
        while connections.len() < count * kinds.len() {
            connections.push(users::connect(self.front, framing)?);
        }
        let mut clients = Vec::with_capacity(count * kinds.len());
        for (connections, rounds) in connections.chunks_mut(count).zip(kinds) {
            let message = |relay_request: &RelayRequest| Ok(framed(framing, &relay_request.message()?));
            let rounds: Vec<Vec<Vec<u8>>> =
                rounds.iter().map(|round| round.iter().map(message).collect()).collect::<anyhow::Result<_>>()?;
            clients.extend(
                connections
                    .iter_mut()
                    .map(|connection| ClosedLoopClient::new(connection, rounds.clone(), relay::RESPONSE_PREFIX)),
            );
        }
        Ok((&self.servers, clients))
    }
}

/// A client in a closed loop. An operation is a round of one or more calls; rounds are repeated in turn.
struct ClosedLoopClient<'a> {
    connection: &'a mut FramedConnection,
    rounds: Vec<Vec<Vec<u8>>>,
    /// In a mix, the API of each round; else empty.
    names: Vec<&'static str>,
    next: usize,
    /// How a successful response begins.
    response_prefix: &'static [u8],
    /// Where to reconnect after a broken connection, which fails the call; `None`: the run ends.
    reconnect_to: Option<(SocketAddr, Framing)>,
}

impl<'a> ClosedLoopClient<'a> {
    fn new(
        connection: &'a mut FramedConnection,
        rounds: Vec<Vec<Vec<u8>>>,
        response_prefix: &'static [u8],
    ) -> ClosedLoopClient<'a> {
        ClosedLoopClient { connection, rounds, names: Vec::new(), next: 0, response_prefix, reconnect_to: None }
    }

    fn for_user(user: &'a mut User, nth_framing: usize, rounds: Vec<Vec<Vec<u8>>>) -> ClosedLoopClient<'a> {
        let reconnect_to = Some((user.addr, FRAMINGS[nth_framing]));
        ClosedLoopClient { reconnect_to, ..ClosedLoopClient::new(&mut user.connections[nth_framing], rounds, RESPONSE) }
    }

    /// Runs the next round; returns its API in a mix, and whether all of its responses are successful.
    fn run_round(&mut self) -> anyhow::Result<(Option<&'static str>, bool)> {
        let nth = self.next;
        self.next = (nth + 1) % self.rounds.len();
        let mut is_good = true;
        for call in &self.rounds[nth] {
            match exchange(self.connection, call, self.response_prefix) {
                Ok(good) => is_good &= good,
                Err(error) => {
                    let Some((addr, framing)) = self.reconnect_to else { return Err(error) };
                    // A late response must not be taken for that of the next call.
                    *self.connection = users::connect(addr, framing).context(error)?;
                    is_good = false;
                    break;
                }
            }
        }
        Ok((self.names.get(nth).copied(), is_good))
    }
}

/// Makes one call; returns whether the response is successful.
fn exchange(connection: &mut FramedConnection, call: &[u8], response_prefix: &[u8]) -> anyhow::Result<bool> {
    connection.send(call)?;
    let response = connection.receive()?.context("a server closed a connection")?;
    Ok(response.starts_with(response_prefix))
}

fn run_all(clients: &mut [ClosedLoopClient<'_>], length: MeasurementLength, stop: &StopFlag) -> anyhow::Result<Sample> {
    load::run_all(clients, |_nth, client| load::drive(length, None, stop, |_sample| client.run_round()))
}

/// Makes one round and derives the equivalent relay requests: the same sizes, and the hops that the frontends make.
fn learn_relay_requests(user: &mut User, operation: &str, round: &[Vec<u8>]) -> anyhow::Result<Vec<RelayRequest>> {
    let mut relay_requests = Vec::with_capacity(round.len());
    for call in round {
        let connection = &mut user.connections[0];
        connection.send(&framed(Framing::Frames, call))?;
        let response = connection.receive()?.context("the server closed the connection")?.to_vec();
        let text = String::from_utf8_lossy(&response);
        ensure!(response.starts_with(RESPONSE), "{operation} was refused: {text}");
        let server = if user.role == Role::Buyer { ServerKind::Buyer } else { ServerKind::Seller };
        let Ok(ParsedRequest { call: ApiCall::InSession { call: asked, .. }, .. }) = wire::parse_request(server, call)
        else {
            bail!("{operation} is not compared");
        };
        let result: Value = serde_json::from_slice(&response)?;
        let payload_at = text.find("\"payload\":").context("payload: missing in an answer")? + "\"payload\":".len();
        // Without the envelope's closing brace.
        let passed_on = response.len() - payload_at - 1;
        let steps = RelayedCall { user, result: &result["payload"], passed_on }.steps(asked)?;
        relay_requests.push(RelayRequest { request_bytes: call.len(), answer_bytes: response.len(), steps });
    }
    Ok(relay_requests)
}

/// What a frontend passes on for one call, to find the sizes of its requests to the databases.
struct RelayedCall<'a> {
    user: &'a User,
    result: &'a Value,
    /// The bytes of the answer that come from a database as they are.
    passed_on: usize,
}

/// The answer that holds nothing.
const DONE_BYTES: usize = "null".len();
const PRICE: Cents = Cents(1250);

impl RelayedCall<'_> {
    /// The requests to the databases that a frontend makes for the call (see `shop::frontend`): what is in one list is
    /// asked at once.
    fn steps(&self, call: SessionCall) -> anyhow::Result<Vec<Vec<Hop>>> {
        let (request, sid, uses_saved_cart, seller_id) = (request_id(), self.user.sid.clone(), false, self.user.id);
        let left = || json_bytes(&RemainingQuantity::deserialize(self.result)?);
        let (op, answer_bytes) = match call {
            SessionCall::AskProduct(op) => return Ok(vec![vec![self.touch()?, product(&op, self.passed_on)?]]),
            SessionCall::GetOwnItem { item_id } => {
                return self.steps(SessionCall::AskProduct(ProductOp::GetItem { item_id }));
            }
            SessionCall::AskCustomer(call) => {
                let answer_bytes = match call {
                    CustomerCall::ShowCart => self.passed_on - "{\"cart\":}".len(),
                    CustomerCall::Purchases { .. } | CustomerCall::Orders { .. } => json_bytes(&self.result["items"])?,
                    _ => DONE_BYTES,
                };
                return Ok(vec![vec![customer(&CustomerOp::InSession { sid, uses_saved_cart, call }, answer_bytes)?]]);
            }
            SessionCall::AddToCart { item_id, quantity } => {
                let item = product(&ProductOp::GetItem { item_id: item_id.clone() }, users::ITEM_BYTES)?;
                let at_most = users::STOCK;
                let add = CustomerOp::AddToCart { request, sid, uses_saved_cart, item_id, quantity, at_most };
                return Ok(vec![vec![item], vec![customer(&add, DONE_BYTES)?]]);
            }
            SessionCall::RemoveFromCart { item_id, quantity } => {
                let remove = CustomerOp::RemoveFromCart { request, sid, uses_saved_cart, item_id, quantity };
                return Ok(vec![vec![customer(&remove, left()?)?]]);
            }
            SessionCall::Purchase(payment) => return self.purchase_steps(*payment),
            SessionCall::OwnRating => {
                let rating = json_bytes(&SellerRating::deserialize(self.result)?)?;
                (ProductOp::RatingOf { seller_id }, rating)
            }
            SessionCall::VoteItem { item_id, up } => {
                (ProductOp::VoteItem { buyer_id: self.user.id, item_id, up }, DONE_BYTES)
            }
            SessionCall::OwnItems { offset, limit } => {
                (ProductOp::ItemsOf { seller_id, offset, limit }, self.passed_on)
            }
            SessionCall::Register(item) => {
                let item = NewItem { seller_id, seller: self.user.name.clone(), ..*item };
                (ProductOp::Register { request, item }, self.passed_on)
            }
            SessionCall::UpdateUnits { item_id, delta } => {
                (ProductOp::UpdateUnits { request, seller_id, item_id, delta }, left()?)
            }
            SessionCall::ChangePrice { item_id, price } => {
                (ProductOp::ChangePrice { seller_id, item_id, price }, DONE_BYTES)
            }
            other => bail!("{other:?} is not compared"),
        };
        // What is part of an account is asked for once the account is known.
        Ok(vec![vec![self.touch()?], vec![product(&op, answer_bytes)?]])
    }

    fn purchase_steps(&self, payment: PaymentDetails) -> anyhow::Result<Vec<Vec<Hop>>> {
        let user = self.user;
        let purchase_id = self.result["purchase_id"].as_str().map_or_else(request_id, str::to_owned);
        let lines = vec![LineItem { item_id: user.item.clone(), quantity: 1 }];
        let priced = vec![PricedLine {
            item_id: user.item.clone(),
            quantity: 1,
            price: PRICE,
            seller_id: 1,
            seller: "perf-seller-0000".to_owned(),
        }];
        let PaymentDetails { card, address, idempotency_key } = payment;
        let (lease, lease_ms) = (1, 10_000);
        let (request, sid, uses_saved_cart) = (request_id(), user.sid.clone(), false);
        let begin = CustomerOp::Begin { request, sid, uses_saved_cart, idempotency_key, address };
        let id = || purchase_id.clone();
        let begun = BeginResponse::Drive { purchase_id: id(), lease, lease_ms, lines: lines.clone() };
        let hold = ProductOp::Hold { purchase_id: id(), lines, expires_in_ms: 3_600_000 };
        let authorise = CustomerOp::Authorise { purchase_id: id(), lease, lines: priced.clone(), card };
        let complete = CustomerOp::Complete { purchase_id: id(), lease };
        let purchased = CompletedPurchase { purchase_id: id(), total: PRICE, items: priced.clone() };
        Ok(vec![
            vec![customer(&begin, json_bytes(&begun)?)?],
            vec![product(&hold, json_bytes(&priced)?)?],
            vec![customer(&authorise, DONE_BYTES)?],
            vec![product(&ProductOp::Sell { purchase_id: id() }, "\"sold\"".len())?],
            vec![customer(&complete, json_bytes(&purchased)?)?],
        ])
    }

    /// The use of the session, which is asked beside or before what needs one.
    fn touch(&self) -> anyhow::Result<Hop> {
        let User { id, name, role, sid, .. } = self.user;
        let account = Account { user_id: *id, username: name.clone(), name: name.clone() };
        customer(&CustomerOp::Touch { role: *role, sid: sid.clone() }, json_bytes(&account)?)
    }
}

fn request_id() -> String {
    "0".repeat(32)
}

fn customer(op: &CustomerOp, answer_bytes: usize) -> anyhow::Result<Hop> {
    hop(CUSTOMER, op, answer_bytes + OK_BYTES)
}

fn product(op: &ProductOp, answer_bytes: usize) -> anyhow::Result<Hop> {
    hop(PRODUCT, op, answer_bytes + OK_BYTES)
}

/// What a database puts around an answer.
const OK_BYTES: usize = "{\"ok\":}".len();

fn hop(back: usize, op: &impl Serialize, answer_bytes: usize) -> anyhow::Result<Hop> {
    Ok(Hop { back, request_bytes: json_bytes(op)?, answer_bytes })
}

fn json_bytes(value: &impl Serialize) -> anyhow::Result<usize> {
    Ok(serde_json::to_vec(value)?.len())
}

/// A request in the shop's first dialect.
fn call(api: &str, sid: Option<&str>, payload: &Value) -> Vec<u8> {
    json!({"type": "request", "api": api, "session_id": sid, "payload": payload}).to_string().into_bytes()
}
