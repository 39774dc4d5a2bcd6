//! The database of a LAN peer: messages received and sent, its profile and its last port.
//!
//! The newest [`MESSAGES_MAX`] messages are kept. Each insertion evicts at most a few of the oldest ones, so that every
//! transaction is small, even if an older program has left more.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::wire::{Avatar, AvatarKind, Profile, TalkKind, UserId};
use crate::model::text::nfc;
use crate::model::{Millis, Name, named};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{CommitHandle, OpenError, ReaderExt, Row, Store, StoreError, Tx};

#[cfg(test)]
mod tests;

pub const MESSAGES_MAX: u64 = 10_000;
/// How many messages an insertion may evict: more than one, so that an excess shrinks.
const EVICTED_PER_INSERT: u64 = 4;
pub const FILE: &str = "lan.db";

/// The migrations of the schema. The index covers only the few messages that wait for confirmation.
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE lan_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE lan_message (id INTEGER PRIMARY KEY, at BIGINT NOT NULL, sent BIGINT NOT NULL, kind TEXT NOT NULL,
        name TEXT NOT NULL, ip TEXT NOT NULL, body TEXT NOT NULL, confirmation TEXT NOT NULL, message_id TEXT);
    CREATE INDEX lan_message_waiting ON lan_message (message_id) WHERE confirmation = 'waiting';
    CREATE TABLE lan_profile (id INTEGER PRIMARY KEY, display_name TEXT NOT NULL, status TEXT NOT NULL,
        avatar_type TEXT, avatar BYTEA);
",
    "
    ALTER TABLE lan_message ADD COLUMN source TEXT;
",
];

/// Why a data dir cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} is the data dir of LAN peer {owner:?}: choose another --data-dir or --name", dir.display())]
    NotOurs { dir: PathBuf, owner: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Sent,
    Received,
}

named! {
    /// Whether a message has arrived, as far as that can be known.
    pub enum Confirmation {
        /// No ACK is expected: it was received, or sent to all peers or to one that does not acknowledge.
        NotAsked = "not asked",
        /// The ACK may still come.
        Waiting = "waiting",
        Confirmed = "confirmed",
        /// No ACK came in time. It may have arrived all the same.
        Unconfirmed = "unconfirmed",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub at: Millis,
    pub direction: Direction,
    pub kind: &'static TalkKind,
    /// The sender; of a message that we sent to one, the receiver.
    pub user_id: UserId,
    /// It is stored as it is shown to the user.
    pub text: String,
    pub confirmation: Confirmation,
    pub message_id: Option<String>,
    /// The source address of a received message, which may differ from that of `user_id`. `None` for sent messages, and
    /// for those that an older program has stored.
    pub source: Option<Ipv4Addr>,
}

/// A LAN peer's data dir, locked by this process.
#[derive(Debug)]
pub struct History {
    store: Store,
    _lock: DataDirLock,
}

impl History {
    /// Opens the data dir of the LAN peer of that name, or creates it. DMs that still waited for an ACK in an earlier
    /// run become unconfirmed, as nobody repeats them any more.
    pub fn open(dir: &Path, name: &Name) -> Result<History, HistoryError> {
        let lock = DataDirLock::acquire(dir)?;
        let history = History { store: Store::open(&dir.join(FILE), MIGRATIONS)?, _lock: lock };
        let dir = dir.to_owned();
        match history.meta("name")? {
            Some(owner) if nfc(&owner) != name.key() => return Err(HistoryError::NotOurs { dir, owner }),
            Some(_) => {}
            None => history.set_meta("name", name.as_str())?,
        }
        history.store.write(|tx| {
            let sql = "UPDATE lan_message SET confirmation = 'unconfirmed' WHERE confirmation = 'waiting'";
            tx.execute(sql, &[]).map(|_rows| ())
        })?;
        Ok(history)
    }

    /// Appends a message. It is on disk once the returned handle says so. Messages keep the order of these calls.
    /// The own profile is stored in the same transaction, so that it is not lost in a crash.
    pub fn append(&self, entry: HistoryEntry, own_profile: Option<Profile>) -> CommitHandle {
        self.store.submit(move |tx| {
            insert_message(tx, &entry)?;
            own_profile.map_or(Ok(()), |profile| upsert_profile(tx, &profile))
        })
    }

    /// Sets the confirmation of a DM that we sent, if it still waits for one. May be called before its
    /// [`History::append`] is on disk.
    pub fn set_confirmation(&self, message_id: &str, has_arrived: bool) -> CommitHandle {
        let message_id = message_id.to_owned();
        let confirmation = if has_arrived { Confirmation::Confirmed } else { Confirmation::Unconfirmed };
        self.store.submit(move |tx| {
            tx.execute(
                "UPDATE lan_message SET confirmation = $1
                 WHERE message_id = $2 AND confirmation = 'waiting' AND sent = 1",
                &[confirmation.as_text().into(), (&message_id).into()],
            )
            .map(|_rows| ())
        })
    }

    pub fn newest(&self, count: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut entries = self.store.read(|reader| {
            let sql = "SELECT at, sent, kind, name, ip, body, confirmation, message_id, source FROM lan_message
                       ORDER BY id DESC LIMIT $1";
            reader.all(sql, &[count.into()], entry_from_row)
        })?;
        entries.reverse();
        Ok(entries)
    }

    /// Only messages with a MESSAGE_ID are returned, the oldest first.
    pub fn received_since(&self, at: Millis) -> Result<Vec<HistoryEntry>, StoreError> {
        self.store.read(|reader| {
            let sql = "SELECT at, sent, kind, name, ip, body, confirmation, message_id, source FROM lan_message
                       WHERE sent = 0 AND at >= $1 AND message_id IS NOT NULL ORDER BY id";
            reader.all(sql, &[at.into()], entry_from_row)
        })
    }

    pub fn profile(&self) -> Result<Option<Profile>, StoreError> {
        self.store.read(|reader| {
            let sql = "SELECT display_name, status, avatar_type, avatar FROM lan_profile WHERE id = 1";
            reader.first(sql, &[], |row| {
                let avatar = match (row.opt_text(2)?, row.opt_blob(3)?) {
                    (Some(mime), Some(bytes)) => {
                        let kind = AvatarKind::from_text(mime).ok_or_else(|| unknown_value("kind of picture", mime))?;
                        Some(Avatar { kind, bytes: bytes.to_owned() })
                    }
                    _ => None,
                };
                Ok(Profile { display_name: row.text(0)?.to_owned(), status: row.text(1)?.to_owned(), avatar })
            })
        })
    }

    pub fn last_port(&self) -> Result<Option<u16>, StoreError> {
        let port = self.meta("port")?;
        port.map(|text| text.parse().map_err(|_| unknown_value("port", &text))).transpose()
    }

    pub fn set_last_port(&self, port: u16) -> Result<(), StoreError> {
        self.set_meta("port", &port.to_string())
    }

    pub fn sync_all(&self) {
        self.store.sync_all();
    }

    fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(|reader| {
            let sql = "SELECT value FROM lan_meta WHERE key = $1";
            reader.first(sql, &[key.into()], |row| row.text(0).map(str::to_owned))
        })
    }

    fn set_meta(&self, key: &str, value: &str) -> Result<(), StoreError> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.store.write(move |tx| {
            let sql = "INSERT INTO lan_meta (key, value) VALUES ($1, $2) \
                       ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            tx.execute(sql, &[(&key).into(), (&value).into()]).map(|_rows| ())
        })
    }
}

fn upsert_profile(tx: &mut dyn Tx, profile: &Profile) -> Result<(), StoreError> {
    let avatar = profile.avatar.as_ref();
    tx.execute(
        "INSERT INTO lan_profile (id, display_name, status, avatar_type, avatar) VALUES (1, $1, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, status = excluded.status,
             avatar_type = excluded.avatar_type, avatar = excluded.avatar",
        &[
            (&profile.display_name).into(),
            (&profile.status).into(),
            avatar.map(|avatar| avatar.kind.as_text()).into(),
            avatar.map(|avatar| &avatar.bytes).into(),
        ],
    )
    .map(|_rows| ())
}

fn insert_message(tx: &mut dyn Tx, entry: &HistoryEntry) -> Result<(), StoreError> {
    let last = tx.first("SELECT COALESCE(MAX(id), 0) FROM lan_message", &[], |row| row.uint(0))?.unwrap_or(0);
    let id = last + 1;
    tx.execute(
        "INSERT INTO lan_message (id, at, sent, kind, name, ip, body, confirmation, message_id, source)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            to_i64(id)?.into(),
            entry.at.into(),
            (entry.direction == Direction::Sent).into(),
            entry.kind.type_name.into(),
            (&entry.user_id.name).into(),
            (&entry.user_id.ip.to_string()).into(),
            (&entry.text).into(),
            entry.confirmation.as_text().into(),
            entry.message_id.as_ref().into(),
            entry.source.map(|source| source.to_string()).as_ref().into(),
        ],
    )?;
    // Ids have no gaps, so this removes only the oldest.
    if id > MESSAGES_MAX {
        tx.execute(
            "DELETE FROM lan_message WHERE id IN (SELECT id FROM lan_message WHERE id <= $1 ORDER BY id LIMIT $2)",
            &[to_i64(id - MESSAGES_MAX)?.into(), to_i64(EVICTED_PER_INSERT)?.into()],
        )?;
    }
    Ok(())
}

fn entry_from_row(row: &Row<'_>) -> Result<HistoryEntry, StoreError> {
    let (kind, confirmation) = (row.text(2)?, row.text(6)?);
    let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| unknown_value("address", text));
    Ok(HistoryEntry {
        at: row.millis(0)?,
        direction: if row.bool(1)? { Direction::Sent } else { Direction::Received },
        kind: TalkKind::by_name(kind).ok_or_else(|| unknown_value("kind", kind))?,
        user_id: UserId { name: row.name(3)?, ip: ip(row.text(4)?)? },
        text: row.text(5)?.to_owned(),
        confirmation: Confirmation::from_text(confirmation)
            .ok_or_else(|| unknown_value("confirmation", confirmation))?,
        message_id: row.opt_text(7)?.map(str::to_owned),
        source: row.opt_text(8)?.map(ip).transpose()?,
    })
}

fn to_i64(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no number of this program")))
}

fn unknown_value(what: &str, text: &str) -> StoreError {
    StoreError::Invalid(format!("the store holds the unknown {what} {text:?}"))
}
