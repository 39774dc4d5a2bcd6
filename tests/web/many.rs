//! Scale: very many files, very large files, and many event streams.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::*;
use crate::nodes::{Node, content};
use crate::states::check_page;
use crate::support::{PATIENCE, scaled};
use crate::world::*;

/// The promised time, or four times that in a debug build.
fn time_limit(promised: Duration) -> Duration {
    if cfg!(debug_assertions) { promised * 4 } else { promised }
}

/// JavaScript: the number of rows of files in the document.
const ROWS: &str = "document.querySelectorAll('#network-files tbody tr').length";

#[test]
fn a_very_long_list_is_there_at_once_found_as_one_types_and_scrolled_without_a_stutter() {
    let world = World::start();
    let (count, each) = (scaled(50_000), 1000);
    for number in 0..count.div_ceil(each) {
        let names: Vec<String> = (0..each).map(|n| format!("file {number:02}-{n:03}.dat")).collect();
        let hostname = format!("host-{number:02}");
        drop(world.host(&hostname, &hostname, names.iter().map(|name| (name.as_str(), 1000))));
    }
    let ann = world.node("ann");
    let browser = Browser::start();
    sign_up(&browser, &ann);
    let shown = browser.until("the count", "return document.querySelector('#found').textContent");
    assert!(shown.as_str().unwrap().starts_with(&thousands(count)), "{shown}");

    // From the request of the page to the first row of files.
    let first = best_of_three(time_limit(Duration::from_secs(1)), || {
        browser.reload();
        let ms = browser.until(
            "rows",
            &format!(
                "if (!{ROWS} || document.querySelector('#network-files tr.blank')) return null;
             return window.firstRows ??= performance.now();"
            ),
        );
        Duration::from_secs_f64(ms.as_f64().unwrap() / 1000.0)
    });

    // From a key press to the search result, measured in the page.
    let mut number = 0;
    let typed = best_of_three(time_limit(Duration::from_millis(100)), || {
        number += 1;
        let sought = format!("00-{number:03}");
        let ms = browser.ask_later(
            "const [sought, wanted] = given, field = document.querySelector('#search');
             field.focus();
             const begun = performance.now();
             field.value = sought;
             field.dispatchEvent(new InputEvent('input', { bubbles: true }));
             for (;;) {
                 const rows = [...document.querySelectorAll('#network-files tbody tr')];
                 if (rows.length === 1 && rows[0].dataset.name === wanted) return performance.now() - begun;
                 await new Promise((resolve) => requestAnimationFrame(resolve));
             }",
            json!([sought, format!("file {sought}.dat")]),
        );
        Duration::from_secs_f64(ms.as_f64().unwrap() / 1000.0)
    });

    // Scrolling through the whole list, one step per frame.
    browser.fill(&textbox("Search"), "");
    browser.until("all rows", &format!("return {ROWS} > 10"));
    check_page(&browser, "network-many");
    let mut rows_max = 0;
    let frame = best_of_three(time_limit(Duration::from_millis(50)), || {
        let measured = browser.ask_later(
            "const height = document.scrollingElement.scrollHeight - innerHeight, frames = [];
             let most = 0, before = performance.now();
             for (let n = 0; n <= 120; n += 1) {
                 scrollTo(0, (height * n) / 120);
                 await new Promise((resolve) => requestAnimationFrame(resolve));
                 const now = performance.now();
                 frames.push(now - before);
                 before = now;
                 most = Math.max(most, document.querySelectorAll('#network-files tbody tr').length);
             }
             frames.sort((a, b) => a - b);
             return [frames[Math.floor(frames.length * 0.95)], most];",
            json!([]),
        );
        rows_max = rows_max.max(measured[1].as_u64().unwrap());
        Duration::from_secs_f64(measured[0].as_f64().unwrap() / 1000.0)
    });
    println!(
        "{count} files: first rows {first:?}, typed {typed:?}, 95 of 100 frames {frame:?}, at most {rows_max} rows"
    );
    assert!(rows_max < 200, "{rows_max} rows at once");
    // At the end, the last file is shown.
    let last = format!("file {:02}-999.dat", count.div_ceil(each) - 1);
    browser.sees(&network_row(&last));
    assert!(browser.complaints().is_empty());
}

/// Formats a number like `50,000`.
fn thousands(count: usize) -> String {
    if count < 1000 { count.to_string() } else { format!("{},{:03}", count / 1000, count % 1000) }
}

/// The best of up to three measurements: a busy machine may spoil one of them.
#[track_caller]
fn best_of_three(at_most: Duration, mut measure: impl FnMut() -> Duration) -> Duration {
    let mut best = measure();
    for _ in 0..2 {
        if best <= at_most {
            return best;
        }
        best = best.min(measure());
    }
    assert!(best <= at_most, "{best:?}, and not {at_most:?}");
    best
}

/// Resident memory of a node process, in KiB.
fn rss_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Opens an event stream and reads up to the first comment.
fn open_event_stream(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.api()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let token = node.token.as_deref().unwrap();
    write!(stream, "GET /api/client/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", node.api())
        .unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains(" 200 "));
    assert!(lines.any(|line| line.starts_with(':')), "it begins with a comment");
    stream
}

#[test]
fn sixty_four_who_look_on_cost_little() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    // The first stream starts what all of them share.
    let mut all = vec![open_event_stream(&ann)];
    let before = rss_kib(&ann);
    all.extend((1..64).map(|_| open_event_stream(&ann)));
    // All of them get an event.
    let path = world.place.file("a.txt", 10);
    ann.does("add-file", json!({ "filepath": path }));
    for stream in &all {
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("a.txt")));
    }
    let more = rss_kib(&ann).saturating_sub(before);
    println!("64 event streams: {more} KiB");
    assert!(more < 8 << 10, "{more} KiB");
}

/// Sends a request with this head. Returns status, headers and body of the response.
fn exchange(node: &Node, head: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(node.api()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let token = node.token.as_deref().unwrap();
    write!(
        stream,
        "{head}\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        node.api(),
        body.len()
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), answer[end + 4..].to_vec())
}

#[test]
fn a_large_file_goes_in_and_out_as_it_is_with_constant_memory() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    let large = content("large", scaled(400 << 20));
    let small = b"small";
    exchange(&ann, "POST /api/client/upload/small.bin HTTP/1.1\r\nContent-Type: application/octet-stream", small);
    let before = rss_kib(&ann);
    let (status, _, answer) =
        exchange(&ann, "POST /api/client/upload/large.bin HTTP/1.1\r\nContent-Type: application/octet-stream", &large);
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["file"]["size"]), (200, &json!(large.len())), "{answer}");
    assert_fetched(&world.fetched_path(&ann, "large.bin"), &large);
    let path = "/api/client/files/large.bin/content";
    let (status, head, body) = exchange(&ann, &format!("GET {path} HTTP/1.1"), b"");
    assert_eq!(status, 200);
    assert!(
        head.contains("accept-ranges: bytes") && head.contains("etag: \"") && head.contains("attachment"),
        "{head}"
    );
    assert!(body == large);
    let (status, head, body) = exchange(&ann, &format!("GET {path} HTTP/1.1\r\nRange: bytes=1000000-1999999"), b"");
    assert_eq!(status, 206, "{head}");
    assert!(head.contains(&format!("content-range: bytes 1000000-1999999/{}", large.len())), "{head}");
    assert!(body == large[1_000_000..2_000_000]);
    let more = rss_kib(&ann).saturating_sub(before);
    println!("a file of {} bytes in and out: {more} KiB", large.len());
    assert!(more < 16 << 10, "{more} KiB");
    // The same from the page, with a progress bar.
    let own = world.device_file("from the page.bin", scaled(400 << 20));
    let browser = Browser::start();
    sign_in(&browser, &ann);
    open_section(&browser, "My files");
    browser.choose(&hidden("input[type=file]:not([capture])"), &[&own]);
    browser.sees(&my_files_row("from the page.bin"));
    browser.sees_no(&role("progressbar", "Adding"));
    assert_fetched(&world.fetched_path(&ann, "from the page.bin"), &fs::read(&own).unwrap());
    assert!(browser.complaints().is_empty());
}
