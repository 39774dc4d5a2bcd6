//! The table of tracked files: its schema, and how a file becomes a row and is read back.

use super::{FileStat, TrackedFile};
use crate::model::{Millis, text};
use crate::share::pieces::FileDigests;
use crate::share::wire::{Digest, FileName};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx};

/// The table, for the migrations of the node's store. `pieces` is the concatenated piece digests.
pub const SCHEMA: &str = "
    CREATE TABLE share_file (owner TEXT NOT NULL, name TEXT NOT NULL, path TEXT NOT NULL, size BIGINT NOT NULL,
        modified_ns BIGINT NOT NULL, created_ns BIGINT, added_at BIGINT NOT NULL, is_published BIGINT NOT NULL,
        published_at BIGINT, blake3 BYTEA, pieces_root BYTEA, pieces BYTEA, PRIMARY KEY (owner, name));
    CREATE INDEX share_file_path ON share_file (owner, path);
";
/// A later migration: since when the file at the path has been missing.
pub const ADD_MISSING_SINCE: &str = "ALTER TABLE share_file ADD COLUMN missing_since BIGINT;";
pub(super) const COLUMNS: &str =
    "name, path, size, modified_ns, created_ns, added_at, is_published, published_at, blake3,
    pieces_root, missing_since";

pub(super) fn get(
    reader: &(impl Reader + ?Sized),
    owner: &str,
    name: &FileName,
) -> Result<Option<TrackedFile>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM share_file WHERE owner = $1 AND name = $2");
    // First the given spelling. Separate lookups by key cost a fraction of one query that has to sort its results.
    for spelled in text::distinct_spellings(name.as_str()) {
        if let Some(found) = reader.first(&sql, &[owner.into(), (&spelled).into()], read_tracked)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

pub(super) fn count(reader: &(impl Reader + ?Sized), owner: &str) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM share_file WHERE owner = $1";
    Ok(reader.first(sql, &[owner.into()], |row| row.uint(0))?.unwrap_or_default())
}

pub(super) fn digest_bytes(pieces: &FileDigests) -> Vec<u8> {
    pieces.digests().iter().flat_map(|digest| digest.0).collect()
}

/// Writes a row, with the given piece digests or the stored ones; without a `pieces_root` they are cleared.
pub(super) fn write_row(
    tx: &mut (impl Tx + ?Sized),
    owner: &str,
    it: &TrackedFile,
    pieces: Option<&[u8]>,
) -> Result<(), StoreError> {
    let path = it.stat.path.to_string_lossy();
    let sql = "INSERT INTO share_file (owner, name, path, size, modified_ns, created_ns, added_at, is_published,
            published_at, blake3, pieces_root, pieces, missing_since)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        ON CONFLICT (owner, name) DO UPDATE SET path = excluded.path, size = excluded.size,
            modified_ns = excluded.modified_ns, created_ns = excluded.created_ns, is_published = excluded.is_published,
            published_at = excluded.published_at, blake3 = excluded.blake3, pieces_root = excluded.pieces_root,
            missing_since = excluded.missing_since,
            pieces = CASE WHEN excluded.pieces_root IS NULL THEN NULL
                ELSE COALESCE(excluded.pieces, share_file.pieces) END";
    tx.execute(
        sql,
        &[
            owner.into(),
            it.name.as_str().into(),
            path.as_ref().into(),
            to_sql_integer(it.stat.size)?.into(),
            it.stat.modified_ns.into(),
            it.stat.created_ns.into(),
            it.added_at.into(),
            it.is_published.into(),
            it.published_at.into(),
            it.blake3.as_ref().map(|digest| &digest.0).into(),
            it.pieces_root.as_ref().map(|digest| &digest.0).into(),
            pieces.into(),
            it.missing_since.into(),
        ],
    )?;
    Ok(())
}

pub(super) fn to_sql_integer(size: u64) -> Result<i64, StoreError> {
    i64::try_from(size).map_err(|_| StoreError::Invalid(format!("a file of {size} bytes")))
}

pub(super) fn read_file_name(row: &Row<'_>, column: usize) -> Result<FileName, StoreError> {
    FileName::new(row.text(column)?)
        .map_err(|wrong| StoreError::Invalid(format!("a file's name in the store: {wrong}")))
}

fn read_digest(row: &Row<'_>, column: usize) -> Result<Option<Digest>, StoreError> {
    let wrong = |_| StoreError::Invalid("a digest in the store: expected 32 bytes".to_owned());
    row.opt_blob(column)?.map(|bytes| bytes.try_into().map(Digest).map_err(wrong)).transpose()
}

pub(super) fn read_tracked(row: &Row<'_>) -> Result<TrackedFile, StoreError> {
    let millis =
        |at: i64| u64::try_from(at).map(Millis).map_err(|_| StoreError::Invalid("a time before 1970".to_owned()));
    Ok(TrackedFile {
        name: read_file_name(row, 0)?,
        stat: FileStat {
            path: row.text(1)?.into(),
            size: row.uint(2)?,
            modified_ns: row.int(3)?,
            created_ns: row.opt_int(4)?,
        },
        added_at: row.millis(5)?,
        is_published: row.bool(6)?,
        published_at: row.opt_int(7)?.map(millis).transpose()?,
        blake3: read_digest(row, 8)?,
        pieces_root: read_digest(row, 9)?,
        missing_since: row.opt_int(10)?.map(millis).transpose()?,
    })
}
