//! The content of the shared folders, for a user who chooses a file.
//!
//! Only what could be opened is listed: hidden entries, the node's own data, and links that lead out of the folders are
//! left out, and a folder that may not be listed looks like one that does not exist.

use std::cmp::Ordering;
use std::fs;
use std::path::Path;

use super::{SharedFolders, parse_path};
use crate::model::text::folded;
use crate::share::dir_handle::{DirHandle, EntryInfo};

/// Maximum number of names that are read from a folder; larger ones are listed in part.
const NAMES_MAX: usize = 100_000;

/// A file that can be chosen, or a folder that can be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its name in the folder; for a shared folder itself, the last component of its path.
    pub name: String,
    /// Its resolved path.
    pub path: String,
    pub is_folder: bool,
    /// Size in bytes; 0 for folders.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
}

/// The content of a folder: folders first, then by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderListing {
    /// The folder; empty for the list of shared folders.
    pub path: String,
    pub entries: Vec<FolderEntry>,
    /// Whether entries are missing because there are too many.
    pub is_truncated: bool,
}

impl SharedFolders {
    /// Lists a folder or, without one, the shared folders themselves. `None` if it does not exist or may not be seen.
    pub fn browse(&self, named: Option<&str>) -> Option<FolderListing> {
        let Some(named) = named else { return Some(self.list_roots()) };
        let folder = fs::canonicalize(parse_path(named).ok()?).ok()?;
        if !self.is_visible(&folder) {
            return None;
        }
        // From here on use the opened folder, so that exchanging its path in the meantime has no effect.
        let held = DirHandle::open(&folder).ok()?;
        let (mut names, mut is_cut) = (Vec::new(), false);
        let looked = held.for_each_name(|name| {
            is_cut = names.len() >= NAMES_MAX;
            if !is_cut {
                names.push(name.to_owned());
            }
            !is_cut
        });
        looked.ok()?;
        let entries = names.into_iter().filter_map(|name| self.visible_entry(&held, name)).collect();
        Some(FolderListing { path: folder.to_str()?.to_owned(), entries: sort_entries(entries), is_truncated: is_cut })
    }

    fn list_roots(&self) -> FolderListing {
        let mut entries: Vec<FolderEntry> = Vec::new();
        for folder in self.roots().filter(|folder| self.is_visible(folder)) {
            let Some(path) = folder.to_str() else { continue };
            if entries.iter().any(|entry| entry.path == path) {
                continue;
            }
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or(path).to_owned();
            // Leave out a folder that has been removed in the meantime.
            let Some(info) = info_without_links(folder).filter(|info| info.is_folder) else { continue };
            entries.push(folder_entry(name, path.to_owned(), &info));
        }
        FolderListing { path: String::new(), entries, is_truncated: false }
    }

    /// Whether a resolved path is one of the shared folders, or below one and allowed.
    fn is_visible(&self, resolved: &Path) -> bool {
        let is_shared = self.roots().any(|folder| folder == resolved)
            && (resolved == self.repo || !resolved.starts_with(&self.data_dir));
        is_shared || self.check_allowed(resolved, resolved).is_ok()
    }

    fn visible_entry(&self, folder: &DirHandle, name: String) -> Option<FolderEntry> {
        if name.starts_with('.') {
            return None;
        }
        let path = folder.path().join(&name);
        let info = folder.entry_info(&name).ok()??;
        let (path, info) = if info.is_link {
            let resolved = fs::canonicalize(&path).ok()?;
            // Check before reading any metadata.
            if !self.is_visible(&resolved) {
                return None;
            }
            let info = info_without_links(&resolved)?;
            (resolved, info)
        } else {
            (path, info)
        };
        if !(info.is_file || info.is_folder) || !self.is_visible(&path) {
            return None;
        }
        Some(folder_entry(name, path.to_str()?.to_owned(), &info))
    }
}

fn folder_entry(name: String, path: String, info: &EntryInfo) -> FolderEntry {
    let size = if info.is_file { info.len } else { 0 };
    FolderEntry { name, path, is_folder: info.is_folder, size, modified_ns: info.modified_ns }
}

fn info_without_links(path: &Path) -> Option<EntryInfo> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => DirHandle::open(parent).ok()?.entry_info(name.to_str()?).ok()?,
        // The file system's root, which cannot be exchanged.
        _ => Some(EntryInfo::of(&fs::symlink_metadata(path).ok()?)),
    }
}

/// Sorts folders first, then by name in natural order, ignoring case.
fn sort_entries(entries: Vec<FolderEntry>) -> Vec<FolderEntry> {
    let mut keyed: Vec<(String, FolderEntry)> = entries.into_iter().map(|entry| (folded(&entry.name), entry)).collect();
    keyed.sort_by(|(a_key, a), (b_key, b)| {
        b.is_folder.cmp(&a.is_folder).then_with(|| natural_order(a_key, b_key)).then_with(|| a.name.cmp(&b.name))
    });
    keyed.into_iter().map(|(_, entry)| entry).collect()
}

/// Natural order: compares runs of digits as numbers.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((a_number, a_rest), (b_number, b_rest)) = (leading_number(a), leading_number(b));
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

/// Splits off the leading digits, without leading zeros.
fn leading_number(text: &str) -> (Option<&str>, &str) {
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
        folders: SharedFolders,
    }

    /// `roots/` is shared, `outside/` not; `roots/state` is the data dir with the repo in it.
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
        let folders = SharedFolders::new(&[root.join("shared")], &state.join("repo"), &state).unwrap();
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
        assert_eq!((shown.path, shown.is_truncated), (place.at("shared"), false));
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
        let paths = |folders: &SharedFolders| -> Vec<String> {
            folders.browse(None).unwrap().entries.into_iter().map(|entry| entry.path).collect()
        };
        assert_eq!(paths(&place.folders), [place.at("shared"), place.at("shared/state/repo")]);
        let guest = place.folders.repo_only();
        assert_eq!(paths(&guest), [place.at("shared/state/repo")]);
        assert_eq!(guest.browse(Some(&place.at("shared"))), None);
        assert!(guest.browse(Some(&place.at("shared/state/repo"))).is_some());
    }

    #[test]
    fn names_are_sorted_as_people_count() {
        let mut names = ["a10", "a2", "a", "a02b", "b", "a1", "é", "2", "10"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["2", "10", "a", "a1", "a2", "a02b", "a10", "b", "é"]);
    }
}
