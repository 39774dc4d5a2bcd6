//! The bank: who owes whom (the ledger) and whose card pays (the gateway). The two can fail independently: the
//! [`ledger`] changes with the paying room's own database, in one transaction, while the [`Gateway`] commits by itself,
//! as an external bank would. What joins them is one idempotency key per purchase, which the room has on disk before it
//! calls the gateway.

mod builtin;
pub mod gateway;
pub mod ledger;

pub use builtin::{BANK_DB, BuiltinGateway, MIGRATIONS};
#[cfg(any(test, feature = "internals"))]
pub use builtin::{Charge, ChargeState, charges};
pub use gateway::{AuthorisationOutcome, CaptureOutcome, Gateway, GatewayError, VoidOutcome};
