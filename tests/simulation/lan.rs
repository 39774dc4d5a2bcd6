//! LAN peers under loss, repetition, delay and reordering, partitions, restarts, failing disks and one who
//! claims to be another. A thousand seeds of thirty-six peers with `P2S2_TEST_SCALE=full`, else a hundred.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use p2s2::lan::node::{Cause, Command, Done};
use p2s2::lan::wire::{Discovery, Features, Message, Stamp, UserId};

use crate::invariants::Broken;
use crate::{chosen, play, without_panic};

mod others;
mod world;

use world::{ANNOUNCE_MS, CALM, FORGET_MS, ROUND_MS, STORM, Weather, World};

/// A rule broken on purpose, between the cores and the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What was shown is not remembered.
    ForgetSeen,
    /// An ACK comes before the DM has arrived, and whether or not it does.
    ForgeAcks,
    /// That a DM was repeated in vain is not told.
    HideUnconfirmed,
    /// Nobody gets an announcement that is not broadcast.
    LoseAnswers,
    /// An old PORT is not asked before a new one is believed.
    LoseProbes,
    /// Who is gone is not forgotten.
    NeverForget,
    /// Announcements twice as often.
    AnnounceTooOften,
    /// Every run has the same INSTANCE.
    SameInstance,
}

/// What a run has seen, so that a test can tell that it tests something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub events: u64,
    pub starts: u64,
    pub dms: u64,
    pub confirmed: u64,
    pub unconfirmed: u64,
    pub shown: u64,
    pub not_kept: u64,
    pub renamed: u64,
    pub moved: u64,
    pub moves_refused: u64,
    pub broadcasts: u64,
    pub unicasts: u64,
    /// The most announce rounds that it took at 30 % loss until everyone knew everyone.
    pub rounds_max: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.events += other.events;
        self.starts += other.starts;
        self.dms += other.dms;
        self.confirmed += other.confirmed;
        self.unconfirmed += other.unconfirmed;
        self.shown += other.shown;
        self.not_kept += other.not_kept;
        self.renamed += other.renamed;
        self.moved += other.moved;
        self.moves_refused += other.moves_refused;
        self.broadcasts += other.broadcasts;
        self.unicasts += other.unicasts;
        self.rounds_max = self.rounds_max.max(other.rounds_max);
    }
}

const COMPUTERS: usize = 30;
/// Some computers have two peers, and some of these the same name.
const PEERS: usize = COMPUTERS + 6;
/// Announce rounds within which everyone learns of everyone although three of ten datagrams are lost: of a
/// million pairs the unluckiest counts, and 0.3 to the 14th is one in twenty million.
const ROUNDS_MAX: u64 = 14;

fn ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0001 + n as u32 * 3)
}

/// Who does not know whom; none if everyone who lives knows everyone who lives, and nobody else.
fn strangers(world: &World) -> Option<String> {
    let live = world.live();
    for peer in &live {
        let host = &world.hosts[*peer];
        let known: BTreeSet<SocketAddr> = host.node.as_ref()?.peers().iter().map(|known| known.addr).collect();
        for other in live.iter().filter(|other| *other != peer) {
            if !known.contains(&SocketAddr::V4(world.hosts[*other].addr())) {
                return Some(format!("{peer} does not know {other}"));
            }
        }
        if known.len() != live.len() - 1 {
            return Some(format!("{peer} knows {} of {}", known.len(), live.len() - 1));
        }
    }
    None
}

fn require(rule: &'static str, problem: Option<String>) -> Result<(), Broken> {
    problem.map_or(Ok(()), |detail| Err(Broken { rule, detail }))
}

/// Rounds until everyone knows everyone, at most so many.
fn rounds(world: &mut World, most: u64) -> Result<u64, Broken> {
    for round in 1..=most {
        world.run(ROUND_MS)?;
        if strangers(world).is_none() {
            return Ok(round);
        }
    }
    require("everyone learns of everyone", strangers(world))?;
    Ok(most)
}

/// Somebody says something to somebody.
fn chatter(world: &mut World) -> Result<(), Broken> {
    let live = world.live();
    let Some(by) = world.rng.pick(&live).copied() else { return Ok(()) };
    let known = world.hosts[by].node.as_ref().map(|node| node.peers()).unwrap_or_default();
    let Some(to) = world.rng.pick(&known).map(|known| known.user_id.to_string()) else { return Ok(()) };
    let content = "hello".to_owned();
    let command = match world.rng.below(10) {
        0 => Command::Post { content },
        1 => Command::AskPeers,
        _ => Command::Dm { to, content },
    };
    world
        .command(by, command)
        .map(drop)
        .map_err(|error| Broken { rule: "whom one sees, one can name", detail: error.to_string() })
}

fn storm(world: &mut World, ms: u64) -> Result<(), Broken> {
    let end = world.now + ms;
    while world.now < end {
        let pause = world.rng.range(1, 500);
        world.run(pause)?;
        let peer = world.rng.below(world.hosts.len() as u64) as usize;
        match world.rng.below(1_000) {
            0..20 if world.hosts[peer].node.is_some() => world.stop(peer),
            20..80 if world.hosts[peer].node.is_none() => {
                let same_port = world.rng.permille(500);
                world.start(peer, same_port);
            }
            // A short partition, and its end.
            80..85 => world.hosts.iter_mut().enumerate().for_each(|(n, host)| host.side = (n / 7 % 2) as u8),
            85..95 => world.hosts.iter_mut().for_each(|host| host.side = 0),
            95..500 => chatter(world)?,
            _ => {}
        }
    }
    Ok(())
}

fn story(seed: u64, fault: Option<Fault>, trace: bool) -> Result<Tally, Broken> {
    let mut world = World::new(seed, fault, trace, STORM);
    let at_once = world.rng.permille(500);
    for n in 0..PEERS {
        let (neighbour, same_name) = (n % COMPUTERS, n % 2 == 0 || n < COMPUTERS);
        world.add(&format!("p{}", if same_name { neighbour } else { n }), ip(neighbour));
    }
    for peer in 0..COMPUTERS {
        world.start(peer, false);
        let pause = world.rng.below(200);
        world.run(if at_once { 0 } else { pause })?;
    }
    // Whatever is lost. Those who share a name settle that first, and are awaited below.
    world.tally.rounds_max = rounds(&mut world, ROUNDS_MAX)?;
    (COMPUTERS..PEERS).for_each(|peer| world.start(peer, false));
    storm(&mut world, 240_000)?;

    // All is well again: who is there becomes known, who shared a name has settled it.
    world.weather = CALM;
    world.hosts.iter_mut().for_each(|host| host.side = 0);
    for peer in 0..PEERS {
        if world.hosts[peer].node.is_none() {
            world.start(peer, peer % 2 == 0);
        }
    }
    // Of two who share a name: they hear of each other (a round), neither yields for two announcements, the one that
    // must then hears the other again (a round), and whoever refused that one meanwhile hears it again (a round).
    world.run(2 * ANNOUNCE_MS + 3 * ROUND_MS + 2_000)?;
    require("everyone learns of everyone", strangers(&world))?;
    require("names on one host differ", same_names(&world))?;
    every_dm_is_told_of(&world)?;

    // Now everything arrives.
    let before = world.tally;
    for _ in 0..30 {
        chatter(&mut world)?;
    }
    let post = world.command(0, Command::Post { content: "to all".into() });
    let Ok(Done::Posted { to, message_id }) = post else { panic!("{post:?}") };
    world.run(6_000)?;
    every_dm_is_told_of(&world)?;
    let unconfirmed = world.tally.unconfirmed - before.unconfirmed;
    require("who is there gets what is sent", (unconfirmed > 0).then(|| format!("{unconfirmed} unconfirmed")))?;
    let got = (1..PEERS).filter(|peer| world.shown.contains_key(&(*peer, message_id.clone()))).count();
    require("who is there gets what is sent", ((got, to) != (PEERS - 1, PEERS - 1)).then(|| format!("{got} of {to}")))?;

    // One starts again: it knows everyone within a second. (Who shares a name takes another first.)
    let peer = world.rng.range((PEERS - COMPUTERS) as u64, COMPUTERS as u64 - 1) as usize;
    world.stop(peer);
    world.start(peer, true);
    world.run(1_000)?;
    let knows = world.hosts[peer].node.as_ref().map_or(0, |node| node.peers().len());
    require("two know each other within a second", (knows < PEERS - 1).then(|| format!("{peer} knows {knows}")))?;

    // Somebody claims to be a peer that is still there.
    world.run(ROUND_MS)?;
    impostor(&mut world, peer)?;

    // A partition that lasts longer than anybody is remembered.
    world.hosts.iter_mut().enumerate().for_each(|(n, host)| host.side = u8::from(n % 3 == 0));
    world.run(FORGET_MS + ROUND_MS)?;
    for peer in 0..PEERS {
        let known = world.hosts[peer].node.as_ref().map_or(0, |node| node.peers().len());
        let side = world.hosts.iter().filter(|host| host.side == world.hosts[peer].side).count();
        require("who is gone is forgotten", (known != side - 1).then(|| format!("{peer} knows {known} of {side}")))?;
    }
    world.hosts.iter_mut().for_each(|host| host.side = 0);
    world.run(ROUND_MS + 1_000)?;
    require("a partition heals", strangers(&world))?;

    // Some leave for ever. Meanwhile nothing happens, at the price of two broadcasts a peer and minute.
    (0..3).for_each(|peer| world.stop(peer));
    world.run(60_000)?;
    let before = world.tally;
    world.run(FORGET_MS)?;
    let (live, minutes) = (world.live().len() as u64, FORGET_MS / 60_000);
    let (broadcasts, unicasts) = (world.tally.broadcasts - before.broadcasts, world.tally.unicasts - before.unicasts);
    let expected = 2 * live * minutes;
    let steady = broadcasts * 10 >= expected * 9 && broadcasts * 10 <= expected * 11 && unicasts == 0;
    let counted = || format!("{broadcasts} broadcasts, not about {expected}, and {unicasts} to one");
    require("a steady state costs two broadcasts a peer and minute", (!steady).then(counted))?;
    require("who is gone is forgotten", strangers(&world))?;
    every_dm_is_told_of(&world)?;
    for host in world.hosts.iter().filter_map(|host| host.node.as_ref()) {
        let sizes = host.sizes();
        let idle = sizes.waiting + sizes.answers + sizes.checks == 0;
        let bounded = idle && sizes.addresses <= 2 * PEERS && sizes.sources <= 10_000;
        require("what is over is forgotten", (!bounded).then(|| format!("{sizes:?}")))?;
        let odd = host.counters().drops().find(|(cause, _)| ODD.contains(cause));
        require("honest peers are not turned away", odd.map(|odd| format!("{odd:?}")))?;
    }
    Ok(world.tally)
}

/// Causes that honest peers never give.
const ODD: [Cause; 6] =
    [Cause::Malformed, Cause::TooMany, Cause::WrongSource, Cause::NotIpv4, Cause::Full, Cause::Unanswerable];

fn same_names(world: &World) -> Option<String> {
    let mut names = BTreeSet::new();
    let mut hosts = world.hosts.iter().filter_map(|host| Some((host.ip, host.node.as_ref()?.name().clone())));
    hosts.find(|name| !names.insert(name.clone())).map(|(ip, name)| format!("two are called {name} at {ip}"))
}

fn every_dm_is_told_of(world: &World) -> Result<(), Broken> {
    let mut waited = world.sent.iter().filter(|(_, sent)| {
        sent.told.is_none() && world.hosts[sent.by].node.is_some() && world.hosts[sent.by].run == sent.run
    });
    require("every DM is told of", waited.next().map(|(id, sent)| format!("{id} {sent:?}")))
}

fn impostor(world: &mut World, victim: usize) -> Result<(), Broken> {
    let (ip, name) = (world.hosts[victim].ip, world.hosts[victim].node.as_ref().map(|node| node.name().clone()));
    let Some(name) = name else { return Ok(()) };
    let claim = Discovery {
        user_id: UserId { name, ip },
        port: 7_777,
        instance: Some("impostor".into()),
        features: Features { ack: true, probe: false },
        serves: Vec::new(),
        cert_sha256: None,
        stamp: Stamp::default(),
    };
    world.post_raw(SocketAddrV4::new(ip, 7_777), Message::Discovery(claim));
    world.run(2_000)?;
    for peer in (0..PEERS).filter(|peer| *peer != victim) {
        let known = world.hosts[peer].node.as_ref().map(|node| node.peers()).unwrap_or_default();
        let there = known.iter().any(|known| known.addr == SocketAddr::V4(world.hosts[victim].addr()));
        require("a peer that is there keeps its place", (!there).then(|| format!("{peer} lost {victim}")))?;
    }
    Ok(())
}

fn run(seed: u64, fault: Option<Fault>, trace: bool) -> Result<Tally, Broken> {
    without_panic(|| story(seed, fault, trace))
}

fn seeds() -> u64 {
    crate::seeds() / 10
}

#[test]
fn peers_find_each_other_and_talk_whatever_happens() {
    if let Some((seed, aloud)) = chosen() {
        let result = run(seed, None, aloud);
        return assert!(result.is_ok(), "seed {seed}: {result:?}");
    }
    let seeds = seeds();
    let (tally, broken) = play(seeds, |seed| run(seed, None, false), |_| true);
    if let Some((seed, Broken { rule, detail })) = broken {
        panic!("SEED={seed}: the rule {rule:?} is broken: {detail}");
    }
    eprintln!("simulation: {seeds} seeds, {tally:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(tally.confirmed > 30 * seeds && tally.unconfirmed > seeds && tally.not_kept > seeds, "{tally:?}");
    assert!(tally.renamed > seeds && tally.moved > seeds && tally.moves_refused > seeds, "{tally:?}");
}

#[test]
fn a_seed_of_the_lan_plays_the_same_every_time() {
    for seed in 0..5 {
        assert_eq!(format!("{:?}", run(seed, None, false)), format!("{:?}", run(seed, None, false)));
    }
}

/// So many peers whose sockets are bound and who all begin at once, after their first minute.
fn crowd(seed: u64, peers: usize, weather: Weather) -> Result<World, Broken> {
    let mut world = World::new(seed, None, false, weather);
    world.met = Some(HashSet::new());
    for n in 0..peers {
        world.add(&format!("p{n}"), ip(n));
    }
    (0..peers).for_each(|peer| world.bind(peer, false));
    (0..peers).for_each(|peer| world.begin(peer));
    world.run(60_000)?;
    Ok(world)
}

#[test]
fn a_thousand_peers_that_start_at_once_all_learn_of_each_other() {
    let (peers, seeds) = if crate::seeds() == 10_000 { (1_000, 5) } else { (300, 1) };
    let next = AtomicU64::new(0);
    let run_seeds = || {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= seeds {
                return;
            }
            let mut world = crowd(seed, peers, STORM).unwrap();
            let first = world.tally;
            let met = |world: &World| world.met.as_ref().map_or(0, |met| met.len());
            // The first minute is two rounds.
            let mut rounds = 2;
            while met(&world) < peers * (peers - 1) && rounds < ROUNDS_MAX {
                world.run(ROUND_MS).unwrap();
                rounds += 1;
            }
            eprintln!(
                "{peers} peers, 30 % lost, seed {seed}: {rounds} rounds; first minute {} broadcasts, {} to one",
                first.broadcasts, first.unicasts
            );
            assert_eq!(met(&world), peers * (peers - 1), "seed {seed}");
        }
    };
    // Minutes each.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds as usize);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run_seeds))));
}

#[test]
fn a_steady_state_costs_two_broadcasts_a_peer_and_minute() {
    eprintln!("| peers | first minute: broadcasts | to one | a later minute: broadcasts | to one |");
    eprintln!("|---|---|---|---|---|");
    for peers in [10, 100, if crate::seeds() == 10_000 { 1_000 } else { 300 }] {
        let mut world = crowd(1, peers, CALM).unwrap();
        assert_eq!(strangers(&world), None);
        let first = world.tally;
        world.run(120_000).unwrap();
        let (broadcasts, unicasts) = (first.broadcasts, first.unicasts);
        let (later, later_unicasts) = ((world.tally.broadcasts - broadcasts) / 2, world.tally.unicasts - unicasts);
        eprintln!("| {peers} | {broadcasts} | {unicasts} | {later} | {later_unicasts} |");
        let (peers, pairs) = (peers as u64, (peers * (peers - 1)) as u64);
        assert!(later * 10 >= peers * 18 && later * 10 <= peers * 22 && later_unicasts == 0);
        // Of two that hear each other's broadcast one answers, seldom both at the same time.
        assert!(broadcasts <= peers * 3 && unicasts >= pairs / 2 * 9 / 10 && unicasts <= pairs * 6 / 10);
    }
}

mod a_broken_rule_is_caught {
    use super::*;

    fn caught(fault: Fault, rules: &[&str]) {
        let (_, broken) = play(10, |seed| run(seed, Some(fault), false), |broken| rules.contains(&broken.rule));
        assert!(broken.is_some(), "{fault:?} broke none of {rules:?} in 10 seeds");
    }

    #[test]
    fn a_message_that_is_not_remembered() {
        caught(Fault::ForgetSeen, &["a message is shown once"]);
    }

    #[test]
    fn an_ack_of_what_has_not_arrived() {
        caught(Fault::ForgeAcks, &["a confirmed DM was shown once"]);
    }

    #[test]
    fn a_dm_of_which_nothing_is_told() {
        caught(Fault::HideUnconfirmed, &["every DM is told of"]);
    }

    #[test]
    fn an_announcement_that_nobody_answers() {
        caught(Fault::LoseAnswers, &["two know each other within a second"]);
    }

    #[test]
    fn a_new_port_that_is_believed_at_once() {
        caught(Fault::LoseProbes, &["a peer that is there keeps its place"]);
    }

    #[test]
    fn a_peer_that_is_never_forgotten() {
        caught(Fault::NeverForget, &["who is gone is forgotten"]);
    }

    #[test]
    fn announcements_that_come_too_often() {
        caught(Fault::AnnounceTooOften, &["a steady state costs two broadcasts a peer and minute"]);
    }

    #[test]
    fn an_instance_that_is_not_unique() {
        caught(Fault::SameInstance, &["everyone learns of everyone"]);
    }
}
