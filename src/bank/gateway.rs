//! A service that charges cards, see `docs/spec/general.md`, "Bank"; a real provider can replace the built-in one.

use crate::model::{Cents, Millis, PaymentCard};
use crate::storage::StoreError;

/// One idempotency key per purchase serves all three calls, and every call may be repeated: the same call gets the same
/// response and takes effect once.
///
/// The rules: capture at most once; no authorise and no capture after void; no void after capture; a void for an
/// unknown key is remembered and declines an authorise that arrives later.
pub trait Gateway: Send + Sync {
    /// Reserves an amount on a card. After [`GatewayError::Unreachable`] repeat it, or void.
    fn authorise(
        &self,
        key: &str,
        amount: Cents,
        card: &PaymentCard,
        now: Millis,
    ) -> Result<AuthorisationOutcome, GatewayError>;

    /// Takes the authorised amount. After [`GatewayError::Unreachable`] repeat it until there is a response.
    fn capture(&self, key: &str, now: Millis) -> Result<CaptureOutcome, GatewayError>;

    /// Releases an amount that was authorised or may still be. After [`GatewayError::Unreachable`] repeat it until
    /// there is a response.
    fn void(&self, key: &str, now: Millis) -> Result<VoidOutcome, GatewayError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorisationOutcome {
    /// The amount is reserved (or was already captured, when the call is a late repeat).
    Authorised,
    /// It is not reserved, and never will be under this key.
    Declined {
        /// The text is for the card's owner.
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptureOutcome {
    /// The amount was taken, exactly once.
    Captured,
    /// Nothing was taken, and the charge cannot be captured.
    Refused {
        /// The text is for a person to read.
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoidOutcome {
    /// Nothing is reserved under this key, nor ever will be.
    Voided,
    /// It was captured before, and stays so.
    Captured {
        /// It may differ from the amount that the caller has in mind.
        amount: Cents,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// It is not known whether the call took effect: repeat it.
    #[error("the payment gateway gave no answer: {0}")]
    Unreachable(String),
}

/// To the caller, a gateway whose own store fails is one that does not respond.
impl From<StoreError> for GatewayError {
    fn from(error: StoreError) -> GatewayError {
        GatewayError::Unreachable(error.to_string())
    }
}
