//! The one reader of lines at a terminal, for commands and for questions alike.
//!
//! Whatever is typed ahead, or pasted, is read in its order by whoever asks next: were there two readers, one
//! would hold what was meant for the other. Each line of a paste is a line of its own.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustyline::completion::{Completer, Pair};
use rustyline::config::{Behavior, Configurer};
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{
    Cmd, ColorMode, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext,
    EventHandler, Helper, KeyEvent, Modifiers, RepeatCount, Result,
};

use super::repl::{Commands, quoted, word_at};

/// Lines of history that are kept.
const HISTORY_MAX: usize = 1_000;

/// What a line is to be.
#[derive(Clone)]
pub(super) enum Wanted {
    /// A command, with completion.
    Command(Arc<dyn Commands>),
    /// An answer that everybody may see.
    Answer,
    /// One that is not shown while it is typed.
    Secret,
}

/// Where the terminal is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Standard input and output.
    Stdio,
    /// The process's terminal, wherever standard output goes to.
    Terminal,
}

static LINES: Mutex<Option<Lines>> = Mutex::new(None);

struct Lines {
    editor: Editor<Help, DefaultHistory>,
    /// The rest of a paste.
    pasted: VecDeque<String>,
}

/// Reads a line, without its end.
///
/// # Errors
/// The end of the input, an interrupt, or the terminal's.
pub(super) fn read(at: At, prompt: &str, wanted: Wanted) -> Result<String> {
    with(at, |lines| {
        if let Some(line) = lines.pasted.pop_front() {
            return Ok(line);
        }
        let is_secret = matches!(wanted, Wanted::Secret);
        // Else nothing would be hidden where colours are not wanted.
        lines.editor.set_color_mode(if is_secret { ColorMode::Forced } else { ColorMode::Enabled });
        lines.editor.set_helper(Some(Help(wanted)));
        let text = lines.editor.readline(prompt)?;
        let (line, rest) = split(&text);
        lines.pasted = rest;
        Ok(line)
    })
}

/// The first line of what was entered, and the lines of a paste that follow. What ends with a line break is
/// complete: nothing follows it.
fn split(text: &str) -> (String, VecDeque<String>) {
    let mut lines = text.lines().map(str::to_owned);
    let first = lines.next().unwrap_or_default();
    (first, lines.collect())
}

/// Writes above the line that is being typed.
///
/// # Errors
/// The terminal's.
pub(super) fn printer() -> Result<impl FnMut(String) -> Result<()> + Send> {
    let mut printer = with(At::Stdio, |lines| lines.editor.create_external_printer())?;
    Ok(move |text| rustyline::ExternalPrinter::print(&mut printer, text))
}

/// Makes the lines of a file those that can be brought back.
///
/// # Errors
/// The file's.
pub(super) fn load_history(path: &Path) -> Result<()> {
    with(At::Stdio, |lines| lines.editor.load_history(path))
}

/// Writes them.
///
/// # Errors
/// The file's.
pub(super) fn save_history(path: &Path) -> Result<()> {
    with(At::Stdio, |lines| lines.editor.save_history(path))
}

/// A line that can be brought back from now on.
///
/// # Errors
/// The terminal's.
pub(super) fn remember(line: &str) -> Result<()> {
    with(At::Stdio, |lines| lines.editor.add_history_entry(line).map(drop))
}

fn with<T>(at: At, f: impl FnOnce(&mut Lines) -> Result<T>) -> Result<T> {
    let mut lines = LINES.lock();
    if lines.is_none() {
        let behavior = match at {
            At::Stdio => Behavior::Stdio,
            At::Terminal => Behavior::PreferTerm,
        };
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .auto_add_history(false)
            .behavior(behavior)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.bind_sequence(KeyEvent::ctrl('D'), EventHandler::Conditional(Box::new(EndOfInput)));
        // Where the terminal has no key for the end of input, the editor takes that of the number 0 for it.
        editor.bind_sequence(KeyEvent::new('\0', Modifiers::NONE), Cmd::Noop);
        *lines = Some(Lines { editor, pasted: VecDeque::new() });
    }
    // It was just made where there was none.
    lines.as_mut().map_or_else(|| Err(rustyline::error::ReadlineError::Eof), f)
}

/// ^D ends the input where the line is empty, also at a terminal that has no such key (`repl.rs` takes it away).
struct EndOfInput;

impl ConditionalEventHandler for EndOfInput {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        context.line().is_empty().then_some(Cmd::EndOfFile)
    }
}

/// Completion for commands, blanks for secrets; nothing else of an editor's help.
struct Help(Wanted);

impl Helper for Help {}
impl Hinter for Help {
    type Hint = String;
}
impl Validator for Help {}

impl Highlighter for Help {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        match self.0 {
            Wanted::Secret => Cow::Owned(" ".repeat(line.chars().count())),
            Wanted::Command(_) | Wanted::Answer => Cow::Borrowed(line),
        }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        matches!(self.0, Wanted::Secret) && kind != CmdKind::MoveCursor
    }
}

impl Completer for Help {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let Wanted::Command(commands) = &self.0 else { return Ok((pos, Vec::new())) };
        let (start, before, begun) = word_at(line.get(..pos).unwrap_or(line));
        let fits = |word: &String| word.to_lowercase().starts_with(&begun.to_lowercase());
        let candidates = commands.complete(&before).into_iter().filter(fits);
        Ok((start, candidates.map(|word| Pair { replacement: quoted(&word), display: word }).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_paste_is_one() {
        for (entered, lines) in [
            ("", vec![""]),
            ("one", vec!["one"]),
            ("secret\n", vec!["secret"]),
            ("secret\r\n", vec!["secret"]),
            ("one\ntwo", vec!["one", "two"]),
            ("# a remark\n\nthree\n", vec!["# a remark", "", "three"]),
        ] {
            let (first, rest) = split(entered);
            let all: Vec<String> = std::iter::once(first).chain(rest).collect();
            assert_eq!(all, lines, "{entered:?}");
        }
    }
}
