//! What the machine could achieve at most: the limits to which results are compared. All of them are in this module, so
//! that a change of what is measured cannot change the yardstick.
//!
//! `bare` uses only the standard library; `threads` is the same echo on our request threads; [`relay`] is an echo
//! across processes; `commit` writes the rows of a REGISTER through plain rusqlite.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use rusqlite::{Connection, params};

use super::child::{ServerProcess, WorkDir};
use super::load::{MeasurementLength, Sample};
use super::run::ScenarioRun;
use super::stop::StopFlag;
use crate::model::{Clock, Name, Token};
use crate::net::threads::{self, Executor};
use crate::net::udp::{Datagram, UdpLimits, UdpServer, UdpServerSocket};
use crate::trade::journal::{AddressValidation, PeerRow};
use crate::trade::store::MIGRATIONS;

pub mod relay;

/// Maximum length of a datagram in bytes, in both directions.
const DATAGRAM_MAX: usize = 8 * 1024;
/// The trade server's own limits for datagrams in progress and in the queue.
const UDP_LIMITS: UdpLimits =
    UdpLimits { max_handlers: 512, queue_len: 16_384, queue_bytes: 8 << 20, max_datagram_bytes: DATAGRAM_MAX };

/// Which server, and what it answers.
#[derive(Debug, Args)]
pub struct LimitServerArgs {
    /// Over what
    kind: LimitServerKind,
    /// Bytes of an answer: the request, cut or filled up (messages to a relay say it themselves)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=8192), default_value_t = 64)]
    answer_bytes: u16,
    /// Whom a front asks
    #[arg(long, value_name = "HOST:PORT")]
    back: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LimitServerKind {
    /// One loop of recv_from and send_to
    Bare,
    /// Our request threads
    Threads,
    /// Processes: the one that clients speak with
    RelayFront,
    /// Processes: one that a front asks
    RelayBack,
}

impl LimitServerKind {
    fn is_relay(self) -> bool {
        matches!(self, LimitServerKind::RelayFront | LimitServerKind::RelayBack)
    }

    /// Starts a process of this kind, which errors call `name`; returns it with the address that it prints.
    pub fn start(
        self,
        run: &ScenarioRun<'_>,
        name: &str,
        more_args: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<(ServerProcess, SocketAddr)> {
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let kind = self.to_possible_value().context("a kind without a word")?.get_name().to_owned();
        let program_args = ["limit-server".to_owned(), kind].into_iter().chain(more_args).collect();
        let server = ServerProcess::start(name, &own, &run.args.out, |_dir| program_args, run.stop)?;
        let addr = server.announced(if self.is_relay() { "tcp " } else { "udp " })?;
        Ok((server, addr))
    }
}

/// Serves until the parent process closes standard input or kills this process.
pub fn serve(args: &LimitServerArgs) -> anyhow::Result<()> {
    threads::spawn("parent", || -> () {
        // Whatever ends the input, the parent is gone.
        let _ = io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink());
        std::process::exit(0)
    })?;
    if args.kind.is_relay() {
        let listener = relay::listen()?;
        say_ready("tcp", listener.local_addr()?)?;
        return if args.kind == LimitServerKind::RelayBack {
            relay::serve_backend(&listener)
        } else {
            relay::serve_frontend(&listener, &args.back)
        };
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = socket.local_addr()?;
    let ready = move || say_ready("udp", addr);
    let answer_bytes = usize::from(args.answer_bytes);
    match args.kind {
        LimitServerKind::Bare => {
            ready()?;
            bare(&socket, answer_bytes)
        }
        _ => {
            let server = start_threaded_echo(socket, answer_bytes)?;
            ready()?;
            loop {
                std::thread::park();
                // `park` may return spuriously; the server keeps running.
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

fn start_threaded_echo(socket: UdpSocket, answer_bytes: usize) -> io::Result<UdpServer> {
    let socket = Arc::new(UdpServerSocket::from_socket(socket)?);
    let back = Arc::clone(&socket);
    let response = move |datagram: Datagram<&[u8]>| {
        let mut response = Vec::with_capacity(answer_bytes.max(datagram.bytes.len()));
        response.extend_from_slice(datagram.bytes);
        response.resize(answer_bytes, 0);
        // A client that gets no response counts it as lost.
        let _ = back.send_to(&response, datagram.source, datagram.to);
    };
    let executor = Executor::new("request", UDP_LIMITS.max_handlers + 16);
    UdpServer::start(socket, executor, UDP_LIMITS, Arc::new(response))
}

/// Upper limit of the time spent on commits when the length of a measurement is given in calls.
const COUNTED_CALLS_TIME_MAX: Duration = Duration::from_secs(1);
/// SQLite restarts the write-ahead log when it has a thousand pages of 4 KiB.
const FULL_LOG_BYTES: u64 = 1000 * 4096;

// The statements of `trade::store`.
const INSERT_PEER: &str = "INSERT INTO trade_peer (name, heard_at, body) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body";
const INSERT_LOG: &str = "INSERT INTO trade_log (at, kind, peer, deal, rq, item_name, price, detail)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

/// Writes the rows of REGISTERs of these peers to a new database file below `out`. Both the length and the rate count
/// changes, of which a transaction has `per_commit`.
pub fn commit(
    out: &Path,
    peers: &[String],
    per_commit: usize,
    length: MeasurementLength,
    stop: &StopFlag,
) -> anyhow::Result<Sample> {
    let dir = WorkDir::create(out)?;
    let connection = Connection::open(dir.path().join("commit.db"))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    anyhow::ensure!(mode == "wal", "the disk of --out allows no write-ahead log");
    connection.pragma_update(None, "synchronous", "FULL")?;
    for step in MIGRATIONS {
        connection.execute_batch(step)?;
    }
    let rows = peers.iter().map(|name| RegistrationRow::new(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let (clock, mut changes) = (Clock::start(), 0);
    // Syncing a log that still grows costs the file system more. A running server is past that phase, so the log is
    // filled once before measuring and then reused.
    let wal = dir.path().join("commit.db-wal");
    while std::fs::metadata(&wal)?.len() < FULL_LOG_BYTES && !stop.is_set() {
        commit_changes(&connection, &rows, &clock, &mut changes, 1000)?;
    }
    connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_row| Ok(()))?;
    // As many commits as a server handles calls in a second could take an hour.
    let longest = if matches!(length, MeasurementLength::Calls(_)) { COUNTED_CALLS_TIME_MAX } else { Duration::MAX };
    let mut sample = Sample::new();
    let started = Instant::now();
    let is_over = |done| length.is_over(done, started, Instant::now()) || started.elapsed() > longest;
    while !is_over(sample.done) && !stop.is_set() {
        commit_changes(&connection, &rows, &clock, &mut changes, per_commit)?;
        sample.done += per_commit as u64;
    }
    sample.elapsed = started.elapsed();
    connection.close().map_err(|(_, error)| error).context("closing the file of a limit")?;
    Ok(sample)
}

fn commit_changes(
    connection: &Connection,
    rows: &[RegistrationRow],
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
            .prepare_cached(INSERT_LOG)?
            .execute(params![at, "register", row.name, none, none, no_item, none, row.detail])?;
        // Each peer's row alternates between two contents.
        let body = &row.bodies[(*changes / rows.len()) % 2];
        connection.prepare_cached(INSERT_PEER)?.execute(params![row.name, at, body])?;
        *changes += 1;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

struct RegistrationRow {
    name: String,
    detail: String,
    bodies: [String; 2],
}

impl RegistrationRow {
    fn new(name: &str) -> anyhow::Result<RegistrationRow> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 45_000));
        let mut row = PeerRow {
            name: Name::new(name).map_err(anyhow::Error::msg)?,
            addr,
            tcp_port: 20_000,
            token: Token::random(),
            registration_id: crate::trade::wire::FIRST_SERVER_NUMBER,
            registered_at: Clock::start().now(),
            first_source: addr,
            forgotten: Vec::new(),
            logins: Vec::new(),
            addr_sequence: crate::trade::wire::FIRST_SERVER_NUMBER,
            displaced: false,
            validation: AddressValidation::UNVALIDATED,
            local_ip: Some(Ipv4Addr::LOCALHOST.into()),
        };
        let first = serde_json::to_string(&row)?;
        row.tcp_port = 20_001;
        let second = serde_json::to_string(&row)?;
        Ok(RegistrationRow { name: name.to_owned(), detail: format!("now at {addr}"), bodies: [first, second] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_are_those_of_the_store() {
        let store = include_str!("../trade/store.rs");
        assert!(store.contains(INSERT_PEER) && store.contains(INSERT_LOG));
    }

    #[test]
    fn commits_are_counted_by_change() {
        let out = tempfile::tempdir().unwrap();
        let peers = ["a".to_owned(), "b".to_owned()];
        // So few that a slow disk does not reach the limit of time first.
        for (per_commit, calls, done) in [(1, 3, 3), (100, 103, 200)] {
            let length = MeasurementLength::Calls(calls);
            let sample = commit(out.path(), &peers, per_commit, length, &StopFlag::default()).unwrap();
            assert_eq!(sample.done, done);
        }
        assert_eq!(out.path().read_dir().unwrap().count(), 0);
    }
}
