//! Nodes and a server with a certificate: all their traffic uses TLS with exactly that certificate.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use p2s2::internals::identity::{KnownServer, KnownServers};
use p2s2::internals::model::Clock;
use p2s2::internals::net::tls::TlsIdentity;
use serde_json::{Value, json};

use crate::nodes::{Node, Server, TestDir, content, http};
use crate::support::{eventually, program};

/// The first byte of a TLS handshake record.
const HANDSHAKE: u8 = 22;

/// A proxy in front of a server that records what clients send, by connection.
struct RecordingProxy {
    at: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RecordingProxy {
    fn before(target: SocketAddr) -> RecordingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let recorded = Arc::clone(&received);
        // They end with the test process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(target).unwrap());
                let (mut down_from, mut down_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let nth = {
                    let mut received = recorded.lock().unwrap();
                    received.push(Vec::new());
                    received.len() - 1
                };
                let recorded = Arc::clone(&recorded);
                thread::spawn(move || {
                    let (mut client, mut server, mut buffer) = (client, server, [0; 4096]);
                    while let Ok(length @ 1..) = client.read(&mut buffer) {
                        recorded.lock().unwrap()[nth].extend(&buffer[..length]);
                        if server.write_all(&buffer[..length]).is_err() {
                            break;
                        }
                    }
                    // The other side may have closed already.
                    let _ = server.shutdown(Shutdown::Write);
                });
                thread::spawn(move || {
                    // Ends when either side closes.
                    let _ = std::io::copy(&mut down_from, &mut down_to);
                    let _ = down_to.shutdown(Shutdown::Both);
                });
            }
        });
        RecordingProxy { at, received }
    }

    /// The first byte of each connection on which something was sent.
    fn beginnings(&self) -> Vec<u8> {
        self.received.lock().unwrap().iter().filter_map(|received| received.first().copied()).collect()
    }
}

fn fingerprint(place: &TestDir) -> String {
    let pem = place.path("server/identity.pem");
    TlsIdentity::load(&pem, &pem).unwrap().fingerprint().to_owned()
}

#[test]
fn passwords_tokens_and_files_names_travel_under_the_servers_certificate() {
    let place = TestDir::new();
    let server = Server::start(&place, &["--tls"]);
    let cert = fingerprint(&place);
    let (registry, api) = (RecordingProxy::before(server.registry()), RecordingProxy::before(server.api()));
    let ports = (registry.at.port(), api.at.port());
    let pinned = ["--server-cert", &cert];
    let mut ann = Node::start_between(&place, ports, "ann", &pinned);
    let mut bob = Node::start_between(&place, ports, "bob", &pinned);
    ann.register();
    bob.register();
    let path = place.file("plan.txt", 30_000);
    ann.publishes(&server, &path);
    let saved = place.path("shared/got.txt");
    let id = bob.fetches("plan.txt", &saved);
    assert_eq!(bob.waits_for(&id, "completed")["verified"], true);
    assert_eq!(fs::read(&saved).unwrap(), content("plan.txt", 30_000));

    for (proxy, at_least) in [(&registry, 2), (&api, 2)] {
        let beginnings = proxy.beginnings();
        assert!(beginnings.len() >= at_least, "{beginnings:?}");
        assert!(beginnings.iter().all(|first| *first == HANDSHAKE), "{beginnings:?}");
        for received in proxy.received.lock().unwrap().iter() {
            let text = String::from_utf8_lossy(received);
            for secret in ["correct horse", "plan.txt", "Bearer", ann.token.as_deref().unwrap()] {
                assert!(!text.contains(secret), "{secret} can be read on the way");
            }
        }
    }
}

#[test]
fn another_certificate_than_the_pinned_one_gets_no_password() {
    let place = TestDir::new();
    let server = Server::start(&place, &["--tls"]);
    let wrong = "ab".repeat(32);
    let api = RecordingProxy::before(server.api());
    let node =
        Node::start_between(&place, (server.registry().port(), api.at.port()), "ann", &["--server-cert", &wrong]);
    let body = json!({"username": "ann", "password": "correct horse"});
    let (status, answer) = node.post("register", body);
    assert_eq!((status, &answer["success"]), (503, &json!(false)), "{answer}");
    let reason = answer["error"].as_str().unwrap();
    assert!(reason.contains("certificate"), "{reason}");
    assert!(
        api.received
            .lock()
            .unwrap()
            .iter()
            .all(|received| !String::from_utf8_lossy(received).contains("correct horse"))
    );
    // No account was created: the name is free.
    let right = json!({"username": "ann", "password": "another horse"});
    let (status, answer) = http(server.api(), "POST", "/api/user/register", None, Some(&right));
    assert_eq!(status, 200, "{answer}");
}

/// An unused discovery port.
fn free_discovery_port() -> String {
    let socket = UdpSocket::bind("127.255.255.255:0").unwrap();
    socket.local_addr().unwrap().port().to_string()
}

#[test]
fn a_server_that_announces_itself_is_found_with_both_its_ports() {
    let place = TestDir::new();
    let discovery = free_discovery_port();
    let server = Server::start_with(
        &place,
        &["--tls", "--bind", "127.0.0.1", "--discovery-port", &discovery],
        &[("P2S2_SERVER_NO_ANNOUNCE", "no")],
    );
    // Without a terminal, only a server that the user has confirmed before is accepted.
    let known = place.path("known/p2s2");
    let mut node = program("share");
    node.args(["--name", "ann", "--server", "auto", "--bind", "127.0.0.1", "--discovery-port", &discovery]);
    node.args(["--api-port", "0", "--port", "0", "--data-dir"]).arg(place.path("state-ann"));
    node.arg("--folder").arg(place.path("shared"));
    node.env("HOME", place.path("")).env("XDG_CONFIG_HOME", place.path("known"));
    let output = node.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let (registry, api) = (server.registry().port(), server.api().port());
    let instead = format!("--server 127.0.0.1 --registry-port {registry} --server-api-port {api} --server-cert HEX");
    assert!(said.contains("never confirmed") && said.contains(&instead), "{said}");

    let (cert_sha256, address) = (Some(fingerprint(&place)), server.registry().to_string());
    let confirmed = KnownServer { cert_sha256, address, serves: Vec::new(), at: Clock::start().now() };
    KnownServers::in_dir(known).confirm(confirmed).unwrap();
    let ready = place.path("auto.ready");
    let mut running = node.arg("--ready-file").arg(&ready).spawn().unwrap();
    let begun = eventually("the node to be ready", || {
        assert!(running.try_wait().unwrap().is_none(), "it ended");
        Some(serde_json::from_str::<Value>(&fs::read_to_string(&ready).ok()?).unwrap())
    });
    let at: SocketAddr = begun["client_api"].as_str().unwrap().parse().unwrap();
    let body = json!({"username": "ann", "password": "correct horse"});
    let registered = http(at, "POST", "/api/client/register", None, Some(&body));
    let token = registered.1["token"].as_str().map(str::to_owned);
    let init = http(at, "POST", "/api/client/init", token.as_deref(), Some(&json!({"username": "ann"})));
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!((registered.0, init.0), (200, 200), "{registered:?} {init:?}");
    assert_eq!(server.ask("DISCOVER", json!({"hostname": "ann"}))["status"], "OK");
}
