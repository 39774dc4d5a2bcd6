use super::*;

const MIB: u64 = 1 << 20;

fn spec(dir: &Path, size: u64, list: &[Digest]) -> FetchSpec {
    FetchSpec {
        id: "f-1".to_owned(),
        fname: FileName::new("a file.bin").unwrap(),
        hostname: "ann".to_owned(),
        save_path: dir.join("here.bin"),
        content: Content {
            size,
            modified: Seconds::new(1_795_285_383.925_727_1).unwrap(),
            blake3: Some(digest(b"whole")),
            pieces_root: Some(root_of(list)),
        },
        is_owner_named: false,
        is_paused: false,
    }
}

fn list(count: u8) -> Vec<Digest> {
    (0..count).map(|i| digest(&[i])).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_noted_is_known_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let list = list(5);
    let spec = spec(dir.path(), 4 * MIB + 1, &list);
    let mut begun = begin(&spec).unwrap();
    assert_eq!((begun.list, begun.good), (None, vec![false; 5]));
    assert_eq!(interrupted(dir.path()).unwrap(), std::slice::from_ref(&spec));
    begun.journal.set_list(&list).unwrap();
    begun.journal.append(&mut [3, 1, 0]).unwrap();
    begun.journal.set_list(&list).unwrap();
    drop((begun.journal, begun.part));

    let mut again = begin(&spec).unwrap();
    assert_eq!((again.list.as_ref(), &again.good[..]), (Some(&list), &[true, true, false, true, false][..]));
    assert_eq!(interrupted(dir.path()).unwrap(), std::slice::from_ref(&spec));
    again.journal.append(&mut [2]).unwrap();
    drop((again.journal, again.part));

    // A record that was cut short, or garbled, counts for nothing; what is noted behind it counts.
    let path = dir.path().join(".p2s2-f-1.journal");
    for garbage in [&[0_u8; 7][..], &[1; 16], &[0; 40]] {
        let before = fs::read(&path).unwrap();
        fs::write(&path, [&before, garbage].concat()).unwrap();
        let again = begin(&spec).unwrap();
        assert_eq!(again.good, [true, true, true, true, false]);
        drop(again);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let mut last = begin(&spec).unwrap();
    // One that was cut short by a disk that was full does not spoil those behind it, either.
    File::options().append(true).open(&path).unwrap().write_all(&[0; 7]).unwrap();
    last.journal.append(&mut [4]).unwrap();
    assert_eq!(begin(&spec).unwrap().good, [true; 5]);
    last.part.as_ref().unwrap().sync().unwrap();
    last.journal.finish(last.part.as_deref()).unwrap();
    assert_eq!(names(dir.path()), ["here.bin"]);
    assert_eq!(fs::metadata(&spec.save_path).unwrap().len(), 4 * MIB + 1);
    assert!(interrupted(dir.path()).unwrap().is_empty());
}

#[test]
fn another_content_under_the_same_id_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = spec(dir.path(), 2 * MIB, &list(2));
    let mut begun = begin(&first).unwrap();
    begun.journal.set_list(&list(2)).unwrap();
    begun.journal.append(&mut [0]).unwrap();
    drop(begun);
    let other = FetchSpec { content: Content { size: 3 * MIB, ..first.content }, ..first.clone() };
    let begun = begin(&other).unwrap();
    assert_eq!((begun.list, begun.good), (None, vec![false; 3]));
    assert_eq!(interrupted(dir.path()).unwrap(), [other]);
    begun.journal.discard().unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_part_that_is_gone_or_cut_short_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 2 * MIB, &list(2));
    for is_gone in [true, false] {
        let mut begun = begin(&spec).unwrap();
        begun.journal.set_list(&list(2)).unwrap();
        begun.journal.append(&mut [0, 1]).unwrap();
        drop(begun);
        let part = dir.path().join(".p2s2-f-1.part");
        if is_gone {
            fs::remove_file(&part).unwrap();
        } else {
            File::options().write(true).open(&part).unwrap().set_len(MIB).unwrap();
        }
        assert_eq!(begin(&spec).unwrap().good, [false, false]);
    }
}

#[test]
fn a_file_that_came_to_its_place_just_before_the_crash_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 2 * MIB, &list(2));
    let mut begun = begin(&spec).unwrap();
    begun.journal.set_list(&list(2)).unwrap();
    begun.journal.append(&mut [0, 1]).unwrap();
    drop(begun);
    let part = dir.path().join(".p2s2-f-1.part");
    // Between link and unlink, on a system that has no exclusive rename.
    fs::hard_link(&part, &spec.save_path).unwrap();
    let begun = begin(&spec).unwrap();
    HeldDir::open(dir.path()).unwrap().link(".p2s2-f-1.part", "here.bin").unwrap();
    drop(begun);
    // Between that and the journal's end.
    let begun = begin(&spec).unwrap();
    assert!(begun.part.is_none() && begun.good == [true, true]);
    begun.journal.finish(None).unwrap();
    assert_eq!(names(dir.path()), ["here.bin"]);
}

#[test]
fn no_file_is_ever_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 5, &list(1));
    fs::write(&spec.save_path, "mine").unwrap();
    assert_eq!(begin(&spec).unwrap_err().to_string(), format!("{} exists already", spec.save_path.display()));
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let held = HeldDir::open(dir.path()).unwrap();
    for how in [HeldDir::place, HeldDir::link] {
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
    let good = spec(dir.path(), 5, &list(1));
    for id in ["", "a/b", "..", "a b", &"x".repeat(65)] {
        assert!(matches!(begin(&FetchSpec { id: id.to_owned(), ..good.clone() }), Err(StartError::Id)), "{id}");
    }
    let no_name = FetchSpec { save_path: dir.path().join(".."), ..good.clone() };
    assert!(matches!(begin(&no_name), Err(StartError::SavePath(_))));
    let no_folder = FetchSpec { save_path: dir.path().join("none").join("x"), ..good.clone() };
    assert!(matches!(begin(&no_folder), Err(StartError::Io { .. })));
    let too_large = FetchSpec { content: Content { size: FILE_SIZE_MAX + 1, ..good.content }, ..good };
    assert!(matches!(begin(&too_large), Err(StartError::Size(_))));
    assert!(names(dir.path()).is_empty());
    // What is no journal is left alone.
    fs::write(dir.path().join(".p2s2-x.journal"), "{}\n").unwrap();
    fs::write(dir.path().join(".p2s2-y.journal"), "").unwrap();
    assert!(interrupted(dir.path()).unwrap().is_empty());
    assert!(interrupted(&dir.path().join("none")).unwrap().is_empty());
}

#[test]
fn a_piece_is_written_by_whoever_was_asked_last() {
    let dir = tempfile::tempdir().unwrap();
    let part = Part::create(&HeldDir::open(dir.path()).unwrap(), "part", 8, 2).unwrap();
    assert!(part.claim(0, 1) && part.write(0, 1, b"slow", 0).unwrap());
    assert!(part.claim(0, 2) && part.write(0, 2, b"fast", 0).unwrap());
    assert!(!part.write(0, 1, b"SLOW", 0).unwrap() && !part.done(0, 1) && !part.claim(0, 1));
    assert!(part.done(0, 2));
    for turn in [1, 2, 3] {
        assert!(!part.claim(0, turn) && !part.write(0, turn, b"late", 0).unwrap(), "{turn}");
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
    let spec = spec(dir.path(), MIB, &list(1));
    drop(begin(&spec).unwrap());
    let pipe = dir.path().join(".p2s2-other.journal");
    let pipe = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: mkfifo reads the text that it is given, which ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    // It does not wait for somebody to write.
    assert_eq!(interrupted(dir.path()).unwrap(), std::slice::from_ref(&spec));
    let others = dir.path().join("others.bin");
    fs::write(&others, vec![7; MIB as usize]).unwrap();
    let part = dir.path().join(".p2s2-f-1.part");
    fs::remove_file(&part).unwrap();
    std::os::unix::fs::symlink(&others, &part).unwrap();
    assert!(matches!(begin(&spec), Err(StartError::Io { path, .. }) if path == part));
}

#[test]
fn a_file_without_a_list_that_came_to_its_place_just_before_the_crash_is_there() {
    for size in [0, 5, 2 * MIB] {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path(), size, &[]);
        let begun = begin(&spec).unwrap();
        // The journal as it is when it is about to be put away.
        let (journal, aside) = (dir.path().join(".p2s2-f-1.journal"), dir.path().join("aside"));
        fs::hard_link(&journal, &aside).unwrap();
        begun.journal.finish(begun.part.as_deref()).unwrap();
        fs::rename(&aside, &journal).unwrap();

        assert_eq!(interrupted(dir.path()).unwrap(), std::slice::from_ref(&spec));
        let again = begin(&spec).unwrap();
        assert!(again.part.is_none(), "{size}");
        again.journal.finish(None).unwrap();
        assert_eq!(names(dir.path()), ["here.bin"]);
    }
}

#[test]
fn a_file_of_others_at_its_place_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path(), 5, &list(1));
    drop(begin(&spec).unwrap());
    fs::remove_file(dir.path().join(".p2s2-f-1.part")).unwrap();
    fs::write(&spec.save_path, "mine!").unwrap();
    assert!(matches!(begin(&spec), Err(StartError::Exists(_))));
}
