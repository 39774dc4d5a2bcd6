//! Folders that are held open, and files in them: whatever is exchanged for a link while something is under way,
//! nothing is read or written elsewhere.
//!
//! A path is looked at once, links followed, and what it leads to is a path without links ([`Folders`]). From then
//! on it is only ever opened as such: the system refuses where a component has become a link meanwhile (`openat2` on
//! Linux, else one component after the other). What is done in a folder is done by its descriptor, with names of one
//! component.
//!
//! [`Folders`]: super::folders::Folders

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::files::unix_ns;

/// How a file in a folder is opened. Never through a link, and never waiting for a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One that is there, to be read.
    Read,
    /// One that is there, to be read and written.
    Write,
    /// One that is not there yet, to be read and written.
    Create,
}

/// What lies under a name; of a link, the link itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// It is a regular file.
    pub is_file: bool,
    /// It is a folder.
    pub is_folder: bool,
    /// It is a link.
    pub is_link: bool,
    /// Bytes.
    pub len: u64,
    /// When its content last changed, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Which file it is, where the system tells.
    id: Option<(u64, u64)>,
}

impl Found {
    /// Of what was looked at by its path: which file it is, is not known then.
    pub fn of(metadata: &Metadata) -> Found {
        Found {
            is_file: metadata.is_file(),
            is_folder: metadata.is_dir(),
            is_link: metadata.file_type().is_symlink(),
            len: metadata.len(),
            modified_ns: metadata.modified().map_or(0, unix_ns),
            id: None,
        }
    }

    /// Whether both names stand for one file.
    pub fn is_same(&self, other: &Found) -> bool {
        self.id.is_some() && self.id == other.id
    }
}

/// Whether it failed because something on the way, or at the end, is a link.
pub fn is_link(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(libc::ELOOP);
    #[cfg(not(unix))]
    return false;
}

/// A folder that is held open.
#[derive(Debug)]
pub struct HeldDir {
    dir: system::Dir,
    path: PathBuf,
}

impl HeldDir {
    /// Opens a folder by a path without links.
    ///
    /// # Errors
    /// The system's; [`is_link`] where there is a link after all.
    pub fn open(path: &Path) -> io::Result<HeldDir> {
        Ok(HeldDir { dir: system::open_dir(path)?, path: path.to_owned() })
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file in it.
    ///
    /// # Errors
    /// The system's; `InvalidInput` where it is no regular file.
    pub fn file(&self, name: &str, how: How) -> io::Result<File> {
        let file = self.dir.file(one(name)?, how)?;
        // A pipe or device may have come there between a look and this.
        if how != How::Create && !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(file)
    }

    /// What lies there under a name, if anything does.
    ///
    /// # Errors
    /// The system's.
    pub fn find(&self, name: &str) -> io::Result<Option<Found>> {
        match self.dir.find(one(name)?) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Shows the name of each thing that lies in it, in no order, until it is enough. A name that is not UTF-8 is left
    /// out: nobody could ask for it.
    ///
    /// # Errors
    /// The system's.
    pub fn each(&self, mut show: impl FnMut(&str) -> bool) -> io::Result<()> {
        self.dir.each(&mut |name| name.is_none_or(&mut show))
    }

    /// How many bytes may still be written there, where the system tells.
    pub fn room(&self) -> Option<u64> {
        self.dir.room()
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match self.dir.remove(one(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Renames a file of it; what has the new name is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.replace(one(from)?, one(to)?)
    }

    /// Renames a file of it, but never over what is there.
    ///
    /// # Errors
    /// The system's; `AlreadyExists`.
    pub fn place(&self, from: &str, to: &str) -> io::Result<()> {
        match self.dir.rename_exclusively(one(from)?, one(to)?) {
            // A file system, or a kernel, that does not know how.
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {}
            done => return done,
        }
        self.link(from, to)
    }

    /// The same by a second name: that fails where something is, unless it is the same file. Then a run before was
    /// cut short in between.
    ///
    /// # Errors
    /// As [`HeldDir::place`].
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        match self.dir.link(one(from)?, one(to)?) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let both = self.find(from)?.zip(self.find(to)?);
                if !both.is_some_and(|(from, to)| from.is_same(&to)) {
                    return Err(error);
                }
            }
            // A file system without links: a file of our own holds the name until it is replaced.
            Err(_) => {
                self.file(to, How::Create)?;
                return self.replace(from, to);
            }
        }
        self.remove(from)
    }

    /// Makes what was created, renamed or removed in it survive a power cut.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.dir.sync()
    }
}

/// Opens a file to be read, by a path without links.
///
/// # Errors
/// The system's; [`is_link`] where there is a link after all.
pub fn open_file(path: &Path) -> io::Result<File> {
    system::open_file(path)
}

/// A name that cannot lead out of its folder.
fn one(name: &str) -> io::Result<&str> {
    let is_one = !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\0']);
    #[cfg(not(unix))]
    let is_one = is_one && !name.contains(['\\', ':']);
    if is_one { Ok(name) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a file's name")) }
}

#[cfg(unix)]
mod system {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::{Component, Path};

    use rustix::fs::{
        AtFlags, CWD, Dir as Reading, FileType, Mode, OFlags, fstat, fstatvfs, linkat, openat, renameat, statat,
        unlinkat,
    };

    use super::{Found, How};

    const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
    const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
    /// As `std` creates files: the rest is the user's umask.
    const MODE: u32 = 0o666;

    #[derive(Debug)]
    pub(super) struct Dir(OwnedFd);

    impl Dir {
        pub(super) fn file(&self, name: &str, how: How) -> io::Result<File> {
            let how = match how {
                How::Read => OFlags::RDONLY,
                How::Write => OFlags::RDWR,
                How::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
            Ok(File::from(openat(&self.0, name, how | FILE, Mode::from_raw_mode(MODE as _))?))
        }

        pub(super) fn find(&self, name: &str) -> io::Result<Found> {
            let stat = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            #[allow(clippy::unnecessary_cast, reason = "their types differ from system to system")]
            Ok(Found {
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

        /// Shows each name, or that there is one which is no text, until it is enough.
        pub(super) fn each(&self, show: &mut dyn FnMut(Option<&str>) -> bool) -> io::Result<()> {
            for entry in Reading::read_from(&self.0)? {
                let entry = entry?;
                let name = entry.file_name().to_str().ok();
                if !matches!(name, Some("." | "..")) && !show(name) {
                    break;
                }
            }
            Ok(())
        }

        pub(super) fn room(&self) -> Option<u64> {
            fstatvfs(&self.0).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        }

        pub(super) fn remove(&self, name: &str) -> io::Result<()> {
            Ok(unlinkat(&self.0, name, AtFlags::empty())?)
        }

        pub(super) fn replace(&self, from: &str, to: &str) -> io::Result<()> {
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

        pub(super) fn link(&self, from: &str, to: &str) -> io::Result<()> {
            Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            Ok(rustix::fs::fsync(&self.0)?)
        }
    }

    pub(super) fn open_dir(path: &Path) -> io::Result<Dir> {
        let dir = open(path, FOLDER)?;
        // One component after the other a link at the end is "not a directory" on some systems.
        if FileType::from_raw_mode(fstat(&dir)?.st_mode) != FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Dir(dir))
    }

    pub(super) fn open_file(path: &Path) -> io::Result<File> {
        Ok(File::from(open(path, OFlags::RDONLY | FILE)?))
    }

    #[cfg(target_os = "linux")]
    fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        use rustix::fs::{ResolveFlags, openat2};
        use rustix::io::Errno;
        let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Without NOFOLLOW: with it a link where a folder is expected is told as "not a directory".
        match openat2(CWD, path, how.difference(OFlags::NOFOLLOW), Mode::empty(), no_links) {
            // A kernel before 5.6, or a sandbox that does not know the call (some say EPERM then).
            Err(Errno::NOSYS | Errno::PERM) => step_by_step(path, how),
            done => Ok(done?),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        step_by_step(path, how)
    }

    /// Opens each folder of the path from the one before it, following no link.
    pub(super) fn step_by_step(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
        // What is only passed through need not be readable.
        #[cfg(target_os = "linux")]
        let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let on_the_way = FOLDER;
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
        let mut at = openat(CWD, start, on_the_way, Mode::empty())?;
        for name in before {
            at = openat(&at, *name, on_the_way, Mode::empty()).map_err(|errno| as_link(&at, name, errno))?;
        }
        openat(&at, *last, how, Mode::empty()).map_err(|errno| as_link(&at, last, errno))
    }

    /// A link where a folder is expected is told as "not a directory": say what it is.
    fn as_link(dir: &OwnedFd, name: &OsStr, errno: rustix::io::Errno) -> io::Error {
        use rustix::io::Errno;
        let is_link = || {
            statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        };
        if errno == Errno::NOTDIR && is_link() { Errno::LOOP.into() } else { errno.into() }
    }
}

/// Without descriptors of folders: by paths, each looked at before and after.
#[cfg(not(unix))]
mod system {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::path::{Path, PathBuf};

    use super::{Found, How};

    #[derive(Debug)]
    pub(super) struct Dir(PathBuf);

    impl Dir {
        fn at(&self, name: &str) -> io::Result<PathBuf> {
            without_links(&self.0)?;
            Ok(self.0.join(name))
        }

        pub(super) fn file(&self, name: &str, how: How) -> io::Result<File> {
            let mut options = OpenOptions::new();
            options.read(true).write(how != How::Read).create_new(how == How::Create);
            let path = self.at(name)?;
            if how != How::Create && !fs::symlink_metadata(&path)?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            options.open(path)
        }

        pub(super) fn find(&self, name: &str) -> io::Result<Found> {
            Ok(Found::of(&fs::symlink_metadata(self.at(name)?)?))
        }

        pub(super) fn each(&self, show: &mut dyn FnMut(Option<&str>) -> bool) -> io::Result<()> {
            without_links(&self.0)?;
            for entry in fs::read_dir(&self.0)? {
                if !show(entry?.file_name().to_str()) {
                    break;
                }
            }
            Ok(())
        }

        pub(super) fn room(&self) -> Option<u64> {
            None
        }

        pub(super) fn remove(&self, name: &str) -> io::Result<()> {
            fs::remove_file(self.at(name)?)
        }

        pub(super) fn replace(&self, from: &str, to: &str) -> io::Result<()> {
            fs::rename(self.at(from)?, self.0.join(to))
        }

        pub(super) fn rename_exclusively(&self, _from: &str, _to: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn link(&self, from: &str, to: &str) -> io::Result<()> {
            fs::hard_link(self.at(from)?, self.0.join(to))
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn without_links(path: &Path) -> io::Result<()> {
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
        without_links(path)?;
        let file = File::open(path)?;
        without_links(path)?;
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
        let held = HeldDir::open(&root.join("shared/sub")).unwrap();
        fs::rename(root.join("shared/sub"), root.join("shared/other")).unwrap();
        symlink(root.join("outside"), root.join("shared/sub")).unwrap();
        let mut text = String::new();
        held.file("a", How::Read).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        held.file("b", How::Create).unwrap().write_all(b"new").unwrap();
        held.place("b", "c").unwrap();
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
            let opened = if is_folder { HeldDir::open(&path).map(drop) } else { open_file(&path).map(drop) };
            let refused = opened.unwrap_err();
            assert!(is_link(&refused), "{}: {refused}", path.display());
            let how = OFlags::RDONLY | OFlags::NOFOLLOW | if is_folder { OFlags::DIRECTORY } else { OFlags::empty() };
            let refused = system::step_by_step(&path, how).unwrap_err();
            assert!(is_link(&refused), "step by step, {}: {refused}", path.display());
        }
        assert!(system::step_by_step(&root.join("shared/sub/a"), OFlags::RDONLY).is_ok());
        assert!(system::step_by_step(&root.join("shared/../outside/a"), OFlags::RDONLY).is_err());
        let held = HeldDir::open(&root.join("shared/sub")).unwrap();
        assert!(is_link(&held.file("link", How::Read).unwrap_err()));
        assert!(is_link(&held.file("link", How::Write).unwrap_err()));
        assert_eq!(held.file("link", How::Create).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(!held.find("link").unwrap().unwrap().is_file, "the link itself");
    }

    #[test]
    fn names_lead_nowhere_else() {
        let (_dir, root) = place();
        let held = HeldDir::open(&root.join("shared")).unwrap();
        for name in ["", ".", "..", "../outside/a", "sub/a", "/etc/passwd", "a\0b"] {
            assert_eq!(held.file(name, How::Read).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
            assert!(held.remove(name).is_err() && held.find(name).is_err() && held.replace("x", name).is_err());
        }
        assert!(root.join("outside/a").exists());
    }
}
