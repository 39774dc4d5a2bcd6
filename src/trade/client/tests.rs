//! A client against a server controlled by the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};

use super::*;
use crate::model::{CardNumber, Expiry, PaymentCard};
use crate::net::conn::Conn;
use crate::net::lines::{LineLimits, LineReader};
use crate::net::tls::TlsIdentity;
use crate::trade::wire::{DealRequest, ErrorCode, PaymentDetails, RequestBody, Response, encode};

const WAIT: Duration = Duration::from_secs(10);

/// A server controlled by the test.
pub(crate) struct FakeServer {
    pub(crate) udp: UdpSocket,
}

impl FakeServer {
    pub(crate) fn new() -> FakeServer {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(WAIT)).unwrap();
        FakeServer { udp }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.udp.local_addr().unwrap()
    }

    /// The next datagram and its source.
    pub(crate) fn receive(&self) -> (Value, SocketAddr) {
        let mut buffer = [0; DATAGRAM_MAX];
        let (len, source) = self.udp.recv_from(&mut buffer).expect("a datagram within ten seconds");
        (serde_json::from_slice(&buffer[..len]).unwrap(), source)
    }

    /// The next datagram of this type; others are skipped.
    pub(crate) fn expect(&self, kind: &str) -> (Value, SocketAddr) {
        loop {
            let (message, source) = self.receive();
            if message["type"] == kind {
                return (message, source);
            }
        }
    }

    pub(crate) fn send(&self, to: SocketAddr, message: &Value) {
        self.udp.send_to(message.to_string().as_bytes(), to).unwrap();
    }
}

#[derive(Debug)]
enum HandlerCall {
    Notification(Notification),
    Inform(u64),
    Ship(String),
    Settled(u64, Amount),
    Receipt(u64),
    Cancelled(u64, String),
    Broke(u64, String),
    Refused(String),
}

struct RecordingHandler(Sender<HandlerCall>);

impl ClientHandler for RecordingHandler {
    fn notification(&self, notification: Notification) {
        self.0.send(HandlerCall::Notification(notification)).unwrap();
    }

    fn inform(&self, rq: u64, _: &str, price: Cents, _: Instant) -> Result<InformResponse, String> {
        self.0.send(HandlerCall::Inform(rq)).unwrap();
        if price != Cents(2_000) {
            return Err("another price".to_owned());
        }
        let card = PaymentCard {
            number: CardNumber::new("4111111111111111").unwrap(),
            expiry: Expiry::parse("12/39").unwrap(),
        };
        let payment_details = Some(PaymentDetails { card, address: "1 Elm St".to_owned() });
        Ok(InformResponse { name: Name::new("alice").unwrap(), token: Token::from_text("t0ken"), payment_details })
    }

    fn ship(&self, shipping: &ShippingOrder) -> Result<(), String> {
        self.0.send(HandlerCall::Ship(shipping.address.clone())).unwrap();
        Ok(())
    }

    fn settled(&self, rq: u64, payout: Amount) {
        self.0.send(HandlerCall::Settled(rq, payout)).unwrap();
    }

    fn receipt(&self, rq: u64, _: Arc<str>, _: Cents, _: Name) {
        self.0.send(HandlerCall::Receipt(rq)).unwrap();
    }

    fn cancelled(&self, rq: u64, reason: Arc<str>) {
        self.0.send(HandlerCall::Cancelled(rq, reason.to_string())).unwrap();
    }

    fn interrupted(&self, rq: u64, why: &str) {
        self.0.send(HandlerCall::Broke(rq, why.to_owned())).unwrap();
    }

    fn rejected(&self, why: &str) {
        self.0.send(HandlerCall::Refused(why.to_owned())).unwrap();
    }
}

fn client(server: &FakeServer) -> (Client, Receiver<HandlerCall>) {
    let mut config = ClientConfig::new(Name::new("alice").unwrap(), server.address());
    config.pauses = [30, 60, 120].map(Duration::from_millis).to_vec();
    config.settle_timeout = Duration::from_secs(5);
    let (tell, heard) = crossbeam_channel::unbounded();
    (Client::open(config, Arc::new(RecordingHandler(tell))).unwrap(), heard)
}

fn hear(heard: &Receiver<HandlerCall>) -> HandlerCall {
    heard.recv_timeout(WAIT).expect("something within ten seconds")
}

fn status() -> RequestBody {
    RequestBody::Status { rq_deal: None }
}

#[test]
fn a_request_is_repeated_with_the_same_content_until_it_is_answered() {
    let server = FakeServer::new();
    let (client, _heard) = client(&server);
    client.set_token(Some(Token::from_text("t0ken")));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (first, source) = server.receive();
            let (second, _) = server.receive();
            assert_eq!(first, second);
            assert_eq!((&first["token"], &first["rq"]), (&json!("t0ken"), &json!(7)));
            // Not the response: malformed, another number, another type.
            server.udp.send_to(b"\xff{", source).unwrap();
            server.send(source, &json!({"type":"DEALS","rq":8,"deals":[],"more":false}));
            server.send(source, &json!({"type":"OFFERED","rq":7}));
            server.send(source, &json!({"type":"ERROR","rq":7,"code":"UNAVAILABLE","reason":"the disk is full"}));
            let (third, _) = server.receive();
            assert_eq!(first, third, "UNAVAILABLE is tried again");
            server.send(source, &json!({"type":"DEALS","rq":7,"deals":[],"more":true}));
        });
        assert!(matches!(client.call(7, status()), Ok(Response::Deals { more: true, .. })));
    });
    assert_eq!(client.counters().repeated.get(), 2);
}

#[test]
fn silence_ends_in_an_error_that_names_the_server() {
    let server = FakeServer::new();
    let (client, _heard) = client(&server);
    let error = client.call(1, status()).unwrap_err();
    assert!(matches!(error, ClientError::Unanswered { sent: 3, .. }), "{error:?}");
    assert!(error.to_string().contains(&server.address().to_string()) && error.to_string().contains("STATUS"));
    // Nobody listens at the port: the system reports that, and it is no other error.
    drop(server);
    assert!(matches!(client.call(2, status()), Err(ClientError::Unanswered { .. })));
}

#[test]
fn an_error_is_an_answer_and_a_later_request_takes_the_place_of_an_earlier_one() {
    let server = FakeServer::new();
    let (client, _heard) = client(&server);
    let (tell, told) = crossbeam_channel::bounded(1);
    client.post(5, status(), move |result| tell.send(result).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_, source) = server.expect("CANCEL");
            server.send(source, &json!({"type":"ERROR","rq":5,"code":"WRONG_STATE","reason":"it is over"}));
        });
        let response = client.call(5, DealRequest::Cancel.about("lamp".into())).unwrap();
        assert!(matches!(response, Response::Error { code: ErrorCode::WrongState, .. }));
    });
    assert!(matches!(told.recv_timeout(WAIT).unwrap(), Err(ClientError::Superseded)));
    client.post(6, status(), |_| {});
    let (tell, told) = crossbeam_channel::bounded(1);
    client.post(7, status(), move |result| tell.send(result).unwrap());
    client.close();
    assert!(told.recv_timeout(WAIT).unwrap().is_err(), "who waits is told");
    assert!(matches!(client.call(8, status()), Err(ClientError::Closed)));
}

#[test]
fn pushes_are_handed_on_and_a_strangers_are_not() {
    let server = FakeServer::new();
    let (client, heard) = client(&server);
    let endpoint = client.endpoint();
    let here = SocketAddr::new(endpoint.ip, endpoint.udp_port as u16);
    let notification = |mid| Notification::Released { rq: 1, mid, item_name: "lamp".into() };
    let stranger = FakeServer::new();
    stranger.udp.send_to(&encode(&notification(1)), here).unwrap();
    server.udp.send_to(&encode(&notification(2)), here).unwrap();
    assert!(matches!(hear(&heard), HandlerCall::Notification(got) if got == notification(2)));
    client.ack(2);
    let (ack, source) = server.expect("ACK");
    assert_eq!((&ack["mid"], source), (&json!(2), here), "from the peer's own socket");
    assert!(heard.is_empty());
}

#[test]
fn ports_in_use_are_named() {
    let server = FakeServer::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = ClientConfig::new(Name::new("alice").unwrap(), server.address());
    config.udp_port = taken.local_addr().unwrap().port();
    let (tell, _heard) = crossbeam_channel::unbounded();
    let error = Client::open(config.clone(), Arc::new(RecordingHandler(tell.clone()))).err().unwrap();
    assert!(matches!(error, ClientOpenError::InUse { what: "UDP", port } if port == config.udp_port), "{error}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    (config.udp_port, config.tcp_port) = (0, taken.local_addr().unwrap().port());
    let error = Client::open(config.clone(), Arc::new(RecordingHandler(tell.clone()))).err().unwrap();
    assert!(matches!(error, ClientOpenError::InUse { what: "TCP", .. }), "{error}");
    config.server = "192.0.2.1:7001".parse().unwrap();
    let error = Client::open(config, Arc::new(RecordingHandler(tell))).err().unwrap();
    assert!(error.to_string().contains("--bind"), "{error}");
}

fn connect(client: &Client) -> TcpStream {
    let endpoint = client.endpoint();
    let stream = TcpStream::connect(SocketAddr::new(endpoint.ip, endpoint.tcp_port as u16)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

fn write(stream: &mut TcpStream, line: &Value) {
    // A client that refuses the connection may have closed it already; the read then shows it.
    let _ = writeln!(stream, "{line}");
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut line = String::new();
    // A closed connection may show as an error.
    match reader.read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(serde_json::from_str(&line).unwrap()),
    }
}

fn inform_req() -> Value {
    json!({"type":"INFORM_REQ","rq":9,"item_name":"lamp","price":20})
}

#[test]
fn both_sides_of_a_settlement_without_tls() {
    let server = FakeServer::new();
    let (client, heard) = client(&server);
    client.set_security(SettlementSecurity::Plaintext);

    let mut seller = connect(&client);
    let mut lines = BufReader::new(seller.try_clone().unwrap());
    seller.write_all(b"\n \r\n").unwrap(); // says nothing
    write(&mut seller, &inform_req());
    let response = read(&mut lines).unwrap();
    assert_eq!(
        (&response["type"], &response["rq"], &response["cc_exp"]),
        (&json!("INFORM_RES"), &json!(9), &json!("12/39"))
    );
    let shipping =
        json!({"type":"SHIPPING_INFO","rq":9,"name":"bob","address":"Mill Lane","price":20,"fee":2,"payout":18});
    seller.write_all(b"\n").unwrap();
    write(&mut seller, &shipping);
    assert_eq!(read(&mut lines).unwrap(), json!({"type":"SHIPPED","rq":9}));
    write(&mut seller, &json!({"type":"SETTLED","rq":9,"payout":18}));
    assert!(matches!(hear(&heard), HandlerCall::Inform(9)));
    assert!(matches!(hear(&heard), HandlerCall::Ship(address) if address == "Mill Lane"), "before SHIPPED is said");
    assert!(matches!(hear(&heard), HandlerCall::Settled(9, Amount(Cents(1_800)))));
    assert!(read(&mut lines).is_none());

    let mut buyer = connect(&client);
    let mut lines = BufReader::new(buyer.try_clone().unwrap());
    write(&mut buyer, &inform_req());
    read(&mut lines).unwrap();
    write(&mut buyer, &json!({"type":"RECEIPT","rq":9,"item_name":"lamp","price":20,"seller":"bob"}));
    assert!(matches!(hear(&heard), HandlerCall::Inform(9)));
    assert!(matches!(hear(&heard), HandlerCall::Receipt(9)));

    for (line, said) in [
        (json!({"type":"CANCEL","rq":9,"item_name":"lamp","reason":"declined"}), None),
        (json!({"type":"RECEIPT","rq":10,"item_name":"lamp","price":20,"seller":"bob"}), Some("something else")),
        (json!({"type":"HELLO"}), Some("no line of a settlement")),
        (json!(["CANCEL", 9, "lamp", "declined"]), Some("no line of a settlement")),
    ] {
        let mut stream = connect(&client);
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        write(&mut stream, &inform_req());
        read(&mut lines).unwrap();
        write(&mut stream, &line);
        assert!(matches!(hear(&heard), HandlerCall::Inform(9)));
        match (hear(&heard), said) {
            (HandlerCall::Cancelled(9, reason), None) => assert_eq!(reason, "declined"),
            (HandlerCall::Broke(9, why), Some(said)) => assert!(why.contains(said), "{why}"),
            (heard, _) => panic!("{line}: {heard:?}"),
        }
        assert!(read(&mut lines).is_none(), "closed");
    }
}

#[test]
fn nothing_is_told_to_whom_it_does_not_belong() {
    let server = FakeServer::new();
    let (client, heard) = client(&server);
    // No security has been agreed yet.
    let mut stream = connect(&client);
    write(&mut stream, &inform_req());
    assert!(read(&mut BufReader::new(stream)).is_none());
    assert!(matches!(hear(&heard), HandlerCall::Refused(_)));
    client.set_security(SettlementSecurity::Plaintext);
    for (line, inform) in [
        (json!({"type":"SHIPPING_INFO","rq":9,"name":"b","address":"a","price":20,"fee":2,"payout":18}), false),
        (json!({"type":"INFORM_REQ","rq":9,"item_name":"lamp","price":21}), true),
        (json!("x".repeat(10_000)), false),
    ] {
        let mut stream = connect(&client);
        write(&mut stream, &line);
        assert!(read(&mut BufReader::new(stream)).is_none());
        assert!(!inform || matches!(hear(&heard), HandlerCall::Inform(9)));
        assert!(matches!(hear(&heard), HandlerCall::Refused(_)), "{line}");
    }
    // Another host (here: another loopback address) is not the server.
    #[cfg(target_os = "linux")]
    {
        use socket2::{Domain, Socket, Type};
        let endpoint = client.endpoint();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.2:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&SocketAddr::new(endpoint.ip, endpoint.tcp_port as u16).into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(WAIT)).unwrap();
        write(&mut stream, &inform_req());
        assert!(read(&mut BufReader::new(stream)).is_none());
        assert_eq!(client.counters().foreign_connections.get(), 1);
        assert!(heard.is_empty());
    }
}

#[test]
fn strangers_at_the_servers_address_do_not_keep_the_server_out() {
    let server = FakeServer::new();
    let (client, heard) = client(&server);
    client.set_security(SettlementSecurity::Plaintext);
    // A settlement in progress, which must not be affected by what follows.
    let mut first = connect(&client);
    let mut first_lines = BufReader::new(first.try_clone().unwrap());
    write(&mut first, &inform_req());
    read(&mut first_lines).unwrap();
    assert!(matches!(hear(&heard), HandlerCall::Inform(9)));
    // More silent connections than there are slots; each is still open when the next one is made.
    let idle: Vec<TcpStream> = (0..SETTLEMENTS_MAX + 100).map(|_| connect(&client)).collect();
    let begun = Instant::now();
    let mut second = connect(&client);
    let mut lines = BufReader::new(second.try_clone().unwrap());
    write(&mut second, &inform_req());
    assert_eq!(read(&mut lines).expect("an answer")["type"], "INFORM_RES");
    assert!(begun.elapsed() < client.inner.config.settle_timeout, "before the silent ones' time was up");
    assert!(matches!(hear(&heard), HandlerCall::Inform(9)), "nobody is told of the silent ones");
    for (stream, lines) in [(&mut first, &mut first_lines), (&mut second, &mut lines)] {
        write(stream, &json!({"type":"RECEIPT","rq":9,"item_name":"lamp","price":20,"seller":"bob"}));
        assert!(matches!(hear(&heard), HandlerCall::Receipt(9)));
        assert!(read(lines).is_none());
    }
    assert!(client.counters().evicted_connections.get() > 0);
    drop(idle);
}

#[test]
fn tls_is_spoken_with_the_pinned_certificate_alone() {
    let server = FakeServer::new();
    let (client, heard) = client(&server);
    let dir = tempfile::tempdir().unwrap();
    let identity = TlsIdentity::load_or_create(dir.path()).unwrap();
    let deadline = || Instant::now() + WAIT;

    client.set_security(SettlementSecurity::Pinned(identity.fingerprint().into()));
    let conn = Conn::tls_server(connect(&client), &identity, deadline()).unwrap();
    let (reader, writer) = conn.split();
    let mut lines = LineReader::new(reader, LineLimits::new(DATAGRAM_MAX));
    writer.write_line(inform_req().to_string(), deadline()).unwrap();
    assert!(lines.read_line().unwrap().unwrap().contains("INFORM_RES"));
    assert!(matches!(hear(&heard), HandlerCall::Inform(9)));
    writer.close();
    assert!(matches!(hear(&heard), HandlerCall::Broke(9, _)));

    client.set_security(SettlementSecurity::Pinned("00".repeat(32).into()));
    // The handshake may seem complete on this side before the client has seen the certificate.
    if let Ok(conn) = Conn::tls_server(connect(&client), &identity, deadline()) {
        let (reader, _writer) = conn.split();
        assert!(!matches!(LineReader::new(reader, LineLimits::new(DATAGRAM_MAX)).read_line(), Ok(Some(_))));
    }
    assert!(matches!(hear(&heard), HandlerCall::Refused(why) if why.contains("refused")));
}
