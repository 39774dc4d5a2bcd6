//! Limits of messages and connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;

struct Plain {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Plain {
    fn connect(server: &Server) -> Plain {
        let stream = TcpStream::connect(server.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Plain { stream, reader }
    }

    /// The next line, or `None` at the end.
    fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Whether the server responds on this connection.
    fn is_served(&mut self) -> bool {
        // A connection that was refused may be reset before this is sent.
        let asked = self.stream.write_all(b"{\"type\":\"STATUS\",\"rq\":7,\"name\":\"nobody\"}\n");
        let mut line = String::new();
        asked.and_then(|()| self.reader.read_line(&mut line)).is_ok_and(|_| line.contains("\"rq\":7"))
    }
}

#[test]
fn a_datagram_has_at_most_8_kib() {
    let server = Server::start(&[]);
    let mut bob = Peer::new(&server, "bob");
    let padded = |rq: u64, length: usize| {
        let bare = json!({"type": "STATUS", "rq": rq, "name": "bob", "pad": ""}).to_string();
        let pad = "x".repeat(length - bare.len());
        json!({"type": "STATUS", "rq": rq, "name": "bob", "pad": pad})
    };
    assert_eq!(padded(900, 8192).to_string().len(), 8192);
    assert_eq!(bob.ask_raw(&padded(900, 8192), 900).unwrap()["type"], "DEALS");
    bob.send(&padded(901, 8193));
    let answer = bob.receive_until(Instant::now() + PATIENCE).unwrap();
    assert_eq!((&answer["code"], &answer["rq"]), (&json!("BAD_REQUEST"), &Value::Null), "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("8192"), "{answer}");
    // The longest datagram that UDP can carry.
    bob.send_bytes(&vec![b' '; 65_507]);
    assert_eq!(bob.receive_until(Instant::now() + PATIENCE).unwrap()["code"], "BAD_REQUEST");
    bob.send_bytes(b"");
    assert_eq!(bob.receive_until(Instant::now() + PATIENCE).unwrap()["code"], "BAD_REQUEST");
}

#[test]
fn past_the_bound_of_connections_is_busy_and_others_go_on() {
    let server = Server::start(&["--max-connections", "4"]);
    let mut open: Vec<Plain> = (0..4).map(|_| Plain::connect(&server)).collect();
    assert!(open.iter_mut().all(Plain::is_served));
    for _ in 0..20 {
        let mut refused = Plain::connect(&server);
        let busy = refused.read().unwrap();
        assert_eq!(
            (&busy["type"], &busy["code"], &busy["rq"]),
            (&json!("ERROR"), &json!("BUSY"), &Value::Null),
            "{busy}"
        );
        assert_eq!(refused.read(), None, "closed");
    }
    assert!(open.iter_mut().all(Plain::is_served));
    // A complete deal is still possible, since the server makes the settlement connections.
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let rq = bob.look_for("lamp", 10.0);
    alice.offer("lamp", 9.0);
    alice.push("RESERVE");
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    assert_eq!(bob.ended(rq)["state"], "completed");
    // Closing one makes room for another.
    drop(open.pop());
    let mut next = eventually("room for one", || {
        let mut next = Plain::connect(&server);
        next.is_served().then_some(next)
    });
    assert!(next.is_served());
}

#[test]
fn a_line_has_at_most_1_mib() {
    let server = Server::start(&[]);
    let line = |length: usize| {
        let mut line = b"{\"type\":\"STATUS\",\"rq\":7,\"name\":\"nobody\"}".to_vec();
        line.resize(length, b' ');
        line.push(b'\n');
        line
    };
    let mut plain = Plain::connect(&server);
    plain.stream.write_all(&line(1 << 20)).unwrap();
    assert_eq!(plain.read().unwrap()["rq"], 7);
    // The connection is still open. One byte more is too much.
    let mut writer = plain.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        // The server may close the connection before all of it is sent.
        let _ = writer.write_all(&line((1 << 20) + 1));
        let _ = writer.shutdown(Shutdown::Write);
    });
    let answer = plain.read().unwrap();
    assert_eq!(answer["code"], "BAD_REQUEST", "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("1048576"), "{answer}");
    let mut rest = Vec::new();
    // It is closed, perhaps by a reset, since not everything was read.
    let _ = plain.reader.read_to_end(&mut rest);
    assert!(rest.is_empty());
    sender.join().unwrap();
    assert!(Plain::connect(&server).is_served());
}

#[test]
fn half_a_message_is_closed_after_ten_seconds_and_an_idle_connection_stays() {
    let server = Server::start(&[]);
    let mut idle = Plain::connect(&server);
    let mut spoken = Plain::connect(&server);
    assert!(spoken.is_served());
    // Silent in the middle of a line, slow, and silent in the middle of a TLS handshake.
    let mut silent = Plain::connect(&server);
    silent.stream.write_all(b"{\"type\":").unwrap();
    let mut handshake = Plain::connect(&server);
    handshake.stream.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let mut trickling = Plain::connect(&server);
    let begun = Instant::now();
    let mut trickle = trickling.stream.try_clone().unwrap();
    trickle.write_all(b"{").unwrap();
    let trickler = std::thread::spawn(move || {
        while begun.elapsed() < PATIENCE && trickle.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    for late in [&mut silent, &mut trickling] {
        let answer = late.read().unwrap();
        assert_eq!(answer["code"], "BAD_REQUEST", "{answer}");
        assert!(begun.elapsed() > Duration::from_millis(9_500), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let mut rest = Vec::new();
        // The slow input may turn the end into a reset.
        let _ = late.reader.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    trickler.join().unwrap();
    let mut rest = Vec::new();
    handshake.reader.read_to_end(&mut rest).unwrap();
    assert!(begun.elapsed() > Duration::from_millis(9_500));
    assert!(idle.is_served() && spoken.is_served());
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    let server = Server::start(&[]);
    let mut deaf = TcpStream::connect(server.addr).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let line = format!("{{\"type\":\"{}\",\"rq\":1}}\n", "x".repeat(1000));
    // Until the buffers of both ends are full of responses that nobody reads.
    while deaf.write_all(line.as_bytes()).is_ok() {}
    assert!(Plain::connect(&server).is_served());
    assert_eq!(Peer::new(&server, "bob").ask("STATUS", json!({}))["type"], "DEALS");
    assert_eq!(server.stop(), 0, "it also does not hold up the end");
}
