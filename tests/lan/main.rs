//! The LAN room over networks of its own: nothing here ever reaches a real interface.
#![cfg(target_os = "linux")]

mod netns;
mod networks;
#[path = "../support/mod.rs"]
mod support;
