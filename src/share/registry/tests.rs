//! Scenarios of the registry's core, and a comparison with a simple model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::Token;
use crate::model::text::TextFilter;
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

fn key(secret: &str) -> SecretHash {
    SecretHash::of(&Token::from_text(secret))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claim(hostname: &str) -> HostnameClaim {
    HostnameClaim {
        hostname: name(hostname),
        display_name: hostname.into(),
        port: 6001,
        ip: None,
        source: ip("192.0.2.1"),
        status: HostnameStatus::Free,
        resume_secret: None,
        new_secret: key(&format!("fresh-{hostname}")),
        keeps_files: false,
        file_count: 0,
        is_local_ip: false,
    }
}

fn registry() -> Registry {
    Registry::new(TIMEOUT, RegistryLimits::default())
}

fn register(
    core: &mut Registry,
    now: u64,
    conn: ConnId,
    claim: &HostnameClaim,
) -> Result<HostnameGrant, RegistryError> {
    core.register(Millis(now), conn, claim)
}

/// The hostnames that are listed at a given time.
fn shown(core: &mut Registry, now: u64) -> Vec<String> {
    while core.expire(Millis(now), 1) {}
    let (mut names, mut cursor) = (Vec::new(), ListingCursor::Offset(0));
    while cursor != ListingCursor::End {
        let (parts, next) = core.list(cursor, &mut usize::MAX.clone(), 2);
        for part in parts {
            if let ListingPart::Host(host) = part {
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
        register(&mut core, 0, conn, &HostnameClaim { display_name: display_name.into(), ..claim(hostname) }).unwrap();
    }
    let sought = TextFilter::new("KITCH");
    assert_eq!(core.search_names(&sought, None, 2), (vec![name("h1")], Some(name("h2"))));
    assert_eq!(core.search_names(&sought, Some(&name("h2")), 2), (vec![name("h3")], None));
    assert_eq!(core.search_names(&TextFilter::new("h2"), None, 9), (vec![name("h2")], None));
    assert_eq!(core.names_from(1, 1), [name("h2")]);
    assert_eq!(core.live_user_count(), 0);
}

#[test]
fn hosts_that_change_are_remembered_only_while_somebody_wants_to_know() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert_eq!(core.take_changed_hosts(true), None, "nobody had asked");
    let of = |names: &[&str]| Some(names.iter().map(|text| name(text)).collect::<BTreeSet<_>>());
    assert_eq!(core.take_changed_hosts(true), of(&[]));
    register(&mut core, 1, 2, &claim("bob")).unwrap();
    core.publish(Millis(2), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    assert_eq!(core.take_changed_hosts(true), of(&["ann", "bob"]));
    // Unpublished files are not part of the listing.
    core.publish(Millis(3), 1, &name("ann"), &fname("hidden"), entry(2, false)).unwrap();
    core.presence(Millis(4), "ann");
    assert_eq!(core.take_changed_hosts(true), of(&[]));
    core.connection_closed(2);
    core.unregister(Millis(5), 1, &name("ann")).unwrap();
    assert_eq!(core.take_changed_hosts(true), of(&["ann", "bob"]));
    assert!(shown(&mut core, 21 * MINUTE).is_empty());
    assert_eq!(core.take_changed_hosts(false), of(&["bob"]), "it fell silent");
    register(&mut core, 22 * MINUTE, 3, &claim("cid")).unwrap();
    assert_eq!(core.take_changed_hosts(true), None, "nobody wanted to know");
    for nth in 0..=CHANGED_HOSTS_MAX as u64 {
        register(
            &mut core,
            23 * MINUTE,
            10 + nth,
            &HostnameClaim { source: ip("127.0.0.1"), ..claim(&format!("h{nth}")) },
        )
        .unwrap();
    }
    assert_eq!(core.take_changed_hosts(true), None, "too many");
    assert_eq!(core.take_changed_hosts(true), of(&[]));
}

#[test]
fn a_free_name_is_the_first_ones_until_it_is_silent_for_long() {
    let mut core = registry();
    let first = register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert!(!first.is_resumed && first.replaced_conn.is_none());
    let elsewhere = HostnameClaim { source: ip("192.0.2.2"), ..claim("ann") };
    assert_eq!(register(&mut core, 0, 2, &claim("ann")), Err(RegistryError::InUse), "its connection is open");
    assert_eq!(register(&mut core, 0, 2, &elsewhere), Err(RegistryError::InUse));
    core.publish(Millis(MINUTE), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    core.connection_closed(1);
    assert_eq!(shown(&mut core, 20 * MINUTE), ["ann"], "it is there until the timeout, also when it is closed");
    assert_eq!(register(&mut core, 21 * MINUTE - 1, 2, &elsewhere), Err(RegistryError::InUse));
    assert!(shown(&mut core, 21 * MINUTE).is_empty());
    let granted = register(&mut core, 21 * MINUTE, 2, &elsewhere).unwrap();
    assert!(!granted.keeps_files);
    let drops = |change: &RegistryChange| matches!(change, RegistryChange::DropHost(_));
    assert!(granted.changes.iter().any(drops), "without its former files");
    assert_eq!(core.totals(), RegistryTotals { total_clients: 1, active_clients: 1, total_files: 0, total_size: 0 });
    assert!(core.holders(Millis(21 * MINUTE), &fname("a"), None, 10).0.is_empty());
}

#[test]
fn a_closed_name_is_free_at_once_to_its_address() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.connection_closed(1);
    let granted = register(&mut core, 1, 2, &HostnameClaim { new_secret: key("second"), ..claim("ann") }).unwrap();
    assert!(!granted.is_resumed && !granted.keeps_files && granted.replaced_conn.is_none());
    // Another host has held it since: the former secret no longer gets it back.
    let back = HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        keeps_files: true,
        new_secret: key("another"),
        ..claim("ann")
    };
    assert_eq!(register(&mut core, 3, 3, &back), Err(RegistryError::InUse));
    core.unregister(Millis(4), 2, &name("ann")).unwrap();
    assert!(!register(&mut core, 5, 3, &back).unwrap().is_resumed, "nor when that one has left");
}

#[test]
fn a_secret_gives_the_name_back_for_thirty_days() {
    let day = 24 * 60 * MINUTE;
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(1), 1, &name("ann"), &fname("a"), entry(5, true)).unwrap();
    // After a lost connection: the old one is still open.
    let back = HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        keeps_files: true,
        source: ip("192.0.2.9"),
        new_secret: key("unused"),
        ..claim("ann")
    };
    let granted = register(&mut core, 2, 2, &back).unwrap();
    assert!(granted.is_resumed && granted.keeps_files);
    assert_eq!(granted.replaced_conn, Some(1));
    core.connection_closed(1);
    assert_eq!(core.hostname_of(2), Some(&name("ann")), "the end of the old connection changes nothing");
    assert_eq!(core.unpublish(Millis(3), 1, &name("ann"), &fname("a")), Err(RegistryError::NotRegistered));
    core.connection_closed(2);
    // After a long silence it comes back with its files.
    assert!(shown(&mut core, 29 * day).is_empty());
    let granted = register(&mut core, 29 * day, 3, &back).unwrap();
    assert!(granted.is_resumed && granted.keeps_files);
    assert_eq!(core.totals().total_files, 1);
    core.connection_closed(3);
    // A secret is valid for 30 days after it was last issued or its host was last seen.
    let late = register(&mut core, 59 * day, 5, &back).unwrap();
    assert!(!late.is_resumed);
}

#[test]
fn neither_own_files_nor_those_of_silent_hosts_hide_what_is_alike() {
    let mut core = registry();
    let file = |second: u64| {
        let modified = Seconds::new(second as f64).unwrap();
        Arc::new(FileEntry { modified, ..FileEntry::clone(&entry(77, true)) })
    };
    // First in every order come files of a host that times out, then the client's own, all of one size and time; then
    // its own files of other times. The files that should be found come last.
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
        register(
            &mut core,
            0,
            100 + n,
            &HostnameClaim { source: ip(&format!("198.51.100.{}", n % 200)), ..claim(&silent) },
        )
        .unwrap();
        core.publish(Millis(0), 100 + n, &name(&silent), &fname("named"), file(500)).unwrap();
    }
    register(&mut core, 0, 9, &claim("yan")).unwrap();
    core.publish(Millis(0), 9, &name("yan"), &fname("named"), entry(5, true)).unwrap();
    core.publish(Millis(0), 3, &name("zoe"), &fname("z"), file(1_000)).unwrap();
    core.publish(Millis(0), 3, &name("zoe"), &fname("zz"), file(900_000)).unwrap();
    let later = 20 * MINUTE;
    for conn in [2, 3, 9] {
        core.record_activity(Millis(later), conn);
    }
    let found = core.similar_files(Millis(later), 2, &fname("named"), 77, Some(1_000.0), 100);
    let found: Vec<_> = found.iter().map(|(fname, host)| (fname.as_str(), host.hostname.as_str())).collect();
    assert_eq!(found, [("z", "zoe"), ("named", "yan"), ("zz", "zoe")]);
}

#[test]
fn a_name_of_an_earlier_version_that_cannot_be_seen_whole_comes_back() {
    let hidden = Name::from_stored("a\u{200b}nn").unwrap();
    let claim = HostnameClaim { hostname: hidden.clone(), ..claim("ann") };
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
    let back = |from: &str| HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        keeps_files: true,
        source: ip(from),
        new_secret: key("unused"),
        ..claim("ann")
    };
    // Thirty days after it left, however long ago the secret was issued.
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(1), 1, &name("ann"), &fname("a"), entry(5, true)).unwrap();
    core.record_activity(Millis(40 * day), 1);
    let changes = core.unregister(Millis(50 * day), 1, &name("ann")).unwrap();
    assert!(
        matches!(changes[..], [RegistryChange::Secret { issued_at: Millis(at), .. }, RegistryChange::DropHost(_)] if at == 50 * day)
    );
    assert_eq!(core.hostname_of(1), None);
    assert_eq!(core.presence(Millis(50 * day), "ann"), None);
    for _ in 0..3 {
        core.purge_expired(Millis(79 * day), 100, &mut Vec::new());
    }
    let granted = register(&mut core, 79 * day, 2, &back("192.0.2.9")).unwrap();
    assert!(granted.is_resumed && !granted.keeps_files, "its files were forgotten");
    // A host whose name went to another after a timeout, and that one has left again.
    core.connection_closed(2);
    let silent = 79 * day + 20 * MINUTE;
    let other = HostnameClaim { source: ip("192.0.2.3"), new_secret: key("other"), ..claim("ann") };
    register(&mut core, silent, 3, &other).unwrap();
    assert_eq!(register(&mut core, silent + 1, 4, &back("192.0.2.9")), Err(RegistryError::InUse));
    core.unregister(Millis(silent + 2), 3, &name("ann")).unwrap();
    assert!(!register(&mut core, silent + 3, 4, &back("192.0.2.9")).unwrap().is_resumed);
    // A wrong secret counts as none.
    let wrong = HostnameClaim { resume_secret: Some(key("wrong")), ..back("192.0.2.9") };
    core.connection_closed(4);
    assert!(!register(&mut core, silent + 4, 5, &wrong).unwrap().is_resumed, "the same address");
}

#[test]
fn at_most_four_secrets_are_kept_and_all_end() {
    let mut core = registry();
    for round in 0..10 {
        // The same user from one machine after another.
        let status = HostnameStatus::Account(AccountProof::Token);
        let claim = HostnameClaim { new_secret: key(&format!("{round}")), status, ..claim("ann") };
        let granted = register(&mut core, round, round, &claim).unwrap();
        let drops = granted.changes.iter().filter(|change| matches!(change, RegistryChange::DropSecret { .. })).count();
        assert_eq!(drops, usize::from(round >= 4));
        core.connection_closed(round);
    }
    assert_eq!(core.secrets.count("ann"), 4);
    let month = RESUME_FOR.as_millis() as u64;
    let mut changes = Vec::new();
    while core.expire(Millis(month), 10) {}
    while core.purge_expired(Millis(month + 8), 100, &mut changes) {}
    assert_eq!((core.secrets.count("ann"), changes.len()), (4, 0), "{changes:?}: good from when it was heard last");
    while core.purge_expired(Millis(month + 9), 100, &mut changes) {}
    core.purge_expired(Millis(month + 9), 100, &mut changes);
    assert_eq!(core.secrets.count("ann"), 0);
    assert!(changes.iter().any(|change| matches!(change, RegistryChange::DropHost(_))));
    assert_eq!(core.sizes().map(|(_, size)| size), [0; 10]);
}

#[test]
fn a_users_name_is_the_users() {
    let mut core = registry();
    let proved = |proof| HostnameClaim { status: HostnameStatus::Account(proof), ..claim("ann") };
    assert_eq!(register(&mut core, 0, 1, &proved(AccountProof::None)), Err(RegistryError::NeedsToken));
    register(&mut core, 0, 1, &proved(AccountProof::Token)).unwrap();
    // A client with the token replaces any connection that holds the name; so does one from an accepted address.
    for (conn, proof) in [(2, AccountProof::Token), (3, AccountProof::Address)] {
        let elsewhere = HostnameClaim { source: ip("192.0.2.7"), ..proved(proof) };
        assert_eq!(register(&mut core, 1, conn, &elsewhere).unwrap().replaced_conn, Some(conn - 1));
    }
    // An expired token locks nobody out: the secret is enough, and the same connection may register again.
    register(&mut core, 2, 3, &proved(AccountProof::None)).unwrap();
    let resumes = HostnameClaim { resume_secret: Some(key("fresh-ann")), ..proved(AccountProof::None) };
    assert!(register(&mut core, 2, 4, &resumes).unwrap().is_resumed);
    let wrong = HostnameClaim { resume_secret: Some(key("wrong")), ..proved(AccountProof::None) };
    assert_eq!(register(&mut core, 2, 5, &wrong), Err(RegistryError::NeedsToken));
    core.connection_closed(4);
    assert_eq!(
        register(&mut core, 60 * MINUTE, 6, &proved(AccountProof::None)),
        Err(RegistryError::NeedsToken),
        "also when silent"
    );
}

#[test]
fn a_stranger_loses_a_name_that_becomes_a_users() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    let changes = core.account_created("ann");
    assert!(matches!(changes[..], [RegistryChange::DropHost(_), RegistryChange::DropSecret { .. }]), "{changes:?}");
    assert_eq!(core.secrets.departed_count(), 0);
    assert!(shown(&mut core, 1).is_empty());
    let publish = core.publish(Millis(1), 1, &name("ann"), &fname("b"), entry(1, true));
    assert_eq!(publish, Err(RegistryError::NotRegistered));
    let back = HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        status: HostnameStatus::Account(AccountProof::None),
        ..claim("ann")
    };
    assert_eq!(register(&mut core, 1, 1, &back), Err(RegistryError::NeedsToken));
    let user = HostnameClaim { status: HostnameStatus::Account(AccountProof::Token), ..claim("ann") };
    let granted = register(&mut core, 1, 2, &user).unwrap();
    assert!(!granted.keeps_files && granted.replaced_conn.is_none());
    assert!(core.account_created("ann").is_empty(), "the user keeps it");
    assert!(core.account_created("nobody").is_empty());
}

#[test]
fn a_strangers_secret_is_worth_nothing_for_a_users_name() {
    // The account was created without the registry being told.
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let back = |proof| HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        status: HostnameStatus::Account(proof),
        ..claim("ann")
    };
    assert_eq!(
        register(&mut core, 1, 1, &back(AccountProof::None)),
        Err(RegistryError::NeedsToken),
        "nor its connection"
    );
    let granted =
        register(&mut core, 1, 2, &HostnameClaim { new_secret: key("users"), ..back(AccountProof::Token) }).unwrap();
    assert!(!granted.is_resumed && granted.replaced_conn == Some(1));
}

#[test]
fn the_address_is_the_connections_or_a_users_word() {
    let token = HostnameStatus::Account(AccountProof::Token);
    let try_ip = |status, source: &str, said: &str| {
        let claim = HostnameClaim { source: ip(source), ip: Some(ip(said)), status, ..claim("ann") };
        register(&mut registry(), 0, 1, &claim).map(drop)
    };
    for (status, source, said, is_good) in [
        (HostnameStatus::Free, "192.0.2.1", "192.0.2.1", true),
        (HostnameStatus::Free, "192.0.2.1", "::ffff:192.0.2.1", true),
        (HostnameStatus::Free, "::ffff:192.0.2.1", "192.0.2.1", true),
        (HostnameStatus::Free, "192.0.2.1", "192.0.2.2", false),
        (HostnameStatus::Account(AccountProof::Address), "192.0.2.1", "192.0.2.2", false),
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
        (HostnameStatus::Free, "127.0.0.1", "127.0.0.1", true),
        (HostnameStatus::Free, "127.0.0.1", "127.0.0.2", true),
        (HostnameStatus::Free, "127.0.0.1", "192.0.2.1", false),
    ] {
        let result = try_ip(status, source, said);
        assert_eq!(result.is_ok(), is_good, "{status:?} {source} {said}: {result:?}");
        if let Err(refusal) = result {
            assert!(refusal.to_string().starts_with("ip: "), "{refusal}");
        }
    }
    // From loopback any address of the registry's machine is allowed, from elsewhere only the client's own.
    for (source, said, is_good) in [
        ("127.0.0.1", "192.0.2.1", true),
        ("::1", "192.0.2.1", true),
        ("198.51.100.1", "192.0.2.1", false),
        ("127.0.0.1", "0.0.0.0", false),
        ("127.0.0.1", "224.0.0.1", false),
    ] {
        let claim = HostnameClaim { source: ip(source), ip: Some(ip(said)), is_local_ip: true, ..claim("ann") };
        assert_eq!(register(&mut registry(), 0, 1, &claim).is_ok(), is_good, "{source} {said}");
    }
    // An address that a token once allowed stays valid with the secret when the token has expired.
    let mut core = registry();
    let user = HostnameClaim { ip: Some(ip("198.51.100.7")), status: token, ..claim("ann") };
    register(&mut core, 0, 1, &user).unwrap();
    let later = HostnameClaim {
        resume_secret: Some(key("fresh-ann")),
        status: HostnameStatus::Account(AccountProof::None),
        ..user
    };
    register(&mut core, 1, 2, &later).unwrap();
    let other = HostnameClaim { ip: Some(ip("198.51.100.8")), ..later };
    assert!(matches!(register(&mut core, 2, 3, &other), Err(RegistryError::Ip(_))));
}

#[test]
fn a_connection_has_one_name_and_changes_only_that() {
    let mut core = registry();
    let publish = |core: &mut Registry, conn, host: &str| {
        core.publish(Millis(0), conn, &name(host), &fname("a"), entry(1, true)).map(drop)
    };
    assert_eq!(publish(&mut core, 1, "ann"), Err(RegistryError::NotRegistered));
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    register(&mut core, 0, 2, &claim("bob")).unwrap();
    assert_eq!(publish(&mut core, 1, "bob"), Err(RegistryError::OneHostname(name("ann"))));
    assert_eq!(core.unregister(Millis(0), 1, &name("bob")), Err(RegistryError::OneHostname(name("ann"))));
    assert_eq!(core.unpublish(Millis(0), 1, &name("bob"), &fname("a")), Err(RegistryError::OneHostname(name("ann"))));
    assert_eq!(register(&mut core, 0, 1, &claim("cid")), Err(RegistryError::OneHostname(name("ann"))));
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    assert_eq!(core.unpublish(Millis(0), 1, &name("ann"), &fname("a")), Err(RegistryError::UnknownFile));
    core.unregister(Millis(0), 1, &name("ann")).unwrap();
    assert_eq!(shown(&mut core, 0), ["bob"]);
    assert_eq!(publish(&mut core, 1, "ann"), Err(RegistryError::NotRegistered));
    let elsewhere = HostnameClaim { source: ip("192.0.2.2"), resume_secret: Some(key("fresh-ann")), ..claim("ann") };
    assert!(register(&mut core, 0, 3, &elsewhere).unwrap().is_resumed, "UNREGISTER leaves its secret");
    register(&mut core, 0, 1, &claim("cid")).unwrap();
}

#[test]
fn whoever_is_heard_again_is_shown_again() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(3, true)).unwrap();
    assert!(shown(&mut core, 20 * MINUTE).is_empty());
    assert_eq!(core.presence(Millis(20 * MINUTE), "ann"), None);
    assert_eq!(core.totals(), RegistryTotals::default());
    core.record_activity(Millis(20 * MINUTE), 1);
    assert_eq!(shown(&mut core, 20 * MINUTE), ["ann"]);
    assert!(core.presence(Millis(20 * MINUTE), "ann").is_some());
    assert_eq!(core.totals(), RegistryTotals { total_clients: 1, active_clients: 1, total_files: 1, total_size: 3 });
    assert_eq!(core.take_unsaved_last_seen(10).len(), 1);
    assert!(core.take_unsaved_last_seen(10).is_empty());
}

#[test]
fn past_the_timeout_a_host_holds_no_name_whatever_becomes_of_its_connection() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let other = HostnameClaim { source: ip("192.0.2.2"), new_secret: key("other"), ..claim("ann") };
    assert_eq!(register(&mut core, 20 * MINUTE - 1, 2, &other), Err(RegistryError::InUse));
    assert_eq!(
        register(&mut core, 20 * MINUTE - 1, 2, &claim("ann")),
        Err(RegistryError::InUse),
        "at its own address too"
    );
    let granted = register(&mut core, 20 * MINUTE, 2, &other).unwrap();
    assert_eq!(granted.replaced_conn, Some(1));
    assert_eq!((core.hostname_of(1), core.hostname_of(2)), (None, Some(&name("ann"))));
    core.record_activity(Millis(20 * MINUTE), 1);
    core.connection_closed(1);
    assert_eq!(core.hostname_of(2), Some(&name("ann")), "whatever comes over the former connection");
}

#[test]
fn a_long_list_is_replaced_in_steps_and_what_stays_is_not_stored_again() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let list = |range: std::ops::Range<u64>| -> FileMap {
        range.map(|n| (fname(&format!("{n:05}")), entry(n, n % 3 != 0))).collect()
    };
    let replace = |core: &mut Registry, new: &FileMap| {
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
    // Removed at once, and taken out of the indexes in steps.
    assert!(core.holders(Millis(0), &fname("00601"), None, 10).0.is_empty());
    assert_eq!(core.copies(Millis(0), &Digest([90; 32]), None, 10).0, []);
    assert!(core.purge_expired(Millis(0), 300, &mut Vec::new()));
    register(&mut core, 0, 2, &claim("bob")).unwrap();
    while core.purge_expired(Millis(0), 300, &mut Vec::new()) {}
    assert_eq!(core.sizes().map(|(_, size)| size), [1, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
}

#[test]
fn bounds_hold_and_the_silent_make_room() {
    let mut core = Registry::new(TIMEOUT, RegistryLimits { hosts: 2, files: 3, ..RegistryLimits::default() });
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("a"), entry(1, true)).unwrap();
    core.publish(Millis(0), 1, &name("ann"), &fname("b"), entry(1, true)).unwrap();
    core.connection_closed(1);
    register(&mut core, 1, 2, &claim("bob")).unwrap();
    core.publish(Millis(1), 2, &name("bob"), &fname("a"), entry(1, true)).unwrap();
    let publish = core.publish(Millis(1), 2, &name("bob"), &fname("b"), entry(1, true));
    assert_eq!(publish, Err(RegistryError::Full("files")));
    core.publish(Millis(1), 2, &name("bob"), &fname("a"), entry(2, true)).unwrap();
    assert_eq!(register(&mut core, 1, 3, &claim("cid")), Err(RegistryError::Full("hosts")));
    let mut changes = Vec::new();
    assert!(
        !core.evict_for_claim(Millis(1), 3, &claim("cid"), 10, &mut changes) && changes.is_empty(),
        "both are there"
    );
    core.record_activity(Millis(20 * MINUTE), 2);
    while core.expire(Millis(20 * MINUTE), 10) {}
    let more = HostnameClaim { file_count: 3, ..claim("cid") };
    // A claim that is refused anyway evicts nobody.
    let strange = HostnameClaim { ip: Some(ip("192.0.2.77")), ..more.clone() };
    assert!(!core.evict_for_claim(Millis(20 * MINUTE), 3, &strange, 10, &mut changes) && changes.is_empty());
    assert!(!core.evict_for_claim(Millis(20 * MINUTE), 3, &more, 10, &mut changes));
    assert_eq!(changes.iter().filter(|change| matches!(change, RegistryChange::DropHost(_))).count(), 1);
    assert_eq!(register(&mut core, 20 * MINUTE, 3, &more), Err(RegistryError::Full("files")));
    register(&mut core, 20 * MINUTE, 3, &HostnameClaim { file_count: 2, ..claim("cid") }).unwrap();
}

#[test]
fn a_host_has_so_many_files_however_they_come() {
    let mut core = registry();
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    let most = crate::share::wire::requests::FILES_MAX;
    let files: FileMap = (0..most).map(|n| (fname(&n.to_string()), entry(1, true))).collect();
    assert_eq!(core.replace_files(1, &files, None, most + 1, &mut Vec::new()), Ok(None));
    let mut publish = |file: &str| core.publish(Millis(0), 1, &name("ann"), &fname(file), entry(2, true)).map(drop);
    assert_eq!((publish("7"), publish("x")), (Ok(()), Err(RegistryError::TooManyFiles(most))));
}

#[test]
fn secrets_without_a_host_are_no_more_than_hosts_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("registry.db"), store::MIGRATIONS).unwrap();
    let bounds = RegistryLimits { hosts: 3, files: 3, ..RegistryLimits::default() };
    let mut core = Registry::new(TIMEOUT, bounds);
    let mut changes = Vec::new();
    for n in 0..10 {
        let host = format!("host-{n}");
        let claim = HostnameClaim { new_secret: key("first"), ..claim(&host) };
        changes.extend(register(&mut core, n, n, &claim).unwrap().changes);
        changes.extend(core.unregister(Millis(n), n, &name(&host)).unwrap());
        let left =
            |core: &Registry| (0..=n).filter(|n| core.secrets.count(&format!("host-{n}")) > 0).collect::<Vec<_>>();
        assert_eq!(left(&core), (n.saturating_sub(2)..=n).collect::<Vec<_>>());
        assert!(core.secrets.departed_count() <= bounds.hosts);
        let now = std::mem::take(&mut changes);
        store.write(move |tx| now.iter().try_for_each(|change| change.write(tx))).unwrap();
        let mut again = Registry::new(TIMEOUT, bounds);
        store.read(|reader| again.load(Millis(n), &|date| date, reader)).unwrap();
        assert_eq!((left(&again), again.secrets.departed_names()), (left(&core), core.secrets.departed_names()));
    }
    // A hostname whose host is back keeps its secrets, however many others leave.
    let back = HostnameClaim { resume_secret: Some(key("first")), ..claim("host-7") };
    assert!(register(&mut core, 10, 100, &back).unwrap().is_resumed);
    for n in 10..20 {
        let host = format!("host-{n}");
        register(&mut core, n, 200 + n, &claim(&host)).unwrap();
        core.unregister(Millis(n), 200 + n, &name(&host)).unwrap();
    }
    assert_eq!(core.secrets.count("host-7"), 1);
}

/// Limits small enough to be reached.
fn small() -> RegistryLimits {
    RegistryLimits {
        hosts: 10,
        files: 40,
        hosts_per_source: 3,
        files_per_source: 8,
        unpublished_files: 20,
        unpublished_files_per_source: 20,
    }
}

fn from(source: &str, hostname: &str) -> HostnameClaim {
    HostnameClaim { source: ip(source), ..claim(hostname) }
}

#[test]
fn an_address_has_its_share_of_hostnames_and_gives_back_what_it_leaves() {
    let mut core = Registry::new(TIMEOUT, small());
    let (one, other) = ("192.0.2.1", "192.0.2.2");
    for n in 0..3 {
        register(&mut core, 0, n, &from(one, &format!("h{n}"))).unwrap();
    }
    let refused = register(&mut core, 0, 9, &from(one, "h9")).unwrap_err();
    assert!(matches!(refused, RegistryError::ShareFull { share: 3, .. }), "{refused:?}");
    let said = "BUSY: 192.0.2.1 has 3 hostnames without an account here, as many as one source may";
    assert!(refused.to_string().starts_with(said), "{refused}");
    register(&mut core, 0, 9, &from(other, "honest")).unwrap();
    // It may register again what it has; a user's host is not counted.
    register(&mut core, 0, 1, &from(one, "h1")).unwrap();
    let user = HostnameClaim { status: HostnameStatus::Account(AccountProof::Token), ..from(one, "user") };
    register(&mut core, 0, 10, &user).unwrap();
    assert_eq!(core.sizes()[5], ("user_hosts", 1));
    // A host whose connection closed still counts; one that unregistered does not.
    core.connection_closed(1);
    assert!(register(&mut core, 1, 11, &from(one, "h9")).is_err());
    core.unregister(Millis(2), 2, &name("h2")).unwrap();
    register(&mut core, 2, 11, &from(one, "h9")).unwrap();
    // After the timeout its own silent hosts are evicted, and nobody else's.
    core.record_activity(Millis(20 * MINUTE), 0);
    core.record_activity(Millis(20 * MINUTE), 11);
    while core.expire(Millis(20 * MINUTE), 10) {}
    let mut changes = Vec::new();
    let late = from(one, "late");
    assert!(!core.evict_for_claim(Millis(20 * MINUTE), 12, &late, 10, &mut changes));
    register(&mut core, 20 * MINUTE, 12, &late).unwrap();
    let known = |core: &Registry| ["h0", "h1", "h9", "late", "honest"].map(|name| core.host_by_name(name).is_some());
    assert_eq!(known(&core), [true, false, true, true, true]);
    // From another network the same host counts against that network's share.
    let moves = HostnameClaim { resume_secret: Some(key("fresh-late")), ..from(other, "late") };
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
    assert!(matches!(refused, RegistryError::ShareFull { share: 5, .. }), "{refused:?}");
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
    // Room for a list is reserved from the start.
    register(&mut core, 0, 1, &HostnameClaim { file_count: 6, ..from(one, "a") }).unwrap();
    assert!(register(&mut core, 0, 2, &HostnameClaim { file_count: 3, ..from(one, "b") }).is_err());
    register(&mut core, 0, 2, &HostnameClaim { file_count: 2, ..from(one, "b") }).unwrap();
    let list: FileMap = (0..6).map(|n| (fname(&n.to_string()), entry(1, true))).collect();
    assert_eq!(core.replace_files(1, &list, None, 100, &mut Vec::new()), Ok(None));
    assert_eq!(core.replace_files(2, &FileMap::new(), None, 100, &mut Vec::new()), Ok(None));
    assert_eq!(core.sizes()[8], ("anonymous_files", 6));
    publish(&mut core, 2, "b", "x").unwrap();
    publish(&mut core, 2, "b", "y").unwrap();
    let refused = publish(&mut core, 2, "b", "z").unwrap_err();
    let said = "BUSY: 192.0.2.1 has 8 files without an account here, as many as one source may";
    assert!(refused.to_string().starts_with(said), "{refused}");
    assert_eq!(publish(&mut core, 2, "b", "y"), Ok(()), "what is there may be published anew");
    // Any of its hosts may free room.
    core.unpublish(Millis(0), 1, &name("a"), &fname("0")).unwrap();
    publish(&mut core, 2, "b", "z").unwrap();
    assert!(publish(&mut core, 1, "a", "0").is_err(), "it was given away meanwhile");
    core.unregister(Millis(0), 2, &name("b")).unwrap();
    publish(&mut core, 1, "a", "0").unwrap();
    // Other sources and users have their own quotas.
    register(&mut core, 0, 3, &HostnameClaim { file_count: 8, ..from("192.0.2.2", "c") }).unwrap();
    let user =
        HostnameClaim { status: HostnameStatus::Account(AccountProof::Token), file_count: 40, ..from(one, "user") };
    register(&mut core, 0, 4, &user).unwrap();
    let more =
        HostnameClaim { status: HostnameStatus::Account(AccountProof::Token), file_count: 1, ..from(one, "user2") };
    assert_eq!(register(&mut core, 0, 5, &more), Err(RegistryError::Full("files")), "users have a bound in all");
}

#[test]
fn what_is_not_published_is_remembered_while_there_is_room_and_never_in_the_way() {
    let bounds = RegistryLimits { unpublished_files: 20, unpublished_files_per_source: 2, ..RegistryLimits::default() };
    let mut core = Registry::new(TIMEOUT, bounds);
    register(&mut core, 0, 1, &claim("ann")).unwrap();
    for n in 0..5 {
        let file = fname(&n.to_string());
        core.publish(Millis(0), 1, &name("ann"), &file, entry(1, true)).unwrap();
        let changes = core.unpublish(Millis(0), 1, &name("ann"), &file).unwrap();
        assert_eq!(matches!(changes[..], [RegistryChange::File { .. }]), n < 2, "{changes:?}");
        let again = core.unpublish(Millis(0), 1, &name("ann"), &file);
        assert_eq!(again, if n < 2 { Ok(Vec::new()) } else { Err(RegistryError::UnknownFile) });
    }
    assert_eq!((core.sizes()[1].1, core.sizes()[8].1), (2, 0));
    let list: FileMap = (0..30).map(|n| (fname(&format!("l{n:02}")), entry(1, n >= 25))).collect();
    register(&mut core, 0, 1, &HostnameClaim { file_count: 5, ..claim("ann") }).unwrap();
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
    let user = HostnameClaim {
        status: HostnameStatus::Account(AccountProof::Token),
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
    let last_seen = core.take_unsaved_last_seen(10);
    store.write(move |tx| store::write_last_seen(tx, &last_seen)).unwrap();
    let load = |now: u64| {
        let mut core = registry();
        store.read(|reader| core.load(Millis(now), &|date| date, reader)).unwrap();
        core
    };
    // Loaded hosts stay live until their timeout is over.
    let mut loaded = load(15 * MINUTE);
    assert_eq!(shown(&mut loaded, 15 * MINUTE), ["ann", "bob"]);
    assert_eq!(loaded.totals(), RegistryTotals { active_clients: 0, ..core.totals() });
    let found = loaded.holders(Millis(15 * MINUTE), &fname("ä"), None, 9).0;
    assert_eq!(found[0].file, whole);
    let bob = loaded.discover(Millis(0), "bob").unwrap();
    assert_eq!((bob.ip, &*bob.display_name), (ip("2001:db8::1"), "Bob ü"));
    assert_eq!(shown(&mut loaded, 30 * MINUTE), [""; 0]);
    assert_eq!(shown(&mut load(29 * MINUTE), 29 * MINUTE), ["ann", "bob"], "heard at 10 minutes, both");
    // Secrets are loaded too; ids continue.
    let back = HostnameClaim { resume_secret: Some(key("fresh-ann")), keeps_files: true, ..claim("ann") };
    let granted = register(&mut loaded, 31 * MINUTE, 7, &back).unwrap();
    assert!(granted.is_resumed && granted.keeps_files);
    let HostnameGrant { changes, .. } = register(&mut loaded, 31 * MINUTE, 8, &claim("cid")).unwrap();
    store.write(move |tx| changes.iter().try_for_each(|change| change.write(tx))).unwrap();
    // A reloaded registry takes over the open connections.
    let mut anew = load(31 * MINUTE);
    anew.adopt_runtime_state(&loaded);
    assert_eq!(anew.hostname_of(7), Some(&name("ann")));
    assert_eq!(anew.totals(), loaded.totals());
    let changes = [loaded.unregister(Millis(0), 7, &name("ann")), loaded.unregister(Millis(0), 8, &name("cid"))];
    store.write(move |tx| changes.into_iter().flatten().flatten().try_for_each(|change| change.write(tx))).unwrap();
    assert_eq!(load(31 * MINUTE).sizes().map(|(_, size)| size), [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
    store.close();
}
