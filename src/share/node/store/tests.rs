use super::*;
use crate::model::Millis;
use crate::share::transfer::FetchStatus;
use crate::share::wire::FileName;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn fetch(number: usize, status: FetchStatus) -> FetchRow {
    FetchRow {
        id: format!("f{number:04}"),
        file_name: FileName::new("a").unwrap(),
        save_path: "/x/a".to_owned(),
        total_size: 10,
        downloaded_size: 5,
        status,
        error: None,
        is_verified: false,
        peer_hostname: "bob".to_owned(),
        peer_ip: "192.0.2.1".to_owned(),
        began_at: Millis(number as u64),
    }
}

#[test]
fn users_are_numbered_as_they_come_and_stay_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = NodeStore::open(dir.path()).unwrap();
    assert_eq!(store.signed_in(&name("ann"), "Ann").unwrap().number, 1);
    assert_eq!(store.signed_in(&name("bob"), "Bob").unwrap().number, 2);
    assert_eq!(store.signed_in(&name("ann"), "Ann B").unwrap().number, 1);
    store.set_joined(&name("ann"), true, Some("192.0.2.1")).unwrap();
    store.set_port(&name("ann"), 6001).unwrap();
    store.set_resume_secret(&name("ann"), Some("secret")).unwrap();
    drop(store);
    let store = NodeStore::open(dir.path()).unwrap();
    let users = store.users().unwrap();
    let ann = &users[0];
    assert_eq!((&*ann.display_name, ann.is_joined, ann.port), ("Ann B", true, Some(6001)));
    assert_eq!(ann.advertise_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(store.resume_secret(&name("ann")).unwrap().as_deref(), Some("secret"));
    assert_eq!((users[1].is_joined, users[1].port, users.len()), (false, None, 2));
}

#[test]
fn a_user_is_one_however_the_name_is_spelled() {
    let (accounts, nodes) = (name("Zo\u{eb}"), name("Zoe\u{308}"));
    let dir = tempfile::tempdir().unwrap();
    let store = NodeStore::open(dir.path()).unwrap();
    assert_eq!(store.signed_in(&accounts, "Zoë").unwrap().number, 1);
    // From here on in the node's spelling, as with a node of that `--name`.
    assert_eq!(store.signed_in(&nodes, "Zoë B").unwrap().number, 1);
    store.set_joined(&nodes, true, Some("192.0.2.1")).unwrap();
    store.set_port(&nodes, 6001).unwrap();
    store.set_resume_secret(&nodes, Some("secret")).unwrap();
    let users = store.users().unwrap();
    let zoe = &users[0];
    assert_eq!((zoe.name.as_str(), &*zoe.display_name, users.len()), (accounts.as_str(), "Zoë B", 1));
    assert_eq!((zoe.is_joined, zoe.port, zoe.advertise_ip.as_deref()), (true, Some(6001), Some("192.0.2.1")));
    for spelled in [&accounts, &nodes] {
        assert_eq!(store.resume_secret(spelled).unwrap().as_deref(), Some("secret"));
    }
    store.put_fetch(&nodes, &fetch(1, FetchStatus::Paused)).unwrap();
    assert_eq!(store.fetches(&accounts).unwrap().len(), 1);
    // An earlier version stored the user's data under the node's spelling.
    let former = nodes.as_str().to_owned();
    store
        .database
        .write(move |tx| -> Result<(), StoreError> {
            tx.execute("UPDATE share_fetch SET owner = $1", &[(&former).into()])?;
            for (owner, file) in [(&*former, "a"), (&*former, "b"), ("Zo\u{eb}", "b")] {
                let sql = "INSERT INTO share_file (owner, name, path, size, modified_ns, added_at, is_published)
                           VALUES ($1, $2, '/x', 1, 1, 1, 0)";
                tx.execute(sql, &[owner.into(), file.into()])?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(store.fetches(&accounts).unwrap(), []);
    drop(store);
    let store = NodeStore::open(dir.path()).unwrap();
    let files = files::TrackedFiles::of(Arc::clone(store.database()), &nodes).list(false).unwrap();
    assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(store.fetches(&nodes).unwrap().len(), 1);
}

#[test]
fn a_token_that_was_logged_out_stays_refused_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = NodeStore::open(dir.path()).unwrap();
    store.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
    store.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
    assert!(store.is_refused(&[1; 32]).unwrap() && !store.is_refused(&[2; 32]).unwrap());
    store.refuse_token([2; 32], Millis(3000), Millis(2000)).unwrap();
    assert!(!store.is_refused(&[1; 32]).unwrap() && store.is_refused(&[2; 32]).unwrap());
}

#[test]
fn good_tokens_are_kept_by_their_digests_until_they_end_or_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = NodeStore::open(dir.path()).unwrap();
    let ann = name("Zo\u{eb}");
    for (number, owner, until) in [(1, "Zoe\u{308}", 100), (2, "Zo\u{eb}", 200), (3, "bob", 300)] {
        assert!(store.put_token([number; 32], &name(owner), Millis(until), Millis(0)).unwrap());
    }
    drop(store);
    let store = NodeStore::open(dir.path()).unwrap();
    let tokens = |now: u64| store.tokens(&ann, Millis(now)).unwrap();
    assert_eq!((tokens(99), tokens(100), tokens(200)), (vec![[1; 32], [2; 32]], vec![[2; 32]], vec![]));
    store.refuse_token([2; 32], Millis(1_000), Millis(0)).unwrap();
    assert_eq!(tokens(0), [[1; 32]]);
    // An answer about it that was under way does not put it back.
    assert!(!store.put_token([2; 32], &ann, Millis(200), Millis(0)).unwrap());
    store.delete_token([1; 32]).unwrap();
    store.delete_token([9; 32]).unwrap();
    assert_eq!(tokens(0), [[0; 32]; 0]);
    // The number is bounded; those that expire last stay.
    let key = ann.key().to_owned();
    store
        .database
        .write(move |tx| -> Result<(), StoreError> {
            for number in 0..u64::try_from(TOKENS_MAX).unwrap() {
                let mut digest = [7; 32];
                digest[..8].copy_from_slice(&number.to_le_bytes());
                let sql = "INSERT INTO share_token (token_sha256, owner, until) VALUES ($1, $2, $3)";
                tx.execute(sql, &[(&digest).into(), (&key).into(), Millis(1_000 + number).into()])?;
            }
            Ok(())
        })
        .unwrap();
    assert!(store.put_token([5; 32], &ann, Millis(9_000), Millis(0)).unwrap());
    assert_eq!((tokens(0).len(), tokens(1_000).len(), tokens(1_001).len()), (TOKENS_MAX, TOKENS_MAX, TOKENS_MAX - 1));
    assert_eq!(store.tokens(&name("bob"), Millis(0)).unwrap(), [[0; 32]; 0], "the one that would end first");
    // Expired tokens are dropped when another is stored.
    assert!(store.put_token([8; 32], &ann, Millis(20_000), Millis(10_000)).unwrap());
    assert_eq!(tokens(0), [[8; 32]]);
}

#[test]
fn fetches_are_kept_and_the_oldest_that_ended_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = NodeStore::open(dir.path()).unwrap();
    let ann = name("ann");
    store.put_fetch(&ann, &fetch(0, FetchStatus::Downloading)).unwrap();
    for number in 1..FETCHES_MAX + 5 {
        store.put_fetch(&ann, &fetch(number, FetchStatus::Completed)).unwrap();
    }
    let kept = store.fetches(&ann).unwrap();
    // A fetch in progress stays, however old it is.
    assert_eq!(kept.len(), FETCHES_MAX + 1);
    assert_eq!((&*kept[0].id, kept[0].status), ("f0000", FetchStatus::Downloading));
    assert_eq!(kept[1].began_at, Millis(5));
    let mut ended = fetch(0, FetchStatus::Failed);
    ended.error = Some("no host".to_owned());
    store.put_fetch(&ann, &ended).unwrap();
    assert!(!store.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0000"));
    assert_eq!(store.fetches(&name("bob")).unwrap(), []);
    store.delete_fetch("f0005").unwrap();
    assert!(!store.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0005"));
}
