//! One server per data dir. Commands that look or copy beside a running server do without.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::files;

/// The lock's file in the data dir.
pub(super) const LOCK_FILE: &str = "lock";

/// Holds a data dir for this process. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    /// Open as long as the lock is held; the file itself stays, for removing it would race.
    _file: File,
}

/// Why a data dir could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another server runs on it.
    #[error("data dir {dir} is in use by process {pid}: stop it or choose another data dir")]
    Held {
        /// The data dir.
        dir: PathBuf,
        /// Its process id, `unknown` where the system does not let us read it.
        pid: String,
    },
    /// A restore into it did not come to its end.
    #[error("data dir {dir} holds an unfinished restore: empty it and restore again")]
    Unfinished {
        /// The data dir.
        dir: PathBuf,
    },
    /// Something else has its name, or that of a folder above it.
    #[error("data dir {dir} cannot be used: {file} is a file, not a folder")]
    NotAFolder {
        /// The data dir.
        dir: PathBuf,
        /// What is in its place.
        file: PathBuf,
    },
    /// What the system said.
    #[error("data dir {dir} cannot be locked: {error}")]
    Io {
        /// The data dir.
        dir: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
}

impl DataDirLock {
    /// Takes the data dir for this process; creates it (mode 700) if it is missing. Does not wait.
    ///
    /// # Errors
    /// Who holds it, or why it cannot be had.
    pub fn take(dir: &Path) -> Result<DataDirLock, LockError> {
        let lock = DataDirLock::take_for_restore(dir)?;
        if dir.join(super::restore::STAGING_DIR).exists() {
            return Err(LockError::Unfinished { dir: dir.to_owned() });
        }
        Ok(lock)
    }

    /// Takes one component's part of a data dir: others may run beside it on theirs.
    ///
    /// # Errors
    /// Who holds it, or why it cannot be had.
    pub fn take_part(dir: &Path, component: &str) -> Result<DataDirLock, LockError> {
        let lock = DataDirLock::take_file(dir, &format!("{LOCK_FILE}-{component}"))?;
        if dir.join(super::restore::STAGING_DIR).exists() {
            return Err(LockError::Unfinished { dir: dir.to_owned() });
        }
        Ok(lock)
    }

    pub(super) fn take_for_restore(dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::take_file(dir, LOCK_FILE)
    }

    fn take_file(dir: &Path, name: &str) -> Result<DataDirLock, LockError> {
        let failed = |error| LockError::Io { dir: dir.to_owned(), error };
        if let Some(file) = dir.ancestors().find(|part| part.exists()).filter(|part| !part.is_dir()) {
            return Err(LockError::NotAFolder { dir: dir.to_owned(), file: file.to_owned() });
        }
        files::create_private_dir(dir).map_err(failed)?;
        let open = || files::private().read(true).write(true).create(true).truncate(false).open(dir.join(name));
        let mut file = open().map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Bounded, because the file is not ours. Where a locked file cannot be read, we do not know.
                let read = (&mut file).take(20).read_to_string(&mut pid);
                let known = read.is_ok() && !pid.trim().is_empty();
                let pid = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
                return Err(LockError::Held { dir: dir.to_owned(), pid });
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(failed)?;
        Ok(DataDirLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_holder() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        let lock = DataDirLock::take(&dir).unwrap();
        let refused = DataDirLock::take(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}:", std::process::id())), "{refused}");
        drop(lock);
        DataDirLock::take(&dir).unwrap();
    }

    #[test]
    fn each_part_of_a_data_dir_has_one_holder() {
        let home = tempfile::tempdir().unwrap();
        let _product = DataDirLock::take_part(home.path(), "product").unwrap();
        let _customer = DataDirLock::take_part(home.path(), "customer").unwrap();
        let refused = DataDirLock::take_part(home.path(), "product").unwrap_err();
        assert!(matches!(refused, LockError::Held { .. }), "{refused}");
    }

    #[test]
    fn a_file_is_no_data_dir() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for dir in [file.clone(), file.join("below"), file.join("far/below")] {
            let refused = DataDirLock::take(&dir).unwrap_err().to_string();
            assert!(refused.contains(&format!("{} is a file, not a folder", file.display())), "{refused}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn an_unfinished_restore_is_not_started_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(super::super::restore::STAGING_DIR)).unwrap();
        assert!(matches!(DataDirLock::take(dir.path()), Err(LockError::Unfinished { .. })));
    }
}
