//! The loop of every interactive command: lines in, words to a command, lines out.
//!
//! At a terminal with history and completion, and what happens meanwhile is printed above the line that
//! is being typed. In a pipe, and at a terminal that knows no escape codes: plain lines, none of those codes,
//! the end of input ends the program with 0.
//! A command that failed prints `error: …` and the loop goes on.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use parking_lot::Mutex;
use rustyline::error::ReadlineError;
use serde::Serialize;
use serde_json::json;

use super::line_editor::{self, At, Wanted};
use super::output;
use crate::model::text;
use crate::net::shutdown::Shutdown;
use crate::net::threads;

/// Most bytes of a line of input.
const LINE_MAX: usize = 64 * 1024;

/// What goes on after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next line.
    Next,
    /// The end.
    Quit,
}

/// The commands of one program.
pub trait Commands: Send + Sync + 'static {
    /// Does what the words say; the first is the command, there is at least one.
    ///
    /// # Errors
    /// What to print after `error: `.
    fn run(&self, words: &[String]) -> anyhow::Result<Flow>;

    /// What the next word may be, given those before it (none: a command).
    fn complete(&self, before: &[String]) -> Vec<String>;

    /// Does what a line says, for commands that take text as it stands; else its words.
    ///
    /// # Errors
    /// As [`run`](Commands::run); also a quote that is not closed.
    fn run_line(&self, line: &str) -> anyhow::Result<Flow> {
        match words(line).map_err(anyhow::Error::msg)? {
            words if words.is_empty() => Ok(Flow::Next),
            words => self.run(&words),
        }
    }

    /// What was asked for, if the next line is to be the answer: that may be empty, or look like a comment.
    fn question(&self) -> Option<String> {
        None
    }

    /// What stands before the line at a terminal, where that may change.
    fn prompt(&self) -> Option<String> {
        None
    }

    /// The input of a pipe has come to its end, and so does the program when this returns.
    fn input_ended(&self) {}
}

/// All that [`Screen::paint`] writes around a text.
const COLOURS: [&str; 4] = ["\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"];

/// Where a program prints: safe to use from any thread, and it never tears a line that is being typed.
#[derive(Clone)]
pub struct Screen {
    sink: Arc<Mutex<Sink>>,
    json: bool,
    colour: bool,
    /// Ends the program when nobody reads any more.
    shutdown: Shutdown,
}

enum Sink {
    Stdout,
    Terminal(Box<dyn FnMut(String) -> rustyline::Result<()> + Send>),
    /// Whoever read has gone.
    Gone,
}

/// How a text is shown at a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Good news.
    Good,
    /// Bad news.
    Bad,
    /// Of less weight.
    Dim,
}

impl Screen {
    /// Prints to standard output; with `json`, one object a line.
    pub fn new(json: bool, shutdown: Shutdown) -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let colour = !json && wanted && io::stdout().is_terminal() && !is_dumb();
        Screen { sink: Arc::new(Mutex::new(Sink::Stdout)), json, colour, shutdown }
    }

    /// Whether answers are JSON objects.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a text, which may have several lines, and ends it. Whatever is in it, nothing but our own colours
    /// drives the terminal.
    pub fn print(&self, text: &str) {
        let text = self.harmless(text);
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
            self.shutdown.trigger();
        }
    }

    /// Prints an object on one line.
    pub fn print_json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.print(&text::safe_json(&text)),
            Err(error) => self.error(&error.to_string()),
        }
    }

    /// Prints what went wrong.
    pub fn error(&self, reason: &str) {
        if self.json {
            self.print_json(&json!({ "error": clean(reason) }));
        } else {
            self.print(&format!("{} {}", self.paint(Style::Bad, "error:"), clean(reason)));
        }
    }

    /// The line that is being typed, if there is one, stays as it is, and what comes begins below it. The
    /// editor that reads it will not come back to tell the terminal that pastes need no brackets any more.
    fn leave_line(&self) {
        let mut sink = self.sink.lock();
        if matches!(*sink, Sink::Terminal(_)) {
            *sink = Sink::Stdout;
            drop(sink);
            self.write("\x1b[?2004l".to_owned());
        }
    }

    /// The text, line by line as [`clean`] makes it, with our own colours where there are any.
    fn harmless(&self, text: &str) -> String {
        let clean_line = |line: &str| {
            if !self.colour || !line.contains('\x1b') {
                return clean(line);
            }
            // Between our codes, which stand as they are.
            let mut shown = String::with_capacity(line.len());
            let mut rest = line;
            while let Some((at, code)) = COLOURS.iter().filter_map(|code| Some((rest.find(code)?, code))).min() {
                shown.push_str(&clean(&rest[..at]));
                shown.push_str(code);
                rest = &rest[at + code.len()..];
            }
            shown + &clean(rest)
        };
        text.split('\n').map(clean_line).collect::<Vec<_>>().join("\n")
    }

    /// The text in a style, where there are colours.
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

/// Whether the terminal knows no escape codes (as Emacs' shell does not): it is written to as a pipe is. The
/// kinds are those in which rustyline, too, would not edit.
pub(super) fn is_dumb() -> bool {
    const DUMB: [&str; 4] = ["", "dumb", "cons25", "emacs"];
    std::env::var("TERM").map_or(cfg!(unix), |term| DUMB.iter().any(|dumb| term.eq_ignore_ascii_case(dumb)))
}

/// A text of someone else's, as it may be shown: see [`text::safe`].
pub fn clean(text: &str) -> String {
    text::safe(text).into_owned()
}

/// JSON of one line, as it may be shown: see [`text::safe_json`].
pub fn clean_json(json: &str) -> String {
    text::safe_json(json).into_owned()
}

/// The words of a line: separated by blanks; quotes (double or single) keep a word together, and
/// within double ones a backslash keeps the next character as it is.
///
/// # Errors
/// A quote that is not closed.
pub fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("a quote ({c}) is not closed")),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => word.extend(chars.next()),
                        Some(other) => word.push(other),
                    }
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Reads lines and runs commands until the input ends, a command says [`Flow::Quit`], or SIGINT or
/// SIGTERM comes. What waits for input then is left behind: the caller ends the program.
///
/// # Errors
/// The system's, when it gives no thread.
pub fn run(
    prompt: &str,
    history: Option<PathBuf>,
    screen: &Screen,
    shutdown: &Shutdown,
    commands: Arc<dyn Commands>,
) -> io::Result<()> {
    let terminal = terminal::Saved::take();
    let reader = {
        let (screen, shutdown, prompt) = (screen.clone(), shutdown.clone(), prompt.to_owned());
        move || {
            let interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb();
            let read = if interactive {
                terminal::keep_end_of_input_as_key();
                read_terminal(&prompt, history, &screen, &shutdown, &commands)
            } else {
                read_pipe(io::stdin().lock(), &screen, &shutdown, &*commands).map_err(anyhow::Error::from)
            };
            *screen.sink.lock() = Sink::Stdout;
            if let Err(error) = read {
                screen.error(&format!("reading the input: {error:#}"));
            }
            shutdown.trigger();
        }
    };
    threads::spawn("input", reader)?;
    shutdown.wait();
    // The thread that reads may be left behind in the middle of a line, with the terminal in its hands.
    terminal.restore();
    screen.leave_line();
    Ok(())
}

/// One line: nothing for an empty one or a comment.
fn take(line: &str, screen: &Screen, commands: &dyn Commands) -> Flow {
    if line.trim_start().starts_with('#') && commands.question().is_none() {
        return Flow::Next;
    }
    commands.run_line(line.trim_end_matches(['\r', '\n'])).unwrap_or_else(|error| {
        screen.error(&format!("{error:#}"));
        Flow::Next
    })
}

fn read_pipe(mut input: impl BufRead, screen: &Screen, shutdown: &Shutdown, commands: &dyn Commands) -> io::Result<()> {
    let mut line = Vec::new();
    while !shutdown.is_asked() {
        line.clear();
        if io::Read::take(&mut input, LINE_MAX as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            commands.input_ended();
            break;
        }
        if line.len() > LINE_MAX {
            // The rest of it belongs to it.
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
            Ok(line) => take(line, screen, commands),
            Err(_) => {
                screen.error("a line is not UTF-8");
                Flow::Next
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
    shutdown: &Shutdown,
    commands: &Arc<dyn Commands>,
) -> anyhow::Result<()> {
    if let Some(path) = history.as_deref().filter(|path| path.exists())
        && let Err(error) = line_editor::load_history(path)
    {
        screen.error(&format!("{}: {error}", path.display()));
    }
    *screen.sink.lock() = Sink::Terminal(Box::new(line_editor::printer()?));
    while !shutdown.is_asked() {
        let question = commands.question();
        let is_command = question.is_none();
        let asks = question.or_else(|| commands.prompt());
        let wanted = Wanted::Command(Arc::clone(commands));
        match line_editor::read(At::Stdio, asks.as_deref().unwrap_or(prompt), wanted) {
            Ok(line) => {
                if is_command && !line.is_empty() {
                    line_editor::remember(&line)?;
                }
                if take(&line, screen, &**commands) == Flow::Quit {
                    break;
                }
            }
            // In raw mode ^C is a key, not a signal.
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => bail!(error),
        }
    }
    if let Some(path) = history {
        line_editor::save_history(&path)?;
    }
    Ok(())
}

/// Where the word that is being typed begins, the words before it, and as much of it as there is.
pub(super) fn word_at(typed: &str) -> (usize, Vec<String>, String) {
    let mut start = 0;
    let mut quote = None;
    for (at, c) in typed.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => start = at + c.len_utf8(),
            _ => {}
        }
    }
    let begun = typed[start..].trim_matches(['"', '\'']).to_owned();
    (start, words(&typed[..start]).unwrap_or_default(), begun)
}

/// The word as it can be typed.
pub(super) fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '#'));
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}

/// The terminal's own settings, for when the line editor cannot put them back.
#[cfg(unix)]
mod terminal {
    use std::mem::MaybeUninit;

    pub(super) struct Saved(Option<libc::termios>);

    impl Saved {
        pub(super) fn take() -> Saved {
            let mut settings = MaybeUninit::uninit();
            // SAFETY: `tcgetattr` writes to the place it is given or fails; it is read only if it did not.
            let saved = unsafe {
                (libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) == 0).then(|| settings.assume_init())
            };
            Saved(saved)
        }

        pub(super) fn restore(&self) {
            if let Some(settings) = &self.0 {
                // SAFETY: the settings are those that `tcgetattr` gave for this descriptor. Should it fail,
                // the terminal has gone, and nobody misses its settings.
                unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
            }
        }
    }

    /// Between two lines, while a command runs, the terminal collects what is typed ahead. It would turn a ^D
    /// into an end of input that whoever reads keys never sees; without a key for that, the byte stays what it is
    /// until the editor reads it. What was saved before gives the key back.
    pub(super) fn keep_end_of_input_as_key() {
        // SAFETY: asks for a number, with plain numbers.
        let no_key = libc::cc_t::try_from(unsafe { libc::fpathconf(libc::STDIN_FILENO, libc::_PC_VDISABLE) });
        if let (Saved(Some(mut settings)), Ok(no_key)) = (Saved::take(), no_key) {
            settings.c_cc[libc::VEOF] = no_key;
            // SAFETY: as in `restore`; if it fails, a ^D at the wrong moment has to be typed again, no more.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const settings) };
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    pub(super) struct Saved;

    impl Saved {
        pub(super) fn take() -> Saved {
            Saved
        }

        pub(super) fn restore(&self) {}
    }

    pub(super) fn keep_end_of_input_as_key() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_together_what_is_quoted() {
        for (line, expected) in [
            ("", vec![]),
            ("  find  lamp 20 ", vec!["find", "lamp", "20"]),
            ("sell \"desk lamp\" 20 'brass, old'", vec!["sell", "desk lamp", "20", "brass, old"]),
            (r#"sell "the \"best\" \\" 1"#, vec!["sell", r#"the "best" \"#, "1"]),
            ("a\"b c\"d \"\"", vec!["ab cd", ""]),
        ] {
            assert_eq!(words(line).unwrap(), expected, "{line}");
        }
        for line in ["sell \"desk", "it's", "\"a\\"] {
            assert!(words(line).unwrap_err().contains("not closed"), "{line}");
        }
        assert_eq!(words(&format!("x {}", quoted("a \"b\" \\c"))).unwrap(), ["x", "a \"b\" \\c"]);
    }

    #[test]
    fn nothing_of_anyones_drives_a_terminal() {
        let screen = |colour| Screen { colour, ..Screen::new(false, Shutdown::default()) };
        let (plain, coloured) = (screen(false), screen(true));
        let text = format!("{}\nb\x1b[2J\u{202e}\rc", coloured.paint(Style::Bad, "a"));
        assert_eq!(coloured.harmless(&text), "\x1b[31ma\x1b[0m\nb\u{fffd}[2J\u{fffd}\u{fffd}c");
        assert_eq!(plain.harmless(&text), "\u{fffd}[31ma\u{fffd}[0m\nb\u{fffd}[2J\u{fffd}\u{fffd}c");
        assert_eq!(plain.harmless("a\n\nb\n"), "a\n\nb\n");
    }

    #[test]
    fn completion_sees_the_words_before() {
        assert_eq!(word_at("fi"), (0, vec![], "fi".to_owned()));
        assert_eq!(word_at("remove \"desk la"), (7, vec!["remove".to_owned()], "desk la".to_owned()));
        assert_eq!(word_at("buy "), (4, vec!["buy".to_owned()], String::new()));
    }

    struct Recorder(Mutex<Vec<Vec<String>>>);

    impl Commands for Recorder {
        fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
            self.0.lock().push(words.to_vec());
            match words[0].as_str() {
                "quit" => Ok(Flow::Quit),
                "fail" => bail!("it failed"),
                _ => Ok(Flow::Next),
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
        let shutdown = Shutdown::default();
        let screen = Screen::new(false, shutdown.clone());
        *screen.sink.lock() = Sink::Gone;
        read_pipe(&input[..], &screen, &shutdown, &recorder).unwrap();
        assert_eq!(*recorder.0.lock(), [vec!["one"], vec!["fail", "now"], vec!["two"]]);
        read_pipe(&b"quit\nthree\n"[..], &screen, &shutdown, &recorder).unwrap();
        assert_eq!(recorder.0.lock().last().unwrap(), &["quit"]);
    }
}
