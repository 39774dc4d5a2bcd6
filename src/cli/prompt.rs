//! Prompts for the user. They require a terminal; secrets are not echoed.

use std::io::{self, IsTerminal};

use anyhow::{Context, bail};
use rustyline::error::ReadlineError;

use super::line_editor::{self, InputKind, TerminalSource};
use super::repl::is_dumb_terminal;

/// The environment variable that gives the password to scripts.
pub(super) const PASSWORD_VARIABLE: &str = "P2S2_PASSWORD";

pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// The user's password: from the environment, else prompted for; a new password is asked for twice.
pub(super) fn password(is_new: bool) -> anyhow::Result<String> {
    if let Some(password) = std::env::var_os(PASSWORD_VARIABLE) {
        let password = password.into_string().ok().with_context(|| format!("{PASSWORD_VARIABLE}: expected UTF-8"))?;
        // A password ends at its first line break, because files of secrets end with one.
        return Ok(password.lines().next().unwrap_or_default().to_owned());
    }
    if !is_interactive() {
        bail!("a password is missing: set {PASSWORD_VARIABLE}, as there is no terminal to ask for it at");
    }
    let password = secret("Password: ")?;
    if is_new && secret("The same again: ")? != password {
        bail!("these were two passwords, not one");
    }
    Ok(password)
}

pub(super) fn line(prompt: &str) -> anyhow::Result<String> {
    read_answer(prompt, InputKind::Answer)
}

pub(super) fn secret(prompt: &str) -> anyhow::Result<String> {
    // At such a terminal the editor reads plainly, and the terminal would echo the secret.
    if is_dumb_terminal() {
        bail!("this terminal cannot hide what is typed: set {PASSWORD_VARIABLE}, or use a wallet for a card");
    }
    read_answer(prompt, InputKind::Secret)
}

fn read_answer(prompt: &str, wanted: InputKind) -> anyhow::Result<String> {
    match line_editor::read_line(TerminalSource::Terminal, prompt, wanted) {
        Ok(line) => Ok(line),
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => bail!("nothing was entered"),
        Err(error) => Err(error).context("cannot read from the terminal"),
    }
}
