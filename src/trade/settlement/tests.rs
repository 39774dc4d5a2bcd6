//! Every stage with every input: when money moves, who is told what, and what must be on disk before.

use super::*;
use crate::model::{Name, Token};

const BUYER_RQ: u64 = 7;
const SELLER_RQ: u64 = 1 << 31;

fn order(payment: PaymentProgress) -> SettlementOrder {
    let peer = |name: &str, rq| SettlementParty {
        from: None,
        name: Name::new(name).unwrap(),
        rq,
        token: Some(Token::from_text(format!("token of {name}"))),
        tcp: None,
    };
    SettlementOrder {
        deal: 1,
        key: "trade-1".to_owned(),
        item_name: "lamp".into(),
        goods: Goods::default(),
        price: Cents(9_500),
        fee: Cents(950),
        payment,
        buyer: peer("bo", BUYER_RQ),
        seller: peer("al", SELLER_RQ),
    }
}

fn inform(name: &str, rq: u64) -> String {
    serde_json::json!({"type": "INFORM_RES", "rq": rq, "name": name, "token": format!("token of {name}"),
        "cc_number": "4111111111111111", "cc_exp": "12/99", "address": "Elm St 1"})
    .to_string()
}

fn shipped(rq: u64) -> String {
    serde_json::json!({"type": "SHIPPED", "rq": rq}).to_string()
}

/// The actions as readable texts.
fn shown(actions: &[SettlementAction]) -> Vec<String> {
    let line = |line: &SettlementMessage| serde_json::to_value(line).unwrap();
    let show = |action: &SettlementAction| match action {
        SettlementAction::Write(side, written) => {
            format!("{} to the {}", line(written)["type"].as_str().unwrap(), side_name(*side))
        }
        SettlementAction::Authorise(_) => "authorise".to_owned(),
        SettlementAction::Capture => "capture".to_owned(),
        SettlementAction::Void => "void".to_owned(),
        SettlementAction::Store(milestone) => format!("store {milestone:?}"),
        SettlementAction::Close => "close".to_owned(),
    };
    actions.iter().map(show).collect()
}

/// The points that a settlement can be brought to, each named after the last thing done.
const REACHED: [&str; 9] = [
    "begun",
    "buyer informed",
    "seller informed",
    "authorising",
    "storing authorised",
    "shipping",
    "storing shipped",
    "capturing",
    "closing",
];

fn at(reached: &str) -> Settlement {
    let (mut it, _) = Settlement::begin(order(PaymentProgress::Asked));
    if reached == "buyer informed" {
        it.handle(SettlementInput::Line(Side::Buyer, &inform("bo", BUYER_RQ)));
        return it;
    }
    let place = REACHED.iter().position(|name| *name == reached).unwrap();
    if place >= 2 {
        assert!(it.handle(SettlementInput::Line(Side::Seller, &inform("al", SELLER_RQ))).is_empty());
    }
    if place >= 3 {
        assert_eq!(shown(&it.handle(SettlementInput::Line(Side::Buyer, &inform("bo", BUYER_RQ)))), ["authorise"]);
    }
    if place >= 4 {
        assert_eq!(shown(&it.handle(SettlementInput::Authorised)), ["store Authorised"]);
    }
    if place >= 5 {
        assert_eq!(shown(&it.handle(SettlementInput::Stored)), ["SHIPPING_INFO to the seller"]);
    }
    if place >= 6 {
        assert_eq!(shown(&it.handle(SettlementInput::Line(Side::Seller, &shipped(SELLER_RQ)))), ["store Shipped"]);
    }
    if place >= 7 {
        assert_eq!(shown(&it.handle(SettlementInput::Stored)), ["capture"]);
    }
    if place >= 8 {
        assert_eq!(shown(&it.handle(SettlementInput::Captured)), ["store Captured"]);
    }
    it
}

/// Completes a failure from the void on: both sides are told, and the settlement is over.
fn fails_with(it: &mut Settlement, reason: &str) {
    let stored = it.handle(SettlementInput::Voided);
    let [SettlementAction::Store(SettlementMilestone::Failed(why))] = &stored[..] else {
        panic!("{:?}", shown(&stored))
    };
    assert!(why.contains(reason), "{why:?} is not {reason:?}");
    let told = it.handle(SettlementInput::Stored);
    assert_eq!(shown(&told), ["CANCEL to the buyer", "CANCEL to the seller", "close"]);
    for (action, rq) in told.iter().zip([BUYER_RQ, SELLER_RQ]) {
        let SettlementAction::Write(_, line) = action else { panic!() };
        let line = serde_json::to_value(line).unwrap();
        assert_eq!((&line["rq"], &line["item_name"]), (&rq.into(), &"lamp".into()));
        assert_eq!(line["reason"].as_str().unwrap(), why);
    }
}

#[test]
fn a_payment_that_goes_well_says_what_the_contract_says() {
    let (_, begun) = Settlement::begin(order(PaymentProgress::Asked));
    let lines = |actions: &[SettlementAction]| -> Vec<serde_json::Value> {
        let lines = actions.iter().filter_map(|action| match action {
            SettlementAction::Write(_, line) => Some(serde_json::to_value(line).unwrap()),
            _ => None,
        });
        lines.collect()
    };
    let ask = |rq: u64| serde_json::json!({"type": "INFORM_REQ", "rq": rq, "item_name": "lamp", "price": 95});
    assert_eq!(lines(&begun), [ask(BUYER_RQ), ask(SELLER_RQ)]);
    let mut it = at("storing authorised");
    let info = lines(&it.handle(SettlementInput::Stored));
    assert_eq!(
        info,
        [
            serde_json::json!({"type": "SHIPPING_INFO", "rq": SELLER_RQ, "name": "bo", "address": "Elm St 1", "price": 95,
            "fee": 9.5, "payout": 85.5})
        ]
    );
    let mut it = at("closing");
    let end = it.handle(SettlementInput::Stored);
    assert_eq!(shown(&end), ["SETTLED to the seller", "RECEIPT to the buyer", "close"]);
    assert_eq!(
        lines(&end),
        [
            serde_json::json!({"type": "SETTLED", "rq": SELLER_RQ, "payout": 85.5}),
            serde_json::json!({"type": "RECEIPT", "rq": BUYER_RQ, "item_name": "lamp", "price": 95, "seller": "al"}),
        ]
    );
}

#[test]
fn a_sellers_card_is_not_looked_at() {
    let mut it = at("buyer informed");
    let none = inform("al", SELLER_RQ).replace("4111111111111111", "1234").replace("12/99", "").replace("Elm St 1", "");
    assert_eq!(shown(&it.handle(SettlementInput::Line(Side::Seller, &none))), ["authorise"]);
}

#[test]
fn nonsense_in_any_step_before_shipped_voids_and_tells_both() {
    let other_token = inform("bo", BUYER_RQ).replace("token of bo", "token of al");
    let wrong = [
        (Side::Buyer, "{".to_owned(), "expected one JSON object"),
        (Side::Buyer, shipped(BUYER_RQ), "expected INFORM_RES"),
        (Side::Buyer, inform("bo", SELLER_RQ), "rq: expected 7"),
        (Side::Buyer, inform("al", BUYER_RQ), "name: "),
        (Side::Buyer, other_token, "token: "),
        (Side::Buyer, inform("bo", BUYER_RQ).replace("4111111111111111", "41"), "cc_number: "),
        (Side::Buyer, inform("bo", BUYER_RQ).replace("12/99", ""), "cc_exp: "),
        (Side::Buyer, inform("bo", BUYER_RQ).replace("Elm St 1", ""), "address: "),
        (Side::Seller, inform("bo", BUYER_RQ), "rq: expected"),
    ];
    for (side, line, reason) in wrong {
        let mut it = at("begun");
        assert_eq!(shown(&it.handle(SettlementInput::Line(side, &line))), ["void"], "{line}");
        fails_with(&mut it, reason);
    }
    let mut it = at("buyer informed");
    assert_eq!(shown(&it.handle(SettlementInput::Line(Side::Buyer, &inform("bo", BUYER_RQ)))), ["void"]);
    fails_with(&mut it, "twice");
    for (side, line) in
        [(Side::Seller, shipped(BUYER_RQ)), (Side::Seller, "x".to_owned()), (Side::Buyer, shipped(SELLER_RQ))]
    {
        let mut it = at("shipping");
        assert_eq!(shown(&it.handle(SettlementInput::Line(side, &line))), ["void"]);
        fails_with(&mut it, "nonsense");
    }
    // A peer that is no longer registered has no valid token.
    let mut gone = order(PaymentProgress::Asked);
    gone.buyer.token = None;
    let (mut it, _) = Settlement::begin(gone);
    assert_eq!(shown(&it.handle(SettlementInput::Line(Side::Buyer, &inform("bo", BUYER_RQ)))), ["void"]);
}

#[test]
fn silence_and_broken_lines_before_shipped_void_and_tell_both() {
    for (reached, silent) in
        [("begun", "buyer"), ("buyer informed", "seller"), ("seller informed", "buyer"), ("shipping", "seller")]
    {
        let mut it = at(reached);
        assert!(it.awaits_peer());
        assert_eq!(shown(&it.handle(SettlementInput::TimedOut)), ["void"]);
        fails_with(&mut it, &format!("the {silent} did not answer in time"));
        for (side, who) in [(Side::Buyer, "buyer"), (Side::Seller, "seller")] {
            let mut it = at(reached);
            assert_eq!(shown(&it.handle(SettlementInput::Lost(side, "closed"))), ["void"]);
            // What a lost connection reports later does not count again.
            assert!(it.handle(SettlementInput::Lost(side, "again")).is_empty());
            assert!(it.handle(SettlementInput::TimedOut).is_empty());
            assert!(it.handle(SettlementInput::Line(side, "x")).is_empty());
            fails_with(&mut it, &format!("lost the {who}: closed"));
        }
    }
}

#[test]
fn what_a_side_does_while_the_bank_or_the_disk_is_at_work_counts_afterwards() {
    for (reached, answer) in
        [("authorising", SettlementInput::Authorised), ("storing authorised", SettlementInput::Stored)]
    {
        for (input, reason) in [
            (SettlementInput::Lost(Side::Seller, "closed"), "lost the seller: closed"),
            (SettlementInput::Line(Side::Buyer, "{}"), "the buyer sent nonsense"),
        ] {
            let mut it = at(reached);
            assert!(!it.awaits_peer());
            assert!(it.handle(input).is_empty(), "the answer is waited for");
            assert!(it.handle(SettlementInput::Lost(Side::Buyer, "too")).is_empty());
            let answer = if matches!(answer, SettlementInput::Stored) {
                SettlementInput::Stored
            } else {
                SettlementInput::Authorised
            };
            assert_eq!(shown(&it.handle(answer)), ["void"]);
            fails_with(&mut it, reason);
        }
    }
    let mut it = at("authorising");
    it.handle(SettlementInput::Lost(Side::Seller, "closed"));
    assert_eq!(shown(&it.handle(SettlementInput::Declined("no money"))), ["void"]);
    fails_with(&mut it, "payment declined: no money");
}

#[test]
fn after_shipped_there_is_no_way_back_but_the_banks() {
    for reached in ["storing shipped", "capturing", "closing"] {
        let mut it = at(reached);
        assert!(!it.awaits_peer());
        for side in [Side::Buyer, Side::Seller] {
            assert!(it.handle(SettlementInput::Lost(side, "closed")).is_empty());
            assert!(it.handle(SettlementInput::Line(side, "nonsense")).is_empty());
        }
        assert!(it.handle(SettlementInput::TimedOut).is_empty());
    }
    let mut it = at("capturing");
    assert_eq!(shown(&it.handle(SettlementInput::CaptureRefused("card blocked"))), ["void"]);
    fails_with(&mut it, "the bank refused the charge: card blocked");
    assert_eq!(shown(&at("authorising").handle(SettlementInput::Declined("no"))), ["void"]);
}

#[test]
fn nothing_is_charged_before_shipped_is_stored() {
    // Whatever happens in whatever order, a capture is requested only right after SHIPPED was stored.
    let texts = [inform("bo", BUYER_RQ), inform("al", SELLER_RQ), shipped(SELLER_RQ)];
    for reached in REACHED {
        if reached == "storing shipped" {
            continue;
        }
        for text in &texts {
            for side in [Side::Buyer, Side::Seller] {
                let mut it = at(reached);
                let shown = shown(&it.handle(SettlementInput::Line(side, text)));
                assert!(!shown.contains(&"capture".to_owned()), "{reached}: {shown:?}");
            }
        }
    }
    assert_eq!(shown(&at("storing shipped").handle(SettlementInput::Stored)), ["capture"]);
}

#[test]
fn an_interrupted_settlement_is_completed_or_undone_by_what_is_on_disk() {
    let (mut it, begun) = Settlement::recover(order(PaymentProgress::Shipped));
    assert_eq!(shown(&begun), ["capture"]);
    assert_eq!(shown(&it.handle(SettlementInput::Captured)), ["store Captured"]);
    assert!(!it.awaits_peer());
    for payment in [PaymentProgress::Asked, PaymentProgress::Authorised] {
        let (mut it, begun) = Settlement::recover(order(payment));
        assert_eq!(shown(&begun), ["void"]);
        fails_with(&mut it, "interrupted");
    }
}

#[test]
fn where_the_bank_has_charged_already_the_record_catches_up() {
    for (payment, steps) in [
        (PaymentProgress::Asked, vec!["store Authorised", "store Shipped", "capture"]),
        (PaymentProgress::Authorised, vec!["store Shipped", "capture"]),
    ] {
        let (mut it, _) = Settlement::recover(order(payment));
        let mut done = it.handle(SettlementInput::AlreadyCaptured(Cents(9_500)));
        for step in steps {
            assert_eq!(shown(&done), [step]);
            done = if step == "capture" {
                it.handle(SettlementInput::Captured)
            } else {
                it.handle(SettlementInput::Stored)
            };
        }
        assert_eq!(shown(&done), ["store Captured"]);
    }
    let mut it = at("capturing");
    it.handle(SettlementInput::CaptureRefused("?"));
    assert_eq!(shown(&it.handle(SettlementInput::AlreadyCaptured(Cents(9_500)))), ["capture"]);
}

#[test]
fn what_was_charged_for_something_else_completes_no_deal() {
    /// Asserts that the settlement ends without a receipt.
    fn is_cancelled(mut it: Settlement, captured: Cents, reason: &str) {
        let stored = it.handle(SettlementInput::AlreadyCaptured(captured));
        let [SettlementAction::Store(SettlementMilestone::Failed(why))] = &stored[..] else {
            panic!("{:?}", shown(&stored))
        };
        assert!(why.contains(reason), "{why:?} is not {reason:?}");
        assert_eq!(
            shown(&it.handle(SettlementInput::Stored)),
            ["CANCEL to the buyer", "CANCEL to the seller", "close"]
        );
    }
    // The deal's price and another amount.
    for captured in [Cents(9_500), Cents(4_000)] {
        // Just declined, because the bank knows the key from another purchase.
        let mut it = at("authorising");
        let reason = "the key was used for another amount";
        assert_eq!(shown(&it.handle(SettlementInput::Declined(reason))), ["void"]);
        is_cancelled(it, captured, reason);
        // At every other point at which this run of the server has not requested a capture.
        for reached in ["begun", "buyer informed", "seller informed", "shipping"] {
            let mut it = at(reached);
            it.handle(SettlementInput::TimedOut);
            is_cancelled(it, captured, "did not answer in time");
        }
    }
    // An earlier run of the server may have captured the price, but no other amount.
    for payment in [PaymentProgress::Asked, PaymentProgress::Authorised] {
        let (it, _) = Settlement::recover(order(payment));
        is_cancelled(it, Cents(9_499), "interrupted");
    }
    let mut it = at("capturing");
    it.handle(SettlementInput::CaptureRefused("card blocked"));
    is_cancelled(it, Cents(9_501), "card blocked");
}
