use std::io::Read;

use super::*;
use crate::net::deadline::tests::pair;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const HERE: &str = "127.0.0.1";

/// A connection that was let in, both of its ends, and what is looked at.
struct Come {
    client: TcpStream,
    server: Arc<TcpStream>,
    permit: Permit,
}

impl Come {
    fn to(share: &Arc<ListenerShare>, from: &str) -> Result<Come, Refusal> {
        let (client, server) = pair();
        let server = Arc::new(server);
        let permit = share.enter(ip(from), &server)?;
        Ok(Come { client, server, permit })
    }

    /// One that has completed a request.
    fn with_request(share: &Arc<ListenerShare>, from: &str) -> Result<Come, Refusal> {
        let mut come = Come::to(share, from)?;
        assert!(come.permit.request_completed());
        Ok(come)
    }

    fn is_told_to_go(&mut self) -> bool {
        self.client.set_nonblocking(true).unwrap();
        matches!(self.client.read(&mut [0]), Ok(0))
    }
}

#[test]
fn one_source_gets_half_and_loopback_all() {
    let limiter = ConnectionLimiter::new(5);
    let share = limiter.listener(0);
    let mut held: Vec<Come> = (0..2).map(|_| Come::with_request(&share, "192.0.2.1").unwrap()).collect();
    let refused = Come::to(&share, "192.0.2.1").err().unwrap();
    assert_eq!(refused, Refusal::SourceFull { whose: source::of(ip("192.0.2.1")), max: 2 });
    assert_eq!(Come::to(&share, "::ffff:192.0.2.1").err().unwrap(), refused);
    held.push(Come::with_request(&share, "192.0.2.2").unwrap());
    held.truncate(1);
    held.push(Come::with_request(&share, "192.0.2.1").unwrap());
    drop(held);
    assert_eq!((limiter.open(), limiter.pending()), (0, 0));
    assert!(limiter.open.lock().by_source.is_empty());

    let held: Vec<Come> = (0..5).map(|_| Come::with_request(&share, HERE).unwrap()).collect();
    let refused = Come::to(&share, "192.0.2.2").err().unwrap();
    assert_eq!(refused.to_string(), "5 of 5 connections are open already");
    drop(held);
    assert_eq!((limiter.counters().refused_full.get(), limiter.counters().refused_source.get()), (1, 2));
}

#[test]
fn the_addresses_of_one_network_of_ipv6_share_its_half() {
    let limiter = ConnectionLimiter::new(4);
    let share = limiter.listener(0);
    let _held: Vec<Come> =
        (1..3).map(|host| Come::with_request(&share, &format!("2001:db8::{host}")).unwrap()).collect();
    let refused = Come::to(&share, "2001:db8::9").err().unwrap();
    assert_eq!(refused.to_string(), "2001:db8::/64 has 2 connections open already");
    assert!(Come::to(&share, "2001:db8:0:1::9").is_ok());
}

#[test]
fn a_stranger_gets_one_even_of_one() {
    assert!(Come::to(&ConnectionLimiter::new(1).listener(0), "192.0.2.1").is_ok());
    assert!(Come::to(&ConnectionLimiter::new(0).listener(0), HERE).is_err());
}

#[test]
fn when_room_is_short_who_waited_longest_goes() {
    let limiter = ConnectionLimiter::new(16);
    let share = limiter.listener(0);
    let _work: Vec<Come> = (0..12).map(|_| Come::with_request(&share, HERE).unwrap()).collect();
    let come = || Come::to(&share, HERE).unwrap();
    let (mut first, mut second, mut third) = (come(), come(), come());
    assert_eq!(share.closed(), 0);
    assert!(first.permit.request_completed());
    // The next takes the last place.
    let fourth = come();
    assert_eq!(share.closed(), 1);
    assert!(second.is_told_to_go() && !first.is_told_to_go() && !third.is_told_to_go());
    // What it asks for now is not begun.
    assert!(!second.permit.request_completed());
    drop((second, third, fourth));
    assert_eq!((limiter.pending(), limiter.open()), (0, 13));
    assert_eq!(limiter.open.lock().closing, 0);
}

#[test]
fn who_finds_no_room_waits_for_one_that_gives_way() {
    let limiter = ConnectionLimiter::new(1);
    let share = limiter.listener(0);
    let mut silent = Come::to(&share, HERE).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Come::to(&share, HERE).map(|_| ()));
        // As its thread would: the end is read, and everything is dropped.
        silent.client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(silent.client.read(&mut [0]).unwrap(), 0);
        drop(silent);
        assert_eq!(second.join().unwrap(), Ok(()));
    });
    assert_eq!(share.closed(), 1);
}

#[test]
fn who_is_gone_as_soon_as_it_is_told_to_go_is_not_waited_for() {
    let limiter = ConnectionLimiter::new(1);
    let share = limiter.listener(0);
    let gives_way = Mutex::new(Some(Come::to(&share, HERE).unwrap()));
    let (_client, server) = pair();
    // Its thread is quicker than the one that told it: nobody is told of the place any more.
    let close_and_see_it_go = |stream| {
        close(stream);
        drop(gives_way.lock().take());
    };
    let asked_at = Instant::now();
    let permit = share.enter_closing(ip(HERE), &Arc::new(server), &close_and_see_it_go);
    assert!(permit.is_ok() && gives_way.lock().is_none());
    assert!(asked_at.elapsed() < WAIT_FOR_PLACE, "it waited for what was free already");
}

#[test]
fn between_requests_one_gives_way_again_as_the_youngest() {
    let limiter = ConnectionLimiter::new(16);
    let share = limiter.listener(0);
    let _work: Vec<Come> = (0..12).map(|_| Come::with_request(&share, HERE).unwrap()).collect();
    let mut first = Come::with_request(&share, HERE).unwrap();
    let (mut second, _third) = (Come::to(&share, HERE).unwrap(), Come::to(&share, HERE).unwrap());
    let stream = Arc::clone(&first.server);
    first.permit.await_request(&stream);
    first.permit.await_request(&stream);
    assert_eq!(limiter.pending(), 3);
    let _fourth = Come::to(&share, HERE).unwrap();
    assert!(second.is_told_to_go() && !first.is_told_to_go());
}

#[test]
fn a_source_that_has_its_half_makes_room_for_itself() {
    let share = ConnectionLimiter::new(16).listener(0);
    let mut other = Come::to(&share, "10.0.0.9").unwrap();
    let mut of_one: Vec<Come> = (0..8).map(|_| Come::to(&share, "10.0.0.5").unwrap()).collect();
    // Its half is full; the other one, who has waited longer, has nothing to do with it.
    assert_eq!(share.closed(), 1);
    assert!(of_one[0].is_told_to_go() && !other.is_told_to_go());
}

#[test]
fn each_listener_is_sure_of_a_sixteenth() {
    let limiter = ConnectionLimiter::new(64);
    let (busy, quiet, third) = (limiter.listener(0), limiter.listener(0), limiter.listener(6));
    assert_eq!((busy.sure(), quiet.sure(), third.sure()), (4, 4, 6));
    // Work at one port, as much as there is.
    let mut held = Vec::new();
    while let Ok(come) = Come::with_request(&busy, HERE) {
        held.push(come);
    }
    assert_eq!(held.len(), 64 - 4 - 6);
    // What the other ports are sure of is there, and no more.
    let at_quiet: Vec<Come> = (0..4).map(|_| Come::with_request(&quiet, HERE).unwrap()).collect();
    assert!(matches!(Come::to(&quiet, HERE), Err(Refusal::Full { open: 58, .. })));
    let _at_third: Vec<Come> = (0..6).map(|_| Come::with_request(&third, HERE).unwrap()).collect();
    assert!(Come::to(&third, HERE).is_err());
    // A place that was given back is its own again.
    drop(at_quiet);
    assert!(Come::to(&busy, HERE).is_err());
    assert!(Come::to(&quiet, HERE).is_ok());
    // A listener that is gone is sure of nothing.
    drop(quiet);
    assert!(Come::to(&busy, HERE).is_ok());
}

#[test]
fn silence_at_one_port_gives_way_to_others_and_theirs_not_to_it() {
    let limiter = ConnectionLimiter::new(64);
    let (flooded, other) = (limiter.listener(0), limiter.listener(0));
    let mut early = Come::to(&other, HERE).unwrap();
    let mut silent: Vec<Come> = (0..58).map(|_| Come::to(&flooded, HERE).unwrap()).collect();
    assert!(flooded.closed() > 0 && !early.is_told_to_go(), "who came first, at a port within its share, stays");
    let closed = flooded.closed();
    drop(early);
    // More than a sixteenth at the other one.
    let work: Vec<Come> = (0..8)
        .map(|_| {
            silent.retain_mut(|come| !come.is_told_to_go());
            Come::with_request(&other, HERE).unwrap()
        })
        .collect();
    assert_eq!(work.len(), 8);
    assert!(flooded.closed() > closed && other.closed() == 0);
}

#[test]
fn where_the_bound_is_small_or_listeners_are_many_a_quarter_is_for_all() {
    let limiter = ConnectionLimiter::new(64);
    let shares: Vec<_> = (0..24).map(|_| limiter.listener(8)).collect();
    assert!(shares.iter().all(|share| share.sure() == 2));
    let alone = ConnectionLimiter::new(3).listener(8);
    assert_eq!(alone.sure(), 3);
    assert!((0..3).map(|_| Come::with_request(&alone, HERE).unwrap()).collect::<Vec<_>>().len() == 3);
}
