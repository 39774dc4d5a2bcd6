//! Syncs the part file and writes the journal, on a thread of its own. All pieces verified since the last sync are
//! synced together.

use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::part_file::{Journal, PartFile};
use crate::share::pieces::FileDigests;

#[derive(Debug)]
pub(super) enum SaveCommand {
    /// Store the piece list; sent before any of the pieces.
    List(Arc<FileDigests>),
    /// Sync these pieces, which are written and verified, and record them in the journal.
    Pieces(Vec<usize>),
    /// Sync a file without a piece list, so that not all of it is left to be synced at the end.
    Flush,
    /// The file is complete: move it to its final place.
    Finish,
    Discard,
    /// End, keeping everything.
    Stop,
}

#[derive(Debug)]
pub(super) enum SaveEvent {
    Synced(Vec<usize>),
    /// The file is in its final place. The saver has ended.
    Finished,
    FinishFailed(std::io::Error),
    /// The fetch's files are removed, if that succeeded. The saver has ended.
    Discarded(std::io::Result<()>),
    /// All earlier commands are done. The saver has ended.
    Stopped,
    /// Writing or syncing failed: it is unknown what is on disk of these pieces.
    SyncFailed(Vec<usize>, std::io::Error),
}

/// Executes commands until their channel closes or one of them ends the saver.
pub(super) fn run_saver(
    mut journal: Journal,
    part: Option<Arc<PartFile>>,
    commands: &Receiver<SaveCommand>,
    on_event: &dyn Fn(SaveEvent),
) {
    let mut piece_list: Option<Arc<FileDigests>> = None;
    while let Ok(first) = commands.recv() {
        let mut pieces = Vec::new();
        let mut must_flush = false;
        let mut last = None;
        for command in std::iter::once(first).chain(commands.try_iter()) {
            match command {
                SaveCommand::List(its) => piece_list = Some(its),
                SaveCommand::Pieces(more) => pieces.extend(more),
                SaveCommand::Flush => must_flush = true,
                SaveCommand::Finish | SaveCommand::Discard | SaveCommand::Stop => {
                    last = Some(command);
                    break;
                }
            }
        }
        if let Some(part) = part.as_deref().filter(|_| must_flush || !pieces.is_empty()) {
            match sync(&mut journal, part, piece_list.as_deref(), &mut pieces) {
                Ok(()) if pieces.is_empty() => {}
                Ok(()) => on_event(SaveEvent::Synced(pieces)),
                Err(error) => on_event(SaveEvent::SyncFailed(pieces, error)),
            }
        }
        match last {
            Some(SaveCommand::Finish) => match journal.finish(part.as_deref()) {
                Ok(()) => return on_event(SaveEvent::Finished),
                Err(error) => on_event(SaveEvent::FinishFailed(error)),
            },
            Some(SaveCommand::Discard) => return on_event(SaveEvent::Discarded(journal.discard())),
            Some(_rest) => return on_event(SaveEvent::Stopped),
            None => {}
        }
    }
}

fn sync(
    journal: &mut Journal,
    part: &PartFile,
    piece_list: Option<&FileDigests>,
    pieces: &mut [usize],
) -> std::io::Result<()> {
    part.sync()?;
    // With a single piece the file is complete: no record is needed.
    if pieces.is_empty() || piece_list.is_some_and(|piece_list| piece_list.digests().len() == 1) {
        return Ok(());
    }
    if let Some(piece_list) = piece_list {
        journal.set_list(piece_list.digests())?;
    }
    journal.append(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::PieceLayout;
    use crate::share::transfer::part_file::{FetchSpec, prepare};
    use crate::share::transfer::{ContentIdentity, part_file};
    use crate::share::wire::{FileName, Seconds};
    use parking_lot::Mutex;

    /// The saver's events after two pieces, and which pieces the journal then has.
    fn kept(part: Option<Arc<PartFile>>) -> (Vec<String>, Vec<bool>) {
        let dir = tempfile::tempdir().unwrap();
        let layout = PieceLayout::of(3 << 20);
        let digest = crate::share::pieces::blake3_digest(b"piece");
        let piece_list = Arc::new(FileDigests::new(layout, digest, vec![digest; 3]).unwrap());
        let content = ContentIdentity {
            size: layout.size(),
            modified: Seconds::new(1.0).unwrap(),
            blake3: None,
            pieces_root: Some(piece_list.root()),
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
        let prepared = prepare(&spec).unwrap();
        let (commands, its_commands) = crossbeam_channel::unbounded();
        for command in [
            SaveCommand::List(piece_list),
            SaveCommand::Pieces(vec![2]),
            SaveCommand::Pieces(vec![0]),
            SaveCommand::Stop,
        ] {
            commands.send(command).unwrap();
        }
        let told = Mutex::new(Vec::new());
        let tell = |kept: SaveEvent| {
            told.lock().push(match kept {
                SaveEvent::Synced(pieces) => format!("synced {pieces:?}"),
                SaveEvent::SyncFailed(pieces, _) => format!("failed {pieces:?}"),
                other => format!("{other:?}"),
            });
        };
        run_saver(prepared.journal, part.or(prepared.part), &its_commands, &tell);
        (told.into_inner(), part_file::prepare(&spec).unwrap().synced_pieces)
    }

    #[test]
    fn pieces_are_good_once_they_are_synced() {
        assert_eq!(kept(None), (vec!["synced [0, 2]".to_owned(), "Stopped".to_owned()], vec![true, false, true]));
    }

    #[test]
    #[cfg(unix)]
    fn pieces_that_cannot_be_synced_are_not_good_and_not_noted() {
        // Syncing a device fails.
        let device = Arc::new(PartFile::of_device(std::path::Path::new("/dev/null")));
        let (told, synced_pieces) = kept(Some(device));
        assert_eq!((told, synced_pieces), (vec!["failed [2, 0]".to_owned(), "Stopped".to_owned()], vec![false; 3]));
    }
}
