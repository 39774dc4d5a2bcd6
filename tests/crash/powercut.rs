//! Power cuts. SIGKILL leaves the page cache intact, so it proves nothing about syncing. Here the server's writes are
//! recorded by a preloaded library, and folders are built with what was synced and a part of the rest. A server started
//! on such a folder must keep every promise made before the cut.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::claims::{Claims, Roster};
use crate::disk_log::{DiskEvent, DiskLog, Unsynced};
use crate::money;
use crate::rng::{Rng, Seed};
use crate::shim;
use crate::support::{Server, scaled};
use crate::traders::{Market, TraderContext, TraderRecords};

const WINDOWS: [&str; 8] =
    ["--offer-window", "1s", "--negotiate-window", "1s", "--reserve-window", "2s", "--settle-timeout", "2s"];
/// Far more than the deals of a recording take.
const RECORDING_MAX: Duration = Duration::from_secs(180);
/// Number of requests that are repeated after a cut.
const REPEATS: usize = 30;

/// Peers that traded until the power cut: what they know, and what the disk was told.
struct Recording {
    log: DiskLog,
    roster: Roster,
    plaintext: bool,
}

/// Without TLS the settlement messages can be read from the log too.
fn args(plaintext: bool) -> Vec<&'static str> {
    let mut args = WINDOWS.to_vec();
    args.extend(plaintext.then_some("--plaintext"));
    args
}

/// Runs a server with the preloaded library until this many deals have ended, then kills it while others are in
/// progress.
fn record(deals: usize, plaintext: bool, lie: Option<&str>, rng: &mut Rng) -> Recording {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let log = root.join("disk.log");
    let state = root.join("state");
    let mut env = environment(&state, &log);
    env.extend(lie.map(|lie| ("POWERCUT_LIE", lie)));
    let server = Server::start_in(&root, &args(plaintext), &env);
    let (steps, seen) = crossbeam_channel::bounded(1);
    let context = TraderContext::new(server.addr, plaintext, Some(log.clone()), steps);
    let market = Market::open(&context, rng);
    let deadline = Instant::now() + RECORDING_MAX;
    while context.deals_over.load(Ordering::SeqCst) < deals {
        assert!(!context.failed.load(Ordering::SeqCst), "a peer has failed: see above");
        assert!(Instant::now() < deadline, "{deals} deals take too long");
        // Any step may have ended a deal.
        let _ = seen.recv_timeout(Duration::from_millis(100));
    }
    drop(server);
    market.abandon();
    let TraderRecords { roster, .. } = std::mem::take(&mut *context.records());
    Recording { log: DiskLog::read(&log, BTreeMap::new()), roster, plaintext }
}

impl Recording {
    /// The promises made before the cut.
    fn claims(&self, cut: usize) -> Claims {
        let mut claims = Claims::default();
        for (_, event) in &self.log.events[..cut] {
            let DiskEvent::Said { port, bytes } = event else { continue };
            let Some(who) = self.roster.by_port(*port) else { continue };
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match serde_json::from_slice::<Value>(line) {
                    Ok(message) if message.is_object() => claims.record_message(&self.roster, who, &message),
                    // TLS data (which may look like a number) on a settlement connection.
                    _ => assert!(!self.plaintext, "no message: {}", String::from_utf8_lossy(line)),
                }
            }
        }
        claims
    }

    /// A random cut, often just after a message was sent, when promises are most recent.
    fn any_cut(&self, rng: &mut Rng) -> usize {
        let any = 1 + rng.below(self.log.events.len() as u64) as usize;
        if rng.percent(40) {
            return any;
        }
        let said = |(_, event): &(u64, DiskEvent)| matches!(event, DiskEvent::Said { .. });
        self.log.events[any - 1..].iter().position(said).map_or(any, |ahead| any + ahead)
    }

    /// A second power cut while a server recovers from the first.
    fn cut_during_recovery(&self, files: BTreeMap<String, Vec<u8>>, rng: &mut Rng) -> BTreeMap<String, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (log, state) = (root.join("disk.log"), root.join("state"));
        write_files(&files, &state);
        drop(Server::start_in(&root, &args(self.plaintext), &environment(&state, &log)));
        let log = DiskLog::read(&log, files);
        let cut = rng.below(log.events.len() as u64 + 1) as usize;
        log.after(cut, any_unsynced(rng), rng)
    }

    /// Builds the folder, starts a server on it and checks all promises; panics if one was broken. A mark file ahead of
    /// its store would be such a failure, because no server starts then. Also returns whether there was a mark file
    /// that could be ahead.
    fn survives(&self, cut: usize, unsynced: Unsynced, rng: &mut Rng) -> (money::ChargeCounts, bool) {
        let mut claims = self.claims(cut);
        let log_length = self.log.events.get(cut).map_or(u64::MAX, |(before, _)| *before);
        let mut files = self.log.after(cut, unsynced, rng);
        if rng.percent(30) {
            files = self.cut_during_recovery(files, rng);
        }
        let dir = tempfile::tempdir().unwrap();
        write_files(&files, &dir.path().join("state"));
        let is_marked = check_marks(&files, &dir.path().join("state"));
        let server = Server::start_in(dir.path(), &args(self.plaintext), &[]);
        // Between DE-REGISTER and its response it is unknown whether the peer has left.
        let may_have_left =
            |who: usize| self.roster.peers[who].left_at_log_length.is_some_and(|from| from < log_length);
        claims.check(&self.roster, server.addr, &may_have_left, REPEATS, rng);
        claims.check_fresh_numbers(server.addr);
        let state = server.state_dir();
        assert_eq!(server.stop(), 0);
        (money::check(&state, &claims, &self.roster), is_marked)
    }
}

/// Environment variables that preload the recording library.
fn environment<'a>(state: &'a Path, log: &'a Path) -> Vec<(&'static str, &'a str)> {
    vec![
        ("LD_PRELOAD", shim::library().unwrap().to_str().unwrap()),
        ("POWERCUT_DIR", state.to_str().unwrap()),
        ("POWERCUT_LOG", log.to_str().unwrap()),
    ]
}

fn write_files(files: &BTreeMap<String, Vec<u8>>, state: &Path) {
    fs::create_dir(state).unwrap();
    for (name, content) in files {
        fs::write(state.join(name), content).unwrap();
    }
}

/// Checks that no mark file is ahead of its store. Returns whether any mark file was valid and could have caused a
/// refusal.
fn check_marks(files: &BTreeMap<String, Vec<u8>>, state: &Path) -> bool {
    let mut is_marked = false;
    // Examined in a separate folder, because SQLite would move the log into the file.
    let copy = tempfile::tempdir().unwrap();
    for (name, content) in files.iter().filter(|(name, _)| name.contains(".db") && !name.ends_with("-mark")) {
        fs::write(copy.path().join(name), content).unwrap();
    }
    for store in files.keys().filter(|name| name.ends_with(".db")) {
        let Some(mark) = files.get(&format!("{store}-mark")) else { continue };
        // `p2s2-mark 1 ID NUMBER CHECKSUM`; torn ones do not parse.
        let text = String::from_utf8_lossy(mark);
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [_, _, id, number, _] = words[..] else { continue };
        let Ok(number) = number.parse::<i64>() else { continue };
        let holds = || {
            let file = rusqlite::Connection::open(copy.path().join(store))?;
            file.query_row("SELECT id, number FROM store_identity", [], |row| Ok((row.get(0)?, row.get(1)?)))
        };
        let (known, holds): (String, i64) = holds().unwrap_or_else(|error: rusqlite::Error| {
            panic!("{store} has a mark and no number in {}: {error}", state.display())
        });
        // A torn mark file may parse by chance, but not with the store's id.
        assert!(known != id || number <= holds, "{store}: its mark says {number}, it holds {holds}");
        is_marked |= known == id && number > 0;
    }
    is_marked
}

fn any_unsynced(rng: &mut Rng) -> Unsynced {
    match rng.below(100) {
        0..25 => Unsynced::Lost,
        25..40 => Unsynced::Kept,
        40..65 => Unsynced::Some,
        _ => Unsynced::Torn,
    }
}

#[test]
fn what_was_said_before_a_power_cut_holds_after_it() {
    if shim::library().is_none() {
        return;
    }
    let seed = Seed::of_this_run();
    let mut rng = Rng::new(seed.0);
    let cuts = scaled(200);
    let (mut captured, mut told, mut marked, mut longest) = (0, 0, 0, 0);
    for plaintext in [true, false] {
        let recording = record(scaled(150), plaintext, None, &mut rng);
        longest = longest.max(recording.log.events.len());
        for _ in 0..cuts.div_ceil(2) {
            let (cut, unsynced) = (recording.any_cut(&mut rng), any_unsynced(&mut rng));
            let mut chance = rng.fork();
            let survives = || recording.survives(cut, unsynced, &mut chance);
            let (counted, is_marked) = panic::catch_unwind(AssertUnwindSafe(survives)).unwrap_or_else(|_| {
                panic!("the cut after event {cut} of {}, {unsynced:?}: see above", recording.log.events.len())
            });
            captured += counted.captured;
            marked += usize::from(is_marked);
            told += recording.claims(cut).sizes().1;
        }
        // A cut after all events.
        let end = recording.log.events.len();
        let (counted, _) = recording.survives(end, Unsynced::Lost, &mut rng);
        assert!(counted.captured > 0, "nothing was ever bought");
        // A cut with everything kept, including mark files, which are never synced.
        let (_, is_marked) = recording.survives(end, Unsynced::Kept, &mut rng);
        assert!(is_marked, "no store has a mark");
    }
    assert!(marked > 0, "no cut has left a mark");
    println!(
        "{cuts} cuts of up to {longest} events: {told} deals' sides and {captured} captured charges stood; {marked} had marks"
    );
}

#[test]
fn syncs_that_do_nothing_are_found_out() {
    if shim::library().is_none() {
        return;
    }
    let seed = Seed::of_this_run();
    let mut rng = Rng::new(seed.0);
    // All files; trade's log; the bank's log, whose loss affects only money.
    for lie in ["", "trade.db-wal", "bank.db-wal"] {
        let recording = record(8, true, Some(lie), &mut rng);
        let end = recording.log.events.len();
        let tries = 10;
        let found = (0..tries)
            .filter(|nth| {
                // Not before messages were sent; the first cut is after all of them.
                let cut = if *nth == 0 { end } else { recording.any_cut(&mut rng).max(end / 2) };
                let survives = || recording.survives(cut, Unsynced::Lost, &mut rng);
                panic::catch_unwind(AssertUnwindSafe(survives)).is_err()
            })
            .count();
        println!("lying about {lie:?}: {found} of {tries} cuts were found out (the panics above are theirs)");
        assert!(found > 0, "a disk that lies about {lie:?} was not found out");
    }
}
