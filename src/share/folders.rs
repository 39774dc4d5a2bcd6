//! Which paths a node may read or write on behalf of a user. See `docs/spec/share.md`.
//!
//! A path is first resolved, following symbolic links, and the rules apply to the result: it must be a regular file
//! below one of the shared folders, with no component beginning with a dot, and outside the node's own data except for
//! its repo. It is then opened by the resolved path without following links (see [`dir_handle`]), so a link that is
//! planted in the meantime has no effect.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::dir_handle::{self, DirHandle};
use super::wire::{FILE_SIZE_MAX, FileName};

mod browse;

pub use browse::{FolderEntry, FolderListing};

/// Maximum length of a path, bytes: the limit of Linux.
const PATH_MAX: usize = 4096;

/// Why a path is refused. No variant reveals anything about paths outside the shared folders, not even whether they
/// exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("no such file: {0}")]
    NotFound(String),
    #[error("no such folder: {0} (it is not made for you)")]
    FolderNotFound(String),
    #[error("{0} is there already: it is never overwritten")]
    AlreadyExists(String),
}

#[derive(Debug)]
pub struct OpenedFile {
    pub file: File,
    pub path: PathBuf,
    pub metadata: Metadata,
}

#[derive(Debug, Clone)]
pub struct SharedFolders {
    /// Resolved paths, without the repo.
    allowed: Vec<PathBuf>,
    repo: PathBuf,
    data_dir: PathBuf,
}

impl SharedFolders {
    /// All folders must exist, including the repo and the data directory.
    pub fn new(allowed: &[PathBuf], repo: &Path, data_dir: &Path) -> io::Result<SharedFolders> {
        let resolve = |path: &Path| {
            let wrong = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let resolved = fs::canonicalize(path).map_err(wrong)?;
            if resolved.is_dir() {
                return Ok(resolved);
            }
            Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{}: it is no folder", path.display())))
        };
        Ok(SharedFolders {
            allowed: allowed.iter().map(|path| resolve(path)).collect::<io::Result<_>>()?,
            repo: resolve(repo)?,
            data_dir: resolve(data_dir)?,
        })
    }

    pub fn repo_only(&self) -> SharedFolders {
        SharedFolders { allowed: Vec::new(), ..self.clone() }
    }

    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// Opens a file by a path that a user has given.
    pub fn open(&self, named: &str) -> Result<OpenedFile, PathError> {
        let path = parse_path(named)?;
        let resolved = fs::canonicalize(path).map_err(|error| self.unresolved_error(path, &error))?;
        if self.roots().any(|folder| *folder == resolved) {
            return Err(PathError::Invalid(format!("{named} is a folder: expected a file")));
        }
        self.check_allowed(&resolved, path)?;
        self.reopen(&resolved)
    }

    /// Opens a path that [`SharedFolders::open`] returned earlier. Whatever is there now must meet the same rules.
    pub fn reopen(&self, path: &Path) -> Result<OpenedFile, PathError> {
        self.check_allowed(path, path)?;
        let shown = path.display();
        // Do not even open a pipe or a device: that alone may have effects. One could still appear between the check
        // and the open, so the open does not block, and the file is checked again afterwards.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(found) if found.is_dir() => {
                return Err(PathError::Invalid(format!("{shown} is a folder: expected a file")));
            }
            Ok(_) => return Err(not_regular_error(path)),
            Err(error) => return Err(path_error(path, &error)),
        }
        let file = dir_handle::open_file(path).map_err(|error| path_error(path, &error))?;
        let metadata = file.metadata().map_err(|error| path_error(path, &error))?;
        if !metadata.is_file() {
            return Err(not_regular_error(path));
        }
        if metadata.len() > FILE_SIZE_MAX {
            return Err(PathError::Invalid(format!(
                "{shown} has {} bytes: expected at most {FILE_SIZE_MAX}",
                metadata.len()
            )));
        }
        Ok(OpenedFile { file, path: path.to_owned(), metadata })
    }

    /// Whether a path that [`SharedFolders::save_target`] returned earlier, perhaps for other folders, may be written.
    pub fn check_target(&self, path: &Path) -> Result<(), PathError> {
        self.check_allowed(path, path)
    }

    /// Where to save a file of that name: in the repo, in the given folder, or as the given file. Nothing is created.
    /// `AlreadyExists` says that anything is there already, including a dangling link.
    pub fn save_target(&self, named: Option<&str>, name: &FileName) -> Result<PathBuf, PathError> {
        let (folder, file) = match named {
            None => (self.repo.clone(), name.clone()),
            Some(named) => {
                let path = parse_path(named)?;
                match fs::canonicalize(path) {
                    Ok(folder) if folder.is_dir() => (folder, name.clone()),
                    Ok(resolved) => {
                        self.check_allowed(&resolved, path)?;
                        return Err(PathError::AlreadyExists(path.display().to_string()));
                    }
                    Err(_) => self.parent_and_name(path)?,
                }
            }
        };
        let target = folder.join(file.as_str());
        self.check_allowed(&target, named.map_or(&target, Path::new))?;
        // Look it up by the resolved folder, which is the one that is written to later.
        match DirHandle::open(&folder).and_then(|folder| folder.entry_info(file.as_str())) {
            Ok(Some(_)) => Err(PathError::AlreadyExists(target.display().to_string())),
            Ok(None) => Ok(target),
            Err(error) => Err(path_error(&target, &error)),
        }
    }

    fn parent_and_name(&self, path: &Path) -> Result<(PathBuf, FileName), PathError> {
        let shown = path.display();
        let (Some(parent), Some(Component::Normal(last))) = (path.parent(), path.components().next_back()) else {
            return Err(PathError::Invalid(format!("save_path {shown}: expected the path of a file or a folder")));
        };
        if fs::symlink_metadata(path).is_ok() {
            // A link that is dangling, or leads to where we may not look.
            let within = fs::canonicalize(parent).map_err(|error| self.unresolved_error(path, &error))?;
            self.check_allowed(&within.join(last), path)?;
            return Err(PathError::AlreadyExists(shown.to_string()));
        }
        if path.as_os_str().to_string_lossy().ends_with(std::path::MAIN_SEPARATOR) {
            return Err(as_folder_error(self.unresolved_error(path, &io::ErrorKind::NotFound.into())));
        }
        let name = last.to_str().ok_or("expected UTF-8".to_owned()).and_then(FileName::new);
        let name = name.map_err(|wrong| PathError::Invalid(format!("save_path {shown}: {wrong}")))?;
        let folder =
            fs::canonicalize(parent).map_err(|error| as_folder_error(self.unresolved_error(parent, &error)))?;
        self.check_allowed(&folder.join(name.as_str()), path)?;
        if !folder.is_dir() {
            return Err(PathError::Invalid(format!("save_path {shown}: {} is no folder", parent.display())));
        }
        Ok((folder, name))
    }

    /// Checks whether a resolved path may be used. Errors show the path as it was `named`, so as not to reveal where a
    /// link leads.
    fn check_allowed(&self, resolved: &Path, named: &Path) -> Result<(), PathError> {
        let shown = named.display();
        let within = |folder: &Path| resolved.strip_prefix(folder).ok().filter(|rest| !rest.as_os_str().is_empty());
        // The repo may be in the data directory; the data directory may be in a shared folder.
        let rests: Vec<&Path> = match within(&self.repo) {
            Some(rest) => vec![rest],
            None if resolved.starts_with(&self.data_dir) => {
                return Err(PathError::Forbidden(format!("{shown} is of this node's own data")));
            }
            None => self.allowed.iter().filter_map(|folder| within(folder)).collect(),
        };
        if rests.is_empty() {
            let folders: Vec<String> = self.roots().map(|folder| folder.display().to_string()).collect();
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

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.allowed.iter().chain([&self.repo])
    }

    /// The error for a path that cannot be resolved: the actual one if the path would be inside the shared folders,
    /// otherwise that it is outside.
    fn unresolved_error(&self, path: &Path, error: &io::Error) -> PathError {
        // The existing part of the path determines where it would be.
        let there = path.ancestors().skip(1).find_map(|above| fs::canonicalize(above).ok().map(|it| (above, it)));
        if let Some((above, resolved)) = there {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            let climbs = rest.components().any(|part| !matches!(part, Component::Normal(_)));
            let would_be = resolved.join(rest);
            let refused = self.check_allowed(&would_be, path).err();
            if climbs || refused.is_some() {
                return refused.unwrap_or_else(|| PathError::NotFound(path.display().to_string()));
            }
        }
        path_error(path, error)
    }
}

/// Parses a path from a request: it must be absolute, and mean the same to the system as to us.
fn parse_path(named: &str) -> Result<&Path, PathError> {
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

/// The same error for a path that should be a folder, whether or not it was given with a trailing `/`.
fn as_folder_error(error: PathError) -> PathError {
    let PathError::NotFound(path) = error else { return error };
    let named = path.trim_end_matches('/');
    PathError::FolderNotFound(if named.is_empty() { path } else { named.to_owned() })
}

fn not_regular_error(path: &Path) -> PathError {
    PathError::Invalid(format!("{} is no regular file", path.display()))
}

fn path_error(path: &Path, error: &io::Error) -> PathError {
    let shown = path.display();
    match error.kind() {
        _ if dir_handle::is_symlink_error(error) => {
            PathError::Forbidden(format!("{shown} was exchanged for a link meanwhile"))
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => PathError::NotFound(shown.to_string()),
        io::ErrorKind::PermissionDenied => PathError::Forbidden(format!("{shown}: this node may not read it")),
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
        folders: SharedFolders,
    }

    impl Place {
        /// `roots/` is shared, `outside/` not; `roots/state` is the data dir with the repo in it.
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
            let folders = SharedFolders::new(&[root.join("shared")], &state.join("repo"), &state).unwrap();
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
        // The same error whether it exists or not.
        for named in ["outside/secret.txt", "outside/nothing", "outside/far/below", "shared/sub/../../outside/nothing"]
        {
            place.forbids(&place.at(named));
        }
        place.forbids("/no/such/place");
        // Nor is it revealed where a link leads, or that there is one.
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
        // SAFETY: mkfifo only reads the path, which is a NUL-terminated string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let socket = std::os::unix::net::UnixListener::bind(place.at("shared/socket")).unwrap();
        for named in ["shared/fifo", "shared/socket", "shared/sub", "shared"] {
            // Opening it does not block until another process writes.
            let refused = place.folders.open(&place.at(named)).unwrap_err();
            assert!(matches!(refused, PathError::Invalid(_)), "{named}: {refused:?}");
        }
        drop(socket);
        let state = place.root.join("shared/state");
        let devices = SharedFolders::new(&["/dev".into()], &state.join("repo"), &state).unwrap();
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
        assert!(place.folders.reopen(&path).is_err());
        assert!(dir_handle::is_symlink_error(&dir_handle::open_file(&path).unwrap_err()));
        // … and in the middle of it.
        fs::remove_file(&path).unwrap();
        fs::remove_dir(place.at("shared/sub")).unwrap();
        fs::write(place.at("outside/b.txt"), "x").unwrap();
        symlink(place.at("outside"), place.at("shared/sub")).unwrap();
        let refused = place.folders.reopen(&path).unwrap_err();
        assert!(matches!(refused, PathError::Forbidden(_)), "{refused:?}");
        assert!(dir_handle::is_symlink_error(&dir_handle::open_file(&path).unwrap_err()));
    }

    #[test]
    fn who_has_the_repo_alone_names_nothing_else() {
        let place = Place::new();
        let guest = place.folders.repo_only();
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
            let expected = if is_there { "AlreadyExists" } else { "Forbidden" };
            assert!(format!("{refused:?}").starts_with(expected), "{named}: {refused:?}");
        }
        for named in ["a.txt", "", "/x\0"] {
            assert!(matches!(place.folders.save_target(Some(named), &name), Err(PathError::Invalid(_))), "{named}");
        }
        for named in ["shared/none/new.txt", "shared/none/"] {
            let refused = place.folders.save_target(Some(&place.at(named)), &name).unwrap_err();
            assert_eq!(refused, PathError::FolderNotFound(place.at("shared/none")), "{named}");
            assert!(refused.to_string().starts_with("no such folder: "), "{refused}");
        }
        // Other hosts may publish names that begin with a dot: they are not saved as such.
        let hidden = FileName::new(".profile").unwrap();
        assert!(matches!(place.folders.save_target(None, &hidden), Err(PathError::Forbidden(_))));
    }
}
