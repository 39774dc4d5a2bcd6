//! What goes out: bytes, chunks, a part of a file, or events as they happen.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError, select};
use hyper::body::{Frame, SizeHint};

/// How often an event stream that waits looks whether its client is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What of a file is read at a time: so much that the system calls cost nothing beside the copying.
const FILE_PIECE_BYTES: usize = 256 * 1024;

/// An event, as `text/event-stream` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What a client says to go on from there, one line.
    pub id: Option<String>,
    /// Its name, one line.
    pub name: String,
    /// What it says.
    pub data: String,
}

impl Event {
    /// Of a value as JSON, which is one line.
    pub fn json(name: &str, data: &serde_json::Value) -> Event {
        Event { id: None, name: name.to_owned(), data: data.to_string() }
    }

    /// What it takes of memory, about.
    pub(super) fn len(&self) -> usize {
        size_of::<Event>() + self.id.as_ref().map_or(0, String::len) + self.name.len() + self.data.len()
    }

    fn write(&self) -> String {
        let one_line = |text: &str| text.replace(['\r', '\n', '\0'], " ");
        let mut text = String::with_capacity(self.data.len() + 100);
        if let Some(id) = &self.id {
            text = text + "id: " + &one_line(id) + "\n";
        }
        text = text + "event: " + &one_line(&self.name) + "\n";
        for line in self.data.replace("\r\n", "\n").split(['\r', '\n']) {
            text.push_str("data: ");
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
        text
    }
}

/// Events on their way to one client. All who are told of one share it.
#[derive(Debug)]
pub struct Events {
    queue: Receiver<Arc<Event>>,
    /// Lets go of it at the end, which whoever tells can see.
    _is_read: Option<Arc<()>>,
}

impl Events {
    /// The same, and what is gone once nobody reads them any more.
    pub(super) fn watched(queue: Receiver<Arc<Event>>) -> (Events, Weak<()>) {
        let is_read = Arc::new(());
        let watch = Arc::downgrade(&is_read);
        (Events { queue, _is_read: Some(is_read) }, watch)
    }

    /// Where they come from.
    pub fn queue(&self) -> &Receiver<Arc<Event>> {
        &self.queue
    }
}

impl From<Receiver<Arc<Event>>> for Events {
    fn from(queue: Receiver<Arc<Event>>) -> Events {
        Events { queue, _is_read: None }
    }
}

/// The body of an answer.
pub enum Body {
    /// Known as a whole.
    Bytes(Vec<u8>),
    /// Made piece by piece while it is sent; the next one only when there is room for it. Making one is
    /// memory work.
    Chunks(Box<dyn Iterator<Item = Vec<u8>> + Send>),
    /// So many bytes of a file, from there on, read while they are sent. One that turns out to be shorter cuts the
    /// connection: nothing else can tell the client that what it has is not the file.
    File {
        /// The file. Nobody's place in it is moved.
        file: File,
        /// Where the part begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// Server-sent events as they come, until no sender is left or the client has gone; then they are dropped. (The
    /// type of the content is set by the server.)
    Events(Events),
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

/// A place among the event streams, given back when dropped.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// None if all are taken.
    pub(super) fn take(streams: &Arc<AtomicUsize>, most: usize) -> Option<Place> {
        // Relaxed: the number guards no other memory.
        streams.fetch_update(Relaxed, Relaxed, |open| (open < most).then_some(open + 1)).ok()?;
        Some(Place(Arc::clone(streams)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A body as hyper asks for it.
pub(super) enum Outgoing {
    Bytes(Option<Bytes>),
    Chunks(Box<dyn Iterator<Item = Vec<u8>> + Send>),
    File(FilePart),
    Events(Box<Stream>),
}

/// What of a file is still to be sent.
pub(super) struct FilePart {
    file: File,
    offset: u64,
    left: u64,
    /// What was read last: lent to hyper until it is written, then read into again.
    buffer: Arc<Vec<u8>>,
}

/// A buffer as [`Bytes`] has it.
struct Lent(Arc<Vec<u8>>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl FilePart {
    pub(super) fn new(file: File, offset: u64, length: u64) -> FilePart {
        FilePart { file, offset, left: length, buffer: Arc::default() }
    }

    /// The next piece; none at the end.
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        // Where hyper still holds the one before, another one is made.
        let mut buffer = Arc::try_unwrap(std::mem::take(&mut self.buffer)).unwrap_or_default();
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILE_PIECE_BYTES);
        buffer.resize(most, 0);
        let came = loop {
            match read_at(&self.file, &mut buffer, self.offset) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                came => break came?,
            }
        };
        if came == 0 {
            let reason = format!("the file is shorter than it was: {} bytes of it are missing", self.left);
            return Err(io::Error::new(ErrorKind::UnexpectedEof, reason));
        }
        self.offset += came as u64;
        self.left -= came as u64;
        self.buffer = Arc::new(buffer);
        Ok(Some(Bytes::from_owner(Lent(Arc::clone(&self.buffer))).slice(..came)))
    }
}

/// Reads at a place, whoever else reads the same file.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buffer, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buffer, offset);
}

/// Events on their way to one client.
pub(super) struct Stream {
    /// A comment goes first, so that whoever waits for the stream knows at once that it is there.
    pub(super) greets: bool,
    pub(super) events: Events,
    /// Closed when the server stops.
    pub(super) stopped: Receiver<()>,
    pub(super) comment_every: Duration,
    /// When something was written last.
    pub(super) spoke_at: Instant,
    /// Whether hyper had the chance to flush since the last piece.
    pub(super) is_flushed: bool,
    pub(super) client: Arc<TcpStream>,
    pub(super) _place: Place,
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match self.get_mut() {
            Outgoing::Bytes(bytes) => bytes.take(),
            Outgoing::Chunks(chunks) => chunks.find(|chunk| !chunk.is_empty()).map(Bytes::from),
            Outgoing::File(part) => match part.read() {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Some(Err(error))),
            },
            Outgoing::Events(stream) => match stream.poll(context) {
                Poll::Ready(text) => text.map(Bytes::from),
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Bytes(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Outgoing::File(part) => part.left == 0,
            Outgoing::Chunks(_) | Outgoing::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Outgoing::File(part) => SizeHint::with_exact(part.left),
            Outgoing::Chunks(_) | Outgoing::Events(_) => SizeHint::default(),
        }
    }
}

impl Stream {
    /// The next piece; none at the end. Blocks, but only once everything before is on its way.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        if std::mem::take(&mut self.greets) {
            self.spoke_at = Instant::now();
            return Poll::Ready(Some(":\n\n".to_owned()));
        }
        if !self.is_flushed {
            match self.events.queue.try_recv() {
                Ok(event) => return Poll::Ready(Some(self.say(&event))),
                Err(TryRecvError::Disconnected) => return Poll::Ready(None),
                Err(TryRecvError::Empty) => {
                    // What was given out is flushed when we are pending: so once, then we wait.
                    self.is_flushed = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        loop {
            let comment_in = (self.spoke_at + self.comment_every).saturating_duration_since(Instant::now());
            if comment_in.is_zero() {
                (self.spoke_at, self.is_flushed) = (Instant::now(), false);
                return Poll::Ready(Some(":\n\n".to_owned()));
            }
            select! {
                recv(self.events.queue) -> event => match event {
                    Ok(event) => return Poll::Ready(Some(self.say(&event))),
                    Err(_no_sender_left) => return Poll::Ready(None),
                },
                recv(self.stopped) -> _ => return Poll::Ready(None),
                default(comment_in.min(LOOK_EVERY)) => if has_gone(&self.client) { return Poll::Ready(None) },
            }
        }
    }

    fn say(&mut self, event: &Event) -> String {
        (self.spoke_at, self.is_flushed) = (Instant::now(), false);
        event.write()
    }
}

/// Whether the client has ended the connection, as far as that can be seen without reading from it (over TLS
/// its goodbye stands before that: the next comment finds out).
fn has_gone(client: &TcpStream) -> bool {
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
        let event = |name: &str, data: &str| Event { id: None, name: name.to_owned(), data: data.to_owned() };
        assert_eq!(event("files", "{\"a\":1}").write(), "event: files\ndata: {\"a\":1}\n\n");
        assert_eq!(
            event("x", "one\r\ntwo\rthree\n").write(),
            "event: x\ndata: one\ndata: two\ndata: three\ndata: \n\n"
        );
        let numbered = Event { id: Some("b-7".to_owned()), ..event("files", "1") };
        assert_eq!(numbered.write(), "id: b-7\nevent: files\ndata: 1\n\n");
        // No name smuggles in another field.
        assert_eq!(event("a\ndata: b", "").write(), "event: a data: b\ndata: \n\n");
    }
}
