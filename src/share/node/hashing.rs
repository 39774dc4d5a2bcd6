//! The thread that reads published files once, for their digests: only with them can others fetch from several
//! sources and go on where they were interrupted. Beside that it looks whether files are still there.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Inner, looking};
use crate::share::files::Facts;
use crate::share::folders::Opened;
use crate::share::pieces::Pieces;

/// What the thread is told.
pub(super) enum Order {
    /// There may be a file that was not read.
    Look,
    /// The process ends.
    Stop,
}

/// Runs until it is told to stop. What was not read then is found again at the next start.
pub(super) fn run(inner: &Inner, orders: &Receiver<Order>) {
    let mut round = looking::Round::default();
    let mut looks_at = Instant::now() + looking::FIRST_IN;
    loop {
        match orders.recv_deadline(looks_at) {
            Ok(Order::Look) => read_until_done(inner),
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            // Nobody wants anything: whether what was published is still there.
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = round.go_on(inner) {
                    log::warn!("{}: looking whether files are still there: {error}", inner.user);
                }
                looks_at = Instant::now() + looking::EVERY;
            }
        }
    }
}

fn read_until_done(inner: &Inner) {
    loop {
        match read_all(inner) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                log::warn!("{}: reading published files: {error}", inner.user);
                return;
            }
        }
    }
}

/// Reads what was not read yet; how many files were.
fn read_all(inner: &Inner) -> Result<usize, super::NodeError> {
    let mut read = 0;
    for name in inner.files.not_hashed()? {
        if inner.is_stopping.load(Relaxed) {
            return Ok(0);
        }
        let Some(tracked) = inner.files.get(&name)?.filter(|tracked| tracked.is_published) else { continue };
        if !inner.files.begin_reading(&name, &tracked.facts) {
            continue;
        }
        match read_one(inner, &tracked.facts) {
            Ok(Some(pieces)) => {
                if inner.files.hashed(&name, &tracked.facts, &pieces)? {
                    inner.sync_later(&name);
                    if let Some(read) = inner.files.get(&name)? {
                        inner.files_changed("read", &read);
                    }
                }
                read += 1;
            }
            Ok(None) => return Ok(0),
            Err(error) => {
                log::info!("{}: {name} has no digests: {error}", inner.user);
                inner.files.give_up_reading(&name, &tracked.facts);
            }
        }
    }
    Ok(read)
}

/// The digests of a file that is still the one that was published; none when the process ends.
fn read_one(inner: &Inner, facts: &Facts) -> io::Result<Option<Pieces>> {
    let mut opened =
        inner.shelf.folders().open_resolved(&facts.path).map_err(|error| io::Error::other(error.to_string()))?;
    read_opened(&mut opened, facts, &|| !inner.is_stopping.load(Relaxed))
}

/// The digests of an opened file that is as `facts` say, before it is read and after; none when `go_on` says so.
pub(super) fn read_opened(opened: &mut Opened, facts: &Facts, go_on: &dyn Fn() -> bool) -> io::Result<Option<Pieces>> {
    let is_same = |now: &Facts| (now.size, now.modified_ns) == (facts.size, facts.modified_ns);
    if !is_same(&Facts::of(&opened.path, &opened.metadata)) {
        return Err(io::Error::other("it is another file than was published"));
    }
    let file = &mut opened.file;
    let pieces = Pieces::of(file, facts.size, go_on)?;
    if !is_same(&Facts::of(&opened.path, &file.metadata()?)) {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(pieces)
}
