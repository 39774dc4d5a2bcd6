//! `p2s2 admin`: the operator's commands. They work beside a running server as well as without one.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::output::{sanitize, sanitize_json};
use super::progress_bar::progress_bar;
use super::response_fields::serialized_name;
use super::settings;
use super::table::{
    Align::{Left, Right},
    Column, table_of,
};
use crate::bank::ledger::{self, LedgerEntry};
use crate::identity::users::{self, USERS_DB};
use crate::model::{Cents, Clock, Millis, Name, Total, duration};
use crate::services::stores::{self, CUSTOMER_DB, TRADE_DB};
use crate::shop::customer;
use crate::storage::backup::AcceptedLoss;
use crate::storage::{self, ReadOnlyStore, Reader, StoreError, backup};
use crate::trade::deal::{Deal, DealSummary};
use crate::trade::journal::PeerRow;
use crate::trade::store as trade_store;

/// Look at a server's data, back it up, restore it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  p2s2 admin deals
  p2s2 admin log --peer alice --since 1h
  p2s2 admin ledger --json
  p2s2 admin backup market.tar && p2s2 admin restore market.tar --data-dir elsewhere")]
pub struct AdminArgs {
    #[command(subcommand)]
    command: AdminCommand,
    /// The server's data dir
    #[arg(long, value_name = "DIR", default_value = "data/state", global = true)]
    data_dir: PathBuf,
    /// The server's database; without it, SQLite files in the data dir
    #[arg(long, value_name = "URL", env = "P2S2_DB", global = true)]
    db: Option<String>,
    /// One JSON object a line instead of tables
    #[arg(long, global = true, value_parser = settings::parse_switch())]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Balances and entries of every account; exit code 1 when they do not sum to zero
    #[command(after_help = "Example:\n  p2s2 admin ledger --data-dir /var/lib/p2s2")]
    Ledger,
    /// The accounts of the shop and of those who share files
    #[command(after_help = "Example:\n  p2s2 admin users --json")]
    Users,
    /// The trading peers that are registered
    #[command(after_help = "Example:\n  p2s2 admin peers --json")]
    Peers,
    /// The deals that are open or ended lately
    #[command(after_help = "Example:\n  p2s2 admin deals")]
    Deals,
    /// What happened: registrations, searches, offers, refusals, negotiations, cancels, purchases
    #[command(after_help = "Example:\n  p2s2 admin log --peer alice --since 1h")]
    Log {
        /// Only what concerns this peer
        #[arg(long, value_name = "NAME")]
        peer: Option<String>,
        /// Only since then: Unix seconds, a date such as 2026-11-21T09:30:00Z, or how long ago, such as 1h
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_since)]
        since: Option<Since>,
    },
    /// Copy everything, of one instant, into one archive (it holds secrets: mode 600)
    #[command(after_help = "Example:\n  p2s2 admin backup market.tar")]
    Backup {
        /// The archive; must not exist
        file: PathBuf,
    },
    /// Accept that a file of the data dir is lost, or what it has lost: the server starts again, without it
    ///
    /// What is left of the file is kept beside under another name, and numbers jump, so that none is given out twice.
    /// A backup loses less: this is for when there is none.
    #[command(after_help = "Example:\n  p2s2 admin accept-loss customer.db --data-dir /var/lib/p2s2")]
    AcceptLoss {
        /// The file that a start refused, such as customer.db
        file: PathBuf,
    },
    /// Put a backup into an empty data dir
    #[command(after_help = "Example:\n  p2s2 admin restore market.tar --data-dir elsewhere")]
    Restore {
        /// The archive
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy)]
enum Since {
    At(Millis),
    Ago(std::time::Duration),
}

fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Since::At(Millis::from_unix_s(seconds)));
    }
    if let Ok(ago) = duration::parse(text) {
        return Ok(Since::Ago(ago));
    }
    Millis::parse_iso(text).map(Since::At).ok_or_else(|| {
        "expected Unix seconds, a date such as 2026-11-21 or 2026-11-21T09:30:00Z, or how long ago, such as 1h"
            .to_owned()
    })
}

pub fn run(args: AdminArgs) -> anyhow::Result<ExitCode> {
    settings::init_log("warn");
    settings::refuse_db(args.db.as_deref())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let code = match &args.command {
        AdminCommand::Ledger => show_ledger(&open_ledgers(&args.data_dir)?, args.json, &mut out)?,
        AdminCommand::Users => show_users(&args.data_dir, args.json, &mut out)?,
        AdminCommand::Peers => show_peers(&open_database(&args.data_dir, TRADE)?, args.json, &mut out)?,
        AdminCommand::Deals => show_deals(&open_database(&args.data_dir, TRADE)?, args.json, &mut out)?,
        AdminCommand::Log { peer, since } => {
            let since = match since {
                None => Millis::default(),
                Some(Since::At(at)) => *at,
                Some(Since::Ago(ago)) => Millis(Clock::start().now().0.saturating_sub(ago.as_millis() as u64)),
            };
            show_log(&open_database(&args.data_dir, TRADE)?, peer.as_deref(), since, args.json, &mut out)?
        }
        AdminCommand::Backup { file } => {
            let bar = progress_bar();
            backup::backup(&args.data_dir, file, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            bar.finish_and_clear();
            let bytes = std::fs::metadata(file).context("the backup is gone")?.len();
            let text = format!("{}: {bytes} bytes", file.display());
            print_result(&mut out, args.json, json!({"backup": file, "bytes": bytes}), &text)?
        }
        AdminCommand::AcceptLoss { file } => accept_loss(&args.data_dir, file, args.json, &mut out)?,
        AdminCommand::Restore { file } => {
            backup::restore(file, &args.data_dir)?;
            let text = format!("restored into {}; start a server on it", args.data_dir.display());
            print_result(&mut out, args.json, json!({"restored": args.data_dir}), &text)?
        }
    };
    out.flush()?;
    Ok(code)
}

/// A database file in the data dir, with the migrations that create its tables.
type DatabaseSpec = (&'static str, &'static [&'static str]);

const TRADE: DatabaseSpec = (TRADE_DB, trade_store::MIGRATIONS);
const CUSTOMER: DatabaseSpec = (CUSTOMER_DB, customer::MIGRATIONS);
const SHARE: DatabaseSpec = (USERS_DB, users::MIGRATIONS);

fn open_database(data_dir: &Path, room: DatabaseSpec) -> anyhow::Result<ReadOnlyStore> {
    match open_databases(data_dir, &[room])?.pop() {
        Some(view) => Ok(view),
        None => bail!("{} has no {}: name the server's own --data-dir", data_dir.display(), room.0),
    }
}

/// Opens the ledgers of a data dir: that of trade, that of the shop, or both.
fn open_ledgers(data_dir: &Path) -> anyhow::Result<Vec<ReadOnlyStore>> {
    let views = open_databases(data_dir, &[TRADE, CUSTOMER])?;
    if views.is_empty() {
        bail!("{} has no {TRADE_DB} and no {CUSTOMER_DB}: name the server's own --data-dir", data_dir.display());
    }
    Ok(views)
}

/// Opens those of the databases whose file exists.
fn open_databases(data_dir: &Path, rooms: &[DatabaseSpec]) -> anyhow::Result<Vec<ReadOnlyStore>> {
    if data_dir.exists() && !data_dir.is_dir() {
        bail!("{} is a file, not a folder: name the server's own --data-dir", data_dir.display());
    }
    let mut views = Vec::new();
    for (name, migrations) in rooms {
        let file = data_dir.join(name);
        // If the check itself fails, the error is reported when the file is opened.
        if file.try_exists().is_ok_and(|exists| !exists) {
            storage::check_may_be_absent(&file)?;
            continue;
        }
        if storage::is_missing_or_empty(&file) {
            storage::check_may_be_absent(&file)?;
            bail!("{} is empty: restore a backup into an empty data dir", file.display());
        }
        views.push(ReadOnlyStore::open(&file, migrations)?);
    }
    Ok(views)
}

fn accept_loss(data_dir: &Path, file: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    if !data_dir.is_dir() {
        bail!("{} is no data dir: name the server's own --data-dir", data_dir.display());
    }
    // The file may be given by its bare name or by its path.
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let name = file.file_name().and_then(|name| name.to_str()).filter(|_| {
        folder.is_none_or(|folder| {
            folder.canonicalize().ok().is_some_and(|real| data_dir.canonicalize().ok() == Some(real))
        })
    });
    let Some(name) = name else { bail!("{}: expected a file of {}", file.display(), data_dir.display()) };
    let names = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let (became, aside, text) = match stores::accept(data_dir, name)? {
        AcceptedLoss::WillBeRecreated(aside) => {
            let aside = names(&aside);
            let kept = if aside.is_empty() {
                "nothing was left of it".to_owned()
            } else {
                format!("what was left of it is {}", aside.join(", "))
            };
            ("anew", aside, format!("{name} is given up: the next start makes it anew ({kept})"))
        }
        AcceptedLoss::StoreKept(copy) => {
            let aside = names(copy.as_slice());
            let kept = aside.iter().map(|path| format!("; the log as it was is {path}")).collect::<String>();
            ("kept", aside, format!("{name} stays as it is, without what it has lost{kept}"))
        }
        AcceptedLoss::ManifestRebuilt => (
            "manifest",
            Vec::new(),
            format!("{name} is made anew of the files that are there; whether others are missing is not known"),
        ),
    };
    Ok(print_result(out, json, json!({"accepted": name, "became": became, "aside": aside}), &text)?)
}

fn print_result(out: &mut impl Write, json: bool, value: Value, text: &str) -> io::Result<ExitCode> {
    if json { writeln!(out, "{value}") } else { writeln!(out, "{text}") }.map(|()| ExitCode::SUCCESS)
}

fn to_unix_s(at: Millis) -> u64 {
    at.0 / 1000
}

fn show_ledger(ledgers: &[ReadOnlyStore], json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut totals = LedgerTotals::default();
    for ledger in ledgers {
        // Balances and sum come from one read transaction, so that they are consistent with each other.
        ledger.read(|reader| -> anyhow::Result<()> {
            for (account, balance) in ledger::balances(reader)? {
                *totals.balances.entry(account.to_string()).or_default() += balance;
            }
            totals.sum += ledger::sum(reader)?;
            Ok(())
        })?;
    }
    if json {
        for (account, balance) in &totals.balances {
            let line = serde_json::to_string(&BalanceLine { account, balance: *balance })?;
            writeln!(out, "{}", sanitize_json(&line))?;
        }
    }
    let mut entries = Vec::new();
    for ledger in ledgers {
        ledger.read(|reader| show_entries(reader, json, out, &mut entries))?;
    }
    let sum = totals.sum;
    if json {
        writeln!(out, "{}", serde_json::to_string(&SumLine { sum })?)?;
    } else {
        let balances: Vec<(String, Total)> = totals.balances.into_iter().collect();
        let columns: [Column<(String, Total)>; 2] =
            [("account", Left, |(account, _)| account.clone()), ("balance", Right, |(_, balance)| balance.to_string())];
        let entry_columns: [Column<LedgerEntry>; 5] = [
            ("time", Left, |entry| entry.at.to_iso()),
            ("purchase", Left, |entry| entry.key.clone()),
            ("step", Left, |entry| entry.step.to_string()),
            ("account", Left, |entry| entry.account.to_string()),
            ("amount", Right, |entry| entry.amount.to_string()),
        ];
        let (balances, entries) = (table_of(&columns, &balances), table_of(&entry_columns, &entries));
        writeln!(out, "{balances}\n\n{entries}\n\nsum: {sum}")?;
    }
    if sum != Total::default() {
        eprintln!("error: the ledger sums to {sum} instead of zero");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The balances and the sum over all ledgers of a data dir.
#[derive(Default)]
struct LedgerTotals {
    balances: BTreeMap<String, Total>,
    sum: Total,
}

// Lines of `admin ledger --json` that contain amounts are typed, because a `Value` would round them.

#[derive(Serialize)]
struct BalanceLine<'a> {
    account: &'a str,
    balance: Total,
}

#[derive(Serialize)]
struct EntryLine<'a> {
    at: u64,
    key: &'a str,
    step: &'a str,
    account: &'a str,
    amount: Cents,
}

#[derive(Serialize)]
struct SumLine {
    sum: Total,
}

fn show_entries(
    reader: &dyn Reader,
    json: bool,
    out: &mut impl Write,
    entries: &mut Vec<LedgerEntry>,
) -> anyhow::Result<()> {
    const PAGE: u32 = 10_000;
    let mut offset = 0;
    loop {
        let mut page = Vec::new();
        ledger::entries(reader, offset, PAGE, &mut |entry| {
            page.push(entry);
            Ok(())
        })?;
        offset += page.len() as u32;
        let is_last = page.len() < PAGE as usize;
        if json {
            for LedgerEntry { key, step, at, account, amount } in &page {
                let (step, account) = (step.to_string(), account.to_string());
                let line = EntryLine { at: to_unix_s(*at), key, step: &step, account: &account, amount: *amount };
                writeln!(out, "{}", sanitize_json(&serde_json::to_string(&line)?))?;
            }
        } else {
            entries.append(&mut page);
        }
        if is_last {
            return Ok(());
        }
    }
}

fn show_users(data_dir: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let [shop, share] = [CUSTOMER, SHARE].map(|room| open_databases(data_dir, &[room]));
    let (shop, share) = (shop?.pop(), share?.pop());
    if shop.is_none() && share.is_none() {
        bail!("{} has no {CUSTOMER_DB} and no {USERS_DB}: name the server's own --data-dir", data_dir.display());
    }
    // Role, user id in the shop, user name, display name, creation time.
    type User = (&'static str, Option<u64>, String, String, Millis);
    let mut all: Vec<User> = Vec::new();
    if let Some(shop) = shop {
        shop.read(|reader| {
            customer::store::for_each_user(reader, &mut |role, account, at| {
                all.push((role.as_str(), Some(account.user_id), account.username, account.name, at));
            })
        })?;
    }
    if let Some(share) = share {
        for user in share.read(users::all_users)? {
            let (name, display_name) = (user.username.to_string(), user.display_name.to_string());
            all.push(("user", None, name, display_name, user.created_at));
        }
    }
    let as_json = |(role, id, username, name, at): &User| {
        let at = at.to_iso();
        serde_json::to_string(
            &json!({"role": role, "user_id": id, "username": username, "name": name, "created_at": at}),
        )
    };
    let columns: [Column<User>; 5] = [
        ("role", Left, |(role, ..)| (*role).to_owned()),
        ("id", Right, |(_, id, ..)| id.map(|id| id.to_string()).unwrap_or_default()),
        ("user", Left, |(_, _, username, ..)| username.clone()),
        ("name", Left, |(.., name, _)| name.clone()),
        ("created", Left, |(.., at)| at.to_iso()),
    ];
    show_list(out, json, &all, as_json, &columns, Some("accounts"))
}

/// Prints a list: a line of JSON each, or a table, and below it how many of `what` there are.
fn show_list<T>(
    out: &mut impl Write,
    json: bool,
    items: &[T],
    as_json: impl Fn(&T) -> serde_json::Result<String>,
    columns: &[Column<T>],
    what: Option<&str>,
) -> anyhow::Result<ExitCode> {
    if json {
        for item in items {
            writeln!(out, "{}", sanitize_json(&as_json(item)?))?;
        }
    } else {
        writeln!(out, "{}", table_of(columns, items))?;
        if let Some(what) = what {
            writeln!(out, "\n{} {what}", items.len())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_peers(store: &ReadOnlyStore, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let peers = store.read(trade_store::peers)?;
    let as_json = |(peer, heard_at): &(PeerRow, Millis)| {
        let (ip, udp_port) = (peer.addr.ip(), peer.addr.port());
        serde_json::to_string(&json!({
            "name": peer.name, "ip": ip, "udp_port": udp_port, "tcp_port": peer.tcp_port,
            "registered_at": to_unix_s(peer.registered_at), "heard_at": to_unix_s(*heard_at),
        }))
    };
    let columns: [Column<(PeerRow, Millis)>; 5] = [
        ("name", Left, |(peer, _)| peer.name.to_string()),
        ("address", Left, |(peer, _)| peer.addr.to_string()),
        ("tcp port", Right, |(peer, _)| peer.tcp_port.to_string()),
        ("registered", Left, |(peer, _)| peer.registered_at.to_iso()),
        ("last heard", Left, |(_, heard_at)| heard_at.to_iso()),
    ];
    show_list(out, json, &peers, as_json, &columns, Some("registered"))
}

fn show_deals(store: &ReadOnlyStore, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let deals = store.read(|reader| -> Result<_, StoreError> {
        let deals = trade_store::deals(reader)?;
        deals.into_iter().map(|deal| Ok((trade_store::sellers(reader, deal.id)?, deal))).collect::<Result<Vec<_>, _>>()
    })?;
    let now = Clock::start().now();
    let summary = |(sellers, deal)| Deal::from_rows(deal, sellers).summary(now);
    let deals: Vec<DealSummary> = deals.into_iter().map(summary).collect();
    let columns: [Column<DealSummary>; 9] = [
        ("deal", Right, |deal| deal.deal.to_string()),
        ("opened", Left, |deal| Millis::from_unix_s(deal.opened_at).to_iso()),
        ("buyer", Left, |deal| deal.buyer.to_string()),
        ("item", Left, |deal| deal.item_name.to_string()),
        ("maximum", Right, |deal| deal.max_price.to_string()),
        ("state", Left, |deal| serialized_name(&deal.state)),
        ("seller", Left, |deal| deal.seller.as_ref().map(Name::to_string).unwrap_or_default()),
        ("price", Right, |deal| deal.price.map(|price| price.to_string()).unwrap_or_default()),
        ("reason", Left, |deal| deal.reason.as_deref().unwrap_or_default().to_owned()),
    ];
    show_list(out, json, &deals, serde_json::to_string, &columns, None)
}

fn show_log(
    store: &ReadOnlyStore,
    peer: Option<&str>,
    since: Millis,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let mut failed = Ok(());
    store.read(|reader| {
        // Rows are printed as they are read: a log of several years would not fit into memory.
        trade_store::log(reader, peer, since, &mut |row| {
            if failed.is_err() {
                return;
            }
            let price = row.price.map(|price| price.to_string()).unwrap_or_default();
            failed = if json {
                let line = json!({"at": row.at.0 as f64 / 1000.0, "kind": row.kind, "peer": row.peer, "deal": row.deal, "rq": row.rq,
                    "item_name": row.item_name, "price": row.price, "detail": row.detail});
                writeln!(out, "{}", sanitize_json(&line.to_string()))
            } else {
                let item = row.item_name.as_deref().map(sanitize).unwrap_or_default();
                let deal = row.deal.map(|deal| deal.to_string()).unwrap_or_default();
                writeln!(out, "{}  {:<14} {:<16} {:>12} {:>12}  {}  {}", row.at.to_iso(), row.kind, sanitize(row.peer.as_str()), deal, price, item, sanitize(&row.detail))
            };
        })
    })?;
    failed?;
    Ok(ExitCode::SUCCESS)
}
