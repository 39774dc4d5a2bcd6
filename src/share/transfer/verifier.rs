//! Verifies received pieces: one thread hashes the bytes while the connection's thread writes them.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::plan::FencingToken;
use crate::net::threads::{Executor, ExecutorFull};
use crate::share::pieces::blake3_digest;
use crate::share::wire::Digest;

pub(super) const BUFFER_BYTES: usize = 256 * 1024;
/// Buffers per connection: some wait to be hashed while the next ones are filled.
const BUFFERS_MAX: usize = 6;

/// Most unused buffers that are kept for later connections: those of two. A freshly allocated buffer is filled at half
/// the speed.
const SPARE_BUFFERS_MAX: usize = 2 * BUFFERS_MAX;

static SPARE_BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn new_buffer() -> Vec<u8> {
    SPARE_BUFFERS.lock().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES])
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PieceClaim {
    pub piece: usize,
    pub token: FencingToken,
    /// None if unknown: then any content is accepted.
    pub expected: Option<Digest>,
}

/// Called with whether the claimed piece is valid.
pub(super) type VerdictCallback = Arc<dyn Fn(PieceClaim, bool) + Send + Sync>;

pub(super) enum HashInput {
    /// The next bytes of a piece, which are hashed while the caller writes them.
    Bytes(Arc<Vec<u8>>, usize),
    /// The piece is complete and written; its verdict follows.
    End(PieceClaim),
    /// The bytes since the last end are to be dropped.
    Discard,
}

/// Hashes what one connection receives. Its thread is started when first needed.
pub(super) struct PieceVerifier {
    executor: Arc<Executor>,
    on_verdict: VerdictCallback,
    thread: Option<(Sender<HashInput>, Receiver<()>)>,
    /// Unused buffers, returned through `buffer_return`.
    free_buffers: Receiver<Vec<u8>>,
    buffer_return: Sender<Vec<u8>>,
    buffers_made: usize,
}

impl PieceVerifier {
    /// `on_verdict` is called on the verifier's thread, or on the caller's by [`PieceVerifier::verify_now`].
    pub(super) fn new(executor: Arc<Executor>, on_verdict: VerdictCallback) -> PieceVerifier {
        let (buffer_return, free_buffers) = bounded(BUFFERS_MAX);
        PieceVerifier { executor, on_verdict, thread: None, free_buffers, buffer_return, buffers_made: 0 }
    }

    /// Returns a buffer to fill; blocks while all of them wait to be hashed or written.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        if let Ok(buffer) = self.free_buffers.try_recv() {
            return buffer;
        }
        if self.buffers_made < BUFFERS_MAX {
            self.buffers_made += 1;
            return new_buffer();
        }
        // The channel cannot be closed, as `buffer_return` is a sender of it.
        self.free_buffers.recv().unwrap_or_else(|_| new_buffer())
    }

    /// Verifies a piece that fits into one buffer on the caller's thread.
    pub(super) fn verify_now(&self, claim: PieceClaim, bytes: &[u8]) {
        (self.on_verdict)(claim, claim.expected.is_none_or(|expected| expected == blake3_digest(bytes)));
    }

    /// Drops the bytes of a piece that will not be completed.
    pub(super) fn discard_piece(&mut self) -> Result<(), ExecutorFull> {
        if self.thread.is_some() { self.send(HashInput::Discard) } else { Ok(()) }
    }

    pub(super) fn release(&self, buffer: Arc<Vec<u8>>) {
        release(buffer, &self.buffer_return);
    }

    /// Waits until everything is hashed and all verdicts have been given.
    pub(super) fn finish(&mut self) {
        if let Some((inputs, over)) = self.thread.take() {
            drop(inputs);
            // Nothing is ever sent: the channel closes when the thread ends.
            let _ = over.recv();
        }
    }

    /// Hashes in the background.
    pub(super) fn send(&mut self, input: HashInput) -> Result<(), ExecutorFull> {
        if self.thread.is_none() {
            let (to, inputs) = unbounded();
            let (until_over, over) = bounded::<()>(0);
            let (on_verdict, buffer_return) = (Arc::clone(&self.on_verdict), self.buffer_return.clone());
            self.executor.execute(move || {
                let _until_over = until_over;
                hash_all(&inputs, &on_verdict, &buffer_return);
            })?;
            self.thread = Some((to, over));
        }
        match &self.thread {
            Some((inputs, _)) => inputs.send(input).map_err(|_| ExecutorFull),
            None => Err(ExecutorFull),
        }
    }
}

impl Drop for PieceVerifier {
    fn drop(&mut self) {
        // After this all buffers have been returned.
        self.finish();
        let mut spare = SPARE_BUFFERS.lock();
        for buffer in self.free_buffers.try_iter() {
            if spare.len() < SPARE_BUFFERS_MAX {
                spare.push(buffer);
            }
        }
    }
}

/// The verifier's thread. Its queue is bounded by the number of buffers, plus the ends between them.
fn hash_all(inputs: &Receiver<HashInput>, on_verdict: &VerdictCallback, buffer_return: &Sender<Vec<u8>>) {
    let mut hasher = blake3::Hasher::new();
    for input in inputs {
        match input {
            HashInput::Bytes(buffer, len) => {
                hasher.update(&buffer[..len]);
                release(buffer, buffer_return);
            }
            HashInput::End(claim) => {
                let digest = Digest(*hasher.finalize().as_bytes());
                on_verdict(claim, claim.expected.is_none_or(|expected| expected == digest));
                hasher.reset();
            }
            HashInput::Discard => {
                hasher.reset();
            }
        }
    }
}

/// Returns the buffer if this is the last reference to it.
fn release(buffer: Arc<Vec<u8>>, buffer_return: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(buffer) {
        // The channel has room for all buffers; it is closed only when the connection has ended.
        let _ = buffer_return.send(buffer);
    }
}
