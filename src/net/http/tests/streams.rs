//! Event streams, and connections that are idle meanwhile.

use super::*;
use crate::net::http::body::ServerSentEvent;

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
