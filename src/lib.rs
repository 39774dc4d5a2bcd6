//! P2S2: peers that find each other, trade, shop and share.
//!
//! Arrows go down only: a module may use those that stand below it.

pub mod bank; //     ledger and payment gateway
pub mod cli; //      one file per command; words in, words out
pub mod model;
pub mod net; //      threads, timers, UDP, TCP, lines, TLS
pub mod perf; //     the load generator: scenarios, limits, reports
pub mod storage;
pub mod trade; //    peers that search, offer, negotiate and buy //  the store: SQLite with group commit //    plain values: money, names, cards, time
