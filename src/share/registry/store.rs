//! The registry's database: its rows, how they change, and how a registry is loaded from them.

use std::net::IpAddr;
use std::sync::Arc;

use super::change::{HostRow, RegistryChange};
use super::secret_hash::SecretHash;
use super::secrets::ResumeSecret;
use super::{HostRecord, Registry};
use crate::model::text::spellings;
use crate::model::{Millis, Name};
use crate::share::wire::{FileEntry, FileMap, FileName};
use crate::storage::{Reader, ReaderExt, Row, StoreError, Tx};

/// `entry` is a [`FileEntry`] as JSON; `secret` is the SHA-256 of a secret.
pub const MIGRATIONS: &[&str] = &[
    "CREATE TABLE registry_host (id BIGINT PRIMARY KEY, hostname TEXT NOT NULL UNIQUE, display_name TEXT NOT NULL,
        ip TEXT NOT NULL, port BIGINT NOT NULL, source TEXT NOT NULL, by_account BIGINT NOT NULL,
        tenure BIGINT NOT NULL, connected_at BIGINT NOT NULL, heard_at BIGINT NOT NULL);
    CREATE TABLE registry_file (host BIGINT NOT NULL, fname TEXT NOT NULL, entry TEXT NOT NULL,
        PRIMARY KEY (host, fname));
    CREATE TABLE registry_secret (hostname TEXT NOT NULL, secret BLOB NOT NULL, tenure BIGINT NOT NULL,
        by_account BIGINT NOT NULL, made_at BIGINT NOT NULL, PRIMARY KEY (hostname, secret))",
    // The address that the secret was issued to; unknown for older ones.
    "ALTER TABLE registry_secret ADD COLUMN source TEXT",
];

impl RegistryChange {
    pub fn write(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        match self {
            RegistryChange::Host(row) => tx.execute(
                "INSERT INTO registry_host (id, hostname, display_name, ip, port, source, by_account, tenure,
                     connected_at, heard_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                 ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name, ip = excluded.ip,
                     port = excluded.port, source = excluded.source, by_account = excluded.by_account,
                     tenure = excluded.tenure, connected_at = excluded.connected_at, heard_at = excluded.heard_at",
                &[
                    to_sql_integer(row.id)?.into(),
                    (&row.hostname).into(),
                    (&*row.display_name).into(),
                    (&row.ip.to_string()).into(),
                    row.port.into(),
                    (&row.source.to_string()).into(),
                    row.is_user.into(),
                    to_sql_integer(row.lease_id)?.into(),
                    row.connected_at.into(),
                    row.last_seen_at.into(),
                ],
            ),
            RegistryChange::DropHost(id) => {
                tx.execute("DELETE FROM registry_file WHERE host = $1", &[to_sql_integer(*id)?.into()])?;
                tx.execute("DELETE FROM registry_host WHERE id = $1", &[to_sql_integer(*id)?.into()])
            }
            RegistryChange::File { host, fname, entry } => {
                let entry = serde_json::to_string(entry).map_err(|error| StoreError::Invalid(error.to_string()))?;
                tx.execute(
                    "INSERT INTO registry_file (host, fname, entry) VALUES ($1, $2, $3)
                     ON CONFLICT (host, fname) DO UPDATE SET entry = excluded.entry",
                    &[to_sql_integer(*host)?.into(), fname.as_str().into(), (&entry).into()],
                )
            }
            RegistryChange::DropFile { host, fname } => tx.execute(
                "DELETE FROM registry_file WHERE host = $1 AND fname = $2",
                &[to_sql_integer(*host)?.into(), fname.as_str().into()],
            ),
            RegistryChange::Secret { hostname, key, lease_id, is_user, issued_at, source } => tx.execute(
                "INSERT INTO registry_secret (hostname, secret, tenure, by_account, made_at, source)
                     VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (hostname, secret) DO UPDATE SET tenure = excluded.tenure,
                     by_account = excluded.by_account, made_at = excluded.made_at, source = excluded.source",
                &[
                    hostname.into(),
                    key.bytes().into(),
                    to_sql_integer(*lease_id)?.into(),
                    (*is_user).into(),
                    (*issued_at).into(),
                    (&source.to_string()).into(),
                ],
            ),
            RegistryChange::DropSecret { hostname, key } => {
                // In whichever spelling it was stored.
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

/// Deletes what an earlier version stored for hosts whose names, in exactly this spelling, belong to another account.
pub fn delete_namesakes(tx: &mut dyn Tx, hostnames: &[String]) -> Result<(), StoreError> {
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

/// Stores when hosts were last seen. Removed hosts stay removed.
pub fn write_last_seen(tx: &mut dyn Tx, last_seen: &[(u64, Millis)]) -> Result<(), StoreError> {
    for (id, at) in last_seen {
        tx.execute(
            "UPDATE registry_host SET heard_at = $1 WHERE id = $2",
            &[(*at).into(), to_sql_integer(*id)?.into()],
        )?;
    }
    Ok(())
}

impl HostRecord {
    /// A host without files and connection, neither live nor silent yet.
    pub(super) fn of(row: HostRow) -> HostRecord {
        HostRecord {
            id: row.id,
            name: row.hostname,
            display_name: row.display_name,
            ip: row.ip,
            port: row.port,
            source: row.source,
            is_user: row.is_user,
            lease_id: row.lease_id,
            connected_at: row.connected_at,
            last_seen_at: row.last_seen_at,
            is_last_seen_unsaved: false,
            conn: None,
            is_live: false,
            files: FileMap::new(),
            published_count: 0,
            published_bytes: 0,
            usage: None,
            reserved_files: 0,
            change_seq: 0,
        }
    }

    pub(super) fn row(&self) -> HostRow {
        HostRow {
            id: self.id,
            hostname: self.name.clone(),
            display_name: Arc::clone(&self.display_name),
            ip: self.ip,
            port: self.port,
            source: self.source,
            is_user: self.is_user,
            lease_id: self.lease_id,
            connected_at: self.connected_at,
            last_seen_at: self.last_seen_at,
        }
    }
}

impl Registry {
    /// Fills an empty registry from the store. Hosts stay live until their timeout is over. `instant` converts a stored
    /// date to the clock that `now` is measured by.
    pub fn load(
        &mut self,
        now: Millis,
        instant: &dyn Fn(Millis) -> Millis,
        reader: &dyn Reader,
    ) -> Result<(), StoreError> {
        let now = self.advance_clock(now);
        let sql = "SELECT id, hostname, display_name, ip, port, source, by_account, tenure, connected_at, heard_at
             FROM registry_host ORDER BY id";
        let mut slots = std::collections::HashMap::new();
        for row in reader.all(sql, &[], read_host)? {
            self.next_id = self.next_id.max(row.id + 1).max(row.lease_id + 1);
            // The machine's clock may have been set back.
            let (id, last_seen_at) = (row.id, instant(row.last_seen_at).min(now));
            let connected_at = instant(row.connected_at);
            let slot = self.insert_host(HostRecord::of(HostRow { connected_at, last_seen_at, ..row }));
            self.insert_silent(slot);
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
            let last_seen_at = self.slots[slot as usize].as_ref().map_or(now, |host| host.last_seen_at);
            if now < last_seen_at.plus(self.peer_timeout) {
                self.remove_silent(slot, last_seen_at);
                self.make_live(slot);
            }
        }
        let sql = "SELECT hostname, secret, tenure, by_account, made_at, source FROM registry_secret ORDER BY made_at";
        for (hostname, secret) in reader.all(sql, &[], read_secret)? {
            let issued_at = instant(secret.issued_at).min(now);
            self.secrets.restore(hostname, ResumeSecret { issued_at, ..secret });
        }
        self.next_id = self.next_id.max(self.secrets.last_lease_id() + 1);
        let by_name = &self.by_name;
        self.secrets.restore_departed(|name| by_name.contains_key(name));
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
        is_user: row.bool(6)?,
        lease_id: row.uint(7)?,
        connected_at: row.millis(8)?,
        last_seen_at: row.millis(9)?,
    })
}

fn read_secret(row: &Row<'_>) -> Result<(Name, ResumeSecret), StoreError> {
    let key = SecretHash::from_bytes(row.blob(1)?).ok_or_else(|| invalid("secret", "expected 32 bytes"))?;
    let (lease_id, is_user, issued_at) = (row.uint(2)?, row.bool(3)?, row.millis(4)?);
    let source = match row.opt_text(5)? {
        Some(ip) => ip.parse().map_err(|_| invalid("source", "expected an IP address"))?,
        None => IpAddr::from([0, 0, 0, 0]),
    };
    Ok((name(row.text(0)?)?, ResumeSecret { hash: key, lease_id, is_user, issued_at, source }))
}

fn name(text: &str) -> Result<Name, StoreError> {
    Name::from_stored(text).map_err(|error| invalid("hostname", &error))
}

fn invalid(column: &str, what: &str) -> StoreError {
    StoreError::Invalid(format!("{column} of a row of the registry: {what}"))
}

/// Ids count from 1 and never come near the maximum.
fn to_sql_integer(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Invalid("a number of the registry is too large".to_owned()))
}
