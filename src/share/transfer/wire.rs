//! The peer protocol: a request of one line, a response of one line, then the file's bytes. See `docs/spec/share.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::share::pieces::{FileDigests, PIECES_MAX, PieceLayout};
use crate::share::wire::{Digest, FILE_SIZE_MAX, Seconds};

/// Most bytes of a file name in a request.
pub const NAME_MAX: usize = 4096;
/// Most bytes of a request line: verb, two numbers and name.
pub const REQUEST_MAX: usize = NAME_MAX + 48;
/// Most bytes of a response's first line.
pub const RESPONSE_LINE_MAX: usize = 64;
/// The response to META has for each piece a digest of 64 digits with quotes, comma and blank, plus the other fields.
pub const META_MAX: usize = PIECES_MAX as usize * 68 + 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRequest<'a> {
    /// The whole file; the server closes the connection after it.
    Get {
        name: &'a [u8],
    },
    /// The digests of the file and its pieces.
    Meta {
        name: &'a [u8],
    },
    Range {
        offset: u64,
        length: u64,
        name: &'a [u8],
    },
}

impl<'a> PeerRequest<'a> {
    /// Parses a line without its end. None: an unknown verb, an invalid number, or a name that is too long.
    pub fn parse(line: &'a [u8]) -> Option<PeerRequest<'a>> {
        let (verb, rest) = split_word(line)?;
        let request = match verb {
            b"GET" => PeerRequest::Get { name: rest },
            b"META" => PeerRequest::Meta { name: rest },
            b"RANGE" => {
                let (offset, rest) = split_word(rest)?;
                let (length, name) = split_word(rest)?;
                PeerRequest::Range { offset: parse_number(offset)?, length: parse_number(length)?, name }
            }
            _ => return None,
        };
        (request.name().len() <= NAME_MAX).then_some(request)
    }

    pub fn name(&self) -> &'a [u8] {
        match self {
            PeerRequest::Get { name } | PeerRequest::Meta { name } | PeerRequest::Range { name, .. } => name,
        }
    }
}

fn split_word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..blank], &line[blank + 1..]))
}

/// Parses digits. A number that overflows becomes `u64::MAX`, which is past the end of every file.
fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// Error response of a peer; the text continues "HOST says that …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("it does not offer the file")]
    NotFound,
    #[error("its file has been moved, deleted or changed")]
    FileNotFound,
    /// The file cannot be read, the range is outside of it, or it has not been hashed yet.
    #[error("it cannot read the file")]
    ReadError,
    #[error("it is busy")]
    Busy,
}

impl PeerError {
    const ALL: [PeerError; 4] = [PeerError::NotFound, PeerError::FileNotFound, PeerError::ReadError, PeerError::Busy];

    pub fn as_line(self) -> &'static str {
        match self {
            PeerError::NotFound => "ERROR notfound\n",
            PeerError::FileNotFound => "ERROR filenotfound\n",
            PeerError::ReadError => "ERROR readerror\n",
            PeerError::Busy => "BUSY\n",
        }
    }
}

/// First line of the response to GET and RANGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerResponse {
    Length(u64),
    /// Nothing follows.
    Error(PeerError),
}

impl PeerResponse {
    /// Parses a line without its end.
    pub fn parse(line: &[u8]) -> Result<PeerResponse, UnexpectedResponse> {
        let length = line.strip_prefix(b"LENGTH ").and_then(parse_number).map(PeerResponse::Length);
        let is_line = |error: &PeerError| error.as_line().trim_ascii_end().as_bytes() == line;
        let error = || PeerError::ALL.into_iter().find(is_line).map(PeerResponse::Error);
        let unexpected = || UnexpectedResponse(format!("expected LENGTH or ERROR, not {:?}", preview(line)));
        length.or_else(error).ok_or_else(unexpected)
    }
}

/// The beginning of a line from a stranger, safe to show in an error text.
fn preview(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(40)]).chars().filter(|c| !c.is_control()).collect()
}

/// A response violates the protocol; the text says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnexpectedResponse(pub String);

/// Response to META, as parsed; other fields are ignored.
#[derive(Debug, Deserialize)]
struct Meta {
    size: u64,
    blake3: Digest,
    piece_size: u64,
    pieces: Vec<Digest>,
}

/// Parses the response to META (without its line end) for a file whose size and root the registry knows. `Ok(Err)` is
/// the peer's error response.
pub fn parse_meta(line: &[u8], size: u64, root: Digest) -> Result<Result<FileDigests, PeerError>, UnexpectedResponse> {
    if let Ok(PeerResponse::Error(failure)) = PeerResponse::parse(line) {
        return Ok(Err(failure));
    }
    let meta: Meta =
        serde_json::from_slice(line).map_err(|error| UnexpectedResponse(format!("the list of pieces: {error}")))?;
    let layout = PieceLayout::of(size);
    if meta.size != size || size > FILE_SIZE_MAX {
        return Err(UnexpectedResponse(format!("the list of pieces: expected size {size}, not {}", meta.size)));
    }
    let (told, expected) = (meta.piece_size, layout.piece_size());
    if told != expected {
        return Err(UnexpectedResponse(format!("the list of pieces: expected piece_size {expected}, not {told}")));
    }
    let pieces = FileDigests::new(layout, meta.blake3, meta.pieces)
        .map_err(|expected| UnexpectedResponse(format!("the list of pieces: {expected}")))?;
    if pieces.root() != root {
        return Err(UnexpectedResponse("the list of pieces is not the one that the registry knows".to_owned()));
    }
    Ok(Ok(pieces))
}

/// Writes in chunks: a list of 8192 pieces is half a megabyte, and a thousand slow readers may ask for it at once.
pub fn write_meta<E>(
    pieces: &FileDigests,
    modified: Seconds,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    #[derive(Serialize)]
    struct MetaHeader {
        size: u64,
        modified: Seconds,
        blake3: Digest,
        piece_size: u64,
        pieces: [(); 0],
    }
    const DIGESTS_PER_CHUNK: usize = 64;
    let layout = pieces.layout();
    let (size, piece_size) = (layout.size(), layout.piece_size());
    let header = MetaHeader { size, modified, blake3: pieces.blake3(), piece_size, pieces: [] };
    // Serialization cannot fail, and the text ends with the empty list `[]}`, which is cut off.
    let mut text = serde_json::to_string(&header).unwrap_or_default();
    text.truncate(text.len().saturating_sub(2));
    for (chunk, digests) in pieces.digests().chunks(DIGESTS_PER_CHUNK).enumerate() {
        for (i, digest) in digests.iter().enumerate() {
            let comma = if chunk + i > 0 { "," } else { "" };
            text.push_str(&format!("{comma}\"{digest}\""));
        }
        write(text.as_bytes())?;
        text.clear();
    }
    text.push_str("]}\n");
    write(text.as_bytes())
}

impl fmt::Display for PeerRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(self.name());
        match self {
            PeerRequest::Get { .. } => writeln!(f, "GET {name}"),
            PeerRequest::Meta { .. } => writeln!(f, "META {name}"),
            PeerRequest::Range { offset, length, .. } => writeln!(f, "RANGE {offset} {length} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::pieces::blake3_digest;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn requests_are_read_as_they_are_written() {
        let name = b" a  b ";
        for request in [
            PeerRequest::Get { name },
            PeerRequest::Meta { name },
            PeerRequest::Range { offset: 0, length: u64::MAX, name },
            PeerRequest::Get { name: &[b'x'; NAME_MAX] },
        ] {
            let line = request.to_string();
            assert!(line.len() <= REQUEST_MAX + 1);
            assert_eq!(PeerRequest::parse(line.strip_suffix('\n').unwrap().as_bytes()), Some(request));
        }
        let past_every_end = PeerRequest::Range { offset: u64::MAX, length: 1, name: b"x" };
        assert_eq!(PeerRequest::parse(b"RANGE 99999999999999999999999 1 x"), Some(past_every_end));
        assert_eq!(PeerRequest::parse(b"GET ../x\0"), Some(PeerRequest::Get { name: b"../x\0" }));
        for wrong in
            [&b""[..], b"GET", b"get x", b"PUT x", b"RANGE 1 x", b"RANGE a 1 x", b"RANGE -1 1 x", b"RANGE  1 x"]
        {
            assert_eq!(PeerRequest::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(PeerRequest::parse(&[b"GET ", &[b'x'; NAME_MAX + 1][..]].concat()), None);
    }

    #[test]
    fn answers_are_length_or_one_of_three_errors_or_busy() {
        assert_eq!(PeerResponse::parse(b"LENGTH 0"), Ok(PeerResponse::Length(0)));
        for failure in [PeerError::NotFound, PeerError::FileNotFound, PeerError::ReadError, PeerError::Busy] {
            let line = failure.as_line().strip_suffix('\n').unwrap();
            assert_eq!(PeerResponse::parse(line.as_bytes()), Ok(PeerResponse::Error(failure)));
        }
        for wrong in [&b""[..], b"LENGTH", b"LENGTH x", b"LENGTH -1", b"ERROR other", b"BUSY x", b"\xff\xff \x00"] {
            let error = PeerResponse::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with("expected LENGTH or ERROR"), "{error}");
        }
    }

    fn pieces(count: usize) -> FileDigests {
        let digests: Vec<Digest> = (0..count).map(|i| blake3_digest(&i.to_le_bytes())).collect();
        FileDigests::new(PieceLayout::of((count as u64) << 20), blake3_digest(b"whole"), digests).unwrap()
    }

    fn written(pieces: &FileDigests) -> Vec<u8> {
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
        let other = parse_meta(&line, 3 << 20, blake3_digest(b"other")).unwrap_err().to_string();
        assert!(other.contains("not the one that the registry knows"));
        let text = String::from_utf8(line.clone()).unwrap();
        assert!(
            error(text.replace(":1048576", ":2097152").as_bytes(), 3 << 20).contains("expected piece_size 1048576")
        );
        let short = text.replace(&format!(",\"{}\"", pieces.digests()[2]), "");
        assert!(error(short.as_bytes(), 3 << 20).contains("expected 3 pieces, not 2"));
        assert_eq!(parse_meta(b"ERROR notfound", 5, pieces.root()), Ok(Err(PeerError::NotFound)));
        // BUSY is no protocol violation: the host is asked again.
        assert_eq!(parse_meta(b"BUSY", 5, pieces.root()), Ok(Err(PeerError::Busy)));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_ado(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = PeerRequest::parse(&line);
            let _ = PeerResponse::parse(&line);
            prop_assert!(parse_meta(&line, 5, blake3_digest(b"")).map_or(true, |read| read.is_err()));
        }
    }
}
