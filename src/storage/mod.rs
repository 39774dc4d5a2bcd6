//! Durable storage: what a room must not lose, in one SQLite file with one writer thread. A room hands each change to
//! [`Store`] as a closure. The writer thread runs all queued changes in one transaction with one disk sync (group
//! commit); the [`CommitHandle`] of a change tells when it is on disk. No response leaves before the newest change that
//! it depends on is committed.

mod accept_loss;
mod archive;
pub mod backup;
mod commit_handle;
mod durable;
mod engine;
mod error;
pub(crate) mod files;
mod id_ranges;
mod integrity;
pub mod lock;
mod manifest;
mod range_markers;
mod read_only;
mod reader_pool;
mod restore;
mod sqlite;
mod store;
mod store_identity;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_backup;
#[cfg(test)]
mod tests_then;
#[cfg(test)]
mod tests_whole;
mod value;
mod watermark;
mod writer;

pub use commit_handle::{CommitHandle, CommitState};
#[cfg(test)]
pub use durable::Appender;
pub use durable::{CoreState, Durable, Journal, Pending, SharedCore, StoreJournal, StoredChange};
pub use error::{OpenError, StoreError};
pub use files::create_private_dir;
pub use files::is_missing_or_empty;
pub use integrity::{ExpectedStore, check_may_be_absent, check_stores};
pub use read_only::ReadOnlyStore;
pub use store::Store;
pub use value::{Reader, ReaderExt, Row, Tx, Value, bigint, from_json, to_json};
use writer::Epoch;
