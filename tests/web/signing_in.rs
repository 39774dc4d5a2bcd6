//! Sign-in: wrong passwords, expired sessions, and keeping what was typed.

use crate::browser::*;
use crate::states::check_page;
use crate::world::*;

#[test]
fn a_wrong_password_is_said_where_it_was_typed_and_nothing_typed_is_lost() {
    let world = World::start();
    let mut ann = world.node("ann");
    ann.register();
    let browser = Browser::start();
    browser.open(&node_url(&ann));
    browser.sees(&textbox("User name"));
    check_page(&browser, "sign-in");
    browser.click(&button("Sign in"));
    browser.sees_text("Type a user name");
    browser.fill(&textbox("User name"), "ann");
    browser.fill(&textbox("Password"), "wrong horse");
    browser.click(&button("Sign in"));
    browser.until_of(&textbox("Password"), "el.getAttribute('aria-invalid') === 'true'");
    assert_eq!(browser.of(&textbox("User name"), "el.value"), "ann");
    check_page(&browser, "sign-in-wrong");
    // Signing up with a taken name.
    browser.click(&button("Sign up"));
    browser.until_of(&textbox("User name"), "el.getAttribute('aria-invalid') === 'true'");
    check_page(&browser, "sign-up-taken");
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign in"));
    wait_until_signed_in(&browser);
    browser.click(&css("#account"));
    browser.sees(&role("dialog", "ann Doe"));
    check_page(&browser, "account");
    browser.press("Escape");
    browser.click(&button("Use on another device"));
    browser.sees(&role("dialog", "Use on another device"));
    check_page(&browser, "another-device");
    browser.press("Escape");
    // A reload keeps the session; signing out ends it.
    browser.reload();
    wait_until_signed_in(&browser);
    browser.click(&button("Sign out"));
    browser.sees(&textbox("Password"));
    browser.reload();
    browser.sees(&textbox("Password"));
    assert_eq!(browser.ask("return localStorage.getItem('p2s2.token')"), serde_json::Value::Null);
}

#[test]
fn a_sign_in_that_is_over_is_asked_for_anew_and_what_was_typed_is_still_there() {
    // As long as the first sign-in needs, on a machine that has much to do.
    let world = World::start_with(&["--jwt-ttl", "10s"]);
    let ann = world.node("ann");
    let _zed = world.host("zed", "Zed", [("found.txt", 10), ("other.txt", 10)]);
    let browser = Browser::start();
    sign_up(&browser, &ann);
    browser.ask("window.isTheSame = true");
    browser.fill(&textbox("Search"), "fou");
    browser.sees_no(&network_row("other.txt"));
    let dialog = || role("dialog", "Sign in again");
    browser.sees(&dialog());
    check_page(&browser, "sign-in-again");
    browser.fill(&textbox("Password"), "wrong horse");
    browser.click(&button("Sign in"));
    browser.until_of(&textbox("Password"), "el.getAttribute('aria-invalid') === 'true'");
    browser.fill(&textbox("Password"), PASSWORD);
    browser.click(&button("Sign in"));
    browser.sees_no(&dialog());
    assert_eq!(browser.of(&textbox("Search"), "el.value"), "fou");
    browser.sees(&network_row("found.txt"));
    // And it goes on: what comes now is told.
    let _yan = world.host("yan", "Yan", [("found too.txt", 10)]);
    browser.sees(&network_row("found too.txt"));
    assert_eq!(browser.ask("return window.isTheSame"), true);
}
