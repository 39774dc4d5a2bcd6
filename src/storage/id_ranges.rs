//! Keeps numbers unique, whatever the data dir has lost.
//!
//! A store counts the numbers (ids) that it hands out. One that was lost, or reset to a backup, no longer knows all of
//! them. So numbers are divided into **ranges**, each far larger than all the numbers of one kind that are handed out
//! in the life of the data, and after a loss numbering continues in a range that was never used. The manifest records
//! the last range ([`Manifest::last_id_range`](super::manifest::Manifest)), and this invariant always holds:
//!
//! > Every number ever handed out lies before the end of range `last_id_range` (ranges count from 0).
//!
//! It holds at the beginning, because everything starts in range 0. A loss increments `last_id_range`; that is on disk
//! before the affected component's marker names the new range ([`first_id_range`]), and the marker is on disk before
//! anything is recreated. Numbers handed out from then on lie in that range, and all earlier ones before it: none is
//! repeated, and the invariant holds again. Starting in a range twice has the same effect as once, so the markers stay,
//! and a kill in between repeats no number; if the manifest is lost, the markers tell which ranges were used.
//!
//! A store that is created in data with a past, although the manifest does not know it, starts in a new range too:
//! nothing else would show that it existed and was lost.
//!
//! Earlier versions added ranges to a store's own count instead, at each loss one more than before: what that may have
//! amounted to is computed, and where it is not known [`RANGE_OF_UNKNOWN_PAST`] is assumed.
//!
//! A backup does not know what happened to the data after it. A restore continues at a multiple of
//! [`RANGES_PER_RESTORE`] past [`RANGE_OF_UNKNOWN_PAST`], at least that many ranges beyond the backup's last one:
//! beyond everything handed out meanwhile, accepted losses included, even that of the manifest. Two restores of one
//! backup are two separate lives of the data, which start at the same number; so are the data to which an earlier
//! version's backup was restored, and another backup made of that before it was ever started.

use std::path::Path;

use super::OpenError;
use super::manifest::{MANIFEST_FILE, Manifest};
use super::range_markers::{
    DataComponent, ID_RANGE_MAX, RANGE_OF_UNKNOWN_PAST, RangeMarker, highest_marked_range, initial_id_range,
    read_range_marker, write_range_marker,
};

/// How many ranges are reserved from one restore to the next: losses may be accepted in between.
const RANGES_PER_RESTORE: u64 = 16;

/// The range in which a component's numbers start: 0 unless the data dir comes from a backup or an operator has
/// accepted a loss. A component hands out no number below that range; if its store has counted further, it continues
/// there.
pub fn first_id_range(dir: &Path, component: DataComponent) -> Result<u64, OpenError> {
    match read_range_marker(dir, component)? {
        RangeMarker::Absent => Ok(0),
        RangeMarker::Range(range) => Ok(range),
        RangeMarker::WithoutRange => {
            Ok(Manifest::read(dir)?.map_or(RANGE_OF_UNKNOWN_PAST, |manifest| manifest.last_id_range))
        }
    }
}

/// Called after a loss that was noticed only now. Returns the range once it is on disk, if one is left.
pub fn start_new_id_range(dir: &Path, component: DataComponent) -> Result<u64, OpenError> {
    let marked = highest_marked_range(dir)?;
    let mut next = Ok(0);
    Manifest::update(dir, |manifest| {
        next = next_id_range(dir, manifest.last_id_range.max(marked));
        manifest.last_id_range = *next.as_ref().unwrap_or(&manifest.last_id_range);
    })?;
    let next = next?;
    write_range_marker(dir, component, next)?;
    Ok(next)
}

/// Called before a store is created that the manifest does not know: in data with a past, it may be lost all the same.
pub(super) fn start_new_component(dir: &Path, component: DataComponent) -> Result<(), OpenError> {
    let last_range =
        Manifest::read(dir)?.map_or_else(|| initial_id_range(dir), |manifest| Ok(manifest.last_id_range))?;
    if last_range > 0 {
        start_new_id_range(dir, component)?;
    }
    Ok(())
}

/// The range after those that may have been used.
pub(super) fn next_id_range(dir: &Path, last_range: u64) -> Result<u64, OpenError> {
    let detail = "numbers have jumped as often as they can; begin with a new data dir".to_owned();
    let is_left = |next: &u64| *next <= ID_RANGE_MAX;
    Some(last_range + 1).filter(is_left).ok_or(OpenError::Other { path: dir.join(MANIFEST_FILE), detail })
}

/// `archived` is the manifest in the backup; one by an earlier version may have none.
pub(super) fn id_range_after_restore(dir: &Path, archived: Option<&Manifest>) -> Result<u64, OpenError> {
    // The manifest may also have been lost after the backup; numbers then continued past the assumed range.
    let last_range =
        archived.map_or(RANGE_OF_UNKNOWN_PAST, |manifest| manifest.last_id_range.max(RANGE_OF_UNKNOWN_PAST));
    // The next multiple may be one range away: it has to be one that the losses in between do not reach.
    let beyond = last_range + RANGES_PER_RESTORE;
    next_id_range(dir, beyond.next_multiple_of(RANGES_PER_RESTORE) - 1)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::backup::{accept_loss, backup, restore};
    use super::super::{ExpectedStore, ReaderExt, Store, StoreError, check_stores};
    use super::*;

    /// How many numbers a range has in these tests.
    const RANGE_SIZE: u64 = 1 << 32;
    const COUNTED: &str = "CREATE TABLE counted (next BIGINT NOT NULL); INSERT INTO counted (next) VALUES (1)";
    const PARTS: [DataComponent; 2] = [DataComponent::Product, DataComponent::Customer];
    const STORES: [ExpectedStore<'_>; 2] = [
        ExpectedStore { file: "product.db", migrations: &[COUNTED], companions: &[] },
        ExpectedStore { file: "customer.db", migrations: &[COUNTED], companions: &[] },
    ];

    /// A data dir with its backups, through losses and restores.
    struct Life {
        home: TempDir,
        dir: PathBuf,
        moves: usize,
        archive: Option<PathBuf>,
        /// The highest number that each component has handed out.
        highest: [u64; 2],
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Give(usize),
        /// A store is lost, and the loss is accepted.
        Lose(usize),
        LoseManifest,
        /// Both are lost, and the operator who accepts the loss of the manifest does not learn of the store's.
        LoseWithManifest(usize),
        Backup,
        /// The last backup replaces everything.
        Restore,
    }

    impl Life {
        fn new() -> Life {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("0");
            Life { home, dir, moves: 0, archive: None, highest: [0; 2] }
        }

        /// The data of an earlier version, whose last range is given. It has counted its losses, or has no manifest
        /// yet.
        fn of_earlier(last_range: u64, losses: Option<u64>) -> Life {
            let mut life = Life::new();
            for place in 0..2 {
                life.give(place);
                let store = life.open(place);
                let next = last_range * RANGE_SIZE + 100;
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
            let ExpectedStore { file, migrations, .. } = STORES[place];
            Store::open(&self.dir.join(file), migrations).unwrap()
        }

        fn is_there(&self, place: usize) -> bool {
            self.dir.join(STORES[place].file).exists()
        }

        fn give(&mut self, place: usize) {
            check_stores(&self.dir, &STORES).unwrap();
            let store = self.open(place);
            let first = (RANGE_SIZE * first_id_range(&self.dir, PARTS[place]).unwrap() + 1) as i64;
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
            assert!(given < RANGE_SIZE * (ID_RANGE_MAX + 1));
            self.highest[place] = given;
        }

        fn has_manifest(&self) -> bool {
            self.dir.join(MANIFEST_FILE).exists()
        }

        /// Accepts the loss that a start reports. (An earlier version's data may not show it.)
        fn accept(&self, file: &str) {
            if check_stores(&self.dir, &STORES).is_err() {
                accept_loss(&self.dir, file, &STORES, &[]).unwrap();
            }
        }

        fn take(&mut self, step: Step) {
            let remove = |file: &str| std::fs::remove_file(self.dir.join(file)).unwrap();
            match step {
                Step::Give(place) => self.give(place),
                // If nothing at all is left, nothing can show that there was anything.
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
                    // Only once: two restores of one backup are two separate lives.
                    if let Some(archive) = self.archive.take() {
                        self.moves += 1;
                        self.dir = self.home.path().join(self.moves.to_string());
                        restore(&archive, &self.dir).unwrap();
                        // It is started before anything else happens to it.
                        check_stores(&self.dir, &STORES).unwrap();
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
    fn losses_after_a_backup_do_not_reach_where_its_restore_continues() {
        use Step::{Backup, Give, Lose, LoseWithManifest, Restore};
        let mut life = Life::of_earlier(28, Some(7));
        for step in [Lose(1), Give(1), Backup, LoseWithManifest(0), Lose(1), Give(0), Restore, Give(0), Give(1)] {
            life.take(step);
        }
        // As many losses as a restore leaves room for.
        let mut life = Life::new();
        [Give(0), Give(1), Backup, Restore, Give(0), Give(1), Backup].into_iter().for_each(|step| life.take(step));
        for _ in 1..RANGES_PER_RESTORE {
            [Lose(0), Give(0)].into_iter().for_each(|step| life.take(step));
        }
        [Restore, Give(0), Give(1)].into_iter().for_each(|step| life.take(step));
    }

    #[test]
    fn restores_before_a_loss_are_counted_in() {
        let mut life = Life::new();
        use Step::{Backup, Give, Lose, Restore};
        for step in [Give(1), Backup, Restore, Give(1), Backup, Restore, Give(1), Lose(1), Give(1), Give(0)] {
            life.take(step);
        }
        // By an earlier version: after two losses its numbers have moved by one range and by two.
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
        // Adopted by an earlier version, which took it for new; then restored by one, and not started since.
        let mut life = Life::of_earlier(3, Some(0));
        [Lose(0), Give(0)].into_iter().for_each(|step| life.take(step));
        for text in ["", "1\n"] {
            let mut life = Life::of_earlier(3, Some(1));
            std::fs::write(life.dir.join(DataComponent::Customer.marker_file()), text).unwrap();
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
        // An earlier version assumed 64 for an unknown past, and moved by that much once more.
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
        Manifest::update(&life.dir, |manifest| manifest.last_id_range = ID_RANGE_MAX - 1).unwrap();
        life.take(Step::Lose(0));
        life.give(0);
        std::fs::remove_file(life.dir.join("product.db")).unwrap();
        let refused = accept_loss(&life.dir, "product.db", &STORES, &[]).unwrap_err().to_string();
        assert!(refused.contains("begin with a new data dir"), "{refused}");
        assert!(check_stores(&life.dir, &STORES).unwrap_err().is_loss(), "it is not made anew");
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
                (0..60_u64).prop_map(|range| Some((range, None))),
                (0..9_u64).prop_map(|losses| Some((losses * (losses + 1) / 2, Some(losses)))),
            ],
            steps in steps(),
        ) {
            let mut life = past.map_or_else(Life::new, |(range, losses)| Life::of_earlier(range, losses));
            steps.into_iter().for_each(|step| life.take(step));
            (0..2).for_each(|place| life.give(place));
        }
    }
}
