//! Backup and restore, on real files and beside a busy server.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use tempfile::TempDir;

use super::backup::{BackupError, DataComponent, backup, first_id_range, restore};
use super::lock::DataDirLock;
use super::*;

const TABLES: &str = "CREATE TABLE moved (k BIGINT PRIMARY KEY, filler TEXT NOT NULL)";

struct Home {
    dir: TempDir,
}

impl Home {
    /// A data dir with two databases, a key in a folder, and files that a backup leaves out.
    fn new() -> Home {
        let home = Home { dir: tempfile::tempdir().unwrap() };
        let tls = home.data().join("tls");
        files::create_private_dir(&tls).unwrap();
        std::fs::write(tls.join("key.pem"), "secret").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(tls.join("key.pem"), PermissionsExt::from_mode(0o400)).unwrap();
        }
        std::fs::write(home.data().join("large.bin"), vec![7; 3 << 20]).unwrap();
        std::fs::write(home.data().join("server.log"), "noise").unwrap();
        drop((home.open("one.db"), home.open("two.db")));
        home
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.tar")
    }

    fn restored(&self) -> PathBuf {
        self.dir.path().join("again")
    }

    fn open(&self, name: &str) -> Store {
        Store::open(&self.data().join(name), &[TABLES]).unwrap()
    }
}

fn put(store: &Store, k: i64) {
    store
        .write(move |tx| {
            let filler = "f".repeat(500);
            tx.execute("INSERT INTO moved VALUES ($1, $2)", &[k.into(), (&filler).into()]).map(|_| ())
        })
        .unwrap_or_else(|error: StoreError| panic!("{error}"));
}

fn keys(store: &Store) -> Vec<i64> {
    store.read(|reader| reader.all("SELECT k FROM moved ORDER BY k", &[], |row| row.int(0))).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_beside_busy_writers_is_one_instant_over_two_files() {
    let home = Home::new();
    let (one, two) = (home.open("one.db"), home.open("two.db"));
    let _running = DataDirLock::acquire(&home.data()).unwrap();
    let (stop, written) = (AtomicBool::new(false), AtomicI64::new(0));
    let backups = 5;
    thread::scope(|scope| {
        scope.spawn(|| {
            // Each number goes into the first file, then into the second: at no instant does the second hold what the
            // first does not, nor does it lack more than the newest.
            for k in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                put(&one, k);
                put(&two, k);
                written.store(k + 1, Ordering::Release);
            }
        });
        for number in 0..backups {
            let at_least = written.load(Ordering::Acquire) + 20;
            while written.load(Ordering::Acquire) < at_least {
                thread::yield_now();
            }
            let out = home.dir.path().join(format!("out{number}.tar"));
            let mut last = (0, 0);
            backup(&home.data(), &out, &mut |done, total| {
                assert!(done >= last.0 && done <= total);
                last = (done, total);
            })
            .unwrap();
            assert!(last.0 > 0 && last.0 == last.1, "{last:?}");
            let again = home.dir.path().join(format!("again{number}"));
            restore(&out, &again).unwrap();
            let ones = keys(&Store::open(&again.join("one.db"), &[TABLES]).unwrap());
            let twos = keys(&Store::open(&again.join("two.db"), &[TABLES]).unwrap());
            assert!(ones.len() as i64 >= at_least, "what was acknowledged before is in it");
            assert!(ones.starts_with(&twos) && ones.len() - twos.len() <= 1, "{} {}", ones.len(), twos.len());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_is_restored_is_what_was_there_and_says_so() {
    let home = Home::new();
    put(&home.open("one.db"), 1);
    backup(&home.data(), &home.out(), &mut |_, _| {}).unwrap();
    assert_eq!(names(home.dir.path()), ["data", "out.tar"], "nothing else is left");
    restore(&home.out(), &home.restored()).unwrap();
    let again = home.restored();
    let markers = ["restored-customer", "restored-peer", "restored-product", "restored-trade"];
    let whole = [&["large.bin", "lock", "manifest.json", "one.db"][..], &markers, &["tls", "two.db"]];
    assert_eq!(names(&again), whole.concat());
    assert_eq!(std::fs::read(again.join("tls/key.pem")).unwrap(), b"secret");
    assert_eq!(std::fs::read(again.join("large.bin")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(keys(&Store::open(&again.join("one.db"), &[TABLES]).unwrap()), [1]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&home.out()), mode(&again)), (0o600, 0o700));
        assert_eq!((mode(&again.join("tls/key.pem")), mode(&again.join("one.db"))), (0o600, 0o600));
        assert_eq!(mode(&again.join("tls")), 0o700);
    }
    DataDirLock::acquire(&again).unwrap();
    let id_ranges = |dir: &Path| {
        <[u64; 4]>::try_from(
            DataComponent::ALL.iter().map(|component| first_id_range(dir, *component).unwrap()).collect::<Vec<_>>(),
        )
        .unwrap()
    };
    assert_eq!((id_ranges(&again), id_ranges(&home.data())), ([80; 4], [0; 4]));
    // A marker of an earlier version contains no range.
    std::fs::write(again.join("restored-product"), "").unwrap();
    assert_eq!(id_ranges(&again), [80; 4]);
    // A backup of restored data: its numbers have moved to a new range before, and do so again.
    backup(&again, &home.dir.path().join("second.tar"), &mut |_, _| {}).unwrap();
    let third = home.dir.path().join("third");
    restore(&home.dir.path().join("second.tar"), &third).unwrap();
    assert_eq!(id_ranges(&third), [96; 4]);
    assert_eq!(keys(&Store::open(&third.join("one.db"), &[TABLES]).unwrap()), [1]);
}

#[test]
fn nothing_is_overwritten() {
    let home = Home::new();
    std::fs::write(home.out(), "mine").unwrap();
    let error = backup(&home.data(), &home.out(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, BackupError::Exists(_)), "{error}");
    assert_eq!(std::fs::read(home.out()).unwrap(), b"mine");
    std::fs::remove_file(home.out()).unwrap();

    let inside = home.data().join("tls").join("out.tar");
    assert!(matches!(backup(&home.data(), &inside, &mut |_, _| {}), Err(BackupError::InsideDataDir(_))));
    let empty = home.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(matches!(backup(&empty, &home.out(), &mut |_, _| {}), Err(BackupError::NoDatabase(_))));

    backup(&home.data(), &home.out(), &mut |_, _| {}).unwrap();
    let before = names(&home.data());
    assert!(matches!(restore(&home.out(), &home.data()), Err(BackupError::NotEmpty(_))));
    assert_eq!(names(&home.data()), before);
    restore(&home.out(), &empty).unwrap();
}

/// Restores an archive that must be refused; no trace of it may be left.
fn refused(home: &Home, archive: &[u8], expected: &str) {
    std::fs::write(home.out(), archive).unwrap();
    let error = restore(&home.out(), &home.restored()).unwrap_err().to_string();
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    assert!(!home.restored().exists());
    let there = home.dir.path().join("there");
    std::fs::create_dir(&there).unwrap();
    restore(&home.out(), &there).unwrap_err();
    assert!(names(&there).is_empty());
    std::fs::remove_dir(&there).unwrap();
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let home = Home::new();
    backup(&home.data(), &home.out(), &mut |_, _| {}).unwrap();
    let good = std::fs::read(home.out()).unwrap();
    for length in [0, 100, 512, good.len() / 3, good.len() / 2, good.len() - 3000] {
        std::fs::write(home.out(), &good[..length]).unwrap();
        let error = restore(&home.out(), &home.restored()).unwrap_err();
        assert!(matches!(error, BackupError::BadArchive { .. }), "{length}: {error}");
        assert!(!home.restored().exists());
    }
    let mut flipped = good.clone();
    flipped[2 << 20] ^= 1;
    refused(&home, &flipped, "\"large.bin\" is damaged");
    refused(&home, &vec![b'x'; 4096], "not a whole backup");
}

#[test]
fn of_what_is_no_archive_of_ours_nothing_is_quoted() {
    let home = Home::new();
    let secret = "s3cret";
    let text = format!("{secret}:\u{1b}[2J\n").repeat(200);
    let json = format!("{{\"{secret}\": \"{secret}\"}}");
    let mut other = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(json.len() as u64);
    other.append_data(&mut header, super::archive::CONTENTS_FILE, json.as_bytes()).unwrap();
    let other = other.into_inner().unwrap();
    let links = archive_with(secret, tar::EntryType::Symlink, b"");
    let mut cut = archive_with(secret, tar::EntryType::Regular, &[b'x'; 4096]);
    cut.truncate(1024);
    for archive in [text.as_bytes(), &other, &links, &cut] {
        std::fs::write(home.out(), archive).unwrap();
        let error = restore(&home.out(), &home.restored()).unwrap_err().to_string();
        assert!(error.contains("is not a whole backup: ") && !error.contains(secret), "{error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    let error = restore(home.dir.path(), &home.restored()).unwrap_err().to_string();
    assert!(error.contains("directory"), "{error}");
}

/// A disk of 1 MiB, which only root can create; unmounted on drop.
#[cfg(target_os = "linux")]
struct SmallDisk<'p>(&'p Path);

#[cfg(target_os = "linux")]
impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_without_room_for_the_archive_is_named_by_the_archive() {
    let home = Home::new();
    let small = home.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        eprintln!("skipped: a small disk can only be made as root");
        return;
    }
    let _disk = SmallDisk(&small);
    let out = small.join("out.tar");
    // The large file does not fit; then the copy of a database does not.
    for large_file in [true, false] {
        if !large_file {
            std::fs::remove_file(home.data().join("large.bin")).unwrap();
            let store = home.open("one.db");
            store
                .write(|tx| {
                    let filler = "f".repeat(500);
                    (0..4_000).try_for_each(|k| {
                        tx.execute("INSERT INTO moved VALUES ($1, $2)", &[k.into(), (&filler).into()]).map(|_| ())
                    })
                })
                .unwrap_or_else(|error: StoreError| panic!("{error}"));
        }
        let error = backup(&home.data(), &out, &mut |_, _| {}).unwrap_err();
        assert!(matches!(&error, BackupError::DiskFull(path) if *path == out), "{error}");
        assert!(names(&small).is_empty(), "{:?}", names(&small));
    }
}

/// An archive with one entry and a fitting table of contents.
fn archive_with(name: &str, kind: tar::EntryType, bytes: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o4777);
    // Bypasses the checks of the crate that writes the archive.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
    let sha256 = crate::model::secret::hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    let files = serde_json::json!([{ "name": name, "size": bytes.len(), "sha256": sha256 }]);
    let manifest = serde_json::json!({ "format": 1, "files": files }).to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    tar.append_data(&mut header, super::archive::CONTENTS_FILE, manifest.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn archives_that_reach_out_are_refused() {
    let home = Home::new();
    let plain = tar::EntryType::Regular;
    for name in ["../evil", "/evil", "a/../../evil", "lock", "restored-product", "x.db-wal", ".restoring/x"] {
        refused(&home, &archive_with(name, plain, b"x"), "what no backup of this program holds");
    }
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Directory, tar::EntryType::Fifo] {
        refused(&home, &archive_with("x", kind, b""), "what no backup of this program holds");
    }
    refused(&home, &archive_with("x.db", plain, &[b'g'; 4096]), "not a database");
    assert!(!home.dir.path().join("evil").exists());
    std::fs::write(home.out(), archive_with("ok", plain, b"x")).unwrap();
    restore(&home.out(), &home.restored()).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(home.restored().join("ok")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "an archive does not say who may read");
    }
}
