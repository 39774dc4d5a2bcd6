//! What trade finds in its data dir, which was looked at before (`cli/stores.rs`).

use std::path::Path;
use std::sync::Arc;

use crate::bank::BuiltinGateway;
use crate::cli::stores::TRADE_DB;
use crate::net::tls::{IDENTITY_FILE, Identity};
use crate::storage::Store;
use crate::storage::backup::{self, Part};
use crate::trade;

/// Everything in a data dir, opened.
pub(super) struct DataDir {
    pub(super) store: Arc<Store>,
    pub(super) gateway: Arc<BuiltinGateway>,
    pub(super) identity: Arc<Identity>,
    /// The largest number of a deal that the bank knows.
    pub(super) charged_up_to: Option<u64>,
    /// Where numbers begin.
    pub(super) first_stretch: u64,
}

impl DataDir {
    /// Opens the data dir, or makes a new one.
    pub(super) fn open(dir: &Path) -> anyhow::Result<DataDir> {
        let store = Arc::new(Store::open(&dir.join(TRADE_DB), trade::store::MIGRATIONS)?);
        let gateway = Arc::new(BuiltinGateway::open(dir)?);
        let charged_up_to = gateway.highest_number(trade::exchange::CHARGE_KEYS)?;
        let mut first_stretch = backup::first_stretch(dir, Part::Trade)?;
        if let Some(charged) = charged_up_to
            && charged >= store.read(trade::store::ceiling)?
        {
            log::warn!(
                "{}: the bank has charged deal {charged}, which is not known here: this file is older than the bank's \
                 (a copy put back by hand?). Numbers go on past it, but what happened in between is lost here",
                store.path().display()
            );
            // A loss that nobody was asked to accept, unless this is its first start after that.
            if charged >= trade::exchange::first_number(first_stretch) {
                first_stretch = backup::count_loss(dir, Part::Trade)?;
            }
        }
        let had_identity = dir.join(IDENTITY_FILE).exists();
        let identity = Arc::new(Identity::load_or_create(dir)?);
        if !had_identity && !store.read(trade::store::peers)?.is_empty() {
            log::warn!(
                "{IDENTITY_FILE} was missing: there is a new certificate now, and every peer that remembers the former \
                 one will refuse to settle; a backup has the former one"
            );
        }
        Ok(DataDir { store, gateway, identity, charged_up_to, first_stretch })
    }

    /// Closes the files in order.
    pub(super) fn close(&self) {
        self.store.close();
        self.gateway.close();
    }
}
