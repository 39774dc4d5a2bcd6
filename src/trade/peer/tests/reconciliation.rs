//! What a peer does after a restart, and when STATUS tells what it missed.

use super::*;

#[test]
fn numbers_are_never_used_twice_also_after_a_crash() {
    let mut core = PeerCore::new(PeerSnapshot::default(), false);
    let mut ceiling = 0;
    let mut used = Vec::new();
    for _ in 0..3 {
        for _ in 0..RQ_RESERVATION + 10 {
            let mut effects = PeerEffects::default();
            used.push(core.next_rq(&mut effects).unwrap());
            for change in effects.changes {
                if let PeerChange::Ceiling(stored) = change {
                    ceiling = stored;
                }
            }
            assert!(*used.last().unwrap() < ceiling);
        }
        core = PeerCore::new(PeerSnapshot { ceiling, ..PeerSnapshot::default() }, false);
    }
    assert!(used.is_sorted_by(|a, b| a < b));
    core = PeerCore::new(PeerSnapshot { ceiling: FIRST_SERVER_NUMBER, ..PeerSnapshot::default() }, false);
    assert!(core.next_rq(&mut PeerEffects::default()).is_err());
}

/// A core after a crash has only what its effects have stored.
#[derive(Default)]
pub(super) struct Disk(PeerSnapshot);

impl Disk {
    pub(super) fn store(&mut self, effects: &PeerEffects) {
        for change in &effects.changes {
            match change.clone() {
                PeerChange::Item(item) => {
                    self.0.items.retain(|it| it.name != item.name);
                    self.0.items.push(item);
                }
                PeerChange::DropItem(name) => self.0.items.retain(|it| it.name != name),
                PeerChange::Sale(sale) => {
                    self.0.sales.retain(|it| it.rq != sale.rq);
                    self.0.sales.push(serde_json::from_str(&serde_json::to_string(&sale).unwrap()).unwrap());
                }
                PeerChange::Purchase(it) => {
                    self.0.purchases.retain(|old| old.rq != it.rq);
                    self.0.purchases.push(serde_json::from_str(&serde_json::to_string(&it).unwrap()).unwrap());
                }
                PeerChange::DropDeal(rq) => {
                    self.0.sales.retain(|it| it.rq != rq);
                    self.0.purchases.retain(|it| it.rq != rq);
                }
                PeerChange::Seen { mid, at } => self.0.seen.push((mid, at)),
                PeerChange::DropSeen(mid) => self.0.seen.retain(|(seen, _)| *seen != mid),
                PeerChange::Ceiling(ceiling) => self.0.ceiling = ceiling,
            }
        }
    }

    pub(super) fn restart(&self, auto_buy: bool) -> PeerCore {
        let PeerSnapshot { items, sales, purchases, seen, ceiling } = &self.0;
        let (items, sales, purchases) = (items.clone(), sales.clone(), purchases.clone());
        PeerCore::new(PeerSnapshot { items, sales, purchases, seen: seen.clone(), ceiling: *ceiling }, auto_buy)
    }
}

pub(super) fn run(disk: &mut Disk, core: &mut PeerCore, input: PeerInput) -> PeerEffects {
    let effects = core.handle(NOW, input).unwrap();
    disk.store(&effects);
    effects
}

#[test]
fn a_restarted_peer_squares_its_deals_with_the_server() {
    let mut disk = Disk::default();
    let mut core = PeerCore::new(PeerSnapshot::default(), false);
    run(&mut disk, &mut core, PeerInput::Stock(vec![lamp(9)]));
    for nth in 0..7 {
        run(&mut disk, &mut core, search(nth, SIDE + nth, "lamp"));
    }
    for nth in [3, 4] {
        run(&mut disk, &mut core, reserve(20 + nth, SIDE + nth, 2_000));
        run(&mut disk, &mut core, PeerInput::Ship { rq: SIDE + nth, price: Cents(2_000), to: to() });
    }
    run(&mut disk, &mut core, negotiate(30, SIDE + 6, 1_600));
    let find = PeerInput::Find { item_name: "lamp".into(), description: "".into(), max_price: Cents(2_500) };
    let bought = run(&mut disk, &mut core, find.clone()).requests[0].0;
    let found_one = run(&mut disk, &mut core, find.clone()).requests[0].0;
    let forgotten = run(&mut disk, &mut core, find).requests[0].0;

    let mut core = disk.restart(false);
    assert_eq!(core.bound_units("desk lamp"), 7);
    let again = run(&mut disk, &mut core, search(2, SIDE + 2, "lamp"));
    assert!(again.requests.is_empty() && again.acks == [2], "the mid outlived the restart");
    let status_requests = run(&mut disk, &mut core, PeerInput::AskStatus);
    assert_eq!(asks(&status_requests), ["STATUS"]);
    let response = vec![
        status(SIDE, DealPhase::Searching, 2_000, None),
        status(SIDE + 1, DealPhase::Reserved, 2_000, None),
        status(SIDE + 2, DealPhase::Cancelled, 2_000, Some("released")),
        status(SIDE + 3, DealPhase::Completed, 2_000, None),
        status(SIDE + 4, DealPhase::Settling, 2_000, None),
        status(SIDE + 6, DealPhase::Negotiating, 2_000, None),
        status(bought, DealPhase::Completed, 2_000, None),
        status(found_one, DealPhase::Reserved, 2_200, None),
    ];
    let effects = run(&mut disk, &mut core, deals(&status_requests, response, false));
    assert_eq!(asks(&effects), ["ACCEPT"], "the one that may not have arrived");
    let state = |nth| core.sale(SIDE + nth).unwrap().state;
    assert_eq!(
        (0..7).map(state).collect::<Vec<_>>(),
        [
            SaleState::Offered,
            SaleState::Reserved,
            SaleState::Released,
            SaleState::Sold,
            SaleState::Shipped,
            SaleState::Over, // the OFFER never arrived
            SaleState::Accepted
        ]
    );
    assert_eq!((core.bound_units("desk lamp"), core.items().next().unwrap().quantity), (4, 8));
    assert_eq!(core.purchase(bought).unwrap().state, PurchaseState::Bought);
    assert_eq!(core.purchase(found_one).unwrap().price, Some(Cents(2_200)));
    assert_eq!(core.purchase(forgotten).unwrap().state, PurchaseState::Over);
}

#[test]
fn what_did_not_fit_into_the_answer_is_asked_for_and_a_shipped_unit_is_never_guessed_free() {
    let mut core = core_with_lamps(1);
    for input in
        [search(1, SIDE, "lamp"), reserve(2, SIDE, 2_000), PeerInput::Ship { rq: SIDE, price: Cents(2_000), to: to() }]
    {
        step(&mut core, input);
    }
    let status_requests = step(&mut core, PeerInput::SettlementInterrupted { rq: SIDE });
    assert!(matches!(status_requests.requests[..], [(_, RequestBody::Status { rq_deal: Some(SIDE) })]));
    let mut core_with_more = core;
    let all = step(&mut core_with_more, PeerInput::AskStatus);
    let one = step(&mut core_with_more, deals(&all, vec![], true));
    assert!(matches!(one.requests[..], [(_, RequestBody::Status { rq_deal: Some(SIDE) })]));
    step(&mut core_with_more, deals(&one, vec![], false));
    assert_eq!(core_with_more.sale(SIDE).unwrap().state, SaleState::Unknown);
    assert_eq!(core_with_more.bound_units("desk lamp"), 1, "it may have been paid");
    step(&mut core_with_more, PeerInput::Deal { rq: SIDE, command: DealCommand::Cancel });
    assert_eq!(core_with_more.bound_units("desk lamp"), 0, "a person has found out");
}

#[test]
fn of_two_deals_under_one_number_the_newest_counts() {
    let mut core = PeerCore::new(PeerSnapshot::default(), false);
    let rq = find(&mut core);
    let status_requests = step(&mut core, PeerInput::AskStatus);
    let listed =
        vec![status(rq, DealPhase::Reserved, 2_300, None), status(rq, DealPhase::Cancelled, 2_000, Some("NOT_FOUND"))];
    step(&mut core, deals(&status_requests, listed, false));
    let purchase = core.purchase(rq).unwrap();
    assert_eq!((purchase.state, purchase.price), (PurchaseState::Found, Some(Cents(2_300))));
}

#[test]
fn an_answer_to_status_is_not_held_against_what_came_later() {
    let mut core = core_with_lamps(2);
    let status_requests = step(&mut core, PeerInput::AskStatus);
    step(&mut core, search(1, SIDE, "lamp"));
    step(&mut core, deals(&status_requests, vec![], false));
    assert_eq!(core.bound_units("desk lamp"), 1);
}

#[test]
fn quiet_deals_are_asked_about() {
    let mut core = core_with_lamps(1);
    let (rq, body) = step(&mut core, search(1, SIDE, "lamp")).requests[0].clone();
    step(&mut core, PeerInput::ResponseReceived { rq, body, response: Ok(Response::Offered { rq }) });
    assert!(step(&mut core, PeerInput::Tick).requests.is_empty());
    let later = NOW.plus(Duration::from_secs(60));
    assert_eq!(asks(&core.handle(later, PeerInput::Tick).unwrap()), ["STATUS"]);
    assert!(core.handle(later, PeerInput::Tick).unwrap().requests.is_empty(), "one at a time");
}
