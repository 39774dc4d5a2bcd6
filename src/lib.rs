//! P2S2: peers that find each other, trade, shop and share files.
//!
//! What another program needs is public: [`clients`], one of each room; the messages that they exchange, [`wires`];
//! and the [`values`] in these. `examples/` has a program for each room. All else is private to the crate, so that the
//! compiler finds what nobody uses.
//!
//! A module depends only on modules further down in this table, and `trade`, `shop`, `lan` and `share` never on each
//! other.
//!
//! | module | contents |
//! |---|---|
//! | `cli` | the command line, one file per command |
//! | `perf` | the load generator: scenarios, limits, reports |
//! | `services` | what a process runs: puts rooms, listeners, stores and announcements together |
//! | `web` | what is served over HTTP for all services: the pages and the API descriptions |
//! | `trade` | peers that search, offer, negotiate and buy |
//! | `shop` | an online marketplace of six components |
//! | `lan` | peers that find each other and talk, with no server |
//! | `share` | a registry, and files that peers send each other |
//! | `bank` | ledger and payment gateway |
//! | `identity` | passwords, sessions, tokens, accounts, confirmed servers |
//! | `storage` | SQLite stores with group commit |
//! | `net` | threads, timers, UDP, TCP, line framing, TLS, HTTP |
//! | `model` | value types: money, names, cards, time |

mod bank;
mod cli;
mod identity;
mod lan;
mod model;
mod net;
mod perf;
mod services;
mod share;
mod shop;
mod storage;
mod trade;
mod web;

/// The client library of each room.
pub mod clients {
    /// A peer of the LAN: it needs no server.
    pub mod lan {
        pub use crate::lan::discover::*;
        pub use crate::lan::node::{CommandOutcome, NodeCommand, NodeKind, Notification};
        pub use crate::lan::peer::*;
    }
    pub use crate::share::client as registry;
    /// A client of the shop's frontends.
    pub mod shop {
        pub use crate::net::frames::Framing;
        pub use crate::shop::client::*;
    }
    pub use crate::trade::client as trade;
}

/// The messages of each room: types, parsing, limits.
pub mod wires {
    pub use crate::lan::wire as lan;
    pub use crate::share::wire as registry;
    /// The messages of the shop, in both dialects.
    pub mod shop {
        pub use crate::shop::ops::{
            Account, CompletedPurchase, ErrorCode, Feedback, Item, ItemPage, LineItem, PurchaseHistoryEntry, Refusal,
            RegisteredItem, RemainingQuantity, Role, SellerOrder, SellerRating,
        };
        pub use crate::shop::wire::*;
    }
    pub use crate::trade::wire as trade;
}

/// What stands in messages: names, money, cards, secrets, digests, times.
pub mod values {
    pub use crate::model::{
        CardNumber, Cents, Clock, Digest, Expiry, FeeRate, Millis, Name, PaymentCard, Token, Total,
    };
}

/// The command lines of `p2s2` and `p2s2-perf`.
#[doc(hidden)]
pub mod programs {
    pub use crate::cli::main as p2s2;
    pub use crate::perf::main as p2s2_perf;
}

/// Everything, for the project's own tests: the simulations drive the cores, the tests of crashes read the stores.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod bank {
        pub use crate::bank::*;
    }
    pub mod identity {
        pub use crate::identity::*;
    }
    pub mod lan {
        pub use crate::lan::*;
    }
    pub mod model {
        pub use crate::model::*;
    }
    pub mod net {
        pub use crate::net::*;
    }
    pub mod share {
        pub use crate::share::*;
    }
    pub mod shop {
        pub use crate::shop::*;
    }
    pub mod storage {
        pub use crate::storage::*;
    }
    pub mod trade {
        pub use crate::trade::*;
    }
}
