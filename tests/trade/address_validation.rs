//! Little is sent to addresses that are not validated, whoever asks for whatever; and responses leave from the
//! address that was asked.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

/// The names at one address, each with a port of its own.
const NAMES: usize = 20;

/// An address at which names are registered with a forged source. What is sent there is counted over all its ports;
/// it sends what an attacker could, but neither tokens nor ACKs.
struct Victim {
    ports: Vec<UdpSocket>,
    server: SocketAddr,
    sent: usize,
    came: usize,
    rq: u64,
    heard: Vec<Value>,
}

/// The seventh port for `v7`; the first for names that are not registered there.
fn port_of(name: &str) -> usize {
    name.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Victim {
    fn new(server: SocketAddr) -> Victim {
        let ports = (0..NAMES).map(|_| {
            let udp = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 9), 0)).unwrap();
            udp.set_nonblocking(true).unwrap();
            udp
        });
        Victim { ports: ports.collect(), server, sent: 0, came: 0, rq: 0, heard: Vec::new() }
    }

    fn say(&mut self, kind: &str, name: &str, rq: u64, fields: Value) {
        let mut message = json!({"type": kind, "rq": rq, "name": name});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.say_bytes(port_of(name), message.to_string().as_bytes());
    }

    fn say_bytes(&mut self, port: usize, bytes: &[u8]) {
        // Counted first, since the response may arrive before the call returns.
        self.sent += bytes.len();
        self.ports[port].send_to(bytes, self.server).unwrap();
        self.look();
    }

    fn ask(&mut self, kind: &str, name: &str, fields: Value) {
        self.rq += 1;
        self.say(kind, name, self.rq, fields);
    }

    fn register(&mut self, name: &str) {
        let port = self.ports[port_of(name)].local_addr().unwrap().port();
        self.ask("REGISTER", name, json!({"ip": "127.0.0.9", "udp_port": port, "tcp_port": 2222}));
    }

    /// Receives what has arrived and compares it with what was sent.
    fn look(&mut self) {
        let mut buffer = [0; 65_536];
        for port in &self.ports {
            while let Ok(length) = port.recv(&mut buffer) {
                self.came += length;
                self.heard.push(serde_json::from_slice(&buffer[..length]).unwrap());
            }
        }
        assert!(self.came <= 3 * self.sent, "{} bytes came, {} were sent", self.came, self.sent);
    }

    fn look_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a notification of this type about this item that was not returned before.
    fn push(&mut self, kind: &str, item: &str) -> Option<Value> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            self.look();
            if let Some(at) = self.heard.iter().position(|it| it["type"] == kind && it["item_name"] == item) {
                return Some(self.heard.remove(at));
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn to_who_may_not_hear_goes_at_most_three_times_what_came_whatever_is_asked() {
    let mut server =
        Server::start(&["--offer-window", "400ms", "--negotiate-window", "400ms", "--reserve-window", "60s"]);
    let mut victim = Victim::new(server.addr);
    for n in 0..NAMES {
        victim.register(&format!("v{n}"));
        victim.register(&format!("v{n}"));
    }
    eventually("all of its names to be registered", || {
        victim.look();
        (victim.heard.iter().filter(|it| it["type"] == "REGISTERED").count() == 2 * NAMES).then_some(())
    });
    let (mut bob, mut sue) = (Peer::new(&server, "bob"), Peer::new(&server, "sue"));
    let long = "d".repeat(256);
    // As recipients: searches and their repeats.
    for n in 0..10 {
        let fields = json!({"item_name": "i".repeat(64), "description": long, "max_price": 1});
        bob.ask_rq("LOOKING_FOR", 1000 + n, fields);
        victim.look();
    }
    victim.look_for(Duration::from_millis(800));
    let searches = victim.heard.iter().filter(|it| it["type"] == "SEARCH").count();
    assert!(searches < 100, "{searches} of the 200 searches fit into three times what came");
    // As a seller: negotiation, reservation, release and cancellation. It learns what it must know for that only as
    // far as the budget allows.
    let mut steps = 0;
    for n in 0..6 {
        for _ in 0..10 {
            victim.ask("STATUS", "nobody", json!({"pad": "x".repeat(300)}));
        }
        let item = format!("lamp {n}");
        let rq = bob.look_for(&item, 5.0);
        let Some(search) = victim.push("SEARCH", &item) else { continue };
        let number = search["rq"].as_u64().unwrap();
        for name in 0..NAMES {
            let price = if n % 2 == 0 { 4 } else { 9 };
            victim.say("OFFER", &format!("v{name}"), number, json!({"item_name": item, "price": price}));
        }
        match victim.push(if n % 2 == 0 { "RESERVE" } else { "NEGOTIATE" }, &item) {
            Some(push) => {
                let name = format!("v{}", n % NAMES);
                let number = push["rq"].as_u64().unwrap();
                victim.say("REFUSE", &name, number, json!({"item_name": item, "max_price": 5}));
                steps += 1;
            }
            None => victim.look(),
        }
        bob.ask_rq("CANCEL", rq, json!({"item_name": item}));
        victim.look_for(Duration::from_millis(100));
    }
    assert!(steps > 0, "it was never told of anything: nothing is tested");
    // As a buyer: FOUND, NOT_FOUND, NOT_AVAILABLE, and lists of its deals.
    sue.acknowledges = true;
    for n in 0..10 {
        let fields =
            json!({"item_name": format!("b{n}"), "description": long, "max_price": if n % 2 == 0 { 5 } else { 1 }});
        victim.ask("LOOKING_FOR", "v0", fields);
        if let Some(search) = sue.push_until("SEARCH", Instant::now() + Duration::from_secs(2)) {
            let number = search["rq"].as_u64().unwrap();
            let goods = json!({"item_name": search["item_name"], "price": 3, "offer_item": "o".repeat(64),
                "offer_description": long});
            sue.ask_rq("OFFER", number, goods);
        }
        victim.ask("STATUS", "v0", json!({}));
        let rq = victim.rq - 1;
        victim.say("BUY", "v0", rq, json!({"item_name": format!("b{n}"), "price": 2}));
        if n % 3 == 0 {
            victim.say("CANCEL", "v0", rq, json!({"item_name": format!("b{n}")}));
        }
    }
    victim.look_for(Duration::from_millis(600));
    // Errors, for registered names and for others.
    for kind in ["LOGIN", "BUY", "ACCEPT", "REFUSE", "NOT_AVAILABLE", "CANCEL", "STATUS", "OFFER", "FOO"] {
        for name in ["v0", "nobody", &"n".repeat(64)] {
            victim.ask(kind, name, json!({"token": "wrong"}));
            victim.ask(kind, name, json!({}));
            victim.ask(kind, name, json!({"item_name": "x", "price": 1, "max_price": 1}));
        }
    }
    for bytes in [&b"x"[..], b"{}", b"[]", b"{\"type\":\"REGISTER\"}", &[b'x'; 8300]] {
        victim.say_bytes(0, bytes);
    }
    victim.look_for(Duration::from_millis(300));
    // A restart repeats what was not acknowledged.
    server = server.kill_and_restart();
    assert_eq!(server.addr, victim.server);
    victim.look_for(Duration::from_secs(5));
    for n in 0..NAMES {
        victim.ask("DE-REGISTER", &format!("v{n}"), json!({}));
    }
    victim.look_for(Duration::from_secs(1));
    assert_eq!(server.stop(), 0);
    victim.look();
}

#[test]
fn who_shows_that_it_hears_is_told_everything() {
    let server = Server::start(&["--offer-window", "60s"]);
    let mut bob = Peer::new(&server, "bob");
    let long = json!({"item_name": "i".repeat(64), "description": "\u{1F600}".repeat(256), "max_price": 1});
    // Validated by its token.
    let mut by_token = Peer::new(&server, "token");
    // Validated by an acknowledgement: the first search fits into the budget of its REGISTER.
    let mut by_ack = Peer::unregistered(server.addr, "ack");
    let endpoint = by_ack.endpoint();
    assert_eq!(by_ack.ask("REGISTER", endpoint)["type"], "REGISTERED");
    bob.look_for("lamp", 1.0);
    by_ack.push_of("SEARCH", "lamp");
    for n in 0..5 {
        bob.ask_rq("LOOKING_FOR", 5000 + n, long.clone());
    }
    for peer in [&mut by_token, &mut by_ack] {
        for _ in 0..5 {
            peer.push_of("SEARCH", &"i".repeat(64));
        }
    }
    // A new address named by LOGIN, validated by an acknowledgement from there.
    let mut moved = Peer::unregistered(server.addr, "token");
    moved.token = by_token.token.clone();
    let endpoint = moved.endpoint_with_token();
    assert_eq!(moved.ask_rq("LOGIN", 77, endpoint)["type"], "LOGGED-IN");
    bob.look_for("chair", 1.0);
    moved.push_of("SEARCH", "chair");
    bob.ask_rq("LOOKING_FOR", 6000, long);
    moved.push_of("SEARCH", &"i".repeat(64));
}

#[test]
fn a_peer_that_is_gone_is_not_waited_for() {
    let server = Server::start(&["--offer-window", "300s"]);
    let mut bob = Peer::new(&server, "bob");
    let mut gone = Peer::new(&server, "gone");
    let rq = bob.look_for("lamp", 10.0);
    let search = gone.push("SEARCH");
    gone.ask_rq("NOT_AVAILABLE", search["rq"].as_u64().unwrap(), json!({"item_name": "lamp"}));
    assert_eq!(bob.push("NOT_AVAILABLE")["rq"], rq);
    drop(gone);
    // The window is far longer than anything waits here.
    let rq = bob.look_for("chair", 10.0);
    assert_eq!(bob.push("NOT_AVAILABLE")["rq"], rq);
    let mut there = Peer::new(&server, "there");
    let rq = bob.look_for("table", 10.0);
    there.offer("table", 5.0);
    assert_eq!(bob.push("FOUND")["rq"], rq);
}

#[test]
fn what_is_said_leaves_from_the_address_that_was_asked() {
    let server = Server::start(&["--bind", "0.0.0.0", "--insecure", "--offer-window", "60s"]);
    let port = server.addr.port();
    let at = |last| SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
    // These clients ignore datagrams from other addresses than the one that they sent to.
    let mut bob = Peer::unregistered(at(3), "bob");
    let mut sue = Peer::unregistered(at(4), "sue");
    for peer in [&mut bob, &mut sue] {
        assert_eq!(peer.register()["type"], "REGISTERED");
    }
    let rq = bob.look_for("lamp", 10.0);
    sue.offer("lamp", 5.0);
    assert_eq!(bob.push("FOUND")["rq"], rq);
    // Notifications too, after a restart and before anyone has sent a request.
    let server = server.kill_and_restart();
    let mut pat = Peer::unregistered(at(5), "pat");
    assert_eq!(pat.register()["type"], "REGISTERED");
    pat.look_for("chair", 10.0);
    sue.push_of("SEARCH", "chair");
    bob.push_of("SEARCH", "chair");
    // Connections as well.
    let answer = bob.ask_rq("BUY", rq, json!({"item_name": "lamp", "price": 5}));
    assert_eq!(answer["type"], "BUYING", "{answer}");
    for (peer, last) in [(&bob, 3), (&sue, 4)] {
        peer.tcp.set_nonblocking(false).unwrap();
        let (_, source) = peer.tcp.accept().unwrap();
        assert_eq!(source.ip(), at(last).ip());
    }
    drop(server);
}

#[test]
fn what_is_offered_is_shown_to_both_before_and_after() {
    let server = Server::start(&["--offer-window", "60s"]);
    let (mut bob, mut sue) = (Peer::new(&server, "bob"), Peer::new(&server, "sue"));
    let rq = bob.look_for("lamp", 10.0);
    let number = sue.push("SEARCH")["rq"].as_u64().unwrap();
    for (field, wrong) in
        [("offer_item", json!("")), ("offer_item", json!("x".repeat(65))), ("offer_description", json!(7))]
    {
        let mut fields = json!({"item_name": "lamp", "price": 5});
        fields[field] = wrong;
        let answer = sue.ask_rq("OFFER", number, fields);
        assert_eq!(answer["code"], "BAD_REQUEST");
        assert!(answer["reason"].as_str().unwrap().starts_with(field), "{answer}");
    }
    let goods = json!({"offer_item": "Brass desk lamp", "offer_description": "green shade, E27"});
    let mut offer = json!({"item_name": "lamp", "price": 5});
    offer.as_object_mut().unwrap().extend(goods.as_object().unwrap().clone());
    assert_eq!(sue.ask_rq("OFFER", number, offer.clone())["type"], "OFFERED");
    offer["offer_item"] = json!("Something else");
    assert_eq!(sue.ask_rq("OFFER", number, offer)["reason"], "rq already used");
    let shown = |message: &Value| json!({"offer_item": message["offer_item"], "offer_description": message["offer_description"]});
    assert_eq!(shown(&bob.push("FOUND")), goods);
    assert_eq!(shown(&bob.deal(rq).unwrap()), goods);
    assert_eq!(shown(&sue.deal(number).unwrap()), goods);
    sue.push("RESERVE");
    assert_eq!(bob.ask_rq("BUY", rq, json!({"item_name": "lamp", "price": 5}))["type"], "BUYING");
    let (mut to_bob, mut to_sue) = (bob.accept_settlement(), sue.accept_settlement());
    assert!(to_bob.read().is_some() && to_sue.read().is_some());
    to_bob.write(&bob.inform_res(rq, GOOD_CARD));
    to_sue.write(&sue.inform_res(number, GOOD_CARD));
    assert_eq!(to_sue.read().unwrap()["type"], "SHIPPING_INFO");
    to_sue.write(&json!({"type": "SHIPPED", "rq": number}));
    let receipt = to_bob.read().unwrap();
    assert_eq!((&receipt["type"], &shown(&receipt)), (&json!("RECEIPT"), &goods), "{receipt}");
}

#[test]
fn who_could_not_be_reached_is_told_where() {
    for lost in ["seller", "buyer"] {
        let server = Server::start(&["--offer-window", "60s"]);
        let (mut bob, mut sue) = (Peer::new(&server, "bob"), Peer::new(&server, "sue"));
        let at = if lost == "seller" { &sue } else { &bob }.tcp.local_addr().unwrap().to_string();
        // Nobody listens there any more.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        drop(std::mem::replace(if lost == "seller" { &mut sue.tcp } else { &mut bob.tcp }, listener));
        let rq = bob.look_for("lamp", 10.0);
        sue.offer("lamp", 5.0);
        bob.push("FOUND");
        assert_eq!(bob.ask_rq("BUY", rq, json!({"item_name": "lamp", "price": 5}))["type"], "BUYING");
        let told = [("buyer", bob.push("CANCEL")), ("seller", sue.push("CANCEL"))];
        for (side, cancel) in told {
            let reason = cancel["reason"].as_str().unwrap();
            assert_eq!(reason.contains(&at), side == lost, "{side}: {reason}");
            assert!(side == lost || reason.contains(lost), "{side}: {reason}");
        }
    }
}
