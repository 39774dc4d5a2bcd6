//! The commands of a LAN peer. Texts are taken as they stand: an apostrophe quotes nothing here.

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
use crate::cli::repl::{Commands, Flow, Screen, clean};
use crate::lan::node::{Command, CommandError, Done};
use crate::lan::peer::{LanError, LanPeer};
use crate::lan::wire::{AVATAR_MAX, Avatar};

/// How many messages HISTORY shows when it is not told.
const SHOWN: usize = 20;
/// After that long everybody is known who is there, and a little more.
const KNOWN_WITHIN: Duration = Duration::from_millis(1_200);
/// What waits for something looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A DM is repeated for 5.5 s at most.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(6);

/// Name, arguments, what it does.
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

/// What the next line answers.
#[derive(Debug, Clone)]
enum Asked {
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
    asked: Mutex<Option<Asked>>,
    started: Instant,
}

impl LanCommands {
    pub(super) fn new(peer: Arc<LanPeer>, screen: Screen, verbose: Arc<AtomicBool>) -> LanCommands {
        LanCommands { peer, screen, verbose, asked: Mutex::default(), started: Instant::now() }
    }
}

impl Commands for LanCommands {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        self.run_line(&words.join(" "))
    }

    fn run_line(&self, line: &str) -> anyhow::Result<Flow> {
        // On a line of its own: the answer may ask for more, so the lock must be let go of.
        let asked = self.asked.lock().take();
        if let Some(asked) = asked {
            return self.answered(asked, line.trim()).map(|()| Flow::Next);
        }
        let (word, rest) = split_word(line);
        if word.is_empty() {
            return Ok(Flow::Next);
        }
        let command = word.to_uppercase();
        let Some((name, usage, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
            bail!("there is no command {word:?}; HELP lists them");
        };
        match (*name, rest) {
            ("POST", "") => self.ask(Asked::PostText),
            ("POST", text) => self.post(text)?,
            ("DM", "") => self.ask(Asked::DmUser),
            ("DM", rest) => match split_user(rest)? {
                (to, "") => self.ask(Asked::DmText { to }),
                (to, text) => self.dm(to, text)?,
            },
            ("PROFILE", "") => self.ask(Asked::ProfileName),
            ("PROFILE", rest) => {
                let mut parts = rest.splitn(3, '|').map(str::trim);
                let mut next = || parts.next().unwrap_or_default();
                self.profile(next(), next(), next())?;
            }
            ("LIST", "") => self.list()?,
            ("PEERS", "") => {
                let done = self.peer.command(Command::AskPeers)?;
                if let Done::Asked { peers } = done {
                    self.say("peers", json!({ "asked": peers }), || format!("{} asked", show::peers(peers)));
                }
            }
            ("HISTORY", count) => self.history(count)?,
            ("VERBOSE", how) => self.set_verbose(how)?,
            ("STATS", "") => self.stats()?,
            ("HELP", "") => self.help(),
            ("QUIT" | "EXIT" | "BYE", "") => return Ok(Flow::Quit),
            _ => bail!("usage: {}", format!("{name} {usage}").trim_end()),
        }
        Ok(Flow::Next)
    }

    fn question(&self) -> Option<String> {
        let question = match self.asked.lock().as_ref()? {
            Asked::PostText | Asked::DmText { .. } => "Text: ",
            Asked::DmUser => "User: ",
            Asked::ProfileName => "Display name: ",
            Asked::ProfileStatus { .. } => "Status (may be empty): ",
            Asked::ProfileAvatar { .. } => "Picture file (may be empty): ",
        };
        Some(question.to_owned())
    }

    /// What was said in a pipe is not left half done: a DM may have to be repeated yet.
    fn input_ended(&self) {
        self.finish(CONFIRMED_WITHIN);
    }

    fn prompt(&self) -> Option<String> {
        self.peer.look().ok().map(|view| format!("{}> ", clean(view.name.as_str())))
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        match before {
            [] => COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            [command] if command.eq_ignore_ascii_case("DM") => {
                let peers = self.peer.look().map(|view| view.peers).unwrap_or_default();
                let people = peers.iter().filter(|peer| !peer.is_server());
                people.map(|peer| peer.user_id.name.as_str().to_owned()).collect()
            }
            [command] if command.eq_ignore_ascii_case("VERBOSE") => ["ON", "OFF"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }
}

impl LanCommands {
    /// Waits until no DM may be confirmed any more, at most so long.
    pub(super) fn finish(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        while Instant::now() < until && self.peer.look().is_ok_and(|view| view.waiting > 0) {
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn ask(&self, asked: Asked) {
        *self.asked.lock() = Some(asked);
    }

    /// What was missing is there now; an empty line where something has to be ends the command.
    fn answered(&self, asked: Asked, line: &str) -> anyhow::Result<()> {
        match (asked, line) {
            (Asked::PostText | Asked::DmUser | Asked::DmText { .. } | Asked::ProfileName, "") => {
                bail!("nothing was entered")
            }
            (Asked::PostText, text) => self.post(text)?,
            (Asked::DmUser, user) => self.ask(Asked::DmText { to: whole_user(user) }),
            (Asked::DmText { to }, text) => self.dm(to, text)?,
            (Asked::ProfileName, name) => self.ask(Asked::ProfileStatus { name: name.to_owned() }),
            (Asked::ProfileStatus { name }, status) => {
                self.ask(Asked::ProfileAvatar { name, status: status.to_owned() });
            }
            (Asked::ProfileAvatar { name, status }, file) => self.profile(&name, &status, file)?,
        }
        Ok(())
    }

    /// Whoever has just started may not know yet whom he speaks to: two peers know each other within a second.
    /// And a pipe may say more at once than others take: it is said as fast as they do.
    fn once_possible(&self, command: &Command) -> Result<Done, LanError> {
        let asked_at = Instant::now();
        loop {
            let pause = match self.peer.command(command.clone()) {
                Err(LanError::Refused(CommandError::TooFast { again_in_ms })) => Duration::from_millis(again_in_ms),
                Err(LanError::Refused(CommandError::Busy(_))) if asked_at.elapsed() < CONFIRMED_WITHIN => LOOK_AGAIN,
                Err(LanError::Refused(CommandError::Alone | CommandError::Nobody(_)))
                    if self.started.elapsed() < KNOWN_WITHIN =>
                {
                    LOOK_AGAIN
                }
                done => return done,
            };
            thread::sleep(pause);
        }
    }

    fn post(&self, text: &str) -> anyhow::Result<()> {
        let done = self.once_possible(&Command::Post { content: text.to_owned() })?;
        if let Done::Posted { to, message_id } = done {
            let about = json!({ "to": to, "message_id": message_id });
            self.say("post", about, || format!("sent to {}", show::peers(to)));
        }
        Ok(())
    }

    fn dm(&self, to: String, text: &str) -> anyhow::Result<()> {
        let done = self.once_possible(&Command::Dm { to, content: text.to_owned() })?;
        if let Done::DmSent { to, addr, message_id, awaits_ack } = done {
            let about =
                json!({ "to": to.to_string(), "addr": addr, "message_id": message_id, "awaits_ack": awaits_ack });
            self.say("dm", about, || {
                let rest = if awaits_ack { "; waiting for it to be confirmed" } else { "; it confirms nothing" };
                format!("sent to {to}{rest}")
            });
        }
        Ok(())
    }

    fn profile(&self, display_name: &str, status: &str, file: &str) -> anyhow::Result<()> {
        let avatar = if file.is_empty() { None } else { Some(read_avatar(Path::new(file))?) };
        let (display_name, status) = (display_name.to_owned(), status.to_owned());
        let done = self.once_possible(&Command::Profile { display_name, status, avatar })?;
        if let Done::ProfileSent { to, message_id } = done {
            let about = json!({ "to": to, "message_id": message_id });
            self.say("profile", about, || format!("kept, and sent to {}", show::peers(to)));
        }
        Ok(())
    }

    fn list(&self) -> anyhow::Result<()> {
        let view = self.peer.look()?;
        let people: Vec<_> = view.peers.iter().filter(|peer| !peer.is_server()).collect();
        self.screen_table(
            json!({ "event": "list", "name": view.name, "peers": show::list_json(&people, view.at) }),
            || show::list(&people, view.at),
        );
        Ok(())
    }

    fn history(&self, count: &str) -> anyhow::Result<()> {
        let count = match count {
            "" => SHOWN,
            text => text.parse().ok().filter(|count| *count > 0).context("COUNT: expected a whole number from 1 on")?,
        };
        let history = self.peer.history().context("nothing is kept: there is no data dir")?;
        let entries = history.newest(count)?;
        if self.screen.is_json() {
            self.screen.print_json(&json!({ "event": "history", "messages": show::history_json(&entries) }));
        } else if entries.is_empty() {
            self.screen.print("no messages yet");
        } else {
            self.screen.print(&show::history(&entries));
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
        self.say("verbose", json!({ "on": on }), || format!("verbose is {}", if on { "on" } else { "off" }));
        Ok(())
    }

    fn stats(&self) -> anyhow::Result<()> {
        let view = self.peer.look()?;
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

    fn say(&self, event: &str, mut about: Value, text: impl FnOnce() -> String) {
        if self.screen.is_json() {
            about["event"] = event.into();
            self.screen.print_json(&about);
        } else {
            self.screen.print(&clean(&text()));
        }
    }

    fn screen_table(&self, json: Value, text: impl FnOnce() -> String) {
        if self.screen.is_json() { self.screen.print_json(&json) } else { self.screen.print(&text()) }
    }
}

/// The picture; a larger one is refused before it is read whole.
fn read_avatar(path: &Path) -> anyhow::Result<Avatar> {
    let named = || format!("AVATAR-FILE {}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(named)?;
    file.take(AVATAR_MAX as u64 + 1).read_to_end(&mut bytes).with_context(named)?;
    if bytes.len() > AVATAR_MAX {
        bail!("{}: it has more than {AVATAR_MAX} bytes, which is the most a picture may have", named());
    }
    Avatar::of(bytes).map_err(anyhow::Error::msg).with_context(named)
}

/// The first word of a line, and what follows it as it stands.
fn split_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim_start()))
}

/// A user, in quotes if the name holds blanks, and what follows.
fn split_user(rest: &str) -> anyhow::Result<(String, &str)> {
    match rest.strip_prefix('"') {
        Some(quoted) => {
            let (name, text) = quoted.split_once('"').context("USER: a quote (\") is not closed")?;
            // Where several are called so: "NAME"@IP.
            let (at, text) = if text.starts_with('@') { split_word(text) } else { ("", text.trim_start()) };
            Ok((format!("{name}{at}"), text))
        }
        None => {
            let (name, text) = split_word(rest);
            Ok((name.to_owned(), text))
        }
    }
}

/// The user that a line of its own names: all of it is the name, or it stands in quotes as behind DM.
fn whole_user(line: &str) -> String {
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
            // Names may hold quotes of their own.
            ("\"Al\" Capone", "\"Al\" Capone"),
            ("\"bob", "\"bob"),
            ("bob", "bob"),
        ] {
            assert_eq!(whole_user(line), user, "{line}");
        }
    }
}
