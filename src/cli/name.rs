//! A person's name, where no flag says it.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail};

use crate::model::Name;

/// The first line of the input that says something. At a terminal the name is asked for, until it is one;
/// in a pipe what follows is for commands.
///
/// # Errors
/// It is no name, or the input cannot be read.
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
            Err(wrong) if asks => eprintln!("{wrong}"),
            Err(_) if line.trim().is_empty() => {}
            Err(wrong) => bail!("the first line of the input is no name: {wrong} (or say --name NAME)"),
        }
    }
}
