//! Commit callbacks, tested on real files.

use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tempfile::TempDir;

use super::*;

fn open() -> (TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("test.db"), &["CREATE TABLE kept (k BIGINT PRIMARY KEY)"]).unwrap();
    (dir, Arc::new(store))
}

fn put(k: i64) -> impl FnOnce(&mut dyn Tx) -> Result<(), StoreError> {
    move |tx| tx.execute("INSERT INTO kept (k) VALUES ($1)", &[k.into()]).map(|_rows| ())
}

fn keys(store: &Store) -> Vec<i64> {
    store.read(|reader| reader.all("SELECT k FROM kept ORDER BY k", &[], |row| row.int(0))).unwrap()
}

/// A change that keeps the writer busy until something is sent or the sender is dropped.
fn hold(store: &Store) -> Sender<()> {
    let (go, gone): (Sender<()>, Receiver<()>) = bounded(1);
    let (entered, inside) = bounded(1);
    store.submit(move |_tx| {
        entered.send(()).unwrap();
        let _ = gone.recv();
        Ok(())
    });
    inside.recv().unwrap();
    go
}

#[test]
fn it_is_done_in_order_and_only_once_the_change_is_on_disk() {
    let (_dir, store) = open();
    let (told, tell) = unbounded();
    let go = hold(&store);
    for k in 0..3 {
        let (told, reads) = (told.clone(), Arc::clone(&store));
        store.submit(put(k)).on_commit(move |stored| told.send((k, stored, keys(&reads))).unwrap());
    }
    assert!(tell.is_empty(), "the transaction has not even begun");
    drop(go);
    store.sync_all();
    let done: Vec<_> = tell.try_iter().collect();
    assert_eq!(done, [0, 1, 2].map(|k| (k, Ok(()), vec![0, 1, 2])));
}

#[test]
fn what_is_built_on_an_outcome_is_told_after_what_the_outcome_had_to_tell() {
    let (_dir, store) = open();
    let ((told, tell), (go, gone), (begun, begins)) = (unbounded(), bounded::<()>(1), bounded(1));
    let held = hold(&store);
    let handle = store.submit(put(1));
    handle.clone().on_commit({
        let told = told.clone();
        move |_| {
            begun.send(()).unwrap();
            let _ = gone.recv();
            told.send("first").unwrap();
        }
    });
    drop(held);
    begins.recv().unwrap();
    assert_eq!((handle.state(), handle.has_run_callbacks()), (CommitState::Committed, false));
    handle.clone().on_commit(move |stored| told.send(if stored.is_ok() { "second" } else { "lost" }).unwrap());
    assert!(tell.is_empty(), "it waits for the first");
    drop(go);
    assert_eq!(tell.iter().collect::<Vec<_>>(), ["first", "second"]);
    store.sync_all();
    assert!(handle.has_run_callbacks());
    // From then on a callback runs at once.
    let here = thread::current().id();
    let (told, tell) = bounded(1);
    handle.on_commit(move |_| told.send(thread::current().id()).unwrap());
    assert_eq!(tell.try_recv(), Ok(here));
}

#[test]
fn what_failed_is_told_so_and_the_others_are_not() {
    let (_dir, store) = open();
    let (told, tell) = unbounded();
    let go = hold(&store);
    for (nth, k) in [1, 1, 2].into_iter().enumerate() {
        let told = told.clone();
        store.submit(put(k)).on_commit(move |stored| told.send((nth, stored.is_ok())).unwrap());
    }
    drop(go);
    store.sync_all();
    assert_eq!(tell.try_iter().collect::<Vec<_>>(), [(0, true), (1, false), (2, true)]);
    store.close();
    let late = store.submit(put(3));
    late.on_commit(move |stored| told.send((3, stored.is_ok())).unwrap());
    assert_eq!(tell.try_recv(), Ok((3, false)), "it is known at once, and done on this thread");
}

#[test]
fn what_is_known_is_done_at_once_on_this_thread() {
    let (_dir, store) = open();
    let this = thread::current().id();
    let written = store.submit(put(1));
    store.sync_all();
    for handle in [CommitHandle::committed(), written] {
        let (told, tell) = bounded(1);
        handle.on_commit(move |stored| told.send((thread::current().id(), stored)).unwrap());
        assert_eq!(tell.try_recv(), Ok((this, Ok(()))));
    }
}

#[test]
fn a_panic_in_it_harms_nobody_and_it_may_hand_over_changes() {
    let (_dir, store) = open();
    let go = hold(&store);
    store.submit(put(1)).on_commit(|_stored| panic!("a test's panic"));
    let (told, tell) = bounded(1);
    let again = Arc::clone(&store);
    store.submit(put(2)).on_commit(move |_stored| told.send(again.submit(put(3))).unwrap());
    drop(go);
    tell.recv().unwrap().wait().unwrap();
    assert_eq!(keys(&store), [1, 2, 3]);
}

#[test]
fn the_last_handle_of_the_store_may_go_with_it() {
    let (dir, store) = open();
    let go = hold(&store);
    let (told, tell) = bounded::<()>(1);
    let (last, handle) = (Arc::clone(&store), store.submit(put(1)));
    handle.on_commit(move |_stored| {
        drop(last);
        drop(told);
    });
    drop(store);
    drop(go);
    assert!(tell.recv().is_err(), "it was done to its end");
    let store = Store::open(&dir.path().join("test.db"), &["never run: the file has its schema"]).unwrap();
    assert_eq!(keys(&store), [1]);
}

#[test]
fn all_that_is_done_after_a_transaction_is_done_within_what_was_put_around_it() {
    let (_dir, store) = open();
    let (told, tell) = unbounded();
    let last: Arc<OnceLock<CommitHandle>> = Arc::default();
    store.wrap_commit_callbacks({
        let (told, last) = (told.clone(), Arc::clone(&last));
        move |work| {
            told.send("begins").unwrap();
            work();
            // A callback that runs immediately from now on comes after this last one.
            told.send(if last.get().unwrap().has_run_callbacks() { "too late" } else { "ends" }).unwrap();
        }
    });
    store.wrap_commit_callbacks(|_work| panic!("there is one already"));
    let go = hold(&store);
    let handles = [1, 2].map(|k| store.submit(put(k)));
    last.set(handles[1].clone()).unwrap();
    for (handle, said) in handles.into_iter().zip(["first", "second"]) {
        let told = told.clone();
        handle.on_commit(move |stored| told.send(if stored.is_ok() { said } else { "lost" }).unwrap());
    }
    drop(go);
    store.sync_all();
    assert_eq!(tell.try_iter().collect::<Vec<_>>(), ["begins", "first", "second", "ends"]);
    // The wrapper is not called if there are no callbacks.
    store.submit(put(3)).wait().unwrap();
    store.sync_all();
    assert!(tell.is_empty());
}
