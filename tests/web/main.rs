//! End-to-end tests of the web pages in a real browser, with real servers and nodes.
#![cfg(unix)]

#[path = "../support/browser.rs"]
mod browser;
mod files;
mod harness;
mod hostile;
mod keyboard;
mod many;
#[path = "../share/nodes.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod nodes;
mod operator;
mod other_site;
#[path = "../share/transfer/proxy.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod proxy;
mod signing_in;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod transfers;
mod world;
