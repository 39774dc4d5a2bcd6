//! What the machine could do at all: the limits that results are a share of.
//!
//! Everything about them stands here, so that a change of what is measured cannot move what it is
//! measured by. `bare` is the standard library only; `threads` is the same echo over our request threads;
//! `relay` ([`relay`]) is an echo across processes; `commit` writes the rows that a REGISTER writes
//! through plain rusqlite.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use rusqlite::{Connection, params};

use super::child::WorkDir;
use super::load::{Length, Sample};
use super::stop::Stop;
use crate::model::{Clock, Name, Token};
use crate::net::threads::{self, Executor};
use crate::net::udp::{Datagram, ServerSocket, UdpLimits, UdpServer};
use crate::trade::journal::{Hearing, PeerRow};
use crate::trade::store::MIGRATIONS;

pub mod relay;

/// The longest datagram, either way, bytes.
const DATAGRAM_MAX: usize = 8 * 1024;
/// Datagrams in hand and waiting: as many as the trade server takes.
const BOUNDS: UdpLimits =
    UdpLimits { max_in_hand: 512, queue_len: 16_384, queue_bytes: 8 << 20, max_datagram: DATAGRAM_MAX };

/// Which server, and what it answers.
#[derive(Debug, Args)]
pub struct LimitServerArgs {
    /// Over what
    kind: Kind,
    /// Bytes of an answer: the request, cut or filled up (messages to a relay say it themselves)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=8192), default_value_t = 64)]
    answer_bytes: u16,
    /// Whom a front asks
    #[arg(long, value_name = "HOST:PORT")]
    back: Vec<SocketAddr>,
}

/// An echo over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One loop of recv_from and send_to
    Bare,
    /// Our request threads
    Threads,
    /// Processes: the one that clients speak with
    RelayFront,
    /// Processes: one that a front asks
    RelayBack,
}

impl Kind {
    /// As it is called in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Threads => "threads",
            Kind::RelayFront => "relay-front",
            Kind::RelayBack => "relay-back",
        }
    }

    /// The words that start a relay's process, with those it asks. It says `tcp ADDRESS` and `ready`.
    pub fn relay_words(self, backs: &[SocketAddr]) -> Vec<String> {
        let backs = backs.iter().flat_map(|back| ["--back".to_owned(), back.to_string()]);
        ["limit-server", self.name()].map(str::to_owned).into_iter().chain(backs).collect()
    }

    /// The words that start an echo of datagrams. It says `udp ADDRESS` and `ready`.
    pub fn words(self, answer_bytes: usize) -> Vec<String> {
        ["limit-server", self.name(), "--answer-bytes", &answer_bytes.to_string()].map(str::to_owned).into()
    }
}

/// Serves until whoever started it closes our standard input, or ends us.
///
/// # Errors
/// The system's.
pub fn serve(args: &LimitServerArgs) -> anyhow::Result<()> {
    threads::spawn("parent", || -> () {
        // Whatever it is that ends the input, the parent is gone.
        let _ = io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink());
        std::process::exit(0)
    })?;
    if let Kind::RelayFront | Kind::RelayBack = args.kind {
        let listener = relay::listen()?;
        say_ready("tcp", listener.local_addr()?)?;
        return if args.kind == Kind::RelayBack { relay::back(&listener) } else { relay::front(&listener, &args.back) };
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = socket.local_addr()?;
    let ready = move || say_ready("udp", addr);
    let answer_bytes = usize::from(args.answer_bytes);
    match args.kind {
        Kind::Bare => {
            ready()?;
            bare(&socket, answer_bytes)
        }
        _ => {
            let server = over_threads(socket, answer_bytes)?;
            ready()?;
            loop {
                std::thread::park();
                // Parking may end for no reason; the server goes on.
                debug_assert!(server.local_addr().is_ok());
            }
        }
    }
}

fn say_ready(over: &str, addr: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{over} {addr}\nready").and_then(|()| out.flush())
}

fn bare(socket: &UdpSocket, answer_bytes: usize) -> anyhow::Result<()> {
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let (_length, source) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..answer_bytes], source)?;
    }
}

fn over_threads(socket: UdpSocket, answer_bytes: usize) -> io::Result<UdpServer> {
    let socket = Arc::new(ServerSocket::over(socket)?);
    let back = Arc::clone(&socket);
    let answer = move |datagram: Datagram<'_>| {
        let mut answer = Vec::with_capacity(answer_bytes.max(datagram.bytes.len()));
        answer.extend_from_slice(datagram.bytes);
        answer.resize(answer_bytes, 0);
        // The client that gets no answer counts it as lost.
        let _ = back.send_to(&answer, datagram.source, datagram.to);
    };
    let executor = Executor::new("request", BOUNDS.max_in_hand + 16);
    UdpServer::start(socket, executor, BOUNDS, Arc::new(answer))
}

/// Where calls are counted, commits are measured for so long at most.
const CALLS_WITHIN: Duration = Duration::from_secs(1);
/// SQLite starts the log again from the front when it has a thousand pages of 4 KiB.
const FULL_LOG_BYTES: u64 = 1000 * 4096;

/// As `trade::store` writes it.
const PEER: &str = "INSERT INTO trade_peer (name, heard_at, body) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body";
/// As `trade::store` writes it.
const LOG: &str = "INSERT INTO trade_log (at, kind, peer, deal, rq, item_name, price, detail)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

/// Stores what REGISTERs of these peers store, so many of them a commit, in a new file below `out`:
/// for so long, or as many changes in all. The rate is that of changes.
///
/// # Errors
/// SQLite's, the system's.
pub fn commit(out: &Path, peers: &[String], per_commit: usize, length: Length, stop: &Stop) -> anyhow::Result<Sample> {
    let dir = WorkDir::create(out)?;
    let connection = Connection::open(dir.path().join("commit.db"))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    anyhow::ensure!(mode == "wal", "the disk of --out allows no write-ahead log");
    connection.pragma_update(None, "synchronous", "FULL")?;
    for step in MIGRATIONS {
        connection.execute_batch(step)?;
    }
    let rows = peers.iter().map(|name| Registered::new(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let (clock, mut changes) = (Clock::start(), 0);
    // A log that still grows costs the file system more with each sync. The server has left that
    // behind, so it does not count here either: the log is written once in full, then used again.
    let wal = dir.path().join("commit.db-wal");
    while std::fs::metadata(&wal)?.len() < FULL_LOG_BYTES && !stop.is_asked() {
        store(&connection, &rows, &clock, &mut changes, 1000)?;
    }
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_row| Ok(()))?;
    // As many calls as a server takes in a second may be an hour of single commits.
    let longest = if matches!(length, Length::Calls(_)) { CALLS_WITHIN } else { Duration::MAX };
    let mut sample = Sample::new();
    let started = Instant::now();
    let is_over = |done| length.is_over(done, started, Instant::now()) || started.elapsed() > longest;
    while !is_over(sample.done) && !stop.is_asked() {
        store(&connection, &rows, &clock, &mut changes, per_commit)?;
        sample.done += per_commit as u64;
    }
    sample.elapsed = started.elapsed();
    connection.close().map_err(|(_, error)| error).context("closing the file of a limit")?;
    Ok(sample)
}

/// One commit of so many changes.
fn store(
    connection: &Connection,
    rows: &[Registered],
    clock: &Clock,
    changes: &mut usize,
    per_commit: usize,
) -> rusqlite::Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    for _ in 0..per_commit {
        let row = &rows[*changes % rows.len()];
        let at = clock.now().0 as i64;
        let (none, no_item): (Option<i64>, Option<&str>) = (None, None);
        connection
            .prepare_cached(LOG)?
            .execute(params![at, "register", row.name, none, none, no_item, none, row.detail])?;
        // Each peer's row is another at every turn.
        let body = &row.bodies[(*changes / rows.len()) % 2];
        connection.prepare_cached(PEER)?.execute(params![row.name, at, body])?;
        *changes += 1;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

struct Registered {
    name: String,
    detail: String,
    bodies: [String; 2],
}

impl Registered {
    fn new(name: &str) -> anyhow::Result<Registered> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 45_000));
        let mut row = PeerRow {
            name: Name::new(name).map_err(anyhow::Error::msg)?,
            addr,
            tcp_port: 20_000,
            token: Token::random(),
            since: crate::trade::wire::SERVER_NUMBERS,
            registered_at: Clock::start().now(),
            first_source: addr,
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_since: crate::trade::wire::SERVER_NUMBERS,
            displaced: false,
            hearing: Hearing::UNPROVED,
            asked: Some(Ipv4Addr::LOCALHOST.into()),
        };
        let first = serde_json::to_string(&row)?;
        row.tcp_port = 20_001;
        let second = serde_json::to_string(&row)?;
        Ok(Registered { name: name.to_owned(), detail: format!("now at {addr}"), bodies: [first, second] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_are_those_of_the_store() {
        let store = include_str!("../trade/store.rs");
        assert!(store.contains(PEER) && store.contains(LOG));
    }

    #[test]
    fn commits_are_counted_by_change() {
        let out = tempfile::tempdir().unwrap();
        let peers = ["a".to_owned(), "b".to_owned()];
        for per_commit in [1, 100] {
            let sample = commit(out.path(), &peers, per_commit, Length::Calls(150), &Stop::default()).unwrap();
            assert_eq!(sample.done, [150, 200][usize::from(per_commit == 100)]);
        }
        assert_eq!(out.path().read_dir().unwrap().count(), 0);
    }
}
