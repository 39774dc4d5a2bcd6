//! A complete peer against a server controlled by the test.

use serde_json::{Value, json};

use super::*;
use crate::trade::client::tests::FakeServer;
use crate::trade::peer::SaleState;
use crate::trade::wire::Side;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

const WAIT: Duration = Duration::from_secs(10);
const SIDE: u64 = crate::trade::wire::FIRST_SERVER_NUMBER + 3;
const CERT: &str = "abababababababababababababababababababababababababababababababab";

fn config(server: &FakeServer, dir: &Path) -> NodeConfig {
    let mut client = client::ClientConfig::new(Name::new("alice").unwrap(), server.address());
    client.pauses = vec![Duration::from_millis(50); 100];
    NodeConfig {
        client,
        server: server.address().to_string(),
        data_dir: dir.to_owned(),
        wallet: None,
        auto_buy: false,
        plaintext: false,
        server_cert: None,
        no_server_cert: false,
    }
}

/// Joins while the server responds as given; STATUS gets these deals.
fn join(server: &FakeServer, config: NodeConfig, kind: &str, response: Value, deals: Value) -> Result<Node, NodeError> {
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let (request, source) = server.expect(kind);
            let mut response = response;
            response["rq"] = request["rq"].clone();
            server.send(source, &response);
            request
        });
        let node = Node::open(config, |_| {})?;
        let joined = node.join();
        answering.join().unwrap();
        joined?;
        let (request, source) = server.expect("STATUS");
        server.send(source, &json!({"type":"DEALS","rq":request["rq"],"deals":deals,"more":false}));
        Ok(node)
    })
}

fn registered() -> Value {
    json!({"type":"REGISTERED","token":"t0ken","cert_sha256":CERT})
}

fn here(node: &Node) -> SocketAddr {
    let endpoint = node.client().endpoint();
    SocketAddr::new(endpoint.ip, endpoint.udp_port as u16)
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let give_up_at = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < give_up_at, "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn items_deals_and_pushes_outlive_a_restart() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let node = join(&server, config(&server, dir.path()), "REGISTER", registered(), json!([])).unwrap();
    node.stock(vec![Item::new("lamp", Cents(2_000), Cents(1_500), 2, "").unwrap()]).unwrap();
    let search = json!({"type":"SEARCH","rq":SIDE,"mid":5,"item_name":"lamp","description":""});
    server.send(here(&node), &search);
    let (ack, _) = server.expect("ACK");
    assert_eq!((&ack["mid"], &ack["token"]), (&json!(5), &json!("t0ken")));
    let (offer, source) = server.expect("OFFER");
    assert_eq!((&offer["rq"], &offer["price"], &offer["name"]), (&json!(SIDE), &json!(20), &json!("alice")));
    server.send(source, &json!({"type":"OFFERED","rq":SIDE}));
    server.send(source, &search);
    assert_eq!(server.expect("ACK").0["mid"], 5, "every copy");
    drop(node);

    // It logs in with its token, and the server reports that the offer was chosen meanwhile.
    let deals = json!([{"rq":SIDE,"side":"seller","item_name":"lamp","state":"reserved","price":20}]);
    let logged_in = json!({"type":"LOGGED-IN","cert_sha256":CERT});
    let node = join(&server, config(&server, dir.path()), "LOGIN", logged_in, deals).unwrap();
    let reserved = || matches!(&node.deals().1[..], [sale] if sale.state == SaleState::Reserved);
    eventually(reserved);
    assert!(matches!(&node.items()[..], [(item, 1)] if item.quantity == 2));
    server.send(here(&node), &search);
    server.expect("ACK");
    let cancel = json!({"type":"CANCEL","rq":SIDE,"mid":6,"item_name":"lamp","reason":"the reservation ran out"});
    server.send(here(&node), &cancel);
    loop {
        let (message, _) = server.receive();
        assert_ne!(message["type"], "OFFER", "the old SEARCH is known");
        if message["mid"] == 6 {
            break;
        }
    }
    assert_eq!(node.items()[0].1, 0);
    assert!(matches!(node.wait(SIDE, WAIT).unwrap(), PeerEvent::Cancelled { side: Side::Seller, .. }));
}

#[test]
fn the_first_fingerprint_is_kept_and_another_refused_until_a_person_says_so() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    join(&server, config(&server, dir.path()), "REGISTER", registered(), json!([])).unwrap();
    let other = "cd".repeat(32);
    let another = json!({"type":"LOGGED-IN","cert_sha256":other});
    let error =
        join(&server, config(&server, dir.path()), "LOGIN", another.clone(), json!([])).err().unwrap().to_string();
    assert!(error.contains(CERT) && error.contains(&format!("--server-cert {other}")), "{error}");
    let plain = json!({"type":"LOGGED-IN","cert_sha256":null});
    let error = join(&server, config(&server, dir.path()), "LOGIN", plain, json!([])).err().unwrap().to_string();
    assert!(error.contains("--plaintext"), "{error}");
    let told = |cert: &str| NodeConfig { server_cert: Some(cert.to_owned()), ..config(&server, dir.path()) };
    join(&server, told(&other), "LOGIN", another.clone(), json!([])).unwrap();
    join(&server, config(&server, dir.path()), "LOGIN", another.clone(), json!([])).unwrap();
    let error = join(&server, told(CERT), "LOGIN", another, json!([])).err().unwrap().to_string();
    assert!(error.contains(&format!("{CERT} is expected (by --server-cert")), "{error}");
}

#[test]
fn a_server_that_was_confirmed_as_one_without_a_certificate_has_none() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let without = || NodeConfig { no_server_cert: true, plaintext: true, ..config(&server, dir.path()) };
    let error = join(&server, without(), "REGISTER", registered(), json!([])).err().unwrap().to_string();
    assert!(error.contains(CERT) && error.contains("confirmed as one that has none"), "{error}");
    let plain = json!({"type":"REGISTERED","token":"t0ken","cert_sha256":null});
    join(&server, without(), "REGISTER", plain, json!([])).unwrap();
}

#[test]
fn a_token_that_the_server_forgot_leads_to_register() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    join(&server, config(&server, dir.path()), "REGISTER", registered(), json!([])).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (login, source) = server.expect("LOGIN");
            assert_eq!(login["token"], "t0ken");
            server.send(source, &json!({"type":"LOGIN-DENIED","rq":login["rq"],"reason":"name: not registered"}));
            let (register, source) = server.expect("REGISTER");
            assert_ne!(login["rq"], register["rq"]);
            let reason = "name: taken by another peer";
            server.send(source, &json!({"type":"REGISTER-DENIED","rq":register["rq"],"reason":reason}));
        });
        let node = Node::open(config(&server, dir.path()), |_| {}).unwrap();
        let error = node.join().unwrap_err().to_string();
        assert!(error.contains("taken by another") && error.contains("alice"), "{error}");
    });
}

#[test]
fn commands_wait_for_their_answers_and_say_why_not() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let node = join(&server, config(&server, dir.path()), "REGISTER", registered(), json!([])).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (search, source) = server.expect("LOOKING_FOR");
            assert_eq!((&search["max_price"], &search["description"]), (&json!(12.5), &json!("any")));
            server.send(source, &json!({"type":"SEARCHING","rq":search["rq"],"peers":4}));
            let found = json!({"type":"FOUND","rq":search["rq"],"mid":8,"item_name":"lamp","price":12,"seller":"bob"});
            server.send(source, &found);
            let (cancel, source) = server.expect("CANCEL");
            server.send(source, &json!({"type":"ERROR","rq":cancel["rq"],"code":"WRONG_STATE","reason":"too late"}));
        });
        let (rq, peers) = node.find("lamp", Cents(1_250), "any").unwrap();
        assert_eq!(peers, 4);
        assert!(matches!(node.wait(rq, WAIT).unwrap(), PeerEvent::Found { price: Cents(1_200), .. }));
        assert!(node.buy(rq).unwrap_err().to_string().contains("--wallet"));
        assert_eq!(node.command(rq, DealCommand::Cancel).unwrap_err().to_string(), "too late");
        assert!(node.buy(rq + 1).is_err() && node.wait(99, WAIT).is_err());
    });
}

#[test]
fn one_process_a_data_dir_and_one_name() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let node = Node::open(config(&server, dir.path()), |_| {}).unwrap();
    assert!(Node::open(config(&server, dir.path()), |_| {}).err().unwrap().to_string().contains("in use"));
    drop(node);
    let mut other = config(&server, dir.path());
    other.client.name = Name::new("bob").unwrap();
    assert!(Node::open(other, |_| {}).err().unwrap().to_string().contains("alice"));
}

#[test]
fn what_is_sold_is_settled_without_a_wallet() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let config = NodeConfig { plaintext: true, ..config(&server, dir.path()) };
    let registered = json!({"type":"REGISTERED","token":"t0ken","cert_sha256":null});
    let node = join(&server, config, "REGISTER", registered, json!([])).unwrap();
    node.stock(vec![Item::new("lamp", Cents(2_000), Cents(1_500), 1, "").unwrap()]).unwrap();
    server.send(here(&node), &json!({"type":"SEARCH","rq":SIDE,"mid":5,"item_name":"lamp","description":""}));
    let (_, source) = server.expect("OFFER");
    server.send(source, &json!({"type":"OFFERED","rq":SIDE}));
    server.send(source, &json!({"type":"RESERVE","rq":SIDE,"mid":6,"item_name":"lamp","price":20}));
    let mut stream = TcpStream::connect((here(&node).ip(), node.client().endpoint().tcp_port as u16)).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut response = |line: Value| -> Value {
        writeln!(stream, "{line}").unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    };
    let inform = response(json!({"type":"INFORM_REQ","rq":SIDE,"item_name":"lamp","price":20}));
    assert_eq!(
        inform,
        json!({"type":"INFORM_RES","rq":SIDE,"name":"alice","token":"t0ken","cc_number":"","cc_exp":"","address":""})
    );
    let shipped = response(
        json!({"type":"SHIPPING_INFO","rq":SIDE,"name":"bob","address":"1 Elm St","price":20,"fee":2,"payout":18}),
    );
    assert_eq!(shipped, json!({"type":"SHIPPED","rq":SIDE}));
    writeln!(stream, "{}", json!({"type":"SETTLED","rq":SIDE,"payout":18})).unwrap();
    assert!(matches!(node.wait(SIDE, WAIT).unwrap(), PeerEvent::Sold { price: Cents(2_000), .. }));
}

#[test]
fn a_server_that_is_refused_is_not_served_until_the_right_one_is_back() {
    let (server, dir) = (FakeServer::new(), tempfile::tempdir().unwrap());
    let node = join(&server, config(&server, dir.path()), "REGISTER", registered(), json!([])).unwrap();
    node.stock(vec![Item::new("lamp", Cents(2_000), Cents(1_500), 2, "").unwrap()]).unwrap();
    let other = "cd".repeat(32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (login, source) = server.expect("LOGIN");
            server.send(source, &json!({"type":"LOGIN-DENIED","rq":login["rq"],"reason":"name: not registered"}));
            let (register, source) = server.expect("REGISTER");
            let registered = json!({"type":"REGISTERED","rq":register["rq"],"token":"0ther","cert_sha256":other});
            server.send(source, &registered);
            let (leave, source) = server.expect("DE-REGISTER");
            assert_eq!(leave["token"], "0ther", "the name is not left there");
            server.send(source, &json!({"type":"DE-REGISTERED","rq":leave["rq"]}));
        });
        assert!(node.join().unwrap_err().to_string().contains(&other));
    });
    let refused =
        [node.find("chair", Cents(100), "").unwrap_err(), node.status().unwrap_err(), node.leave().unwrap_err()];
    for error in refused {
        assert!(error.to_string().contains(&other), "{error}");
    }
    assert!(node.deals().0.is_empty(), "nothing is noted of what was not asked");
    let search = |mid| json!({"type":"SEARCH","rq":SIDE,"mid":mid,"item_name":"lamp","description":""});
    server.send(here(&node), &search(5));

    // The right server is back and knows the peer by its token.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for kind in ["LOGIN", "STATUS"] {
                let (message, source) = loop {
                    let (message, source) = server.receive();
                    if message["type"] != "DE-REGISTER" {
                        break (message, source);
                    }
                };
                assert_eq!(
                    (&message["type"], &message["token"]),
                    (&json!(kind), &json!("t0ken")),
                    "and no ACK, no OFFER"
                );
                server.send(
                    source,
                    &match kind {
                        "LOGIN" => json!({"type":"LOGGED-IN","rq":message["rq"],"cert_sha256":CERT}),
                        _ => json!({"type":"DEALS","rq":message["rq"],"deals":[],"more":false}),
                    },
                );
            }
        });
        assert!(node.join().unwrap());
    });
    server.send(here(&node), &search(6));
    assert_eq!(server.expect("ACK").0["mid"], 6);
    assert_eq!(server.expect("OFFER").0["rq"], SIDE);
}
