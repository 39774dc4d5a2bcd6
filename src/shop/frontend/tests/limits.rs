//! Messages that are too long, too many connections, and silent ones.

use super::*;
use proptest::prelude::*;

fn assert_still_serves(shop: &Shop) {
    let mut raw = shop.raw(Role::Buyer, Framing::Lines);
    assert_eq!(raw.ask(json!({"type": "GET_CART"}))["error"]["code"], "NOT_LOGGED_IN");
}

#[test]
fn a_message_past_the_limit_is_told_so_and_closed() {
    let shop = Shop::open();
    for framing in [Framing::Frames, Framing::Lines] {
        let mut raw = shop.raw(Role::Buyer, framing);
        let mut fits = br#"{"type":"GET_CART","x":""#.to_vec();
        fits.resize(MESSAGE_MAX - 2, b'x');
        fits.extend(b"\"}");
        raw.send(&fits);
        assert_eq!(raw.read()["error"]["code"], "NOT_LOGGED_IN", "just within the limit");
        let mut long = vec![b' '; 2 << 20];
        long[0] = b'{';
        raw.send(&long);
        let answer = raw.read();
        assert_eq!(answer["error"]["message"], "the message is longer than 1048576 bytes");
        assert_eq!((&answer["status"], &answer["error"]["code"]), (&json!("ERR"), &json!("BAD_REQUEST")));
        raw.stream.get_mut().shutdown(Shutdown::Write).unwrap();
        assert_eq!(raw.rest(), b"");
    }
    assert_still_serves(&shop);
}

#[test]
fn a_length_of_4_gib_costs_nothing() {
    let shop = Shop::open();
    // As the first message it matches no framing.
    let mut raw = shop.raw(Role::Buyer, Framing::Frames);
    raw.stream.get_mut().write_all(b"\xff\xff\xff\xff{}").unwrap();
    assert_eq!(raw.rest(), b"");
    // Later it counts as a message that is too long.
    let mut raw = shop.raw(Role::Buyer, Framing::Frames);
    assert_eq!(raw.ask(json!({"type": "GET_CART"}))["status"], "ERR");
    raw.stream.get_mut().write_all(b"\xff\xff\xff\xff").unwrap();
    assert_eq!(raw.read()["error"]["message"], "the message is longer than 1048576 bytes");
    raw.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.rest(), b"");
    let other = b"GET / HTTP/1.1\r\n\r\n";
    let mut raw = shop.raw(Role::Seller, Framing::Lines);
    raw.stream.get_mut().write_all(other).unwrap();
    assert_eq!(raw.rest(), b"");
    assert_still_serves(&shop);
}

#[test]
fn nonsense_is_told_so_and_the_connection_goes_on() {
    let shop = Shop::open();
    for framing in [Framing::Frames, Framing::Lines] {
        let mut raw = shop.raw(Role::Seller, framing);
        for nonsense in [&b"{"[..], b"{]", b"{\"type\":\"request\"}", b"{\"type\":[]}", b"{}", b"{\xff}", b"\xff\xfe"] {
            raw.send(nonsense);
            let answer = raw.read();
            assert_eq!(answer["error"]["code"], "BAD_REQUEST", "{answer} for {}", nonsense.escape_ascii());
        }
        assert_eq!(raw.ask(json!({"type": "X"}))["error"]["code"], "UNKNOWN_API");
        raw.send(format!("{{\"keywords\":{}", "[".repeat(500_000)).as_bytes());
        assert_eq!(raw.read()["error"]["code"], "BAD_REQUEST");
    }
}

#[test]
fn too_much_at_once_is_busy() {
    let budget = ReceiveBudget::new(600_000);
    let shop = Shop::open_with(|context| context.listener.budget = Arc::clone(&budget));
    let mut first = shop.raw(Role::Buyer, Framing::Frames);
    // The message never ends, so its bytes count against the budget.
    first.stream.get_mut().write_all(&1_000_000_u32.to_be_bytes()).unwrap();
    first.stream.get_mut().write_all(&[b' '; 300_000]).unwrap();
    // Otherwise the others might be first and this one be rejected as busy.
    eventually(|| budget.used_bytes() > 500_000);
    let mut long = json!({"type": "GET_CART", "x": "x".repeat(500_000)}).to_string().into_bytes();
    long.push(b'\n');
    eventually(|| {
        let mut second = shop.raw(Role::Buyer, Framing::Lines);
        // The response may come before everything is written.
        let _ = second.stream.get_mut().write_all(&long);
        second.read()["error"]["code"] == "BUSY"
    });
    assert_still_serves(&shop);
    drop(first);
    eventually(|| {
        let mut third = shop.raw(Role::Buyer, Framing::Lines);
        let _ = third.stream.get_mut().write_all(&long);
        third.read()["error"]["code"] == "NOT_LOGGED_IN"
    });
}

#[test]
fn past_the_bound_of_connections_it_is_busy() {
    let shop = Shop::open_with(|context| context.listener.limiter = ConnectionLimiter::new(1));
    let mut one = shop.raw(Role::Buyer, Framing::Lines);
    assert_eq!(one.ask(json!({"type": "GET_CART"}))["status"], "ERR");
    for framing in [Framing::Lines, Framing::Frames] {
        assert_eq!(shop.raw(Role::Buyer, framing).ask(json!({"type": "GET_CART"}))["error"]["code"], "BUSY");
        let config =
            client::ClientConfig { framing, ..client::ClientConfig::plain(shop.port(Role::Buyer).to_string()) };
        assert_eq!(code(Client::new(config).call("Login", json!({"username": "u", "password": "p"}))), ErrorCode::Busy);
    }
    // A silent connection gets the response, too.
    let mut silent = shop.raw(Role::Buyer, Framing::Lines);
    assert_eq!(silent.read()["error"]["code"], "BUSY");
    assert_eq!(silent.rest(), b"");
}

#[test]
fn strangers_at_a_database_never_keep_a_link_out() {
    let shop = Shop::open();
    let customer = shop.customer.as_ref().unwrap();
    let count = |name: &str| customer.counters().iter().find(|(counted, _)| *counted == name).unwrap().1;
    // Unauthenticated clients that send requests: half of 500 are accepted, further ones get BUSY.
    let mut unauthenticated: Vec<RawClient> = Vec::new();
    let ask = json!({"type": "VALIDATE", "sid": "none"});
    for _ in 0..250 {
        let mut raw = RawClient::connect(customer.local_addr(), Framing::Lines);
        assert_eq!(raw.ask(ask.clone())["error"]["code"], "SESSION_EXPIRED");
        unauthenticated.push(raw);
    }
    for framing in [Framing::Lines, Framing::Frames] {
        let mut raw = RawClient::connect(customer.local_addr(), framing);
        assert_eq!(raw.ask(ask.clone())["error"]["code"], "BUSY");
    }
    assert_eq!(count("strangers_refused"), 2);
    // And more silent ones than the limit, or ones that begin a link and never prove the key.
    let hello = json!({"type": "LINK", "from": "buyer-server", "to": "customer-db", "nonce": "0".repeat(64)});
    let mut silent = Vec::new();
    for nth in 0..600 {
        let mut raw = RawClient::connect(customer.local_addr(), Framing::Frames);
        if nth % 3 == 0 {
            // It may have been closed by now.
            let _ = raw.stream.get_mut().write_all(&encode_frame(hello.to_string().as_bytes()).unwrap());
        }
        silent.push(raw);
    }
    eventually(|| count("newcomers_closed") > 0);
    // A frontend that starts now gets its links, as many as it needs at once.
    let late = config(Role::Buyer, customer, shop.product.as_ref().unwrap());
    let late = FrontendServer::start(late, &context(&shop.key)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut raw = RawClient::connect(late.local_addrs()[0], Framing::Lines);
                assert_eq!(raw.ask(json!({"type": "GET_CART", "sid": "none"}))["error"]["code"], "SESSION_EXPIRED");
            });
        }
    });
    // A client that was accepted is not closed in favour of others.
    assert_eq!(unauthenticated[0].ask(ask)["error"]["code"], "SESSION_EXPIRED");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn garbage_on_any_door_harms_nobody(
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4),
        first in prop_oneof![Just(0_u8), Just(b'{'), Just(b'\n'), any::<u8>()],
        framed in any::<bool>(),
    ) {
        static SHOP: std::sync::LazyLock<Shop> = std::sync::LazyLock::new(Shop::open);
        let shop = &*SHOP;
        let listeners = [
            shop.port(Role::Buyer),
            shop.port(Role::Seller),
            shop.customer.as_ref().unwrap().local_addr(),
            shop.product.as_ref().unwrap().local_addr(),
        ];
        for listener in listeners {
            let mut raw = RawClient::connect(listener, Framing::Frames);
            let bytes = match framed {
                true => garbage.iter().flat_map(|message| encode_frame(message).unwrap()).collect(),
                false => [&[first], &garbage.concat()[..]].concat(),
            };
            // The connection may be closed before everything is written.
            let _ = raw.stream.get_mut().write_all(&bytes);
            let _ = raw.stream.get_mut().shutdown(Shutdown::Write);
            raw.rest();
        }
        assert_still_serves(shop);
    }
}
