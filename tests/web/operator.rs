//! The operator's page: metrics, lists, and access control.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::browser::*;
use crate::nodes::{http, raw_http};
use crate::states::check_page;
use crate::support::{GOOD_CARD, PATIENCE, Peer, Server, scaled, settle};
use crate::world::{Host, free_port, wait_until_idle, watch_requests};

/// A server with all services and an admin account.
struct OperatedServer {
    server: Server,
    api: SocketAddr,
    registry: SocketAddr,
    /// Dropped last.
    _dir: tempfile::TempDir,
}

impl OperatedServer {
    fn start() -> OperatedServer {
        let dir = tempfile::tempdir().unwrap();
        // A fixed port, for restarts.
        let port = free_port();
        let args =
            ["--services", "trade,shop,share", "--api-port", &port, "--registry-port", "0", "--product-port", "0"];
        let args = [&args[..], &["--customer-port", "0", "--seller-port", "0", "--buyer-port", "0"]].concat();
        let env = [("ADMIN_USERNAME", "root"), ("ADMIN_PASSWORD", "a longer secret")];
        let server = Server::start_in(dir.path(), &args, &env);
        let [api, registry] = addrs(&server);
        OperatedServer { server, api, registry, _dir: dir }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// Registers an account and returns its token.
    fn user(&self, name: &str) -> String {
        let body = json!({"username": name, "password": "correct horse", "display_name": format!("{name} Doe")});
        let (status, answer) = http(self.api, "POST", "/api/user/register", None, Some(&body));
        assert!((200..300).contains(&status), "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    }

    fn sign_in(&self, browser: &Browser) {
        browser.open(&self.url("/admin"));
        browser.fill(&textbox("User name"), "root");
        browser.fill(&textbox("Password"), "a longer secret");
        browser.click(&button("Sign in"));
        browser.sees_no(&textbox("Password"));
    }
}

fn addrs(server: &Server) -> [SocketAddr; 2] {
    let ready: Value = serde_json::from_str(&fs::read_to_string(server.dir.join("ready.json")).unwrap()).unwrap();
    ["server_api", "registry"].map(|name| ready[name].as_str().unwrap().parse().unwrap())
}

/// Waits until a number of the overview satisfies `holds`, and returns it.
fn wait_for_figure(browser: &Browser, label: &str, holds: impl Fn(f64) -> bool) -> f64 {
    let script =
        "const term = [...document.querySelectorAll('dt')].find((it) => it.textContent.trim() === arguments[0]);
        const number = Number(term?.nextElementSibling.querySelector('b').textContent.replaceAll(',', ''));
        return Number.isFinite(number) ? [number] : null";
    browser.eventually(&format!("{label} to be as it should"), || {
        let value = browser.ask_with(script, json!([label]));
        Ok(value[0].as_f64().filter(|number| holds(*number)))
    })
}

/// Stops [`generate_load`] when dropped.
struct LoadGuard<'a>(&'a AtomicBool);

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn generate_load(registry: SocketAddr, is_over: &AtomicBool) {
    let mut stream = TcpStream::connect(registry).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while !is_over.load(Relaxed) {
        stream.write_all(b"{\"action\":\"REQUEST\",\"data\":{\"fname\":\"a file\"}}\n").unwrap();
        line.clear();
        answers.read_line(&mut line).unwrap();
        // A few hundred requests per second suffice.
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn figures_move_while_the_server_works_and_every_list_shows_what_there_is() {
    let there = OperatedServer::start();
    let browser = Browser::start();
    browser.open(&there.url("/"));
    browser.sees_text("This server is up");
    check_page(&browser, "server-home");
    browser.open(&there.url("/admin"));
    browser.sees(&role("dialog", "Sign in"));
    check_page(&browser, "operator-sign-in");
    browser.fill(&textbox("User name"), "root");
    browser.fill(&textbox("Password"), "wrong");
    browser.click(&button("Sign in"));
    browser.sees(&css(".wrong"));
    check_page(&browser, "operator-sign-in-wrong");
    browser.fill(&textbox("Password"), "a longer secret");
    browser.click(&button("Sign in"));
    wait_for_figure(&browser, "Hosts online", |hosts| hosts == 0.0);
    browser.ask("window.isTheSame = true");
    check_page(&browser, "operator-empty");
    let section = |name: &str| browser.click(&role("link", name).within(css("nav")));
    watch_requests(&browser);
    for (name, nothing) in [
        ("Hosts", "No host has registered yet"),
        ("Accounts", "Nobody has signed up yet"),
        ("Deals", "No deal is open"),
        ("Ledger", "No money has moved yet"),
        ("Log", "The server has warned of nothing"),
    ] {
        section(name);
        browser.sees_text(nothing);
        wait_until_idle(&browser);
    }
    section("Overview");

    // Request rates and charts under load.
    let is_over = AtomicBool::new(false);
    let _hosts = thread::scope(|scope| {
        let _load = LoadGuard(&is_over);
        scope.spawn(|| generate_load(there.registry, &is_over));
        let some = wait_for_figure(&browser, "Requests", |requests| requests > 20.0);
        wait_for_figure(&browser, "Requests", |requests| requests > 20.0 && requests != some);
        let harbour =
            Host::register(there.registry, "harbour", "The <i>Harbour</i>", [("a file", 1_000_000), ("b file", 10)]);
        wait_for_figure(&browser, "Hosts online", |hosts| hosts == 1.0);
        wait_for_figure(&browser, "Files", |files| files == 2.0);
        let mole = Host::register(there.registry, "mole", "Mole", [("a file", 1_000_000)]);
        wait_for_figure(&browser, "Hosts online", |hosts| hosts == 2.0);
        // The chart has a line, and a text with the same values.
        let drawn = "const [canvas] = el.getElementsByTagName('canvas');
            return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((it) => it > 0)";
        let chart = css("[aria-label=Share] figure");
        browser.until_of(&chart, &format!("(() => {{ {drawn} }})()"));
        browser.until_of(&chart, "/requests: now [1-9]/.test(el.textContent)");
        [harbour, mole]
    });
    // An open deal and a paid one.
    let (mut alice, mut bob) = (Peer::new(&there.server, "alice"), Peer::new(&there.server, "bob"));
    let rq = bob.look_for("lamp", 90.0);
    alice.offer("lamp", 80.0);
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    bob.look_for("a <b>boat</b>", 1000.0);
    alice.offer("a <b>boat</b>", 900.0);
    alice.push("RESERVE");
    wait_for_figure(&browser, "Open deals", |deals| deals == 1.0);
    there.user("carol");
    wait_for_figure(&browser, "Accounts", |accounts| accounts == 1.0);
    check_page(&browser, "operator-overview");

    section("Hosts");
    browser.sees(&row("Mole").within(role("table", "Hosts")));
    let said = browser.text_of(&row("harbour").within(role("table", "Hosts")));
    assert!(said.contains("The <i>Harbour</i>") && said.contains("online"), "{said}");
    browser.sees(&row("carol").within(role("table", "Hosts")));
    browser.fill(&textbox("Search hosts"), "harb");
    browser.sees_no(&row("Mole").within(role("table", "Hosts")));
    check_page(&browser, "operator-hosts");
    browser.click(&button("").within(row("harbour").within(role("table", "Hosts"))));
    browser.sees_text("b file");
    check_page(&browser, "operator-host");
    browser.press("Escape");

    section("Accounts");
    browser.sees(&row("carol").within(role("table", "Accounts")));
    check_page(&browser, "operator-accounts");
    browser.click(&button("Block carol"));
    browser.sees(&role("dialog", "Block carol?"));
    check_page(&browser, "operator-block");
    browser.click(&button("Block"));
    browser.sees(&button("Unblock carol"));
    let body = json!({"username": "carol", "password": "correct horse"});
    assert_eq!(http(there.api, "POST", "/api/user/login", None, Some(&body)).0, 403);
    browser.click(&button("Unblock carol"));
    browser.click(&button("Unblock"));
    browser.sees(&button("Block carol"));
    assert_eq!(http(there.api, "POST", "/api/user/login", None, Some(&body)).0, 200);

    section("Deals");
    let deal = browser.text_of(&row("a <b>boat</b>").within(role("table", "Deals")));
    assert!(deal.contains("reserved") && deal.contains("bob") && deal.contains("alice"), "{deal}");
    let left = |browser: &Browser| browser.text_of(&css("td.c-left").within(row("a <b>boat</b>")));
    let before = left(&browser);
    browser.eventually("its time to run", || Ok((left(&browser) != before).then_some(())));
    check_page(&browser, "operator-deals");

    section("Ledger");
    browser.sees_text("the books balance");
    browser.sees_text("card:bob");
    check_page(&browser, "operator-ledger");
    section("Log");
    browser.sees(&role("heading", "Log"));
    check_page(&browser, "operator-log");
    browser.click(&button("Everything"));
    browser.sees(&row("<b>boat</b>").within(role("table", "Log")));
    check_page(&browser, "operator-log-everything");
    browser.click(&button("").within(row("<b>boat</b>").within(role("table", "Log"))));
    browser.sees(&role("dialog", ""));
    check_page(&browser, "operator-log-line");
    browser.press("Escape");
    assert_eq!(browser.ask("return window.isTheSame"), true, "all of it without loading the page again");
    browser.click(&button("Sign out"));
    browser.sees(&textbox("Password"));
}

/// A running `p2s2-perf`.
struct Perf(Child);

impl Perf {
    fn start(args: &[&str], out: &Path) -> Perf {
        let program = env!("CARGO_BIN_EXE_p2s2-perf");
        let child = Command::new(program).args(args).arg("--out").arg(out).stdout(Stdio::null()).spawn();
        Perf(child.unwrap())
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

#[test]
fn figures_move_under_the_load_that_p2s2_perf_makes() {
    let there = OperatedServer::start();
    let browser = Browser::start();
    there.sign_in(&browser);
    wait_for_figure(&browser, "Hosts online", |hosts| hosts == 0.0);
    browser.ask("window.isTheSame = true");
    let out = tempfile::tempdir().unwrap();
    let target = there.registry.to_string();
    let quick = ["registry", "--quick", "--target", &target];
    let args = if scaled(10) == 10 { quick.to_vec() } else { [&quick[..], &["--only", "PUBLISH"]].concat() };
    let mut perf = Perf::start(&args, out.path());
    // A thousand hosts register and publish a file each.
    wait_for_figure(&browser, "Hosts online", |hosts| hosts >= 1000.0);
    wait_for_figure(&browser, "Files", |files| files >= 1000.0);
    check_page(&browser, "operator-under-load");
    let (mut fewest, mut most, mut points) = (f64::INFINITY, 0.0, 0);
    while perf.0.try_wait().unwrap().is_none() {
        let now = wait_for_figure(&browser, "Requests", |_| true);
        (fewest, most, points) = (fewest.min(now), f64::max(most, now), points + 1);
        thread::sleep(Duration::from_millis(200));
    }
    assert!(perf.0.wait().unwrap().success());
    assert!(points >= 10 && most >= 1000.0 && fewest < most / 2.0, "{points} points, {fewest} to {most} a second");
    // Then they leave.
    wait_for_figure(&browser, "Hosts online", |hosts| hosts == 0.0);
    wait_for_figure(&browser, "Requests", |requests| requests < 10.0);
    assert_eq!(browser.ask("return window.isTheSame"), true, "all of it without loading the page again");
}

#[test]
fn a_server_that_is_away_is_told_of_once_and_its_page_goes_on_by_itself() {
    let there = OperatedServer::start();
    let browser = Browser::start();
    there.sign_in(&browser);
    wait_for_figure(&browser, "Hosts online", |hosts| hosts == 0.0);
    browser.ask(
        "window.banners = 0;
         const banner = document.querySelector('.banner');
         let was = !banner.hidden;
         new MutationObserver(() => {
             const is = !banner.hidden;
             if (is && !was) window.banners += 1;
             was = is;
         }).observe(banner, { attributes: true });",
    );
    let OperatedServer { server, _dir, .. } = there;
    let (dir, since) = (server.dir.clone(), Instant::now());
    let port = addrs(&server)[0].port().to_string();
    drop(server);
    browser.sees_text("P2S2 does not answer");
    check_page(&browser, "operator-away");
    thread::sleep(Duration::from_secs(scaled(20) as u64).saturating_sub(since.elapsed()));
    let args = ["--services", "share", "--api-port", &port, "--registry-port", "0"];
    let server = Server::start_in(&dir, &args, &[]);
    browser.sees_no(&css(".banner"));
    let _harbour = Host::register(addrs(&server)[1], "harbour", "Harbour", [("a file", 1000)]);
    wait_for_figure(&browser, "Hosts online", |hosts| hosts == 1.0);
    assert_eq!(browser.ask("return window.banners"), 1);
    // Services that do not run any more are reported as such.
    browser.click(&role("link", "Deals").within(css("nav")));
    browser.sees_text("not running here");
    check_page(&browser, "operator-without-trade");
}

#[test]
fn nobody_but_the_operator_gets_anything_of_it() {
    let there = OperatedServer::start();
    let users = there.user("carol");
    let _harbour = Host::register(there.registry, "harbour", "Harbour", [("a file", 1000)]);
    let own = format!("Host: {}", there.api);
    let (status, described) = raw_http(there.api, "GET", "/api/openapi.json", &[&own], None);
    assert_eq!(status, 200);
    let described: Value = serde_json::from_str(&described).unwrap();
    let mut looked_at = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        if !path.starts_with("/api/admin/") || path == "/api/admin/login" {
            continue;
        }
        let real = path.replace("{hostname}", "harbour").replace("{name}", "carol").replace("{id}", "1");
        assert!(!real.contains('{'), "{real}");
        for method in methods.as_object().unwrap().keys().filter(|key| ["get", "post"].contains(&key.as_str())) {
            let method = method.to_uppercase();
            let ask = |token: Option<&str>| {
                let bearer = token.map(|token| format!("Authorization: Bearer {token}"));
                let mut head = vec![own.as_str()];
                head.extend(bearer.as_deref());
                let body = (method == "POST").then_some("{}");
                head.extend(body.map(|_| "Content-Type: application/json"));
                raw_http(there.api, &method, &real, &head, body)
            };
            for (token, expected) in [(None, 401), (Some("x"), 401), (Some(users.as_str()), 403)] {
                let (status, body) = ask(token);
                assert_eq!(status, expected, "{method} {real} with {token:?}: {body}");
                let body: Value = serde_json::from_str(&body).unwrap();
                let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
                assert!(fields.iter().all(|field| ["success", "error"].contains(&field.as_str())), "{body}");
            }
            looked_at += 1;
        }
    }
    assert!(looked_at >= 10, "{looked_at} routes");
}
