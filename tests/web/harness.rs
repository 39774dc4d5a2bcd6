//! Tests of the test harness: the browser driver works, and `check_page` finds faults of a page.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::browser::*;
use crate::other_site::OtherSite;
use crate::states::{axe, check_page};

/// A page without faults, with every kind of control that the tests use.
const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>A page</title>
<script type="module">
const said = document.getElementById("said");
const say = (text) => { said.textContent = text; };
document.getElementById("who").addEventListener("submit", (event) => {
  event.preventDefault();
  say(`Hello, ${event.target.elements.name.value}`);
});
document.getElementById("files").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  say(`Chosen: ${(await Promise.all(files.map(async (it) => `${it.name} ${await it.text()}`))).join(", ")}`);
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((it) => it.webkitGetAsEntry());
  say(`Dropped: ${entries.map((it) => `${it.name}${it.isDirectory ? "/" : ""}`).join(", ")}`);
});
</script>
</head>
<body>
<main>
<h1>A page</h1>
<form id="who"><label for="name">User name</label> <input id="name" name="name"> <button>Sign in</button></form>
<label for="files">Files</label> <input id="files" type="file" multiple>
<table><caption>Files</caption><tr><td>one</td><td><button aria-label="Fetch one">Fetch</button></td></tr>
<tr><td>two</td><td><button aria-label="Fetch two">Fetch</button></td></tr></table>
<p id="said" role="status"></p>
</main>
</body>
</html>"#;

#[test]
fn a_browser_does_what_people_do() {
    let there = OtherSite::start(&[("/", "text/html", PAGE)]);
    let folder = tempfile::tempdir().unwrap();
    let (a, b, sub) = (folder.path().join("a.txt"), folder.path().join("b.txt"), folder.path().join("sub"));
    fs::write(&a, "first").unwrap();
    fs::write(&b, "second").unwrap();
    fs::create_dir(&sub).unwrap();
    let browser = Browser::start();
    browser.open(&there.url("/"));
    browser.fill(&textbox("User name"), "<b>ann</b>");
    browser.click(&button("Sign in"));
    browser.sees_text("Hello, <b>ann</b>");
    browser.choose(&hidden("#files"), &[&a, &b]);
    browser.sees_text("Chosen: a.txt first, b.txt second");
    browser.drop_onto(&css("main"), &[&a, &sub]);
    browser.sees_text("Dropped: a.txt, sub/");
    let fetch = button("Fetch").within(row("two").within(role("table", "Files")));
    assert_eq!(browser.of(&fetch, "el.ariaLabel"), "Fetch two");
    assert_eq!((browser.count(&button("Fetch")), browser.count(&button("Cancel"))), (2, 0));
    // With the keyboard only.
    browser.reload();
    browser.tab_to(&textbox("User name"));
    browser.types("bob");
    browser.press("Enter");
    assert_eq!(browser.text_of(&role("status", "")), "Hello, bob");
    let (first, _) = (browser.tab(), browser.open_tab(&there.url("/?another")));
    browser.sees_no(&text("Hello"));
    browser.to_tab(&first);
    browser.sees_text("Hello, bob");
    check_page(&browser, "harness");
}

#[test]
fn faults_of_a_page_are_found() {
    let page = |change: fn(&str) -> String| change(PAGE);
    let no_label = page(|page| page.replace("<label for=\"name\">User name</label>", ""));
    let too_wide = page(|page| page.replace("<h1>", "<p style=\"width: 500px\">wide</p><h1>"));
    let throws =
        page(|page| page.replace("const said", "setTimeout(() => { throw new Error(\"on purpose\"); }); const said"));
    let pages = [
        ("/no-label", "text/html", &*no_label),
        ("/too-wide", "text/html", &too_wide),
        ("/throws", "text/html", &throws),
    ];
    let there = OtherSite::start(&pages);
    let browser = Browser::start();
    let all = [("/no-label", "label ("), ("/too-wide", "sideways"), ("/throws", "on purpose")];
    // Only axe-core finds the first one.
    for (path, expected) in all.into_iter().skip(usize::from(axe().is_none())) {
        browser.open(&there.url(path));
        browser.sees_text("A page");
        let fault = catch_unwind(AssertUnwindSafe(|| check_page(&browser, "harness-fault"))).unwrap_err();
        let said = fault.downcast_ref::<String>().unwrap();
        assert!(said.contains(expected), "{path}: {said}");
    }
}
