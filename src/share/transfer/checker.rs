//! Hashing beside the writing: what has come is hashed by one thread while another writes it.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::plan::Turn;
use crate::net::threads::{Executor, Full};
use crate::share::pieces::digest;
use crate::share::wire::Digest;

/// Bytes of a buffer.
pub(super) const BUFFER: usize = 256 * 1024;
/// Buffers of one connection: a few wait to be hashed while the next are filled.
const BUFFERS: usize = 6;

/// Buffers that are kept for the next connection, at most: those of two. One that the system has to give anew is
/// filled at half the pace.
const SPARE_MAX: usize = 2 * BUFFERS;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn new_buffer() -> Vec<u8> {
    SPARE.lock().pop().unwrap_or_else(|| vec![0; BUFFER])
}

/// What is hashed, and what it must come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub piece: usize,
    pub turn: Turn,
    /// None where nobody knows.
    pub expected: Option<Digest>,
}

/// Told whether what was claimed is right.
pub(super) type Judge = Arc<dyn Fn(Claim, bool) + Send + Sync>;

enum Portion {
    Bytes(Arc<Vec<u8>>, usize),
    /// The bytes before were all of it.
    End(Claim),
    /// What came since the last end is nothing.
    Forget,
}

/// Hashes what one connection brings. Begins a thread once there is something for it.
pub(super) struct Checker {
    executor: Arc<Executor>,
    judge: Judge,
    thread: Option<(Sender<Portion>, Receiver<()>)>,
    /// Buffers that nobody uses.
    free: Receiver<Vec<u8>>,
    give_back: Sender<Vec<u8>>,
    made: usize,
}

impl Checker {
    /// `judge` is called on the checker's thread, or, with what is short, on the caller's.
    pub(super) fn new(executor: Arc<Executor>, judge: Judge) -> Checker {
        let (give_back, free) = bounded(BUFFERS);
        Checker { executor, judge, thread: None, free, give_back, made: 0 }
    }

    /// An empty buffer; waits until one has been hashed and written.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        if let Ok(buffer) = self.free.try_recv() {
            return buffer;
        }
        if self.made < BUFFERS {
            self.made += 1;
            return new_buffer();
        }
        // We hold a sender ourselves, so it cannot end; another buffer if it did.
        self.free.recv().unwrap_or_else(|_| new_buffer())
    }

    /// A piece that fits into one buffer: not worth another thread.
    pub(super) fn short(&self, claim: Claim, bytes: &[u8]) {
        (self.judge)(claim, claim.expected.is_none_or(|expected| expected == digest(bytes)));
    }

    /// The next bytes of a piece: hashed on the thread while the caller writes them.
    ///
    /// # Errors
    /// There was no thread to be had.
    pub(super) fn bytes(&mut self, buffer: &Arc<Vec<u8>>, len: usize) -> Result<(), Full> {
        self.send(Portion::Bytes(Arc::clone(buffer), len))
    }

    /// The piece is complete, and written.
    ///
    /// # Errors
    /// As above.
    pub(super) fn end(&mut self, claim: Claim) -> Result<(), Full> {
        self.send(Portion::End(claim))
    }

    /// The piece will not be completed.
    ///
    /// # Errors
    /// As above.
    pub(super) fn forget(&mut self) -> Result<(), Full> {
        if self.thread.is_some() { self.send(Portion::Forget) } else { Ok(()) }
    }

    /// The caller no longer needs a buffer.
    pub(super) fn release(&self, buffer: Arc<Vec<u8>>) {
        release(buffer, &self.give_back);
    }

    /// Waits until all is hashed.
    pub(super) fn finish(&mut self) {
        if let Some((portions, over)) = self.thread.take() {
            drop(portions);
            // Nothing is ever sent: it ends with the thread.
            let _ = over.recv();
        }
    }

    fn send(&mut self, portion: Portion) -> Result<(), Full> {
        if self.thread.is_none() {
            let (to, portions) = unbounded();
            let (until_over, over) = bounded::<()>(0);
            let (judge, give_back) = (Arc::clone(&self.judge), self.give_back.clone());
            self.executor.execute(move || {
                let _until_over = until_over;
                hash_all(&portions, &judge, &give_back);
            })?;
            self.thread = Some((to, over));
        }
        match &self.thread {
            Some((portions, _)) => portions.send(portion).map_err(|_| Full),
            None => Err(Full),
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // All buffers have come back by then.
        self.finish();
        let mut spare = SPARE.lock();
        for buffer in self.free.try_iter() {
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        }
    }
}

/// The buffers bound the queue: there are never more portions than buffers and the ends between them.
fn hash_all(portions: &Receiver<Portion>, judge: &Judge, give_back: &Sender<Vec<u8>>) {
    let mut hasher = blake3::Hasher::new();
    for portion in portions {
        match portion {
            Portion::Bytes(buffer, len) => {
                hasher.update(&buffer[..len]);
                release(buffer, give_back);
            }
            Portion::End(claim) => {
                let digest = Digest(*hasher.finalize().as_bytes());
                judge(claim, claim.expected.is_none_or(|expected| expected == digest));
                hasher.reset();
            }
            Portion::Forget => {
                hasher.reset();
            }
        }
    }
}

/// Whoever is done with a buffer last gives it back.
fn release(buffer: Arc<Vec<u8>>, give_back: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(buffer) {
        // There is room for all there are. An end of the channel is that of the connection.
        let _ = give_back.send(buffer);
    }
}
