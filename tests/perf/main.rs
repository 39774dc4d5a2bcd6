//! The load generator as scripts use it: its report, its exit codes, and the files that it leaves.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../support/browser.rs"]
mod browser;
mod fake;
mod proxy;
mod shop;

use browser::Browser;
use fake::{FakeBehaviour, FakeServer};

const PERF: &str = env!("CARGO_BIN_EXE_p2s2-perf");
/// Ensures that the program that a run starts has been built.
const _SERVER: &str = env!("CARGO_BIN_EXE_p2s2");
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn perf(words: &[&str], out: &Path) -> Output {
    Command::new(PERF).args(words).arg("--out").arg(out).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The report that a run printed; checks the exit code.
fn report(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

fn result<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = report["results"].as_array().unwrap().iter().find(|result| result["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_small_run_reports_every_field() {
    let out = tempfile::tempdir().unwrap();
    let output = perf(&["trade", "--quick", "--calls", "20", "--clients", "1,3", "--runs", "2", "--json"], out.path());
    let report = report(&output, 0);
    assert_eq!(report["scenario"], "trade");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let results = report["results"].as_array().unwrap();
    let names: Vec<(&str, u64)> =
        results.iter().map(|result| (result["name"].as_str().unwrap(), result["clients"].as_u64().unwrap())).collect();
    let requests = ["threads", "STATUS", "PACED", "REGISTER", "REGISTER"];
    let expected: Vec<(&str, u64)> = requests
        .map(|name| (name, 1))
        .into_iter()
        .chain(requests.map(|name| (name, 3)))
        .chain([("ROUND", 1), ("PURCHASE", 1), ("OFFERS", 1), ("ROUND", 3), ("PURCHASE", 3), ("OFFERS", 3)])
        .collect();
    assert_eq!(names, expected);
    for result in results {
        let number = |field: &str| result[field].as_f64().unwrap_or_else(|| panic!("{field} in {result}"));
        assert!(number("ops_per_s") > 0.0 && number("ops_per_s_stddev") >= 0.0);
        assert!(number("runs") == 2.0 || (number("runs") == 1.0 && result["limit"].is_null()));
        assert_eq!((number("errors"), number("success_rate")), (0.0, 1.0), "{result}");
        let latencies = ["p50_us", "p95_us", "p99_us", "max_us"].map(number);
        assert!(latencies.is_sorted() && latencies[0] > 0.0 && number("mean_us") > 0.0, "{result}");
        if cfg!(target_os = "linux") {
            assert!(number("server_cpu_s") >= 0.0 && number("server_peak_rss_mb") > 1.0);
        }
        assert!(result["mb_per_s"].is_null() && result.as_object().unwrap().contains_key("mb_per_s"));
        let deal = ["PACED", "ROUND", "PURCHASE", "OFFERS"].contains(&result["name"].as_str().unwrap());
        for field in ["limit", "limit_ops_per_s", "share_of_limit"] {
            assert_eq!(result.as_object().unwrap()[field].is_null(), deal, "{field} in {result}");
        }
    }
    for (name, limit) in [("threads", "bare"), ("STATUS", "bare"), ("REGISTER", "commit (1 change)")] {
        let compared = &report["limits"][format!("{name} of {limit} at 3")];
        assert_eq!(compared["shares"].as_array().unwrap().len(), 2, "{report}");
        assert!(compared["runs"][limit]["ops_per_s"][1].as_f64().unwrap() > 0.0);
    }
    // Standard output has only the report, the file is identical, and no other files are left.
    assert_eq!(files(out.path()), ["trade.html", "trade.json"]);
    let written: Value = serde_json::from_slice(&std::fs::read(out.path().join("trade.json")).unwrap()).unwrap();
    assert_eq!(written, report);
}

#[test]
fn a_small_run_of_the_shop_reports_every_operation_as_a_share_of_relay() {
    let out = tempfile::tempdir().unwrap();
    let output = perf(&["shop", "--quick", "--calls", "5", "--clients", "1,3", "--runs", "2", "--json"], out.path());
    let report = report(&output, 0);
    assert_eq!(report["scenario"], "shop");
    let results = report["results"].as_array().unwrap();
    let said = |result: &Value| {
        let limit = result["limit"].as_str().unwrap().to_owned();
        (result["name"].as_str().unwrap().to_owned(), result["clients"].as_u64().unwrap(), limit)
    };
    let mut expected = Vec::new();
    for clients in [1, 3] {
        expected.extend(
            ["SEARCH", "CART", "DISPLAY", "GETITEM"].map(|name| (name.to_owned(), clients, "relay".to_owned())),
        );
    }
    for clients in [1, 3] {
        for name in ["ADDCART", "PRICE", "PURCHASE"] {
            expected
                .extend(["relay", "commit (100 changes)"].map(|limit| (name.to_owned(), clients, limit.to_owned())));
        }
    }
    // Mixes have a test of their own.
    let results: Vec<&Value> = results
        .iter()
        .filter(|one| !["MIX", "ALL"].iter().any(|mix| one["name"].as_str().unwrap().starts_with(mix)))
        .collect();
    assert_eq!(results.iter().map(|one| said(one)).collect::<Vec<_>>(), expected);
    for result in results {
        let number = |field: &str| result[field].as_f64().unwrap_or_else(|| panic!("{field} in {result}"));
        assert_eq!((number("errors"), number("success_rate")), (0.0, 1.0), "{result}");
        assert!(number("ops_per_s") > 0.0 && number("limit_ops_per_s") > 0.0 && number("share_of_limit") > 0.0);
        assert!(number("p50_us") > 0.0 && number("p50_us") <= number("p99_us"), "{result}");
        if cfg!(target_os = "linux") {
            assert!(number("server_cpu_s") >= 0.0 && number("server_peak_rss_mb") > 4.0, "of four processes: {result}");
        }
    }
    // Requirements exist for 1 and for 100 clients.
    let required =
        |name: &str, clients: u64| report["limits"][format!("{name} of relay at {clients}")]["required"].as_f64();
    for name in ["SEARCH", "CART", "DISPLAY"] {
        assert_eq!((required(name, 1), required(name, 3)), (Some(0.5), None));
    }
    assert_eq!((required("GETITEM", 1), required("PRICE", 1)), (None, None));
    assert_eq!(files(out.path()), ["shop.html", "shop.json"], "nothing else is left");
}

#[test]
fn the_page_shows_every_plot_in_a_browser_without_network() {
    let out = tempfile::tempdir().unwrap();
    let words = ["trade", "--calls", "20", "--clients", "1,3", "--runs", "2", "--json"];
    report(&perf(&words, out.path()), 0);
    let browser = Browser::start();
    browser.open_file(&out.path().join("trade.html"));
    assert_eq!(browser.ask("return document.title"), "P2S2 trade");
    let plots = browser.ask(
        "return [...document.querySelectorAll('figure')].map(figure => {
            const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
            const curves = [...svg.querySelectorAll('polyline')].filter(line => {
                const box = line.getBBox();
                return line.getAttribute('stroke-width') === '2' && box.width > 20;
            });
            return {
                id: figure.id, width: box.width, height: box.height, curves: curves.length,
                dots: svg.querySelectorAll('circle').length,
                legend: figure.querySelectorAll('.legend li').length, texts: svg.querySelectorAll('text').length,
            };
        })",
    );
    let plots = plots.as_array().unwrap();
    let ids: Vec<&str> = plots.iter().map(|plot| plot["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["throughput", "p50", "p99", "distribution", "share", "cpu", "memory"]);
    for plot in plots {
        let number = |field: &str| plot[field].as_f64().unwrap();
        assert!(number("width") > 200.0 && number("height") > 100.0 && number("texts") > 4.0, "{plot}");
        // threads, STATUS, PACED, REGISTER, ROUND, PURCHASE, OFFERS. REGISTER has two limits, PACED and deals have
        // none; a run this short may use no measurable CPU time.
        let expected = if plot["id"] == "share" { 4.0 } else { 7.0 };
        if plot["id"] != "cpu" {
            assert_eq!((number("curves"), number("legend")), (expected, expected), "{plot}");
            let dots = if plot["id"] == "distribution" { 0.0 } else { 2.0 * expected };
            assert_eq!(number("dots"), dots, "{plot}");
        }
    }
    assert_eq!(browser.ask("return document.querySelectorAll('tbody tr').length"), 16, "a line for each result");
    // The page loads nothing.
    assert_eq!(browser.ask("return performance.getEntriesByType('resource').length"), 0);
    let references = "return document.querySelectorAll('script, link, img, iframe, [src], [href]').length";
    assert_eq!(browser.ask(references), 0);
}

#[test]
fn the_shop_is_measured_in_both_framings() {
    let out = tempfile::tempdir().unwrap();
    let words = ["shop", "--full", "--only", "cart", "--calls", "5", "--clients", "2", "--runs", "1", "--json"];
    let report = report(&perf(&words, out.path()), 0);
    for name in ["CART", "CART (lines)"] {
        let result = result(&report, name);
        assert_eq!((&result["errors"], &result["success_rate"]), (&0.into(), &1.0.into()), "{result}");
        let compared = &report["limits"][format!("{name} of relay at 2")]["runs"];
        assert_eq!(compared["relay"]["ops_per_s"][0], result["limit_ops_per_s"], "each framing has its own relay");
    }
}

#[test]
fn mixes_tell_of_each_operation() {
    let out = tempfile::tempdir().unwrap();
    let words = ["shop", "--full", "--only", "mix,all", "--calls", "26", "--clients", "2", "--runs", "2", "--json"];
    let report = report(&perf(&words, out.path()), 0);
    for (mix, parts) in [("MIX", 4), ("MIX (lines)", 4), ("ALL", 16), ("ALL (lines)", 16)] {
        let whole = result(&report, mix);
        assert_eq!((&whole["errors"], &whole["success_rate"], &whole["runs"]), (&0.into(), &1.0.into(), &2.into()));
        assert_eq!(whole["limit"], "relay", "{whole}");
        let of_it: Vec<&Value> =
            report["results"].as_array().unwrap().iter().filter(|one| one["part_of"] == mix).collect();
        assert_eq!(of_it.len(), parts, "{mix}");
        // Two sellers and two buyers with 26 calls each, all of which are counted.
        let rate = |one: &Value| one["ops_per_s_mean"].as_f64().unwrap();
        let sum: f64 = of_it.iter().map(|one| rate(one)).sum();
        assert!((sum / rate(whole) - 1.0).abs() < 1e-6, "{mix}: {sum} of {whole}");
        for one in of_it {
            assert!(one["p99_us"].as_f64().unwrap() > 0.0 && one["errors"] == 0, "{one}");
            assert!(one["server_cpu_s"].is_null(), "what each cost cannot be told: {one}");
            assert!(one["limit"].is_null(), "its share is the whole's: {one}");
        }
    }
    let purchases = result(&report, "ALL: MakePurchase");
    assert!(purchases["p50_us"].as_f64() > result(&report, "ALL: DisplayCart")["p50_us"].as_f64());
}

#[test]
fn a_slow_server_shows_in_the_latencies() {
    let out = tempfile::tempdir().unwrap();
    let fake = FakeServer::start(FakeBehaviour { delay: Duration::from_millis(20), ..FakeBehaviour::good() });
    let target = fake.addr().to_string();
    let words = ["trade", "--target", &target, "--only", "STATUS", "--clients", "2", "--calls", "10", "--runs", "2"];
    let report = report(&perf(&[&words[..], &["--json"]].concat(), out.path()), 0);
    let status = result(&report, "STATUS");
    assert!(status["p50_us"].as_f64().unwrap() >= 20_000.0, "{status}");
    assert!(status["mean_us"].as_f64().unwrap() >= 20_000.0, "{status}");
    // Two clients in a closed loop cannot exceed a hundred calls per second.
    assert!(status["ops_per_s"].as_f64().unwrap() <= 100.0, "{status}");
    assert!(status["share_of_limit"].as_f64().unwrap() < 0.5, "{status}");
    assert_eq!(status["errors"], 0);
    assert!(status["server_cpu_s"].is_null(), "of a server that is not ours nothing is known: {status}");
}

#[test]
fn refusals_and_losses_are_counted() {
    let out = tempfile::tempdir().unwrap();
    let run = |behaviour| {
        let fake = FakeServer::start(behaviour);
        let target = fake.addr().to_string();
        let words = ["trade", "--target", &target, "--only", "STATUS", "--clients", "1", "--calls", "200"];
        report(&perf(&[&words[..], &["--runs", "2", "--json"]].concat(), out.path()), 0)
    };
    // Every hundredth request is refused: four of 400.
    let refused = run(FakeBehaviour { refuse_every: 100, ..FakeBehaviour::good() });
    let status = result(&refused, "STATUS");
    let failed = status["errors"].as_u64().unwrap();
    assert!((3..=5).contains(&failed), "{status}");
    let rate = status["success_rate"].as_f64().unwrap();
    assert!((rate - (400.0 - failed as f64) / 400.0).abs() < 1e-9, "{status}");
    // Every hundredth request is not answered, but its repetition is: no call fails, but each counts as an error.
    let lost = run(FakeBehaviour { drop_every: 100, ..FakeBehaviour::good() });
    let status = result(&lost, "STATUS");
    assert!((3..=5).contains(&status["errors"].as_u64().unwrap()), "{status}");
    assert_eq!(status["success_rate"], 1.0);
    assert!(status["max_us"].as_f64().unwrap() >= 200_000.0, "waiting for the lost one counts: {status}");
    // A response of another type does not count as success.
    let wrong = run(FakeBehaviour { wrong_every: 100, ..FakeBehaviour::good() });
    assert!((3..=5).contains(&result(&wrong, "STATUS")["errors"].as_u64().unwrap()));
}

#[test]
fn a_missed_requirement_is_told_and_may_fail() {
    let out = tempfile::tempdir().unwrap();
    let fake = FakeServer::start(FakeBehaviour { delay: Duration::from_millis(5), ..FakeBehaviour::good() });
    let target = fake.addr().to_string();
    let words = ["trade", "--target", &target, "--only", "STATUS", "--clients", "1", "--calls", "10", "--runs", "1"];
    let output = perf(&[&words[..], &["--check"]].concat(), out.path());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("MISSED STATUS at 1 client: 0.") && said.contains("of bare (required 0.50)"), "{said}");
    let output = perf(&words, out.path());
    assert_eq!(output.status.code(), Some(0), "without --check it is told only");
    let output = perf(&[&words[..], &["--check", "--relax", "0"]].concat(), out.path());
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("ok     STATUS"), "{}", text(&output.stdout));
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let out = tempfile::tempdir().unwrap();
    let unused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = perf(&["trade", "--quick", "--target", &unused, "--only", "STATUS", "--clients", "1"], out.path());
    assert_eq!(output.status.code(), Some(1));
    // A warning about a busy machine may come first.
    let said = text(&output.stderr);
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_everything_and_writes_what_there_is() {
    let out = tempfile::tempdir().unwrap();
    let words = ["trade", "--full", "--clients", "2", "--json", "--out"];
    let mut child = KillOnDrop(
        Command::new(PERF).args(words).arg(out.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
    );
    let pid = child.0.id();
    // In the middle of the run: the server and both echo servers are there.
    wait_for("three children", || (children(pid).len() == 3).then_some(()));
    let of_it = children(pid);
    // SAFETY: signals the process that was just started and has not been waited for.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGINT) }, 0);
    let status = wait_for("its end", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    for one in of_it {
        assert!(!Path::new(&format!("/proc/{one}")).exists(), "child {one} is left");
    }
    assert_eq!(files(out.path()), ["trade.html", "trade.json"]);
    let written: Value = serde_json::from_slice(&std::fs::read(out.path().join("trade.json")).unwrap()).unwrap();
    assert_eq!(written["scenario"], "trade");
}

#[cfg(target_os = "linux")]
#[test]
fn children_do_not_outlive_a_killed_parent() {
    let out = tempfile::tempdir().unwrap();
    let mut child = KillOnDrop(
        Command::new(PERF)
            .args(["trade", "--full", "--clients", "1", "--out"])
            .arg(out.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let pid = child.0.id();
    wait_for("three children", || (children(pid).len() == 3).then_some(()));
    let of_it = children(pid);
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    wait_for("the children's end", || {
        of_it.iter().all(|one| !Path::new(&format!("/proc/{one}/exe")).exists()).then_some(())
    });
}

#[test]
fn reports_are_compared() {
    let out = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let words = ["trade", "--only", "threads", "--clients", "1", "--calls", "50", "--runs", "1"];
        assert!(perf(&words, out.path()).status.success());
    }
    let [before, after]: [PathBuf; 2] = ["trade.previous.json", "trade.json"].map(|name| out.path().join(name));
    let compare = |words: &[&str]| Command::new(PERF).arg("compare").args(words).output().unwrap();
    let [before, after] = [before.to_str().unwrap(), after.to_str().unwrap()];
    let output = compare(&[before, after]);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("threads") && said.contains("B/A"), "{said}");
    let output = compare(&[before, after, "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["name"], "threads");
    assert!(line["ops_per_s"][0].as_f64().unwrap() > 0.0 && line["ops_per_s"][1].as_f64().unwrap() > 0.0);

    assert_eq!(compare(&[before, "/nonexistent.json"]).status.code(), Some(1));
    let other = out.path().join("other.json");
    let text = std::fs::read_to_string(after).unwrap().replacen("\"trade\"", "\"shop\"", 1);
    std::fs::write(&other, text).unwrap();
    assert_eq!(compare(&[before, other.to_str().unwrap()]).status.code(), Some(1));
    assert_eq!(compare(&[before]).status.code(), Some(2));
}

#[test]
fn wrong_words_are_usage_errors() {
    let out = tempfile::tempdir().unwrap();
    for words in [
        &["nothing"][..],
        &["trade", "--clients", "0"],
        &["trade", "--clients", "x"],
        &["trade", "--calls", "0"],
        &["trade", "--runs", "-1"],
        &["trade", "--quick", "--full"],
        &["trade", "--only", "STATUS,NONSENSE"],
        &["trade", "--relax", "2"],
        &["shop", "--only", "STATUS"],
        &["shop", "--target", "127.0.0.1:8001"],
    ] {
        let output = perf(words, out.path());
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{words:?}");
    }
    for words in [&["--help"][..], &["trade", "--help"], &["shop", "--help"], &["compare", "--help"]] {
        let output = Command::new(PERF).args(words).output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("Example"), "{words:?}");
    }
}

/// A child that is killed when dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        // Other processes cannot be waited for here, so they are polled.
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(target_os = "linux")]
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
