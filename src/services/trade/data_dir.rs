//! The trade service's files in the data dir. `services/stores.rs` has checked them before.

use std::path::Path;
use std::sync::Arc;

use crate::bank::BuiltinGateway;
use crate::net::tls::{IDENTITY_FILE, TlsIdentity};
use crate::services::stores::TRADE_DB;
use crate::storage::Store;
use crate::storage::backup::{self, DataComponent};
use crate::trade;

pub(super) struct TradeDataDir {
    pub(super) store: Arc<Store>,
    pub(super) gateway: Arc<BuiltinGateway>,
    pub(super) identity: Arc<TlsIdentity>,
    /// The highest deal number that the bank has charged.
    pub(super) charged_up_to: Option<u64>,
    /// The id range from which deal numbers are assigned.
    pub(super) first_id_range: u64,
}

impl TradeDataDir {
    /// Opens the data dir, creating what is missing.
    pub(super) fn open(dir: &Path) -> anyhow::Result<TradeDataDir> {
        let store = Arc::new(Store::open(&dir.join(TRADE_DB), trade::store::MIGRATIONS)?);
        let gateway = Arc::new(BuiltinGateway::open(dir)?);
        let charged_up_to = gateway.highest_number(trade::exchange::CHARGE_KEY_PREFIX)?;
        let mut first_id_range = backup::first_id_range(dir, DataComponent::Trade)?;
        if let Some(charged) = charged_up_to
            && charged >= store.read(trade::store::ceiling)?
        {
            log::warn!(
                "{}: the bank has charged deal {charged}, which is not known here: this file is older than the bank's \
                 (a copy put back by hand?). Numbers go on past it, but what happened in between is lost here",
                store.path().display()
            );
            // A loss that no operator has accepted, unless this is the first start after an accepted one.
            if charged >= trade::exchange::first_id(first_id_range) {
                first_id_range = backup::start_new_id_range(dir, DataComponent::Trade)?;
            }
        }
        let had_identity = dir.join(IDENTITY_FILE).exists();
        let identity = Arc::new(TlsIdentity::load_or_create(dir)?);
        if !had_identity && !store.read(trade::store::peers)?.is_empty() {
            log::warn!(
                "{IDENTITY_FILE} was missing: there is a new certificate now, and every peer that remembers the former \
                 one will refuse to settle; a backup has the former one"
            );
        }
        Ok(TradeDataDir { store, gateway, identity, charged_up_to, first_id_range })
    }

    pub(super) fn close(&self) {
        self.store.close();
        self.gateway.close();
    }
}
