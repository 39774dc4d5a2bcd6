//! Handles of open folders and operations on files in them. Replacing a path component by a symbolic link in the
//! meantime (a TOCTOU attack) cannot redirect reads or writes elsewhere.
//!
//! A path is resolved once, following links, to a path without links ([`SharedFolders`]). From then on it is opened
//! only as such: the system refuses if a component has become a link (`openat2` on Linux, otherwise one component after
//! the other). Operations in a folder use its descriptor and names of a single component.
//!
//! [`SharedFolders`]: super::folders::SharedFolders

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::unix_time::unix_ns;

/// How a file in a folder is opened. Links are never followed, and opening a pipe never blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file, for reading and writing.
    Create,
}

/// Metadata of a directory entry; of a link, the link itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    pub is_file: bool,
    pub is_folder: bool,
    pub is_link: bool,
    pub len: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Device and inode, where the system has them.
    id: Option<(u64, u64)>,
}

impl EntryInfo {
    /// From metadata that was read by path; it then has no identity for [`EntryInfo::is_same`].
    pub fn of(metadata: &Metadata) -> EntryInfo {
        EntryInfo {
            is_file: metadata.is_file(),
            is_folder: metadata.is_dir(),
            is_link: metadata.file_type().is_symlink(),
            len: metadata.len(),
            modified_ns: metadata.modified().map_or(0, unix_ns),
            id: None,
        }
    }

    /// Whether both entries are the same file.
    pub fn is_same(&self, other: &EntryInfo) -> bool {
        self.id.is_some() && self.id == other.id
    }
}

/// Whether an operation failed because a component of the path is a symbolic link.
pub fn is_symlink_error(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(libc::ELOOP);
    #[cfg(not(unix))]
    return false;
}

#[derive(Debug)]
pub struct DirHandle {
    dir: platform::Dir,
    path: PathBuf,
}

impl DirHandle {
    /// Opens a folder by a path that contains no links; if it does after all, [`is_symlink_error`] holds.
    pub fn open(path: &Path) -> io::Result<DirHandle> {
        Ok(DirHandle { dir: platform::open_dir(path)?, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open_file(&self, name: &str, how: OpenMode) -> io::Result<File> {
        let file = self.dir.open_file(single_component(name)?, how)?;
        // A pipe or device may have appeared since the caller's check.
        if how != OpenMode::Create && !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(file)
    }

    /// Metadata of the entry of that name, if there is one.
    pub fn entry_info(&self, name: &str) -> io::Result<Option<EntryInfo>> {
        if_found(self.dir.entry_info(single_component(name)?))
    }

    /// Calls `show` with the name of each entry, in no particular order, until it returns false. Names that are not
    /// UTF-8 are left out, since no request could contain them.
    pub fn for_each_name(&self, mut show: impl FnMut(&str) -> bool) -> io::Result<()> {
        self.dir.for_each_name(&mut |name| name.is_none_or(&mut show))
    }

    /// Free space in bytes, where the system tells.
    pub fn free_bytes(&self) -> Option<u64> {
        self.dir.free_bytes()
    }

    /// Removes a file if it exists.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        if_found(self.dir.remove(single_component(name)?)).map(drop)
    }

    /// Renames a file in the folder, replacing an existing one.
    pub fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename_over(single_component(from)?, single_component(to)?)
    }

    /// Renames a file in the folder, but never over an existing entry (`AlreadyExists`).
    pub fn rename_exclusively(&self, from: &str, to: &str) -> io::Result<()> {
        match self.dir.rename_exclusively(single_component(from)?, single_component(to)?) {
            // The file system or kernel does not support it.
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {}
            done => return done,
        }
        self.link_exclusively(from, to)
    }

    /// The same by way of a hard link, which fails if the new name exists. If that is the same file, an earlier run was
    /// interrupted before it removed the old name, and this completes it.
    pub fn link_exclusively(&self, from: &str, to: &str) -> io::Result<()> {
        match self.dir.hard_link(single_component(from)?, single_component(to)?) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let both = self.entry_info(from)?.zip(self.entry_info(to)?);
                if !both.is_some_and(|(from, to)| from.is_same(&to)) {
                    return Err(error);
                }
            }
            // A file system without hard links: create a placeholder under the new name, then replace it.
            Err(_) => {
                self.open_file(to, OpenMode::Create)?;
                return self.rename_over(from, to);
            }
        }
        self.remove(from)
    }

    /// Makes created, renamed and removed entries durable.
    pub fn sync(&self) -> io::Result<()> {
        self.dir.sync()
    }
}

/// Opens a file for reading by a path that contains no links; if it does after all, [`is_symlink_error`] holds.
pub fn open_file(path: &Path) -> io::Result<File> {
    platform::open_file(path)
}

/// `None` for what does not exist.
pub fn if_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Checks that a name is a single component, which cannot lead out of its folder.
fn single_component(name: &str) -> io::Result<&str> {
    let is_one = !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\0']);
    #[cfg(not(unix))]
    let is_one = is_one && !name.contains(['\\', ':']);
    if is_one { Ok(name) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a file's name")) }
}

#[cfg(unix)]
mod platform {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::{Component, Path};

    use rustix::fs::{
        AtFlags, CWD, Dir as DirReader, FileType, Mode, OFlags, fstat, fstatvfs, linkat, openat, renameat, statat,
        unlinkat,
    };

    use super::{EntryInfo, OpenMode};

    const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
    const FILE_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
    /// The mode that `std` uses for new files, subject to the umask.
    const CREATE_MODE: u32 = 0o666;

    #[derive(Debug)]
    pub(super) struct Dir(OwnedFd);

    impl Dir {
        pub(super) fn open_file(&self, name: &str, how: OpenMode) -> io::Result<File> {
            let how = match how {
                OpenMode::Read => OFlags::RDONLY,
                OpenMode::Write => OFlags::RDWR,
                OpenMode::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
            Ok(File::from(openat(&self.0, name, how | FILE_FLAGS, Mode::from_raw_mode(CREATE_MODE as _))?))
        }

        pub(super) fn entry_info(&self, name: &str) -> io::Result<EntryInfo> {
            let stat = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            #[allow(clippy::unnecessary_cast, reason = "their types differ from system to system")]
            Ok(EntryInfo {
                is_file: kind == FileType::RegularFile,
                is_folder: kind == FileType::Directory,
                is_link: kind == FileType::Symlink,
                len: stat.st_size as u64,
                modified_ns: (stat.st_mtime as i64)
                    .saturating_mul(1_000_000_000)
                    .saturating_add(stat.st_mtime_nsec as i64),
                id: Some((stat.st_dev as u64, stat.st_ino as u64)),
            })
        }

        /// Calls `show` with each name, or `None` for one that is not UTF-8, until it returns false.
        pub(super) fn for_each_name(&self, show: &mut dyn FnMut(Option<&str>) -> bool) -> io::Result<()> {
            for entry in DirReader::read_from(&self.0)? {
                let entry = entry?;
                let name = entry.file_name().to_str().ok();
                if !matches!(name, Some("." | "..")) && !show(name) {
                    break;
                }
            }
            Ok(())
        }

        pub(super) fn free_bytes(&self) -> Option<u64> {
            fstatvfs(&self.0).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        }

        pub(super) fn remove(&self, name: &str) -> io::Result<()> {
            Ok(unlinkat(&self.0, name, AtFlags::empty())?)
        }

        pub(super) fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(renameat(&self.0, from, &self.0, to)?)
        }

        #[cfg(target_os = "linux")]
        pub(super) fn rename_exclusively(&self, from: &str, to: &str) -> io::Result<()> {
            use rustix::fs::{RenameFlags, renameat_with};
            use rustix::io::Errno;
            match renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
                done => Ok(done?),
            }
        }

        #[cfg(not(target_os = "linux"))]
        pub(super) fn rename_exclusively(&self, _from: &str, _to: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            Ok(rustix::fs::fsync(&self.0)?)
        }
    }

    pub(super) fn open_dir(path: &Path) -> io::Result<Dir> {
        let dir = open(path, DIR_FLAGS)?;
        // When opened component by component, a link at the end is not reported as such on some systems.
        if FileType::from_raw_mode(fstat(&dir)?.st_mode) != FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Dir(dir))
    }

    pub(super) fn open_file(path: &Path) -> io::Result<File> {
        Ok(File::from(open(path, OFlags::RDONLY | FILE_FLAGS)?))
    }

    #[cfg(target_os = "linux")]
    fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        use rustix::fs::{ResolveFlags, openat2};
        use rustix::io::Errno;
        let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Without NOFOLLOW, which would report a link where a folder is expected as "not a directory".
        match openat2(CWD, path, how.difference(OFlags::NOFOLLOW), Mode::empty(), no_links) {
            // A kernel before 5.6, or a sandbox that blocks the call (some return EPERM).
            Err(Errno::NOSYS | Errno::PERM) => open_by_component(path, how),
            done => Ok(done?),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        open_by_component(path, how)
    }

    /// Opens each folder of the path relative to the previous one, without following links.
    pub(super) fn open_by_component(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        // Intermediate folders need not be readable.
        #[cfg(target_os = "linux")]
        let traverse_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let traverse_flags = DIR_FLAGS;
        let names = path.components().map(|part| match part {
            Component::RootDir => Ok(None),
            Component::Normal(name) => Ok(Some(name)),
            Component::CurDir => Ok(None),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a path without ..")),
        });
        let names: Vec<&OsStr> = names.filter_map(Result::transpose).collect::<io::Result<_>>()?;
        let start = if path.is_absolute() { "/" } else { "." };
        let Some((last, before)) = names.split_last() else {
            return Ok(openat(CWD, start, how, Mode::empty())?);
        };
        let mut at = openat(CWD, start, traverse_flags, Mode::empty())?;
        for name in before {
            at = openat(&at, *name, traverse_flags, Mode::empty()).map_err(|errno| to_link_error(&at, name, errno))?;
        }
        openat(&at, *last, how, Mode::empty()).map_err(|errno| to_link_error(&at, last, errno))
    }

    /// A link where a folder is expected gives "not a directory"; converts that to the error for links.
    fn to_link_error(dir: &OwnedFd, name: &OsStr, errno: rustix::io::Errno) -> io::Error {
        use rustix::io::Errno;
        let is_link = || {
            statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        };
        if errno == Errno::NOTDIR && is_link() { Errno::LOOP.into() } else { errno.into() }
    }
}

/// Without directory descriptors: works by paths, which are checked before and after.
#[cfg(not(unix))]
mod platform {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::path::{Path, PathBuf};

    use super::{EntryInfo, OpenMode};

    #[derive(Debug)]
    pub(super) struct Dir(PathBuf);

    impl Dir {
        fn at(&self, name: &str) -> io::Result<PathBuf> {
            check_no_links(&self.0)?;
            Ok(self.0.join(name))
        }

        pub(super) fn open_file(&self, name: &str, how: OpenMode) -> io::Result<File> {
            let mut options = OpenOptions::new();
            options.read(true).write(how != OpenMode::Read).create_new(how == OpenMode::Create);
            let path = self.at(name)?;
            if how != OpenMode::Create && !fs::symlink_metadata(&path)?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            options.open(path)
        }

        pub(super) fn entry_info(&self, name: &str) -> io::Result<EntryInfo> {
            Ok(EntryInfo::of(&fs::symlink_metadata(self.at(name)?)?))
        }

        pub(super) fn for_each_name(&self, show: &mut dyn FnMut(Option<&str>) -> bool) -> io::Result<()> {
            check_no_links(&self.0)?;
            for entry in fs::read_dir(&self.0)? {
                if !show(entry?.file_name().to_str()) {
                    break;
                }
            }
            Ok(())
        }

        pub(super) fn free_bytes(&self) -> Option<u64> {
            None
        }

        pub(super) fn remove(&self, name: &str) -> io::Result<()> {
            fs::remove_file(self.at(name)?)
        }

        pub(super) fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.at(from)?, self.0.join(to))
        }

        pub(super) fn rename_exclusively(&self, _from: &str, _to: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn hard_link(&self, from: &str, to: &str) -> io::Result<()> {
            fs::hard_link(self.at(from)?, self.0.join(to))
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn check_no_links(path: &Path) -> io::Result<()> {
        if fs::canonicalize(path)? == path {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "it was exchanged for a link"))
    }

    pub(super) fn open_dir(path: &Path) -> io::Result<Dir> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Dir(path.to_owned()))
    }

    pub(super) fn open_file(path: &Path) -> io::Result<File> {
        check_no_links(path)?;
        let file = File::open(path)?;
        check_no_links(path)?;
        Ok(file)
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("shared/sub")).unwrap();
        fs::create_dir(root.join("outside")).unwrap();
        fs::write(root.join("shared/sub/a"), "inside").unwrap();
        fs::write(root.join("outside/a"), "outside").unwrap();
        (dir, root)
    }

    #[test]
    fn what_is_held_stays_when_its_path_leads_elsewhere() {
        let (_dir, root) = place();
        let held = DirHandle::open(&root.join("shared/sub")).unwrap();
        fs::rename(root.join("shared/sub"), root.join("shared/other")).unwrap();
        symlink(root.join("outside"), root.join("shared/sub")).unwrap();
        let mut text = String::new();
        held.open_file("a", OpenMode::Read).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        held.open_file("b", OpenMode::Create).unwrap().write_all(b"new").unwrap();
        held.rename_exclusively("b", "c").unwrap();
        held.remove("a").unwrap();
        held.sync().unwrap();
        let names = |folder: &str| fs::read_dir(root.join(folder)).unwrap().map(|it| it.unwrap().file_name()).collect();
        let (outside, other): (Vec<_>, Vec<_>) = (names("outside"), names("shared/other"));
        assert_eq!((outside, other), (vec!["a".into()], vec!["c".into()]));
    }

    #[test]
    fn a_link_on_the_way_or_at_the_end_is_refused_however_the_system_opens() {
        let (_dir, root) = place();
        symlink(root.join("outside"), root.join("shared/link")).unwrap();
        symlink(root.join("outside/a"), root.join("shared/sub/link")).unwrap();
        fs::create_dir(root.join("outside/deep")).unwrap();
        for (path, is_folder) in
            [("shared/link", true), ("shared/link/deep", true), ("shared/link/a", false), ("shared/sub/link", false)]
        {
            let path = root.join(path);
            let opened = if is_folder { DirHandle::open(&path).map(drop) } else { open_file(&path).map(drop) };
            let refused = opened.unwrap_err();
            assert!(is_symlink_error(&refused), "{}: {refused}", path.display());
            let how = OFlags::RDONLY | OFlags::NOFOLLOW | if is_folder { OFlags::DIRECTORY } else { OFlags::empty() };
            let refused = platform::open_by_component(&path, how).unwrap_err();
            assert!(is_symlink_error(&refused), "step by step, {}: {refused}", path.display());
        }
        assert!(platform::open_by_component(&root.join("shared/sub/a"), OFlags::RDONLY).is_ok());
        assert!(platform::open_by_component(&root.join("shared/../outside/a"), OFlags::RDONLY).is_err());
        let held = DirHandle::open(&root.join("shared/sub")).unwrap();
        assert!(is_symlink_error(&held.open_file("link", OpenMode::Read).unwrap_err()));
        assert!(is_symlink_error(&held.open_file("link", OpenMode::Write).unwrap_err()));
        assert_eq!(held.open_file("link", OpenMode::Create).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(!held.entry_info("link").unwrap().unwrap().is_file, "the link itself");
    }

    #[test]
    fn names_lead_nowhere_else() {
        let (_dir, root) = place();
        let held = DirHandle::open(&root.join("shared")).unwrap();
        for name in ["", ".", "..", "../outside/a", "sub/a", "/etc/passwd", "a\0b"] {
            assert_eq!(
                held.open_file(name, OpenMode::Read).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name:?}"
            );
            assert!(
                held.remove(name).is_err() && held.entry_info(name).is_err() && held.rename_over("x", name).is_err()
            );
        }
        assert!(root.join("outside/a").exists());
    }
}
