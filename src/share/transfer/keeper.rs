//! Syncing on a thread of its own: pieces are synced together, as many as were checked since the last time.

use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};

use super::part::{Journal, Part};
use crate::share::pieces::Pieces;

/// What is to be kept.
#[derive(Debug)]
pub(super) enum Task {
    /// The list of pieces; comes before any of them.
    List(Arc<Pieces>),
    /// Pieces that are written and right.
    Pieces(Vec<usize>),
    /// A file without pieces has grown: so that not all of it is to be synced at the end.
    Flush,
    /// All is here: to its place.
    Finish(PathBuf),
    /// Nothing is wanted any more.
    Discard,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Kept {
    /// These pieces are good.
    Synced(Vec<usize>),
    /// The file is in its place. (The last word.)
    Finished,
    /// It is not.
    NotFinished(std::io::Error),
    /// Nothing is left. (The last word.)
    Discarded(std::io::Result<()>),
    /// It cannot be written or synced.
    Failed(std::io::Error),
}

/// Does all tasks until there are no more, or the last word was said.
pub(super) fn keep(mut journal: Journal, part: Option<Arc<Part>>, tasks: &Receiver<Task>, told: &dyn Fn(Kept)) {
    while let Ok(first) = tasks.recv() {
        let mut pieces = Vec::new();
        let mut next = Some(first);
        let mut must_flush = false;
        while let Some(task) = next.take() {
            match task {
                Task::List(list) => {
                    if let Err(error) = journal.set_list(list.digests()) {
                        told(Kept::Failed(error));
                    }
                }
                Task::Pieces(more) => pieces.extend(more),
                Task::Flush => must_flush = true,
                Task::Finish(save_path) => match journal.finish(part.as_deref(), &save_path) {
                    Ok(()) => return told(Kept::Finished),
                    Err(error) => told(Kept::NotFinished(error)),
                },
                Task::Discard => return told(Kept::Discarded(journal.discard(part.as_deref()))),
            }
            next = match tasks.try_recv() {
                Ok(task) => Some(task),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            };
        }
        let Some(part) = part.as_deref().filter(|_| must_flush || !pieces.is_empty()) else { continue };
        let synced = part.sync().and_then(|()| if pieces.is_empty() { Ok(()) } else { journal.append(&mut pieces) });
        match synced {
            Ok(()) if pieces.is_empty() => {}
            Ok(()) => told(Kept::Synced(pieces)),
            Err(error) => told(Kept::Failed(error)),
        }
    }
}
