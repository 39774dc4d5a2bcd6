use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError, select};
use hyper::body::{Frame, SizeHint};

use crate::net::permits::WorkPermit;

/// How often a waiting event stream checks whether its client has disconnected.
const DISCONNECT_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What is read of a file at a time: enough that the system calls cost little compared with the copying.
const FILE_CHUNK_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSentEvent {
    /// The id by which a client can resume after this event, one line.
    pub id: Option<String>,
    /// The event's name, one line.
    pub name: String,
    pub data: String,
}

impl ServerSentEvent {
    #[cfg(test)]
    pub fn json(name: &str, data: &serde_json::Value) -> ServerSentEvent {
        ServerSentEvent { id: None, name: name.to_owned(), data: data.to_string() }
    }

    /// Its approximate memory use.
    pub(super) fn len(&self) -> usize {
        size_of::<ServerSentEvent>() + self.id.as_ref().map_or(0, String::len) + self.name.len() + self.data.len()
    }

    fn write(&self) -> String {
        let one_line = |text: &str| text.replace(['\r', '\n', '\0'], " ");
        let mut text = String::with_capacity(self.data.len() + 100);
        if let Some(id) = &self.id {
            text = text + "id: " + &one_line(id) + "\n";
        }
        text = text + "event: " + &one_line(&self.name) + "\n";
        for line in self.data.replace("\r\n", "\n").split(['\r', '\n']) {
            text = text + "data: " + line + "\n";
        }
        text.push('\n');
        text
    }
}

#[derive(Debug)]
pub struct EventStream {
    queue: Receiver<Arc<ServerSentEvent>>,
    /// Dropped with the stream, which the sender can observe through a `Weak`.
    _is_read: Option<Arc<()>>,
}

impl EventStream {
    /// The `Weak` is dead once the stream is dropped.
    pub(super) fn with_liveness(queue: Receiver<Arc<ServerSentEvent>>) -> (EventStream, Weak<()>) {
        let is_read = Arc::new(());
        let watch = Arc::downgrade(&is_read);
        (EventStream { queue, _is_read: Some(is_read) }, watch)
    }

    #[cfg(test)]
    pub fn queue(&self) -> &Receiver<Arc<ServerSentEvent>> {
        &self.queue
    }
}

impl From<Receiver<Arc<ServerSentEvent>>> for EventStream {
    fn from(queue: Receiver<Arc<ServerSentEvent>>) -> EventStream {
        EventStream { queue, _is_read: None }
    }
}

pub enum Body {
    Bytes(Vec<u8>),
    /// Produced piece by piece while it is sent, when there is room for the next. Producing one must not block.
    Chunks(Box<dyn Iterator<Item = Vec<u8>> + Send>),
    /// `length` bytes of a file from `offset` on, read while they are sent. If the file turns out to be shorter the
    /// connection is closed: nothing else can tell the client that what it received is incomplete.
    File {
        /// The file's position is not changed.
        file: File,
        offset: u64,
        length: u64,
    },
    /// Events as they happen, until no sender is left or the client has disconnected; then the stream is dropped. The
    /// server sets the content type.
    Events(EventStream),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Body::Chunks(_) => f.write_str("Chunks(…)"),
            Body::File { offset, length, .. } => write!(f, "File({length} from {offset})"),
            Body::Events(_) => f.write_str("Events(…)"),
        }
    }
}

/// A body in the form that hyper polls.
pub(super) enum ResponseBody {
    Bytes(Option<Bytes>),
    Chunks(Box<dyn Iterator<Item = Vec<u8>> + Send>),
    File(FileRange),
    Events(Box<EventStreamBody>),
}

/// The part of a file that is still to be sent.
pub(super) struct FileRange {
    file: File,
    offset: u64,
    remaining: u64,
    /// The last chunk: lent to hyper until it is written, then reused.
    buffer: Arc<Vec<u8>>,
}

/// A buffer as the owner of [`Bytes`].
struct LentBuffer(Arc<Vec<u8>>);

impl AsRef<[u8]> for LentBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl FileRange {
    pub(super) fn new(file: File, offset: u64, length: u64) -> FileRange {
        FileRange { file, offset, remaining: length, buffer: Arc::default() }
    }

    fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.remaining == 0 {
            return Ok(None);
        }
        // If hyper still holds the last chunk, a new buffer is allocated.
        let mut buffer = Arc::try_unwrap(std::mem::take(&mut self.buffer)).unwrap_or_default();
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(FILE_CHUNK_BYTES);
        buffer.resize(most, 0);
        let read = loop {
            match read_at(&self.file, &mut buffer, self.offset) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if read == 0 {
            let reason = format!("the file is shorter than it was: {} bytes of it are missing", self.remaining);
            return Err(io::Error::new(ErrorKind::UnexpectedEof, reason));
        }
        self.offset += read as u64;
        self.remaining -= read as u64;
        self.buffer = Arc::new(buffer);
        Ok(Some(Bytes::from_owner(LentBuffer(Arc::clone(&self.buffer))).slice(..read)))
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buffer, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
}

pub(super) struct EventStreamBody {
    /// Lets the client know at once that the stream is open.
    pub(super) opens_with_comment: bool,
    pub(super) events: EventStream,
    /// Disconnected when the server stops.
    pub(super) stopped: Receiver<()>,
    pub(super) comment_interval: Duration,
    pub(super) last_write_at: Instant,
    /// Hyper had the chance to flush since the last piece.
    pub(super) is_flushed: bool,
    pub(super) client: Arc<TcpStream>,
    pub(super) _permit: WorkPermit,
}

impl hyper::body::Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match self.get_mut() {
            ResponseBody::Bytes(bytes) => bytes.take(),
            ResponseBody::Chunks(chunks) => chunks.find(|chunk| !chunk.is_empty()).map(Bytes::from),
            ResponseBody::File(part) => match part.read() {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Some(Err(error))),
            },
            ResponseBody::Events(stream) => match stream.poll_event(context) {
                Poll::Ready(text) => text.map(Bytes::from),
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Bytes(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            ResponseBody::File(part) => part.remaining == 0,
            ResponseBody::Chunks(_) | ResponseBody::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            ResponseBody::File(part) => SizeHint::with_exact(part.remaining),
            ResponseBody::Chunks(_) | ResponseBody::Events(_) => SizeHint::default(),
        }
    }
}

impl EventStreamBody {
    /// `None` at the stream's end. Blocks, but only once everything before it was flushed.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        if std::mem::take(&mut self.opens_with_comment) {
            self.last_write_at = Instant::now();
            return Poll::Ready(Some(":\n\n".to_owned()));
        }
        if !self.is_flushed {
            match self.events.queue.try_recv() {
                Ok(event) => return Poll::Ready(Some(self.write_event(&event))),
                Err(TryRecvError::Disconnected) => return Poll::Ready(None),
                Err(TryRecvError::Empty) => {
                    // Hyper flushes what it got when this returns Pending: so that is done once before waiting.
                    self.is_flushed = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        loop {
            let comment_in = (self.last_write_at + self.comment_interval).saturating_duration_since(Instant::now());
            if comment_in.is_zero() {
                (self.last_write_at, self.is_flushed) = (Instant::now(), false);
                return Poll::Ready(Some(":\n\n".to_owned()));
            }
            select! {
                recv(self.events.queue) -> event => match event {
                    Ok(event) => return Poll::Ready(Some(self.write_event(&event))),
                    Err(_no_sender_left) => return Poll::Ready(None),
                },
                recv(self.stopped) -> _ => return Poll::Ready(None),
                default(comment_in.min(DISCONNECT_CHECK_INTERVAL)) => if is_disconnected(&self.client) { return Poll::Ready(None) },
            }
        }
    }

    fn write_event(&mut self, event: &ServerSentEvent) -> String {
        (self.last_write_at, self.is_flushed) = (Instant::now(), false);
        event.write()
    }
}

/// Whether the client has gone, as far as that can be seen without reading. With TLS its `close_notify` hides it: then
/// the next comment fails.
fn is_disconnected(client: &TcpStream) -> bool {
    #[cfg(unix)]
    {
        let mut byte = [std::mem::MaybeUninit::<u8>::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        match socket2::SockRef::from(client).recv_with_flags(&mut byte, flags) {
            Ok(length) => length == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = client; // the next comment finds out
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_line_by_line() {
        let event = |name: &str, data: &str| ServerSentEvent { id: None, name: name.to_owned(), data: data.to_owned() };
        assert_eq!(event("files", "{\"a\":1}").write(), "event: files\ndata: {\"a\":1}\n\n");
        assert_eq!(
            event("x", "one\r\ntwo\rthree\n").write(),
            "event: x\ndata: one\ndata: two\ndata: three\ndata: \n\n"
        );
        let numbered = ServerSentEvent { id: Some("b-7".to_owned()), ..event("files", "1") };
        assert_eq!(numbered.write(), "id: b-7\nevent: files\ndata: 1\n\n");
        // No name smuggles in another field.
        assert_eq!(event("a\ndata: b", "").write(), "event: a data: b\ndata: \n\n");
    }
}
