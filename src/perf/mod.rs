//! The load generator `p2s2-perf`.
//!
//! A scenario (one file each) starts the processes that it needs and describes its measurements as
//! [`plan::BenchmarkGroup`]s. The rest is shared: clients ([`load`]), limits of the machine ([`limits`]), the order of
//! measurements and medians ([`plan`]), reports ([`report`]).

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

pub mod child;
pub mod compare;
pub mod duplicates;
pub mod heartbeat;
pub mod limits;
pub mod load;
pub mod page;
pub mod plan;
pub mod registry;
pub mod report;
pub mod rng;
pub mod run;
pub mod share;
pub mod shop;
pub mod stop;
pub mod trade;
pub mod transfer;
pub mod usage;

/// Maximum number of clients that have a thread each.
const CLIENTS_MAX: u32 = 1000;

/// Exit code with `--check`: everything was measured, but a requirement was missed.
const EXIT_REQUIREMENT_MISSED: u8 = 3;
/// Exit code after a signal, as shells report a death by SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// How fast is it, and how fast could it be here?
#[derive(Debug, Parser)]
#[command(
    name = "p2s2-perf",
    version,
    max_term_width = 100,
    about = "Measure how fast P2S2 is, as a share of what this machine can do at all",
    after_help = "\
Examples:
  p2s2-perf trade --quick                      within a minute: echo, STATUS, REGISTER, rounds, purchases
  p2s2-perf trade --clients 1,100 --only STATUS,REGISTER
  p2s2-perf shop --quick                       the shop's calls, as a share of an echo over the same processes
  p2s2-perf trade --quick --json > now.json    the report as one JSON object instead of the table
  p2s2-perf compare before.json now.json       two runs side by side

Exit codes: 0 measured; 1 could not measure; 2 wrong words; 3 a requirement was missed (--check);
130 ended by a signal (what was measured until then is written)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Peers that search, offer and buy, over UDP and TLS
    #[command(after_help = "\
Examples:
  p2s2-perf trade --quick
  p2s2-perf trade --full --out /mnt/disk/perf       the store's files lie below --out: choose the disk
  p2s2-perf trade --target 127.0.0.1:7001 --only STATUS --clients 1,10,100")]
    Trade(RunArgs),
    /// Sellers and buyers over four server processes, with TCP
    #[command(after_help = "\
Examples:
  p2s2-perf shop --quick                       a look at each call and mix; without --quick ten
                                               runs of a thousand calls of each client as well
  p2s2-perf shop --only SEARCH,CART --clients 100
  p2s2-perf shop --full --out /mnt/disk/perf        the databases' files lie below --out: choose the disk
  p2s2-perf shop --quick --target 127.0.0.1:8001,127.0.0.1:8002

With --target, accounts and goods of the run stay in that shop: choose one for trials. Limits are always
measured on this machine: a share says something if the server runs here too.")]
    Shop(RunArgs),
    /// Hosts that keep a connection to the registry each, and what they ask of it
    #[command(after_help = "\
Examples:
  p2s2-perf registry --quick
  p2s2-perf registry --preset 10k --only PING,PACED,PACED-100
  p2s2-perf registry --preset 100k --full            a hundred thousand hosts, two thousand at once
  p2s2-perf registry --target 127.0.0.1:9000 --clients 100 --only PING")]
    Registry(registry::RegistryArgs),
    /// What adaptive heartbeats save: a simulated day of a hundred thousand clients
    #[command(after_help = "Examples:\n  p2s2-perf heartbeat\n  p2s2-perf heartbeat --clients 1000,1000000")]
    Heartbeat(RunArgs),
    /// Files that pass from node to node
    #[command(after_help = "\
Examples:
  p2s2-perf transfer --quick
  p2s2-perf transfer --only 1GB,THREE --out /mnt/disk/perf      files lie below --out: choose the disk")]
    Transfer(RunArgs),
    /// What a check for duplicates costs beside 10,000 files, and how often it is wrong
    #[command(after_help = "Example:\n  p2s2-perf duplicates --quick")]
    Duplicates(RunArgs),
    /// Show two reports side by side
    #[command(after_help = "Example:\n  p2s2-perf compare data/perf/before.json data/perf/trade.json")]
    Compare(compare::CompareArgs),
    /// One of the servers that results are compared with (a child of a run)
    #[command(hide = true)]
    LimitServer(limits::LimitServerArgs),
}

/// What every scenario takes.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// A small run, within a minute
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// A long run
    #[arg(long)]
    pub full: bool,
    /// How many clients at once; each number is measured [default: 1,10,100; heartbeat: 100000]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    clients: Vec<u32>,
    /// Calls of each client in a measurement, instead of a fixed time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub calls: Option<u64>,
    /// Measurements of each kind (5 or more for medians that mean something)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: Option<u16>,
    /// Where reports go; data of the measured servers lies there meanwhile, on that disk
    #[arg(long, value_name = "DIR", default_value = "data/perf")]
    pub out: std::path::PathBuf,
    /// Measure a running server instead of starting one (its CPU and memory are then unknown); for shop, the
    /// sellers' frontend and the buyers', with a comma between them
    #[arg(long, value_name = "HOST:PORT")]
    pub target: Option<String>,
    /// Measure these operations alone (limits come along as needed)
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Print the report as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Exit with 3 when a requirement is missed
    #[arg(long)]
    pub check: bool,
    /// Multiply what is required by this, for machines that are shared
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = parse_factor)]
    pub relax: f64,
}

impl RunArgs {
    pub fn clients(&self) -> Vec<usize> {
        if self.clients.is_empty() { vec![1, 10, 100] } else { self.requested_clients() }
    }

    pub fn requested_clients(&self) -> Vec<usize> {
        self.clients.iter().map(|clients| *clients as usize).collect()
    }

    /// A scenario that starts its own, fixed number of processes takes neither flag.
    fn refuse_target_and_clients(&self) {
        for (flag, is_given) in [("--target", self.target.is_some()), ("--clients", !self.clients.is_empty())] {
            if is_given {
                let message = format!("{flag}: this scenario starts its own server and nodes, always as many");
                refuse(ErrorKind::ArgumentConflict, message);
            }
        }
    }

    /// Refuses operations that the scenario does not have, and more clients than it can have at once.
    fn check(&self, operations: &[&str], clients_max: Option<u32>) {
        let unknown = self.only.iter().find(|only| !operations.iter().any(|known| known.eq_ignore_ascii_case(only)));
        if let Some(unknown) = unknown {
            let known = operations.join(", ");
            refuse(ErrorKind::InvalidValue, format!("--only: there is no operation {unknown:?}; choose from {known}"));
        }
        let most = clients_max.unwrap_or(u32::MAX);
        if let Some(wrong) = self.clients.iter().find(|clients| **clients > most) {
            refuse(ErrorKind::InvalidValue, format!("--clients: expected at most {most} at once here, not {wrong}"));
        }
    }
}

/// Ends the program, as it ends when a word is wrong.
fn refuse(kind: ErrorKind, message: String) -> ! {
    Cli::command().error(kind, message).exit()
}

fn parse_factor(text: &str) -> Result<f64, String> {
    let factor = text.parse::<f64>().ok().filter(|factor| (0.0..=1.0).contains(factor));
    factor.ok_or_else(|| "expected a factor from 0 to 1".to_owned())
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Trade(args) => {
            args.check(trade::OPERATIONS, Some(CLIENTS_MAX));
            run::scenario("trade", &args, trade::measure)
        }
        Command::Shop(args) => {
            args.check(shop::OPERATIONS, Some(CLIENTS_MAX));
            if let Some(Err(message)) = args.target.as_deref().map(shop::check_target) {
                refuse(ErrorKind::InvalidValue, message);
            }
            run::scenario("shop", &args, shop::measure)
        }
        Command::Registry(args) => {
            args.run.check(registry::OPERATIONS, Some(registry::CLIENTS_MAX));
            run::scenario("registry", &args.run, |run| registry::measure(run, &args))
        }
        Command::Heartbeat(args) => {
            args.check(heartbeat::OPERATIONS, None);
            run::scenario("heartbeat", &args, heartbeat::measure)
        }
        Command::Transfer(args) => {
            args.check(transfer::OPERATIONS, None);
            args.refuse_target_and_clients();
            run::scenario("transfer", &args, transfer::measure)
        }
        Command::Duplicates(args) => {
            args.check(duplicates::OPERATIONS, None);
            args.refuse_target_and_clients();
            run::scenario("duplicates", &args, duplicates::measure)
        }
        Command::Compare(args) => compare::run(&args),
        Command::LimitServer(args) => limits::serve(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        let pipe_closed = error.chain().any(|cause| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
        });
        // The reader of our output has closed the pipe.
        if pipe_closed {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
