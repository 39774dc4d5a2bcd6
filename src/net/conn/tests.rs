use super::*;
use crate::net::deadline::tests::pair;
use crate::net::lines::{LineError, LineLimits, LineReader};
use crate::net::tls::{crypto_provider, pin_verifier};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion, version};
use std::thread;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn identity() -> TlsIdentity {
    let dir = tempfile::tempdir().unwrap();
    TlsIdentity::load_or_create(dir.path()).unwrap()
}

/// A server and a client that trusts it.
fn tls_pair() -> (Conn, Conn) {
    let identity = identity();
    let (a, b) = pair();
    thread::scope(|scope| {
        let server = scope.spawn(|| Conn::tls_server(a, &identity, soon()).unwrap());
        let client = Conn::tls_client(b, identity.fingerprint(), soon()).unwrap();
        (server.join().unwrap(), client)
    })
}

fn plain_pair() -> (Conn, Conn) {
    let (a, b) = pair();
    (Conn::plain(a), Conn::plain(b))
}

fn lines(reader: ConnReader) -> LineReader<ConnReader> {
    LineReader::new(reader, LineLimits::new(1 << 20))
}

#[test]
fn lines_go_both_ways_and_end_cleanly() {
    for (server, client) in [plain_pair(), tls_pair()] {
        let (server_reader, server_writer) = server.split();
        let (client_reader, client_writer) = client.split();
        let (mut server_lines, mut client_lines) = (lines(server_reader), lines(client_reader));
        for len in [0, 1, 1000, 16_383, 16_384, 100_000] {
            let line = "x".repeat(len);
            thread::scope(|scope| {
                scope.spawn(|| client_writer.write_line(&line, soon()).unwrap());
                assert_eq!(server_lines.read_line().unwrap().unwrap(), line);
                scope.spawn(|| server_writer.write_line(&line, soon()).unwrap());
                assert_eq!(client_lines.read_line().unwrap().unwrap(), line);
            });
        }
        server_writer.write_line("last", soon()).unwrap();
        server_writer.shut_down_write();
        assert_eq!(client_lines.read_line().unwrap().unwrap(), "last");
        assert!(client_lines.read_line().unwrap().is_none());
        client_writer.write_line("heard", soon()).unwrap();
        client_writer.close();
        assert_eq!(server_lines.read_line().unwrap().unwrap(), "heard");
        assert!(server_lines.read_line().unwrap().is_none());
        assert_eq!(client_writer.write_line("late", soon()).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn reading_and_writing_go_on_at_the_same_time() {
    const LINES: usize = 2000;
    for (a, b) in [plain_pair(), tls_pair()] {
        thread::scope(|scope| {
            for conn in [a, b] {
                let (reader, writer) = conn.split();
                // Two writing threads and one reading thread on either side; no thread reads before it may.
                for who in ["p", "q"] {
                    let writer = writer.clone();
                    scope.spawn(move || {
                        for n in 0..LINES {
                            let line = format!("{who}{n} {}", "x".repeat(n));
                            writer.write_line(line, soon()).unwrap();
                        }
                    });
                }
                scope.spawn(move || {
                    let mut lines = lines(reader);
                    let mut next = [0, 0];
                    for _ in 0..2 * LINES {
                        let line = lines.read_line().unwrap().unwrap();
                        let (head, tail) = line.split_once(' ').unwrap();
                        let next = &mut next[usize::from(head.starts_with('q'))];
                        assert_eq!(head[1..].parse(), Ok(*next));
                        assert_eq!(tail.len(), *next);
                        *next += 1;
                    }
                    // Kept open until here, so that the connection exists while the other side still reads.
                    drop(writer);
                });
            }
        });
    }
}

#[test]
fn both_versions_work_in_both_roles() {
    fn shake(versions: &[&'static SupportedProtocolVersion]) {
        let identity = identity();
        // A foreign TLS client that supports only that version.
        let (a, b) = pair();
        thread::scope(|scope| {
            let server = scope.spawn(|| Conn::accept(a, &identity, soon(), Duration::from_secs(10)).unwrap());
            let mut config = ClientConfig::builder_with_provider(crypto_provider())
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            config.dangerous().set_certificate_verifier(pin_verifier(identity.fingerprint()));
            let tls = ClientConnection::new(Arc::new(config), server_name()).unwrap();
            let client = Conn::handshake(DeadlineStream::new(b), tls.into(), soon()).unwrap();
            exchange(server.join().unwrap(), client, versions[0]);
        });
        let dir = tempfile::tempdir().unwrap();
        TlsIdentity::load_or_create(dir.path()).unwrap();
        let pem = std::fs::read(dir.path().join("identity.pem")).unwrap();
        use rustls::pki_types::pem::PemObject;
        let cert = rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&pem).unwrap();
        let config = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        let fingerprint = TlsIdentity::load_or_create(dir.path()).unwrap().fingerprint().to_owned();
        let (a, b) = pair();
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                let tls = ServerConnection::new(Arc::new(config)).unwrap();
                Conn::handshake(DeadlineStream::new(a), tls.into(), soon()).unwrap()
            });
            let client = Conn::tls_client(b, &fingerprint, soon()).unwrap();
            exchange(server.join().unwrap(), client, versions[0]);
        });
    }
    fn exchange(server: Conn, client: Conn, version: &SupportedProtocolVersion) {
        assert!(server.is_tls() && client.is_tls());
        assert_eq!(client.inner.tls.as_ref().unwrap().lock().protocol_version(), Some(version.version));
        let (_, writer) = server.split();
        let (reader, _writer) = client.split();
        writer.write_line("hello", soon()).unwrap();
        assert_eq!(lines(reader).read_line().unwrap().unwrap(), "hello");
    }
    shake(&[&version::TLS12]);
    shake(&[&version::TLS13]);
}

#[test]
fn a_wrong_pin_is_refused_and_told() {
    let (ours, other) = (identity(), identity());
    let (a, b) = pair();
    thread::scope(|scope| {
        let server = scope.spawn(|| Conn::tls_server(a, &ours, soon()));
        let error = Conn::tls_client(b, other.fingerprint(), soon()).unwrap_err();
        let expected = format!(
            "the server's certificate has the fingerprint {}, not {} as expected",
            ours.fingerprint(),
            other.fingerprint()
        );
        assert_eq!(error.to_string(), expected);
        // The server gets an alert.
        assert!(matches!(server.join().unwrap(), Err(ConnError::Tls(rustls::Error::AlertReceived(_)))));
    });
    let (a, _b) = pair();
    assert!(matches!(Conn::tls_client(a, "abc", soon()), Err(ConnError::InvalidPin(TlsIdentityError::InvalidPin))));
}

#[test]
fn plain_and_tls_are_told_by_the_first_byte() {
    let identity = identity();
    let (mut a, b) = pair();
    a.write_all(b"{}\n").unwrap();
    let conn = Conn::accept(b, &identity, soon(), Duration::from_secs(10)).unwrap();
    assert!(!conn.is_tls());
    assert_eq!(lines(conn.split().0).read_line().unwrap().unwrap(), "{}");

    let (a, b) = pair();
    drop(a);
    let conn = Conn::accept(b, &identity, soon(), Duration::from_secs(10)).unwrap();
    assert!(lines(conn.split().0).read_line().unwrap().is_none());

    let (_a, b) = pair();
    let by = Instant::now() + Duration::from_millis(30);
    assert!(matches!(Conn::accept(b, &identity, by, Duration::from_secs(10)), Err(ConnError::FirstByteTimeout)));
}

#[test]
fn a_trickled_handshake_ends_at_its_deadline() {
    let identity = identity();
    let (mut a, b) = pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A record with a large length, then its content byte by byte.
            a.write_all(&[0x16, 3, 1, 0x20, 0]).unwrap();
            while a.write_all(&[1]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let error = Conn::accept(b, &identity, soon(), Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ConnError::HandshakeTimeout | ConnError::Tls(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn garbage_instead_of_tls_is_an_error() {
    let identity = identity();
    let (mut a, b) = pair();
    a.write_all(&[0x16; 500]).unwrap();
    assert!(matches!(Conn::accept(b, &identity, soon(), Duration::from_secs(10)), Err(ConnError::Tls(_))));
}

#[test]
fn a_peer_that_stops_reading_holds_nobody_past_the_deadline() {
    for (server, _client) in [plain_pair(), tls_pair()] {
        let (_reader, writer) = server.split();
        let waiting = writer.clone();
        thread::scope(|scope| {
            let begun = Instant::now();
            let deadline = begun + Duration::from_millis(300);
            let first = scope.spawn(move || writer.write_all(&vec![7; 64 << 20], deadline).unwrap_err().kind());
            let second = scope.spawn(move || {
                loop {
                    // This thread waits for the other one, or finds the connection broken.
                    if let Err(error) = waiting.write_line("x", deadline) {
                        return error.kind();
                    }
                }
            });
            // The thread that was writing at the deadline got TimedOut, and the other one then or just after.
            let ends = [first.join().unwrap(), second.join().unwrap()];
            assert!(ends.contains(&ErrorKind::TimedOut), "{ends:?}");
            assert!(ends.iter().all(|end| matches!(end, ErrorKind::TimedOut | ErrorKind::BrokenPipe)), "{ends:?}");
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
    }
}

#[test]
fn closing_wakes_the_reader_even_while_a_writer_is_held_up() {
    for (server, client) in [plain_pair(), tls_pair()] {
        let (reader, writer) = server.split();
        let held_up = writer.clone();
        thread::scope(|scope| {
            let reading = scope.spawn(move || lines(reader).read_line());
            let write_state = scope.spawn(move || held_up.write_all(&vec![7; 64 << 20], soon()));
            let begun = Instant::now();
            writer.close();
            assert!(matches!(reading.join().unwrap(), Ok(None) | Err(LineError::Io(_))));
            assert!(write_state.join().unwrap().is_err());
            assert!(begun.elapsed() < Duration::from_secs(5));
        });
        drop(client);
    }
}

#[test]
fn key_updates_are_answered_while_reading() {
    let (server, client) = tls_pair();
    let (server_reader, server_writer) = server.split();
    let (client_reader, client_writer) = client.split();
    let (mut server_lines, mut client_lines) = (lines(server_reader), lines(client_reader));
    for n in 0..20 {
        client_writer.inner.tls.as_ref().unwrap().lock().refresh_traffic_keys().unwrap();
        client_writer.write_line(format!("{n}"), soon()).unwrap();
        assert_eq!(server_lines.read_line().unwrap().unwrap(), n.to_string());
        assert!(!server_writer.inner.tls.as_ref().unwrap().lock().wants_write());
        server_writer.write_line("so", soon()).unwrap();
        assert_eq!(client_lines.read_line().unwrap().unwrap(), "so");
    }
}
