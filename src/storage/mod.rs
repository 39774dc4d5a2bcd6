//! Durable storage: what a room must not lose, in one SQLite file with one writer thread.
//!
//! A room keeps its working state in memory and hands each change to [`Store`] as a closure. The writer thread runs all
//! queued changes in one transaction with one disk sync (group commit); the [`CommitHandle`] of a change tells when it
//! is on disk. No response leaves before the newest change that it depends on is committed.
//!
//! | file | holds |
//! |---|---|
//! | `store.rs` | [`Store`]: open, enqueue changes, read, close |
//! | `writer.rs` | the queue and the thread that turns it into transactions |
//! | `commit_handle.rs` | [`CommitHandle`]: the outcome of a change, and how to wait for it |
//! | `reader_pool.rs` | read connections beside the writer |
//! | `read_only.rs` | [`ReadOnlyStore`]: reads a file without changing it |
//! | `value.rs` | [`Value`], [`Row`], [`Tx`], [`Reader`]: the rooms' interface to a database |
//! | `sqlite.rs` | opening, checking and migrating SQLite files |
//! | `durable.rs` | [`Durable`]: memory that the disk vouches for, and how it is loaded anew |
//! | `error.rs` | [`StoreError`], [`OpenError`] |
//! | `manifest.rs` | which stores a data dir has |
//! | `watermark.rs` | beside each store: the generation that is known to be on disk |
//! | `store_identity.rs` | the identity row of a store, and whether it is the one that belongs there |
//! | `integrity.rs` | checks that a data dir is complete before anything in it is changed |
//! | `accept_loss.rs` | lets an operator accept that a store is lost |
//! | `range_markers.rs` | the markers of the ranges in which numbers start |
//! | `id_ranges.rs` | keeps numbers unique even after data was lost |
//! | `lock.rs` | one server per data dir |
//! | `backup.rs`, `restore.rs` | a consistent archive of a data dir, and back |
//! | `files.rs` | private files and folders, synced |

mod accept_loss;
mod archive;
pub mod backup;
mod commit_handle;
mod durable;
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
pub use value::{Reader, ReaderExt, Row, Tx, Value};
use writer::Epoch;
