//! The commands of `p2s2 share` that talk to a running node, over its client API.

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

use super::progress::Line;
use super::{running, show};
use crate::cli::repl::{Screen, clean};
use crate::cli::shopper::ask;
use crate::cli::shopper::keep::Keep;
use crate::model::text::nfc;
use crate::model::{Name, Token};
use crate::net::shutdown::Shutdown;
use crate::share::api_client::{Answer, ApiClient};

/// How long the node may take for an answer; it asks the server in its turn.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a fetch is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Files that are published or fetched at a time, of many.
const AT_ONCE: usize = 8;
/// Files of the network that are looked at at a time.
const PAGE: usize = 1000;
/// The exit code of who waits no more, as shells report a death by SIGINT.
const INTERRUPTED: u8 = 130;
/// How the node says that it does not take part yet.
const NOT_BEGUN: &str = "not begun";

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
        page: PageArgs,
    },
    /// Show what everybody has published with this in its name
    #[command(after_help = "Example:\n  p2s2 share search report")]
    Search {
        /// Any part of the name
        #[arg(value_name = "TEXT")]
        text: String,
        #[command(flatten)]
        page: PageArgs,
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
        wish: Option<String>,
        /// Which one, as `fetches` shows it
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
    /// Show who is on the network
    Peers {
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show how the node is
    Status,
}

/// A part of a long list.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct PageArgs {
    /// How many to skip
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// How many to show at most, up to 1000
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
}

impl PageArgs {
    fn query(self) -> String {
        format!("offset={}&limit={}", self.offset, self.limit)
    }
}

/// Which node a command is for.
pub(super) struct Wanted<'a> {
    /// Where, if that was said.
    pub port: Option<SocketAddr>,
    /// Whose, if that was said.
    pub name: Option<&'a Name>,
    /// The certificate that it shows.
    pub cert: Option<&'a str>,
    /// Where one would be that left no note.
    pub usual: SocketAddr,
}

/// Who talks to the node.
struct Desk {
    api: ApiClient,
    keep: Keep,
    screen: Screen,
    /// Whose node it is: no other's token is shown to it.
    user: Name,
    shutdown: Shutdown,
}

/// How files are fetched.
struct Fetching<'a> {
    to: Option<&'a str>,
    from: Option<&'a str>,
    background: bool,
}

/// Does one command.
pub(super) fn run(command: ShareCommand, wanted: &Wanted<'_>, json: bool) -> ExitCode {
    let shutdown = Shutdown::default();
    let screen = Screen::new(json, shutdown.clone());
    let done = running::find(wanted.port, wanted.name, wanted.cert, wanted.usual).and_then(|node| {
        let api = ApiClient::new(&node.at.ip().to_string(), node.at.port(), node.cert.as_deref(), TIMEOUT);
        // A token is of a server and a user, wherever the user's node is just now.
        let keep = Keep::of("share", &node.server)?;
        Desk { api, keep, screen: screen.clone(), user: node.name, shutdown }.perform(command)
    });
    let Err(error) = done else { return ExitCode::SUCCESS };
    if error.is::<Said>() {
        return ExitCode::FAILURE;
    }
    if let Some(LeftAlone(said)) = error.downcast_ref() {
        for line in said.lines() {
            eprintln!("{}", clean(line));
        }
        return ExitCode::from(INTERRUPTED);
    }
    if json {
        screen.print_json(&json!({ "error": clean(&format!("{error:#}")) }));
    } else {
        eprintln!("error: {}", clean(&format!("{error:#}")));
    }
    ExitCode::FAILURE
}

/// What failed was said already.
#[derive(Debug, thiserror::Error)]
#[error("some of it failed")]
struct Said;

/// The user waits no more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct LeftAlone(String);

impl Desk {
    fn perform(&self, command: ShareCommand) -> anyhow::Result<()> {
        match command {
            ShareCommand::Register { username, display_name } => {
                self.sign_in("register", username, display_name.as_deref())
            }
            ShareCommand::Login { username } => self.sign_in("login", username, None),
            ShareCommand::Logout => self.log_out(),
            ShareCommand::Add { files } => {
                for file in files {
                    let answer = self.post("add-file", &json!({ "filepath": absolute(&file)? }))?;
                    self.say("add", &answer, |answer| format!("{} is tracked", text(&answer["file"]["name"])));
                }
                Ok(())
            }
            ShareCommand::Publish { files, named, unless_duplicate } => {
                self.publish_all(&files, named, !unless_duplicate)
            }
            ShareCommand::Unpublish { files } => self.unpublish_all(&files),
            ShareCommand::List { published } => {
                let answer = self.get(if published { "published-files" } else { "local-files" })?;
                self.say("list", &answer, |answer| show::own_files(&answer["files"]));
                Ok(())
            }
            ShareCommand::Network { page } => {
                let answer = self.get(&format!("network-files?{}", page.query()))?;
                self.say("network", &answer, show::network_files);
                Ok(())
            }
            ShareCommand::Search { text, page } => {
                let answer = self.get(&format!("network-files?q={}&{}", encoded(&text), page.query()))?;
                self.say("search", &answer, show::network_files);
                Ok(())
            }
            ShareCommand::Fetch { files, to, from, background } => {
                self.fetch_all(&files, &Fetching { to: to.as_deref(), from: from.as_deref(), background })
            }
            ShareCommand::Fetches { wish: Some(wish), id: Some(id) } => {
                let answer = self.post(&format!("fetches/{}/{wish}", encoded(&id)), &json!({}))?;
                self.say("fetches", &answer, |answer| show::fetch(&answer["progress"]));
                Ok(())
            }
            ShareCommand::Fetches { .. } => {
                self.say("fetches", &self.get("fetches")?, |answer| show::fetches(&answer["fetches"]));
                Ok(())
            }
            ShareCommand::Peers { page } => {
                let answer = self.get(&format!("peers?{}", page.query()))?;
                self.say("peers", &answer, show::peers);
                Ok(())
            }
            ShareCommand::Status => {
                self.say("status", &self.get("status")?, |answer| show::status(&answer["client"]));
                Ok(())
            }
        }
    }

    fn sign_in(&self, what: &str, username: Option<String>, display_name: Option<&str>) -> anyhow::Result<()> {
        let username = username.unwrap_or_else(|| self.user.to_string());
        if Name::kept(&username).ok().as_ref() != Some(&self.user) {
            bail!(
                "the node at {} is {}'s: `p2s2 share --name {username}` runs one for {username}",
                self.api.at(),
                self.user
            );
        }
        let mut body = json!({"username": username, "password": ask::password(what == "register")?});
        if let Some(display_name) = display_name {
            body["display_name"] = display_name.into();
        }
        let answer = self.api.post(&path(what), None, &body)?;
        let mut fields = well(answer)?;
        let token = fields["token"].as_str().context("the node answered without a token")?.to_owned();
        let user = fields["user"]["username"].as_str().unwrap_or(&username).to_owned();
        // As it is looked for: under whom the node is named after.
        self.keep.put_session(self.user.as_str(), &token)?;
        // The token is in its file, not for every screen.
        fields.as_object_mut().map(|fields| fields.remove("token"));
        let begun = well(self.begin(&user, &Token::from_text(token))?)
            .with_context(|| format!("{user} is signed in, but the node does not take part"))?;
        fields["client"] = begun["client"].clone();
        self.say(what, &fields, |fields| format!("signed in as {user}; peer port {}", text(&fields["client"]["port"])));
        Ok(())
    }

    fn log_out(&self) -> anyhow::Result<()> {
        let (user, token) = self.session()?;
        let answer = self.api.post(&path("logout"), Some(&token), &json!({}))?;
        // One that has ended, or was logged out before, is of no use either.
        if answer.is_ok() || answer.status == 401 {
            self.keep.drop_session(user.as_str())?;
        }
        let answer = if answer.status == 401 { json!({}) } else { well(answer)? };
        self.say("logout", &answer, |_| format!("{user} is signed out"));
        Ok(())
    }

    /// All of them, several at a time: the node and the registry write many changes down together.
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
                eprintln!("note: {} is a folder: left out", clean(file));
            }
            !is_folder
        });
        self.each(files.collect(), |file| self.publish(file, None, overwrite))
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
            let found: Vec<String> = all.filter(|name| matches(file, name)).map(str::to_owned).collect();
            if found.is_empty() {
                bail!("you publish no file like {file}");
            }
            names.extend(found);
        }
        let names = each_once(names);
        let unpublish = |name: &str| -> anyhow::Result<()> {
            let answer = self.post("unpublish", &json!({ "fname": name }))?;
            self.say("unpublish", &answer, |_| format!("{name} is hidden from others"));
            Ok(())
        };
        match &names[..] {
            [name] => unpublish(name),
            _ => self.each(names, unpublish),
        }
    }

    fn fetch_all(&self, files: &[String], how: &Fetching<'_>) -> anyhow::Result<()> {
        let mut named = Vec::new();
        for file in files {
            if is_pattern(file) {
                named.extend(self.matching_names(file, how.from)?);
            } else {
                named.push(file.clone());
            }
        }
        let names = each_once(named);
        let shutdown = Shutdown::install().unwrap_or_else(|error| {
            log::debug!("Ctrl-C ends at once: {error}");
            self.shutdown.clone()
        });
        if let [name] = &names[..] {
            return self.fetch(name, how, &shutdown, true);
        }
        if let Some(to) = how.to.filter(|to| !Path::new(to).is_dir()) {
            bail!("--to {to}: {} files want a folder that is there", names.len());
        }
        self.each(names, |name| self.fetch(name, how, &shutdown, false))
    }

    /// Names on the network that a pattern means: of files of one owner, or of anybody else's.
    fn matching_names(&self, pattern: &str, from: Option<&str>) -> anyhow::Result<Vec<String>> {
        let names = match from {
            Some(from) => self.names_of(from, pattern)?,
            None => self.others_names(pattern)?,
        };
        if names.is_empty() {
            match from {
                Some(from) => bail!("{from} has no file like {pattern} on the network"),
                None => bail!("nobody else on the network has a file like {pattern}"),
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Those of one owner, as the registry has them now.
    fn names_of(&self, owner: &str, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let host = self.get(&format!("discover/{}", encoded(owner)))?;
        let names = host["files"].as_object().into_iter().flat_map(|files| files.keys());
        Ok(names.filter(|name| matches(pattern, name)).cloned().collect())
    }

    fn others_names(&self, pattern: &str) -> anyhow::Result<BTreeSet<String>> {
        let is_meant = |owner: &str| nfc(owner) != self.user.key();
        let longest = pattern.split(['*', '?']).max_by_key(|part| part.len()).unwrap_or_default();
        let (mut names, mut offset) = (BTreeSet::new(), 0);
        loop {
            let page = self.get(&format!("network-files?q={}&offset={offset}&limit={PAGE}", encoded(longest)))?;
            let files = page["files"].as_array().cloned().unwrap_or_default();
            let found = files.iter().filter(|file| file["owner_hostname"].as_str().is_some_and(is_meant));
            let found = found.filter_map(|file| file["name"].as_str()).filter(|name| matches(pattern, name));
            names.extend(found.map(str::to_owned));
            offset += PAGE;
            if files.len() < PAGE {
                return Ok(names);
            }
        }
    }

    /// Does something with each, a few at a time; what fails is said, and the others go on.
    fn each(&self, all: Vec<String>, work: impl Fn(&str) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let failed = AtomicUsize::new(0);
        let left_alone = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(all.len()) {
                scope.spawn(|| {
                    while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match work(one) {
                            Ok(()) => {}
                            Err(error) => {
                                let error = match error.downcast::<LeftAlone>() {
                                    Ok(LeftAlone(said)) => return left_alone.lock().push(said),
                                    Err(error) => error,
                                };
                                failed.fetch_add(1, Ordering::Relaxed);
                                let why = clean(&format!("{one}: {error:#}"));
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
        let mut left_alone = left_alone.into_inner();
        if !left_alone.is_empty() {
            // Each that ended took one; who was interrupted took none after it.
            let not_begun = all.len().saturating_sub(next.into_inner());
            if not_begun > 0 {
                left_alone.push(format!("{not_begun} of {} files were not begun", all.len()));
            }
            return Err(LeftAlone(left_alone.join("\n")).into());
        }
        if failed.into_inner() > 0 { Err(Said.into()) } else { Ok(()) }
    }

    fn publish(&self, file: &str, named: Option<String>, overwrite: bool) -> anyhow::Result<()> {
        // A path says so by its separators, or by being one.
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
        let answer = self.post("publish", &body)?;
        self.say("publish", &answer, |answer| show::published(&name, &answer["duplicates"]));
        Ok(())
    }

    fn fetch(&self, file: &str, how: &Fetching<'_>, shutdown: &Shutdown, is_alone: bool) -> anyhow::Result<()> {
        let mut body = json!({ "fname": file });
        if let Some(to) = how.to {
            body["save_path"] = absolute(to)?.into();
        }
        if let Some(from) = how.from {
            body["owner_hostname"] = from.into();
        }
        let begun = self.post("fetch", &body)?;
        let id = begun["fetch_id"].as_str().context("the node answered without a fetch_id")?.to_owned();
        if how.background {
            self.say("fetch", &begun, |begun| {
                format!("{file} is being fetched to {}: fetch {id}", text(&begun["save_path"]))
            });
            return Ok(());
        }
        let line = Line::new(&clean(file), is_alone && !self.screen.is_json());
        let mut waits_for = String::new();
        loop {
            let progress = self.get(&format!("fetch-progress/{}", encoded(&id)))?["progress"].clone();
            line.show(&progress);
            let why = progress["error"].as_str().unwrap_or_default();
            match progress["status"].as_str().unwrap_or_default() {
                "completed" => {
                    line.clear();
                    let mut fields = begun;
                    for field in ["downloaded_size", "verified", "status"] {
                        fields[field] = progress[field].clone();
                    }
                    self.say("fetch", &fields, show::fetched);
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
                    // Whole: the line shows as much of it as fits.
                    if !why.is_empty() {
                        line.note(&format!("{file}: {why}"));
                    }
                }
                _ => {}
            }
            if shutdown.wait_for(LOOK_EVERY) {
                line.clear();
                return Err(LeftAlone(format!(
                    "{file}: the fetch goes on in the node; `p2s2 share fetches cancel {id} --name {name}` ends it",
                    name = shell_word(self.user.as_str())
                ))
                .into());
            }
        }
    }

    fn get(&self, what: &str) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.get(&path(what), Some(token))?))
    }

    fn post(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.post(&path(what), Some(token), body)?))
    }

    /// Asks with the kept token. No account is brought to the node by that.
    fn call(&self, ask: impl Fn(&Token) -> anyhow::Result<Answer>) -> anyhow::Result<Value> {
        let (user, token) = self.session()?;
        let answer = ask(&token)?;
        if answer.status == 409 && answer.error().starts_with(NOT_BEGUN) {
            bail!("{user} does not take part at this node: `p2s2 share login` begins that");
        }
        well(answer)
    }

    fn begin(&self, user: &str, token: &Token) -> anyhow::Result<Answer> {
        Ok(self.api.post(&path("init"), Some(token), &json!({ "username": user }))?)
    }

    /// Who is signed in, by the file.
    fn session(&self) -> anyhow::Result<(Name, Token)> {
        let nobody = || {
            format!(
                "{} is not signed in at {}: `p2s2 share login --name {}` first",
                self.user,
                self.api.at(),
                shell_word(self.user.as_str())
            )
        };
        let token = self.keep.session(self.user.as_str())?.with_context(nobody)?;
        Ok((self.user.clone(), Token::from_text(token)))
    }

    /// The answer of a command: its fields with `--json`, else a text for people.
    fn say(&self, command: &str, answer: &Value, text: impl FnOnce(&Value) -> String) {
        if self.screen.is_json() {
            let mut fields = answer.clone();
            fields.as_object_mut().map(|fields| fields.remove("success"));
            fields["ok"] = command.into();
            self.screen.print_json(&fields);
        } else {
            let text = text(answer);
            self.screen.print(&text.lines().map(clean).collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The fields of an answer, or why there are none.
fn well(answer: Answer) -> anyhow::Result<Value> {
    match answer.status {
        _ if answer.is_ok() => Ok(answer.body),
        // Who asks with a name and a password is told what is wrong with them; else it is the token that is kept.
        401 => bail!("{}; `p2s2 share login` signs you in, `p2s2 share register` makes an account", answer.error()),
        _ => bail!(answer.error()),
    }
}

/// In the order in which they were named.
fn each_once(names: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|name| seen.insert(nfc(name).into_owned())).collect()
}

/// As it can be typed at a shell's prompt.
fn shell_word(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn path(what: &str) -> String {
    format!("/api/client/{what}")
}

/// A part of a path or query, as URLs have it.
fn encoded(text: &str) -> String {
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

/// As the node has to be told: it may have been started from another folder.
fn absolute(path: &str) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("{path}: expected a path"))?;
    let mut text = absolute.into_os_string().into_string().map_err(|_| anyhow::anyhow!("{path}: expected UTF-8"))?;
    // `std::path::absolute` keeps it, but for the root's: a folder is meant.
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

/// Whether a name is one that a pattern means: `*` is any text, `?` one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of) = (0, 0);
    // Where the last star stands, and how much of the name it takes.
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

/// The files that a path means: those of its folder, where its last part is a pattern and no file of that name is there.
/// (Most shells do that by themselves, but not for what is quoted.) Hidden ones are meant by a pattern that begins with a
/// dot alone.
fn matching_paths(path: &str) -> Vec<String> {
    let there = Path::new(path);
    let pattern = there.file_name().and_then(|name| name.to_str()).filter(|name| is_pattern(name));
    let Some(pattern) = pattern.filter(|_| !there.exists()) else { return vec![path.to_owned()] };
    let folder = there.parent().unwrap_or(Path::new(""));
    let listed = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let names = listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let meant = names.filter(|name| matches(pattern, name) && (pattern.starts_with('.') || !name.starts_with('.')));
    // A bare name would be taken for that of a tracked file.
    let mut found: Vec<String> =
        meant.filter_map(|name| Path::new(".").join(folder).join(name).to_str().map(str::to_owned)).collect();
    found.sort();
    // Nothing fits: what was given is said to be missing.
    if found.is_empty() { vec![path.to_owned()] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_url_is_encoded() {
        assert_eq!(encoded("a b&c/é~"), "a%20b%26c%2F%C3%A9~");
        assert_eq!(encoded("report-1.pdf"), "report-1.pdf");
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
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
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
