//! The tables of accounts, and what is written and read as rows.

use std::net::IpAddr;

use super::{ADDRESSES_MAX, User};
use crate::model::{Millis, Name};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx};

/// The schema, one migration per version.
pub const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE users (
    username     TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    password     TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    last_login   INTEGER
) WITHOUT ROWID;
CREATE TABLE sign_ins (
    username TEXT NOT NULL,
    ip       TEXT NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (username, ip)
) WITHOUT ROWID;
CREATE INDEX sign_ins_at ON sign_ins (at);
CREATE TABLE admin (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    username TEXT NOT NULL,
    password TEXT NOT NULL
);
",
    "
-- Since when the operator lets it sign in no more.
ALTER TABLE users ADD COLUMN blocked_at INTEGER;
",
];

/// All accounts, by name.
pub fn all_users(reader: &dyn Reader) -> Result<Vec<User>, StoreError> {
    reader.all(&format!("{SELECT_USERS} ORDER BY username"), &[], user_from_row)
}

pub(super) const SELECT_USERS: &str =
    "SELECT username, display_name, created_at, last_login, password, blocked_at FROM users";

pub(super) fn user_from_row(row: &Row<'_>) -> Result<User, StoreError> {
    let last_login = row.opt_int(3)?.map(|_| row.millis(3)).transpose()?;
    Ok(User {
        username: row.name(0)?,
        display_name: row.name(1)?,
        created_at: row.millis(2)?,
        last_login,
        is_blocked: row.opt_int(5)?.is_some(),
    })
}

/// The account, with the hash of its password.
pub(super) fn find_account(reader: &(impl Reader + ?Sized), name: &Name) -> Result<Option<(User, String)>, StoreError> {
    let sql = format!("{SELECT_USERS} WHERE username = $1");
    reader.first(&sql, &[name.into()], |row| Ok((user_from_row(row)?, row.text(4)?.to_owned())))
}

pub(super) fn write_sign_in(tx: &mut dyn Tx, name: &Name, source: IpAddr, at: Millis) -> Result<(), StoreError> {
    let ip = source.to_canonical().to_string();
    // Each later than the one before, even within a millisecond: otherwise which one is the oldest would be arbitrary.
    let newest = tx.first("SELECT max(at) FROM sign_ins WHERE username = $1", &[name.into()], |row| {
        row.opt_int(0)?.map(|_| row.millis(0)).transpose()
    })?;
    let at = newest.flatten().map_or(at, |newest| at.max(newest.plus_ms(1)));
    let sql = "INSERT INTO sign_ins (username, ip, at) VALUES ($1, $2, $3) \
               ON CONFLICT (username, ip) DO UPDATE SET at = excluded.at";
    tx.execute(sql, &[name.into(), (&ip).into(), at.into()])?;
    // The oldest beyond the limit.
    let sql = "DELETE FROM sign_ins WHERE username = $1 AND ip NOT IN \
               (SELECT ip FROM sign_ins WHERE username = $1 ORDER BY at DESC LIMIT $2)";
    tx.execute(sql, &[name.into(), (ADDRESSES_MAX as i64).into()]).map(drop)
}
