//! The stores of every data dir: what a start looks at before it makes or changes anything, and what an operator
//! may give up.

use std::path::Path;

use super::share_server::REGISTRY_DB;
use super::shop::{CUSTOMER_DB, SHOP_BANK_DB, WITHOUT_TRADE};
use crate::bank::{self, BANK_DB};
use crate::identity::jwt;
use crate::identity::users::{self, USERS_DB};
use crate::lan::history;
use crate::net::tls::IDENTITY_FILE;
use crate::share::node::keep;
use crate::share::registry;
use crate::shop::{customer, product};
use crate::storage::backup::{AcceptError, Accepted, accept_loss};
use crate::storage::{Expected, OpenError, examine, is_absent};
use crate::trade;
use crate::trade::peer::store as peer_store;

/// The file of trade in the data dir.
pub const TRADE_DB: &str = "trade.db";

const TRADE: Expected<'_> =
    Expected { file: TRADE_DB, migrations: trade::store::MIGRATIONS, companions: &[BANK_DB, IDENTITY_FILE] };
const BANK: Expected<'_> = Expected { file: BANK_DB, migrations: bank::MIGRATIONS, companions: &[TRADE_DB] };
const PRODUCT: Expected<'_> =
    Expected { file: product::FILE, migrations: product::MIGRATIONS, companions: &[CUSTOMER_DB, SHOP_BANK_DB] };
const CUSTOMER: Expected<'_> =
    Expected { file: CUSTOMER_DB, migrations: customer::MIGRATIONS, companions: &[product::FILE, SHOP_BANK_DB] };
const SHOP_BANK: Expected<'_> =
    Expected { file: SHOP_BANK_DB, migrations: bank::MIGRATIONS, companions: &[CUSTOMER_DB] };
/// The key is made just before the store, but this version has named the store in the manifest by then. (Of an earlier
/// one, a first start that was cut off between the two looks like a loss, until a further start or accept-loss.)
const USERS: Expected<'_> =
    Expected { file: USERS_DB, migrations: users::MIGRATIONS, companions: &[REGISTRY_DB, jwt::KEY_FILE] };
const REGISTRY: Expected<'_> = Expected { file: REGISTRY_DB, migrations: registry::store::MIGRATIONS, companions: &[] };
const SHARE: Expected<'_> = Expected { file: keep::STORE_FILE, migrations: keep::MIGRATIONS, companions: &[] };
const PEER: Expected<'_> = Expected { file: peer_store::FILE, migrations: peer_store::MIGRATIONS, companions: &[] };
const LAN: Expected<'_> = Expected { file: history::FILE, migrations: history::MIGRATIONS, companions: &[] };

/// Before a server with these services starts: are its stores whole?
///
/// # Errors
/// Those of [`examine`].
pub fn examine_server(dir: &Path, trade: bool, shop: bool, share: bool) -> Result<(), OpenError> {
    let mut stores = Vec::new();
    if trade {
        stores.extend([trade_in(dir), BANK]);
    }
    if shop {
        stores.extend([PRODUCT, CUSTOMER, SHOP_BANK]);
    }
    // Accounts are there whatever services run.
    stores.push(USERS);
    if share {
        stores.push(REGISTRY);
    }
    examine(dir, &stores)
}

/// Before the product database starts by itself. Its neighbours may be elsewhere.
///
/// # Errors
/// Those of [`examine`].
pub fn examine_product(dir: &Path) -> Result<(), OpenError> {
    examine(dir, &[Expected { companions: &[], ..PRODUCT }])
}

/// The same for the customer database.
///
/// # Errors
/// Those of [`examine`].
pub fn examine_customer(dir: &Path) -> Result<(), OpenError> {
    examine(dir, &[Expected { companions: &[SHOP_BANK_DB], ..CUSTOMER }, SHOP_BANK])
}

/// The same for a node that shares files.
///
/// # Errors
/// Those of [`examine`].
pub fn examine_node(dir: &Path) -> Result<(), OpenError> {
    examine(dir, &[SHARE])
}

/// Accepts that a file of a data dir is lost, or what it has lost.
///
/// # Errors
/// Those of [`accept_loss`].
pub fn accept(dir: &Path, file: &str) -> Result<Accepted, AcceptError> {
    let all = [trade_in(dir), BANK, PRODUCT, CUSTOMER, SHOP_BANK, USERS, REGISTRY, SHARE, PEER, LAN];
    // A token of an account that is lost would be good for whoever takes its name.
    let secrets: &[&str] = if file == USERS_DB { &[jwt::KEY_FILE] } else { &[] };
    accept_loss(dir, file, &all, secrets)
}

/// Trade's store in this data dir.
fn trade_in(dir: &Path) -> Expected<'static> {
    let companions: &[&str] = if is_sign_of_trade(&dir.join(IDENTITY_FILE)) { TRADE.companions } else { &[BANK_DB] };
    Expected { companions, ..TRADE }
}

/// Other services make a certificate too, and begin its file with a note that says so.
fn is_sign_of_trade(path: &Path) -> bool {
    let is_noted = || std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(WITHOUT_TRADE.as_bytes()));
    !is_absent(path) && !is_noted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Store;

    #[test]
    fn no_two_stores_have_one_name_and_each_opens_with_its_migrations() {
        let dir = tempfile::tempdir().unwrap();
        let all = [TRADE, BANK, PRODUCT, CUSTOMER, SHOP_BANK, USERS, REGISTRY, SHARE, PEER, LAN];
        for (place, store) in all.iter().enumerate() {
            assert!(!all[..place].iter().any(|other| other.file == store.file), "{}", store.file);
            Store::open(&dir.path().join(store.file), store.migrations).unwrap().close();
        }
        examine(dir.path(), &all).unwrap();
    }

    #[test]
    fn without_a_manifest_the_key_of_logins_tells_that_their_accounts_are_lost() {
        // Those of an earlier version, whose share never ran; and any whose manifest was given up.
        for is_earlier in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (state, key) = (dir.path(), dir.path().join(jwt::KEY_FILE));
            let names = |file: &str| state.join(file);
            for store in [TRADE, BANK] {
                Store::open(&names(store.file), store.migrations).unwrap().close();
            }
            std::fs::write(&key, "of all logins").unwrap();
            std::fs::remove_file(names("manifest.json")).unwrap();
            if is_earlier {
                for file in [TRADE_DB, BANK_DB] {
                    let store = rusqlite::Connection::open(names(file)).unwrap();
                    store.execute_batch("DROP TABLE store_identity").unwrap();
                }
            } else {
                assert_eq!(accept(state, "manifest.json").unwrap(), Accepted::Manifest);
            }
            for _ in 0..2 {
                let refused = examine_server(state, true, false, false).unwrap_err();
                assert!(matches!(&refused, OpenError::Missing { path, .. } if path.ends_with(USERS_DB)), "{refused}");
            }
            assert_eq!(accept(state, USERS_DB).unwrap(), Accepted::Anew(Vec::new()));
            assert!(!key.exists() && names("jwt.key.lost-1").exists());
            examine_server(state, true, false, false).unwrap();
        }
    }

    #[test]
    fn accounts_can_be_given_up_where_nothing_but_their_key_is_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(jwt::KEY_FILE), "of all logins").unwrap();
        assert!(examine_server(dir.path(), false, false, true).is_err());
        accept(dir.path(), USERS_DB).unwrap();
        examine_server(dir.path(), false, false, true).unwrap();
    }
}
