use super::hosts::is_reachable;
use super::*;
use crate::share::wire::{Digest, FileEntry, HostEntry, Seconds};

fn host(name: &str, ip: &str, size: u64, root: Option<u8>) -> HostEntry {
    let digest = root.map(|byte| Digest([byte; 32]));
    HostEntry {
        hostname: Name::new(name).unwrap(),
        display_name: name.into(),
        ip: ip.parse().unwrap(),
        port: 6001,
        file: Arc::new(FileEntry {
            size,
            modified: Seconds::new(1.0).unwrap(),
            created: None,
            published_at: None,
            is_published: true,
            blake3: digest,
            pieces_root: digest,
            features: Arc::new([]),
        }),
    }
}

#[test]
fn the_content_that_can_be_checked_and_that_most_have_is_chosen() {
    let hosts = [
        host("ann", "192.0.2.1", 5, None),
        host("bob", "192.0.2.2", 5, Some(1)),
        host("cy", "192.0.2.3", 6, Some(2)),
        host("dee", "192.0.2.4", 6, Some(2)),
    ];
    assert_eq!(choose_host(&hosts).unwrap().file.size, 6);
    assert_eq!(choose_host(&hosts[..2]).unwrap().hostname.as_str(), "bob");
    assert!(choose_host(&[]).is_none());
}

#[test]
fn equal_is_the_same_size_and_where_it_is_given_the_same_digest() {
    let (ann, bob) = (host("ann", "192.0.2.1", 5, Some(1)), host("bob", "192.0.2.2", 5, Some(1)));
    let unread = host("cy", "192.0.2.3", 5, None);
    assert!(have_same_content(&[]) && have_same_content(std::slice::from_ref(&ann)));
    assert!(have_same_content(&[ann.clone(), unread.clone(), bob.clone()]));
    let (longer, other) = (host("dee", "192.0.2.4", 6, None), host("eve", "192.0.2.5", 5, Some(2)));
    assert!(!have_same_content(&[ann.clone(), bob.clone(), longer]));
    assert!(!have_same_content(&[ann, unread, other.clone()]) && !have_same_content(&[bob, other]));
}

#[test]
fn among_very_many_hosts_the_choice_takes_no_longer() {
    let mut hosts = vec![host("ann", "192.0.2.1", 5, Some(1)); 300_000];
    for one in &mut hosts[100_000..] {
        one.file = host("bob", "192.0.2.2", 6, Some(2)).file;
    }
    let started = Instant::now();
    assert_eq!(choose_host(&hosts).unwrap().file.size, 6);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn nobody_fetches_from_himself_or_from_loopback_by_a_far_registry() {
    let own = Name::new("ann").unwrap();
    for (name, ip, near, far) in [
        ("bob", "192.0.2.1", true, true),
        ("bob", "127.0.0.1", true, false),
        ("bob", "127.9.9.9", true, false),
        ("bob", "::1", true, false),
        ("bob", "::ffff:127.0.0.1", true, false),
        ("bob", "0.0.0.0", false, false),
        ("bob", "224.0.0.1", false, false),
        ("ann", "192.0.2.1", false, false),
    ] {
        let host = host(name, ip, 5, None);
        assert_eq!(is_reachable(&host, &own, true), near, "{name} {ip}");
        assert_eq!(is_reachable(&host, &own, false), far, "{name} {ip}");
    }
    let mut mail = host("bob", "192.0.2.1", 5, None);
    mail.port = 25;
    assert!(!is_reachable(&mail, &own, true), "no peer listens there");
}
