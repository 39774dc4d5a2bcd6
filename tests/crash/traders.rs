//! Buyers and sellers that trade through a server that is killed again and again, and never give up.
//!
//! They use bare sockets and JSON. Each registration ("session") has its own sockets, which stay open to the end, so
//! that a port stands for one registration.

use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use p2s2::internals::net::conn::Conn;
use p2s2::internals::net::lines::{LineLimits, LineReader};
use serde_json::{Value, json};

use crate::claims::{Claims, FIRST_SERVER_NUMBER, RegisteredPeer, RegistrationId, Roster};
use crate::rng::Rng;
use crate::support::{DECLINED_CARD, GOOD_CARD};

/// Longer than a deal takes if the server is killed every second (and extends every time limit by 5 s).
const PATIENCE: Duration = Duration::from_secs(400);
/// After this time most buyers cancel instead of waiting for a time limit.
const CANCEL_AFTER: Duration = Duration::from_secs(2);
const RESEND_AFTER: Duration = Duration::from_millis(150);

/// A step of a peer: moments at which a kill may do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TradeStep {
    Registered,
    Searching,
    Negotiating,
    Found,
    Bought,
    Informed,
    ShippingInfo,
    Shipped,
    Over,
    Leaving,
}

/// State shared by all traders.
pub struct TraderContext {
    pub server: SocketAddr,
    pub plaintext: bool,
    /// The disk log, whose length serves as a timestamp.
    pub log: Option<PathBuf>,
    pub records: Mutex<TraderRecords>,
    pub steps: Sender<TradeStep>,
    /// Buyers start no more deals.
    pub buyers_stop: AtomicBool,
    /// Sellers stop.
    pub sellers_stop: AtomicBool,
    /// The server will not come back, so everything stops at once.
    pub abandoned: AtomicBool,
    pub failed: AtomicBool,
    pub deals_over: AtomicUsize,
    next_item: AtomicU64,
    /// Sockets of sessions that ended, kept open so that their ports are not reused.
    retired_sockets: Mutex<Vec<(UdpSocket, TcpListener)>>,
}

#[derive(Default)]
pub struct TraderRecords {
    pub roster: Roster,
    pub claims: Claims,
}

/// The server will not come back.
#[derive(Debug)]
struct Abandoned;

impl TraderContext {
    pub fn new(
        server: SocketAddr,
        plaintext: bool,
        log: Option<PathBuf>,
        steps: Sender<TradeStep>,
    ) -> Arc<TraderContext> {
        Arc::new(TraderContext {
            server,
            plaintext,
            log,
            records: Mutex::default(),
            steps,
            buyers_stop: AtomicBool::new(false),
            sellers_stop: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            deals_over: AtomicUsize::new(0),
            next_item: AtomicU64::new(0),
            retired_sockets: Mutex::default(),
        })
    }

    pub fn records(&self) -> MutexGuard<'_, TraderRecords> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_step(&self, seen: TradeStep) {
        // Fails if nobody receives steps.
        let _ = self.steps.try_send(seen);
    }

    fn record_message(&self, who: RegistrationId, message: &Value) {
        let mut records = self.records();
        let TraderRecords { roster, claims } = &mut *records;
        claims.record_message(roster, who, message);
    }

    fn log_length(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| std::fs::metadata(log).unwrap().len())
    }
}

/// Sets the failure flags if its thread panics, so that all threads end.
struct FailureFlag(Arc<TraderContext>);

impl Drop for FailureFlag {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
            self.0.abandoned.store(true, Ordering::SeqCst);
        }
    }
}

/// Three buyers and three sellers.
pub struct Market {
    pub context: Arc<TraderContext>,
    buyers: Vec<JoinHandle<()>>,
    sellers: Vec<JoinHandle<()>>,
}

impl Market {
    pub fn open(context: &Arc<TraderContext>, rng: &mut Rng) -> Market {
        let mut start = |name: String, is_buyer: bool| {
            let (context, mut rng) = (Arc::clone(context), rng.fork());
            std::thread::spawn(move || {
                let _failure_flag = FailureFlag(Arc::clone(&context));
                let stop = if is_buyer { &context.buyers_stop } else { &context.sellers_stop };
                while !stop.load(Ordering::SeqCst) {
                    let session = TraderSession::begin(&context, &name, is_buyer, rng.fork());
                    if session
                        .and_then(|session| if is_buyer { session.buy(stop) } else { session.sell(stop) })
                        .is_err()
                    {
                        break;
                    }
                }
            })
        };
        let sellers = (0..3).map(|n| start(format!("seller{n}"), false)).collect();
        let buyers = (0..3).map(|n| start(format!("buyer{n}"), true)).collect();
        Market { context: Arc::clone(context), buyers, sellers }
    }

    /// Waits until all deals have ended. The peers stay registered but do nothing.
    pub fn close(self) {
        self.context.buyers_stop.store(true, Ordering::SeqCst);
        self.buyers.into_iter().for_each(|buyer| buyer.join().unwrap());
        self.context.sellers_stop.store(true, Ordering::SeqCst);
        self.sellers.into_iter().for_each(|seller| seller.join().unwrap());
    }

    /// Stops all peers of a server that will not come back.
    pub fn abandon(self) {
        self.context.abandoned.store(true, Ordering::SeqCst);
        self.close();
    }
}

/// One registration, from REGISTER to DE-REGISTER, if it leaves.
struct TraderSession {
    context: Arc<TraderContext>,
    who: RegistrationId,
    name: String,
    udp: UdpSocket,
    settlement: Arc<SettlementListener>,
    lines: Option<JoinHandle<()>>,
    rng: Rng,
    pushes: VecDeque<Value>,
    seen_mids: HashSet<u64>,
    next_rq: u64,
}

/// The part of a session that handles settlements.
struct SettlementListener {
    context: Arc<TraderContext>,
    who: RegistrationId,
    name: String,
    listener: TcpListener,
    /// Token and certificate fingerprint, once known.
    secrets: Mutex<(String, Option<String>)>,
    closed: AtomicBool,
}

impl TraderSession {
    fn begin(context: &Arc<TraderContext>, name: &str, is_buyer: bool, rng: Rng) -> Result<TraderSession, Abandoned> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (udp_port, tcp_port) = (udp.local_addr().unwrap().port(), listener.local_addr().unwrap().port());
        let member = RegisteredPeer { name: name.to_owned(), udp_port, tcp_port, left_at_log_length: None };
        let who = {
            let mut records = context.records();
            records.roster.peers.push(member);
            records.roster.peers.len() - 1
        };
        let settlement = Arc::new(SettlementListener {
            context: Arc::clone(context),
            who,
            name: name.to_owned(),
            listener,
            secrets: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let mut session = TraderSession {
            context: Arc::clone(context),
            who,
            name: name.to_owned(),
            udp,
            settlement: Arc::clone(&settlement),
            lines: None,
            rng,
            pushes: VecDeque::new(),
            seen_mids: HashSet::new(),
            // The same number must not be reused in the next session of the same name.
            next_rq: 1 + who as u64 * 10_000 % (FIRST_SERVER_NUMBER / 4),
        };
        let rq = session.fresh_rq();
        let reach = json!({"ip": "127.0.0.1", "udp_port": udp_port, "tcp_port": tcp_port});
        let answer = session.ask("REGISTER", rq, reach, "REGISTERED")?;
        let answer = answer.unwrap_or_else(|refused| panic!("{name} was not registered: {refused}"));
        let pin = answer["cert_sha256"].as_str().map(str::to_owned);
        assert_eq!(pin.is_none(), context.plaintext, "{answer}");
        *settlement.secrets.lock().unwrap() = (answer["token"].as_str().unwrap().to_owned(), pin);
        context.record_step(TradeStep::Registered);
        let cards = session.rng.fork();
        session.lines = Some(std::thread::spawn(move || {
            let _failure_flag = FailureFlag(Arc::clone(&settlement.context));
            settlement.serve(cards, is_buyer);
        }));
        Ok(session)
    }

    // Common to buyers and sellers.

    fn fresh_rq(&mut self) -> u64 {
        self.next_rq += 1;
        self.next_rq - 1
    }

    /// Sends until a response arrives: the expected one, or a refusal.
    fn ask(
        &mut self,
        kind: &'static str,
        rq: u64,
        fields: Value,
        expected: &str,
    ) -> Result<Result<Value, Value>, Abandoned> {
        let mut request = json!({"type": kind, "rq": rq, "name": self.name});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.context.records().roster.requests.insert((self.who, kind, rq), request.clone());
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < give_up_at, "{}: no answer to {request}", self.name);
            self.udp.send_to(request.to_string().as_bytes(), self.context.server).unwrap();
            let again_at = Instant::now() + RESEND_AFTER;
            while let Some(answer) = self.receive(again_at)? {
                if !answer["mid"].is_null() || answer["rq"] != rq {
                    continue;
                }
                match (answer["type"].as_str().unwrap(), answer["code"].as_str()) {
                    (kind, _) if kind == expected => return Ok(Ok(answer)),
                    // Temporary: retried later.
                    ("ERROR", Some("BUSY" | "UNAVAILABLE")) => {}
                    ("REGISTER-DENIED", _) if answer["reason"].as_str().unwrap().contains("about to become free") => {}
                    ("ERROR" | "REGISTER-DENIED", _) => {
                        // A newer offer has replaced it.
                        let outbid = kind == "BUY" && answer["reason"].as_str().unwrap().starts_with("price: ");
                        let lost = ["NOT_REGISTERED", "FORBIDDEN", "BAD_REQUEST"].map(Some);
                        let lost = lost.contains(&answer["code"].as_str()) && !outbid;
                        assert!(!lost, "{}: {request}: {answer}", self.name);
                        return Ok(Err(answer));
                    }
                    _ => {}
                }
            }
        }
    }

    /// The next message before the deadline. New pushes are also queued for [`TraderSession::push`].
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>, Abandoned> {
        let mut bytes = [0; 8192];
        loop {
            if self.context.abandoned.load(Ordering::SeqCst) {
                return Err(Abandoned);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.udp.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let length = match self.udp.recv_from(&mut bytes) {
                Ok((length, source)) if source == self.context.server => length,
                // From another test's server to the previous owner of this port.
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                Err(error) => panic!("{error}"),
            };
            let message: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            self.context.record_message(self.who, &message);
            if let Some(mid) = message["mid"].as_u64() {
                // Some acknowledgements are lost.
                if self.rng.percent(90) {
                    let ack = json!({"type": "ACK", "mid": mid}).to_string();
                    self.udp.send_to(ack.as_bytes(), self.context.server).unwrap();
                }
                if self.seen_mids.insert(mid) {
                    self.pushes.push_back(message.clone());
                }
            }
            return Ok(Some(message));
        }
    }

    /// The oldest queued push.
    fn push(&mut self, deadline: Instant) -> Result<Option<Value>, Abandoned> {
        while self.pushes.is_empty() {
            if self.receive(deadline)?.is_none() {
                break;
            }
        }
        Ok(self.pushes.pop_front())
    }

    /// The next push about an own deal. Buyers answer searches with NOT_AVAILABLE.
    fn next_push_of(&mut self, rq: u64, patience: Duration) -> Result<Option<Value>, Abandoned> {
        let deadline = Instant::now() + patience;
        while let Some(push) = self.push(deadline)? {
            if push["type"] == "SEARCH" {
                let rq = push["rq"].as_u64().unwrap();
                self.tell("NOT_AVAILABLE", rq, json!({"item_name": push["item_name"]}), "NOTED")?;
            } else if push["rq"] == rq {
                return Ok(Some(push));
            }
        }
        Ok(None)
    }

    fn deal(&mut self, rq_deal: u64) -> Result<Option<Value>, Abandoned> {
        let rq = self.fresh_rq();
        let answer = self.ask("STATUS", rq, json!({"rq_deal": rq_deal}), "DEALS")?.unwrap();
        Ok(answer["deals"].as_array().unwrap().first().cloned())
    }

    /// Sends DE-REGISTER; the sockets are retired.
    fn leave(mut self) -> Result<(), Abandoned> {
        self.context.records().roster.peers[self.who].left_at_log_length = Some(self.context.log_length());
        self.context.record_step(TradeStep::Leaving);
        let rq = self.fresh_rq();
        let answer = self.ask("DE-REGISTER", rq, json!({}), "DE-REGISTERED")?;
        assert!(answer.is_ok(), "{}: {answer:?}", self.name);
        Ok(())
    }

    // Buyers.

    fn buy(mut self, stop: &AtomicBool) -> Result<(), Abandoned> {
        for _ in 0..5 + self.rng.below(40) {
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.buy_one()?;
        }
        if self.rng.percent(30) {
            // Leaves with an open deal.
            self.search()?;
        }
        self.leave()
    }

    fn search(&mut self) -> Result<(u64, String), Abandoned> {
        let rq = self.fresh_rq();
        let item = format!("item{}", self.context.next_item.fetch_add(1, Ordering::SeqCst));
        let wish = json!({"item_name": item, "description": "", "max_price": 50});
        let answer = self.ask("LOOKING_FOR", rq, wish, "SEARCHING")?;
        assert!(answer.is_ok(), "{}: {answer:?}", self.name);
        self.context.record_step(TradeStep::Searching);
        Ok((rq, item))
    }

    fn buy_one(&mut self) -> Result<(), Abandoned> {
        let (rq, item) = self.search()?;
        let name = json!({"item_name": item});
        if self.rng.percent(4) {
            // The deal may already be over.
            let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
        }
        let give_up_at = Instant::now() + PATIENCE;
        let mut cancel_at = self.rng.percent(90).then(|| Instant::now() + CANCEL_AFTER);
        let (mut found_at, mut bought_at) = (None, None);
        loop {
            if cancel_at.is_some_and(|at| Instant::now() > at) {
                cancel_at = None;
                // Refused if it is being paid or is over.
                let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
            }
            assert!(Instant::now() < give_up_at, "{}: {item} never ends", self.name);
            // A receipt arrives on the settlement connection, so STATUS is polled here.
            let patience = Duration::from_millis(if bought_at.is_some() { 30 } else { 250 });
            let push = self.next_push_of(rq, patience)?;
            match push.as_ref().map(|push| push["type"].as_str().unwrap()) {
                Some("FOUND") => {
                    let price = push.unwrap()["price"].clone();
                    found_at = Some(price.clone());
                    self.context.record_step(TradeStep::Found);
                    match self.rng.below(100) {
                        // Lets the reservation expire.
                        0..4 => {}
                        4..12 => {
                            let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
                        }
                        _ => {
                            let offer = json!({"item_name": item, "price": price});
                            bought_at = Some(price);
                            // Refused if the seller has cancelled meanwhile; a newer push follows.
                            if self.ask("BUY", rq, offer, "BUYING")?.is_ok() {
                                self.context.record_step(TradeStep::Bought);
                            }
                        }
                    }
                }
                // The deal's end, which STATUS must confirm; or nothing was received for a while.
                _ => {
                    let deal = self.deal(rq)?.unwrap_or_else(|| panic!("{}: the deal of {item} is lost", self.name));
                    let state = deal["state"].as_str().unwrap();
                    let over = ["completed", "cancelled"].contains(&state);
                    if state == "completed" {
                        assert_eq!(bought_at.as_ref(), Some(&deal["price"]), "{deal}, but {found_at:?} was found");
                    }
                    if over {
                        self.context.deals_over.fetch_add(1, Ordering::SeqCst);
                        return Ok(());
                    }
                }
            }
        }
    }

    // Sellers.

    fn sell(mut self, stop: &AtomicBool) -> Result<(), Abandoned> {
        let mut left = 20 + self.rng.below(100);
        loop {
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            if left == 0 {
                return self.leave();
            }
            let Some(push) = self.push(Instant::now() + Duration::from_millis(100))? else { continue };
            let (rq, item) = (push["rq"].as_u64().unwrap(), &push["item_name"]);
            match push["type"].as_str().unwrap() {
                "SEARCH" => {
                    left -= 1;
                    if self.rng.percent(15) {
                        self.tell("NOT_AVAILABLE", rq, json!({"item_name": item}), "NOTED")?;
                    } else {
                        let price = (3_000 + self.rng.below(4_000)) as f64 / 100.0;
                        self.tell("OFFER", rq, json!({"item_name": item, "price": price}), "OFFERED")?;
                        if self.rng.percent(4) {
                            self.tell("CANCEL", rq, json!({"item_name": item}), "CANCELLED")?;
                        }
                    }
                }
                "NEGOTIATE" => {
                    self.context.record_step(TradeStep::Negotiating);
                    let fields = json!({"item_name": item, "max_price": push["max_price"]});
                    match self.rng.below(100) {
                        0..70 => self.tell("ACCEPT", rq, fields, "NOTED")?,
                        70..96 => self.tell("REFUSE", rq, fields, "NOTED")?,
                        _ => {}
                    }
                }
                "RESERVE" if self.rng.percent(6) => {
                    self.tell("CANCEL", rq, json!({"item_name": item}), "CANCELLED")?;
                }
                _ => {}
            }
        }
    }

    /// Sends a request that may come too late: WRONG_STATE is accepted.
    fn tell(&mut self, kind: &'static str, rq: u64, fields: Value, expected: &str) -> Result<(), Abandoned> {
        if let Err(refused) = self.ask(kind, rq, fields, expected)? {
            assert_eq!(refused["code"], "WRONG_STATE", "{}: {kind} {rq}: {refused}", self.name);
        }
        Ok(())
    }
}

impl Drop for TraderSession {
    fn drop(&mut self) {
        self.settlement.closed.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; an error means that it has ended.
        let _ = TcpStream::connect(self.settlement.listener.local_addr().unwrap());
        if let Some(lines) = self.lines.take()
            && lines.join().is_err()
        {
            self.context.failed.store(true, Ordering::SeqCst);
        }
        let kept = (self.udp.try_clone().unwrap(), self.settlement.listener.try_clone().unwrap());
        self.context.retired_sockets.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }
}

impl SettlementListener {
    /// Accepts the server's settlement connections, each on its own thread.
    fn serve(self: &Arc<Self>, mut rng: Rng, is_buyer: bool) {
        let mut lines = Vec::new();
        loop {
            let (stream, _) = self.listener.accept().unwrap();
            if self.closed.load(Ordering::SeqCst) {
                break;
            }
            let (settlement, mut rng) = (Arc::clone(self), rng.fork());
            lines.push(std::thread::spawn(move || {
                let _failure_flag = FailureFlag(Arc::clone(&settlement.context));
                // Whatever breaks the connection, the deal ends without it.
                let _ = settlement.settle(stream, &mut rng, is_buyer);
            }));
            lines.retain(|line: &JoinHandle<()>| !line.is_finished());
        }
        lines.into_iter().for_each(|line| line.join().unwrap());
    }

    fn settle(&self, stream: TcpStream, rng: &mut Rng, is_buyer: bool) -> Option<()> {
        let deadline = || Instant::now() + Duration::from_secs(8);
        let (token, pin) = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let conn = match pin {
            Some(pin) => Conn::tls_client(stream, &pin, deadline()).ok()?,
            None => Conn::plain(stream),
        };
        let (reader, writer) = conn.split();
        let mut reader = LineReader::new(reader, LineLimits::new(1 << 20));
        while let Some(line) = reader.read_line_before(deadline()).ok()? {
            let message: Value = serde_json::from_str(&line).unwrap();
            self.context.record_message(self.who, &message);
            let rq = message["rq"].as_u64().unwrap();
            match message["type"].as_str().unwrap() {
                "INFORM_REQ" => {
                    if rng.percent(3) {
                        return None;
                    }
                    let card = if is_buyer && rng.percent(6) { DECLINED_CARD } else { GOOD_CARD };
                    let answer = json!({"type": "INFORM_RES", "rq": rq, "name": self.name, "token": token,
                        "cc_number": card, "cc_exp": "12/39", "address": "1 Street"});
                    writer.write_line(answer.to_string(), deadline()).ok()?;
                    self.context.record_step(TradeStep::Informed);
                }
                "SHIPPING_INFO" => {
                    self.context.record_step(TradeStep::ShippingInfo);
                    if rng.percent(5) {
                        return None;
                    }
                    writer.write_line(json!({"type": "SHIPPED", "rq": rq}).to_string(), deadline()).ok()?;
                    self.context.record_step(TradeStep::Shipped);
                }
                "RECEIPT" | "SETTLED" | "CANCEL" => self.context.record_step(TradeStep::Over),
                other => panic!("{other} on a settlement line"),
            }
        }
        Some(())
    }
}
