use super::*;
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::deadline::DeadlineRead;
use crate::net::listener;
use crate::net::testing::eventually;
use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(10);

fn quick() -> HttpLimits {
    HttpLimits {
        message_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(500),
        upload_idle_timeout: Duration::from_millis(400),
        ..HttpLimits::default()
    }
}

fn context(limits: HttpLimits) -> HttpContext {
    HttpContext {
        executor: Executor::new("test", 1000),
        limiter: ConnectionLimiter::new(1000),
        budget: ReceiveBudget::new(64 << 20),
        identity: None,
        allows_remote_plaintext: false,
        policy: RequestPolicy { http_hosts: Vec::new(), allow_origins: vec!["https://page.example".to_owned()] },
        limits,
    }
}

fn start(context: HttpContext, handler: impl HttpHandler) -> HttpServer {
    let listener = listener::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    HttpServer::start(listener, context, Arc::new(handler)).unwrap()
}

/// Says what it was asked.
fn echo(request: Request) -> Response {
    assert_ne!(request.path, "/panic", "asked for");
    success(json!({
        "method": request.method.as_str(), "path": request.path, "query": request.query,
        "body": String::from_utf8_lossy(&request.body), "source": request.source.ip(),
    }))
}

/// A client on a bare socket.
struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Client {
    fn new(server: &HttpServer) -> Client {
        let stream = TcpStream::connect(server.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { reader: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().unwrap();
            let Some((name, value)) = line.split_once(':') else {
                assert_eq!(line, "");
                return Some((status, headers));
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).unwrap();
        (length > 0).then(|| line.trim_end().to_owned())
    }

    /// The next answer; none at the end of the connection.
    fn answer(&mut self) -> Option<Answer> {
        let (status, headers) = self.head()?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut answer.body).unwrap();
        }
        Some(answer)
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line().unwrap(), 16).unwrap();
        let mut chunk = vec![0; length];
        self.reader.read_exact(&mut chunk).unwrap();
        assert_eq!(self.line().unwrap(), "");
        (length > 0).then_some(chunk)
    }

    fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.answer().expect("an answer")
    }

    fn get(&mut self, path: &str) -> Answer {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
    }

    fn post(&mut self, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let head = format!("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n");
        self.ask(head + body)
    }

    fn assert_ended(&mut self) {
        let mut byte = [0];
        assert_eq!(self.reader.read(&mut byte).unwrap(), 0, "the connection goes on");
    }
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    for n in 0..3 {
        let answer = client.get(&format!("/a%20b?n={n}"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("set-cookie"), None);
        let expected = json!({"success": true, "method": "GET", "path": "/a%20b", "query": format!("n={n}"),
            "body": "", "source": "127.0.0.1"});
        assert_eq!(answer.json(), expected);
    }
    let answer = client.post("Content-Type: application/json; charset=utf-8\r\n", "{\"a\":1}");
    assert_eq!((answer.status, answer.json()["body"].clone()), (200, json!("{\"a\":1}")));
    let answer = client.ask("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 200);
    client.assert_ended();
    let mut old = Client::new(&server);
    assert_eq!(old.ask("GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").status, 200);
    old.assert_ended();
    eventually(|| server.listener.open_connections() == 0);
    assert_eq!(server.counters.requests.get(), 6);
}

#[test]
fn requests_sent_one_behind_the_other_are_answered_in_order() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    let mut all = String::new();
    for n in 0..40 {
        all += &format!("GET /{n} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let body = format!("{{\"n\":{n}}}");
        let length = body.len();
        all += &format!(
            "POST /p{n} HTTP/1.1\r\nHost: [::1]:80\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
    }
    // A leading blank line is ignored.
    client.send("\r\n".to_owned() + &all);
    for n in 0..40 {
        assert_eq!(client.answer().unwrap().json()["path"], format!("/{n}"));
        let answer = client.answer().unwrap().json();
        assert_eq!((&answer["path"], &answer["body"]), (&json!(format!("/p{n}")), &json!(format!("{{\"n\":{n}}}"))));
    }
    // The request is sent byte by byte.
    for byte in "GET /last HTTP/1.1\r\nHost: localhost\r\n\r\n".bytes() {
        client.send([byte]);
    }
    assert_eq!(client.answer().unwrap().json()["path"], "/last");
}

#[test]
fn a_body_may_come_in_chunks_and_after_a_word_of_ours() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    let head =
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    for _ in 0..2 {
        client.send(head);
        client.send("4\r\n[1,2\r\n");
        client.send("3\r\n,3]\r\n0\r\n\r\n");
        assert_eq!(client.answer().unwrap().json()["body"], "[1,2,3]");
    }
    client.send(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.head().unwrap().0, 100);
    client.send("{}");
    assert_eq!(client.answer().unwrap().json()["body"], "{}");
    // Malformed chunks: an error, then the connection ends.
    let answer = client.ask(head.to_owned() + "zz\r\n");
    assert_eq!(answer.status, 400);
    client.assert_ended();
}

#[test]
fn the_largest_body_is_taken_and_a_longer_one_told_so() {
    let server =
        start(context(HttpLimits::default()), |request: Request| success(json!({"length": request.body.len()})));
    let json = "Content-Type: application/json\r\n";
    let mut client = Client::new(&server);
    assert_eq!(client.post(json, &"x".repeat(BODY_MAX_BYTES)).json()["length"], BODY_MAX_BYTES);
    // Refused by its declared length, before it is sent at all.
    let mut client = Client::new(&server);
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\n{json}Content-Length: {}\r\n\r\n{}",
        BODY_MAX_BYTES + 1,
        "x".repeat(1000)
    ));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    assert!(answer.json()["error"].as_str().unwrap().contains("1048576"));
    // Sent in chunks, it is refused once it is too long.
    let mut client = Client::new(&server);
    client.send(format!("POST / HTTP/1.1\r\nHost: localhost\r\n{json}Transfer-Encoding: chunked\r\n\r\n"));
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..17 {
        client.send(&chunk);
    }
    assert_eq!(client.answer().unwrap().status, 413);
}

#[test]
fn a_body_that_is_not_json_is_not_taken() {
    let server = start(context(HttpLimits::default()), echo);
    for headers in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: text/plain; application/json\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
    ] {
        let answer = Client::new(&server).post(headers, "{}");
        assert_eq!(answer.status, 415, "{headers}");
        assert_eq!(answer.json()["success"], false);
    }
    assert_eq!(Client::new(&server).post("", "").status, 200, "no body is none of another type");
    assert_eq!(server.counters.refused.get(), 6);
}

#[test]
fn strange_hosts_and_origins_do_not_reach_the_handler() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    let mut ask = |headers: &str| client.ask(format!("GET / HTTP/1.1\r\n{headers}\r\n"));
    assert_eq!(ask("Host: evil.example\r\n").status, 421);
    assert_eq!(ask("").status, 400);
    assert_eq!(ask("Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n").status, 403);
    let answer = ask("Host: 127.0.0.1\r\nOrigin: https://page.example\r\n");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"));
    assert_eq!((server.counters.refused.get(), server.counters.failed.get()), (3, 0), "each is counted once");
    let preflight = |origin| {
        format!(
            "OPTIONS /x HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        )
    };
    let answer = client.ask(preflight("https://page.example"));
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(client.ask(preflight("https://evil.example")).status, 403);
    // A form on a page of another origin, which needs no preflight.
    let answer = client.post("Origin: http://evil.example\r\nContent-Type: text/plain\r\n", "{}");
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
}

#[test]
fn a_head_alone_is_asked_for_like_the_whole() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    client.send("HEAD /h HTTP/1.1\r\nHost: localhost\r\n\r\nGET /g HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (status, headers) = client.head().unwrap();
    assert!(status == 200 && headers.iter().any(|(name, value)| name == "content-length" && value != "0"));
    assert_eq!(client.answer().unwrap().json()["path"], "/g");
}

#[test]
fn what_is_no_http_or_too_much_is_told_and_ended() {
    let server = start(context(HttpLimits::default()), echo);
    for (sent, status) in [
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX_BYTES)), 431),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(200)), 431),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_owned(), 400),
    ] {
        let mut client = Client::new(&server);
        client.send(&sent);
        assert_eq!(client.answer().unwrap().status, status, "{}", &sent[..20]);
        client.assert_ended();
    }
}

#[test]
fn a_request_that_trickles_is_ended_and_told_why() {
    let server = start(context(quick()), echo);
    for begun in [
        "GET / HTTP/1.1\r\nX: ",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let mut client = Client::new(&server);
        let started = Instant::now();
        client.send(begun);
        let trickling = std::thread::spawn({
            let mut stream = client.reader.get_ref().try_clone().unwrap();
            move || {
                // Until the other end is closed.
                while stream.write_all(b"x").is_ok() && started.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(60));
                }
            }
        });
        let answer = client.answer().unwrap();
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert_eq!(answer.status, 408, "{begun}");
        assert_eq!(answer.json()["error"], "the request was not complete 0.3 s after its first byte");
        // The client keeps sending, which may reset the connection.
        let mut byte = [0];
        assert!(matches!(client.reader.read(&mut byte), Ok(0) | Err(_)));
        drop(client);
        trickling.join().unwrap();
    }
    // The rest of a request whose beginning arrived together with the one before it.
    let mut client = Client::new(&server);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT");
    assert_eq!((client.answer().unwrap().status, client.answer().unwrap().status), (200, 408));
    // The same after a request with a body.
    let mut client = Client::new(&server);
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    client.send(head.to_owned() + "{}GET / HT");
    assert_eq!((client.answer().unwrap().status, client.answer().unwrap().status), (200, 408));
    assert_eq!(server.counters.timed_out.get(), 4);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let server = start(context(quick()), echo);
    let mut silent = Client::new(&server);
    let mut client = Client::new(&server);
    assert_eq!(client.get("/").status, 200);
    let answered = Instant::now();
    client.assert_ended();
    assert!(answered.elapsed() >= Duration::from_millis(450));
    silent.assert_ended();
    assert_eq!(server.counters.timed_out.get(), 0);
}

#[test]
fn a_panic_is_an_answer_and_no_more() {
    let server = start(context(HttpLimits::default()), echo);
    let mut client = Client::new(&server);
    let answer = client.get("/panic");
    assert_eq!((answer.status, answer.json()["success"].clone()), (500, json!(false)));
    assert_eq!(client.get("/").status, 200);
    assert_eq!(server.counters.panics.get(), 1);
    assert_eq!((server.counters.failed.get(), server.counters.refused.get()), (1, 0));
}

#[test]
fn a_long_answer_is_made_while_it_is_sent() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let server = start(context(HttpLimits::default()), move |_: Request| {
        let count = Arc::clone(&count);
        let chunks = (0..1000).map(move |n| {
            count.store(n, Relaxed);
            vec![b'x'; if n % 7 == 0 { 0 } else { 64 * 1024 }]
        });
        Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Chunks(Box::new(chunks)) }
    });
    let mut client = Client::new(&server);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (status, _) = client.head().unwrap();
    assert_eq!(status, 200);
    std::thread::sleep(Duration::from_millis(100));
    assert!(made.load(Relaxed) < 999, "nobody reads, so it waits");
    let mut length = 0;
    while let Some(chunk) = client.chunk() {
        length += chunk.len();
    }
    assert_eq!(length, (1000 - 143) * 64 * 1024);
    assert_eq!(client.ask("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
}

/// Streams the events of one receiver a request, taken from a queue.
fn streaming(limits: HttpLimits) -> (HttpServer, Sender<Receiver<Arc<ServerSentEvent>>>) {
    let (hand_over, handed) = unbounded::<Receiver<Arc<ServerSentEvent>>>();
    let server = start(context(limits), move |request: Request| {
        if request.path == "/api/health" {
            return success(json!({"status": "healthy"}));
        }
        Response {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Body::Events(handed.recv().unwrap().into()),
        }
    });
    (server, hand_over)
}

fn event(n: usize) -> Arc<ServerSentEvent> {
    Arc::new(ServerSentEvent::json("files", &json!({"n": n})))
}

#[test]
fn events_arrive_as_they_happen_and_the_connection_goes_on_after_them() {
    let (server, hand_over) = streaming(HttpLimits::default());
    let mut client = Client::new(&server);
    let (tell, told) = unbounded();
    hand_over.send(told).unwrap();
    client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // The head comes before any event.
    let (status, headers) = client.head().unwrap();
    assert_eq!(status, 200);
    assert!(headers.contains(&("content-type".to_owned(), "text/event-stream".to_owned())), "{headers:?}");
    // It is sent at once, so that proxies forward the head.
    assert_eq!(client.chunk().unwrap(), b":\n\n");
    for n in 0..5 {
        tell.send(event(n)).unwrap();
        let expected = format!("event: files\ndata: {{\"n\":{n}}}\n\n");
        assert_eq!(String::from_utf8(client.chunk().unwrap()).unwrap(), expected);
    }
    assert_eq!(server.event_streams(), 1);
    drop(tell);
    assert_eq!(client.chunk(), None);
    eventually(|| server.event_streams() == 0);
    assert_eq!(client.get("/api/health").status, 200);
}

#[test]
fn a_quiet_stream_says_that_it_lives() {
    let limits = HttpLimits { comment_interval: Duration::from_millis(50), ..HttpLimits::default() };
    let (server, hand_over) = streaming(limits);
    let mut client = Client::new(&server);
    let (_tell, told) = unbounded();
    hand_over.send(told).unwrap();
    client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.head().unwrap();
    for _ in 0..3 {
        assert_eq!(client.chunk().unwrap(), b":\n\n");
    }
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let (server, hand_over) = streaming(HttpLimits::default());
    let mut client = Client::new(&server);
    let (tell, told) = unbounded();
    hand_over.send(told).unwrap();
    client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.head().unwrap();
    drop(client);
    eventually(|| server.event_streams() == 0);
    assert!(tell.send(event(0)).is_err(), "nobody listens any more");
    eventually(|| server.listener.open_connections() == 0);
}

#[test]
fn one_that_reads_nothing_is_given_up() {
    let limits = HttpLimits { write_timeout: Duration::from_millis(100), ..HttpLimits::default() };
    let (server, hand_over) = streaming(limits);
    let mut client = Client::new(&server);
    let (tell, told) = crossbeam_channel::bounded(1);
    hand_over.send(told).unwrap();
    client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.head().unwrap();
    let long = Arc::new(ServerSentEvent { id: None, name: "x".to_owned(), data: "x".repeat(100_000) });
    let give_up_at = Instant::now() + PATIENCE;
    // Until the receiver is dropped.
    while tell.send_timeout(long.clone(), PATIENCE).is_ok() {
        assert!(Instant::now() < give_up_at);
    }
    eventually(|| server.event_streams() == 0);
}

#[test]
fn idle_connections_and_event_streams_leave_room_for_others() {
    const STREAMS_MAX: usize = 64;
    let (server, hand_over) = streaming(HttpLimits { event_streams: Some(STREAMS_MAX), ..HttpLimits::default() });
    assert_eq!(start(context(HttpLimits::default()), echo).event_streams_max(), 250, "a quarter of the connections");
    let idle: Vec<Client> = (0..200).map(|_| Client::new(&server)).collect();
    let mut tells = Vec::new();
    let mut streams = Vec::new();
    let mut open = |server: &HttpServer| {
        let (tell, told) = unbounded();
        tells.push(tell);
        hand_over.send(told).unwrap();
        let mut client = Client::new(server);
        client.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let status = client.head().unwrap().0;
        streams.push(client);
        status
    };
    for _ in 0..STREAMS_MAX {
        assert_eq!(open(&server), 200);
    }
    assert_eq!(open(&server), 503);
    assert_eq!(server.event_streams(), STREAMS_MAX);
    let mut client = Client::new(&server);
    for _ in 0..10 {
        assert_eq!(client.get("/api/health").json(), json!({"success": true, "status": "healthy"}));
    }
    drop(streams);
    eventually(|| server.event_streams() == 0);
    drop(idle);
    drop(client);
    eventually(|| server.listener.open_connections() == 0);
}

#[test]
fn stopping_ends_streams_and_idle_connections_and_finishes_what_is_in_hand() {
    let (begun, has_begun) = unbounded();
    let server = start(context(HttpLimits::default()), move |request: Request| {
        if request.path == "/events" {
            let (tell, told) = unbounded();
            // Never dropped: the server must end the stream.
            std::mem::forget(tell);
            return Response { status: StatusCode::OK, headers: HeaderMap::new(), body: Body::Events(told.into()) };
        }
        begun.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        success(json!({}))
    });
    let (mut stream, mut idle, mut busy) = (Client::new(&server), Client::new(&server), Client::new(&server));
    stream.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.head().unwrap();
    assert_eq!(stream.chunk().unwrap(), b":\n\n");
    busy.send("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n");
    has_begun.recv_timeout(PATIENCE).unwrap();
    let started = Instant::now();
    server.stop(Duration::from_secs(5));
    assert!(started.elapsed() < Duration::from_secs(3), "nobody kept it waiting");
    assert_eq!(busy.answer().unwrap().status, 200);
    assert_eq!(stream.chunk(), None);
    idle.assert_ended();
}

#[test]
fn past_the_bound_of_connections_it_is_busy() {
    let (tell, told) = unbounded();
    let handler = move |_: Request| Response {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Body::Events(told.clone().into()),
    };
    let server = start(HttpContext { limiter: ConnectionLimiter::new(1), ..context(HttpLimits::default()) }, handler);
    // A connection whose request is being handled is not evicted.
    let mut first = Client::new(&server);
    first.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    first.head().unwrap();
    let mut second = Client::new(&server);
    let answer = second.answer().unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.json()["error"].as_str().unwrap().contains("BUSY"));
    drop(tell);
}

fn over_tls(server: &HttpServer, pin: &str) -> (ConnReader, ConnWriter) {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    Conn::tls_client(stream, pin, Instant::now() + PATIENCE).unwrap().split()
}

#[test]
fn tls_is_told_by_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap());
    let pin = identity.fingerprint().to_owned();
    let server = start(HttpContext { identity: Some(identity), ..context(HttpLimits::default()) }, echo);
    assert_eq!(Client::new(&server).get("/plain").json()["path"], "/plain");
    let (mut reader, writer) = over_tls(&server, &pin);
    let deadline = Instant::now() + PATIENCE;
    for (origin, status) in [("https://127.0.0.1", "200"), ("http://127.0.0.1", "403")] {
        let request = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {origin}\r\n\r\n");
        writer.write_all(request.as_bytes(), deadline).unwrap();
        let mut answer = vec![0; 4096];
        let length = reader.read_before(&mut answer, deadline).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[test]
fn connections_without_a_request_leave_room_for_those_with_one() {
    let handler = |request: Request| success(json!({ "path": request.path }));
    let server = start(HttpContext { limiter: ConnectionLimiter::new(8), ..context(HttpLimits::default()) }, handler);
    let mut held = Vec::new();
    for begun in [
        "",
        "GET / HT",
        "POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
    ] {
        for _ in 0..20 {
            let mut client = Client::new(&server);
            // It may have been closed already.
            let _ = client.reader.get_mut().write_all(begun.as_bytes());
            held.push(client);
        }
        // A closed connection takes a moment to be released.
        eventually(|| {
            let mut client = Client::new(&server);
            let sent = client.reader.get_mut().write_all(b"GET /x HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
            let mut line = String::new();
            sent.is_ok() && client.reader.read_line(&mut line).is_ok() && line.contains(" 200 ")
        });
    }
    assert!(server.counters().iter().any(|(name, count)| *name == "newcomers_closed" && *count > 0));
}

#[test]
fn from_other_hosts_requests_want_tls_unless_it_was_allowed_otherwise() {
    for (source, allows_remote_plaintext, status) in
        [("127.0.0.1:1", false, 200), ("[::1]:1", false, 200), ("192.0.2.1:1", false, 403), ("192.0.2.1:1", true, 200)]
    {
        let asked = Arc::new(AtomicUsize::new(0));
        let its_asked = Arc::clone(&asked);
        let (_running, stopped) = bounded(0);
        let shared = HttpServerInner {
            handler: Arc::new(move |_: Request| {
                its_asked.fetch_add(1, Relaxed);
                success(json!({}))
            }),
            policy: RequestPolicy::default(),
            limits: HttpLimits::default(),
            counters: Arc::default(),
            streams: Arc::default(),
            streams_max: 1,
            stopped,
        };
        let (here, mut there) = crate::net::deadline::tests::pair();
        there.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
        HttpConnectionHandler(Arc::new(shared)).serve(AcceptedConnection::with_source(
            here,
            source.parse().unwrap(),
            allows_remote_plaintext,
        ));
        let mut answer = String::new();
        there.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{source} {allows_remote_plaintext}: {answer}");
        assert_eq!(asked.load(Relaxed), usize::from(status == 200));
    }
}

#[test]
fn what_is_no_request_is_refused_in_json() {
    let server = start(context(HttpLimits::default()), echo);
    for (sent, status) in [
        ("GET / HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
        ("\u{1}\u{2}\r\n\r\n", 400),
        ("GET / HTTP/7.5\r\n\r\n", 400),
        (&format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX_BYTES)), 431),
    ] {
        let mut client = Client::new(&server);
        // The first value is valid, but a second one is refused all the same.
        assert_eq!(client.get("/first").status, 200);
        client.send(sent);
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, status, "{sent:.40}");
        assert_eq!(answer.json()["success"], false, "{sent:.40}");
        assert!(!answer.json()["error"].as_str().unwrap().is_empty());
        client.assert_ended();
    }
}

#[test]
fn a_body_that_is_coded_otherwise_and_two_who_ask_at_once_are_refused() {
    let (server, ended) = uploads(context(HttpLimits::default()));
    for coding in ["gzip, chunked", "Chunked, chunked", "identity, chunked"] {
        let mut client = Client::new(&server);
        let answer = client.ask(upload(&format!("Transfer-Encoding: {coding}\r\n")) + "3\r\nabc\r\n0\r\n\r\n");
        assert_eq!((answer.status, answer.header("connection")), (501, Some("close")), "{coding}");
        assert!(answer.json()["error"].as_str().unwrap().contains("expected chunked alone"), "{coding}");
        client.assert_ended();
    }
    let mut client = Client::new(&server);
    assert_eq!(client.ask(upload("Transfer-Encoding: CHUNKED\r\n") + "3\r\nabc\r\n0\r\n\r\n").status, 200);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(b"abc".to_vec()));
    assert!(ended.is_empty(), "nothing was kept of the others");
    let twice = "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n";
    assert_eq!(client.ask(twice).status, 400);
}

#[test]
fn past_the_budget_a_body_is_busy_and_so_is_a_long_head() {
    let budget = ReceiveBudget::new(30_000);
    let server = start(HttpContext { budget: Arc::clone(&budget), ..context(HttpLimits::default()) }, echo);
    let head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let mut holder = Client::new(&server);
    holder.send(format!("{head}content-length: 28000\r\n\r\n{}", "x".repeat(27_000)));
    eventually(|| budget.used_bytes() == 27_000);
    let mut body = Client::new(&server);
    body.send(format!("{head}content-length: 5000\r\n\r\n{}", "x".repeat(5_000)));
    let mut long_head = Client::new(&server);
    long_head.send(format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}", "x".repeat(9_000)));
    for busy in [&mut body, &mut long_head] {
        let answer = busy.answer().unwrap();
        assert_eq!(answer.status, 503);
        assert!(answer.json()["error"].as_str().unwrap().contains("too much is being received"));
    }
    assert_eq!(Client::new(&server).get("/short").status, 200, "what is short goes on");
    drop(holder);
    eventually(|| budget.used_bytes() == 0);
}

/// Takes uploads at `/up/…`, and says what became of each.
struct Uploads {
    ended: Sender<Ended>,
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Whole(Vec<u8>),
    CutOff(usize),
}

struct Kept {
    bytes: Vec<u8>,
    most: usize,
    ended: Option<Sender<Ended>>,
}

impl HttpHandler for Uploads {
    fn handle(&self, request: Request) -> Response {
        echo(request)
    }

    fn upload(&self, head: &Request) -> Option<Result<Box<dyn BodySink>, Response>> {
        assert!(head.body.is_empty() && head.method != Method::GET);
        let most = match head.path.strip_prefix("/up/")? {
            "taken" => return Some(Err(error(StatusCode::CONFLICT, "taken"))),
            "small" => 100_000,
            "panic" => panic!("asked for"),
            _ => usize::MAX,
        };
        Some(Ok(Box::new(Kept { bytes: Vec::new(), most, ended: Some(self.ended.clone()) })))
    }
}

impl BodySink for Kept {
    fn write(&mut self, piece: &[u8]) -> Result<(), HttpError> {
        assert!(!piece.is_empty() && piece.len() <= 128 * 1024, "{}", piece.len());
        if self.bytes.len() + piece.len() > self.most {
            return Err(HttpError::new(StatusCode::INSUFFICIENT_STORAGE, "the disk is full"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Response {
        let answer = success(json!({"length": self.bytes.len()}));
        let bytes = std::mem::take(&mut self.bytes);
        self.ended.take().unwrap().send(Ended::Whole(bytes)).unwrap();
        answer
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended.send(Ended::CutOff(self.bytes.len())).unwrap();
        }
    }
}

fn uploads(context: HttpContext) -> (HttpServer, Receiver<Ended>) {
    let (ended, all) = unbounded();
    (start(context, Uploads { ended }), all)
}

fn upload(headers: &str) -> String {
    format!("PUT /up/x HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

#[test]
fn an_upload_of_any_type_and_length_goes_on_piece_by_piece() {
    let (server, ended) = uploads(context(HttpLimits::default()));
    let mut client = Client::new(&server);
    // With a length above the limit of other bodies.
    let content: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    client.send(upload(&format!("Content-Type: video/mp4\r\nContent-Length: {}\r\n", content.len())));
    client.send(&content);
    assert_eq!(client.answer().unwrap().json()["length"], content.len());
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(content.clone()));
    // In chunks, with a trailer.
    client.send(upload("Transfer-Encoding: chunked\r\n"));
    for chunk in content.chunks(700_001) {
        client.send(format!("{:x};ext=1\r\n", chunk.len()));
        client.send(chunk);
        client.send("\r\n");
    }
    client.send("0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(client.answer().unwrap().json()["length"], content.len());
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(content));
    // An empty body is an empty file, in whichever form it is sent.
    for headers in ["Content-Length: 0\r\n", "", "Transfer-Encoding: chunked\r\n"] {
        client.send(upload(headers));
        if headers.contains("chunked") {
            client.send("0\r\n\r\n");
        }
        assert_eq!(client.answer().unwrap().json()["length"], 0, "{headers}");
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(Vec::new()));
    }
    // A client that sends Expect gets 100 Continue.
    client.send(upload("Content-Length: 3\r\nExpect: 100-continue\r\n"));
    assert_eq!(client.head().unwrap().0, 100);
    client.send("abc");
    assert_eq!(client.answer().unwrap().status, 200);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(b"abc".to_vec()));
    // Requests that are not uploads work as usual on the same connection.
    assert_eq!(client.post("Content-Type: application/json\r\n", "{}").json()["body"], "{}");
    assert_eq!(client.get("/up/x").status, 200);
    assert_eq!(client.post("Content-Type: text/plain\r\n", "{}").status, 415);
    assert_eq!(server.counters.uploads.get(), 4);
}

#[test]
fn requests_sent_behind_an_upload_are_answered_in_order() {
    let (server, ended) = uploads(context(HttpLimits::default()));
    let mut client = Client::new(&server);
    let post = "POST /p HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let get = "GET /g HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let all = [
        &upload("Content-Length: 100000\r\n"),
        &"x".repeat(100_000),
        get,
        &upload("Transfer-Encoding: chunked\r\n"),
        "5\r\nhello\r\n0\r\n\r\n",
        post,
        &upload("Content-Length: 3\r\n"),
        "abc",
        &upload("Content-Length: 0\r\n"),
        post,
        get,
    ];
    client.send(all.concat());
    let mut lengths = Vec::new();
    for _ in 0..7 {
        let answer = client.answer().unwrap().json();
        lengths.push(answer["length"].as_u64().map_or_else(|| answer["path"].to_string(), |length| length.to_string()));
    }
    assert_eq!(lengths, ["100000", "\"/g\"", "5", "\"/p\"", "3", "0", "\"/p\""]);
    assert_eq!(client.answer().unwrap().json()["path"], "/g");
    assert_eq!(ended.try_iter().count(), 4);
    assert_eq!(client.get("/after").json()["path"], "/after");
}

#[test]
fn an_upload_may_take_longer_than_a_message_but_not_be_silent() {
    let (server, ended) = uploads(context(quick()));
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 9\r\n"));
    let begun = Instant::now();
    // Each piece arrives within the stall timeout; together they take longer than any other message may.
    for _ in 0..9 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.answer().unwrap().status, 200);
    assert!(begun.elapsed() > quick().message_timeout * 2);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(b"xxxxxxxxx".to_vec()));
    for headers in ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut silent = Client::new(&server);
        silent.send(upload(headers) + "5\r\nab");
        let answer = silent.answer().unwrap();
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")), "{headers}");
        assert!(answer.json()["error"].as_str().unwrap().contains("0.4 s"));
        assert!(matches!(ended.recv_timeout(PATIENCE).unwrap(), Ended::CutOff(_)));
        silent.assert_ended();
    }
    // The request after it has its own timeout.
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 2\r\n") + "abGET / HT");
    assert_eq!((client.answer().unwrap().status, client.answer().unwrap().status), (200, 408));
}

#[test]
fn an_upload_that_is_refused_or_cut_off_leaves_nothing() {
    let (server, ended) = uploads(context(HttpLimits::default()));
    // Refused by its head alone, also when the client waits for 100 Continue.
    for (path, headers, status) in [
        ("taken", "Content-Length: 1000000\r\n", 409),
        ("taken", "Content-Length: 9\r\nExpect: 100-continue\r\n", 409),
        ("x", "Content-Range: bytes 0-8/20\r\nContent-Length: 9\r\n", 400),
        ("x", "Content-Encoding: gzip\r\nContent-Length: 9\r\n", 415),
        ("panic", "Content-Length: 9\r\n", 500),
        ("x", "Origin: https://evil.example\r\nContent-Length: 9\r\n", 403),
    ] {
        let mut client = Client::new(&server);
        client.send(format!("POST /up/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{path} {headers}");
        client.assert_ended();
    }
    // Without a body the connection goes on.
    let mut client = Client::new(&server);
    assert_eq!(client.ask("POST /up/taken HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 409);
    assert_eq!(client.get("/").status, 200);
    // Content-Range and Content-Encoding were found once there was a sink.
    assert!((0..2).all(|_| ended.recv_timeout(PATIENCE) == Ok(Ended::CutOff(0))));
    // Refused by its sink in the middle: at once, whatever is still to come.
    let mut client = Client::new(&server);
    client.send("POST /up/small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n");
    client.send("x".repeat(200_000));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (507, Some("close")));
    assert_eq!(answer.json()["error"], "the disk is full");
    assert!(matches!(ended.recv_timeout(PATIENCE).unwrap(), Ended::CutOff(length) if length <= 100_000));
    // Ended by the client: half-closed, closed, or malformed.
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 9\r\n") + "abc");
    client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer().unwrap().status, 400);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::CutOff(3));
    let mut client = Client::new(&server);
    client.send(upload("Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n");
    drop(client);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::CutOff(3));
    let mut client = Client::new(&server);
    assert_eq!(client.ask(upload("Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\nzz\r\n").status, 400);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::CutOff(3));
    client.assert_ended();
    assert!(ended.is_empty());
}

#[test]
fn an_upload_gives_way_to_nobody_and_is_counted_in_the_budget() {
    let budget = ReceiveBudget::new(10 << 20);
    let limiter = ConnectionLimiter::new(8);
    let (server, ended) = uploads(HttpContext {
        limiter: Arc::clone(&limiter),
        budget: Arc::clone(&budget),
        ..context(HttpLimits::default())
    });
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 6\r\n") + "abc");
    eventually(|| budget.used_bytes() > 0);
    // New connections one after the other, more than there is room for.
    for _ in 0..20 {
        let mut newcomer = Client::new(&server);
        // It may have been closed already.
        let _ = newcomer.reader.get_mut().write_all(b"GET / HT");
    }
    let crowd: Vec<Client> = (0..8).map(|_| Client::new(&server)).collect();
    client.send("def");
    assert_eq!(client.answer().unwrap().json()["length"], 6);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ended::Whole(b"abcdef".to_vec()));
    eventually(|| budget.used_bytes() == 0);
    drop(crowd);
    let (server, _ended) =
        uploads(HttpContext { budget: ReceiveBudget::new(60_000), ..context(HttpLimits::default()) });
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 6\r\n"));
    assert_eq!(client.answer().unwrap().status, 503);
}

/// A file of so many bytes, no two parts of which are alike.
fn file_of(length: usize) -> (std::fs::File, Vec<u8>) {
    let content: Vec<u8> = (0..length as u32).flat_map(|n| n.to_le_bytes()).take(length).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    (file, content)
}

/// Serves one file, of which the facts say that it is so long.
fn serving(content: std::fs::File, length: u64) -> impl HttpHandler {
    move |request: Request| {
        let facts = FileMetadata {
            length,
            etag: Some("v1".to_owned()),
            modified_at: None,
            content_type: HeaderValue::from_static("text/plain"),
            disposition: None,
        };
        serve_file(&request, content.try_clone().unwrap(), &facts)
    }
}

#[test]
fn a_file_or_a_part_of_it_is_sent_with_its_length() {
    let (file, content) = file_of(3_000_001);
    let server = start(context(HttpLimits::default()), serving(file, 3_000_001));
    let mut client = Client::new(&server);
    let mut ask = |method: &str, headers: &str| {
        client.send(format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        if method == "HEAD" {
            let (status, headers) = client.head().unwrap();
            return Answer { status, headers, body: Vec::new() };
        }
        client.answer().unwrap()
    };
    let whole = ask("GET", "Accept-Encoding: gzip\r\n");
    assert_eq!((whole.status, whole.header("content-length")), (200, Some("3000001")));
    assert_eq!((whole.header("etag"), whole.header("accept-ranges")), (Some("\"v1\""), Some("bytes")));
    assert_eq!((whole.header("content-encoding"), whole.header("transfer-encoding")), (None, None));
    assert!(whole.body == content);
    let part = ask("GET", "Range: bytes=1000000-2500000\r\n");
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 1000000-2500000/3000001")));
    assert!(part.body == content[1_000_000..=2_500_000]);
    // Its head alone is that of the whole: parts are for GET.
    for headers in ["", "Range: bytes=0-1\r\n"] {
        let head = ask("HEAD", headers);
        assert_eq!((head.status, head.header("content-length")), (200, Some("3000001")));
    }
    let known = ask("GET", "If-None-Match: \"v1\"\r\n");
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some("\"v1\"")));
    assert_eq!(known.header("content-length"), None);
    assert_eq!(ask("HEAD", "If-None-Match: \"v1\"\r\n").status, 304);
    let none = ask("GET", "Range: bytes=3000001-\r\n");
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */3000001")));
    assert_eq!(none.json()["success"], false);
    assert_eq!(ask("GET", "If-Match: \"v2\"\r\n").status, 412);
    // The connection went on through all of that.
    assert_eq!(server.listener.open_connections(), 1);
}

#[test]
fn an_empty_file_is_a_file() {
    let server = start(context(HttpLimits::default()), serving(file_of(0).0, 0));
    let mut client = Client::new(&server);
    assert_eq!((client.get("/").status, client.get("/").body.len()), (200, 0));
    client.send("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(client.head().unwrap().1.contains(&("content-length".to_owned(), "0".to_owned())));
    assert_eq!(client.answer().unwrap().header("content-length"), Some("0"));
}

#[test]
fn a_file_that_is_shorter_than_promised_cuts_the_connection() {
    let (file, content) = file_of(700_000);
    let server = start(context(HttpLimits::default()), serving(file, 700_001));
    let mut client = Client::new(&server);
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (status, headers) = client.head().unwrap();
    assert!(status == 200 && headers.contains(&("content-length".to_owned(), "700001".to_owned())));
    let mut came = Vec::new();
    client.reader.read_to_end(&mut came).unwrap();
    // All that there is, and not a byte more: it is not padded, and no other response follows.
    assert!(came == content, "{}", came.len());
}

#[test]
fn long_answers_over_tls_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap());
    let pin = identity.fingerprint().to_owned();
    let (file, content) = file_of(1_000_000);
    let server =
        start(HttpContext { identity: Some(identity), ..context(HttpLimits::default()) }, serving(file, 1_000_000));
    let (mut reader, writer) = over_tls(&server, &pin);
    let deadline = Instant::now() + PATIENCE;
    writer.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", deadline).unwrap();
    let (mut came, mut buffer) = (Vec::new(), vec![0; 65536]);
    loop {
        match reader.read_before(&mut buffer, deadline).unwrap() {
            0 => break,
            length => came.extend_from_slice(&buffer[..length]),
        }
    }
    assert!(came.ends_with(&content) && came.len() < content.len() + 1000, "{}", came.len());
}

#[test]
fn long_chunks_and_long_bodies_are_as_they_were_made() {
    let (chunks, whole) =
        (vec![vec![b'a'; 3], vec![b'b'; 200_000], vec![b'c'; 20_000], vec![b'd'; 1]], file_of(900_000).1);
    let expected = (chunks.concat(), whole.clone());
    let server = start(context(HttpLimits::default()), move |request: Request| {
        let body = match request.path.as_str() {
            "/chunks" => Body::Chunks(Box::new(chunks.clone().into_iter())),
            _ => Body::Bytes(whole.clone()),
        };
        Response { status: StatusCode::OK, headers: HeaderMap::new(), body }
    });
    let mut client = Client::new(&server);
    for _ in 0..2 {
        assert!(client.get("/chunks").body == expected.0);
        assert!(client.get("/whole").body == expected.1);
    }
    // One behind the other.
    client.send(
        "GET /whole HTTP/1.1\r\nHost: localhost\r\n\r\nGET /chunks HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3),
    );
    for _ in 0..3 {
        assert!(client.answer().unwrap().body == expected.1);
        assert!(client.answer().unwrap().body == expected.0);
    }
}

#[test]
fn long_text_travels_compressed_to_who_asks_for_it() {
    let server = start(context(HttpLimits::default()), |request: Request| {
        let length = if request.path == "/short" { 100 } else { 10_000 };
        let answer = success(json!({"text": "x".repeat(length)}));
        match request.path.as_str() {
            "/made" => answer.with(header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
            "/chunks" => Response { body: Body::Chunks(Box::new(std::iter::once(vec![b'x'; 10_000]))), ..answer },
            "/tagged" => answer.with(header::ETAG, HeaderValue::from_static("\"v1\"")),
            _ => answer,
        }
    });
    let mut client = Client::new(&server);
    let mut ask =
        |path: &str, headers: &str| client.ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
    let gzip = "Accept-Encoding: gzip, br\r\n";
    let plain = ask("/", "");
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("accept-encoding, origin")));
    let answer = ask("/", gzip);
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (Some("gzip"), plain.header("vary")));
    assert!(answer.body.len() < 1000);
    let mut decoded = Vec::new();
    flate2::read::GzDecoder::new(&*answer.body).read_to_end(&mut decoded).unwrap();
    assert_eq!(decoded, plain.body);
    assert_eq!(ask("/", "Accept-Encoding: gzip;q=0\r\n").body, plain.body);
    assert_eq!(ask("/tagged", gzip).header("etag"), Some("W/\"v1\""));
    assert_eq!(ask("/tagged", "").header("etag"), Some("\"v1\""));
    for path in ["/short", "/chunks"] {
        let answer = ask(path, gzip);
        assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, Some("origin")), "{path}");
    }
    let made = ask("/made", gzip);
    assert_eq!((made.header("content-encoding"), &made.body), (Some("gzip"), &plain.body), "it is left alone");
    // A HEAD request gets the same headers.
    let length = answer.header("content-length").unwrap().to_owned();
    client.send(format!("HEAD / HTTP/1.1\r\nHost: localhost\r\n{gzip}\r\n"));
    let (_, headers) = client.head().unwrap();
    assert!(headers.contains(&("content-length".to_owned(), length)), "{headers:?}");
}
