//! What is generated from the command line itself: completions for shells, and manual pages.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

use super::output;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 completions bash > ~/.local/share/bash-completion/completions/p2s2
  p2s2 completions zsh > ~/.zfunc/_p2s2            (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)
  p2s2 completions fish > ~/.config/fish/completions/p2s2.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write manual pages, one a command, into a folder
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  p2s2 man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn completions(args: &CompletionsArgs, mut program: Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    output::print(String::from_utf8(script)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for `program` and one for each of its commands: `p2s2.1`, `p2s2-server.1`, …
pub fn man(args: &ManArgs, program: Command) -> anyhow::Result<ExitCode> {
    let dir = args.dir.display();
    fs::create_dir_all(&args.dir).with_context(|| format!("the folder {dir} cannot be made"))?;
    clap_mangen::generate_to(program, &args.dir).with_context(|| format!("manual pages cannot be written to {dir}"))?;
    Ok(ExitCode::SUCCESS)
}
