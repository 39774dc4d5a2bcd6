//! DM.

use super::reader::DatagramReader;
use super::talk::{TalkKind, TalkType, check_content, check_entered_content};
use super::writer::DatagramWriter;

/// A message to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dm {
    /// Line breaks are LF here and U+2028 on the wire.
    pub content: String,
}

impl TalkType for Dm {
    const KIND: TalkKind =
        TalkKind { type_name: "DM", is_to_one: true, is_kept: true, wants_ack: true, needs_no_peers: false };

    fn read(reader: &DatagramReader<'_>) -> Result<Dm, String> {
        Ok(Dm { content: reader.text("CONTENT", check_content)? })
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
