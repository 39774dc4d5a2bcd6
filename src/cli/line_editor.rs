//! The only reader of lines at a terminal, for commands and for prompts alike.
//!
//! Text that is typed ahead or pasted must be read in order by whoever asks next; with two readers, one could buffer
//! input that was meant for the other. Each line of a paste counts as a separate line.

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

use super::words::{current_word, quote_word};

const HISTORY_MAX: usize = 1_000;

/// Candidates for the next word of a command, given the words before it.
pub(super) type WordCompletion = Arc<dyn Fn(&[String]) -> Vec<String> + Send + Sync>;

#[derive(Clone)]
pub(super) enum InputKind {
    Command(WordCompletion),
    Answer,
    Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TerminalSource {
    Stdio,
    /// As the process's controlling terminal, even if standard output is redirected.
    Terminal,
}

static EDITOR: Mutex<Option<EditorState>> = Mutex::new(None);

struct EditorState {
    editor: Editor<EditorHelper, DefaultHistory>,
    /// Lines of a paste that were not requested yet.
    pending_lines: VecDeque<String>,
}

/// Reads one line, without its line break. The end of the input and an interrupt are errors.
pub(super) fn read_line(source: TerminalSource, prompt: &str, input: InputKind) -> Result<String> {
    with_editor(source, |state| {
        if let Some(line) = state.pending_lines.pop_front() {
            return Ok(line);
        }
        let is_secret = matches!(input, InputKind::Secret);
        // The highlighter hides secrets, and rustyline would skip it where colours are disabled.
        state.editor.set_color_mode(if is_secret { ColorMode::Forced } else { ColorMode::Enabled });
        state.editor.set_helper(Some(EditorHelper(input)));
        let text = state.editor.readline(prompt)?;
        let (line, rest) = split_paste(&text);
        state.pending_lines = rest;
        Ok(line)
    })
}

/// The first line, and the remaining ones of a paste. A trailing line break adds no empty line.
fn split_paste(text: &str) -> (String, VecDeque<String>) {
    let mut lines = text.lines().map(str::to_owned);
    let first = lines.next().unwrap_or_default();
    (first, lines.collect())
}

/// A function that prints text above the line that is being edited.
pub(super) fn external_printer() -> Result<impl FnMut(String) -> Result<()> + Send> {
    let mut printer = with_editor(TerminalSource::Stdio, |state| state.editor.create_external_printer())?;
    Ok(move |text| rustyline::ExternalPrinter::print(&mut printer, text))
}

pub(super) fn load_history(path: &Path) -> Result<()> {
    with_editor(TerminalSource::Stdio, |state| state.editor.load_history(path))
}

pub(super) fn save_history(path: &Path) -> Result<()> {
    with_editor(TerminalSource::Stdio, |state| state.editor.save_history(path))
}

pub(super) fn add_to_history(line: &str) -> Result<()> {
    with_editor(TerminalSource::Stdio, |state| state.editor.add_history_entry(line).map(drop))
}

fn with_editor<T>(source: TerminalSource, f: impl FnOnce(&mut EditorState) -> Result<T>) -> Result<T> {
    let mut state = EDITOR.lock();
    if state.is_none() {
        let behavior = match source {
            TerminalSource::Stdio => Behavior::Stdio,
            TerminalSource::Terminal => Behavior::PreferTerm,
        };
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .auto_add_history(false)
            .behavior(behavior)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.bind_sequence(KeyEvent::ctrl('D'), EventHandler::Conditional(Box::new(CtrlDHandler)));
        // If the terminal has no end-of-input character, rustyline binds NUL to end of input; that binding is removed.
        editor.bind_sequence(KeyEvent::new('\0', Modifiers::NONE), Cmd::Noop);
        *state = Some(EditorState { editor, pending_lines: VecDeque::new() });
    }
    // The state was created above, so this error cannot occur.
    state.as_mut().map_or_else(|| Err(rustyline::error::ReadlineError::Eof), f)
}

/// Makes Ctrl-D end the input on an empty line, also while `repl.rs` has disabled the terminal's own EOF character.
struct CtrlDHandler;

impl ConditionalEventHandler for CtrlDHandler {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        context.line().is_empty().then_some(Cmd::EndOfFile)
    }
}

/// The editor's helper: completes commands and masks secrets. Hints and validation are not used.
struct EditorHelper(InputKind);

impl Helper for EditorHelper {}
impl Hinter for EditorHelper {
    type Hint = String;
}
impl Validator for EditorHelper {}

impl Highlighter for EditorHelper {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        match self.0 {
            InputKind::Secret => Cow::Owned(" ".repeat(line.chars().count())),
            InputKind::Command(_) | InputKind::Answer => Cow::Borrowed(line),
        }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        matches!(self.0, InputKind::Secret) && kind != CmdKind::MoveCursor
    }
}

impl Completer for EditorHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let InputKind::Command(complete) = &self.0 else { return Ok((pos, Vec::new())) };
        let (start, before, partial) = current_word(line.get(..pos).unwrap_or(line));
        let fits = |word: &String| word.to_lowercase().starts_with(&partial.to_lowercase());
        let candidates = complete(&before).into_iter().filter(fits);
        Ok((start, candidates.map(|word| Pair { replacement: quote_word(&word), display: word }).collect()))
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
            let (first, rest) = split_paste(entered);
            let all: Vec<String> = std::iter::once(first).chain(rest).collect();
            assert_eq!(all, lines, "{entered:?}");
        }
    }
}
