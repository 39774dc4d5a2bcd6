//! The avatar of a profile: its formats, its keys.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::AVATAR_MAX;
use super::reader::{DatagramReader, missing_key, with_key};
use super::validation::quoted;
use super::writer::DatagramWriter;
use crate::model::named;

const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An image of at most [`AVATAR_MAX`] bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Avatar {
    /// The type that the sender declares. ([`Avatar::from_bytes`] detects it.)
    pub kind: AvatarKind,
    /// 1 to [`AVATAR_MAX`] bytes.
    pub bytes: Vec<u8>,
}

named! {
    /// The image formats that are supported, with their values of AVATAR_TYPE.
    pub enum AvatarKind {
        Png = "image/png",
        Jpeg = "image/jpeg",
        Gif = "image/gif",
        Webp = "image/webp",
    }
}

impl fmt::Debug for Avatar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Avatar({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

impl Avatar {
    /// An avatar for the own profile, if the image is not too large and of a supported format.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Avatar, String> {
        let bytes = bytes.into();
        if bytes.len() > AVATAR_MAX {
            return Err(format!("the picture has {} bytes: expected at most {AVATAR_MAX}", bytes.len()));
        }
        let kind =
            AvatarKind::detect(&bytes).ok_or("the picture's kind is not known: expected PNG, JPEG, GIF or WebP")?;
        Ok(Avatar { kind, bytes })
    }

    pub(super) fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        check_avatar_size(self.bytes.len()).map_err(with_key("AVATAR_DATA"))?;
        writer.line("AVATAR_TYPE", self.kind.as_text());
        writer.line("AVATAR_ENCODING", "base64");
        writer.line("AVATAR_DATA", &base64::engine::general_purpose::STANDARD.encode(&self.bytes));
        Ok(())
    }

    pub(super) fn read(reader: &DatagramReader<'_>) -> Result<Option<Avatar>, String> {
        let (mime, encoding, data) =
            (reader.get("AVATAR_TYPE"), reader.get("AVATAR_ENCODING"), reader.get("AVATAR_DATA"));
        let (mime, data) = match (mime, data) {
            (Some(mime), Some(data)) => (mime, data),
            (None, None) if encoding.is_none() => return Ok(None),
            (None, _) => return Err(missing_key("AVATAR_TYPE")),
            (_, None) => return Err(missing_key("AVATAR_DATA")),
        };
        // Without a supported avatar, the rest of the profile is still worth showing.
        let Some(kind) = AvatarKind::from_text(mime).filter(|_| !data.is_empty()) else { return Ok(None) };
        if let Some(other) = encoding.filter(|encoding| *encoding != "base64") {
            return Err(format!("AVATAR_ENCODING: expected base64, not {}", quoted(other)));
        }
        // The decoded size follows from the length. An avatar that is too large is ignored before it is decoded.
        let padding = data.bytes().rev().take(2).take_while(|byte| *byte == b'=').count();
        if (data.len() - padding) * 3 / 4 > AVATAR_MAX {
            return Ok(None);
        }
        let bytes = LENIENT_BASE64.decode(data).map_err(|problem| {
            let problem = problem.to_string().to_lowercase();
            format!("AVATAR_DATA: expected standard base64 ({})", problem.trim_end_matches('.'))
        })?;
        check_avatar_size(bytes.len()).map_err(with_key("AVATAR_DATA"))?;
        Ok(Some(Avatar { kind, bytes }))
    }
}

impl AvatarKind {
    /// Detects the format by the first bytes of a file.
    pub fn detect(bytes: &[u8]) -> Option<AvatarKind> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(AvatarKind::Png),
            [0xff, 0xd8, 0xff, ..] => Some(AvatarKind::Jpeg),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(AvatarKind::Gif),
            // The four bytes between are the length.
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(AvatarKind::Webp),
            _ => None,
        }
    }
}

fn check_avatar_size(bytes: usize) -> Result<(), String> {
    match bytes {
        0 => Err("expected a picture, found no bytes".to_owned()),
        1..=AVATAR_MAX => Ok(()),
        _ => Err(format!("expected at most {AVATAR_MAX} bytes, not {bytes}")),
    }
}
