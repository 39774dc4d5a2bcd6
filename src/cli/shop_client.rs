//! What `p2s2 buyer` and `p2s2 seller` have in common: server, session, interactive loop and one-shot commands.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::output::sanitize;
use super::repl::Screen;
use super::session_store::SessionStore;
use super::{UsageError, prompt, server_discovery, settings};
use crate::lan::DISCOVERY_PORT;
use crate::model::Name;
use crate::net::shutdown::ShutdownSignal;
use crate::shop::client::{CertificateTrust, Client, ClientConfig};

mod interactive;
mod session;
pub(super) mod show;

pub(super) use session::ShopSession;

/// The flags of both clients; their variables are named by each.
#[derive(Debug, Clone, Args)]
pub struct ShopClientArgs {
    /// The server; HOST PORT as two words will do as well
    #[arg(long, value_name = "HOST:PORT", global = true)]
    server: Option<String>,
    /// Who you are; the password is asked for, or read from P2S2_PASSWORD
    #[arg(long, value_name = "NAME", value_parser = Name::new, global = true)]
    user: Option<Name>,
    /// Speak TLS; the server's certificate is kept at the first contact and must stay the same
    #[arg(long, global = true, value_parser = settings::parse_switch())]
    tls: bool,
    /// Speak TLS with the server that has this certificate (SHA-256, 64 hex digits); with --server auto it
    /// counts as confirmed
    #[arg(long, value_name = "HEX", global = true, value_parser = settings::parse_fingerprint)]
    server_cert: Option<String>,
    /// Where servers hear who looks for them, with --server auto
    #[arg(long, value_name = "PORT", global = true, allow_negative_numbers = true, default_value_t = DISCOVERY_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    discovery_port: u16,
    /// Address to look from, with --server auto: 0.0.0.0 for every network; with 127.0.0.1 nothing leaves this
    /// machine
    #[arg(long, value_name = "IP", global = true, default_value_t = Ipv4Addr::UNSPECIFIED)]
    bind: Ipv4Addr,
    /// Print one JSON object a line
    #[arg(long, global = true, value_parser = settings::parse_switch())]
    json: bool,
}

pub(super) trait RoleCommands: Subcommand + Send + Sync + 'static {
    /// `buyer` or `seller`.
    const ROLE: &'static str;
    /// The server's address if none is given.
    const SERVER: &'static str;

    /// The command, if it is one that both roles have.
    fn account(&self) -> Option<&AccountCommand>;

    /// A command of the role itself.
    fn run(self, session: &ShopSession) -> anyhow::Result<()>;
}

/// What needs no session.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Open an account; the password is asked for
    #[command(after_help = "Example:\n  create-account bob --name \"Bob Okafor\"")]
    CreateAccount {
        /// Unique among buyers, or among sellers
        username: String,
        /// What others are to call you
        #[arg(long)]
        name: Option<String>,
    },
    /// Open a session; the password is asked for
    #[command(after_help = "Example:\n  login bob")]
    Login {
        /// Without it: --user
        username: Option<String>,
    },
    /// End the session; a cart that was not saved goes with it
    Logout,
}

/// A part of a long list.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShopPageArgs {
    /// How many to skip
    #[arg(long, value_name = "N")]
    offset: Option<u64>,
    /// How many to show at most, up to 500
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl ShopPageArgs {
    pub(super) fn payload(self) -> Value {
        let given = [("offset", self.offset), ("limit", self.limit)].into_iter();
        given.filter_map(|(field, number)| Some((field.to_owned(), number?.into()))).collect::<Map<_, _>>().into()
    }
}

fn run_command<C: RoleCommands>(session: &ShopSession, command: C) -> anyhow::Result<()> {
    match command.account() {
        Some(AccountCommand::CreateAccount { username, name }) => session.create_account(username, name.as_deref()),
        Some(AccountCommand::Login { username }) => session.login(username.as_deref()),
        Some(AccountCommand::Logout) => session.logout(),
        None => command.run(session),
    }
}

/// The given command, or the commands of the input.
pub(super) fn run<C: RoleCommands>(common: ShopClientArgs, command: Option<C>) -> anyhow::Result<ExitCode> {
    settings::init_log("error");
    let mut discovered_server = None;
    let config = match common.server.as_deref() {
        Some(server_discovery::AUTO) => {
            let (config, chosen) = discover_server::<C>(&common)?;
            discovered_server = Some(chosen);
            config
        }
        named => {
            let server = full_address(named.unwrap_or(C::SERVER), C::SERVER);
            let server = server.map_err(|error| UsageError(format!("--server {error}")))?;
            let mut config = ClientConfig::plain(&server);
            config.tls = match &common.server_cert {
                Some(pin) => Some(CertificateTrust::Pinned(pin.clone())),
                None if common.tls => {
                    Some(CertificateTrust::Pinned(trust_on_first_use(&config, &SessionStore::new(C::ROLE, &server)?)?))
                }
                None => None,
            };
            config
        }
    };
    let server = config.server.clone();
    let is_one_shot = command.is_some();
    let shutdown = if is_one_shot {
        ShutdownSignal::default()
    } else {
        ShutdownSignal::install().context("cannot listen to signals")?
    };
    let session = ShopSession {
        role: C::ROLE,
        screen: Screen::new(common.json, shutdown.clone()),
        client: Mutex::new(Client::new(config)),
        user: Mutex::new(common.user.as_ref().map(|user| user.as_str().to_owned())),
        session_store: if is_one_shot { Some(SessionStore::new(C::ROLE, &server)?) } else { None },
        seen_item_ids: Mutex::default(),
        discovered_server,
    };
    match command {
        Some(command) => Ok(run_single_command(&session, command)),
        None => interactive::run::<C>(session, &server, &shutdown),
    }
}

fn run_single_command<C: RoleCommands>(session: &ShopSession, command: C) -> ExitCode {
    let done = resume_session(session, command.account()).and_then(|()| run_command(session, command));
    let Err(error) = done else { return ExitCode::SUCCESS };
    let (text, code) = session.explain(&error);
    if session.screen.is_json() {
        session.json_error(&text, code);
    } else {
        eprintln!("error: {}", sanitize(&text));
    }
    ExitCode::FAILURE
}

/// Resumes the session of the given user, or of the user of the last login. A given user without one is logged in.
fn resume_session(session: &ShopSession, account: Option<&AccountCommand>) -> anyhow::Result<()> {
    let Some(session_store) = &session.session_store else { return Ok(()) };
    if matches!(account, Some(AccountCommand::CreateAccount { .. } | AccountCommand::Login { .. })) {
        return Ok(());
    }
    let named = session.user();
    let Some(user) = named.clone().map_or_else(|| session_store.last_user(), |user| Ok(Some(user)))? else {
        return Ok(());
    };
    match session_store.session(&user)? {
        Some(session_id) => session.client.lock().set_session_id(Some(session_id)),
        None if named.is_some() && account.is_none() => {
            let (client, password) = (&mut *session.client.lock(), prompt::password(false)?);
            client.login(&user, &password)?;
            session_store.save_session(&user, client.session_id().unwrap_or_default())?;
        }
        None => {}
    }
    *session.user.lock() = Some(user);
    Ok(())
}

/// A missing port is taken from the default.
fn full_address(server: &str, default: &str) -> Result<String, String> {
    let port = default.rsplit(':').next().unwrap_or_default();
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    if let Ok(ip) = server.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{ip}]:{port}"));
    }
    match server.rsplit_once(':') {
        None if !server.is_empty() => Ok(format!("{server}:{port}")),
        Some((host, port)) if !host.is_empty() && is_port(port) && (!host.contains(':') || host.starts_with('[')) => {
            Ok(server.to_owned())
        }
        _ => Err(format!("{server}: expected HOST:PORT")),
    }
}

/// The server chosen by `--server auto`: with TLS and its confirmed certificate, or without TLS if it has none.
fn discover_server<C: RoleCommands>(
    common: &ShopClientArgs,
) -> anyhow::Result<(ClientConfig, server_discovery::FoundServer)> {
    let chosen = server_discovery::find(&server_discovery::ServerQuery {
        service: C::ROLE,
        bind: common.bind,
        discovery_port: common.discovery_port,
        server_cert: common.server_cert.as_deref(),
    })?;
    if common.tls && chosen.cert_sha256.is_none() {
        bail!("the server at {} has no certificate: leave --tls out, or choose another server", chosen.addr);
    }
    let tls = chosen.cert_sha256.clone().map(CertificateTrust::Pinned);
    Ok((ClientConfig { tls, ..ClientConfig::plain(chosen.addr.to_string()) }, chosen))
}

/// The fingerprint that was seen at the first contact with the server; if this is it, it is stored now.
fn trust_on_first_use(config: &ClientConfig, session_store: &SessionStore) -> anyhow::Result<String> {
    if let Some(known) = session_store.certificate()? {
        return Ok(known);
    }
    let mut client = Client::new(ClientConfig { tls: Some(CertificateTrust::Any), ..config.clone() });
    client.connect()?;
    let fingerprint = client.fingerprint().context("the server has shown no certificate")?;
    eprintln!("note: the first contact with {}: its certificate {fingerprint} is kept", sanitize(&config.server));
    session_store.save_certificate(fingerprint)?;
    Ok(fingerprint.to_owned())
}

/// Rewrites `HOST PORT` after `buyer` or `seller` to `--server HOST:PORT`.
pub(super) fn with_server_flag(mut words: Vec<OsString>, is_command: impl Fn(&str, &str) -> bool) -> Vec<OsString> {
    const TAKE_VALUES: [&str; 6] = ["--server", "--user", "--server-cert", "--discovery-port", "--bind", "--wallet"];
    let text = |at: usize| words.get(at).and_then(|word| word.to_str());
    let Some(role @ ("buyer" | "seller")) = text(1) else { return words };
    let mut at = 2;
    while let Some(flag) = text(at).filter(|word| word.starts_with('-')) {
        at += if TAKE_VALUES.contains(&flag) { 2 } else { 1 };
    }
    if let (Some(host), Some(port)) = (text(at), text(at + 1))
        && port.parse::<u16>().is_ok()
        && !is_command(role, host)
    {
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let server = format!("{host}:{port}");
        words.splice(at..at + 2, ["--server".into(), server.into()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_with_and_without_port() {
        for (server, full) in [
            ("shop.example.org", "shop.example.org:8002"),
            ("127.0.0.1:9", "127.0.0.1:9"),
            ("::1", "[::1]:8002"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(full_address(server, "127.0.0.1:8002").unwrap(), full);
        }
        for server in ["", ":80", "host:", "host:0", "host:x", "a:b:1"] {
            assert!(full_address(server, "127.0.0.1:8002").is_err(), "{server}");
        }
    }

    #[test]
    fn host_and_port_may_be_two_words() {
        let is_command = |_: &str, word: &str| word == "search";
        for (given, read) in [
            ("p2s2 buyer localhost 8002", "p2s2 buyer --server localhost:8002"),
            ("p2s2 seller --json --user sam ::1 8 items", "p2s2 seller --json --user sam --server [::1]:8 items"),
            ("p2s2 buyer search 5", "p2s2 buyer search 5"),
            ("p2s2 buyer localhost", "p2s2 buyer localhost"),
            ("p2s2 peer localhost 80", "p2s2 peer localhost 80"),
            ("p2s2", "p2s2"),
        ] {
            let words = given.split(' ').map(OsString::from).collect();
            let read: Vec<OsString> = read.split(' ').map(OsString::from).collect();
            assert_eq!(with_server_flag(words, is_command), read);
        }
    }
}
