//! Buyers and sellers that trade through a server that dies under them, and never lose patience.
//!
//! Bare sockets: JSON in, JSON out. Each registration ("life") has sockets of its own, which stay open to
//! the end, so that a port stands for one registration.

use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use p2s2::net::conn::Conn;
use p2s2::net::lines::{LineLimits, LineReader};
use serde_json::{Value, json};

use crate::claims::{Claims, Member, Roster, SERVER_NUMBERS, Who};
use crate::rng::Rng;
use crate::support::{DECLINED_CARD, GOOD_CARD};

/// Longer than a deal takes with a server that dies every second (and gives every window 5 s more).
const PATIENCE: Duration = Duration::from_secs(400);
/// After this most buyers do not wait for a window's end any more.
const BOREDOM: Duration = Duration::from_secs(2);
const RESEND_AFTER: Duration = Duration::from_millis(150);

/// What a peer has just seen or done: moments at which a kill may hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seen {
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

/// What all of them share.
pub struct Hub {
    pub server: SocketAddr,
    pub plaintext: bool,
    /// The disk's log, whose length dates what peers do.
    pub log: Option<PathBuf>,
    pub book: Mutex<Book>,
    pub steps: Sender<Seen>,
    /// Buyers begin no more deals.
    pub buyers_stop: AtomicBool,
    /// Sellers end as well.
    pub sellers_stop: AtomicBool,
    /// The server will not come back: everything ends where it is.
    pub abandoned: AtomicBool,
    pub failed: AtomicBool,
    pub deals_over: AtomicUsize,
    next_item: AtomicU64,
    /// Sockets of those that left: their ports must not come again.
    attic: Mutex<Vec<(UdpSocket, TcpListener)>>,
}

#[derive(Default)]
pub struct Book {
    pub roster: Roster,
    pub claims: Claims,
}

/// The server will not come back.
#[derive(Debug)]
struct Abandoned;

impl Hub {
    pub fn new(server: SocketAddr, plaintext: bool, log: Option<PathBuf>, steps: Sender<Seen>) -> Arc<Hub> {
        Arc::new(Hub {
            server,
            plaintext,
            log,
            book: Mutex::default(),
            steps,
            buyers_stop: AtomicBool::new(false),
            sellers_stop: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            deals_over: AtomicUsize::new(0),
            next_item: AtomicU64::new(0),
            attic: Mutex::default(),
        })
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, seen: Seen) {
        // When nobody aims, nobody listens.
        let _ = self.steps.try_send(seen);
    }

    fn said(&self, who: Who, message: &Value) {
        let mut book = self.book();
        let Book { roster, claims } = &mut *book;
        claims.said(roster, who, message);
    }

    fn log_length(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| std::fs::metadata(log).unwrap().len())
    }
}

/// Marks the hub when its thread panics, so that everyone ends.
struct Alarm(Arc<Hub>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::SeqCst);
            self.0.abandoned.store(true, Ordering::SeqCst);
        }
    }
}

/// Three buyers and three sellers.
pub struct Market {
    pub hub: Arc<Hub>,
    buyers: Vec<JoinHandle<()>>,
    sellers: Vec<JoinHandle<()>>,
}

impl Market {
    pub fn open(hub: &Arc<Hub>, rng: &mut Rng) -> Market {
        let mut start = |name: String, is_buyer: bool| {
            let (hub, mut rng) = (Arc::clone(hub), rng.fork());
            std::thread::spawn(move || {
                let _alarm = Alarm(Arc::clone(&hub));
                let stop = if is_buyer { &hub.buyers_stop } else { &hub.sellers_stop };
                while !stop.load(Ordering::SeqCst) {
                    let life = Life::begin(&hub, &name, is_buyer, rng.fork());
                    if life.and_then(|life| if is_buyer { life.buy(stop) } else { life.sell(stop) }).is_err() {
                        break;
                    }
                }
            })
        };
        let sellers = (0..3).map(|n| start(format!("seller{n}"), false)).collect();
        let buyers = (0..3).map(|n| start(format!("buyer{n}"), true)).collect();
        Market { hub: Arc::clone(hub), buyers, sellers }
    }

    /// Lets every deal that was begun come to its end; then everyone stays, registered and silent.
    pub fn close(self) {
        self.hub.buyers_stop.store(true, Ordering::SeqCst);
        self.buyers.into_iter().for_each(|buyer| buyer.join().unwrap());
        self.hub.sellers_stop.store(true, Ordering::SeqCst);
        self.sellers.into_iter().for_each(|seller| seller.join().unwrap());
    }

    /// The server is gone for good.
    pub fn abandon(self) {
        self.hub.abandoned.store(true, Ordering::SeqCst);
        self.close();
    }
}

/// One registration, from REGISTER to (perhaps) DE-REGISTER.
struct Life {
    hub: Arc<Hub>,
    who: Who,
    name: String,
    udp: UdpSocket,
    till: Arc<Till>,
    lines: Option<JoinHandle<()>>,
    rng: Rng,
    pushes: VecDeque<Value>,
    seen_mids: HashSet<u64>,
    next_rq: u64,
}

/// The side of a life that settles.
struct Till {
    hub: Arc<Hub>,
    who: Who,
    name: String,
    listener: TcpListener,
    /// Token and fingerprint, once there are.
    secrets: Mutex<(String, Option<String>)>,
    closed: AtomicBool,
}

impl Life {
    fn begin(hub: &Arc<Hub>, name: &str, is_buyer: bool, rng: Rng) -> Result<Life, Abandoned> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (udp_port, tcp_port) = (udp.local_addr().unwrap().port(), listener.local_addr().unwrap().port());
        let member = Member { name: name.to_owned(), udp_port, tcp_port, leaving_from: None };
        let who = {
            let mut book = hub.book();
            book.roster.peers.push(member);
            book.roster.peers.len() - 1
        };
        let till = Arc::new(Till {
            hub: Arc::clone(hub),
            who,
            name: name.to_owned(),
            listener,
            secrets: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let mut life = Life {
            hub: Arc::clone(hub),
            who,
            name: name.to_owned(),
            udp,
            till: Arc::clone(&till),
            lines: None,
            rng,
            pushes: VecDeque::new(),
            seen_mids: HashSet::new(),
            // A number means something else in the next life of the name, and must.
            next_rq: 1 + who as u64 * 10_000 % (SERVER_NUMBERS / 4),
        };
        let rq = life.fresh_rq();
        let reach = json!({"ip": "127.0.0.1", "udp_port": udp_port, "tcp_port": tcp_port});
        let answer = life.ask("REGISTER", rq, reach, "REGISTERED")?;
        let answer = answer.unwrap_or_else(|refused| panic!("{name} was not registered: {refused}"));
        let pin = answer["cert_sha256"].as_str().map(str::to_owned);
        assert_eq!(pin.is_none(), hub.plaintext, "{answer}");
        *till.secrets.lock().unwrap() = (answer["token"].as_str().unwrap().to_owned(), pin);
        hub.saw(Seen::Registered);
        let cards = life.rng.fork();
        life.lines = Some(std::thread::spawn(move || {
            let _alarm = Alarm(Arc::clone(&till.hub));
            till.serve(cards, is_buyer);
        }));
        Ok(life)
    }

    // What both do.

    fn fresh_rq(&mut self) -> u64 {
        self.next_rq += 1;
        self.next_rq - 1
    }

    /// Sends until there is an answer: what was expected, or a refusal.
    fn ask(
        &mut self,
        kind: &'static str,
        rq: u64,
        fields: Value,
        expected: &str,
    ) -> Result<Result<Value, Value>, Abandoned> {
        let mut request = json!({"type": kind, "rq": rq, "name": self.name});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.hub.book().roster.requests.insert((self.who, kind, rq), request.clone());
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < give_up_at, "{}: no answer to {request}", self.name);
            self.udp.send_to(request.to_string().as_bytes(), self.hub.server).unwrap();
            let again_at = Instant::now() + RESEND_AFTER;
            while let Some(answer) = self.receive(again_at)? {
                if !answer["mid"].is_null() || answer["rq"] != rq {
                    continue;
                }
                match (answer["type"].as_str().unwrap(), answer["code"].as_str()) {
                    (kind, _) if kind == expected => return Ok(Ok(answer)),
                    // Something passing: asked again when it is time to.
                    ("ERROR", Some("BUSY" | "UNAVAILABLE")) => {}
                    ("REGISTER-DENIED", _) if answer["reason"].as_str().unwrap().contains("about to become free") => {}
                    ("ERROR" | "REGISTER-DENIED", _) => {
                        // Another offer is the newest by now.
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

    /// The next message before the deadline. New pushes are also kept for [`Life::push`].
    fn receive(&mut self, deadline: Instant) -> Result<Option<Value>, Abandoned> {
        let mut bytes = [0; 8192];
        loop {
            if self.hub.abandoned.load(Ordering::SeqCst) {
                return Err(Abandoned);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.udp.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let length = match self.udp.recv_from(&mut bytes) {
                Ok((length, source)) if source == self.hub.server => length,
                // The server of another test, to whoever had this port before.
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                Err(error) => panic!("{error}"),
            };
            let message: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            self.hub.said(self.who, &message);
            if let Some(mid) = message["mid"].as_u64() {
                // A word that is lost now and then.
                if self.rng.percent(90) {
                    let ack = json!({"type": "ACK", "mid": mid}).to_string();
                    self.udp.send_to(ack.as_bytes(), self.hub.server).unwrap();
                }
                if self.seen_mids.insert(mid) {
                    self.pushes.push_back(message.clone());
                }
            }
            return Ok(Some(message));
        }
    }

    /// The oldest push that was not taken yet.
    fn push(&mut self, deadline: Instant) -> Result<Option<Value>, Abandoned> {
        while self.pushes.is_empty() {
            if self.receive(deadline)?.is_none() {
                break;
            }
        }
        Ok(self.pushes.pop_front())
    }

    /// What comes next of a deal of one's own. Buyers are asked for things as well, and have none.
    fn word_of(&mut self, rq: u64, patience: Duration) -> Result<Option<Value>, Abandoned> {
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

    /// DE-REGISTER; the sockets go to the attic.
    fn leave(mut self) -> Result<(), Abandoned> {
        self.hub.book().roster.peers[self.who].leaving_from = Some(self.hub.log_length());
        self.hub.saw(Seen::Leaving);
        let rq = self.fresh_rq();
        let answer = self.ask("DE-REGISTER", rq, json!({}), "DE-REGISTERED")?;
        assert!(answer.is_ok(), "{}: {answer:?}", self.name);
        Ok(())
    }

    // A buyer.

    fn buy(mut self, stop: &AtomicBool) -> Result<(), Abandoned> {
        for _ in 0..5 + self.rng.below(40) {
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.buy_one()?;
        }
        if self.rng.percent(30) {
            // Leaves while something is open.
            self.search()?;
        }
        self.leave()
    }

    fn search(&mut self) -> Result<(u64, String), Abandoned> {
        let rq = self.fresh_rq();
        let item = format!("item{}", self.hub.next_item.fetch_add(1, Ordering::SeqCst));
        let wish = json!({"item_name": item, "description": "", "max_price": 50});
        let answer = self.ask("LOOKING_FOR", rq, wish, "SEARCHING")?;
        assert!(answer.is_ok(), "{}: {answer:?}", self.name);
        self.hub.saw(Seen::Searching);
        Ok((rq, item))
    }

    fn buy_one(&mut self) -> Result<(), Abandoned> {
        let (rq, item) = self.search()?;
        let name = json!({"item_name": item});
        if self.rng.percent(4) {
            // May meet a deal that is over already.
            let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
        }
        let give_up_at = Instant::now() + PATIENCE;
        let mut bored_at = self.rng.percent(90).then(|| Instant::now() + BOREDOM);
        let (mut found_at, mut bought_at) = (None, None);
        loop {
            if bored_at.is_some_and(|at| Instant::now() > at) {
                bored_at = None;
                // Refused when it is being paid, or over.
                let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
            }
            assert!(Instant::now() < give_up_at, "{}: {item} never ends", self.name);
            // A receipt comes on the settlement's line: STATUS shows it here.
            let patience = Duration::from_millis(if bought_at.is_some() { 30 } else { 250 });
            let push = self.word_of(rq, patience)?;
            match push.as_ref().map(|push| push["type"].as_str().unwrap()) {
                Some("FOUND") => {
                    let price = push.unwrap()["price"].clone();
                    found_at = Some(price.clone());
                    self.hub.saw(Seen::Found);
                    match self.rng.below(100) {
                        // A window that runs out.
                        0..4 => {}
                        4..12 => {
                            let _ = self.ask("CANCEL", rq, name.clone(), "CANCELLED")?;
                        }
                        _ => {
                            let offer = json!({"item_name": item, "price": price});
                            bought_at = Some(price);
                            // A refusal: the seller has cancelled meanwhile, and something newer comes.
                            if self.ask("BUY", rq, offer, "BUYING")?.is_ok() {
                                self.hub.saw(Seen::Bought);
                            }
                        }
                    }
                }
                // Its end: STATUS must say the same. Or nothing was heard for a while.
                _ => {
                    let deal = self.deal(rq)?.unwrap_or_else(|| panic!("{}: the deal of {item} is lost", self.name));
                    let state = deal["state"].as_str().unwrap();
                    let over = ["completed", "cancelled"].contains(&state);
                    if state == "completed" {
                        assert_eq!(bought_at.as_ref(), Some(&deal["price"]), "{deal}, but {found_at:?} was found");
                    }
                    if over {
                        self.hub.deals_over.fetch_add(1, Ordering::SeqCst);
                        return Ok(());
                    }
                }
            }
        }
    }

    // A seller.

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
                    self.hub.saw(Seen::Negotiating);
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

    /// Asks for something that may come too late: WRONG_STATE is an answer too.
    fn tell(&mut self, kind: &'static str, rq: u64, fields: Value, expected: &str) -> Result<(), Abandoned> {
        if let Err(refused) = self.ask(kind, rq, fields, expected)? {
            assert_eq!(refused["code"], "WRONG_STATE", "{}: {kind} {rq}: {refused}", self.name);
        }
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.till.closed.store(true, Ordering::SeqCst);
        // Wakes the accept; a listener that is gone needs no waking.
        let _ = TcpStream::connect(self.till.listener.local_addr().unwrap());
        if let Some(lines) = self.lines.take()
            && lines.join().is_err()
        {
            self.hub.failed.store(true, Ordering::SeqCst);
        }
        let kept = (self.udp.try_clone().unwrap(), self.till.listener.try_clone().unwrap());
        self.hub.attic.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }
}

impl Till {
    /// Accepts the server's settlement connections; a thread each.
    fn serve(self: &Arc<Self>, mut rng: Rng, is_buyer: bool) {
        let mut lines = Vec::new();
        loop {
            let (stream, _) = self.listener.accept().unwrap();
            if self.closed.load(Ordering::SeqCst) {
                break;
            }
            let (till, mut rng) = (Arc::clone(self), rng.fork());
            lines.push(std::thread::spawn(move || {
                let _alarm = Alarm(Arc::clone(&till.hub));
                // Whatever breaks it, the deal has its end without this line.
                let _ = till.settle(stream, &mut rng, is_buyer);
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
            self.hub.said(self.who, &message);
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
                    self.hub.saw(Seen::Informed);
                }
                "SHIPPING_INFO" => {
                    self.hub.saw(Seen::ShippingInfo);
                    if rng.percent(5) {
                        return None;
                    }
                    writer.write_line(json!({"type": "SHIPPED", "rq": rq}).to_string(), deadline()).ok()?;
                    self.hub.saw(Seen::Shipped);
                }
                "RECEIPT" | "SETTLED" | "CANCEL" => self.hub.saw(Seen::Over),
                other => panic!("{other} on a settlement line"),
            }
        }
        Some(())
    }
}
