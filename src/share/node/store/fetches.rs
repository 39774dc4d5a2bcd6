//! A user's fetches in the node's store.

use super::NodeStore;
use crate::model::{Millis, Name};
use crate::share::transfer::FetchStatus;
use crate::share::wire::FileName;
use crate::storage::{ReaderExt, Row, StoreError};

/// A user has at most so many; ended ones are dropped first, the oldest first.
pub const FETCHES_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRow {
    pub id: String,
    pub file_name: FileName,
    /// The path of the complete file.
    pub save_path: String,
    pub total_size: u64,
    /// The bytes received when the row was written.
    pub downloaded_size: u64,
    /// The status to resume with, or how it ended.
    pub status: FetchStatus,
    /// Why it failed or is waiting.
    pub error: Option<String>,
    /// The complete file was verified by a digest.
    pub is_verified: bool,
    /// The host that was chosen at the start.
    pub peer_hostname: String,
    pub peer_ip: String,
    pub began_at: Millis,
}

impl NodeStore {
    /// Drops the oldest ended ones if there are too many.
    pub fn put_fetch(&self, owner: &Name, fetch: &FetchRow) -> Result<(), StoreError> {
        let (owner, it) = (owner.key().to_owned(), fetch.clone());
        self.database.write(move |tx| {
            let sizes = [it.total_size, it.downloaded_size].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
            tx.execute(
                "INSERT INTO share_fetch (id, owner, file_name, save_path, total_size, downloaded_size, status, error,
                     verified, peer_hostname, peer_ip, began_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                 ON CONFLICT (id) DO UPDATE SET total_size = excluded.total_size,
                     downloaded_size = excluded.downloaded_size, status = excluded.status, error = excluded.error,
                     verified = excluded.verified, peer_hostname = excluded.peer_hostname, peer_ip = excluded.peer_ip",
                &[
                    (&it.id).into(),
                    (&owner).into(),
                    it.file_name.as_str().into(),
                    (&it.save_path).into(),
                    sizes[0].into(),
                    sizes[1].into(),
                    it.status.as_text().into(),
                    it.error.as_deref().into(),
                    it.is_verified.into(),
                    (&it.peer_hostname).into(),
                    (&it.peer_ip).into(),
                    it.began_at.into(),
                ],
            )?;
            tx.execute(
                "DELETE FROM share_fetch WHERE owner = $1 AND status IN ('completed', 'failed', 'cancelled')
                     AND began_at < (SELECT began_at FROM share_fetch WHERE owner = $1
                         ORDER BY began_at DESC LIMIT 1 OFFSET $2)",
                &[(&owner).into(), i64::try_from(FETCHES_MAX - 1).unwrap_or(i64::MAX).into()],
            )?;
            Ok(())
        })
    }

    /// Deletes a fetch that could not start.
    pub fn delete_fetch(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.database.write(move |tx| tx.execute("DELETE FROM share_fetch WHERE id = $1", &[(&id).into()]).map(drop))
    }

    /// A user's fetches, the oldest first.
    pub fn fetches(&self, owner: &Name) -> Result<Vec<FetchRow>, StoreError> {
        let sql =
            "SELECT id, file_name, save_path, total_size, downloaded_size, status, error, verified, peer_hostname,
                peer_ip, began_at FROM share_fetch WHERE owner = $1 ORDER BY began_at, id";
        self.database.read(|reader| reader.all(sql, &[owner.key().into()], fetch))
    }
}

fn fetch(row: &Row<'_>) -> Result<FetchRow, StoreError> {
    let status = row.text(5)?;
    Ok(FetchRow {
        id: row.text(0)?.to_owned(),
        file_name: FileName::new(row.text(1)?)
            .map_err(|wrong| StoreError::Invalid(format!("a file's name: {wrong}")))?,
        save_path: row.text(2)?.to_owned(),
        total_size: row.uint(3)?,
        downloaded_size: row.uint(4)?,
        status: FetchStatus::from_text(status)
            .ok_or_else(|| StoreError::Invalid(format!("a fetch's status: {status}")))?,
        error: row.opt_text(6)?.map(str::to_owned),
        is_verified: row.bool(7)?,
        peer_hostname: row.text(8)?.to_owned(),
        peer_ip: row.text(9)?.to_owned(),
        began_at: row.millis(10)?,
    })
}
