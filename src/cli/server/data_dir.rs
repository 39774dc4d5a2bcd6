//! What a server finds in its data dir: its own earlier life, whole, or nothing at all.
//!
//! The files know of each other: the bank remembers a charge under the number of a deal, peers remember
//! the certificate. A server that began anew beside the rest would give numbers a second time, and the
//! bank would take one deal's charge for another's.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;

use crate::bank::{BANK_DB, BuiltinGateway, ledger};
use crate::cli::shop::WITHOUT_TRADE;
use crate::net::tls::{IDENTITY_FILE, Identity};
use crate::storage::{Store, StoreError, is_absent};
use crate::trade;

/// The file of trade in the data dir.
pub const TRADE_DB: &str = "trade.db";

/// Everything in a data dir, opened.
pub(super) struct DataDir {
    pub(super) store: Arc<Store>,
    pub(super) gateway: Arc<BuiltinGateway>,
    pub(super) identity: Arc<Identity>,
    /// The largest number of a deal that the bank knows.
    pub(super) charged_up_to: Option<u64>,
}

impl DataDir {
    /// Opens the data dir, or makes a new one.
    ///
    /// Trade's file is made before the bank's and that one before the certificate, so that a first start
    /// that is cut off leaves nothing that looks like a loss.
    pub(super) fn open(dir: &Path) -> anyhow::Result<DataDir> {
        if is_absent(&dir.join(TRADE_DB))
            && let Some(other) = [BANK_DB, IDENTITY_FILE].into_iter().find(|other| is_sign_of_trade(&dir.join(other)))
        {
            return refuse(dir, TRADE_DB, &format!("{other} is of a server that had one"));
        }
        let store = Arc::new(Store::open(&dir.join(TRADE_DB), trade::store::MIGRATIONS)?);
        if is_absent(&dir.join(BANK_DB)) && store.read(has_moved_money)? {
            return refuse(dir, BANK_DB, &format!("the ledger in {TRADE_DB} has charges that it must know"));
        }
        let gateway = Arc::new(BuiltinGateway::open(dir)?);
        let charged_up_to = gateway.highest_number(trade::exchange::CHARGE_KEYS)?;
        let had_identity = dir.join(IDENTITY_FILE).exists();
        let identity = Arc::new(Identity::load_or_create(dir)?);
        if !had_identity && !store.read(trade::store::peers)?.is_empty() {
            log::warn!(
                "{IDENTITY_FILE} was missing: there is a new certificate now, and every peer that remembers the former \
                 one will refuse to settle; a backup has the former one"
            );
        }
        Ok(DataDir { store, gateway, identity, charged_up_to })
    }

    /// Closes the files in order.
    pub(super) fn close(&self) {
        self.store.close();
        self.gateway.close();
    }
}

/// Other services make a certificate too, and begin its file with a note that says so.
fn is_sign_of_trade(path: &Path) -> bool {
    let is_noted = || std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(WITHOUT_TRADE.as_bytes()));
    !is_absent(path) && !is_noted()
}

fn refuse(dir: &Path, missing: &str, because: &str) -> anyhow::Result<DataDir> {
    bail!(
        "{} is missing or empty, but {because}: restore a backup into an empty data dir; or, to begin anew on purpose, \
         remove all of {}",
        dir.join(missing).display(),
        dir.display()
    )
}

fn has_moved_money(reader: &dyn crate::storage::Reader) -> Result<bool, StoreError> {
    let mut any = false;
    ledger::entries(reader, 0, 1, &mut |_| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}
