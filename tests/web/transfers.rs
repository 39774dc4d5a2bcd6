//! Transfers: progress, pausing, resuming, cancelling, and senders or servers that go away.

use std::time::{Duration, Instant};

use crate::browser::*;
use crate::nodes::content;
use crate::states::check_page;
use crate::support::scaled;
use crate::world::*;

const MIB: usize = 1 << 20;
/// Slow enough that the progress of a transfer can be observed.
const SLOW_BYTES_PER_S: u64 = 3 << 20;

/// The progress of a transfer in percent, as screen readers get it.
fn percent(browser: &Browser, name: &str) -> f64 {
    let bar = role("progressbar", "").within(transfers_row(name));
    browser.of(&bar, "Number(el.ariaValueNow ?? el.value)").as_f64().unwrap()
}

/// Waits until the progress exceeds `beyond` percent, and returns it.
fn wait_for_progress(browser: &Browser, name: &str, beyond: f64) -> f64 {
    browser.eventually("it to come further", || {
        let now = percent(browser, name);
        Ok((now > beyond).then_some(now))
    })
}

fn wait_for_status(browser: &Browser, name: &str, status: &str) {
    browser.until_of(&transfers_row(name), &format!("el.dataset.status === '{status}'"));
}

#[test]
fn a_transfer_is_watched_paused_resumed_and_cancelled() {
    let world = World::start();
    let (ann, proxy) = world.node_behind_proxy("ann");
    let bob = world.node("bob");
    for name in ["large.bin", "other.bin"] {
        ann.publishes(&world.server, &world.place.file(name, 16 * MIB));
    }
    proxy.set_bytes_per_s(SLOW_BYTES_PER_S);
    let browser = Browser::start();
    sign_up(&browser, &bob);
    browser.click(&button("Fetch").within(network_row("large.bin")));
    browser.sees(&role("progressbar", "").within(network_row("large.bin")));
    open_section(&browser, "Transfers");
    // The bar moves, and a text tells the same.
    let first = wait_for_progress(&browser, "large.bin", 0.0);
    let second = wait_for_progress(&browser, "large.bin", first);
    let said = browser.until_of(
        &transfers_row("large.bin"),
        "/[\\d.]+ MB of 16\\.8 MB · [\\d.]+ [kM]B\\/s · \\d+ s left/.test(el.innerText) && el.innerText",
    );
    assert!(said.as_str().unwrap().contains("ann"), "from whom: {said}");
    check_page(&browser, "transfers-downloading");
    wait_for_progress(&browser, "large.bin", second);

    browser.click(&button("Pause").within(transfers_row("large.bin")));
    wait_for_status(&browser, "large.bin", "paused");
    browser.sees(&text("Paused").within(transfers_row("large.bin")));
    let paused_at = percent(&browser, "large.bin");
    assert!(paused_at < 100.0);
    check_page(&browser, "transfers-paused");
    let progress = fetch_progress(&bob, "large.bin");
    assert_eq!(progress["status"], "paused", "{progress}");
    // The progress does not grow; an incomplete piece may be discarded.
    let stood_at = percent(&browser, "large.bin");
    assert!(stood_at <= paused_at, "{stood_at} after {paused_at}");

    browser.click(&button("Resume").within(transfers_row("large.bin")));
    wait_for_progress(&browser, "large.bin", stood_at);
    // Another transfer, which is cancelled.
    open_section(&browser, "Network");
    browser.click(&button("Fetch").within(network_row("other.bin")));
    open_section(&browser, "Transfers");
    wait_for_progress(&browser, "other.bin", 0.0);
    browser.click(&button("Cancel").within(transfers_row("other.bin")));
    wait_for_status(&browser, "other.bin", "cancelled");
    assert!(!world.fetched_path(&bob, "other.bin").exists());
    proxy.set_bytes_per_s(0);
    wait_for_status(&browser, "large.bin", "completed");
    assert_fetched(&world.fetched_path(&bob, "large.bin"), &content("large.bin", 16 * MIB));
    browser.click(&button("Clear finished"));
    browser.sees_text("No transfers");
    assert!(browser.complaints().is_empty());
}

/// The progress of a fetch as the node's API reports it.
fn fetch_progress(node: &crate::nodes::Node, name: &str) -> serde_json::Value {
    let login = node.post("login", serde_json::json!({"username": node.name, "password": PASSWORD})).1;
    let token = login["token"].as_str().unwrap();
    let (_, answer) = crate::nodes::http(node.api(), "GET", "/api/client/fetches", Some(token), None);
    let mut all = answer["fetches"].as_object().unwrap().values();
    all.find(|progress| progress["file_name"] == name).unwrap_or_else(|| panic!("{answer}")).clone()
}

#[test]
fn when_its_sender_is_gone_the_page_says_so_and_it_goes_on_once_he_is_back() {
    let world = World::start();
    let (ann, proxy) = world.node_behind_proxy("ann");
    let bob = world.node("bob");
    ann.publishes(&world.server, &world.place.file("large.bin", 16 * MIB));
    proxy.set_bytes_per_s(SLOW_BYTES_PER_S);
    let browser = Browser::start();
    sign_up(&browser, &bob);
    browser.click(&button("Fetch").within(network_row("large.bin")));
    open_section(&browser, "Transfers");
    wait_for_progress(&browser, "large.bin", 20.0);
    let restart = ann.kill();
    let row = transfers_row("large.bin");
    let said = browser
        .until_of(&row, "[...el.querySelectorAll('.wrong')].find((it) => !it.hidden && it.innerText)?.innerText");
    assert!(said.as_str().unwrap().contains("ann"), "{said}");
    // It waits for the sender, and is not paused.
    let said = browser.text_of(&row);
    assert!(said.contains("Waiting") && !said.contains("Paused"), "{said}");
    let stopped_at = percent(&browser, "large.bin");
    assert!((1.0..100.0).contains(&stopped_at), "{stopped_at}");
    check_page(&browser, "transfers-sender-gone");
    proxy.set_bytes_per_s(0);
    let _ann = restart();
    wait_for_status(&browser, "large.bin", "completed");
    assert_fetched(&world.fetched_path(&bob, "large.bin"), &content("large.bin", 16 * MIB));
    // The error is no longer shown.
    assert_eq!(browser.count(&css(".wrong").within(row)), 0);
    assert!(browser.complaints().is_empty());
}

#[test]
fn a_second_tab_shows_the_same_and_one_signed_out_is_out_in_both() {
    let world = World::start();
    let (ann, proxy) = world.node_behind_proxy("ann");
    let bob = world.node("bob");
    ann.publishes(&world.server, &world.place.file("large.bin", 16 * MIB));
    proxy.set_bytes_per_s(SLOW_BYTES_PER_S);
    let browser = Browser::start();
    sign_up(&browser, &bob);
    let first = browser.tab();
    let second = browser.open_tab(&format!("{}#transfers", node_url(&bob)));
    wait_until_signed_in(&browser);
    browser.sees_text("No transfers");
    browser.to_tab(&first);
    browser.click(&button("Fetch").within(network_row("large.bin")));
    browser.to_tab(&second);
    let here = wait_for_progress(&browser, "large.bin", 0.0);
    wait_for_progress(&browser, "large.bin", here);
    browser.click(&button("Pause").within(transfers_row("large.bin")));
    browser.to_tab(&first);
    open_section(&browser, "Transfers");
    wait_for_status(&browser, "large.bin", "paused");
    browser.click(&button("Cancel").within(transfers_row("large.bin")));
    browser.to_tab(&second);
    wait_for_status(&browser, "large.bin", "cancelled");
    browser.click(&button("Sign out"));
    browser.sees(&textbox("Password"));
    browser.to_tab(&first);
    browser.sees(&textbox("Password"));
    assert!(browser.complaints().is_empty());
}

/// How long a stopped process stays down.
fn downtime() -> Duration {
    Duration::from_secs(scaled(20) as u64)
}

/// Starts to count how often the banner appears.
fn count_banners(browser: &Browser) {
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
}

fn wait_out_downtime(since: Instant) {
    std::thread::sleep(downtime().saturating_sub(since.elapsed()));
}

#[test]
fn a_node_that_is_away_is_told_of_once_and_the_page_goes_on_by_itself() {
    let world = World::start();
    let (mut ann, bob) = (world.node("ann"), world.node("bob"));
    ann.register();
    let browser = Browser::start();
    sign_up(&browser, &bob);
    count_banners(&browser);
    browser.fill(&textbox("Search"), "repo");
    browser.ask("window.isTheSame = true");
    let since = Instant::now();
    let restart = bob.kill();
    browser.sees_text("P2S2 does not answer");
    browser.sees(&button("Node: No answer"));
    check_page(&browser, "node-away");
    // The page may retry as often as it likes meanwhile.
    wait_out_downtime(since);
    ann.publishes(&world.server, &world.place.file("report.txt", 1000));
    let bob = restart();
    browser.sees_no(&css(".banner"));
    browser.until_of(&button("Node:"), "!/No answer|Disconnected|Connecting/.test(el.ariaLabel)");
    // New files are shown, and the search text is kept.
    browser.sees(&network_row("report.txt"));
    assert_eq!(browser.of(&textbox("Search"), "el.value"), "repo");
    assert_eq!(browser.ask("return [window.isTheSame, window.banners]"), serde_json::json!([true, 1]));
    browser.click(&button("Fetch").within(network_row("report.txt")));
    open_section(&browser, "Transfers");
    wait_for_status(&browser, "report.txt", "completed");
    assert_fetched(&world.fetched_path(&bob, "report.txt"), &content("report.txt", 1000));
    assert!(browser.complaints().is_empty());
}

#[test]
fn a_server_that_is_away_is_shown_and_what_comes_after_is_seen() {
    let mut world = World::start();
    let (mut ann, bob) = (world.node("ann"), world.node("bob"));
    ann.register();
    ann.publishes(&world.server, &world.place.file("before.txt", 1000));
    let browser = Browser::start();
    sign_up(&browser, &bob);
    browser.sees(&network_row("before.txt"));
    let since = Instant::now();
    let restart = world.server.kill();
    browser.sees(&button("Node: Disconnected"));
    check_page(&browser, "server-away");
    browser.click(&button("Node: Disconnected"));
    browser.sees_text("The server is not there");
    browser.press("Escape");
    wait_out_downtime(since);
    world.server = restart();
    browser.until_of(&button("Node:"), "!/Disconnected|Connecting/.test(el.ariaLabel)");
    ann.publishes(&world.server, &world.place.file("after.txt", 1000));
    browser.sees(&network_row("after.txt"));
    browser.sees(&network_row("before.txt"));
    assert!(browser.complaints().is_empty());
}
