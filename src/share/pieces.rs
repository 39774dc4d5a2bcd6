//! Pieces of a file: what each is checked by when it comes over the wire. SPEC.md section 6.
//!
//! The pieces' digests hang together: `pieces_root` is the BLAKE3 of all of them, so a list from a stranger is
//! either the right one or shows at once that it is not.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

use super::wire::Digest;

/// The smallest size of a piece, bytes.
pub const PIECE_SIZE_MIN: u64 = 1 << 20;
/// Most pieces of a file.
pub const PIECES_MAX: u64 = 8192;
/// How much of a file is read at a time.
const READ_BYTES: usize = 256 * 1024;

/// The smallest power of two from 1 MiB that gives at most 8192 pieces.
pub fn piece_size(size: u64) -> u64 {
    let mut piece_size = PIECE_SIZE_MIN;
    while size.div_ceil(piece_size) > PIECES_MAX {
        piece_size *= 2;
    }
    piece_size
}

/// The BLAKE3 of some bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// How a file of some size is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    piece_size: u64,
}

impl Layout {
    /// Of a file of so many bytes.
    pub fn of(size: u64) -> Layout {
        Layout { size, piece_size: piece_size(size) }
    }

    /// Bytes of the whole.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Bytes of every piece but the last, which may be shorter.
    pub fn piece_size(self) -> u64 {
        self.piece_size
    }

    /// How many pieces there are: none of an empty file.
    pub fn count(self) -> usize {
        // At most PIECES_MAX, but for sizes far beyond any file's.
        usize::try_from(self.size.div_ceil(self.piece_size)).unwrap_or(usize::MAX)
    }

    /// Where a piece begins.
    pub fn offset(self, piece: usize) -> u64 {
        (piece as u64 * self.piece_size).min(self.size)
    }

    /// Bytes of some pieces that follow each other.
    pub fn bytes(self, pieces: &Range<usize>) -> u64 {
        self.offset(pieces.end).saturating_sub(self.offset(pieces.start))
    }
}

/// What a file's content is checked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    layout: Layout,
    blake3: Digest,
    digests: Vec<Digest>,
}

impl Pieces {
    /// The digests of a file of that layout.
    ///
    /// # Errors
    /// There must be one for each piece.
    pub fn new(layout: Layout, blake3: Digest, digests: Vec<Digest>) -> Result<Pieces, String> {
        if digests.len() != layout.count() {
            return Err(format!("expected {} pieces, not {}", layout.count(), digests.len()));
        }
        Ok(Pieces { layout, blake3, digests })
    }

    /// Reads so many bytes and hashes them, with the memory of one buffer. `go_on` is asked several times a
    /// second: nothing comes of it once that says no.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are fewer bytes, `InvalidData` if there are more; else the source's.
    pub fn of(source: &mut impl Read, size: u64, go_on: &dyn Fn() -> bool) -> io::Result<Option<Pieces>> {
        let layout = Layout::of(size);
        let mut hashing = Hashing::new(layout);
        let mut buffer = vec![0; READ_BYTES];
        while hashing.taken() < size {
            if !go_on() {
                return Ok(None);
            }
            let room = usize::try_from(size - hashing.taken()).unwrap_or(READ_BYTES).min(READ_BYTES);
            match source.read(&mut buffer[..room]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => hashing.update(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            match source.read(&mut buffer[..1]) {
                Ok(0) => return Ok(Some(hashing.finish())),
                Ok(_) => return Err(io::Error::new(ErrorKind::InvalidData, "the file has grown")),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// How the file is cut.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Of the whole content.
    pub fn blake3(&self) -> Digest {
        self.blake3
    }

    /// Of each piece.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// The BLAKE3 of the pieces' digests one behind the other.
    pub fn root(&self) -> Digest {
        root_of(&self.digests)
    }
}

/// The BLAKE3 of digests one behind the other.
pub fn root_of(digests: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(&digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// A file's digests while its bytes come by, in their order.
#[derive(Debug)]
pub struct Hashing {
    layout: Layout,
    whole: blake3::Hasher,
    piece: blake3::Hasher,
    taken: u64,
    digests: Vec<Digest>,
}

impl Hashing {
    /// From the first byte on.
    pub fn new(layout: Layout) -> Hashing {
        let (whole, piece) = (blake3::Hasher::new(), blake3::Hasher::new());
        Hashing { layout, whole, piece, taken: 0, digests: Vec::with_capacity(layout.count()) }
    }

    /// How many bytes have come by.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next bytes.
    ///
    /// # Panics
    /// If there are more than the layout says.
    pub fn update(&mut self, mut bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.layout.size() - self.taken, "more bytes than the file has");
        while !bytes.is_empty() {
            let end = self.layout.offset(self.digests.len() + 1);
            let len = usize::try_from(end - self.taken).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            self.whole.update(now);
            self.piece.update(now);
            self.taken += len as u64;
            if self.taken == end {
                self.digests.push(Digest(*self.piece.finalize().as_bytes()));
                self.piece.reset();
            }
            bytes = later;
        }
    }

    /// All of them.
    ///
    /// # Panics
    /// If bytes are missing.
    pub fn finish(self) -> Pieces {
        assert_eq!(self.taken, self.layout.size(), "not all bytes have come by");
        Pieces { layout: self.layout, blake3: Digest(*self.whole.finalize().as_bytes()), digests: self.digests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn pieces_are_the_smallest_that_stay_few() {
        for (size, expected) in [
            (0, MIB),
            (1, MIB),
            (8192 * MIB, MIB),
            (8192 * MIB + 1, 2 * MIB),
            (16384 * MIB, 2 * MIB),
            (128 << 30, 16 * MIB),
            ((128 << 30) + 1, 32 * MIB),
        ] {
            assert_eq!(piece_size(size), expected, "{size}");
        }
        let layout = Layout::of(2 * MIB + 5);
        assert_eq!(
            (layout.count(), layout.offset(2), layout.bytes(&(2..3)), layout.bytes(&(0..3))),
            (3, 2 * MIB, 5, 2 * MIB + 5)
        );
        assert_eq!(Layout::of(0).count(), 0);
    }

    #[test]
    fn a_file_is_hashed_whole_and_in_pieces() {
        let content: Vec<u8> = (0..2 * MIB + 12_345).map(|i| (i * 31 % 251) as u8).collect();
        let pieces = Pieces::of(&mut &content[..], content.len() as u64, &|| true).unwrap().unwrap();
        assert_eq!(pieces.blake3(), digest(&content));
        let expected: Vec<Digest> = content.chunks(MIB as usize).map(digest).collect();
        assert_eq!(pieces.digests(), expected);
        let one_behind_the_other: Vec<u8> = expected.iter().flat_map(|digest| digest.0).collect();
        assert_eq!(pieces.root(), digest(&one_behind_the_other));
        let empty = Pieces::of(&mut io::empty(), 0, &|| true).unwrap().unwrap();
        assert_eq!((empty.blake3(), empty.root(), empty.digests().len()), (digest(b""), digest(b""), 0));
    }

    #[test]
    fn hashing_ends_when_asked_to_or_when_the_file_has_another_size() {
        let content = vec![7; 1000];
        assert!(Pieces::of(&mut &content[..], 1000, &|| false).unwrap().is_none());
        let error = |size| Pieces::of(&mut &content[..], size, &|| true).unwrap_err().kind();
        assert_eq!(error(1001), ErrorKind::UnexpectedEof);
        assert_eq!(error(999), ErrorKind::InvalidData);
        assert!(Pieces::new(Layout::of(5), digest(b""), vec![]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn digests_do_not_depend_on_how_the_bytes_come(
            size in 0..3 * MIB as usize,
            cuts in proptest::collection::vec(1_usize..700_000, 1..8),
        ) {
            let content: Vec<u8> = (0..size).map(|i| (i % 249) as u8).collect();
            let mut hashing = Hashing::new(Layout::of(size as u64));
            let mut rest = &content[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                hashing.update(now);
                rest = later;
            }
            prop_assert_eq!(hashing.finish(), Pieces::of(&mut &content[..], size as u64, &|| true).unwrap().unwrap());
        }
    }
}
