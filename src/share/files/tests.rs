use serde_json::json;

use super::*;

fn store(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(&dir.join("share.db"), &[SCHEMA, ADD_MISSING_SINCE]).unwrap())
}

fn files(dir: &Path, owner: &str) -> TrackedFiles {
    TrackedFiles::of(store(dir), &Name::new(owner).unwrap())
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

fn stat(path: &str, size: u64, modified_s: i64) -> FileStat {
    FileStat { path: path.into(), size, modified_ns: modified_s * 1_000_000_000 + 5, created_ns: Some(7) }
}

#[test]
fn tracking_twice_is_tracking_once() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    let first = files.track(&name("a"), stat("/x/a", 5, 1), Millis(1000)).unwrap();
    assert_eq!(files.track(&name("a"), stat("/x/a", 5, 1), Millis(2000)).unwrap(), first);
    assert_eq!(files.list(false).unwrap(), std::slice::from_ref(&first));
    assert_eq!((first.added_at, first.is_published), (Millis(1000), false));
    let taken = files.track(&name("a"), stat("/x/b", 5, 1), Millis(3000)).unwrap_err();
    assert!(matches!(&taken, TrackedFilesError::NameTaken { path, .. } if path == "/x/a"), "{taken:?}");
    // Two names may stand for one path.
    files.track(&name("b"), stat("/x/a", 5, 1), Millis(3000)).unwrap();
}

#[test]
fn published_and_hidden_again_and_another_content_forgets_its_digests() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    assert_eq!(files.unpublish(&name("a")).unwrap_err(), TrackedFilesError::NotTracked(name("a")));
    let was = stat("/x/a", 5, 1);
    let out = files.publish(&name("a"), was.clone(), None, Millis(1000)).unwrap();
    assert_eq!((out.is_published, out.published_at), (true, Some(Millis(1000))));
    assert_eq!(files.publish(&name("a"), was.clone(), None, Millis(2000)).unwrap(), out);
    assert_eq!(files.unhashed().unwrap(), [name("a")]);
    let read = pieces(b"12345");
    let (whole, root) = (read.blake3(), read.root());
    assert!(files.begin_hashing(&name("a"), &was) && files.finish_hashing(&name("a"), &was, &read).unwrap());
    assert_eq!(files.unhashed().unwrap(), []);
    let known = files.get(&name("a")).unwrap().unwrap();
    assert_eq!((known.blake3, known.pieces_root), (Some(whole), Some(root)));
    assert!(known.entry().has_range() && !out.entry().has_range());
    assert_eq!(files.piece_digests(&name("a")).unwrap(), Some(digest_bytes(&read)));
    assert_eq!(files.unpublish(&name("a")).unwrap().blake3, Some(whole));
    assert_eq!(files.list(true).unwrap(), []);
    // Digests of a different content are ignored.
    let is = stat("/x/a", 6, 1);
    let changed = files.publish(&name("a"), is, None, Millis(3000)).unwrap();
    assert_eq!((changed.blake3, changed.pieces_root, changed.published_at), (None, None, Some(Millis(3000))));
    assert_eq!(files.piece_digests(&name("a")).unwrap(), None);
    assert!(files.begin_hashing(&name("a"), &was) && !files.finish_hashing(&name("a"), &was, &read).unwrap());
}

fn pieces(mut content: &[u8]) -> FileDigests {
    let size = content.len() as u64;
    FileDigests::hash(&mut content, size, &|| true).unwrap().unwrap()
}

#[test]
fn publishing_again_forgets_what_was_read_of_a_content_that_looks_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    let (a, stat) = (name("a"), stat("/x/a", 5, 1));
    let (old, new) = (pieces(b"first"), pieces(b"other"));
    let first = files.publish(&a, stat.clone(), Some(&old), Millis(1)).unwrap();
    assert_eq!((first.blake3, files.piece_digests(&a).unwrap()), (Some(old.blake3()), Some(digest_bytes(&old))));
    assert_eq!(files.unhashed().unwrap(), []);
    // Hashed when publishing, or later.
    let second = files.publish(&a, stat.clone(), Some(&new), Millis(2)).unwrap();
    assert_eq!((second.blake3, second.pieces_root), (Some(new.blake3()), Some(new.root())));
    assert_eq!(files.piece_digests(&a).unwrap(), Some(digest_bytes(&new)));
    let third = files.publish(&a, stat.clone(), None, Millis(3)).unwrap();
    assert_eq!((third.blake3, third.pieces_root, files.piece_digests(&a).unwrap()), (None, None, None));
    // Digests of a file that was published again while it was hashed may be of an outdated content.
    assert!(files.begin_hashing(&a, &stat));
    files.publish(&a, stat.clone(), None, Millis(4)).unwrap();
    assert!(!files.finish_hashing(&a, &stat, &old).unwrap());
    assert_eq!(files.unhashed().unwrap(), [name("a")]);
    assert!(files.begin_hashing(&a, &stat) && files.finish_hashing(&a, &stat, &new).unwrap());
    // Tracking it again does not hash anything.
    assert_eq!(files.track(&a, stat.clone(), Millis(5)).unwrap().blake3, Some(new.blake3()));
    // A file that cannot be read is not retried until it is published again.
    files.publish(&a, stat.clone(), None, Millis(6)).unwrap();
    assert!(files.begin_hashing(&a, &stat));
    files.abandon_hashing(&a, &stat);
    assert!(!files.begin_hashing(&a, &stat));
    files.publish(&a, stat.clone(), None, Millis(7)).unwrap();
    assert!(files.begin_hashing(&a, &stat));
}

#[test]
fn each_user_has_files_of_his_own_and_they_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let shared = store(dir.path());
    let of = |owner: &str| TrackedFiles::of(Arc::clone(&shared), &Name::new(owner).unwrap());
    let anns = of("ann").publish(&name("a"), stat("/x/a", 5, 1), None, Millis(1)).unwrap();
    of("bob").track(&name("a"), stat("/y/a", 9, 1), Millis(1)).unwrap();
    shared.close();
    let again = files(dir.path(), "ann");
    assert_eq!(again.list(false).unwrap(), [anns]);
    assert_eq!(again.get(&name("b")).unwrap(), None);
}

#[test]
fn files_are_found_by_a_part_of_their_name_and_paged() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    for (number, named) in ["Report.pdf", "song.ogg", "r\u{e9}port", "REPORT 2", "zoo"].into_iter().enumerate() {
        files.track(&name(named), stat(&format!("/x/{number}"), 5, 1), Millis(1)).unwrap();
    }
    files.publish(&name("song.ogg"), stat("/x/1", 5, 1), None, Millis(1)).unwrap();
    let page = |published: bool, q: &str, offset: usize, limit: usize| {
        let page = files.page(published, &text::TextFilter::new(q), (offset, limit)).unwrap();
        (page.total, page.files.into_iter().map(|file| file.name.to_string()).collect::<Vec<_>>())
    };
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let all = names(&["REPORT 2", "Report.pdf", "r\u{e9}port", "song.ogg", "zoo"]);
    assert_eq!(page(false, "", 0, usize::MAX), (5, all.clone()));
    assert_eq!(page(false, "", 1, 2), (5, all[1..3].to_vec()));
    assert_eq!(page(false, "", 9, 2), (5, vec![]));
    assert_eq!(page(false, "", 0, 0), (5, vec![]));
    assert_eq!(page(false, "rePOrt", 0, 9), (2, names(&["REPORT 2", "Report.pdf"])));
    assert_eq!(page(false, "report", 1, 9), (2, names(&["Report.pdf"])));
    assert_eq!(page(false, "RE\u{301}P", 0, 9), (1, names(&["r\u{e9}port"])), "however it is spelled");
    assert_eq!(page(true, "", 0, 9), (1, names(&["song.ogg"])));
    assert_eq!(page(true, "report", 0, 9), (0, vec![]));
    assert_eq!(files.count().unwrap(), 5);
    let after: Vec<_> = files.list_after(Some(&name("Report.pdf")), 2).unwrap();
    assert_eq!(after.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["r\u{e9}port", "song.ogg"]);
    assert_eq!(files.list_after(None, 9).unwrap().len(), 5);
}

#[test]
fn what_is_not_there_any_more_is_marked_and_what_is_removed_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    let path = dir.path().join("a");
    std::fs::write(&path, "12345").unwrap();
    let stat = || FileStat::of(&path, &std::fs::metadata(&path).unwrap());
    let it = files.publish(&name("a"), stat(), None, Millis(1)).unwrap();
    assert!(!it.is_missing() && it.to_json()["missing"] == false);
    std::fs::remove_file(&path).unwrap();
    assert!(it.is_missing());
    files.set_missing(&[TrackedFile { missing_since: Some(Millis(7)), ..it.clone() }]).unwrap();
    // Not a file that was found again or removed in the meantime.
    assert_eq!(files.remove_missing(&name("a"), Millis(6)), Ok(None));
    assert_eq!(files.remove_missing(&name("b"), Millis(7)), Ok(None));
    let gone = files.get(&name("a")).unwrap().unwrap();
    assert_eq!((gone.missing_since, gone.to_json()["missing"].clone()), (Some(Millis(7)), json!(true)));
    // Unpublishing does not check the path; tracking it again does.
    assert_eq!(files.unpublish(&name("a")).unwrap().missing_since, Some(Millis(7)));
    std::fs::create_dir(&path).unwrap();
    assert!(gone.is_missing(), "a folder is no file");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "12345").unwrap();
    assert_eq!(files.track(&name("a"), stat(), Millis(9)).unwrap().missing_since, None);
    // A different content received under the name of a published file is not published.
    files.publish(&name("a"), stat(), None, Millis(10)).unwrap();
    std::fs::write(&path, "other").unwrap();
    assert!(!files.track_received(&name("a"), stat(), Millis(11)).unwrap().is_published);
    assert_eq!(files.remove(&name("a")).unwrap().name, name("a"));
    assert_eq!(files.remove(&name("a")), Err(TrackedFilesError::NotTracked(name("a"))));
    assert!(path.exists());
}

#[test]
fn a_taken_name_gets_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), "ann");
    files.track(&name("a.tar.gz"), stat("/x/a.tar.gz", 5, 1), Millis(1)).unwrap();
    let free = |wanted: &str, path: &str| files.free_name(&name(wanted), Path::new(path)).unwrap().to_string();
    assert_eq!(free("b", "/x/b"), "b");
    assert_eq!(free("a.tar.gz", "/x/a.tar.gz"), "a.tar.gz");
    assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (2).gz");
    files.track(&name("a.tar (2).gz"), stat("/z", 5, 1), Millis(1)).unwrap();
    assert_eq!(free("a.tar.gz", "/y/a.tar.gz"), "a.tar (3).gz");
    let long = "é".repeat(127);
    files.track(&name(&long), stat("/x/long", 5, 1), Millis(1)).unwrap();
    assert_eq!(free(&long, "/y"), format!("{} (2)", "é".repeat(125)));
}
