//! One server per data dir. Commands that read or copy a data dir beside a running server take no lock.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::files;
use super::range_markers::DataComponent;

pub(super) const LOCK_FILE: &str = "lock";
/// An archive is unpacked in it: while it is there, a restore is not finished.
pub(super) const STAGING_DIR: &str = ".restoring";

/// The operating system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    /// Open as long as the lock is held. The file itself stays, because removing it would race.
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("data dir {dir} is in use by process {pid}: stop it or choose another data dir")]
    Held {
        dir: PathBuf,
        /// It is `unknown` where the system does not let us read it.
        pid: String,
    },
    #[error("data dir {dir} holds an unfinished restore: empty it and restore again")]
    UnfinishedRestore { dir: PathBuf },
    /// The data dir's name, or that of a folder above it, is a file's.
    #[error("data dir {dir} cannot be used: {file} is a file, not a folder")]
    NotADirectory {
        dir: PathBuf,
        /// The path that is not a folder.
        file: PathBuf,
    },
    #[error("data dir {dir} cannot be locked: {error}")]
    Io { dir: PathBuf, error: std::io::Error },
}

impl DataDirLock {
    /// Creates the data dir (mode 700) if it is missing. Does not wait.
    pub fn acquire(dir: &Path) -> Result<DataDirLock, LockError> {
        let lock = DataDirLock::acquire_for_restore(dir)?;
        refuse_unfinished_restore(dir)?;
        Ok(lock)
    }

    /// Processes for other components may run beside it.
    pub fn acquire_component(dir: &Path, component: DataComponent) -> Result<DataDirLock, LockError> {
        let lock = DataDirLock::acquire_file(dir, &format!("{LOCK_FILE}-{component}"))?;
        refuse_unfinished_restore(dir)?;
        Ok(lock)
    }

    pub(super) fn acquire_for_restore(dir: &Path) -> Result<DataDirLock, LockError> {
        DataDirLock::acquire_file(dir, LOCK_FILE)
    }

    fn acquire_file(dir: &Path, name: &str) -> Result<DataDirLock, LockError> {
        let failed = |error| LockError::Io { dir: dir.to_owned(), error };
        if let Some(file) = dir.ancestors().find(|ancestor| ancestor.exists()).filter(|ancestor| !ancestor.is_dir()) {
            return Err(LockError::NotADirectory { dir: dir.to_owned(), file: file.to_owned() });
        }
        files::create_private_dir(dir).map_err(failed)?;
        let open =
            || files::private_file_options().read(true).write(true).create(true).truncate(false).open(dir.join(name));
        let mut file = open().map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Bounded, because the file may hold anything. Where a locked file cannot be read, the process is
                // unknown.
                let read = (&mut file).take(20).read_to_string(&mut pid);
                let is_known = read.is_ok() && !pid.trim().is_empty();
                let pid = if is_known { pid.trim().to_owned() } else { "unknown".to_owned() };
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

fn refuse_unfinished_restore(dir: &Path) -> Result<(), LockError> {
    if dir.join(STAGING_DIR).exists() {
        return Err(LockError::UnfinishedRestore { dir: dir.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_has_one_holder() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        let lock = DataDirLock::acquire(&dir).unwrap();
        let refused = DataDirLock::acquire(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}:", std::process::id())), "{refused}");
        drop(lock);
        DataDirLock::acquire(&dir).unwrap();
    }

    #[test]
    fn each_part_of_a_data_dir_has_one_holder() {
        let home = tempfile::tempdir().unwrap();
        let _product = DataDirLock::acquire_component(home.path(), DataComponent::Product).unwrap();
        let _customer = DataDirLock::acquire_component(home.path(), DataComponent::Customer).unwrap();
        let refused = DataDirLock::acquire_component(home.path(), DataComponent::Product).unwrap_err();
        assert!(matches!(refused, LockError::Held { .. }), "{refused}");
    }

    #[test]
    fn a_file_is_no_data_dir() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for dir in [file.clone(), file.join("below"), file.join("far/below")] {
            let refused = DataDirLock::acquire(&dir).unwrap_err().to_string();
            assert!(refused.contains(&format!("{} is a file, not a folder", file.display())), "{refused}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }

    #[test]
    fn an_unfinished_restore_is_not_started_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(STAGING_DIR)).unwrap();
        assert!(matches!(DataDirLock::acquire(dir.path()), Err(LockError::UnfinishedRestore { .. })));
    }
}
