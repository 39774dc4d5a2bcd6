//! Private files and folders, and how they are synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Missing parents are created, too. What is created is synced, and accessible to its owner alone; existing folders
/// stay as they are.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = parent_of(dir) {
        create_private_dir(parent)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        // Another thread or process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        result => result?,
    }
    parent_of(dir).map_or(Ok(()), sync_dir)
}

/// Options for a file that only its owner may read.
pub(crate) fn private_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Writes a file under a temporary name beside it and renames it, so that readers never see a part of it. Nothing is
/// synced: this is for files that can be made again.
pub(crate) fn replace(
    path: &Path,
    mut options: OpenOptions,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = with_suffix(path, &format!(".{}", std::process::id()));
    let mut file = options.write(true).create(true).truncate(true).open(&temporary)?;
    write(&mut file)?;
    std::fs::rename(&temporary, path)
}

/// Replaces a private file by one that was written and synced beside it, under its name with `-new`: a power cut leaves
/// the old content or the new one.
pub(super) fn replace_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = with_suffix(path, "-new");
    let mut file = private_file_options().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&new, path)?;
    parent_of(path).map_or(Ok(()), sync_dir)
}

/// Creates an empty private file if there is none; an existing one loses the permissions of everybody but its owner. It
/// is not opened: closing it again would drop the locks that SQLite holds on it in this process (POSIX locks belong to
/// the process and end with any descriptor of the file).
pub(super) fn create_private_file(path: &Path) -> io::Result<()> {
    match private_file_options().write(true).create_new(true).open(path) {
        Ok(_) => parent_of(path).map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => make_private(path),
        Err(error) => Err(error),
    }
}

/// Reads up to `max_bytes`. Anything but a regular file (a pipe without a writer, say) is `InvalidInput` and is never
/// waited for.
pub(crate) fn read_up_to(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.read(true).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let problem = if metadata.is_dir() { "it is a folder" } else { "it is no file" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub fn is_missing_or_empty(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(found) => found.is_file() && found.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Appends to the last component of a path.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Does nothing if there is no such file.
pub(super) fn make_owner_writable(path: &Path) -> io::Result<()> {
    match change_mode(path, |mode| if mode & 0o600 == 0o600 { mode } else { 0o600 }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    change_mode(path, |mode| if mode & 0o077 == 0 { mode } else { mode & 0o700 })
}

/// Only Unix has modes.
#[cfg_attr(not(unix), allow(unused_variables))]
fn change_mode(path: &Path, change: impl FnOnce(u32) -> u32) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path)?.permissions().mode();
        let changed = change(mode);
        if changed != mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(changed))?;
        }
    }
    Ok(())
}

/// The parent of a bare name is `.`; a root has none.
pub(crate) fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Makes files created, renamed or removed in a folder survive a power cut. Windows neither needs nor allows it.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_replaced_file_is_whole_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace(&path, private_file_options(), |file| file.write_all(b"one")).unwrap();
        replace(&path, private_file_options(), |file| file.write_all(b"2")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let broken = replace(&path, private_file_options(), |file| {
            file.write_all(b"thr")?;
            Err(io::Error::other("no space"))
        });
        assert!(broken.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
    }
}
