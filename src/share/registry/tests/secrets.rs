//! The secrets that give a hostname back.

use super::*;

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
        matches!(changes[..], [RegistryChange::DropHost(_), RegistryChange::Secret { issued_at: Millis(at), .. }] if at == 50 * day)
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
    assert_eq!(core.sizes().map(|(_, size)| size), [0; 9]);
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

#[test]
fn who_is_replaced_or_over_takes_no_place_among_the_departed() {
    let month = RESUME_FOR.as_millis() as u64;
    let left = |core: &mut Registry, now: u64, host: &str| {
        register(core, now, now, &claim(host)).unwrap();
        core.unregister(Millis(now), now, &name(host)).unwrap();
    };
    let full = || {
        let mut core = Registry::new(TIMEOUT, RegistryLimits { hosts_per_source: 2, ..RegistryLimits::default() });
        left(&mut core, 1, "one");
        left(&mut core, 2, "two");
        core
    };
    let kept = |core: &Registry| ["one", "two"].map(|host| core.secrets.count(host));
    // The name becomes an account's.
    let mut core = full();
    register(&mut core, 3, 3, &claim("ann")).unwrap();
    core.account_created("ann");
    assert_eq!((kept(&core), core.secrets.count("ann")), ([1, 1], 0));
    // Another takes over the name of a silent host.
    let mut core = full();
    register(&mut core, 3, 3, &claim("ann")).unwrap();
    let other = HostnameClaim { source: ip("192.0.2.9"), new_secret: key("other"), ..claim("ann") };
    register(&mut core, 3 + 20 * MINUTE, 4, &other).unwrap();
    assert_eq!((kept(&core), core.secrets.count("ann")), ([1, 1], 1));
    // A host is removed when its secrets are over, while those of the departed are not.
    let mut core = Registry::new(TIMEOUT, RegistryLimits { hosts_per_source: 2, ..RegistryLimits::default() });
    register(&mut core, 0, 9, &claim("ann")).unwrap();
    core.connection_closed(9);
    left(&mut core, 1, "one");
    left(&mut core, 2, "two");
    while core.expire(Millis(month), 10) {}
    while core.purge_expired(Millis(month), 1, &mut Vec::new()) {}
    assert_eq!((kept(&core), core.secrets.count("ann")), ([1, 1], 0));
    // One that leaves does take it.
    left(&mut core, month, "three");
    assert_eq!(kept(&core), [0, 1]);
}
