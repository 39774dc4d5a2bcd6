//! A peer's data directory: items, deals, seen notifications, token, and the fingerprint of each server that it trades
//! with. The wallet is never stored there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Item, PeerChange, PeerSnapshot, Purchase, Sale, first_id, inventory};
use crate::model::text::nfc;
use crate::model::{Millis, Name, Token};
use crate::storage::backup::{self, DataComponent};
use crate::storage::lock::{DataDirLock, LockError};
use crate::storage::{OpenError, ReaderExt, Store, StoreError, Tx, from_json, to_json};

pub const FILE: &str = "peer.db";

pub const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE items (name TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE deals (rq BIGINT PRIMARY KEY, side TEXT NOT NULL, body TEXT NOT NULL);
    CREATE TABLE seen (mid BIGINT PRIMARY KEY, at BIGINT NOT NULL);
    CREATE TABLE pins (server TEXT PRIMARY KEY, cert_sha256 TEXT NOT NULL);
"];

/// What is at fault for a body that is not read.
const ROW: &str = "a row of the peer's store";

#[derive(Debug, thiserror::Error)]
pub enum PeerStoreError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} is the data dir of peer {owner:?}: choose another --data-dir or --name", dir.display())]
    NotOurs { dir: PathBuf, owner: String },
}

/// A data directory that is locked by this process.
#[derive(Debug)]
pub struct PeerStore {
    store: Arc<Store>,
    /// Not 0 if the database may not know all numbers that were used.
    first_id_range: u64,
    _lock: DataDirLock,
}

impl PeerStore {
    /// Opens or creates the data directory.
    pub fn open(dir: &Path, name: &Name) -> Result<PeerStore, PeerStoreError> {
        let lock = DataDirLock::acquire(dir)?;
        let first_id_range = backup::first_id_range(dir, DataComponent::Peer)?;
        let store =
            PeerStore { store: Arc::new(Store::open(&dir.join(FILE), MIGRATIONS)?), first_id_range, _lock: lock };
        match store.meta("name")? {
            Some(owner) if nfc(&owner) != name.key() => {
                return Err(PeerStoreError::NotOurs { dir: dir.to_owned(), owner });
            }
            Some(_) => {}
            None => store.set_meta("name", Some(name.as_str().to_owned()))?,
        }
        Ok(store)
    }

    pub fn database(&self) -> &Arc<Store> {
        &self.store
    }

    /// It is beyond all numbers that were used.
    pub fn first_id(&self) -> u64 {
        first_id(self.first_id_range)
    }

    /// The token of our registration with a server.
    pub fn token(&self, server: &str) -> Result<Option<Token>, StoreError> {
        Ok(self.meta(&format!("token {server}"))?.map(Token::from_text))
    }

    /// `None` deletes it.
    pub fn set_token(&self, server: &str, token: Option<&Token>) -> Result<(), StoreError> {
        self.set_meta(&format!("token {server}"), token.map(|token| token.reveal().to_owned()))
    }

    /// The fingerprint of a server.
    pub fn pin(&self, server: &str) -> Result<Option<Arc<str>>, StoreError> {
        self.store.read(|reader| {
            reader.first("SELECT cert_sha256 FROM pins WHERE server = $1", &[server.into()], |row| {
                Ok(Arc::from(row.text(0)?))
            })
        })
    }

    pub fn set_pin(&self, server: &str, pin: &str) -> Result<(), StoreError> {
        let (server, pin) = (server.to_owned(), pin.to_owned());
        self.store.write(move |tx| {
            let sql = "INSERT INTO pins (server, cert_sha256) VALUES ($1, $2) \
                       ON CONFLICT (server) DO UPDATE SET cert_sha256 = excluded.cert_sha256";
            tx.execute(sql, &[(&server).into(), (&pin).into()]).map(drop)
        })
    }

    pub fn close(&self) {
        self.store.close();
    }

    fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.store.read(|reader| {
            reader.first("SELECT value FROM meta WHERE key = $1", &[key.into()], |row| Ok(row.text(0)?.to_owned()))
        })
    }

    fn set_meta(&self, key: &str, value: Option<String>) -> Result<(), StoreError> {
        let key = key.to_owned();
        self.store.write(move |tx| match value {
            Some(value) => set_meta(tx, &key, &value),
            None => tx.execute("DELETE FROM meta WHERE key = $1", &[(&key).into()]).map(drop),
        })
    }
}

/// The numbers begin at `first_id` at least.
pub fn load(store: &Store, first_id: u64) -> Result<PeerSnapshot, StoreError> {
    store.read(|reader| {
        let items =
            reader.all("SELECT body FROM items ORDER BY name", &[], |row| from_json::<Item>(ROW, row.text(0)?))?;
        let mut snapshot = PeerSnapshot { items, ..PeerSnapshot::default() };
        reader.query("SELECT side, body FROM deals ORDER BY rq", &[], &mut |row| {
            match row.text(0)? {
                "seller" => snapshot.sales.push(from_json::<Sale>(ROW, row.text(1)?)?),
                _ => snapshot.purchases.push(from_json::<Purchase>(ROW, row.text(1)?)?),
            }
            Ok(())
        })?;
        snapshot.seen =
            reader.all("SELECT mid, at FROM seen ORDER BY at, mid", &[], |row| Ok((row.uint(0)?, row.millis(1)?)))?;
        let ceiling = reader.first("SELECT value FROM meta WHERE key = 'ceiling'", &[], |row| {
            row.text(0)?.parse().map_err(|_| StoreError::Invalid("ceiling: expected a number".to_owned()))
        })?;
        snapshot.ceiling = ceiling.unwrap_or(0).max(first_id);
        Ok(snapshot)
    })
}

pub fn write(tx: &mut dyn Tx, changes: &[PeerChange]) -> Result<(), StoreError> {
    changes.iter().try_for_each(|change| apply(tx, change))
}

fn set_meta(tx: &mut dyn Tx, key: &str, value: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    tx.execute(sql, &[key.into(), value.into()]).map(drop)
}

fn apply(tx: &mut dyn Tx, change: &PeerChange) -> Result<(), StoreError> {
    match change {
        PeerChange::Item(item) => {
            let sql = "INSERT INTO items (name, body) VALUES ($1, $2) \
                       ON CONFLICT (name) DO UPDATE SET body = excluded.body";
            tx.execute(sql, &[(&inventory::fold(&item.name)).into(), (&to_json(item)?).into()])
        }
        PeerChange::DropItem(name) => {
            tx.execute("DELETE FROM items WHERE name = $1", &[(&inventory::fold(name)).into()])
        }
        PeerChange::Sale(sale) => set_deal(tx, sale.rq, "seller", &to_json(sale)?),
        PeerChange::Purchase(purchase) => set_deal(tx, purchase.rq, "buyer", &to_json(purchase)?),
        PeerChange::DropDeal(rq) => tx.execute("DELETE FROM deals WHERE rq = $1", &[int(*rq)?.into()]),
        PeerChange::Seen { mid, at } => {
            let sql = "INSERT INTO seen (mid, at) VALUES ($1, $2) ON CONFLICT (mid) DO UPDATE SET at = excluded.at";
            tx.execute(sql, &[int(*mid)?.into(), Millis(at.0).into()])
        }
        PeerChange::DropSeen(mid) => tx.execute("DELETE FROM seen WHERE mid = $1", &[int(*mid)?.into()]),
        PeerChange::Ceiling(ceiling) => return set_meta(tx, "ceiling", &ceiling.to_string()),
    }
    .map(drop)
}

fn set_deal(tx: &mut dyn Tx, rq: u64, side: &str, body: &str) -> Result<u64, StoreError> {
    let sql = "INSERT INTO deals (rq, side, body) VALUES ($1, $2, $3) \
               ON CONFLICT (rq) DO UPDATE SET side = excluded.side, body = excluded.body";
    tx.execute(sql, &[int(rq)?.into(), side.into(), body.into()])
}

fn int(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid("a number is too large to be stored".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::backup::accept_loss;
    use crate::storage::{ExpectedStore, check_may_be_absent};
    use crate::trade::peer::{PeerCore, PeerEffects};
    use crate::trade::wire::FIRST_SERVER_NUMBER;

    #[test]
    fn a_data_dir_is_its_peers_however_the_name_is_spelled() {
        let home = tempfile::tempdir().unwrap();
        for spelled in ["Zoe\u{308}", "Zo\u{eb}", "Zoe\u{308}"] {
            PeerStore::open(home.path(), &Name::new(spelled).unwrap()).unwrap();
        }
        let refused = PeerStore::open(home.path(), &Name::new("Zoe").unwrap());
        assert!(matches!(refused, Err(PeerStoreError::NotOurs { .. })));
    }

    #[test]
    fn after_a_loss_that_was_accepted_no_number_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::new("ann").unwrap();
        let used = |count: usize| {
            let store = PeerStore::open(dir.path(), &name).unwrap();
            let mut core = PeerCore::new(load(store.database(), store.first_id()).unwrap(), false);
            let mut effects = PeerEffects::default();
            let used: Vec<u64> = (0..count).map(|_| core.next_rq(&mut effects).unwrap()).collect();
            store.database().write(move |tx| write(tx, &effects.changes)).unwrap();
            store.close();
            used
        };
        let first = used(1_000);
        assert_eq!(first[0], 1);
        let mut highest = *first.last().unwrap();
        for _ in 0..3 {
            std::fs::remove_file(dir.path().join(FILE)).unwrap();
            check_may_be_absent(&dir.path().join(FILE)).unwrap_err();
            accept_loss(
                dir.path(),
                FILE,
                &[ExpectedStore { file: FILE, migrations: MIGRATIONS, companions: &[] }],
                &[],
            )
            .unwrap();
            let more = [used(10), used(10)].concat();
            assert!(more[0] > highest && more.is_sorted_by(|a, b| a < b), "{more:?} after {highest}");
            highest = *more.last().unwrap();
        }
        assert!(highest < FIRST_SERVER_NUMBER);
    }
}
