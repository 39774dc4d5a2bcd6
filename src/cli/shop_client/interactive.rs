//! The interactive loop of the shop's clients. Its lines are read as the command line is.

use std::io::{self, IsTerminal};
use std::marker::PhantomData;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::builder::StyledStr;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};

use super::session::ShopSession;
use super::{RoleCommands, run_command};
use crate::cli::output::sanitize;
use crate::cli::repl::{self, Commands, Flow};
use crate::cli::session_store::SessionStore;
use crate::cli::table::{Align, Column, table_of};
use crate::net::shutdown::ShutdownSignal;

pub(super) fn run<C: RoleCommands>(
    session: ShopSession,
    server: &str,
    shutdown: &ShutdownSignal,
) -> anyhow::Result<ExitCode> {
    let mut user = session.user();
    let (role, screen) = (C::ROLE, session.screen.clone());
    screen.print_event("begun", json!({"role": role, "server": server}), |_| {
        format!("a {role} at {server}; `help` lists the commands")
    });
    if user.is_some()
        && let Err(error) = session.login(None)
    {
        report_error(&session, &error);
        // The prompt shows the role.
        user = None;
    }
    let history = if io::stdin().is_terminal() {
        Some(SessionStore::new(role, server)?.folder()?.join(format!("{role}-history")))
    } else {
        None
    };
    let prompt = format!("{}> ", user.as_deref().map_or(role.to_owned(), sanitize));
    let commands = Arc::new(InteractiveCommands::<C> { session, commands: PhantomData });
    repl::run(&prompt, history, &screen, shutdown, commands).context("cannot read commands")?;
    Ok(ExitCode::SUCCESS)
}

fn report_error(session: &ShopSession, error: &anyhow::Error) {
    let (text, code) = session.explain(error);
    if session.screen.is_json() {
        session.json_error(&text, code);
    } else {
        session.screen.error(&text);
    }
}

#[derive(Parser)]
#[command(multicall = true, disable_help_subcommand = true, max_term_width = 100)]
struct InputLine<C: Subcommand> {
    #[command(subcommand)]
    command: C,
}

struct InteractiveCommands<C> {
    session: ShopSession,
    commands: PhantomData<C>,
}

impl<C: RoleCommands> Commands for InteractiveCommands<C> {
    fn run(&self, words: &[String]) -> anyhow::Result<Flow> {
        let mut words = words.to_vec();
        words[0] = words[0].to_lowercase();
        match words[0].as_str() {
            "quit" | "exit" => return Ok(Flow::Quit),
            "help" if words.len() == 1 => {
                self.help();
                return Ok(Flow::Continue);
            }
            // `help search` is `search --help`.
            "help" => words = vec![words[1].to_lowercase(), "--help".to_owned()],
            _ => {}
        }
        if InputLine::<C>::command().find_subcommand(&words[0]).is_none() {
            bail!("there is no command {:?}; `help` lists them", words[0]);
        }
        match InputLine::<C>::try_parse_from(&words) {
            Ok(line) => {
                if let Err(error) = run_command(&self.session, line.command) {
                    report_error(&self.session, &error);
                }
            }
            Err(asked) if !asked.use_stderr() => self.print_help(&asked.render()),
            Err(error) => bail!(usage_error_line(&error.render())),
        }
        Ok(Flow::Continue)
    }

    fn complete(&self, before: &[String]) -> Vec<String> {
        let commands = InputLine::<C>::command();
        let Some(name) = before.first() else {
            let names = commands.get_subcommands().map(|command| command.get_name().to_owned());
            return names.chain(["help", "quit", "exit"].map(str::to_owned)).collect();
        };
        if name == "help" {
            return commands.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        }
        let Some(command) = commands.find_subcommand(name.to_lowercase()) else { return Vec::new() };
        let flags = command.get_opts().filter_map(clap::Arg::get_long).map(|long| format!("--{long}"));
        let takes_item = command.get_positionals().any(|arg| arg.get_id() == "item");
        let items = if takes_item { self.session.seen_item_ids.lock().clone() } else { Vec::new() };
        items.into_iter().chain(flags).collect()
    }
}

impl<C: RoleCommands> InteractiveCommands<C> {
    fn help(&self) {
        let mut commands = InputLine::<C>::command();
        let rows = commands.get_subcommands_mut().map(|command| {
            let usage = command.render_usage().to_string();
            let usage = usage.trim_start_matches("Usage:").trim().to_owned();
            [usage, command.get_about().map(StyledStr::to_string).unwrap_or_default()]
        });
        let own = [["help [COMMAND]", "this list, or one command with its options"], ["quit", "stop (exit does, too)"]];
        let rows: Vec<[String; 2]> = rows.chain(own.map(|row| row.map(str::to_owned))).collect();
        let fields: Vec<Value> = rows.iter().map(|[usage, does]| json!({"usage": usage, "does": does})).collect();
        let columns: [Column<[String; 2]>; 2] =
            [("command", Align::Left, |[usage, _]| usage.clone()), ("", Align::Left, |[_, does]| does.clone())];
        self.session.screen.print_ok("help", json!({ "commands": fields }), |_| table_of(&columns, &rows));
    }

    fn print_help(&self, help: &StyledStr) {
        let text = help.to_string();
        self.session.screen.print_ok("help", json!({ "help": text }), |_| text.trim_end().to_owned());
    }
}

/// clap's usage error on one line, without the hints that apply to a shell only.
fn usage_error_line(error: &StyledStr) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").replace(" Usage: ", "; usage: ")
}
