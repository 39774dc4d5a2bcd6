//! Syncing on a thread of its own: pieces are synced together, as many as were checked since the last time.

use std::sync::Arc;

use crossbeam_channel::Receiver;

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
    Finish,
    /// Nothing is wanted any more.
    Discard,
    /// No more for now.
    Rest,
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
    /// All tasks before are done. (The last word.)
    Rested,
    /// It cannot be written or synced: nobody knows what these pieces are on disk.
    Failed(Vec<usize>, std::io::Error),
}

/// Does all tasks until there are no more, or the last word was said.
pub(super) fn keep(mut journal: Journal, part: Option<Arc<Part>>, tasks: &Receiver<Task>, told: &dyn Fn(Kept)) {
    let mut list: Option<Arc<Pieces>> = None;
    while let Ok(first) = tasks.recv() {
        let mut pieces = Vec::new();
        let mut must_flush = false;
        let mut last = None;
        for task in std::iter::once(first).chain(tasks.try_iter()) {
            match task {
                Task::List(its) => list = Some(its),
                Task::Pieces(more) => pieces.extend(more),
                Task::Flush => must_flush = true,
                Task::Finish | Task::Discard | Task::Rest => {
                    last = Some(task);
                    break;
                }
            }
        }
        if let Some(part) = part.as_deref().filter(|_| must_flush || !pieces.is_empty()) {
            match sync(&mut journal, part, list.as_deref(), &mut pieces) {
                Ok(()) if pieces.is_empty() => {}
                Ok(()) => told(Kept::Synced(pieces)),
                Err(error) => told(Kept::Failed(pieces, error)),
            }
        }
        match last {
            Some(Task::Finish) => match journal.finish(part.as_deref()) {
                Ok(()) => return told(Kept::Finished),
                Err(error) => told(Kept::NotFinished(error)),
            },
            Some(Task::Discard) => return told(Kept::Discarded(journal.discard())),
            Some(_rest) => return told(Kept::Rested),
            None => {}
        }
    }
}

/// Syncs, and notes what is good by that.
fn sync(journal: &mut Journal, part: &Part, list: Option<&Pieces>, pieces: &mut [usize]) -> std::io::Result<()> {
    part.sync()?;
    // Of one piece there is nothing to be noted: the file is whole with it.
    if pieces.is_empty() || list.is_some_and(|list| list.digests().len() == 1) {
        return Ok(());
    }
    if let Some(list) = list {
        // Once; nothing is done if it stands there already.
        journal.set_list(list.digests())?;
    }
    journal.append(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::Layout;
    use crate::share::transfer::part::{FetchSpec, begin};
    use crate::share::transfer::{Content, part};
    use crate::share::wire::{FileName, Seconds};
    use parking_lot::Mutex;

    /// What is told when two pieces came.
    fn kept(part: Option<Arc<Part>>) -> (Vec<String>, Vec<bool>) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(3 << 20);
        let digest = crate::share::pieces::digest(b"piece");
        let list = Arc::new(Pieces::new(layout, digest, vec![digest; 3]).unwrap());
        let content = Content {
            size: layout.size(),
            modified: Seconds::new(1.0).unwrap(),
            blake3: None,
            pieces_root: Some(list.root()),
        };
        let spec = FetchSpec {
            id: "f-1".to_owned(),
            fname: FileName::new("a").unwrap(),
            hostname: "ann".to_owned(),
            save_path: dir.path().join("a"),
            content,
            is_owner_named: false,
            is_paused: false,
        };
        let begun = begin(&spec).unwrap();
        let (tasks, its_tasks) = crossbeam_channel::unbounded();
        for task in [Task::List(list), Task::Pieces(vec![2]), Task::Pieces(vec![0]), Task::Rest] {
            tasks.send(task).unwrap();
        }
        let told = Mutex::new(Vec::new());
        let tell = |kept: Kept| {
            told.lock().push(match kept {
                Kept::Synced(pieces) => format!("synced {pieces:?}"),
                Kept::Failed(pieces, _) => format!("failed {pieces:?}"),
                other => format!("{other:?}"),
            });
        };
        keep(begun.journal, part.or(begun.part), &its_tasks, &tell);
        (told.into_inner(), part::begin(&spec).unwrap().good)
    }

    #[test]
    fn pieces_are_good_once_they_are_synced() {
        assert_eq!(kept(None), (vec!["synced [0, 2]".to_owned(), "Rested".to_owned()], vec![true, false, true]));
    }

    #[test]
    #[cfg(unix)]
    fn pieces_that_cannot_be_synced_are_not_good_and_not_noted() {
        // A device has nothing to sync, and says so.
        let device = Arc::new(Part::of_device(std::path::Path::new("/dev/null")));
        let (told, good) = kept(Some(device));
        assert_eq!((told, good), (vec!["failed [2, 0]".to_owned(), "Rested".to_owned()], vec![false; 3]));
    }
}
