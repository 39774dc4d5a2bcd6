//! The bank: who owes whom (the ledger) and whose card pays (the gateway).
//!
//! The two fail apart. The [`ledger`] is part of the paying room's own file and changes with it, in one
//! transaction. The [`Gateway`] commits by itself, as a bank elsewhere would; what joins the two is an
//! idempotency key a purchase, on disk in the room before the gateway is asked.

mod builtin;
pub mod gateway;
pub mod ledger;

pub use builtin::{BANK_DB, BuiltinGateway, Charge, ChargeState, MIGRATIONS, charges};
pub use gateway::{Authorisation, Capture, Gateway, GatewayError, Void};
