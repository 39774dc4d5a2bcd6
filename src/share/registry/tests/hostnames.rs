//! Who has a hostname, how long, and under which address.

use super::*;

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
