//! Limits in total and per source, and who makes room.

use super::*;

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
    assert_eq!(core.sizes()[4], ("user_hosts", 1));
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
    assert_eq!(core.sizes()[7], ("anonymous_files", 6));
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
    assert_eq!((core.sizes()[1].1, core.sizes()[7].1), (2, 0));
    let list: FileMap = (0..30).map(|n| (fname(&format!("l{n:02}")), entry(1, n >= 25))).collect();
    register(&mut core, 0, 1, &HostnameClaim { file_count: 5, ..claim("ann") }).unwrap();
    let mut changes = Vec::new();
    assert_eq!(core.replace_files(1, &list, None, 100, &mut changes), Ok(None));
    assert_eq!((core.sizes()[1].1, core.sizes()[7].1), (7, 5));
    assert_eq!(changes.len(), 9, "two go, two hidden and five shown ones come: {changes:?}");
}

#[test]
fn who_comes_back_is_counted_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("registry.db"), store::MIGRATIONS).unwrap();
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
