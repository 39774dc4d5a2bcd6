//! The LAN room as its users see it: `p2s2 lan` over pipes and at a terminal, peers on bare sockets that are
//! written from the wire format alone, and networks of its own. Nothing here ever reaches a real interface.
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
