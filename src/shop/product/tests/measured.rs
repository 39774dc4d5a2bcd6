//! Measures searches. Run with `cargo test --release --lib shop::product -- --ignored --nocapture`.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::*;

/// The number of searches of each class.
const SEARCHES: u32 = 2_000;
/// The number of items that are loaded at once.
const PART: u32 = 50_000;

/// A pseudo-random number that depends only on the position.
fn mixed(place: u32, salt: u64) -> u64 {
    let mut x = u64::from(place) ^ (salt << 32);
    for _round in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    }
    x ^ (x >> 31)
}

/// One item in ten has the keyword `all0`, some 800 have `m…`, some 50 `r…`; `d…` of a hundred thousand;
/// names of ordinary words.
fn generated(place: u32, items: u32) -> NewItem {
    let of = |salt, groups: u32| mixed(place, salt) % u64::from(groups.max(1));
    let keywords = [
        format!("all{}", of(1, 10)),
        format!("m{}", of(2, items / 800)),
        format!("r{}", of(3, items / 50)),
        format!("d{}", of(4, 100_000.min(items))),
    ];
    let name = format!("Item w{} w{}", of(5, 5_000), of(6, 5_000));
    let keywords: Vec<&str> = keywords.iter().map(String::as_str).collect();
    new_item(of(7, 20) as u32, &name, &keywords, 100 + of(8, 1_000_000) as i64, 1 + of(9, 9) as u32)
}

fn catalogue(items: u32) -> (TempDir, ProductDb) {
    let (dir, db) = open();
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    for first in (0..items).step_by(PART as usize) {
        let part: Vec<NewItem> = (first..items.min(first + PART)).map(|place| generated(place, items)).collect();
        let began = Instant::now();
        load(&db, part);
        slowest = slowest.max(began.elapsed());
    }
    let bytes = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len();
    println!("{items} items: loaded in {:.1?}, slowest part {slowest:.1?}, {} MB", started.elapsed(), bytes >> 20);
    (dir, db)
}

/// The CPU time of this thread, which on a shared machine tells what a search costs.
fn worked() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer refers to a valid value to write the result to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A class of searches, which makes a query for the position of the search.
type Class<'c> = (&'c str, Box<dyn Fn(u32) -> ProductOp>);

fn classes(items: u32) -> Vec<Class<'static>> {
    let one = move |prefix: &'static str, groups: u32| -> Box<dyn Fn(u32) -> ProductOp> {
        Box::new(move |place| search(None, &[&format!("{prefix}{}", mixed(place, 99) % u64::from(groups.max(1)))]))
    };
    vec![
        ("under 100", one("r", items / 50)),
        ("up to 1000", one("m", items / 800)),
        ("one in ten", one("all", 10)),
        (
            "one in ten, page 10",
            Box::new(|place| match search(None, &[&format!("all{}", place % 10)]) {
                ProductOp::Search { category, keywords, .. } => {
                    ProductOp::Search { category, keywords, offset: 500, limit: 50 }
                }
                other => other,
            }),
        ),
        ("one in ten, in a category", Box::new(|place| search(Some(place % 20), &[&format!("all{}", place % 10)]))),
        (
            "five keywords",
            Box::new(move |place| {
                let of = |salt, groups: u32| mixed(place, salt) % u64::from(groups.max(1));
                let keywords = [
                    format!("all{}", of(1, 10)),
                    format!("m{}", of(2, items / 800)),
                    format!("r{}", of(3, items / 50)),
                    format!("w{}", of(4, 5_000)),
                    "none".to_owned(),
                ];
                search(None, &keywords.each_ref().map(String::as_str))
            }),
        ),
        ("prefix of all", Box::new(|_place| search(None, &["all"]))),
        ("prefix of a tenth, two letters", Box::new(|place| search(None, &[&format!("d{}", 1 + place % 9)]))),
        ("prefix, one letter", Box::new(|_place| search(None, &["d"]))),
        ("by category", Box::new(|place| search(Some(place % 20), &[]))),
        ("no filter", Box::new(|_place| search(None, &[]))),
        (
            "one item",
            Box::new(move |place| {
                let place = mixed(place, 98) as u32 % items;
                let category = mixed(place, 7) % 20;
                ProductOp::GetItem { item_id: format!("{category}-{}", place + 1) }
            }),
        ),
    ]
}

#[test]
#[ignore = "a measurement: minutes, and only in a release build"]
fn search_at_ten_thousand_and_at_a_million_items() {
    let mut measured: Vec<Vec<[Histogram<u64>; 2]>> = Vec::new();
    for items in [10_000, 1_000_000] {
        let (_dir, db) = catalogue(items);
        let of_class = |(name, op): &Class<'_>| {
            let mut latencies = [(); 2].map(|()| Histogram::<u64>::new(3).unwrap());
            let searches = if name.starts_with("prefix") { SEARCHES / 10 } else { SEARCHES };
            for place in 0..searches + searches / 10 {
                let op = op(place);
                let (began, work) = (Instant::now(), worked());
                let answer = db.handle(op).unwrap();
                let took = [began.elapsed(), worked() - work];
                assert!(answer.len() > 40, "{name}: {answer}");
                if place >= searches / 10 {
                    for (histogram, took) in latencies.iter_mut().zip(took) {
                        histogram.record(took.as_nanos() as u64).unwrap();
                    }
                }
            }
            latencies
        };
        measured.push(classes(items).iter().map(of_class).collect());
    }
    let mut too_slow = Vec::new();
    println!("us: the time that passed, and what the thread worked");
    print!("{:32}", "");
    for head in ["10k p50", "10k p99", "1M p50", "1M p99", "p99 x", "10k work", "1M work", "p99 x"] {
        print!("{head:>10}");
    }
    println!();
    for (place, (name, _op)) in classes(1).iter().enumerate() {
        let [few, many] = [&measured[0][place], &measured[1][place]];
        let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let p99 = |which: usize| [us(&few[which], 0.99), us(&many[which], 0.99)];
        let ([few_p99, many_p99], [few_work, many_work]) = (p99(0), p99(1));
        let ratio = many_work / few_work;
        print!("{name:32}{:10.1}{few_p99:10.1}{:10.1}{many_p99:10.1}", us(&few[0], 0.5), us(&many[0], 0.5));
        println!("{:10.1}{few_work:10.1}{many_work:10.1}{ratio:10.1}", many_p99 / few_p99);
        let bound = match *name {
            "under 100" | "up to 1000" => 5.0,
            "one in ten" => 15.0,
            _ => continue,
        };
        if ratio >= bound {
            too_slow.push(format!("{name}: {ratio:.1} times"));
        }
    }
    assert!(too_slow.is_empty(), "{too_slow:?}");
}
