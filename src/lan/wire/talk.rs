//! Talk: what users say to each other. A datagram of talk has the keys of who says it to whom, those of its TYPE, and
//! a stamp. `wire.rs` lists the TYPEs in `talk_types!`; all else is generic over them.

use super::reader::DatagramReader;
use super::validation::LINE_SEPARATOR;
use super::writer::DatagramWriter;
use super::{DATAGRAM_MAX, MessageStamp, TalkBody, UserId};
use crate::model::text;

/// A user's message to all peers or to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Talk {
    pub from: UserId,
    /// `None` if the TYPE goes to all.
    pub to: Option<UserId>,
    pub body: TalkBody,
    pub stamp: MessageStamp,
}

/// The properties of a TYPE of talk.
#[derive(Debug, PartialEq, Eq)]
pub struct TalkKind {
    /// The TYPE, which is also stored.
    pub type_name: &'static str,
    /// It goes to one peer (FROM and TO), not to all (USER_ID).
    pub is_to_one: bool,
    /// It is kept in the history.
    pub is_kept: bool,
    /// It is repeated until the receiver acknowledges it.
    pub wants_ack: bool,
    /// It can be said while no peer is known, as it is kept as the user's own.
    pub needs_no_peers: bool,
}

/// A TYPE of talk: its keys in both directions, and its rules.
pub trait TalkType: Sized {
    const KIND: TalkKind;

    fn read(reader: &DatagramReader<'_>) -> Result<Self, String>;
    fn write(&self, writer: &mut DatagramWriter) -> Result<(), String>;
    /// Checks what the user has entered; `user_ids_len` is how many bytes of the datagram USER_IDs may take.
    fn check_entered(&self, user_ids_len: usize) -> Result<(), String>;

    /// The text of it for users and for the history.
    fn text(&self) -> String;
}

macro_rules! talk_types {
    ($($Type:ident),+) => {
        /// What is said: a value of one of the TYPEs of talk.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum TalkBody {
            $($Type($Type)),+
        }

        $(impl From<$Type> for TalkBody {
            fn from(body: $Type) -> TalkBody {
                TalkBody::$Type(body)
            }
        })+

        impl TalkBody {
            const KINDS: &[&TalkKind] = &[$(&$Type::KIND),+];

            /// The properties of its TYPE.
            pub fn kind(&self) -> &'static TalkKind {
                match self {
                    $(TalkBody::$Type(_) => &$Type::KIND),+
                }
            }

            /// Reads a datagram of that TYPE; `None` if it is none of talk.
            fn read_talk(type_name: &str, reader: &DatagramReader<'_>) -> Option<Result<Talk, String>> {
                $(if type_name == $Type::KIND.type_name {
                    return Some(Talk::read::<$Type>(reader));
                })+
                None
            }

            fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
                match self {
                    $(TalkBody::$Type(body) => body.write(writer)),+
                }
            }

            pub fn check_entered(&self, user_ids_len: usize) -> Result<(), String> {
                match self {
                    $(TalkBody::$Type(body) => body.check_entered(user_ids_len)),+
                }
            }

            /// The text of it for users and for the history.
            pub fn text(&self) -> String {
                match self {
                    $(TalkBody::$Type(body) => body.text()),+
                }
            }
        }
    };
}

pub(super) use talk_types;

impl TalkKind {
    pub fn by_name(type_name: &str) -> Option<&'static TalkKind> {
        TalkBody::KINDS.iter().copied().find(|kind| kind.type_name == type_name)
    }
}

impl Talk {
    pub(super) fn read<T: TalkType + Into<TalkBody>>(reader: &DatagramReader<'_>) -> Result<Talk, String> {
        let (from, to) = match T::KIND.is_to_one {
            true => (reader.user_id("FROM")?, Some(reader.user_id("TO")?)),
            false => (reader.user_id("USER_ID")?, None),
        };
        Ok(Talk { from, to, body: T::read(reader)?.into(), stamp: reader.stamp()? })
    }

    pub(super) fn write(&self, writer: &mut DatagramWriter) -> Result<(), String> {
        match &self.to {
            Some(to) => {
                writer.user_id("FROM", &self.from)?;
                writer.user_id("TO", to)?;
            }
            None => writer.user_id("USER_ID", &self.from)?,
        }
        self.body.write(writer)?;
        writer.stamp(&self.stamp)
    }
}

/// The length of a CONTENT is limited only by the datagram.
pub(super) fn check_content(content: &str) -> Result<(), String> {
    text::check_length(content, 1, DATAGRAM_MAX)
}

/// Checks that a CONTENT fits into a datagram. Line breaks are sent as U+2028.
pub(super) fn check_entered_content(content: &str, user_ids_len: usize) -> Result<(), String> {
    /// Bytes of a line besides key and value: the colon and the line feed.
    const LINE_EXTRA: usize = 2;
    /// At most the lines TYPE, TIMESTAMP and MESSAGE_ID and the empty line.
    const FRAME_MAX: usize = 64 + 20 + LINE_EXTRA;
    const KEYS: usize = "USER_ID".len() + "TO".len() + "CONTENT".len() + 3 * LINE_EXTRA;
    let single = content.replace("\r\n", "\n");
    let breaks = single.matches(['\n', '\r']).count();
    let written = single.len() + breaks * (LINE_SEPARATOR.len_utf8() - 1);
    let most = DATAGRAM_MAX - FRAME_MAX - KEYS - user_ids_len;
    if single.is_empty() {
        return Err("TEXT: expected at least one character".to_owned());
    }
    if written > most {
        return Err(format!("TEXT: expected at most {most} bytes, not {written}"));
    }
    Ok(())
}
