//! Stories of the core, and its properties against a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::Token;
use crate::model::text::Sought;
use crate::share::wire::{FileEntry, Seconds};
use crate::storage::Store;

mod model;

const MINUTE: u64 = 60_000;
const TIMEOUT: Duration = Duration::from_secs(20 * 60);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn fname(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

fn entry(size: u64, is_published: bool) -> Arc<FileEntry> {
    Arc::new(FileEntry {
        size,
        modified: Seconds::new(7.5).unwrap(),
        created: None,
        published_at: None,
        is_published,
        blake3: size.is_multiple_of(2).then_some(Digest([size as u8; 32])),
        pieces_root: None,
        features: Arc::new([]),
    })
}

fn key(secret: &str) -> SecretKey {
    SecretKey::of(&Token::from_text(secret))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claim(hostname: &str) -> Claim {
    Claim {
        hostname: name(hostname),
        display_name: hostname.into(),
        port: 6001,
        ip: None,
        source: ip("192.0.2.1"),
        standing: Standing::Free,
        resume: None,
        fresh: key(&format!("fresh-{hostname}")),
        keeps_files: false,
        file_count: 0,
        ip_is_here: false,
    }
}

fn registry() -> Registry {
    Registry::new(TIMEOUT, Bounds::default())
}

fn register(core: &mut Registry, now: u64, conn: ConnId, claim: &Claim) -> Result<Granted, Refusal> {
    core.register(Millis(now), conn, claim)
}

/// The names that are shown at a time.
fn shown(core: &mut Registry, now: u64) -> Vec<String> {
    while core.expire(Millis(now), 1) {}
    let (mut names, mut cursor) = (Vec::new(), Cursor::Offset(0));
    while cursor != Cursor::End {
        let (pieces, next) = core.list(cursor, &mut usize::MAX.clone(), 2);
        for piece in pieces {
            if let Piece::Host(host) = piece {
                names.push(host.hostname.as_str().to_owned());
            }
        }
        cursor = next;
    }
    names
}

#[test]
fn hosts_are_found_by_either_name_some_at_a_time() {
    let mut core = registry();
    for (conn, hostname, display_name) in [(1, "h1", "Kitchen"), (2, "h2", "Attic"), (3, "h3", "kitchen too")] {
        register(&mut core, 0, conn, &Claim { display_name: display_name.into(), ..claim(hostname) }).unwrap();
    }
    let sought = Sought::new("KITCH");
    assert_eq!(core.named_like(&sought, None, 2), (vec![name("h1")], Some(name("h2"))));
    assert_eq!(core.named_like(&sought, Some(&name("h2")), 2), (vec![name("h3")], None));
    assert_eq!(core.named_like(&Sought::new("h2"), None, 9), (vec![name("h2")], None));
    assert_eq!(core.names_from(1, 1), [name("h2")]);
    assert_eq!(core.listed_users(), 0);
}

#[test]
fn hosts_that_change_are_remembered_only_while_somebody_wants_to_know() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert_eq!(core.take_touched(true), None, "nobody had asked");
    let of = |names: &[&str]| Some(names.iter().map(|text| name(text)).collect::<BTreeSet<_>>());
    assert_eq!(core.take_touched(true), of(&[]));
    register(&mut core, 1, 2, &claim("bob")).unwrap();
    core.publish(Millis(2), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    assert_eq!(core.take_touched(true), of(&["ann", "bob"]));
    // What is not shown is nothing to tell of.
    core.publish(Millis(3), 1, &name("ann"), &fname("hidden"), entry(2, false)).unwrap();
    core.presence(Millis(4), "ann");
    assert_eq!(core.take_touched(true), of(&[]));
    core.closed(2);
    core.unregister(Millis(5), 1, &name("ann")).unwrap();
    assert_eq!(core.take_touched(true), of(&["ann", "bob"]));
    assert!(shown(&mut core, 21 * MINUTE).is_empty());
    assert_eq!(core.take_touched(false), of(&["bob"]), "it fell silent");
    register(&mut core, 22 * MINUTE, 3, &claim("cid")).unwrap();
    assert_eq!(core.take_touched(true), None, "nobody wanted to know");
    for nth in 0..=TOUCHED_MAX as u64 {
        register(&mut core, 23 * MINUTE, 10 + nth, &Claim { source: ip("127.0.0.1"), ..claim(&format!("h{nth}")) })
            .unwrap();
    }
    assert_eq!(core.take_touched(true), None, "too many");
    assert_eq!(core.take_touched(true), of(&[]));
}

#[test]
fn a_free_name_is_the_first_ones_until_it_is_silent_for_long() {
    let mut core = registry();
    let first = register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert!(!first.resumed && first.replaced.is_none());
    let elsewhere = Claim { source: ip("192.0.2.2"), ..claim("ann") };
    assert_eq!(register(&mut core, 0, 2, &claim("ann")), Err(Refusal::InUse), "its connection is open");
    assert_eq!(register(&mut core, 0, 2, &elsewhere), Err(Refusal::InUse));
    core.publish(Millis(MINUTE), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    core.closed(1);
    assert_eq!(shown(&mut core, 20 * MINUTE), ["ann"], "it is there until the timeout, also when it is closed");
    assert_eq!(register(&mut core, 21 * MINUTE - 1, 2, &elsewhere), Err(Refusal::InUse));
    assert!(shown(&mut core, 21 * MINUTE).is_empty());
    let granted = register(&mut core, 21 * MINUTE, 2, &elsewhere).unwrap();
    assert!(!granted.files_stay);
    let drops = |change: &Change| matches!(change, Change::DropHost(_));
    assert!(granted.changes.iter().any(drops), "without its former files");
    assert_eq!(core.totals(), Totals { total_clients: 1, active_clients: 1, total_files: 0, total_size: 0 });
    assert!(core.holders(Millis(21 * MINUTE), &fname("a"), None, 10).0.is_empty());
}

#[test]
fn a_closed_name_is_free_at_once_to_its_address() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.closed(1);
    let granted = register(&mut core, 1, 2, &Claim { fresh: key("second"), ..claim("ann") }).unwrap();
    assert!(!granted.resumed && !granted.files_stay && granted.replaced.is_none());
    // Another has held it since: what the one of before was answered gives nothing back any more.
    let back = Claim { resume: Some(key("fresh-ann")), keeps_files: true, fresh: key("another"), ..claim("ann") };
    assert_eq!(register(&mut core, 3, 3, &back), Err(Refusal::InUse));
    core.unregister(Millis(4), 2, &name("ann")).unwrap();
    assert!(!register(&mut core, 5, 3, &back).unwrap().resumed, "nor when that one has left");
}

#[test]
fn a_secret_gives_the_name_back_for_thirty_days() {
    let day = 24 * 60 * MINUTE;
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(1), 1, &name("ann"), &fname("a"), entry(5, true)).unwrap();
    // The cable was pulled: the old connection is still open.
    let back = Claim {
        resume: Some(key("fresh-ann")),
        keeps_files: true,
        source: ip("192.0.2.9"),
        fresh: key("unused"),
        ..claim("ann")
    };
    let granted = register(&mut core, 2, 2, &back).unwrap();
    assert!(granted.resumed && granted.files_stay);
    assert_eq!(granted.replaced, Some(1));
    core.closed(1);
    assert_eq!(core.held_by(2), Some(&name("ann")), "the end of the old connection changes nothing");
    assert_eq!(core.unpublish(Millis(3), 1, &name("ann"), &fname("a")), Err(Refusal::NotRegistered));
    core.closed(2);
    // Long silent, it comes back with what it had.
    assert!(shown(&mut core, 29 * day).is_empty());
    let granted = register(&mut core, 29 * day, 3, &back).unwrap();
    assert!(granted.resumed && granted.files_stay);
    assert_eq!(core.totals().total_files, 1);
    core.closed(3);
    // One is good for 30 days from when it was answered last, or its host was last heard.
    let late = register(&mut core, 59 * day, 5, &back).unwrap();
    assert!(!late.resumed);
}

#[test]
fn neither_own_files_nor_those_of_silent_hosts_hide_what_is_alike() {
    let mut core = registry();
    let file = |second: u64| {
        let modified = Seconds::new(second as f64).unwrap();
        Arc::new(FileEntry { modified, ..FileEntry::clone(&entry(77, true)) })
    };
    // The first in every order are a host's that falls silent, then one's own, all of one size and time; then one's
    // own of other times; the last is the one that matters.
    for (conn, host) in [(1, "gone"), (2, "ann"), (3, "zoe")] {
        register(&mut core, 0, conn, &claim(host)).unwrap();
    }
    for n in 0..300 {
        for (conn, host) in [(1, "gone"), (2, "ann")] {
            core.publish(Millis(0), conn, &name(host), &fname(&format!("a{n}")), file(1_000)).unwrap();
        }
        core.publish(Millis(0), 2, &name("ann"), &fname(&format!("b{n}")), file(n)).unwrap();
    }
    for n in 0..300 {
        let silent = format!("s{n}");
        register(&mut core, 0, 100 + n, &Claim { source: ip(&format!("198.51.100.{}", n % 200)), ..claim(&silent) })
            .unwrap();
        core.publish(Millis(0), 100 + n, &name(&silent), &fname("named"), file(500)).unwrap();
    }
    register(&mut core, 0, 9, &claim("yan")).unwrap();
    core.publish(Millis(0), 9, &name("yan"), &fname("named"), entry(5, true)).unwrap();
    core.publish(Millis(0), 3, &name("zoe"), &fname("z"), file(1_000)).unwrap();
    core.publish(Millis(0), 3, &name("zoe"), &fname("zz"), file(900_000)).unwrap();
    let later = 20 * MINUTE;
    for conn in [2, 3, 9] {
        core.hear(Millis(later), conn);
    }
    let found = core.alike(Millis(later), 2, &fname("named"), 77, Some(1_000.0), 100);
    let found: Vec<_> = found.iter().map(|(fname, host)| (fname.as_str(), host.hostname.as_str())).collect();
    assert_eq!(found, [("z", "zoe"), ("named", "yan"), ("zz", "zoe")]);
}

#[test]
fn a_name_of_an_earlier_version_that_cannot_be_seen_whole_comes_back() {
    let hidden = Name::kept("a\u{200b}nn").unwrap();
    let claim = Claim { hostname: hidden.clone(), ..claim("ann") };
    let left = |core: &Registry| core.sizes().iter().find(|(name, _)| *name == "hostnames_left").unwrap().1;
    let mut core = registry();
    register(&mut core, 0, 1, &claim).unwrap();
    core.unregister(Millis(0), 1, &hidden).unwrap();
    assert_eq!(left(&core), 1);
    register(&mut core, 1, 2, &claim).unwrap();
    assert_eq!(left(&core), 0, "its host is back");
}

#[test]
fn a_secret_outlives_an_orderly_end_and_every_other_but_not_another_holder() {
    let day = 24 * 60 * MINUTE;
    let back = |from: &str| Claim {
        resume: Some(key("fresh-ann")),
        keeps_files: true,
        source: ip(from),
        fresh: key("unused"),
        ..claim("ann")
    };
    // Thirty days from when it left, however long ago the secret was answered.
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(1), 1, &name("ann"), &fname("a"), entry(5, true)).unwrap();
    core.hear(Millis(40 * day), 1);
    let changes = core.unregister(Millis(50 * day), 1, &name("ann")).unwrap();
    assert!(matches!(changes[..], [Change::Secret { made_at: Millis(at), .. }, Change::DropHost(_)] if at == 50 * day));
    assert_eq!(core.held_by(1), None);
    assert_eq!(core.presence(Millis(50 * day), "ann"), None);
    for _ in 0..3 {
        core.tidy(Millis(79 * day), 100, &mut Vec::new());
    }
    let granted = register(&mut core, 79 * day, 2, &back("192.0.2.9")).unwrap();
    assert!(granted.resumed && !granted.files_stay, "its files were forgotten");
    // One whose name went to another when it was silent for long, and who left again.
    core.closed(2);
    let silent = 79 * day + 20 * MINUTE;
    let other = Claim { source: ip("192.0.2.3"), fresh: key("other"), ..claim("ann") };
    register(&mut core, silent, 3, &other).unwrap();
    assert_eq!(register(&mut core, silent + 1, 4, &back("192.0.2.9")), Err(Refusal::InUse));
    core.unregister(Millis(silent + 2), 3, &name("ann")).unwrap();
    assert!(!register(&mut core, silent + 3, 4, &back("192.0.2.9")).unwrap().resumed);
    // A wrong one is as good as none.
    let wrong = Claim { resume: Some(key("wrong")), ..back("192.0.2.9") };
    core.closed(4);
    assert!(!register(&mut core, silent + 4, 5, &wrong).unwrap().resumed, "the same address");
}

#[test]
fn at_most_four_secrets_are_kept_and_all_end() {
    let mut core = registry();
    for round in 0..10 {
        // The same user from one machine after another.
        let standing = Standing::Account(Proof::Token);
        let claim = Claim { fresh: key(&format!("{round}")), standing, ..claim("ann") };
        let granted = register(&mut core, round, round, &claim).unwrap();
        let drops = granted.changes.iter().filter(|change| matches!(change, Change::DropSecret { .. })).count();
        assert_eq!(drops, usize::from(round >= 4));
        core.closed(round);
    }
    assert_eq!(core.secrets.count("ann"), 4);
    let month = RESUME_FOR.as_millis() as u64;
    let mut changes = Vec::new();
    while core.expire(Millis(month), 10) {}
    while core.tidy(Millis(month + 8), 100, &mut changes) {}
    assert_eq!((core.secrets.count("ann"), changes.len()), (4, 0), "{changes:?}: good from when it was heard last");
    while core.tidy(Millis(month + 9), 100, &mut changes) {}
    core.tidy(Millis(month + 9), 100, &mut changes);
    assert_eq!(core.secrets.count("ann"), 0);
    assert!(changes.iter().any(|change| matches!(change, Change::DropHost(_))));
    assert_eq!(core.sizes().map(|(_, size)| size), [0; 10]);
}

#[test]
fn a_users_name_is_the_users() {
    let mut core = registry();
    let proved = |proof| Claim { standing: Standing::Account(proof), ..claim("ann") };
    assert_eq!(register(&mut core, 0, 1, &proved(Proof::None)), Err(Refusal::NeedsToken));
    register(&mut core, 0, 1, &proved(Proof::Token)).unwrap();
    // Who has the token replaces whatever connection holds it; so does who may come from the address.
    for (conn, proof) in [(2, Proof::Token), (3, Proof::Address)] {
        let elsewhere = Claim { source: ip("192.0.2.7"), ..proved(proof) };
        assert_eq!(register(&mut core, 1, conn, &elsewhere).unwrap().replaced, Some(conn - 1));
    }
    // An expired token locks nobody out: there is the secret; and the same connection may say it again.
    register(&mut core, 2, 3, &proved(Proof::None)).unwrap();
    let resumes = Claim { resume: Some(key("fresh-ann")), ..proved(Proof::None) };
    assert!(register(&mut core, 2, 4, &resumes).unwrap().resumed);
    let wrong = Claim { resume: Some(key("wrong")), ..proved(Proof::None) };
    assert_eq!(register(&mut core, 2, 5, &wrong), Err(Refusal::NeedsToken));
    core.closed(4);
    assert_eq!(register(&mut core, 60 * MINUTE, 6, &proved(Proof::None)), Err(Refusal::NeedsToken), "also when silent");
}

#[test]
fn a_stranger_loses_a_name_that_becomes_a_users() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    let changes = core.account_created("ann");
    assert!(matches!(changes[..], [Change::DropHost(_), Change::DropSecret { .. }]), "{changes:?}");
    assert_eq!(core.secrets.farewells(), 0);
    assert!(shown(&mut core, 1).is_empty());
    let publish = core.publish(Millis(1), 1, &name("ann"), &fname("b"), entry(1, true));
    assert_eq!(publish, Err(Refusal::NotRegistered));
    let back = Claim { resume: Some(key("fresh-ann")), standing: Standing::Account(Proof::None), ..claim("ann") };
    assert_eq!(register(&mut core, 1, 1, &back), Err(Refusal::NeedsToken));
    let user = Claim { standing: Standing::Account(Proof::Token), ..claim("ann") };
    let granted = register(&mut core, 1, 2, &user).unwrap();
    assert!(!granted.files_stay && granted.replaced.is_none());
    assert!(core.account_created("ann").is_empty(), "the user keeps it");
    assert!(core.account_created("nobody").is_empty());
}

#[test]
fn a_strangers_secret_is_worth_nothing_for_a_users_name() {
    // The account was made, and nobody told the registry.
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let back = |proof| Claim { resume: Some(key("fresh-ann")), standing: Standing::Account(proof), ..claim("ann") };
    assert_eq!(register(&mut core, 1, 1, &back(Proof::None)), Err(Refusal::NeedsToken), "nor its connection");
    let granted = register(&mut core, 1, 2, &Claim { fresh: key("users"), ..back(Proof::Token) }).unwrap();
    assert!(!granted.resumed && granted.replaced == Some(1));
}

#[test]
fn the_address_is_the_connections_or_a_users_word() {
    let token = Standing::Account(Proof::Token);
    let try_ip = |standing, source: &str, said: &str| {
        let claim = Claim { source: ip(source), ip: Some(ip(said)), standing, ..claim("ann") };
        register(&mut registry(), 0, 1, &claim).map(drop)
    };
    for (standing, source, said, is_good) in [
        (Standing::Free, "192.0.2.1", "192.0.2.1", true),
        (Standing::Free, "192.0.2.1", "::ffff:192.0.2.1", true),
        (Standing::Free, "::ffff:192.0.2.1", "192.0.2.1", true),
        (Standing::Free, "192.0.2.1", "192.0.2.2", false),
        (Standing::Account(Proof::Address), "192.0.2.1", "192.0.2.2", false),
        (token, "192.0.2.1", "198.51.100.7", true),
        (token, "192.0.2.1", "2001:db8::1", true),
        (token, "192.0.2.1", "127.0.0.1", false),
        (token, "192.0.2.1", "::1", false),
        (token, "127.0.0.1", "127.0.0.9", true),
        (token, "192.0.2.1", "0.0.0.0", false),
        (token, "192.0.2.1", "::", false),
        (token, "127.0.0.1", "0.0.0.0", false),
        (token, "192.0.2.1", "224.0.0.1", false),
        (token, "192.0.2.1", "ff02::1", false),
        (token, "192.0.2.1", "255.255.255.255", false),
        (Standing::Free, "127.0.0.1", "127.0.0.1", true),
        (Standing::Free, "127.0.0.1", "127.0.0.2", true),
        (Standing::Free, "127.0.0.1", "192.0.2.1", false),
    ] {
        let result = try_ip(standing, source, said);
        assert_eq!(result.is_ok(), is_good, "{standing:?} {source} {said}: {result:?}");
        if let Err(refusal) = result {
            assert!(refusal.to_string().starts_with("ip: "), "{refusal}");
        }
    }
    // From loopback any address of the registry's host, from elsewhere none but one's own.
    for (source, said, is_good) in [
        ("127.0.0.1", "192.0.2.1", true),
        ("::1", "192.0.2.1", true),
        ("198.51.100.1", "192.0.2.1", false),
        ("127.0.0.1", "0.0.0.0", false),
        ("127.0.0.1", "224.0.0.1", false),
    ] {
        let claim = Claim { source: ip(source), ip: Some(ip(said)), ip_is_here: true, ..claim("ann") };
        assert_eq!(register(&mut registry(), 0, 1, &claim).is_ok(), is_good, "{source} {said}");
    }
    // What a token allowed once stays good with the secret when the token has expired.
    let mut core = registry();
    let user = Claim { ip: Some(ip("198.51.100.7")), standing: token, ..claim("ann") };
    register(&mut core, 0, 1, &user).unwrap();
    let later = Claim { resume: Some(key("fresh-ann")), standing: Standing::Account(Proof::None), ..user };
    register(&mut core, 1, 2, &later).unwrap();
    let other = Claim { ip: Some(ip("198.51.100.8")), ..later };
    assert!(matches!(register(&mut core, 2, 3, &other), Err(Refusal::Ip(_))));
}

#[test]
fn a_connection_has_one_name_and_changes_only_that() {
    let mut core = registry();
    let publish = |core: &mut Registry, conn, host: &str| {
        core.publish(Millis(0), conn, &name(host), &fname("a"), entry(1, true)).map(drop)
    };
    assert_eq!(publish(&mut core, 1, "ann"), Err(Refusal::NotRegistered));
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    register(&mut core, 0, 2, &claim("bob")).unwrap();
    assert_eq!(publish(&mut core, 1, "bob"), Err(Refusal::OneHostname(name("ann"))));
    assert_eq!(core.unregister(Millis(0), 1, &name("bob")), Err(Refusal::OneHostname(name("ann"))));
    assert_eq!(core.unpublish(Millis(0), 1, &name("bob"), &fname("a")), Err(Refusal::OneHostname(name("ann"))));
    assert_eq!(register(&mut core, 0, 1, &claim("cid")), Err(Refusal::OneHostname(name("ann"))));
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert_eq!(core.unpublish(Millis(0), 1, &name("ann"), &fname("a")), Err(Refusal::UnknownFile));
    core.unregister(Millis(0), 1, &name("ann")).unwrap();
    assert_eq!(shown(&mut core, 0), ["bob"]);
    assert_eq!(publish(&mut core, 1, "ann"), Err(Refusal::NotRegistered));
    let elsewhere = Claim { source: ip("192.0.2.2"), resume: Some(key("fresh-ann")), ..claim("ann") };
    assert!(register(&mut core, 0, 3, &elsewhere).unwrap().resumed, "UNREGISTER leaves its secret");
    register(&mut core, 0, 1, &claim("cid")).unwrap();
}

#[test]
fn whoever_is_heard_again_is_shown_again() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(3, true)).unwrap();
    assert!(shown(&mut core, 20 * MINUTE).is_empty());
    assert_eq!(core.presence(Millis(20 * MINUTE), "ann"), None);
    assert_eq!(core.totals(), Totals::default());
    core.hear(Millis(20 * MINUTE), 1);
    assert_eq!(shown(&mut core, 20 * MINUTE), ["ann"]);
    assert!(core.presence(Millis(20 * MINUTE), "ann").is_some());
    assert_eq!(core.totals(), Totals { total_clients: 1, active_clients: 1, total_files: 1, total_size: 3 });
    assert_eq!(core.take_unsaved(10).len(), 1);
    assert!(core.take_unsaved(10).is_empty());
}

#[test]
fn past_the_timeout_a_host_holds_no_name_whatever_becomes_of_its_connection() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let other = Claim { source: ip("192.0.2.2"), fresh: key("other"), ..claim("ann") };
    assert_eq!(register(&mut core, 20 * MINUTE - 1, 2, &other), Err(Refusal::InUse));
    assert_eq!(register(&mut core, 20 * MINUTE - 1, 2, &claim("ann")), Err(Refusal::InUse), "at its own address too");
    let granted = register(&mut core, 20 * MINUTE, 2, &other).unwrap();
    assert_eq!(granted.replaced, Some(1));
    assert_eq!((core.held_by(1), core.held_by(2)), (None, Some(&name("ann"))));
    core.hear(Millis(20 * MINUTE), 1);
    core.closed(1);
    assert_eq!(core.held_by(2), Some(&name("ann")), "whatever comes over the former connection");
}

#[test]
fn a_long_list_is_replaced_in_steps_and_what_stays_is_not_stored_again() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let list = |range: std::ops::Range<u64>| -> Files {
        range.map(|n| (fname(&format!("{n:05}")), entry(n, n % 3 != 0))).collect()
    };
    let replace = |core: &mut Registry, new: &Files| {
        let (mut changes, mut after, mut steps) = (Vec::new(), None, 0);
        loop {
            steps += 1;
            match core.replace_files(1, new, after.as_ref(), 100, &mut changes).unwrap() {
                Some(last) => after = Some(last),
                None => return (changes.len(), steps),
            }
        }
    };
    assert_eq!(replace(&mut core, &list(0..1000)), (1000, 11));
    assert_eq!(core.totals().total_files, 666);
    assert_eq!(replace(&mut core, &list(0..1000)).0, 0);
    assert_eq!(replace(&mut core, &list(500..1500)).0, 1000);
    assert_eq!(core.sizes()[1].1, 1000);
    core.unregister(Millis(0), 1, &name("ann")).unwrap();
    // Gone at once, and out of the indices bit by bit.
    assert!(core.holders(Millis(0), &fname("00601"), None, 10).0.is_empty());
    assert_eq!(core.copies(Millis(0), &Digest([90; 32]), None, 10).0, []);
    assert!(core.tidy(Millis(0), 300, &mut Vec::new()));
    register(&mut core, 0, 2, &claim("bob")).unwrap();
    while core.tidy(Millis(0), 300, &mut Vec::new()) {}
    assert_eq!(core.sizes().map(|(_, size)| size), [1, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
}

#[test]
fn bounds_hold_and_the_silent_make_room() {
    let mut core = Registry::new(TIMEOUT, Bounds { hosts: 2, files: 3, ..Bounds::default() });
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("b"), entry(1, true)).unwrap();
    core.closed(1);
    register(&mut core, 1, 2, &claim("bob")).unwrap();
    core.publish(Millis(1), 2, &name("bob"), &fname("a"), entry(1, true)).unwrap();
    let publish = core.publish(Millis(1), 2, &name("bob"), &fname("b"), entry(1, true));
    assert_eq!(publish, Err(Refusal::Full("files")));
    core.publish(Millis(1), 2, &name("bob"), &fname("a"), entry(2, true)).unwrap();
    assert_eq!(register(&mut core, 1, 3, &claim("cid")), Err(Refusal::Full("hosts")));
    let mut changes = Vec::new();
    assert!(!core.make_room(Millis(1), 3, &claim("cid"), 10, &mut changes) && changes.is_empty(), "both are there");
    core.hear(Millis(20 * MINUTE), 2);
    while core.expire(Millis(20 * MINUTE), 10) {}
    let more = Claim { file_count: 3, ..claim("cid") };
    // For what is refused anyway nobody goes.
    let strange = Claim { ip: Some(ip("192.0.2.77")), ..more.clone() };
    assert!(!core.make_room(Millis(20 * MINUTE), 3, &strange, 10, &mut changes) && changes.is_empty());
    assert!(!core.make_room(Millis(20 * MINUTE), 3, &more, 10, &mut changes));
    assert_eq!(changes.iter().filter(|change| matches!(change, Change::DropHost(_))).count(), 1);
    assert_eq!(register(&mut core, 20 * MINUTE, 3, &more), Err(Refusal::Full("files")));
    register(&mut core, 20 * MINUTE, 3, &Claim { file_count: 2, ..claim("cid") }).unwrap();
}

#[test]
fn a_host_has_so_many_files_however_they_come() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let most = crate::share::wire::requests::FILES_MAX;
    let files: Files = (0..most).map(|n| (fname(&n.to_string()), entry(1, true))).collect();
    assert_eq!(core.replace_files(1, &files, None, most + 1, &mut Vec::new()), Ok(None));
    let mut publish = |file: &str| core.publish(Millis(0), 1, &name("ann"), &fname(file), entry(2, true)).map(drop);
    assert_eq!((publish("7"), publish("x")), (Ok(()), Err(Refusal::TooManyFiles(most))));
}

#[test]
fn secrets_without_a_host_are_no_more_than_hosts_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("registry.db"), store::MIGRATIONS).unwrap();
    let bounds = Bounds { hosts: 3, files: 3, ..Bounds::default() };
    let mut core = Registry::new(TIMEOUT, bounds);
    let mut changes = Vec::new();
    for n in 0..10 {
        let host = format!("host-{n}");
        let claim = Claim { fresh: key("first"), ..claim(&host) };
        changes.extend(register(&mut core, n, n, &claim).unwrap().changes);
        changes.extend(core.unregister(Millis(n), n, &name(&host)).unwrap());
        let left =
            |core: &Registry| (0..=n).filter(|n| core.secrets.count(&format!("host-{n}")) > 0).collect::<Vec<_>>();
        assert_eq!(left(&core), (n.saturating_sub(2)..=n).collect::<Vec<_>>());
        assert!(core.secrets.farewells() <= bounds.hosts);
        let now = std::mem::take(&mut changes);
        store.write(move |tx| now.iter().try_for_each(|change| change.write(tx))).unwrap();
        let mut again = Registry::new(TIMEOUT, bounds);
        store.read(|reader| again.load(Millis(n), &|date| date, reader)).unwrap();
        assert_eq!((left(&again), again.secrets.without_host()), (left(&core), core.secrets.without_host()));
    }
    // One whose host is back keeps its secrets, however many go.
    let back = Claim { resume: Some(key("first")), ..claim("host-7") };
    assert!(register(&mut core, 10, 100, &back).unwrap().resumed);
    for n in 10..20 {
        let host = format!("host-{n}");
        register(&mut core, n, 200 + n, &claim(&host)).unwrap();
        core.unregister(Millis(n), 200 + n, &name(&host)).unwrap();
    }
    assert_eq!(core.secrets.count("host-7"), 1);
}

/// Bounds small enough to be met.
fn small() -> Bounds {
    Bounds { hosts: 10, files: 40, hosts_of_one: 3, files_of_one: 8, hidden: 20, hidden_of_one: 20 }
}

fn from(source: &str, hostname: &str) -> Claim {
    Claim { source: ip(source), ..claim(hostname) }
}

#[test]
fn an_address_has_its_share_of_hostnames_and_gives_back_what_it_leaves() {
    let mut core = Registry::new(TIMEOUT, small());
    let (one, other) = ("192.0.2.1", "192.0.2.2");
    for n in 0..3 {
        register(&mut core, 0, n, &from(one, &format!("h{n}"))).unwrap();
    }
    let refused = register(&mut core, 0, 9, &from(one, "h9")).unwrap_err();
    assert!(matches!(refused, Refusal::ShareFull { share: 3, .. }), "{refused:?}");
    let said = "BUSY: 192.0.2.1 has 3 hostnames without an account here, as many as one source may";
    assert!(refused.to_string().starts_with(said), "{refused}");
    register(&mut core, 0, 9, &from(other, "honest")).unwrap();
    // What it has it may say again; a user's is not counted.
    register(&mut core, 0, 1, &from(one, "h1")).unwrap();
    let user = Claim { standing: Standing::Account(Proof::Token), ..from(one, "user") };
    register(&mut core, 0, 10, &user).unwrap();
    assert_eq!(core.sizes()[5], ("user_hosts", 1));
    // One that only closed counts; one that left does not.
    core.closed(1);
    assert!(register(&mut core, 1, 11, &from(one, "h9")).is_err());
    core.unregister(Millis(2), 2, &name("h2")).unwrap();
    register(&mut core, 2, 11, &from(one, "h9")).unwrap();
    // Past the timeout its own silent ones give way, nobody else's.
    core.hear(Millis(20 * MINUTE), 0);
    core.hear(Millis(20 * MINUTE), 11);
    while core.expire(Millis(20 * MINUTE), 10) {}
    let mut changes = Vec::new();
    let late = from(one, "late");
    assert!(!core.make_room(Millis(20 * MINUTE), 12, &late, 10, &mut changes));
    register(&mut core, 20 * MINUTE, 12, &late).unwrap();
    let known = |core: &Registry| ["h0", "h1", "h9", "late", "honest"].map(|name| core.host_named(name).is_some());
    assert_eq!(known(&core), [true, false, true, true, true]);
    // From another network the same host takes that one's share.
    let moves = Claim { resume: Some(key("fresh-late")), ..from(other, "late") };
    register(&mut core, 20 * MINUTE, 13, &moves).unwrap();
    register(&mut core, 20 * MINUTE, 14, &from(one, "again")).unwrap();
}

#[test]
fn loopback_has_half_of_the_bound_and_a_64_is_one_source() {
    let mut core = Registry::new(TIMEOUT, small());
    for n in 0..5 {
        let source = ["127.0.0.1", "127.0.0.2", "::1"][n as usize % 3];
        register(&mut core, 0, n, &from(source, &format!("here{n}"))).unwrap();
    }
    let refused = register(&mut core, 0, 9, &from("127.0.0.3", "more")).unwrap_err();
    assert!(matches!(refused, Refusal::ShareFull { share: 5, .. }), "{refused:?}");
    for n in 0..4 {
        let result = register(&mut core, 0, 20 + n, &from(&format!("2001:db8::{n}"), &format!("six{n}")));
        assert_eq!(result.is_ok(), n < 3, "{n}");
    }
}

#[test]
fn an_address_has_its_share_of_files_and_unpublish_gives_back() {
    let mut core = Registry::new(TIMEOUT, small());
    let one = "192.0.2.1";
    let publish = |core: &mut Registry, conn, host: &str, file: &str| {
        core.publish(Millis(0), conn, &name(host), &fname(file), entry(1, true)).map(drop)
    };
    // A list has its room from the start, before it is there.
    register(&mut core, 0, 1, &Claim { file_count: 6, ..from(one, "a") }).unwrap();
    assert!(register(&mut core, 0, 2, &Claim { file_count: 3, ..from(one, "b") }).is_err());
    register(&mut core, 0, 2, &Claim { file_count: 2, ..from(one, "b") }).unwrap();
    let list: Files = (0..6).map(|n| (fname(&n.to_string()), entry(1, true))).collect();
    assert_eq!(core.replace_files(1, &list, None, 100, &mut Vec::new()), Ok(None));
    assert_eq!(core.replace_files(2, &Files::new(), None, 100, &mut Vec::new()), Ok(None));
    assert_eq!(core.sizes()[8], ("anonymous_files", 6));
    publish(&mut core, 2, "b", "x").unwrap();
    publish(&mut core, 2, "b", "y").unwrap();
    let refused = publish(&mut core, 2, "b", "z").unwrap_err();
    let said = "BUSY: 192.0.2.1 has 8 files without an account here, as many as one source may";
    assert!(refused.to_string().starts_with(said), "{refused}");
    assert_eq!(publish(&mut core, 2, "b", "y"), Ok(()), "what is there may be published anew");
    // Whichever of its hosts gives back.
    core.unpublish(Millis(0), 1, &name("a"), &fname("0")).unwrap();
    publish(&mut core, 2, "b", "z").unwrap();
    assert!(publish(&mut core, 1, "a", "0").is_err(), "it was given away meanwhile");
    core.unregister(Millis(0), 2, &name("b")).unwrap();
    publish(&mut core, 1, "a", "0").unwrap();
    // Others and users have theirs.
    register(&mut core, 0, 3, &Claim { file_count: 8, ..from("192.0.2.2", "c") }).unwrap();
    let user = Claim { standing: Standing::Account(Proof::Token), file_count: 40, ..from(one, "user") };
    register(&mut core, 0, 4, &user).unwrap();
    let more = Claim { standing: Standing::Account(Proof::Token), file_count: 1, ..from(one, "user2") };
    assert_eq!(register(&mut core, 0, 5, &more), Err(Refusal::Full("files")), "users have a bound in all");
}

#[test]
fn what_is_not_published_is_remembered_while_there_is_room_and_never_in_the_way() {
    let bounds = Bounds { hidden: 20, hidden_of_one: 2, ..Bounds::default() };
    let mut core = Registry::new(TIMEOUT, bounds);
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    for n in 0..5 {
        let file = fname(&n.to_string());
        core.publish(Millis(0), 1, &name("ann"), &file, entry(1, true)).unwrap();
        let changes = core.unpublish(Millis(0), 1, &name("ann"), &file).unwrap();
        assert_eq!(matches!(changes[..], [Change::File { .. }]), n < 2, "{changes:?}");
        let again = core.unpublish(Millis(0), 1, &name("ann"), &file);
        assert_eq!(again, if n < 2 { Ok(Vec::new()) } else { Err(Refusal::UnknownFile) });
    }
    assert_eq!((core.sizes()[1].1, core.sizes()[8].1), (2, 0));
    let list: Files = (0..30).map(|n| (fname(&format!("l{n:02}")), entry(1, n >= 25))).collect();
    register(&mut core, 0, 1, &Claim { file_count: 5, ..claim("ann") }).unwrap();
    let mut changes = Vec::new();
    assert_eq!(core.replace_files(1, &list, None, 100, &mut changes), Ok(None));
    assert_eq!((core.sizes()[1].1, core.sizes()[8].1), (7, 5));
    assert_eq!(changes.len(), 9, "two go, two hidden and five shown ones come: {changes:?}");
}

#[test]
fn who_comes_back_is_counted_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join(store::FILE), store::MIGRATIONS).unwrap();
    let mut core = Registry::new(TIMEOUT, small());
    let mut changes = Vec::new();
    for (conn, source, host) in [(1, "192.0.2.1", "a"), (2, "192.0.2.1", "b"), (3, "127.0.0.1", "c")] {
        changes.extend(register(&mut core, 0, conn, &from(source, host)).unwrap().changes);
    }
    changes.extend(core.publish(Millis(0), 1, &name("a"), &fname("f"), entry(1, true)).unwrap());
    changes.extend(core.unregister(Millis(0), 2, &name("b")).unwrap());
    store.write(move |tx| changes.iter().try_for_each(|change| change.write(tx))).unwrap();
    for now in [1, 25 * MINUTE] {
        let mut again = Registry::new(TIMEOUT, small());
        store.read(|reader| again.load(Millis(now), &|date| date, reader)).unwrap();
        assert_eq!(again.sizes(), core.sizes());
        for (conn, host, is_good) in [(5, "d", true), (6, "e", true), (7, "g", false)] {
            assert_eq!(register(&mut again, now, conn, &from("192.0.2.1", host)).is_ok(), is_good, "{host}");
        }
    }
    store.close();
}

#[test]
fn what_is_stored_is_what_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join(store::FILE), store::MIGRATIONS).unwrap();
    let mut core = registry();
    let mut changes = Vec::new();
    changes.extend(register(&mut core, 0, 1, &claim("ann")).unwrap().changes);
    let user = Claim {
        standing: Standing::Account(Proof::Token),
        ip: Some(ip("2001:db8::1")),
        display_name: "Bob ü".into(),
        ..claim("bob")
    };
    changes.extend(register(&mut core, 10 * MINUTE, 2, &user).unwrap().changes);
    let whole = Arc::new(FileEntry {
        created: Some(Seconds::new(1.25).unwrap()),
        published_at: Some(Seconds::new(2.0).unwrap()),
        pieces_root: Some(Digest([9; 32])),
        features: Arc::new(["range".into(), "x".into()]),
        ..FileEntry::clone(&entry(2, true))
    });
    changes.extend(core.publish(Millis(0), 1, &name("ann"), &fname("ä"), Arc::clone(&whole)).unwrap());
    changes.extend(core.publish(Millis(0), 1, &name("ann"), &fname("b"), entry(1, true)).unwrap());
    changes.extend(core.unpublish(Millis(0), 1, &name("ann"), &fname("b")).unwrap());
    store.write(move |tx| changes.iter().try_for_each(|change| change.write(tx))).unwrap();
    let heard = core.take_unsaved(10);
    store.write(move |tx| store::write_heard(tx, &heard)).unwrap();
    let load = |now: u64| {
        let mut core = registry();
        store.read(|reader| core.load(Millis(now), &|date| date, reader)).unwrap();
        core
    };
    // Hosts of before count until their timeout is over.
    let mut loaded = load(15 * MINUTE);
    assert_eq!(shown(&mut loaded, 15 * MINUTE), ["ann", "bob"]);
    assert_eq!(loaded.totals(), Totals { active_clients: 0, ..core.totals() });
    let found = loaded.holders(Millis(15 * MINUTE), &fname("ä"), None, 9).0;
    assert_eq!(found[0].file, whole);
    let bob = loaded.discover(Millis(0), "bob").unwrap();
    assert_eq!((bob.ip, &*bob.display_name), (ip("2001:db8::1"), "Bob ü"));
    assert_eq!(shown(&mut loaded, 30 * MINUTE), [""; 0]);
    assert_eq!(shown(&mut load(29 * MINUTE), 29 * MINUTE), ["ann", "bob"], "heard at 10 minutes, both");
    // Secrets too, and what they give back; numbers go on.
    let back = Claim { resume: Some(key("fresh-ann")), keeps_files: true, ..claim("ann") };
    let granted = register(&mut loaded, 31 * MINUTE, 7, &back).unwrap();
    assert!(granted.resumed && granted.files_stay);
    let Granted { changes, .. } = register(&mut loaded, 31 * MINUTE, 8, &claim("cid")).unwrap();
    store.write(move |tx| changes.iter().try_for_each(|change| change.write(tx))).unwrap();
    // A memory that is built anew knows who is connected.
    let mut anew = load(31 * MINUTE);
    anew.adopt(&loaded);
    assert_eq!(anew.held_by(7), Some(&name("ann")));
    assert_eq!(anew.totals(), loaded.totals());
    let changes = [loaded.unregister(Millis(0), 7, &name("ann")), loaded.unregister(Millis(0), 8, &name("cid"))];
    store.write(move |tx| changes.into_iter().flatten().flatten().try_for_each(|change| change.write(tx))).unwrap();
    assert_eq!(load(31 * MINUTE).sizes().map(|(_, size)| size), [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    store.close();
}
