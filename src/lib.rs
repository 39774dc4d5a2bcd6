//! P2S2: peers that find each other, trade, shop and share files.
//!
//! A module depends only on modules further down in this table, and `trade`, `shop`, `lan` and `share` never on each
//! other.
//!
//! | module | contents |
//! |---|---|
//! | [`cli`] | the command line, one file per command |
//! | [`perf`] | the load generator: scenarios, limits, reports |
//! | [`services`] | what a process runs: puts rooms, listeners, stores and announcements together |
//! | [`web`] | what is served over HTTP for all services: the pages and the API descriptions |
//! | [`trade`] | peers that search, offer, negotiate and buy |
//! | [`shop`] | an online marketplace of six components |
//! | [`lan`] | peers that find each other and talk, with no server |
//! | [`share`] | a registry, and files that peers send each other |
//! | [`bank`] | ledger and payment gateway |
//! | [`identity`] | passwords, sessions, tokens, accounts, confirmed servers |
//! | [`storage`] | SQLite stores with group commit |
//! | [`net`] | threads, timers, UDP, TCP, line framing, TLS, HTTP |
//! | [`model`] | value types: money, names, cards, time |

pub mod bank;
pub mod cli;
pub mod identity;
pub mod lan;
pub mod model;
pub mod net;
pub mod perf;
pub mod services;
pub mod share;
pub mod shop;
pub mod storage;
pub mod trade;
pub mod web;
