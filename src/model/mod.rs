//! Plain values that every service uses. Nothing here knows of a service, a socket or a database. Each type checks its
//! rules when it is created, so that every value that exists is valid.

pub mod card;
mod debug_fields;
pub mod digest;
pub mod duration;
pub mod money;
mod named;
pub mod number;
pub mod secret;
mod serde_as_text;
pub mod text;
pub mod time;

pub use card::{CardNumber, Expiry, PaymentCard};
pub(crate) use debug_fields::debug_fields;
pub use digest::Digest;
pub use money::{Cents, FeeRate, Total};
pub(crate) use named::named;
pub use secret::Token;
pub(crate) use serde_as_text::serde_as_text;
pub use text::Name;
pub use time::{Clock, Millis};
