//! The digests of tokens in the node's store: which the server has accepted, and which were logged out.

use super::NodeStore;
use crate::model::{Millis, Name};
use crate::storage::{ReaderExt, StoreError};

/// So many valid tokens are stored; those that expire first are dropped first.
pub const TOKENS_MAX: usize = 4_096;

impl NodeStore {
    /// Refuses a token until its expiry; drops expired refusals.
    pub fn refuse_token(&self, token_sha256: [u8; 32], until: Millis, now: Millis) -> Result<(), StoreError> {
        self.database.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE token_sha256 = $1", &[(&token_sha256).into()])?;
            tx.execute("DELETE FROM share_refused WHERE until < $1", &[now.into()])?;
            let sql =
                "INSERT INTO share_refused (token_sha256, until) VALUES ($1, $2) ON CONFLICT (token_sha256) DO NOTHING";
            tx.execute(sql, &[(&token_sha256).into(), until.into()]).map(|_rows| ())
        })
    }

    pub fn is_refused(&self, token_sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM share_refused WHERE token_sha256 = $1";
        Ok(self.database.read(|reader| reader.first(sql, &[token_sha256.into()], |row| row.int(0)))?.is_some())
    }

    /// Drops expired tokens. Returns false, storing nothing, if this one has been logged out meanwhile.
    pub fn put_token(
        &self,
        token_sha256: [u8; 32],
        owner: &Name,
        until: Millis,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let owner = owner.key().to_owned();
        self.database.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE until <= $1", &[now.into()])?;
            let added = tx.execute(
                "INSERT INTO share_token (token_sha256, owner, until) SELECT $1, $2, $3
                     WHERE NOT EXISTS (SELECT 1 FROM share_refused WHERE token_sha256 = $1)
                 ON CONFLICT (token_sha256) DO UPDATE SET owner = excluded.owner, until = excluded.until",
                &[(&token_sha256).into(), (&owner).into(), until.into()],
            )?;
            let tokens_max = i64::try_from(TOKENS_MAX).unwrap_or(i64::MAX);
            tx.execute(
                "DELETE FROM share_token WHERE token_sha256 IN
                     (SELECT token_sha256 FROM share_token ORDER BY until DESC LIMIT $1 OFFSET $2)",
                &[i64::MAX.into(), tokens_max.into()],
            )?;
            Ok(added > 0)
        })
    }

    /// For a token that the server no longer accepts.
    pub fn delete_token(&self, token_sha256: [u8; 32]) -> Result<(), StoreError> {
        let sql = "SELECT 1 FROM share_token WHERE token_sha256 = $1";
        // Invalid tokens from anybody must not cause writes.
        if self.database.read(|reader| reader.first(sql, &[(&token_sha256).into()], |row| row.int(0)))?.is_none() {
            return Ok(());
        }
        self.database.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE token_sha256 = $1", &[(&token_sha256).into()]).map(drop)
        })
    }

    /// The digests of a user's valid tokens.
    pub fn tokens(&self, owner: &Name, now: Millis) -> Result<Vec<[u8; 32]>, StoreError> {
        let sql = "SELECT token_sha256 FROM share_token WHERE owner = $1 AND until > $2";
        self.database.read(|reader| {
            reader.all(sql, &[owner.key().into(), now.into()], |row| {
                let wrong = |_| StoreError::Invalid("a token's digest: expected 32 bytes".to_owned());
                row.blob(0)?.try_into().map_err(wrong)
            })
        })
    }
}
