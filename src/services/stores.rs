//! The stores of a data dir: what is checked before a start changes anything, and which losses an operator can accept.

use std::path::Path;

use super::tls::CREATED_WITHOUT_TRADE;
use crate::bank::{self, BANK_DB};
use crate::identity::jwt;
use crate::identity::users::{self, USERS_DB};
use crate::lan::history;
use crate::net::tls::IDENTITY_FILE;
use crate::share::node::store;
use crate::share::registry;
use crate::shop::{customer, product};
use crate::storage::backup::{AcceptLossError, AcceptedLoss, accept_loss};
use crate::storage::{ExpectedStore, OpenError, check_stores, is_missing_or_empty};
use crate::trade;
use crate::trade::peer::store as peer_store;

pub const TRADE_DB: &str = "trade.db";
pub const REGISTRY_DB: &str = "registry.db";
pub const CUSTOMER_DB: &str = "customer.db";
/// The customer database's own bank, since it may run on a host of its own.
pub const SHOP_BANK_DB: &str = "shop-bank.db";

const TRADE: ExpectedStore<'_> =
    ExpectedStore { file: TRADE_DB, migrations: trade::store::MIGRATIONS, companions: &[BANK_DB, IDENTITY_FILE] };
const BANK: ExpectedStore<'_> = ExpectedStore { file: BANK_DB, migrations: bank::MIGRATIONS, companions: &[TRADE_DB] };
const PRODUCT: ExpectedStore<'_> = ExpectedStore {
    file: product::FILE_NAME,
    migrations: product::MIGRATIONS,
    companions: &[CUSTOMER_DB, SHOP_BANK_DB],
};
const CUSTOMER: ExpectedStore<'_> = ExpectedStore {
    file: CUSTOMER_DB,
    migrations: customer::MIGRATIONS,
    companions: &[product::FILE_NAME, SHOP_BANK_DB],
};
const SHOP_BANK: ExpectedStore<'_> =
    ExpectedStore { file: SHOP_BANK_DB, migrations: bank::MIGRATIONS, companions: &[CUSTOMER_DB] };
/// The key is created just before the store, but by then the manifest already names the store. (A first start of an
/// earlier version that was interrupted between the two looks like a loss until the next start or accept-loss.)
const USERS: ExpectedStore<'_> =
    ExpectedStore { file: USERS_DB, migrations: users::MIGRATIONS, companions: &[REGISTRY_DB, jwt::KEY_FILE] };
const REGISTRY: ExpectedStore<'_> =
    ExpectedStore { file: REGISTRY_DB, migrations: registry::store::MIGRATIONS, companions: &[] };
const SHARE: ExpectedStore<'_> =
    ExpectedStore { file: store::STORE_FILE, migrations: store::MIGRATIONS, companions: &[] };
const PEER: ExpectedStore<'_> =
    ExpectedStore { file: peer_store::FILE, migrations: peer_store::MIGRATIONS, companions: &[] };
const LAN: ExpectedStore<'_> = ExpectedStore { file: history::FILE, migrations: history::MIGRATIONS, companions: &[] };

pub fn check_server_stores(dir: &Path, trade: bool, shop: bool, share: bool) -> Result<(), OpenError> {
    let mut stores = Vec::new();
    if trade {
        stores.extend([trade_store_in(dir), BANK]);
    }
    if shop {
        stores.extend([PRODUCT, CUSTOMER, SHOP_BANK]);
    }
    // Accounts exist whatever services run.
    stores.push(USERS);
    if share {
        stores.push(REGISTRY);
    }
    check_stores(dir, &stores)
}

/// Checks the product database's store. The other components may be on other hosts.
pub fn check_product_stores(dir: &Path) -> Result<(), OpenError> {
    check_stores(dir, &[ExpectedStore { companions: &[], ..PRODUCT }])
}

pub fn check_customer_stores(dir: &Path) -> Result<(), OpenError> {
    check_stores(dir, &[ExpectedStore { companions: &[SHOP_BANK_DB], ..CUSTOMER }, SHOP_BANK])
}

pub fn check_node_stores(dir: &Path) -> Result<(), OpenError> {
    check_stores(dir, &[SHARE])
}

/// Accepts that a store of a data dir is lost, or has lost changes.
pub fn accept(dir: &Path, file: &str) -> Result<AcceptedLoss, AcceptLossError> {
    let all = [trade_store_in(dir), BANK, PRODUCT, CUSTOMER, SHOP_BANK, USERS, REGISTRY, SHARE, PEER, LAN];
    // A token of a lost account would be valid for whoever registers its name next.
    let secrets: &[&str] = if file == USERS_DB { &[jwt::KEY_FILE] } else { &[] };
    accept_loss(dir, file, &all, secrets)
}

/// The trade store of this data dir. The certificate counts as its companion only if trade created it.
fn trade_store_in(dir: &Path) -> ExpectedStore<'static> {
    let companions: &[&str] = if is_trade_identity(&dir.join(IDENTITY_FILE)) { TRADE.companions } else { &[BANK_DB] };
    ExpectedStore { companions, ..TRADE }
}

/// Whether the certificate file was created by trade. Other services begin the file with a marker line.
fn is_trade_identity(path: &Path) -> bool {
    let is_noted = || std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(CREATED_WITHOUT_TRADE.as_bytes()));
    !is_missing_or_empty(path) && !is_noted()
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
        check_stores(dir.path(), &all).unwrap();
    }

    #[test]
    fn without_a_manifest_the_key_of_logins_tells_that_their_accounts_are_lost() {
        // A data dir of an earlier version whose share service never ran, and one whose manifest was given up.
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
                assert_eq!(accept(state, "manifest.json").unwrap(), AcceptedLoss::ManifestRebuilt);
            }
            for _ in 0..2 {
                let refused = check_server_stores(state, true, false, false).unwrap_err();
                assert!(matches!(&refused, OpenError::Missing { path, .. } if path.ends_with(USERS_DB)), "{refused}");
            }
            assert_eq!(accept(state, USERS_DB).unwrap(), AcceptedLoss::WillBeRecreated(Vec::new()));
            assert!(!key.exists() && names("jwt.key.lost-1").exists());
            check_server_stores(state, true, false, false).unwrap();
        }
    }

    #[test]
    fn accounts_can_be_given_up_where_nothing_but_their_key_is_left() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(jwt::KEY_FILE), "of all logins").unwrap();
        assert!(check_server_stores(dir.path(), false, false, true).is_err());
        accept(dir.path(), USERS_DB).unwrap();
        check_server_stores(dir.path(), false, false, true).unwrap();
    }
}
