//! The command line of `p2s2`. Each file implements one command.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use prompt::PASSWORD_VARIABLE;

pub mod admin;
pub mod buyer;
mod dotenv;
mod generate;
pub mod lan;
mod line_editor;
mod listen_args;
pub mod name_prompt;
mod output;
pub mod peer;
mod progress_bar;
mod prompt;
mod ready;
pub mod repl;
mod response_fields;
pub mod seller;
pub mod server;
pub mod server_discovery;
mod session_store;
pub mod settings;
pub mod share;
pub mod shop;
pub mod shop_client;
pub mod story;
pub mod table;
mod words;

/// Peers that find each other, trade, shop and share.
#[derive(Debug, Parser)]
#[command(
    name = "p2s2",
    version,
    about,
    max_term_width = 100,
    after_help = "\
Examples:
  p2s2 server                                  a server on this machine, everything in data/state
  p2s2 peer --name alice                       a trading peer that talks to it
  p2s2 lan --name alice                        talk to whoever is on this network, with no server
  p2s2 share --name alice                      a node that publishes and fetches files
  p2s2 buyer search --category 1 phone         what the shop has, one command at a time
  p2s2 admin ledger                            who paid whom, and whether it adds up

Every setting may also be an environment variable (or stand in .env): P2S2_, the command, the flag,
as in P2S2_SERVER_TRADE_PORT=7001."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Server(Box<server::ServerArgs>),
    #[command(name = "product-db")]
    ProductDb(shop::ProductArgs),
    #[command(name = "customer-db")]
    CustomerDb(shop::CustomerArgs),
    #[command(name = "seller-server")]
    SellerServer(shop::SellerServerArgs),
    #[command(name = "buyer-server")]
    BuyerServer(shop::BuyerServerArgs),
    Seller(seller::SellerArgs),
    Buyer(buyer::BuyerArgs),
    Peer(peer::PeerArgs),
    Lan(lan::LanArgs),
    Share(Box<share::ShareArgs>),
    Admin(admin::AdminArgs),
    Story(story::StoryArgs),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

/// Gives every flag without an environment variable of its own a default one: `P2S2_`, the command, and the flag.
fn with_environment_variables(program: clap::Command) -> clap::Command {
    program.mut_subcommands(|command| {
        let prefix = format!("P2S2_{}", command.get_name());
        command.mut_args(|arg| match arg.get_long() {
            Some(flag) if arg.get_env().is_none() && !matches!(flag, "help" | "version") => {
                let name = format!("{prefix}_{flag}").replace('-', "_").to_uppercase();
                // clap needs a static name. There are a few dozen of them, created once per process.
                arg.env(&*name.leak())
            }
            _ => arg,
        })
    })
}

pub fn main() -> ExitCode {
    crate::net::limits::ignore_file_size_signal();
    if let Err(error) = settings::load_environment() {
        return report_error(&error);
    }
    let is_command = |role: &str, word: &str| {
        Cli::command().find_subcommand(role).is_some_and(|role| role.find_subcommand(word).is_some())
    };
    let words = shop_client::with_server_flag(std::env::args_os().collect(), is_command);
    let program = with_environment_variables(Cli::command());
    settings::warn_of_unknown(&known_variables(&program));
    let parsed = program.try_get_matches_from(words);
    let cli = match parsed.and_then(|words| Cli::from_arg_matches(&words)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return report_usage_error(&error),
        Err(asked) => return asked.print().map_or_else(|error| report_error(&error.into()), |()| ExitCode::SUCCESS),
    };
    let result = match cli.command {
        Command::Server(args) => server::run(*args),
        Command::ProductDb(args) => shop::run_product(args),
        Command::CustomerDb(args) => shop::run_customer(args),
        Command::SellerServer(args) => shop::run_seller_server(args),
        Command::BuyerServer(args) => shop::run_buyer_server(args),
        Command::Seller(args) => seller::run(args),
        Command::Buyer(args) => buyer::run(args),
        Command::Peer(args) => peer::run(args),
        Command::Lan(args) => lan::run(args),
        Command::Share(args) => share::run(*args),
        Command::Admin(args) => admin::run(args),
        Command::Story(args) => story::run(args),
        Command::Completions(args) => generate::completions(&args, with_environment_variables(Cli::command())),
        Command::Man(args) => generate::man(&args, with_environment_variables(Cli::command())),
    };
    match (result, output::first_failure()) {
        (Ok(_), Some(why)) => report_error(&anyhow::anyhow!("the output could not be written: {why}")),
        (Ok(code), None) => code,
        (Err(error), _) => report_error(&error),
    }
}

/// Every environment variable that a flag reads, or that is read without a flag.
fn known_variables(program: &clap::Command) -> BTreeSet<String> {
    let of_flags = program.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()));
    let of_commands = program.get_subcommands().flat_map(known_variables);
    of_flags.chain(of_commands).chain([PASSWORD_VARIABLE.to_owned()]).collect()
}

/// The error quotes the arguments, which may come from a file that somebody else wrote, so it is sanitized.
fn report_usage_error(error: &clap::Error) -> ExitCode {
    for line in error.render().to_string().lines() {
        eprintln!("{}", output::sanitize(line));
    }
    ExitCode::from(2)
}

/// Prints an error with its causes on one line, outermost first. A closed output pipe is not an error.
fn report_error(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    }) {
        return ExitCode::SUCCESS;
    }
    // The message may quote text from a server.
    eprintln!("error: {}", output::sanitize(&format!("{error:#}")));
    if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// A wrong word that only the command itself finds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);
