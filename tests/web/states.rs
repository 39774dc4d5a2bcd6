//! Checks that every page must pass in every state: axe-core finds nothing, in light and dark, wide and narrow; and
//! nothing scrolls sideways. Screenshots are kept for review.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::json;

use crate::browser::{Browser, screenshots};

/// Downloaded and verified by `make need-axe`.
const AXE: &str = "target/axe-core-4.14.1/axe.min.js";
/// Width and height of a desktop and a phone.
const SIZES: [(u32, u32); 2] = [(1280, 900), (390, 844)];
/// The smallest supported width in pixels.
const NARROWEST: u32 = 360;

/// The source of axe-core; `None` if make could not download it.
pub fn axe() -> Option<&'static str> {
    static SOURCE: OnceLock<Option<String>> = OnceLock::new();
    let source = SOURCE.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(AXE);
        if path.with_file_name("not-fetched").exists() {
            eprintln!("axe-core could not be fetched: pages are not looked at by it");
            return None;
        }
        let source = fs::read_to_string(&path);
        Some(source.unwrap_or_else(|error| panic!("{}: {error}: `make need-axe` brings it", path.display())))
    });
    source.as_deref()
}

/// Checks the page in its current state and takes screenshots with that name.
#[track_caller]
pub fn check_page(browser: &Browser, name: &str) {
    let mut found = Vec::new();
    for (width, height) in SIZES {
        for (is_dark, scheme) in [(false, "light"), (true, "dark")] {
            browser.set_viewport(width, height, is_dark);
            browser.picture(&picture(name, width, scheme));
            for violation in violations(browser) {
                found.push(format!("{name} at {width}, {scheme}: {violation}"));
            }
        }
    }
    browser.set_viewport(NARROWEST, 740, false);
    let wider = wider_than_the_page(browser);
    // Back to the default size.
    browser.set_viewport(1400, 2000, false);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(wider.is_empty(), "{name} scrolls sideways at {NARROWEST} pixels: {wider:?}");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{name}: {complaints:?}");
}

fn picture(name: &str, width: u32, scheme: &str) -> PathBuf {
    screenshots().join(format!("{name}-{width}-{scheme}.png"))
}

/// The violations that axe-core finds: rule, help text and element.
#[track_caller]
fn violations(browser: &Browser) -> Vec<String> {
    let Some(axe) = axe() else { return Vec::new() };
    if browser.ask("return typeof axe === 'undefined'") == true {
        browser.ask(axe);
    }
    let found = browser.ask_later(
        "const { violations } = await axe.run(document, { resultTypes: ['violations'] });
         return violations.flatMap((it) => it.nodes.map((node) =>
             `${it.id} (${it.help}): ${node.html.slice(0, 300)} ${node.any.concat(node.all).map((why) => why.message).join('; ')}`));",
        json!([]),
    );
    found.as_array().unwrap().iter().map(|each| each.as_str().unwrap().to_owned()).collect()
}

/// The elements that are wider than the page, if it can be scrolled sideways.
#[track_caller]
fn wider_than_the_page(browser: &Browser) -> Vec<String> {
    let found = browser.ask(
        "const width = document.documentElement.clientWidth;
         if (document.scrollingElement.scrollWidth <= width) return [];
         return [...document.querySelectorAll('body *')].filter((el) => el.getBoundingClientRect().right > width + 0.5)
             .slice(0, 10).map((el) => el.outerHTML.slice(0, 120));",
    );
    found.as_array().unwrap().iter().map(|each| each.as_str().unwrap().to_owned()).collect()
}
