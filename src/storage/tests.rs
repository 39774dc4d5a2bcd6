//! The rules of a store, tested on real files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use tempfile::TempDir;

use super::writer::QUEUED_CHANGES_MAX;
use super::*;

mod opening;

const TABLES: &str = "CREATE TABLE kept (k BIGINT PRIMARY KEY, v TEXT NOT NULL);
                      CREATE TABLE odd (k BIGINT PRIMARY KEY ON CONFLICT ROLLBACK);
                      CREATE TABLE child (k BIGINT REFERENCES kept (k) DEFERRABLE INITIALLY DEFERRED)";

struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("state").join("test.db")
    }

    fn open(&self) -> Store {
        Store::open(&self.path(), &[TABLES]).unwrap()
    }
}

fn put(tx: &mut dyn Tx, k: i64) -> Result<(), StoreError> {
    assert_eq!(tx.execute("INSERT INTO kept (k, v) VALUES ($1, $2)", &[k.into(), "v".into()])?, 1);
    Ok(())
}

fn keys(store: &Store) -> Vec<i64> {
    store.read(|reader| reader.all("SELECT k FROM kept ORDER BY k", &[], |row| row.int(0))).unwrap()
}

/// Holds the writer inside a transaction, so that changes enqueued meanwhile share the next one.
struct Held {
    go: Sender<()>,
    handle: CommitHandle,
}

impl Held {
    fn hold(store: &Store) -> Held {
        let (entered, inside): (Sender<()>, Receiver<()>) = bounded(1);
        let (go, gone): (Sender<()>, Receiver<()>) = bounded(1);
        let handle = store.submit(move |_tx| {
            entered.send(()).unwrap();
            gone.recv().unwrap();
            Ok(())
        });
        inside.recv().unwrap();
        Held { go, handle }
    }

    fn release(self) {
        self.go.send(()).unwrap();
        self.handle.wait().unwrap();
    }
}

fn refuse(tx: &mut dyn Tx, k: i64) -> Result<(), StoreError> {
    put(tx, k)?;
    Err(StoreError::Rejected("no".to_owned()))
}

#[test]
fn values_come_back_as_they_were() {
    let home = Home::new();
    let store = Store::open(&home.path(), &["CREATE TABLE t (i BIGINT, b INTEGER, s TEXT, x BYTEA, n TEXT)"]).unwrap();
    store
        .write(|tx| {
            let parameters = [i64::MIN.into(), true.into(), "aü\n".into(), (&[0u8, 255]).into(), None::<&str>.into()];
            tx.execute("INSERT INTO t VALUES ($1, $2, $3, $4, $5)", &parameters)
        })
        .map(|rows| assert_eq!(rows, 1))
        .unwrap();
    store
        .read(|reader| {
            reader.query("SELECT i, b, s, x, n FROM t WHERE i = $1 OR i = $1", &[i64::MIN.into()], &mut |row| {
                assert_eq!((row.int(0)?, row.bool(1)?, row.text(2)?), (i64::MIN, true, "aü\n"));
                assert_eq!((row.blob(3)?, row.opt_text(4)?, row.opt_int(4)?), (&[0u8, 255][..], None, None));
                for wrong in [row.text(0).err(), row.int(2).err(), row.text(4).err(), row.text(9).err()] {
                    assert!(matches!(wrong, Some(StoreError::Invalid(_))));
                }
                assert!(row.uint(0).is_err() && row.bool(0).is_err() && row.name(2).is_err());
                Ok(())
            })
        })
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
}

#[test]
fn wrong_use_is_an_error_and_readers_cannot_write() {
    let home = Home::new();
    let store = home.open();
    for (sql, parameters) in [
        ("INSERT INTO kept (k, v) VALUES ($1, $2)", &[Value::Int(1)][..]),
        ("INSERT INTO kept (k, v) VALUES ($2, $1)", &[Value::Int(1), Value::Int(2)][..]),
        ("INSERT INTO nowhere VALUES (1)", &[][..]),
    ] {
        // The order of the parameters depends on the program alone, so only debug builds check it.
        if cfg!(not(debug_assertions)) && sql.contains("$2, $1") {
            continue;
        }
        let result = store.write(move |tx| tx.execute(sql, parameters));
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{sql}: {result:?}");
    }
    let written = store.read(|reader| reader.query("INSERT INTO kept VALUES (1, 'v')", &[], &mut |_| Ok(())));
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    let result = store.write(|tx| put(tx, 1).and_then(|()| put(tx, 1)));
    assert!(matches!(result, Err(StoreError::Constraint(_))), "{result:?}");
    assert!(keys(&store).is_empty());
}

#[test]
fn a_failed_change_harms_no_other_of_its_transaction() {
    let home = Home::new();
    let store = home.open();
    let held = Held::hold(&store);
    let before = store.submit(|tx| put(tx, 1));
    let refused = store.submit(|tx| put(tx, 2).and_then(|()| refuse(tx, 3)));
    let panicking = store.submit(|tx| {
        put(tx, 4)?;
        panic!("a test's panic")
    });
    let after = store.submit(|tx| {
        // The writes of the failed ones must not be visible.
        let seen = tx.all("SELECT k FROM kept", &[], |row| row.int(0))?;
        assert_eq!(seen, [1]);
        put(tx, 5)
    });
    assert_eq!(after.state(), CommitState::Pending);
    held.release();
    assert_eq!(before.wait(), Ok(()));
    assert_eq!(refused.wait(), Err(StoreError::Rejected("no".to_owned())));
    assert!(panicking.wait().is_err());
    assert_eq!(after.wait(), Ok(()));
    assert_eq!((refused.state(), after.state()), (CommitState::Failed, CommitState::Committed));
    assert_eq!(keys(&store), [1, 5]);
}

#[test]
fn after_a_failed_chained_change_all_later_ones_of_its_epoch_fail() {
    let home = Home::new();
    let store = home.open();
    let old = store.current_epoch();
    let held = Held::hold(&store);
    let good = store.append(old, |tx| put(tx, 1));
    let other = store.submit(|tx| put(tx, 2));
    // It has written nothing: there is nothing to roll back.
    let bad = store.append(old, |_tx| Err(StoreError::Rejected("no".to_owned())));
    let same_batch = store.append(old, |tx| put(tx, 4));
    let harmless = store.submit(|tx| put(tx, 5));
    assert_eq!(store.current_epoch(), old, "an epoch moves on only when its transaction is over");
    held.release();
    assert_eq!((good.wait(), other.wait(), harmless.wait()), (Ok(()), Ok(()), Ok(())));
    assert_eq!(bad.wait(), Err(StoreError::Rejected("no".to_owned())));
    assert_eq!(same_batch.wait(), Err(StoreError::superseded()));
    // Whoever knows of the failure gets the next epoch; the old one has ended.
    let new = store.current_epoch();
    assert_ne!(new, old);
    assert_eq!(store.append(old, |tx| put(tx, 6)).state(), CommitState::Failed);
    assert_eq!(store.append(new, |tx| put(tx, 7)).wait(), Ok(()));
    assert_eq!(keys(&store), [1, 2, 5, 7]);
}

#[test]
fn a_chained_change_that_fails_after_it_wrote_takes_its_transaction_along() {
    let home = Home::new();
    let store = home.open();
    let old = store.current_epoch();
    assert_eq!(store.append(old, |tx| put(tx, 1)).wait(), Ok(()), "of an earlier transaction");
    let held = Held::hold(&store);
    let before = store.append(old, |tx| put(tx, 2));
    let independent = store.submit(|tx| put(tx, 3));
    let bad = store.append(old, |tx| put(tx, 4).and_then(|()| refuse(tx, 5)));
    let after = store.append(old, |tx| put(tx, 6));
    held.release();
    for handle in [&before, &independent, &bad, &after] {
        assert!(matches!(handle.wait(), Err(StoreError::Unavailable(_))), "{handle:?}");
    }
    assert_eq!(keys(&store), [1], "the disk holds a prefix");
    let new = store.current_epoch();
    assert_ne!(new, old);
    assert_eq!(store.append(new, |tx| put(tx, 7)).wait(), Ok(()));
    assert_eq!(keys(&store), [1, 7]);
}

#[test]
fn changes_of_an_old_epoch_that_wait_in_the_next_transaction_fail_too() {
    let home = Home::new();
    let store = home.open();
    let old = store.current_epoch();
    let (entered, inside) = bounded(1);
    let (go, gone) = bounded::<()>(1);
    let bad = store.append(old, move |_tx| {
        entered.send(()).unwrap();
        gone.recv().unwrap();
        Err(StoreError::Rejected("no".to_owned()))
    });
    inside.recv().unwrap();
    // These are in the next batch, whose transaction begins after the epoch has advanced.
    let late = store.append(old, |tx| put(tx, 1));
    let independent = store.submit(|tx| put(tx, 2));
    go.send(()).unwrap();
    assert!(bad.wait().is_err());
    let new = store.current_epoch();
    let fresh = store.append(new, |tx| put(tx, 3));
    assert_eq!(late.wait(), Err(StoreError::superseded()));
    assert_eq!((independent.wait(), fresh.wait()), (Ok(()), Ok(())));
    assert_eq!(store.current_epoch(), new, "one failure moves the epoch once");
    assert_eq!(keys(&store), [2, 3]);
}

#[test]
fn a_transaction_that_sqlite_rolls_back_fails_whole() {
    let home = Home::new();
    let store = home.open();
    store.write(|tx| tx.execute("INSERT INTO odd VALUES (1)", &[])).unwrap();
    let old = store.current_epoch();
    let held = Held::hold(&store);
    let chained = store.append(old, |tx| put(tx, 1));
    let before = store.submit(|tx| put(tx, 2));
    // SQLite rolls everything back, and the change ignores that and continues: none of it may stay.
    let culprit = store.submit(|tx| {
        assert!(tx.execute("INSERT INTO odd VALUES (1)", &[]).is_err());
        assert!(put(tx, 3).is_err());
        Ok(())
    });
    let after = store.submit(|tx| put(tx, 4));
    held.release();
    for handle in [&chained, &before, &culprit, &after] {
        assert!(matches!(handle.wait(), Err(StoreError::Unavailable(_))), "{handle:?}");
    }
    assert_ne!(store.current_epoch(), old);
    assert!(keys(&store).is_empty());
    assert_eq!(store.append(store.current_epoch(), |tx| put(tx, 5)).wait(), Ok(()));
    assert_eq!(keys(&store), [5]);
}

#[test]
fn a_failed_commit_fails_all_and_the_store_goes_on() {
    let home = Home::new();
    let store = home.open();
    let epoch = store.current_epoch();
    let held = Held::hold(&store);
    let good = store.submit(|tx| put(tx, 1));
    let refused = store.submit(|tx| refuse(tx, 9));
    // A deferred constraint, so the commit itself fails.
    let culprit = store.submit(|tx| tx.execute("INSERT INTO child VALUES (77)", &[]).map(|_| ()));
    held.release();
    for handle in [&good, &refused, &culprit] {
        assert!(matches!(handle.wait(), Err(StoreError::Unavailable(_))), "{handle:?}");
    }
    assert_eq!(store.current_epoch(), epoch, "no chained change was harmed");
    let answer: Result<(), StoreError> = store.write(|tx| put(tx, 2));
    assert_eq!(answer, Ok(()));
    store.close();
    assert_eq!(keys(&home.open()), [2]);
}

#[test]
fn a_refusal_that_rests_on_a_lost_transaction_is_not_given() {
    let home = Home::new();
    let store = Arc::new(home.open());
    let held = Held::hold(&store);
    let first = store.submit(|tx| put(tx, 1));
    let asking = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            store.write(|tx| match put(tx, 1) {
                Err(StoreError::Constraint(_)) => Err(StoreError::Rejected("taken".to_owned())),
                other => other,
            })
        })
    };
    while store.queued_changes() < 2 {
        thread::yield_now();
    }
    let culprit = store.submit(|tx| tx.execute("INSERT INTO child VALUES (77)", &[]).map(|_| ()));
    held.release();
    assert!(first.wait().is_err() && culprit.wait().is_err());
    assert!(matches!(asking.join().unwrap(), Err(StoreError::Unavailable(_))));
}

#[test]
fn a_full_disk_is_unavailable_and_leaves_a_prefix() {
    let home = Home::new();
    let store = home.open();
    store.write(|tx| tx.first("PRAGMA max_page_count = 40", &[], |row| row.int(0)).map(|_| ())).unwrap();
    let epoch = store.current_epoch();
    let handles: Vec<CommitHandle> = (0..200)
        .map(|k| {
            store.append(epoch, move |tx| {
                let text = "x".repeat(3000);
                tx.execute("INSERT INTO kept VALUES ($1, $2)", &[k.into(), (&text).into()]).map(|_| ())
            })
        })
        .collect();
    let results: Vec<_> = handles.iter().map(CommitHandle::wait).collect();
    let stored = results.iter().take_while(|result| result.is_ok()).count();
    assert!(stored < 200, "the disk was not full");
    assert!(results[stored..].iter().all(|result| matches!(result, Err(StoreError::Unavailable(_)))));
    assert_eq!(keys(&store), (0..stored as i64).collect::<Vec<_>>());
    assert_ne!(store.current_epoch(), epoch);
    // There is room again, so it continues.
    store.write(|tx| tx.first("PRAGMA max_page_count = 4000", &[], |row| row.int(0)).map(|_| ())).unwrap();
    assert_eq!(store.append(store.current_epoch(), |tx| put(tx, 1000)).wait(), Ok(()));
}

#[test]
fn past_its_bound_the_queue_is_busy_and_the_chain_ends_after_what_it_holds() {
    let home = Home::new();
    let store = home.open();
    let epoch = store.current_epoch();
    let held = Held::hold(&store);
    let first = store.append(epoch, |tx| put(tx, 1));
    for _ in 1..QUEUED_CHANGES_MAX {
        store.submit(|_tx| Ok(()));
    }
    assert_eq!(store.submit(|tx| put(tx, 2)).wait(), Err(StoreError::Busy));
    assert_eq!(store.append(epoch, |tx| put(tx, 3)).wait(), Err(StoreError::Busy));
    assert_eq!(store.append(epoch, |tx| put(tx, 4)).wait(), Err(StoreError::superseded()));
    held.release();
    // A rebuild waits until nothing of the old epoch can be committed any more.
    let next = store.current_epoch();
    assert_ne!(next, epoch);
    assert_eq!((keys(&store), first.wait()), (vec![1], Ok(())));
    assert_eq!(store.append(epoch, |tx| put(tx, 5)).state(), CommitState::Failed);
    assert_eq!(store.append(next, |tx| put(tx, 6)).wait(), Ok(()));
}

#[test]
fn random_failures_always_leave_a_prefix() {
    // One thread enqueues numbers, some of which fail; after each failure it reads back and continues after the last
    // stored one, as a room does.
    let home = Home::new();
    let store = home.open();
    let mut seed = 7u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut memory: Vec<i64> = Vec::new();
    for _epoch in 0..60 {
        let epoch = store.current_epoch();
        memory = {
            let disk = keys(&store);
            assert!(memory.starts_with(&disk), "the disk is no prefix of memory");
            disk
        };
        let mut handles = Vec::new();
        for _change in 0..random(30) {
            let next = memory.len() as i64;
            memory.push(next);
            let fails = random(20) == 0;
            handles.push((next, store.append(epoch, move |tx| if fails { refuse(tx, next) } else { put(tx, next) })));
        }
        let committed = handles.iter().filter(|(_, handle)| handle.wait().is_ok()).map(|(next, _)| *next).max();
        if let Some(committed) = committed {
            assert!(keys(&store).contains(&committed));
        }
    }
    assert!(memory.len() > 100);
}

#[test]
fn a_hundred_threads_wait_and_all_wake() {
    let home = Home::new();
    let store = home.open();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..100i64 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                for round in 0..20 {
                    let k = number * 1000 + round;
                    let handle = if number % 2 == 0 {
                        store.append(store.current_epoch(), move |tx| put(tx, k))
                    } else {
                        store.submit(move |tx| put(tx, k))
                    };
                    handle.clone().wait().unwrap();
                    assert_eq!(handle.state(), CommitState::Committed);
                    // Acknowledged changes are visible to whoever reads next.
                    let seen = store
                        .read(|reader| reader.first("SELECT k FROM kept WHERE k = $1", &[k.into()], |row| row.int(0)));
                    assert_eq!(seen, Ok::<_, StoreError>(Some(k)));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 2000);
    assert_eq!(keys(&store).len(), 2000);
}

#[test]
fn one_outcome_wakes_all_who_wait_for_it() {
    let home = Home::new();
    let store = home.open();
    let held = Held::hold(&store);
    let handle = store.submit(|tx| put(tx, 1));
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| handle.wait().unwrap());
        }
        held.release();
    });
    assert_eq!(keys(&store), [1]);
}

#[test]
fn tickets_have_an_order() {
    let home = Home::new();
    let store = home.open();
    let a = store.submit(|tx| put(tx, 1));
    let b = store.submit(|tx| put(tx, 2));
    assert!(a.sequence_number() < b.sequence_number());
    assert_eq!(CommitHandle::latest(b.clone(), a.clone()).sequence_number(), b.sequence_number());
    assert_eq!(CommitHandle::latest(CommitHandle::committed(), a.clone()).sequence_number(), a.sequence_number());
    assert_eq!((CommitHandle::committed().wait(), CommitHandle::committed().state()), (Ok(()), CommitState::Committed));
    store.sync_all();
    assert_eq!((a.state(), b.state()), (CommitState::Committed, CommitState::Committed));
}

#[test]
fn closing_stores_all_that_was_handed_over() {
    let home = Home::new();
    let store = home.open();
    let epoch = store.current_epoch();
    let handles: Vec<_> = (0..500).map(|k| store.append(epoch, move |tx| put(tx, k))).collect();
    store.close();
    assert!(handles.iter().all(|handle| handle.state() == CommitState::Committed));
    assert_eq!(store.submit(|tx| put(tx, 1000)).wait(), Err(StoreError::closed()));
    assert!(store.read(|_| Ok::<_, StoreError>(())).is_err());
    store.close();
    let mut log = home.path().into_os_string();
    log.push("-wal");
    assert!(std::fs::metadata(&log).map_or(0, |log| log.len()) == 0, "the log is in the file");
    assert_eq!(keys(&home.open()).len(), 500);
}

#[test]
fn a_lock_held_elsewhere_is_waited_for() {
    let home = Home::new();
    let store = home.open();
    let other = rusqlite::Connection::open(home.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let handle = store.submit(|tx| put(tx, 1));
    assert!(keys(&store).is_empty(), "readers do not wait for it");
    assert_eq!(handle.state(), CommitState::Pending);
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(handle.wait(), Ok(()));
}

#[test]
fn a_reader_sees_one_instant() {
    let home = Home::new();
    let store = home.open();
    store.write(|tx| put(tx, 1)).unwrap();
    let count = |reader: &dyn Reader| reader.first("SELECT COUNT(*) FROM kept", &[], |row| row.int(0));
    store
        .read(|reader| {
            assert_eq!(count(reader)?, Some(1));
            store.write(|tx| put(tx, 2))?;
            assert_eq!(count(reader)?, Some(1));
            Ok::<_, StoreError>(())
        })
        .unwrap();
    assert_eq!(store.read(count), Ok(Some(2)));
    // A reader that panics releases its connection.
    for _ in 0..20 {
        let read =
            std::panic::AssertUnwindSafe(|| store.read(|_| -> Result<(), StoreError> { panic!("a test's panic") }));
        assert!(std::panic::catch_unwind(read).is_err());
    }
    assert_eq!(store.read(count), Ok(Some(2)));
}
