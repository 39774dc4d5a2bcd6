//! Files and other long responses.

use super::*;

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
    let server = start(context_with(|of| of.identity = Some(identity)), serving(file, 1_000_000));
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
