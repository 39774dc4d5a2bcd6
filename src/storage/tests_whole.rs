//! What a store's folder must hold, on real files: each state that a kill may leave, and each loss.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::backup::{AcceptError, Accepted, accept_loss, backup, restore};
use super::manifest::{Manifest, Stage};
use super::*;

const TABLES: &str = "CREATE TABLE kept (k BIGINT PRIMARY KEY)";
const ONE: Expected<'_> = Expected { file: "one.db", migrations: &[TABLES], companions: &["two.db"] };
const TWO: Expected<'_> = Expected { file: "two.db", migrations: &[TABLES], companions: &["one.db"] };
const BOTH: [Expected<'_>; 2] = [ONE, TWO];

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

fn stage(dir: &Path, file: &str) -> Option<Stage> {
    Manifest::read(dir).unwrap()?.entry(file).map(|entry| entry.state)
}

fn number(dir: &Path, file: &str) -> u64 {
    let connection = rusqlite::Connection::open(dir.join(file)).unwrap();
    whole::Identity::of(&connection).unwrap().unwrap().number
}

/// A folder with two stores that have ended in order.
fn two() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    examine(dir.path(), &BOTH).unwrap();
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
    examine(dir.path(), &BOTH).unwrap();
    assert_eq!((stage(dir.path(), "one.db"), stage(dir.path(), "two.db")), (Some(Stage::Making), Some(Stage::Making)));
    // Planned and not there; there and empty; there without its id; there with its id and not yet kept.
    examine(dir.path(), &BOTH).unwrap();
    std::fs::write(dir.path().join("one.db"), "").unwrap();
    examine(dir.path(), &BOTH).unwrap();
    let store = open(dir.path(), "one.db").unwrap();
    put(&store, 1);
    store.close();
    assert_eq!(stage(dir.path(), "one.db"), Some(Stage::Kept));
    let id = Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().id.clone();
    for has_id in [true, false] {
        Manifest::update(dir.path(), |manifest| manifest.set("one.db", &id, Stage::Making)).unwrap();
        if !has_id {
            let connection = rusqlite::Connection::open(dir.path().join("one.db")).unwrap();
            connection.execute_batch("DROP TABLE store_identity").unwrap();
            std::fs::remove_file(dir.path().join("one.db-mark")).unwrap();
        }
        examine(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), [1]);
        assert_eq!(stage(dir.path(), "one.db"), Some(Stage::Kept));
    }
}

#[test]
fn nothing_is_planned_while_anything_is_missing() {
    let dir = two();
    std::fs::remove_file(dir.path().join("two.db")).unwrap();
    let three = Expected { file: "three.db", migrations: &[TABLES], companions: &[] };
    let error = examine(dir.path(), &[three, ONE, TWO]).unwrap_err();
    assert!(matches!(&error, OpenError::Missing { path, .. } if path.ends_with("two.db")), "{error}");
    assert_eq!(stage(dir.path(), "three.db"), None);
    assert!(matches!(open(dir.path(), "two.db"), Err(OpenError::Missing { .. })));
    assert!(!dir.path().join("two.db").exists());
}

#[test]
fn the_number_counts_once_a_second_and_at_the_end_and_the_mark_follows() {
    let dir = two();
    let path = dir.path().join("one.db");
    let id = Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().id.clone();
    let before = number(dir.path(), "one.db");
    assert_eq!(mark::read(&path, &id), mark::Found::Number(before), "written at an orderly end");
    let store = open(dir.path(), "one.db").unwrap();
    let began = std::time::Instant::now();
    for k in 100..400 {
        put(&store, k);
    }
    // One at once, and one for what came after it, whether or not anything comes any more.
    let seen = loop {
        let mark::Found::Number(seen) = mark::read(&path, &id) else { panic!("there is a mark") };
        let counted = store.read(|reader| reader.first("SELECT number FROM store_identity", &[], |row| row.uint(0)));
        assert!(seen <= counted.unwrap_or_else(|error: StoreError| panic!("{error}")).unwrap(), "ahead of the store");
        if seen >= before + 2 {
            break seen;
        }
        std::thread::yield_now();
    };
    assert!(seen <= before + 2 + began.elapsed().as_secs(), "{seen}: not with each change");
    store.close();
    assert_eq!(mark::read(&path, &id), mark::Found::Number(number(dir.path(), "one.db")));
}

#[test]
fn a_store_of_an_earlier_version_is_taken_in_wherever_that_is_cut_off() {
    for cut in 0..3 {
        let dir = two();
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
            manifest.set("one.db", &id, Stage::Adopting);
        }
        manifest.write(dir.path()).unwrap();
        if cut > 0 {
            // It was there, and it is not new.
            let aside = dir.path().join("aside");
            std::fs::rename(dir.path().join("one.db"), &aside).unwrap();
            assert!(matches!(examine(dir.path(), &BOTH), Err(OpenError::Missing { .. })));
            std::fs::rename(&aside, dir.path().join("one.db")).unwrap();
        }
        examine(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), [1]);
        assert_eq!(stage(dir.path(), "one.db"), Some(Stage::Kept));
    }
}

#[test]
fn giving_up_may_be_cut_off_anywhere_and_is_done_again() {
    // After how many of its steps it was cut off: none, the file, its log.
    for steps in 0..3 {
        let dir = two();
        let path = dir.path().join("one.db");
        std::fs::write(&path, "damaged").unwrap();
        std::fs::write(dir.path().join("one.db-wal"), "its log").unwrap();
        assert!(examine(dir.path(), &BOTH).unwrap_err().is_loss());
        if steps > 0 {
            std::fs::rename(&path, dir.path().join("one.db.lost-1")).unwrap();
        }
        if steps > 1 {
            std::fs::rename(dir.path().join("one.db-wal"), dir.path().join("one.db-wal.lost-1")).unwrap();
        }
        // As long as it is not done, nothing is made.
        assert!(examine(dir.path(), &BOTH).unwrap_err().is_loss(), "{steps}");
        assert!(open(dir.path(), "one.db").unwrap_err().is_loss(), "{steps}");
        accept_loss(dir.path(), "one.db", &BOTH, &[]).unwrap();
        let left = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!((left("one.db.lost-1"), left("one.db-wal.lost-1")), (b"damaged".to_vec(), b"its log".to_vec()));
        examine(dir.path(), &BOTH).unwrap();
        assert_eq!(keys(&open(dir.path(), "one.db").unwrap()), Vec::<i64>::new());
        assert!(matches!(accept_loss(dir.path(), "one.db", &BOTH, &[]), Err(AcceptError::Whole(_))));
    }
}

#[test]
fn what_vouched_for_a_lost_store_goes_with_it() {
    let dir = two();
    std::fs::write(dir.path().join("a.key"), "secret").unwrap();
    std::fs::remove_file(dir.path().join("two.db")).unwrap();
    let done = accept_loss(dir.path(), "two.db", &BOTH, &["a.key"]).unwrap();
    assert_eq!(done, Accepted::Anew(vec![dir.path().join("two.db-mark.lost-1")]));
    assert!(!dir.path().join("a.key").exists() && dir.path().join("a.key.lost-1").exists());
}

#[test]
fn a_value_that_nobody_here_writes_is_told_as_damage_with_its_file() {
    let dir = two();
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
    let dir = two();
    let store = open(dir.path(), "one.db").unwrap();
    let error: StoreError = store.write(|tx| tx.execute("DELETE FROM store_identity", &[]).map(drop)).unwrap_err();
    assert!(matches!(&error, StoreError::Corrupt(said) if said.contains("one.db: 0 rows name")), "{error}");
}

#[cfg(unix)]
#[test]
fn damage_is_named_while_the_store_runs() {
    let dir = two();
    let store = open(dir.path(), "one.db").unwrap();
    store
        .write(|tx| {
            (10..5000).try_for_each(|k| tx.execute("INSERT INTO kept (k) VALUES ($1)", &[k.into()]).map(|_| ()))
        })
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
    store.close();
    let store = open(dir.path(), "one.db").unwrap();
    // Past the pages that opening it has read. Written through a handle that is not closed: closing one would end
    // the locks that SQLite has on the file.
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
    let dir = two();
    let out = tempfile::tempdir().unwrap();
    let first = out.path().join("first.tar");
    backup(dir.path(), &first, &mut |_, _| {}).unwrap();
    let again = out.path().join("again");
    restore(&first, &again).unwrap();
    examine(&again, &BOTH).unwrap();
    // One of them in the place of another is found out.
    let (mine, theirs) = (dir.path().join("one.db"), again.join("one.db"));
    let whole = std::fs::read(&mine).unwrap();
    std::fs::copy(&theirs, &mine).unwrap();
    assert!(matches!(examine(dir.path(), &BOTH), Err(OpenError::Stranger { .. })));
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

/// A folder whose disk can only be read, which only root can make; gone when dropped.
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
    // Ended in order, and as a kill leaves it: a part of it is in its log alone.
    for has_log in [false, true] {
        let dir = two();
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
    let dir = two();
    let path = dir.path().join("one.db");
    let marked = || Manifest::read(dir.path()).unwrap().unwrap().entry("one.db").unwrap().marked;
    assert!(marked() && path.with_file_name("one.db-mark").exists());
    // Gone with the log, as where the stores alone were copied while they were written to.
    std::fs::remove_file(path.with_file_name("one.db-mark")).unwrap();
    for _ in 0..2 {
        let refused = examine(dir.path(), &BOTH).unwrap_err();
        assert!(matches!(&refused, OpenError::Unmarked { path } if path.ends_with("one.db")), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("one.db-mark is missing") && text.contains("accept-loss one.db --data-dir"), "{text}");
        assert!(matches!(open(dir.path(), "one.db"), Err(OpenError::Unmarked { .. })));
        assert!(!path.with_file_name("one.db-mark").exists(), "nothing is put in its place");
    }
    // Who accepts it keeps what there is, and the next start makes the mark anew.
    assert_eq!(accept_loss(dir.path(), "one.db", &BOTH, &[]).unwrap(), Accepted::Kept(None));
    assert!(!marked());
    examine(dir.path(), &BOTH).unwrap();
    let store = open(dir.path(), "one.db").unwrap();
    assert_eq!(keys(&store), [1]);
    store.close();
    assert!(marked() && path.with_file_name("one.db-mark").exists());
    assert!(matches!(accept_loss(dir.path(), "one.db", &BOTH, &[]), Err(AcceptError::Whole(_))));
    // A manifest of the version before said nothing of marks: then its absence says nothing.
    Manifest::update(dir.path(), |manifest| manifest.set_marked("one.db", false)).unwrap();
    std::fs::remove_file(path.with_file_name("one.db-mark")).unwrap();
    open(dir.path(), "one.db").unwrap().close();
    assert!(marked());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let dir = two();
    for file in ["one.db-mark", "manifest.json"] {
        let path = dir.path().join(file);
        std::fs::remove_file(&path).unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends in a zero byte, and a plain number.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    }
    let refused = examine(dir.path(), &BOTH).unwrap_err().to_string();
    assert!(refused.contains("manifest.json") && refused.contains("it is no file"), "{refused}");
    let id = super::manifest::new_id();
    assert_eq!(mark::read(&dir.path().join("one.db"), &id), mark::Found::Unreadable);
}
