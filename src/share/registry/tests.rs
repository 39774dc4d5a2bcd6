//! Scenarios of the registry's core, and a comparison with a simple model. This file has what they share, and the lists:
//! what is shown, followed and stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::Digest;
use crate::model::Token;
use crate::model::text::TextFilter;
use crate::share::wire::{FileEntry, Seconds};
use crate::storage::Store;
use change::HostRow;

mod hostnames;
mod model;
mod quotas;
mod secrets;

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
    assert!(core.purge_expired(Millis(0), 300, &mut Vec::new()));
    register(&mut core, 0, 2, &claim("bob")).unwrap();
    while core.purge_expired(Millis(0), 300, &mut Vec::new()) {}
    assert_eq!(core.sizes().map(|(_, size)| size), [1, 0, 0, 0, 0, 0, 1, 0, 1]);
}

#[test]
fn what_is_stored_is_what_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("registry.db"), store::MIGRATIONS).unwrap();
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
    assert_eq!(load(31 * MINUTE).sizes().map(|(_, size)| size), [1, 0, 0, 0, 1, 0, 0, 0, 2]);
    store.close();
}
