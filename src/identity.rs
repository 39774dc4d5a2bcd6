//! Who somebody is: what rooms with accounts share. It knows no room.
//!
//! | file | holds |
//! |---|---|
//! | `password.rs` | [`Passwords`]: Argon2id, so many at once, so many waiting |
//! | `attempts.rs` | [`Attempts`]: who guesses too often has to wait |
//! | `sessions.rs` | [`Sessions`]: who is signed in, and since when nothing was heard |

pub mod attempts;
pub mod password;
pub mod sessions;

pub use attempts::Attempts;
pub use password::{Cost, PasswordError, Passwords};
pub use sessions::{SessionKey, Sessions};
