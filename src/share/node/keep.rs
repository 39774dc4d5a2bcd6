//! What a node keeps beside its files, in the same store: its users, their fetches, which of their tokens are good
//! and which were logged out.
//!
//! A user's name is kept as it was given, and found however it is spelled: the account's spelling is not always that of
//! the node's `--name`. What belongs to a user goes by [`Name::key`].

use std::path::Path;
use std::sync::Arc;

use crate::model::text::spellings;
use crate::model::{Millis, Name, Token};
use crate::share::files;
use crate::share::wire::FileName;
use crate::storage::{OpenError, Query, Reader, Row, Store, StoreError, Tx};

/// The file in the data dir.
pub const STORE_FILE: &str = "share.db";
/// Most good tokens that are kept; those that end first go first.
pub const TOKENS_MAX: usize = 4_096;
/// Most fetches of a user that are kept; those that ended first go first.
pub const FETCHES_MAX: usize = 1_000;

/// `is_on`: it signed in, began, and did not log out. A fetch's `status` is what it is to be, or how it ended.
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

/// Tokens that the server has vouched for: never they themselves. `owner` is a name as it is compared, `until` by the
/// wall's time.
const TOKENS: &str =
    "CREATE TABLE share_token (token_sha256 BYTEA PRIMARY KEY, owner TEXT NOT NULL, until BIGINT NOT NULL);";

/// From an empty file to this version.
pub const MIGRATIONS: &[&str] = &[files::SCHEMA, SCHEMA, TOKENS, files::MISSING];

/// A user of this node.
#[derive(Debug, Clone)]
pub struct User {
    /// The account, and the hostname.
    pub name: Name,
    /// 1 for the first that signed in, who may name paths outside the repo.
    pub number: u64,
    /// The name for people.
    pub display_name: String,
    /// Whether the node is to take part for it, also after a restart.
    pub is_on: bool,
    /// Its peer port of last time.
    pub port: Option<u16>,
    /// The address that it told the registry, where that is not the one it connects from.
    pub advertise_ip: Option<String>,
    /// What gives its hostname back.
    pub resume: Option<Token>,
}

/// What a fetch is to do, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has not begun.
    Pending,
    /// Under way, or waiting for a host to come back.
    Downloading,
    /// Until somebody wants it again.
    Paused,
    /// The file is there, whole.
    Completed,
    /// It will not go on by itself.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

impl Status {
    const ALL: [Status; 6] =
        [Status::Pending, Status::Downloading, Status::Paused, Status::Completed, Status::Failed, Status::Cancelled];

    /// As the client API names it.
    pub fn as_text(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Downloading => "downloading",
            Status::Paused => "paused",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether it has ended for good.
    pub fn is_over(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }
}

/// A fetch as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRow {
    /// Unique.
    pub id: String,
    /// Under which name the network knows the file.
    pub file_name: FileName,
    /// Where the file is to be, when it is whole.
    pub save_path: String,
    /// Bytes.
    pub total_size: u64,
    /// Bytes that were good when this was written.
    pub downloaded_size: u64,
    /// What it is doing.
    pub status: Status,
    /// Why it failed or waits.
    pub error: Option<String>,
    /// Whether the whole was checked by a digest.
    pub is_verified: bool,
    /// Of the host that was asked first.
    pub peer_hostname: String,
    /// Its address.
    pub peer_ip: String,
    /// When it was asked for.
    pub began_at: Millis,
}

/// Why a node's store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenKeepError {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What an earlier version kept in it could not be brought in order.
    #[error("{STORE_FILE}: {0}")]
    Store(#[from] StoreError),
}

/// A node's store.
#[derive(Debug, Clone)]
pub struct Keep {
    store: Arc<Store>,
}

impl Keep {
    /// Opens the store in the data dir, or makes it.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(data_dir: &Path) -> Result<Keep, OpenKeepError> {
        let keep = Keep { store: Arc::new(Store::open(&data_dir.join(STORE_FILE), MIGRATIONS)?) };
        if keep.users()?.iter().any(|user| !user.name.as_str().is_ascii()) {
            keep.store.write(own_by_key)?;
        }
        Ok(keep)
    }

    /// For the tables of files.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// All users, in the order in which they came.
    ///
    /// # Errors
    /// The store's.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        let sql = format!("{USERS} ORDER BY number");
        self.store.read(|reader| reader.all(&sql, &[], user))
    }

    /// The user of that name, who is made if there is none.
    ///
    /// # Errors
    /// The store's.
    pub fn signed_in(&self, name: &Name, display_name: &str) -> Result<User, StoreError> {
        let (name, display_name) = (name.clone(), display_name.to_owned());
        self.store.write(move |tx| {
            let name = kept_as(tx, &name)?;
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

    /// Of the users whose names are spellings of this one, the first that came, as its account is spelled.
    ///
    /// # Errors
    /// The store's.
    pub fn first_of(&self, name: &Name) -> Result<Option<Name>, StoreError> {
        let [given, composed, apart] = spellings(name.as_str());
        let sql = "SELECT name FROM share_user WHERE name IN ($1, $2, $3) ORDER BY number LIMIT 1";
        let spelled = [(&given).into(), (&composed).into(), (&apart).into()];
        self.store.read(|reader| reader.first(sql, &spelled, |row| row.name(0)))
    }

    /// Whether the node is to take part for a user from now on, and how.
    ///
    /// # Errors
    /// The store's.
    pub fn set_on(&self, name: &Name, is_on: bool, advertise_ip: Option<&str>) -> Result<(), StoreError> {
        let (name, advertise_ip) = (name.clone(), advertise_ip.map(str::to_owned));
        self.store.write(move |tx| {
            let sql = "UPDATE share_user SET is_on = $1, advertise_ip = $2 WHERE name = $3";
            let (name, address) = (kept_as(tx, &name)?, advertise_ip.as_deref());
            tx.execute(sql, &[is_on.into(), address.into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// The peer port that a user got.
    ///
    /// # Errors
    /// The store's.
    pub fn set_port(&self, name: &Name, port: u16) -> Result<(), StoreError> {
        let name = name.clone();
        self.store.write(move |tx| {
            let (name, sql) = (kept_as(tx, &name)?, "UPDATE share_user SET port = $1 WHERE name = $2");
            tx.execute(sql, &[port.into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// The secret that the registry gave.
    ///
    /// # Errors
    /// The store's.
    pub fn set_resume(&self, name: &Name, resume: Option<&str>) -> Result<(), StoreError> {
        let (name, resume) = (name.clone(), resume.map(str::to_owned));
        self.store.write(move |tx| {
            let (name, sql) = (kept_as(tx, &name)?, "UPDATE share_user SET resume = $1 WHERE name = $2");
            tx.execute(sql, &[resume.as_deref().into(), (&name).into()]).map(|_rows| ())
        })
    }

    /// What gives the hostname back, as it was kept last.
    ///
    /// # Errors
    /// The store's.
    pub fn resume(&self, name: &Name) -> Result<Option<String>, StoreError> {
        let sql = "SELECT resume FROM share_user WHERE name = $1";
        let read = |row: &Row<'_>| Ok(row.opt_text(0)?.map(str::to_owned));
        self.store.read(|reader| reader.first(sql, &[(&kept_as(reader, name)?).into()], read)).map(Option::flatten)
    }

    /// Refuses a token from now on, until it ends anyway; those that have ended are forgotten.
    ///
    /// # Errors
    /// The store's.
    pub fn refuse_token(&self, token_sha256: [u8; 32], until: Millis, now: Millis) -> Result<(), StoreError> {
        self.store.write(move |tx| {
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
    /// The store's.
    pub fn is_refused(&self, token_sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM share_refused WHERE token_sha256 = $1";
        Ok(self.store.read(|reader| reader.first(sql, &[token_sha256.into()], |row| row.int(0)))?.is_some())
    }

    /// Keeps that a token is good until then; those that have ended are forgotten. False if it was logged out
    /// meanwhile: then it is not kept.
    ///
    /// # Errors
    /// The store's.
    pub fn put_token(
        &self,
        token_sha256: [u8; 32],
        owner: &Name,
        until: Millis,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let owner = owner.key().to_owned();
        self.store.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE until <= $1", &[now.into()])?;
            let added = tx.execute(
                "INSERT INTO share_token (token_sha256, owner, until) SELECT $1, $2, $3
                     WHERE NOT EXISTS (SELECT 1 FROM share_refused WHERE token_sha256 = $1)
                 ON CONFLICT (token_sha256) DO UPDATE SET owner = excluded.owner, until = excluded.until",
                &[(&token_sha256).into(), (&owner).into(), until.into()],
            )?;
            let most = i64::try_from(TOKENS_MAX).unwrap_or(i64::MAX);
            tx.execute(
                "DELETE FROM share_token WHERE token_sha256 IN
                     (SELECT token_sha256 FROM share_token ORDER BY until DESC LIMIT $1 OFFSET $2)",
                &[i64::MAX.into(), most.into()],
            )?;
            Ok(added > 0)
        })
    }

    /// A token is good no more, by the server's word.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_token(&self, token_sha256: [u8; 32]) -> Result<(), StoreError> {
        let sql = "SELECT 1 FROM share_token WHERE token_sha256 = $1";
        // Whoever comes with nonsense makes nobody write.
        if self.store.read(|reader| reader.first(sql, &[(&token_sha256).into()], |row| row.int(0)))?.is_none() {
            return Ok(());
        }
        self.store.write(move |tx| {
            tx.execute("DELETE FROM share_token WHERE token_sha256 = $1", &[(&token_sha256).into()]).map(drop)
        })
    }

    /// A user's tokens that are good, as far as they are kept.
    ///
    /// # Errors
    /// The store's.
    pub fn tokens(&self, owner: &Name, now: Millis) -> Result<Vec<[u8; 32]>, StoreError> {
        let sql = "SELECT token_sha256 FROM share_token WHERE owner = $1 AND until > $2";
        self.store.read(|reader| {
            reader.all(sql, &[owner.key().into(), now.into()], |row| {
                let wrong = |_| StoreError::Invalid("a token's digest: expected 32 bytes".to_owned());
                row.blob(0)?.try_into().map_err(wrong)
            })
        })
    }

    /// Keeps a fetch as it is now; the oldest that have ended make room.
    ///
    /// # Errors
    /// The store's.
    pub fn put_fetch(&self, owner: &Name, fetch: &FetchRow) -> Result<(), StoreError> {
        let (owner, it) = (owner.key().to_owned(), fetch.clone());
        self.store.write(move |tx| {
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

    /// Forgets a fetch that did not begin.
    ///
    /// # Errors
    /// The store's.
    pub fn drop_fetch(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.store.write(move |tx| tx.execute("DELETE FROM share_fetch WHERE id = $1", &[(&id).into()]).map(drop))
    }

    /// A user's fetches, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn fetches(&self, owner: &Name) -> Result<Vec<FetchRow>, StoreError> {
        let sql =
            "SELECT id, file_name, save_path, total_size, downloaded_size, status, error, verified, peer_hostname,
                peer_ip, began_at FROM share_fetch WHERE owner = $1 ORDER BY began_at, id";
        self.store.read(|reader| reader.all(sql, &[owner.key().into()], fetch))
    }
}

const USERS: &str = "SELECT name, number, display_name, is_on, port, advertise_ip, resume FROM share_user";

/// A user's name as it is kept: of just this spelling, else another one; a new one is kept as it is given.
fn kept_as(reader: &(impl Reader + ?Sized), name: &Name) -> Result<String, StoreError> {
    if name.as_str().is_ascii() {
        return Ok(name.as_str().to_owned());
    }
    let [given, composed, apart] = spellings(name.as_str());
    let sql = "SELECT name FROM share_user WHERE name IN ($1, $2, $3) ORDER BY name <> $1, number LIMIT 1";
    let kept = reader.first(sql, &[(&given).into(), (&composed).into(), (&apart).into()], |row| {
        Ok::<_, StoreError>(row.text(0)?.to_owned())
    })?;
    Ok(kept.unwrap_or(given))
}

/// An earlier version kept what belongs to a user under the spelling of the node's name. Where there are two of one
/// name, what is under the key already stays.
fn own_by_key(tx: &mut dyn Tx) -> Result<(), StoreError> {
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

fn user(row: &Row<'_>) -> Result<User, StoreError> {
    let port = |port: i64| u16::try_from(port).map_err(|_| StoreError::Invalid(format!("a port in the store: {port}")));
    Ok(User {
        name: row.name(0)?,
        number: row.uint(1)?,
        display_name: row.text(2)?.to_owned(),
        is_on: row.bool(3)?,
        port: row.opt_int(4)?.map(port).transpose()?,
        advertise_ip: row.opt_text(5)?.map(str::to_owned),
        resume: row.opt_text(6)?.map(Token::from_text),
    })
}

fn fetch(row: &Row<'_>) -> Result<FetchRow, StoreError> {
    let status = row.text(5)?;
    let known = Status::ALL.into_iter().find(|known| known.as_text() == status);
    Ok(FetchRow {
        id: row.text(0)?.to_owned(),
        file_name: FileName::new(row.text(1)?)
            .map_err(|wrong| StoreError::Invalid(format!("a file's name: {wrong}")))?,
        save_path: row.text(2)?.to_owned(),
        total_size: row.uint(3)?,
        downloaded_size: row.uint(4)?,
        status: known.ok_or_else(|| StoreError::Invalid(format!("a fetch's status: {status}")))?,
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

    fn fetch(number: usize, status: Status) -> FetchRow {
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
        let keep = Keep::open(dir.path()).unwrap();
        assert_eq!(keep.signed_in(&name("ann"), "Ann").unwrap().number, 1);
        assert_eq!(keep.signed_in(&name("bob"), "Bob").unwrap().number, 2);
        assert_eq!(keep.signed_in(&name("ann"), "Ann B").unwrap().number, 1);
        keep.set_on(&name("ann"), true, Some("192.0.2.1")).unwrap();
        keep.set_port(&name("ann"), 6001).unwrap();
        keep.set_resume(&name("ann"), Some("secret")).unwrap();
        drop(keep);
        let keep = Keep::open(dir.path()).unwrap();
        let users = keep.users().unwrap();
        let ann = &users[0];
        assert_eq!((&*ann.display_name, ann.is_on, ann.port), ("Ann B", true, Some(6001)));
        assert_eq!(ann.advertise_ip.as_deref(), Some("192.0.2.1"));
        assert_eq!(keep.resume(&name("ann")).unwrap().as_deref(), Some("secret"));
        assert_eq!((users[1].is_on, users[1].port, users.len()), (false, None, 2));
    }

    #[test]
    fn a_user_is_one_however_the_name_is_spelled() {
        let (accounts, nodes) = (name("Zo\u{eb}"), name("Zoe\u{308}"));
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        assert_eq!(keep.signed_in(&accounts, "Zoë").unwrap().number, 1);
        // By the node's spelling from here on, as a node of that `--name` does.
        assert_eq!(keep.signed_in(&nodes, "Zoë B").unwrap().number, 1);
        keep.set_on(&nodes, true, Some("192.0.2.1")).unwrap();
        keep.set_port(&nodes, 6001).unwrap();
        keep.set_resume(&nodes, Some("secret")).unwrap();
        let users = keep.users().unwrap();
        let zoe = &users[0];
        assert_eq!((zoe.name.as_str(), &*zoe.display_name, users.len()), (accounts.as_str(), "Zoë B", 1));
        assert_eq!((zoe.is_on, zoe.port, zoe.advertise_ip.as_deref()), (true, Some(6001), Some("192.0.2.1")));
        for spelled in [&accounts, &nodes] {
            assert_eq!(keep.resume(spelled).unwrap().as_deref(), Some("secret"));
        }
        keep.put_fetch(&nodes, &fetch(1, Status::Paused)).unwrap();
        assert_eq!(keep.fetches(&accounts).unwrap().len(), 1);
        // An earlier version kept what is the user's under the node's spelling.
        let former = nodes.as_str().to_owned();
        keep.store
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
        assert_eq!(keep.fetches(&accounts).unwrap(), []);
        drop(keep);
        let keep = Keep::open(dir.path()).unwrap();
        let files = files::Files::of(Arc::clone(keep.store()), &nodes).list(false).unwrap();
        assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(keep.fetches(&nodes).unwrap().len(), 1);
    }

    #[test]
    fn a_token_that_was_logged_out_stays_refused_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        keep.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
        keep.refuse_token([1; 32], Millis(1000), Millis(0)).unwrap();
        assert!(keep.is_refused(&[1; 32]).unwrap() && !keep.is_refused(&[2; 32]).unwrap());
        keep.refuse_token([2; 32], Millis(3000), Millis(2000)).unwrap();
        assert!(!keep.is_refused(&[1; 32]).unwrap() && keep.is_refused(&[2; 32]).unwrap());
    }

    #[test]
    fn good_tokens_are_kept_by_their_digests_until_they_end_or_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        let ann = name("Zo\u{eb}");
        for (number, owner, until) in [(1, "Zoe\u{308}", 100), (2, "Zo\u{eb}", 200), (3, "bob", 300)] {
            assert!(keep.put_token([number; 32], &name(owner), Millis(until), Millis(0)).unwrap());
        }
        drop(keep);
        let keep = Keep::open(dir.path()).unwrap();
        let tokens = |now: u64| keep.tokens(&ann, Millis(now)).unwrap();
        assert_eq!((tokens(99), tokens(100), tokens(200)), (vec![[1; 32], [2; 32]], vec![[2; 32]], vec![]));
        keep.refuse_token([2; 32], Millis(1_000), Millis(0)).unwrap();
        assert_eq!(tokens(0), [[1; 32]]);
        // Whoever was asked about it meanwhile does not put it back.
        assert!(!keep.put_token([2; 32], &ann, Millis(200), Millis(0)).unwrap());
        keep.forget_token([1; 32]).unwrap();
        keep.forget_token([9; 32]).unwrap();
        assert_eq!(tokens(0), [[0; 32]; 0]);
        // There are so many and no more: those that end last.
        let key = ann.key().to_owned();
        keep.store
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
        assert!(keep.put_token([5; 32], &ann, Millis(9_000), Millis(0)).unwrap());
        assert_eq!(
            (tokens(0).len(), tokens(1_000).len(), tokens(1_001).len()),
            (TOKENS_MAX, TOKENS_MAX, TOKENS_MAX - 1)
        );
        assert_eq!(keep.tokens(&name("bob"), Millis(0)).unwrap(), [[0; 32]; 0], "the one that would end first");
        // What has ended goes when another comes.
        assert!(keep.put_token([8; 32], &ann, Millis(20_000), Millis(10_000)).unwrap());
        assert_eq!(tokens(0), [[8; 32]]);
    }

    #[test]
    fn fetches_are_kept_and_the_oldest_that_ended_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        let ann = name("ann");
        keep.put_fetch(&ann, &fetch(0, Status::Downloading)).unwrap();
        for number in 1..FETCHES_MAX + 5 {
            keep.put_fetch(&ann, &fetch(number, Status::Completed)).unwrap();
        }
        let kept = keep.fetches(&ann).unwrap();
        // The one under way stays, however old it is.
        assert_eq!(kept.len(), FETCHES_MAX + 1);
        assert_eq!((&*kept[0].id, kept[0].status), ("f0000", Status::Downloading));
        assert_eq!(kept[1].began_at, Millis(5));
        let mut ended = fetch(0, Status::Failed);
        ended.error = Some("no host".to_owned());
        keep.put_fetch(&ann, &ended).unwrap();
        assert!(!keep.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0000"));
        assert_eq!(keep.fetches(&name("bob")).unwrap(), []);
        keep.drop_fetch("f0005").unwrap();
        assert!(!keep.fetches(&ann).unwrap().iter().any(|kept| kept.id == "f0005"));
    }
}
