//! The cores of the rooms and the parsers in front of them.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use p2s2::internals::model::Name;
use p2s2::internals::share::wire::{FileEntry, FileName, Seconds, requests};
use p2s2::internals::shop::apis::ServerKind;
use p2s2::internals::shop::wire::parse_request;
use p2s2_benches::{Market, NOW, announcement, lan_node, registry};

fn trade(c: &mut Criterion) {
    let market = Market::with(100);
    let status = market.message(0, "STATUS", 1, "");
    c.bench_function("trade: STATUS of a peer without deals", |b| b.iter(|| market.say(0, black_box(&status))));

    let wanted = r#","item_name":"lamp","description":"any","max_price":25"#;
    c.bench_function("trade: a search that asks 99 peers, and its end", |b| {
        // A fresh market each time: searches that are open count against their buyer.
        b.iter_batched(
            || {
                let market = Market::with(100);
                let search = market.message(0, "LOOKING_FOR", 2, wanted);
                (market, search)
            },
            |(market, search)| {
                assert_eq!(market.say(0, &search), 99);
                market
            },
            BatchSize::SmallInput,
        )
    });
}

fn share(c: &mut Criterion) {
    let mut core = registry(1000);
    let entry = Arc::new(FileEntry {
        size: 1234,
        modified: Seconds::new(1_700_000_000.0).unwrap(),
        created: None,
        published_at: None,
        is_published: true,
        blake3: None,
        pieces_root: None,
        features: [].into(),
    });
    let name = Name::new("host-7").unwrap();
    let files: Vec<FileName> = (0..1000).map(|n| FileName::new(&format!("file-{n}.txt")).unwrap()).collect();
    let mut nth = 0;
    c.bench_function("registry: PUBLISH of a file among 1,000", |b| {
        b.iter(|| {
            nth = (nth + 1) % files.len();
            core.publish(NOW, 7, &name, &files[nth], Arc::clone(&entry)).unwrap()
        })
    });
    c.bench_function("registry: who has a file", |b| b.iter(|| core.holders(NOW, black_box(&files[5]), None, 100)));

    let line = br#"{"action":"PUBLISH","data":{"hostname":"host-7","fname":"file-1.txt","size":1234,"modified":2.5}}"#;
    c.bench_function("registry: parsing PUBLISH", |b| b.iter(|| requests::parse(black_box(line)).unwrap()));
}

fn lan(c: &mut Criterion) {
    let mut node = lan_node(1000);
    c.bench_function("lan: an announcement, parsed and taken, among 1,000 peers", |b| {
        b.iter(|| node.handle(NOW, announcement(black_box(500)), &mut || 7))
    });
}

fn shop(c: &mut Criterion) {
    let search = br#"{"type":"request","api":"SearchItemsForSale","session_id":"0123","payload":{"category":3,"keywords":["lamp"]}}"#;
    let flat = br#"{"type":"SEARCH_ITEMS","session_id":"0123","item_category":3,"keywords":["lamp"]}"#;
    for (name, message) in [("an envelope", &search[..]), ("a flat message", &flat[..])] {
        c.bench_function(&format!("shop: parsing a search in {name}"), |b| {
            b.iter(|| parse_request(ServerKind::Buyer, black_box(message)).is_ok())
        });
    }
}

criterion_group!(cores, trade, share, lan, shop);
criterion_main!(cores);
