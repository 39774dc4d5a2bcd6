use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::active_sessions::ActiveSessions;
use super::carts::{ANSWER_RETENTION, ANSWERS_MAX, CartOf, IdempotentRequest, LINES_MAX};
use super::core::BeginRequest;
use super::purchases::BeginResult;
use super::sales::PurchaseWrites;
use super::store::CustomerChange;
use super::*;
use crate::bank::BuiltinGateway;
use crate::shop::ops::{self, Account, LineItem, RemainingQuantity, Role};
use crate::shop::purchase::{Purchase, PurchaseEvent, PurchaseWrite};
use crate::storage::{Appender, CommitState, ReaderExt};

mod accounts;
mod carts;
mod sessions;
mod storing;

const CHEAP: HashCost = HashCost { memory_kib: 8, passes: 1 };

const TIMEOUT: Duration = Duration::from_secs(300);

const NOW: Millis = Millis(1_795_253_400_000);

/// A customer database in a folder that goes away, which may be closed and opened again.
struct Db {
    dir: tempfile::TempDir,
    running: Option<(CustomerDb, Arc<Store>)>,
    config: CustomerDbConfig,
    requests: u64,
}

fn open_store(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(&dir.join("customer.db"), MIGRATIONS).unwrap())
}

impl Db {
    fn new() -> Db {
        Db::with_timeout(TIMEOUT)
    }

    fn with_timeout(session_timeout: Duration) -> Db {
        let dir = tempfile::tempdir().unwrap();
        let config = CustomerDbConfig { session_timeout, password_cost: CHEAP, ..CustomerDbConfig::default() };
        let mut db = Db { dir, running: None, config, requests: 0 };
        db.open();
        db
    }

    fn open(&mut self) {
        let store = open_store(self.dir.path());
        let gateway = Arc::new(BuiltinGateway::open(self.dir.path()).unwrap());
        self.running = Some((CustomerDb::open(Arc::clone(&store), gateway, self.config.clone()).unwrap(), store));
    }

    fn restart(&mut self) {
        self.running = None;
        self.open();
    }

    fn customers(&self) -> &CustomerDb {
        &self.running.as_ref().unwrap().0
    }

    fn store(&self) -> &Arc<Store> {
        &self.running.as_ref().unwrap().1
    }

    fn ask<T: DeserializeOwned>(&self, op: CustomerOp) -> Result<T, ErrorCode> {
        let answer = self.customers().handle(op).map_err(|refusal| refusal.code)?;
        Ok(serde_json::from_str(&answer).unwrap())
    }

    fn request(&mut self) -> String {
        self.requests += 1;
        format!("request {}", self.requests)
    }

    fn create(&mut self, role: Role, username: &str) -> Result<Account, ErrorCode> {
        let request = self.request();
        self.ask(create(&request, role, username))
    }

    fn login(&self, role: Role, username: &str) -> String {
        self.ask::<NewSession>(login(role, username, "secret", "127.0.0.1")).unwrap().sid
    }

    /// A new buyer, signed in.
    fn buyer(&mut self, username: &str) -> String {
        self.create(Role::Buyer, username).unwrap();
        self.login(Role::Buyer, username)
    }

    fn touch(&self, role: Role, sid: &str) -> Result<String, ErrorCode> {
        self.ask::<Account>(CustomerOp::Touch { role, sid: sid.to_owned() }).map(|account| account.username)
    }

    fn logout(&self, sid: &str) -> Result<(), ErrorCode> {
        self.ask(CustomerOp::Logout { role: Role::Buyer, sid: sid.to_owned() })
    }

    fn add(&mut self, sid: &str, uses_saved_cart: bool, item_id: &str, quantity: u32) -> Result<(), ErrorCode> {
        let request = self.request();
        self.ask(add(&request, sid, uses_saved_cart, item_id, quantity))
    }

    fn remove(
        &mut self,
        sid: &str,
        uses_saved_cart: bool,
        item_id: &str,
        quantity: Option<u32>,
    ) -> Result<u32, ErrorCode> {
        let (request, sid, item_id) = (self.request(), sid.to_owned(), item_id.to_owned());
        let op = CustomerOp::RemoveFromCart { request, sid, uses_saved_cart, item_id, quantity };
        self.ask::<RemainingQuantity>(op).map(|left| left.quantity)
    }

    fn save(&self, sid: &str, uses_saved_cart: bool) -> Result<(), ErrorCode> {
        self.ask(CustomerOp::InSession { sid: sid.to_owned(), uses_saved_cart, call: CustomerCall::SaveCart })
    }

    fn clear(&self, sid: &str, uses_saved_cart: bool) -> Result<(), ErrorCode> {
        self.ask(CustomerOp::InSession { sid: sid.to_owned(), uses_saved_cart, call: CustomerCall::ClearCart })
    }

    /// As `1-1 x 2, 1-2 x 5`.
    fn cart(&self, sid: &str, uses_saved_cart: bool) -> Result<String, ErrorCode> {
        let lines: Vec<LineItem> =
            self.ask(CustomerOp::InSession { sid: sid.to_owned(), uses_saved_cart, call: CustomerCall::ShowCart })?;
        Ok(lines.iter().map(|line| format!("{} x {}", line.item_id, line.quantity)).collect::<Vec<_>>().join(", "))
    }

    fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        self.store().read(|reader| reader.first(&sql, &[], |row| row.int(0))).unwrap().unwrap()
    }

    /// Makes every chained change from here on fail, until memory is built anew.
    fn break_chain(&self) {
        let memory = self.customers().inner.memory.current();
        let broken = {
            let core = memory.lock();
            core.journal.appender().append(|_tx| Err(StoreError::Rejected("on purpose".to_owned())))
        };
        assert!(broken.wait().is_err());
    }
}

fn create(request: &str, role: Role, username: &str) -> CustomerOp {
    let (request, username) = (request.to_owned(), username.to_owned());
    CustomerOp::Create { request, role, username, password: "secret".to_owned(), name: None, source: String::new() }
}

fn login(role: Role, username: &str, password: &str, source: &str) -> CustomerOp {
    let (username, password, source) = (username.to_owned(), password.to_owned(), source.to_owned());
    CustomerOp::Login { role, username, password, source }
}

fn add(request: &str, sid: &str, uses_saved_cart: bool, item_id: &str, quantity: u32) -> CustomerOp {
    let (request, sid, item_id) = (request.to_owned(), sid.to_owned(), item_id.to_owned());
    CustomerOp::AddToCart { request, sid, uses_saved_cart, item_id, quantity, at_most: 10 }
}

/// The core over a store, with a time that the test sets.
struct Parts {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    core: Mutex<CustomerCore<StoreJournal>>,
}

fn load_core(store: &Arc<Store>, now: Millis) -> CustomerCore<StoreJournal> {
    let journal = StoreJournal::new(Appender::begin(Arc::clone(store)), Clock::start());
    let snapshot = store.read(|reader| store::load(reader, TIMEOUT)).unwrap();
    CustomerCore::load(journal, TIMEOUT, FeeRate::default(), snapshot, now)
}

/// A session's own cart, or the user's.
fn cart_of(sid: &str, uses_saved_cart: bool) -> CartOf {
    CartOf::new(sid, uses_saved_cart)
}

fn add_to_cart(
    core: &mut CustomerCore<StoreJournal>,
    now: Millis,
    cart: CartOf,
    request: &str,
    line: &LineItem,
    at_most: u32,
) -> PendingResult<(), CommitHandle> {
    core.with_cart(now, cart, |buyer, journal, cart| {
        buyer.add(journal, cart, IdempotentRequest { id: request, now }, line, at_most)
    })
}

impl Parts {
    fn new() -> Parts {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path());
        let add = |name: &'static str| {
            store.write(move |tx| store::add_user(tx, Role::Buyer, name, None, ("", ""), NOW)).unwrap()
        };
        assert_eq!((add("ann").user_id, add("bob").user_id), (1, 2));
        let core = Mutex::new(load_core(&store, NOW));
        Parts { _dir: dir, store, core }
    }

    fn open(&self, sid: &str, user_id: u64, now: Millis) -> ShopResult<()> {
        let account = self.store.read(|reader| store::account_by_id(reader, Role::Buyer, user_id)).unwrap().unwrap();
        let mut saved = None;
        loop {
            let key = SessionKey::of(sid);
            let opening = self.core.lock().open_session(now, Role::Buyer, account.clone(), key, saved.take());
            match opening {
                OpenSessionResult::Decided((answer, newest)) => {
                    newest.wait().unwrap();
                    return answer;
                }
                OpenSessionResult::ReadSavedCart { evictions } => saved = Some(self.saved_cart(user_id, evictions)),
            }
        }
    }

    fn saved_cart(&self, user_id: u64, evictions: u64) -> SavedCart {
        let lines = self.store.read(|reader| store::saved_cart(reader, user_id)).unwrap();
        SavedCart { lines: lines.into_iter().collect(), evictions }
    }

    fn end(&self, sid: &str, now: Millis) -> PendingResult<(), CommitHandle> {
        self.core.lock().end_session(now, Role::Buyer, sid)
    }

    fn expire(&self, now: Millis) -> (usize, CommitHandle) {
        self.core.lock().expire(now)
    }

    fn sizes(&self) -> (usize, usize) {
        self.core.lock().sessions.sizes()
    }

    fn touch(&self, sid: &str, now: Millis) {
        self.core.lock().use_session(now, Role::Buyer, &SessionKey::of(sid)).map_err(|(refusal, _)| refusal).unwrap();
    }

    /// Writes down last uses.
    fn flush(&self, now: Millis) {
        let uses = self.core.lock().sessions.unsaved_uses();
        self.store
            .write({
                let uses = uses.clone();
                move |tx| {
                    store::write_last_uses(tx, &uses)?;
                    store::write_flush_time(tx, now)
                }
            })
            .unwrap();
        self.core.lock().sessions.saved_uses(&uses);
    }

    fn is_alive(&self, sid: &str, now: Millis) -> bool {
        self.core.lock().look(now, sid).is_ok()
    }

    fn add(
        &self,
        sid: &str,
        uses_saved_cart: bool,
        request: &str,
        now: Millis,
        at_most: u32,
        line: &LineItem,
    ) -> ShopResult<()> {
        let (answer, newest) =
            add_to_cart(&mut self.core.lock(), now, cart_of(sid, uses_saved_cart), request, line, at_most);
        newest.wait().unwrap();
        answer
    }

    fn put(&self, sid: &str, uses_saved_cart: bool, item_id: &str, quantity: u32) {
        let line = LineItem { item_id: item_id.to_owned(), quantity };
        self.add(sid, uses_saved_cart, Token::random().reveal(), NOW, u32::MAX, &line).unwrap();
    }

    fn cart(&self, sid: &str, uses_saved_cart: bool) -> String {
        let lines = self
            .core
            .lock()
            .with_cart(NOW, cart_of(sid, uses_saved_cart), |buyer, journal, cart| buyer.show(journal, cart))
            .0
            .unwrap();
        lines.iter().map(|line| format!("{} x {}", line.item_id, line.quantity)).collect::<Vec<_>>().join(", ")
    }

    /// As after a crash.
    fn crash(&mut self, now: Millis) {
        self.store.sync_all();
        self.core = Mutex::new(load_core(&self.store, now));
    }
}

/// These lines were bought by the first user; `also` is stored with that.
fn bought(parts: &Parts, sid: &str, lines: &[(&str, u32)], also: Vec<CustomerChange>) -> CommitHandle {
    let lines: Vec<LineItem> = lines
        .iter()
        .map(|(item_id, quantity)| LineItem { item_id: (*item_id).to_owned(), quantity: *quantity })
        .collect();
    let mut core = parts.core.lock();
    let CustomerCore { sessions: active_sessions, journal, .. } = &mut *core;
    let active_sessions: &mut ActiveSessions<CommitHandle> = active_sessions;
    active_sessions.buyer_mut(1).unwrap().remove_purchased(journal, &SessionKey::of(sid), &lines, also)
}
