//! Files: uploading, publishing, searching and fetching.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::browser::*;
use crate::nodes::content;
use crate::states::check_page;
use crate::support::eventually;
use crate::world::*;

const MIB: usize = 1 << 20;

#[test]
fn what_one_publishes_another_finds_and_fetches() {
    let world = World::start();
    let (ann, bob) = (world.node("ann"), world.node("bob"));
    let (hers, his) = Browser::two();
    sign_up(&hers, &ann);
    sign_up(&his, &bob);
    // Survives unless the page is reloaded.
    his.ask("window.isTheSame = true");
    his.sees_text("Nothing here yet");
    check_page(&his, "network-empty");

    open_section(&hers, "My files");
    hers.sees_text("No files yet");
    check_page(&hers, "files-empty");
    let report = world.device_file("report.pdf", 3 * MIB);
    hers.choose(&hidden("input[type=file]:not([capture])"), &[&report]);
    hers.sees(&my_files_row("report.pdf"));
    let photo = world.device_file("photo 1.png", 10_000);
    hers.drop_onto(&css("main"), &[&photo]);
    hers.sees(&my_files_row("photo 1.png"));
    check_page(&hers, "files");
    // The files are in the node's folder, byte for byte.
    assert_fetched(&world.fetched_path(&ann, "report.pdf"), &content("report.pdf", 3 * MIB));
    assert_fetched(&world.fetched_path(&ann, "photo 1.png"), &content("photo 1.png", 10_000));
    assert_eq!(his.count(&network_row("report.pdf")), 0, "nobody sees it yet");

    hers.click(&button("Publish").within(my_files_row("report.pdf")));
    hers.sees(&button("Unpublish").within(my_files_row("report.pdf")));
    his.sees(&network_row("report.pdf"));
    let said = his.text_of(&network_row("report.pdf"));
    assert!(said.contains("3.1 MB") && said.contains("ann"), "{said}");
    hers.click(&button("Publish").within(my_files_row("photo 1.png")));
    his.sees(&network_row("photo 1.png"));
    check_page(&his, "network");

    his.fill(&textbox("Search"), "REP");
    his.sees_no(&network_row("photo 1.png"));
    his.click(&button("Fetch").within(network_row("report.pdf")));
    open_section(&his, "Transfers");
    his.sees(&text("Fetched").within(transfers_row("report.pdf")));
    assert_fetched(&world.fetched_path(&bob, "report.pdf"), &content("report.pdf", 3 * MIB));
    check_page(&his, "transfers-fetched");
    // From the node to the browser's device.
    his.click(&button("Save").within(transfers_row("report.pdf")));
    let saved = his.saved("report.pdf");
    eventually("the browser to save it", || saved.exists().then_some(()));
    assert_fetched(&saved, &content("report.pdf", 3 * MIB));

    // A file that others have is published only after confirmation, and then has two owners.
    open_section(&his, "My files");
    his.click(&button("Publish").within(my_files_row("report.pdf")));
    his.sees(&role("dialog", "Others have this already"));
    check_page(&his, "publish-duplicate");
    his.click(&button("Publish anyway"));
    his.sees(&button("Unpublish").within(my_files_row("report.pdf")));
    open_section(&his, "Network");
    his.sees(&text("2 have it").within(network_row("report.pdf")));
    check_page(&his, "network-copies");
    hers.click(&button("Unpublish").within(my_files_row("photo 1.png")));
    his.fill(&textbox("Search"), "photo");
    his.sees_text("Nothing of that name");
    assert_eq!(his.ask("return window.isTheSame"), true, "all of it without loading the page again");

    open_section(&his, "People");
    his.sees(&row("ann").within(role("table", "People")));
    check_page(&his, "people");
    his.click(&role("link", "ann").within(role("table", "People")));
    his.sees(&network_row("report.pdf"));
    his.sees_text("Files of ann");
    check_page(&his, "network-of-one");
    his.click(&role("link", "Show all"));
    his.sees_no(&text("Files of ann"));
    his.click(&button("Node:"));
    his.sees(&role("dialog", "This node"));
    check_page(&his, "node");
}

#[test]
fn files_of_the_computer_are_added_where_they_lie() {
    let world = World::start();
    let ann = world.node("ann");
    world.place.file("deep/er/song.mp3", 5000);
    world.place.file("deep/.secret", 10);
    let browser = Browser::start();
    sign_up(&browser, &ann);
    open_section(&browser, "My files");
    browser.click(&button("Add"));
    let dialog = || role("dialog", "Add files");
    browser.sees(&dialog());
    check_page(&browser, "picker");
    browser.click(&button("shared").within(dialog()));
    browser.click(&button("deep").within(dialog()));
    browser.click(&button("er").within(dialog()));
    browser.sees(&role("checkbox", "song.mp3"));
    browser.click(&button("Up"));
    browser.sees(&button("er").within(dialog()));
    assert!(!browser.is_shown(&text(".secret")), "what is hidden is not shown");
    browser.click(&button("er").within(dialog()));
    browser.click(&role("checkbox", "song.mp3"));
    browser.click(&role("checkbox", "Publish them at once"));
    check_page(&browser, "picker-chosen");
    browser.click(&button("Add"));
    browser.sees(&button("Unpublish").within(my_files_row("song.mp3")));
    eventually("the registry to know it", || (world.server.hosts_of("song.mp3") == ["ann"]).then_some(()));
    // Its details, then removal.
    browser.click(&button("More").within(my_files_row("song.mp3")));
    browser.sees(&role("dialog", "song.mp3"));
    check_page(&browser, "file-details");
    browser.click(&button("Remove"));
    browser.sees(&role("dialog", "Remove song.mp3"));
    browser.click(&button("Remove"));
    browser.sees_text("No files yet");
    assert!(world.place.path("shared/deep/er/song.mp3").exists(), "the file itself stays");
}

#[test]
fn a_folder_that_is_dropped_gives_its_files_and_a_name_that_is_taken_is_asked_about() {
    let world = World::start();
    let ann = world.node("ann");
    let a = world.device_file("a.txt", 100);
    let folder = a.parent().unwrap().join("folder");
    fs::create_dir_all(folder.join("below")).unwrap();
    for (name, said) in [("b.txt", "b"), ("below/c.txt", "c"), (".hidden", "h")] {
        fs::write(folder.join(name), said).unwrap();
    }
    let empty = a.parent().unwrap().join("empty");
    fs::create_dir(&empty).unwrap();
    let browser = Browser::start();
    sign_up(&browser, &ann);
    browser.drag_over(&css("main"), &[&a, &folder]);
    browser.sees_text("Drop to add to your files");
    check_page(&browser, "files-dragged");
    browser.drop_onto(&css("main"), &[&a, &folder]);
    for name in ["a.txt", "b.txt", "c.txt"] {
        browser.sees(&my_files_row(name));
    }
    assert_eq!(browser.count(&my_files_row(".hidden")), 0);
    assert_eq!(fs::read_to_string(world.fetched_path(&ann, "c.txt")).unwrap(), "c");
    browser.drop_onto(&css("main"), &[&empty]);
    browser.sees_text("There are no files in what was dropped");

    let changed = world.device_file("a.txt", 300);
    browser.drop_onto(&css("main"), &[&changed]);
    browser.sees(&role("dialog", "There is one of that name"));
    check_page(&browser, "upload-duplicate");
    browser.click(&button("Keep both"));
    browser.sees(&my_files_row("a (2).txt"));
    assert_eq!(fs::metadata(world.fetched_path(&ann, "a.txt")).unwrap().len(), 100);
    assert_eq!(fs::metadata(world.fetched_path(&ann, "a (2).txt")).unwrap().len(), 300);
}

#[test]
fn of_two_with_one_name_the_one_that_was_chosen_is_fetched() {
    let world = World::start();
    let (mut ann, mut carl, bob) = (world.node("ann"), world.node("carl"), world.node("bob"));
    for (node, bytes) in [(&mut ann, 1000), (&mut carl, 2000)] {
        node.register();
        let path = world.place.file(&format!("{}/same.txt", node.name), bytes);
        node.publishes(&world.server, &path);
    }
    let browser = Browser::start();
    sign_up(&browser, &bob);
    let of_carl = css("tr[data-name='same.txt'][data-owner=carl]");
    browser.sees(&of_carl);
    browser.sees(&css("tr[data-name='same.txt'][data-owner=ann]"));
    check_page(&browser, "network-two-owners");
    browser.click(&button("Fetch").within(of_carl));
    open_section(&browser, "Transfers");
    browser.sees(&text("Fetched").within(transfers_row("same.txt")));
    assert_fetched(&world.fetched_path(&bob, "same.txt"), &content("carl/same.txt", 2000));
}

#[test]
fn what_its_owner_has_renamed_is_not_fetched_and_the_page_says_why() {
    let world = World::start();
    let (mut ann, bob) = (world.node("ann"), world.node("bob"));
    ann.register();
    let path = world.place.file("here today.txt", 100_000);
    ann.publishes(&world.server, &path);
    let browser = Browser::start();
    sign_up(&browser, &bob);
    browser.sees(&network_row("here today.txt"));
    fs::rename(&path, world.place.path("shared/gone tomorrow.txt")).unwrap();
    browser.click(&button("Fetch").within(network_row("here today.txt")));
    open_section(&browser, "Transfers");
    let said =
        browser.until_of(&transfers_row("here today.txt"), "el.querySelector('.wrong:not([hidden])')?.innerText");
    assert!(said.as_str().unwrap().contains("ann"), "{said}");
    check_page(&browser, "transfers-moved");
    // When the file is back, it is fetched after all.
    fs::rename(world.place.path("shared/gone tomorrow.txt"), &path).unwrap();
    browser.sees(&text("Fetched").within(transfers_row("here today.txt")));
    assert_fetched(&world.fetched_path(&bob, "here today.txt"), &content("here today.txt", 100_000));
}

/// A PNG image of eight pixels.
const PICTURE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAABCAIAAABsYngUAAAADklEQVR42mNwaDiAFQEAkhkMAUEbO+sAAAAASUVORK5CYII=";

#[test]
fn what_a_browser_can_show_is_shown() {
    let world = World::start();
    let ann = world.node("ann");
    let picture = world.device_file("dot.png", 0);
    fs::write(&picture, BASE64.decode(PICTURE).unwrap()).unwrap();
    let notes = world.device_file("notes.txt", 0);
    fs::write(&notes, "<script>document.title = 'harmed'</script> and so on").unwrap();
    let browser = Browser::start();
    sign_up(&browser, &ann);
    open_section(&browser, "My files");
    browser.choose(&hidden("input[type=file]:not([capture])"), &[&picture, &notes]);
    browser.click(&button("More").within(my_files_row("dot.png")));
    browser.click(&button("Open"));
    browser.sees(&role("img", "dot.png").within(role("dialog", "dot.png")));
    browser.until_of(&role("img", "dot.png"), "el.complete && el.naturalWidth === 8");
    check_page(&browser, "picture");
    browser.press("Escape");
    browser.click(&button("More").within(my_files_row("notes.txt")));
    let before = browser.tabs();
    browser.click(&button("Open"));
    let beside = eventually("another tab", || browser.tabs().into_iter().find(|tab| !before.contains(tab)));
    browser.to_tab(&beside);
    // It is shown as text.
    browser.sees_text("<script>document.title = 'harmed'</script> and so on");
    assert_ne!(browser.ask("return document.title"), "harmed");
    assert!(!browser.ask("return location.href").as_str().unwrap().contains("eyJ"), "no token is in an address");
}

#[test]
fn a_page_at_rest_asks_for_nothing() {
    let world = World::start();
    let ann = world.node("ann");
    let browser = Browser::start();
    sign_up(&browser, &ann);
    watch_requests(&browser);
    for section in ["Network", "My files", "Transfers", "People"] {
        open_section(&browser, section);
        wait_until_idle(&browser);
    }
    // It still gets events.
    let _zed = world.host("zed", "Zed", [("found.txt", 10)]);
    browser.sees(&row("zed"));
}

#[test]
fn what_has_a_name_that_is_taken_is_fetched_beside_it() {
    let world = World::start();
    let (mut ann, bob) = (world.node("ann"), world.node("bob"));
    ann.register();
    ann.publishes(&world.server, &world.place.file("same.txt", 1000));
    let browser = Browser::start();
    sign_up(&browser, &bob);
    open_section(&browser, "My files");
    let own = world.device_file("same.txt", 500);
    browser.choose(&hidden("input[type=file]:not([capture])"), &[&own]);
    browser.sees(&my_files_row("same.txt"));
    open_section(&browser, "Network");
    browser.click(&button("Fetch").within(network_row("same.txt")));
    browser.sees(&role("dialog", "There is one of that name"));
    check_page(&browser, "fetch-duplicate");
    browser.click(&button("Keep both"));
    open_section(&browser, "Transfers");
    browser.sees(&text("Fetched").within(transfers_row("same.txt")));
    assert_fetched(&world.fetched_path(&bob, "same.txt"), &content("same.txt", 500));
    assert_fetched(&world.fetched_path(&bob, "same (2).txt"), &content("same.txt", 1000));
}
