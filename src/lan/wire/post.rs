//! POST.

use super::reader::DatagramReader;
use super::talk::{TalkKind, TalkType, check_content, check_entered_content};
use super::writer::DatagramWriter;

/// A message to all peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Line breaks are LF here and U+2028 on the wire.
    pub content: String,
}

impl TalkType for Post {
    const KIND: TalkKind =
        TalkKind { type_name: "POST", is_to_one: false, is_kept: true, wants_ack: false, needs_no_peers: false };

    fn read(reader: &DatagramReader<'_>) -> Result<Post, String> {
        Ok(Post { content: reader.text("CONTENT", check_content)? })
    }

    fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        writer.text("CONTENT", &self.content, check_content)
    }

    fn check_entered(&self, user_ids_len: usize) -> Result<(), String> {
        check_entered_content(&self.content, user_ids_len)
    }

    fn text(&self) -> String {
        self.content.clone()
    }
}
