//! `p2s2 story` (`make run-clients`): a demonstration played by real processes on loopback.
//!
//! Every line that a process prints is shown with its name, and each step waits for the output that it needs. The exit
//! code is 0 only if everything worked.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde_json::{Value, json};

use super::listen_args::Ports;
use super::output;
use super::prompt::PASSWORD_VARIABLE;
use crate::model::Token;
use crate::net::threads;
use crate::share::api_client::ApiClient;
use crate::shop::client::{Client, ClientConfig};
use crate::shop::ops::ErrorCode;
use crate::storage::files;
use crate::trade::wire::DATAGRAM_MAX;

/// Prints a formatted line of the story.
macro_rules! say {
    ($($text:tt)*) => {
        say(&format!($($text)*))
    };
}

/// Write errors are ignored here: the story continues, and `main` reports the failure at the end.
fn say(text: &str) {
    drop(output::print(text));
}

/// Longer than any successful step takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Default ports of the server.
const TRADE_PORT: u16 = 7001;
const SELLER_PORT: u16 = 8001;
const BUYER_PORT: u16 = 8002;
const REGISTRY_PORT: u16 = 9000;
const API_PORT: u16 = 5500;
/// How long a running server has to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(300);

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

/// The addresses of a server's services.
#[derive(Debug, Clone, Copy)]
struct ServerAddresses {
    trade: SocketAddr,
    seller: SocketAddr,
    buyer: SocketAddr,
    registry: SocketAddr,
    api: SocketAddr,
}

/// The first port of the list; 0 (any free port) cannot be looked up, so the default is used.
fn first_port(ports: &Ports, otherwise: u16) -> u16 {
    ports.0.first().copied().filter(|port| *port != 0).unwrap_or(otherwise)
}

/// Plays the story.
///
/// # Errors
/// The step that failed.
pub fn run(args: StoryArgs) -> anyhow::Result<ExitCode> {
    super::settings::init_log("warn");
    let at = |given: Option<SocketAddr>, port| given.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
    let expected = ServerAddresses {
        trade: at(args.server, first_port(&Ports(vec![args.trade_port]), TRADE_PORT)),
        seller: at(args.seller, first_port(&args.seller_port, SELLER_PORT)),
        buyer: at(args.buyer, first_port(&args.buyer_port, BUYER_PORT)),
        registry: at(args.registry, first_port(&Ports(vec![args.registry_port]), REGISTRY_PORT)),
        api: at(args.api, first_port(&Ports(vec![args.api_port]), API_PORT)),
    };
    for (flag, addr) in [
        ("server", expected.trade),
        ("seller", expected.seller),
        ("buyer", expected.buyer),
        ("registry", expected.registry),
        ("api", expected.api),
    ] {
        ensure!(addr.ip().is_loopback(), "--{flag} {addr}: the story is played on loopback alone");
    }
    let suffix = &Token::random().reveal()[..4].to_owned();
    let environment = StoryEnvironment::create(suffix)?;
    let (mut servers, mut addresses) = (Vec::new(), expected);
    if is_trade_server(expected.trade)? {
        say!("A server answers at {}.\n", expected.trade);
    } else {
        say!("No server answers at {}: here is one for this story.\n", expected.trade);
        let server;
        (server, addresses) = environment.start_server("server")?;
        servers.push(server);
    }
    let plaintext = settles_in_plaintext(addresses.trade, suffix)?;
    trade(&environment, addresses.trade, plaintext, suffix)?;
    say("");
    if servers.is_empty() && !(is_shop_frontend(expected.seller) && is_shop_frontend(expected.buyer)) {
        say!("No shop answers at {} and {}: here is one.\n", expected.seller, expected.buyer);
        let server;
        (server, addresses) = environment.start_server("shop-server")?;
        servers.push(server);
    }
    shop(&environment, addresses, suffix)?;
    say("");
    lan(&environment, suffix)?;
    say("");
    if servers.is_empty() && !is_healthy_server_api(expected.api) {
        say!("No registry with accounts answers at {}: here is one.\n", expected.api);
        let server;
        (server, addresses) = environment.start_server("share-server")?;
        servers.push(server);
    }
    share(&environment, addresses, suffix)?;
    for server in &mut servers {
        server.finish()?;
    }
    say!("\nAll of it worked.");
    Ok(ExitCode::SUCCESS)
}

/// Two trading peers: negotiation, reservation, settlement.
fn trade(environment: &StoryEnvironment, server: SocketAddr, plaintext: bool, suffix: &str) -> anyhow::Result<()> {
    let (alice, bob) = (format!("alice-{suffix}"), format!("bob-{suffix}"));
    say!("TRADE: {alice} sells a lamp for 120.00, or 90.00 at least; {bob} pays 100.00 at most.");
    let server = (server, plaintext);
    let mut alice = environment.start_peer(&alice, server, "4242424242424242", "2 Harbour Lane, Port Elm")?;
    let mut bob = environment.start_peer(&bob, server, "4111111111111111", "7 Mill Road, Oakfield")?;
    let lamp = format!("\"brass lamp {suffix}\"");

    alice.send_line(&format!("sell {lamp} 120 90 1 a desk lamp with a green shade"))?;
    alice.await_line("on sale for 120.00")?;
    bob.send_line(&format!("find {lamp} 100"))?;
    bob.await_line("searching [")?;
    say!("   (the only offer is above the maximum: the server negotiates)");
    alice.await_line("accepted [")?;
    alice.await_line("reserved [")?;
    bob.await_line("found [")?;
    bob.send_line("buy last")?;
    bob.await_line("buying [")?;
    let how = if plaintext { "without TLS, as it was started" } else { "over TLS with the certificate they know" };
    say!("   (the server connects to both, {how})");
    bob.await_line("bought [")?;
    alice.await_line("sold [")?;
    for peer in [&mut bob, &mut alice] {
        peer.send_line("deals")?;
        peer.await_line("completed")?;
        peer.send_line("leave")?;
        peer.await_line("let us go")?;
        peer.send_line("quit")?;
        peer.finish()?;
    }
    Ok(())
}

/// A seller lists an item; a buyer searches, fills a cart and purchases; the seller ships.
fn shop(environment: &StoryEnvironment, server: ServerAddresses, suffix: &str) -> anyhow::Result<()> {
    say!("SHOP: sam-{suffix} sells lamps; bea-{suffix} buys two of them.");
    let mut sam = environment.start_client("seller", "sam", server.seller, suffix)?;
    sam.send_line(&format!("sell \"Brass Lamp\" 3 10.50 2 --keywords lamp,k{suffix} --used"))?;
    let listed = sam.await_line("on sale as ")?;
    let item = listed.split(' ').find_map(|word| word.strip_suffix(':')).context("no item id is named")?;

    let mut bea = environment.start_client("buyer", "bea", server.buyer, suffix)?;
    bea.send_line(&format!("search --category 3 lamp k{suffix}"))?;
    bea.await_line("Brass Lamp")?;
    bea.send_line(&format!("add {item} 2"))?;
    bea.await_line("in the cart")?;
    bea.send_line("purchase")?;
    bea.await_line("bought for 21.00")?;
    say!("   (stock, charge and history agree now, whichever component dies)");
    sam.send_line("orders")?;
    let order = sam.await_line(item)?;
    let purchase = order.split_whitespace().next().context("the order names no purchase")?;
    sam.send_line(&format!("ship {purchase} {item}"))?;
    sam.await_line("shipped ")?;
    bea.send_line(&format!("vote {item} up"))?;
    bea.await_line("voted on")?;
    bea.send_line("purchases")?;
    // The line has two dates: bought and shipped.
    let line = bea.await_line(item)?;
    ensure!(line.matches('Z').count() == 2, "the buyer does not see that it was shipped: {line}");
    sam.send_line("rating")?;
    sam.await_line("2 units sold")?;
    for client in [&mut bea, &mut sam] {
        client.send_line("logout")?;
        client.await_line("logged out")?;
        client.send_line("quit")?;
        client.finish()?;
    }
    Ok(())
}

/// Two LAN peers without a server find each other and talk.
fn lan(environment: &StoryEnvironment, suffix: &str) -> anyhow::Result<()> {
    let (ann, ben) = (format!("ann-{suffix}"), format!("ben-{suffix}"));
    say!("LAN: {ann} and {ben} meet on this machine and talk, with no server.");
    let port = free_port()?;
    let (mut ann_at, addr) = environment.start_lan_peer(&ann, port, None)?;
    // Only Linux delivers broadcasts on loopback.
    let known = if cfg!(target_os = "linux") { None } else { Some(addr) };
    let (mut ben_at, _) = environment.start_lan_peer(&ben, port, known)?;
    ann_at.await_line(&format!("{ben} is here"))?;
    ben_at.await_line(&format!("{ann} is here"))?;
    say!("   (each has heard the other's announcement)");
    ann_at.send_line("post the harbour market opens at eight")?;
    ben_at.await_line(&format!("{ann}: the harbour market opens at eight"))?;
    ben_at.send_line(&format!("dm {ann} keep me a lamp"))?;
    ann_at.await_line(&format!("{ben} (to you): keep me a lamp"))?;
    ben_at.await_line(&format!("{ann} has your message"))?;
    say!("   (it is on her disk: only then she confirmed it)");
    ann_at.send_line("profile Ann of the harbour | lamps since 1974")?;
    ben_at.await_line(&format!("{ann} is Ann of the harbour | lamps since 1974"))?;
    for peer in [&mut ben_at, &mut ann_at] {
        peer.send_line("quit")?;
        peer.finish()?;
    }
    Ok(())
}

/// One node publishes a file; another fetches it directly from that node.
fn share(environment: &StoryEnvironment, server: ServerAddresses, suffix: &str) -> anyhow::Result<()> {
    let (cleo, dan) = (format!("cleo-{suffix}"), format!("dan-{suffix}"));
    say!("SHARE: {cleo} has a chart of the harbour; {dan} fetches it from her machine, not from the server.");
    let chart: String = (0..20_000).map(|sounding| format!("sounding {sounding}: {} m\n", sounding % 37)).collect();
    let (published, fetched) =
        (environment.dir.join(format!("chart-{suffix}.txt")), environment.dir.join(format!("fetched-{suffix}.txt")));
    std::fs::write(&published, &chart).context("the chart cannot be written")?;
    let (mut cleo_at, cleo_api) = environment.start_node(&cleo, server)?;
    let (mut dan_at, dan_api) = environment.start_node(&dan, server)?;
    environment.run_node_command(&cleo, cleo_api, &["register", &cleo])?;
    environment.run_node_command(&cleo, cleo_api, &["publish", &published.display().to_string()])?;
    say!("   (it stays where it lies: the registry knows its name, its size and who has it)");
    environment.run_node_command(&dan, dan_api, &["register", &dan])?;
    environment.run_node_command(&dan, dan_api, &["search", &format!("chart-{suffix}")])?;
    environment.run_node_command(
        &dan,
        dan_api,
        &["fetch", &format!("chart-{suffix}.txt"), "--to", &fetched.display().to_string()],
    )?;
    let fetched_text = std::fs::read_to_string(&fetched).context("what was fetched is not there")?;
    ensure!(fetched_text == chart, "what was fetched is not what was published");
    say!("   (every byte is the same)");
    for (name, api) in [(&dan, dan_api), (&cleo, cleo_api)] {
        environment.run_node_command(name, api, &["logout"])?;
    }
    for node in [&mut dan_at, &mut cleo_at] {
        node.finish()?;
    }
    Ok(())
}

/// A currently free port, for announcements that nobody else should receive.
fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(socket.local_addr()?.port())
}

/// A temporary folder for the story's processes, removed at the end.
struct StoryEnvironment {
    dir: PathBuf,
    password: String,
}

impl StoryEnvironment {
    fn create(suffix: &str) -> anyhow::Result<StoryEnvironment> {
        // Absolute, because the processes run in this folder.
        let temporary =
            std::path::absolute(std::env::temp_dir()).context("where is the folder for temporary files?")?;
        let dir = temporary.join(format!("p2s2-story-{}-{suffix}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(StoryEnvironment { dir, password: Token::random().reveal().to_owned() })
    }

    /// A server with every service that the story needs.
    fn start_server(&self, name: &str) -> anyhow::Result<(StoryProcess, ServerAddresses)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("server")?;
        command.args(["--bind", "127.0.0.1", "--services", "trade,shop,share"]);
        command.args(["--trade-port", "0", "--product-port", "0"]);
        // Other clients must not discover it.
        command.arg("--no-announce");
        command.args(["--registry-port", "0", "--api-port", "0"]);
        command.args(["--customer-port", "0", "--seller-port", "0", "--buyer-port", "0", "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut server = StoryProcess::start(name, command)?;
        server.is_server = true;
        server.await_line("ready")?;
        let ready = wait_for_file(&ready)?;
        let addr = |field: &str| -> anyhow::Result<SocketAddr> {
            let addr = ready[field].as_str().with_context(|| format!("the server's ready file names no {field}"))?;
            Ok(addr.parse()?)
        };
        let addresses = ServerAddresses {
            trade: addr("trade_udp")?,
            seller: addr("seller")?,
            buyer: addr("buyer")?,
            registry: addr("registry")?,
            api: addr("server_api")?,
        };
        Ok((server, addresses))
    }

    /// A shop client with an account and a session.
    fn start_client(&self, role: &str, name: &str, server: SocketAddr, suffix: &str) -> anyhow::Result<StoryProcess> {
        let name = format!("{name}-{suffix}");
        let mut command = self.program(role)?;
        command.args(["--server", &server.to_string()]).env(PASSWORD_VARIABLE, Token::random().reveal());
        if role == "buyer" {
            let wallet = self.write_wallet(&name, "4111111111111111", "7 Mill Road, Oakfield")?;
            command.arg("--wallet").arg(wallet);
        }
        let mut client = StoryProcess::start(&name, command)?;
        client.send_line(&format!("create-account {name}"))?;
        client.await_line("has an account")?;
        client.send_line(&format!("login {name}"))?;
        client.await_line("logged in as")?;
        Ok(client)
    }

    fn write_wallet(&self, name: &str, card: &str, address: &str) -> anyhow::Result<PathBuf> {
        let wallet = self.dir.join(format!("{name}.wallet.json"));
        write_private(&wallet, &json!({"cc_number": card, "cc_exp": "12/39", "address": address}))?;
        Ok(wallet)
    }

    /// A trading peer of a server on this machine.
    fn start_peer(
        &self,
        name: &str,
        server: (SocketAddr, bool),
        card: &str,
        address: &str,
    ) -> anyhow::Result<StoryProcess> {
        let (server, plaintext) = server;
        let wallet = self.write_wallet(name, card, address)?;
        let mut command = self.program("peer")?;
        command.args(if plaintext { &["--plaintext"][..] } else { &[] });
        command.args(["--name", name, "--bind", "127.0.0.1", "--server", &server.to_string(), "--wallet"]).arg(&wallet);
        command.arg("--data-dir").arg(self.dir.join(name));
        let mut peer = StoryProcess::start(name, command)?;
        peer.await_line("registered as")?;
        Ok(peer)
    }

    /// A LAN peer on loopback, and its address; `known` is a peer to contact where broadcasts do not work.
    fn start_lan_peer(
        &self,
        name: &str,
        port: u16,
        known: Option<SocketAddr>,
    ) -> anyhow::Result<(StoryProcess, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("lan")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--discovery-port", &port.to_string(), "--data-dir"]);
        command.arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        if let Some(known) = known {
            command.args(["--peer", &known.to_string()]);
        }
        let mut peer = StoryProcess::start(name, command)?;
        peer.await_line("HELP lists the commands")?;
        let addr = wait_for_file(&ready)?["lan"].as_str().context("the ready file names no lan")?.parse()?;
        Ok((peer, addr))
    }

    /// A file-sharing node, and the address of its client API.
    fn start_node(&self, name: &str, server: ServerAddresses) -> anyhow::Result<(StoryProcess, SocketAddr)> {
        let ready = self.dir.join(format!("{name}.json"));
        let mut command = self.program("share")?;
        command.args(["--name", name, "--bind", "127.0.0.1", "--port", "0", "--api-port", "0"]);
        command.args(["--server", &server.registry.ip().to_string()]);
        command.args(["--registry-port", &server.registry.port().to_string()]);
        command.args(["--server-api-port", &server.api.port().to_string(), "--folder"]).arg(&self.dir);
        command.arg("--data-dir").arg(self.dir.join(name)).arg("--ready-file").arg(&ready);
        let mut node = StoryProcess::start(name, command)?;
        node.is_server = true;
        node.await_line("ready")?;
        let addr =
            wait_for_file(&ready)?["client_api"].as_str().context("the ready file names no client_api")?.parse()?;
        Ok((node, addr))
    }

    /// Runs one command against a node; it must succeed.
    fn run_node_command(&self, name: &str, api: SocketAddr, words: &[&str]) -> anyhow::Result<()> {
        say!("{name:>12} > p2s2 share {}", words.join(" "));
        let mut command = self.program("share")?;
        command.args(words).args(["--api-port", &api.port().to_string()]);
        // The token goes to the temporary folder, not to the user's own configuration.
        command.env("XDG_CONFIG_HOME", self.dir.join(format!("{name}-config"))).env(PASSWORD_VARIABLE, &self.password);
        StoryProcess::start(name, command)?.finish()
    }

    /// This program, without any settings from the environment or from `.env`.
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

impl Drop for StoryEnvironment {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// A process of the story. Killed when dropped.
struct StoryProcess {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// It ends on a signal; other processes end with their input.
    is_server: bool,
}

impl StoryProcess {
    fn start(name: &str, mut command: Command) -> anyhow::Result<StoryProcess> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // Each step produces only a few lines, so the channel never fills up.
        let (sender, lines) = crossbeam_channel::bounded(1024);
        let label = name.to_owned();
        let stdout = stdout.context("the process has no output")?;
        threads::spawn("story-reader", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                say!("{label:>12} | {line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(StoryProcess { name: name.to_owned(), child, stdin, lines, is_server: false })
    }

    fn send_line(&mut self, words: &str) -> anyhow::Result<()> {
        say!("{:>12} > {words}", self.name);
        let stdin = self.stdin.as_mut().with_context(|| format!("{} listens no more", self.name))?;
        writeln!(stdin, "{words}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Waits for a line that contains `words` and returns it. A line that reports an error ends the story.
    fn await_line(&mut self, words: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match self.lines.recv_deadline(deadline) {
                Ok(line) if line.contains(words) => return Ok(line),
                Ok(line) if line.starts_with("error:") || line.starts_with("cancelled [") => {
                    bail!("{}: {line}", self.name)
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: waited {} s for {words:?}", self.name, STEP_TIMEOUT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended before it said {words:?}", self.name),
            }
        }
    }

    /// Ends the process and checks its exit code.
    fn finish(&mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        #[cfg(unix)]
        if self.is_server {
            let pid = i32::try_from(self.child.id()).context("a process id that is none")?;
            // SAFETY: kill(2) takes plain integers; the child has not been waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + STEP_TIMEOUT;
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

impl Drop for StoryProcess {
    fn drop(&mut self) {
        // Fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a trade server responds at this address.
fn is_trade_server(server: SocketAddr) -> anyhow::Result<bool> {
    let request = json!({"type": "STATUS", "rq": 1, "name": "story"});
    let response = request_until_answered(&loopback_socket(server)?, server, request, 3);
    ensure!(
        response.as_ref().is_none_or(|response| response["rq"] == 1),
        "what answers at {server} is no trade server"
    );
    Ok(response.is_some())
}

/// Whether a shop frontend responds: it answers requests without a session with NotLoggedIn.
fn is_shop_frontend(server: SocketAddr) -> bool {
    let mut client = Client::new(ClientConfig::plain(server.to_string()));
    let response = client.call("GetSellerRating", json!({}));
    response.is_err_and(|error| error.code() == Some(ErrorCode::NotLoggedIn))
}

/// Whether the server API responds.
fn is_healthy_server_api(api: SocketAddr) -> bool {
    let api = ApiClient::new(&api.ip().to_string(), api.port(), None, STEP_TIMEOUT);
    api.get("/api/health", None).is_ok_and(|response| response.is_ok() && response.body["status"] == "healthy")
}

/// Whether the server settles without TLS. REGISTERED tells that, so a temporary peer registers and leaves.
fn settles_in_plaintext(server: SocketAddr, suffix: &str) -> anyhow::Result<bool> {
    let socket = loopback_socket(server)?;
    let (here, name) = (socket.local_addr()?, format!("visitor-{suffix}"));
    // The server never connects to this peer.
    let (ip, port) = (here.ip(), here.port());
    let register = json!({"type": "REGISTER", "rq": 1, "name": name, "ip": ip, "udp_port": port, "tcp_port": port});
    let tries = (STEP_TIMEOUT.as_millis() / RESPONSE_TIMEOUT.as_millis()) as usize;
    let response =
        request_until_answered(&socket, server, register, tries).context("the server does not answer a REGISTER")?;
    ensure!(response["type"] == "REGISTERED", "the server at {server} takes nobody: {}", response["reason"]);
    let leave = json!({"type": "DE-REGISTER", "rq": 2, "name": name, "token": response["token"]});
    request_until_answered(&socket, server, leave, tries).context("the server does not answer a DE-REGISTER")?;
    Ok(response["cert_sha256"].is_null())
}

fn loopback_socket(server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let here: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((here, 0))?;
    socket.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    Ok(socket)
}

/// Sends a request until a response arrives; `None` after `tries` attempts.
fn request_until_answered(socket: &UdpSocket, server: SocketAddr, mut request: Value, tries: usize) -> Option<Value> {
    // The response to an unverified sender may be at most three times as long as the request.
    request["padding"] = " ".repeat(64).into();
    let request_text = request.to_string();
    let mut bytes = [0; DATAGRAM_MAX];
    for _ in 0..tries {
        // If nobody listens, either call may report it.
        let mut received = socket.send_to(request_text.as_bytes(), server).and_then(|_| socket.recv_from(&mut bytes));
        while let Ok((length, _)) = received {
            let response: Value = serde_json::from_slice(&bytes[..length]).unwrap_or_default();
            // A SEARCH notification or a late duplicate of another response may arrive in between.
            if response["mid"].is_null() && (response["rq"] == request["rq"] || response["rq"].is_null()) {
                return Some(response);
            }
            received = socket.recv_from(&mut bytes);
        }
    }
    None
}

fn wait_for_file(path: &Path) -> anyhow::Result<Value> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return Ok(serde_json::from_str(&text)?);
        }
        ensure!(Instant::now() < deadline, "waited in vain for {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn write_private(path: &Path, value: &Value) -> anyhow::Result<()> {
    let file = files::private_file_options().write(true).create_new(true).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(writeln!(file, "{value}")?)
}
