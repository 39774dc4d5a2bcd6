//! Numbers are never given out twice, whatever the data dir has lost.
//!
//! A store counts on the numbers that it gives out. One that is lost, or was taken back to a backup, does not know
//! all of them any more. So numbers come in **stretches**, each far longer than all that is given out of one kind in
//! the life of the data, and after a loss they go on in a stretch where none has been yet. The manifest says how far
//! that has come ([`Manifest::jumps`](super::manifest::Manifest)), and this holds at any time:
//!
//! > Whatever was given out in the life of the data lies before the end of stretch `jumps` (they count from 0).
//!
//! It holds at the beginning, for all begin in stretch 0. A loss makes it `jumps + 1`; that is on disk before the
//! part that has lost something is noted to begin there ([`first_stretch`]), and the note before anything is made
//! anew. What is given out from then on lies in that stretch, and all of before lies before it: none comes twice, and
//! the sentence holds again. To begin at a stretch twice is the same as once, so the notes stay, and none is taken up
//! twice where a kill comes in between; with the manifest lost, they tell how far numbers have come.
//!
//! A store that is made in data with a past, where the manifest knew of none, begins in a stretch of its own too: that
//! it was there and is lost would show nowhere.
//!
//! Earlier versions added so many stretches to a store's own count instead, at each loss one more than before: what
//! they may have come to is reckoned, and where that is not known [`UNKNOWN`] is put for it.
//!
//! A backup does not know what became of the data after it. A restore goes on at the next multiple of
//! [`PER_RESTORE`] past [`UNKNOWN`], so that it is past what was given out meanwhile, losses that were accepted
//! included, that of the manifest too. Two restores of one backup are two lives of the data, which begin at the same number; so are what an earlier version's backup was restored to, and
//! another backup that was made of that before it was ever started.

use std::io::{self, Write};
use std::path::Path;

use super::manifest::{MANIFEST_FILE, Manifest};
use super::{OpenError, files};

/// The last stretch that there is. Whoever has numbers sees to it that it lies within what they may be.
pub const STRETCHES: u64 = 1 << 15;
/// What is put for the jumps of data whose past is not known: more than any of those has made.
const UNKNOWN: u64 = 64;
/// From one restore to the next, so many: losses may be accepted in between.
const PER_RESTORE: u64 = 16;
/// What stands in a note, before the number.
const NOTED: &str = "stretch ";

/// What has numbers of its own in a data dir, and may be served by a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The trade room.
    Trade,
    /// The shop's product database.
    Product,
    /// The shop's customer database.
    Customer,
    /// A peer that trades, in a data dir of its own.
    Peer,
}

impl Part {
    pub(super) const ALL: [Part; 4] = [Part::Trade, Part::Product, Part::Customer, Part::Peer];

    /// What a process that serves it alone locks of the data dir.
    pub fn component(self) -> &'static str {
        match self {
            Part::Trade => "trade",
            Part::Product => "product",
            Part::Customer => "customer",
            Part::Peer => "peer",
        }
    }

    /// Whose numbers the loss of this store makes jump.
    pub(super) fn of(store: &str) -> Option<Part> {
        match store {
            "trade.db" | "bank.db" => Some(Part::Trade),
            "product.db" => Some(Part::Product),
            "customer.db" | "shop-bank.db" => Some(Part::Customer),
            "peer.db" => Some(Part::Peer),
            _ => None,
        }
    }

    /// The file that says at which stretch its numbers begin. Each part has its own: what one has lost is nothing to
    /// the others. Not in backups: the restore writes them.
    pub(super) fn note(self) -> &'static str {
        match self {
            Part::Trade => "restored-trade",
            Part::Product => "restored-product",
            Part::Customer => "restored-customer",
            Part::Peer => "restored-peer",
        }
    }
}

/// The stretch at which the numbers of a part begin: 0 unless the data dir comes from a backup, or an operator has
/// accepted a loss. A part that gives out numbers begins none below it; what its store has counted beyond stays.
///
/// # Errors
/// The note, or the manifest that an earlier version's note needs, cannot be read.
pub fn first_stretch(dir: &Path, part: Part) -> Result<u64, OpenError> {
    match read_note(dir, part)? {
        Note::None => Ok(0),
        Note::Stretch(stretch) => Ok(stretch),
        Note::Earlier => Ok(Manifest::read(dir)?.map_or(UNKNOWN, |manifest| manifest.jumps)),
    }
}

/// Counts a loss of a part that shows only now, and notes it; the stretch at which its numbers go on.
///
/// # Errors
/// It is not on disk; or there is no stretch left.
pub fn count_loss(dir: &Path, part: Part) -> Result<u64, OpenError> {
    let known = noted(dir)?;
    let mut next = Ok(0);
    Manifest::update(dir, |manifest| {
        next = after(dir, manifest.jumps.max(known));
        manifest.jumps = *next.as_ref().unwrap_or(&manifest.jumps);
    })?;
    let next = next?;
    note(dir, part, next)?;
    Ok(next)
}

/// Before a store of a part is made where the manifest knows of none: in data that has a past it may be lost for all
/// that.
pub(super) fn begin(dir: &Path, part: Part) -> Result<(), OpenError> {
    let jumps = Manifest::read(dir)?.map_or_else(|| at_first(dir), |manifest| Ok(manifest.jumps))?;
    if jumps > 0 {
        count_loss(dir, part)?;
    }
    Ok(())
}

/// The stretch after those that may have been used.
pub(super) fn after(dir: &Path, jumps: u64) -> Result<u64, OpenError> {
    let detail = "numbers have jumped as often as they can; begin with a new data dir".to_owned();
    let is_left = |next: &u64| *next <= STRETCHES;
    Some(jumps + 1).filter(is_left).ok_or(OpenError::Other { path: dir.join(MANIFEST_FILE), detail })
}

/// The stretch at which the numbers of a data dir go on that is restored, by the manifest in the backup; there may
/// be none in one of an earlier version.
pub(super) fn after_restore(dir: &Path, archived: Option<&Manifest>) -> Result<u64, OpenError> {
    // The manifest may have been lost since the backup, too, and then numbers went on past what was put for it.
    let jumps = archived.map_or(UNKNOWN, |manifest| manifest.jumps.max(UNKNOWN));
    after(dir, jumps / PER_RESTORE * PER_RESTORE + PER_RESTORE - 1)
}

/// The jumps of a data dir whose manifest is lost.
pub(super) fn without_manifest(dir: &Path) -> Result<u64, OpenError> {
    Ok(noted(dir)?.max(UNKNOWN))
}

/// The jumps of a data dir that gets its first manifest: none, unless it has a past.
pub(super) fn at_first(dir: &Path) -> Result<u64, OpenError> {
    let failed = |error: io::Error| OpenError::from_io(dir, &error);
    let mut has_past = Part::ALL.iter().any(|part| dir.join(part.note()).exists());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        has_past |= Path::new(&entry.map_err(failed)?.file_name()).extension().is_some_and(|ending| ending == "db");
    }
    if has_past { without_manifest(dir) } else { Ok(0) }
}

/// What the losses come to that an earlier version has counted: at each its numbers jumped one stretch further than
/// at the one before, in data whose time before the manifest is not known.
pub(super) fn of_losses(losses: u64) -> u64 {
    losses.saturating_mul(losses.saturating_add(1)).saturating_div(2).saturating_add(UNKNOWN).min(STRETCHES)
}

/// Whether a manifest may say so.
pub(super) fn may_be(jumps: u64) -> bool {
    jumps <= STRETCHES
}

enum Note {
    None,
    Stretch(u64),
    /// It only says that there was something.
    Earlier,
}

fn read_note(dir: &Path, part: Part) -> Result<Note, OpenError> {
    let path = dir.join(part.note());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let stretch = text.strip_prefix(NOTED).and_then(|number| number.trim().parse().ok());
            Ok(stretch.filter(|stretch| may_be(*stretch)).map_or(Note::Earlier, Note::Stretch))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::None),
        Err(error) => Err(OpenError::from_io(&path, &error)),
    }
}

/// How far numbers have come by what the notes say.
fn noted(dir: &Path) -> Result<u64, OpenError> {
    Part::ALL.iter().try_fold(0, |most: u64, part| match read_note(dir, *part)? {
        Note::Stretch(stretch) => Ok(most.max(stretch)),
        Note::None | Note::Earlier => Ok(most),
    })
}

/// Notes, durably, at which stretch the numbers of a part begin from its next start on.
pub(super) fn note(dir: &Path, part: Part, stretch: u64) -> Result<(), OpenError> {
    let path = dir.join(part.note());
    let write = || {
        let new = files::beside(&path, "-new");
        let mut file = files::private().write(true).create(true).truncate(true).open(&new)?;
        writeln!(file, "{NOTED}{stretch}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        files::sync_dir(dir)
    };
    write().map_err(|error: io::Error| OpenError::from_io(&path, &error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::backup::{accept_loss, backup, restore};
    use super::super::{Expected, Query, Store, StoreError, examine};
    use super::*;

    /// How long a stretch is here.
    const STRETCH: u64 = 1 << 32;
    const COUNTED: &str = "CREATE TABLE counted (next BIGINT NOT NULL); INSERT INTO counted (next) VALUES (1)";
    const PARTS: [Part; 2] = [Part::Product, Part::Customer];
    const STORES: [Expected<'_>; 2] = [
        Expected { file: "product.db", migrations: &[COUNTED], companions: &[] },
        Expected { file: "customer.db", migrations: &[COUNTED], companions: &[] },
    ];

    /// Data through all that becomes of it.
    struct Life {
        home: TempDir,
        dir: PathBuf,
        moves: usize,
        archive: Option<PathBuf>,
        /// The highest number that each part has given out.
        highest: [u64; 2],
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Give(usize),
        /// A store is lost, and that is accepted.
        Lose(usize),
        LoseManifest,
        /// Both, and whoever accepts the one learns nothing of the other.
        LoseWithManifest(usize),
        Backup,
        /// The last backup takes the place of all that is there.
        Restore,
    }

    impl Life {
        fn new() -> Life {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("0");
            Life { home, dir, moves: 0, archive: None, highest: [0; 2] }
        }

        /// The data of an earlier version, whose numbers have jumped so many stretches in all. It has counted its
        /// losses; or it had no manifest yet.
        fn of_earlier(jumps: u64, losses: Option<u64>) -> Life {
            let mut life = Life::new();
            for place in 0..2 {
                life.give(place);
                let store = life.open(place);
                let next = jumps * STRETCH + 100;
                store
                    .write(move |tx| tx.execute("UPDATE counted SET next = $1", &[(next as i64).into()]))
                    .map_err(show)
                    .unwrap();
                store.close();
                life.give(place);
            }
            let path = life.dir.join(MANIFEST_FILE);
            match losses {
                Some(losses) => {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let text = text.replace("\"jumps\": 0", &format!("\"losses\": {losses}"));
                    assert!(text.contains("losses"), "{text}");
                    std::fs::write(&path, text).unwrap();
                }
                None => {
                    for store in STORES {
                        let store = rusqlite::Connection::open(life.dir.join(store.file)).unwrap();
                        store.execute_batch("DROP TABLE store_identity").unwrap();
                    }
                    std::fs::remove_file(&path).unwrap();
                }
            }
            life
        }

        fn open(&self, place: usize) -> Store {
            let Expected { file, migrations, .. } = STORES[place];
            Store::open(&self.dir.join(file), migrations).unwrap()
        }

        fn is_there(&self, place: usize) -> bool {
            self.dir.join(STORES[place].file).exists()
        }

        fn give(&mut self, place: usize) {
            examine(&self.dir, &STORES).unwrap();
            let store = self.open(place);
            let first = (STRETCH * first_stretch(&self.dir, PARTS[place]).unwrap() + 1) as i64;
            let given = store
                .write(move |tx| {
                    tx.execute("UPDATE counted SET next = $1 WHERE next < $1", &[first.into()])?;
                    tx.first("UPDATE counted SET next = next + 1 RETURNING next - 1", &[], |row| row.uint(0))
                })
                .map_err(show)
                .unwrap()
                .unwrap();
            store.close();
            assert!(given > self.highest[place], "{given} after {}", self.highest[place]);
            assert!(given < STRETCH * (STRETCHES + 1));
            self.highest[place] = given;
        }

        fn has_manifest(&self) -> bool {
            self.dir.join(MANIFEST_FILE).exists()
        }

        /// What a start asks to be accepted. (One may have taken no notice of it: an earlier version's data says
        /// little.)
        fn accept(&self, file: &str) {
            if examine(&self.dir, &STORES).is_err() {
                accept_loss(&self.dir, file, &STORES, &[]).unwrap();
            }
        }

        fn take(&mut self, step: Step) {
            let remove = |file: &str| std::fs::remove_file(self.dir.join(file)).unwrap();
            match step {
                Step::Give(place) => self.give(place),
                // Where nothing at all is left, nothing can tell that there was anything.
                Step::Lose(place) if self.is_there(place) && (self.has_manifest() || self.is_there(1 - place)) => {
                    remove(STORES[place].file);
                    self.accept(STORES[place].file);
                }
                Step::LoseManifest if self.has_manifest() && (self.is_there(0) || self.is_there(1)) => {
                    remove(MANIFEST_FILE);
                    self.accept(MANIFEST_FILE);
                }
                Step::LoseWithManifest(place) if self.has_manifest() && self.is_there(0) && self.is_there(1) => {
                    remove(MANIFEST_FILE);
                    remove(STORES[place].file);
                    self.accept(MANIFEST_FILE);
                }
                Step::Backup if self.is_there(0) || self.is_there(1) => {
                    self.moves += 1;
                    let archive = self.home.path().join(format!("{}.tar", self.moves));
                    backup(&self.dir, &archive, &mut |_, _| {}).unwrap();
                    self.archive = Some(archive);
                }
                Step::Restore => {
                    // Once: two restores of one backup are two lives.
                    if let Some(archive) = self.archive.take() {
                        self.moves += 1;
                        self.dir = self.home.path().join(self.moves.to_string());
                        restore(&archive, &self.dir).unwrap();
                        // It is started before anything else becomes of it.
                        examine(&self.dir, &STORES).unwrap();
                        (0..2).filter(|place| self.is_there(*place)).for_each(|place| self.open(place).close());
                    }
                }
                _ => {}
            }
        }
    }

    fn show(error: StoreError) -> String {
        error.to_string()
    }

    #[test]
    fn restores_before_a_loss_are_counted_in() {
        let mut life = Life::new();
        use Step::{Backup, Give, Lose, Restore};
        for step in [Give(1), Backup, Restore, Give(1), Backup, Restore, Give(1), Lose(1), Give(1), Give(0)] {
            life.take(step);
        }
        // By an earlier version: after two losses the numbers have jumped by one and by two.
        let mut life = Life::of_earlier(3, Some(2));
        [Lose(1), Give(1)].into_iter().for_each(|step| life.take(step));
    }

    #[test]
    fn data_without_a_manifest_may_have_jumped() {
        use Step::{Backup, Give, Lose, Restore};
        let mut life = Life::of_earlier(1, None);
        [Lose(1), Give(1), Give(0), Lose(0), Give(0)].into_iter().for_each(|step| life.take(step));
        let mut life = Life::of_earlier(3, None);
        [Backup, Restore, Give(1), Lose(1), Give(1), Lose(0), Give(0)].into_iter().for_each(|step| life.take(step));
        // Taken in by an earlier version, which took it for new; and restored by one, and not started since.
        let mut life = Life::of_earlier(3, Some(0));
        [Lose(0), Give(0)].into_iter().for_each(|step| life.take(step));
        for text in ["", "1\n"] {
            let mut life = Life::of_earlier(3, Some(1));
            std::fs::write(life.dir.join(Part::Customer.note()), text).unwrap();
            [Give(1), Lose(1), Give(1), Lose(1), Give(1)].into_iter().for_each(|step| life.take(step));
        }
    }

    #[test]
    fn a_manifest_that_was_given_up_takes_no_number_back() {
        use Step::{Backup, Give, Lose, LoseManifest, LoseWithManifest, Restore};
        let mut life = Life::new();
        for step in [Give(0), Give(1), Backup, Restore, Give(1), LoseManifest, Give(1), Lose(1), Give(1)] {
            life.take(step);
        }
        for step in [LoseManifest, Lose(1), Give(1), LoseWithManifest(1), Give(1), LoseWithManifest(1), Give(1)] {
            life.take(step);
        }
        // An earlier version put 64 for what it did not know, and jumped by that once more.
        let mut life = Life::of_earlier(65, Some(64));
        [Lose(1), Give(1)].into_iter().for_each(|step| life.take(step));
    }

    #[test]
    fn losses_that_were_accepted_after_a_backup_are_past_when_it_is_restored() {
        use Step::{Backup, Give, Lose, Restore};
        let mut life = Life::new();
        for step in [Give(1), Backup, Lose(1), Give(1), Lose(1), Give(1), Restore, Give(1), Lose(1), Give(1)] {
            life.take(step);
        }
    }

    #[test]
    fn a_manifest_that_was_lost_after_a_backup_is_past_when_it_is_restored() {
        use Step::{Backup, Give, Lose, LoseManifest, LoseWithManifest, Restore};
        let mut life = Life::new();
        for step in [Give(0), Give(1), Backup, LoseManifest, Give(0), Lose(0), Give(0), Restore, Give(0), Give(1)] {
            life.take(step);
        }
        for step in [Backup, LoseWithManifest(1), Give(1), LoseManifest, Give(0), Restore, Give(0), Give(1)] {
            life.take(step);
        }
    }

    #[test]
    fn where_no_stretch_is_left_a_loss_is_not_accepted() {
        let mut life = Life::new();
        life.give(0);
        Manifest::update(&life.dir, |manifest| manifest.jumps = STRETCHES - 1).unwrap();
        life.take(Step::Lose(0));
        life.give(0);
        std::fs::remove_file(life.dir.join("product.db")).unwrap();
        let refused = accept_loss(&life.dir, "product.db", &STORES, &[]).unwrap_err().to_string();
        assert!(refused.contains("begin with a new data dir"), "{refused}");
        assert!(examine(&life.dir, &STORES).unwrap_err().is_loss(), "it is not made anew");
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..2_usize).prop_map(Step::Give),
            2 => (0..2_usize).prop_map(Step::Lose),
            1 => Just(Step::LoseManifest),
            1 => (0..2_usize).prop_map(Step::LoseWithManifest),
            2 => Just(Step::Backup),
            2 => Just(Step::Restore),
        ];
        prop::collection::vec(step, 1..15)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_number_is_given_out_twice_whatever_becomes_of_the_data(
            past in prop_oneof![
                Just(None),
                (0..60_u64).prop_map(|jumps| Some((jumps, None))),
                (0..9_u64).prop_map(|losses| Some((losses * (losses + 1) / 2, Some(losses)))),
            ],
            steps in steps(),
        ) {
            let mut life = past.map_or_else(Life::new, |(jumps, losses)| Life::of_earlier(jumps, losses));
            steps.into_iter().for_each(|step| life.take(step));
            (0..2).for_each(|place| life.give(place));
        }
    }
}
