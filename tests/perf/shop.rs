//! The shop scenario against a shop that is slow, refuses, or closes connections: the report must show it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::proxy::{CallFault, Proxy};
use crate::{_SERVER, KillOnDrop, perf, report, result, text, wait_for};

const MS: Duration = Duration::from_millis(1);
/// Two clients, two runs of a hundred calls each.
const MEASURED: u64 = 400;
/// The warm-up has a tenth of a run's calls.
const WARM_UP: u64 = 20;
/// One round from which message sizes are learned.
const LEARNED: u64 = 1;

/// The shop's components in one process.
struct Shop {
    frontends: [SocketAddr; 2],
    _child: KillOnDrop,
    _dir: tempfile::TempDir,
}

impl Shop {
    fn start() -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let ready_file = dir.path().join("ready.json");
        let ports = ["--product-port", "--customer-port", "--seller-port", "--buyer-port", "--api-port"];
        let mut child = KillOnDrop(
            Command::new(_SERVER)
                .args(["server", "--services", "shop", "--no-announce"])
                .args(ports.iter().flat_map(|port| [*port, "0"]))
                .arg("--data-dir")
                .arg(dir.path().join("state"))
                .arg("--ready-file")
                .arg(&ready_file)
                // A `.env` of the working directory must not have an effect.
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let ready: Value = wait_for("the shop", || {
            assert_eq!(child.0.try_wait().unwrap(), None, "the shop ended");
            serde_json::from_slice(&std::fs::read(&ready_file).ok()?).ok()
        });
        let frontends = ["seller", "buyer"].map(|name| ready[name].as_str().unwrap().parse().unwrap());
        Shop { frontends, _child: child, _dir: dir }
    }

    fn behind(&self, choose: impl Fn(&str, bool, u64) -> (Duration, CallFault) + Send + Sync + 'static) -> Proxy {
        Proxy::start(&self.frontends, choose)
    }
}

/// A run of the shop scenario through the proxy.
fn run(proxy: &Proxy, more: &str) -> Value {
    let out = tempfile::tempdir().unwrap();
    let target = proxy.target();
    let mut words = vec!["shop", "--target", &target, "--clients", "2", "--runs", "2", "--json"];
    words.extend(more.split(' '));
    report(&perf(&words, out.path()), 0)
}

fn number(result: &Value, field: &str) -> f64 {
    result[field].as_f64().unwrap_or_else(|| panic!("{field} in {result}"))
}

/// Checks that exactly `failed` of `calls` calls are reported as errors.
fn assert_failed(result: &Value, failed: u64, calls: u64) {
    assert_eq!(result["errors"], failed, "{result}");
    let expected = (calls - failed) as f64 / calls as f64;
    assert!((number(result, "success_rate") - expected).abs() < 1e-9, "{expected}: {result}");
}

/// Every hundredth of the measured calls, which begin after the first `after` calls.
fn each_hundredth(nth: u64, after: u64) -> bool {
    nth > after && nth <= after + MEASURED && (nth - after).is_multiple_of(100)
}

#[test]
fn a_slow_shop_shows_in_the_latencies_of_every_operation() {
    let (shop, delay) = (Shop::start(), 10 * MS);
    let proxy = shop.behind(move |_, _, _| (delay, CallFault::PassedOn));
    let report = run(&proxy, "--quick --calls 13");
    let results = report["results"].as_array().unwrap();
    let operations = ["SEARCH", "CART", "DISPLAY", "GETITEM", "ADDCART", "PRICE", "PURCHASE", "MIX", "ALL"];
    for operation in operations {
        result(&report, operation);
    }
    assert!(results.iter().filter(|one| !one["part_of"].is_null()).count() == 20, "of MIX and ALL: {report}");
    for one in results {
        let name = one["name"].as_str().unwrap();
        // A purchase consists of two calls; in mixes both roles call.
        let calls = if name == "PURCHASE" { 2.0 } else { 1.0 };
        let at_once = if name.starts_with("MIX") || name.starts_with("ALL") { 4.0 } else { 2.0 };
        let least_us = calls * delay.as_micros() as f64;
        for field in ["mean_us", "p50_us", "p95_us", "p99_us", "max_us"] {
            assert!(number(one, field) >= least_us, "{field} below {least_us}: {one}");
        }
        assert!(number(one, "ops_per_s") <= at_once * 1e6 / least_us, "{one}");
        assert_eq!((&one["errors"], number(one, "success_rate")), (&0.into(), 1.0), "{one}");
        assert!(one["server_cpu_s"].is_null() && one["server_peak_rss_mb"].is_null(), "not our servers: {one}");
        if one["limit"] == "relay" {
            // The relay makes thousands of calls per second even on a busy machine.
            assert!(number(one, "share_of_limit") < 1.0, "{one}");
        }
    }
}

#[test]
fn each_refusal_is_counted_and_its_time_is_not_mixed_in() {
    let shop = Shop::start();
    // Calls made before the measurement; each group begins with a DisplayCart of every buyer.
    let searches = 2 + LEARNED + WARM_UP;
    let carts = 2 * 2 + LEARNED + WARM_UP;
    let into_carts = 2 * 3 + LEARNED + WARM_UP;
    let slowly = 1000 * MS;
    let proxy = shop.behind(move |api, _, nth| {
        let (after, delay) = match api {
            "SearchItemsForSale" => (searches, slowly),
            "DisplayCart" => (carts, Duration::ZERO),
            "AddItemToCart" => (into_carts, Duration::ZERO),
            "DisplayItemsForSale" | "GetItem" | "ChangeItemPrice" | "MakePurchase" => {
                (LEARNED + WARM_UP, Duration::ZERO)
            }
            _ => return (Duration::ZERO, CallFault::PassedOn),
        };
        if each_hundredth(nth, after) { (delay, CallFault::Refused) } else { (Duration::ZERO, CallFault::PassedOn) }
    });
    let report = run(&proxy, "--calls 100 --only SEARCH,CART,DISPLAY,GETITEM,ADDCART,PRICE,PURCHASE");
    let operations = [
        ("SEARCH", "SearchItemsForSale"),
        ("CART", "DisplayCart"),
        ("DISPLAY", "DisplayItemsForSale"),
        ("GETITEM", "GetItem"),
        ("ADDCART", "AddItemToCart"),
        ("PRICE", "ChangeItemPrice"),
        ("PURCHASE", "MakePurchase"),
    ];
    for (operation, api) in operations {
        let refused = proxy.count(api, false, CallFault::Refused);
        assert_eq!(refused, 4, "{api}");
        assert_failed(result(&report, operation), refused, MEASURED);
    }
    // All calls are accounted for.
    assert_eq!(proxy.calls("SearchItemsForSale", false), searches + MEASURED);
    assert_eq!(proxy.calls("MakePurchase", false), LEARNED + WARM_UP + MEASURED);
    // Refused calls took long, but their times are not in the latencies.
    let search = result(&report, "SEARCH");
    assert!(number(search, "max_us") < slowly.as_micros() as f64, "{search}");
    // Nor are those of quick refusals: two of three calls fail at once.
    let (delay, third) = (20 * MS, |nth: u64| nth.is_multiple_of(3));
    let proxy = shop.behind(move |api, _, nth| match api {
        "GetItem" if nth > LEARNED && !third(nth) => (Duration::ZERO, CallFault::Refused),
        "GetItem" => (delay, CallFault::PassedOn),
        _ => (Duration::ZERO, CallFault::PassedOn),
    });
    let report = run(&proxy, "--calls 30 --only GETITEM");
    let items = result(&report, "GETITEM");
    // One call for learning and six for the warm-up come first, then 120.
    let refused = (8..128).filter(|nth| !third(*nth)).count() as u64;
    assert_failed(items, refused, 120);
    assert!(number(items, "p50_us") >= 20_000.0 && number(items, "mean_us") >= 20_000.0, "{items}");
}

#[test]
fn in_a_mix_a_refusal_counts_for_its_operation_and_for_the_whole() {
    let shop = Shop::start();
    // A buyer's sequence has thirteen calls, and this is the eleventh, which a warm-up of ten calls does not reach.
    let proxy = shop.behind(|api, _, nth| match api {
        "GetBuyerPurchases" if nth > LEARNED && (nth - LEARNED).is_multiple_of(8) => {
            (Duration::ZERO, CallFault::Refused)
        }
        _ => (Duration::ZERO, CallFault::PassedOn),
    });
    let report = run(&proxy, "--quick --calls 100 --only ALL");
    let refused = proxy.count("GetBuyerPurchases", false, CallFault::Refused);
    assert_eq!((refused, proxy.calls("GetBuyerPurchases", false)), (4, LEARNED + 32));
    // Two sellers and two buyers.
    assert_failed(result(&report, "ALL"), refused, 2 * MEASURED);
    assert_failed(result(&report, "ALL: GetBuyerPurchases"), refused, 32);
    let parts = report["results"].as_array().unwrap().iter().filter(|one| one["part_of"] == "ALL");
    assert_eq!(parts.map(|one| one["errors"].as_u64().unwrap()).sum::<u64>(), refused, "of no other operation");
}

#[test]
fn a_connection_that_breaks_is_an_error_and_the_run_goes_on() {
    let shop = Shop::start();
    // Preparations use frames.
    let after = |is_lines: bool| if is_lines { WARM_UP } else { 2 + LEARNED + WARM_UP };
    let proxy = shop.behind(move |api, is_lines, nth| {
        if api != "SearchItemsForSale" || !each_hundredth(nth, after(is_lines)) {
            return (Duration::ZERO, CallFault::PassedOn);
        }
        let is_even = ((nth - after(is_lines)) / 100).is_multiple_of(2);
        (Duration::ZERO, if is_even { CallFault::Torn } else { CallFault::Dropped })
    });
    let report = run(&proxy, "--full --calls 100 --only SEARCH");
    for (name, is_lines) in [("SEARCH", false), ("SEARCH (lines)", true)] {
        let count = |fault| proxy.count("SearchItemsForSale", is_lines, fault);
        let broken = [count(CallFault::Dropped), count(CallFault::Torn)];
        assert_eq!(broken, [2, 2], "{name}");
        assert_failed(result(&report, name), broken.iter().sum(), MEASURED);
    }
    // No call was repeated; the second group is prepared in frames again.
    assert_eq!(proxy.calls("SearchItemsForSale", false), after(false) + MEASURED + 2 + LEARNED);
    assert_eq!(proxy.calls("SearchItemsForSale", true), after(true) + MEASURED);
}

#[test]
fn one_stall_shows_in_the_longest() {
    let (shop, stall) = (Shop::start(), 200 * MS);
    let proxy = shop.behind(move |api, _, nth| {
        let is_it = api == "GetItem" && nth == LEARNED + WARM_UP + 150;
        (if is_it { stall } else { Duration::ZERO }, CallFault::PassedOn)
    });
    let report = run(&proxy, "--calls 100 --only GETITEM");
    let items = result(&report, "GETITEM");
    assert!(number(items, "max_us") >= 200_000.0, "{items}");
    assert!(number(items, "p50_us") < 200_000.0, "{items}");
    assert_failed(items, 0, MEASURED);
}

#[test]
fn a_shop_that_is_not_there_is_an_error() {
    let out = tempfile::tempdir().unwrap();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = format!("{unused},{unused}");
    let output = perf(&["shop", "--quick", "--clients", "1", "--target", &target], out.path());
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.lines().any(|line| line.starts_with("error: cannot connect")), "{said}");
    for target in ["127.0.0.1:8001", "127.0.0.1:8001,", "127.0.0.1,127.0.0.1:2", ":1,:2", "a:1,b:2,c:3", "a:0,b:1"] {
        let output = perf(&["shop", "--target", target], Path::new("unused"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{target}: {said}");
        assert!(said.contains("--target: expected") && said.contains("HOST:PORT,HOST:PORT"), "{said}");
    }
}
