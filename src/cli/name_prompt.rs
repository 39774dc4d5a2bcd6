//! Asks for the user's name if no flag gives it.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail};

use crate::model::Name;

/// The first line of the input that is not blank. At a terminal it prompts until the name is valid; in a pipe the lines
/// that follow are commands.
pub fn ask() -> anyhow::Result<Option<Name>> {
    let asks = io::stdin().is_terminal();
    loop {
        if asks {
            eprint!("Your name: ");
            io::stderr().flush()?;
        }
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).context("cannot read the name")? == 0 {
            return Ok(None);
        }
        match Name::new(line.trim()) {
            Ok(name) => return Ok(Some(name)),
            Err(error) if asks => eprintln!("{error}"),
            Err(_) if line.trim().is_empty() => {}
            Err(error) => bail!("the first line of the input is no name: {error} (or say --name NAME)"),
        }
    }
}
