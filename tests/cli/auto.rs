//! Server announcements and `--server auto`, all on 127.0.0.1, with a separate discovery port for each test.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use p2s2::internals::lan::node::NodeKind;
use p2s2::internals::lan::peer::{LanPeer, LanPeerConfig};
use p2s2::internals::model::Name;
use serde_json::{Value, json};

use crate::support::{Peer, Server, eventually, program};
use crate::terminal::{CTRL_D, Terminal};

const QUESTION: &str = "Is this your server? (yes/no): ";

/// A user's home folder and a discovery port of its own.
struct TestHome {
    dir: tempfile::TempDir,
    port: String,
}

impl TestHome {
    fn new() -> TestHome {
        static NTH: AtomicU32 = AtomicU32::new(0);
        // Below the ephemeral ports, and different for each process.
        let free = (0..1_000).map(|_| {
            let nth = std::process::id().wrapping_mul(37) + NTH.fetch_add(1, Ordering::Relaxed);
            20_000 + (nth % 10_000) as u16
        });
        let mut free = free.filter(|port| UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 255), *port)).is_ok());
        TestHome { dir: tempfile::tempdir().unwrap(), port: free.next().unwrap().to_string() }
    }

    /// A server with its own folder that is announced on this port.
    fn server(&self, name: &str, args: &[&str]) -> Server {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let always = ["--bind", "127.0.0.1", "--discovery-port", &self.port];
        Server::start_in(&dir, &[&always, args].concat(), &[("P2S2_SERVER_NO_ANNOUNCE", "no")])
    }

    /// A server with trade and shop.
    fn whole_server(&self, name: &str) -> Server {
        let ports = ["--product-port", "0", "--customer-port", "0", "--seller-port", "0", "--buyer-port", "0"];
        self.server(name, &[&["--services", "trade,shop"][..], &ports].concat())
    }

    /// A client with `--server auto`.
    fn client(&self, role: &str) -> Command {
        let mut client = program(role);
        client.args(["--server", "auto", "--bind", "127.0.0.1", "--discovery-port", &self.port]);
        client.env("XDG_CONFIG_HOME", self.dir.path().join("config")).env("HOME", self.dir.path());
        client.env("P2S2_PASSWORD", "cOrrect-hOrse").current_dir(self.dir.path());
        client
    }

    fn peer(&self, name: &str) -> Command {
        let mut peer = self.client("peer");
        peer.args(["--name", name, "--data-dir"]).arg(self.dir.path().join(name));
        peer
    }

    /// The stored list of confirmed servers.
    fn known(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("config/p2s2/known-servers.json")).ok()
    }

    /// All peers that `lan discover` finds.
    fn discovered(&self) -> Vec<Value> {
        let mut discover = program("lan");
        discover.args(["discover", "--json", "--wait", "1s", "--bind", "127.0.0.1", "--discovery-port", &self.port]);
        let output = discover.output().unwrap();
        assert!(output.status.success());
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        found["peers"].as_array().unwrap().clone()
    }

    /// A LAN peer that announces arbitrary services.
    fn announcer(&self, serves: &[(&str, SocketAddr)], cert_sha256: Option<String>) -> LanPeer {
        let serves = serves.iter().map(|(name, addr)| ((*name).to_owned(), addr.port())).collect();
        LanPeer::start(LanPeerConfig {
            name: Name::new("liar").unwrap(),
            kind: NodeKind::Server { serves, cert_sha256 },
            bind: Ipv4Addr::LOCALHOST,
            port: None,
            discovery_port: self.port.parse().unwrap(),
            announce_every: Duration::from_secs(30),
            forget_after: Duration::from_secs(300),
            static_peers: Vec::new(),
            data_dir: None,
        })
        .unwrap()
    }
}

/// The fingerprint that the server tells its peers.
fn fingerprint(server: &Server) -> String {
    let mut visitor = Peer::new(server, "visitor");
    let token = visitor.token.clone();
    assert_eq!(visitor.ask("DE-REGISTER", json!({ "token": token }))["type"], "DE-REGISTERED");
    visitor.cert_sha256.unwrap()
}

fn addr(server: &Server, name: &str) -> SocketAddr {
    let ready: Value = serde_json::from_str(&fs::read_to_string(server.dir.join("ready.json")).unwrap()).unwrap();
    ready[name].as_str().unwrap().parse().unwrap()
}

/// Runs a client with piped input; returns exit code, standard output and standard error.
fn run_piped(client: &mut Command, input: &str) -> (i32, String, String) {
    let client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = client.spawn().unwrap();
    // The client may have failed before reading its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn works(client: &mut Command, input: &str) -> String {
    let (code, said, error) = run_piped(client, input);
    assert_eq!(code, 0, "{said}{error}");
    said
}

/// Expects exit code 1 and a single error line, which is returned.
#[track_caller]
fn fails(client: &mut Command) -> String {
    let (code, said, error) = run_piped(client, "items\n");
    assert!(code == 1 && said.is_empty() && error.lines().count() == 1, "{code}: {said}{error}");
    assert!(error.starts_with("error: --server auto: "), "{error}");
    error
}

/// Confirms the server at a terminal.
fn confirms(client: &mut Command, greeting: &str) {
    let mut terminal = Terminal::start(client);
    terminal.sees(QUESTION);
    terminal.types("yes\r");
    terminal.sees(greeting);
    terminal.sees("> ");
    terminal.types(CTRL_D);
    assert_eq!(terminal.ends().0, 0);
}

#[test]
fn a_server_announces_what_it_serves_until_it_ends() {
    let home = TestHome::new();
    let server = home.whole_server("one");
    let found = home.discovered();
    let [found] = &found[..] else { panic!("{found:?}") };
    assert!(found["user_id"].as_str().unwrap().starts_with("server-"), "{found}");
    assert_eq!(found["cert_sha256"], fingerprint(&server));
    let port = |name: &str| Value::from(addr(&server, name).port());
    let expected = [("trade", "trade_udp"), ("seller", "seller"), ("buyer", "buyer")];
    let expected = expected.map(|(service, listener)| (service.to_owned(), port(listener)));
    assert_eq!(found["serves"], Value::Object(expected.into_iter().collect()));
    // The log tells the operator the fingerprint.
    assert!(server.log().contains(&format!("certificate {}", fingerprint(&server))), "{}", server.log());
    // A server that settles without TLS is announced too; one with `--no-announce` is not.
    let plain = home.server("plain", &["--plaintext"]);
    let quiet = home.server("quiet", &["--no-announce"]);
    let found = home.discovered();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|it| it["serves"]["trade"] == plain.addr.port() && it["cert_sha256"].is_null()));
    assert_eq!([server, plain, quiet].map(Server::stop), [0, 0, 0]);
    assert!(home.discovered().is_empty());
    let output = program("server").args(["--discovery-port", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_frontend_of_its_own_announces_itself() {
    let home = TestHome::new();
    for (command, service) in [("seller-server", "seller"), ("buyer-server", "buyer")] {
        let (dir, ready) = (home.dir.path().join(command), home.dir.path().join(format!("{command}.json")));
        fs::create_dir(&dir).unwrap();
        let mut frontend = program(command);
        frontend.args(["--bind", "127.0.0.1", "--port", "0", "--discovery-port", &home.port, "--ready-file"]);
        frontend.stdout(Stdio::null()).stderr(Stdio::null());
        frontend.arg(&ready).current_dir(&dir).env_remove("P2S2_SELLER_SERVER_NO_ANNOUNCE");
        let mut child = frontend.env_remove("P2S2_BUYER_SERVER_NO_ANNOUNCE").spawn().unwrap();
        let ready: Value =
            eventually("the frontend to be ready", || serde_json::from_str(&fs::read_to_string(&ready).ok()?).ok());
        let port = ready[service].as_str().unwrap().rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let found = home.discovered();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|it| it["serves"][service] == port && it["cert_sha256"].is_null()), "{found:?}");
    }
}

#[test]
fn a_server_that_cannot_announce_itself_serves_all_the_same() {
    let home = TestHome::new();
    let port: u16 = home.port.parse().unwrap();
    let _other = UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 255), port)).unwrap();
    let server = home.server("one", &[]);
    let log = server.log();
    assert_eq!(log.matches("not announced").count(), 1, "{log}");
    assert!(log.contains(&format!("discovery port {port} is in use")), "{log}");
    Peer::new(&server, "alice");
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_server_is_confirmed_once_at_a_terminal_and_then_taken_in_a_pipe() {
    let home = TestHome::new();
    let server = home.whole_server("one");
    let cert = fingerprint(&server);
    let mut carol = Terminal::start(&mut home.peer("carol"));
    let table = carol.sees("shows the certificate");
    assert!(table.contains("NAME") && table.contains("server-") && table.contains("new"), "{table}");
    assert!(table.contains(&format!("{}…", &cert[..16])) && !table.contains(&cert), "{table}");
    assert!(table.contains(&format!("127.0.0.1:{}", server.addr.port())) && table.contains("trade="), "{table}");
    carol.sees(&cert);
    carol.sees(QUESTION);
    carol.types("maybe\r");
    carol.sees("expected yes or no");
    carol.sees(QUESTION);
    carol.types("yes\r");
    carol.sees(&format!("registered as carol at 127.0.0.1:{}", server.addr.port()));
    carol.sees("carol> ");
    carol.types(CTRL_D);
    assert_eq!(carol.ends().0, 0);
    assert!(home.known().unwrap().contains(&cert));
    // From then on there is no prompt, and the server's other services are trusted too.
    assert!(works(&mut home.peer("carol"), "items\n").starts_with("logged in as carol"));
    let mut again = Terminal::start(&mut home.peer("carol"));
    let before = again.sees("logged in as carol");
    assert!(before.contains(&cert) && !before.contains(QUESTION) && !before.contains("NAME"), "{before}");
    again.sees("carol> ");
    again.types(CTRL_D);
    assert_eq!(again.ends().0, 0);
    works(home.client("seller").args(["create-account", "sam"]), "");
    works(home.client("seller").args(["login", "sam"]), "");
    let said = works(home.client("seller").args(["sell", "Brass Lamp", "3", "10.50", "2", "--keywords", "lamp"]), "");
    assert!(said.contains("on sale as 3-1"), "{said}");
    let wallet = concat!(env!("CARGO_MANIFEST_DIR"), "/data/samples/wallet-bob.json");
    let words = "create-account bea\nlogin bea\nadd 3-1 2\npurchase\n";
    let said = works(home.client("buyer").args(["--wallet", wallet]), words);
    assert!(said.contains("bought for 21.00"), "{said}");
}

#[test]
fn without_a_terminal_none_several_and_unknown_ones_are_refused() {
    let home = TestHome::new();
    for role in ["seller", "buyer"] {
        let why = fails(&mut home.client(role));
        assert!(why.contains(&format!("no server with the service {role} answers")), "{why}");
    }
    let one = home.whole_server("one");
    let why = fails(&mut home.peer("carol"));
    assert!(why.contains("never confirmed") && why.contains("--server-cert HEX"), "{why}");
    assert!(why.contains(&format!("--server 127.0.0.1:{}", one.addr.port())), "{why}");
    assert!(fails(home.client("buyer").arg("cart")).contains("never confirmed"));
    assert_eq!(home.known(), None);
    // Giving the fingerprint confirms it.
    let cert = fingerprint(&one);
    let other = "ab".repeat(32);
    assert!(fails(home.peer("carol").args(["--server-cert", &other])).contains(&other));
    let said = works(home.peer("carol").args(["--server-cert", &cert.to_uppercase()]), "");
    assert!(said.starts_with("registered as carol"), "{said}");
    works(&mut home.client("buyer"), "");
    // Also for a server that is given by its address.
    let named = TestHome { dir: tempfile::tempdir().unwrap(), port: home.port.clone() };
    let mut peer = program("peer");
    peer.args(["--name", "dora", "--server", &one.addr.to_string(), "--server-cert", &cert, "--data-dir"]);
    peer.arg(named.dir.path().join("dora")).env("XDG_CONFIG_HOME", named.dir.path().join("config"));
    works(&mut peer, "");
    assert!(works(&mut named.peer("dora"), "").starts_with("logged in as dora"));
    // With two servers the choice is unclear, even if one of them is known.
    let two = home.server("two", &[]);
    let why = fails(&mut home.peer("carol"));
    assert!(why.contains("2 servers answer") && why.contains(&format!("127.0.0.1:{}", two.addr.port())), "{why}");
    // The other server has no shop.
    works(&mut home.client("buyer"), "");
}

#[test]
fn what_is_not_confirmed_at_the_terminal_is_not_used() {
    let home = TestHome::new();
    let server = home.server("one", &[]);
    for (answer, why) in [("no\r", "was not confirmed"), ("\r", "was not confirmed"), (CTRL_D, "nothing was entered")] {
        let mut carol = Terminal::start(&mut home.peer("carol"));
        carol.sees(QUESTION);
        carol.types(answer);
        carol.sees(why);
        assert_eq!(carol.ends().0, 1);
    }
    assert_eq!(home.known(), None);
    assert!(server.admin_json(&["peers"]).is_empty(), "it has heard of nobody");
    let why = fails(&mut home.peer("carol"));
    assert!(why.contains("never confirmed"), "{why}");
}

#[test]
fn one_of_several_is_chosen_at_a_terminal() {
    let home = TestHome::new();
    let servers = [home.server("one", &[]), home.server("two", &[])];
    let mut carol = Terminal::start(&mut home.peer("carol"));
    let list = carol.sees("Which one (1 to 2): ");
    carol.types("3\r");
    carol.sees("expected a number from 1 to 2");
    carol.types("2\r");
    let chosen = servers.iter().find(|server| {
        let row = list.lines().find(|line| line.contains(&format!("127.0.0.1:{}", server.addr.port())));
        row.unwrap_or_else(|| panic!("{list}")).trim_start().starts_with('2')
    });
    let chosen = chosen.unwrap();
    let cert = fingerprint(chosen);
    carol.sees(&cert);
    carol.sees(QUESTION);
    carol.types("y\r");
    carol.sees(&format!("registered as carol at 127.0.0.1:{}", chosen.addr.port()));
    carol.sees("carol> ");
    carol.types(CTRL_D);
    assert_eq!(carol.ends().0, 0);
    // The user must choose again, but not confirm again.
    let mut again = Terminal::start(&mut home.peer("carol"));
    let list = again.sees("Which one (1 to 2): ");
    let row = list.lines().find(|line| line.contains("  confirmed")).unwrap_or_else(|| panic!("{list}"));
    let number = row.split_whitespace().next().unwrap();
    again.types(&format!("{number}\r"));
    let before = again.sees("logged in as carol");
    assert!(!before.contains(QUESTION), "{before}");
    again.sees("carol> ");
    again.types(CTRL_D);
    assert_eq!(again.ends().0, 0);
}

#[test]
fn another_certificate_at_the_same_address_is_not_taken_silently() {
    let home = TestHome::new();
    let server = home.server("one", &[]);
    let (port, first) = (server.addr.port().to_string(), fingerprint(&server));
    confirms(&mut home.peer("carol"), "registered as carol");
    assert_eq!(server.stop(), 0);
    let other = home.server("two", &["--trade-port", &port]);
    let second = fingerprint(&other);
    assert_ne!(first, second);
    let why = fails(&mut home.peer("carol"));
    assert!(why.contains(&first) && why.contains(&second) && why.contains("pretends to be it"), "{why}");
    let mut carol = Terminal::start(&mut home.peer("carol"));
    let list = carol.sees("warning: for this address you have confirmed another certificate");
    assert!(list.contains("another certificate than before"), "{list}");
    carol.sees(&first);
    carol.sees(&second);
    carol.sees(QUESTION);
    carol.types("no\r");
    carol.sees("was not confirmed");
    assert_eq!(carol.ends().0, 1);
    assert!(!home.known().unwrap().contains(&second));
}

#[test]
fn a_server_without_a_certificate_is_known_by_its_address() {
    let home = TestHome::new();
    let server = home.server("one", &["--plaintext"]);
    let why = fails(home.peer("carol").arg("--plaintext"));
    assert!(why.contains("never confirmed") && why.contains("--plaintext"), "{why}");
    let mut carol = Terminal::start(home.peer("carol").arg("--plaintext"));
    carol.sees("has no certificate: it is known by this address alone");
    carol.sees(QUESTION);
    carol.types("yes\r");
    carol.sees("registered as carol");
    carol.sees("carol> ");
    carol.types(CTRL_D);
    assert_eq!(carol.ends().0, 0);
    let said = works(home.peer("carol").arg("--plaintext"), "");
    assert!(said.starts_with("logged in as carol"), "{said}");
    // At another address it is a different server.
    assert_eq!(server.stop(), 0);
    let _elsewhere = home.server("two", &["--plaintext"]);
    assert!(fails(home.peer("carol").arg("--plaintext")).contains("never confirmed"));
}

/// Expects the client to reject the chosen server; returns the error.
#[track_caller]
fn distrusts(client: &mut Command, input: &str) -> String {
    let (code, said, error) = run_piped(client, input);
    assert!(code == 1 && !said.contains("registered"), "{code}: {said}{error}");
    error.lines().last().unwrap().to_owned()
}

#[test]
fn an_announcement_that_lies_leads_nowhere() {
    let home = TestHome::new();
    let honest = home.whole_server("one");
    let cert = fingerprint(&honest);
    confirms(&mut home.peer("carol"), "registered as carol");
    assert_eq!(honest.stop(), 0);
    // A different server announced with the known certificate.
    let ports = ["--product-port", "0", "--customer-port", "0", "--seller-port", "0", "--buyer-port", "0"];
    let quiet = [&["--no-announce", "--services", "trade,shop"][..], &ports].concat();
    let other = home.server("two", &quiet);
    let serves = [("trade", other.addr), ("seller", addr(&other, "seller")), ("buyer", addr(&other, "buyer"))];
    let liar = home.announcer(&serves, Some(cert.clone()));
    let why = distrusts(&mut home.peer("dave"), "items\n");
    assert!(why.contains(&format!("{cert} is expected")), "{why}");
    let why = distrusts(home.client("buyer").args(["create-account", "bea"]), "");
    assert!(why.contains("cannot reach"), "{why}");
    assert!(other.admin_json(&["users"]).is_empty());
    liar.stop();
    // A server with a certificate announced as one without.
    let _liar = home.announcer(&serves[..1], None);
    let mut dave = Terminal::start(home.peer("erin").arg("--plaintext"));
    dave.sees(QUESTION);
    dave.types("yes\r");
    dave.sees("was confirmed as one that has none");
    assert_eq!(dave.ends().0, 1);
}

#[test]
fn a_damaged_list_of_servers_is_told_and_left_as_it_is() {
    let home = TestHome::new();
    let file = home.dir.path().join("config/p2s2/known-servers.json");
    fs::create_dir_all(Path::new(&file).parent().unwrap()).unwrap();
    fs::write(&file, "{\"form").unwrap();
    let _server = home.server("one", &[]);
    let (code, _, error) = run_piped(&mut home.peer("carol"), "items\n");
    assert!(code == 1 && error.contains("known-servers.json is damaged"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"form");
}
