//! Settlement over TCP and TLS: the successful end, and every way in which a side can spoil it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::{Value, json};

use crate::support::*;

const STEP: Duration = Duration::from_secs(1);

/// A certificate check as specified: the SHA-256 of the DER leaf equals what the peer was told, and nothing else is
/// checked.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(name.to_str(), "p2s2");
        let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if hex == self.0 { Ok(ServerCertVerified::assertion()) } else { Err(rustls::Error::General("pin".to_owned())) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn tls_over(stream: TcpStream, pin: &str, version: &'static rustls::SupportedProtocolVersion) -> Tls {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin.to_owned())))
        .with_no_client_auth();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("p2s2").unwrap()).unwrap();
    StreamOwned::new(connection, stream)
}

fn read_line(tls: &mut Tls) -> Value {
    let mut line = Vec::new();
    let mut byte = [0];
    while tls.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    serde_json::from_slice(&line).unwrap()
}

fn accept(peer: &Peer) -> TcpStream {
    peer.tcp.set_nonblocking(true).unwrap();
    let stream = eventually("the server to connect", || peer.tcp.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Two peers of their own with a deal that is reserved and bought.
struct Bought {
    buyer: Peer,
    seller: Peer,
    rq: u64,
    sold: u64,
    item: String,
}

fn bought(server: &Server, tag: &str) -> Bought {
    let (mut seller, mut buyer) = pair(server, tag);
    let (rq, sold, item) = reserved_among_others(&mut buyer, &mut seller, tag);
    let answer = buy(&mut buyer, rq, &item, 10.0);
    assert_eq!(answer, json!({"type": "BUYING", "rq": rq}));
    Bought { buyer, seller, rq, sold, item }
}

fn pair(server: &Server, tag: &str) -> (Peer, Peer) {
    (Peer::new(server, &format!("seller {tag}")), Peer::new(server, &format!("buyer {tag}")))
}

/// Other peers may be registered too. They are asked and stay silent, so the offer is chosen when the (short) window
/// closes; on a busy machine it may come too late for that, and the buyer searches again.
fn reserved_among_others(buyer: &mut Peer, seller: &mut Peer, tag: &str) -> (u64, u64, String) {
    for round in 0..10 {
        let item = format!("{tag} {round}");
        let rq = buyer.look_for(&item, 10.0);
        let sold = seller.push_of("SEARCH", &item)["rq"].as_u64().unwrap();
        let answer = seller.ask_rq("OFFER", sold, json!({"item_name": item, "price": 10}));
        if answer["type"] == "OFFERED" {
            assert_eq!(seller.push_of("RESERVE", &item)["rq"], sold);
            assert_eq!(buyer.push_of("FOUND", &item)["rq"], rq);
            return (rq, sold, item);
        }
        assert_eq!(answer["code"], "WRONG_STATE", "{answer}");
    }
    panic!("{tag}: every window was too short");
}

impl Bought {
    /// Asserts that both sides are told of the failure, nothing is charged, STATUS agrees, and the reason names the
    /// cause.
    fn is_cancelled(&mut self, server: &Server, reason: &str) {
        self.is_cancelled_for(server, reason, reason);
    }

    /// The same, if buyer and seller are told different reasons.
    fn is_cancelled_for(&mut self, server: &Server, buyer_reads: &str, seller_reads: &str) {
        let sides = [(&mut self.buyer, self.rq, buyer_reads), (&mut self.seller, self.sold, seller_reads)];
        for (peer, rq, reason) in sides {
            let push = peer.push_of("CANCEL", &self.item);
            assert_eq!(push["rq"], rq);
            assert!(push["reason"].as_str().unwrap().contains(reason), "{push}: expected {reason:?}");
            let deal = peer.deal(rq).unwrap();
            assert_eq!(deal["state"], "cancelled", "{deal}");
            // Each side is told at once which address could not be reached; only the role is recorded.
            let is_kept = deal["reason"].as_str().unwrap().contains("could not be reached");
            assert!(deal["reason"] == push["reason"] || is_kept && reason.contains("settlement port"), "{deal}");
        }
        assert_eq!(server.balance_cents(&format!("card:{}", self.buyer.name)), 0);
        assert_eq!(server.balance_cents(&format!("payout:{}", self.seller.name)), 0);
    }

    /// Expects the last line of an open connection, a CANCEL without `mid`, and then the end.
    fn hears_cancel(&self, line: &mut SettlementConnection, rq: u64) {
        let cancel = line.read().unwrap_or_else(|| panic!("{}: closed without CANCEL", self.item));
        assert_eq!(
            (&cancel["type"], &cancel["rq"], &cancel["item_name"]),
            (&json!("CANCEL"), &json!(rq), &json!(self.item))
        );
        assert!(cancel["mid"].is_null() && !cancel["reason"].as_str().unwrap().is_empty(), "{cancel}");
        assert!(line.read().is_none());
    }

    fn asked(&self, line: &mut SettlementConnection, rq: u64) {
        let asked = line.read().unwrap();
        assert_eq!(asked, json!({"type": "INFORM_REQ", "rq": rq, "item_name": self.item, "price": 10}));
    }

    /// Both connections, after both INFORM_REQs.
    fn lines(&self) -> (SettlementConnection, SettlementConnection) {
        let (mut buyer, mut seller) = (self.buyer.accept_settlement(), self.seller.accept_settlement());
        self.asked(&mut buyer, self.rq);
        self.asked(&mut seller, self.sold);
        (buyer, seller)
    }

    /// Both connections after both INFORM_RES; the seller has its SHIPPING_INFO.
    fn shipping(&self) -> (SettlementConnection, SettlementConnection) {
        let (buyer, mut seller) = self.lines();
        buyer.write(&self.buyer.inform_res(self.rq, GOOD_CARD));
        seller.write(&self.seller.inform_res(self.sold, GOOD_CARD));
        assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
        (buyer, seller)
    }

    /// Departs, so that the next search asks nobody but its own seller.
    fn leave(&mut self) {
        for peer in [&mut self.buyer, &mut self.seller] {
            assert_eq!(peer.ask("DE-REGISTER", json!({}))["type"], "DE-REGISTERED");
        }
    }

    /// Settles as two correct peers do.
    fn completes(&mut self, server: &Server) {
        let (mut buyer, mut seller) = self.shipping();
        seller.write(&json!({"type": "SHIPPED", "rq": self.sold}));
        assert_eq!(seller.read().unwrap()["type"], "SETTLED");
        assert_eq!(buyer.read().unwrap()["type"], "RECEIPT");
        assert!(buyer.read().is_none() && seller.read().is_none());
        assert_eq!(server.balance_cents(&format!("payout:{}", self.seller.name)), 900);
    }
}

fn server() -> Server {
    Server::start(&["--settle-timeout", "1s", "--offer-window", "300ms"])
}

#[test]
fn tls_1_2_and_1_3_with_the_pinned_certificate() {
    let server = server();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut deal = bought(&server, &format!("{:?}", version.version));
        let pin = deal.buyer.cert_sha256.clone().unwrap();
        let mut buyer = tls_over(accept(&deal.buyer), &pin, version);
        let mut seller = tls_over(accept(&deal.seller), &pin, version);
        // Both handshakes must be complete before either side is asked.
        for tls in [&mut buyer, &mut seller] {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        assert_eq!(read_line(&mut buyer)["type"], "INFORM_REQ");
        assert_eq!(read_line(&mut seller)["type"], "INFORM_REQ");
        assert_eq!(buyer.conn.protocol_version(), Some(version.version));
        writeln!(buyer, "{}", deal.buyer.inform_res(deal.rq, GOOD_CARD)).unwrap();
        writeln!(seller, "{}", deal.seller.inform_res(deal.sold, GOOD_CARD)).unwrap();
        assert_eq!(read_line(&mut seller)["type"], "SHIPPING_INFO");
        writeln!(seller, "{}", json!({"type": "SHIPPED", "rq": deal.sold})).unwrap();
        assert_eq!(read_line(&mut seller), json!({"type": "SETTLED", "rq": deal.sold, "payout": 9}));
        assert_eq!(
            read_line(&mut buyer),
            json!({"type": "RECEIPT", "rq": deal.rq, "item_name": deal.item, "price": 10, "seller": deal.seller.name})
        );
        assert_eq!(deal.buyer.ended(deal.rq)["state"], "completed");
        deal.leave();
    }
    assert_eq!(server.balance_cents("fee"), 200);
}

#[test]
fn a_peer_that_was_told_another_fingerprint_refuses() {
    let server = server();
    let mut deal = bought(&server, "pin");
    let mut buyer = tls_over(accept(&deal.buyer), &"0".repeat(64), &rustls::version::TLS13);
    let seller = std::thread::scope(|scope| {
        let refused = scope.spawn(move || buyer.conn.complete_io(&mut buyer.sock).is_err());
        let seller = deal.seller.accept_settlement();
        assert!(refused.join().unwrap());
        seller
    });
    let mut seller = seller;
    deal.hears_cancel(&mut seller, deal.sold);
    deal.is_cancelled(&server, "buyer");
}

#[test]
fn plaintext_for_those_who_were_told_so() {
    let server = Server::start(&["--plaintext", "--settle-timeout", "1s"]);
    let mut deal = bought(&server, "plain");
    assert_eq!(deal.buyer.cert_sha256, None);
    deal.completes(&server);
}

#[test]
fn cards_that_are_refused() {
    let server = server();
    for (tag, card, expiry, reason) in [
        ("declined", DECLINED_CARD, "12/39", "declined"),
        ("expired", GOOD_CARD, "01/20", "expired"),
        ("luhn", "4111111111111112", "12/39", "declined"),
    ] {
        let mut deal = bought(&server, tag);
        let (mut buyer, mut seller) = deal.lines();
        let mut inform = deal.buyer.inform_res(deal.rq, card);
        inform["cc_exp"] = json!(expiry);
        seller.write(&deal.seller.inform_res(deal.sold, "0000000000000001"));
        buyer.write(&inform);
        deal.hears_cancel(&mut buyer, deal.rq);
        deal.hears_cancel(&mut seller, deal.sold);
        deal.is_cancelled(&server, reason);
        deal.leave();
    }
    assert_eq!(server.balance_cents("escrow"), 0);
}

#[test]
fn the_sellers_card_is_not_checked() {
    let server = server();
    for (tag, fields) in [
        ("declined", json!({"cc_number": DECLINED_CARD, "cc_exp": "01/20"})),
        ("missing", Value::Null),
        ("null", json!({"cc_number": null, "cc_exp": null, "address": null})),
        ("empty", json!({"cc_number": "", "cc_exp": "", "address": ""})),
        ("short", json!({"cc_number": "1234", "cc_exp": "13/2030", "address": "x".repeat(2000)})),
        ("a number", json!({"cc_number": 1234, "cc_exp": 12, "address": []})),
    ] {
        let mut deal = bought(&server, tag);
        let (mut buyer, mut seller) = deal.lines();
        let mut inform = deal.seller.inform_res(deal.sold, GOOD_CARD);
        for field in ["cc_number", "cc_exp", "address"] {
            match fields.get(field) {
                Some(value) => inform[field] = value.clone(),
                None if fields.is_null() => drop(inform.as_object_mut().unwrap().remove(field)),
                None => {}
            }
        }
        seller.write(&inform);
        buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
        assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO", "{tag}");
        seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}));
        assert_eq!(buyer.read().unwrap()["type"], "RECEIPT", "{tag}");
        deal.leave();
    }
}

#[test]
fn blank_lines_say_nothing_and_give_no_more_time() {
    let server = server();
    let blank = |line: &SettlementConnection| line.writer.write_all(b"\n \r\n\t\n", Instant::now() + PATIENCE).unwrap();
    let mut deal = bought(&server, "blank");
    let (mut buyer, mut seller) = deal.lines();
    blank(&seller);
    buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
    blank(&buyer);
    seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
    blank(&seller);
    assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
    blank(&buyer);
    blank(&seller);
    seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}));
    assert_eq!(seller.read().unwrap()["type"], "SETTLED");
    assert_eq!(buyer.read().unwrap()["type"], "RECEIPT");
    deal.leave();

    let mut deal = bought(&server, "nothing but blank");
    let (buyer, mut seller) = deal.lines();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while begun.elapsed() < 10 * STEP && buyer.writer.write_all(b"\n", Instant::now() + PATIENCE).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        deal.hears_cancel(&mut seller, deal.sold);
        assert!(begun.elapsed() < 5 * STEP);
    });
    deal.is_cancelled(&server, "in time");
}

#[test]
fn the_fee_is_what_the_seller_was_told_whatever_the_rate_is_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), &["--settle-timeout", "60s", "--offer-window", "300ms"], &[]);
    let mut deal = bought(&server, "fee");
    let (buyer, mut seller) = deal.lines();
    buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
    seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
    let info = seller.read().unwrap();
    assert_eq!((&info["fee"], &info["payout"]), (&json!(1), &json!(9)), "{info}");
    // The bank cannot write and so does not answer, which leaves time between SHIPPED and the capture.
    let bank = rusqlite::Connection::open(server.state_dir().join("bank.db")).unwrap();
    bank.execute_batch("BEGIN IMMEDIATE").unwrap();
    seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}));
    let rows = rusqlite::Connection::open(server.state_dir().join("trade.db")).unwrap();
    eventually("SHIPPED to be on disk", || {
        let body: String =
            rows.query_row("SELECT body FROM trade_deal ORDER BY id DESC", [], |row| row.get(0)).unwrap();
        body.contains("Shipped").then_some(())
    });
    let port = server.addr.port().to_string();
    drop((server, rows)); // SIGKILL
    bank.execute_batch("ROLLBACK").unwrap();
    drop(bank);
    let server = Server::start_in(dir.path(), &["--trade-port", &port, "--fee-percent", "25"], &[]);
    assert_eq!(deal.seller.ended(deal.sold)["state"], "completed");
    assert_eq!(deal.buyer.ended(deal.rq)["price"], 10);
    let paid = ["fee".to_owned(), format!("payout:{}", deal.seller.name), "escrow".to_owned()];
    assert_eq!(paid.map(|account| server.balance_cents(&account)), [100, 900, 0]);
    // What is bought from now on is charged at the new rate.
    deal.leave();
    let deal = bought(&server, "new rate");
    let (buyer, mut seller) = deal.lines();
    buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
    seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
    assert_eq!(seller.read().unwrap()["fee"], json!(2.5));
}

/// What one side does wrong once both are asked.
type Spoil = fn(&Bought, &mut SettlementConnection, &mut SettlementConnection);

/// Every way in which a side can spoil a settlement, each next to a correct deal that completes.
#[test]
fn a_side_that_spoils_it_costs_nobody_anything() {
    fn changed(peer: &Peer, rq: u64, field: &str, value: Value) -> Value {
        let mut inform = peer.inform_res(rq, GOOD_CARD);
        if value.is_null() {
            inform.as_object_mut().unwrap().remove(field);
        } else {
            inform[field] = value;
        }
        inform
    }
    let cases: &[(&str, &str, Spoil)] = &[
        ("nobody answers", "in time", |_, _, _| {}),
        ("the buyer is silent", "buyer", |deal, _, seller| seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD))),
        ("the seller is silent", "seller", |deal, buyer, _| buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD))),
        ("a wrong name", "name", |deal, buyer, _| {
            buyer.write(&changed(&deal.buyer, deal.rq, "name", json!(deal.seller.name)))
        }),
        ("a wrong token", "token", |deal, _, seller| {
            seller.write(&changed(&deal.seller, deal.sold, "token", json!(deal.buyer.token)))
        }),
        ("no token", "token", |deal, buyer, _| buyer.write(&changed(&deal.buyer, deal.rq, "token", Value::Null))),
        ("the other side's number", "rq", |deal, buyer, _| {
            buyer.write(&changed(&deal.buyer, deal.rq, "rq", json!(deal.sold)))
        }),
        ("no card", "cc_number", |deal, buyer, _| {
            buyer.write(&changed(&deal.buyer, deal.rq, "cc_number", Value::Null))
        }),
        ("a bad expiry", "cc_exp", |deal, buyer, _| {
            buyer.write(&changed(&deal.buyer, deal.rq, "cc_exp", json!("13/30")))
        }),
        ("no address", "address", |deal, buyer, _| buyer.write(&changed(&deal.buyer, deal.rq, "address", json!("")))),
        ("an array", "nonsense", |deal, buyer, _| {
            let fields = deal.buyer.inform_res(deal.rq, GOOD_CARD);
            let names = ["type", "rq", "name", "token", "cc_number", "cc_exp", "address"];
            buyer.write(&names.map(|name| fields[name].clone()).into_iter().collect());
        }),
        ("no JSON", "nonsense", |_, buyer, _| buyer.write(&json!("INFORM_RES"))),
        ("another type", "nonsense", |deal, _, seller| seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}))),
        ("twice", "nonsense", |deal, buyer, _| {
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
        }),
        ("not UTF-8", "UTF-8", |_, buyer, _| {
            buyer.writer.write_all(b"{\"type\":\"\xff\"}\n", Instant::now() + PATIENCE).unwrap()
        }),
        ("a line too long", "longer", |_, buyer, _| {
            let line = vec![b'x'; (1 << 20) + 100];
            // The server may close the connection before all of it is sent.
            let _ = buyer.writer.write_all(&line, Instant::now() + PATIENCE);
        }),
        ("SHIPPED before it was asked", "nonsense", |deal, buyer, seller| {
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
            let both = format!(
                "{}\n{}\n",
                deal.seller.inform_res(deal.sold, GOOD_CARD),
                json!({"type": "SHIPPED", "rq": deal.sold})
            );
            seller.writer.write_all(both.as_bytes(), Instant::now() + PATIENCE).unwrap();
        }),
        ("never SHIPPED", "seller", |deal, buyer, seller| {
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
            seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
            assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
        }),
        ("SHIPPED of another number", "nonsense", |deal, buyer, seller| {
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
            seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
            assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
            seller.write(&json!({"type": "SHIPPED", "rq": deal.rq}));
        }),
        ("the buyer talks while the seller ships", "buyer", |deal, buyer, seller| {
            buyer.write(&deal.buyer.inform_res(deal.rq, GOOD_CARD));
            seller.write(&deal.seller.inform_res(deal.sold, GOOD_CARD));
            assert_eq!(seller.read().unwrap()["type"], "SHIPPING_INFO");
            buyer.write(&json!({"type": "SHIPPED", "rq": deal.rq}));
        }),
    ];
    let server = server();
    // Each on a thread of its own, so that the correct deals run at the same time.
    std::thread::scope(|scope| {
        for (tag, reason, spoil) in cases {
            let server = &server;
            scope.spawn(move || {
                let mut deal = bought(server, tag);
                let mut good = bought(server, &format!("beside {tag}"));
                let (mut buyer, mut seller) = deal.lines();
                spoil(&deal, &mut buyer, &mut seller);
                good.completes(server);
                // A side whose own line was too long may not be able to read the end of the connection.
                if *tag != "a line too long" && *tag != "not UTF-8" {
                    deal.hears_cancel(&mut buyer, deal.rq);
                }
                deal.hears_cancel(&mut seller, deal.sold);
                deal.is_cancelled(server, reason);
            });
        }
    });
    assert_eq!(server.balance_cents("escrow"), 0);
    assert_eq!(server.balance_cents("fee"), 100 * cases.len() as i64);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn a_side_that_closes_at_any_step_is_noticed_at_once() {
    // The timeout is so long that only noticing the closed connection makes this quick.
    let server = Server::start(&["--settle-timeout", "60s", "--offer-window", "60s"]);
    for step in ["accepted", "asked", "informed", "shipping"] {
        for who in ["buyer", "seller"] {
            let mut deal = bought(&server, &format!("{who} {step}"));
            let buyer_closes = who == "buyer";
            if step == "accepted" {
                let (closing, staying) =
                    if buyer_closes { (&deal.buyer, &deal.seller) } else { (&deal.seller, &deal.buyer) };
                accept(closing).shutdown(Shutdown::Both).unwrap();
                let mut line = staying.accept_settlement();
                let rq = if buyer_closes { deal.sold } else { deal.rq };
                deal.hears_cancel(&mut line, rq);
                deal.is_cancelled(&server, who);
                deal.leave();
                continue;
            }
            let (buyer, seller) = if step == "shipping" { deal.shipping() } else { deal.lines() };
            let (closing, mut staying, rq) =
                if buyer_closes { (buyer, seller, deal.sold) } else { (seller, buyer, deal.rq) };
            if step == "informed" {
                let (peer, own) = if buyer_closes { (&deal.buyer, deal.rq) } else { (&deal.seller, deal.sold) };
                closing.write(&peer.inform_res(own, GOOD_CARD));
            }
            closing.writer.close();
            deal.hears_cancel(&mut staying, rq);
            deal.is_cancelled(&server, who);
            deal.leave();
        }
    }
    assert_eq!(server.balance_cents("escrow"), 0);
}

#[test]
fn a_side_that_does_not_listen_or_speak_tls_is_not_waited_for() {
    let server = server();
    std::thread::scope(|scope| {
        for who in ["buyer", "seller"] {
            let server = &server;
            // Nobody listens: the other side, already connected or just connecting, is told on its connection.
            scope.spawn(move || {
                let (mut seller, mut buyer) = pair(server, &format!("deaf {who}"));
                let (rq, sold, item) = reserved_among_others(&mut buyer, &mut seller, who);
                {
                    let deaf = if who == "buyer" { &mut buyer } else { &mut seller };
                    deaf.tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                }
                assert_eq!(buy(&mut buyer, rq, &item, 10.0)["type"], "BUYING");
                let mut deal = Bought { buyer, seller, rq, sold, item };
                let (staying, own) = if who == "buyer" { (&deal.seller, sold) } else { (&deal.buyer, rq) };
                let mut line = staying.accept_settlement();
                deal.hears_cancel(&mut line, own);
                // The side that could not be reached is told its address; the other side is told only the role.
                let deaf = "your settlement port 127.0.0.1:";
                let (buyer_reads, seller_reads) = if who == "buyer" { (deaf, who) } else { (who, deaf) };
                deal.is_cancelled_for(server, buyer_reads, seller_reads);
            });
            // Accepts the connection and sends nothing, or slowly sends part of a handshake.
            for trickles in [false, true] {
                scope.spawn(move || {
                    let mut deal = bought(server, &format!("mute {who} {trickles}"));
                    let (mute, staying, own) = if who == "buyer" {
                        (&deal.buyer, &deal.seller, deal.sold)
                    } else {
                        (&deal.seller, &deal.buyer, deal.rq)
                    };
                    let begun = Instant::now();
                    let mut stream = accept(mute);
                    let mut line = staying.accept_settlement();
                    if trickles {
                        // The beginning of a TLS record that announces more than will ever follow.
                        for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 1, 2, 3, 4, 5] {
                            if stream.write_all(&[byte]).is_err() {
                                break;
                            }
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                    deal.hears_cancel(&mut line, own);
                    assert!(begun.elapsed() < 10 * STEP, "cut at the step's end, however it trickles");
                    deal.is_cancelled(server, who);
                    drop(stream);
                });
            }
        }
    });
    assert_eq!(server.balance_cents("escrow"), 0);
}

#[test]
fn a_line_that_trickles_is_cut_at_the_steps_end() {
    let server = server();
    let mut deal = bought(&server, "trickle");
    let (buyer, mut seller) = deal.lines();
    let text = deal.buyer.inform_res(deal.rq, GOOD_CARD).to_string();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for byte in text.bytes() {
                if buyer.writer.write_all(&[byte], Instant::now() + STEP).is_err() || begun.elapsed() > 5 * STEP {
                    break;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        deal.hears_cancel(&mut seller, deal.sold);
        assert!(begun.elapsed() < 5 * STEP);
    });
    deal.is_cancelled(&server, "buyer");
}

#[test]
fn buy_goes_over_tcp_too_plain_or_tls() {
    let server = server();
    let mut someone = Peer::new(&server, "someone");
    let pin = someone.cert_sha256.clone().unwrap();
    someone.ask("DE-REGISTER", json!({}));
    for pin in [None, Some(pin.as_str())] {
        let tag = if pin.is_some() { "tls" } else { "plain" };
        let (mut seller, mut buyer) = pair(&server, tag);
        let (rq, sold) = reserved(&mut buyer, &mut seller, tag, 10.0);
        let mut line = SettlementConnection::over(TcpStream::connect(server.addr).unwrap(), pin);
        let mut ask = |message: &Value| {
            line.write(message);
            line.read().unwrap()
        };
        // A token is required from any address, and only BUY is accepted.
        let mut request = buyer.message("BUY", rq, json!({"item_name": tag, "price": 10}));
        assert_eq!(ask(&request)["code"], "FORBIDDEN");
        request["token"] = json!(seller.token);
        assert_eq!(ask(&request)["code"], "FORBIDDEN");
        for kind in ["STATUS", "CANCEL", "LOOKING_FOR", "REGISTER", "DE-REGISTER", "OFFER", "HELLO"] {
            let fields = json!({"item_name": tag, "token": buyer.token, "description": "", "max_price": 1, "price": 1,
                "ip": "127.0.0.1", "udp_port": 5000, "tcp_port": 5000});
            let answer = ask(&buyer.message(kind, rq, fields));
            assert_eq!((&answer["code"], &answer["rq"]), (&json!("BAD_REQUEST"), &json!(rq)), "{kind}: {answer}");
            assert!(answer["reason"].as_str().unwrap().starts_with("type"), "{answer}");
        }
        assert_eq!(ask(&json!([1]))["code"], "BAD_REQUEST");
        request["token"] = json!(buyer.token);
        let mut wrong = request.clone();
        wrong["price"] = json!(9.5);
        let answer = ask(&wrong);
        assert!(answer["code"] == "BAD_REQUEST" && answer["reason"].as_str().unwrap().starts_with("price"), "{answer}");
        // Blank lines and message types of servers are ignored.
        line.write(&json!({"type": "ERROR", "rq": 1}));
        line.writer.write_all(b"\r\n\n", Instant::now() + PATIENCE).unwrap();
        line.write(&request);
        assert_eq!(line.read().unwrap(), json!({"type": "BUYING", "rq": rq}));
        line.write(&request);
        assert_eq!(line.read().unwrap(), json!({"type": "BUYING", "rq": rq}), "once is enough, and it is open still");
        // From BUY on nobody can cancel.
        assert_eq!(buyer.ask_rq("CANCEL", rq, json!({"item_name": tag}))["code"], "WRONG_STATE");
        assert_eq!(seller.ask_rq("CANCEL", sold, json!({"item_name": tag}))["code"], "WRONG_STATE");
        assert_eq!(buyer.deal(rq).unwrap()["state"], "settling");
        let mut deal = Bought { buyer, seller, rq, sold, item: tag.to_owned() };
        deal.completes(&server);
        line.write(&request);
        assert_eq!(line.read().unwrap(), json!({"type": "BUYING", "rq": rq}), "also after the end");
        let mut other = request.clone();
        other["price"] = json!(9);
        line.write(&other);
        assert_eq!(line.read().unwrap()["reason"], "rq already used");
        assert_eq!(server.balance_cents(&format!("card:{}", deal.buyer.name)), -1000);
        // It is settled only once: nobody connects again.
        assert_eq!(deal.buyer.ended(rq)["state"], "completed");
        assert!(deal.buyer.tcp.accept().is_err() && deal.seller.tcp.accept().is_err());
        deal.leave();
    }
}

#[test]
fn when_the_line_breaks_after_shipped_status_tells_the_end() {
    let server = server();
    let mut deal = bought(&server, "broken");
    let (buyer, seller) = deal.shipping();
    seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}));
    buyer.writer.close();
    seller.writer.close();
    // A connection that broke before SHIPPED was read cancels the deal; one that broke later does not. Both sides
    // learn the same result, and the ledger agrees.
    let (bought, sold) = (deal.buyer.ended(deal.rq), deal.seller.ended(deal.sold));
    assert_eq!(bought["state"], sold["state"]);
    let charged = if bought["state"] == "completed" { -1000 } else { 0 };
    assert_eq!(server.balance_cents(&format!("card:{}", deal.buyer.name)), charged);

    deal.leave();

    // Certainly later: the receipt is read, and the seller's connection is closed with a line unread.
    let mut deal = self::bought(&server, "late");
    let (mut buyer, seller) = deal.shipping();
    seller.write(&json!({"type": "SHIPPED", "rq": deal.sold}));
    drop(seller);
    assert_eq!(buyer.read().unwrap()["type"], "RECEIPT");
    assert_eq!(deal.seller.ended(deal.sold)["state"], "completed");
    assert_eq!(server.balance_cents(&format!("payout:{}", deal.seller.name)), 900);
    assert_eq!(server.balance_cents("escrow"), 0);
}

#[test]
fn the_fee_is_rounded_half_up_to_a_cent() {
    let server = Server::start(&["--fee-percent", "2.5"]);
    let mut alice = Peer::new(&server, "alice");
    let mut bob = Peer::new(&server, "bob");
    for (item, price, fee) in [("a", 0.2, 1), ("b", 0.19, 0), ("c", 33.33, 83), ("d", 0.01, 0)] {
        let (before, paid) = (server.balance_cents("fee"), server.balance_cents("payout:alice"));
        let (rq, sold) = reserved(&mut bob, &mut alice, item, price);
        assert_eq!(buy(&mut bob, rq, item, price)["type"], "BUYING");
        let deal = Bought { buyer: bob, seller: alice, rq, sold, item: item.to_owned() };
        let (mut buyer, mut seller) = (deal.buyer.accept_settlement(), deal.seller.accept_settlement());
        assert_eq!(buyer.read().unwrap()["price"], json!(price));
        buyer.write(&deal.buyer.inform_res(rq, GOOD_CARD));
        seller.read().unwrap();
        seller.write(&deal.seller.inform_res(sold, GOOD_CARD));
        let info = seller.read().unwrap();
        let cents = |value: &Value| (value.as_f64().unwrap() * 100.0).round() as i64;
        assert_eq!((cents(&info["fee"]), cents(&info["payout"])), (fee, cents(&json!(price)) - fee), "{info}");
        assert_eq!(info["address"], "1 bob Street");
        seller.write(&json!({"type": "SHIPPED", "rq": sold}));
        assert_eq!(seller.read().unwrap()["payout"], info["payout"]);
        assert_eq!(buyer.read().unwrap()["price"], json!(price));
        (bob, alice) = (deal.buyer, deal.seller);
        assert_eq!(server.balance_cents("fee") - before, fee);
        assert_eq!(server.balance_cents("payout:alice") - paid, cents(&json!(price)) - fee);
    }
}

#[test]
fn past_256_settlements_buy_is_busy() {
    let server = Server::start(&["--plaintext", "--settle-timeout", "1h", "--offer-window", "1h"]);
    let mut alice = Peer::new(&server, "alice");
    let mut others: Vec<Peer> = Vec::new();
    let mut under_way = 0;
    // A peer has at most 64 open deals, so there are five buyers.
    for n in 0..5 {
        let mut bob = Peer::new(&server, &format!("bob {n}"));
        for item in 0..52 {
            let item = format!("item {n} {item}");
            let rq = bob.look_for(&item, 1.0);
            for other in &mut others {
                let asked = other.push_of("SEARCH", &item)["rq"].as_u64().unwrap();
                assert_eq!(other.ask_rq("NOT_AVAILABLE", asked, json!({"item_name": item}))["type"], "NOTED");
            }
            let sold = alice.push_of("SEARCH", &item)["rq"].as_u64().unwrap();
            assert_eq!(alice.ask_rq("OFFER", sold, json!({"item_name": item, "price": 1}))["type"], "OFFERED");
            let answer = buy(&mut bob, rq, &item, 1.0);
            if under_way < 256 {
                assert_eq!(answer["type"], "BUYING", "{answer}");
                under_way += 1;
            } else {
                assert_eq!(answer["code"], "BUSY", "{answer}");
                assert_eq!(bob.deal(rq).unwrap()["state"], "reserved", "nothing changed");
                return;
            }
        }
        others.push(bob);
    }
    panic!("{under_way} settlements and no end");
}
