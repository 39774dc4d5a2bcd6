//! What a store needs of a database: one implementation for each engine. The store's queue, its order and its epochs
//! are the same for all of them.

use std::time::Instant;

use super::{Reader, StoreError, Tx};

pub(super) type Change = Box<dyn FnOnce(&mut dyn Tx) -> Result<(), StoreError> + Send>;

pub(super) enum ChangeFailure {
    /// Only this change failed, and it left no trace.
    Change(StoreError),
    /// Nothing of the transaction may be committed.
    Transaction(StoreError),
}

/// The connection of the writer's thread. It makes one transaction at a time.
pub(super) trait WriteConnection: Send {
    /// After an error there is no transaction for changes; the next call tries again.
    fn begin(&mut self) -> Result<(), StoreError>;

    /// Runs one change of the transaction. One that is `independent` can be rolled back by itself; another one can,
    /// once it has written anything, only be rolled back with its whole transaction.
    fn run_change(&mut self, change: Change, independent: bool) -> Result<(), ChangeFailure>;

    /// Returns once the transaction is on disk. After an error none of its changes took effect, and none of them will.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Ends the transaction, if one is open, without a trace. What cannot be done now is done by the next [`begin`](Self::begin).
    fn roll_back(&mut self);

    /// Called after each transaction, committed or not, once everybody who waited for it has been told: work that no
    /// response waits for.
    fn after_callbacks(&mut self) {}

    /// When [`upkeep`](Self::upkeep) is to be called if there is no transaction until then. At the end it is called
    /// without waiting.
    fn upkeep_due_at(&self) -> Option<Instant> {
        None
    }

    /// Does what is otherwise done along with a transaction.
    fn upkeep(&mut self) {}

    /// All other connections of the store are closed already.
    fn close(self: Box<Self>);
}

/// A connection for queries.
pub(super) trait ReadConnection: Reader + Send {
    /// Until [`end`](Self::end) all queries see one snapshot, which contains every change committed before the call.
    fn begin(&self) -> Result<(), StoreError>;

    fn end(&self) -> Result<(), StoreError>;

    /// Ends a snapshot that is still open after a failure. If this returns `false` the connection is of no use any
    /// more.
    #[must_use = "a connection that cannot be reset has to be closed"]
    fn reset(&self) -> bool;
}

/// All queries of `f` see one snapshot. If it fails, the connection has to be reset.
pub(super) fn read_snapshot<T, E: From<StoreError>>(
    connection: &dyn ReadConnection,
    f: impl FnOnce(&dyn Reader) -> Result<T, E>,
) -> Result<T, E> {
    connection.begin()?;
    let result = f(connection)?;
    connection.end()?;
    Ok(result)
}
