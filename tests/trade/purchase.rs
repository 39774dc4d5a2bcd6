//! A whole purchase, from the search to the receipt.

use serde_json::json;

use crate::support::*;

#[test]
fn two_peers_search_negotiate_reserve_and_settle() {
    let server = Server::start(&[]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let rq = bob.look_for("lamp", 90.0);
    let sold = alice.offer("lamp", 95.5);
    let asked = alice.push("NEGOTIATE");
    assert_eq!((&asked["rq"], &asked["max_price"]), (&json!(sold), &json!(90)));
    let answer = alice.ask_rq("ACCEPT", sold, json!({"item_name": "lamp", "max_price": 90}));
    assert_eq!(answer["type"], "NOTED");
    assert_eq!(alice.push("RESERVE")["price"], json!(90));
    let (bought, shipped) = settle(&mut bob, rq, &mut alice, GOOD_CARD);
    let types =
        |lines: &[serde_json::Value]| lines.iter().map(|l| l["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(types(&bought), ["INFORM_REQ", "RECEIPT"]);
    assert_eq!(types(&shipped), ["INFORM_REQ", "SHIPPING_INFO", "SETTLED"]);
    assert_eq!(bought[1], json!({"type": "RECEIPT", "rq": rq, "item_name": "lamp", "price": 90, "seller": "alice"}));
    assert_eq!(
        shipped[1],
        json!({"type": "SHIPPING_INFO", "rq": sold, "name": "bob", "address": "1 bob Street", "price": 90, "fee": 9, "payout": 81})
    );
    assert_eq!(shipped[2], json!({"type": "SETTLED", "rq": sold, "payout": 81}));
    assert_eq!(bob.ended(rq)["state"], "completed");
    assert_eq!(alice.ended(sold)["price"], json!(90));
    assert_eq!(server.balance_cents("card:bob"), -9_000);
    assert_eq!(server.balance_cents("payout:alice"), 8_100);
    assert_eq!(server.balance_cents("fee"), 900);
    assert_eq!(server.stop(), 0);
}

#[test]
fn a_killed_server_goes_on_where_it_was() {
    let server = Server::start(&[]);
    let (mut alice, mut bob) = (Peer::new(&server, "alice"), Peer::new(&server, "bob"));
    let rq = bob.look_for("lamp", 90.0);
    let server = server.kill_and_restart();
    alice.offer("lamp", 80.0);
    alice.push("RESERVE");
    let server = server.kill_and_restart();
    settle(&mut bob, rq, &mut alice, GOOD_CARD);
    let server = server.kill_and_restart();
    assert_eq!(bob.ended(rq)["state"], "completed");
    assert_eq!(server.balance_cents("card:bob"), -8_000);
}
