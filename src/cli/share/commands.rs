//! The commands of `p2s2 share` that talk to a running node over its client API.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::progress::FetchProgressLine;
use super::show;
use crate::cli::output::sanitize;
use crate::cli::prompt;
use crate::cli::repl::Screen;
use crate::cli::session_store::SessionStore;
use crate::model::text::nfc;
use crate::model::{Name, Token};
use crate::net::shutdown::ShutdownSignal;
use crate::services::running_nodes;
use crate::share::api_client::{ApiClient, ApiResponse};

/// How long the node may take to respond; it may have to ask the server in turn.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the progress of a fetch is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Files that are published or fetched concurrently.
const CONCURRENT_FILES_MAX: usize = 8;
/// Page size when the files of the network are listed.
const PAGE: usize = 1000;
/// Exit code when the user stops waiting, as shells report a death by SIGINT.
const INTERRUPTED_EXIT_CODE: u8 = 130;
/// Beginning of the node's error when the user has not joined the network yet.
const NOT_STARTED_PREFIX: &str = "not begun";

/// What a running node is told.
#[derive(Debug, Subcommand)]
pub enum ShareCommand {
    /// Open an account at the node's server, and sign in; the password is asked for
    #[command(after_help = "Example:\n  p2s2 share register alice --display-name \"Alice Smith\"")]
    Register {
        /// Your account's name, which is your hostname on the network too
        username: Option<String>,
        /// The name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
    },
    /// Sign in, and take part; the password is asked for
    #[command(after_help = "Example:\n  p2s2 share login alice")]
    Login {
        /// Without it: whose node it is
        username: Option<String>,
    },
    /// Take part no more, and forget the token
    Logout,
    /// Track files where they lie; nothing is shown to others yet
    #[command(after_help = "Example:\n  p2s2 share add ~/Documents/report.pdf")]
    Add {
        /// Where each of them lies
        #[arg(value_name = "FILE", required = true)]
        files: Vec<String>,
    },
    /// Let others find and fetch files: those at paths, or tracked ones by their names
    #[command(
        after_help = "Examples:\n  p2s2 share publish ~/Documents/report.pdf\n  p2s2 share publish ~/Music/*\n  p2s2 share publish ~/notes.txt --as notes-of-may.txt\n  p2s2 share publish report.pdf --unless-duplicate"
    )]
    Publish {
        /// Where each of them lies (the last part may have * and ?), or the name of one that is tracked
        #[arg(value_name = "PATH", required = true)]
        files: Vec<String>,
        /// Under another name, if it is one
        #[arg(long = "as", value_name = "NAME")]
        named: Option<String>,
        /// Not if somebody has published one that looks the same
        #[arg(long)]
        unless_duplicate: bool,
    },
    /// Hide files from others again; they stay tracked
    #[command(after_help = "Examples:\n  p2s2 share unpublish holiday.mov\n  p2s2 share unpublish '*.txt'")]
    Unpublish {
        /// As `list` shows them; patterns mean those that are published
        #[arg(value_name = "NAME", required = true)]
        files: Vec<String>,
    },
    /// Show the files that you track
    List {
        /// Only those that others see
        #[arg(long)]
        published: bool,
    },
    /// Show what everybody has published
    Network {
        #[command(flatten)]
        page: NodePageArgs,
    },
    /// Show what everybody has published with this in its name
    #[command(after_help = "Example:\n  p2s2 share search report")]
    Search {
        /// Any part of the name
        #[arg(value_name = "TEXT")]
        text: String,
        #[command(flatten)]
        page: NodePageArgs,
    },
    /// Fetch files from whoever has them, and wait until they are here
    #[command(
        after_help = "Examples:\n  p2s2 share fetch report.pdf\n  p2s2 share fetch 'holiday-*.jpg' --to ~/Pictures\n  p2s2 share fetch invoice.txt --from alice\n  p2s2 share fetch report.pdf --to ~/Downloads\n  p2s2 share fetch big.iso --background\n\nIt goes on in the node when this command is ended, and after a restart of the node."
    )]
    Fetch {
        /// As `search` shows each of them; may have * and ?
        #[arg(value_name = "NAME", required = true)]
        files: Vec<String>,
        /// A folder, or the path of the file that is to be; without it, the node's repo
        #[arg(long = "to", value_name = "PATH")]
        to: Option<String>,
        /// Whose, where several have different files of that name
        #[arg(long = "from", value_name = "HOSTNAME")]
        from: Option<String>,
        /// Do not wait
        #[arg(long)]
        background: bool,
    },
    /// Show the fetches, or let one pause, go on or end
    #[command(after_help = "Examples:\n  p2s2 share fetches\n  p2s2 share fetches pause 0123456789abcdef")]
    Fetches {
        /// What one of them is to do
        #[arg(value_name = "pause|resume|cancel", value_parser = ["pause", "resume", "cancel"], requires = "id", hide_possible_values = true)]
        action: Option<String>,
        /// Which one, as `fetches` shows it
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
    /// Show who is on the network
    Peers {
        #[command(flatten)]
        page: NodePageArgs,
    },
    /// Show how the node is
    Status,
}

/// A part of a long list.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct NodePageArgs {
    /// How many to skip
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// How many to show at most, up to 1000
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
}

impl NodePageArgs {
    fn query(self) -> String {
        format!("offset={}&limit={}", self.offset, self.limit)
    }
}

/// Selects the node that a command is for.
pub(super) struct NodeQuery<'a> {
    /// The address given with `--api-port`.
    pub addr: Option<SocketAddr>,
    /// The node's name, if it was given.
    pub name: Option<&'a Name>,
    /// The certificate that the node must show.
    pub cert: Option<&'a str>,
    /// The default address, for a node that has no record file.
    pub default_addr: SocketAddr,
}

/// A client of one running node.
struct NodeClient {
    api: ApiClient,
    session_store: SessionStore,
    screen: Screen,
    /// The user whose node it is. No other user's token is sent to it.
    user: Name,
    shutdown: ShutdownSignal,
}

struct FetchOptions<'a> {
    to: Option<&'a str>,
    from: Option<&'a str>,
    background: bool,
}

pub(super) fn run(command: ShareCommand, query: &NodeQuery<'_>, json: bool) -> ExitCode {
    let shutdown = ShutdownSignal::default();
    let screen = Screen::new(json, shutdown.clone());
    let done = running_nodes::find(query.addr, query.name, query.cert, query.default_addr).and_then(|node| {
        let api = ApiClient::new(
            &node.api_addr.ip().to_string(),
            node.api_addr.port(),
            node.cert.as_deref(),
            RESPONSE_TIMEOUT,
        );
        // Tokens are stored per server and user, whatever the address of the user's node.
        let session_store = SessionStore::new("share", &node.server)?;
        NodeClient { api, session_store, screen: screen.clone(), user: node.name, shutdown }.run_command(command)
    });
    let Err(error) = done else { return ExitCode::SUCCESS };
    if error.is::<AlreadyReported>() {
        return ExitCode::FAILURE;
    }
    if let Some(Interrupted(said)) = error.downcast_ref() {
        for line in said.lines() {
            eprintln!("{}", sanitize(line));
        }
        return ExitCode::from(INTERRUPTED_EXIT_CODE);
    }
    if json {
        screen.print_json(&json!({ "error": sanitize(&format!("{error:#}")) }));
    } else {
        eprintln!("error: {}", sanitize(&format!("{error:#}")));
    }
    ExitCode::FAILURE
}

/// A failure that was already reported.
#[derive(Debug, thiserror::Error)]
#[error("some of it failed")]
struct AlreadyReported;

/// The user stopped waiting; the message tells what goes on without him.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Interrupted(String);

impl NodeClient {
    fn run_command(&self, command: ShareCommand) -> anyhow::Result<()> {
        match command {
            ShareCommand::Register { username, display_name } => {
                self.sign_in("register", username, display_name.as_deref())
            }
            ShareCommand::Login { username } => self.sign_in("login", username, None),
            ShareCommand::Logout => self.log_out(),
            ShareCommand::Add { files } => {
                for file in files {
                    let response = self.post("add-file", &json!({ "filepath": absolute(&file)? }))?;
                    self.print_result("add", &response, |response| {
                        format!("{} is tracked", text(&response["file"]["name"]))
                    });
                }
                Ok(())
            }
            ShareCommand::Publish { files, named, unless_duplicate } => {
                self.publish_all(&files, named, !unless_duplicate)
            }
            ShareCommand::Unpublish { files } => self.unpublish_all(&files),
            ShareCommand::List { published } => {
                let response = self.get(if published { "published-files" } else { "local-files" })?;
                self.print_result("list", &response, |response| show::own_files(&response["files"]));
                Ok(())
            }
            ShareCommand::Network { page } => {
                let response = self.get(&format!("network-files?{}", page.query()))?;
                self.print_result("network", &response, show::network_files);
                Ok(())
            }
            ShareCommand::Search { text, page } => {
                let response = self.get(&format!("network-files?q={}&{}", percent_encoded(&text), page.query()))?;
                self.print_result("search", &response, show::network_files);
                Ok(())
            }
            ShareCommand::Fetch { files, to, from, background } => {
                self.fetch_all(&files, &FetchOptions { to: to.as_deref(), from: from.as_deref(), background })
            }
            ShareCommand::Fetches { action: Some(action), id: Some(id) } => {
                let response = self.post(&format!("fetches/{}/{action}", percent_encoded(&id)), &json!({}))?;
                self.print_result("fetches", &response, |response| show::fetch(&response["progress"]));
                Ok(())
            }
            ShareCommand::Fetches { .. } => {
                self.print_result("fetches", &self.get("fetches")?, |response| show::fetches(&response["fetches"]));
                Ok(())
            }
            ShareCommand::Peers { page } => {
                let response = self.get(&format!("peers?{}", page.query()))?;
                self.print_result("peers", &response, show::peers);
                Ok(())
            }
            ShareCommand::Status => {
                self.print_result("status", &self.get("status")?, |response| show::status(&response["client"]));
                Ok(())
            }
        }
    }

    fn sign_in(&self, what: &str, username: Option<String>, display_name: Option<&str>) -> anyhow::Result<()> {
        let username = username.unwrap_or_else(|| self.user.to_string());
        if Name::from_stored(&username).ok().as_ref() != Some(&self.user) {
            bail!(
                "the node at {} is {}'s: `p2s2 share --name {username}` runs one for {username}",
                self.api.address(),
                self.user
            );
        }
        let mut body = json!({"username": username, "password": prompt::password(what == "register")?});
        if let Some(display_name) = display_name {
            body["display_name"] = display_name.into();
        }
        let response = self.api.post(&api_path(what), None, &body)?;
        let mut fields = successful_body(response)?;
        let token = fields["token"].as_str().context("the node answered without a token")?.to_owned();
        let user = fields["user"]["username"].as_str().unwrap_or(&username).to_owned();
        // Stored under the node's name, because that is how it is looked up.
        self.session_store.save_session(self.user.as_str(), &token)?;
        // The token is in its file and is not printed.
        fields.as_object_mut().map(|fields| fields.remove("token"));
        let started = successful_body(self.init(&user, &Token::from_text(token))?)
            .with_context(|| format!("{user} is signed in, but the node does not take part"))?;
        fields["client"] = started["client"].clone();
        self.print_result(what, &fields, |fields| {
            format!("signed in as {user}; peer port {}", text(&fields["client"]["port"]))
        });
        Ok(())
    }

    fn log_out(&self) -> anyhow::Result<()> {
        let (user, token) = self.session()?;
        let response = self.api.post(&api_path("logout"), Some(&token), &json!({}))?;
        // A token that has expired or was logged out before is of no use either.
        if response.is_ok() || response.status == 401 {
            self.session_store.remove_session(user.as_str())?;
        }
        let response = if response.status == 401 { json!({}) } else { successful_body(response)? };
        self.print_result("logout", &response, |_| format!("{user} is signed out"));
        Ok(())
    }

    /// Publishes the files concurrently, so that node and registry can group their commits.
    fn publish_all(&self, files: &[String], named: Option<String>, overwrite: bool) -> anyhow::Result<()> {
        let files: Vec<String> = files.iter().flat_map(|file| matching_paths(file)).collect();
        if let [file] = &files[..] {
            return self.publish(file, named, overwrite);
        }
        if named.is_some() {
            bail!("--as: {} files cannot have one name", files.len());
        }
        let files = files.into_iter().filter(|file| {
            let is_folder = Path::new(file).is_dir();
            if is_folder {
                eprintln!("note: {} is a folder: left out", sanitize(file));
            }
            !is_folder
        });
        self.for_each_concurrently(files.collect(), |file| self.publish(file, None, overwrite))
    }

    fn unpublish_all(&self, files: &[String]) -> anyhow::Result<()> {
        let mut names = Vec::new();
        for file in files {
            if !is_pattern(file) {
                names.push(file.clone());
                continue;
            }
            let published = self.get("published-files")?;
            let all = published["files"].as_array().into_iter().flatten().filter_map(|file| file["name"].as_str());
            let found: Vec<String> = all.filter(|name| glob_matches(file, name)).map(str::to_owned).collect();
            if found.is_empty() {
                bail!("you publish no file like {file}");
            }
            names.extend(found);
        }
        let names = dedup_names(names);
        let unpublish = |name: &str| -> anyhow::Result<()> {
            let response = self.post("unpublish", &json!({ "fname": name }))?;
            self.print_result("unpublish", &response, |_| format!("{name} is hidden from others"));
            Ok(())
        };
        match &names[..] {
            [name] => unpublish(name),
            _ => self.for_each_concurrently(names, unpublish),
        }
    }

    fn fetch_all(&self, files: &[String], options: &FetchOptions<'_>) -> anyhow::Result<()> {
        let mut named = Vec::new();
        for file in files {
            if is_pattern(file) {
                named.extend(self.matching_names(file, options.from)?);
            } else {
                named.push(file.clone());
            }
        }
        let names = dedup_names(named);
        let shutdown = ShutdownSignal::install().unwrap_or_else(|error| {
            log::debug!("Ctrl-C ends at once: {error}");
            self.shutdown.clone()
        });
        if let [name] = &names[..] {
            return self.fetch(name, options, &shutdown, true);
        }
        if let Some(to) = options.to.filter(|to| !Path::new(to).is_dir()) {
            bail!("--to {to}: {} files want a folder that is there", names.len());
        }
        self.for_each_concurrently(names, |name| self.fetch(name, options, &shutdown, false))
    }

    /// The names on the network that match a pattern: of one owner, or of everybody but this user.
    fn matching_names(&self, pattern: &str, from: Option<&str>) -> anyhow::Result<Vec<String>> {
        let names = match from {
            Some(from) => self.names_of_owner(from, pattern)?,
            None => self.names_of_others(pattern)?,
        };
        if names.is_empty() {
            match from {
                Some(from) => bail!("{from} has no file like {pattern} on the network"),
                None => bail!("nobody else on the network has a file like {pattern}"),
            }
        }
        Ok(names.into_iter().collect())
    }

    /// The matching names of one owner, as the registry lists them now.
    fn names_of_owner(&self, owner: &str, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let host = self.get(&format!("discover/{}", percent_encoded(owner)))?;
        let names = host["files"].as_object().into_iter().flat_map(|files| files.keys());
        Ok(names.filter(|name| glob_matches(pattern, name)).cloned().collect())
    }

    fn names_of_others(&self, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let is_meant = |owner: &str| nfc(owner) != self.user.key();
        let longest = pattern.split(['*', '?']).max_by_key(|part| part.len()).unwrap_or_default();
        let (mut names, mut offset) = (BTreeSet::new(), 0);
        loop {
            let page =
                self.get(&format!("network-files?q={}&offset={offset}&limit={PAGE}", percent_encoded(longest)))?;
            let files = page["files"].as_array().cloned().unwrap_or_default();
            let found = files.iter().filter(|file| file["owner_hostname"].as_str().is_some_and(is_meant));
            let found = found.filter_map(|file| file["name"].as_str()).filter(|name| glob_matches(pattern, name));
            names.extend(found.map(str::to_owned));
            offset += PAGE;
            if files.len() < PAGE {
                return Ok(names);
            }
        }
    }

    /// Runs `work` for each item, a few at a time. Failures are reported, and the remaining items are processed.
    fn for_each_concurrently(
        &self,
        all: Vec<String>,
        work: impl Fn(&str) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let failed = AtomicUsize::new(0);
        let interrupted = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..CONCURRENT_FILES_MAX.min(all.len()) {
                scope.spawn(|| {
                    while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match work(one) {
                            Ok(()) => {}
                            Err(error) => {
                                let error = match error.downcast::<Interrupted>() {
                                    Ok(Interrupted(said)) => return interrupted.lock().push(said),
                                    Err(error) => error,
                                };
                                failed.fetch_add(1, Ordering::Relaxed);
                                let why = sanitize(&format!("{one}: {error:#}"));
                                if self.screen.is_json() {
                                    self.screen.print_json(&json!({"error": why, "file": one}));
                                } else {
                                    eprintln!("error: {why}");
                                }
                            }
                        }
                    }
                });
            }
        });
        let mut interrupted = interrupted.into_inner();
        if !interrupted.is_empty() {
            // Each finished item was counted by `next`; an interrupted worker took no further one.
            let not_begun = all.len().saturating_sub(next.into_inner());
            if not_begun > 0 {
                interrupted.push(format!("{not_begun} of {} files were not begun", all.len()));
            }
            return Err(Interrupted(interrupted.join("\n")).into());
        }
        if failed.into_inner() > 0 { Err(AlreadyReported.into()) } else { Ok(()) }
    }

    fn publish(&self, file: &str, named: Option<String>, overwrite: bool) -> anyhow::Result<()> {
        // A file is given by its path if it has a separator or exists.
        let is_path = file.contains(std::path::is_separator) || Path::new(file).exists();
        let mut body = json!({ "overwrite": overwrite });
        let name = if is_path {
            let path = absolute(file)?;
            let last = Path::new(&path).file_name().and_then(|name| name.to_str());
            let name = named.or_else(|| last.map(str::to_owned)).context("FILE: expected the path of a file")?;
            body["local_path"] = path.into();
            name
        } else {
            if let Some(named) = named {
                bail!("--as {named}: a tracked file has its name already; give its path to publish it under another");
            }
            file.to_owned()
        };
        body["fname"] = name.clone().into();
        let response = self.post("publish", &body)?;
        self.print_result("publish", &response, |response| show::published(&name, &response["duplicates"]));
        Ok(())
    }

    fn fetch(
        &self,
        file: &str,
        options: &FetchOptions<'_>,
        shutdown: &ShutdownSignal,
        is_alone: bool,
    ) -> anyhow::Result<()> {
        let mut body = json!({ "fname": file });
        if let Some(to) = options.to {
            body["save_path"] = absolute(to)?.into();
        }
        if let Some(from) = options.from {
            body["owner_hostname"] = from.into();
        }
        let started = self.post("fetch", &body)?;
        let id = started["fetch_id"].as_str().context("the node answered without a fetch_id")?.to_owned();
        if options.background {
            self.print_result("fetch", &started, |started| {
                format!("{file} is being fetched to {}: fetch {id}", text(&started["save_path"]))
            });
            return Ok(());
        }
        let line = FetchProgressLine::new(&sanitize(file), is_alone && !self.screen.is_json());
        let mut waits_for = String::new();
        loop {
            let progress = self.get(&format!("fetch-progress/{}", percent_encoded(&id)))?["progress"].clone();
            line.show(&progress);
            let why = progress["error"].as_str().unwrap_or_default();
            match progress["status"].as_str().unwrap_or_default() {
                "completed" => {
                    line.clear();
                    let mut fields = started;
                    for field in ["downloaded_size", "verified", "status"] {
                        fields[field] = progress[field].clone();
                    }
                    self.print_result("fetch", &fields, show::fetched);
                    return Ok(());
                }
                "failed" => {
                    line.clear();
                    bail!("{file}: {}", if why.is_empty() { "the fetch failed" } else { why });
                }
                "cancelled" => {
                    line.clear();
                    bail!("{file}: the fetch was cancelled");
                }
                _ if why != waits_for => {
                    waits_for = why.to_owned();
                    // The whole reason: the progress line may have to cut it.
                    if !why.is_empty() {
                        line.print_note(&format!("{file}: {why}"));
                    }
                }
                _ => {}
            }
            if shutdown.wait_for(POLL_INTERVAL) {
                line.clear();
                return Err(Interrupted(format!(
                    "{file}: the fetch goes on in the node; `p2s2 share fetches cancel {id} --name {name}` ends it",
                    name = shell_quoted(self.user.as_str())
                ))
                .into());
            }
        }
    }

    fn get(&self, what: &str) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.get(&api_path(what), Some(token))?))
    }

    fn post(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.post(&api_path(what), Some(token), body)?))
    }

    /// Sends a request with the stored token. It never signs an account in at the node.
    fn call(&self, ask: impl Fn(&Token) -> anyhow::Result<ApiResponse>) -> anyhow::Result<Value> {
        let (user, token) = self.session()?;
        let response = ask(&token)?;
        if response.status == 409 && response.error().starts_with(NOT_STARTED_PREFIX) {
            bail!("{user} does not take part at this node: `p2s2 share login` begins that");
        }
        successful_body(response)
    }

    fn init(&self, user: &str, token: &Token) -> anyhow::Result<ApiResponse> {
        Ok(self.api.post(&api_path("init"), Some(token), &json!({ "username": user }))?)
    }

    /// The stored session of this node's user.
    fn session(&self) -> anyhow::Result<(Name, Token)> {
        let nobody = || {
            format!(
                "{} is not signed in at {}: `p2s2 share login --name {}` first",
                self.user,
                self.api.address(),
                shell_quoted(self.user.as_str())
            )
        };
        let token = self.session_store.session(self.user.as_str())?.with_context(nobody)?;
        Ok((self.user.clone(), Token::from_text(token)))
    }

    /// Prints the result of a command: its fields with `--json`, else a text for people.
    fn print_result(&self, command: &str, response: &Value, text: impl FnOnce(&Value) -> String) {
        if self.screen.is_json() {
            let mut fields = response.clone();
            fields.as_object_mut().map(|fields| fields.remove("success"));
            fields["ok"] = command.into();
            self.screen.print_json(&fields);
        } else {
            let text = text(response);
            self.screen.print(&text.lines().map(sanitize).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The body of a successful response.
fn successful_body(response: ApiResponse) -> anyhow::Result<Value> {
    match response.status {
        _ if response.is_ok() => Ok(response.body),
        // After `login` and `register` the message tells what is wrong with name or password; otherwise it is about the
        // stored token.
        401 => bail!("{}; `p2s2 share login` signs you in, `p2s2 share register` makes an account", response.error()),
        _ => bail!(response.error()),
    }
}

/// Removes duplicates; names stay in the order in which they were given.
fn dedup_names(names: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|name| seen.insert(nfc(name).into_owned())).collect()
}

/// The text, quoted for a shell if necessary.
fn shell_quoted(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn api_path(what: &str) -> String {
    format!("/api/client/{what}")
}

/// The text, percent-encoded for a path segment or a query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The absolute path. The node may run in another working directory.
fn absolute(path: &str) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("{path}: expected a path"))?;
    let mut text = absolute.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{path}: expected UTF-8"))?;
    // A trailing separator marks a folder; `std::path::absolute` may drop it.
    if path.ends_with(std::path::is_separator) && !text.ends_with(std::path::is_separator) {
        text.push(std::path::MAIN_SEPARATOR);
    }
    Ok(text)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether a name matches a pattern, in which `*` is any text and `?` any character.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of) = (0, 0);
    // The position of the last star, and how much of the name it has consumed.
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        match (pattern.get(at), &mut star) {
            (Some('*'), _) => {
                star = Some((at, of));
                at += 1;
            }
            (Some(it), _) if *it == '?' || *it == name[of] => (at, of) = (at + 1, of + 1),
            (_, Some((begins, taken))) => {
                *taken += 1;
                (at, of) = (*begins + 1, *taken);
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|it| *it == '*')
}

/// Expands a path whose last component is a pattern to the matching files of its folder, unless a file of that very
/// name exists. (Shells do that too, but not for quoted arguments.) Hidden files match only patterns that begin with a
/// dot.
fn matching_paths(path: &str) -> Vec<String> {
    let there = Path::new(path);
    let pattern = there.file_name().and_then(|name| name.to_str()).filter(|name| is_pattern(name));
    let Some(pattern) = pattern.filter(|_| !there.exists()) else { return vec![path.to_owned()] };
    let folder = there.parent().unwrap_or(Path::new(""));
    let listed = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let names = listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let meant =
        names.filter(|name| glob_matches(pattern, name) && (pattern.starts_with('.') || !name.starts_with('.')));
    // A bare name would be taken for the name of a tracked file.
    let mut found: Vec<String> =
        meant.filter_map(|name| Path::new(".").join(folder).join(name).to_str().map(str::to_owned)).collect();
    found.sort();
    // Nothing matches: the path itself will be reported as missing.
    if found.is_empty() { vec![path.to_owned()] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_url_is_encoded() {
        assert_eq!(percent_encoded("a b&c/é~"), "a%20b%26c%2F%C3%A9~");
        assert_eq!(percent_encoded("report-1.pdf"), "report-1.pdf");
    }

    #[test]
    fn patterns_mean_what_shells_mean_by_them() {
        for (pattern, name, fits) in [
            ("*", "a", true),
            ("*.txt", "a.txt", true),
            ("*.txt", ".txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("é?", "éé", true),
            ("", "a", false),
        ] {
            assert_eq!(glob_matches(pattern, name), fits, "{pattern} {name}");
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.txt", ".c.txt", "d.pdf"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(matching_paths(&at("*.txt")), [at("a.txt"), at("b.txt")]);
        assert_eq!(matching_paths(&at("*.none")), [at("*.none")]);
        assert_eq!(matching_paths("name"), ["name"]);
    }

    #[test]
    fn paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("a.txt").unwrap(), here.join("a.txt").to_str().unwrap());
        assert_eq!(absolute("/x/a.txt").unwrap(), "/x/a.txt");
        assert!(absolute("sub/").unwrap().ends_with('/'));
        assert!(absolute("").is_err());
    }
}
