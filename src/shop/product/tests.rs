//! The product database on real files.

use tempfile::TempDir;

use super::*;
use crate::model::Cents;
use crate::shop::ops::{ErrorCode, Feedback, HoldState, Item, LineItem, PricedLine, SellerRating};
use crate::storage::Tx;

mod holding;
#[cfg(unix)]
mod measured;
mod searching;

/// The simulated time of the tests, which run without the sweeper's thread (`without_sweeper`).
const NOW: Millis = Millis(1_795_253_400_000);
const SETTINGS: ProductDbSettings = ProductDbSettings { hold_timeout: Duration::from_secs(60), first_id_range: 0 };

fn open() -> (TempDir, ProductDb) {
    let dir = tempfile::tempdir().unwrap();
    let db = ProductDb::without_sweeper(dir.path(), SETTINGS).unwrap();
    (dir, db)
}

/// Executes an operation and parses its result.
fn ask<T: serde::de::DeserializeOwned>(db: &ProductDb, op: ProductOp) -> T {
    serde_json::from_str(&db.handle_at(NOW, op).unwrap()).unwrap()
}

fn refused(db: &ProductDb, op: ProductOp) -> ErrorCode {
    db.handle_at(NOW, op).unwrap_err().code
}

fn new_item(category: u32, name: &str, keywords: &[&str], cents: i64, quantity: u32) -> NewItem {
    NewItem {
        seller_id: 7,
        seller: "sam".to_owned(),
        item_name: name.to_owned(),
        category,
        keywords: keywords.iter().map(|keyword| (*keyword).to_owned()).collect(),
        condition_is_new: true,
        price: Cents(cents),
        quantity,
    }
}

fn register(request: &str, item: NewItem) -> ProductOp {
    ProductOp::Register { request: request.to_owned(), item }
}

/// Registers the items in one transaction, and returns their ids.
fn load(db: &ProductDb, items: Vec<NewItem>) -> Vec<String> {
    let (tell, told) = crossbeam_channel::bounded(1);
    let change = move |tx: &mut dyn Tx| {
        let register_one = |item: NewItem| {
            let category = item.category;
            Ok(format!("{category}-{}", store::insert_item(tx, item)?))
        };
        let ids: Result<Vec<String>, StoreError> = items.into_iter().map(register_one).collect();
        tell.send(ids?).map_err(|_| StoreError::Invalid("nobody waits for the ids".to_owned()))
    };
    let commit = db.inner.store.append(db.inner.store.current_epoch(), change);
    commit.wait().unwrap();
    told.recv().unwrap()
}

/// Registers an item with `quantity` units at 2.50.
fn shelve(db: &ProductDb, quantity: u32) -> String {
    load(db, vec![new_item(3, "A lamp", &["lamp"], 250, quantity)]).remove(0)
}

fn item(db: &ProductDb, item_id: &str) -> Item {
    ask(db, ProductOp::GetItem { item_id: item_id.to_owned() })
}

fn units(request: &str, seller_id: u64, item_id: &str, delta: i64) -> ProductOp {
    ProductOp::UpdateUnits { request: request.to_owned(), seller_id, item_id: item_id.to_owned(), delta }
}

fn hold(purchase: &str, item_id: &str, quantity: u32) -> ProductOp {
    let lines = vec![LineItem { item_id: item_id.to_owned(), quantity }];
    ProductOp::Hold { purchase_id: purchase.to_owned(), lines, expires_in_ms: 1_000 }
}

fn sell(purchase: &str) -> ProductOp {
    ProductOp::Sell { purchase_id: purchase.to_owned() }
}

fn release(purchase: &str) -> ProductOp {
    ProductOp::Release { purchase_id: purchase.to_owned() }
}

fn state(purchase: &str) -> ProductOp {
    ProductOp::HoldState { purchase_id: purchase.to_owned() }
}

fn search(category: Option<u32>, keywords: &[&str]) -> ProductOp {
    let keywords = keywords.iter().map(|keyword| (*keyword).to_owned()).collect();
    ProductOp::Search { category, keywords, offset: 0, limit: 50 }
}

fn sold(db: &ProductDb) -> u64 {
    ask::<SellerRating>(db, ProductOp::RatingOf { seller_id: 7 }).items_sold
}

#[test]
fn an_item_is_shown_as_it_was_registered() {
    let (_dir, db) = open();
    let given = new_item(3, "Größe \"L\"\\", &["Lamp", "ö\u{1F4A1}"], 1250, 4);
    let answer = db.handle_at(NOW, register("r1", given.clone())).unwrap();
    assert_eq!(answer, r#"{"item_id":"3-1"}"#);
    let shown = item(&db, "3-1");
    assert_eq!(shown.item_id, "3-1");
    assert_eq!((shown.item_name, shown.keywords), (given.item_name, given.keywords));
    assert_eq!((shown.category, shown.price, shown.quantity), (3, Cents(1250), 4));
    assert_eq!((shown.seller_id, shown.seller.as_str(), shown.condition_is_new), (7, "sam", true));
    assert_eq!(shown.feedback, Feedback::default());
    for unknown in ["3-2", "4-1", "3-01", "03-1", "3-+1", "3--1", "3-", "-1", "1", "", "3-1 ", "3-99999999999999999999"]
    {
        assert_eq!(
            refused(&db, ProductOp::GetItem { item_id: unknown.to_owned() }),
            ErrorCode::NotFound,
            "{unknown:?}"
        );
    }
}

#[test]
fn a_repeated_request_is_done_once_for_ten_minutes() {
    let (_dir, db) = open();
    let lamp = || new_item(3, "A lamp", &[], 250, 5);
    let first = db.handle_at(NOW, register("r1", lamp())).unwrap();
    assert_eq!(db.handle_at(NOW, register("r1", lamp())).unwrap(), first);
    let second = db.handle_at(NOW, register("r2", lamp())).unwrap();
    assert_eq!((first.as_str(), second.as_str()), (r#"{"item_id":"3-1"}"#, r#"{"item_id":"3-2"}"#));
    for _repeat in 0..2 {
        assert_eq!(db.handle_at(NOW, units("u1", 7, "3-1", -2)).unwrap(), r#"{"quantity":3}"#);
    }
    // The response is remembered for exactly ten minutes.
    db.inner.sweep(NOW.plus_ms(599_999)).unwrap();
    assert_eq!(db.handle_at(NOW, units("u1", 7, "3-1", -2)).unwrap(), r#"{"quantity":3}"#);
    db.inner.sweep(NOW.plus_ms(600_000)).unwrap();
    assert_eq!(db.handle_at(NOW, units("u1", 7, "3-1", -2)).unwrap(), r#"{"quantity":1}"#);
}

#[test]
fn only_the_seller_changes_an_item_and_only_within_its_stock() {
    let (_dir, db) = open();
    let id = shelve(&db, 5);
    let price =
        |seller_id, item_id: &str| ProductOp::ChangePrice { seller_id, item_id: item_id.to_owned(), price: Cents(199) };
    assert_eq!(refused(&db, price(8, &id)), ErrorCode::Forbidden);
    assert_eq!(refused(&db, units("a", 8, &id, 1)), ErrorCode::Forbidden);
    assert_eq!(refused(&db, price(7, "3-99")), ErrorCode::NotFound);
    assert_eq!(refused(&db, units("b", 7, "3-99", 1)), ErrorCode::NotFound);
    assert_eq!(refused(&db, units("c", 7, &id, -6)), ErrorCode::OutOfStock);
    assert_eq!(refused(&db, units("d", 7, &id, i64::MIN)), ErrorCode::OutOfStock);
    assert_eq!(refused(&db, units("e", 7, &id, i64::MAX)), ErrorCode::BadRequest);
    assert_eq!(refused(&db, units("f", 7, &id, 2_147_483_643)), ErrorCode::BadRequest);
    assert_eq!((item(&db, &id).price, item(&db, &id).quantity), (Cents(250), 5));
    assert_eq!(db.handle_at(NOW, price(7, &id)).unwrap(), "null");
    assert_eq!(db.handle_at(NOW, units("g", 7, &id, 2_147_483_642)).unwrap(), r#"{"quantity":2147483647}"#);
    assert_eq!(db.handle_at(NOW, units("h", 7, &id, -2_147_483_647)).unwrap(), r#"{"quantity":0}"#);
    assert_eq!((item(&db, &id).price, item(&db, &id).quantity), (Cents(199), 0));
}

#[test]
fn a_seller_sees_all_own_items_oldest_first() {
    let (_dir, db) = open();
    let other = NewItem { seller_id: 8, ..new_item(1, "Other", &[], 100, 1) };
    let stock = [9, 0, 4].map(|quantity| new_item(1, "Mine", &[], 100, quantity));
    load(&db, [vec![other], stock.into()].concat());
    let page = |seller_id, offset, limit| {
        let found: crate::shop::ops::ItemPage = ask(&db, ProductOp::ItemsOf { seller_id, offset, limit });
        let ids: Vec<String> = found.items.into_iter().map(|item| item.item_id).collect();
        (ids.join(" "), found.total)
    };
    assert_eq!(page(7, 0, 500), ("1-2 1-3 1-4".to_owned(), 3));
    assert_eq!(page(7, 1, 1), ("1-3".to_owned(), 3));
    assert_eq!(page(7, u64::MAX, u64::MAX), (String::new(), 3));
    assert_eq!(page(9, 0, 500), (String::new(), 0));
    assert_eq!(page(u64::MAX, 0, 500), (String::new(), 0));
}

#[test]
fn a_vote_counts_once_and_may_be_changed() {
    let (_dir, db) = open();
    let (lamp, chair) = (shelve(&db, 1), shelve(&db, 0));
    let vote = |buyer_id, item_id: &str, up| {
        let item_id = item_id.to_owned();
        assert_eq!(db.handle_at(NOW, ProductOp::VoteItem { buyer_id, item_id, up }).unwrap(), "null");
    };
    let vote_seller = |buyer_id, up| ask::<()>(&db, ProductOp::VoteSeller { buyer_id, seller_id: 7, up });
    let counted = |item_id: &str| {
        let seller = ask::<SellerRating>(&db, ProductOp::RatingOf { seller_id: 7 }).feedback;
        let shown = item(&db, item_id).feedback;
        ((shown.thumbs_up, shown.thumbs_down), (seller.thumbs_up, seller.thumbs_down))
    };
    vote(1, &lamp, true);
    vote(1, &lamp, true);
    assert_eq!(counted(&lamp), ((1, 0), (1, 0)));
    vote(2, &lamp, false);
    vote(1, &chair, false);
    assert_eq!((counted(&lamp), counted(&chair)), (((1, 1), (1, 2)), ((0, 1), (1, 2))));
    vote(1, &lamp, false);
    assert_eq!(counted(&lamp), ((0, 2), (0, 3)));
    vote_seller(1, true);
    vote_seller(1, true);
    assert_eq!(counted(&lamp), ((0, 2), (1, 3)));
    vote_seller(1, false);
    assert_eq!(counted(&lamp), ((0, 2), (0, 4)));
    let unknown = ProductOp::VoteItem { buyer_id: 1, item_id: "3-99".to_owned(), up: true };
    assert_eq!(refused(&db, unknown), ErrorCode::NotFound);
    assert_eq!(ask::<SellerRating>(&db, ProductOp::RatingOf { seller_id: 99 }), SellerRating::default());
}

#[test]
fn units_that_are_held_cannot_be_bought_and_come_back() {
    let (_dir, db) = open();
    let id = shelve(&db, 3);
    let priced: Vec<PricedLine> = ask(&db, hold("p1", &id, 2));
    assert_eq!((priced[0].price, priced[0].seller_id, priced[0].seller.as_str()), (Cents(250), 7, "sam"));
    assert_eq!(item(&db, &id).quantity, 1);
    assert_eq!(refused(&db, hold("p2", &id, 2)), ErrorCode::OutOfStock);
    assert_eq!(refused(&db, hold("p2", "3-99", 1)), ErrorCode::NotFound);
    assert_eq!(ask::<HoldState>(&db, state("p2")), HoldState::Unknown);
    assert_eq!((ask::<HoldState>(&db, state("p1")), sold(&db)), (HoldState::Held, 0));
    for _repeat in 0..2 {
        assert_eq!((ask::<HoldState>(&db, sell("p1")), sold(&db)), (HoldState::Sold, 2));
    }
    assert_eq!(ask::<Vec<PricedLine>>(&db, hold("p1", &id, 2)), priced);
    assert_eq!((ask::<HoldState>(&db, release("p1")), sold(&db)), (HoldState::Released, 0));
    assert_eq!(item(&db, &id).quantity, 3);
    // The hold arrives too late and is refused.
    assert_eq!(refused(&db, hold("p1", &id, 2)), ErrorCode::Forbidden);
    assert_eq!(ask::<HoldState>(&db, release("p3")), HoldState::Released);
    assert_eq!(refused(&db, hold("p3", &id, 1)), ErrorCode::Forbidden);
    assert_eq!(ask::<HoldState>(&db, sell("p4")), HoldState::Unknown);
    assert_eq!(item(&db, &id).quantity, 3);
}

#[test]
fn all_lines_are_held_or_none() {
    let (_dir, db) = open();
    let (many, few) = (shelve(&db, 9), shelve(&db, 1));
    let line = |item_id: &str, quantity| LineItem { item_id: item_id.to_owned(), quantity };
    let lines = vec![line(&many, 2), line(&few, 2)];
    let both = ProductOp::Hold { purchase_id: "p1".to_owned(), lines, expires_in_ms: 1_000 };
    let refusal = db.handle_at(NOW, both).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::OutOfStock);
    assert!(refusal.message.contains(&few), "{}", refusal.message);
    assert_eq!((item(&db, &many).quantity, item(&db, &few).quantity), (9, 1));
}

#[test]
fn holds_are_kept_over_a_restart() {
    let (dir, db) = open();
    let id = shelve(&db, 9);
    // The sweeper's thread uses real time.
    for (purchase, quantity) in [("held", 1), ("sold", 2), ("released", 3)] {
        let lines = vec![LineItem { item_id: id.clone(), quantity }];
        db.handle(ProductOp::Hold { purchase_id: purchase.to_owned(), lines, expires_in_ms: 60_000 }).unwrap();
    }
    db.handle(sell("sold")).unwrap();
    db.handle(release("released")).unwrap();
    db.close();
    assert_eq!(db.handle(state("held")).unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(db.handle(sell("held")).unwrap_err().code, ErrorCode::Unavailable);
    drop(db);
    let db = ProductDb::open(dir.path(), SETTINGS).unwrap();
    let state_of = |purchase| db.handle(state(purchase)).unwrap();
    assert_eq!([state_of("held"), state_of("sold"), state_of("released")], [r#""held""#, r#""sold""#, r#""released""#]);
    assert_eq!((item(&db, &id).quantity, sold(&db)), (6, 2));
}

#[test]
fn what_is_held_too_long_comes_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ProductDbSettings { hold_timeout: Duration::from_millis(50), ..SETTINGS };
    let db = ProductDb::open(dir.path(), settings).unwrap();
    let id = shelve(&db, 2);
    // A longer hold is requested than the operator allows.
    let lines = vec![LineItem { item_id: id.clone(), quantity: 2 }];
    db.handle(ProductOp::Hold { purchase_id: "p1".to_owned(), lines, expires_in_ms: u64::MAX }).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while item(&db, &id).quantity < 2 {
        assert!(std::time::Instant::now() < until, "it is still held");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(db.handle(sell("p1")).unwrap(), r#""released""#);
    assert_eq!(sold(&db), 0);
    // It is found by searches again.
    let found: crate::shop::ops::ItemPage = ask(&db, search(None, &["lamp"]));
    assert_eq!(found.items.len(), 1);
}

#[test]
fn an_expired_hold_is_never_sold_whoever_looks_first() {
    let (_dir, db) = open();
    let id = shelve(&db, 2);
    db.handle_at(NOW, hold("p1", &id, 1)).unwrap();
    db.handle_at(NOW, hold("p2", &id, 1)).unwrap();
    let late = NOW.plus_ms(1_000);
    assert_eq!(db.handle_at(Millis(late.0 - 1), state("p1")).unwrap(), r#""held""#);
    assert_eq!(db.handle_at(late, state("p1")).unwrap(), r#""released""#);
    assert_eq!(db.handle_at(late, sell("p1")).unwrap(), r#""released""#);
    assert_eq!(item(&db, &id).quantity, 1);
    while db.inner.sweep(late).unwrap().is_zero() {}
    assert_eq!(item(&db, &id).quantity, 2);
    assert_eq!(db.handle_at(late, hold("p2", &id, 1)).unwrap_err().code, ErrorCode::Forbidden);
    // Tombstones are purged when no message can arrive that late.
    let days = |days: u64| late.plus(Duration::from_secs(days * 86_400));
    while db.inner.sweep(Millis(days(30).0 - 1)).unwrap().is_zero() {}
    assert_eq!(db.handle_at(late, state("p2")).unwrap(), r#""released""#);
    while db.inner.sweep(days(30)).unwrap().is_zero() {}
    assert_eq!(db.handle_at(late, state("p2")).unwrap(), r#""unknown""#);
    // A sale is never purged.
    db.handle_at(NOW, hold("p3", &id, 1)).unwrap();
    db.handle_at(NOW, sell("p3")).unwrap();
    while db.inner.sweep(days(4_000)).unwrap().is_zero() {}
    assert_eq!(db.handle_at(days(4_000), state("p3")).unwrap(), r#""sold""#);
}

#[test]
fn a_hundred_buyers_after_the_last_ten_units() {
    let (_dir, db) = open();
    let id = shelve(&db, 10);
    let outcomes: Vec<ShopResult<String>> = std::thread::scope(|scope| {
        let buy = |buyer: usize| {
            let (db, id) = (&db, &id);
            move || {
                let purchase = format!("p{buyer}");
                db.handle_at(NOW, hold(&purchase, id, 1)).and_then(|_held| db.handle_at(NOW, sell(&purchase)))
            }
        };
        let threads: Vec<_> = (0..100).map(|buyer| scope.spawn(buy(buyer))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let bought = outcomes.iter().filter(|outcome| outcome.as_deref() == Ok(r#""sold""#)).count();
    let refused =
        outcomes.iter().filter(|outcome| outcome.as_ref().is_err_and(|refusal| refusal.code == ErrorCode::OutOfStock));
    assert_eq!((bought, refused.count()), (10, 90));
    assert_eq!((item(&db, &id).quantity, sold(&db)), (0, 10));
}

#[test]
fn item_ids_are_never_given_twice_not_even_after_a_backup() {
    let (dir, db) = open();
    assert_eq!((shelve(&db, 1), shelve(&db, 1)), ("3-1".to_owned(), "3-2".to_owned()));
    drop(db);
    let db = ProductDb::open(dir.path(), SETTINGS).unwrap();
    assert_eq!(shelve(&db, 1), "3-3");
    drop(db);
    let db = ProductDb::open(dir.path(), ProductDbSettings { first_id_range: 1, ..SETTINGS }).unwrap();
    let id = shelve(&db, 1);
    assert_eq!(id, format!("3-{}", 1 + ID_RANGE_SIZE));
    assert_eq!(item(&db, &id).quantity, 1);
    drop(db);
    // Starting with the same range again skips nothing more.
    let db = ProductDb::open(dir.path(), ProductDbSettings { first_id_range: 1, ..SETTINGS }).unwrap();
    assert_eq!(shelve(&db, 1), format!("3-{}", 2 + ID_RANGE_SIZE));
}

#[test]
fn a_reopened_file_is_searched_as_before() {
    let (dir, db) = open();
    shelve(&db, 1);
    let before = db.handle_at(NOW, search(Some(3), &["lamp"])).unwrap();
    drop(db);
    let db = ProductDb::open(dir.path(), SETTINGS).unwrap();
    assert_eq!(db.handle_at(NOW, search(Some(3), &["lamp"])).unwrap(), before);
    assert!(before.contains("\"3-1\""), "{before}");
}
