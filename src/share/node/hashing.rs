//! The thread that reads published files once, for their digests: only with them can others fetch from several
//! sources and go on where they were interrupted.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::Receiver;

use super::Inner;
use crate::share::files::Facts;
use crate::share::pieces::Pieces;
use crate::share::wire::FileName;

/// What the thread is told.
pub(super) enum Order {
    /// There may be a file that was not read.
    Look,
    /// The process ends.
    Stop,
}

/// Runs until it is told to stop. What was not read then is found again at the next start.
pub(super) fn run(inner: &Inner, orders: &Receiver<Order>) {
    // What could not be read, as it was: tried again only when it is another file.
    let mut given_up: HashMap<FileName, Facts> = HashMap::new();
    while let Ok(Order::Look) = orders.recv() {
        loop {
            match read_all(inner, &mut given_up) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    log::warn!("{}: reading published files: {error}", inner.user);
                    break;
                }
            }
        }
    }
}

/// Reads what was not read yet; how many files were.
fn read_all(inner: &Inner, given_up: &mut HashMap<FileName, Facts>) -> Result<usize, super::NodeError> {
    let mut read = 0;
    let waiting = inner.files.not_hashed()?;
    given_up.retain(|name, _| waiting.contains(name));
    for name in waiting {
        if inner.is_stopping.load(Relaxed) {
            return Ok(0);
        }
        let Some(tracked) = inner.files.get(&name)?.filter(|tracked| tracked.is_published) else { continue };
        if given_up.get(&name) == Some(&tracked.facts) {
            continue;
        }
        match read_one(inner, &tracked.facts) {
            Ok(Some(pieces)) => {
                let bytes = pieces.digests().iter().flat_map(|digest| digest.0).collect();
                if inner.files.hashed(&name, &tracked.facts, pieces.blake3(), pieces.root(), bytes)? {
                    inner.sync_later(&name);
                    inner.files_changed("read", &name);
                }
                read += 1;
            }
            Ok(None) => return Ok(0),
            Err(error) => {
                log::info!("{}: {name} has no digests: {error}", inner.user);
                given_up.insert(name, tracked.facts);
            }
        }
    }
    Ok(read)
}

/// The digests of a file that is still the one that was published; none when the process ends.
fn read_one(inner: &Inner, facts: &Facts) -> io::Result<Option<Pieces>> {
    let opened =
        inner.shelf.folders().open_resolved(&facts.path).map_err(|error| io::Error::other(error.to_string()))?;
    let is_same = |now: &Facts| (now.size, now.modified_ns) == (facts.size, facts.modified_ns);
    if !is_same(&Facts::of(&opened.path, &opened.metadata)) {
        return Err(io::Error::other("it is another file than was published"));
    }
    let mut file = opened.file;
    let pieces = Pieces::of(&mut file, facts.size, &|| !inner.is_stopping.load(Relaxed))?;
    if !is_same(&Facts::of(&opened.path, &file.metadata()?)) {
        return Err(io::Error::other("it changed while it was read"));
    }
    Ok(pieces)
}
