//! The commands of `p2s2 share` that talk to a running node, over its client API.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::show;
use crate::cli::repl::{Screen, clean};
use crate::cli::shopper::ask;
use crate::cli::shopper::keep::Keep;
use crate::model::{Name, Token};
use crate::net::shutdown::Shutdown;
use crate::share::api_client::{Answer, ApiClient};

/// How long the node may take for an answer; it asks the server in its turn.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a fetch is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
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
        /// Without it: --name, or who signed in last
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
    /// Let others find and fetch a file: one at a path, or a tracked one by its name
    #[command(
        after_help = "Examples:\n  p2s2 share publish ~/Documents/report.pdf\n  p2s2 share publish ~/notes.txt --as notes-of-may.txt\n  p2s2 share publish report.pdf --unless-duplicate"
    )]
    Publish {
        /// Where it lies, or the name of one that is tracked
        #[arg(value_name = "FILE")]
        file: String,
        /// Under another name
        #[arg(long = "as", value_name = "NAME")]
        named: Option<String>,
        /// Not if somebody has published one that looks the same
        #[arg(long)]
        unless_duplicate: bool,
    },
    /// Hide a file from others again; it stays tracked
    Unpublish {
        /// As `list` shows it
        #[arg(value_name = "NAME")]
        file: String,
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
    /// Fetch a file from whoever has it, and wait until it is here
    #[command(
        after_help = "Examples:\n  p2s2 share fetch report.pdf\n  p2s2 share fetch report.pdf --to ~/Downloads\n  p2s2 share fetch big.iso --background\n\nIt goes on in the node when this command is ended, and after a restart of the node."
    )]
    Fetch {
        /// As `search` shows it
        #[arg(value_name = "NAME")]
        file: String,
        /// A folder, or the path of the file that is to be; without it, the node's repo
        #[arg(long = "to", value_name = "PATH")]
        to: Option<String>,
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

/// Who talks to the node.
struct Desk {
    api: ApiClient,
    keep: Keep,
    screen: Screen,
    /// Who is named on the command line.
    named: Option<String>,
}

/// Does one command.
pub(super) fn run(
    command: ShareCommand,
    node: SocketAddr,
    cert: Option<&str>,
    name: Option<&Name>,
    json: bool,
) -> ExitCode {
    let screen = Screen::new(json, Shutdown::default());
    let done = Keep::of("share", &node.to_string()).and_then(|keep| {
        let api = ApiClient::new(&node.ip().to_string(), node.port(), cert, TIMEOUT);
        let named = name.map(|name| name.as_str().to_owned());
        Desk { api, keep, screen: screen.clone(), named }.perform(command)
    });
    let Err(error) = done else { return ExitCode::SUCCESS };
    if json {
        screen.print_json(&json!({ "error": clean(&format!("{error:#}")) }));
    } else {
        eprintln!("error: {}", clean(&format!("{error:#}")));
    }
    ExitCode::FAILURE
}

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
            ShareCommand::Publish { file, named, unless_duplicate } => self.publish(&file, named, !unless_duplicate),
            ShareCommand::Unpublish { file } => {
                let answer = self.post("unpublish", &json!({ "fname": file }))?;
                self.say("unpublish", &answer, |_| format!("{file} is hidden from others"));
                Ok(())
            }
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
            ShareCommand::Fetch { file, to, background } => self.fetch(&file, to.as_deref(), background),
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
        let known = match username.or_else(|| self.named.clone()) {
            None if what == "login" => self.keep.last_user()?,
            named => named,
        };
        let username = match (known, ask::somebody_is_there()) {
            (Some(username), _) => username,
            (None, true) => ask::line("User name: ")?,
            (None, false) => bail!("a user name is missing: {what} USERNAME (or --name NAME)"),
        };
        let mut body = json!({"username": username, "password": ask::password(what == "register")?});
        if let Some(display_name) = display_name {
            body["display_name"] = display_name.into();
        }
        let answer = self.api.post(&path(what), None, &body)?;
        let mut fields = well(answer)?;
        let token = fields["token"].as_str().context("the node answered without a token")?.to_owned();
        let user = fields["user"]["username"].as_str().unwrap_or(&username).to_owned();
        self.keep.put_session(&user, &token)?;
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
            self.keep.drop_session(&user)?;
        }
        let answer = if answer.status == 401 { json!({}) } else { well(answer)? };
        self.say("logout", &answer, |_| format!("{user} is signed out"));
        Ok(())
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

    fn fetch(&self, file: &str, to: Option<&str>, background: bool) -> anyhow::Result<()> {
        let mut body = json!({ "fname": file });
        if let Some(to) = to {
            body["save_path"] = absolute(to)?.into();
        }
        let begun = self.post("fetch", &body)?;
        let id = begun["fetch_id"].as_str().context("the node answered without a fetch_id")?.to_owned();
        if background {
            self.say("fetch", &begun, |begun| {
                format!("{file} is being fetched to {}: fetch {id}", text(&begun["save_path"]))
            });
            return Ok(());
        }
        let bar = bar(begun["total_size"].as_u64().unwrap_or_default(), self.screen.is_json());
        bar.set_message(file.to_owned());
        let mut waits_for = String::new();
        loop {
            let progress = self.get(&format!("fetch-progress/{}", encoded(&id)))?["progress"].clone();
            bar.set_position(progress["downloaded_size"].as_u64().unwrap_or_default());
            let why = progress["error"].as_str().unwrap_or_default();
            match progress["status"].as_str().unwrap_or_default() {
                "completed" => {
                    bar.finish_and_clear();
                    let mut fields = begun;
                    for field in ["downloaded_size", "verified", "status"] {
                        fields[field] = progress[field].clone();
                    }
                    self.say("fetch", &fields, show::fetched);
                    return Ok(());
                }
                "failed" => {
                    bar.abandon();
                    bail!("{file}: {}", if why.is_empty() { "the fetch failed" } else { why });
                }
                "cancelled" => {
                    bar.abandon();
                    bail!("{file}: the fetch was cancelled");
                }
                _ if why != waits_for => {
                    waits_for = why.to_owned();
                    bar.set_message(if why.is_empty() { file.to_owned() } else { format!("{file}: {}", clean(why)) });
                    if bar.is_hidden() && !why.is_empty() {
                        eprintln!("note: {file}: {}", clean(why));
                    }
                }
                _ => {}
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn get(&self, what: &str) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.get(&path(what), Some(token))?))
    }

    fn post(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(|token| Ok(self.api.post(&path(what), Some(token), body)?))
    }

    /// Asks with the kept token; a node that was begun anew is told to take part first.
    fn call(&self, ask: impl Fn(&Token) -> anyhow::Result<Answer>) -> anyhow::Result<Value> {
        let (user, token) = self.session()?;
        let answer = ask(&token)?;
        if answer.status == 409 && answer.error().starts_with(NOT_BEGUN) {
            well(self.begin(&user, &token)?)?;
            return well(ask(&token)?);
        }
        well(answer)
    }

    fn begin(&self, user: &str, token: &Token) -> anyhow::Result<Answer> {
        Ok(self.api.post(&path("init"), Some(token), &json!({ "username": user }))?)
    }

    /// Who is signed in, by the file.
    fn session(&self) -> anyhow::Result<(String, Token)> {
        let user = match &self.named {
            Some(named) => Some(named.clone()),
            None => self.keep.last_user()?,
        };
        let nobody = || format!("nobody is signed in at {}: `p2s2 share login` first", self.api.at());
        let user = user.with_context(nobody)?;
        let token = self.keep.session(&user)?.with_context(nobody)?;
        Ok((user, Token::from_text(token)))
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
        401 => bail!("{}; `p2s2 share login` signs you in", answer.error()),
        _ => bail!(answer.error()),
    }
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

/// At a terminal, on the error output: what is printed stays what was asked for.
fn bar(total: u64, json: bool) -> ProgressBar {
    let is_shown = !json && io::stderr().is_terminal() && io::stdout().is_terminal();
    let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let style = "{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    // A style that is written here is one that can be read.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
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
    fn paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("a.txt").unwrap(), here.join("a.txt").to_str().unwrap());
        assert_eq!(absolute("/x/a.txt").unwrap(), "/x/a.txt");
        assert!(absolute("sub/").unwrap().ends_with('/'));
        assert!(absolute("").is_err());
    }
}
