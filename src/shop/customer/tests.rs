use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Instant;

use proptest::prelude::*;
use serde::de::DeserializeOwned;

use super::active_sessions::ActiveSessions;
use super::carts::{ANSWER_RETENTION, ANSWERS_MAX, CartOf, IdempotentRequest, LINES_MAX};
use super::core::{BeginRequest, CartRequest};
use super::purchases::BeginResult;
use super::sales::PurchaseWrites;
use super::store::CustomerChange;
use super::*;
use crate::bank::BuiltinGateway;
use crate::shop::ops::{self, Account, LineItem, RemainingQuantity, Role};
use crate::shop::purchase::{Purchase, PurchaseEvent, PurchaseWrite};
use crate::storage::{Appender, CommitState, ReaderExt};

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
    Arc::new(Store::open(&dir.join(FILE_NAME), MIGRATIONS).unwrap())
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
            let mut core = memory.lock();
            core.parts().1.appender().append(|_tx| Err(StoreError::Rejected("on purpose".to_owned())))
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

// Accounts.

#[test]
fn a_user_name_is_unique_within_its_role_and_a_repeated_request_gets_the_same_account() {
    let mut db = Db::new();
    let first: Account = db.ask(create("r1", Role::Buyer, "ann")).unwrap();
    assert_eq!((first.user_id, first.name.as_str()), (1, "ann"));
    assert_eq!(db.ask(create("r1", Role::Buyer, "ann")), Ok(first.clone()));
    db.restart();
    assert_eq!(db.ask(create("r1", Role::Buyer, "ann")), Ok(first.clone()));
    assert_eq!(db.create(Role::Buyer, "ann"), Err(ErrorCode::UsernameTaken));
    assert_eq!(db.create(Role::Seller, "ann").map(|account| account.user_id), Ok(1));
    assert_eq!(db.create(Role::Buyer, "bob").map(|account| account.user_id), Ok(2));
    assert_eq!(db.count("shop_user"), 3);

    let find = |username: Option<&str>, user_id| {
        let username = username.map(str::to_owned);
        db.ask::<Account>(CustomerOp::FindUser { role: Role::Buyer, username, user_id })
    };
    assert_eq!(find(Some("ann"), None), Ok(first.clone()));
    assert_eq!(find(None, Some(1)), Ok(first));
    for (username, user_id) in [(Some("Ann"), None), (None, Some(3)), (None, Some(u64::MAX)), (None, None)] {
        assert_eq!(find(username, user_id), Err(ErrorCode::NotFound));
    }
}

#[test]
fn ids_are_never_given_twice_not_even_after_a_backup() {
    let mut db = Db::new();
    let id = |db: &mut Db, role, name: &str| db.create(role, name).unwrap().user_id;
    assert_eq!((id(&mut db, Role::Buyer, "a"), id(&mut db, Role::Buyer, "b")), (1, 2));
    db.config.first_id_range = 1;
    db.restart();
    // Of each role, also of one that nobody had.
    assert_eq!(id(&mut db, Role::Buyer, "c"), 1 + ID_RANGE_SIZE);
    assert_eq!(id(&mut db, Role::Seller, "c"), 1 + ID_RANGE_SIZE);
    // The same stretch again is not begun anew.
    db.restart();
    assert_eq!(id(&mut db, Role::Buyer, "d"), 2 + ID_RANGE_SIZE);
    db.config.first_id_range = 0;
    db.restart();
    assert_eq!(id(&mut db, Role::Buyer, "e"), 3 + ID_RANGE_SIZE);
}

#[test]
fn many_at_once_create_one_account_a_name() {
    let db = Db::new();
    let created: usize = thread::scope(|scope| {
        let db = &db;
        let threads: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || db.ask::<Account>(create(&n.to_string(), Role::Buyer, "ann"))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count()
    });
    assert_eq!((created, db.count("shop_user")), (1, 1));
}

#[test]
fn a_user_is_one_however_name_and_password_are_spelled() {
    let mut db = Db::new();
    let (composed, apart) = ("zoë", "zoe\u{308}");
    let mut op = create("r", Role::Buyer, apart);
    if let CustomerOp::Create { password, .. } = &mut op {
        *password = "Gro\u{308}ße".to_owned();
    }
    let made: Account = db.ask(op).unwrap();
    assert_eq!(made.username, apart, "as it was given");
    assert_eq!(db.create(Role::Buyer, composed), Err(ErrorCode::UsernameTaken));
    for spelled in [composed, apart] {
        let logged_in: NewSession = db.ask(login(Role::Buyer, spelled, "Größe", "::1")).unwrap();
        assert_eq!(logged_in.user_id, made.user_id);
    }
    let hidden = db.customers().handle(create("s", Role::Buyer, "zo\u{200b}e")).unwrap_err();
    assert!(hidden.message.starts_with("username: "), "{hidden:?}");
}

#[test]
fn users_of_before_keys_are_found_by_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let (composed, apart) = ("zoë", "zoe\u{308}");
    let kept = PasswordHasher::with_own_threads(CHEAP, 1)
        .unwrap()
        .hash("secret", crate::net::source::key_of([127, 0, 0, 1].into()))
        .unwrap();
    // As the version before wrote them: also two of two spellings.
    let before = Store::open(&dir.path().join(FILE_NAME), &MIGRATIONS[..MIGRATIONS.len() - 1]).unwrap();
    before
        .write(move |tx| -> Result<(), StoreError> {
            for (id, role, name) in
                [(1, "buyer", "ann"), (2, "buyer", apart), (1, "seller", apart), (2, "seller", composed)]
            {
                tx.execute(
                    "INSERT INTO shop_user (role, user_id, username, password, request, created_at)
                     VALUES ($1, $2, $3, $4, 'r', 1)",
                    &[role.into(), id.into(), name.into(), (&kept).into()],
                )?;
            }
            Ok(())
        })
        .unwrap();
    drop(before);
    let mut db = Db {
        dir,
        running: None,
        config: CustomerDbConfig { password_cost: CHEAP, ..CustomerDbConfig::default() },
        requests: 0,
    };
    db.open();
    let id = |role, name: &str| db.ask::<NewSession>(login(role, name, "secret", "::1")).map(|user| user.user_id);
    assert_eq!(id(Role::Buyer, "ann"), Ok(1));
    assert_eq!((id(Role::Buyer, composed), id(Role::Buyer, apart)), (Ok(2), Ok(2)));
    assert_eq!((id(Role::Seller, composed), id(Role::Seller, apart)), (Ok(2), Ok(1)), "each is found as it is written");
}

#[test]
fn two_hundred_who_come_at_once_as_in_the_documents_all_get_in() {
    let db = Db::new();
    // Each signs in, makes the account when that is refused, and signs in again; all of a role share a name.
    let refused: Vec<ErrorCode> = thread::scope(|scope| {
        let db = &db;
        let threads: Vec<_> = (0..200)
            .map(|n: usize| {
                scope.spawn(move || {
                    let role = [Role::Buyer, Role::Seller][n % 2];
                    let enter = || db.ask::<NewSession>(login(role, "one", "secret", "127.0.0.1"));
                    if enter().is_ok() {
                        return None;
                    }
                    drop(db.ask::<Account>(create(&n.to_string(), role, "one")));
                    enter().err()
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(refused, []);
    assert_eq!((db.count("shop_user"), db.count("shop_session") >= 200), (2, true));
}

#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    let refused = |op| db.customers().handle(op).unwrap_err();
    let wrong = refused(login(Role::Buyer, "ann", "secres", "::1"));
    assert_eq!(wrong.code, ErrorCode::BadCredentials);
    assert_eq!(refused(login(Role::Buyer, "nobody", "secret", "::1")), wrong);
    assert_eq!(refused(login(Role::Seller, "ann", "secret", "::1")), wrong, "a buyer is no seller");
    assert!(refused(login(Role::Buyer, "", "secret", "::1")).message.starts_with("username: "));
    assert!(refused(login(Role::Buyer, "ann", &"x".repeat(257), "::1")).message.starts_with("password: "));
    let nameless = CustomerOp::Create {
        request: "r".to_owned(),
        role: Role::Buyer,
        username: "eve".to_owned(),
        password: "p".to_owned(),
        name: Some("a\nb".to_owned()),
        source: String::new(),
    };
    assert!(refused(nameless).message.starts_with("name: "));
}

#[test]
fn who_fails_ten_times_waits_but_only_that_user_from_there() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    db.create(Role::Buyer, "bob").unwrap();
    for _ in 0..10 {
        let guess = db.ask::<NewSession>(login(Role::Buyer, "ann", "guess", "10.0.0.1"));
        assert_eq!(guess.map(|_| ()), Err(ErrorCode::BadCredentials));
    }
    let try_it = |username, source| db.ask::<NewSession>(login(Role::Buyer, username, "secret", source)).map(|_| ());
    assert_eq!(try_it("ann", "10.0.0.1"), Err(ErrorCode::Busy), "also with the right password");
    assert_eq!(try_it("ann", "10.0.0.2"), Ok(()));
    assert_eq!(try_it("bob", "10.0.0.1"), Ok(()));
}

#[test]
fn guesses_at_once_are_not_more_than_ten_that_are_answered() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    let told = thread::scope(|scope| {
        let db = &db;
        let guess = || db.ask::<NewSession>(login(Role::Buyer, "ann", "guess", "10.0.0.1")).map(|_| ());
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(guess)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|told| *told == Err(ErrorCode::BadCredentials))
            .count()
    });
    assert_eq!(told, 10);
}

#[test]
fn neither_passwords_nor_session_ids_are_in_the_file() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.add(&sid, false, "1-1", 1).unwrap();
    let kept = db
        .store()
        .read(|reader| reader.first("SELECT password FROM shop_user", &[], |row| Ok(row.text(0)?.to_owned())));
    assert!(kept.unwrap().unwrap().starts_with("$argon2id$"));
    let dir = db.dir.path().to_owned();
    db.running = None;
    let file = std::fs::read(dir.join(FILE_NAME)).unwrap();
    let holds = |text: &str| file.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(holds("ann") && holds(&SessionKey::of(&sid).to_text()));
    assert!(!holds("secret") && !holds(&sid));
}

#[test]
fn an_operator_sees_who_has_an_account() {
    let mut db = Db::new();
    for (role, username) in [(Role::Seller, "sue"), (Role::Buyer, "bob"), (Role::Buyer, "ann")] {
        db.create(role, username).unwrap();
    }
    let mut shown = Vec::new();
    let mut show = |role: Role, account: Account, created_at: Millis| {
        assert!(created_at.until(db.config.clock.now()) < Duration::from_secs(600));
        shown.push(format!("{} {} {}", role.as_str(), account.user_id, account.username));
    };
    db.store().read(|reader| store::for_each_user(reader, &mut show)).unwrap();
    assert_eq!(shown, ["buyer 1 bob", "buyer 2 ann", "seller 1 sue"]);
}

// Sessions.

#[test]
fn sessions_are_many_belong_to_one_role_and_end_one_by_one() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    assert_eq!(db.touch(Role::Buyer, &one).as_deref(), Ok("ann"));
    assert_eq!(db.touch(Role::Seller, &one), Err(ErrorCode::Forbidden));
    assert_eq!(db.touch(Role::Buyer, "no such id"), Err(ErrorCode::SessionExpired));
    let shown: ops::SessionInfo = db.ask(CustomerOp::Validate { sid: one.clone() }).unwrap();
    assert_eq!(shown, ops::SessionInfo { user: "ann".to_owned(), role: Role::Buyer });

    let as_seller: Result<(), ErrorCode> = db.ask(CustomerOp::Logout { role: Role::Seller, sid: one.clone() });
    assert_eq!(as_seller, Err(ErrorCode::Forbidden));
    assert_eq!(db.logout(&one), Ok(()));
    assert_eq!(db.logout(&one), Err(ErrorCode::SessionExpired));
    assert_eq!(db.touch(Role::Buyer, &one), Err(ErrorCode::SessionExpired));
    assert_eq!(db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: one.clone() }), Err(ErrorCode::SessionExpired));
    assert_eq!(db.touch(Role::Buyer, &two).as_deref(), Ok("ann"));
    db.restart();
    assert_eq!(db.touch(Role::Buyer, &one), Err(ErrorCode::SessionExpired), "a logout outlives a restart");
    assert_eq!(db.touch(Role::Buyer, &two).as_deref(), Ok("ann"), "so does a session");
}

#[test]
fn a_sellers_session_has_no_cart() {
    let mut db = Db::new();
    db.create(Role::Seller, "sue").unwrap();
    let sid = db.login(Role::Seller, "sue");
    assert_eq!(db.touch(Role::Seller, &sid).as_deref(), Ok("sue"));
    assert_eq!(db.cart(&sid, false), Err(ErrorCode::Forbidden));
    assert_eq!(db.add(&sid, true, "1-1", 1), Err(ErrorCode::Forbidden));
    db.restart();
    assert_eq!(db.touch(Role::Seller, &sid).as_deref(), Ok("sue"));
    assert_eq!(db.ask(CustomerOp::Logout { role: Role::Seller, sid: sid.clone() }), Ok(()));
    assert_eq!((db.touch(Role::Seller, &sid), db.count("shop_session")), (Err(ErrorCode::SessionExpired), 0));
}

#[test]
fn the_background_thread_ends_sessions_that_nobody_uses() {
    let timeout = Duration::from_millis(1500);
    let mut db = Db::with_timeout(timeout);
    let (used, unused) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&unused, false, "1-1", 1).unwrap();
    let begun = Instant::now();
    let mut used_at = begun;
    while db.customers().session_and_buyer_counts().0 == 2 {
        let alive = db.touch(Role::Buyer, &used);
        // (Unless this machine was away for so long.)
        assert!(alive.as_deref() == Ok("ann") || used_at.elapsed() >= timeout, "it is used all the time");
        used_at = Instant::now();
        assert!(begun.elapsed() < timeout * 20, "the other one does not end");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= timeout, "after {:?}", begun.elapsed());
    assert_eq!(db.touch(Role::Buyer, &unused), Err(ErrorCode::SessionExpired));
    assert_eq!((db.count("shop_session"), db.count("shop_cart")), (1, 0));
    // Whether it is alive may be asked without keeping it so.
    while db.customers().session_and_buyer_counts() != (0, 0) {
        let _ = db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: used.clone() });
        assert!(begun.elapsed() < timeout * 40, "looking at it keeps it alive");
        thread::sleep(Duration::from_millis(20));
    }
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
fn cart_of(sid: &str, uses_saved_cart: bool) -> CartRequest<'_> {
    CartRequest { sid, uses_saved_cart }
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
        self.core.lock().sizes()
    }

    fn touch(&self, sid: &str, now: Millis) {
        self.core.lock().use_session(now, Role::Buyer, sid).map_err(|(refusal, _)| refusal).unwrap();
    }

    /// Writes down last uses.
    fn flush(&self, now: Millis) {
        let uses = self.core.lock().unsaved_uses();
        self.store
            .write({
                let uses = uses.clone();
                move |tx| {
                    store::write_last_uses(tx, &uses)?;
                    store::write_flush_time(tx, now)
                }
            })
            .unwrap();
        self.core.lock().saved_uses(&uses);
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
        let (answer, newest) = self.core.lock().add_to_cart(now, cart_of(sid, uses_saved_cart), request, line, at_most);
        newest.wait().unwrap();
        answer
    }

    fn put(&self, sid: &str, uses_saved_cart: bool, item_id: &str, quantity: u32) {
        let line = LineItem { item_id: item_id.to_owned(), quantity };
        self.add(sid, uses_saved_cart, Token::random().reveal(), NOW, u32::MAX, &line).unwrap();
    }

    fn cart(&self, sid: &str, uses_saved_cart: bool) -> String {
        let lines = self.core.lock().show_cart(NOW, cart_of(sid, uses_saved_cart)).0.unwrap();
        lines.iter().map(|line| format!("{} x {}", line.item_id, line.quantity)).collect::<Vec<_>>().join(", ")
    }

    /// As after a crash.
    fn crash(&mut self, now: Millis) {
        self.store.sync_all();
        self.core = Mutex::new(load_core(&self.store, now));
    }
}

#[test]
fn after_a_crash_every_session_that_was_alive_at_the_last_flush_has_its_full_time() {
    let mut parts = Parts::new();
    parts.open("used", 1, NOW).unwrap();
    parts.open("unused", 2, NOW).unwrap();
    let flushed = NOW.plus_ms(299_000);
    parts.touch("used", flushed);
    parts.flush(flushed);
    // Hours later.
    let later = NOW.plus_ms(10_000_000);
    parts.crash(later);
    for sid in ["used", "unused"] {
        assert!(parts.is_alive(sid, later.plus_ms(299_999)) && !parts.is_alive(sid, later.plus(TIMEOUT)), "{sid}");
    }
    // One that was over when the others were written down stays over, though its end was not written.
    parts.touch("used", later.plus_ms(200_000));
    let flushed = later.plus_ms(300_000);
    parts.flush(flushed);
    parts.crash(flushed);
    assert!(parts.is_alive("used", flushed) && !parts.is_alive("unused", flushed));
    parts.crash(flushed);
    assert_eq!(parts.sizes().0, 1);
}

#[test]
fn last_uses_are_written_to_rows_that_still_exist() {
    let parts = Parts::new();
    parts.open("stays", 1, NOW).unwrap();
    parts.open("goes", 1, NOW).unwrap();
    let later = NOW.plus_ms(5000);
    parts.touch("stays", later);
    parts.touch("goes", later);
    // Ended on disk while its last use was on its way.
    let uses = [(SessionKey::of("stays"), later), (SessionKey::of("goes"), later)];
    assert_eq!(parts.end("goes", later).0, Ok(()));
    parts.store.write(move |tx| store::write_last_uses(tx, &uses)).unwrap();
    parts.flush(later);
    let rows = parts.store.read(|reader| {
        reader
            .all("SELECT session, used_at FROM shop_session", &[], |row| Ok((row.text(0)?.to_owned(), row.millis(1)?)))
    });
    assert_eq!(rows, Ok(vec![(SessionKey::of("stays").to_text(), later)]));
}

#[test]
fn an_expired_session_goes_with_its_cart_and_a_buyer_with_the_last_session() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", false, "1-1", 2);
    assert_eq!(parts.sizes(), (1, 1));
    assert_eq!(parts.expire(NOW.plus_ms(299_999)).0, 0);
    let (over, newest) = parts.expire(NOW.plus(TIMEOUT));
    newest.wait().unwrap();
    parts.expire(NOW.plus(TIMEOUT));
    assert_eq!((over, parts.sizes()), (1, (0, 0)));
    for table in ["shop_session", "shop_cart", "shop_request"] {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        let left = parts.store.read(|reader| reader.first(&sql, &[], |row| row.int(0)));
        assert_eq!(left, Ok(Some(0)), "{table}");
    }
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "", "what was not saved is gone");
}

#[test]
fn a_buyer_for_whom_a_purchase_is_under_way_stays_until_it_is_over() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", false, "1-1", 2);
    let begin = BeginRequest { cart: cart_of("a", false), request: "r", key: None, address: None };
    let BeginResult::Decided((begun, newest)) = parts.core.lock().begin_purchase(NOW, "p".to_owned(), begin, None)
    else {
        panic!("nothing is to be read or waited for")
    };
    newest.wait().unwrap();
    let Ok(ops::BeginResponse::Drive { lease, .. }) = begun else { panic!("{begun:?}") };
    for _ in 0..2 {
        parts.expire(NOW.plus(TIMEOUT)).1.wait().unwrap();
        assert_eq!(parts.sizes(), (0, 1), "the purchase needs the carts");
    }
    let why = Refusal::new(ErrorCode::OutOfStock, "there are not as many");
    for event in [PurchaseEvent::Undo { lease, why }, PurchaseEvent::Closed { lease }] {
        let stepped = parts.core.lock().step(NOW, "p", event).unwrap();
        stepped.newest.wait().unwrap();
    }
    assert_eq!(parts.core.lock().evict("p"), Some(1));
    parts.expire(NOW.plus(TIMEOUT)).1.wait().unwrap();
    assert_eq!(parts.sizes(), (0, 0));
}

#[test]
fn a_buyer_stays_until_the_last_change_is_on_disk() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    parts.store.submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    let line = LineItem { item_id: "1-1".to_owned(), quantity: 3 };
    parts.core.lock().add_to_cart(NOW, cart_of("a", true), "r", &line, 3).0.unwrap();
    assert_eq!(parts.end("a", NOW).0, Ok(()));
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 1));
    drop(let_go);
    // Whoever comes now must not see the saved cart of before.
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 3");
}

#[test]
fn a_saved_cart_that_was_read_before_the_buyer_came_and_went_is_not_taken() {
    let parts = Parts::new();
    let evictions = parts.core.lock().parts().0.evictions();
    let saved = parts.saved_cart(1, evictions);
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 3);
    parts.end("a", NOW).1.wait().unwrap();
    parts.expire(NOW);
    assert!(!parts.core.lock().parts().0.put_buyer(1, saved));
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 3");
}

#[test]
fn buyers_who_come_and_go_lose_nothing() {
    const THREADS: u32 = 3;
    const ROUNDS: u32 = 60;
    let parts = Parts::new();
    thread::scope(|scope| {
        let parts = &parts;
        let visits: Vec<_> = (0..THREADS)
            .map(|n| {
                scope.spawn(move || {
                    for m in 0..ROUNDS {
                        let sid = format!("{n} {m}");
                        parts.open(&sid, 1, NOW).unwrap();
                        parts.put(&sid, true, "1-1", 1);
                        let (answer, newest) = parts.end(&sid, NOW);
                        answer.unwrap();
                        newest.wait().unwrap();
                    }
                })
            })
            .collect();
        while !visits.iter().all(thread::ScopedJoinHandle::is_finished) {
            parts.expire(NOW);
            thread::yield_now();
        }
    });
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 0));
    parts.open("last", 1, NOW).unwrap();
    assert_eq!(parts.cart("last", false), format!("1-1 x {}", THREADS * ROUNDS));
}

// Carts.

#[test]
fn a_cart_belongs_to_its_session_unless_it_is_saved() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    db.add(&one, false, "1-2", 2).unwrap();
    db.add(&one, false, "1-1", 1).unwrap();
    db.add(&one, false, "1-2", 3).unwrap();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 5"));
    assert_eq!(db.cart(&two, false).as_deref(), Ok(""));
    assert_eq!(db.logout(&one), Ok(()));
    let one = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&one, false).as_deref(), Ok(""), "logout dropped what was not saved");

    db.add(&one, false, "1-1", 1).unwrap();
    db.add(&two, false, "1-2", 2).unwrap();
    db.save(&one, false).unwrap();
    db.save(&two, false).unwrap();
    db.add(&two, false, "1-3", 3).unwrap();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1"), "saving touches no other session");
    let three = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&three, false).as_deref(), Ok("1-2 x 2"), "the last one saved wins");
    db.clear(&three, false).unwrap();
    db.logout(&three).unwrap();
    let three = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&three, false).as_deref(), Ok("1-2 x 2"), "what is saved stays until it is saved anew");
    let other = db.buyer("bob");
    assert_eq!(db.cart(&other, false).as_deref(), Ok(""));

    db.restart();
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1"));
    assert_eq!(db.cart(&two, false).as_deref(), Ok("1-2 x 2, 1-3 x 3"), "saved or not, a session keeps its cart");
    let four = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&four, false).as_deref(), Ok("1-2 x 2"));
}

#[test]
fn a_saved_cart_waits_for_the_next_login_when_nobody_is_here() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.add(&sid, false, "1-1", 4).unwrap();
    db.save(&sid, false).unwrap();
    db.logout(&sid).unwrap();
    db.customers().expire_sessions(false);
    assert_eq!(db.customers().session_and_buyer_counts(), (0, 0));
    let sid = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&sid, false).as_deref(), Ok("1-1 x 4"));
}

#[test]
fn carts_have_their_limits() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    assert_eq!(db.add(&sid, false, "1-1", 11), Err(ErrorCode::OutOfStock), "there are ten");
    db.add(&sid, false, "1-1", 6).unwrap();
    assert_eq!(db.add(&sid, false, "1-1", 5), Err(ErrorCode::OutOfStock), "it would hold eleven");
    assert_eq!(db.add(&sid, false, "1-1", u32::MAX), Err(ErrorCode::OutOfStock));
    db.add(&sid, false, "1-1", 4).unwrap();
    assert_eq!(db.remove(&sid, false, "1-2", None), Err(ErrorCode::NotFound));
    assert_eq!(db.remove(&sid, false, "1-1", Some(3)), Ok(7));
    assert_eq!(db.remove(&sid, false, "1-1", Some(8)), Ok(0), "more than there is: all of it");
    assert_eq!(db.remove(&sid, false, "1-1", Some(1)), Err(ErrorCode::NotFound));
    db.add(&sid, false, "1-1", 2).unwrap();
    assert_eq!(db.remove(&sid, false, "1-1", None), Ok(0));
    assert_eq!(db.cart(&sid, false).as_deref(), Ok(""));
    assert_eq!(db.count("shop_cart"), 0);
}

#[test]
fn a_cart_holds_a_bounded_number_of_items() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let put = |n: usize| {
        let line = LineItem { item_id: format!("1-{n}"), quantity: 1 };
        parts.core.lock().add_to_cart(NOW, cart_of("a", false), &n.to_string(), &line, 10).0
    };
    for n in 0..LINES_MAX {
        put(n).unwrap();
    }
    assert_eq!(put(LINES_MAX).map_err(|refusal| refusal.code), Err(ErrorCode::Busy));
    assert_eq!(put(0), Ok(()), "one that is there already");
}

#[test]
fn in_dialect_2_the_cart_is_the_users() {
    let mut db = Db::new();
    let one = db.buyer("ann");
    let two = db.login(Role::Buyer, "ann");
    db.add(&one, true, "1-1", 1).unwrap();
    db.add(&two, true, "1-2", 2).unwrap();
    assert_eq!(db.cart(&one, true).as_deref(), Ok("1-1 x 1, 1-2 x 2"));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 2"), "it was loaded into the session's");
    assert_eq!(db.remove(&one, true, "1-2", Some(1)), Ok(1));
    assert_eq!(db.cart(&two, false).as_deref(), Ok("1-1 x 1, 1-2 x 2"), "as it was loaded last");
    assert_eq!(db.cart(&two, true).as_deref(), Ok("1-1 x 1, 1-2 x 1"));
    db.logout(&one).unwrap();
    db.logout(&two).unwrap();
    let one = db.login(Role::Buyer, "ann");
    assert_eq!(db.cart(&one, true).as_deref(), Ok("1-1 x 1, 1-2 x 1"), "it needs no SAVE_CART");
    // Mixed with dialect 1: what is only the session's is not the user's.
    db.add(&one, false, "1-3", 3).unwrap();
    assert_eq!(db.add(&one, true, "1-9", 11), Err(ErrorCode::OutOfStock));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 1, 1-3 x 3"), "a refusal changes nothing");
    assert_eq!(db.save(&one, true), Ok(()));
    assert_eq!(db.cart(&one, false).as_deref(), Ok("1-1 x 1, 1-2 x 1"));
    db.clear(&one, true).unwrap();
    let two = db.login(Role::Buyer, "ann");
    assert_eq!((db.cart(&one, true).as_deref(), db.cart(&two, false).as_deref()), (Ok(""), Ok("")));
    assert_eq!((db.count("shop_cart"), db.count("shop_saved")), (0, 0));
}

#[test]
fn a_repeated_request_does_its_work_once() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    for _ in 0..3 {
        assert_eq!(db.ask(add("same", &sid, false, "1-1", 2)), Ok(()));
    }
    assert_eq!(db.cart(&sid, false).as_deref(), Ok("1-1 x 2"));
    let take = || {
        let (request, sid, item_id) = ("take".to_owned(), sid.clone(), "1-1".to_owned());
        CustomerOp::RemoveFromCart { request, sid, uses_saved_cart: false, item_id, quantity: Some(2) }
    };
    assert_eq!(db.ask(take()), Ok(RemainingQuantity { quantity: 0 }));
    db.restart();
    assert_eq!(db.ask(take()), Ok(RemainingQuantity { quantity: 0 }), "also after a restart");
    assert_eq!(db.ask(add("same", &sid, false, "1-1", 2)), Ok(()));
    assert_eq!(db.cart(&sid, false).as_deref(), Ok(""));
    // One that was refused has changed nothing, and may do better later.
    assert_eq!(db.ask::<()>(add("full", &sid, false, "1-1", 11)), Err(ErrorCode::OutOfStock));
    assert_eq!(db.ask(add("full", &sid, false, "1-1", 1)), Ok(()));
}

#[test]
fn answers_are_kept_for_ten_minutes_and_in_a_bounded_number() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    let add = |parts: &Parts, request: &str, now| {
        let line = LineItem { item_id: "1-1".to_owned(), quantity: 1 };
        // (Of a session that is used all the time.)
        let key = SessionKey::of("a");
        let mut core = parts.core.lock();
        let (active_sessions, journal) = core.parts();
        let (_, buyer) = active_sessions.use_buyers_session(NOW, &key).map_err(|(refusal, _)| refusal).unwrap();
        let cart = CartOf { session: key, uses_saved_cart: false };
        let (answer, newest) = buyer.add(journal, cart, IdempotentRequest { id: request, now }, &line, u32::MAX);
        answer.unwrap();
        newest.wait().unwrap();
    };
    add(&parts, "r", NOW);
    add(&parts, "r", NOW.plus_ms(599_999));
    assert_eq!(parts.cart("a", false), "1-1 x 1");
    add(&parts, "r", NOW.plus(ANSWER_RETENTION));
    assert_eq!(parts.cart("a", false), "1-1 x 2");
    for n in 0..3 * ANSWERS_MAX {
        add(&parts, &n.to_string(), NOW);
        if n % 7 == 0 {
            parts.crash(NOW);
        }
    }
    let rows = parts.store.read(|reader| reader.first("SELECT COUNT(*) FROM shop_request", &[], |row| row.uint(0)));
    assert_eq!(rows, Ok(Some(ANSWERS_MAX as u64)));
    let before = parts.cart("a", false);
    for n in 2 * ANSWERS_MAX..3 * ANSWERS_MAX {
        add(&parts, &n.to_string(), NOW);
    }
    assert_eq!(parts.cart("a", false), before);
}

#[test]
fn what_many_put_into_one_cart_at_once_is_all_in_it() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    thread::scope(|scope| {
        let (db, sid) = (&db, &sid);
        for n in 0..8 {
            scope.spawn(move || {
                for m in 0..10 {
                    db.ask::<()>(add(&format!("{n} {m}"), sid, n % 2 == 0, &format!("1-{n}"), 1)).unwrap();
                }
            });
        }
    });
    // The saved one has what went through it; the session's has what came since it was last loaded.
    let saved = db.cart(&sid, true).unwrap();
    for n in [0, 2, 4, 6] {
        assert!(saved.contains(&format!("1-{n} x 10")), "{saved}");
    }
    db.restart();
    assert_eq!(db.cart(&sid, true), Ok(saved));
}

// Purchases' side of it.

/// These lines were bought by the first user; `also` is stored with that.
fn bought(parts: &Parts, sid: &str, lines: &[(&str, u32)], also: Vec<CustomerChange>) -> CommitHandle {
    let lines: Vec<LineItem> = lines
        .iter()
        .map(|(item_id, quantity)| LineItem { item_id: (*item_id).to_owned(), quantity: *quantity })
        .collect();
    let mut core = parts.core.lock();
    let (active_sessions, journal) = core.parts();
    let active_sessions: &mut ActiveSessions<CommitHandle> = active_sessions;
    active_sessions.buyer_mut(1).unwrap().remove_purchased(journal, &SessionKey::of(sid), &lines, also)
}

/// Rows of a purchase that cannot be stored: its line's seller has no name.
fn rows_that_fail() -> CustomerChange {
    let purchase = serde_json::json!({
        "id": "p", "buyer": {"user_id": 1, "username": "ann", "name": "Ann"}, "request": "r",
        "cart": {"session": SessionKey::of("a"), "users": false, "lines": [{"item_id": "1-1", "quantity": 2}]},
        "key": null, "address": null,
        "priced": [{"item_id": "1-1", "quantity": 2, "price": 1, "seller_id": 1, "seller": ""}],
        "begun_at": NOW, "captured_at": NOW, "stage": "captured", "lease": 1, "leased_until": NOW, "is_booked": true,
        "why": null,
    });
    let purchase: Purchase = serde_json::from_value(purchase).unwrap();
    CustomerChange::Purchase(Box::new(PurchaseWrites::new(
        &purchase,
        vec![PurchaseWrite::PostSale],
        FeeRate::default(),
        NOW,
    )))
}

#[test]
fn a_purchase_empties_the_sessions_cart_and_takes_from_the_saved_one() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    for (item_id, quantity) in [("1-1", 2), ("1-2", 5), ("1-3", 1)] {
        parts.put("a", true, item_id, quantity);
    }
    parts.open("b", 1, NOW).unwrap();
    bought(&parts, "a", &[("1-1", 2), ("1-2", 3), ("9-9", 1)], Vec::new()).wait().unwrap();
    for _ in 0..2 {
        assert_eq!(parts.cart("a", false), "");
        assert_eq!(parts.cart("b", false), "1-1 x 2, 1-2 x 5, 1-3 x 1", "another session's is its own");
        parts.crash(NOW);
    }
    assert_eq!(parts.cart("a", true), "1-2 x 2, 1-3 x 1");
}

#[test]
fn a_purchase_that_is_not_stored_leaves_the_carts_as_they_were() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 2);
    let newest = bought(&parts, "a", &[("1-1", 2)], vec![rows_that_fail()]);
    assert!(newest.wait().is_err());
    parts.crash(NOW);
    assert_eq!(parts.cart("a", false), "1-1 x 2");
    assert_eq!(parts.cart("a", true), "1-1 x 2");
}

#[test]
fn a_purchase_whose_buyer_has_left_takes_from_the_saved_cart_and_revives_no_session() {
    let mut parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    parts.put("a", true, "1-1", 2);
    assert_eq!(parts.end("a", NOW).0, Ok(()));
    parts.crash(NOW);
    assert_eq!(parts.sizes(), (0, 0));
    let evictions = parts.core.lock().parts().0.evictions();
    let saved = parts.saved_cart(1, evictions);
    assert!(parts.core.lock().parts().0.put_buyer(1, saved));
    bought(&parts, "a", &[("1-1", 1)], Vec::new()).wait().unwrap();
    parts.expire(NOW);
    assert_eq!(parts.sizes(), (0, 0), "nobody holds the buyer any more");
    assert!(!parts.is_alive("a", NOW));
    parts.open("b", 1, NOW).unwrap();
    assert_eq!(parts.cart("b", false), "1-1 x 1");
}

// When the disk fails.

#[test]
fn what_could_not_be_stored_has_not_happened_and_the_next_operation_works() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&ann, true, "1-1", 1).unwrap();
    db.break_chain();
    assert_eq!(db.ask::<()>(add("again", &ann, true, "1-1", 1)), Err(ErrorCode::Unavailable));
    assert_eq!(db.cart(&ann, true).as_deref(), Ok("1-1 x 1"));
    assert_eq!(db.ask::<()>(add("again", &ann, true, "1-1", 1)), Ok(()));
    assert_eq!(db.cart(&ann, true).as_deref(), Ok("1-1 x 2"));

    db.break_chain();
    assert_eq!(db.logout(&bob), Err(ErrorCode::Unavailable));
    assert_eq!(db.touch(Role::Buyer, &bob).as_deref(), Ok("bob"), "that logout was not");
    assert_eq!(db.logout(&bob), Ok(()));

    db.break_chain();
    let refused = db.ask::<NewSession>(login(Role::Buyer, "bob", "secret", "::1"));
    assert_eq!(refused.map(|_| ()), Err(ErrorCode::Unavailable));
    assert_eq!(db.customers().session_and_buyer_counts().0, 1);
    db.login(Role::Buyer, "bob");
    db.restart();
    assert_eq!(db.cart(&ann, false).as_deref(), Ok("1-1 x 2"));
}

#[test]
fn who_is_told_that_a_session_has_ended_is_told_when_that_is_on_disk() {
    let parts = Parts::new();
    parts.open("a", 1, NOW).unwrap();
    // The writer is kept busy, so that what comes after it waits.
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    let busy = parts.store.submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    let (answer, ended) = parts.end("a", NOW);
    assert_eq!((answer, ended.state()), (Ok(()), CommitState::Pending));
    let (refusal, newest) = parts.core.lock().use_session(NOW, Role::Buyer, "a").unwrap_err();
    assert_eq!((refusal.code, newest.state()), (ErrorCode::SessionExpired, CommitState::Pending));
    drop(let_go);
    newest.wait().unwrap();
    busy.wait().unwrap();
    assert_eq!(ended.state(), CommitState::Committed);
}

#[test]
fn no_answer_leaves_before_what_it_is_built_on_is_on_disk() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    db.add(&ann, false, "1-1", 5).unwrap();
    let sid = || ann.clone();
    let ops = [
        create("c", Role::Seller, "sue"),
        login(Role::Buyer, "bob", "secret", "::1"),
        add("a", &ann, false, "1-1", 1),
        CustomerOp::InSession { sid: sid(), uses_saved_cart: false, call: CustomerCall::SaveCart },
        add("b", &ann, true, "1-2", 1),
        CustomerOp::RemoveFromCart {
            request: "r".to_owned(),
            sid: sid(),
            uses_saved_cart: false,
            item_id: "1-2".to_owned(),
            quantity: None,
        },
        CustomerOp::InSession { sid: sid(), uses_saved_cart: true, call: CustomerCall::ShowCart },
        CustomerOp::InSession { sid: sid(), uses_saved_cart: true, call: CustomerCall::ClearCart },
        CustomerOp::Logout { role: Role::Buyer, sid: bob },
    ];
    for op in ops {
        let kind = format!("{op:?}");
        // The writer is kept busy, so that what is handed over now waits.
        let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
        db.store().submit(move |_tx| {
            let _ = wait.recv();
            Ok(())
        });
        thread::scope(|scope| {
            let (answered, answer) = crossbeam_channel::bounded(1);
            let db = &db;
            scope.spawn(move || answered.send(db.customers().handle(op)));
            let early = answer.recv_timeout(Duration::from_millis(100));
            drop(let_go);
            assert!(early.is_err(), "{kind}: answered before it was on disk");
            assert!(answer.recv().unwrap().is_ok(), "{kind}");
        });
    }
}

#[test]
fn what_is_only_looked_at_waits_for_no_one_elses_change() {
    let mut db = Db::new();
    let (ann, bob) = (db.buyer("ann"), db.buyer("bob"));
    let (let_go, wait) = crossbeam_channel::bounded::<()>(0);
    db.store().submit(move |_tx| {
        let _ = wait.recv();
        Ok(())
    });
    thread::scope(|scope| {
        let db = &db;
        let adding = scope.spawn({
            let ann = ann.clone();
            move || db.ask::<()>(add("a", &ann, false, "1-1", 1))
        });
        while db.store().queued_changes() == 0 {
            thread::yield_now();
        }
        // All of these would wait for ever if they waited for that.
        assert_eq!(db.touch(Role::Buyer, &ann).as_deref(), Ok("ann"));
        assert_eq!(db.cart(&bob, false).as_deref(), Ok(""));
        assert!(db.ask::<ops::SessionInfo>(CustomerOp::Validate { sid: ann }).is_ok());
        drop(let_go);
        assert_eq!(adding.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_database_that_is_closed_answers_unavailable() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.customers().close();
    db.customers().close();
    db.store().close();
    assert_eq!(db.add(&sid, false, "1-1", 1), Err(ErrorCode::Unavailable));
    assert_eq!(db.create(Role::Buyer, "bob"), Err(ErrorCode::Unavailable));
}

// Any order of them.

#[derive(Debug, Clone)]
enum Act {
    Login,
    Logout(usize),
    Add(usize, bool, u8, u32),
    Remove(usize, bool, u8, Option<u32>),
    Save(usize, bool),
    Clear(usize, bool),
    Show(usize, bool),
    PurchaseHistoryEntry(usize),
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    let session = 0..3usize;
    prop_oneof![
        1 => Just(Act::Login),
        1 => session.clone().prop_map(Act::Logout),
        6 => (session.clone(), any::<bool>(), 0..3u8, 1..5u32).prop_map(|(s, u, i, q)| Act::Add(s, u, i, q)),
        3 => (session.clone(), any::<bool>(), 0..3u8, prop::option::of(1..5u32)).prop_map(|(s, u, i, q)| Act::Remove(s, u, i, q)),
        2 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Save(s, u)),
        1 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Clear(s, u)),
        2 => (session.clone(), any::<bool>()).prop_map(|(s, u)| Act::Show(s, u)),
        1 => session.prop_map(Act::PurchaseHistoryEntry),
        1 => Just(Act::Crash),
    ]
}

/// The rules of docs/spec/shop.md in the fewest words: carts by session, and the saved one.
#[derive(Default)]
struct Model {
    saved: BTreeMap<String, u32>,
    of: BTreeMap<usize, BTreeMap<String, u32>>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn carts_are_what_the_rules_say_whatever_happens_and_whenever_it_crashes(acts in prop::collection::vec(act(), 1..60)) {
        let mut parts = Parts::new();
        let mut model = Model::default();
        let mut logins = 0;
        for act in acts {
            // The newest sessions are the ones that are spoken of.
            let session = |n: usize| model.of.keys().rev().nth(n).copied();
            match act {
                Act::Login => {
                    logins += 1;
                    parts.open(&logins.to_string(), 1, NOW).unwrap();
                    model.of.insert(logins, model.saved.clone());
                }
                Act::Crash => parts.crash(NOW),
                Act::Logout(n) => {
                    let Some(s) = session(n) else { continue };
                    prop_assert_eq!(parts.end(&s.to_string(), NOW).0, Ok(()));
                    model.of.remove(&s);
                }
                Act::Add(n, uses_saved_cart, item, quantity) => {
                    let Some(s) = session(n) else { continue };
                    let item_id = format!("1-{item}");
                    let line = LineItem { item_id: item_id.clone(), quantity };
                    let (sid, request) = (s.to_string(), Token::random());
                    let cart = cart_of(&sid, uses_saved_cart);
                    let (answer, _) = parts.core.lock().add_to_cart(NOW, cart, request.reveal(), &line, 8);
                    let mut cart = if uses_saved_cart { model.saved.clone() } else { model.of[&s].clone() };
                    let wanted = cart.get(&item_id).copied().unwrap_or(0) + quantity;
                    prop_assert_eq!(answer.is_ok(), wanted <= 8);
                    if wanted <= 8 {
                        cart.insert(item_id, wanted);
                        if uses_saved_cart {
                            model.saved = cart.clone();
                        }
                        model.of.insert(s, cart);
                    }
                }
                Act::Remove(n, uses_saved_cart, item, quantity) => {
                    let Some(s) = session(n) else { continue };
                    let item_id = format!("1-{item}");
                    let (sid, request) = (s.to_string(), Token::random());
                    let cart = cart_of(&sid, uses_saved_cart);
                    let (answer, _) =
                        parts.core.lock().remove_from_cart(NOW, cart, request.reveal(), &item_id, quantity);
                    let mut cart = if uses_saved_cart { model.saved.clone() } else { model.of[&s].clone() };
                    let left = cart.get(&item_id).map(|there| there - quantity.unwrap_or(*there).min(*there));
                    prop_assert_eq!(answer.ok().map(|left| left.quantity), left);
                    if let Some(left) = left {
                        cart.insert(item_id, left);
                        cart.retain(|_, quantity| *quantity > 0);
                        if uses_saved_cart {
                            model.saved = cart.clone();
                        }
                        model.of.insert(s, cart);
                    }
                }
                Act::Save(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    parts.core.lock().save_cart(NOW, cart_of(&s.to_string(), uses_saved_cart)).0.unwrap();
                    if uses_saved_cart { model.of.insert(s, model.saved.clone()); } else { model.saved = model.of[&s].clone(); }
                }
                Act::Clear(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    parts.core.lock().clear_cart(NOW, cart_of(&s.to_string(), uses_saved_cart)).0.unwrap();
                    model.of.insert(s, BTreeMap::new());
                    if uses_saved_cart { model.saved.clear(); }
                }
                Act::Show(n, uses_saved_cart) => {
                    let Some(s) = session(n) else { continue };
                    if uses_saved_cart { model.of.insert(s, model.saved.clone()); }
                    let wanted = model.of[&s].iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
                    prop_assert_eq!(parts.cart(&s.to_string(), uses_saved_cart), wanted.join(", "));
                }
                Act::PurchaseHistoryEntry(n) => {
                    let Some(s) = session(n) else { continue };
                    let lines = model.of.insert(s, BTreeMap::new()).unwrap_or_default();
                    let lines: Vec<(&str, u32)> = lines.iter().map(|(item_id, n)| (item_id.as_str(), *n)).collect();
                    bought(&parts, &s.to_string(), &lines, Vec::new());
                    for (item_id, n) in lines {
                        if let Some(there) = model.saved.get_mut(item_id) { *there -= n.min(*there); }
                    }
                    model.saved.retain(|_, quantity| *quantity > 0);
                }
            }
        }
        for _ in 0..2 {
            for (s, cart) in &model.of {
                let wanted = cart.iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
                prop_assert_eq!(parts.cart(&s.to_string(), false), wanted.join(", "));
            }
            parts.crash(NOW);
        }
        parts.open("last", 1, NOW).unwrap();
        let wanted = model.saved.iter().map(|(item_id, n)| format!("{item_id} x {n}")).collect::<Vec<_>>();
        prop_assert_eq!(parts.cart("last", false), wanted.join(", "));
    }
}
