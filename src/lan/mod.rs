//! LAN: peers that find each other and talk, with no server.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | the messages |
//! | [`node`] | one peer's view: whom it knows, what it says to whom, what it believes |
//! | [`history`] | what is kept |
//! | [`sockets`] | a socket of its own, and the one that all peers of a host share |
//! | [`peer`] | threads around it all |
//! | [`discover`] | one question to everybody: who is there? |

use self::wire::{Avatar, Message};

pub mod discover;
pub mod history;
pub mod node;
pub mod peer;
pub mod sockets;
pub mod wire;

/// Where peers hear announcements, where nobody says otherwise.
pub const DISCOVERY_PORT: u16 = 50_999;

/// What a message says to a person; nothing for those that say nothing.
pub fn text_of(message: &Message) -> String {
    match message {
        Message::Post(post) => post.content.clone(),
        Message::Dm(dm) => dm.content.clone(),
        Message::Profile(profile) => profile_text(&profile.display_name, &profile.status, profile.avatar.as_ref()),
        _ => String::new(),
    }
}

/// `NAME | STATUS | image/png, 1234 bytes`, without what is not there.
pub(crate) fn profile_text(display_name: &str, status: &str, avatar: Option<&Avatar>) -> String {
    let avatar = avatar.map(|avatar| format!("{}, {} bytes", avatar.kind.mime(), avatar.bytes.len()));
    let parts = [display_name, status, avatar.as_deref().unwrap_or_default()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" | ")
}
