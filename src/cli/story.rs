//! `p2s2 story`, what `make run-clients` runs: one whole story, told by real processes on loopback.
//!
//! Every line that a process prints is shown with who printed it; each step waits for what it needs to
//! see. It ends well only if all of it worked.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::{Value, json};

use super::output;
use super::shop::Ports;
use super::shopper::ask::PASSWORD_VARIABLE;
use crate::model::Token;
use crate::net::threads;
use crate::share::api_client::ApiClient;
use crate::shop::client::{Client, Config};
use crate::shop::ops::Code;
use crate::trade::wire::DATAGRAM_MAX;

/// Prints a line of the story.
macro_rules! say {
    ($($text:tt)*) => {
        say(&format!($($text)*))
    };
}

/// The story goes on where it cannot be told: how it ends counts, and then the failure is told.
fn say(text: &str) {
    drop(output::print(text));
}

/// Longer than any step takes that works.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the server is when nobody says otherwise.
const TRADE_PORT: u16 = 7001;
const SELLER_PORT: u16 = 8001;
const BUYER_PORT: u16 = 8002;
const REGISTRY_PORT: u16 = 9000;
const API_PORT: u16 = 5500;
/// How long a running server has to answer.
const ANSWER: Duration = Duration::from_millis(300);

/// Play one whole story against the running server, or against one of its own
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  p2s2 story                      against 127.0.0.1; starts (and stops) a server if none answers

Two peers of the LAN meet as well, on this machine alone and at a discovery port of their own.

Where P2S2_SERVER_TRADE_PORT, P2S2_SERVER_SELLER_PORT, P2S2_SERVER_BUYER_PORT, P2S2_SERVER_REGISTRY_PORT and
P2S2_SERVER_API_PORT say which ports the server has, it is looked for there.")]
pub struct StoryArgs {
    /// The server's trade port, on this machine; 127.0.0.1:7001 without it
    #[arg(long, value_name = "HOST:PORT", env = "P2S2_STORY_SERVER")]
    server: Option<SocketAddr>,
    /// The port that the server is told by the same variable
    #[arg(long, hide = true, env = "P2S2_SERVER_TRADE_PORT", default_value_t = TRADE_PORT)]
    trade_port: u16,
    /// The shop's sellers' port, on this machine; 127.0.0.1:8001 without it
    #[arg(long, value_name = "HOST:PORT", env = "P2S2_STORY_SELLER")]
    seller: Option<SocketAddr>,
    /// The shop's buyers' port, on this machine; 127.0.0.1:8002 without it
    #[arg(long, value_name = "HOST:PORT", env = "P2S2_STORY_BUYER")]
    buyer: Option<SocketAddr>,
    /// The registry of files, on this machine; 127.0.0.1:9000 without it
    #[arg(long, value_name = "HOST:PORT", env = "P2S2_STORY_REGISTRY")]
    registry: Option<SocketAddr>,
    /// The server API, on this machine; 127.0.0.1:5500 without it
    #[arg(long, value_name = "HOST:PORT", env = "P2S2_STORY_API")]
    api: Option<SocketAddr>,
    #[arg(long, hide = true, env = "P2S2_SERVER_REGISTRY_PORT", default_value_t = REGISTRY_PORT)]
    registry_port: u16,
    #[arg(long, hide = true, env = "P2S2_SERVER_API_PORT", default_value_t = API_PORT)]
    api_port: u16,
    #[arg(long, hide = true, env = "P2S2_SERVER_SELLER_PORT", default_value = "8001")]
    seller_port: Ports,
    #[arg(long, hide = true, env = "P2S2_SERVER_BUYER_PORT", default_value = "8002")]
    buyer_port: Ports,
}

/// Where the parts of a server are.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    trade: SocketAddr,
    seller: SocketAddr,
    buyer: SocketAddr,
    registry: SocketAddr,
    api: SocketAddr,
}

/// The first of the ports; any free one, as 0 means, is none to be found at.
fn first_port(ports: &Ports, otherwise: u16) -> u16 {
    ports.0.first().copied().filter(|port| *port != 0).unwrap_or(otherwise)
}

/// Plays the story.
///
/// # Errors
/// The step that did not work.
pub fn run(args: StoryArgs) -> anyhow::Result<ExitCode> {
    super::settings::init_log("warn");
    let at = |given: Option<SocketAddr>, port| given.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
    let looked_at = Addresses {
        trade: at(args.server, first_port(&Ports(vec![args.trade_port]), TRADE_PORT)),
        seller: at(args.seller, first_port(&args.seller_port, SELLER_PORT)),
        buyer: at(args.buyer, first_port(&args.buyer_port, BUYER_PORT)),
        registry: at(args.registry, first_port(&Ports(vec![args.registry_port]), REGISTRY_PORT)),
        api: at(args.api, first_port(&Ports(vec![args.api_port]), API_PORT)),
    };
    for (flag, addr) in [
        ("server", looked_at.trade),
        ("seller", looked_at.seller),
        ("buyer", looked_at.buyer),
        ("registry", looked_at.registry),
        ("api", looked_at.api),
    ] {
        ensure!(addr.ip().is_loopback(), "--{flag} {addr}: the story is played on loopback alone");
    }
    let mark = &Token::random().reveal()[..4].to_owned();
    let stage = Stage::set(mark)?;
    let (mut servers, mut addresses) = (Vec::new(), looked_at);
    if answers(looked_at.trade)? {
        say!("A server answers at {}.\n", looked_at.trade);
    } else {
        say!("No server answers at {}: here is one for this story.\n", looked_at.trade);
        let server;
        (server, addresses) = stage.start_server("server")?;
        servers.push(server);
    }
    let plaintext = settles_in_plaintext(addresses.trade, mark)?;
    trade(&stage, addresses.trade, plaintext, mark)?;
    say("");
    if servers.is_empty() && !(sells(looked_at.seller) && sells(looked_at.buyer)) {
        say!("No shop answers at {} and {}: here is one.\n", looked_at.seller, looked_at.buyer);
        let server;
        (server, addresses) = stage.start_server("shop-server")?;
        servers.push(server);
    }
    shop(&stage, addresses, mark)?;
    say("");
    lan(&stage, mark)?;
    say("");
    if servers.is_empty() && !keeps_accounts(looked_at.api) {
        say!("No registry with accounts answers at {}: here is one.\n", looked_at.api);
        let server;
        (server, addresses) = stage.start_server("share-server")?;
        servers.push(server);
    }
    share(&stage, addresses, mark)?;
    for server in &mut servers {
        server.end()?;
    }
    say!("\nAll of it worked.");
    Ok(ExitCode::SUCCESS)
}

/// A seller's and a buyer's peer: a negotiation, a reservation, a settlement.
fn trade(stage: &Stage, server: SocketAddr, plaintext: bool, mark: &str) -> anyhow::Result<()> {
    let (alice, bob) = (format!("alice-{mark}"), format!("bob-{mark}"));
    say!("TRADE: {alice} sells a lamp for 120.00, or 90.00 at least; {bob} pays 100.00 at most.");
    let server = (server, plaintext);
    let mut alice = stage.start_peer(&alice, server, "4242424242424242", "2 Harbour Lane, Port Elm")?;
    let mut bob = stage.start_peer(&bob, server, "4111111111111111", "7 Mill Road, Oakfield")?;
    let lamp = format!("\"brass lamp {mark}\"");

    alice.tell(&format!("sell {lamp} 120 90 1 a desk lamp with a green shade"))?;
    alice.await_line("on sale for 120.00")?;
    bob.tell(&format!("find {lamp} 100"))?;
    bob.await_line("searching [")?;
    say!("   (the only offer is above the maximum: the server negotiates)");
    alice.await_line("accepted [")?;
    alice.await_line("reserved [")?;
    bob.await_line("found [")?;
    bob.tell("buy last")?;
    bob.await_line("buying [")?;
    let how = if plaintext { "without TLS, as it was started" } else { "over TLS with the certificate they know" };
    say!("   (the server connects to both, {how})");
    bob.await_line("bought [")?;
    alice.await_line("sold [")?;
    for peer in [&mut bob, &mut alice] {
        peer.tell("deals")?;
        peer.await_line("completed")?;
        peer.tell("leave")?;
        peer.await_line("let us go")?;
        peer.tell("quit")?;
        peer.end()?;
    }
    Ok(())
}

/// A seller lists, a buyer searches, fills a cart and purchases; the seller ships.
fn shop(stage: &Stage, server: Addresses, mark: &str) -> anyhow::Result<()> {
    say!("SHOP: sam-{mark} sells lamps; bea-{mark} buys two of them.");
    let mut sam = stage.start_client("seller", "sam", server.seller, mark)?;
    sam.tell(&format!("sell \"Brass Lamp\" 3 10.50 2 --keywords lamp,k{mark} --used"))?;
    let listed = sam.await_line("on sale as ")?;
    let item = listed.split(' ').find_map(|word| word.strip_suffix(':')).context("no item id is named")?;

    let mut bea = stage.start_client("buyer", "bea", server.buyer, mark)?;
    bea.tell(&format!("search --category 3 lamp k{mark}"))?;
    bea.await_line("Brass Lamp")?;
    bea.tell(&format!("add {item} 2"))?;
    bea.await_line("in the cart")?;
    bea.tell("purchase")?;
    bea.await_line("bought for 21.00")?;
    say!("   (stock, charge and history agree now, whichever component dies)");
    sam.tell("orders")?;
    let order = sam.await_line(item)?;
    let purchase = order.split_whitespace().next().context("the order names no purchase")?;
    sam.tell(&format!("ship {purchase} {item}"))?;
    sam.await_line("shipped ")?;
    bea.tell(&format!("vote {item} up"))?;
    bea.await_line("voted on")?;
    bea.tell("purchases")?;
    // With two dates: bought and shipped.
    let line = bea.await_line(item)?;
    ensure!(line.matches('Z').count() == 2, "the buyer does not see that it was shipped: {line}");
    sam.tell("rating")?;
    sam.await_line("2 units sold")?;
    for client in [&mut bea, &mut sam] {
        client.tell("logout")?;
        client.await_line("logged out")?;
        client.tell("quit")?;
        client.end()?;
    }
    Ok(())
}

/// Two peers of the LAN, with no server: they meet, and talk.
fn lan(stage: &Stage, mark: &str) -> anyhow::Result<()> {
    let (ann, ben) = (format!("ann-{mark}"), format!("ben-{mark}"));
    say!("LAN: {ann} and {ben} meet on this machine and talk, with no server.");
    let port = free_port()?;
    let (mut ann_at, addr) = stage.start_lan_peer(&ann, port, None)?;
    // Elsewhere than on Linux nothing can be broadcast on one machine.
    let known = if cfg!(target_os = "linux") { None } else { Some(addr) };
    let (mut ben_at, _) = stage.start_lan_peer(&ben, port, known)?;
    ann_at.await_line(&format!("{ben} is here"))?;
    ben_at.await_line(&format!("{ann} is here"))?;
    say!("   (each has heard the other's announcement)");
    ann_at.tell("post the harbour market opens at eight")?;
    ben_at.await_line(&format!("{ann}: the harbour market opens at eight"))?;
    ben_at.tell(&format!("dm {ann} keep me a lamp"))?;
    ann_at.await_line(&format!("{ben} (to you): keep me a lamp"))?;
    ben_at.await_line(&format!("{ann} has your message"))?;
    say!("   (it is on her disk: only then she confirmed it)");
    ann_at.tell("profile Ann of the harbour | lamps since 1974")?;
    ben_at.await_line(&format!("{ann} is Ann of the harbour | lamps since 1974"))?;
    for peer in [&mut ben_at, &mut ann_at] {
        peer.tell("quit")?;
        peer.end()?;
    }
    Ok(())
}

/// One node publishes a file where it lies, another fetches it straight from there.
fn share(stage: &Stage, server: Addresses, mark: &str) -> anyhow::Result<()> {
    let (cleo, dan) = (format!("cleo-{mark}"), format!("dan-{mark}"));
    say!("SHARE: {cleo} has a chart of the harbour; {dan} fetches it from her machine, not from the server.");
    let chart: String = (0..20_000).map(|sounding| format!("sounding {sounding}: {} m\n", sounding % 37)).collect();
    let (published, fetched) =
        (stage.dir.join(format!("chart-{mark}.txt")), stage.dir.join(format!("fetched-{mark}.txt")));
    std::fs::write(&published, &chart).context("the chart cannot be written")?;
    let (mut cleo_at, cleo_api) = stage.start_node(&cleo, server)?;
    let (mut dan_at, dan_api) = stage.start_node(&dan, server)?;
    stage.tell_node(&cleo, cleo_api, &["register", &cleo])?;
    stage.tell_node(&cleo, cleo_api, &["publish", &published.display().to_string()])?;
    say!("   (it stays where it lies: the registry knows its name, its size and who has it)");
    stage.tell_node(&dan, dan_api, &["register", &dan])?;
    stage.tell_node(&dan, dan_api, &["search", &format!("chart-{mark}")])?;
    stage.tell_node(&dan, dan_api, &["fetch", &format!("chart-{mark}.txt"), "--to", &fetched.display().to_string()])?;
    let come = std::fs::read_to_string(&fetched).context("what was fetched is not there")?;
    ensure!(come == chart, "what was fetched is not what was published");
    say!("   (every byte is the same)");
    for (name, api) in [(&dan, dan_api), (&cleo, cleo_api)] {
        stage.tell_node(name, api, &["logout"])?;
    }
    for node in [&mut dan_at, &mut cleo_at] {
        node.end()?;
    }
    Ok(())
}

/// A port that nobody has just now: for announcements that nobody else is to hear.
fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(socket.local_addr()?.port())
}

/// Where the story's processes keep what is theirs; gone afterwards.
struct Stage {
    dir: PathBuf,
    password: String,
}

impl Stage {
    fn set(mark: &str) -> anyhow::Result<Stage> {
        // The processes run in there: a relative path would mean another place to them.
        let temporary =
            std::path::absolute(std::env::temp_dir()).context("where is the folder for temporary files?")?;
        let dir = temporary.join(format!("p2s2-story-{}-{mark}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Stage { dir, password: Token::random().reveal().to_owned() })
    }

    /// A server of every service that the story needs.
    fn start_server(&self, name: &str) -> anyhow::Result<(Actor, Addresses)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("server")?;
        command.args(["--bind", "127.0.0.1", "--services", "trade,shop,share"]);
        command.args(["--trade-port", "0", "--product-port", "0"]);
        // Nobody else is to find it.
        command.arg("--no-announce");
        command.args(["--registry-port", "0", "--api-port", "0"]);
        command.args(["--customer-port", "0", "--seller-port", "0", "--buyer-port", "0", "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut server = Actor::start(name, command)?;
        server.is_server = true;
        server.await_line("ready")?;
        let ready = wait_for_file(&ready)?;
        let addr = |field: &str| -> anyhow::Result<SocketAddr> {
            let addr = ready[field].as_str().with_context(|| format!("the server's ready file names no {field}"))?;
            Ok(addr.parse()?)
        };
        let addresses = Addresses {
            trade: addr("trade_udp")?,
            seller: addr("seller")?,
            buyer: addr("buyer")?,
            registry: addr("registry")?,
            api: addr("server_api")?,
        };
        Ok((server, addresses))
    }

    /// A client of the shop, with an account and a session.
    fn start_client(&self, role: &str, name: &str, server: SocketAddr, mark: &str) -> anyhow::Result<Actor> {
        let name = format!("{name}-{mark}");
        let mut command = self.program(role)?;
        command.args(["--server", &server.to_string()]).env(PASSWORD_VARIABLE, Token::random().reveal());
        if role == "buyer" {
            let wallet = self.write_wallet(&name, "4111111111111111", "7 Mill Road, Oakfield")?;
            command.arg("--wallet").arg(wallet);
        }
        let mut client = Actor::start(&name, command)?;
        client.tell(&format!("create-account {name}"))?;
        client.await_line("has an account")?;
        client.tell(&format!("login {name}"))?;
        client.await_line("logged in as")?;
        Ok(client)
    }

    fn write_wallet(&self, name: &str, card: &str, address: &str) -> anyhow::Result<PathBuf> {
        let wallet = self.dir.join(format!("{name}.wallet.json"));
        write_private(&wallet, &json!({"cc_number": card, "cc_exp": "12/39", "address": address}))?;
        Ok(wallet)
    }

    /// A peer of a server on this machine, which may settle without TLS.
    fn start_peer(&self, name: &str, server: (SocketAddr, bool), card: &str, address: &str) -> anyhow::Result<Actor> {
        let (server, plaintext) = server;
        let wallet = self.write_wallet(name, card, address)?;
        let mut command = self.program("peer")?;
        command.args(if plaintext { &["--plaintext"][..] } else { &[] });
        command.args(["--name", name, "--bind", "127.0.0.1", "--server", &server.to_string(), "--wallet"]).arg(&wallet);
        command.arg("--data-dir").arg(self.dir.join(name));
        let mut peer = Actor::start(name, command)?;
        peer.await_line("registered as")?;
        Ok(peer)
    }

    /// A peer of the LAN that nothing leaves this machine from, and where it is; with one that it is told of.
    fn start_lan_peer(&self, name: &str, port: u16, known: Option<SocketAddr>) -> anyhow::Result<(Actor, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("lan")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--discovery-port", &port.to_string(), "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        if let Some(known) = known {
            command.args(["--peer", &known.to_string()]);
        }
        let mut peer = Actor::start(name, command)?;
        peer.await_line("HELP lists the commands")?;
        let addr = wait_for_file(&ready)?["lan"].as_str().context("the ready file names no lan")?.parse()?;
        Ok((peer, addr))
    }

    /// A node that shares files of the stage, and where its client API is.
    fn start_node(&self, name: &str, server: Addresses) -> anyhow::Result<(Actor, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("share")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--port", "0", "--api-port", "0"]);
        command.args(["--server", &server.registry.ip().to_string()]);
        command.args(["--registry-port", &server.registry.port().to_string()]);
        command.args(["--server-api-port", &server.api.port().to_string(), "--folder"]).arg(&self.dir);
        command.arg("--data-dir").arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut node = Actor::start(name, command)?;
        node.is_server = true;
        node.await_line("ready")?;
        let addr =
            wait_for_file(&ready)?["client_api"].as_str().context("the ready file names no client_api")?.parse()?;
        Ok((node, addr))
    }

    /// One command to a node; it must end well.
    fn tell_node(&self, name: &str, api: SocketAddr, words: &[&str]) -> anyhow::Result<()> {
        say!("{name:>12} > p2s2 share {}", words.join(" "));
        let mut command = self.program("share")?;
        command.args(words).args(["--api-port", &api.port().to_string()]);
        // Whoever plays the story keeps no token of it; of all its passwords this is the only one.
        command.env("XDG_CONFIG_HOME", self.dir.join(format!("{name}-config"))).env(PASSWORD_VARIABLE, &self.password);
        Actor::start(name, command)?.end()
    }

    /// This very program, with nothing of our settings but what the story says: also not of a `.env`.
    fn program(&self, command: &str) -> anyhow::Result<Command> {
        let mut program = Command::new(std::env::current_exe().context("where is this program?")?);
        program.arg(command).current_dir(&self.dir);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("P2S2_") {
                program.env_remove(name);
            }
        }
        Ok(program)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// One of the story's processes. Ended when it goes out of sight.
struct Actor {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// It wants a signal to end; the end of its input ends any other.
    is_server: bool,
}

impl Actor {
    fn start(name: &str, mut command: Command) -> anyhow::Result<Actor> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // A few lines a step: this many are never waiting.
        let (sender, lines) = crossbeam_channel::bounded(1024);
        let shown_as = name.to_owned();
        let stdout = stdout.context("the process has no output")?;
        threads::spawn("story-reader", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                say!("{shown_as:>12} | {line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(Actor { name: name.to_owned(), child, stdin, lines, is_server: false })
    }

    fn tell(&mut self, words: &str) -> anyhow::Result<()> {
        say!("{:>12} > {words}", self.name);
        let stdin = self.stdin.as_mut().with_context(|| format!("{} listens no more", self.name))?;
        writeln!(stdin, "{words}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Waits for a line with these words, which it returns; a line that says that something went wrong ends the story.
    fn await_line(&mut self, words: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_deadline(deadline) {
                Ok(line) if line.contains(words) => return Ok(line),
                Ok(line) if line.starts_with("error:") || line.starts_with("cancelled [") => {
                    bail!("{}: {line}", self.name)
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{}: waited {} s for {words:?}", self.name, PATIENCE.as_secs()),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended before it said {words:?}", self.name),
            }
        }
    }

    /// Ends the process in good order.
    fn end(&mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        #[cfg(unix)]
        if self.is_server {
            let pid = i32::try_from(self.child.id()).context("a process id that is none")?;
            // SAFETY: kill(2) takes plain numbers; the child was not waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + PATIENCE;
        while self.lines.recv_deadline(deadline).is_ok() {}
        if cfg!(not(unix)) && self.is_server {
            self.child.kill()?;
            self.child.wait()?;
            return Ok(());
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a trade server answers there.
fn answers(server: SocketAddr) -> anyhow::Result<bool> {
    let question = json!({"type": "STATUS", "rq": 1, "name": "story"});
    let answer = ask(&loopback_socket(server)?, server, question, 3);
    ensure!(answer.as_ref().is_none_or(|answer| answer["rq"] == 1), "what answers at {server} is no trade server");
    Ok(answer.is_some())
}

/// Whether a frontend of the shop answers there: it tells whoever has no session so.
fn sells(server: SocketAddr) -> bool {
    let mut client = Client::new(Config::plain(server.to_string()));
    let answer = client.call("GetSellerRating", json!({}));
    answer.is_err_and(|error| error.code() == Some(Code::NotLoggedIn))
}

/// Whether the server API answers there.
fn keeps_accounts(api: SocketAddr) -> bool {
    let api = ApiClient::new(&api.ip().to_string(), api.port(), None, PATIENCE);
    api.get("/api/health", None).is_ok_and(|answer| answer.is_ok() && answer.body["status"] == "healthy")
}

/// Whether the server settles without TLS: it says so to whoever registers. Someone does, and leaves.
fn settles_in_plaintext(server: SocketAddr, mark: &str) -> anyhow::Result<bool> {
    let socket = loopback_socket(server)?;
    let (here, name) = (socket.local_addr()?, format!("visitor-{mark}"));
    // Nobody connects to a visitor.
    let (ip, port) = (here.ip(), here.port());
    let register = json!({"type": "REGISTER", "rq": 1, "name": name, "ip": ip, "udp_port": port, "tcp_port": port});
    let tries = (PATIENCE.as_millis() / ANSWER.as_millis()) as usize;
    let answer = ask(&socket, server, register, tries).context("the server does not answer a REGISTER")?;
    ensure!(answer["type"] == "REGISTERED", "the server at {server} takes nobody: {}", answer["reason"]);
    let leave = json!({"type": "DE-REGISTER", "rq": 2, "name": name, "token": answer["token"]});
    ask(&socket, server, leave, tries).context("the server does not answer a DE-REGISTER")?;
    Ok(answer["cert_sha256"].is_null())
}

fn loopback_socket(server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let here: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((here, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Asks until the answer is there; none after so many tries.
fn ask(socket: &UdpSocket, server: SocketAddr, mut question: Value, tries: usize) -> Option<Value> {
    // Long enough for an answer to a stranger, which is at most three times as long.
    question["padding"] = " ".repeat(64).into();
    let question_text = question.to_string();
    let mut bytes = [0; DATAGRAM_MAX];
    for _ in 0..tries {
        // Nobody there: the system may say so on either call.
        let mut received = socket.send_to(question_text.as_bytes(), server).and_then(|_| socket.recv_from(&mut bytes));
        while let Ok((length, _)) = received {
            let answer: Value = serde_json::from_slice(&bytes[..length]).unwrap_or_default();
            // A search may be going on, and its SEARCH may come in between; so may a late copy of an answer.
            if answer["mid"].is_null() && (answer["rq"] == question["rq"] || answer["rq"].is_null()) {
                return Some(answer);
            }
            received = socket.recv_from(&mut bytes);
        }
    }
    None
}

fn wait_for_file(path: &Path) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return Ok(serde_json::from_str(&text)?);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn write_private(path: &Path, value: &Value) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(writeln!(file, "{value}")?)
}
