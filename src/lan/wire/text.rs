//! POST and DM: a text to all, and the same to one.

use super::reader::DatagramReader;
use super::talk::{TalkKind, TalkType, check_content, check_entered_content};
use super::writer::DatagramWriter;

/// A message to all peers.
pub type Post = Text<false>;
/// A message to one peer, which acknowledges it.
pub type Dm = Text<true>;

/// A text, either to all peers or to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<const IS_TO_ONE: bool> {
    /// Line breaks are LF here and U+2028 on the wire.
    pub content: String,
}

impl<const IS_TO_ONE: bool> TalkType for Text<IS_TO_ONE> {
    const KIND: TalkKind = TalkKind {
        type_name: if IS_TO_ONE { "DM" } else { "POST" },
        is_to_one: IS_TO_ONE,
        is_kept: true,
        wants_ack: IS_TO_ONE,
        needs_no_peers: false,
    };

    fn read(reader: &DatagramReader<'_>) -> Result<Text<IS_TO_ONE>, String> {
        Ok(Text { content: reader.text("CONTENT", check_content)? })
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
