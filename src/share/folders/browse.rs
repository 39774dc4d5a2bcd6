//! What lies in the folders that may be shared, for somebody who chooses a file.
//!
//! Shown is what could be opened, and nothing else: what is hidden, of the node's own data, or leads out of the folders
//! is left out, and a folder that may not be looked at is answered as one that is not there.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use super::{Folders, well_formed};
use crate::model::text::folded;
use crate::share::beneath::{Found, HeldDir};

/// Most names of a folder that are looked at: one that has more is shown in part.
const NAMES_MAX: usize = 100_000;

/// Something that may be chosen, or looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder; of a folder that is shared as such, the last part of its path.
    pub name: String,
    /// Where it really lies.
    pub path: String,
    /// It is a folder, not a file.
    pub is_folder: bool,
    /// Bytes.
    pub size: u64,
    /// When its content last changed, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// What lies in a folder: folders first, then by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelves {
    /// The folder; empty for the list of those that are shared.
    pub path: String,
    /// What is in it.
    pub entries: Vec<Entry>,
    /// There is more, which is not shown.
    pub is_cut: bool,
}

impl Folders {
    /// What lies in a folder; without one, the folders that are shared themselves. None where there is nothing that may
    /// be seen.
    pub fn browse(&self, named: Option<&str>) -> Option<Shelves> {
        let Some(named) = named else { return Some(self.all()) };
        let folder = fs::canonicalize(well_formed(named).ok()?).ok()?;
        if !self.may_see(&folder) {
            return None;
        }
        // From here on by what was opened: whatever is exchanged meanwhile, it is this folder that is shown.
        let held = HeldDir::open(&folder).ok()?;
        let (mut names, mut is_cut) = (Vec::new(), false);
        let looked = held.each(|name| {
            is_cut = names.len() >= NAMES_MAX;
            if !is_cut {
                names.push(name.to_owned());
            }
            !is_cut
        });
        looked.ok()?;
        let entries = names.into_iter().filter_map(|name| self.entry(&held, name)).collect();
        Some(Shelves { path: folder.to_str()?.to_owned(), entries: sorted(entries), is_cut })
    }

    fn all(&self) -> Shelves {
        let mut entries: Vec<Entry> = Vec::new();
        for folder in self.shared().filter(|folder| self.may_see(folder)) {
            let Some(path) = folder.to_str() else { continue };
            if entries.iter().any(|entry| entry.path == path) {
                continue;
            }
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or(path).to_owned();
            // One that was taken away meanwhile is not there to be chosen.
            let Some(found) = look_at(folder).filter(|found| found.is_folder) else { continue };
            entries.push(entry_of(name, path.to_owned(), &found));
        }
        Shelves { path: String::new(), entries, is_cut: false }
    }

    /// One of the folders that are shared, or what lies below one and may be named.
    fn may_see(&self, resolved: &Path) -> bool {
        let is_shared = self.shared().any(|folder| folder == resolved)
            && (resolved == self.repo || !resolved.starts_with(&self.data_dir));
        is_shared || self.check(resolved, resolved).is_ok()
    }

    fn entry(&self, folder: &HeldDir, name: String) -> Option<Entry> {
        if name.starts_with('.') {
            return None;
        }
        let path = folder.path().join(&name);
        let found = folder.find(&name).ok()??;
        let (path, found) = if found.is_link {
            let resolved = fs::canonicalize(&path).ok()?;
            // Not even looked at where it may not be seen.
            if !self.may_see(&resolved) {
                return None;
            }
            let found = look_at(&resolved)?;
            (resolved, found)
        } else {
            (path, found)
        };
        if !(found.is_file || found.is_folder) || !self.may_see(&path) {
            return None;
        }
        Some(entry_of(name, path.to_str()?.to_owned(), &found))
    }
}

fn entry_of(name: String, path: String, found: &Found) -> Entry {
    let size = if found.is_file { found.len } else { 0 };
    Entry { name, path, is_folder: found.is_folder, size, modified_ns: found.modified_ns }
}

/// What lies at a path without links.
fn look_at(path: &Path) -> Option<Found> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => HeldDir::open(parent).ok()?.find(name.to_str()?).ok()?,
        // The root of everything, which nobody exchanges for something else.
        _ => Some(Found::of(&fs::symlink_metadata(path).ok()?)),
    }
}

/// Folders first, and by name as people sort: in any case, numbers by what they count.
fn sorted(entries: Vec<Entry>) -> Vec<Entry> {
    let mut keyed: Vec<(String, Entry)> = entries.into_iter().map(|entry| (folded(&entry.name), entry)).collect();
    keyed.sort_by(|(a_key, a), (b_key, b)| {
        b.is_folder.cmp(&a.is_folder).then_with(|| natural(a_key, b_key)).then_with(|| a.name.cmp(&b.name))
    });
    keyed.into_iter().map(|(_, entry)| entry).collect()
}

/// Compares texts where digits that stand together are one number.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((a_number, a_rest), (b_number, b_rest)) = (number(a), number(b));
        if let (Some(left), Some(right)) = (a_number, b_number) {
            let order = left.len().cmp(&right.len()).then_with(|| left.cmp(right));
            if order.is_ne() {
                return order;
            }
            (a, b) = (a_rest, b_rest);
            continue;
        }
        let (mut a_chars, mut b_chars) = (a.chars(), b.chars());
        match (a_chars.next(), b_chars.next()) {
            (Some(left), Some(right)) if left == right => (a, b) = (a_chars.as_str(), b_chars.as_str()),
            (left, right) => return left.cmp(&right),
        }
    }
}

/// The digits that a text begins with, without zeros before them, and what follows.
fn number(text: &str) -> (Option<&str>, &str) {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return (None, text);
    }
    let (digits, rest) = text.split_at(end);
    (Some(digits.trim_start_matches('0')), rest)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Place {
        _dir: tempfile::TempDir,
        root: PathBuf,
        folders: Folders,
    }

    /// `shared/` is shared, `outside/` not; `shared/state` is the data dir with the repo in it.
    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for folder in ["shared/sub", "shared/.hidden", "outside/deep", "shared/state/repo"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["shared/b10", "shared/B9", "shared/.d", "outside/secret", "shared/state/share.db"] {
            fs::write(root.join(file), file).unwrap();
        }
        fs::write(root.join("shared/state/repo/in-repo"), "x").unwrap();
        let state = root.join("shared/state");
        let folders = Folders::new(&[root.join("shared")], &state.join("repo"), &state).unwrap();
        Place { _dir: dir, root, folders }
    }

    impl Place {
        fn at(&self, path: &str) -> String {
            self.root.join(path).to_str().unwrap().to_owned()
        }

        fn names(&self, path: &str) -> Option<Vec<String>> {
            let shown = self.folders.browse(Some(&self.at(path)))?;
            Some(shown.entries.into_iter().map(|entry| entry.name).collect())
        }
    }

    #[test]
    fn what_may_be_chosen_is_shown_folders_first_and_in_natural_order() {
        let place = place();
        symlink(place.at("shared/b10"), place.at("shared/a-link")).unwrap();
        symlink(place.at("shared/state/repo"), place.at("shared/to-repo")).unwrap();
        let shown = place.folders.browse(Some(&place.at("shared"))).unwrap();
        let names: Vec<&str> = shown.entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["sub", "to-repo", "a-link", "B9", "b10"]);
        assert_eq!((shown.path, shown.is_cut), (place.at("shared"), false));
        let link = &shown.entries[2];
        assert_eq!((&link.path, link.is_folder, link.size), (&place.at("shared/b10"), false, 10), "what it leads to");
        assert_eq!(shown.entries[1].path, place.at("shared/state/repo"));
        assert_eq!(place.names("shared/state/repo"), Some(vec!["in-repo".to_owned()]));
        assert_eq!(place.names("shared/sub/../to-repo"), Some(vec!["in-repo".to_owned()]));
    }

    #[test]
    fn what_may_not_be_seen_is_as_if_it_were_not_there() {
        let place = place();
        symlink(place.at("outside"), place.at("shared/way-out")).unwrap();
        symlink(place.at("outside/secret"), place.at("shared/out")).unwrap();
        symlink(place.at("nowhere"), place.at("shared/dangling")).unwrap();
        symlink(place.at("shared/.hidden"), place.at("shared/shown")).unwrap();
        symlink(place.at("shared/state/share.db"), place.at("shared/stats")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place.at("shared/socket")).unwrap();
        assert_eq!(place.names("shared").unwrap(), ["sub", "B9", "b10"]);
        for named in [
            "outside",
            "outside/deep",
            "nowhere",
            "shared/way-out",
            "shared/.hidden",
            "shared/shown",
            "shared/state",
            "shared/b10",
            "shared/none",
            "shared/../outside",
        ] {
            assert_eq!(place.names(named), None, "{named}");
        }
        for named in ["", "/", "shared", "..", "/a\0b", "~"] {
            assert_eq!(place.folders.browse(Some(named)), None, "{named:?}");
        }
    }

    #[test]
    fn without_a_path_those_that_are_shared_are_shown() {
        let place = place();
        let paths = |folders: &Folders| -> Vec<String> {
            folders.browse(None).unwrap().entries.into_iter().map(|entry| entry.path).collect()
        };
        assert_eq!(paths(&place.folders), [place.at("shared"), place.at("shared/state/repo")]);
        let guest = place.folders.repo_alone();
        assert_eq!(paths(&guest), [place.at("shared/state/repo")]);
        assert_eq!(guest.browse(Some(&place.at("shared"))), None);
        assert!(guest.browse(Some(&place.at("shared/state/repo"))).is_some());
    }

    #[test]
    fn names_are_sorted_as_people_count() {
        let mut names = ["a10", "a2", "a", "a02b", "b", "a1", "é", "2", "10"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["2", "10", "a", "a1", "a2", "a02b", "a10", "b", "é"]);
    }
}
