//! What a LAN peer keeps in its data dir: messages shown and sent, its profile, its last port.
//!
//! The newest [`MESSAGES_MAX`] messages are kept. Each new one takes a few of the oldest with it, so that
//! no change is ever large, also when an older program has left more.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::wire::{Avatar, AvatarKind, UserId};
use crate::model::text::nfc;
use crate::model::{Millis, Name};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{OpenError, Query, Row, Store, StoreError, Ticket, Tx};

#[cfg(test)]
mod tests;

/// Most messages that are kept.
pub const MESSAGES_MAX: u64 = 10_000;
/// Most messages that a new one takes with it: more than one, so that what is too much goes.
const FORGOTTEN_AT_ONCE: u64 = 4;
/// The file in the data dir.
pub const FILE: &str = "lan.db";

/// How its tables came to be. The index is of the few that are waited for, not of all.
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
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is another peer's.
    #[error("{} is the data dir of LAN peer {owner:?}: choose another --data-dir or --name", dir.display())]
    NotOurs {
        /// The data dir.
        dir: PathBuf,
        /// Whose it is.
        owner: String,
    },
}

/// What kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To everybody.
    Post,
    /// To one.
    Dm,
    /// What somebody shows of himself.
    Profile,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Post, Kind::Dm, Kind::Profile];

    /// The TYPE of the message.
    pub fn as_text(self) -> &'static str {
        match self {
            Kind::Post => "POST",
            Kind::Dm => "DM",
            Kind::Profile => "PROFILE",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_text())
    }
}

/// Which way it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Said by ourselves.
    Sent,
    /// Heard.
    Received,
}

/// Whether it has arrived, as far as that can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Nobody tells: it was received, or sent to all, or to one who does not acknowledge.
    NotAsked,
    /// It may be confirmed yet.
    Waiting,
    /// The receiver has acknowledged it.
    Confirmed,
    /// He has not, in time; it may have arrived all the same.
    Unconfirmed,
}

impl Confirmation {
    const ALL: [Confirmation; 4] =
        [Confirmation::NotAsked, Confirmation::Waiting, Confirmation::Confirmed, Confirmation::Unconfirmed];

    /// As it is stored.
    pub fn as_text(self) -> &'static str {
        match self {
            Confirmation::NotAsked => "not asked",
            Confirmation::Waiting => "waiting",
            Confirmation::Confirmed => "confirmed",
            Confirmation::Unconfirmed => "unconfirmed",
        }
    }
}

/// A message that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was sent or received, by our own clock.
    pub at: Millis,
    /// Which way it went.
    pub direction: Direction,
    /// What kind it is.
    pub kind: Kind,
    /// Who said it; of a DM that we sent, to whom.
    pub who: UserId,
    /// What it says, as it is shown.
    pub text: String,
    /// Whether it has arrived.
    pub confirmation: Confirmation,
    /// Its MESSAGE_ID, if it had one.
    pub message_id: Option<String>,
    /// The address that it came from, which need not be that of `who`; none of what was sent, and of what an
    /// older program has kept.
    pub source: Option<Ipv4Addr>,
}

/// What we show of ourselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnProfile {
    /// DISPLAY_NAME.
    pub display_name: String,
    /// STATUS; may be empty.
    pub status: String,
    /// The picture.
    pub avatar: Option<Avatar>,
}

impl fmt::Display for OwnProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&super::profile_text(&self.display_name, &self.status, self.avatar.as_ref()))
    }
}

/// A LAN peer's data dir, held by this process.
#[derive(Debug)]
pub struct History {
    store: Store,
    _lock: DataDirLock,
}

impl History {
    /// Opens the data dir of the LAN peer of that name; makes it if there is none. What an earlier run was
    /// still waiting to see confirmed is unconfirmed from now on: nobody repeats it any more.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(dir: &Path, name: &Name) -> Result<History, HistoryError> {
        let lock = DataDirLock::take(dir)?;
        let history = History { store: Store::open(&dir.join(FILE), MIGRATIONS)?, _lock: lock };
        match history.meta("name")? {
            Some(owner) if nfc(&owner) != name.key() => {
                return Err(HistoryError::NotOurs { dir: dir.to_owned(), owner });
            }
            Some(_) => {}
            None => history.set_meta("name", name.as_str())?,
        }
        history.store.write(|tx| {
            let sql = "UPDATE lan_message SET confirmation = 'unconfirmed' WHERE confirmation = 'waiting'";
            tx.execute(sql, &[]).map(|_rows| ())
        })?;
        Ok(history)
    }

    /// Hands a message over; on disk once the ticket says so. Messages stay in the order of their coming.
    pub fn keep(&self, entry: Entry) -> Ticket {
        self.store.submit(move |tx| keep(tx, &entry))
    }

    /// The same for our profile as we tell it: both are kept, or neither.
    pub fn keep_profile(&self, entry: Entry, profile: OwnProfile) -> Ticket {
        self.store.submit(move |tx| {
            keep(tx, &entry)?;
            set_profile(tx, &profile)
        })
    }

    /// What became of a DM that we sent and that is still waited for: others stay as they are.
    /// May be called before its [`History::keep`] is on disk.
    pub fn confirm(&self, message_id: &str, has_arrived: bool) -> Ticket {
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

    /// The newest messages, the oldest of them first.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn newest(&self, count: usize) -> Result<Vec<Entry>, StoreError> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut entries = self.store.read(|reader| {
            let sql = "SELECT at, sent, kind, name, ip, body, confirmation, message_id, source FROM lan_message
                       ORDER BY id DESC LIMIT $1";
            reader.all(sql, &[count.into()], entry)
        })?;
        entries.reverse();
        Ok(entries)
    }

    /// The messages that were received since then and may come again, the oldest first.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub fn received_since(&self, at: Millis) -> Result<Vec<Entry>, StoreError> {
        self.store.read(|reader| {
            let sql = "SELECT at, sent, kind, name, ip, body, confirmation, message_id, source FROM lan_message
                       WHERE sent = 0 AND at >= $1 AND message_id IS NOT NULL ORDER BY id";
            reader.all(sql, &[at.into()], entry)
        })
    }

    /// Our profile, once there is one.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn profile(&self) -> Result<Option<OwnProfile>, StoreError> {
        self.store.read(|reader| {
            let sql = "SELECT display_name, status, avatar_type, avatar FROM lan_profile WHERE id = 1";
            reader.first(sql, &[], |row| {
                let avatar = match (row.opt_text(2)?, row.opt_blob(3)?) {
                    (Some(mime), Some(bytes)) => {
                        let kind = AvatarKind::from_mime(mime).ok_or_else(|| unknown("kind of picture", mime))?;
                        Some(Avatar { kind, bytes: bytes.to_owned() })
                    }
                    _ => None,
                };
                Ok(OwnProfile { display_name: row.text(0)?.to_owned(), status: row.text(1)?.to_owned(), avatar })
            })
        })
    }

    /// The port that our socket had last.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn port(&self) -> Result<Option<u16>, StoreError> {
        let port = self.meta("port")?;
        port.map(|text| text.parse().map_err(|_| unknown("port", &text))).transpose()
    }

    /// Keeps the port of our socket; on disk when this returns.
    ///
    /// # Errors
    /// Why it cannot be stored.
    pub fn set_port(&self, port: u16) -> Result<(), StoreError> {
        self.set_meta("port", &port.to_string())
    }

    /// Waits until all that was handed over is on disk, or has failed.
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

fn set_profile(tx: &mut dyn Tx, profile: &OwnProfile) -> Result<(), StoreError> {
    let avatar = profile.avatar.as_ref();
    tx.execute(
        "INSERT INTO lan_profile (id, display_name, status, avatar_type, avatar) VALUES (1, $1, $2, $3, $4)
         ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, status = excluded.status,
             avatar_type = excluded.avatar_type, avatar = excluded.avatar",
        &[
            (&profile.display_name).into(),
            (&profile.status).into(),
            avatar.map(|avatar| avatar.kind.mime()).into(),
            avatar.map(|avatar| &avatar.bytes).into(),
        ],
    )
    .map(|_rows| ())
}

fn keep(tx: &mut dyn Tx, entry: &Entry) -> Result<(), StoreError> {
    let last = tx.first("SELECT COALESCE(MAX(id), 0) FROM lan_message", &[], |row| row.uint(0))?.unwrap_or(0);
    let id = last + 1;
    tx.execute(
        "INSERT INTO lan_message (id, at, sent, kind, name, ip, body, confirmation, message_id, source)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            number(id)?.into(),
            entry.at.into(),
            (entry.direction == Direction::Sent).into(),
            entry.kind.as_text().into(),
            (&entry.who.name).into(),
            (&entry.who.ip.to_string()).into(),
            (&entry.text).into(),
            entry.confirmation.as_text().into(),
            entry.message_id.as_ref().into(),
            entry.source.map(|source| source.to_string()).as_ref().into(),
        ],
    )?;
    // Numbers have no gaps: only the oldest go.
    if id > MESSAGES_MAX {
        tx.execute(
            "DELETE FROM lan_message WHERE id IN (SELECT id FROM lan_message WHERE id <= $1 ORDER BY id LIMIT $2)",
            &[number(id - MESSAGES_MAX)?.into(), number(FORGOTTEN_AT_ONCE)?.into()],
        )?;
    }
    Ok(())
}

fn entry(row: &Row<'_>) -> Result<Entry, StoreError> {
    let (kind, confirmation) = (row.text(2)?, row.text(6)?);
    let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| unknown("address", text));
    Ok(Entry {
        at: row.millis(0)?,
        direction: if row.bool(1)? { Direction::Sent } else { Direction::Received },
        kind: Kind::ALL.into_iter().find(|known| known.as_text() == kind).ok_or_else(|| unknown("kind", kind))?,
        who: UserId { name: row.name(3)?, ip: ip(row.text(4)?)? },
        text: row.text(5)?.to_owned(),
        confirmation: Confirmation::ALL
            .into_iter()
            .find(|known| known.as_text() == confirmation)
            .ok_or_else(|| unknown("confirmation", confirmation))?,
        message_id: row.opt_text(7)?.map(str::to_owned),
        source: row.opt_text(8)?.map(ip).transpose()?,
    })
}

fn number(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no number of this program")))
}

fn unknown(what: &str, text: &str) -> StoreError {
    StoreError::Invalid(format!("the store holds the unknown {what} {text:?}"))
}
