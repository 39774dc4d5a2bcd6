//! All main tasks with the keyboard only.

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
    browser.open(&node_url(&bob));

    // Sign up.
    browser.tab_to(&textbox("User name"));
    browser.types("bob");
    browser.press("Tab");
    browser.types(PASSWORD);
    browser.tab_to(&button("Sign up"));
    browser.press("Enter");
    wait_until_signed_in(&browser);

    // Skip the navigation.
    browser.ask("document.activeElement.blur()");
    browser.tab_to(&role("link", "Skip to content"));
    browser.press("Enter");
    assert_eq!(browser.ask("return document.activeElement.tagName"), "MAIN");

    // Search and fetch.
    browser.tab_to(&textbox("Search"));
    browser.types("hers");
    browser.sees(&network_row("hers.txt"));
    browser.tab_to(&button("Fetch").within(network_row("hers.txt")));
    browser.press("Space");
    let fetched = world.fetched_path(&bob, "hers.txt");
    eventually("it to be fetched", || fetched.exists().then_some(()));
    assert_fetched(&fetched, &content("hers.txt", 1000));

    // Add a file of the computer and publish it.
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
    browser.sees(&my_files_row("song.mp3"));
    browser.until(
        "the focus to be where it was",
        "return !document.querySelector('dialog') && document.activeElement.id === 'add'",
    );
    browser.tab_to(&button("Publish").within(my_files_row("song.mp3")));
    browser.press("Enter");
    browser.sees(&button("Unpublish").within(my_files_row("song.mp3")));
    eventually("others to see it", || (world.server.hosts_of("song.mp3") == ["bob"]).then_some(()));

    // Open the details of a file and close them with Escape.
    browser.tab_to(&button("More").within(my_files_row("song.mp3")));
    browser.press("Enter");
    browser.sees(&role("dialog", "song.mp3"));
    browser.press("Escape");
    browser.until(
        "the focus to be where it was",
        "return !document.querySelector('dialog') && document.activeElement.closest('tr')?.dataset.name === 'song.mp3'",
    );
    // Move between rows with the arrow keys.
    browser.press("ArrowUp");
    browser.until("the focus to move", "return document.activeElement.closest('tr')?.dataset.name === 'hers.txt'");

    // Sign out.
    browser.tab_to(&button("Sign out"));
    browser.press("Enter");
    browser.sees(&textbox("Password"));
    assert!(browser.complaints().is_empty());
}
