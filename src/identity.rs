//! Accounts, passwords, tokens and sessions: what rooms with accounts share. It depends on no room.
//!
//! | file | holds |
//! |---|---|
//! | `password.rs` | [`PasswordHasher`]: Argon2id with a bounded number of threads and a bounded queue |
//! | `login_limiter.rs` | locks out whoever fails to log in too often |
//! | `login_verifier.rs` | [`LoginVerifier`]: verifies passwords of logins within that limit |
//! | `jwt.rs` | [`Jwt`](jwt::Jwt): issues and verifies tokens |
//! | `users.rs` | [`Users`]: accounts, and the admin |
//! | `sessions.rs` | [`Sessions`](sessions::Sessions): sessions that end after some time without use |
//! | `known_servers.rs` | [`KnownServers`]: which servers a user has confirmed once |

pub mod jwt;
pub mod known_servers;
mod login_limiter;
mod login_verifier;
pub mod password;
pub mod sessions;
pub mod users;

pub use jwt::{Claims, Role};
pub use known_servers::{KnownServer, KnownServers};
pub use login_verifier::LoginVerifier;
pub use password::{HashCost, PasswordError, PasswordHasher};
pub use sessions::SessionKey;
pub use users::{User, UserError, Users};
