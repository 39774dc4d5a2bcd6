//! The shop: an online marketplace of six components (`docs/spec/shop.md`).
//!
//! Buyers and sellers connect to two stateless frontends, which send operations to two databases over links
//! ([`crate::net::link`]). All components communicate over TCP, even within one process.
//!
//! | file | holds |
//! |---|---|
//! | `apis.rs` | the table of what clients may call: names, roles, fields and limits, answers |
//! | `wire.rs` | the messages of clients: both dialects |
//! | `listener.rs` | the listeners, for clients and for links of other components |
//! | `ops.rs` | what the operations of the databases take and return |
//! | `hold.rs` | the state machine of a hold, by which a purchase reserves and sells units |
//! | `product.rs` | the product database: items, search, holds, votes; its operations are in `product/operations.rs` |
//! | `customer.rs` | the customer database: accounts, sessions, carts, purchases, ledger; its operations likewise |
//! | `purchase.rs` | the state machines of a purchase across both databases: its record and its driver |
//! | `frontend.rs` | the buyers' and the sellers' frontend |
//! | `client.rs` | the client library |

pub mod apis;
pub mod client;
pub mod customer;
pub mod frontend;
pub mod hold;
pub mod listener;
pub mod ops;
pub mod product;
pub mod purchase;
pub mod wire;
