use std::time::Duration;

use super::driver::{DatabaseOp, Driver, DriverStep as Next, FORWARD_TIMEOUT, OpResponse, TOTAL_TIMEOUT};
use super::*;
use crate::identity::SessionKey;
use crate::shop::customer::CustomerOp;
use crate::shop::ops::{CardDetails, HoldState};
use crate::shop::product::ProductOp;

const NOW: Millis = Millis(1_795_253_400_000);

fn line(item_id: &str, quantity: u32) -> LineItem {
    LineItem { item_id: item_id.to_owned(), quantity }
}

fn priced(item_id: &str, quantity: u32, cents: i64) -> PricedLine {
    let (item_id, seller) = (item_id.to_owned(), "sam".to_owned());
    PricedLine { item_id, quantity, price: Cents(cents), seller_id: 7, seller }
}

fn attempt(key: Option<&str>, lines: &[LineItem]) -> PurchaseAttempt {
    PurchaseAttempt {
        buyer: BuyerIdentity { user_id: 1, username: Name::new("bea").unwrap(), name: "Bea".to_owned() },
        request: "r1".to_owned(),
        cart: CartSnapshot { session: SessionKey::of("s"), uses_saved_cart: false, lines: lines.to_vec() },
        key: key.map(str::to_owned),
        address: Some("1 Main Street".to_owned()),
    }
}

fn begun(key: Option<&str>) -> Purchase {
    match begin(NOW, "p1".to_owned(), attempt(key, &[line("1-1", 2), line("1-2", 1)]), None, None) {
        BeginDecision::Drive(purchase) => *purchase,
        _ => panic!("it is a new one"),
    }
}

fn lines() -> Vec<PricedLine> {
    vec![priced("1-1", 2, 250), priced("1-2", 1, 100)]
}

fn authorised() -> Purchase {
    let mut purchase = begun(None);
    purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Authorised),
        Transition::succeed(&[PurchaseWrite::SaveRecord, PurchaseWrite::PostAuthorisation])
    );
    purchase
}

fn captured(key: Option<&str>) -> Purchase {
    let mut purchase = begun(key);
    for event in [
        PurchaseEvent::Authorise { lease: 1, lines: lines() },
        PurchaseEvent::Authorised,
        PurchaseEvent::Complete { lease: 1 },
    ] {
        purchase.handle(NOW, event);
    }
    assert_eq!(
        purchase.handle(NOW.plus_ms(5), PurchaseEvent::Captured),
        Transition::succeed(&[PurchaseWrite::PostSale, PurchaseWrite::DeleteRecord])
    );
    purchase
}

fn why() -> Refusal {
    Refusal::new(ErrorCode::OutOfStock, "there are not as many")
}

fn code(step: Transition) -> ErrorCode {
    match step {
        Transition { writes, next: NextAction::Respond(Err(refusal)) } if writes.is_empty() => refusal.code,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn each_step_is_on_disk_before_the_bank_is_asked() {
    let mut purchase = begun(None);
    let step = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    assert_eq!(step, Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Authorise(Cents(600))));
    assert_eq!((purchase.stage(), purchase.in_escrow()), (PurchaseStage::Authorising, Cents(0)));
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Authorised),
        Transition::succeed(&[PurchaseWrite::SaveRecord, PurchaseWrite::PostAuthorisation])
    );
    assert_eq!((purchase.stage(), purchase.in_escrow()), (PurchaseStage::Authorised, Cents(600)));
    assert_eq!(purchase.pending_bank_request(), None);
    let step = purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 });
    assert_eq!(step, Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Capture));
    assert_eq!((purchase.pending_bank_request(), purchase.is_terminal()), (Some(BankRequest::Capture), false));
    assert_eq!(
        purchase.handle(NOW.plus_ms(5), PurchaseEvent::Captured),
        Transition::succeed(&[PurchaseWrite::PostSale, PurchaseWrite::DeleteRecord])
    );
    let purchased = purchase.outcome().unwrap();
    assert_eq!((purchased.total, purchased.items), (Cents(600), lines()));
    assert!(purchase.is_terminal());
    assert_eq!((purchase.captured_at, purchase.in_escrow()), (NOW.plus_ms(5), Cents(0)));
}

#[test]
fn a_repeat_changes_nothing_and_hears_the_same() {
    let mut purchase = begun(None);
    purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    let again = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    assert_eq!(again, Transition::ask_bank(&[], BankRequest::Authorise(Cents(600))));
    let others = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: vec![priced("1-1", 2, 251)] });
    assert_eq!(code(others), ErrorCode::BadRequest);
    for first in [true, false] {
        let writes: &[PurchaseWrite] =
            if first { &[PurchaseWrite::SaveRecord, PurchaseWrite::PostAuthorisation] } else { &[] };
        assert_eq!(purchase.handle(NOW, PurchaseEvent::Authorised), Transition::succeed(writes));
    }
    assert_eq!(purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() }), Transition::succeed(&[]));
    for first in [true, false] {
        let writes: &[PurchaseWrite] = if first { &[PurchaseWrite::SaveRecord] } else { &[] };
        assert_eq!(
            purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 }),
            Transition::ask_bank(writes, BankRequest::Capture)
        );
    }
    purchase.handle(NOW, PurchaseEvent::Captured);
    assert_eq!(purchase.handle(NOW, PurchaseEvent::Captured), Transition::succeed(&[]));
    // Even a driver without the lease is told of the success.
    assert_eq!(purchase.handle(NOW, PurchaseEvent::Complete { lease: 0 }), Transition::succeed(&[]));

    let mut purchase = authorised();
    for first in [true, false] {
        let writes: &[PurchaseWrite] = if first { &[PurchaseWrite::SaveRecord] } else { &[] };
        assert_eq!(
            purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() }),
            Transition::ask_bank(writes, BankRequest::Void)
        );
    }
    for first in [true, false] {
        let writes: &[PurchaseWrite] = if first { &[PurchaseWrite::SaveRecord, PurchaseWrite::PostVoid] } else { &[] };
        assert_eq!(purchase.handle(NOW, PurchaseEvent::Voided), Transition::succeed(writes));
    }
    assert_eq!(purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() }), Transition::succeed(&[]));
    for first in [true, false] {
        let writes: &[PurchaseWrite] = if first { &[PurchaseWrite::DeleteRecord] } else { &[] };
        assert_eq!(purchase.handle(NOW, PurchaseEvent::Closed { lease: 1 }), Transition::succeed(writes));
    }
}

#[test]
fn what_the_bank_never_heard_of_needs_no_void() {
    let mut purchase = begun(None);
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() }),
        Transition::succeed(&[PurchaseWrite::SaveRecord])
    );
    assert_eq!(purchase.stage(), PurchaseStage::Voided);
    // A late event.
    assert_eq!(
        code(purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() })),
        ErrorCode::OutOfStock
    );
    assert_eq!(purchase.outcome(), Err(why()));
}

#[test]
fn an_authorisation_that_comes_after_the_undo_counts_for_nothing() {
    let mut purchase = begun(None);
    purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    let step = purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() });
    assert_eq!(step, Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Void));
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Authorised)), ErrorCode::OutOfStock);
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Closed { lease: 1 })), ErrorCode::Unavailable);
    // The total was never in escrow.
    assert_eq!(purchase.handle(NOW, PurchaseEvent::Voided), Transition::succeed(&[PurchaseWrite::SaveRecord]));
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 })), ErrorCode::OutOfStock);
}

#[test]
fn a_card_that_is_declined_ends_the_attempt() {
    let mut purchase = begun(None);
    purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
    let step = purchase.handle(NOW, PurchaseEvent::Declined("card expired".to_owned()));
    let declined = Refusal::new(ErrorCode::PaymentDeclined, "card expired");
    assert_eq!(step, Transition::new(&[PurchaseWrite::SaveRecord], NextAction::Respond(Err(declined.clone()))));
    // The response was lost: the request is repeated.
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() }),
        Transition::refuse(declined)
    );
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Closed { lease: 1 }),
        Transition::succeed(&[PurchaseWrite::DeleteRecord])
    );
}

#[test]
fn a_charge_that_is_definitely_refused_is_undone() {
    let mut purchase = authorised();
    purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 });
    let step = purchase.handle(NOW, PurchaseEvent::CaptureRefused("too late".to_owned()));
    assert_eq!(step, Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Void));
    assert_eq!(purchase.pending_bank_request(), Some(BankRequest::Void));
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Voided),
        Transition::succeed(&[PurchaseWrite::SaveRecord, PurchaseWrite::PostVoid])
    );
    assert_eq!(purchase.outcome().unwrap_err().code, ErrorCode::PaymentDeclined);
}

#[test]
fn only_the_lease_drives() {
    let mut purchase = authorised();
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS - 1)).is_none());
    let orphan = purchase.take_over(NOW.plus_ms(LEASE_MS)).unwrap();
    assert_eq!((orphan.lease, orphan.is_authorised, orphan.is_undone), (2, true, false));
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS)).is_none());
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 })), ErrorCode::Forbidden);
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() })), ErrorCode::Forbidden);
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() })), ErrorCode::Forbidden);
    purchase.handle(NOW, PurchaseEvent::Undo { lease: 2, why: why() });
    purchase.handle(NOW, PurchaseEvent::Voided);
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Closed { lease: 1 })), ErrorCode::Forbidden);
    // What is left to do is idempotent, so the lease is shorter.
    assert!(purchase.leased_until() <= NOW.plus_ms(UNDONE_LEASE_MS));
    let orphan = purchase.take_over(NOW.plus_ms(UNDONE_LEASE_MS)).unwrap();
    assert_eq!((orphan.lease, orphan.is_undone), (3, true));
    assert_eq!(
        purchase.handle(NOW, PurchaseEvent::Closed { lease: 3 }),
        Transition::succeed(&[PurchaseWrite::DeleteRecord])
    );

    // From the commit point on no driver is needed.
    let mut purchase = authorised();
    purchase.handle(NOW, PurchaseEvent::Complete { lease: 1 });
    assert!(purchase.take_over(Millis(u64::MAX)).is_none());
    assert_eq!(code(purchase.handle(NOW, PurchaseEvent::Undo { lease: 1, why: why() })), ErrorCode::Forbidden);
}

#[test]
fn a_driver_that_is_at_work_keeps_its_lease() {
    let mut purchase = authorised();
    let late = NOW.plus_ms(LEASE_MS - 1);
    purchase.renew(late, 2);
    assert_eq!(purchase.leased_until(), NOW.plus_ms(LEASE_MS), "that lease is nobody's");
    purchase.renew(late, 1);
    assert!(purchase.take_over(NOW.plus_ms(LEASE_MS)).is_none());
    // A late renewal does not shorten the lease.
    purchase.renew(NOW, 1);
    assert_eq!(purchase.leased_until(), late.plus_ms(LEASE_MS));
    // A driver whose lease has expired can renew it, unless another one has taken over.
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
        let step = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines });
        let NextAction::Respond(Err(refusal)) = step.next else { panic!("it was taken") };
        assert_eq!(refusal.code, ErrorCode::BadRequest);
        assert!(refusal.message.starts_with(field), "{}", refusal.message);
    }
    let nobodys = PricedLine { seller: String::new(), ..priced("1-2", 1, 100) };
    let step = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: vec![priced("1-1", 2, 250), nobodys] });
    assert_eq!(code(step), ErrorCode::BadRequest);
    assert_eq!(purchase.stage(), PurchaseStage::Begun);
    let lines = vec![priced("1-1", 2, TOTAL_MAX.0 / 2), priced("1-2", 1, 1)];
    let step = purchase.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines });
    assert_eq!(step, Transition::ask_bank(&[PurchaseWrite::SaveRecord], BankRequest::Authorise(TOTAL_MAX)));
}

fn decide(key: Option<&str>, lines: &[LineItem], open: Option<&Purchase>, known: Option<&Purchase>) -> &'static str {
    let attempt = PurchaseAttempt { request: "r2".to_owned(), ..attempt(key, lines) };
    match begin(NOW.plus_ms(10), "p2".to_owned(), attempt, open, known) {
        BeginDecision::Drive(_) => "drive",
        BeginDecision::Repeat => "again",
        BeginDecision::Wait => "wait",
        BeginDecision::Done => "done",
        BeginDecision::Refuse(refusal) if refusal.code == ErrorCode::EmptyCart => "empty",
        BeginDecision::Refuse(refusal) => {
            assert!(
                refusal.code == ErrorCode::BadRequest && refusal.message.starts_with("idempotency_key"),
                "{refusal:?}"
            );
            "other"
        }
    }
}

#[test]
fn a_key_is_one_purchase() {
    let (same, other) = ([line("1-1", 2), line("1-2", 1)], [line("1-1", 1)]);
    let known = captured(Some("k"));
    assert_eq!(decide(Some("k"), &same, None, Some(&known)), "done");
    // The empty cart that success has left.
    assert_eq!(decide(Some("k"), &[], None, Some(&known)), "done");
    assert_eq!(decide(Some("k"), &other, None, Some(&known)), "other");
    // A purchase without a key or with another key does not match.
    assert_eq!(decide(Some("j"), &same, None, Some(&known)), "drive");
    assert_eq!(decide(None, &same, None, Some(&captured(None))), "drive");
    assert_eq!(decide(None, &[], None, None), "empty");
    let mut elsewhere = known.clone();
    elsewhere.address = None;
    assert_eq!(decide(Some("k"), &same, None, Some(&elsewhere)), "other");
    let mut long_ago = known;
    long_ago.captured_at = Millis(NOW.0 - KEY_RETENTION_MS);
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
    // A retry of the same message, whose response was lost.
    let again = |open: &Purchase| {
        let begin = begin(NOW, "p2".to_owned(), attempt(Some("k"), &same), Some(open), None);
        matches!(begin, BeginDecision::Repeat)
    };
    assert!(again(&open));
    let mut driven = open.clone();
    driven.handle(NOW, PurchaseEvent::Authorise { lease: 1, lines: lines() });
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

fn card() -> CardDetails {
    CardDetails { number: "4111111111111111".to_owned(), exp: "12/79".to_owned(), name: "Bea".to_owned() }
}

fn drive() -> Driver {
    let cart = vec![line("1-1", 2), line("1-2", 1)];
    let (driver, step) = Driver::begin(NOW, "p1".to_owned(), 1, cart, 60_000, card());
    assert_eq!(name(&step), "hold");
    driver
}

fn name(step: &Next) -> &'static str {
    match step {
        Next::Send { op: DatabaseOp::Product(op), .. } => match op {
            ProductOp::Hold { .. } => "hold",
            ProductOp::Sell { .. } => "sell",
            ProductOp::Release { .. } => "release",
            ProductOp::HoldState { .. } => "look",
            other => panic!("{other:?}"),
        },
        Next::Send { op: DatabaseOp::Customer(op), .. } => match op {
            CustomerOp::Authorise { .. } => "authorise",
            CustomerOp::Complete { .. } => "complete",
            CustomerOp::Undo { .. } => "undo",
            CustomerOp::Closed { .. } => "closed",
            other => panic!("{other:?}"),
        },
        Next::Finished(Ok(_)) => "purchased",
        Next::Finished(Err(_)) => "refused",
    }
}

fn told(step: Next) -> ErrorCode {
    match step {
        Next::Finished(Err(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

fn refused(code: ErrorCode) -> OpResponse {
    OpResponse::Refused(Refusal::new(code, "no"))
}

fn purchased() -> OpResponse {
    OpResponse::Purchased(captured(None).outcome().unwrap())
}

#[test]
fn a_purchase_takes_four_steps() {
    let mut driver = drive();
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Priced(lines()))), "authorise");
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Done)), "sell");
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(HoldState::Sold))), "complete");
    assert_eq!(name(&driver.handle_response(NOW, purchased())), "purchased");
}

#[test]
fn what_cannot_be_is_undone_before_units_go_back() {
    let mut driver = drive();
    assert_eq!(name(&driver.handle_response(NOW, refused(ErrorCode::OutOfStock))), "undo");
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Done)), "release");
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(HoldState::Released))), "closed");
    assert_eq!(told(driver.handle_response(NOW, OpResponse::Done)), ErrorCode::OutOfStock);
    // The hold has expired before it was sold.
    let mut driver = drive();
    driver.handle_response(NOW, OpResponse::Priced(lines()));
    driver.handle_response(NOW, OpResponse::Done);
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(HoldState::Released))), "undo");
}

#[test]
fn a_declined_card_is_told_once_the_units_are_back() {
    for at_the_end in [false, true] {
        let mut driver = drive();
        driver.handle_response(NOW, OpResponse::Priced(lines()));
        if at_the_end {
            driver.handle_response(NOW, OpResponse::Done);
            driver.handle_response(NOW, OpResponse::Hold(HoldState::Sold));
        }
        assert_eq!(name(&driver.handle_response(NOW, refused(ErrorCode::PaymentDeclined))), "release");
        assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(HoldState::Released))), "closed");
        assert_eq!(told(driver.handle_response(NOW, OpResponse::Done)), ErrorCode::PaymentDeclined);
    }
}

#[test]
fn one_without_an_answer_is_asked_again_then_undone() {
    for stage in ["hold", "authorise", "sell"] {
        let mut driver = drive();
        if stage != "hold" {
            driver.handle_response(NOW, OpResponse::Priced(lines()));
        }
        if stage == "sell" {
            driver.handle_response(NOW, OpResponse::Done);
        }
        let mut pauses = Vec::new();
        for _ in 0..3 {
            let step = driver.handle_response(NOW, refused(ErrorCode::Unavailable));
            assert_eq!(name(&step), stage);
            if let Next::Send { after, .. } = step {
                pauses.push(after);
            }
        }
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]) && pauses[0] > Duration::ZERO, "{pauses:?}");
        let late = NOW.plus(FORWARD_TIMEOUT);
        let step = driver.handle_response(late, refused(ErrorCode::Busy));
        assert!(matches!(step, Next::Send { after: Duration::ZERO, .. }), "{step:?}");
        assert_eq!(name(&step), "undo");
        assert_eq!(name(&driver.handle_response(late, OpResponse::Done)), "release");
        assert_eq!(name(&driver.handle_response(late, refused(ErrorCode::Unavailable))), "release");
        assert_eq!(
            told(driver.handle_response(NOW.plus(TOTAL_TIMEOUT), refused(ErrorCode::Unavailable))),
            ErrorCode::Busy
        );
    }
}

#[test]
fn past_the_commit_point_nothing_is_undone() {
    let mut driver = drive();
    driver.handle_response(NOW, OpResponse::Priced(lines()));
    driver.handle_response(NOW, OpResponse::Done);
    driver.handle_response(NOW, OpResponse::Hold(HoldState::Sold));
    assert_eq!(name(&driver.handle_response(NOW.plus(FORWARD_TIMEOUT), refused(ErrorCode::Unavailable))), "complete");
    let Next::Finished(Err(refusal)) = driver.handle_response(NOW.plus(TOTAL_TIMEOUT), refused(ErrorCode::Unavailable))
    else {
        panic!("it goes on for ever")
    };
    assert!(refusal.code == ErrorCode::Unavailable && refusal.message.contains("not known"), "{refusal:?}");
}

#[test]
fn one_that_lost_its_lease_stops() {
    let mut driver = drive();
    driver.handle_response(NOW, OpResponse::Priced(lines()));
    assert_eq!(told(driver.handle_response(NOW, refused(ErrorCode::Forbidden))), ErrorCode::Unavailable);
    let mut driver = drive();
    assert_eq!(name(&driver.handle_response(NOW, refused(ErrorCode::OutOfStock))), "undo");
    assert_eq!(told(driver.handle_response(NOW, refused(ErrorCode::Forbidden))), ErrorCode::OutOfStock);
}

#[test]
fn whoever_takes_over_goes_by_what_is_sold() {
    let orphan = |is_authorised, is_undone| OrphanedPurchase {
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
    assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(HoldState::Released))), "closed");
    for (hold, next) in [
        (HoldState::Sold, "complete"),
        (HoldState::Held, "undo"),
        (HoldState::Released, "undo"),
        (HoldState::Unknown, "undo"),
    ] {
        let (mut driver, step) = Driver::take_over(NOW, orphan(true, false));
        assert_eq!(name(&step), "look");
        assert_eq!(name(&driver.handle_response(NOW, OpResponse::Hold(hold))), next);
    }
    // The driver cannot know whether the units are sold, so it does nothing.
    let (mut driver, _) = Driver::take_over(NOW, orphan(true, false));
    assert_eq!(name(&driver.handle_response(NOW.plus(FORWARD_TIMEOUT), refused(ErrorCode::Unavailable))), "look");
    assert_eq!(
        told(driver.handle_response(NOW.plus(TOTAL_TIMEOUT), refused(ErrorCode::Unavailable))),
        ErrorCode::Unavailable
    );
}

#[test]
fn answers_are_read_by_what_was_asked() {
    let hold =
        DatabaseOp::Product(ProductOp::Hold { purchase_id: "p1".to_owned(), lines: Vec::new(), expires_in_ms: 1 });
    let json = serde_json::to_string(&lines()).unwrap();
    assert_eq!(hold.parse_response(Ok(&json)), OpResponse::Priced(lines()));
    let sell = DatabaseOp::Product(ProductOp::Sell { purchase_id: "p1".to_owned() });
    assert_eq!(sell.parse_response(Ok("\"sold\"")), OpResponse::Hold(HoldState::Sold));
    let complete = DatabaseOp::Customer(CustomerOp::Complete { purchase_id: "p1".to_owned(), lease: 1 });
    let OpResponse::Purchased(bought) = purchased() else { panic!("it was") };
    assert_eq!(complete.parse_response(Ok(&serde_json::to_string(&bought).unwrap())), OpResponse::Purchased(bought));
    let closed = DatabaseOp::Customer(CustomerOp::Closed { purchase_id: "p1".to_owned(), lease: 1 });
    assert_eq!(closed.parse_response(Ok("null")), OpResponse::Done);
    assert_eq!(closed.parse_response(Err(why())), OpResponse::Refused(why()));
    for (op, json) in [(&hold, "\"sold\""), (&sell, "[]"), (&complete, "{}")] {
        let OpResponse::Refused(refusal) = op.parse_response(Ok(json)) else { panic!("{json} was taken") };
        assert_eq!(refusal.code, ErrorCode::Unavailable);
    }
}
