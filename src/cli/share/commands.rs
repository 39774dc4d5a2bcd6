//! The commands of `p2s2 share` that talk to a running node over its client API.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::node_client::{AlreadyReported, Interrupted, NodeClient, api_path, successful_body, text};
use super::show;
use super::transfers::FetchOptions;
use super::words::{absolute, percent_encoded};
use crate::cli::output::sanitize;
use crate::cli::prompt;
use crate::cli::repl::Screen;
use crate::cli::session_store::SessionStore;
use crate::model::{Name, Token};
use crate::net::shutdown::ShutdownSignal;
use crate::services::running_nodes::{self, NodeQuery};
use crate::share::api_client::ApiClient;

/// How long the node may take to respond; it may have to ask the server in turn.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Exit code when the user stops waiting, as shells report a death by SIGINT.
const INTERRUPTED_EXIT_CODE: u8 = 130;
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

pub(super) fn run(command: ShareCommand, query: &NodeQuery<'_>, json: bool) -> ExitCode {
    let shutdown = ShutdownSignal::default();
    let screen = Screen::new(json, shutdown.clone());
    let done = running_nodes::find(query).and_then(|node| {
        let (ip, port) = (node.api_addr.ip().to_string(), node.api_addr.port());
        let api = ApiClient::new(&ip, port, node.cert.as_deref(), RESPONSE_TIMEOUT);
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
    let error = sanitize(&format!("{error:#}"));
    if json {
        screen.print_json(&json!({ "error": error }));
    } else {
        eprintln!("error: {error}");
    }
    ExitCode::FAILURE
}

impl NodeClient {
    fn run_command(&self, command: ShareCommand) -> anyhow::Result<()> {
        match command {
            ShareCommand::Register { username, display_name } => {
                self.sign_in("register", username, display_name.as_deref())
            }
            ShareCommand::Login { username } => self.sign_in("login", username, None),
            ShareCommand::Logout => self.log_out(),
            ShareCommand::Add { files } => {
                let is_tracked = |response: &Value| format!("{} is tracked", text(&response["file"]["name"]));
                files.iter().try_for_each(|file| {
                    self.post_and_print("add", "add-file", &json!({ "filepath": absolute(file)? }), is_tracked)
                })
            }
            ShareCommand::Publish { files, named, unless_duplicate } => {
                self.publish_all(&files, named, !unless_duplicate)
            }
            ShareCommand::Unpublish { files } => self.unpublish_all(&files),
            ShareCommand::List { published } => {
                self.get_and_print("list", if published { "published-files" } else { "local-files" }, show::own_files)
            }
            ShareCommand::Network { page } => {
                self.get_and_print("network", &format!("network-files?{}", page.query()), show::network_files)
            }
            ShareCommand::Search { text, page } => {
                let what = format!("network-files?q={}&{}", percent_encoded(&text), page.query());
                self.get_and_print("search", &what, show::network_files)
            }
            ShareCommand::Fetch { files, to, from, background } => {
                self.fetch_all(&files, &FetchOptions { to: to.as_deref(), from: from.as_deref(), background })
            }
            ShareCommand::Fetches { action: Some(action), id: Some(id) } => {
                let what = format!("fetches/{}/{action}", percent_encoded(&id));
                self.post_and_print("fetches", &what, &json!({}), show::fetch)
            }
            ShareCommand::Fetches { .. } => self.get_and_print("fetches", "fetches", show::fetches),
            ShareCommand::Peers { page } => {
                self.get_and_print("peers", &format!("peers?{}", page.query()), show::peers)
            }
            ShareCommand::Status => self.get_and_print("status", "status", show::status),
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
        let body = json!({ "username": user });
        let started = successful_body(self.api.post(&api_path("init"), Some(&Token::from_text(token)), &body)?)
            .with_context(|| format!("{user} is signed in, but the node does not take part"))?;
        fields["client"] = started["client"].clone();
        self.screen.print_ok(what, fields, |fields| {
            format!("signed in as {user}; peer port {}", text(&fields["client"]["port"]))
        });
        Ok(())
    }

    fn log_out(&self) -> anyhow::Result<()> {
        let user = &self.user;
        let response = self.api.post(&api_path("logout"), Some(&self.token()?), &json!({}))?;
        // A token that has expired or was logged out before is of no use either.
        if response.is_ok() || response.status == 401 {
            self.session_store.remove_session(user.as_str())?;
        }
        let response = if response.status == 401 { json!({}) } else { successful_body(response)? };
        self.screen.print_ok("logout", response, |_| format!("{user} is signed out"));
        Ok(())
    }
}
