//! What `p2s2 buyer` and `p2s2 seller` have in common: the server, the session, the loop and the one-shot
//! call. The commands themselves stand in `buyer.rs` and `seller.rs`.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::builder::StyledStr;
use clap::{Args, CommandFactory, Parser, Subcommand};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::keep::Keep;
use super::repl::{self, Commands, Flow, Screen, clean};
use super::table::{Align, table};
use super::{auto, settings};
use crate::lan::DISCOVERY_PORT;
use crate::model::Name;
use crate::net::conn::ConnError;
use crate::net::shutdown::Shutdown;
use crate::shop::client::{Client, ClientError, Config, Trust};
use crate::shop::ops::Code;

pub(super) mod ask;
pub(super) mod keep;
pub(super) mod show;

/// Item ids that completion remembers.
const SEEN_MAX: usize = 1_000;

/// The flags of both clients; their variables are named by each.
#[derive(Debug, Clone, Args)]
pub struct Common {
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

/// The commands of one role.
pub(super) trait RoleCommands: Subcommand + Send + Sync + 'static {
    /// `buyer` or `seller`.
    const ROLE: &'static str;
    /// Where its server is when nobody says otherwise.
    const SERVER: &'static str;

    /// The command, if it is one that both have.
    fn account(&self) -> Option<&AccountCommand>;

    /// Does it.
    fn run(self, desk: &Desk) -> anyhow::Result<()>;
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
pub struct PageArgs {
    /// How many to skip
    #[arg(long, value_name = "N")]
    offset: Option<u64>,
    /// How many to show at most, up to 500
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl PageArgs {
    /// Adds what was asked for to a payload.
    pub(super) fn add_to(self, payload: &mut Value) {
        for (field, number) in [("offset", self.offset), ("limit", self.limit)] {
            if let Some(number) = number {
                payload[field] = number.into();
            }
        }
    }
}

/// Where a person stands who deals with the shop: who it is, and what there is to talk with.
pub(super) struct Desk {
    role: &'static str,
    pub(super) screen: Screen,
    client: Mutex<Client>,
    user: Mutex<Option<String>>,
    /// For one-shot calls: where the session is kept.
    keep: Option<Keep>,
    /// Item ids that were shown, for completion.
    seen: Mutex<Vec<String>>,
    /// The server, where `--server auto` has chosen it.
    found_by_itself: Option<auto::Chosen>,
}

impl Desk {
    /// Whether money may go through this server.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub(super) fn check_payment(&self) -> anyhow::Result<()> {
        self.found_by_itself.as_ref().map_or(Ok(()), |chosen| chosen.check_payment(""))
    }

    /// Calls an api; the answer's payload.
    pub(super) fn call(&self, api: &str, payload: Value) -> anyhow::Result<Value> {
        let mut client = self.client.lock();
        let answer = client.call(api, payload);
        if let Err(error) = &answer
            && error.code() == Some(Code::SessionExpired)
        {
            client.set_session_id(None);
            self.forget()?;
        }
        let answer = answer?;
        self.remember(&answer);
        Ok(answer)
    }

    /// The user's name, once logged in.
    pub(super) fn user(&self) -> Option<String> {
        self.user.lock().clone()
    }

    /// The answer of a command: its fields with `--json`, else a text for people.
    pub(super) fn say(&self, command: &str, mut fields: Value, text: impl FnOnce(&Value) -> String) {
        if self.screen.is_json() {
            fields["ok"] = command.into();
            self.screen.print_json(&fields);
        } else {
            let text = text(&fields);
            self.screen.print(&text.lines().map(clean).collect::<Vec<_>>().join("\n"));
        }
    }

    fn create_account(&self, username: &str, name: Option<&str>) -> anyhow::Result<()> {
        let mut payload = json!({"username": username, "password": ask::password(true)?});
        if let Some(name) = name {
            payload["name"] = name.into();
        }
        let answer = self.call("CreateAccount", payload)?;
        self.say("create-account", answer, |_| {
            format!("{username} has an account; {} opens a session", self.login_command(username))
        });
        Ok(())
    }

    fn login(&self, username: Option<&str>) -> anyhow::Result<()> {
        let username = match (username.map(str::to_owned).or(self.user()), ask::somebody_is_there()) {
            (Some(username), _) => username,
            (None, true) => ask::line("User name: ")?,
            (None, false) => bail!("a user name is missing: login USERNAME (or --user NAME)"),
        };
        let password = ask::password(false)?;
        let mut client = self.client.lock();
        let id = client.login(&username, &password)?;
        *self.user.lock() = Some(username.clone());
        if let (Some(keep), Some(session_id)) = (&self.keep, client.session_id()) {
            keep.put_session(&username, session_id)?;
        }
        let fields = json!({"username": username, format!("{}_id", self.role): id});
        self.say("login", fields, |_| format!("logged in as {username} ({} {id})", self.role));
        Ok(())
    }

    fn logout(&self) -> anyhow::Result<()> {
        let done = self.client.lock().logout();
        // Lost: it may be alive still, and be ended once more.
        if matches!(done, Ok(()) | Err(ClientError::Refused(_))) {
            self.forget()?;
        }
        done?;
        self.say("logout", json!({}), |_| "logged out".to_owned());
        Ok(())
    }

    /// The kept session has ended.
    fn forget(&self) -> anyhow::Result<()> {
        match (&self.keep, self.user()) {
            (Some(keep), Some(user)) => keep.drop_session(&user),
            _ => Ok(()),
        }
    }

    fn remember(&self, answer: &Value) {
        let lists = ["items", "cart"].into_iter().filter_map(|field| answer[field].as_array()).flatten();
        let mut seen = self.seen.lock();
        for id in lists.chain([answer]).filter_map(|item| item["item_id"].as_str()) {
            if seen.len() < SEEN_MAX && !seen.iter().any(|known| known == id) {
                seen.push(id.to_owned());
            }
        }
    }

    /// How a session is opened, from where this was said.
    pub(super) fn login_command(&self, username: &str) -> String {
        if self.keep.is_some() {
            format!("`p2s2 {} login {username}`", self.role)
        } else {
            format!("`login {username}`")
        }
    }

    /// What went wrong, and what helps. Of the session a person knows nothing but that there is none.
    fn explain(&self, error: &anyhow::Error) -> (String, Option<Code>) {
        let code = error.downcast_ref::<ClientError>().and_then(ClientError::code);
        let user = self.user().unwrap_or_else(|| "NAME".to_owned());
        let text = match code {
            Some(Code::SessionExpired) => {
                format!("the session has ended; {} opens another", self.login_command(&user))
            }
            Some(Code::NotLoggedIn) => {
                format!("nobody is logged in here; {} opens a session", self.login_command(&user))
            }
            _ => match error.downcast_ref::<ClientError>() {
                Some(ClientError::Unreachable { error: ConnError::Io(_), .. }) => format!(
                    "{error:#}; is a shop running there? `p2s2 server` starts one, --server HOST:PORT names another"
                ),
                Some(ClientError::Foreign { .. }) => {
                    format!("{error:#}: is that a shop of p2s2's? --server HOST:PORT names another")
                }
                _ => format!("{error:#}"),
            },
        };
        (text, code)
    }

    fn json_error(&self, text: &str, code: Option<Code>) {
        self.screen.print_json(&json!({"error": clean(text), "code": code}));
    }
}

/// Does one command.
fn perform<C: RoleCommands>(desk: &Desk, command: C) -> anyhow::Result<()> {
    match command.account() {
        Some(AccountCommand::CreateAccount { username, name }) => desk.create_account(username, name.as_deref()),
        Some(AccountCommand::Login { username }) => desk.login(username.as_deref()),
        Some(AccountCommand::Logout) => desk.logout(),
        None => command.run(desk),
    }
}

/// Runs a client: the command that was given, or else those that the input has.
///
/// # Errors
/// Why it cannot begin.
pub(super) fn run<C: RoleCommands>(common: Common, command: Option<C>) -> anyhow::Result<ExitCode> {
    settings::init_log("error");
    let mut found_by_itself = None;
    let config = match common.server.as_deref() {
        Some(auto::AUTO) => {
            let (config, chosen) = found::<C>(&common)?;
            found_by_itself = Some(chosen);
            config
        }
        named => {
            let server = match full_address(named.unwrap_or(C::SERVER), C::SERVER) {
                Ok(server) => server,
                Err(wrong) => {
                    eprintln!("error: --server {}", clean(&wrong));
                    return Ok(ExitCode::from(2));
                }
            };
            let mut config = Config::plain(&server);
            config.tls = match &common.server_cert {
                Some(pin) => Some(Trust::Pinned(pin.clone())),
                None if common.tls => Some(Trust::Pinned(first_seen(&config, &Keep::of(C::ROLE, &server)?)?)),
                None => None,
            };
            config
        }
    };
    let server = config.server.clone();
    let is_one_shot = command.is_some();
    let shutdown =
        if is_one_shot { Shutdown::default() } else { Shutdown::install().context("cannot listen to signals")? };
    let desk = Desk {
        role: C::ROLE,
        screen: Screen::new(common.json, shutdown.clone()),
        client: Mutex::new(Client::new(config)),
        user: Mutex::new(common.user.as_ref().map(|user| user.as_str().to_owned())),
        keep: if is_one_shot { Some(Keep::of(C::ROLE, &server)?) } else { None },
        seen: Mutex::default(),
        found_by_itself,
    };
    match command {
        Some(command) => Ok(once(&desk, command)),
        None => interactive::<C>(desk, &server, &shutdown),
    }
}

/// One command, with the session that an earlier one has left.
fn once<C: RoleCommands>(desk: &Desk, command: C) -> ExitCode {
    let done = resume(desk, command.account()).and_then(|()| perform(desk, command));
    let Err(error) = done else { return ExitCode::SUCCESS };
    let (text, code) = desk.explain(&error);
    if desk.screen.is_json() {
        desk.json_error(&text, code);
    } else {
        eprintln!("error: {}", clean(&text));
    }
    ExitCode::FAILURE
}

/// Takes up the kept session of the user, or of who logged in last. A user who is named and has none gets one.
fn resume(desk: &Desk, account: Option<&AccountCommand>) -> anyhow::Result<()> {
    let Some(keep) = &desk.keep else { return Ok(()) };
    if matches!(account, Some(AccountCommand::CreateAccount { .. } | AccountCommand::Login { .. })) {
        return Ok(());
    }
    let named = desk.user();
    let Some(user) = named.clone().map_or_else(|| keep.last_user(), |user| Ok(Some(user)))? else { return Ok(()) };
    match keep.session(&user)? {
        Some(session_id) => desk.client.lock().set_session_id(Some(session_id)),
        None if named.is_some() && account.is_none() => {
            let (client, password) = (&mut *desk.client.lock(), ask::password(false)?);
            client.login(&user, &password)?;
            keep.put_session(&user, client.session_id().unwrap_or_default())?;
        }
        None => {}
    }
    *desk.user.lock() = Some(user);
    Ok(())
}

/// Commands from the input, until it ends.
fn interactive<C: RoleCommands>(desk: Desk, server: &str, shutdown: &Shutdown) -> anyhow::Result<ExitCode> {
    let mut user = desk.user();
    let (role, screen) = (C::ROLE, desk.screen.clone());
    if screen.is_json() {
        screen.print_json(&json!({"event": "begun", "role": role, "server": server}));
    } else {
        screen.print(&clean(&format!("a {role} at {server}; `help` lists the commands")));
    }
    if user.is_some()
        && let Err(error) = desk.login(None)
    {
        tell(&desk, &error);
        // Nobody is, so the prompt names nobody.
        user = None;
    }
    let history = if io::stdin().is_terminal() {
        Some(Keep::of(role, server)?.folder()?.join(format!("{role}-history")))
    } else {
        None
    };
    let prompt = format!("{}> ", user.as_deref().map_or(role.to_owned(), clean));
    let commands = Arc::new(Loop::<C> { desk, commands: PhantomData });
    repl::run(&prompt, history, &screen, shutdown, commands).context("cannot read commands")?;
    Ok(ExitCode::SUCCESS)
}

fn tell(desk: &Desk, error: &anyhow::Error) {
    let (text, code) = desk.explain(error);
    if desk.screen.is_json() {
        desk.json_error(&text, code);
    } else {
        desk.screen.error(&text);
    }
}

/// A line of input, read as the command line is.
#[derive(Parser)]
#[command(multicall = true, disable_help_subcommand = true, max_term_width = 100)]
struct Line<C: Subcommand> {
    #[command(subcommand)]
    command: C,
}

struct Loop<C> {
    desk: Desk,
    commands: PhantomData<C>,
}

impl<C: RoleCommands> Commands for Loop<C> {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        let mut words = words.to_vec();
        words[0] = words[0].to_lowercase();
        match words[0].as_str() {
            "quit" | "exit" => return Ok(Flow::Quit),
            "help" if words.len() == 1 => {
                self.help();
                return Ok(Flow::Next);
            }
            // `help search` is `search --help`.
            "help" => words = vec![words[1].to_lowercase(), "--help".to_owned()],
            _ => {}
        }
        if Line::<C>::command().find_subcommand(&words[0]).is_none() {
            bail!("there is no command {:?}; `help` lists them", words[0]);
        }
        match Line::<C>::try_parse_from(&words) {
            Ok(line) => {
                if let Err(error) = perform(&self.desk, line.command) {
                    tell(&self.desk, &error);
                }
            }
            Err(asked) if !asked.use_stderr() => self.say_help(&asked.render()),
            Err(wrong) => bail!(in_one_line(&wrong.render())),
        }
        Ok(Flow::Next)
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        let commands = Line::<C>::command();
        let Some(name) = before.first() else {
            let names = commands.get_subcommands().map(|command| command.get_name().to_owned());
            return names.chain(["help", "quit", "exit"].map(str::to_owned)).collect();
        };
        if name == "help" {
            return commands.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        }
        let Some(command) = commands.find_subcommand(name.to_lowercase()) else { return Vec::new() };
        let flags = command.get_opts().filter_map(clap::Arg::get_long).map(|long| format!("--{long}"));
        let takes_item = command.get_positionals().any(|arg| arg.get_id() == "item");
        let items = if takes_item { self.desk.seen.lock().clone() } else { Vec::new() };
        items.into_iter().chain(flags).collect()
    }
}

impl<C: RoleCommands> Loop<C> {
    fn help(&self) {
        let mut commands = Line::<C>::command();
        let rows = commands.get_subcommands_mut().map(|command| {
            let usage = command.render_usage().to_string();
            let usage = usage.trim_start_matches("Usage:").trim().to_owned();
            [usage, command.get_about().map(StyledStr::to_string).unwrap_or_default()]
        });
        let own = [["help [COMMAND]", "this list, or one command with its options"], ["quit", "stop (exit does, too)"]];
        let rows: Vec<[String; 2]> = rows.chain(own.map(|row| row.map(str::to_owned))).collect();
        if self.desk.screen.is_json() {
            let rows: Vec<Value> = rows.iter().map(|[usage, does]| json!({"usage": usage, "does": does})).collect();
            return self.desk.screen.print_json(&json!({"ok": "help", "commands": rows}));
        }
        let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
        self.desk.screen.print(&table(&[("command", Align::Left), ("", Align::Left)], &rows));
    }

    fn say_help(&self, help: &StyledStr) {
        let text = help.to_string();
        self.desk.say("help", json!({ "help": text }), |_| text.trim_end().to_owned());
    }
}

/// What is wrong with the words, without what helps only at a shell's prompt.
fn in_one_line(wrong: &StyledStr) -> String {
    let text = wrong.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").replace(" Usage: ", "; usage: ")
}

/// `HOST:PORT`, with the port of the default where none is named.
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

/// The server that announces itself: spoken with as it was confirmed, by TLS with its certificate or, where it
/// has none, without.
fn found<C: RoleCommands>(common: &Common) -> anyhow::Result<(Config, auto::Chosen)> {
    let chosen = auto::find(&auto::Wanted {
        service: C::ROLE,
        bind: common.bind,
        discovery_port: common.discovery_port,
        server_cert: common.server_cert.as_deref(),
    })?;
    if common.tls && chosen.cert_sha256.is_none() {
        bail!("the server at {} has no certificate: leave --tls out, or choose another server", chosen.addr);
    }
    let tls = chosen.cert_sha256.clone().map(Trust::Pinned);
    Ok((Config { tls, ..Config::plain(chosen.addr.to_string()) }, chosen))
}

/// The fingerprint of the server's certificate as it was when it was met first, which is now, perhaps.
fn first_seen(config: &Config, keep: &Keep) -> anyhow::Result<String> {
    if let Some(known) = keep.certificate()? {
        return Ok(known);
    }
    let mut client = Client::new(Config { tls: Some(Trust::Anyone), ..config.clone() });
    client.connect()?;
    let fingerprint = client.fingerprint().context("the server has shown no certificate")?;
    eprintln!("note: the first contact with {}: its certificate {fingerprint} is kept", clean(&config.server));
    keep.put_certificate(fingerprint)?;
    Ok(fingerprint.to_owned())
}

/// The words of the command line, with `HOST PORT` behind `buyer` or `seller` written as `--server HOST:PORT`.
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
