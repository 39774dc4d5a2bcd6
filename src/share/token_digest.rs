//! What is kept of a token or secret instead of itself.

use ring::digest::{SHA256, digest};

use crate::model::Token;

/// The SHA-256 of a token: a copy of the store that holds it authenticates nobody.
pub fn token_sha256(token: &Token) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    sha256
}
