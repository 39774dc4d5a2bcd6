//! The store of a node: its users, and in files of their own their fetches and their tokens. The tables of tracked
//! files are in the same database.
//!
//! A user's name is stored as it was given, and found in any Unicode spelling, because the account's spelling is not
//! always that of the node's `--name`. What belongs to a user is stored under [`Name::key`].

use std::path::Path;
use std::sync::Arc;

use crate::model::Name;
use crate::model::text::spellings;
use crate::share::files;
use crate::storage::{OpenError, Reader, ReaderExt, Row, Store, StoreError, Tx};

mod fetches;
#[cfg(test)]
mod tests;
mod tokens;

pub use fetches::{FETCHES_MAX, FetchRow};
pub use tokens::TOKENS_MAX;

pub const STORE_FILE: &str = "share.db";

/// `is_on`: the user's node has joined the network and the user has not logged out. A fetch's `status` is the one to
/// resume it with, or how it ended.
const SCHEMA: &str = "
    CREATE TABLE share_user (name TEXT PRIMARY KEY, number BIGINT NOT NULL, display_name TEXT NOT NULL,
        is_on BIGINT NOT NULL, port BIGINT, advertise_ip TEXT, resume TEXT);
    CREATE TABLE share_fetch (id TEXT PRIMARY KEY, owner TEXT NOT NULL, file_name TEXT NOT NULL,
        save_path TEXT NOT NULL, total_size BIGINT NOT NULL, downloaded_size BIGINT NOT NULL, status TEXT NOT NULL,
        error TEXT, verified BIGINT NOT NULL, peer_hostname TEXT NOT NULL, peer_ip TEXT NOT NULL,
        began_at BIGINT NOT NULL);
    CREATE INDEX share_fetch_owner ON share_fetch (owner, began_at);
    CREATE TABLE share_refused (token_sha256 BYTEA PRIMARY KEY, until BIGINT NOT NULL);
";

/// Digests of tokens that the server has accepted; never the tokens themselves. `owner` is a [`Name::key`], `until`
/// wall time.
const TOKENS: &str =
    "CREATE TABLE share_token (token_sha256 BYTEA PRIMARY KEY, owner TEXT NOT NULL, until BIGINT NOT NULL);";

pub const MIGRATIONS: &[&str] = &[files::SCHEMA, SCHEMA, TOKENS, files::ADD_MISSING_SINCE];

#[derive(Debug, Clone)]
pub struct NodeUser {
    /// The account's name, which is also the hostname.
    pub name: Name,
    /// 1 for the first user that signed in, who may use shared folders outside the repo.
    pub number: u64,
    pub display_name: String,
    /// The user's node is to be joined to the network, also after a restart.
    pub is_joined: bool,
    /// The last peer port.
    pub port: Option<u16>,
    /// Announced to the registry, if not the one it connects from.
    pub advertise_ip: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenNodeStoreError {
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Data of an earlier version could not be migrated.
    #[error("{STORE_FILE}: {0}")]
    Store(#[from] StoreError),
}

#[derive(Debug, Clone)]
pub struct NodeStore {
    database: Arc<Store>,
}

impl NodeStore {
    pub fn open(data_dir: &Path) -> Result<NodeStore, OpenNodeStoreError> {
        let store = NodeStore { database: Arc::new(Store::open(&data_dir.join(STORE_FILE), MIGRATIONS)?) };
        if store.users()?.iter().any(|user| !user.name.as_str().is_ascii()) {
            store.database.write(migrate_owners_to_keys)?;
        }
        Ok(store)
    }

    /// The tables of tracked files are in it too.
    pub fn database(&self) -> &Arc<Store> {
        &self.database
    }

    /// They come in the order of their first sign-in.
    pub fn users(&self) -> Result<Vec<NodeUser>, StoreError> {
        let sql = format!("{USERS} ORDER BY number");
        self.database.read(|reader| reader.all(&sql, &[], user))
    }

    /// Creates the user or updates its display name.
    pub fn signed_in(&self, name: &Name, display_name: &str) -> Result<NodeUser, StoreError> {
        let (name, display_name) = (name.clone(), display_name.to_owned());
        self.database.write(move |tx| {
            let name = stored_name(tx, &name)?;
            tx.execute(
                "INSERT INTO share_user (name, number, display_name, is_on)
                 VALUES ($1, (SELECT COUNT(*) + 1 FROM share_user), $2, 0)
                 ON CONFLICT (name) DO UPDATE SET display_name = excluded.display_name",
                &[(&name).into(), (&display_name).into()],
            )?;
            tx.first(&format!("{USERS} WHERE name = $1"), &[(&name).into()], user)?
                .ok_or_else(|| StoreError::Invalid("a user that was just written is missing".to_owned()))
        })
    }

    /// The stored name; if several users' names are spellings of this one, that of the first that signed in.
    pub fn first_spelling_of(&self, name: &Name) -> Result<Option<Name>, StoreError> {
        let [given, composed, decomposed] = spellings(name.as_str());
        let sql = "SELECT name FROM share_user WHERE name IN ($1, $2, $3) ORDER BY number LIMIT 1";
        let spelled = [(&given).into(), (&composed).into(), (&decomposed).into()];
        self.database.read(|reader| reader.first(sql, &spelled, |row| row.name(0)))
    }

    /// `advertise_ip` is the address to announce.
    pub fn set_joined(&self, name: &Name, is_joined: bool, advertise_ip: Option<&str>) -> Result<(), StoreError> {
        let (name, advertise_ip) = (name.clone(), advertise_ip.map(str::to_owned));
        self.database.write(move |tx| {
            let sql = "UPDATE share_user SET is_on = $1, advertise_ip = $2 WHERE name = $3";
            let (name, address) = (stored_name(tx, &name)?, advertise_ip.as_deref());
            tx.execute(sql, &[is_joined.into(), address.into(), (&name).into()]).map(|_rows| ())
        })
    }

    pub fn set_port(&self, name: &Name, port: u16) -> Result<(), StoreError> {
        let name = name.clone();
        self.database.write(move |tx| {
            let (name, sql) = (stored_name(tx, &name)?, "UPDATE share_user SET port = $1 WHERE name = $2");
            tx.execute(sql, &[port.into(), (&name).into()]).map(|_rows| ())
        })
    }

    pub fn set_resume_secret(&self, name: &Name, resume_secret: Option<&str>) -> Result<(), StoreError> {
        let (name, resume_secret) = (name.clone(), resume_secret.map(str::to_owned));
        self.database.write(move |tx| {
            let (name, sql) = (stored_name(tx, &name)?, "UPDATE share_user SET resume = $1 WHERE name = $2");
            tx.execute(sql, &[resume_secret.as_deref().into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// It reclaims the hostname at the registry.
    pub fn resume_secret(&self, name: &Name) -> Result<Option<String>, StoreError> {
        let sql = "SELECT resume FROM share_user WHERE name = $1";
        let read = |row: &Row<'_>| Ok(row.opt_text(0)?.map(str::to_owned));
        let stored = self.database.read(|reader| reader.first(sql, &[(&stored_name(reader, name)?).into()], read));
        stored.map(Option::flatten)
    }
}

const USERS: &str = "SELECT name, number, display_name, is_on, port, advertise_ip, resume FROM share_user";

/// The spelling under which a user's name is stored: preferably the given one, else another; the given one for a new
/// user.
fn stored_name(reader: &(impl Reader + ?Sized), name: &Name) -> Result<String, StoreError> {
    if name.as_str().is_ascii() {
        return Ok(name.as_str().to_owned());
    }
    let [given, composed, decomposed] = spellings(name.as_str());
    let sql = "SELECT name FROM share_user WHERE name IN ($1, $2, $3) ORDER BY name <> $1, number LIMIT 1";
    let kept = reader.first(sql, &[(&given).into(), (&composed).into(), (&decomposed).into()], |row| {
        Ok::<_, StoreError>(row.text(0)?.to_owned())
    })?;
    Ok(kept.unwrap_or(given))
}

/// Migrates data of an earlier version, which stored a user's data under the spelling of the node's name, to
/// [`Name::key`]. If a file exists under both, the one under the key stays.
fn migrate_owners_to_keys(tx: &mut dyn Tx) -> Result<(), StoreError> {
    for name in tx.all("SELECT name FROM share_user", &[], |row| row.name(0))? {
        for former in spellings(name.as_str()).iter().filter(|spelled| *spelled != name.key()) {
            let owners = [name.key().into(), former.into()];
            tx.execute("UPDATE share_fetch SET owner = $1 WHERE owner = $2", &owners)?;
            tx.execute(
                "UPDATE share_file SET owner = $1 WHERE owner = $2 AND NOT EXISTS
                     (SELECT 1 FROM share_file AS kept WHERE kept.owner = $1 AND kept.name = share_file.name)",
                &owners,
            )?;
        }
    }
    Ok(())
}

fn user(row: &Row<'_>) -> Result<NodeUser, StoreError> {
    let port = |port: i64| u16::try_from(port).map_err(|_| StoreError::Invalid(format!("a port in the store: {port}")));
    Ok(NodeUser {
        name: row.name(0)?,
        number: row.uint(1)?,
        display_name: row.text(2)?.to_owned(),
        is_joined: row.bool(3)?,
        port: row.opt_int(4)?.map(port).transpose()?,
        advertise_ip: row.opt_text(5)?.map(str::to_owned),
    })
}
