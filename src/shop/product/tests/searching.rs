//! Search, compared with the rules of `docs/spec/shop.md`.

use std::cell::RefCell;
use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;
use crate::shop::ops::ItemPage;
use crate::shop::product::search::{SearchHits, SearchQuery};
use crate::storage::{Reader, ReaderExt, Row, Value};

fn names(db: &ProductDb, category: Option<u32>, keywords: &[&str]) -> String {
    let found: ItemPage = ask(db, search(category, keywords));
    let names: Vec<String> = found.items.into_iter().map(|item| item.item_name).collect();
    names.join(" ")
}

#[test]
fn best_first_then_cheapest_then_oldest() {
    let (_dir, db) = open();
    load(
        &db,
        vec![
            new_item(1, "none", &["other"], 1, 1),
            new_item(1, "prefix", &["phones"], 10, 1),
            new_item(1, "exact-dear", &["phone"], 900, 1),
            new_item(1, "exact", &["PHONE", "phones"], 800, 1),
            new_item(1, "a-phone", &["x"], 10, 1),
            new_item(1, "Phone.1", &["phone"], 5_000, 1),
            new_item(1, "gone-phone", &["phone"], 1, 0),
            new_item(2, "exact-dear2", &["phone"], 900, 1),
        ],
    );
    assert_eq!(names(&db, None, &["Phone"]), "Phone.1 exact exact-dear exact-dear2 prefix a-phone");
    assert_eq!(names(&db, Some(2), &["phone"]), "exact-dear2");
    assert_eq!(names(&db, Some(3), &["phone"]), "");
    // A search keyword is matched as a whole, not split into words.
    assert_eq!(names(&db, None, &["a-phone"]), "");
    assert_eq!(names(&db, None, &["pho"]), "prefix exact exact-dear exact-dear2 Phone.1");
    // The points of all keywords add up; a repeated keyword counts once.
    assert_eq!(names(&db, Some(1), &["other", "phones", "a"]), "none prefix exact a-phone");
    assert_eq!(names(&db, Some(1), &["x", "X", "phone"]), "a-phone Phone.1 exact exact-dear prefix");
    // Without keywords: all items with stock, by price.
    assert_eq!(names(&db, Some(1), &[]), "none prefix a-phone exact exact-dear Phone.1");
    assert_eq!(names(&db, None, &[]), "none prefix a-phone exact exact-dear exact-dear2 Phone.1");
}

#[test]
fn items_of_before_spelling_was_ignored_are_found_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let name = "Cre\u{300}me";
    {
        let db = ProductDb::without_sweeper(dir.path(), SETTINGS).unwrap();
        load(&db, vec![new_item(1, name, &["café"], 2, 1), new_item(1, "plain", &["x"], 2, 1)]);
        // The index as the previous version wrote it.
        db.inner
            .store
            .write(|tx| -> Result<(), StoreError> {
                // A combining accent is not a letter, so it used to split the word.
                for (table, category) in [("product_word", ""), ("product_category_word", "category, ")] {
                    let me = format!(
                        "INSERT INTO {table} ({category}kind, term, price, number)
                         SELECT {category}kind, 'me', price, number FROM {table} WHERE term = $1"
                    );
                    tx.execute(&me, &["crème".into()])?;
                    tx.execute(&format!("UPDATE {table} SET term = 'cre' WHERE term = $1"), &["crème".into()])?;
                }
                tx.execute("DELETE FROM product_folded", &[]).map(drop)
            })
            .unwrap();
        assert_eq!(names(&db, None, &["crème"]), "");
    }
    let db = ProductDb::without_sweeper(dir.path(), SETTINGS).unwrap();
    assert_eq!((names(&db, None, &["crème"]).as_str(), names(&db, None, &["café"]).as_str()), (name, name));
    assert_eq!(names(&db, None, &["x"]), "plain");
    // Without stock an item is in no list, so no entry of the old spelling may be left.
    let take = ProductOp::UpdateUnits { request: "r".to_owned(), seller_id: 7, item_id: "1-1".to_owned(), delta: -1 };
    db.handle_at(NOW, take).unwrap();
    let left = |table: &str| {
        let sql = format!("SELECT COUNT(*) FROM {table} WHERE number = 1");
        db.inner.store.read(|reader| reader.first(&sql, &[], |row| row.int(0))).unwrap().unwrap()
    };
    assert_eq!((left("product_word"), left("product_category_word")), (0, 0));
}

#[test]
fn case_is_ignored_in_every_script() {
    let (_dir, db) = open();
    load(&db, vec![new_item(1, "ΟΔΟΣ Straße", &["ΟΔΟΣ", "Übung"], 1, 1)]);
    for keyword in ["οδος", "ΟΔΟΣ", "οδοσ", "ΟΔ", "übung", "ÜB", "straße"] {
        assert_eq!(names(&db, None, &[keyword]), "ΟΔΟΣ Straße", "{keyword}");
    }
    // The Unicode spelling does not matter either.
    load(&db, vec![new_item(1, "Cre\u{300}me bru\u{302}le\u{301}e", &["cafe\u{301}"], 2, 1)]);
    for keyword in ["crème", "cre\u{300}me", "BRÛLÉE", "café", "CAFE\u{301}"] {
        assert_eq!(names(&db, None, &[keyword]), "Cre\u{300}me bru\u{302}le\u{301}e", "{keyword}");
    }
    // No character sorts behind this one.
    load(&db, vec![new_item(1, "last", &["z\u{10FFFF}\u{10FFFF}"], 1, 1)]);
    assert_eq!(names(&db, None, &["z"]), "last");
    assert_eq!(names(&db, None, &["z\u{10FFFF}"]), "last");
}

#[test]
fn an_item_is_found_as_it_is_now() {
    let (_dir, db) = open();
    let ids = load(&db, vec![new_item(1, "a", &["lamp"], 300, 1), new_item(1, "b", &["lamp"], 200, 1)]);
    assert_eq!((names(&db, None, &["lamp"]), names(&db, None, &[])), ("b a".into(), "b a".into()));
    ask::<()>(&db, ProductOp::ChangePrice { seller_id: 7, item_id: ids[0].clone(), price: Cents(100) });
    assert_eq!((names(&db, None, &["lamp"]), names(&db, None, &[])), ("a b".into(), "a b".into()));
    db.handle_at(NOW, hold("p1", &ids[0], 1)).unwrap();
    assert_eq!((names(&db, None, &["lamp"]), names(&db, Some(1), &[])), ("b".into(), "b".into()));
    // The price may also change without stock, and the item returns with the new price.
    ask::<()>(&db, ProductOp::ChangePrice { seller_id: 7, item_id: ids[0].clone(), price: Cents(400) });
    db.handle_at(NOW, release("p1")).unwrap();
    assert_eq!((names(&db, Some(1), &["lamp"]), names(&db, None, &[])), ("b a".into(), "b a".into()));
    db.handle_at(NOW, units("u1", 7, &ids[1], -1)).unwrap();
    assert_eq!((names(&db, None, &["lamp"]), names(&db, None, &[])), ("a".into(), "a".into()));
    db.handle_at(NOW, units("u2", 7, &ids[1], 1)).unwrap();
    assert_eq!((names(&db, None, &["lamp"]), names(&db, None, &[])), ("b a".into(), "b a".into()));
}

#[test]
fn pages_follow_each_other_and_more_than_can_be_ranked_is_said_so() {
    let (_dir, db) = open();
    let lamp = |number: i64| new_item((number % 2) as u32, "lamp", &["lamp", "lamps"], 100 + number % 700, 1);
    load(&db, (0..10_000).map(lamp).collect());
    let page = |category, keywords: &[&str], offset, limit| -> ItemPage {
        let keywords = keywords.iter().map(|keyword| (*keyword).to_owned()).collect();
        ask(&db, ProductOp::Search { category, keywords, offset, limit })
    };
    for keywords in [&["lamp"][..], &["la"], &[]] {
        let all = page(None, keywords, 0, 500);
        assert_eq!((all.items.len(), all.total, all.total_is_at_least), (500, 10_000, false));
        let (first, second) = (page(None, keywords, 0, 50), page(None, keywords, 50, 50));
        assert_eq!([first.items, second.items].concat(), all.items[..100]);
        assert_eq!(page(None, keywords, 9_990, 50).items.len(), 10);
        assert_eq!(page(None, keywords, 10_000, 50).items.len(), 0);
        assert_eq!(page(None, keywords, u64::MAX, u64::MAX).items.len(), 0);
        assert_eq!(page(Some(1), keywords, 0, u64::MAX).items.len(), 500);
        assert_eq!(page(Some(1), keywords, 0, 1).total, 5_000);
    }
    // One more item, the most expensive with the highest score, is not among those that are ranked.
    load(&db, vec![new_item(0, "lamp la best", &["lamp", "la"], 900, 1)]);
    for keywords in [&["lamp"][..], &["la"], &[], &["lamp", "best"]] {
        let found = page(None, keywords, 0, 1);
        assert_eq!((found.total, found.total_is_at_least), (10_000, true), "{keywords:?}");
        assert_eq!(found.items[0].item_name, "lamp");
        assert!(page(None, keywords, 10_000, 50).items.is_empty());
    }
    assert_eq!(page(Some(0), &["la"], 0, 1).items[0].item_name, "lamp la best");
    let six = ["a", "b", "c", "d", "e", "f"];
    assert_eq!(refused(&db, search(None, &six)), ErrorCode::BadRequest);
}

/// A reader that checks the plan of each query before running it.
struct Explaining<'r> {
    reader: &'r dyn Reader,
    plans: RefCell<Vec<String>>,
}

impl Reader for Explaining<'_> {
    fn query(
        &self,
        sql: &str,
        parameters: &[Value<'_>],
        each: &mut (dyn FnMut(&Row<'_>) -> Result<(), StoreError> + '_),
    ) -> Result<(), StoreError> {
        self.reader.query(&format!("EXPLAIN QUERY PLAN {sql}"), parameters, &mut |row| {
            self.plans.borrow_mut().push(row.text(3)?.to_owned());
            Ok(())
        })?;
        self.reader.query(sql, parameters, each)
    }
}

#[test]
fn an_index_answers_and_nothing_is_sorted_on_the_disk() {
    let (_dir, db) = open();
    load(&db, (0..30).map(|number| new_item(number % 2, "lamp", &["lamp", "lampshad"], 100, 1)).collect());
    for category in [None, Some(1)] {
        for keywords in [&["lamp", "lam", "la", "lampsha"][..], &[]] {
            let wanted = wanted(category, keywords, 0, 50, 5);
            let plans = db.inner.store.read(|reader| -> Result<_, StoreError> {
                let explaining = Explaining { reader, plans: RefCell::default() };
                store::page_json(&explaining, &search::search(&explaining, &wanted)?)?;
                Ok(explaining.plans.into_inner())
            });
            let plans = plans.unwrap();
            assert!(!plans.is_empty());
            for plan in &plans {
                // Only the page's own list of numbers may be scanned.
                assert!(plan.starts_with("SEARCH ") || plan.starts_with("SCAN wanted "), "{plans:#?}");
            }
        }
    }
}

#[test]
fn a_page_is_shown_in_the_order_of_its_numbers() {
    let (_dir, db) = open();
    load(&db, (0..30).map(|_| new_item(3, "lamp", &[], 100, 1)).collect());
    let numbers = vec![30, 2, 17, 1, 16, 29, 2];
    let hits = SearchHits { numbers: numbers.clone(), total: 7, total_is_at_least: false };
    let shown = db.inner.store.read(|reader| store::page_json(reader, &hits)).unwrap();
    let found: ItemPage = serde_json::from_str(&shown).unwrap();
    let ids: Vec<String> = numbers.iter().map(|number| format!("3-{number}")).collect();
    assert_eq!(found.items.iter().map(|item| item.item_id.as_str()).collect::<Vec<_>>(), ids);
}

fn wanted(category: Option<u32>, keywords: &[&str], offset: u64, limit: u64, ranked_max: usize) -> SearchQuery {
    let keywords = keywords.iter().map(|keyword| search::fold(keyword)).collect();
    SearchQuery { category, keywords, offset, limit, ranked_max }
}

/// The ranking of `docs/spec/shop.md`, applied literally to all items.
fn naive(items: &[NewItem], wanted: &SearchQuery) -> SearchHits {
    let points = |item: &NewItem| -> u32 {
        let lower: Vec<String> = item.keywords.iter().map(|keyword| keyword.to_lowercase()).collect();
        let name = item.item_name.to_lowercase();
        let of_one = |keyword: &String| {
            let of_keywords = if lower.contains(keyword) {
                2
            } else {
                u32::from(lower.iter().any(|own| own.starts_with(keyword.as_str())))
            };
            of_keywords + u32::from(name.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == keyword))
        };
        wanted.keywords.iter().map(of_one).sum()
    };
    let mut found: Vec<(u32, Cents, i64)> = (1..)
        .zip(items)
        .filter(|(_number, item)| item.quantity > 0 && wanted.category.is_none_or(|category| category == item.category))
        .map(|(number, item)| (points(item), item.price, number))
        .filter(|(points, _price, _number)| *points > 0 || wanted.keywords.is_empty())
        .collect();
    found.sort_by_key(|(_points, price, number)| (*price, *number));
    let total_is_at_least = found.len() > wanted.ranked_max;
    found.truncate(wanted.ranked_max);
    found.sort_by_key(|(points, price, number)| (Reverse(*points), *price, *number));
    let total = found.len() as u64;
    let page = found.into_iter().skip(wanted.offset as usize).take(wanted.limit as usize);
    SearchHits { numbers: page.map(|(_points, _price, number)| number).collect(), total, total_is_at_least }
}

/// Keywords of few letters, so that many match.
fn word() -> impl Strategy<Value = String> {
    // Up to eight letters, so that prefixes of every length are searched.
    "[abA]{1,4}|[ab]{3,8}|b{4,8}"
}

fn any_item() -> impl Strategy<Value = NewItem> {
    let name = prop::collection::vec(word(), 1..4).prop_map(|words| words.join(" -"));
    let keywords = prop::collection::vec(word(), 0..=5);
    (0..3u32, name, keywords, 1..6i64, 0..3u32).prop_map(|(category, item_name, keywords, cents, quantity)| NewItem {
        keywords,
        ..new_item(category, &item_name, &[], cents, quantity)
    })
}

/// A change of an item: a new price, or more or fewer units.
fn any_change() -> impl Strategy<Value = (prop::sample::Index, i64, i64)> {
    (any::<prop::sample::Index>(), 0..6i64, -2..3i64)
}

type Search = (Option<u32>, Vec<String>, u64, u64, usize);

fn any_search() -> impl Strategy<Value = Search> {
    let keywords = prop::collection::vec(word(), 0..=5);
    // Often more items than are ranked.
    (prop::option::of(0..3u32), keywords, 0..12u64, 0..20u64, prop_oneof![1..8usize, 20..60usize])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn search_does_what_the_contract_says(
        items in prop::collection::vec(any_item(), 0..60),
        changes in prop::collection::vec(any_change(), 0..12),
        searches in prop::collection::vec(any_search(), 1..25),
    ) {
        let (_dir, db) = open();
        let mut items = items;
        let ids = load(&db, items.clone());
        for (round, (which, cents, delta)) in changes.into_iter().enumerate() {
            if items.is_empty() {
                break;
            }
            let place = which.index(items.len());
            let (item_id, item) = (ids[place].clone(), &mut items[place]);
            if cents > 0 {
                item.price = Cents(cents);
                ask::<()>(&db, ProductOp::ChangePrice { seller_id: 7, item_id: item_id.clone(), price: item.price });
            }
            let changed = db.handle_at(NOW, units(&round.to_string(), 7, &item_id, delta));
            if let Some(quantity) = item.quantity.checked_add_signed(delta as i32) {
                prop_assert_eq!(changed.unwrap(), format!("{{\"quantity\":{quantity}}}"));
                item.quantity = quantity;
            } else {
                prop_assert_eq!(changed.unwrap_err().code, ErrorCode::OutOfStock);
            }
        }
        for (category, keywords, offset, limit, ranked_max) in searches {
            let keywords: Vec<&str> = keywords.iter().map(String::as_str).collect();
            let wanted = wanted(category, &keywords, offset, limit, ranked_max);
            let found = db.inner.store.read(|reader| search::search(reader, &wanted)).unwrap();
            prop_assert_eq!(found, naive(&items, &wanted), "{:?} {:?} {}", category, keywords, ranked_max);
        }
    }
}
