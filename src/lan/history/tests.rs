//! Messages, profile and port survive a restart; old messages are evicted in small steps.

use super::*;
use crate::lan::wire::{Dm, Post, TalkType};

fn name() -> Name {
    Name::new("al").unwrap()
}

fn open(dir: &Path) -> History {
    History::open(dir, &name()).unwrap()
}

fn heard(number: u64) -> HistoryEntry {
    HistoryEntry {
        at: Millis(number),
        direction: Direction::Received,
        kind: &Post::KIND,
        user_id: UserId::parse("b@b@10.0.0.2").unwrap(),
        text: format!("message {number}"),
        confirmation: Confirmation::NotAsked,
        message_id: None,
        source: None,
    }
}

fn said(message_id: &str) -> HistoryEntry {
    HistoryEntry {
        direction: Direction::Sent,
        kind: &Dm::KIND,
        confirmation: Confirmation::Waiting,
        message_id: Some(message_id.to_owned()),
        ..heard(1)
    }
}

fn confirmations(history: &History) -> Vec<Confirmation> {
    history.newest(usize::MAX).unwrap().iter().map(|entry| entry.confirmation).collect()
}

#[test]
fn messages_are_there_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("lan-al");
    let profile = HistoryEntry {
        kind: &Profile::KIND,
        text: "line\nline \0 \u{2028}".to_owned(),
        message_id: Some("ü".repeat(64)),
        ..heard(0)
    };
    // Messages keep the order of insertion, whatever their times.
    let entries = [heard(9), said("x"), profile, heard(2)];
    let history = open(&dir);
    assert_eq!(history.newest(10).unwrap(), []);
    for entry in &entries {
        history.append(entry.clone(), None).wait().unwrap();
    }
    assert_eq!(history.newest(10).unwrap(), entries);
    drop(history);
    let history = open(&dir);
    let mut expected = entries.to_vec();
    expected[1].confirmation = Confirmation::Unconfirmed;
    assert_eq!(history.newest(10).unwrap(), expected);
    assert_eq!(history.newest(2).unwrap(), expected[2..]);
    assert_eq!(history.newest(0).unwrap(), []);
    history.append(heard(10), None).wait().unwrap();
    assert_eq!(history.newest(1).unwrap(), [heard(10)]);
}

#[test]
fn only_what_is_waited_for_is_confirmed() {
    use Confirmation::{Confirmed, NotAsked, Unconfirmed, Waiting};
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    let received = HistoryEntry { message_id: Some("one".to_owned()), ..heard(1) };
    for entry in [received, said("one"), said("two"), said("three")] {
        history.append(entry, None).wait().unwrap();
    }
    assert_eq!(confirmations(&history), [NotAsked, Waiting, Waiting, Waiting]);
    // An unknown MESSAGE_ID has no effect.
    history.set_confirmation("four", true).wait().unwrap();
    assert_eq!(confirmations(&history), [NotAsked, Waiting, Waiting, Waiting]);
    history.set_confirmation("one", true).wait().unwrap();
    history.set_confirmation("two", false).wait().unwrap();
    assert_eq!(confirmations(&history), [NotAsked, Confirmed, Unconfirmed, Waiting]);
    // A decided confirmation does not change.
    history.set_confirmation("one", false).wait().unwrap();
    history.set_confirmation("two", true).wait().unwrap();
    assert_eq!(confirmations(&history), [NotAsked, Confirmed, Unconfirmed, Waiting]);
    // The two writes need not be waited for in between.
    drop(history.append(said("five"), None));
    history.set_confirmation("five", true).wait().unwrap();
    drop(history);
    assert_eq!(confirmations(&open(home.path())), [NotAsked, Confirmed, Unconfirmed, Unconfirmed, Confirmed]);
}

#[test]
fn the_oldest_are_forgotten_in_small_steps() {
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    let count = |history: &History| history.newest(usize::MAX).unwrap().len() as u64;
    for number in 1..=MESSAGES_MAX + 25 {
        drop(history.append(heard(number), None));
    }
    history.sync_all();
    let kept = history.newest(usize::MAX).unwrap();
    assert_eq!((kept.len() as u64, kept[0].at), (MESSAGES_MAX, Millis(26)));
    drop(history);
    // With more messages than the limit, as an older program may leave, each insertion evicts several.
    let store = Store::open(&home.path().join(FILE), MIGRATIONS).unwrap();
    store
        .write::<_, StoreError>(|tx| {
            tx.execute(
                "INSERT INTO lan_message SELECT id - 9, at, sent, kind, name, ip, body, confirmation, message_id, source
                 FROM lan_message ORDER BY id LIMIT 9",
                &[],
            )
        })
        .unwrap();
    drop(store);
    let history = open(home.path());
    let mut counts = vec![count(&history)];
    for number in 0..5 {
        history.append(heard(MESSAGES_MAX + 26 + number), None).wait().unwrap();
        counts.push(count(&history));
    }
    assert_eq!(counts.iter().map(|count| count - MESSAGES_MAX).collect::<Vec<_>>(), [9, 6, 3, 0, 0, 0]);
    let kept = history.newest(usize::MAX).unwrap();
    assert_eq!((kept[0].at, kept[kept.len() - 1].at), (Millis(31), Millis(MESSAGES_MAX + 30)));
}

#[test]
fn many_threads_keep_at_once() {
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let history = &history;
            scope.spawn(move || (0..50).for_each(|n| history.append(heard(thread * 100 + n), None).wait().unwrap()));
        }
    });
    let kept = history.newest(usize::MAX).unwrap();
    assert_eq!(kept.len(), 400);
    for thread in 0..8 {
        let mine: Vec<u64> = kept.iter().map(|entry| entry.at.0).filter(|at| at / 100 == thread).collect();
        assert!(mine.is_sorted() && mine.len() == 50, "{mine:?}");
    }
}

#[test]
fn profile_and_port_are_there_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    assert_eq!((history.profile().unwrap(), history.last_port().unwrap()), (None, None));
    let avatar = Some(Avatar::from_bytes(&b"GIF89a\0\xff"[..]).unwrap());
    let first = Profile { display_name: "Al".to_owned(), status: "here\nnow".to_owned(), avatar };
    history.append(heard(1), Some(first.clone())).wait().unwrap();
    history.set_last_port(65_535).unwrap();
    drop(history);
    let history = open(home.path());
    assert_eq!((history.profile().unwrap(), history.last_port().unwrap()), (Some(first), Some(65_535)));
    let second = Profile { display_name: "Bo".to_owned(), status: String::new(), avatar: None };
    history.append(heard(2), Some(second.clone())).wait().unwrap();
    history.set_last_port(8000).unwrap();
    drop(history);
    let history = open(home.path());
    assert_eq!((history.profile().unwrap(), history.last_port().unwrap()), (Some(second), Some(8000)));
    assert_eq!(history.newest(10).unwrap(), [heard(1), heard(2)]);
}

#[test]
fn what_was_received_of_late_and_may_come_again() {
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    let source = Some(Ipv4Addr::LOCALHOST);
    let known = |at: u64| HistoryEntry { message_id: Some(format!("m{at}")), source, ..heard(at) };
    for entry in [known(9), said("x"), known(10), heard(11), said("y"), known(12)] {
        history.append(entry, None).wait().unwrap();
    }
    drop(history);
    assert_eq!(open(home.path()).received_since(Millis(10)).unwrap(), [known(10), known(12)]);
}

/// A file with the schema of the first version.
#[test]
fn an_older_file_is_brought_up_to_date() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join(FILE), &MIGRATIONS[..1]).unwrap();
    let sql = "INSERT INTO lan_message VALUES (1, 5, 0, 'POST', 'b@b', '10.0.0.2', 'message 5', 'not asked', 'm5')";
    store.write::<_, StoreError>(|tx| tx.execute(sql, &[])).unwrap();
    drop(store);
    let history = open(home.path());
    assert_eq!(history.newest(10).unwrap(), [HistoryEntry { message_id: Some("m5".to_owned()), ..heard(5) }]);
    history.append(heard(6), None).wait().unwrap();
}

#[test]
fn a_data_dir_is_its_peers_however_the_name_is_spelled() {
    let home = tempfile::tempdir().unwrap();
    for spelled in ["Zoe\u{308}", "Zo\u{eb}", "Zoe\u{308}"] {
        History::open(home.path(), &Name::new(spelled).unwrap()).unwrap();
    }
    assert!(matches!(History::open(home.path(), &name()), Err(HistoryError::NotOurs { .. })));
}

#[test]
fn a_data_dir_has_one_peer() {
    let home = tempfile::tempdir().unwrap();
    let history = open(home.path());
    let refused = History::open(home.path(), &name()).unwrap_err();
    assert!(matches!(refused, HistoryError::Lock(_)), "{refused}");
    drop(history);
    let refused = History::open(home.path(), &Name::new("bo").unwrap()).unwrap_err().to_string();
    assert!(refused.contains("is the data dir of LAN peer \"al\""), "{refused}");
    std::fs::write(home.path().join(FILE), "no database, but long enough to be taken for one".repeat(50)).unwrap();
    let refused = History::open(home.path(), &name()).unwrap_err();
    assert!(matches!(refused, HistoryError::Open(OpenError::NotADatabase { .. })), "{refused}");
}
