//! P2S2: peers that find each other, trade, shop and share.
//!
//! Arrows go down only: a module may use those that stand below it, and the rooms (trade, shop, lan, share)
//! never each other.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | one file per command; words in, words out |
//! | [`perf`] | the load generator: scenarios, limits, reports |
//! | [`web`] | what stands on HTTP and belongs to no room: the pages, the APIs' descriptions |
//! | [`trade`] | peers that search, offer, negotiate and buy |
//! | [`shop`] | an online marketplace of six components |
//! | [`lan`] | peers that find each other and talk, with no server |
//! | [`share`] | a registry, and files that peers send each other |
//! | [`bank`] | ledger and payment gateway |
//! | [`identity`] | passwords, sessions, tokens, accounts, servers that a user has confirmed |
//! | [`storage`] | the store: SQLite with group commit |
//! | [`net`] | threads, timers, UDP, TCP, lines, TLS, HTTP |
//! | [`model`] | plain values: money, names, cards, time |

pub mod bank;
pub mod cli;
pub mod identity;
pub mod lan;
pub mod model;
pub mod net;
pub mod perf;
pub mod share;
pub mod shop;
pub mod storage;
pub mod trade;
pub mod web;
