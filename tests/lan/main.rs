//! End-to-end tests of the LAN room: `p2s2 lan` in pipes and at a terminal, hand-written peers on raw sockets, and
//! virtual networks. Nothing here uses a real network interface.
#![cfg(target_os = "linux")]

mod abuse;
mod at_terminal;
mod bound;
mod commands;
mod discover;
mod meeting;
mod names;
mod netns;
mod networks;
mod peers;
mod ports;
mod restarts;
mod served;
#[path = "../support/mod.rs"]
mod support;
mod talk;
#[allow(dead_code, reason = "the harness of tests/cli, of which this uses a part")]
#[path = "../cli/terminal.rs"]
mod terminal;
mod wire;
