use std::net::UdpSocket;

use super::*;
use crate::net::testing::eventually;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

const LIMITS: UdpLimits = UdpLimits { max_handlers: 64, queue_len: 16, queue_bytes: 1600, max_datagram_bytes: 100 };

fn loopback() -> Arc<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    Arc::new(socket)
}

fn server_socket() -> Arc<UdpServerSocket> {
    Arc::new(UdpServerSocket::from_socket(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap())
}

/// Answers every datagram with itself; "wait" first waits for the gate; "panic" panics.
fn echo(limits: UdpLimits, max_threads: usize) -> (UdpServer, Sender<()>, Arc<Executor>) {
    let (open, gate): (Sender<()>, Receiver<()>) = bounded(0);
    let socket = server_socket();
    let answers = Arc::clone(&socket);
    let executor = Executor::new("test-udp", max_threads);
    let handler = move |datagram: Datagram<&[u8]>| {
        match datagram.bytes {
            b"panic" => panic!("on purpose"),
            b"wait" => gate.recv().unwrap(),
            _ => {}
        }
        let answer: &[u8] = if datagram.is_truncated { b"too long" } else { datagram.bytes };
        answers.send_to(answer, datagram.source, datagram.to).unwrap();
    };
    let server = UdpServer::start(socket, Arc::clone(&executor), limits, Arc::new(handler)).unwrap();
    (server, open, executor)
}

fn client(server: &UdpServer) -> Arc<UdpSocket> {
    let socket = loopback();
    socket.connect(server.local_addr().unwrap()).unwrap();
    socket
}

fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).unwrap();
    answer(client)
}

fn answer(client: &UdpSocket) -> Vec<u8> {
    let mut answer = [0; 200];
    let len = client.recv(&mut answer).unwrap();
    answer[..len].to_vec()
}

#[test]
fn answers_many_clients_each_its_own() {
    let (server, _open, executor) = echo(LIMITS, 100);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = client(&server);
            scope.spawn(move || {
                for round in 0..300 {
                    let text = format!("{n} {round}");
                    assert_eq!(ask(&client, text.as_bytes()), text.as_bytes());
                }
            });
        }
    });
    assert_eq!(server.counters().received.get(), 2400);
    assert_eq!(server.counters().dropped.get(), 0);
    server.stop();
    assert_eq!(executor.shut_down(Duration::from_secs(5)), 0);
}

#[test]
fn requests_that_wait_stop_nobody_and_surplus_threads_leave() {
    let (server, open, executor) = echo(LIMITS, 100);
    let slow: Vec<_> = (0..20).map(|_| client(&server)).collect();
    slow.iter().for_each(|client| assert_eq!(client.send(b"wait").unwrap(), 4));
    assert_eq!(ask(&client(&server), b"quick"), b"quick");
    eventually(|| server.running_handlers() == 20);
    assert_eq!(ask(&client(&server), b"quick"), b"quick");
    (0..20).for_each(|_| open.send(()).unwrap());
    slow.iter().for_each(|client| assert_eq!(answer(client), b"wait"));
    eventually(|| executor.running_jobs() == receivers_at_rest());
}

#[test]
fn an_overload_is_queued_then_dropped_then_over() {
    let limits = UdpLimits { max_handlers: 3, queue_len: 5, ..LIMITS };
    let (server, open, _executor) = echo(limits, 100);
    let client = client(&server);
    (0..3).for_each(|_| assert_eq!(client.send(b"wait").unwrap(), 4));
    eventually(|| server.running_handlers() == 3);
    for n in 0..20_u8 {
        client.send(&[n]).unwrap();
    }
    eventually(|| server.counters().received.get() == 23);
    eventually(|| server.counters().dropped.get() == 15);
    assert_eq!(server.counters().queued.get(), 5);
    open.send(()).unwrap();
    assert_eq!(answer(&client), b"wait");
    // One thread empties the queue: the oldest first.
    for n in 0..5_u8 {
        assert_eq!(answer(&client), [n]);
    }
    assert_eq!(ask(&client, b"again"), b"again");
    (0..2).for_each(|_| open.send(()).unwrap());
    (0..2).for_each(|_| assert_eq!(answer(&client), b"wait"));
}

#[test]
fn without_a_further_thread_one_goes_on_reading() {
    let (server, open, executor) = echo(LIMITS, receivers_at_rest());
    let client = client(&server);
    // All receivers but the last are blocked; the last one queues, because no thread could replace it.
    for _ in 1..receivers_at_rest() {
        client.send(b"wait").unwrap();
    }
    eventually(|| server.running_handlers() == receivers_at_rest() - 1);
    for n in 0..3_u8 {
        client.send(&[n]).unwrap();
    }
    if receivers_at_rest() > 1 {
        eventually(|| server.counters().queued.get() == 3);
        open.send(()).unwrap();
        assert_eq!(answer(&client), b"wait");
    }
    for n in 0..3_u8 {
        assert_eq!(answer(&client), [n]);
    }
    assert!(executor.threads() <= receivers_at_rest());
}

#[test]
fn a_single_thread_serves_too() {
    let (server, _open, executor) = echo(LIMITS, 1);
    let client = client(&server);
    for n in 0..100_u8 {
        assert_eq!(ask(&client, &[n]), [n]);
    }
    assert_eq!(executor.threads(), 1);
}

#[test]
fn a_panic_harms_no_other() {
    let (server, _open, executor) = echo(LIMITS, 100);
    let client = client(&server);
    for n in 1..=10 {
        client.send(b"panic").unwrap();
        eventually(|| executor.counters().panics.get() == n);
    }
    assert_eq!(ask(&client, b"still there"), b"still there");
    eventually(|| server.running_handlers() == 0);
    assert!(executor.threads() <= receivers_at_rest() + 1);
}

#[test]
fn datagrams_too_long_are_told_apart() {
    let (server, _open, _executor) = echo(LIMITS, 100);
    let client = client(&server);
    assert_eq!(ask(&client, &[7; 100]), [7; 100]);
    assert_eq!(ask(&client, &[7; 101]), b"too long");
    assert_eq!(ask(&client, &[7; 5000]), b"too long");
    assert_eq!(ask(&client, b""), b"");
    assert_eq!(server.counters().oversized.get(), 2);
}

#[test]
fn answers_to_nobody_do_not_stop_it() {
    let (server, open, _executor) = echo(LIMITS, 100);
    for _ in 0..10 {
        let gone = client(&server);
        gone.send(b"wait").unwrap();
        eventually(|| server.running_handlers() == 1);
        drop(gone);
        open.send(()).unwrap();
        eventually(|| server.running_handlers() == 0);
    }
    assert_eq!(ask(&client(&server), b"still there"), b"still there");
}

#[test]
fn stopping_is_prompt_and_lets_what_is_in_hand_end() {
    let (server, open, executor) = echo(LIMITS, 100);
    let client = client(&server);
    client.send(b"wait").unwrap();
    eventually(|| server.running_handlers() == 1);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < RECEIVE_TIMEOUT, "the wake-up datagrams must have worked");
    assert_eq!(executor.shut_down(Duration::from_millis(10)), 1);
    open.send(()).unwrap();
    assert_eq!(answer(&client), b"wait");
    assert_eq!(executor.shut_down(Duration::from_secs(5)), 0);
    server.stop();
}

#[test]
fn stops_under_load() {
    for _ in 0..20 {
        let (server, _open, executor) = echo(LIMITS, 100);
        let client = client(&server);
        let (stopped, is_stopped) = unbounded::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while is_stopped.is_empty() {
                    // The socket may be closed by then: that is what is being tested.
                    let _ = client.send(b"x");
                }
            });
            eventually(|| server.counters().received.get() > 20);
            server.stop();
            stopped.send(()).unwrap();
        });
        assert_eq!(executor.shut_down(Duration::from_secs(5)), 0);
    }
}
