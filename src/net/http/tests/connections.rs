//! Who gets a connection, and over what.

use super::*;

#[test]
fn past_the_bound_of_connections_it_is_busy() {
    let (tell, told) = unbounded();
    let handler = move |_: Request| Response {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Body::Events(told.clone().into()),
    };
    let server = start(context_with(|of| of.limiter = ConnectionLimiter::new(1)), handler);
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

#[test]
fn tls_is_told_by_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(TlsIdentity::load_or_create(dir.path()).unwrap());
    let pin = identity.fingerprint().to_owned();
    let server = start(context_with(|of| of.identity = Some(identity)), echo);
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
    let server = start(context_with(|of| of.limiter = ConnectionLimiter::new(8)), handler);
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
            stream_permits: Permits::new(1),
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
