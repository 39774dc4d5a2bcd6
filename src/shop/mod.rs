//! The shop: an online marketplace of six components (SPEC.md section 4).
//!
//! Buyers and sellers speak with two frontends that keep nothing; the frontends speak over links
//! ([`crate::net::link`]) with two databases. All talk over TCP, also within one process.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | what clients say and hear: both framings, both dialects, every limit |
//! | `door.rs` | where connections come in: of clients, strangers, and other components |
//! | `ops.rs` | what frontends ask of the databases |
//! | `hold.rs` | the core of a hold: a purchase's units, without I/O |
//! | `product.rs` | the product database: items, search, stock that is held, votes |
//! | `customer.rs` | the customer database: accounts, sessions, carts, purchases, ledger |
//! | `purchase.rs` | the core of a purchase across both, without I/O |
//! | `frontend.rs` | the buyers' and the sellers' frontend |
//! | `client.rs` | the library a program uses to shop |

pub mod client;
pub mod customer;
pub mod door;
pub mod frontend;
pub mod hold;
pub mod ops;
pub mod product;
pub mod purchase;
pub mod wire;
