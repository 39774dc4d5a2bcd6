use super::*;
use crate::net::budget::ReceiveBudget;
use crate::net::conn::{Conn, ConnReader, ConnWriter};
use crate::net::deadline::DeadlineRead;
use crate::net::listener::{self, ConnectionLimiter};
use crate::net::testing::eventually;
use crate::net::tls::TlsIdentity;
use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

mod connections;
mod files;
mod streams;
mod uploads;

const PATIENCE: Duration = Duration::from_secs(10);

fn quick() -> HttpLimits {
    HttpLimits {
        message_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(500),
        upload_idle_timeout: Duration::from_millis(400),
        ..HttpLimits::default()
    }
}

fn context_with(change: impl FnOnce(&mut ListenerContext)) -> HttpContext {
    let mut context = context(HttpLimits::default());
    change(&mut context.listener);
    context
}

fn context(limits: HttpLimits) -> HttpContext {
    HttpContext {
        listener: ListenerContext::for_test(1000, 1000),
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

fn over_tls(server: &HttpServer, pin: &str) -> (ConnReader, ConnWriter) {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    Conn::tls_client(stream, pin, Instant::now() + PATIENCE).unwrap().split()
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
fn past_the_budget_a_body_is_busy_and_so_is_a_long_head() {
    let budget = ReceiveBudget::new(30_000);
    let server = start(context_with(|of| of.budget = Arc::clone(&budget)), echo);
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
