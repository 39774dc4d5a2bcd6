use std::fs;
use std::io::{ErrorKind, Write};

use super::*;
use crate::share::pieces::{blake3_digest, digests_root};
use crate::share::wire::Seconds;

const MIB: u64 = 1 << 20;

fn spec(dir: &Path, size: u64, piece_list: &[Digest]) -> FetchSpec {
    FetchSpec {
        id: "f-1".to_owned(),
        fname: FileName::new("a file.bin").unwrap(),
        hostname: "ann".to_owned(),
        save_path: dir.join("here.bin"),
        content: ContentIdentity {
            size,
            modified: Seconds::new(1_795_285_383.925_727_1).unwrap(),
            blake3: Some(blake3_digest(b"whole")),
            pieces_root: Some(digests_root(piece_list)),
        },
        is_owner_named: false,
        is_paused: false,
    }
}

fn digests(count: u8) -> Vec<Digest> {
    (0..count).map(|i| blake3_digest(&[i])).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The fetches that a start would find in the folder.
fn list_interrupted(dir: &Path) -> Vec<FetchSpec> {
    let id = |name: &String| Some(name.strip_prefix(FILE_PREFIX)?.strip_suffix(JOURNAL_SUFFIX)?.to_owned());
    let ids = names(dir).iter().filter_map(id).collect::<Vec<_>>();
    ids.iter().filter_map(|id| find_interrupted(dir, id).ok().flatten()).collect()
}

#[test]
fn what_is_noted_is_known_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let piece_list = digests(5);
    let spec = spec(dir.path(), 4 * MIB + 1, &piece_list);
    let mut prepared = prepare(&spec).unwrap();
    assert_eq!((prepared.piece_list, prepared.synced_pieces), (None, vec![false; 5]));
    assert_eq!(list_interrupted(dir.path()), std::slice::from_ref(&spec));
    prepared.journal.set_list(&piece_list).unwrap();
    prepared.journal.append(&mut [3, 1, 0]).unwrap();
    prepared.journal.set_list(&piece_list).unwrap();
    drop((prepared.journal, prepared.part));

    let mut again = prepare(&spec).unwrap();
    assert_eq!(
        (again.piece_list.as_ref(), &again.synced_pieces[..]),
        (Some(&piece_list), &[true, true, false, true, false][..])
    );
    assert_eq!(list_interrupted(dir.path()), std::slice::from_ref(&spec));
    again.journal.append(&mut [2]).unwrap();
    drop((again.journal, again.part));

    // A torn or corrupt record is ignored, and records written after it count.
    let path = dir.path().join(".p2s2-f-1.journal");
    for garbage in [&[0_u8; 7][..], &[1; 16], &[0; 40]] {
        let before = fs::read(&path).unwrap();
        fs::write(&path, [&before, garbage].concat()).unwrap();
        let again = prepare(&spec).unwrap();
        assert_eq!(again.synced_pieces, [true, true, true, true, false]);
        drop(again);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let mut last = prepare(&spec).unwrap();
    // Nor does a record that was torn by a full disk spoil those after it.
    File::options().append(true).open(&path).unwrap().write_all(&[0; 7]).unwrap();
    last.journal.append(&mut [4]).unwrap();
    assert_eq!(prepare(&spec).unwrap().synced_pieces, [true; 5]);
    last.part.as_ref().unwrap().sync().unwrap();
    last.journal.finish(last.part.as_deref()).unwrap();
    assert_eq!(names(dir.path()), ["here.bin"]);
    assert_eq!(fs::metadata(&spec.save_path).unwrap().len(), 4 * MIB + 1);
    assert!(list_interrupted(dir.path()).is_empty());
}

#[test]
fn another_content_under_the_same_id_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = spec(dir.path(), 2 * MIB, &digests(2));
    let mut prepared = prepare(&first).unwrap();
    prepared.journal.set_list(&digests(2)).unwrap();
    prepared.journal.append(&mut [0]).unwrap();
    drop(prepared);
    let other = FetchSpec { content: ContentIdentity { size: 3 * MIB, ..first.content }, ..first.clone() };
    let prepared = prepare(&other).unwrap();
    assert_eq!((prepared.piece_list, prepared.synced_pieces), (None, vec![false; 3]));
    assert_eq!(list_interrupted(dir.path()), [other]);
    prepared.journal.discard().unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_part_that_is_gone_or_cut_short_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 2 * MIB, &digests(2));
    for is_gone in [true, false] {
        let mut prepared = prepare(&spec).unwrap();
        prepared.journal.set_list(&digests(2)).unwrap();
        prepared.journal.append(&mut [0, 1]).unwrap();
        drop(prepared);
        let part = dir.path().join(".p2s2-f-1.part");
        if is_gone {
            fs::remove_file(&part).unwrap();
        } else {
            File::options().write(true).open(&part).unwrap().set_len(MIB).unwrap();
        }
        assert_eq!(prepare(&spec).unwrap().synced_pieces, [false, false]);
    }
}

#[test]
fn a_file_that_came_to_its_place_just_before_the_crash_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 2 * MIB, &digests(2));
    let mut prepared = prepare(&spec).unwrap();
    prepared.journal.set_list(&digests(2)).unwrap();
    prepared.journal.append(&mut [0, 1]).unwrap();
    drop(prepared);
    let part = dir.path().join(".p2s2-f-1.part");
    // Between link and unlink, on a system that has no exclusive rename.
    fs::hard_link(&part, &spec.save_path).unwrap();
    let prepared = prepare(&spec).unwrap();
    DirHandle::open(dir.path()).unwrap().link_exclusively(".p2s2-f-1.part", "here.bin").unwrap();
    drop(prepared);
    // Between that and the journal's end.
    let prepared = prepare(&spec).unwrap();
    assert!(prepared.part.is_none() && prepared.synced_pieces == [true, true]);
    prepared.journal.finish(None).unwrap();
    assert_eq!(names(dir.path()), ["here.bin"]);
}

#[test]
fn no_file_is_ever_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 5, &digests(1));
    fs::write(&spec.save_path, "mine").unwrap();
    assert_eq!(prepare(&spec).unwrap_err().to_string(), format!("{} exists already", spec.save_path.display()));
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let held = DirHandle::open(dir.path()).unwrap();
    for how in [DirHandle::rename_exclusively, DirHandle::link_exclusively] {
        fs::write(&from, "theirs").unwrap();
        assert_eq!(how(&held, "from", "here.bin").unwrap_err().kind(), ErrorKind::AlreadyExists);
        how(&held, "from", "to").unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"theirs");
        fs::remove_file(&to).unwrap();
    }
    assert_eq!(fs::read(&spec.save_path).unwrap(), b"mine");
    assert_eq!(names(dir.path()), ["from", "here.bin"].map(str::to_owned)[1..]);
}

#[test]
fn specs_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let valid = spec(dir.path(), 5, &digests(1));
    for id in ["", "a/b", "..", "a b", &"x".repeat(65)] {
        assert!(
            matches!(prepare(&FetchSpec { id: id.to_owned(), ..valid.clone() }), Err(StartFetchError::InvalidId)),
            "{id}"
        );
    }
    let no_name = FetchSpec { save_path: dir.path().join(".."), ..valid.clone() };
    assert!(matches!(prepare(&no_name), Err(StartFetchError::InvalidSavePath(_))));
    let no_folder = FetchSpec { save_path: dir.path().join("none").join("x"), ..valid.clone() };
    assert!(matches!(prepare(&no_folder), Err(StartFetchError::Io { .. })));
    let too_large = FetchSpec { content: ContentIdentity { size: FILE_SIZE_MAX + 1, ..valid.content }, ..valid };
    assert!(matches!(prepare(&too_large), Err(StartFetchError::TooLarge(_))));
    assert!(names(dir.path()).is_empty());
    // Files that are not journals are left alone.
    fs::write(dir.path().join(".p2s2-x.journal"), "{}\n").unwrap();
    fs::write(dir.path().join(".p2s2-y.journal"), "").unwrap();
    assert!(list_interrupted(dir.path()).is_empty());
    assert_eq!(find_interrupted(&dir.path().join("none"), "x").unwrap(), None);
}

#[test]
fn a_piece_is_written_by_whoever_was_asked_last() {
    let dir = tempfile::tempdir().unwrap();
    let part = PartFile::create(&DirHandle::open(dir.path()).unwrap(), "part", 8, 2).unwrap();
    assert!(part.claim(0, 1) && part.write(0, 1, b"slow", 0).unwrap());
    assert!(part.claim(0, 2) && part.write(0, 2, b"fast", 0).unwrap());
    assert!(!part.write(0, 1, b"SLOW", 0).unwrap() && !part.finish_piece(0, 1) && !part.claim(0, 1));
    assert!(part.finish_piece(0, 2));
    for token in [1, 2, 3] {
        assert!(!part.claim(0, token) && !part.write(0, token, b"late", 0).unwrap(), "{token}");
    }
    assert!(part.claim(1, 1), "each piece has its own turns");
    part.sync().unwrap();
    assert_eq!(fs::read(dir.path().join("part")).unwrap(), b"fast\0\0\0\0");
}

#[cfg(unix)]
#[test]
fn what_others_put_in_the_place_of_a_journal_or_a_part_is_not_used() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), MIB, &digests(1));
    drop(prepare(&spec).unwrap());
    let pipe = dir.path().join(".p2s2-other.journal");
    let pipe = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: mkfifo reads the text that it is given, which ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    // Opening the pipe must not block until somebody writes to it.
    assert_eq!(list_interrupted(dir.path()), std::slice::from_ref(&spec));
    let others = dir.path().join("others.bin");
    fs::write(&others, vec![7; MIB as usize]).unwrap();
    let part = dir.path().join(".p2s2-f-1.part");
    fs::remove_file(&part).unwrap();
    std::os::unix::fs::symlink(&others, &part).unwrap();
    assert!(matches!(prepare(&spec), Err(StartFetchError::Io { path, .. }) if path == part));
}

#[test]
fn a_file_without_a_list_that_came_to_its_place_just_before_the_crash_is_there() {
    for size in [0, 5, 2 * MIB] {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path(), size, &[]);
        let prepared = prepare(&spec).unwrap();
        // The journal as it is when it is about to be put away.
        let (journal, aside) = (dir.path().join(".p2s2-f-1.journal"), dir.path().join("aside"));
        fs::hard_link(&journal, &aside).unwrap();
        prepared.journal.finish(prepared.part.as_deref()).unwrap();
        fs::rename(&aside, &journal).unwrap();

        assert_eq!(list_interrupted(dir.path()), std::slice::from_ref(&spec));
        let again = prepare(&spec).unwrap();
        assert!(again.part.is_none(), "{size}");
        again.journal.finish(None).unwrap();
        assert_eq!(names(dir.path()), ["here.bin"]);
    }
}

#[test]
fn a_file_of_others_at_its_place_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 5, &digests(1));
    drop(prepare(&spec).unwrap());
    fs::remove_file(dir.path().join(".p2s2-f-1.part")).unwrap();
    fs::write(&spec.save_path, "mine!").unwrap();
    assert!(matches!(prepare(&spec), Err(StartFetchError::Exists(_))));
}
