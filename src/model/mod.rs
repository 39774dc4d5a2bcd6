//! Plain values that every room uses: money, names, cards, secrets, time.
//!
//! Nothing here knows of a room, a socket or a database. Each type checks its own rules when it is
//! made, so that a value that exists is a value that is allowed.

pub mod card;
pub mod digest;
pub mod duration;
pub mod money;
pub mod number;
pub mod secret;
pub mod text;
pub mod time;

pub use card::{Card, CardNumber, Expiry};
pub use digest::Digest;
pub use money::{Cents, FeeRate, Total};
pub use secret::Token;
pub use text::Name;
pub use time::{Clock, Millis};
