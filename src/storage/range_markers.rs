//! The markers that tell in which range the numbers of each component start. How ranges keep numbers unique:
//! `id_ranges.rs`.

use std::io;
use std::path::Path;

use super::{OpenError, files};
use crate::model::named;

/// The last range. The room that hands out numbers makes sure that they fit into its number type.
pub const ID_RANGE_MAX: u64 = 1 << 15;
/// Assumed as the last range of data whose past is not known: more than any such data has used.
pub(super) const RANGE_OF_UNKNOWN_PAST: u64 = 64;
/// It stands before the range's number in a marker file.
const MARKER_PREFIX: &str = "stretch ";

named! {
    /// A part of a data dir that hands out numbers of its own and may be served by a process of its own.
    pub enum DataComponent {
        Trade = "trade",
        /// The shop's product database.
        Product = "product",
        /// The shop's customer database.
        Customer = "customer",
        /// A peer of the trade room, in a data dir of its own.
        Peer = "peer",
    }
}

impl DataComponent {
    /// The component whose numbers must move to a new range when this store is lost.
    pub(super) fn of_store(store: &str) -> Option<DataComponent> {
        match store {
            "trade.db" | "bank.db" => Some(DataComponent::Trade),
            "product.db" => Some(DataComponent::Product),
            "customer.db" | "shop-bank.db" => Some(DataComponent::Customer),
            "peer.db" => Some(DataComponent::Peer),
            _ => None,
        }
    }

    /// Names the range in which the component's numbers start. Each component has its own, because the loss of one does
    /// not affect the others. It is not part of backups: the restore writes it.
    pub(super) fn marker_file(self) -> String {
        format!("restored-{self}")
    }
}

pub(super) fn last_id_range_without_manifest(dir: &Path) -> Result<u64, OpenError> {
    Ok(highest_marked_range(dir)?.max(RANGE_OF_UNKNOWN_PAST))
}

/// The last range of a data dir that gets its first manifest: 0 unless it has a past.
pub(super) fn initial_id_range(dir: &Path) -> Result<u64, OpenError> {
    let failed = |error: io::Error| OpenError::from_io(dir, &error);
    let mut has_past = DataComponent::ALL.iter().any(|component| dir.join(component.marker_file()).exists());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        has_past |= Path::new(&entry.map_err(failed)?.file_name()).extension().is_some_and(|ending| ending == "db");
    }
    if has_past { last_id_range_without_manifest(dir) } else { Ok(0) }
}

/// The last range after losses that an earlier version has counted: at each of them numbers moved one range further
/// than at the one before, in data whose time before the manifest is not known.
pub(super) fn id_range_of_losses(losses: u64) -> u64 {
    losses
        .saturating_mul(losses.saturating_add(1))
        .saturating_div(2)
        .saturating_add(RANGE_OF_UNKNOWN_PAST)
        .min(ID_RANGE_MAX)
}

pub(super) fn is_id_range(last_range: u64) -> bool {
    last_range <= ID_RANGE_MAX
}

pub(super) enum RangeMarker {
    Absent,
    Range(u64),
    /// Written by an earlier version: there was a loss, but no range is given.
    WithoutRange,
}

pub(super) fn read_range_marker(dir: &Path, component: DataComponent) -> Result<RangeMarker, OpenError> {
    let path = dir.join(component.marker_file());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let range = text.strip_prefix(MARKER_PREFIX).and_then(|number| number.trim().parse().ok());
            Ok(range.filter(|range| is_id_range(*range)).map_or(RangeMarker::WithoutRange, RangeMarker::Range))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RangeMarker::Absent),
        Err(error) => Err(OpenError::from_io(&path, &error)),
    }
}

pub(super) fn highest_marked_range(dir: &Path) -> Result<u64, OpenError> {
    DataComponent::ALL.iter().try_fold(0, |most: u64, component| match read_range_marker(dir, *component)? {
        RangeMarker::Range(range) => Ok(most.max(range)),
        RangeMarker::Absent | RangeMarker::WithoutRange => Ok(most),
    })
}

/// Records durably in which range the numbers start from the component's next start on.
pub(super) fn write_range_marker(dir: &Path, component: DataComponent, range: u64) -> Result<(), OpenError> {
    let path = dir.join(component.marker_file());
    files::replace_durably(&path, format!("{MARKER_PREFIX}{range}\n").as_bytes())
        .map_err(|error| OpenError::from_io(&path, &error))
}
