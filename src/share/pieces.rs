//! Pieces of a file and the digests by which they are verified when fetched. See `docs/spec/share.md`. `pieces_root` is
//! the BLAKE3 of all piece digests, so a digest list from an untrusted peer can be verified as a whole.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

use super::wire::Digest;

pub const PIECE_SIZE_MIN: u64 = 1 << 20;
pub const PIECES_MAX: u64 = 8192;
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// The smallest power of two, at least 1 MiB, that gives at most 8192 pieces.
pub fn piece_size(size: u64) -> u64 {
    let mut piece_size = PIECE_SIZE_MIN;
    while size.div_ceil(piece_size) > PIECES_MAX {
        piece_size *= 2;
    }
    piece_size
}

pub fn blake3_digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// How a file of a given size is divided into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLayout {
    size: u64,
    piece_size: u64,
}

impl PieceLayout {
    pub fn of(size: u64) -> PieceLayout {
        PieceLayout { size, piece_size: piece_size(size) }
    }

    /// The size of the file in bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The size in bytes of every piece but the last, which may be shorter.
    pub fn piece_size(self) -> u64 {
        self.piece_size
    }

    /// An empty file has none.
    pub fn count(self) -> usize {
        // At most PIECES_MAX, except for sizes far beyond any allowed file.
        usize::try_from(self.size.div_ceil(self.piece_size)).unwrap_or(usize::MAX)
    }

    pub fn offset(self, piece: usize) -> u64 {
        (piece as u64 * self.piece_size).min(self.size)
    }

    pub fn bytes(self, pieces: &Range<usize>) -> u64 {
        self.offset(pieces.end).saturating_sub(self.offset(pieces.start))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigests {
    layout: PieceLayout,
    blake3: Digest,
    digests: Vec<Digest>,
}

impl FileDigests {
    /// There must be as many digests as the layout has pieces.
    pub fn new(layout: PieceLayout, blake3: Digest, digests: Vec<Digest>) -> Result<FileDigests, String> {
        if digests.len() != layout.count() {
            return Err(format!("expected {} pieces, not {}", layout.count(), digests.len()));
        }
        Ok(FileDigests { layout, blake3, digests })
    }

    /// Reads and hashes a file of this size. `should_continue` is called several times a second; once it returns false,
    /// the result is `None`. `UnexpectedEof` if the source is shorter than `size`, `InvalidData` if it is longer.
    pub fn hash(
        source: &mut impl Read,
        size: u64,
        should_continue: &dyn Fn() -> bool,
    ) -> io::Result<Option<FileDigests>> {
        let layout = PieceLayout::of(size);
        let mut hashing = PieceHasher::new(layout);
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        while hashing.hashed_bytes() < size {
            if !should_continue() {
                return Ok(None);
            }
            let room = (size - hashing.hashed_bytes()).min(READ_BUFFER_BYTES as u64) as usize;
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

    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    pub fn blake3(&self) -> Digest {
        self.blake3
    }

    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    pub fn root(&self) -> Digest {
        digests_root(&self.digests)
    }
}

/// BLAKE3 of the concatenated digests.
pub fn digests_root(digests: &[Digest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(&digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Takes a file's bytes in order.
#[derive(Debug)]
pub struct PieceHasher {
    layout: PieceLayout,
    whole: blake3::Hasher,
    piece: blake3::Hasher,
    hashed_bytes: u64,
    digests: Vec<Digest>,
}

impl PieceHasher {
    pub fn new(layout: PieceLayout) -> PieceHasher {
        let (whole, piece) = (blake3::Hasher::new(), blake3::Hasher::new());
        PieceHasher { layout, whole, piece, hashed_bytes: 0, digests: Vec::with_capacity(layout.count()) }
    }

    pub fn hashed_bytes(&self) -> u64 {
        self.hashed_bytes
    }

    /// # Panics
    /// If there are more bytes than the layout says.
    pub fn update(&mut self, mut bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.layout.size() - self.hashed_bytes, "more bytes than the file has");
        while !bytes.is_empty() {
            let end = self.layout.offset(self.digests.len() + 1);
            let len = usize::try_from(end - self.hashed_bytes).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            self.whole.update(now);
            self.piece.update(now);
            self.hashed_bytes += len as u64;
            if self.hashed_bytes == end {
                self.digests.push(Digest(*self.piece.finalize().as_bytes()));
                self.piece.reset();
            }
            bytes = later;
        }
    }

    /// # Panics
    /// If bytes are missing.
    pub fn finish(self) -> FileDigests {
        assert_eq!(self.hashed_bytes, self.layout.size(), "not all bytes have come by");
        FileDigests { layout: self.layout, blake3: Digest(*self.whole.finalize().as_bytes()), digests: self.digests }
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
        let layout = PieceLayout::of(2 * MIB + 5);
        assert_eq!(
            (layout.count(), layout.offset(2), layout.bytes(&(2..3)), layout.bytes(&(0..3))),
            (3, 2 * MIB, 5, 2 * MIB + 5)
        );
        assert_eq!(PieceLayout::of(0).count(), 0);
    }

    #[test]
    fn a_file_is_hashed_whole_and_in_pieces() {
        let content: Vec<u8> = (0..2 * MIB + 12_345).map(|i| (i * 31 % 251) as u8).collect();
        let pieces = FileDigests::hash(&mut &content[..], content.len() as u64, &|| true).unwrap().unwrap();
        assert_eq!(pieces.blake3(), blake3_digest(&content));
        let expected: Vec<Digest> = content.chunks(MIB as usize).map(blake3_digest).collect();
        assert_eq!(pieces.digests(), expected);
        let one_behind_the_other: Vec<u8> = expected.iter().flat_map(|digest| digest.0).collect();
        assert_eq!(pieces.root(), blake3_digest(&one_behind_the_other));
        let empty = FileDigests::hash(&mut io::empty(), 0, &|| true).unwrap().unwrap();
        assert_eq!((empty.blake3(), empty.root(), empty.digests().len()), (blake3_digest(b""), blake3_digest(b""), 0));
    }

    #[test]
    fn hashing_ends_when_asked_to_or_when_the_file_has_another_size() {
        let content = vec![7; 1000];
        assert!(FileDigests::hash(&mut &content[..], 1000, &|| false).unwrap().is_none());
        let error = |size| FileDigests::hash(&mut &content[..], size, &|| true).unwrap_err().kind();
        assert_eq!(error(1001), ErrorKind::UnexpectedEof);
        assert_eq!(error(999), ErrorKind::InvalidData);
        assert!(FileDigests::new(PieceLayout::of(5), blake3_digest(b""), vec![]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn digests_do_not_depend_on_how_the_bytes_come(
            size in 0..3 * MIB as usize,
            cuts in proptest::collection::vec(1_usize..700_000, 1..8),
        ) {
            let content: Vec<u8> = (0..size).map(|i| (i % 249) as u8).collect();
            let mut hashing = PieceHasher::new(PieceLayout::of(size as u64));
            let mut rest = &content[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                hashing.update(now);
                rest = later;
            }
            prop_assert_eq!(hashing.finish(), FileDigests::hash(&mut &content[..], size as u64, &|| true).unwrap().unwrap());
        }
    }
}
