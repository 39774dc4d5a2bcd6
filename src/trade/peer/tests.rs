use proptest::prelude::*;

use super::*;
use crate::trade::wire::{DealPhase, DealRequest, DealStatus, ErrorCode};

mod reconciliation;
use reconciliation::{Disk, run};

const NOW: Millis = Millis(1_000_000);
const SIDE: u64 = FIRST_SERVER_NUMBER + 7;

fn lamp(quantity: u64) -> Item {
    Item::new("Desk lamp", Cents(2_000), Cents(1_500), quantity, "brass, green glass shade").unwrap()
}

fn core_with_lamps(quantity: u64) -> PeerCore {
    let mut core = PeerCore::new(PeerSnapshot::default(), false);
    core.handle(NOW, PeerInput::Stock(vec![lamp(quantity)])).unwrap();
    core
}

fn step(core: &mut PeerCore, input: PeerInput) -> PeerEffects {
    core.handle(NOW, input).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn search(mid: u64, rq: u64, item_name: &str) -> PeerInput {
    PeerInput::Notification(Notification::Search { rq, mid, item_name: item_name.into(), description: "".into() })
}

fn reserve(mid: u64, rq: u64, price: i64) -> PeerInput {
    PeerInput::Notification(Notification::Reserve { rq, mid, item_name: "lamp".into(), price: Cents(price) })
}

fn released(mid: u64, rq: u64) -> PeerInput {
    PeerInput::Notification(Notification::Released { rq, mid, item_name: "lamp".into() })
}

fn negotiate(mid: u64, rq: u64, max_price: i64) -> PeerInput {
    PeerInput::Notification(Notification::Negotiate { rq, mid, item_name: "lamp".into(), max_price: Cents(max_price) })
}

fn cancel(mid: u64, rq: u64) -> PeerInput {
    PeerInput::Notification(Notification::Cancel { rq, mid, item_name: "lamp".into(), reason: "why not".into() })
}

fn found(mid: u64, rq: u64, price: i64) -> PeerInput {
    PeerInput::Notification(Notification::Found {
        rq,
        mid,
        item_name: "lamp".into(),
        price: Cents(price),
        seller: name("bob"),
        offer_item: None,
        offer_description: None,
    })
}

fn error(rq: u64, body: RequestBody, code: ErrorCode) -> PeerInput {
    PeerInput::ResponseReceived {
        rq,
        body,
        response: Ok(Response::Error { rq: Some(rq), code, reason: "no".to_owned() }),
    }
}

fn asks(effects: &PeerEffects) -> Vec<String> {
    effects.requests.iter().map(|(_, body)| body.type_name().to_owned()).collect()
}

/// A STATUS response to the STATUS request among these effects.
fn deals(effects: &PeerEffects, deals: Vec<DealStatus>, more: bool) -> PeerInput {
    let (rq, body) =
        effects.requests.iter().find(|(_, body)| matches!(body, RequestBody::Status { .. })).unwrap().clone();
    PeerInput::ResponseReceived { rq, body, response: Ok(Response::Deals { rq, deals, more }) }
}

fn to() -> ShipTo {
    ShipTo { name: name("bert"), address: "Buyer Lane 7".to_owned() }
}

fn status(rq: u64, state: DealPhase, price: i64, reason: Option<&str>) -> DealStatus {
    let side = if rq >= FIRST_SERVER_NUMBER { Side::Seller } else { Side::Buyer };
    let (price, reason) = (Some(Cents(price)), reason.map(Into::into));
    DealStatus {
        rq,
        side,
        item_name: "lamp".into(),
        state,
        price,
        reason,
        offer_item: None,
        offer_description: None,
        ends_in_ms: None,
    }
}

fn find(core: &mut PeerCore) -> u64 {
    let effects =
        step(core, PeerInput::Find { item_name: "lamp".into(), description: "".into(), max_price: Cents(2_500) });
    let (rq, body) = effects.requests[0].clone();
    step(core, PeerInput::ResponseReceived { rq, body, response: Ok(Response::Searching { rq, peers: 1 }) });
    rq
}

#[test]
fn a_search_is_answered_with_the_price_while_a_unit_is_free() {
    let mut core = core_with_lamps(1);
    let effects = step(&mut core, search(1, SIDE, "lamp"));
    assert!(matches!(
        effects.requests[..],
        [(SIDE, RequestBody::Deal { request: DealRequest::Offer { price: Cents(2_000), .. }, .. })]
    ));
    assert_eq!((effects.acks.as_slice(), core.bound_units("desk LAMP")), (&[1][..], 1));
    assert!(effects.changes.iter().any(|change| matches!(change, PeerChange::Sale(_))), "stored before it is sent");
    assert_eq!(asks(&step(&mut core, search(2, SIDE + 1, "lamp"))), ["NOT_AVAILABLE"]);
    assert_eq!(asks(&step(&mut core_with_lamps(1), search(1, SIDE, "chair"))), ["NOT_AVAILABLE"]);
    assert_eq!(asks(&step(&mut core_with_lamps(0), search(1, SIDE, "lamp"))), ["NOT_AVAILABLE"]);
}

#[test]
fn names_match_by_whole_words_whatever_their_case() {
    let mut core = core_with_lamps(5);
    let dear = Item::new("Lamp", Cents(9_000), Cents(9_000), 1, "").unwrap();
    let cheap = Item::new("Table lamp", Cents(1_900), Cents(1_900), 1, "white").unwrap();
    step(&mut core, PeerInput::Stock(vec![dear, cheap]));
    for (nth, (wanted, description, item)) in [
        ("lamp", "", Some("Lamp")),
        ("LAMP desk", "", Some("Desk lamp")),
        ("brass lamp", "", Some("Desk lamp")),
        ("glass", "", Some("Desk lamp")),
        ("lam", "", None),
        ("lamp post", "green glass", None),
        ("?!", "", None),
        // The item named "Lamp" is sold out: now the cheaper one matches, unless the description tells which.
        ("lamp", "", Some("Table lamp")),
        ("lamp", "green, please", Some("Desk lamp")),
    ]
    .into_iter()
    .enumerate()
    {
        let push = Notification::Search {
            rq: SIDE + nth as u64,
            mid: nth as u64,
            item_name: wanted.into(),
            description: description.into(),
        };
        step(&mut core, PeerInput::Notification(push));
        assert_eq!(core.sale(SIDE + nth as u64).map(|sale| sale.item.as_str()), item, "{wanted} {description}");
    }
}

#[test]
fn a_push_is_acted_on_once_and_every_copy_acknowledged() {
    let mut core = core_with_lamps(3);
    step(&mut core, search(1, SIDE, "lamp"));
    let again = step(&mut core, search(1, SIDE, "lamp"));
    assert!(again.requests.is_empty() && again.changes.is_empty() && again.acks == [1]);
    // Even if the number of the notification were forgotten, the deal is known.
    assert!(step(&mut core, search(9, SIDE, "lamp")).requests.is_empty());
    assert_eq!(core.bound_units("desk lamp"), 1);
}

#[test]
fn a_maximum_at_or_above_the_minimum_price_is_accepted() {
    for (max_price, response, state) in [
        (1_500, "ACCEPT", SaleState::Accepted),
        (1_800, "ACCEPT", SaleState::Accepted),
        (1_499, "REFUSE", SaleState::Offered),
    ] {
        let mut core = core_with_lamps(1);
        step(&mut core, search(1, SIDE, "lamp"));
        assert_eq!(asks(&step(&mut core, negotiate(2, SIDE, max_price))), [response]);
        assert_eq!(core.sale(SIDE).unwrap().state, state);
        assert_eq!(core.bound_units("desk lamp"), 1);
    }
    assert_eq!(asks(&step(&mut core_with_lamps(1), negotiate(2, SIDE, 9_999))), ["REFUSE"], "no such offer");
}

#[test]
fn released_frees_the_unit_and_reserve_binds_it_again_if_there_is_one() {
    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, released(2, SIDE));
    assert_eq!(core.bound_units("desk lamp"), 0);
    assert!(step(&mut core, reserve(3, SIDE, 2_000)).requests.is_empty());
    assert_eq!((core.bound_units("desk lamp"), core.sale(SIDE).unwrap().state), (1, SaleState::Reserved));
    // A RELEASED that was overtaken by the RESERVE is outdated.
    step(&mut core, released(4, SIDE));
    assert_eq!(core.bound_units("desk lamp"), 1);

    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, released(2, SIDE));
    step(&mut core, search(3, SIDE + 1, "lamp"));
    assert_eq!(asks(&step(&mut core, reserve(4, SIDE, 2_000))), ["CANCEL"], "bound elsewhere");
    assert_eq!((core.bound_units("desk lamp"), core.sale(SIDE).unwrap().state), (1, SaleState::Over));
}

#[test]
fn nothing_is_sold_below_what_was_agreed() {
    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    assert_eq!(asks(&step(&mut core, reserve(2, SIDE, 1_999))), ["CANCEL"]);
    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, negotiate(2, SIDE, 1_600));
    assert!(asks(&step(&mut core, reserve(3, SIDE, 1_600))).is_empty());
    assert_eq!(asks(&step(&mut core_with_lamps(1), reserve(2, SIDE, 9_000))), ["CANCEL"], "a deal that is not ours");
}

#[test]
fn a_cancel_unbinds_and_what_it_overtook_is_old() {
    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, cancel(5, SIDE));
    assert_eq!(core.bound_units("desk lamp"), 0);
    let late = step(&mut core, reserve(4, SIDE, 2_000));
    assert!(late.requests.is_empty() && late.acks == [4]);
    assert_eq!((core.bound_units("desk lamp"), core.sale(SIDE).unwrap().state), (0, SaleState::Over));
}

#[test]
fn an_offer_that_the_server_refuses_binds_nothing_but_one_it_could_not_store_does() {
    for (code, bound) in [
        (ErrorCode::WrongState, 0),
        (ErrorCode::UnknownDeal, 0),
        (ErrorCode::NotRegistered, 0),
        (ErrorCode::Unavailable, 1),
        (ErrorCode::Busy, 1),
    ] {
        let mut core = core_with_lamps(1);
        let (rq, body) = step(&mut core, search(1, SIDE, "lamp")).requests[0].clone();
        step(&mut core, error(rq, body, code));
        assert_eq!(core.bound_units("desk lamp"), bound, "{code:?}");
    }
}

#[test]
fn a_sale_goes_by_the_book() {
    let mut core = core_with_lamps(2);
    step(&mut core, search(1, SIDE, "lamp"));
    let early = core.check_inform(SIDE, "lamp", Cents(2_000)).unwrap_err();
    assert!(early.is_retryable);
    assert!(core.handle(NOW, PeerInput::Ship { rq: SIDE, price: Cents(2_000), to: to() }).is_err(), "not reserved");
    step(&mut core, reserve(2, SIDE, 2_000));
    assert_eq!(core.check_inform(SIDE, "lamp", Cents(2_000)), Ok(Side::Seller));
    assert!(!core.check_inform(SIDE, "lamp", Cents(1_999)).unwrap_err().is_retryable);
    assert!(!core.check_inform(SIDE, "Lamp", Cents(2_000)).unwrap_err().is_retryable);
    assert!(!core.check_inform(SIDE + 1, "lamp", Cents(2_000)).unwrap_err().is_retryable);
    assert!(core.handle(NOW, PeerInput::Ship { rq: SIDE, price: Cents(1), to: to() }).is_err(), "another price");
    let shipped = step(&mut core, PeerInput::Ship { rq: SIDE, price: Cents(2_000), to: to() });
    assert!(matches!(&shipped.changes[..], [PeerChange::Sale(sale)] if sale.state == SaleState::Shipped));
    assert!(
        core.handle(NOW, PeerInput::Deal { rq: SIDE, command: DealCommand::Cancel }).is_err(),
        "no way back for us"
    );
    let settled = step(&mut core, PeerInput::Settled { rq: SIDE, payout: Amount(Cents(1_800)) });
    assert!(matches!(settled.events[..], [PeerEvent::Sold { payout: Some(Amount(Cents(1_800))), .. }]));
    let item = core.items().next().unwrap();
    assert_eq!((item.quantity, item.sold, core.bound_units("desk lamp")), (1, 1, 0));
    // The recipient is kept until the goods are marked as sent.
    assert_eq!(core.sale(SIDE).unwrap().ship_to, Some(to()));
    assert!(!format!("{:?}", core.sale(SIDE)).contains("Lane"), "an address is in no log");
    step(&mut core, PeerInput::Sent { rq: SIDE });
    assert_eq!(core.sale(SIDE).unwrap().ship_to, None);
    assert!(core.handle(NOW, PeerInput::Sent { rq: SIDE }).is_err(), "once");
    // A repeated SETTLED sells one unit only; a late CANCEL changes nothing.
    step(&mut core, PeerInput::Settled { rq: SIDE, payout: Amount(Cents(1_800)) });
    step(&mut core, cancel(9, SIDE));
    assert_eq!((core.items().next().unwrap().quantity, core.sale(SIDE).unwrap().state), (1, SaleState::Sold));
}

#[test]
fn a_settlement_that_fails_after_shipped_frees_the_unit() {
    let mut core = core_with_lamps(1);
    for input in
        [search(1, SIDE, "lamp"), reserve(2, SIDE, 2_000), PeerInput::Ship { rq: SIDE, price: Cents(2_000), to: to() }]
    {
        step(&mut core, input);
    }
    assert_eq!(core.bound_units("desk lamp"), 1);
    step(&mut core, PeerInput::SettlementCancelled { rq: SIDE, reason: "the bank refused".into() });
    assert_eq!((core.bound_units("desk lamp"), core.items().next().unwrap().quantity), (0, 1));
}

#[test]
fn a_purchase_goes_by_the_book() {
    let mut core = core_with_lamps(0);
    let rq = find(&mut core);
    assert!(
        core.handle(NOW, PeerInput::Deal { rq, command: DealCommand::Buy }).unwrap_err().0.contains("nothing is found")
    );
    step(&mut core, found(5, rq, 2_000));
    // The seller cancelled, so the next offer is chosen.
    step(&mut core, found(6, rq, 2_400));
    // Which of two different FOUNDs is valid is asked of the server.
    let effects = step(&mut core, found(4, rq, 1_000));
    assert_eq!(asks(&effects), ["STATUS"]);
    step(&mut core, deals(&effects, vec![status(rq, DealPhase::Reserved, 2_400, None)], false));
    assert!(core.check_inform(rq, "lamp", Cents(2_400)).is_err(), "not bought yet");
    let buy = step(&mut core, PeerInput::Deal { rq, command: DealCommand::Buy });
    assert!(matches!(
        buy.requests[..],
        [(_, RequestBody::Deal { request: DealRequest::Buy { price: Cents(2_400), .. }, .. })]
    ));
    assert_eq!(core.check_inform(rq, "lamp", Cents(2_400)), Ok(Side::Buyer));
    assert!(core.check_inform(rq, "lamp", Cents(2_000)).is_err());
    assert!(core.handle(NOW, PeerInput::Deal { rq, command: DealCommand::Buy }).is_err(), "once");
    let receipt = PeerInput::Receipt { rq, item_name: "lamp".into(), price: Cents(2_400), seller: name("bob") };
    assert!(matches!(step(&mut core, receipt).events[..], [PeerEvent::Bought { price: Cents(2_400), .. }]));
    step(&mut core, cancel(7, rq));
    assert_eq!(core.purchase(rq).unwrap().state, PurchaseState::Bought);
}

#[test]
fn a_refused_buy_may_be_tried_again_and_the_price_is_asked_for() {
    let mut core = core_with_lamps(0);
    let rq = find(&mut core);
    step(&mut core, found(5, rq, 2_000));
    let buy = step(&mut core, PeerInput::Deal { rq, command: DealCommand::Buy }).requests[0].clone();
    let effects = step(&mut core, error(rq, buy.1, ErrorCode::BadRequest));
    assert_eq!((asks(&effects), core.purchase(rq).unwrap().state), (vec!["STATUS".to_owned()], PurchaseState::Found));
    step(&mut core, deals(&effects, vec![status(rq, DealPhase::Reserved, 2_300, None)], false));
    let buy = step(&mut core, PeerInput::Deal { rq, command: DealCommand::Buy });
    assert!(matches!(
        buy.requests[..],
        [(_, RequestBody::Deal { request: DealRequest::Buy { price: Cents(2_300), .. }, .. })]
    ));
}

#[test]
fn auto_buy_buys_what_is_found_but_never_above_the_maximum() {
    let mut core = PeerCore::new(PeerSnapshot::default(), true);
    let rq = find(&mut core);
    assert_eq!(asks(&step(&mut core, found(5, rq, 2_500))), ["BUY"]);
    let rq = find(&mut core);
    assert_eq!(asks(&step(&mut core, found(6, rq, 2_501))), ["CANCEL"]);
    let rq = find(&mut core);
    step(&mut core, PeerInput::Deal { rq, command: DealCommand::Cancel });
    assert_eq!(asks(&step(&mut core, found(7, rq, 2_000))), ["CANCEL"], "not wanted any more");
}

#[test]
fn a_search_that_fails_is_over() {
    for (push, reason) in [
        (Notification::NotFound { rq: 1, mid: 3, item_name: "lamp".into(), max_price: Cents(2_500) }, "NOT_FOUND"),
        (Notification::NotAvailable { rq: 1, mid: 3, item_name: "lamp".into() }, "NOT_AVAILABLE"),
    ] {
        let mut core = core_with_lamps(0);
        assert_eq!(find(&mut core), 1);
        step(&mut core, PeerInput::Notification(push));
        let purchase = core.purchase(1).unwrap();
        assert_eq!((purchase.state, purchase.reason.as_deref()), (PurchaseState::Over, Some(reason)));
        assert!(core.handle(NOW, PeerInput::Deal { rq: 1, command: DealCommand::Cancel }).is_err());
        step(&mut core, found(4, 1, 1));
        assert_eq!(core.purchase(1).unwrap().state, PurchaseState::Over);
    }
}

#[test]
fn stock_is_never_less_than_what_is_bound() {
    let mut core = core_with_lamps(2);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, search(2, SIDE + 1, "lamp"));
    assert!(core.handle(NOW, PeerInput::Stock(vec![lamp(1)])).unwrap_err().0.contains("2 of"));
    assert!(core.handle(NOW, PeerInput::Remove { name: "desk lamp".to_owned() }).is_err());
    step(&mut core, cancel(3, SIDE));
    step(&mut core, cancel(4, SIDE + 1));
    step(&mut core, PeerInput::Remove { name: "desk lamp".to_owned() });
    assert!(core.handle(NOW, PeerInput::Remove { name: "desk lamp".to_owned() }).is_err());
}

#[test]
fn who_leaves_has_no_open_deals() {
    let mut core = core_with_lamps(1);
    step(&mut core, search(1, SIDE, "lamp"));
    let rq = find(&mut core);
    step(&mut core, PeerInput::Departed);
    assert!(core.bound_units("desk lamp") == 0 && core.purchase(rq).unwrap().is_over());
}

proptest! {
    /// Holds for whatever the server or the network sends, in any order, with crashes in between.
    #[test]
    fn never_more_is_promised_than_there_is(
        stock in 0u64..4,
        script in prop::collection::vec((0u8..10, 0u64..6, 0u64..24, 1_400i64..2_100), 1..80),
    ) {
        let mut disk = Disk::default();
        let mut core = PeerCore::new(PeerSnapshot::default(), true);
        run(&mut disk, &mut core, PeerInput::Stock(vec![lamp(stock)]));
        for (kind, nth, mid, price) in script {
            let rq = SIDE + nth;
            let input = match kind {
                0 | 1 => search(mid, rq, "lamp"),
                2 => negotiate(mid, rq, price),
                3 => reserve(mid, rq, price.max(1_500)),
                4 => reserve(mid, rq, 2_000),
                5 => released(mid, rq),
                6 => cancel(mid, rq),
                7 => PeerInput::Settled { rq, payout: Amount(Cents(price)) },
                8 => PeerInput::Ship { rq, price: Cents(2_000), to: to() },
                _ => {
                    core = disk.restart(true);
                    let status_requests = run(&mut disk, &mut core, PeerInput::AskStatus);
                    let phase = [DealPhase::Completed, DealPhase::Reserved, DealPhase::Cancelled][nth as usize % 3];
                    deals(&status_requests, vec![status(rq, phase, 2_000, Some("released"))], mid % 2 == 0)
                }
            };
            if let Ok(effects) = core.handle(NOW, input) {
                disk.store(&effects);
            }
            let sold: u64 = core.items().map(|item| item.sold).sum();
            let left: u64 = core.items().map(|item| item.quantity).sum();
            prop_assert_eq!(left + sold, stock);
            prop_assert!(core.bound_units("desk lamp") <= left);
            let states = core.sales().filter(|sale| sale.state == SaleState::Sold).count() as u64;
            prop_assert!(states >= sold);
        }
    }
}

#[test]
fn a_peer_offers_under_its_items_own_words_and_a_buyer_is_shown_them() {
    let mut core = core_with_lamps(1);
    let effects = step(&mut core, search(1, SIDE, "lamp"));
    let [(SIDE, RequestBody::Deal { request: DealRequest::Offer { goods, .. }, .. })] = &effects.requests[..] else {
        panic!("{:?}", effects.requests)
    };
    assert_eq!(goods.item.as_deref(), Some("Desk lamp"));
    assert_eq!(goods.description.as_deref(), Some("brass, green glass shade"));
    let rq = find(&mut core);
    let PeerInput::Notification(Notification::Found { mid, item_name, price, seller, .. }) = found(5, rq, 2_000) else {
        panic!()
    };
    let (offer_item, offer_description) = (Some("Brass lamp".into()), Some("green shade".into()));
    let push = Notification::Found { rq, mid, item_name, price, seller, offer_item, offer_description };
    let effects = step(&mut core, PeerInput::Notification(push));
    let [PeerEvent::Found { offer_item, offer_description, .. }] = &effects.events[..] else {
        panic!("{:?}", effects.events)
    };
    assert_eq!((offer_item.as_deref(), offer_description.as_deref()), (Some("Brass lamp"), Some("green shade")));
    assert_eq!(core.purchase(rq).unwrap().goods.item.as_deref(), Some("Brass lamp"));
}

#[test]
fn who_browses_is_shown_an_offer_and_buys_nothing() {
    let mut core = PeerCore::new(PeerSnapshot::default(), true);
    let effects = step(&mut core, PeerInput::Browse { word: ANYTHING.into() });
    let [(rq, RequestBody::LookingFor { .. })] = effects.requests[..] else { panic!("{:?}", effects.requests) };
    let effects = step(&mut core, found(5, rq, 2_000));
    assert_eq!((asks(&effects), effects.events.len()), (vec!["CANCEL".to_owned()], 0), "also with --auto-buy");
    let seen = core.purchase(rq).unwrap();
    assert_eq!((seen.price, seen.seller.clone()), (Some(Cents(2_000)), Some(name("bob"))));
    // It is the cheapest of all items.
    let mut core = core_with_lamps(1);
    let effects = step(&mut core, search(1, SIDE, ANYTHING));
    assert_eq!(asks(&effects), ["OFFER"]);
}
