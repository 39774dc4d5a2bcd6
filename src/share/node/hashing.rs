//! The thread that hashes published files. Only with digests can others fetch from several sources and resume after an
//! interruption. When idle, it checks whether files still exist.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{NodeInner, presence_scan};
use crate::share::files::FileStat;
use crate::share::folders::OpenedFile;
use crate::share::pieces::FileDigests;

pub(super) enum HashCommand {
    /// There may be files that have not been hashed.
    HashPending,
    Stop,
}

/// Runs until it is told to stop. Files not hashed by then are found again at the next start.
pub(super) fn run(inner: &NodeInner, commands: &Receiver<HashCommand>) {
    let mut scan = presence_scan::PresenceScan::default();
    let mut next_scan_at = Instant::now() + presence_scan::FIRST_SCAN_DELAY;
    loop {
        match commands.recv_deadline(next_scan_at) {
            Ok(HashCommand::HashPending) => hash_until_done(inner),
            Ok(HashCommand::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = scan.scan_next_batch(inner) {
                    log::warn!("{}: looking whether files are still there: {error}", inner.user);
                }
                next_scan_at = Instant::now() + presence_scan::SCAN_INTERVAL;
            }
        }
    }
}

fn hash_until_done(inner: &NodeInner) {
    loop {
        match hash_pending(inner) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return log::warn!("{}: reading published files: {error}", inner.user),
        }
    }
}

/// Returns how many files were hashed.
fn hash_pending(inner: &NodeInner) -> Result<usize, super::NodeError> {
    let mut read = 0;
    for name in inner.files.unhashed()? {
        if inner.is_stopping.load(Relaxed) {
            return Ok(0);
        }
        let Some(tracked) = inner.files.get(&name)?.filter(|tracked| tracked.is_published) else { continue };
        if !inner.files.begin_hashing(&name, &tracked.stat) {
            continue;
        }
        match hash_file(inner, &tracked.stat) {
            Ok(Some(pieces)) => {
                if inner.files.finish_hashing(&name, &tracked.stat, &pieces)? {
                    inner.sync_later(&name);
                    if let Some(read) = inner.files.get(&name)? {
                        inner.notify_file_changed("read", &read);
                    }
                }
                read += 1;
            }
            Ok(None) => return Ok(0),
            Err(error) => {
                log::info!("{}: {name} has no digests: {error}", inner.user);
                inner.files.abandon_hashing(&name, &tracked.stat);
            }
        }
    }
    Ok(read)
}

/// None when the process ends.
fn hash_file(inner: &NodeInner, stat: &FileStat) -> io::Result<Option<FileDigests>> {
    let opened = inner.published_files.folders().reopen(&stat.path);
    let mut opened = opened.map_err(|error| io::Error::other(error.to_string()))?;
    hash_opened(&mut opened, stat, &|| !inner.is_stopping.load(Relaxed))
}

/// None if `should_continue` ends it. An error if the file differs from `stat` before or after it was read.
pub(super) fn hash_opened(
    opened: &mut OpenedFile,
    stat: &FileStat,
    should_continue: &dyn Fn() -> bool,
) -> io::Result<Option<FileDigests>> {
    let is_same = |now: &FileStat| (now.size, now.modified_ns) == (stat.size, stat.modified_ns);
    if !is_same(&FileStat::of(&opened.path, &opened.metadata)) {
        return Err(io::Error::other("it is another file than was published"));
    }
    let file = &mut opened.file;
    let pieces = FileDigests::hash(file, stat.size, should_continue)?;
    if !is_same(&FileStat::of(&opened.path, &file.metadata()?)) {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(pieces)
}
