//! The commands of a LAN peer. Message texts are taken verbatim: an apostrophe does not start a quote.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::show;
use crate::cli::output::sanitize;
use crate::cli::repl::{Commands, Flow, Screen};
use crate::lan::node::{CommandError, CommandOutcome, NodeCommand};
use crate::lan::peer::{LanCommandError, LanPeer};
use crate::lan::wire::{AVATAR_MAX, Avatar};

/// Messages that HISTORY shows by default.
const HISTORY_COUNT_DEFAULT: usize = 20;
/// After this time a new peer knows all others on the network, with some margin.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(1_200);
/// How often a condition is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longer than the 5.5 s for which a DM is repeated.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(6);

/// Name, arguments and description.
const COMMANDS: [(&str, &str, &str); 12] = [
    ("POST", "TEXT", "say something to everybody"),
    (
        "DM",
        "USER TEXT",
        "say something to one: NAME (in quotes if it has blanks), or NAME@IP where several are called so",
    ),
    ("PROFILE", "NAME | STATUS | AVATAR-FILE", "show who you are; the last two may be left out"),
    ("LIST", "", "who is here"),
    ("PEERS", "", "ask others whom they know"),
    ("HISTORY", "[COUNT]", "messages sent and received, the newest last"),
    ("VERBOSE", "[ON|OFF]", "show times, addresses and types, and what is dropped and why"),
    ("STATS", "", "what was counted"),
    ("HELP", "", "this list"),
    ("QUIT", "", "stop"),
    ("EXIT", "", "the same"),
    ("BYE", "", "the same"),
];

/// What the next input line is the answer to.
#[derive(Debug, Clone)]
enum PendingPrompt {
    PostText,
    DmUser,
    DmText { to: String },
    ProfileName,
    ProfileStatus { name: String },
    ProfileAvatar { name: String, status: String },
}

pub(super) struct LanCommands {
    peer: Arc<LanPeer>,
    screen: Screen,
    verbose: Arc<AtomicBool>,
    pending_prompt: Mutex<Option<PendingPrompt>>,
    started_at: Instant,
}

impl LanCommands {
    pub(super) fn new(peer: Arc<LanPeer>, screen: Screen, verbose: Arc<AtomicBool>) -> LanCommands {
        LanCommands { peer, screen, verbose, pending_prompt: Mutex::default(), started_at: Instant::now() }
    }
}

impl Commands for LanCommands {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        self.run_line(&words.join(" "))
    }

    fn run_line(&self, line: &str) -> anyhow::Result<Flow> {
        // A statement of its own, so that the lock is released: the answer may set the next prompt.
        let pending = self.pending_prompt.lock().take();
        if let Some(pending) = pending {
            return self.continue_command(pending, line.trim()).map(|()| Flow::Continue);
        }
        let (word, rest) = split_word(line);
        if word.is_empty() {
            return Ok(Flow::Continue);
        }
        let command = word.to_uppercase();
        let Some((name, usage, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
            bail!("there is no command {word:?}; HELP lists them");
        };
        match (*name, rest) {
            ("POST", "") => self.prompt_for(PendingPrompt::PostText),
            ("POST", text) => self.post(text)?,
            ("DM", "") => self.prompt_for(PendingPrompt::DmUser),
            ("DM", rest) => match split_user(rest)? {
                (to, "") => self.prompt_for(PendingPrompt::DmText { to }),
                (to, text) => self.dm(to, text)?,
            },
            ("PROFILE", "") => self.prompt_for(PendingPrompt::ProfileName),
            ("PROFILE", rest) => {
                let mut parts = rest.splitn(3, '|').map(str::trim);
                let mut next = || parts.next().unwrap_or_default();
                self.profile(next(), next(), next())?;
            }
            ("LIST", "") => self.list()?,
            ("PEERS", "") => {
                let done = self.peer.command(NodeCommand::RequestPeerLists)?;
                if let CommandOutcome::PeerListsRequested { peers } = done {
                    self.print_result("peers", json!({ "asked": peers }), || {
                        format!("{} asked", show::peer_count(peers))
                    });
                }
            }
            ("HISTORY", count) => self.history(count)?,
            ("VERBOSE", how) => self.set_verbose(how)?,
            ("STATS", "") => self.stats()?,
            ("HELP", "") => self.help(),
            ("QUIT" | "EXIT" | "BYE", "") => return Ok(Flow::Quit),
            _ => bail!("usage: {}", format!("{name} {usage}").trim_end()),
        }
        Ok(Flow::Continue)
    }

    fn question(&self) -> Option<String> {
        let question = match self.pending_prompt.lock().as_ref()? {
            PendingPrompt::PostText | PendingPrompt::DmText { .. } => "Text: ",
            PendingPrompt::DmUser => "User: ",
            PendingPrompt::ProfileName => "Display name: ",
            PendingPrompt::ProfileStatus { .. } => "Status (may be empty): ",
            PendingPrompt::ProfileAvatar { .. } => "Picture file (may be empty): ",
        };
        Some(question.to_owned())
    }

    /// At the end of a pipe, waits for DMs that may still have to be repeated.
    fn input_ended(&self) {
        self.wait_for_confirmations(CONFIRMATION_TIMEOUT);
    }

    fn prompt(&self) -> Option<String> {
        self.peer.snapshot().ok().map(|view| format!("{}> ", sanitize(view.name.as_str())))
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        match before {
            [] => COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            [command] if command.eq_ignore_ascii_case("DM") => {
                let peers = self.peer.snapshot().map(|view| view.peers).unwrap_or_default();
                let people = peers.iter().filter(|peer| !peer.is_server());
                people.map(|peer| peer.user_id.name.as_str().to_owned()).collect()
            }
            [command] if command.eq_ignore_ascii_case("VERBOSE") => ["ON", "OFF"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }
}

impl LanCommands {
    /// Waits until no DM awaits confirmation, or until the timeout.
    pub(super) fn wait_for_confirmations(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        while Instant::now() < until && self.peer.snapshot().is_ok_and(|view| view.pending_dms > 0) {
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn prompt_for(&self, pending: PendingPrompt) {
        *self.pending_prompt.lock() = Some(pending);
    }

    /// Continues a command with the answer to a prompt. An empty line cancels the command where a value is required.
    fn continue_command(&self, pending: PendingPrompt, line: &str) -> anyhow::Result<()> {
        match (pending, line) {
            (
                PendingPrompt::PostText
                | PendingPrompt::DmUser
                | PendingPrompt::DmText { .. }
                | PendingPrompt::ProfileName,
                "",
            ) => {
                bail!("nothing was entered")
            }
            (PendingPrompt::PostText, text) => self.post(text)?,
            (PendingPrompt::DmUser, user) => self.prompt_for(PendingPrompt::DmText { to: parse_user_line(user) }),
            (PendingPrompt::DmText { to }, text) => self.dm(to, text)?,
            (PendingPrompt::ProfileName, name) => {
                self.prompt_for(PendingPrompt::ProfileStatus { name: name.to_owned() })
            }
            (PendingPrompt::ProfileStatus { name }, status) => {
                self.prompt_for(PendingPrompt::ProfileAvatar { name, status: status.to_owned() });
            }
            (PendingPrompt::ProfileAvatar { name, status }, file) => self.profile(&name, &status, file)?,
        }
        Ok(())
    }

    /// Repeats a command that cannot succeed yet. A peer that has just started learns of the others within a second,
    /// and a pipe may produce messages faster than others accept them.
    fn retry_until_accepted(&self, command: &NodeCommand) -> Result<CommandOutcome, LanCommandError> {
        let first_try_at = Instant::now();
        loop {
            let pause = match self.peer.command(command.clone()) {
                Err(LanCommandError::Refused(CommandError::RateLimited { retry_after_ms })) => {
                    Duration::from_millis(retry_after_ms)
                }
                Err(LanCommandError::Refused(CommandError::TooManyUnconfirmed(_)))
                    if first_try_at.elapsed() < CONFIRMATION_TIMEOUT =>
                {
                    POLL_INTERVAL
                }
                Err(LanCommandError::Refused(CommandError::NoPeers | CommandError::UnknownUser(_)))
                    if self.started_at.elapsed() < DISCOVERY_TIMEOUT =>
                {
                    POLL_INTERVAL
                }
                done => return done,
            };
            thread::sleep(pause);
        }
    }

    fn post(&self, text: &str) -> anyhow::Result<()> {
        let done = self.retry_until_accepted(&NodeCommand::Post { content: text.to_owned() })?;
        if let CommandOutcome::Posted { to, message_id } = done {
            let about = json!({ "to": to, "message_id": message_id });
            self.print_result("post", about, || format!("sent to {}", show::peer_count(to)));
        }
        Ok(())
    }

    fn dm(&self, to: String, text: &str) -> anyhow::Result<()> {
        let done = self.retry_until_accepted(&NodeCommand::Dm { to, content: text.to_owned() })?;
        if let CommandOutcome::DmSent { to, addr, message_id, awaits_ack } = done {
            let about =
                json!({ "to": to.to_string(), "addr": addr, "message_id": message_id, "awaits_ack": awaits_ack });
            self.print_result("dm", about, || {
                let rest = if awaits_ack { "; waiting for it to be confirmed" } else { "; it confirms nothing" };
                format!("sent to {to}{rest}")
            });
        }
        Ok(())
    }

    fn profile(&self, display_name: &str, status: &str, file: &str) -> anyhow::Result<()> {
        let avatar = if file.is_empty() { None } else { Some(read_avatar(Path::new(file))?) };
        let (display_name, status) = (display_name.to_owned(), status.to_owned());
        let done = self.retry_until_accepted(&NodeCommand::Profile { display_name, status, avatar })?;
        if let CommandOutcome::ProfileSent { to, message_id } = done {
            let about = json!({ "to": to, "message_id": message_id });
            self.print_result("profile", about, || format!("kept, and sent to {}", show::peer_count(to)));
        }
        Ok(())
    }

    fn list(&self) -> anyhow::Result<()> {
        let view = self.peer.snapshot()?;
        let people: Vec<_> = view.peers.iter().filter(|peer| !peer.is_server()).collect();
        self.print_json_or_text(
            json!({ "event": "list", "name": view.name, "peers": show::peer_list_json(&people, view.at) }),
            || show::peer_table(&people, view.at),
        );
        Ok(())
    }

    fn history(&self, count: &str) -> anyhow::Result<()> {
        let count = match count {
            "" => HISTORY_COUNT_DEFAULT,
            text => text.parse().ok().filter(|count| *count > 0).context("COUNT: expected a whole number from 1 on")?,
        };
        let history = self.peer.history().context("nothing is kept: there is no data dir")?;
        let entries = history.newest(count)?;
        if self.screen.is_json() {
            self.screen.print_json(&json!({ "event": "history", "messages": show::history_json(&entries) }));
        } else if entries.is_empty() {
            self.screen.print("no messages yet");
        } else {
            self.screen.print(&show::history_text(&entries));
        }
        Ok(())
    }

    fn set_verbose(&self, how: &str) -> anyhow::Result<()> {
        let on = match how.to_uppercase().as_str() {
            "" => !self.verbose.load(Relaxed),
            "ON" => true,
            "OFF" => false,
            _ => bail!("usage: VERBOSE [ON|OFF]"),
        };
        self.verbose.store(on, Relaxed);
        self.print_result("verbose", json!({ "on": on }), || format!("verbose is {}", if on { "on" } else { "off" }));
        Ok(())
    }

    fn stats(&self) -> anyhow::Result<()> {
        let view = self.peer.snapshot()?;
        let node = &view.counters;
        let mut counts: Vec<(String, u64)> = vec![
            ("received".to_owned(), node.received),
            ("received_bytes".to_owned(), node.received_bytes),
            ("sent".to_owned(), node.sent),
            ("broadcasts".to_owned(), node.broadcasts),
        ];
        counts.extend(node.drops().map(|(cause, count)| (format!("dropped: {cause}"), count)));
        counts.extend(self.peer.counters().into_iter().filter(|(_, count)| *count > 0));
        if self.screen.is_json() {
            let counts: serde_json::Map<String, Value> =
                counts.into_iter().map(|(name, count)| (name, count.into())).collect();
            self.screen.print_json(&json!({ "event": "stats", "counters": counts }));
        } else {
            let lines: Vec<String> = counts.iter().map(|(name, count)| format!("{count:>10}  {name}")).collect();
            self.screen.print(&lines.join("\n"));
        }
        Ok(())
    }

    fn help(&self) {
        if self.screen.is_json() {
            let list: Vec<Value> = COMMANDS
                .iter()
                .map(|(name, usage, what)| json!({ "command": name, "arguments": usage, "what": what }))
                .collect();
            return self.screen.print_json(&json!({ "event": "help", "commands": list }));
        }
        let lines: Vec<String> =
            COMMANDS.iter().map(|(name, usage, what)| format!("  {:<38}{what}", format!("{name} {usage}"))).collect();
        self.screen.print(&lines.join("\n"));
    }

    fn print_result(&self, event: &str, mut about: Value, text: impl FnOnce() -> String) {
        if self.screen.is_json() {
            about["event"] = event.into();
            self.screen.print_json(&about);
        } else {
            self.screen.print(&sanitize(&text()));
        }
    }

    fn print_json_or_text(&self, json: Value, text: impl FnOnce() -> String) {
        if self.screen.is_json() { self.screen.print_json(&json) } else { self.screen.print(&text()) }
    }
}

/// Reads a picture. A file that is too large is rejected without being read whole.
fn read_avatar(path: &Path) -> anyhow::Result<Avatar> {
    let named = || format!("AVATAR-FILE {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(named)?;
    file.take(AVATAR_MAX as u64 + 1).read_to_end(&mut bytes).with_context(named)?;
    if bytes.len() > AVATAR_MAX {
        bail!("{}: it has more than {AVATAR_MAX} bytes, which is the most a picture may have", named());
    }
    Avatar::from_bytes(bytes).map_err(anyhow::Error::msg).with_context(named)
}

/// The first word of a line, and the rest verbatim.
fn split_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

/// A user name (quoted if it contains blanks), and the rest.
fn split_user(rest: &str) -> anyhow::Result<(String, &str)> {
    match rest.strip_prefix('"') {
        Some(quoted) => {
            let (name, text) = quoted.split_once('"').context("USER: a quote (\") is not closed")?;
            // `"NAME"@IP`, if several users have the same name.
            let (at, text) = if text.starts_with('@') { split_word(text) } else { ("", text.trim_start()) };
            Ok((format!("{name}{at}"), text))
        }
        None => {
            let (name, text) = split_word(rest);
            Ok((name.to_owned(), text))
        }
    }
}

/// The user named by a whole line: the line itself, or a quoted name as after DM.
fn parse_user_line(line: &str) -> String {
    match split_user(line) {
        Ok((to, "")) => to,
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_taken_as_they_stand() {
        assert_eq!(split_word("  post   it's \"5 o'clock\"  "), ("post", "it's \"5 o'clock\""));
        assert_eq!(split_word("quit"), ("quit", ""));
        assert_eq!(split_user("bob  hi there").unwrap(), ("bob".to_owned(), "hi there"));
        assert_eq!(split_user("\"bob smith\"@10.0.0.1 hi").unwrap(), ("bob smith@10.0.0.1".to_owned(), "hi"));
        assert_eq!(split_user("\"bob smith\" hi").unwrap(), ("bob smith".to_owned(), "hi"));
        assert!(split_user("\"bob").is_err());
        for (line, user) in [
            ("Mary Ann", "Mary Ann"),
            ("Mary Ann@10.0.0.1", "Mary Ann@10.0.0.1"),
            ("\"Mary Ann\"", "Mary Ann"),
            ("\"Mary Ann\"@10.0.0.1", "Mary Ann@10.0.0.1"),
            // Names may contain quotes.
            ("\"Al\" Capone", "\"Al\" Capone"),
            ("\"bob", "\"bob"),
            ("bob", "bob"),
        ] {
            assert_eq!(parse_user_line(line), user, "{line}");
        }
    }
}
