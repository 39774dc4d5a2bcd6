//! Kills the server with SIGKILL at random moments while six peers trade.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rusqlite::Connection;
use serde_json::Value;

use crate::money;
use crate::rng::{Rng, Seed};
use crate::support::{Server, scaled};
use crate::traders::{Market, TradeStep, TraderContext};

const WINDOWS: [&str; 8] =
    ["--offer-window", "1s", "--negotiate-window", "1s", "--reserve-window", "3s", "--settle-timeout", "3s"];

/// The states in which a deal can be on disk when the server dies. The bank commits separately, so bank and deal may
/// differ by one step.
const PHASES: [(&str, TradeStep, u64); 8] = [
    ("searching", TradeStep::Searching, 2_000),
    ("negotiating", TradeStep::Negotiating, 1_000),
    ("reserved", TradeStep::Found, 1_000),
    ("BUY accepted, bank not asked", TradeStep::Bought, 3_000),
    ("bank authorised, not recorded", TradeStep::Informed, 6_000),
    ("authorised", TradeStep::ShippingInfo, 1_000),
    ("shipped, bank not yet captured", TradeStep::Shipped, 4_000),
    ("bank captured, not recorded", TradeStep::Shipped, 8_000),
];

#[test]
fn killed_at_any_moment_the_server_keeps_every_promise() {
    let seed = Seed::of_this_run();
    let mut rng = Rng::new(seed.0);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port(&mut rng).to_string();
    let args = [&["--trade-port", &port][..], &WINDOWS].concat();
    let mut server = Server::start_in(dir.path(), &args, &[]);
    let (steps, seen) = crossbeam_channel::bounded(1024);
    let context = TraderContext::new(server.addr, false, None, steps);
    let market = Market::open(&context, &mut rng);

    let mut hits: BTreeMap<&str, usize> = BTreeMap::new();
    let mut aimed: BTreeMap<&str, usize> = BTreeMap::new();
    let kills = scaled(100);
    let mut killed = 0;
    let hit_all = |hits: &BTreeMap<&str, usize>| PHASES.iter().all(|(phase, ..)| hits.contains_key(phase));
    // A full run continues until every phase was hit, because the windows between bank and disk are short.
    while killed < kills || (kills >= 100 && !hit_all(&hits) && killed < 3 * kills) {
        assert!(!context.failed.load(Ordering::SeqCst), "a peer has failed: see above");
        await_moment(&mut rng, &seen, &hits, &mut aimed);
        drop(server);
        killed += 1;
        for phase in phases_on_disk(dir.path()) {
            *hits.entry(phase).or_default() += 1;
        }
        server = Server::start_in(dir.path(), &args, &[]);
    }
    market.close();

    let mut records = context.records();
    let records = &mut *records;
    let (peers, deals, answers) = records.claims.sizes();
    records.claims.check(&records.roster, server.addr, &|_| false, usize::MAX, &mut rng);
    records.claims.check_fresh_numbers(server.addr);
    let state = server.state_dir();
    assert_eq!(server.stop(), 0);
    let counted = money::check(&state, &records.claims, &records.roster);
    println!(
        "{killed} kills, {} deals of {peers} registrations, {deals} sides, {answers} answers: {counted:?}; kills that hit: {hits:?}",
        context.deals_over.load(Ordering::SeqCst)
    );
    assert!(counted.captured > 0, "nothing was ever bought");
    if kills >= 100 {
        for (phase, ..) in PHASES {
            assert!(hits.contains_key(phase), "no kill hit {phase:?}: {hits:?}");
        }
    }
}

/// Waits for the moment of the next kill: random, or likely to hit the phase that was hit least.
fn await_moment(
    rng: &mut Rng,
    seen: &Receiver<TradeStep>,
    hits: &BTreeMap<&'static str, usize>,
    aimed: &mut BTreeMap<&'static str, usize>,
) {
    // Earlier steps are discarded, so that deals can progress after a restart.
    let begun = Instant::now();
    while seen.try_recv().is_ok() {}
    let micros = if rng.percent(25) {
        rng.below(500_000)
    } else {
        let of = |phase: &str| (hits.get(phase).copied().unwrap_or(0), aimed.get(phase).copied().unwrap_or(0));
        let (phase, step, spread) = PHASES.into_iter().min_by_key(|(phase, ..)| of(phase)).unwrap();
        *aimed.entry(phase).or_default() += 1;
        // If the step does not occur (all deals wait for a time limit), any moment will do.
        let deadline = begun + Duration::from_secs(3);
        while seen.recv_deadline(deadline).is_ok_and(|seen| seen != step) {}
        rng.below(spread)
    };
    std::thread::sleep(Duration::from_micros(micros));
}

/// The phases of a dead server's deals, read from a copy so that SQLite's recovery does not change the original.
fn phases_on_disk(dir: &Path) -> Vec<&'static str> {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.join("state")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let bank = Connection::open(copy.path().join("bank.db")).unwrap();
    let trade = Connection::open(copy.path().join("trade.db")).unwrap();
    let mut deals = trade.prepare("SELECT id, body FROM trade_deal").unwrap();
    let rows = deals.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).unwrap();
    let mut phases: Vec<&str> = rows
        .filter_map(|row| {
            let (id, body) = row.unwrap();
            let state = serde_json::from_str::<Value>(&body).unwrap()["state"].take();
            let (state, fields) = state.as_object().unwrap().iter().next().unwrap();
            let charge = || {
                let sql = "SELECT state FROM charge WHERE charge_key = ?1";
                bank.query_row(sql, [format!("trade-{id}")], |row| row.get::<_, String>(0)).ok()
            };
            Some(match (state.as_str(), fields["payment"].as_str()) {
                ("Searching", _) => "searching",
                ("Negotiating", _) => "negotiating",
                ("Reserved", _) => "reserved",
                ("Settling", Some("Asked")) => match charge().as_deref() {
                    None => "BUY accepted, bank not asked",
                    Some("authorised") => "bank authorised, not recorded",
                    Some(_) => "bank refused or voided, not recorded",
                },
                ("Settling", Some("Authorised")) => match charge().as_deref() {
                    Some("authorised") => "authorised",
                    Some("voided") => "bank voided, not recorded",
                    other => panic!("deal {id} is authorised, the bank says {other:?}"),
                },
                ("Settling", Some("Shipped")) => match charge().as_deref() {
                    Some("authorised") => "shipped, bank not yet captured",
                    Some("captured") => "bank captured, not recorded",
                    other => panic!("deal {id} is shipped, the bank says {other:?}"),
                },
                ("Completed" | "Cancelled", _) => return None,
                other => panic!("deal {id} is {other:?}"),
            })
        })
        .collect();
    phases.sort_unstable();
    phases.dedup();
    phases
}

/// A free port below the ephemeral range, so that nobody gets it while the server is down.
fn free_port(rng: &mut Rng) -> u16 {
    loop {
        let port = 15_000 + rng.below(15_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            return port;
        }
    }
}
