//! What the registry keeps: the rows, how they change, and how a memory is built from them.

use std::net::IpAddr;
use std::sync::Arc;

use super::secrets::Secret;
use super::{Host, Registry, SecretKey};
use crate::model::text::spellings;
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileName, Files};
use crate::storage::{Query, Reader, Row, StoreError, Tx};

/// The registry's file in the data dir.
pub const FILE: &str = "registry.db";

/// What makes an empty file the registry's, one step a schema version.
///
/// `entry` is a [`FileEntry`] as JSON; `secret` the SHA-256 of one.
pub const MIGRATIONS: &[&str] = &[
    "CREATE TABLE registry_host (id BIGINT PRIMARY KEY, hostname TEXT NOT NULL UNIQUE, display_name TEXT NOT NULL,
        ip TEXT NOT NULL, port BIGINT NOT NULL, source TEXT NOT NULL, by_account BIGINT NOT NULL,
        tenure BIGINT NOT NULL, connected_at BIGINT NOT NULL, heard_at BIGINT NOT NULL);
    CREATE TABLE registry_file (host BIGINT NOT NULL, fname TEXT NOT NULL, entry TEXT NOT NULL,
        PRIMARY KEY (host, fname));
    CREATE TABLE registry_secret (hostname TEXT NOT NULL, secret BLOB NOT NULL, tenure BIGINT NOT NULL,
        by_account BIGINT NOT NULL, made_at BIGINT NOT NULL, PRIMARY KEY (hostname, secret))",
    // Where it was answered to; of older ones nobody knows.
    "ALTER TABLE registry_secret ADD COLUMN source TEXT",
];

/// A host without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRow {
    id: u64,
    hostname: Name,
    display_name: Arc<str>,
    ip: IpAddr,
    port: u16,
    source: IpAddr,
    by_account: bool,
    tenure: u64,
    connected_at: Millis,
    heard_at: Millis,
}

#[cfg(test)]
impl HostRow {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn hostname(&self) -> &Name {
        &self.hostname
    }
}

/// One row's change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A host has come, or something of it has changed.
    Host(Box<HostRow>),
    /// A host is gone, with its files.
    DropHost(u64),
    /// A host has this file.
    File {
        /// Which host.
        host: u64,
        /// The file's name.
        fname: FileName,
        /// The file.
        entry: Arc<FileEntry>,
    },
    /// A host does not have this file any more.
    DropFile {
        /// Which host.
        host: u64,
        /// The file's name.
        fname: FileName,
    },
    /// A secret was answered.
    Secret {
        /// It gives this hostname back.
        hostname: Name,
        /// What stands for it.
        key: SecretKey,
        /// Of which tenure of the name.
        tenure: u64,
        /// It was answered to the user.
        by_account: bool,
        /// When, or when its host was last heard before it went.
        made_at: Millis,
        /// Where to.
        source: IpAddr,
    },
    /// A secret is worth nothing any more.
    DropSecret {
        /// Whose.
        hostname: Name,
        /// Which.
        key: SecretKey,
    },
}

impl Change {
    /// Puts another instant for each that is kept.
    pub fn shift(&mut self, other: &dyn Fn(Millis) -> Millis) {
        match self {
            Change::Host(row) => {
                (row.connected_at, row.heard_at) = (other(row.connected_at), other(row.heard_at));
            }
            Change::Secret { made_at, .. } => *made_at = other(*made_at),
            Change::DropHost(_) | Change::File { .. } | Change::DropFile { .. } | Change::DropSecret { .. } => {}
        }
    }

    /// Makes the change.
    ///
    /// # Errors
    /// The store's.
    pub fn write(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        match self {
            Change::Host(row) => tx.execute(
                "INSERT INTO registry_host (id, hostname, display_name, ip, port, source, by_account, tenure,
                     connected_at, heard_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                 ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, ip = excluded.ip,
                     port = excluded.port, source = excluded.source, by_account = excluded.by_account,
                     tenure = excluded.tenure, connected_at = excluded.connected_at, heard_at = excluded.heard_at",
                &[
                    number(row.id)?.into(),
                    (&row.hostname).into(),
                    (&*row.display_name).into(),
                    (&row.ip.to_string()).into(),
                    row.port.into(),
                    (&row.source.to_string()).into(),
                    row.by_account.into(),
                    number(row.tenure)?.into(),
                    row.connected_at.into(),
                    row.heard_at.into(),
                ],
            ),
            Change::DropHost(id) => {
                tx.execute("DELETE FROM registry_file WHERE host = $1", &[number(*id)?.into()])?;
                tx.execute("DELETE FROM registry_host WHERE id = $1", &[number(*id)?.into()])
            }
            Change::File { host, fname, entry } => {
                let entry = serde_json::to_string(entry).map_err(|error| StoreError::Invalid(error.to_string()))?;
                tx.execute(
                    "INSERT INTO registry_file (host, fname, entry) VALUES ($1, $2, $3)
                     ON CONFLICT (host, fname) DO UPDATE SET entry = excluded.entry",
                    &[number(*host)?.into(), fname.as_str().into(), (&entry).into()],
                )
            }
            Change::DropFile { host, fname } => tx.execute(
                "DELETE FROM registry_file WHERE host = $1 AND fname = $2",
                &[number(*host)?.into(), fname.as_str().into()],
            ),
            Change::Secret { hostname, key, tenure, by_account, made_at, source } => tx.execute(
                "INSERT INTO registry_secret (hostname, secret, tenure, by_account, made_at, source)
                     VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (hostname, secret) DO UPDATE SET tenure = excluded.tenure,
                     by_account = excluded.by_account, made_at = excluded.made_at, source = excluded.source",
                &[
                    hostname.into(),
                    key.bytes().into(),
                    number(*tenure)?.into(),
                    (*by_account).into(),
                    (*made_at).into(),
                    (&source.to_string()).into(),
                ],
            ),
            Change::DropSecret { hostname, key } => {
                // However it was spelled when it was answered.
                let [given, composed, apart] = spellings(hostname.as_str());
                tx.execute(
                    "DELETE FROM registry_secret WHERE hostname IN ($1, $2, $3) AND secret = $4",
                    &[(&given).into(), (&composed).into(), (&apart).into(), key.bytes().into()],
                )
            }
        }
        .map(|_rows| ())
    }
}

/// Forgets what an earlier version kept of hosts whose names are now another account's: of just these spellings.
///
/// # Errors
/// The store's.
pub fn forget_namesakes(tx: &mut dyn Tx, hostnames: &[String]) -> Result<(), StoreError> {
    for hostname in hostnames {
        tx.execute(
            "DELETE FROM registry_file WHERE host IN (SELECT id FROM registry_host WHERE hostname = $1)",
            &[hostname.into()],
        )?;
        tx.execute("DELETE FROM registry_host WHERE hostname = $1", &[hostname.into()])?;
        tx.execute("DELETE FROM registry_secret WHERE hostname = $1", &[hostname.into()])?;
    }
    Ok(())
}

/// Writes down when hosts were last heard. Those that are gone stay gone.
///
/// # Errors
/// The store's.
pub fn write_heard(tx: &mut dyn Tx, heard: &[(u64, Millis)]) -> Result<(), StoreError> {
    for (id, at) in heard {
        tx.execute("UPDATE registry_host SET heard_at = $1 WHERE id = $2", &[(*at).into(), number(*id)?.into()])?;
    }
    Ok(())
}

impl Host {
    pub(super) fn row(&self) -> HostRow {
        HostRow {
            id: self.id,
            hostname: self.name.clone(),
            display_name: Arc::clone(&self.display_name),
            ip: self.ip,
            port: self.port,
            source: self.source,
            by_account: self.by_account,
            tenure: self.tenure,
            connected_at: self.connected_at,
            heard_at: self.heard_at,
        }
    }
}

impl Registry {
    /// Fills an empty registry with what the store holds. Hosts count until their timeout is over. `instant` gives what
    /// `now` is measured by for a date.
    ///
    /// # Errors
    /// The store's; or rows that this program did not write.
    pub fn load(
        &mut self,
        now: Millis,
        instant: &dyn Fn(Millis) -> Millis,
        reader: &dyn Reader,
    ) -> Result<(), StoreError> {
        let now = self.at(now);
        let sql = "SELECT id, hostname, display_name, ip, port, source, by_account, tenure, connected_at, heard_at
             FROM registry_host ORDER BY id";
        let mut slots = std::collections::HashMap::new();
        for row in reader.all(sql, &[], read_host)? {
            self.next_number = self.next_number.max(row.id + 1).max(row.tenure + 1);
            // The machine's clock may have been set back.
            let (id, heard_at) = (row.id, instant(row.heard_at).min(now));
            let slot = self.put(Host {
                id,
                name: row.hostname,
                display_name: row.display_name,
                ip: row.ip,
                port: row.port,
                source: row.source,
                by_account: row.by_account,
                tenure: row.tenure,
                connected_at: instant(row.connected_at),
                heard_at,
                is_unsaved: false,
                conn: None,
                is_live: false,
                files: Files::new(),
                published: 0,
                published_size: 0,
                held: None,
                promised: 0,
                mark: 0,
            });
            self.silence(slot);
            slots.insert(id, slot);
        }
        reader.query("SELECT host, fname, entry FROM registry_file ORDER BY host, fname", &[], &mut |row| {
            let fname = FileName::new(row.text(1)?).map_err(|error| invalid("fname", &error))?;
            let entry: FileEntry =
                serde_json::from_str(row.text(2)?).map_err(|error| invalid("entry", &error.to_string()))?;
            if let Some(slot) = slots.get(&row.uint(0)?) {
                self.set_file(*slot, &fname, Some(Arc::new(entry)));
            }
            Ok(())
        })?;
        for slot in slots.into_values() {
            let heard_at = self.slots[slot as usize].as_ref().map_or(now, |host| host.heard_at);
            if now < heard_at.plus(self.timeout) {
                self.unsilence(slot, heard_at);
                self.rise(slot);
            }
        }
        let sql = "SELECT hostname, secret, tenure, by_account, made_at, source FROM registry_secret ORDER BY made_at";
        for (hostname, secret) in reader.all(sql, &[], read_secret)? {
            let made_at = instant(secret.made_at).min(now);
            self.secrets.restore(hostname, Secret { made_at, ..secret });
        }
        self.next_number = self.next_number.max(self.secrets.last_tenure() + 1);
        let by_name = &self.by_name;
        self.secrets.restore_farewells(|name| by_name.contains_key(name));
        Ok(())
    }
}

fn read_host(row: &Row<'_>) -> Result<HostRow, StoreError> {
    let ip = |column: usize| row.text(column)?.parse().map_err(|_| invalid("ip", "expected an IP address"));
    Ok(HostRow {
        id: row.uint(0)?,
        hostname: name(row.text(1)?)?,
        display_name: row.text(2)?.into(),
        ip: ip(3)?,
        port: u16::try_from(row.int(4)?).map_err(|_| invalid("port", "expected a port"))?,
        source: ip(5)?,
        by_account: row.bool(6)?,
        tenure: row.uint(7)?,
        connected_at: row.millis(8)?,
        heard_at: row.millis(9)?,
    })
}

fn read_secret(row: &Row<'_>) -> Result<(Name, Secret), StoreError> {
    let key = SecretKey::from_bytes(row.blob(1)?).ok_or_else(|| invalid("secret", "expected 32 bytes"))?;
    let (tenure, by_account, made_at) = (row.uint(2)?, row.bool(3)?, row.millis(4)?);
    let source = match row.opt_text(5)? {
        Some(ip) => ip.parse().map_err(|_| invalid("source", "expected an IP address"))?,
        None => IpAddr::from([0, 0, 0, 0]),
    };
    Ok((name(row.text(0)?)?, Secret { key, tenure, by_account, made_at, source }))
}

fn name(text: &str) -> Result<Name, StoreError> {
    Name::kept(text).map_err(|error| invalid("hostname", &error))
}

fn invalid(column: &str, what: &str) -> StoreError {
    StoreError::Invalid(format!("{column} of a row of the registry: {what}"))
}

/// Numbers count from 1 and never come near the end.
fn number(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid("a number of the registry is too large".to_owned()))
}
