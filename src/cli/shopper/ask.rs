//! What is asked of a person: at a terminal alone, secrets without their being shown.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use anyhow::{Context, bail};
use rustyline::completion::Completer;
use rustyline::config::{Behavior, Configurer};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, Config, Editor, Helper};

use crate::cli::repl::is_dumb;

/// Where a password may stand, for programs and for those without a terminal.
pub(in crate::cli) const PASSWORD_VARIABLE: &str = "P2S2_PASSWORD";

/// Whether somebody is there to be asked.
pub(in crate::cli) fn somebody_is_there() -> bool {
    io::stdin().is_terminal()
}

/// The password of the user: from the environment, else asked for; a new one twice.
pub(in crate::cli) fn password(is_new: bool) -> anyhow::Result<String> {
    if let Some(password) = std::env::var_os(PASSWORD_VARIABLE) {
        return password.into_string().ok().with_context(|| format!("{PASSWORD_VARIABLE}: expected UTF-8"));
    }
    if !somebody_is_there() {
        bail!("a password is missing: set {PASSWORD_VARIABLE}, as there is no terminal to ask for it at");
    }
    let password = hidden("Password: ")?;
    if is_new && hidden("The same again: ")? != password {
        bail!("these were two passwords, not one");
    }
    Ok(password)
}

/// A line that everybody may see.
pub(in crate::cli) fn line(prompt: &str) -> anyhow::Result<String> {
    read(prompt, false)
}

/// A line that is not shown while it is typed.
pub(in crate::cli) fn hidden(prompt: &str) -> anyhow::Result<String> {
    // There the editor would read as the terminal does: with an echo.
    if is_dumb() {
        bail!("this terminal cannot hide what is typed: set {PASSWORD_VARIABLE}, or use a wallet for a card");
    }
    read(prompt, true)
}

fn read(prompt: &str, hides: bool) -> anyhow::Result<String> {
    let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(false).build();
    let mut editor = Editor::<Hiding, DefaultHistory>::with_config(config)?;
    if hides {
        editor.set_color_mode(ColorMode::Forced);
    }
    editor.set_helper(Some(Hiding(hides)));
    match editor.readline(prompt) {
        Ok(line) => Ok(line),
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => bail!("nothing was entered"),
        Err(error) => Err(error).context("cannot read from the terminal"),
    }
}

/// Shows blanks for what is typed, if it is to be hidden.
struct Hiding(bool);

impl Helper for Hiding {}
impl Completer for Hiding {
    type Candidate = String;
}
impl Hinter for Hiding {
    type Hint = String;
}
impl Validator for Hiding {}

impl Highlighter for Hiding {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if self.0 { Cow::Owned(" ".repeat(line.chars().count())) } else { Cow::Borrowed(line) }
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        self.0 && kind != CmdKind::MoveCursor
    }
}
