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
const USERS: Expected<'_> = Expected { file: USERS_DB, migrations: users::MIGRATIONS, companions: &[REGISTRY_DB] };
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
        let companions: &[&str] =
            if is_sign_of_trade(&dir.join(IDENTITY_FILE)) { TRADE.companions } else { &[BANK_DB] };
        stores.extend([Expected { companions, ..TRADE }, BANK]);
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
    let all = [TRADE, BANK, PRODUCT, CUSTOMER, SHOP_BANK, USERS, REGISTRY, SHARE, PEER, LAN];
    // A token of an account that is lost would be good for whoever takes its name.
    let secrets: &[&str] = if file == USERS_DB { &[jwt::KEY_FILE] } else { &[] };
    accept_loss(dir, file, &all, secrets)
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
}
