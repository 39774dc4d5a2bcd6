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
use crate::cli::response_fields::counted_noun;
use crate::lan::node::{CommandError, CommandOutcome, NodeCommand};
use crate::lan::peer::{LanCommandError, LanPeer};
use crate::lan::wire::{AVATAR_MAX, Avatar, Dm, Post, Profile, TalkBody};

const HISTORY_COUNT_DEFAULT: usize = 20;
/// After this time a new peer knows all others on the network, with some margin.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(1_200);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longer than the 5.5 s for which a DM is repeated.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(6);

struct Command {
    name: &'static str,
    /// Its arguments, for HELP.
    usage: &'static str,
    about: &'static str,
    arguments: Arguments,
    run: Run,
}

enum Arguments {
    None,
    /// The rest of the line, which may be empty.
    Rest,
    /// Those of the rest of the line, split by this function; those that are missing are asked for.
    Asked(&'static [Question], fn(&str) -> anyhow::Result<Vec<String>>),
}

struct Question {
    text: &'static str,
    /// An empty line cancels the command.
    is_required: bool,
    /// It asks for a name, which may be quoted.
    is_user: bool,
}

const TEXT: Question = Question { text: "Text: ", is_required: true, is_user: false };
const USER: Question = Question { text: "User: ", is_required: true, is_user: true };
const DISPLAY_NAME: Question = Question { text: "Display name: ", is_required: true, is_user: false };
const STATUS: Question = Question { text: "Status (may be empty): ", is_required: false, is_user: false };
const AVATAR_FILE: Question = Question { text: "Picture file (may be empty): ", is_required: false, is_user: false };

type Run = fn(&LanCommands, &[String]) -> anyhow::Result<Flow>;

const fn plain(name: &'static str, about: &'static str, run: Run) -> Command {
    Command { name, usage: "", about, arguments: Arguments::None, run }
}

/// Its one argument may be left out.
const fn optional(name: &'static str, usage: &'static str, about: &'static str, run: Run) -> Command {
    Command { name, usage, about, arguments: Arguments::Rest, run }
}

const COMMANDS: &[Command] = &[
    Command {
        name: "POST",
        usage: "TEXT",
        about: "say something to everybody",
        arguments: Arguments::Asked(&[TEXT], |rest| Ok(vec![rest.to_owned()])),
        run: |it, given| it.say(None, Post { content: given[0].clone() }),
    },
    Command {
        name: "DM",
        usage: "USER TEXT",
        about: "say something to one: NAME (in quotes if it has blanks), or NAME@IP where several are called so",
        arguments: Arguments::Asked(&[USER, TEXT], |rest| {
            let (user, text) = split_user(rest)?;
            Ok(if text.is_empty() { vec![user] } else { vec![user, text.to_owned()] })
        }),
        run: |it, given| it.say(Some(&given[0]), Dm { content: given[1].clone() }),
    },
    Command {
        name: "PROFILE",
        usage: "NAME | STATUS | AVATAR-FILE",
        about: "show who you are; the last two may be left out",
        arguments: Arguments::Asked(&[DISPLAY_NAME, STATUS, AVATAR_FILE], |rest| {
            let parts = rest.splitn(3, '|').map(|part| part.trim().to_owned());
            Ok(parts.chain(std::iter::repeat_with(String::new)).take(3).collect())
        }),
        run: |it, given| {
            let file = &given[2];
            let avatar = if file.is_empty() { None } else { Some(read_avatar(Path::new(file))?) };
            it.say(None, Profile { display_name: given[0].clone(), status: given[1].clone(), avatar })
        },
    },
    plain("LIST", "who is here", |it, _| it.list()),
    plain("PEERS", "ask others whom they know", |it, _| it.peers()),
    optional("HISTORY", "[COUNT]", "messages sent and received, the newest last", |it, given| it.history(&given[0])),
    optional("VERBOSE", "[ON|OFF]", "show times, addresses and types, and what is dropped and why", |it, given| {
        it.set_verbose(&given[0])
    }),
    plain("STATS", "what was counted", |it, _| it.stats()),
    plain("HELP", "this list", |it, _| it.help()),
    plain("QUIT", "stop", |_, _| Ok(Flow::Quit)),
    plain("EXIT", "the same", |_, _| Ok(Flow::Quit)),
    plain("BYE", "the same", |_, _| Ok(Flow::Quit)),
];

/// The next line is one of its arguments.
struct PendingCommand {
    command: &'static Command,
    questions: &'static [Question],
    given: Vec<String>,
}

pub(super) struct LanCommands {
    peer: Arc<LanPeer>,
    screen: Screen,
    verbose: Arc<AtomicBool>,
    pending: Mutex<Option<PendingCommand>>,
    started_at: Instant,
}

impl LanCommands {
    pub(super) fn new(peer: Arc<LanPeer>, screen: Screen, verbose: Arc<AtomicBool>) -> LanCommands {
        LanCommands { peer, screen, verbose, pending: Mutex::default(), started_at: Instant::now() }
    }
}

impl Commands for LanCommands {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        self.run_line(&words.join(" "))
    }

    fn run_line(&self, line: &str) -> anyhow::Result<Flow> {
        // A statement of its own, so that the lock is released: the answer may set it again.
        let pending = self.pending.lock().take();
        if let Some(mut pending) = pending {
            let (question, answer) = (&pending.questions[pending.given.len()], line.trim());
            if answer.is_empty() && question.is_required {
                bail!("nothing was entered");
            }
            pending.given.push(if question.is_user { parse_user_line(answer) } else { answer.to_owned() });
            return self.run_or_ask(pending);
        }
        let (word, rest) = split_word(line);
        if word.is_empty() {
            return Ok(Flow::Continue);
        }
        let name = word.to_uppercase();
        let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
            bail!("there is no command {word:?}; HELP lists them");
        };
        match &command.arguments {
            Arguments::None if !rest.is_empty() => {
                bail!("usage: {}", format!("{} {}", command.name, command.usage).trim_end())
            }
            Arguments::None => (command.run)(self, &[]),
            Arguments::Rest => (command.run)(self, &[rest.to_owned()]),
            Arguments::Asked(questions, split) => {
                let given = if rest.is_empty() { Vec::new() } else { split(rest)? };
                self.run_or_ask(PendingCommand { command, questions, given })
            }
        }
    }

    fn question(&self) -> Option<String> {
        self.pending.lock().as_ref().map(|pending| pending.questions[pending.given.len()].text.to_owned())
    }

    /// At the end of a pipe, waits for DMs that may still have to be repeated.
    fn input_ended(&self) {
        self.wait_for_confirmations(CONFIRMATION_TIMEOUT);
    }

    fn prompt(&self) -> Option<String> {
        self.peer.snapshot().ok().map(|view| format!("{}> ", sanitize(view.name.as_str())))
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        let [word] = before else {
            return if before.is_empty() { COMMANDS.iter().map(|it| it.name.to_owned()).collect() } else { Vec::new() };
        };
        let command = COMMANDS.iter().find(|command| word.eq_ignore_ascii_case(command.name));
        match command.map(|command| &command.arguments) {
            Some(Arguments::Asked([Question { is_user: true, .. }, ..], _)) => {
                let peers = self.peer.snapshot().map(|view| view.peers).unwrap_or_default();
                let people = peers.iter().filter(|peer| !peer.is_server());
                people.map(|peer| peer.user_id.name.as_str().to_owned()).collect()
            }
            _ if word.eq_ignore_ascii_case("VERBOSE") => ["ON", "OFF"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }
}

impl LanCommands {
    pub(super) fn wait_for_confirmations(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        while Instant::now() < until && self.peer.snapshot().is_ok_and(|view| view.pending_dms > 0) {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Runs a command that has all its arguments; else the next one is asked for.
    fn run_or_ask(&self, pending: PendingCommand) -> anyhow::Result<Flow> {
        if pending.given.len() < pending.questions.len() {
            *self.pending.lock() = Some(pending);
            return Ok(Flow::Continue);
        }
        (pending.command.run)(self, &pending.given)
    }

    /// Repeats a command that cannot succeed yet. A peer that has just started learns of the others within a second,
    /// and a pipe may produce messages faster than others accept them.
    fn retry_until_accepted(&self, command: &NodeCommand) -> Result<CommandOutcome, LanCommandError> {
        let first_try_at = Instant::now();
        loop {
            let pause = match self.peer.command(command.clone()) {
                Err(LanCommandError::Refused(refused)) => match refused {
                    CommandError::RateLimited { retry_after_ms } => Duration::from_millis(retry_after_ms),
                    CommandError::TooManyUnconfirmed(_) if first_try_at.elapsed() < CONFIRMATION_TIMEOUT => {
                        POLL_INTERVAL
                    }
                    CommandError::NoPeers | CommandError::UnknownUser(_)
                        if self.started_at.elapsed() < DISCOVERY_TIMEOUT =>
                    {
                        POLL_INTERVAL
                    }
                    refused => return Err(LanCommandError::Refused(refused)),
                },
                done => return done,
            };
            thread::sleep(pause);
        }
    }

    fn say(&self, to: Option<&str>, body: impl Into<TalkBody>) -> anyhow::Result<Flow> {
        let body = body.into();
        let (kind, to) = (body.kind(), to.map(str::to_owned));
        let event = show::event_name(kind);
        match self.retry_until_accepted(&NodeCommand::Say { to, body })? {
            CommandOutcome::SaidToAll { to, message_id } => {
                self.screen.print_event(&event, json!({ "to": to, "message_id": message_id }), |_| {
                    let kept = if kind.needs_no_peers { "kept, and " } else { "" };
                    format!("{kept}sent to {}", counted_noun(to as u64, "peer"))
                });
            }
            CommandOutcome::SaidToOne { to, addr, message_id, awaits_ack } => {
                let rest = match (kind.wants_ack, awaits_ack) {
                    (true, true) => "; waiting for it to be confirmed",
                    (true, false) => "; it confirms nothing",
                    (false, _) => "",
                };
                let about =
                    json!({ "to": to.to_string(), "addr": addr, "message_id": message_id, "awaits_ack": awaits_ack });
                self.screen.print_event(&event, about, |_| format!("sent to {to}{rest}"));
            }
            CommandOutcome::PeerListsRequested { .. } | CommandOutcome::PeerAdded { .. } => {}
        }
        Ok(Flow::Continue)
    }

    fn peers(&self) -> anyhow::Result<Flow> {
        if let CommandOutcome::PeerListsRequested { peers } = self.peer.command(NodeCommand::RequestPeerLists)? {
            let asked = format!("{} asked", counted_noun(peers as u64, "peer"));
            self.screen.print_event("peers", json!({ "asked": peers }), |_| asked);
        }
        Ok(Flow::Continue)
    }

    fn list(&self) -> anyhow::Result<Flow> {
        let view = self.peer.snapshot()?;
        let people: Vec<_> = view.peers.iter().filter(|peer| !peer.is_server()).collect();
        let fields = json!({ "name": view.name, "peers": show::peer_list_json(&people, view.at) });
        self.screen.print_event("list", fields, |_| show::peer_table(&people, view.at));
        Ok(Flow::Continue)
    }

    fn history(&self, count: &str) -> anyhow::Result<Flow> {
        let count = match count {
            "" => HISTORY_COUNT_DEFAULT,
            text => text.parse().ok().filter(|count| *count > 0).context("COUNT: expected a whole number from 1 on")?,
        };
        let history = self.peer.history().context("nothing is kept: there is no data dir")?;
        let entries = history.newest(count)?;
        let text = |_: &Value| match entries.is_empty() {
            true => "no messages yet".to_owned(),
            false => show::history_text(&entries),
        };
        self.screen.print_event("history", json!({ "messages": show::history_json(&entries) }), text);
        Ok(Flow::Continue)
    }

    fn set_verbose(&self, how: &str) -> anyhow::Result<Flow> {
        let on = match how.to_uppercase().as_str() {
            "" => !self.verbose.load(Relaxed),
            "ON" => true,
            "OFF" => false,
            _ => bail!("usage: VERBOSE [ON|OFF]"),
        };
        self.verbose.store(on, Relaxed);
        let text = format!("verbose is {}", if on { "on" } else { "off" });
        self.screen.print_event("verbose", json!({ "on": on }), |_| text);
        Ok(Flow::Continue)
    }

    fn stats(&self) -> anyhow::Result<Flow> {
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
        let fields: Value = counts.iter().map(|(name, count)| (name.clone(), Value::from(*count))).collect();
        self.screen.print_event("stats", json!({ "counters": fields }), |_| {
            counts.iter().map(|(name, count)| format!("{count:>10}  {name}")).collect::<Vec<_>>().join("\n")
        });
        Ok(Flow::Continue)
    }

    fn help(&self) -> anyhow::Result<Flow> {
        let fields = |it: &Command| json!({ "command": it.name, "arguments": it.usage, "what": it.about });
        let line = |it: &Command| format!("  {:<38}{}", format!("{} {}", it.name, it.usage), it.about);
        let list: Vec<Value> = COMMANDS.iter().map(fields).collect();
        self.screen.print_event("help", json!({ "commands": list }), |_| {
            COMMANDS.iter().map(line).collect::<Vec<_>>().join("\n")
        });
        Ok(Flow::Continue)
    }
}

fn read_avatar(path: &Path) -> anyhow::Result<Avatar> {
    let named = || format!("AVATAR-FILE {}", path.display());
    let file = File::open(path).with_context(named)?;
    let mut bytes = Vec::new();
    // A file that is too large is not read whole.
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
    let Some(quoted) = rest.strip_prefix('"') else {
        let (name, text) = split_word(rest);
        return Ok((name.to_owned(), text));
    };
    let (name, text) = quoted.split_once('"').context("USER: a quote (\") is not closed")?;
    // `"NAME"@IP`, if several users have the same name.
    let (at, text) = if text.starts_with('@') { split_word(text) } else { ("", text.trim_start()) };
    Ok((format!("{name}{at}"), text))
}

/// The user named by a whole line: the line itself, or a quoted name as after DM.
fn parse_user_line(line: &str) -> String {
    if let Ok((to, "")) = split_user(line) { to } else { line.to_owned() }
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
