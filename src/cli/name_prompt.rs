//! Asks for the user's name if no flag gives it.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail};

use super::UsageError;
use crate::model::Name;

/// The name that a flag gives, else the first line of the input that is not blank. At a terminal it prompts until the
/// name is valid; in a pipe the lines that follow are commands. `who` needs it, `variable` may give it too.
pub fn given_or_asked(given: Option<&Name>, who: &str, variable: &str) -> anyhow::Result<Name> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    let asks = io::stdin().is_terminal();
    loop {
        if asks {
            eprint!("Your name: ");
            io::stderr().flush()?;
        }
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).context("cannot read the name")? == 0 {
            let from = format!("--name NAME (or {variable}), or the first line of the input");
            bail!(UsageError(format!("{who} needs a name: {from}")));
        }
        match Name::new(line.trim()) {
            Ok(name) => return Ok(name),
            Err(error) if asks => eprintln!("{error}"),
            Err(_) if line.trim().is_empty() => {}
            Err(error) => bail!("the first line of the input is no name: {error} (or say --name NAME)"),
        }
    }
}
