//! The store of a node: its users, their fetches, and which of their tokens are valid or were logged out. The tables of
//! tracked files are in the same database.
//!
//! A user's name is stored as it was given, and found in any Unicode spelling, because the account's spelling is not
//! always that of the node's `--name`. What belongs to a user is stored under [`Name::key`].

use std::path::Path;
use std::sync::Arc;

use crate::model::text::spellings;
use crate::model::{Millis, Name, Token};
use crate::share::files;
use crate::share::transfer::FetchStatus;
use crate::share::wire::FileName;
use crate::storage::{OpenError, Reader, ReaderExt, Row, Store, StoreError, Tx};

/// File name of the store in the data folder.
pub const STORE_FILE: &str = "share.db";
/// Most valid tokens that are stored; those that expire first are dropped first.
pub const TOKENS_MAX: usize = 4_096;
/// Most fetches that are stored per user; ended ones are dropped first, oldest first.
pub const FETCHES_MAX: usize = 1_000;

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

/// Migrations from an empty database to the current schema.
pub const MIGRATIONS: &[&str] = &[files::SCHEMA, SCHEMA, TOKENS, files::ADD_MISSING_SINCE];

/// A user of this node.
#[derive(Debug, Clone)]
pub struct NodeUser {
    /// Name of the account, which is also the hostname.
    pub name: Name,
    /// 1 for the first user that signed in, who may use shared folders outside the repo.
    pub number: u64,
    /// The user's display name.
    pub display_name: String,
    /// Whether the user's node is to be joined to the network, also after a restart.
    pub is_joined: bool,
    /// Its last peer port.
    pub port: Option<u16>,
    /// Address announced to the registry, if not the one it connects from.
    pub advertise_ip: Option<String>,
    /// The secret that reclaims the hostname at the registry.
    pub resume_secret: Option<Token>,
}

/// A fetch as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRow {
    /// Unique id.
    pub id: String,
    /// The file's name on the network.
    pub file_name: FileName,
    /// Destination of the complete file.
    pub save_path: String,
    /// Size of the file, bytes.
    pub total_size: u64,
    /// Bytes received when the row was written.
    pub downloaded_size: u64,
    /// Status to resume with, or how it ended.
    pub status: FetchStatus,
    /// Why it failed or is waiting.
    pub error: Option<String>,
    /// Whether the complete file was verified by a digest.
    pub is_verified: bool,
    /// Name of the host that was chosen at the start.
    pub peer_hostname: String,
    /// Address of that host.
    pub peer_ip: String,
    /// When it was started.
    pub began_at: Millis,
}

/// Why a node's store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenNodeStoreError {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Data of an earlier version could not be migrated.
    #[error("{STORE_FILE}: {0}")]
    Store(#[from] StoreError),
}

/// The store of a process's nodes.
#[derive(Debug, Clone)]
pub struct NodeStore {
    database: Arc<Store>,
}

impl NodeStore {
    /// Opens the store in the data folder, creating it if there is none.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(data_dir: &Path) -> Result<NodeStore, OpenNodeStoreError> {
        let store = NodeStore { database: Arc::new(Store::open(&data_dir.join(STORE_FILE), MIGRATIONS)?) };
        if store.users()?.iter().any(|user| !user.name.as_str().is_ascii()) {
            store.database.write(migrate_owners_to_keys)?;
        }
        Ok(store)
    }

    /// The database, for the tables of tracked files.
    pub fn database(&self) -> &Arc<Store> {
        &self.database
    }

    /// All users, in the order of their first sign-in.
    ///
    /// # Errors
    /// The store fails.
    pub fn users(&self) -> Result<Vec<NodeUser>, StoreError> {
        let sql = format!("{USERS} ORDER BY number");
        self.database.read(|reader| reader.all(&sql, &[], user))
    }

    /// Records a sign-in: creates the user or updates its display name.
    ///
    /// # Errors
    /// The store fails.
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

    /// Of the users whose names are spellings of this one, returns the name of the first that signed in, as stored.
    ///
    /// # Errors
    /// The store fails.
    pub fn first_spelling_of(&self, name: &Name) -> Result<Option<Name>, StoreError> {
        let [given, composed, decomposed] = spellings(name.as_str());
        let sql = "SELECT name FROM share_user WHERE name IN ($1, $2, $3) ORDER BY number LIMIT 1";
        let spelled = [(&given).into(), (&composed).into(), (&decomposed).into()];
        self.database.read(|reader| reader.first(sql, &spelled, |row| row.name(0)))
    }

    /// Stores whether a user's node is to be joined to the network, and the address to announce.
    ///
    /// # Errors
    /// The store fails.
    pub fn set_joined(&self, name: &Name, is_joined: bool, advertise_ip: Option<&str>) -> Result<(), StoreError> {
        let (name, advertise_ip) = (name.clone(), advertise_ip.map(str::to_owned));
        self.database.write(move |tx| {
            let sql = "UPDATE share_user SET is_on = $1, advertise_ip = $2 WHERE name = $3";
            let (name, address) = (stored_name(tx, &name)?, advertise_ip.as_deref());
            tx.execute(sql, &[is_joined.into(), address.into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// Stores a user's peer port.
    ///
    /// # Errors
    /// The store fails.
    pub fn set_port(&self, name: &Name, port: u16) -> Result<(), StoreError> {
        let name = name.clone();
        self.database.write(move |tx| {
            let (name, sql) = (stored_name(tx, &name)?, "UPDATE share_user SET port = $1 WHERE name = $2");
            tx.execute(sql, &[port.into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// Stores or removes the registry's resume secret.
    ///
    /// # Errors
    /// The store fails.
    pub fn set_resume_secret(&self, name: &Name, resume_secret: Option<&str>) -> Result<(), StoreError> {
        let (name, resume_secret) = (name.clone(), resume_secret.map(str::to_owned));
        self.database.write(move |tx| {
            let (name, sql) = (stored_name(tx, &name)?, "UPDATE share_user SET resume = $1 WHERE name = $2");
            tx.execute(sql, &[resume_secret.as_deref().into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// The stored resume secret, which reclaims the hostname at the registry.
    ///
    /// # Errors
    /// The store fails.
    pub fn resume_secret(&self, name: &Name) -> Result<Option<String>, StoreError> {
        let sql = "SELECT resume FROM share_user WHERE name = $1";
        let read = |row: &Row<'_>| Ok(row.opt_text(0)?.map(str::to_owned));
        self.database
            .read(|reader| reader.first(sql, &[(&stored_name(reader, name)?).into()], read))
            .map(Option::flatten)
    }

    /// Refuses a token until its expiry; drops expired refusals.
    ///
    /// # Errors
    /// The store fails.
    pub fn refuse_token(&self, token_sha256: [u8; 32], until: Millis, now: Millis) -> Result<(), StoreError> {
        self.database.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE token_sha256 = $1", &[(&token_sha256).into()])?;
            tx.execute("DELETE FROM share_refused WHERE until < $1", &[now.into()])?;
            let sql =
                "INSERT INTO share_refused (token_sha256, until) VALUES ($1, $2) ON CONFLICT (token_sha256) DO NOTHING";
            tx.execute(sql, &[(&token_sha256).into(), until.into()]).map(|_rows| ())
        })
    }

    /// Whether a token was logged out.
    ///
    /// # Errors
    /// The store fails.
    pub fn is_refused(&self, token_sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM share_refused WHERE token_sha256 = $1";
        Ok(self.database.read(|reader| reader.first(sql, &[token_sha256.into()], |row| row.int(0)))?.is_some())
    }

    /// Stores that a token is valid until then; drops expired ones. Returns false, storing nothing, if the token has
    /// been logged out meanwhile.
    ///
    /// # Errors
    /// The store fails.
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

    /// Deletes a token that the server no longer accepts.
    ///
    /// # Errors
    /// The store fails.
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

    /// The digests of a user's valid tokens, as far as they are stored.
    ///
    /// # Errors
    /// The store fails.
    pub fn tokens(&self, owner: &Name, now: Millis) -> Result<Vec<[u8; 32]>, StoreError> {
        let sql = "SELECT token_sha256 FROM share_token WHERE owner = $1 AND until > $2";
        self.database.read(|reader| {
            reader.all(sql, &[owner.key().into(), now.into()], |row| {
                let wrong = |_| StoreError::Invalid("a token's digest: expected 32 bytes".to_owned());
                row.blob(0)?.try_into().map_err(wrong)
            })
        })
    }

    /// Stores the current state of a fetch; drops the oldest ended ones if there are too many.
    ///
    /// # Errors
    /// The store fails.
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
    ///
    /// # Errors
    /// The store fails.
    pub fn delete_fetch(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.database.write(move |tx| tx.execute("DELETE FROM share_fetch WHERE id = $1", &[(&id).into()]).map(drop))
    }

    /// A user's fetches, oldest first.
    ///
    /// # Errors
    /// The store fails.
    pub fn fetches(&self, owner: &Name) -> Result<Vec<FetchRow>, StoreError> {
        let sql =
            "SELECT id, file_name, save_path, total_size, downloaded_size, status, error, verified, peer_hostname,
                peer_ip, began_at FROM share_fetch WHERE owner = $1 ORDER BY began_at, id";
        self.database.read(|reader| reader.all(sql, &[owner.key().into()], fetch))
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
        resume_secret: row.opt_text(6)?.map(Token::from_text),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn fetch(number: usize, status: FetchStatus) -> FetchRow {
        FetchRow {
            id: format!("f{number:04}"),
            file_name: FileName::new("a").unwrap(),
            save_path: "/x/a".to_owned(),
            total_size: 10,
            downloaded_size: 5,
            status,
            error: None,
            is_verified: false,
            peer_hostname: "bob".to_owned(),
            peer_ip: "192.0.2.1".to_owned(),
            began_at: Millis(number as u64),
        }
    }

    #[test]
    fn users_are_numbered_as_they_come_and_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::open(dir.path()).unwrap();
        assert_eq!(store.signed_in(&name("ann"), "Ann").unwrap().number, 1);
        assert_eq!(store.signed_in(&name("bob"), "Bob").unwrap().number, 2);
        assert_eq!(store.signed_in(&name("ann"), "Ann B").unwrap().number, 1);
        store.set_joined(&name("ann"), true, Some("192.0.2.1")).unwrap();
        store.set_port(&name("ann"), 6001).unwrap();
        store.set_resume_secret(&name("ann"), Some("secret")).unwrap();
        drop(store);
        let store = NodeStore::open(dir.path()).unwrap();
        let users = store.users().unwrap();
        let ann = &users[0];
        assert_eq!((&*ann.display_name, ann.is_joined, ann.port), ("Ann B", true, Some(6001)));
        assert_eq!(ann.advertise_ip.as_deref(), Some("192.0.2.1"));
        assert_eq!(store.resume_secret(&name("ann")).unwrap().as_deref(), Some("secret"));
        assert_eq!((users[1].is_joined, users[1].port, users.len()), (false, None, 2));
    }

    #[test]
    fn a_user_is_one_however_the_name_is_spelled() {
        let (accounts, nodes) = (name("Zo\u{eb}"), name("Zoe\u{308}"));
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::open(dir.path()).unwrap();
        assert_eq!(store.signed_in(&accounts, "Zoë").unwrap().number, 1);
        // From here on in the node's spelling, as with a node of that `--name`.
        assert_eq!(store.signed_in(&nodes, "Zoë B").unwrap().number, 1);
        store.set_joined(&nodes, true, Some("192.0.2.1")).unwrap();
        store.set_port(&nodes, 6001).unwrap();
        store.set_resume_secret(&nodes, Some("secret")).unwrap();
        let users = store.users().unwrap();
        let zoe = &users[0];
        assert_eq!((zoe.name.as_str(), &*zoe.display_name, users.len()), (accounts.as_str(), "Zoë B", 1));
        assert_eq!((zoe.is_joined, zoe.port, zoe.advertise_ip.as_deref()), (true, Some(6001), Some("192.0.2.1")));
        for spelled in [&accounts, &nodes] {
            assert_eq!(store.resume_secret(spelled).unwrap().as_deref(), Some("secret"));
        }
        store.put_fetch(&nodes, &fetch(1, FetchStatus::Paused)).unwrap();
        assert_eq!(store.fetches(&accounts).unwrap().len(), 1);
        // An earlier version stored the user's data under the node's spelling.
        let former = nodes.as_str().to_owned();
        store
            .database
            .write(move |tx| -> Result<(), StoreError> {
                tx.execute("UPDATE share_fetch SET owner = $1", &[(&former).into()])?;
                for (owner, file) in [(&*former, "a"), (&*former, "b"), ("Zo\u{eb}", "b")] {
                    let sql = "INSERT INTO share_file (owner, name, path, size, modified_ns, added_at, is_published)
                               VALUES ($1, $2, '/x', 1, 1, 1, 0)";
                    tx.execute(sql, &[owner.into(), file.into()])?;
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(store.fetches(&accounts).unwrap(), []);
        drop(store);
        let store = NodeStore::open(dir.path()).unwrap();
        let files = files::TrackedFiles::of(Arc::clone(store.database()), &nodes).list(false).unwrap();
        assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(store.fetches(&nodes).unwrap().len(), 1);
    }

    #[test]
    fn a_token_that_was_logged_out_stays_refused_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::open(dir.path()).unwrap();
        store.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
        store.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
        assert!(store.is_refused(&[1; 32]).unwrap() && !store.is_refused(&[2; 32]).unwrap());
        store.refuse_token([2; 32], Millis(3000), Millis(2000)).unwrap();
        assert!(!store.is_refused(&[1; 32]).unwrap() && store.is_refused(&[2; 32]).unwrap());
    }

    #[test]
    fn good_tokens_are_kept_by_their_digests_until_they_end_or_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::open(dir.path()).unwrap();
        let ann = name("Zo\u{eb}");
        for (number, owner, until) in [(1, "Zoe\u{308}", 100), (2, "Zo\u{eb}", 200), (3, "bob", 300)] {
            assert!(store.put_token([number; 32], &name(owner), Millis(until), Millis(0)).unwrap());
        }
        drop(store);
        let store = NodeStore::open(dir.path()).unwrap();
        let tokens = |now: u64| store.tokens(&ann, Millis(now)).unwrap();
        assert_eq!((tokens(99), tokens(100), tokens(200)), (vec![[1; 32], [2; 32]], vec![[2; 32]], vec![]));
        store.refuse_token([2; 32], Millis(1_000), Millis(0)).unwrap();
        assert_eq!(tokens(0), [[1; 32]]);
        // An answer about it that was under way does not put it back.
        assert!(!store.put_token([2; 32], &ann, Millis(200), Millis(0)).unwrap());
        store.delete_token([1; 32]).unwrap();
        store.delete_token([9; 32]).unwrap();
        assert_eq!(tokens(0), [[0; 32]; 0]);
        // The number is bounded; those that expire last stay.
        let key = ann.key().to_owned();
        store
            .database
            .write(move |tx| -> Result<(), StoreError> {
                for number in 0..u64::try_from(TOKENS_MAX).unwrap() {
                    let mut digest = [7; 32];
                    digest[..8].copy_from_slice(&number.to_le_bytes());
                    let sql = "INSERT INTO share_token (token_sha256, owner, until) VALUES ($1, $2, $3)";
                    tx.execute(sql, &[(&digest).into(), (&key).into(), Millis(1_000 + number).into()])?;
                }
                Ok(())
            })
            .unwrap();
        assert!(store.put_token([5; 32], &ann, Millis(9_000), Millis(0)).unwrap());
        assert_eq!(
            (tokens(0).len(), tokens(1_000).len(), tokens(1_001).len()),
            (TOKENS_MAX, TOKENS_MAX, TOKENS_MAX - 1)
        );
        assert_eq!(store.tokens(&name("bob"), Millis(0)).unwrap(), [[0; 32]; 0], "the one that would end first");
        // Expired tokens are dropped when another is stored.
        assert!(store.put_token([8; 32], &ann, Millis(20_000), Millis(10_000)).unwrap());
        assert_eq!(tokens(0), [[8; 32]]);
    }

    #[test]
    fn fetches_are_kept_and_the_oldest_that_ended_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = NodeStore::open(dir.path()).unwrap();
        let ann = name("ann");
        store.put_fetch(&ann, &fetch(0, FetchStatus::Downloading)).unwrap();
        for number in 1..FETCHES_MAX + 5 {
            store.put_fetch(&ann, &fetch(number, FetchStatus::Completed)).unwrap();
        }
        let kept = store.fetches(&ann).unwrap();
        // A fetch in progress stays, however old it is.
        assert_eq!(kept.len(), FETCHES_MAX + 1);
        assert_eq!((&*kept[0].id, kept[0].status), ("f0000", FetchStatus::Downloading));
        assert_eq!(kept[1].began_at, Millis(5));
        let mut ended = fetch(0, FetchStatus::Failed);
        ended.error = Some("no host".to_owned());
        store.put_fetch(&ann, &ended).unwrap();
        assert!(!store.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0000"));
        assert_eq!(store.fetches(&name("bob")).unwrap(), []);
        store.delete_fetch("f0005").unwrap();
        assert!(!store.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0005"));
    }
}
