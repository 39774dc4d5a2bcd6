//! Uploads: bodies that go on piece by piece.

use super::*;

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
    let (server, ended) = uploads(context_with(|of| {
        (of.limiter, of.budget) = (Arc::clone(&limiter), Arc::clone(&budget));
    }));
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
    let (server, _ended) = uploads(context_with(|of| of.budget = ReceiveBudget::new(60_000)));
    let mut client = Client::new(&server);
    client.send(upload("Content-Length: 6\r\n"));
    assert_eq!(client.answer().unwrap().status, 503);
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
