//! A whole journey by keyboard alone.

use crate::browser::*;
use crate::nodes::content;
use crate::support::eventually;
use crate::world::*;

#[test]
fn everything_is_done_by_keyboard_alone() {
    let world = World::start();
    let (mut ann, bob) = (world.node("ann"), world.node("bob"));
    ann.register();
    ann.publishes(&world.server, &world.place.file("hers.txt", 1000));
    world.place.file("his/song.mp3", 2000);
    let browser = Browser::start();
    browser.open(&url(&bob));

    // Signs up.
    browser.tab_to(&textbox("User name"));
    browser.types("bob");
    browser.press("Tab");
    browser.types(PASSWORD);
    browser.tab_to(&button("Sign up"));
    browser.press("Enter");
    is_in(&browser);

    // Past what is the same on every page.
    browser.ask("document.activeElement.blur()");
    browser.tab_to(&role("link", "Skip to content"));
    browser.press("Enter");
    assert_eq!(browser.ask("return document.activeElement.tagName"), "MAIN");

    // Finds and fetches.
    browser.tab_to(&textbox("Search"));
    browser.types("hers");
    browser.sees(&on_network("hers.txt"));
    browser.tab_to(&button("Fetch").within(on_network("hers.txt")));
    browser.press("Space");
    let fetched = world.repo(&bob, "hers.txt");
    eventually("it to be fetched", || fetched.exists().then_some(()));
    is_fetched(&fetched, &content("hers.txt", 1000));

    // Adds a file of the computer and publishes it.
    browser.press("Shift+Tab");
    browser.tab_to(&role("link", "My files").within(css("nav")));
    browser.press("Enter");
    browser.tab_to(&button("Add"));
    browser.press("Enter");
    browser.sees(&role("dialog", "Add files"));
    for folder in ["shared", "his"] {
        browser.tab_to(&button(folder));
        browser.press("Enter");
        browser.sees_no(&button(folder).within(role("dialog", "Add files")));
    }
    browser.tab_to(&role("checkbox", "song.mp3"));
    browser.press("Space");
    browser.tab_to(&button("Add"));
    browser.press("Enter");
    browser.sees(&in_my_files("song.mp3"));
    browser.until(
        "the focus to be where it was",
        "return !document.querySelector('dialog') && document.activeElement.id === 'add'",
    );
    browser.tab_to(&button("Publish").within(in_my_files("song.mp3")));
    browser.press("Enter");
    browser.sees(&button("Unpublish").within(in_my_files("song.mp3")));
    eventually("others to see it", || (world.server.hosts_of("song.mp3") == ["bob"]).then_some(()));

    // Looks at one, and leaves it by Escape.
    browser.tab_to(&button("More").within(in_my_files("song.mp3")));
    browser.press("Enter");
    browser.sees(&role("dialog", "song.mp3"));
    browser.press("Escape");
    browser.until(
        "the focus to be where it was",
        "return !document.querySelector('dialog') && document.activeElement.closest('tr')?.dataset.name === 'song.mp3'",
    );
    // From row to row by arrows.
    browser.press("ArrowUp");
    browser.until("the focus to move", "return document.activeElement.closest('tr')?.dataset.name === 'hers.txt'");

    // And out.
    browser.tab_to(&button("Sign out"));
    browser.press("Enter");
    browser.sees(&textbox("Password"));
    assert!(browser.complaints().is_empty());
}
