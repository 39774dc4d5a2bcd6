//! The read-eval-print loop of every interactive command.
//!
//! At a terminal there are history and completion, and output that arrives meanwhile is printed above the line that is
//! being edited. In a pipe, and at a terminal without escape codes, lines are read and printed plainly; the end of the
//! input ends the program with exit code 0. A command that fails prints `error: …`, and the loop continues.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use parking_lot::Mutex;
use rustyline::error::ReadlineError;
use serde::Serialize;
use serde_json::{Value, json};

use super::line_editor::{self, InputKind, TerminalSource, WordCompletion};
use super::output::{self, sanitize};
use super::words::split_words;
use crate::model::text;
use crate::net::shutdown::ShutdownSignal;
use crate::net::threads;

/// Maximum length of an input line in bytes.
const LINE_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Quit,
}

/// The commands of one interactive program.
pub trait Commands: Send + Sync + 'static {
    /// `words` is not empty; its first item is the command's name. An error is printed after `error: `.
    fn run(&self, words: &[String]) -> anyhow::Result<Flow>;

    /// Candidates for the next word, given the words before it (none: command names).
    fn complete(&self, before: &[String]) -> Vec<String>;

    /// Runs a line. By default it is split into words; commands that take text verbatim override this.
    fn run_line(&self, line: &str) -> anyhow::Result<Flow> {
        match split_words(line).map_err(anyhow::Error::msg)? {
            words if words.is_empty() => Ok(Flow::Continue),
            words => self.run(&words),
        }
    }

    /// The prompt, if the next line answers a question. Such a line may be empty or look like a comment.
    fn question(&self) -> Option<String> {
        None
    }

    /// The prompt at a terminal, if it differs from the default one.
    fn prompt(&self) -> Option<String> {
        None
    }

    /// Called at the end of a piped input; the program ends when this returns.
    fn input_ended(&self) {}
}

/// Every code that [`Screen::paint`] may write.
const COLOUR_CODES: [&str; 4] = ["\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"];

/// The program's output. It can be used from any thread and never breaks into a line that is being edited.
#[derive(Clone)]
pub struct Screen {
    sink: Arc<Mutex<Sink>>,
    json: bool,
    colour: bool,
    /// Triggered when the output can no longer be written.
    shutdown: ShutdownSignal,
}

enum Sink {
    Stdout,
    Terminal(Box<dyn FnMut(String) -> rustyline::Result<()> + Send>),
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Good,
    Bad,
    Dim,
}

impl Screen {
    /// Prints to standard output. With `json`, every result is one JSON object per line.
    pub fn new(json: bool, shutdown: ShutdownSignal) -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let colour = !json && wanted && io::stdout().is_terminal() && !is_dumb_terminal();
        Screen { sink: Arc::new(Mutex::new(Sink::Stdout)), json, colour, shutdown }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints one or more lines. Control characters are replaced, except for our own colour codes.
    pub fn print(&self, text: &str) {
        let text = self.sanitize_text(text);
        self.write(text);
    }

    fn write(&self, text: String) {
        let mut sink = self.sink.lock();
        let written = match &mut *sink {
            Sink::Gone => return,
            Sink::Terminal(print) => print(format!("{text}\n")).map_err(io::Error::other),
            Sink::Stdout => output::print(&text),
        };
        if let Err(error) = written {
            log::debug!("what is printed cannot be written any more: {error}");
            *sink = Sink::Gone;
            drop(sink);
            self.shutdown.request();
        }
    }

    pub fn print_json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.print(&text::escape_unsafe_json(&text)),
            Err(error) => self.error(&error.to_string()),
        }
    }

    /// Prints the fields of a result with `--json`, else a text for people, whose lines are passed through [`sanitize`].
    pub fn print_ok(&self, command: &str, fields: Value, text: impl FnOnce(&Value) -> String) {
        self.print_result("ok", command, fields, text);
    }

    /// The same for what has happened.
    pub fn print_event(&self, event: &str, fields: Value, text: impl FnOnce(&Value) -> String) {
        self.print_result("event", event, fields, text);
    }

    fn print_result(&self, kind: &str, name: &str, mut fields: Value, text: impl FnOnce(&Value) -> String) {
        if self.json {
            fields[kind] = name.into();
            self.print_json(&fields);
        } else {
            self.print(&text(&fields).lines().map(sanitize).collect::<Vec<_>>().join("\n"));
        }
    }

    pub fn error(&self, reason: &str) {
        if self.json {
            self.print_json(&json!({ "error": sanitize(reason) }));
        } else {
            self.print(&format!("{} {}", self.paint(Style::Bad, "error:"), sanitize(reason)));
        }
    }

    /// Leaves a line that is still being edited as it is; further output begins below it. The editor will not run
    /// again, so bracketed paste is switched off here.
    fn abandon_line(&self) {
        let mut sink = self.sink.lock();
        if matches!(*sink, Sink::Terminal(_)) {
            *sink = Sink::Stdout;
            drop(sink);
            self.write("\x1b[?2004l".to_owned());
        }
    }

    /// Passes each line through [`sanitize`], keeping our own colour codes if colours are on.
    fn sanitize_text(&self, text: &str) -> String {
        let clean_line = |line: &str| {
            if !self.colour || !line.contains('\x1b') {
                return sanitize(line);
            }
            let mut shown = String::with_capacity(line.len());
            let mut rest = line;
            while let Some((at, code)) = COLOUR_CODES.iter().filter_map(|code| Some((rest.find(code)?, code))).min() {
                shown.push_str(&sanitize(&rest[..at]));
                shown.push_str(code);
                rest = &rest[at + code.len()..];
            }
            shown + &sanitize(rest)
        };
        text.split('\n').map(clean_line).collect::<Vec<_>>().join("\n")
    }

    /// The text in a style, if colours are on.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            _ if !self.colour => return text.to_owned(),
            Style::Good => 32,
            Style::Bad => 31,
            Style::Dim => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether the terminal has no escape codes (Emacs' shell, for example). It is then used like a pipe. rustyline does
/// not edit at the same kinds of terminals.
pub(super) fn is_dumb_terminal() -> bool {
    const DUMB: [&str; 4] = ["", "dumb", "cons25", "emacs"];
    std::env::var("TERM").map_or(cfg!(unix), |term| DUMB.iter().any(|dumb| term.eq_ignore_ascii_case(dumb)))
}

/// Runs commands until the input ends, a command returns [`Flow::Quit`], or SIGINT or SIGTERM arrives. After a signal
/// the reading thread is left behind, so the caller must end the program.
pub fn run(
    prompt: &str,
    history: Option<PathBuf>,
    screen: &Screen,
    shutdown: &ShutdownSignal,
    commands: Arc<dyn Commands>,
) -> io::Result<()> {
    let saved_settings = terminal::TerminalSettings::save();
    let reader = {
        let (screen, shutdown, prompt) = (screen.clone(), shutdown.clone(), prompt.to_owned());
        move || {
            let interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb_terminal();
            let read = if interactive {
                terminal::disable_eof_character();
                read_terminal(&prompt, history, &screen, &shutdown, &commands)
            } else {
                read_pipe(io::stdin().lock(), &screen, &shutdown, &*commands).map_err(anyhow::Error::from)
            };
            *screen.sink.lock() = Sink::Stdout;
            if let Err(error) = read {
                screen.error(&format!("reading the input: {error:#}"));
            }
            shutdown.request();
        }
    };
    threads::spawn("input", reader)?;
    shutdown.wait();
    // The reading thread may be left in the middle of a line, with the terminal in raw mode.
    saved_settings.restore();
    screen.abandon_line();
    Ok(())
}

fn run_command_line(line: &str, screen: &Screen, commands: &dyn Commands) -> Flow {
    if line.trim_start().starts_with('#') && commands.question().is_none() {
        return Flow::Continue;
    }
    commands.run_line(line.trim_end_matches(['\r', '\n'])).unwrap_or_else(|error| {
        screen.error(&format!("{error:#}"));
        Flow::Continue
    })
}

fn read_pipe(
    mut input: impl BufRead,
    screen: &Screen,
    shutdown: &ShutdownSignal,
    commands: &dyn Commands,
) -> io::Result<()> {
    let mut line = Vec::new();
    while !shutdown.is_requested() {
        line.clear();
        if io::Read::take(&mut input, LINE_MAX as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            commands.input_ended();
            break;
        }
        if line.len() > LINE_MAX {
            while !line.ends_with(b"\n") {
                line.clear();
                if io::Read::take(&mut input, LINE_MAX as u64).read_until(b'\n', &mut line)? == 0 {
                    break;
                }
            }
            screen.error(&format!("a line has more than {LINE_MAX} bytes"));
            continue;
        }
        let flow = match std::str::from_utf8(&line) {
            Ok(line) => run_command_line(line, screen, commands),
            Err(_) => {
                screen.error("a line is not UTF-8");
                Flow::Continue
            }
        };
        if flow == Flow::Quit {
            break;
        }
    }
    Ok(())
}

fn read_terminal(
    prompt: &str,
    history: Option<PathBuf>,
    screen: &Screen,
    shutdown: &ShutdownSignal,
    commands: &Arc<dyn Commands>,
) -> anyhow::Result<()> {
    if let Some(path) = history.as_deref().filter(|path| path.exists())
        && let Err(error) = line_editor::load_history(path)
    {
        screen.error(&format!("{}: {error}", path.display()));
    }
    *screen.sink.lock() = Sink::Terminal(Box::new(line_editor::external_printer()?));
    let completion: WordCompletion = {
        let commands = Arc::clone(commands);
        Arc::new(move |before| commands.complete(before))
    };
    while !shutdown.is_requested() {
        let question = commands.question();
        let is_command = question.is_none();
        let asks = question.or_else(|| commands.prompt());
        let wanted = InputKind::Command(Arc::clone(&completion));
        match line_editor::read_line(TerminalSource::Stdio, asks.as_deref().unwrap_or(prompt), wanted) {
            Ok(line) => {
                if is_command && !line.is_empty() {
                    line_editor::add_to_history(&line)?;
                }
                if run_command_line(&line, screen, &**commands) == Flow::Quit {
                    break;
                }
            }
            // In raw mode Ctrl-C is a key, not a signal.
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => bail!(error),
        }
    }
    if let Some(path) = history {
        line_editor::save_history(&path)?;
    }
    Ok(())
}

/// The terminal's original settings, restored if the line editor cannot do so.
#[cfg(unix)]
mod terminal {
    use std::mem::MaybeUninit;

    pub(super) struct TerminalSettings(Option<libc::termios>);

    impl TerminalSettings {
        pub(super) fn save() -> TerminalSettings {
            let mut settings = MaybeUninit::uninit();
            // SAFETY: `tcgetattr` fills the buffer or fails; the buffer is read only on success.
            let saved = unsafe {
                (libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) == 0).then(|| settings.assume_init())
            };
            TerminalSettings(saved)
        }

        pub(super) fn restore(&self) {
            if let Some(settings) = &self.0 {
                // SAFETY: the settings were obtained by `tcgetattr` for this descriptor. If the call fails, the
                // terminal is gone and needs no restoring.
                unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
            }
        }
    }

    /// Disables the terminal's EOF character. While a command runs, the terminal driver collects what is typed ahead
    /// and would turn Ctrl-D into an end of input that the editor, which reads keys, never sees. Without an EOF
    /// character the byte stays in the buffer for the editor. The saved settings restore it.
    pub(super) fn disable_eof_character() {
        // SAFETY: a query with plain integer arguments.
        let no_key = libc::cc_t::try_from(unsafe { libc::fpathconf(libc::STDIN_FILENO, libc::_PC_VDISABLE) });
        if let (TerminalSettings(Some(mut settings)), Ok(no_key)) = (TerminalSettings::save(), no_key) {
            settings.c_cc[libc::VEOF] = no_key;
            // SAFETY: as in `restore`. If it fails, a Ctrl-D typed while a command runs is lost, nothing more.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const settings) };
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    pub(super) struct TerminalSettings;

    impl TerminalSettings {
        pub(super) fn save() -> TerminalSettings {
            TerminalSettings
        }

        pub(super) fn restore(&self) {}
    }

    pub(super) fn disable_eof_character() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_anyones_drives_a_terminal() {
        let screen = |colour| Screen { colour, ..Screen::new(false, ShutdownSignal::default()) };
        let (plain, coloured) = (screen(false), screen(true));
        let text = format!("{}\nb\x1b[2J\u{202e}\rc", coloured.paint(Style::Bad, "a"));
        assert_eq!(coloured.sanitize_text(&text), "\x1b[31ma\x1b[0m\nb\u{fffd}[2J\u{fffd}\u{fffd}c");
        assert_eq!(plain.sanitize_text(&text), "\u{fffd}[31ma\u{fffd}[0m\nb\u{fffd}[2J\u{fffd}\u{fffd}c");
        assert_eq!(plain.sanitize_text("a\n\nb\n"), "a\n\nb\n");
    }

    struct Recorder(Mutex<Vec<Vec<String>>>);

    impl Commands for Recorder {
        fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
            self.0.lock().push(words.to_vec());
            match words[0].as_str() {
                "quit" => Ok(Flow::Quit),
                "fail" => bail!("it failed"),
                _ => Ok(Flow::Continue),
            }
        }

        fn complete(&self, _: &[String]) -> Vec<String> {
            Vec::new()
        }
    }

    #[test]
    fn a_pipe_is_read_to_its_end_whatever_it_holds() {
        let mut input = b"one\n\n# a comment\nfail now\n\"open\n\xff\xfe\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', 3 * LINE_MAX));
        input.extend(b"\ntwo");
        let recorder = Recorder(Mutex::default());
        let shutdown = ShutdownSignal::default();
        let screen = Screen::new(false, shutdown.clone());
        *screen.sink.lock() = Sink::Gone;
        read_pipe(&input[..], &screen, &shutdown, &recorder).unwrap();
        assert_eq!(*recorder.0.lock(), [vec!["one"], vec!["fail", "now"], vec!["two"]]);
        read_pipe(&b"quit\nthree\n"[..], &screen, &shutdown, &recorder).unwrap();
        assert_eq!(recorder.0.lock().last().unwrap(), &["quit"]);
    }
}
