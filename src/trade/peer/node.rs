//! A running peer: joins the core, the client and the store. Effects are applied in a fixed order: changes are stored,
//! then notifications acknowledged, requests sent and events reported.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::store::{self, PeerStore, PeerStoreError};
use super::{CommandError, DealCommand, Item, PeerCore, PeerEvent, PeerInput, Purchase, PurchaseState, Sale};
use crate::model::{Cents, Clock, Name};
use crate::net::threads;
use crate::storage::{CoreState, Durable, SharedCore, StoreError};
use crate::trade::client::{self, Client, ClientError, ClientOpenError};
use crate::trade::wire::{DealStatus, ErrorCode, Goods, RequestBody, Response, Side};

mod handler;
#[cfg(test)]
mod tests;
mod trust;
mod worker;

use self::handler::NodeHandler;

/// Further ones are not acknowledged, so the server repeats them.
const QUEUED_NOTIFICATIONS_MAX: usize = 1_024;
/// Inputs in one transaction.
const BATCH_MAX: usize = 64;
const TICK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub client: client::ClientConfig,
    /// The server as the user named it; its token and fingerprint are stored under this name.
    pub server: String,
    pub data_dir: PathBuf,
    /// The payment details.
    pub wallet: Option<PathBuf>,
    pub auto_buy: bool,
    /// Settle without TLS if the server does so too.
    pub plaintext: bool,
    /// The fingerprint, if known in advance.
    pub server_cert: Option<String>,
    /// The server is known to have no certificate; one that presents any is a different server.
    pub no_server_cert: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Refused(#[from] CommandError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{reason}")]
    Server { code: ErrorCode, reason: String },
    #[error("the server at {server} does not take {name:?}: {reason}")]
    Denied { server: String, name: Name, reason: String },
    #[error("{0}")]
    Security(String),
    #[error("{0}")]
    Wallet(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    DataDir(#[from] PeerStoreError),
    #[error(transparent)]
    Open(#[from] ClientOpenError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("{0}")]
    TimedOut(String),
}

/// It closes when dropped.
pub struct Node {
    inner: Arc<NodeInner>,
    worker: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

struct NodeInner {
    config: NodeConfig,
    clock: Clock,
    /// It stands before `store`, so that the database is closed before the data directory's lock is released.
    core: Durable<SharedCore<PeerCore>>,
    store: PeerStore,
    /// It is bounded by [`QUEUED_NOTIFICATIONS_MAX`] and, for responses, by the client's limit on requests.
    inputs: Sender<PeerInput>,
    client: OnceLock<Client>,
    observer: Box<dyn Fn(&PeerEvent) + Send + Sync>,
}

impl Node {
    /// Opens the data directory and the sockets; [`Node::join`] then logs in. `observer` runs on threads of the peer.
    pub fn open(config: NodeConfig, observer: impl Fn(&PeerEvent) + Send + Sync + 'static) -> Result<Node, NodeError> {
        let store = PeerStore::open(&config.data_dir, &config.client.name)?;
        let (first_id, auto_buy) = (store.first_id(), config.auto_buy);
        let core = Durable::open_shared("peer", Arc::clone(store.database()), move |store, _before| {
            Ok(PeerCore::new(store::load(store, first_id)?, auto_buy))
        })?;
        let (inputs, incoming) = crossbeam_channel::unbounded();
        let inner = Arc::new(NodeInner {
            store,
            clock: Clock::start(),
            core,
            inputs,
            client: OnceLock::new(),
            observer: Box::new(observer),
            config,
        });
        let client = Client::open(inner.config.client.clone(), Arc::new(NodeHandler(Arc::downgrade(&inner))))?;
        inner.client.get_or_init(|| client);
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let worker = {
            let inner = Arc::clone(&inner);
            threads::spawn("peer", move || inner.run_worker(&incoming, &stopped)).map_err(NodeError::Thread)?
        };
        Ok(Node { inner, worker: Mutex::new(Some((stop, worker))) })
    }

    pub fn client(&self) -> &Client {
        self.inner.client()
    }

    /// Sends LOGIN with the stored token; without one, or if the server no longer knows it, REGISTER. Then asks for
    /// what was missed. True if it was a LOGIN.
    pub fn join(&self) -> Result<bool, NodeError> {
        let inner = &*self.inner;
        let server = &inner.config.server;
        let client = inner.client();
        let token = inner.store.token(server)?;
        client.set_token(token.clone());
        if token.is_some() {
            match client.call(inner.next_rq()?, RequestBody::Login { endpoint: client.endpoint() })? {
                Response::LoggedIn { cert_sha256, .. } => {
                    inner.trust(cert_sha256.as_deref())?;
                    inner.step(vec![PeerInput::AskStatus])?;
                    return Ok(true);
                }
                Response::LoginDenied { reason, .. } => {
                    log::info!("LOGIN was denied ({reason}): registering anew")
                }
                Response::Error { code: ErrorCode::NotRegistered, .. } => {}
                response => return Err(inner.response_error(response)),
            }
        }
        match client.call(inner.next_rq()?, RequestBody::Register { endpoint: client.endpoint() })? {
            Response::Registered { token: given, cert_sha256, .. } => {
                if let Err(error) = inner.trust(cert_sha256.as_deref()) {
                    // The token of the known server is kept, and the registration here ended, whether or not it
                    // responds.
                    let rq = inner.next_rq()?;
                    client.set_token(Some(given));
                    client.post(rq, RequestBody::DeRegister, |_| {});
                    client.set_token(token);
                    return Err(error);
                }
                inner.store.set_token(server, Some(&given))?;
                client.set_token(Some(given));
                inner.step(vec![PeerInput::AskStatus])?;
                Ok(false)
            }
            response => Err(inner.response_error(response)),
        }
    }

    /// DE-REGISTER: the server ends our open deals, and the token is deleted.
    pub fn leave(&self) -> Result<(), NodeError> {
        let inner = &*self.inner;
        inner.client().check_trust()?;
        match inner.client().call(inner.next_rq()?, RequestBody::DeRegister)? {
            Response::DeRegistered { .. } => {
                inner.store.set_token(&inner.config.server, None)?;
                inner.client().set_token(None);
                inner.step(vec![PeerInput::Departed])?;
                Ok(())
            }
            response => Err(inner.response_error(response)),
        }
    }

    /// All items or none.
    pub fn stock(&self, items: Vec<Item>) -> Result<(), NodeError> {
        self.inner.step(vec![PeerInput::Stock(items)])
    }

    pub fn remove(&self, name: &str) -> Result<(), NodeError> {
        self.inner.step(vec![PeerInput::Remove { name: name.to_owned() }])
    }

    /// Returns the number of the search and how many peers were asked.
    pub fn find(&self, item_name: &str, max_price: Cents, description: &str) -> Result<(u64, u64), NodeError> {
        self.search(PeerInput::Find { item_name: item_name.into(), description: description.into(), max_price })
    }

    fn search(&self, input: PeerInput) -> Result<(u64, u64), NodeError> {
        match self.inner.command(input)? {
            Some(Response::Searching { rq, peers }) => Ok((rq, peers)),
            response => Err(self.inner.response_error_or_none(response)),
        }
    }

    /// The cheapest offer for a word, without buying it; `None` if there is none within `at_most`. Also how many peers
    /// were asked.
    pub fn browse(&self, word: &str, at_most: Duration) -> Result<(u64, Option<Purchase>), NodeError> {
        let (rq, peers) = self.search(PeerInput::Browse { word: word.into() })?;
        let give_up_at = Instant::now() + at_most;
        let found = self.inner.core.wait_for(give_up_at, |core| match core.purchase(rq) {
            None => ControlFlow::Break(Err(CommandError(format!("there is no search {rq}")))),
            Some(found) if found.price.is_some() => ControlFlow::Break(Ok(Some(found.clone()))),
            Some(over) if over.is_over() => ControlFlow::Break(Ok(None)),
            Some(_) => ControlFlow::Continue(None),
        });
        match found {
            Some(found) => Ok((peers, found.value?)),
            None => Err(NodeError::TimedOut(format!("no answer after {} s", at_most.as_secs_f64()))),
        }
    }

    /// Sales whose goods are still to be sent.
    pub fn orders(&self) -> Vec<Sale> {
        let is_due = |sale: &&Sale| sale.ship_to.is_some() && sale.is_over();
        self.inner.core.with(|core| core.sales().filter(is_due).cloned().collect()).value
    }

    /// Marks goods as sent and deletes the recipient's address.
    pub fn shipped(&self, rq: u64) -> Result<(), NodeError> {
        self.inner.step(vec![PeerInput::Sent { rq }])
    }

    /// Buys what was found; returns the price.
    pub fn buy(&self, rq: u64) -> Result<Cents, NodeError> {
        // Better checked now than in the settlement, while a seller waits.
        self.inner.wallet().map_err(NodeError::Wallet)?;
        self.command(rq, DealCommand::Buy)?;
        let price = self.inner.core.with(|core| core.purchase(rq).and_then(|purchase| purchase.price));
        Ok(price.value.unwrap_or_default())
    }

    /// Requests something of the server about a deal, if the command needs that.
    pub fn command(&self, rq: u64, command: DealCommand) -> Result<(), NodeError> {
        match self.inner.command(PeerInput::Deal { rq, command })? {
            Some(refused @ Response::Error { .. }) => Err(self.inner.response_error(refused)),
            Some(_) | None => Ok(()),
        }
    }

    /// Our deals as the server sees them; our own records are reconciled.
    pub fn status(&self) -> Result<Vec<DealStatus>, NodeError> {
        match self.inner.command(PeerInput::AskStatus)? {
            Some(Response::Deals { deals, .. }) => Ok(deals),
            response => Err(self.inner.response_error_or_none(response)),
        }
    }

    /// Each with its number of bound units.
    pub fn items(&self) -> Vec<(Item, u64)> {
        let items = |core: &mut CoreState<PeerCore>| {
            core.items().map(|item| (item.clone(), core.bound_units(&item.name))).collect()
        };
        self.inner.core.with(items).value
    }

    pub fn deals(&self) -> (Vec<Purchase>, Vec<Sale>) {
        self.inner.core.with(|core| (core.purchases().cloned().collect(), core.sales().cloned().collect())).value
    }

    pub fn newest_search(&self) -> Option<u64> {
        self.inner.core.with(|core| core.purchases().next_back().map(|purchase| purchase.rq)).value
    }

    /// Waits until a deal has ended, or is found and waits for our BUY. An error if that takes longer than `at_most`.
    pub fn wait(&self, rq: u64, at_most: Duration) -> Result<PeerEvent, NodeError> {
        let inner = &*self.inner;
        let give_up_at = Instant::now() + at_most;
        let ended = inner.core.wait_for(give_up_at, |core| match final_event(core, rq, inner.config.auto_buy) {
            None => ControlFlow::Break(Err(CommandError::no_deal(rq))),
            Some(Some(event)) => ControlFlow::Break(Ok(event)),
            Some(None) => ControlFlow::Continue(None),
        });
        match ended {
            Some(ended) => Ok(ended.value?),
            None => Err(NodeError::TimedOut(format!("deal {rq} has not ended after {} s", at_most.as_secs_f64()))),
        }
    }

    /// Finishes the inputs in the queue.
    pub fn close(&self) {
        let Some((stop, worker)) = self.worker.lock().take() else { return };
        self.inner.client().close();
        drop(stop);
        // An `Err` would be a panic, which `threads::spawn` has caught and logged.
        let _ = worker.join();
        self.inner.store.close();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}

/// The event with which a deal ended; the inner `None`: it goes on; the outer one: there is no such deal.
fn final_event(core: &PeerCore, rq: u64, auto_buy: bool) -> Option<Option<PeerEvent>> {
    let cancelled = |side, item_name, reason: &Option<Arc<str>>| PeerEvent::Cancelled {
        rq,
        side,
        item_name,
        reason: reason.clone().unwrap_or_else(|| "over".into()),
    };
    if let Some(it) = core.purchase(rq) {
        let (item_name, price, seller) = (it.item_name.clone(), it.price.unwrap_or_default(), it.seller.clone());
        return Some(match it.state {
            PurchaseState::Found if !auto_buy => {
                let Goods { item: offer_item, description: offer_description } = it.goods.clone();
                Some(PeerEvent::Found { rq, item_name, price, seller, offer_item, offer_description })
            }
            PurchaseState::Bought => Some(PeerEvent::Bought { rq, item_name, price, seller }),
            PurchaseState::Over => Some(cancelled(Side::Buyer, item_name, &it.reason)),
            _ => None,
        });
    }
    let sale = core.sale(rq)?;
    let item_name = sale.item_name.clone();
    Some(match sale.state {
        super::SaleState::Sold => Some(PeerEvent::Sold { rq, item_name, price: sale.price, payout: None }),
        super::SaleState::Over => Some(cancelled(Side::Seller, item_name, &sale.reason)),
        _ => None,
    })
}
