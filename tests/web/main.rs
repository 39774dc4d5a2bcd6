//! The pages as people see them: in a real browser, before real servers and nodes.
#![cfg(unix)]

#[path = "../support/browser.rs"]
mod browser;
mod elsewhere;
mod files;
mod harness;
mod hostile;
mod keyboard;
mod many;
#[path = "../share/nodes.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod nodes;
mod operator;
#[path = "../share/transfer/proxy.rs"]
#[allow(dead_code, reason = "each test target uses its part")]
mod proxy;
mod signing_in;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod transfers;
mod world;
