use std::time::Duration;

use super::driver::{Driver, FORWARD, Heard, Op, PATIENCE, Step as Next};
use super::*;
use crate::identity::SessionKey;
use crate::shop::ops::{CustomerOp, Hold, LinkCard, ProductOp};

const NOW: Millis = Millis(1_795_253_400_000);

fn line(item_id: &str, quantity: u32) -> Line {
    Line { item_id: item_id.to_owned(), quantity }
}

fn priced(item_id: &str, quantity: u32, cents: i64) -> PricedLine {
    let (item_id, seller) = (item_id.to_owned(), "sam".to_owned());
    PricedLine { item_id, quantity, price: Cents(cents), seller_id: 7, seller }
}

fn attempt(key: Option<&str>, lines: &[Line]) -> Attempt {
    Attempt {
        buyer: Buyer { user_id: 1, username: Name::new("bea").unwrap(), name: "Bea".to_owned() },
        request: "r1".to_owned(),
        cart: Cart { session: SessionKey::of("s"), users: false, lines: lines.to_vec() },
        key: key.map(str::to_owned),
        address: Some("1 Main Street".to_owned()),
    }
}

fn begun(key: Option<&str>) -> Purchase {
    match begin(NOW, "p1".to_owned(), attempt(key, &[line("1-1", 2), line("1-2", 1)]), None, None) {
        Begin::Drive(purchase) => *purchase,
        _ => panic!("it is a new one"),
    }
}

fn lines() -> Vec<PricedLine> {
    vec![priced("1-1", 2, 250), priced("1-2", 1, 100)]
}

fn authorised() -> Purchase {
    let mut purchase = begun(None);
    purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    assert_eq!(purchase.handle(NOW, Event::Authorised), Step::done(&[Row::Keep, Row::Authorised]));
    purchase
}

fn captured(key: Option<&str>) -> Purchase {
    let mut purchase = begun(key);
    for event in [Event::Authorise { lease: 1, lines: lines() }, Event::Authorised, Event::Complete { lease: 1 }] {
        purchase.handle(NOW, event);
    }
    assert_eq!(purchase.handle(NOW.plus_ms(5), Event::Captured), Step::done(&[Row::Paid, Row::Drop]));
    purchase
}

fn why() -> Refusal {
    Refusal::new(Code::OutOfStock, "there are not as many")
}

fn code(step: Step) -> Code {
    match step {
        Step { rows, then: Then::Answer(Err(refusal)) } if rows.is_empty() => refusal.code,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn each_step_is_on_disk_before_the_bank_is_asked() {
    let mut purchase = begun(None);
    let step = purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    assert_eq!(step, Step::ask(&[Row::Keep], BankCall::Authorise(Cents(600))));
    assert_eq!((purchase.stage(), purchase.in_escrow()), (Stage::Authorising, Cents(0)));
    assert_eq!(purchase.handle(NOW, Event::Authorised), Step::done(&[Row::Keep, Row::Authorised]));
    assert_eq!((purchase.stage(), purchase.in_escrow()), (Stage::Authorised, Cents(600)));
    assert_eq!(purchase.unanswered(), None);
    let step = purchase.handle(NOW, Event::Complete { lease: 1 });
    assert_eq!(step, Step::ask(&[Row::Keep], BankCall::Capture));
    assert_eq!((purchase.unanswered(), purchase.is_over()), (Some(BankCall::Capture), false));
    assert_eq!(purchase.handle(NOW.plus_ms(5), Event::Captured), Step::done(&[Row::Paid, Row::Drop]));
    let purchased = purchase.outcome().unwrap();
    assert_eq!((purchased.total, purchased.items), (Cents(600), lines()));
    assert!(purchase.is_over());
    assert_eq!((purchase.captured_at, purchase.in_escrow()), (NOW.plus_ms(5), Cents(0)));
}

#[test]
fn a_repeat_changes_nothing_and_hears_the_same() {
    let mut purchase = begun(None);
    purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    let again = purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    assert_eq!(again, Step::ask(&[], BankCall::Authorise(Cents(600))));
    let others = purchase.handle(NOW, Event::Authorise { lease: 1, lines: vec![priced("1-1", 2, 251)] });
    assert_eq!(code(others), Code::BadRequest);
    for first in [true, false] {
        let rows: &[Row] = if first { &[Row::Keep, Row::Authorised] } else { &[] };
        assert_eq!(purchase.handle(NOW, Event::Authorised), Step::done(rows));
    }
    assert_eq!(purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() }), Step::done(&[]));
    for first in [true, false] {
        let rows: &[Row] = if first { &[Row::Keep] } else { &[] };
        assert_eq!(purchase.handle(NOW, Event::Complete { lease: 1 }), Step::ask(rows, BankCall::Capture));
    }
    purchase.handle(NOW, Event::Captured);
    assert_eq!(purchase.handle(NOW, Event::Captured), Step::done(&[]));
    // Also for one who has no lease any more: it is a fact.
    assert_eq!(purchase.handle(NOW, Event::Complete { lease: 0 }), Step::done(&[]));

    let mut purchase = authorised();
    for first in [true, false] {
        let rows: &[Row] = if first { &[Row::Keep] } else { &[] };
        assert_eq!(purchase.handle(NOW, Event::Undo { lease: 1, why: why() }), Step::ask(rows, BankCall::Void));
    }
    for first in [true, false] {
        let rows: &[Row] = if first { &[Row::Keep, Row::Voided] } else { &[] };
        assert_eq!(purchase.handle(NOW, Event::Voided), Step::done(rows));
    }
    assert_eq!(purchase.handle(NOW, Event::Undo { lease: 1, why: why() }), Step::done(&[]));
    for first in [true, false] {
        let rows: &[Row] = if first { &[Row::Drop] } else { &[] };
        assert_eq!(purchase.handle(NOW, Event::Closed { lease: 1 }), Step::done(rows));
    }
}

#[test]
fn what_the_bank_never_heard_of_needs_no_void() {
    let mut purchase = begun(None);
    assert_eq!(purchase.handle(NOW, Event::Undo { lease: 1, why: why() }), Step::done(&[Row::Keep]));
    assert_eq!(purchase.stage(), Stage::Voided);
    // Late news.
    assert_eq!(code(purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() })), Code::OutOfStock);
    assert_eq!(purchase.outcome(), Err(why()));
}

#[test]
fn an_authorisation_that_comes_after_the_undo_counts_for_nothing() {
    let mut purchase = begun(None);
    purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    let step = purchase.handle(NOW, Event::Undo { lease: 1, why: why() });
    assert_eq!(step, Step::ask(&[Row::Keep], BankCall::Void));
    assert_eq!(code(purchase.handle(NOW, Event::Authorised)), Code::OutOfStock);
    assert_eq!(code(purchase.handle(NOW, Event::Closed { lease: 1 })), Code::Unavailable);
    // It never was in escrow.
    assert_eq!(purchase.handle(NOW, Event::Voided), Step::done(&[Row::Keep]));
    assert_eq!(code(purchase.handle(NOW, Event::Complete { lease: 1 })), Code::OutOfStock);
}

#[test]
fn a_card_that_is_declined_ends_the_attempt() {
    let mut purchase = begun(None);
    purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    let step = purchase.handle(NOW, Event::Declined("card expired"));
    let declined = Refusal::new(Code::PaymentDeclined, "card expired");
    assert_eq!(step, Step::new(&[Row::Keep], Then::Answer(Err(declined.clone()))));
    // The answer was lost: the same again.
    assert_eq!(purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() }), Step::refuse(declined));
    assert_eq!(purchase.handle(NOW, Event::Closed { lease: 1 }), Step::done(&[Row::Drop]));
}

#[test]
fn a_charge_that_is_definitely_refused_is_undone() {
    let mut purchase = authorised();
    purchase.handle(NOW, Event::Complete { lease: 1 });
    let step = purchase.handle(NOW, Event::CaptureRefused("too late"));
    assert_eq!(step, Step::ask(&[Row::Keep], BankCall::Void));
    assert_eq!(purchase.unanswered(), Some(BankCall::Void));
    assert_eq!(purchase.handle(NOW, Event::Voided), Step::done(&[Row::Keep, Row::Voided]));
    assert_eq!(purchase.outcome().unwrap_err().code, Code::PaymentDeclined);
}

#[test]
fn only_the_lease_drives() {
    let mut purchase = authorised();
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS - 1)).is_none());
    let orphan = purchase.take_over(NOW.plus_ms(LEASE_MS)).unwrap();
    assert_eq!((orphan.lease, orphan.is_authorised, orphan.is_undone), (2, true, false));
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS)).is_none());
    assert_eq!(code(purchase.handle(NOW, Event::Complete { lease: 1 })), Code::Forbidden);
    assert_eq!(code(purchase.handle(NOW, Event::Undo { lease: 1, why: why() })), Code::Forbidden);
    assert_eq!(code(purchase.handle(NOW, Event::Authorise { lease: 1, lines: lines() })), Code::Forbidden);
    purchase.handle(NOW, Event::Undo { lease: 2, why: why() });
    purchase.handle(NOW, Event::Voided);
    assert_eq!(code(purchase.handle(NOW, Event::Closed { lease: 1 })), Code::Forbidden);
    // What is left to do is harmless: it is given on sooner.
    assert!(purchase.leased_until() <= NOW.plus_ms(UNDONE_LEASE_MS));
    let orphan = purchase.take_over(NOW.plus_ms(UNDONE_LEASE_MS)).unwrap();
    assert_eq!((orphan.lease, orphan.is_undone), (3, true));
    assert_eq!(purchase.handle(NOW, Event::Closed { lease: 3 }), Step::done(&[Row::Drop]));

    // From the commit point on there is nothing to drive.
    let mut purchase = authorised();
    purchase.handle(NOW, Event::Complete { lease: 1 });
    assert!(purchase.take_over(Millis(u64::MAX)).is_none());
    assert_eq!(code(purchase.handle(NOW, Event::Undo { lease: 1, why: why() })), Code::Forbidden);
}

#[test]
fn a_driver_that_is_at_work_keeps_its_lease() {
    let mut purchase = authorised();
    let late = NOW.plus_ms(LEASE_MS - 1);
    purchase.renew(late, 2);
    assert_eq!(purchase.leased_until(), NOW.plus_ms(LEASE_MS), "that lease is nobody's");
    purchase.renew(late, 1);
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS)).is_none());
    // An old one that comes late shortens nothing.
    purchase.renew(NOW, 1);
    assert_eq!(purchase.leased_until(), late.plus_ms(LEASE_MS));
    // One that was away for too long goes on, unless another has taken over.
    let later = late.plus_ms(LEASE_MS);
    purchase.renew(later, 1);
    assert!(purchase.take_over(later).is_none());
    let last = later.plus_ms(LEASE_MS);
    assert_eq!(purchase.take_over(last).unwrap().lease, 2);
    purchase.renew(last.plus_ms(1), 1);
    assert_eq!(purchase.leased_until(), last.plus_ms(LEASE_MS));
}

#[test]
fn after_a_start_a_driver_has_the_time_to_say_that_it_is_there() {
    let mut purchase = authorised();
    let later = NOW.plus_ms(10 * LEASE_MS);
    purchase.resume(later);
    assert!(purchase.take_over(later.plus_ms(2 * RENEW_MS - 1)).is_none());
    assert!(purchase.take_over(later.plus_ms(2 * RENEW_MS)).is_some());
}

#[test]
fn a_clock_that_was_set_back_makes_no_lease_longer() {
    let mut purchase = authorised();
    let before = Millis(NOW.0 - 86_400_000);
    purchase.resume(before);
    assert!(purchase.take_over(before.plus_ms(LEASE_MS)).is_some());
}

#[test]
fn prices_are_those_of_the_cart_and_can_be_counted() {
    let mut purchase = begun(None);
    for (lines, field) in [
        (vec![priced("1-1", 2, 250)], "lines"),
        (vec![priced("1-1", 3, 250), priced("1-2", 1, 100)], "lines"),
        (vec![priced("1-2", 2, 250), priced("1-1", 1, 100)], "lines"),
        (vec![priced("1-1", 2, i64::MAX), priced("1-2", 1, 100)], "quantity"),
        (vec![priced("1-1", 2, TOTAL_MAX.0 / 2), priced("1-2", 1, 2)], "quantity"),
    ] {
        let step = purchase.handle(NOW, Event::Authorise { lease: 1, lines });
        let Then::Answer(Err(refusal)) = step.then else { panic!("it was taken") };
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(refusal.message.starts_with(field), "{}", refusal.message);
    }
    let nobodys = PricedLine { seller: String::new(), ..priced("1-2", 1, 100) };
    let step = purchase.handle(NOW, Event::Authorise { lease: 1, lines: vec![priced("1-1", 2, 250), nobodys] });
    assert_eq!(code(step), Code::BadRequest);
    assert_eq!(purchase.stage(), Stage::Begun);
    let lines = vec![priced("1-1", 2, TOTAL_MAX.0 / 2), priced("1-2", 1, 1)];
    let step = purchase.handle(NOW, Event::Authorise { lease: 1, lines });
    assert_eq!(step, Step::ask(&[Row::Keep], BankCall::Authorise(TOTAL_MAX)));
}

fn decide(key: Option<&str>, lines: &[Line], open: Option<&Purchase>, known: Option<&Purchase>) -> &'static str {
    let attempt = Attempt { request: "r2".to_owned(), ..attempt(key, lines) };
    match begin(NOW.plus_ms(10), "p2".to_owned(), attempt, open, known) {
        Begin::Drive(_) => "drive",
        Begin::Again => "again",
        Begin::Wait => "wait",
        Begin::Done => "done",
        Begin::Refuse(refusal) if refusal.code == Code::EmptyCart => "empty",
        Begin::Refuse(refusal) => {
            assert!(refusal.code == Code::BadRequest && refusal.message.starts_with("idempotency_key"), "{refusal:?}");
            "other"
        }
    }
}

#[test]
fn a_key_is_one_purchase() {
    let (same, other) = ([line("1-1", 2), line("1-2", 1)], [line("1-1", 1)]);
    let known = captured(Some("k"));
    assert_eq!(decide(Some("k"), &same, None, Some(&known)), "done");
    // What success has left.
    assert_eq!(decide(Some("k"), &[], None, Some(&known)), "done");
    assert_eq!(decide(Some("k"), &other, None, Some(&known)), "other");
    // A purchase that had no key, or another one, is none of it.
    assert_eq!(decide(Some("j"), &same, None, Some(&known)), "drive");
    assert_eq!(decide(None, &same, None, Some(&captured(None))), "drive");
    assert_eq!(decide(None, &[], None, None), "empty");
    let mut elsewhere = known.clone();
    elsewhere.address = None;
    assert_eq!(decide(Some("k"), &same, None, Some(&elsewhere)), "other");
    let mut long_ago = known;
    long_ago.captured_at = Millis(NOW.0 - KEY_KEPT_MS);
    assert_eq!(decide(Some("k"), &other, None, Some(&long_ago)), "drive");
}

#[test]
fn a_second_purchase_waits_for_the_first() {
    let (same, other) = ([line("1-1", 2), line("1-2", 1)], [line("1-1", 1)]);
    let open = begun(Some("k"));
    assert_eq!(decide(None, &same, Some(&open), None), "wait");
    assert_eq!(decide(Some("k"), &same, Some(&open), None), "wait");
    assert_eq!(decide(Some("k"), &other, Some(&open), None), "other");
    assert_eq!(decide(Some("j"), &other, Some(&open), None), "wait");
    // The message itself again: its answer was lost.
    let again = |open: &Purchase| {
        let begin = begin(NOW, "p2".to_owned(), attempt(Some("k"), &same), Some(open), None);
        matches!(begin, Begin::Again)
    };
    assert!(again(&open));
    let mut driven = open.clone();
    driven.handle(NOW, Event::Authorise { lease: 1, lines: lines() });
    assert!(!again(&driven), "somebody drives it");
    let mut orphan = open;
    orphan.take_over(NOW.plus_ms(LEASE_MS)).unwrap();
    assert!(!again(&orphan), "somebody else drives it");
}

#[test]
fn a_record_reads_back_and_shows_no_address() {
    let purchase = captured(Some("k"));
    let json = serde_json::to_string(&purchase).unwrap();
    let back: Purchase = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
    assert_eq!(back.outcome(), purchase.outcome());
    assert!(!format!("{purchase:?}").contains("Main"));
}

// The driver.

fn card() -> LinkCard {
    LinkCard { number: "4111111111111111".to_owned(), exp: "12/79".to_owned(), name: "Bea".to_owned() }
}

fn drive() -> Driver {
    let cart = vec![line("1-1", 2), line("1-2", 1)];
    let (driver, step) = Driver::begin(NOW, "p1".to_owned(), 1, cart, 60_000, card());
    assert_eq!(name(&step), "hold");
    driver
}

fn name(step: &Next) -> &'static str {
    match step {
        Next::Ask { op: Op::Product(op), .. } => match op {
            ProductOp::Hold { .. } => "hold",
            ProductOp::Sell { .. } => "sell",
            ProductOp::Release { .. } => "release",
            ProductOp::HoldState { .. } => "look",
            other => panic!("{other:?}"),
        },
        Next::Ask { op: Op::Customer(op), .. } => match op {
            CustomerOp::Authorise { .. } => "authorise",
            CustomerOp::Complete { .. } => "complete",
            CustomerOp::Undo { .. } => "undo",
            CustomerOp::Closed { .. } => "closed",
            other => panic!("{other:?}"),
        },
        Next::Over(Ok(_)) => "purchased",
        Next::Over(Err(_)) => "refused",
    }
}

fn told(step: Next) -> Code {
    match step {
        Next::Over(Err(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

fn refused(code: Code) -> Heard {
    Heard::Refused(Refusal::new(code, "no"))
}

fn purchased() -> Heard {
    Heard::Purchased(captured(None).outcome().unwrap())
}

#[test]
fn a_purchase_takes_four_steps() {
    let mut driver = drive();
    assert_eq!(name(&driver.heard(NOW, Heard::Priced(lines()))), "authorise");
    assert_eq!(name(&driver.heard(NOW, Heard::Done)), "sell");
    assert_eq!(name(&driver.heard(NOW, Heard::Hold(Hold::Sold))), "complete");
    assert_eq!(name(&driver.heard(NOW, purchased())), "purchased");
}

#[test]
fn what_cannot_be_is_undone_before_units_go_back() {
    let mut driver = drive();
    assert_eq!(name(&driver.heard(NOW, refused(Code::OutOfStock))), "undo");
    assert_eq!(name(&driver.heard(NOW, Heard::Done)), "release");
    assert_eq!(name(&driver.heard(NOW, Heard::Hold(Hold::Released))), "closed");
    assert_eq!(told(driver.heard(NOW, Heard::Done)), Code::OutOfStock);
    // The hold has expired before it was sold.
    let mut driver = drive();
    driver.heard(NOW, Heard::Priced(lines()));
    driver.heard(NOW, Heard::Done);
    assert_eq!(name(&driver.heard(NOW, Heard::Hold(Hold::Released))), "undo");
}

#[test]
fn a_declined_card_is_told_once_the_units_are_back() {
    for at_the_end in [false, true] {
        let mut driver = drive();
        driver.heard(NOW, Heard::Priced(lines()));
        if at_the_end {
            driver.heard(NOW, Heard::Done);
            driver.heard(NOW, Heard::Hold(Hold::Sold));
        }
        assert_eq!(name(&driver.heard(NOW, refused(Code::PaymentDeclined))), "release");
        assert_eq!(name(&driver.heard(NOW, Heard::Hold(Hold::Released))), "closed");
        assert_eq!(told(driver.heard(NOW, Heard::Done)), Code::PaymentDeclined);
    }
}

#[test]
fn one_without_an_answer_is_asked_again_then_undone() {
    for stage in ["hold", "authorise", "sell"] {
        let mut driver = drive();
        if stage != "hold" {
            driver.heard(NOW, Heard::Priced(lines()));
        }
        if stage == "sell" {
            driver.heard(NOW, Heard::Done);
        }
        let mut pauses = Vec::new();
        for _ in 0..3 {
            let step = driver.heard(NOW, refused(Code::Unavailable));
            assert_eq!(name(&step), stage);
            if let Next::Ask { after, .. } = step {
                pauses.push(after);
            }
        }
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]) && pauses[0] > Duration::ZERO, "{pauses:?}");
        let late = NOW.plus(FORWARD);
        let step = driver.heard(late, refused(Code::Busy));
        assert!(matches!(step, Next::Ask { after: Duration::ZERO, .. }), "{step:?}");
        assert_eq!(name(&step), "undo");
        assert_eq!(name(&driver.heard(late, Heard::Done)), "release");
        assert_eq!(name(&driver.heard(late, refused(Code::Unavailable))), "release");
        assert_eq!(told(driver.heard(NOW.plus(PATIENCE), refused(Code::Unavailable))), Code::Busy);
    }
}

#[test]
fn past_the_commit_point_nothing_is_undone() {
    let mut driver = drive();
    driver.heard(NOW, Heard::Priced(lines()));
    driver.heard(NOW, Heard::Done);
    driver.heard(NOW, Heard::Hold(Hold::Sold));
    assert_eq!(name(&driver.heard(NOW.plus(FORWARD), refused(Code::Unavailable))), "complete");
    let Next::Over(Err(refusal)) = driver.heard(NOW.plus(PATIENCE), refused(Code::Unavailable)) else {
        panic!("it goes on for ever")
    };
    assert!(refusal.code == Code::Unavailable && refusal.message.contains("not known"), "{refusal:?}");
}

#[test]
fn one_that_lost_its_lease_stops() {
    let mut driver = drive();
    driver.heard(NOW, Heard::Priced(lines()));
    assert_eq!(told(driver.heard(NOW, refused(Code::Forbidden))), Code::Unavailable);
    let mut driver = drive();
    assert_eq!(name(&driver.heard(NOW, refused(Code::OutOfStock))), "undo");
    assert_eq!(told(driver.heard(NOW, refused(Code::Forbidden))), Code::OutOfStock);
}

#[test]
fn whoever_takes_over_goes_by_what_is_sold() {
    let orphan = |is_authorised, is_undone| Orphan {
        purchase_id: "p1".to_owned(),
        lease: 2,
        lease_ms: LEASE_MS,
        is_undone,
        is_authorised,
    };
    let (_, step) = Driver::take_over(NOW, orphan(false, false));
    assert_eq!(name(&step), "undo");
    let (mut driver, step) = Driver::take_over(NOW, orphan(false, true));
    assert_eq!(name(&step), "release");
    assert_eq!(name(&driver.heard(NOW, Heard::Hold(Hold::Released))), "closed");
    for (hold, next) in
        [(Hold::Sold, "complete"), (Hold::Held, "undo"), (Hold::Released, "undo"), (Hold::Unknown, "undo")]
    {
        let (mut driver, step) = Driver::take_over(NOW, orphan(true, false));
        assert_eq!(name(&step), "look");
        assert_eq!(name(&driver.heard(NOW, Heard::Hold(hold))), next);
    }
    // It cannot know whether they are sold, so it does nothing.
    let (mut driver, _) = Driver::take_over(NOW, orphan(true, false));
    assert_eq!(name(&driver.heard(NOW.plus(FORWARD), refused(Code::Unavailable))), "look");
    assert_eq!(told(driver.heard(NOW.plus(PATIENCE), refused(Code::Unavailable))), Code::Unavailable);
}

#[test]
fn answers_are_read_by_what_was_asked() {
    let hold = Op::Product(ProductOp::Hold { purchase_id: "p1".to_owned(), lines: Vec::new(), expires_in_ms: 1 });
    let json = serde_json::to_string(&lines()).unwrap();
    assert_eq!(hold.read(Ok(&json)), Heard::Priced(lines()));
    let sell = Op::Product(ProductOp::Sell { purchase_id: "p1".to_owned() });
    assert_eq!(sell.read(Ok("\"sold\"")), Heard::Hold(Hold::Sold));
    let complete = Op::Customer(CustomerOp::Complete { purchase_id: "p1".to_owned(), lease: 1 });
    let Heard::Purchased(bought) = purchased() else { panic!("it was") };
    assert_eq!(complete.read(Ok(&serde_json::to_string(&bought).unwrap())), Heard::Purchased(bought));
    let closed = Op::Customer(CustomerOp::Closed { purchase_id: "p1".to_owned(), lease: 1 });
    assert_eq!(closed.read(Ok("null")), Heard::Done);
    assert_eq!(closed.read(Err(why())), Heard::Refused(why()));
    for (op, json) in [(&hold, "\"sold\""), (&sell, "[]"), (&complete, "{}")] {
        let Heard::Refused(refusal) = op.read(Ok(json)) else { panic!("{json} was taken") };
        assert_eq!(refusal.code, Code::Unavailable);
    }
}
