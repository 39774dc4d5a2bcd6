//! Opening a file: migrations, damage, and files that are not a store's.

use super::*;

#[test]
fn migrations_run_once_each_and_a_failing_one_leaves_the_file_as_it_was() {
    let home = Home::new();
    home.open().write(|tx| put(tx, 1)).unwrap();
    let second = "ALTER TABLE kept ADD COLUMN extra TEXT; UPDATE kept SET extra = 'new'";
    let broken = "CREATE TABLE more (k BIGINT); INSERT INTO nowhere VALUES (1)";
    let error = Store::open(&home.path(), &[TABLES, second, broken]).unwrap_err();
    assert!(matches!(error, OpenError::Migration { version: 3, .. }), "{error}");
    let store = Store::open(&home.path(), &[TABLES, second, "CREATE TABLE more (k BIGINT)"]).unwrap();
    let extra = store.read(|reader| reader.first("SELECT extra FROM kept", &[], |row| row.text(0).map(str::to_owned)));
    assert_eq!(extra, Ok::<_, StoreError>(Some("new".to_owned())));
    store.close();
    let error = Store::open(&home.path(), &[TABLES]).unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 3, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer version") && !error.to_string().contains('\n'));
}

#[test]
fn a_disk_that_is_full_at_start_is_said_so() {
    let home = Home::new();
    home.open().write(|tx| put(tx, 1)).unwrap();
    let large = "PRAGMA max_page_count = 12; CREATE TABLE large (x);
                 INSERT INTO large VALUES (zeroblob(1000000))";
    let error = Store::open(&home.path(), &[TABLES, large]).unwrap_err();
    assert!(matches!(error, OpenError::DiskFull { .. }), "{error}");
    assert_eq!(keys(&home.open()), [1]);
}

#[test]
fn what_is_no_store_is_left_alone() {
    let home = Home::new();
    std::fs::create_dir_all(home.path().parent().unwrap()).unwrap();
    let garbage = vec![b'g'; 8192];
    std::fs::write(home.path(), &garbage).unwrap();
    let error = Store::open(&home.path(), &[TABLES]).unwrap_err();
    assert!(matches!(error, OpenError::NotADatabase { .. }), "{error}");
    assert_eq!(std::fs::read(home.path()).unwrap(), garbage);
    assert_eq!(kept_beside(&home).len(), 1, "nothing was made beside it");

    std::fs::remove_file(home.path()).unwrap();
    rusqlite::Connection::open(home.path()).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(home.path()).unwrap();
    let error = Store::open(&home.path(), &[TABLES]).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read(home.path()).unwrap(), before);

    let folder = home.dir.path().join("folder.db");
    std::fs::create_dir(&folder).unwrap();
    assert!(Store::open(&folder, &[TABLES]).is_err());
    let below_a_file = home.path().join("x.db");
    assert!(Store::open(&below_a_file, &[TABLES]).is_err());
}

#[test]
fn a_damaged_page_is_found_and_left_as_it_is() {
    let home = Home::new();
    let store = home.open();
    store.write(|tx| (0..2000).try_for_each(|k| put(tx, k))).unwrap();
    store.close();
    let mut bytes = std::fs::read(home.path()).unwrap();
    let middle = bytes.len() / 4096 / 2 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(home.path(), &bytes).unwrap();
    let error = Store::open(&home.path(), &[TABLES]).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(std::fs::read(home.path()).unwrap(), bytes);
}

/// The files in the store's folder, except for the index of the log, which is scratch.
fn kept_beside(home: &Home) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(home.path().parent().unwrap()).unwrap().map(Result::unwrap);
    let kept = entries.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()));
    kept.filter(|(name, _)| !name.ends_with("-shm")).collect()
}

/// The file and its log as a killed process leaves them: the log has rows that the file lacks.
fn killed(home: &Home) {
    let store = home.open();
    store.write(|tx| (0..2000).try_for_each(|k| put(tx, k))).unwrap();
    store.close();
    let store = home.open();
    store.write(|tx| (2000..2300).try_for_each(|k| put(tx, k))).unwrap();
    let left = kept_beside(home);
    assert!(left.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()));
    store.close();
    for (name, bytes) in left {
        std::fs::write(home.path().with_file_name(name), bytes).unwrap();
    }
}

#[test]
fn a_damaged_file_keeps_its_log() {
    for (kept_of_3, said) in [(2, "damaged"), (1, "damaged"), (0, "its log beside it")] {
        let home = Home::new();
        killed(&home);
        let whole = std::fs::read(home.path()).unwrap();
        std::fs::write(home.path(), &whole[..whole.len() * kept_of_3 / 3]).unwrap();
        let before = kept_beside(&home);
        let looked = ReadOnlyStore::open(&home.path(), &[TABLES]).unwrap_err();
        let opened = Store::open(&home.path(), &[TABLES]).unwrap_err();
        for error in [looked, opened] {
            assert!(matches!(error, OpenError::Corrupt { .. }) && error.to_string().contains(said), "{error}");
        }
        assert!(kept_beside(&home) == before, "{kept_of_3}: something was changed");
    }
    // The file is gone, its log is not.
    let home = Home::new();
    killed(&home);
    std::fs::remove_file(home.path()).unwrap();
    let before = kept_beside(&home);
    assert!(matches!(Store::open(&home.path(), &[TABLES]), Err(OpenError::Corrupt { .. })));
    assert!(kept_beside(&home) == before);
}

#[test]
fn a_view_sees_all_and_changes_nothing() {
    let home = Home::new();
    killed(&home);
    let before = kept_beside(&home);
    let view = ReadOnlyStore::open(&home.path(), &[TABLES]).unwrap();
    let count = |reader: &dyn Reader| reader.first("SELECT COUNT(*) FROM kept", &[], |row| row.int(0));
    assert_eq!(view.read(count), Ok(Some(2300)), "with what is in the log alone");
    assert!(view.read(|_| Err::<(), _>(StoreError::Busy)).is_err());
    assert_eq!(view.read(count), Ok(Some(2300)));
    drop(view);
    assert!(kept_beside(&home) == before);
    home.open().close();
    drop(ReadOnlyStore::open(&home.path(), &[TABLES]).unwrap());
    let names: Vec<_> = kept_beside(&home).into_keys().collect();
    let beside = ["lock-manifest", "manifest.json", "test.db", "test.db-mark"];
    assert_eq!(names, beside, "of what was closed in order no log");
    // Beside the one who writes.
    let store = home.open();
    let view = ReadOnlyStore::open(&home.path(), &[TABLES]).unwrap();
    store.write(|tx| put(tx, 5000)).unwrap();
    assert_eq!(view.read(count), Ok(Some(2301)));
    store.close();
    drop(view);
    let error = ReadOnlyStore::open(&home.path(), &[TABLES, "CREATE TABLE more (k BIGINT)"]).unwrap_err();
    assert!(matches!(error, OpenError::OlderSchema { found: 1, known: 2, .. }), "{error}");
    assert_eq!(keys(&home.open()).len(), 2301);
}

#[cfg(unix)]
#[test]
fn a_log_that_became_read_only_with_its_file_can_be_written_again() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    killed(&home);
    let log = super::files::with_suffix(&home.path(), "-wal");
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o400)).unwrap();
    drop(ReadOnlyStore::open(&home.path(), &[TABLES]).unwrap());
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o400)).unwrap();
    let store = home.open();
    store.write(|tx| put(tx, 5000)).unwrap();
    assert_eq!(keys(&store).len(), 2301);
}

#[cfg(unix)]
#[test]
fn files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let store = home.open();
    store.write(|tx| put(tx, 1)).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(home.path().parent().unwrap()), 0o700);
    for entry in std::fs::read_dir(home.path().parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    store.close();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(home.open());
    assert_eq!(mode(&home.path()), 0o600);
}
