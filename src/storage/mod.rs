//! The store: what a room must not lose, in one SQLite file with one writer.
//!
//! A room keeps its state in memory and hands each change to [`Store`] as a closure; the writer
//! thread runs all that wait in one transaction and one sync of the disk (group commit), and the
//! [`Ticket`] of a change tells when it is on disk. No answer leaves before the ticket of the newest
//! change that it depends on is committed.
//!
//! | file | holds |
//! |---|---|
//! | `store.rs` | [`Store`]: open, hand over, read, close |
//! | `writer.rs` | the queue and the thread that turns it into transactions |
//! | `ticket.rs` | [`Ticket`]: one outcome per transaction, waited for without a crowd |
//! | `view.rs` | [`View`]: a file that is only looked at |
//! | `value.rs` | [`Value`], [`Row`], [`Tx`], [`Reader`]: all that rooms see of a database |
//! | `sqlite.rs` | the only file that knows SQLite's connections: settings, migrations |
//! | `error.rs` | [`StoreError`], [`OpenError`] |
//! | `manifest.rs` | which stores a data dir has |
//! | `mark.rs` | beside a store: the number of its newest change that is known to be on disk |
//! | `whole.rs` | whether a data dir is whole, before anything of it is changed |
//! | `accept.rs` | a loss that an operator accepts |
//! | `jumps.rs` | numbers that are never given out twice, whatever is lost |
//! | `lock.rs` | one server per data dir |
//! | `backup.rs`, `restore.rs` | one archive of one instant, and back |
//! | `files.rs` | private files and folders, synced |

mod accept;
pub mod backup;
mod durable;
mod error;
pub(crate) mod files;
mod jumps;
pub mod lock;
mod manifest;
mod mark;
mod readers;
mod restore;
mod sqlite;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_backup;
#[cfg(test)]
mod tests_then;
#[cfg(test)]
mod tests_whole;
mod ticket;
mod value;
mod view;
mod whole;
mod writer;

pub use error::{OpenError, StoreError};
pub use files::create_private_dir;
pub use files::is_absent;
pub use store::Store;
pub use ticket::{Ticket, TicketState};
pub use value::{Query, Reader, Row, Tx, Value};
pub use view::View;
pub use whole::{Expected, check_may_be_absent, examine};
pub use writer::Chain;

pub use durable::{Appender, CoreState, Durable, Journal, Pending, SharedCore};
pub use ticket::{Ticket as CommitHandle, TicketState as CommitState};
pub use writer::Chain as Epoch;
