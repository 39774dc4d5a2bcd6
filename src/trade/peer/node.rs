//! A running peer: the core, the client and the store, joined in one fixed order: store, then
//! acknowledge, then send, then tell the person.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::store::{self, PeerStore, PeerStoreError};
use super::{Core, Event, Item, Note, Purchase, PurchaseState, Refused, Sale};
use crate::model::{Cents, Clock, Name};
use crate::net::threads;
use crate::storage::{Durable, SharedCore, StoreError};
use crate::trade::client::messages::Answer;
use crate::trade::client::{self, Client, ClientError, OpenError};
use crate::trade::wire::{Ask, Code, DealStatus, Goods, Side};

mod ear;
#[cfg(test)]
mod tests;
mod trust;
mod work;

use self::ear::Ear;

/// Pushes that wait for their turn; one past that is not acknowledged, and so comes again.
const PUSHES_MAX: usize = 1_024;
/// Events that share one transaction at most.
const BATCH_MAX: usize = 64;
/// How often quiet deals are looked for.
const TICK_EVERY: Duration = Duration::from_secs(5);

/// What a peer is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is and where the server is.
    pub client: client::Config,
    /// The server as the person wrote it: its token and fingerprint are kept under this name.
    pub server: String,
    /// Where it keeps things.
    pub data_dir: PathBuf,
    /// What it pays with.
    pub wallet: Option<PathBuf>,
    /// Whatever is FOUND is bought.
    pub auto_buy: bool,
    /// Settle without TLS, if the server says so too.
    pub plaintext: bool,
    /// The server's fingerprint, known beforehand.
    pub server_cert: Option<String>,
    /// The server is known beforehand as one without a certificate: one that shows any is another.
    pub no_server_cert: bool,
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The command makes no sense as things stand.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The server does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server says no.
    #[error("{reason}")]
    Server {
        /// For programs.
        code: Code,
        /// For people.
        reason: String,
    },
    /// The server does not take us.
    #[error("the server at {server} does not take {name:?}: {reason}")]
    Denied {
        /// The server.
        server: String,
        /// Our name.
        name: Name,
        /// Why.
        reason: String,
    },
    /// The server is not who it was, or does not settle as we want.
    #[error("{0}")]
    Security(String),
    /// The wallet is missing or wrong.
    #[error("{0}")]
    Wallet(String),
    /// It could not be stored, and so it was not done.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data dir cannot be used.
    #[error(transparent)]
    DataDir(#[from] PeerStoreError),
    /// The sockets cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// It did not come about in time.
    #[error("{0}")]
    TimedOut(String),
}

/// A running peer. Closed when dropped.
pub struct Node {
    inner: Arc<Inner>,
    worker: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

struct Inner {
    settings: Settings,
    store: PeerStore,
    clock: Clock,
    core: Durable<SharedCore<Core>>,
    /// Not bounded by itself: pushes are (see `push`), and answers by the client's bound on requests.
    events: Sender<Event>,
    client: OnceLock<Client>,
    observer: Box<dyn Fn(&Note) + Send + Sync>,
}

impl Node {
    /// Opens the data dir and the sockets. [`Node::join`] then makes it part of the trade. `observer`
    /// hears what happens, on the peer's threads.
    ///
    /// # Errors
    /// Which part cannot be had, and what to do.
    pub fn open(settings: Settings, observer: impl Fn(&Note) + Send + Sync + 'static) -> Result<Node, NodeError> {
        let store = PeerStore::open(&settings.data_dir, &settings.client.name)?;
        let (first_number, auto_buy) = (store.first_number(), settings.auto_buy);
        let core = Durable::open_shared("peer", Arc::clone(store.store()), move |store, _before| {
            Ok(Core::new(store::load(store, first_number)?, auto_buy))
        })?;
        let (events, incoming) = crossbeam_channel::unbounded();
        let inner = Arc::new(Inner {
            store,
            clock: Clock::start(),
            core,
            events,
            client: OnceLock::new(),
            observer: Box::new(observer),
            settings,
        });
        let client = Client::open(inner.settings.client.clone(), Arc::new(Ear(Arc::downgrade(&inner))))?;
        inner.client.get_or_init(|| client);
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let worker = {
            let inner = Arc::clone(&inner);
            threads::spawn("peer", move || inner.work(&incoming, &stopped)).map_err(NodeError::Thread)?
        };
        Ok(Node { inner, worker: Mutex::new(Some((stop, worker))) })
    }

    /// The sockets' side.
    pub fn client(&self) -> &Client {
        self.inner.client()
    }

    /// LOGIN with the token that is kept, else (or if the server does not know it any more) REGISTER;
    /// then asks what was missed. True if it was a LOGIN.
    ///
    /// # Errors
    /// Why the server does not take us, or why we do not take the server.
    pub fn join(&self) -> Result<bool, NodeError> {
        let inner = &*self.inner;
        let server = &inner.settings.server;
        let client = inner.client();
        let token = inner.store.token(server)?;
        client.set_token(token.clone());
        if token.is_some() {
            match client.call(inner.number()?, Ask::Login(client.reach()))? {
                Answer::LoggedIn { cert_sha256, .. } => {
                    inner.trust(cert_sha256.as_deref())?;
                    inner.step(vec![Event::AskStatus])?;
                    return Ok(true);
                }
                Answer::LoginDenied { reason, .. } => log::info!("LOGIN was denied ({reason}): registering anew"),
                Answer::Error { code: Code::NotRegistered, .. } => {}
                answer => return Err(inner.unexpected(answer)),
            }
        }
        match client.call(inner.number()?, Ask::Register(client.reach()))? {
            Answer::Registered { token: given, cert_sha256, .. } => {
                if let Err(error) = inner.trust(cert_sha256.as_deref()) {
                    // The token of the server that we know stays; the name is not left to this one. Whether
                    // it hears of that is its own affair.
                    let rq = inner.number()?;
                    client.set_token(Some(given));
                    client.post(rq, Ask::DeRegister, |_| {});
                    client.set_token(token);
                    return Err(error);
                }
                inner.store.set_token(server, Some(&given))?;
                client.set_token(Some(given));
                inner.step(vec![Event::AskStatus])?;
                Ok(false)
            }
            answer => Err(inner.unexpected(answer)),
        }
    }

    /// DE-REGISTER: the server ends our open deals; the token is forgotten.
    ///
    /// # Errors
    /// Why the server does not let us go.
    pub fn leave(&self) -> Result<(), NodeError> {
        let inner = &*self.inner;
        inner.client().check_trust()?;
        match inner.client().call(inner.number()?, Ask::DeRegister)? {
            Answer::DeRegistered { .. } => {
                inner.store.set_token(&inner.settings.server, None)?;
                inner.client().set_token(None);
                inner.step(vec![Event::Left])?;
                Ok(())
            }
            answer => Err(inner.unexpected(answer)),
        }
    }

    /// Puts items on sale: all or none.
    ///
    /// # Errors
    /// Why not.
    pub fn stock(&self, items: Vec<Item>) -> Result<(), NodeError> {
        self.inner.step(vec![Event::Stock(items)])
    }

    /// Takes an item off sale.
    ///
    /// # Errors
    /// Why not.
    pub fn remove(&self, name: &str) -> Result<(), NodeError> {
        self.inner.step(vec![Event::Remove { name: name.to_owned() }])
    }

    /// LOOKING_FOR; answers our number for it and how many peers were asked.
    ///
    /// # Errors
    /// Why not.
    pub fn find(&self, item_name: &str, max_price: Cents, description: &str) -> Result<(u64, u64), NodeError> {
        let event = Event::Find { item_name: item_name.into(), description: description.into(), max_price };
        match self.inner.command(event)? {
            Some(Answer::Searching { rq, peers }) => Ok((rq, peers)),
            answer => Err(self.inner.unexpected_or_none(answer)),
        }
    }

    /// Who sells what: the cheapest offer of all that a word finds, or nothing where nobody has any. Nothing
    /// is bought. Also answers how many peers were asked.
    ///
    /// # Errors
    /// Why not.
    pub fn browse(&self, word: &str, at_most: Duration) -> Result<(u64, Option<Purchase>), NodeError> {
        let peers = match self.inner.command(Event::Browse { word: word.into() })? {
            Some(Answer::Searching { rq, peers }) => (rq, peers),
            answer => return Err(self.inner.unexpected_or_none(answer)),
        };
        let (rq, peers) = peers;
        let give_up_at = Instant::now() + at_most;
        let found = self.inner.core.wait_for(give_up_at, |core| match core.purchase(rq) {
            None => ControlFlow::Break(Err(Refused(format!("there is no search {rq}")))),
            Some(found) if found.price.is_some() => ControlFlow::Break(Ok(Some(found.clone()))),
            Some(over) if over.is_over() => ControlFlow::Break(Ok(None)),
            Some(_) => ControlFlow::Continue(None),
        });
        match found {
            Some(found) => Ok((peers, found.value?)),
            None => Err(NodeError::TimedOut(format!("no answer after {} s", at_most.as_secs_f64()))),
        }
    }

    /// What was sold and is still to be sent, with where to.
    pub fn orders(&self) -> Vec<Sale> {
        let is_to_be_sent = |sale: &&Sale| sale.ship_to.is_some() && sale.is_over();
        self.inner.core.with(|core| core.sales().filter(is_to_be_sent).cloned().collect()).value
    }

    /// What was sold has been sent: where to is forgotten.
    ///
    /// # Errors
    /// Why there is nothing to be sent.
    pub fn shipped(&self, rq: u64) -> Result<(), NodeError> {
        self.inner.step(vec![Event::Sent { rq }])
    }

    /// BUY what was found; answers the price.
    ///
    /// # Errors
    /// Why not.
    pub fn buy(&self, rq: u64) -> Result<Cents, NodeError> {
        // Better now than in the settlement, when a seller waits.
        self.inner.wallet().map_err(NodeError::Wallet)?;
        match self.inner.command(Event::Buy { rq })? {
            Some(Answer::Buying { .. }) => {
                let price = self.inner.core.with(|core| core.purchase(rq).and_then(|purchase| purchase.price));
                Ok(price.value.unwrap_or_default())
            }
            answer => Err(self.inner.unexpected_or_none(answer)),
        }
    }

    /// CANCEL, on either side.
    ///
    /// # Errors
    /// Why not.
    pub fn cancel(&self, rq: u64) -> Result<(), NodeError> {
        match self.inner.command(Event::Cancel { rq })? {
            Some(Answer::Cancelled { .. }) | None => Ok(()),
            Some(answer) => Err(self.inner.unexpected(answer)),
        }
    }

    /// How the server sees our deals; ours are squared with it.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn status(&self) -> Result<Vec<DealStatus>, NodeError> {
        match self.inner.command(Event::AskStatus)? {
            Some(Answer::Deals { deals, .. }) => Ok(deals),
            answer => Err(self.inner.unexpected_or_none(answer)),
        }
    }

    /// Items, each with the number of units that are bound.
    pub fn items(&self) -> Vec<(Item, u64)> {
        self.inner.core.with(|core| core.items().map(|item| (item.clone(), core.bound(&item.name))).collect()).value
    }

    /// Our record of all deals.
    pub fn deals(&self) -> (Vec<Purchase>, Vec<Sale>) {
        self.inner.core.with(|core| (core.purchases().cloned().collect(), core.sales().cloned().collect())).value
    }

    /// The number of our newest search.
    pub fn newest_search(&self) -> Option<u64> {
        self.inner.core.with(|core| core.purchases().next_back().map(|purchase| purchase.rq)).value
    }

    /// Waits until nothing more happens to a deal without us: it has ended, or it is found and ours to
    /// buy. Answers what it came to.
    ///
    /// # Errors
    /// If that takes longer, or there is no such deal.
    pub fn wait(&self, rq: u64, at_most: Duration) -> Result<Note, NodeError> {
        let inner = &*self.inner;
        let give_up_at = Instant::now() + at_most;
        let ended = inner.core.wait_for(give_up_at, |core| match outcome(core, rq, inner.settings.auto_buy) {
            None => ControlFlow::Break(Err(Refused(format!("there is no deal {rq}; `deals` lists yours")))),
            Some(Some(note)) => ControlFlow::Break(Ok(note)),
            Some(None) => ControlFlow::Continue(None),
        });
        match ended {
            Some(ended) => Ok(ended.value?),
            None => {
                Err(NodeError::TimedOut(format!("deal {rq} has not ended after {} s", at_most.as_secs_f64())))
            }
        }
    }

    /// Ends everything: the sockets, then what was under way, then the store.
    pub fn close(&self) {
        let Some((stop, worker)) = self.worker.lock().take() else { return };
        self.inner.client().close();
        drop(stop);
        // An Err would be a panic, which `threads::spawn` has caught and logged.
        let _ = worker.join();
        self.inner.store.close();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}

/// Nothing: no such deal. Nothing within: it goes on.
fn outcome(core: &Core, rq: u64, auto_buy: bool) -> Option<Option<Note>> {
    let reason = |reason: &Option<Arc<str>>| reason.clone().unwrap_or_else(|| "over".into());
    if let Some(it) = core.purchase(rq) {
        let (item_name, price, seller) = (it.item_name.clone(), it.price.unwrap_or_default(), it.seller.clone());
        return Some(match it.state {
            PurchaseState::Found if !auto_buy => {
                let Goods { item: offer_item, description: offer_description } = it.goods.clone();
                Some(Note::Found { rq, item_name, price, seller, offer_item, offer_description })
            }
            PurchaseState::Bought => Some(Note::Bought { rq, item_name, price, seller }),
            PurchaseState::Over => {
                let side = Side::Buyer;
                Some(Note::Cancelled { rq, side, item_name, reason: reason(&it.reason) })
            }
            _ => None,
        });
    }
    let sale = core.sale(rq)?;
    let item_name = sale.item_name.clone();
    Some(match sale.state {
        super::SaleState::Sold => Some(Note::Sold { rq, item_name, price: sale.price, payout: None }),
        super::SaleState::Over => {
            let side = Side::Seller;
            Some(Note::Cancelled { rq, side, item_name, reason: reason(&sale.reason) })
        }
        _ => None,
    })
}
