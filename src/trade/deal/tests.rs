//! The transitions of a deal.

use super::*;
use crate::model::FeeRate;
use crate::trade::wire::{Amount, DealPhase, DealRequest, ErrorCode, Goods, Notification, RequestKind, Side};

const NOW: Millis = Millis(1_000_000);

struct Table {
    deal: Deal,
    now: Millis,
    mids: u64,
    windows: Windows,
}

fn windows() -> Windows {
    Windows { offer: Duration::from_secs(5), negotiate: Duration::from_secs(10), reserve: Duration::from_secs(120) }
}

/// The posting for the first seller's lamp at 90.00.
fn posting(operation: LedgerOperation) -> DealPosting {
    DealPosting { operation, seller: 0, price: Cents(9_000), fee: Some(Amount(Cents(900))) }
}

impl Table {
    /// A search for a lamp at 100.00 at most among this many sellers.
    fn open(sellers: usize) -> Table {
        let sellers = (0..sellers).map(|n| (Name::new(&format!("s{n}")).unwrap(), true)).collect();
        Table::open_with(sellers)
    }

    fn open_with(sellers: Vec<(Name, bool)>) -> Table {
        let (windows, mut mids) = (windows(), 0);
        let mut next_mid = || {
            mids += 1;
            mids
        };
        let mut context = DealContext { now: NOW, windows: &windows, fee: FeeRate::default(), next_mid: &mut next_mid };
        let (buyer, price) = (Name::new("bob").unwrap(), Cents(10_000));
        let sellers =
            sellers.into_iter().map(|(name, waited_for)| SearchRecipient { name, waited_for, acknowledges: false });
        let sellers = sellers.collect();
        let (deal, _) = Deal::open(1, buyer, 7, 1 << 31, "lamp".into(), "".into(), price, sellers, &mut context);
        Table { deal, now: NOW, mids, windows }
    }

    fn handle(&mut self, event: DealInput) -> Result<DealEffects, RequestError> {
        let before = self.deal.clone();
        let mids = &mut self.mids;
        let mut next_mid = || {
            *mids += 1;
            *mids
        };
        let (now, windows) = (self.now, &self.windows);
        let mut context = DealContext { now, windows, fee: FeeRate::default(), next_mid: &mut next_mid };
        let result = self.deal.handle(event, &mut context);
        if result.is_err() {
            assert_eq!(self.deal, before, "a refused event changed something");
        }
        result
    }

    fn apply_request(
        &mut self,
        party: Party,
        kind: RequestKind,
        amount: Option<i64>,
    ) -> Result<DealEffects, RequestError> {
        let price = Cents(amount.unwrap_or_default());
        let request = match kind {
            RequestKind::Offer => DealRequest::Offer { price, goods: Goods::default() },
            RequestKind::NotAvailable => DealRequest::NotAvailable,
            RequestKind::Accept => DealRequest::Accept { max_price: price },
            RequestKind::Refuse => DealRequest::Refuse { max_price: price },
            RequestKind::Buy => DealRequest::Buy { price },
            RequestKind::Cancel => DealRequest::Cancel,
        };
        self.handle(DealInput::Request { party, item_name: "lamp", request: &request })
    }

    fn seller(&mut self, seller: usize, kind: RequestKind, amount: Option<i64>) -> DealEffects {
        self.apply_request(Party::Seller(seller), kind, amount).unwrap()
    }

    fn offers(&mut self, prices: &[i64]) {
        for (seller, price) in prices.iter().enumerate() {
            self.seller(seller, RequestKind::Offer, Some(*price));
        }
    }

    fn pass(&mut self, ms: u64) -> DealEffects {
        self.now = self.now.plus_ms(ms);
        self.handle(DealInput::Tick).unwrap()
    }

    /// The type of each side's outstanding notification.
    fn told(&self, party: Party) -> String {
        let push = self.deal.outstanding_notification(party).map(|push| serde_json::to_value(push).unwrap());
        push.map_or("-".to_owned(), |push| push["type"].as_str().unwrap().to_owned())
    }

    fn all_told(&self) -> Vec<String> {
        self.deal.parties().map(|party| self.told(party)).collect()
    }

    fn code(&mut self, party: Party, kind: RequestKind, amount: Option<i64>) -> ErrorCode {
        self.apply_request(party, kind, amount).unwrap_err().code
    }

    fn phase(&self, party: Party) -> (DealPhase, String) {
        let status = self.deal.status(party, self.now).unwrap();
        (status.state, status.reason.as_deref().unwrap_or("").to_owned())
    }

    fn settled_until(&mut self, payment: PaymentProgress) {
        self.offers(&[9_000, 9_500]);
        self.apply_request(Party::Buyer, RequestKind::Buy, Some(9_000)).unwrap();
        if payment >= PaymentProgress::Authorised {
            assert_eq!(self.handle(DealInput::Authorised).unwrap().posting, Some(posting(LedgerOperation::Authorise)));
        }
        if payment >= PaymentProgress::Shipped {
            assert_eq!(self.handle(DealInput::Shipped).unwrap().posting, None);
        }
    }
}

#[test]
fn nobody_to_ask_is_not_available_at_once() {
    let table = Table::open(0);
    assert_eq!(table.all_told(), ["NOT_AVAILABLE"]);
    assert_eq!(table.phase(Party::Buyer), (DealPhase::Cancelled, "NOT_AVAILABLE".to_owned()));
}

#[test]
fn the_cheapest_offer_is_reserved_as_soon_as_all_have_answered() {
    let mut table = Table::open(4);
    assert_eq!(table.all_told(), ["-", "SEARCH", "SEARCH", "SEARCH", "SEARCH"]);
    table.seller(0, RequestKind::Offer, Some(9_000));
    table.seller(1, RequestKind::NotAvailable, None);
    table.seller(2, RequestKind::Offer, Some(8_000));
    assert!(matches!(table.deal.state(), DealState::Searching { .. }));
    // A later offer at an equal price does not win.
    table.seller(3, RequestKind::Offer, Some(8_000));
    assert_eq!(table.all_told(), ["FOUND", "RELEASED", "-", "RESERVE", "RELEASED"]);
    assert!(
        matches!(table.deal.outstanding_notification(Party::Buyer), Some(Notification::Found { price: Cents(8_000), seller, rq: 7, .. }) if seller.as_str() == "s2")
    );
    assert_eq!(table.phase(Party::Seller(0)), (DealPhase::Cancelled, "released".to_owned()));
    assert_eq!(table.phase(Party::Seller(2)).0, DealPhase::Reserved);
    assert!(table.deal.status(Party::Seller(1), NOW).is_none(), "who never offered is not listed");
}

#[test]
fn the_window_closes_by_time_and_late_offers_are_refused() {
    let mut table = Table::open(2);
    table.seller(0, RequestKind::Offer, Some(9_000));
    assert!(!table.pass(4_999).deal_changed);
    let effects = table.pass(1);
    assert_eq!(effects.unresponsive, [1]);
    assert_eq!(table.all_told(), ["FOUND", "RESERVE", "-"], "a search is not repeated after its window");
    assert_eq!(table.code(Party::Seller(1), RequestKind::Offer, Some(100)), ErrorCode::WrongState);
    assert_eq!(table.code(Party::Seller(1), RequestKind::NotAvailable, None), ErrorCode::WrongState);
}

#[test]
fn no_offer_is_not_available() {
    let mut table = Table::open(2);
    table.seller(0, RequestKind::NotAvailable, None);
    table.seller(1, RequestKind::NotAvailable, None);
    assert_eq!(table.told(Party::Buyer), "NOT_AVAILABLE");
    let mut table = Table::open(2);
    table.pass(5_000);
    assert_eq!(table.all_told(), ["NOT_AVAILABLE", "-", "-"]);
}

#[test]
fn peers_that_are_not_waited_for_may_still_offer() {
    let names = [("a", true), ("b", false)].map(|(name, waited)| (Name::new(name).unwrap(), waited));
    let mut table = Table::open_with(names.to_vec());
    table.seller(1, RequestKind::Offer, Some(9_000));
    assert!(matches!(table.deal.state(), DealState::Searching { .. }));
    table.seller(0, RequestKind::NotAvailable, None);
    assert!(table.deal.reserved_seller().is_some());
    let table = Table::open_with(vec![(Name::new("b").unwrap(), false)]);
    assert_eq!(table.told(Party::Buyer), "NOT_AVAILABLE", "nobody is waited for");
}

#[test]
fn sellers_above_the_maximum_are_asked_cheapest_first() {
    let mut table = Table::open(3);
    table.offers(&[13_000, 11_000, 12_000]);
    assert_eq!(table.all_told(), ["-", "-", "NEGOTIATE", "-"]);
    assert_eq!(table.code(Party::Seller(0), RequestKind::Accept, Some(10_000)), ErrorCode::WrongState);
    assert_eq!(
        table.code(Party::Seller(1), RequestKind::Accept, Some(11_000)),
        ErrorCode::BadRequest,
        "the price is NEGOTIATE's"
    );
    table.seller(1, RequestKind::Refuse, Some(10_000));
    assert_eq!(table.told(Party::Seller(2)), "NEGOTIATE");
    // A seller that does not answer is passed over when its window closes.
    table.pass(10_000);
    assert_eq!(table.told(Party::Seller(0)), "NEGOTIATE");
    table.seller(0, RequestKind::Accept, Some(10_000));
    assert!(matches!(
        table.deal.outstanding_notification(Party::Buyer),
        Some(Notification::Found { price: Cents(10_000), .. })
    ));
    assert_eq!(table.all_told(), ["FOUND", "RESERVE", "RELEASED", "RELEASED"]);
}

#[test]
fn after_accept_the_price_is_the_maximum_however_it_ends() {
    let accepted = || {
        let mut table = Table::open(1);
        table.offers(&[12_000]);
        table.seller(0, RequestKind::Accept, Some(10_000));
        table
    };
    let price = |table: &Table| table.deal.status(Party::Seller(0), table.now).unwrap().price;
    let mut table = Table::open(1);
    table.offers(&[12_000]);
    assert_eq!(price(&table), Some(Cents(12_000)), "not yet");
    table.seller(0, RequestKind::Refuse, Some(10_000));
    assert_eq!(price(&table), Some(Cents(12_000)), "never");
    let mut table = accepted();
    assert_eq!(price(&table), Some(Cents(10_000)));
    table.pass(120_000);
    assert_eq!((table.phase(Party::Seller(0)).0, price(&table)), (DealPhase::Cancelled, Some(Cents(10_000))));
    let mut table = accepted();
    table.apply_request(Party::Buyer, RequestKind::Cancel, None).unwrap();
    assert_eq!(price(&table), Some(Cents(10_000)));
    let mut table = accepted();
    table.seller(0, RequestKind::Cancel, None);
    assert_eq!((table.phase(Party::Seller(0)).0, price(&table)), (DealPhase::Cancelled, Some(Cents(10_000))));
    let mut table = accepted();
    table.apply_request(Party::Buyer, RequestKind::Buy, Some(10_000)).unwrap();
    table.handle(DealInput::SettlementFailed("declined")).unwrap();
    assert_eq!(price(&table), Some(Cents(10_000)));
    // A request that was answered before is still recognised as a repeat.
    assert!(
        table.apply_request(Party::Seller(0), RequestKind::Offer, Some(12_000)).unwrap().sellers_changed.is_empty()
    );
}

#[test]
fn refusal_by_all_is_not_found_and_releases_all() {
    let mut table = Table::open(2);
    table.offers(&[11_000, 12_000]);
    table.seller(0, RequestKind::Refuse, Some(10_000));
    let effects = table.seller(1, RequestKind::Refuse, Some(10_000));
    assert!(effects.ended);
    assert_eq!(table.all_told(), ["NOT_FOUND", "RELEASED", "RELEASED"]);
    assert_eq!(table.phase(Party::Buyer), (DealPhase::Cancelled, "NOT_FOUND".to_owned()));
}

#[test]
fn five_are_asked_at_most() {
    let mut table = Table::open(7);
    table.offers(&[11_000; 7]);
    for seller in 0..5 {
        assert_eq!(table.told(Party::Seller(seller)), "NEGOTIATE");
        table.seller(seller, RequestKind::Refuse, Some(10_000));
    }
    assert_eq!(table.told(Party::Buyer), "NOT_FOUND");
}

#[test]
fn a_seller_that_cannot_honour_a_reserve_is_replaced() {
    let mut table = Table::open(3);
    table.offers(&[8_000, 9_000, 11_000]);
    table.seller(0, RequestKind::Cancel, None);
    assert!(
        matches!(
            table.deal.outstanding_notification(Party::Buyer),
            Some(Notification::Found { price: Cents(9_000), .. })
        ),
        "a new FOUND"
    );
    assert_eq!(table.told(Party::Seller(1)), "RESERVE");
    assert_eq!(table.phase(Party::Seller(0)), (DealPhase::Cancelled, "cancelled by the seller".to_owned()));
    assert_eq!(
        table.code(Party::Buyer, RequestKind::Buy, Some(8_000)),
        ErrorCode::BadRequest,
        "BUY names the newest price"
    );
    // The third offer is above the maximum, so no seller is left.
    table.seller(1, RequestKind::Cancel, None);
    assert_eq!(table.told(Party::Buyer), "CANCEL");
}

#[test]
fn a_released_seller_may_withdraw_and_is_then_not_asked_again() {
    let mut table = Table::open(2);
    table.offers(&[8_000, 9_000]);
    table.seller(1, RequestKind::Cancel, None);
    table.seller(0, RequestKind::Cancel, None);
    assert_eq!(table.told(Party::Buyer), "CANCEL");
}

#[test]
fn a_sellers_cancel_withdraws_its_offer_or_counts_as_refusal() {
    let mut table = Table::open(2);
    table.seller(0, RequestKind::Offer, Some(8_000));
    assert_eq!(
        table.code(Party::Seller(1), RequestKind::Cancel, None),
        ErrorCode::WrongState,
        "there is nothing to take back"
    );
    table.seller(0, RequestKind::Cancel, None);
    table.seller(1, RequestKind::Offer, Some(9_000));
    assert!(matches!(
        table.deal.outstanding_notification(Party::Buyer),
        Some(Notification::Found { price: Cents(9_000), .. })
    ));

    let mut table = Table::open(2);
    table.offers(&[11_000, 12_000]);
    table.seller(0, RequestKind::Cancel, None);
    assert_eq!(table.told(Party::Seller(1)), "NEGOTIATE");
}

#[test]
fn a_buyers_cancel_tells_each_seller_what_it_must_know() {
    let mut table = Table::open(2);
    table.seller(0, RequestKind::Offer, Some(8_000));
    assert!(table.apply_request(Party::Buyer, RequestKind::Cancel, None).unwrap().ended);
    assert_eq!(table.all_told(), ["-", "RELEASED", "-"]);

    let mut table = Table::open(2);
    table.offers(&[11_000, 12_000]);
    table.apply_request(Party::Buyer, RequestKind::Cancel, None).unwrap();
    assert_eq!(table.all_told(), ["-", "CANCEL", "RELEASED"]);

    let mut table = Table::open(2);
    table.offers(&[8_000, 9_000]);
    table.apply_request(Party::Buyer, RequestKind::Cancel, None).unwrap();
    assert_eq!(table.all_told(), ["-", "CANCEL", "RELEASED"]);
    assert_eq!(table.phase(Party::Seller(0)), (DealPhase::Cancelled, "cancelled by the buyer".to_owned()));
    assert_eq!(table.code(Party::Seller(0), RequestKind::Cancel, None), ErrorCode::WrongState);
}

#[test]
fn a_reservation_that_is_not_bought_runs_out() {
    let mut table = Table::open(2);
    table.offers(&[8_000, 9_000]);
    table.pass(119_999);
    assert!(table.deal.reserved_seller().is_some());
    assert!(table.pass(1).ended);
    assert_eq!(table.all_told(), ["CANCEL", "CANCEL", "RELEASED"]);
    assert_eq!(table.code(Party::Buyer, RequestKind::Buy, Some(8_000)), ErrorCode::WrongState);
}

#[test]
fn after_buy_there_is_no_cancel_and_no_timer() {
    let mut table = Table::open(2);
    table.settled_until(PaymentProgress::Asked);
    assert_eq!(table.deal.deadline(), None);
    assert_eq!(table.code(Party::Buyer, RequestKind::Cancel, None), ErrorCode::WrongState);
    assert_eq!(table.code(Party::Seller(0), RequestKind::Cancel, None), ErrorCode::WrongState);
    assert_eq!(table.code(Party::Seller(1), RequestKind::Cancel, None), ErrorCode::WrongState);
}

#[test]
fn a_payment_goes_step_by_step() {
    let mut table = Table::open(2);
    table.settled_until(PaymentProgress::Asked);
    assert!(table.handle(DealInput::Shipped).is_err() && table.handle(DealInput::Captured).is_err());
    table.handle(DealInput::Authorised).unwrap();
    assert!(table.handle(DealInput::Authorised).is_err() && table.handle(DealInput::Captured).is_err());
    table.handle(DealInput::Shipped).unwrap();
    let effects = table.handle(DealInput::Captured).unwrap();
    assert_eq!((effects.posting, effects.ended), (Some(posting(LedgerOperation::Capture)), true));
    assert_eq!(table.phase(Party::Buyer).0, DealPhase::Completed);
    assert_eq!(table.phase(Party::Seller(0)).0, DealPhase::Completed);
    assert!(table.handle(DealInput::Captured).is_err() && table.handle(DealInput::SettlementFailed("x")).is_err());
}

#[test]
fn a_failed_settlement_gives_back_what_was_taken_and_tells_both() {
    for (payment, money) in [
        (PaymentProgress::Asked, None),
        (PaymentProgress::Authorised, Some(LedgerOperation::Void)),
        (PaymentProgress::Shipped, Some(LedgerOperation::Void)),
    ] {
        let mut table = Table::open(2);
        table.settled_until(payment);
        let effects = table.handle(DealInput::SettlementFailed("declined")).unwrap();
        assert_eq!((effects.posting.map(|posting| posting.operation), effects.ended), (money, true));
        assert_eq!(table.all_told(), ["CANCEL", "CANCEL", "RELEASED"]);
        assert_eq!(table.phase(Party::Buyer), (DealPhase::Cancelled, "declined".to_owned()));
    }
}

#[test]
fn a_request_is_done_once() {
    let mut table = Table::open(2);
    table.seller(0, RequestKind::Offer, Some(8_000));
    let before = table.deal.clone();
    assert!(!table.seller(0, RequestKind::Offer, Some(8_000)).deal_changed);
    assert_eq!(table.deal, before);
    let error = table.apply_request(Party::Seller(0), RequestKind::Offer, Some(7_000)).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (ErrorCode::BadRequest, "rq already used"));
    let other_item =
        DealInput::Request { party: Party::Seller(1), item_name: "lump", request: &DealRequest::NotAvailable };
    assert!(table.handle(other_item).unwrap_err().reason.starts_with("item_name: "));
    assert_eq!(
        table.code(Party::Seller(0), RequestKind::NotAvailable, None),
        ErrorCode::WrongState,
        "one answer to a search"
    );
    table.seller(1, RequestKind::NotAvailable, None);
    // A repeat is recognised whatever has happened since.
    table.apply_request(Party::Buyer, RequestKind::Buy, Some(8_000)).unwrap();
    table.apply_request(Party::Buyer, RequestKind::Buy, Some(8_000)).unwrap();
    assert_eq!(table.apply_request(Party::Buyer, RequestKind::Buy, Some(1)).unwrap_err().reason, "rq already used");
    table.handle(DealInput::SettlementFailed("x")).unwrap();
    assert!(!table.apply_request(Party::Buyer, RequestKind::Buy, Some(8_000)).unwrap().deal_changed);
    assert!(!table.seller(0, RequestKind::Offer, Some(8_000)).deal_changed);
}

#[test]
fn the_sides_have_different_rights() {
    let mut table = Table::open(1);
    for kind in [RequestKind::Offer, RequestKind::NotAvailable, RequestKind::Accept, RequestKind::Refuse] {
        assert_eq!(table.code(Party::Buyer, kind, Some(1)), ErrorCode::WrongState);
    }
    assert_eq!(table.code(Party::Seller(0), RequestKind::Buy, Some(1)), ErrorCode::WrongState);
}

#[test]
fn who_leaves_ends_its_part() {
    // The buyer departs at some point before the settlement. This acts as a CANCEL, and it is notified no more.
    let mut table = Table::open(2);
    table.offers(&[8_000, 9_000]);
    assert!(table.handle(DealInput::Departed(Party::Buyer)).unwrap().ended);
    assert_eq!(table.all_told(), ["-", "CANCEL", "RELEASED"]);
    // A seller that the window waits for departs: the window no longer waits for it.
    let mut table = Table::open(2);
    table.seller(0, RequestKind::Offer, Some(8_000));
    table.handle(DealInput::Departed(Party::Seller(1))).unwrap();
    assert!(table.deal.reserved_seller().is_some());
    // The chosen seller departs: the next offer is chosen.
    let mut table = Table::open(2);
    table.offers(&[8_000, 9_000]);
    table.handle(DealInput::Departed(Party::Seller(0))).unwrap();
    assert_eq!(table.all_told(), ["FOUND", "-", "RESERVE"]);
    // The negotiating seller departs: the next one is asked.
    let mut table = Table::open(2);
    table.offers(&[11_000, 12_000]);
    table.handle(DealInput::Departed(Party::Seller(0))).unwrap();
    assert_eq!(table.all_told(), ["-", "-", "NEGOTIATE"]);
}

#[test]
fn pushes_stand_until_acknowledged_or_overtaken() {
    let mut table = Table::open(1);
    let search = table.deal.outstanding_mid(Party::Seller(0)).unwrap();
    assert!(!table.deal.acknowledge(Party::Seller(0), search + 1));
    assert!(!table.deal.acknowledge(Party::Buyer, search));
    table.seller(0, RequestKind::Offer, Some(8_000));
    assert!(!table.deal.acknowledge(Party::Seller(0), search));
    let reserve = table.deal.outstanding_mid(Party::Seller(0)).unwrap();
    assert_ne!(reserve, search);
    assert!(table.deal.acknowledge(Party::Seller(0), reserve));
    assert!(!table.deal.acknowledge(Party::Seller(0), reserve));
    assert_eq!(table.told(Party::Seller(0)), "-");
}

#[test]
fn a_restart_gives_time_but_never_a_longer_window() {
    let mut table = Table::open(1);
    let until = |table: &Table| match table.deal.state() {
        DealState::Searching { until } | DealState::Reserved { until, .. } => *until,
        state => panic!("{state:?}"),
    };
    table.deal.resume(NOW.plus_ms(100), &windows());
    assert_eq!(until(&table), NOW.plus_ms(5_100), "at least 5 s more");
    table.seller(0, RequestKind::Offer, Some(8_000));
    table.deal.resume(NOW.plus_ms(100_000), &windows());
    assert_eq!(until(&table), NOW.plus_ms(120_000), "the deadline holds");
    table.deal.resume(NOW.plus_ms(200_000), &windows());
    assert_eq!(until(&table), NOW.plus_ms(205_000));
    table.deal.resume(Millis(500_000), &windows());
    assert_eq!(until(&table), Millis(620_000), "the clock was set back: the full window, no more");
}

#[test]
fn rows_hold_all_of_it() {
    let mut table = Table::open(3);
    table.offers(&[8_000, 9_000, 12_000]);
    table.apply_request(Party::Buyer, RequestKind::Buy, Some(8_000)).unwrap();
    assert_eq!(table.deal.fee(), Some(Amount(Cents(800))));
    let row: Deal = serde_json::from_str(&serde_json::to_string(&table.deal).unwrap()).unwrap();
    let sellers = table.deal.sellers().iter();
    let sellers = sellers.map(|side| serde_json::from_str(&serde_json::to_string(side).unwrap()).unwrap()).collect();
    assert_eq!(Deal::from_rows(row, sellers), table.deal);

    // A fee of zero is recorded as well.
    let mut table = Table::open(1);
    table.offers(&[1]);
    table.apply_request(Party::Buyer, RequestKind::Buy, Some(1)).unwrap();
    assert_eq!(table.deal.fee(), Some(Amount(Cents(0))));
    let row: Deal = serde_json::from_str(&serde_json::to_string(&table.deal).unwrap()).unwrap();
    assert_eq!(row.fee(), table.deal.fee());
}

#[test]
fn who_acknowledges_and_does_not_acknowledge_a_search_is_not_waited_for() {
    let asked =
        |name: &str, acknowledges| SearchRecipient { name: Name::new(name).unwrap(), waited_for: true, acknowledges };
    let open = |sellers: Vec<SearchRecipient>| {
        let mut table = Table::open(0);
        let (windows, mut mids) = (windows(), 100);
        let mut next_mid = || {
            mids += 1;
            mids
        };
        let mut context = DealContext { now: NOW, windows: &windows, fee: FeeRate::default(), next_mid: &mut next_mid };
        let buyer = Name::new("bob").unwrap();
        let (deal, _) =
            Deal::open(1, buyer, 7, 1 << 31, "lamp".into(), "".into(), Cents(10_000), sellers, &mut context);
        table.deal = deal;
        table.mids = 200;
        table
    };
    // The absent recipient is not waited for once that is known.
    let mut table = open(vec![asked("gone", true)]);
    assert_eq!(table.deal.deadline(), Some(NOW.plus_ms(1_500)));
    table.pass(1_499);
    assert_eq!(table.phase(Party::Buyer).0, DealPhase::Searching);
    assert!(table.pass(1).ended);
    // One has acknowledged the search and is thinking; one that never acknowledges may be present as well.
    let mut table = open(vec![asked("slow", true), asked("mute", false), asked("gone", true)]);
    let mid = table.deal.outstanding_mid(Party::Seller(0)).unwrap();
    assert!(table.deal.acknowledge(Party::Seller(0), mid));
    table.pass(1_500);
    assert_eq!(table.deal.deadline(), Some(NOW.plus_ms(5_000)), "the window is as long as it was");
    table.seller(1, RequestKind::NotAvailable, None);
    assert_eq!(table.phase(Party::Buyer).0, DealPhase::Searching, "it is waited for");
    // The absent seller is back in time, so its offer counts.
    table.seller(2, RequestKind::Offer, Some(9_000));
    table.seller(0, RequestKind::NotAvailable, None);
    assert_eq!(table.deal.reserved_seller(), Some(Party::Seller(2)));
    // After a restart the search is sent again and its acknowledgements are due anew.
    let mut table = open(vec![asked("gone", true)]);
    table.deal.resume(NOW.plus_ms(1_000), &windows());
    assert_eq!(table.deal.deadline(), Some(NOW.plus_ms(2_500)));
}

#[test]
fn what_is_really_offered_is_told_and_belongs_to_the_offer() {
    let mut table = Table::open(2);
    let goods = Goods { item: Some("Brass desk lamp".into()), description: Some("green shade".into()) };
    let offer = |table: &mut Table, goods: &Goods| {
        let request = DealRequest::Offer { price: Cents(8_000), goods: goods.clone() };
        table.handle(DealInput::Request { party: Party::Seller(0), item_name: "lamp", request: &request })
    };
    offer(&mut table, &goods).unwrap();
    assert!(!offer(&mut table, &goods).unwrap().deal_changed, "a repeat");
    assert_eq!(offer(&mut table, &Goods::default()).unwrap_err().reason, "rq already used");
    let other = Goods { item: Some("Brass lamp".into()), ..goods.clone() };
    assert_eq!(offer(&mut table, &other).unwrap_err().reason, "rq already used");
    table.seller(1, RequestKind::Offer, Some(9_000));
    let Some(Notification::Found { offer_item, offer_description, .. }) =
        table.deal.outstanding_notification(Party::Buyer)
    else {
        panic!()
    };
    assert_eq!((offer_item, offer_description), (goods.item.clone(), goods.description.clone()));
    let shown = |table: &Table, party| {
        let status = table.deal.status(party, table.now).unwrap();
        (status.offer_item, status.offer_description)
    };
    let both = (goods.item.clone(), goods.description.clone());
    assert_eq!(shown(&table, Party::Buyer), both);
    assert_eq!(shown(&table, Party::Seller(0)), both);
    assert_eq!(shown(&table, Party::Seller(1)), (None, None), "its own, of which it said nothing");
    table.seller(0, RequestKind::Cancel, None);
    assert_eq!(shown(&table, Party::Buyer), (None, None), "the other seller's");
}

#[test]
fn who_could_not_be_reached_reads_where_and_the_other_reads_whom() {
    for (side, party, other) in
        [(Side::Buyer, Party::Buyer, Party::Seller(0)), (Side::Seller, Party::Seller(0), Party::Buyer)]
    {
        let mut table = Table::open(2);
        table.settled_until(PaymentProgress::Asked);
        table.handle(DealInput::Unreachable { side, reason: "lost it", detail: "at 192.0.2.1:9" }).unwrap();
        let reason = |party| match table.deal.outstanding_notification(party) {
            Some(Notification::Cancel { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!((&*reason(party), &*reason(other)), ("at 192.0.2.1:9", "lost it"));
        assert_eq!(table.phase(other).1, "lost it");
    }
}
