use std::io::Read;

use super::*;
use crate::net::deadline::tests::pair;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const HERE: &str = "127.0.0.1";

/// Both ends of an admitted connection, and its permit.
struct TestConnection {
    client: TcpStream,
    server: Arc<TcpStream>,
    permit: Permit,
}

impl TestConnection {
    fn open(quota: &Arc<ListenerQuota>, from: &str) -> Result<TestConnection, AdmissionError> {
        let (client, server) = pair();
        let server = Arc::new(server);
        let permit = quota.admit(ip(from), &server)?;
        Ok(TestConnection { client, server, permit })
    }

    /// Admits a connection and marks its request as completed.
    fn with_request(quota: &Arc<ListenerQuota>, from: &str) -> Result<TestConnection, AdmissionError> {
        let mut connect = TestConnection::open(quota, from)?;
        assert!(connect.permit.mark_request_completed());
        Ok(connect)
    }

    fn is_shut_down(&mut self) -> bool {
        self.client.set_nonblocking(true).unwrap();
        matches!(self.client.read(&mut [0]), Ok(0))
    }
}

#[test]
fn one_source_gets_half_and_loopback_all() {
    let limiter = ConnectionLimiter::new(5);
    let quota = limiter.add_listener(0);
    let mut held: Vec<TestConnection> =
        (0..2).map(|_| TestConnection::with_request(&quota, "192.0.2.1").unwrap()).collect();
    let refused = TestConnection::open(&quota, "192.0.2.1").err().unwrap();
    assert_eq!(refused, AdmissionError::SourceFull { whose: source::key_of(ip("192.0.2.1")), max: 2 });
    assert_eq!(TestConnection::open(&quota, "::ffff:192.0.2.1").err().unwrap(), refused);
    held.push(TestConnection::with_request(&quota, "192.0.2.2").unwrap());
    held.truncate(1);
    held.push(TestConnection::with_request(&quota, "192.0.2.1").unwrap());
    drop(held);
    assert_eq!((limiter.open_connections(), limiter.pending_connections()), (0, 0));
    assert!(limiter.state.lock().by_source.is_empty());

    let held: Vec<TestConnection> = (0..5).map(|_| TestConnection::with_request(&quota, HERE).unwrap()).collect();
    let refused = TestConnection::open(&quota, "192.0.2.2").err().unwrap();
    assert_eq!(refused.to_string(), "5 of 5 connections are open already");
    drop(held);
    assert_eq!((limiter.counters().refused_full.get(), limiter.counters().refused_source.get()), (1, 2));
}

#[test]
fn the_addresses_of_one_network_of_ipv6_share_its_half() {
    let limiter = ConnectionLimiter::new(4);
    let quota = limiter.add_listener(0);
    let _held: Vec<TestConnection> =
        (1..3).map(|host| TestConnection::with_request(&quota, &format!("2001:db8::{host}")).unwrap()).collect();
    let refused = TestConnection::open(&quota, "2001:db8::9").err().unwrap();
    assert_eq!(refused.to_string(), "2001:db8::/64 has 2 connections open already");
    assert!(TestConnection::open(&quota, "2001:db8:0:1::9").is_ok());
}

#[test]
fn a_stranger_gets_one_even_of_one() {
    assert!(TestConnection::open(&ConnectionLimiter::new(1).add_listener(0), "192.0.2.1").is_ok());
    assert!(TestConnection::open(&ConnectionLimiter::new(0).add_listener(0), HERE).is_err());
}

#[test]
fn when_room_is_short_who_waited_longest_goes() {
    let limiter = ConnectionLimiter::new(16);
    let quota = limiter.add_listener(0);
    let _work: Vec<TestConnection> = (0..12).map(|_| TestConnection::with_request(&quota, HERE).unwrap()).collect();
    let connect = || TestConnection::open(&quota, HERE).unwrap();
    let (mut first, mut second, mut third) = (connect(), connect(), connect());
    assert_eq!(quota.evicted(), 0);
    assert!(first.permit.mark_request_completed());
    // The next one takes the last free permit.
    let fourth = connect();
    assert_eq!(quota.evicted(), 1);
    assert!(second.is_shut_down() && !first.is_shut_down() && !third.is_shut_down());
    // Its request is not begun any more.
    assert!(!second.permit.mark_request_completed());
    drop((second, third, fourth));
    assert_eq!((limiter.pending_connections(), limiter.open_connections()), (0, 13));
    assert_eq!(limiter.state.lock().evicting, 0);
}

#[test]
fn who_finds_no_room_waits_for_one_that_gives_way() {
    let limiter = ConnectionLimiter::new(1);
    let quota = limiter.add_listener(0);
    let mut silent = TestConnection::open(&quota, HERE).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| TestConnection::open(&quota, HERE).map(|_| ()));
        // What its thread would do: it reads the end and drops everything.
        silent.client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(silent.client.read(&mut [0]).unwrap(), 0);
        drop(silent);
        assert_eq!(second.join().unwrap(), Ok(()));
    });
    assert_eq!(quota.evicted(), 1);
}

#[test]
fn who_is_gone_as_soon_as_it_is_told_to_go_is_not_waited_for() {
    let limiter = ConnectionLimiter::new(1);
    let quota = limiter.add_listener(0);
    let evicted = Mutex::new(Some(TestConnection::open(&quota, HERE).unwrap()));
    let (_client, server) = pair();
    // The connection ends before the evicting thread waits, so it gets no notification.
    let evict = |stream| {
        shut_down(stream);
        drop(evicted.lock().take());
    };
    let asked_at = Instant::now();
    let permit = quota.admit_with(ip(HERE), &Arc::new(server), &evict);
    assert!(permit.is_ok() && evicted.lock().is_none());
    assert!(asked_at.elapsed() < EVICTION_TIMEOUT, "it waited for what was free already");
}

#[test]
fn between_requests_one_gives_way_again_as_the_youngest() {
    let limiter = ConnectionLimiter::new(16);
    let quota = limiter.add_listener(0);
    let _work: Vec<TestConnection> = (0..12).map(|_| TestConnection::with_request(&quota, HERE).unwrap()).collect();
    let mut first = TestConnection::with_request(&quota, HERE).unwrap();
    let (mut second, _third) =
        (TestConnection::open(&quota, HERE).unwrap(), TestConnection::open(&quota, HERE).unwrap());
    let stream = Arc::clone(&first.server);
    first.permit.mark_pending(&stream);
    first.permit.mark_pending(&stream);
    assert_eq!(limiter.pending_connections(), 3);
    let _fourth = TestConnection::open(&quota, HERE).unwrap();
    assert!(second.is_shut_down() && !first.is_shut_down());
}

#[test]
fn a_source_that_has_its_half_makes_room_for_itself() {
    let quota = ConnectionLimiter::new(16).add_listener(0);
    let mut other = TestConnection::open(&quota, "10.0.0.9").unwrap();
    let mut of_one: Vec<TestConnection> = (0..8).map(|_| TestConnection::open(&quota, "10.0.0.5").unwrap()).collect();
    // Its half is full; the other source, which has waited longer, is not affected.
    assert_eq!(quota.evicted(), 1);
    assert!(of_one[0].is_shut_down() && !other.is_shut_down());
}

#[test]
fn each_listener_is_sure_of_a_sixteenth() {
    let limiter = ConnectionLimiter::new(64);
    let (busy, quiet, third) = (limiter.add_listener(0), limiter.add_listener(0), limiter.add_listener(6));
    assert_eq!((busy.guaranteed(), quiet.guaranteed(), third.guaranteed()), (4, 4, 6));
    // One port takes all that it can get.
    let mut held = Vec::new();
    while let Ok(connect) = TestConnection::with_request(&busy, HERE) {
        held.push(connect);
    }
    assert_eq!(held.len(), 64 - 4 - 6);
    // What the other ports are guaranteed is available to them, and no more.
    let at_quiet: Vec<TestConnection> = (0..4).map(|_| TestConnection::with_request(&quiet, HERE).unwrap()).collect();
    assert!(matches!(TestConnection::open(&quiet, HERE), Err(AdmissionError::Full { open: 58, .. })));
    let _at_third: Vec<TestConnection> = (0..6).map(|_| TestConnection::with_request(&third, HERE).unwrap()).collect();
    assert!(TestConnection::open(&third, HERE).is_err());
    // A returned permit is available to the same listener again.
    drop(at_quiet);
    assert!(TestConnection::open(&busy, HERE).is_err());
    assert!(TestConnection::open(&quiet, HERE).is_ok());
    // A dropped listener is guaranteed nothing.
    drop(quiet);
    assert!(TestConnection::open(&busy, HERE).is_ok());
}

#[test]
fn silence_at_one_port_gives_way_to_others_and_theirs_not_to_it() {
    let limiter = ConnectionLimiter::new(64);
    let (flooded, other) = (limiter.add_listener(0), limiter.add_listener(0));
    let mut early = TestConnection::open(&other, HERE).unwrap();
    let mut silent: Vec<TestConnection> = (0..58).map(|_| TestConnection::open(&flooded, HERE).unwrap()).collect();
    assert!(flooded.evicted() > 0 && !early.is_shut_down(), "who came first, at a port within its share, stays");
    let evicted = flooded.evicted();
    drop(early);
    // More than the guarantee of the other listener.
    let work: Vec<TestConnection> = (0..8)
        .map(|_| {
            silent.retain_mut(|connect| !connect.is_shut_down());
            TestConnection::with_request(&other, HERE).unwrap()
        })
        .collect();
    assert_eq!(work.len(), 8);
    assert!(flooded.evicted() > evicted && other.evicted() == 0);
}

#[test]
fn where_the_bound_is_small_or_listeners_are_many_a_quarter_is_for_all() {
    let limiter = ConnectionLimiter::new(64);
    let shares: Vec<_> = (0..24).map(|_| limiter.add_listener(8)).collect();
    assert!(shares.iter().all(|quota| quota.guaranteed() == 2));
    let alone = ConnectionLimiter::new(3).add_listener(8);
    assert_eq!(alone.guaranteed(), 3);
    assert!((0..3).map(|_| TestConnection::with_request(&alone, HERE).unwrap()).collect::<Vec<_>>().len() == 3);
}
