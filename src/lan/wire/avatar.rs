//! Detection of the image formats of avatars.

use std::fmt;

use super::{AVATAR_MAX, Avatar, AvatarKind};

impl Avatar {
    /// Makes an avatar for the own profile.
    ///
    /// # Errors
    /// The image is too large, or not of a supported format.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Avatar, String> {
        let bytes = bytes.into();
        if bytes.len() > AVATAR_MAX {
            return Err(format!("the picture has {} bytes: expected at most {AVATAR_MAX}", bytes.len()));
        }
        let kind =
            AvatarKind::detect(&bytes).ok_or("the picture's kind is not known: expected PNG, JPEG, GIF or WebP")?;
        Ok(Avatar { kind, bytes })
    }
}

impl AvatarKind {
    const ALL: [AvatarKind; 4] = [AvatarKind::Png, AvatarKind::Jpeg, AvatarKind::Gif, AvatarKind::Webp];

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

    /// The value of AVATAR_TYPE.
    pub fn mime(self) -> &'static str {
        match self {
            AvatarKind::Png => "image/png",
            AvatarKind::Jpeg => "image/jpeg",
            AvatarKind::Gif => "image/gif",
            AvatarKind::Webp => "image/webp",
        }
    }

    /// The format for a value of AVATAR_TYPE.
    pub fn from_mime(mime: &str) -> Option<AvatarKind> {
        AvatarKind::ALL.into_iter().find(|kind| kind.mime() == mime)
    }
}

impl fmt::Display for AvatarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.mime())
    }
}
