//! PROFILE.

use std::fmt;

use super::reader::{DatagramReader, with_key};
use super::talk::{TalkKind, TalkType};
use super::validation::check_printable;
use super::writer::DatagramWriter;
use super::{AVATAR_MAX, Avatar, DISPLAY_NAME_MAX, STATUS_MAX};
use crate::model::text::{check, check_length};

/// A user's profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub display_name: String,
    pub status: String,
    pub avatar: Option<Avatar>,
}

impl TalkType for Profile {
    const KIND: TalkKind =
        TalkKind { type_name: "PROFILE", is_to_one: false, is_kept: true, wants_ack: false, needs_no_peers: true };

    fn read(reader: &DatagramReader<'_>) -> Result<Profile, String> {
        Ok(Profile {
            display_name: reader.text("DISPLAY_NAME", check_display_name)?,
            status: reader.text("STATUS", check_status)?,
            avatar: Avatar::read(reader)?,
        })
    }

    fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        writer.text("DISPLAY_NAME", &self.display_name, check_display_name)?;
        writer.text("STATUS", &self.status, check_status)?;
        self.avatar.as_ref().map_or(Ok(()), |avatar| avatar.write(writer))
    }

    fn check_entered(&self, _: usize) -> Result<(), String> {
        check(&self.display_name, 1, DISPLAY_NAME_MAX).map_err(with_key("NAME"))?;
        check_status(&self.status).map_err(with_key("STATUS"))?;
        match self.avatar.as_ref().map_or(0, |avatar| avatar.bytes.len()) {
            0..=AVATAR_MAX => Ok(()),
            bytes => Err(format!("AVATAR-FILE: expected at most {AVATAR_MAX} bytes, not {bytes}")),
        }
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// `NAME | STATUS | image/png, 1234 bytes`, without the parts that are empty.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let avatar = self.avatar.as_ref().map(|avatar| format!("{}, {} bytes", avatar.kind, avatar.bytes.len()));
        let parts = [&*self.display_name, &*self.status, avatar.as_deref().unwrap_or_default()];
        f.write_str(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" | "))
    }
}

/// Unlike names, a DISPLAY_NAME need not be unique.
fn check_display_name(text: &str) -> Result<(), String> {
    check_printable(text, 1, DISPLAY_NAME_MAX)
}

fn check_status(text: &str) -> Result<(), String> {
    check_length(text, 0, STATUS_MAX)
}
