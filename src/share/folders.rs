//! Which paths a node may be told to read or to write. SPEC.md section 6, Files.
//!
//! A path is resolved first, links followed, and what it leads to is what counts: a regular file below one of
//! the folders that are shared, with no component beginning with a dot, and nothing of the node's own data but
//! its repo. It is opened by what it resolved to, which has no links (see [`beneath`]): one that was put into the way
//! meanwhile leads nowhere.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::beneath::{self, HeldDir};
use super::wire::{FILE_SIZE_MAX, FileName};

mod browse;

pub use browse::{Entry, Shelves};

/// Longest path that is looked at, bytes: that of Linux.
const PATH_MAX: usize = 4096;

/// Why a path is not taken. None of them tells what lies outside the folders, not even whether it exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is no path that could be taken.
    #[error("{0}")]
    Invalid(String),
    /// It leads to where this node may not read or write.
    #[error("{0}")]
    Forbidden(String),
    /// There is nothing.
    #[error("no such file: {0}")]
    NotFound(String),
    /// There is no such folder to write to.
    #[error("no such folder: {0} (it is not made for you)")]
    NoFolder(String),
    /// A file that is to be written is there already.
    #[error("{0} is there already: it is never overwritten")]
    Exists(String),
}

/// A file that may be shared, opened.
#[derive(Debug)]
pub struct Opened {
    /// To read from.
    pub file: File,
    /// Where it really lies.
    pub path: PathBuf,
    /// Of the opened file.
    pub metadata: Metadata,
}

/// The folders of one user of a node.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Resolved; the repo not among them.
    allowed: Vec<PathBuf>,
    repo: PathBuf,
    data_dir: PathBuf,
}

impl Folders {
    /// Of these folders, which must be there; the repo and the data dir too.
    ///
    /// # Errors
    /// One of them, and what the system said.
    pub fn new(allowed: &[PathBuf], repo: &Path, data_dir: &Path) -> io::Result<Folders> {
        let resolve = |path: &Path| {
            let wrong = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let resolved = fs::canonicalize(path).map_err(wrong)?;
            if resolved.is_dir() {
                return Ok(resolved);
            }
            Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{}: it is no folder", path.display())))
        };
        Ok(Folders {
            allowed: allowed.iter().map(|path| resolve(path)).collect::<io::Result<_>>()?,
            repo: resolve(repo)?,
            data_dir: resolve(data_dir)?,
        })
    }

    /// Of a user who may name nothing but what is in the repo.
    pub fn repo_alone(&self) -> Folders {
        Folders { allowed: Vec::new(), ..self.clone() }
    }

    /// Where fetched files go that are to go nowhere else.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// Opens a file that a user has named.
    ///
    /// # Errors
    /// [`PathError`]: which rule it breaks.
    pub fn open(&self, named: &str) -> Result<Opened, PathError> {
        let path = well_formed(named)?;
        let resolved = fs::canonicalize(path).map_err(|error| self.unresolved(path, &error))?;
        if self.shared().any(|folder| *folder == resolved) {
            return Err(PathError::Invalid(format!("{named} is a folder: expected a file")));
        }
        self.check(&resolved, path)?;
        self.open_resolved(&resolved)
    }

    /// Opens a file by the path that [`Folders::open`] has found once: what has been put there since is held to
    /// the same rules.
    ///
    /// # Errors
    /// [`PathError`]: which rule it breaks.
    pub fn open_resolved(&self, path: &Path) -> Result<Opened, PathError> {
        self.check(path, path)?;
        let shown = path.display();
        // A pipe or a device is not even opened: that alone may do something. It could still be put there
        // between the two, so nothing blocks, and what was opened is asked again.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(found) if found.is_dir() => {
                return Err(PathError::Invalid(format!("{shown} is a folder: expected a file")));
            }
            Ok(_) => return Err(not_regular(path)),
            Err(error) => return Err(unreadable(path, &error)),
        }
        let file = beneath::open_file(path).map_err(|error| unreadable(path, &error))?;
        let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
        if !metadata.is_file() {
            return Err(not_regular(path));
        }
        if metadata.len() > FILE_SIZE_MAX {
            return Err(PathError::Invalid(format!(
                "{shown} has {} bytes: expected at most {FILE_SIZE_MAX}",
                metadata.len()
            )));
        }
        Ok(Opened { file, path: path.to_owned(), metadata })
    }

    /// Whether what [`Folders::save_target`] has found once, for other folders perhaps, is a place for a file still.
    ///
    /// # Errors
    /// [`PathError`]: which rule it breaks.
    pub fn check_target(&self, path: &Path) -> Result<(), PathError> {
        self.check(path, path)
    }

    /// Where a file of that name is to be saved: in the repo, in the folder that is named, or as the file that
    /// is named. Nothing is created.
    ///
    /// # Errors
    /// [`PathError`]; `Exists` where something is there already, be it a link that leads nowhere.
    pub fn save_target(&self, named: Option<&str>, name: &FileName) -> Result<PathBuf, PathError> {
        let (folder, file) = match named {
            None => (self.repo.clone(), name.clone()),
            Some(named) => {
                let path = well_formed(named)?;
                match fs::canonicalize(path) {
                    Ok(folder) if folder.is_dir() => (folder, name.clone()),
                    Ok(resolved) => {
                        self.check(&resolved, path)?;
                        return Err(PathError::Exists(path.display().to_string()));
                    }
                    Err(_) => self.parent_and_name(path)?,
                }
            }
        };
        let target = folder.join(file.as_str());
        self.check(&target, named.map_or(&target, Path::new))?;
        // By the folder that was found: what is looked at is what is written to later.
        match HeldDir::open(&folder).and_then(|folder| folder.find(file.as_str())) {
            Ok(Some(_)) => Err(PathError::Exists(target.display().to_string())),
            Ok(None) => Ok(target),
            Err(error) => Err(unreadable(&target, &error)),
        }
    }

    fn parent_and_name(&self, path: &Path) -> Result<(PathBuf, FileName), PathError> {
        let shown = path.display();
        let (Some(parent), Some(Component::Normal(last))) = (path.parent(), path.components().next_back()) else {
            return Err(PathError::Invalid(format!("save_path {shown}: expected the path of a file or a folder")));
        };
        if fs::symlink_metadata(path).is_ok() {
            // A link that leads nowhere, or to where we cannot look.
            let within = fs::canonicalize(parent).map_err(|error| self.unresolved(path, &error))?;
            self.check(&within.join(last), path)?;
            return Err(PathError::Exists(shown.to_string()));
        }
        if path.as_os_str().to_string_lossy().ends_with(std::path::MAIN_SEPARATOR) {
            return Err(as_folder(self.unresolved(path, &io::ErrorKind::NotFound.into())));
        }
        let name = last.to_str().ok_or("expected UTF-8".to_owned()).and_then(FileName::new);
        let name = name.map_err(|wrong| PathError::Invalid(format!("save_path {shown}: {wrong}")))?;
        let folder = fs::canonicalize(parent).map_err(|error| as_folder(self.unresolved(parent, &error)))?;
        self.check(&folder.join(name.as_str()), path)?;
        if !folder.is_dir() {
            return Err(PathError::Invalid(format!("save_path {shown}: {} is no folder", parent.display())));
        }
        Ok((folder, name))
    }

    /// Whether a resolved path is one of those that may be named. What is said of it is said of the path as it was
    /// `named`: where a link outside leads is nobody's business.
    fn check(&self, resolved: &Path, named: &Path) -> Result<(), PathError> {
        let shown = named.display();
        let within = |folder: &Path| resolved.strip_prefix(folder).ok().filter(|rest| !rest.as_os_str().is_empty());
        // The repo may lie in the data dir; the data dir may lie in a folder that is shared.
        let rests: Vec<&Path> = match within(&self.repo) {
            Some(rest) => vec![rest],
            None if resolved.starts_with(&self.data_dir) => {
                return Err(PathError::Forbidden(format!("{shown} is of this node's own data")));
            }
            None => self.allowed.iter().filter_map(|folder| within(folder)).collect(),
        };
        if rests.is_empty() {
            let folders: Vec<String> = self.shared().map(|folder| folder.display().to_string()).collect();
            return Err(PathError::Forbidden(format!(
                "{shown} is outside the folders that this node shares ({}), or leads there: see --folder",
                folders.join(", ")
            )));
        }
        if rests.iter().all(|rest| rest.components().any(|part| part.as_os_str().as_encoded_bytes()[0] == b'.')) {
            return Err(PathError::Forbidden(format!("{shown}: nothing hidden (beginning with a dot) is shared")));
        }
        Ok(())
    }

    fn shared(&self) -> impl Iterator<Item = &PathBuf> {
        self.allowed.iter().chain([&self.repo])
    }

    /// What is said of a path that leads nowhere: the truth, if it would be inside, else that it is outside.
    fn unresolved(&self, path: &Path, error: &io::Error) -> PathError {
        // The part of it that is there tells where it would be.
        let there = path.ancestors().skip(1).find_map(|above| fs::canonicalize(above).ok().map(|it| (above, it)));
        if let Some((above, resolved)) = there {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            let climbs = rest.components().any(|part| !matches!(part, Component::Normal(_)));
            let would_be = resolved.join(rest);
            if climbs || self.check(&would_be, path).is_err() {
                return self
                    .check(&would_be, path)
                    .err()
                    .unwrap_or_else(|| PathError::NotFound(path.display().to_string()));
            }
        }
        unreadable(path, error)
    }
}

/// A path of a message: absolute, and none that the system would read otherwise than we do.
fn well_formed(named: &str) -> Result<&Path, PathError> {
    let invalid = |wrong: &str| Err(PathError::Invalid(wrong.to_owned()));
    if named.is_empty() || named.len() > PATH_MAX {
        return invalid(&format!("expected a path of 1 to {PATH_MAX} bytes"));
    }
    if named.contains('\0') {
        return invalid("expected a path without NUL");
    }
    let path = Path::new(named);
    if !path.is_absolute() {
        return invalid(&format!("{named}: expected an absolute path"));
    }
    Ok(path)
}

/// The same of a path that was to be a folder, whether or not its name was given with a `/` at the end.
fn as_folder(error: PathError) -> PathError {
    let PathError::NotFound(path) = error else { return error };
    let named = path.trim_end_matches('/');
    PathError::NoFolder(if named.is_empty() { path } else { named.to_owned() })
}

fn not_regular(path: &Path) -> PathError {
    PathError::Invalid(format!("{} is no regular file", path.display()))
}

fn unreadable(path: &Path, error: &io::Error) -> PathError {
    let shown = path.display();
    match error.kind() {
        _ if beneath::is_link(error) => PathError::Forbidden(format!("{shown} was exchanged for a link meanwhile")),
        io::ErrorKind::NotFound => PathError::NotFound(shown.to_string()),
        io::ErrorKind::PermissionDenied => PathError::Forbidden(format!("{shown}: this node may not read it")),
        io::ErrorKind::NotADirectory => PathError::NotFound(shown.to_string()),
        _ => PathError::Invalid(format!("{shown}: {error}")),
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::fs::symlink;

    struct Place {
        _dir: tempfile::TempDir,
        root: PathBuf,
        folders: Folders,
    }

    impl Place {
        /// `shared/` is shared, `outside/` not; `shared/state` is the data dir with the repo in it.
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(dir.path()).unwrap();
            for folder in ["shared/sub", "shared/.hidden", "outside", "shared/state/repo"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            for file in [
                "shared/a.txt",
                "shared/sub/b.txt",
                "shared/.hidden/c.txt",
                "shared/.d.txt",
                "outside/secret.txt",
                "shared/state/share.db",
                "shared/state/repo/e.txt",
                "shared/state/repo/.part",
            ] {
                fs::write(root.join(file), file).unwrap();
            }
            let state = root.join("shared/state");
            let folders = Folders::new(&[root.join("shared")], &state.join("repo"), &state).unwrap();
            Place { _dir: dir, root, folders }
        }

        fn at(&self, path: &str) -> String {
            self.root.join(path).to_str().unwrap().to_owned()
        }

        fn forbids(&self, named: &str) {
            let refused = self.folders.open(named).unwrap_err();
            assert!(matches!(refused, PathError::Forbidden(_)), "{named}: {refused:?}");
        }
    }

    #[test]
    fn regular_files_below_the_folders_are_opened_links_and_dots_resolved() {
        let place = Place::new();
        symlink(place.at("shared/sub/b.txt"), place.at("shared/link")).unwrap();
        symlink(place.at("shared/sub"), place.at("outside/way-in")).unwrap();
        for (named, real) in [
            ("shared/a.txt", "shared/a.txt"),
            ("shared/sub/../a.txt", "shared/a.txt"),
            ("shared/./sub//b.txt", "shared/sub/b.txt"),
            ("shared/link", "shared/sub/b.txt"),
            ("outside/way-in/b.txt", "shared/sub/b.txt"),
            ("shared/state/repo/e.txt", "shared/state/repo/e.txt"),
        ] {
            let opened = place.folders.open(&place.at(named)).unwrap();
            assert_eq!(opened.path, place.root.join(real), "{named}");
            assert_eq!(io::read_to_string(opened.file).unwrap(), real);
            assert_eq!(opened.metadata.len(), real.len() as u64);
        }
    }

    #[test]
    fn nothing_outside_hidden_or_of_the_node_itself_is_opened() {
        let place = Place::new();
        symlink(place.at("outside/secret.txt"), place.at("shared/out")).unwrap();
        symlink(place.at("outside"), place.at("shared/way-out")).unwrap();
        symlink(place.at("shared/.hidden"), place.at("shared/shown")).unwrap();
        symlink(place.at("shared/state"), place.at("shared/stats")).unwrap();
        for named in [
            "outside/secret.txt",
            "shared/../outside/secret.txt",
            "shared/out",
            "shared/way-out/secret.txt",
            "shared/.hidden/c.txt",
            "shared/shown/c.txt",
            "shared/.d.txt",
            "shared/state/share.db",
            "shared/stats/share.db",
            "shared/state/repo/../share.db",
            "shared/state/repo/.part",
        ] {
            place.forbids(&place.at(named));
        }
        place.forbids("/etc/passwd");
        place.forbids("/");
    }

    #[test]
    fn what_lies_outside_is_not_told_of() {
        let place = Place::new();
        // There or not: the same answer.
        for named in ["outside/secret.txt", "outside/nothing", "outside/far/below", "shared/sub/../../outside/nothing"]
        {
            place.forbids(&place.at(named));
        }
        place.forbids("/no/such/place");
        // Nor where a link leads, and so that there is one.
        symlink(place.at("outside/secret.txt"), place.at("outside/link")).unwrap();
        symlink(place.at("outside"), place.at("shared/way-out")).unwrap();
        let name = FileName::new("a.txt").unwrap();
        for named in ["outside/link", "shared/way-out/b.txt", "shared/way-out/none", "outside/link/x"] {
            let opened = place.folders.open(&place.at(named)).unwrap_err().to_string();
            let saved = place.folders.save_target(Some(&place.at(named)), &name).unwrap_err().to_string();
            for said in [opened, saved] {
                assert!(said.starts_with(&format!("{} is outside", place.at(named))), "{named}: {said}");
                assert!(!said.contains("outside/secret"), "{named}: {said}");
            }
        }
        let missing = place.folders.open(&place.at("shared/sub/nothing")).unwrap_err();
        assert!(matches!(missing, PathError::NotFound(_)), "{missing:?}");
        assert!(matches!(place.folders.open(&place.at("shared/a.txt/x")).unwrap_err(), PathError::NotFound(_)));
    }

    #[test]
    fn what_is_no_path_or_no_regular_file_is_refused() {
        let place = Place::new();
        for named in ["", "shared/a.txt", "a.txt", "../a.txt", "~/a.txt", "/a\0b", &format!("/{}", "x".repeat(5000))] {
            let refused = place.folders.open(named).unwrap_err();
            assert!(matches!(refused, PathError::Invalid(_)), "{named}: {refused:?}");
        }
        let fifo = CString::new(place.at("shared/fifo")).unwrap();
        // SAFETY: mkfifo reads the text that it is given, which ends with NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let socket = std::os::unix::net::UnixListener::bind(place.at("shared/socket")).unwrap();
        for named in ["shared/fifo", "shared/socket", "shared/sub", "shared"] {
            // It does not wait for somebody to write.
            let refused = place.folders.open(&place.at(named)).unwrap_err();
            assert!(matches!(refused, PathError::Invalid(_)), "{named}: {refused:?}");
        }
        drop(socket);
        let state = place.root.join("shared/state");
        let devices = Folders::new(&["/dev".into()], &state.join("repo"), &state).unwrap();
        let refused = devices.open("/dev/null").unwrap_err();
        assert!(matches!(refused, PathError::Invalid(_)), "{refused:?}");
    }

    #[test]
    fn a_link_put_into_the_way_after_the_look_leads_nowhere() {
        let place = Place::new();
        let path = place.root.join("shared/sub/b.txt");
        // At the end of the path…
        fs::remove_file(&path).unwrap();
        symlink(place.at("outside/secret.txt"), &path).unwrap();
        assert!(place.folders.open_resolved(&path).is_err());
        assert!(beneath::is_link(&beneath::open_file(&path).unwrap_err()));
        // … and in the middle of it.
        fs::remove_file(&path).unwrap();
        fs::remove_dir(place.at("shared/sub")).unwrap();
        fs::write(place.at("outside/b.txt"), "x").unwrap();
        symlink(place.at("outside"), place.at("shared/sub")).unwrap();
        let refused = place.folders.open_resolved(&path).unwrap_err();
        assert!(matches!(refused, PathError::Forbidden(_)), "{refused:?}");
        assert!(beneath::is_link(&beneath::open_file(&path).unwrap_err()));
    }

    #[test]
    fn who_has_the_repo_alone_names_nothing_else() {
        let place = Place::new();
        let guest = place.folders.repo_alone();
        assert!(guest.open(&place.at("shared/state/repo/e.txt")).is_ok());
        for named in ["shared/a.txt", "shared/state/share.db", "shared/state/repo/../../a.txt"] {
            assert!(matches!(guest.open(&place.at(named)), Err(PathError::Forbidden(_))), "{named}");
        }
        let name = FileName::new("new.txt").unwrap();
        assert!(guest.save_target(None, &name).is_ok());
        assert!(matches!(guest.save_target(Some(&place.at("shared")), &name), Err(PathError::Forbidden(_))));
    }

    #[test]
    fn files_are_saved_in_the_repo_in_a_folder_or_under_a_name() {
        let place = Place::new();
        let name = FileName::new("new.txt").unwrap();
        symlink(place.at("shared/sub"), place.at("shared/link")).unwrap();
        for (named, target) in [
            (None, "shared/state/repo/new.txt"),
            (Some("shared"), "shared/new.txt"),
            (Some("shared/sub/"), "shared/sub/new.txt"),
            (Some("shared/link"), "shared/sub/new.txt"),
            (Some("shared/sub/other.txt"), "shared/sub/other.txt"),
            (Some("shared/sub/../other.txt"), "shared/other.txt"),
        ] {
            let named = named.map(|named| place.at(named));
            let saved = place.folders.save_target(named.as_deref(), &name).unwrap();
            assert_eq!(saved, place.root.join(target), "{named:?}");
            assert!(!saved.exists());
        }
    }

    #[test]
    fn nothing_is_saved_over_a_file_or_outside() {
        let place = Place::new();
        symlink(place.at("outside"), place.at("shared/way-out")).unwrap();
        symlink(place.at("outside/secret.txt"), place.at("shared/out")).unwrap();
        symlink(place.at("shared/nowhere"), place.at("shared/dangling")).unwrap();
        let name = FileName::new("a.txt").unwrap();
        for (named, is_there) in [
            ("shared", true),
            ("shared/a.txt", true),
            ("shared/dangling", true),
            ("shared/way-out", false),
            ("shared/way-out/new.txt", false),
            ("shared/out", false),
            ("outside", false),
            ("outside/secret.txt", false),
            ("shared/.new", false),
            ("shared/.hidden/new.txt", false),
            ("shared/state/new.txt", false),
            ("shared/../new.txt", false),
        ] {
            let refused = place.folders.save_target(Some(&place.at(named)), &name).unwrap_err();
            let expected = if is_there { "Exists" } else { "Forbidden" };
            assert!(format!("{refused:?}").starts_with(expected), "{named}: {refused:?}");
        }
        for named in ["a.txt", "", "/x\0"] {
            assert!(matches!(place.folders.save_target(Some(named), &name), Err(PathError::Invalid(_))), "{named}");
        }
        for named in ["shared/none/new.txt", "shared/none/"] {
            let refused = place.folders.save_target(Some(&place.at(named)), &name).unwrap_err();
            assert_eq!(refused, PathError::NoFolder(place.at("shared/none")), "{named}");
            assert!(refused.to_string().starts_with("no such folder: "), "{refused}");
        }
        // A name that a host elsewhere has published may begin with a dot: it is not saved as such.
        let hidden = FileName::new(".profile").unwrap();
        assert!(matches!(place.folders.save_target(None, &hidden), Err(PathError::Forbidden(_))));
    }
}
