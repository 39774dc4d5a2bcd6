//! Hostile input and requests: names are shown as text, and foreign pages can neither read nor change anything.

use std::fs;

use serde_json::{Value, json};

use crate::browser::*;
use crate::nodes::{Server, TestDir, http, raw_http};
use crate::other_site::OtherSite;
use crate::states::check_page;
use crate::support::eventually;
use crate::world::*;

/// Names that would have an effect if they were not treated as text. They must not contain a slash.
const NAMES: [&str; 7] = [
    "<script>window.harmed=1",
    "<img src=x onerror=\"window.harmed=1\">.png",
    "\"><svg onload='window.harmed=1'>",
    "'; window.harmed=1; '.txt",
    "{{constructor.constructor('window.harmed=1')()}} ${window.harmed=1}",
    "javascript:window.harmed=1",
    "\u{202E}gpj.tset\u{202C} שלום عالم.txt",
];

/// A name of maximal length without a place for a line break.
fn longest_name() -> String {
    format!("{}.bin", "W".repeat(251))
}

#[track_caller]
fn assert_unharmed(browser: &Browser) {
    let harm = browser.ask(
        "return [window.harmed ?? 0, document.querySelectorAll('main script, main img[src=x], main svg[onload]').length]",
    );
    assert_eq!(harm, json!([0, 0]));
    assert_eq!(browser.complaints(), [""; 0]);
}

/// The name with bidirectional control characters replaced, as the page shows it.
fn as_shown(name: &str) -> String {
    name.replace(['\u{202E}', '\u{202C}'], "\u{FFFD}")
}

/// Waits until a row of the table has exactly this name.
#[track_caller]
fn wait_for_name(browser: &Browser, table: &str, name: &str) {
    let name = as_shown(name);
    browser.until_with(
        &format!("{name} in {table}"),
        "return [...document.querySelectorAll(`${arguments[0]} tr .title`)].some((el) => el.textContent === arguments[1])",
        &json!([table, name]),
    );
}

#[test]
fn hostile_names_are_text_on_the_nodes_page() {
    let world = World::start();
    let ann = world.node("ann");
    let long = longest_name();
    let names: Vec<&str> = NAMES.iter().copied().chain([long.as_str()]).collect();
    let people = ["<script>window.harmed=1</script>", "\"><img src=x onerror=window.harmed=1>", "ש\u{202E}<b>abc"];
    for (number, person) in people.iter().enumerate() {
        // The third one may break the rule for display names and be refused.
        let files = json!({"size": 5, "modified": 1, "is_published": true});
        let listed: serde_json::Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), files.clone())).collect();
        let data =
            json!({"hostname": format!("h{number}"), "port": 6001, "display_name": person, "files_metadata": listed});
        let answer = world.server.ask("REGISTER", data);
        assert!(number == 2 || answer["status"] == "OK", "{answer}");
    }
    let browser = Browser::start();
    sign_up(&browser, &ann);
    for name in &names {
        wait_for_name(&browser, "#network-files", name);
    }
    check_page(&browser, "hostile-network");
    assert_unharmed(&browser);
    // A search without results.
    browser.fill(&textbox("Search"), "<b onclick=window.harmed=1>nothing");
    browser.sees_text("<b onclick=window.harmed=1>nothing");
    check_page(&browser, "hostile-search");
    browser.fill(&textbox("Search"), "script");
    wait_for_name(&browser, "#network-files", NAMES[0]);
    // A fetch from a host that is offline: the error contains its name.
    browser.click(&button("Fetch").within(css("#network-files tr[data-name^='<script>'][data-owner=h0]")));
    open_section(&browser, "Transfers");
    wait_for_name(&browser, "#fetches", NAMES[0]);
    browser.until_of(&transfers_row(NAMES[0]), "el.querySelector('.wrong')?.innerText");
    check_page(&browser, "hostile-transfers");
    assert_unharmed(&browser);
    browser.click(&button("Cancel").within(transfers_row(NAMES[0])));
    open_section(&browser, "People");
    wait_for_name(&browser, "#peers", people[0]);
    wait_for_name(&browser, "#peers", people[1]);
    check_page(&browser, "hostile-people");
    assert_unharmed(&browser);

    // Own files that are uploaded by the browser, with names that a disk accepts.
    open_section(&browser, "My files");
    for name in &names {
        let path = world.device_file("hostile", 100).with_file_name(name);
        fs::write(&path, name).unwrap();
        browser.choose(&hidden("input[type=file]:not([capture])"), &[&path]);
        wait_for_name(&browser, "#local-files", name);
    }
    check_page(&browser, "hostile-files");
    browser.click(&button("Publish").within(my_files_row(NAMES[1])));
    browser.sees(&role("dialog", "Others have this already"));
    check_page(&browser, "hostile-duplicate");
    browser.click(&button("Publish anyway"));
    browser.sees(&button("Unpublish").within(my_files_row(NAMES[1])));
    browser.click(&button("More").within(my_files_row(NAMES[1])));
    browser.sees(&role("dialog", NAMES[1]));
    check_page(&browser, "hostile-details");
    assert_unharmed(&browser);
    browser.press("Escape");
}

#[test]
fn hostile_names_are_text_on_the_operators_page() {
    let place = TestDir::new();
    let env = [("ADMIN_USERNAME", "root"), ("ADMIN_PASSWORD", "a longer secret")];
    let server = Server::start_with(&place, &[], &env);
    let (script, picture) = ("<script>window.harmed=1</script>", "\"><img src=x onerror=window.harmed=1>");
    let files = NAMES.iter().map(|name| (*name, 10));
    let _host = Host::register(server.registry(), script, picture, files);
    let account = json!({"username": "mallory", "password": "long enough", "display_name": script});
    assert_eq!(http(server.api(), "POST", "/api/user/register", None, Some(&account)).0, 200);
    let wrong = json!({"username": picture, "password": "long enough"});
    assert_eq!(http(server.api(), "POST", "/api/user/login", None, Some(&wrong)).0, 401);
    let browser = Browser::start();
    browser.open(&format!("http://{}/admin", server.api()));
    browser.fill(&textbox("User name"), "root");
    browser.fill(&textbox("Password"), "a longer secret");
    browser.click(&button("Sign in"));
    open_section(&browser, "Hosts");
    let host = row(picture).within(role("table", "Hosts"));
    browser.sees(&host);
    browser.sees(&row(script).within(role("table", "Hosts")));
    check_page(&browser, "hostile-operator-hosts");
    browser.click(&button("").within(host));
    for name in NAMES.map(as_shown) {
        browser.sees(&text(&name).within(role("dialog", "")));
    }
    check_page(&browser, "hostile-operator-host");
    assert_unharmed(&browser);
    browser.press("Escape");
    open_section(&browser, "Accounts");
    browser.sees(&row(script).within(role("table", "Accounts")));
    check_page(&browser, "hostile-operator-accounts");
    assert_unharmed(&browser);
}

#[test]
fn a_page_of_another_origin_gets_and_moves_nothing() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    let file = world.place.file("a.txt", 10);
    ann.does("add-file", json!({ "filepath": file }));
    let (node, token) = (node_url(&ann), ann.token.clone().unwrap());
    let evil = "<!doctype html><title>evil</title><p>evil</p>";
    let there = OtherSite::start(&[("/", "text/html", evil)]);
    let browser = Browser::start();
    browser.open(&there.url("/"));
    browser.sees_text("evil");
    // Even with a valid token, which it cannot have.
    let tries = "const [url, token] = arguments;
        const authorized = { Authorization: `Bearer ${token}` };
        const outcome = (path, options) => fetch(url + path, options).then(
            async (answer) => [answer.type, answer.status, (await answer.text()).length], (error) => error.name);
        return (async () => [
            await outcome(''),
            await outcome('api/client/node'),
            await outcome('api/client/local-files', { headers: authorized }),
            await outcome('api/client/remove-file', { method: 'POST', headers: { ...authorized, 'Content-Type': 'application/json' }, body: '{\"fname\":\"a.txt\"}' }),
            await outcome('api/client/local-files', { mode: 'no-cors', headers: authorized }),
            await outcome('api/client/remove-file', { method: 'POST', mode: 'no-cors', body: '{\"fname\":\"a.txt\"}' }),
            await outcome('api/client/upload/evil.txt', { method: 'POST', headers: authorized, body: 'evil' }),
        ])();";
    let outcomes =
        browser.ask_later(&format!("return (function () {{ {tries} }})(...arguments)"), json!([node, token]));
    for outcome in outcomes.as_array().unwrap() {
        // No response can be read.
        assert!(outcome == "TypeError" || outcome == &json!(["opaque", 0, 0]), "{outcomes}");
    }
    let files = ann.shows("local-files");
    assert_eq!((&files["total"], &files["files"][0]["name"]), (&json!(1), &json!("a.txt")), "{files}");
    // Nor can it read a page in a window that it has opened.
    browser.ask_with("window.other = window.open(arguments[0]); return null", json!([node]));
    let read = browser.ask("try { return other.document.title } catch (error) { return error.name }");
    assert_eq!(read, "SecurityError");
}

#[test]
fn a_form_of_another_page_is_refused() {
    let world = World::start();
    let ann = world.node("ann");
    let form = |kind: &str, action: &str| {
        format!(
            "<!doctype html><title>form</title><form method=\"post\" enctype=\"{kind}\" action=\"{action}\">
             <input name='{{\"username\":\"mallory\",\"password\":\"long enough\",\"x\":\"' value='\"}}'>
             <button>Go</button></form>"
        )
    };
    let action = format!("{}api/client/register", node_url(&ann));
    let (plain, usual) = (form("text/plain", &action), form("application/x-www-form-urlencoded", &action));
    let there = OtherSite::start(&[("/plain", "text/html", &plain), ("/usual", "text/html", &usual)]);
    let browser = Browser::start();
    for path in ["/plain", "/usual"] {
        browser.open(&there.url(path));
        browser.click(&button("Go"));
        browser
            .until("the answer", &format!("return location.href === '{action}' && document.readyState === 'complete'"));
        let answered = browser.ask("return performance.getEntriesByType('navigation')[0].responseStatus");
        assert!(answered == 403 || answered == 415, "{answered}");
    }
    let login = json!({"username": "mallory", "password": "long enough"});
    assert_eq!(http(world.server.api(), "POST", "/api/user/login", None, Some(&login)).0, 401, "no account was made");
    // The same without a browser, and so without an Origin: the body is still not JSON.
    let own = format!("Host: {}", ann.api());
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let kind = format!("Content-Type: {kind}");
        let (status, _) = raw_http(ann.api(), "POST", "/api/client/register", &[&own, &kind], Some(&login.to_string()));
        assert_eq!(status, 415);
    }
}

#[test]
fn under_another_name_there_is_no_page() {
    let world = World::start();
    let ann = world.node("ann");
    for at in [ann.api(), world.server.api()] {
        let paths = ["/", "/api/openapi.json", "/assets/x/node.js", "/api/client/node", "/api/health", "/nothing"];
        for path in paths {
            for name in ["evil.example", "evil.example:80", "localhost.evil.example"] {
                let head = [&*format!("Host: {name}"), "Accept: text/html"];
                let (status, body) = raw_http(at, "GET", path, &head, None);
                assert_eq!(status, 421, "{name}{path}: {body}");
                assert!(body.contains("evil.example") && !body.contains("<script"), "{body}");
            }
        }
        assert_eq!(raw_http(at, "GET", "/", &[&format!("Host: localhost:{}", at.port())], None).0, 200);
    }
}

#[test]
fn framed_it_stays_empty() {
    let world = World::start();
    let ann = world.node("ann");
    let server = format!("http://{}/admin", world.server.api());
    let frames = format!(
        "<!doctype html><title>frames</title><p>frames</p><iframe src=\"{}\"></iframe><iframe src=\"{server}\"></iframe>\
         <iframe src=\"{}nothing\"></iframe>",
        node_url(&ann),
        node_url(&ann)
    );
    let there = OtherSite::start(&[("/", "text/html", &frames)]);
    let browser = Browser::start();
    browser.open(&there.url("/"));
    let mut said = Vec::new();
    eventually("the browser to refuse all three", || {
        said.extend(browser.log());
        let refused = said.iter().filter(|line| line.contains("frame-ancestors")).count();
        (refused >= 3).then_some(())
    });
    for frame in 0..3 {
        browser.to_frame(Some(frame));
        let inside = browser.ask("return [document.URL, document.body.innerHTML]").to_string();
        assert!(!inside.contains("P2S2") && !inside.contains("There is no page"), "{inside}");
        browser.to_frame(None);
    }
}

#[test]
fn a_page_that_is_none_leads_on_and_nothing_comes_from_elsewhere() {
    let world = World::start();
    let ann = world.node("ann");
    let browser = Browser::start();
    for (name, at) in [("node", node_url(&ann)), ("server", format!("http://{}/", world.server.api()))] {
        browser.open(&format!("{at}no/such/page?x=<script>"));
        browser.sees(&role("heading", "There is no page here"));
        check_page(&browser, &format!("{name}-nothing-here"));
        browser.click(&role("link", "Go to the start"));
        browser.until("the start", &format!("return location.href === '{at}' && document.readyState === 'complete'"));
        browser.sees(&role("heading", ""));
        // Everything came from the same origin, compressed where that helps.
        let loaded = browser.ask(
            "return performance.getEntriesByType('resource').filter((it) => it.name.includes('/assets/'))
                 .map((it) => [it.name, it.decodedBodySize, it.encodedBodySize])",
        );
        let loaded = loaded.as_array().unwrap();
        assert!(loaded.len() >= 3, "{loaded:?}");
        for one in loaded {
            assert!(one[0].as_str().unwrap().starts_with(&at), "{one}");
            let [whole, sent] = [1, 2].map(|index| one[index].as_u64().unwrap());
            assert!(whole <= 1024 || sent < whole, "{one}");
        }
        let sent: u64 = loaded.iter().map(|one| one[2].as_u64().unwrap()).sum();
        assert!(sent <= 60 << 10, "{sent} bytes");
        let foreign_origins = browser.ask(
            "return performance.getEntriesByType('resource').map((it) => new URL(it.name).origin)
                 .filter((it) => it !== location.origin && it !== 'null')",
        );
        assert_eq!(foreign_origins, json!([]));
    }
}

#[test]
fn a_file_that_is_a_page_or_a_drawing_is_saved_and_never_run() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    let script = "<script>localStorage.setItem('harmed', document.domain)</script>";
    let page = format!("<!doctype html><title>evil</title>{script}");
    let drawing = "<svg xmlns='http://www.w3.org/2000/svg' onload=\"localStorage.setItem('harmed', 1)\"/>";
    let browser = Browser::start();
    sign_in(&browser, &ann);
    for (name, said) in [("evil.html", page.as_str()), ("evil.svg", drawing), ("evil.txt.xhtml", &page)] {
        let path = world.device_file(name, 0);
        fs::write(&path, said).unwrap();
        open_section(&browser, "My files");
        browser.choose(&hidden("input[type=file]:not([capture])"), &[&path]);
        browser.sees(&my_files_row(name));
        let link = ann.does(&format!("files/{name}/link"), json!({}))["url"].as_str().unwrap().to_owned();
        assert!(link.contains("ticket="), "{link}");
        // As if a foreign page had led the user there.
        let here = browser.ask("return location.href");
        browser.ask_with(
            "location.assign(new URL(arguments[0], arguments[1])); return null",
            json!([link, node_url(&ann) + "api/client/"]),
        );
        let saved = browser.saved(name);
        eventually("the browser to save it", || saved.exists().then_some(()));
        assert_eq!(browser.ask("return location.href"), here);
        assert_eq!(browser.ask("return localStorage.getItem('harmed')"), Value::Null);
    }
}

#[test]
fn every_answer_forbids_what_a_page_does_not_need() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    let browser = Browser::start();
    for at in [node_url(&ann), format!("http://{}/", world.server.api())] {
        browser.open(&at);
        // The headers that the browser sees of pages, assets and errors.
        let found = browser.ask_later(
            "const asset = document.querySelector('script[src]').getAttribute('src');
             const look = async (path, headers) => {
                 const answer = await fetch(path, { headers });
                 return [path, answer.status, ...['content-security-policy', 'x-content-type-options', 'content-type']
                     .map((name) => answer.headers.get(name) ?? '')];
             };
             return Promise.all(['/', '/nothing', asset, '/favicon.ico', '/api/nothing', '/api/openapi.json', '/assets/x/y.js'].flatMap(
                 (path) => [look(path, { Accept: 'text/html' }), look(path, { Accept: 'application/json' })]));",
            json!([]),
        );
        for answer in found.as_array().unwrap() {
            let said: Vec<&str> = answer.as_array().unwrap()[2..].iter().map(|it| it.as_str().unwrap()).collect();
            assert_eq!(said[1], "nosniff", "{answer}");
            if said[2].starts_with("text/html") {
                assert!(
                    said[0].starts_with("default-src 'self'") && said[0].contains("frame-ancestors 'none'"),
                    "{answer}"
                );
                assert!(!said[0].contains("unsafe") && !said[0].contains('*'), "{answer}");
            } else {
                assert!(answer[1] == 200 || said[2].starts_with("application/json"), "{answer}");
            }
        }
    }
}
