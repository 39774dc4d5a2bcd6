//! What is asked of a person: at a terminal alone, secrets without their being shown.

use std::io::{self, IsTerminal};

use anyhow::{Context, bail};
use rustyline::error::ReadlineError;

use crate::cli::line_editor::{self, At, Wanted};
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
        let password = password.into_string().ok().with_context(|| format!("{PASSWORD_VARIABLE}: expected UTF-8"))?;
        // A password ends at its line break, wherever it comes from: files of secrets have one.
        return Ok(password.lines().next().unwrap_or_default().to_owned());
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
    read(prompt, Wanted::Answer)
}

/// A line that is not shown while it is typed.
pub(in crate::cli) fn hidden(prompt: &str) -> anyhow::Result<String> {
    // There the editor would read as the terminal does: with an echo.
    if is_dumb() {
        bail!("this terminal cannot hide what is typed: set {PASSWORD_VARIABLE}, or use a wallet for a card");
    }
    read(prompt, Wanted::Secret)
}

fn read(prompt: &str, wanted: Wanted) -> anyhow::Result<String> {
    match line_editor::read(At::Terminal, prompt, wanted) {
        Ok(line) => Ok(line),
        Err(ReadlineError::Eof | ReadlineError::Interrupted) => bail!("nothing was entered"),
        Err(error) => Err(error).context("cannot read from the terminal"),
    }
}
