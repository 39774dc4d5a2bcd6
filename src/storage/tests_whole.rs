//! The checks of a data dir, on real files: each state that a kill may leave, and each loss.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::backup::{AcceptLossError, AcceptedLoss, accept_loss, backup, restore};
use super::manifest::{Manifest, StoreState};
use super::watermark::StoredWatermark;
use super::*;

const TABLES: &str = "CREATE TABLE kept (k BIGINT PRIMARY KEY)";
const ONE: ExpectedStore<'_> = ExpectedStore { file: "one.db", migrations: &[TABLES], companions: &["two.db"] };
const TWO: ExpectedStore<'_> = ExpectedStore { file: "two.db", migrations: &[TABLES], companions: &["one.db"] };
const BOTH: [ExpectedStore<'_>; 2] = [ONE, TWO];

fn open(dir: &Path, file: &str) -> Result<Store, OpenError> {
    Store::open(&dir.join(file), &[TABLES])
}

fn put(store: &Store, k: i64) {
    store
        .write(move |tx| tx.execute("INSERT INTO kept (k) VALUES ($1)", &[k.into()]).map(|_rows| ()))
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
}

fn keys(store: &Store) -> Vec<i64> {
    store.read(|reader| reader.all("SELECT k FROM kept ORDER BY k", &[], |row| row.int(0))).unwrap()
}

fn store_state(dir: &Path, file: &str) -> Option<StoreState> {
    Manifest::read(dir).unwrap()?.entry(file).map(|entry| entry.state)
}

fn generation(dir: &Path, file: &str) -> u64 {
    let connection = rusqlite::Connection::open(dir.join(file)).unwrap();
    store_identity::StoreIdentity::read(&connection).unwrap().unwrap().generation
}

/// A folder with two stores that were closed in order.
fn two_stores() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    check_stores(dir.path(), &BOTH).unwrap();
    for (file, k) in [("one.db", 1), ("two.db", 2)] {
        let store = open(dir.path(), file).unwrap();
        put(&store, k);
        store.close();
    }
    dir
}

#[test]
fn a_first_start_may_be_cut_off_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    check_stores(dir.path(), &BOTH).unwrap();
    assert_eq!(
        (store_state(dir.path(), "one.db"), store_state(dir.path(), "two.db")),
        (Some(StoreState::Making), Some(StoreState::Making))
    );
    // Registered and missing; there and empty; there without its id; there with its id and not yet `kept`.
    check_stores(dir.path(), &BOTH).unwrap();
    std::fs::write(dir.path().join("one.db"), "").unwrap();
    check_stores(dir.path(), &BOTH).unwrap();
    let store = open(dir.path(), "one.db").unwrap();
    put(&store, 1);
    store.close();
    assert_eq!(store_state(dir.path(), "one.db"), Some(StoreState::Kept));
    let id = Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().id.clone();
    for has_id in [true, false] {
        Manifest::update(dir.path(), |manifest| manifest.set_state("one.db", &id, StoreState::Making)).unwrap();
        if !has_id {
            let connection = rusqlite::Connection::open(dir.path().join("one.db")).unwrap();
            connection.execute_batch("DROP TABLE store_identity").unwrap();
            std::fs::remove_file(dir.path().join("one.db-mark")).unwrap();
        }
        check_stores(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), [1]);
        assert_eq!(store_state(dir.path(), "one.db"), Some(StoreState::Kept));
    }
}

#[test]
fn nothing_is_planned_while_anything_is_missing() {
    let dir = two_stores();
    std::fs::remove_file(dir.path().join("two.db")).unwrap();
    let three = ExpectedStore { file: "three.db", migrations: &[TABLES], companions: &[] };
    let error = check_stores(dir.path(), &[three, ONE, TWO]).unwrap_err();
    assert!(matches!(&error, OpenError::Missing { path, .. } if path.ends_with("two.db")), "{error}");
    assert_eq!(store_state(dir.path(), "three.db"), None);
    assert!(matches!(open(dir.path(), "two.db"), Err(OpenError::Missing { .. })));
    assert!(!dir.path().join("two.db").exists());
}

#[test]
fn the_number_counts_once_a_second_and_at_the_end_and_the_mark_follows() {
    let dir = two_stores();
    let path = dir.path().join("one.db");
    let id = Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().id.clone();
    let before = generation(dir.path(), "one.db");
    assert_eq!(watermark::read(&path, &id), StoredWatermark::Generation(before), "written at an orderly end");
    let store = open(dir.path(), "one.db").unwrap();
    let began = std::time::Instant::now();
    for k in 100..400 {
        put(&store, k);
    }
    // The generation advances at once, and once more for the changes after it, whether or not others follow.
    let seen = loop {
        let StoredWatermark::Generation(seen) = watermark::read(&path, &id) else { panic!("there is a mark") };
        let counted = store.read(|reader| reader.first("SELECT number FROM store_identity", &[], |row| row.uint(0)));
        assert!(seen <= counted.unwrap_or_else(|error: StoreError| panic!("{error}")).unwrap(), "ahead of the store");
        if seen >= before + 2 {
            break seen;
        }
        std::thread::yield_now();
    };
    assert!(seen <= before + 2 + began.elapsed().as_secs(), "{seen}: not with each change");
    store.close();
    assert_eq!(watermark::read(&path, &id), StoredWatermark::Generation(generation(dir.path(), "one.db")));
}

#[test]
fn a_store_of_an_earlier_version_is_taken_in_wherever_that_is_cut_off() {
    for cut in 0..3 {
        let dir = two_stores();
        let id = Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().id.clone();
        let connection = rusqlite::Connection::open(dir.path().join("one.db")).unwrap();
        if cut < 2 {
            connection.execute_batch("DROP TABLE store_identity").unwrap();
        }
        drop(connection);
        std::fs::remove_file(dir.path().join("one.db-mark")).unwrap();
        let mut manifest = Manifest::read(dir.path()).unwrap().unwrap();
        manifest.stores.retain(|entry| entry.file != "one.db");
        if cut > 0 {
            manifest.set_state("one.db", &id, StoreState::Adopting);
        }
        manifest.write(dir.path()).unwrap();
        if cut > 0 {
            // It was there, so it is not new.
            let aside = dir.path().join("aside");
            std::fs::rename(dir.path().join("one.db"), &aside).unwrap();
            assert!(matches!(check_stores(dir.path(), &BOTH), Err(OpenError::Missing { .. })));
            std::fs::rename(&aside, dir.path().join("one.db")).unwrap();
        }
        check_stores(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), [1]);
        assert_eq!(store_state(dir.path(), "one.db"), Some(StoreState::Kept));
    }
}

#[test]
fn giving_up_may_be_cut_off_anywhere_and_is_done_again() {
    // The number of steps after which it was interrupted: none, the file, its log.
    for steps in 0..3 {
        let dir = two_stores();
        let path = dir.path().join("one.db");
        std::fs::write(&path, "damaged").unwrap();
        std::fs::write(dir.path().join("one.db-wal"), "its log").unwrap();
        assert!(check_stores(dir.path(), &BOTH).unwrap_err().is_loss());
        if steps > 0 {
            std::fs::rename(&path, dir.path().join("one.db.lost-1")).unwrap();
        }
        if steps > 1 {
            std::fs::rename(dir.path().join("one.db-wal"), dir.path().join("one.db-wal.lost-1")).unwrap();
        }
        // Nothing is created as long as the loss is not completely accepted.
        assert!(check_stores(dir.path(), &BOTH).unwrap_err().is_loss(), "{steps}");
        assert!(open(dir.path(), "one.db").unwrap_err().is_loss(), "{steps}");
        accept_loss(dir.path(), "one.db", &BOTH, &[]).unwrap();
        let left = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!((left("one.db.lost-1"), left("one.db-wal.lost-1")), (b"damaged".to_vec(), b"its log".to_vec()));
        check_stores(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), Vec::<i64>::new());
        assert!(matches!(accept_loss(dir.path(), "one.db", &BOTH, &[]), Err(AcceptLossError::NothingLost(_))));
    }
}

#[test]
fn what_vouched_for_a_lost_store_goes_with_it() {
    let dir = two_stores();
    std::fs::write(dir.path().join("a.key"), "secret").unwrap();
    std::fs::remove_file(dir.path().join("two.db")).unwrap();
    let done = accept_loss(dir.path(), "two.db", &BOTH, &["a.key"]).unwrap();
    assert_eq!(done, AcceptedLoss::WillBeRecreated(vec![dir.path().join("two.db-mark.lost-1")]));
    assert!(!dir.path().join("a.key").exists() && dir.path().join("a.key.lost-1").exists());
}

#[test]
fn a_value_that_nobody_here_writes_is_told_as_damage_with_its_file() {
    let dir = two_stores();
    let store = open(dir.path(), "one.db").unwrap();
    store
        .write(|tx| tx.execute("UPDATE kept SET k = $1", &[(-1).into()]).map(|_rows| ()))
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
    let read = |reader: &dyn Reader| reader.all("SELECT k FROM kept", &[], |row| row.uint(0));
    let error = store.read(read).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    let said = error.to_string();
    assert!(said.contains("one.db") && said.contains("damaged") && said.contains("restore a backup"), "{said}");
}

#[test]
fn a_store_that_no_longer_says_who_it_is_is_told_with_its_file() {
    let dir = two_stores();
    let store = open(dir.path(), "one.db").unwrap();
    let error: StoreError = store.write(|tx| tx.execute("DELETE FROM store_identity", &[]).map(drop)).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(said) if said.contains("one.db: 0 rows name")), "{error}");
}

#[cfg(unix)]
#[test]
fn damage_is_named_while_the_store_runs() {
    let dir = two_stores();
    let store = open(dir.path(), "one.db").unwrap();
    store
        .write(|tx| {
            (10..5000).try_for_each(|k| tx.execute("INSERT INTO kept (k) VALUES ($1)", &[k.into()]).map(|_| ()))
        })
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
    store.close();
    let store = open(dir.path(), "one.db").unwrap();
    // Beyond the pages that opening it has read. Written through a handle that is not closed: closing one would end
    // SQLite's locks on the file.
    let file = std::fs::File::options().write(true).open(dir.path().join("one.db")).unwrap();
    let length = file.metadata().unwrap().len();
    for page in 2..length / 4096 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4096], page * 4096).unwrap();
    }
    let error = store.read(|reader| reader.all("SELECT k FROM kept", &[], |row| row.int(0))).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(said) if said.contains("one.db")), "{error}");
    drop(store);
}

#[test]
fn a_backup_tells_of_a_loss_and_its_stores_are_others() {
    let dir = two_stores();
    let out = tempfile::tempdir().unwrap();
    let first = out.path().join("first.tar");
    backup(dir.path(), &first, &mut |_, _| {}).unwrap();
    let again = out.path().join("again");
    restore(&first, &again).unwrap();
    check_stores(&again, &BOTH).unwrap();
    // A restored store in the place of the original is recognised.
    let (mine, theirs) = (dir.path().join("one.db"), again.join("one.db"));
    let whole = std::fs::read(&mine).unwrap();
    std::fs::copy(&theirs, &mine).unwrap();
    assert!(matches!(check_stores(dir.path(), &BOTH), Err(OpenError::WrongStore { .. })));
    std::fs::write(&mine, &whole).unwrap();

    put(&open(dir.path(), "one.db").unwrap(), 5);
    std::fs::write(&mine, &whole).unwrap();
    let refused = |said: &str| {
        let error = backup(dir.path(), &out.path().join("second.tar"), &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("one.db") && error.contains(said) && error.contains("accept-loss"), "{error}");
    };
    refused("has lost changes");
    std::fs::remove_file(&mine).unwrap();
    refused("missing or empty");
}

/// A read-only mount, which only root can create; unmounted on drop.
#[cfg(target_os = "linux")]
struct ReadOnly(PathBuf);

#[cfg(target_os = "linux")]
impl ReadOnly {
    fn mount(dir: &Path) -> Option<ReadOnly> {
        let mount = |args: &[&str]| {
            let done = std::process::Command::new("mount").args(args).arg(dir).output();
            done.is_ok_and(|done| done.status.success())
        };
        let path = dir.to_str().unwrap();
        if !mount(&["--bind", path]) {
            eprintln!("skipped: a disk that can only be read is made by root alone");
            return None;
        }
        let read_only = ReadOnly(dir.to_owned());
        mount(&["-o", "remount,bind,ro"]).then_some(read_only)
    }
}

#[cfg(target_os = "linux")]
impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_backup_can_be_made_from_a_disk_that_can_only_be_read() {
    // Closed in order, and as a kill leaves it: part of the data is only in the log.
    for has_log in [false, true] {
        let dir = two_stores();
        let log = dir.path().join("one.db-wal");
        if has_log {
            let store = open(dir.path(), "one.db").unwrap();
            put(&store, 10);
            let (file, wal) = (std::fs::read(dir.path().join("one.db")).unwrap(), std::fs::read(&log).unwrap());
            store.close();
            std::fs::write(dir.path().join("one.db"), file).unwrap();
            std::fs::write(&log, wal).unwrap();
        }
        let names = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
        let before = names(dir.path());
        let out = tempfile::tempdir().unwrap();
        let archive = out.path().join("out.tar");
        {
            let Some(_disk) = ReadOnly::mount(dir.path()) else { return };
            backup(dir.path(), &archive, &mut |_, _| {}).unwrap();
            assert_eq!(names(dir.path()), before);
        }
        assert_eq!(names(out.path()), 1, "nothing else is left");
        let again = out.path().join("again");
        restore(&archive, &again).unwrap();
        let expected: &[i64] = if has_log { &[1, 10] } else { &[1] };
        assert_eq!(keys(&open(&again, "one.db").unwrap()), expected);
        assert_eq!(keys(&open(&again, "two.db").unwrap()), [2]);
    }
}

#[test]
fn a_mark_that_was_there_has_to_be_there() {
    let dir = two_stores();
    let path = dir.path().join("one.db");
    let marked = || Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().requires_watermark;
    assert!(marked() && path.with_file_name("one.db-mark").exists());
    // Lost with the log, as when only the databases were copied while they were written to.
    std::fs::remove_file(path.with_file_name("one.db-mark")).unwrap();
    for _ in 0..2 {
        let refused = check_stores(dir.path(), &BOTH).unwrap_err();
        assert!(matches!(&refused, OpenError::MissingWatermark { path } if path.ends_with("one.db")), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("one.db-mark is missing") && text.contains("accept-loss one.db --data-dir"), "{text}");
        assert!(matches!(open(dir.path(), "one.db"), Err(OpenError::MissingWatermark { .. })));
        assert!(!path.with_file_name("one.db-mark").exists(), "nothing is put in its place");
    }
    // Accepting the loss keeps the store, and the next start creates the watermark again.
    assert_eq!(accept_loss(dir.path(), "one.db", &BOTH, &[]).unwrap(), AcceptedLoss::StoreKept(None));
    assert!(!marked());
    check_stores(dir.path(), &BOTH).unwrap();
    let store = open(dir.path(), "one.db").unwrap();
    assert_eq!(keys(&store), [1]);
    store.close();
    assert!(marked() && path.with_file_name("one.db-mark").exists());
    assert!(matches!(accept_loss(dir.path(), "one.db", &BOTH, &[]), Err(AcceptLossError::NothingLost(_))));
    // A manifest of the previous version said nothing about watermarks: a missing one then means nothing.
    Manifest::update(dir.path(), |manifest| manifest.set_requires_watermark("one.db", false)).unwrap();
    std::fs::remove_file(path.with_file_name("one.db-mark")).unwrap();
    open(dir.path(), "one.db").unwrap().close();
    assert!(marked());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let dir = two_stores();
    for file in ["one.db-mark", "manifest.json"] {
        let path = dir.path().join(file);
        std::fs::remove_file(&path).unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid, zero-terminated C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    }
    let refused = check_stores(dir.path(), &BOTH).unwrap_err().to_string();
    assert!(refused.contains("manifest.json") && refused.contains("it is no file"), "{refused}");
    let id = super::manifest::new_store_id();
    assert_eq!(watermark::read(&dir.path().join("one.db"), &id), StoredWatermark::Unreadable);
}
