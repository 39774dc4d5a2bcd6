//! Who somebody is: what rooms with accounts share. It knows no room.
//!
//! | file | holds |
//! |---|---|
//! | `password.rs` | [`Passwords`]: Argon2id, so many at once, so many waiting |
//! | `attempts.rs` | [`Attempts`]: who guesses too often has to wait |
//! | `jwt.rs` | [`Jwt`]: tokens that say who somebody is |
//! | `users.rs` | [`Users`]: accounts, and the admin |
//! | `sessions.rs` | [`Sessions`]: who is signed in, and since when nothing was heard |
//! | `known_servers.rs` | [`KnownServers`]: which servers a user has confirmed once |

pub mod attempts;
pub mod jwt;
pub mod known_servers;
pub mod password;
pub mod sessions;
pub mod users;

pub use attempts::Attempts;
pub use jwt::{BadToken, Claims, Jwt, Role};
pub use known_servers::{KnownServer, KnownServers, KnownServersError};
pub use password::{Cost, PasswordError, Passwords};
pub use sessions::{SessionKey, Sessions};
pub use users::{User, UserError, Users};
