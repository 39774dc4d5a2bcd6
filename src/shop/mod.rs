//! The shop: an online marketplace of six components (`docs/spec/shop.md`). Buyers and sellers connect to two stateless
//! frontends, which send operations to two databases over links ([`crate::net::link`]), over TCP even within one
//! process.

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
