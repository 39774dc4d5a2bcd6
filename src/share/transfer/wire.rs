//! What peers say to each other: one line asks, one line answers, bytes follow. SPEC.md section 6.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::share::pieces::{Layout, PIECES_MAX, Pieces};
use crate::share::wire::{Digest, FILE_SIZE_MAX, Seconds};

/// Most bytes of a name in a request.
pub const NAME_MAX: usize = 4096;
/// Most bytes of a request: verb, two numbers, name.
pub const REQUEST_MAX: usize = NAME_MAX + 48;
/// Most bytes of an answer's first line.
pub const ANSWER_MAX: usize = 64;
/// Most bytes of the answer to META: a digest of 64 digits with its quotes, comma and blank for each piece, and
/// the rest.
pub const META_MAX: usize = PIECES_MAX as usize * 68 + 4096;

/// What a peer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The whole file; the connection ends with it.
    Get {
        /// Of the file.
        name: &'a [u8],
    },
    /// What its pieces are checked by.
    Meta {
        /// Of the file.
        name: &'a [u8],
    },
    /// A part of it.
    Range {
        /// Its first byte.
        offset: u64,
        /// How many.
        length: u64,
        /// Of the file.
        name: &'a [u8],
    },
}

impl<'a> Request<'a> {
    /// Reads a line without its end. None: an unknown verb, a number that is none, a name that is too long.
    pub fn parse(line: &'a [u8]) -> Option<Request<'a>> {
        let (verb, rest) = split_word(line)?;
        let request = match verb {
            b"GET" => Request::Get { name: rest },
            b"META" => Request::Meta { name: rest },
            b"RANGE" => {
                let (offset, rest) = split_word(rest)?;
                let (length, name) = split_word(rest)?;
                Request::Range { offset: number(offset)?, length: number(length)?, name }
            }
            _ => return None,
        };
        (request.name().len() <= NAME_MAX).then_some(request)
    }

    /// The file that is asked for.
    pub fn name(&self) -> &'a [u8] {
        match self {
            Request::Get { name } | Request::Meta { name } | Request::Range { name, .. } => name,
        }
    }
}

fn split_word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..blank], &line[blank + 1..]))
}

/// Digits; one too large for any file stands for the largest, which is past every end.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// Why a peer sends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No such file is published.
    #[error("it does not offer the file")]
    NotFound,
    /// It is published, but moved, deleted or no longer what it was.
    #[error("its file has been moved, deleted or changed")]
    FileNotFound,
    /// It cannot be read, or not that part of it.
    #[error("it cannot read the file")]
    ReadError,
    /// It has as many connections as it takes.
    #[error("it is busy")]
    Busy,
}

impl Failure {
    /// As it is sent.
    pub fn line(self) -> &'static str {
        match self {
            Failure::NotFound => "ERROR notfound\n",
            Failure::FileNotFound => "ERROR filenotfound\n",
            Failure::ReadError => "ERROR readerror\n",
            Failure::Busy => "BUSY\n",
        }
    }
}

/// The first line of an answer to GET and RANGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// So many bytes follow.
    Length(u64),
    /// None do.
    Error(Failure),
}

impl Answer {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(line: &[u8]) -> Result<Answer, Unexpected> {
        if line == Failure::Busy.line().trim_ascii_end().as_bytes() {
            return Ok(Answer::Error(Failure::Busy));
        }
        let unexpected = || Unexpected(format!("expected LENGTH or ERROR, not {:?}", shown(line)));
        match split_word(line).ok_or_else(unexpected)? {
            (b"LENGTH", digits) => number(digits).map(Answer::Length).ok_or_else(unexpected),
            (b"ERROR", reason) => failure(reason).map(Answer::Error).ok_or_else(unexpected),
            _ => Err(unexpected()),
        }
    }
}

fn failure(reason: &[u8]) -> Option<Failure> {
    match reason {
        b"notfound" => Some(Failure::NotFound),
        b"filenotfound" => Some(Failure::FileNotFound),
        b"readerror" => Some(Failure::ReadError),
        _ => None,
    }
}

/// The beginning of a line from a stranger, fit for a message.
fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(40)]).chars().filter(|c| !c.is_control()).collect()
}

/// An answer that is not as it must be; says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unexpected(pub String);

/// The answer to META as it is read; what else a peer says is ignored.
#[derive(Debug, Deserialize)]
struct Meta {
    size: u64,
    blake3: Digest,
    piece_size: u64,
    pieces: Vec<Digest>,
}

/// Reads the answer to META (without its line end) about a file of which the registry knows size and root.
///
/// # Errors
/// `Ok(Err)`: the peer's error. `Err`: it is not a list, or not the one that belongs to the root.
pub fn parse_meta(line: &[u8], size: u64, root: Digest) -> Result<Result<Pieces, Failure>, Unexpected> {
    if let Ok(Answer::Error(failure)) = Answer::parse(line) {
        return Ok(Err(failure));
    }
    let meta: Meta =
        serde_json::from_slice(line).map_err(|error| Unexpected(format!("the list of pieces: {error}")))?;
    let layout = Layout::of(size);
    if meta.size != size || size > FILE_SIZE_MAX {
        return Err(Unexpected(format!("the list of pieces: expected size {size}, not {}", meta.size)));
    }
    if meta.piece_size != layout.piece_size() {
        let expected = layout.piece_size();
        return Err(Unexpected(format!("the list of pieces: expected piece_size {expected}, not {}", meta.piece_size)));
    }
    let pieces = Pieces::new(layout, meta.blake3, meta.pieces)
        .map_err(|expected| Unexpected(format!("the list of pieces: {expected}")))?;
    if pieces.root() != root {
        return Err(Unexpected("the list of pieces is not the one that the registry knows".to_owned()));
    }
    Ok(Ok(pieces))
}

/// Gives the answer to META bit by bit: a list of 8192 pieces is half a megabyte, and a thousand readers may be slow.
pub fn write_meta<E>(
    pieces: &Pieces,
    modified: Seconds,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    #[derive(Serialize)]
    struct Head {
        size: u64,
        modified: Seconds,
        blake3: Digest,
        piece_size: u64,
        pieces: [(); 0],
    }
    const AT_A_TIME: usize = 64;
    let layout = pieces.layout();
    let (size, piece_size) = (layout.size(), layout.piece_size());
    let head = Head { size, modified, blake3: pieces.blake3(), piece_size, pieces: [] };
    // Numbers and text only, so it can be written; and it ends with the empty list.
    let mut text = serde_json::to_string(&head).unwrap_or_default();
    text.truncate(text.len().saturating_sub(2));
    for (part, digests) in pieces.digests().chunks(AT_A_TIME).enumerate() {
        for (i, digest) in digests.iter().enumerate() {
            let comma = if part + i > 0 { "," } else { "" };
            text.push_str(&format!("{comma}\"{digest}\""));
        }
        write(text.as_bytes())?;
        text.clear();
    }
    text.push_str("]}\n");
    write(text.as_bytes())
}

impl fmt::Display for Request<'_> {
    /// The line with its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(self.name());
        match self {
            Request::Get { .. } => writeln!(f, "GET {name}"),
            Request::Meta { .. } => writeln!(f, "META {name}"),
            Request::Range { offset, length, .. } => writeln!(f, "RANGE {offset} {length} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::digest;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn requests_are_read_as_they_are_written() {
        let name = b" a  b ";
        for request in [
            Request::Get { name },
            Request::Meta { name },
            Request::Range { offset: 0, length: u64::MAX, name },
            Request::Get { name: &[b'x'; NAME_MAX] },
        ] {
            let line = request.to_string();
            assert!(line.len() <= REQUEST_MAX + 1);
            assert_eq!(Request::parse(line.strip_suffix('\n').unwrap().as_bytes()), Some(request));
        }
        let past_every_end = Request::Range { offset: u64::MAX, length: 1, name: b"x" };
        assert_eq!(Request::parse(b"RANGE 99999999999999999999999 1 x"), Some(past_every_end));
        assert_eq!(Request::parse(b"GET ../x\0"), Some(Request::Get { name: b"../x\0" }));
        for wrong in
            [&b""[..], b"GET", b"get x", b"PUT x", b"RANGE 1 x", b"RANGE a 1 x", b"RANGE -1 1 x", b"RANGE  1 x"]
        {
            assert_eq!(Request::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(Request::parse(&[b"GET ", &[b'x'; NAME_MAX + 1][..]].concat()), None);
    }

    #[test]
    fn answers_are_length_or_one_of_three_errors_or_busy() {
        assert_eq!(Answer::parse(b"LENGTH 0"), Ok(Answer::Length(0)));
        for failure in [Failure::NotFound, Failure::FileNotFound, Failure::ReadError, Failure::Busy] {
            let line = failure.line().strip_suffix('\n').unwrap();
            assert_eq!(Answer::parse(line.as_bytes()), Ok(Answer::Error(failure)));
        }
        for wrong in [&b""[..], b"LENGTH", b"LENGTH x", b"LENGTH -1", b"ERROR other", b"BUSY x", b"\xff\xff \x00"] {
            let error = Answer::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with("expected LENGTH or ERROR"), "{error}");
        }
    }

    fn pieces(count: usize) -> Pieces {
        let digests: Vec<Digest> = (0..count).map(|i| digest(&i.to_le_bytes())).collect();
        Pieces::new(Layout::of((count as u64) << 20), digest(b"whole"), digests).unwrap()
    }

    fn written(pieces: &Pieces) -> Vec<u8> {
        let mut line = Vec::new();
        write_meta(pieces, Seconds::new(7.5).unwrap(), |bytes| {
            assert!(bytes.len() <= 8192);
            line.extend_from_slice(bytes);
            Ok::<_, ()>(())
        })
        .unwrap();
        line
    }

    #[test]
    fn a_list_is_read_as_it_is_written_if_it_belongs_to_the_root() {
        for count in [0, 1, 63, 64, 65, 200, 8192] {
            let pieces = pieces(count);
            let line = written(&pieces);
            assert!(line.len() <= META_MAX);
            let text = line.strip_suffix(b"\n").unwrap();
            let size = pieces.layout().size();
            assert_eq!(parse_meta(text, size, pieces.root()), Ok(Ok(pieces.clone())));
            let value: Value = serde_json::from_slice(text).unwrap();
            let expected = json!({"size": size, "modified": 7.5, "blake3": pieces.blake3(), "piece_size": 1 << 20,
                "pieces": pieces.digests()});
            assert_eq!(value, expected);
        }
        let pieces = pieces(3);
        let line = written(&pieces);
        let error = |line: &[u8], size| parse_meta(line, size, pieces.root()).unwrap_err().to_string();
        assert!(error(b"{}", 3 << 20).contains("missing field"));
        assert!(error(&line, 4 << 20).contains("expected size 4194304, not 3145728"));
        let other = parse_meta(&line, 3 << 20, digest(b"other")).unwrap_err().to_string();
        assert!(other.contains("not the one that the registry knows"));
        let text = String::from_utf8(line.clone()).unwrap();
        assert!(
            error(text.replace(":1048576", ":2097152").as_bytes(), 3 << 20).contains("expected piece_size 1048576")
        );
        let short = text.replace(&format!(",\"{}\"", pieces.digests()[2]), "");
        assert!(error(short.as_bytes(), 3 << 20).contains("expected 3 pieces, not 2"));
        assert_eq!(parse_meta(b"ERROR notfound", 5, pieces.root()), Ok(Err(Failure::NotFound)));
        // Who is busy has sent nothing wrong: it is asked again.
        assert_eq!(parse_meta(b"BUSY", 5, pieces.root()), Ok(Err(Failure::Busy)));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_ado(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
            let _ = Answer::parse(&line);
            prop_assert!(parse_meta(&line, 5, digest(b"")).map_or(true, |read| read.is_err()));
        }
    }
}
