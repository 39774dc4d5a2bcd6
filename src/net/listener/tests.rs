use super::*;
use crate::net::connection_end::ConnectionEnd;
use crate::net::counters::Counter;
use crate::net::lines::LineLimits;
use crate::net::testing::{eventually, in_own_process};
use std::io::{BufRead, BufReader, Read, Write};

const BUSY: &[u8] = b"{\"type\":\"BUSY\"}\n";
const SOON: Duration = Duration::from_secs(10);

/// A port of which each connection is a call of this.
struct Port<F>(F);

impl<F: Fn(&TcpStream, &mut Permit) + Send + Sync + 'static> ConnectionHandler for Port<F> {
    fn busy_response(&self) -> BusyResponse {
        BUSY.to_vec().into()
    }

    fn serve(&self, accepted: AcceptedConnection) {
        let (stream, _, mut permit) = accepted.into_parts();
        (self.0)(&stream, &mut permit);
    }
}

/// Echoes lines; "panic" panics.
fn echo(max_connections: usize, max_threads: usize) -> (Listener, Arc<Executor>, Arc<ConnectionLimiter>) {
    let context = ListenerContext::for_test(max_connections, max_threads);
    let (executor, limiter) = (Arc::clone(&context.executor), Arc::clone(&context.limiter));
    let handler = |mut stream: &TcpStream, permit: &mut Permit| {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|len| len > 0) {
            assert_ne!(line, "panic\n", "on purpose");
            if !permit.mark_request_completed() || stream.write_all(line.as_bytes()).is_err() {
                return;
            }
            line.clear();
        }
    };
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    (Listener::start(listener, context, Arc::new(Port(handler))).unwrap(), executor, limiter)
}

fn connect(server: &Listener) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream, line: &str) -> String {
    stream.write_all(line.as_bytes()).unwrap();
    let mut answer = vec![0; line.len()];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn count(server: &Listener, name: &str) -> u64 {
    server.counters().into_iter().find(|(counted, _)| *counted == name).unwrap().1
}

fn read_all(mut stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn serves_connections_side_by_side() {
    let (server, executor, limiter) = echo(100, 100);
    let clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    for (n, client) in clients.iter().enumerate() {
        let line = format!("hello {n}\n");
        assert_eq!(ask(client, &line), line);
    }
    assert_eq!((server.open_connections(), limiter.open_connections(), executor.running_jobs()), (20, 20, 20));
    drop(clients);
    eventually(|| (server.open_connections(), limiter.open_connections(), executor.running_jobs()) == (0, 0, 0));
}

#[test]
fn past_the_bound_busy_is_heard_and_it_recovers() {
    let (server, _executor, limiter) = echo(3, 100);
    let mut clients: Vec<_> = (0..3).map(|_| connect(&server)).collect();
    clients.iter().for_each(|client| assert_eq!(ask(client, "x\n"), "x\n"));
    for _ in 0..200 {
        let refused = connect(&server);
        // What the client sends first must not cost it the response.
        let _ = (&refused).write_all(&[b'x'; 3000]); // may fail: it has been refused
        assert_eq!(read_all(&refused), BUSY);
    }
    assert_eq!(count(&server, "refused"), 200);
    clients.pop();
    eventually(|| limiter.open_connections() == 2);
    assert_eq!(ask(&connect(&server), "again\n"), "again\n");
}

#[test]
fn silent_connections_give_way_to_one_that_speaks() {
    let (server, _executor, limiter) = echo(4, 100);
    let silent: Vec<_> = (0..12).map(|_| connect(&server)).collect();
    for _ in 0..8 {
        assert_eq!(ask(&connect(&server), "x\n"), "x\n");
        // A served connection is not evicted: it must end before there is room again.
        eventually(|| limiter.open_connections() < 4);
    }
    assert!(count(&server, "newcomers_closed") > 8);
    assert_eq!(count(&server, "refused"), 0);
    drop(silent);
    eventually(|| (limiter.open_connections(), limiter.pending_connections()) == (0, 0));
}

#[test]
fn without_a_thread_busy_is_heard() {
    let (server, executor, limiter) = echo(100, 1);
    let client = connect(&server);
    assert_eq!(ask(&client, "x\n"), "x\n");
    assert_eq!(read_all(&connect(&server)), BUSY);
    assert_eq!((server.open_connections(), limiter.open_connections()), (1, 1));
    drop(client);
    eventually(|| executor.running_jobs() == 0);
    assert_eq!(ask(&connect(&server), "x\n"), "x\n");
}

#[test]
fn a_panic_ends_one_connection_only() {
    let (server, executor, limiter) = echo(100, 100);
    let other = connect(&server);
    assert_eq!(ask(&other, "x\n"), "x\n");
    let client = connect(&server);
    (&client).write_all(b"panic\n").unwrap();
    assert_eq!(read_all(&client), b"");
    assert_eq!(ask(&other, "x\n"), "x\n");
    eventually(|| {
        (executor.counters().panics.get(), limiter.open_connections(), server.open_connections()) == (1, 1, 1)
    });
}

#[test]
fn stopping_ends_idle_connections_at_once() {
    let (server, executor, _limiter) = echo(100, 100);
    let client = connect(&server);
    assert_eq!(ask(&client, "x\n"), "x\n");
    let begun = Instant::now();
    assert_eq!(server.stop(Duration::from_secs(30)), 0);
    assert!(begun.elapsed() < SOON);
    assert_eq!(read_all(&client), b"");
    assert_eq!(executor.shut_down(SOON), 0);
    assert!(TcpStream::connect(server.local_addr()).is_err());
}

/// A port of lines: each is kept and answered with itself.
#[derive(Default)]
struct Kept(Arc<Mutex<Vec<String>>>, Counter);

impl MessageService for Kept {
    type Session = ();
    const NAME: &'static str = "test";
    const FRAMING: MessageFraming = MessageFraming::Lines;

    fn limits(&self) -> LineLimits {
        LineLimits::new(1000)
    }

    fn rejection_message(&self, _why: Rejection) -> Option<Vec<u8>> {
        None
    }

    fn connections_failed(&self) -> &Counter {
        &self.1
    }

    fn on_connect(&self, _connection: &MessageConnection) {}

    fn handle(
        &self,
        (): &mut (),
        message: Vec<u8>,
        connection: &mut MessageConnection,
    ) -> Result<AfterMessage, ConnectionEnd> {
        self.0.lock().push(String::from_utf8_lossy(&message).into_owned());
        connection.write(&message)?;
        Ok(AfterMessage::Continue)
    }
}

#[test]
fn half_a_line_is_one_at_the_clients_end_and_none_at_our_own() {
    let service = Kept::default();
    let kept = Arc::clone(&service.0);
    let socket = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = Listener::start(socket, ListenerContext::for_test(10, 10), Arc::new(MessageHandler(service))).unwrap();
    let begin = |whole: &str, half: &str| {
        let mut client = connect(&server);
        client.write_all(format!("{whole}\n{half}").as_bytes()).unwrap();
        let mut answer = vec![0; whole.len() + 1];
        client.read_exact(&mut answer).unwrap();
        client
    };
    let ends = begin("one", "of a client that ends");
    ends.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&ends), b"of a client that ends\n");
    let goes_on = begin("two", "buy 1");
    assert_eq!(server.stop(SOON), 0);
    assert_eq!(read_all(&goes_on), b"", "perhaps he wanted to buy 10");
    assert_eq!(*kept.lock(), ["one", "of a client that ends", "two"]);
}

#[test]
fn stopping_cuts_off_those_who_write_on() {
    let endless = |mut stream: &TcpStream, _: &mut Permit| while stream.write_all(&[7; 65_536]).is_ok() {};
    let (socket, context) = (listen("127.0.0.1:0".parse().unwrap()).unwrap(), ListenerContext::for_test(10, 10));
    let executor = Arc::clone(&context.executor);
    let server = Listener::start(socket, context, Arc::new(Port(endless))).unwrap();
    let _client = connect(&server);
    eventually(|| server.open_connections() == 1);
    assert_eq!(server.stop(Duration::from_millis(50)), 0);
    assert_eq!(executor.shut_down(SOON), 0);
}

#[test]
fn without_descriptors_busy_is_heard_and_it_recovers() {
    if !cfg!(unix) || !in_own_process("net::listener::tests::without_descriptors_busy_is_heard_and_it_recovers") {
        return;
    }
    let (server, _executor, _limiter) = echo(100, 100);
    assert_eq!(ask(&connect(&server), "x\n"), "x\n");
    eventually(|| server.open_connections() == 0);
    let unconnected: Vec<_> =
        (0..6).map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()).collect();
    let (mut all_others, mut clients) = (Vec::new(), Vec::new());
    while let Ok(file) = std::fs::File::open("/dev/null") {
        all_others.push(file);
    }
    for (n, socket) in unconnected.into_iter().enumerate() {
        socket.connect(&server.local_addr().into()).unwrap();
        let client = TcpStream::from(socket);
        client.set_read_timeout(Some(SOON)).unwrap();
        if n == 0 {
            // The `accept` that was waiting already had its descriptor.
            assert_eq!(ask(&client, "x\n"), "x\n");
        } else {
            assert_eq!(read_all(&client), BUSY);
        }
        // The clients keep their descriptors, so that none becomes free.
        clients.push(client);
    }
    assert_eq!(count(&server, "refused"), 5);
    assert!(count(&server, "out_of_descriptors") >= 1);
    clients.clear();
    drop(all_others);
    assert_eq!(ask(&connect(&server), "again\n"), "again\n");
}
