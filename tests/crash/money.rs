//! Checks that bank, ledger, deals and what the peers were told agree after the server has stopped.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use p2s2::internals::bank::{BuiltinGateway, ChargeState};
use rusqlite::Connection;

use crate::claims::{Claims, Roster};

/// Numbers of charges by outcome.
#[derive(Debug, Default)]
pub struct ChargeCounts {
    pub captured: usize,
    pub not_captured: usize,
}

/// Checks the data dir of a server that has stopped in order.
pub fn check(state: &Path, claims: &Claims, roster: &Roster) -> ChargeCounts {
    let gateway = BuiltinGateway::open(state).unwrap();
    let charges = gateway.charges().unwrap();
    gateway.close();
    let trade = Connection::open(state.join("trade.db")).unwrap();
    let healthy: String = trade.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(healthy, "ok");

    // The ledger by charge, step and account.
    let mut ledger: HashMap<String, BTreeMap<i64, BTreeMap<String, i64>>> = HashMap::new();
    let mut balances: BTreeMap<String, i64> = BTreeMap::new();
    each(&trade, "SELECT charge_key, step, account, cents FROM ledger_entry", |row| {
        let (key, step, account, cents): (String, i64, String, i64) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        *balances.entry(account.clone()).or_default() += cents;
        let double = ledger.entry(key.clone()).or_default().entry(step).or_default().insert(account, cents);
        assert_eq!(double, None, "step {step} of {key} was booked twice");
        Ok(())
    });
    assert_eq!(balances.values().sum::<i64>(), 0, "the ledger does not sum to zero: {balances:?}");
    assert_eq!(balances.get("escrow").copied().unwrap_or(0), 0, "something is left in escrow");

    // The log lists every deal.
    let mut items: HashMap<i64, String> = HashMap::new();
    let mut purchases: HashMap<i64, usize> = HashMap::new();
    each(&trade, "SELECT kind, deal, item_name FROM trade_log WHERE kind IN ('search', 'purchase')", |row| {
        let (kind, deal): (String, i64) = (row.get(0)?, row.get(1)?);
        if kind == "search" {
            assert_eq!(items.insert(deal, row.get(2)?), None, "deal {deal} began twice");
        } else {
            *purchases.entry(deal).or_default() += 1;
        }
        Ok(())
    });

    let mut counted = ChargeCounts::default();
    let mut charged: HashMap<&str, i64> = HashMap::new();
    let mut card_of: BTreeMap<String, i64> = BTreeMap::new();
    for charge in &charges {
        let deal: i64 = charge.key.strip_prefix("trade-").unwrap().parse().unwrap();
        let item = items.get(&deal).unwrap_or_else(|| panic!("a charge of no deal: {charge:?}"));
        let steps: Vec<i64> = ledger.get(&charge.key).map(|steps| steps.keys().copied().collect()).unwrap_or_default();
        let bought = purchases.get(&deal).copied().unwrap_or(0);
        match charge.state {
            ChargeState::Captured => {
                counted.captured += 1;
                assert_eq!((steps.as_slice(), bought), (&[1, 3][..], 1), "{charge:?} of {item} and its ledger");
                let amount = charge.amount.unwrap().0;
                let booked = &ledger[&charge.key];
                assert_eq!(booked[&1]["escrow"], amount, "{charge:?}");
                assert_eq!(booked[&3]["escrow"], -amount, "{charge:?}");
                let card = booked[&1].keys().find(|account| account.starts_with("card:")).unwrap();
                *card_of.entry(card.clone()).or_default() -= amount;
                assert_eq!(charged.insert(item, amount), None, "{item} was charged twice");
            }
            ChargeState::Voided | ChargeState::Declined => {
                counted.not_captured += 1;
                let undone = steps.is_empty() || steps == [1, 2];
                assert!(undone && bought == 0, "{charge:?} of {item}, but ledger steps {steps:?}, bought {bought}");
            }
            ChargeState::Authorised => panic!("{charge:?} of {item} was never decided"),
        }
    }
    for (card, cents) in balances.iter().filter(|(account, _)| account.starts_with("card:")) {
        assert_eq!(card_of.get(card).copied().unwrap_or(0), *cents, "{card}: bank and ledger");
    }
    let known: Vec<&String> = charges.iter().map(|charge| &charge.key).collect();
    for key in ledger.keys() {
        assert!(known.contains(&key), "the ledger knows {key}, the bank does not");
    }
    each(&trade, "SELECT id, body FROM trade_deal", |row| {
        let (id, body): (i64, String) = (row.get(0)?, row.get(1)?);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let completed = !body["state"]["Completed"].is_null();
        assert_eq!(completed, charged.contains_key(items[&id].as_str()), "deal {id} and its charge: {body}");
        assert!(body["state"]["Settling"].is_null(), "still being settled: {body}");
        Ok(())
    });

    for told in claims.ends(roster) {
        let is_charged = charged.contains_key(told.item.as_str());
        if told.completed {
            assert!(is_charged, "{} was told completed and was not charged", told.item);
        } else if told.is_buyer {
            assert!(!is_charged, "{} was told cancelled and was charged", told.item);
        }
    }
    counted
}

fn each(db: &Connection, sql: &str, mut take: impl FnMut(&rusqlite::Row) -> rusqlite::Result<()>) {
    let mut statement = db.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        take(row).unwrap();
    }
}
