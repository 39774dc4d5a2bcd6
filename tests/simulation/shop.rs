//! Simulation of purchases across two databases and a bank, with several frontends as drivers, two clients per buyer,
//! and every component crashing at any step.

use crate::invariants::Violation;
use crate::{chosen, play, seeds, without_panic};

mod buyers;
mod customer;
mod frontend;
mod invariants;
mod product;
mod world;

use world::{Tally, World};

/// A fault that the simulation injects on purpose, to test that the invariants detect it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The record of a step never reaches the disk.
    LoseRecords,
    /// History and ledger of a charge never reach the disk.
    LosePaid,
    /// What was bought stays in the cart.
    KeepCart,
    /// The request to the bank is sent before the record is on disk.
    BankBeforeDisk,
    /// The response is sent before the record is on disk.
    AnswerBeforeDisk,
    /// An authorisation is taken for voided without asking the bank.
    SkipVoid,
    /// A capture without a response is not retried.
    CaptureOnce,
    /// A driver that takes over assumes that the units are sold.
    BelieveSold,
    /// A driver that takes over releases the units before the record is undone.
    ReleaseFirst,
    /// A driver that undoes a purchase does not release the units.
    SkipRelease,
    /// The product database keeps no tombstones of released holds.
    ForgetReleased,
    /// A buyer's second purchase does not wait for the first.
    TwoAtOnce,
    /// Idempotency keys are forgotten.
    ForgetKeys,
    /// Orphaned purchases are not taken over.
    LeaveOrphans,
    /// A lease that has passed to another driver is still accepted.
    IgnoreLease,
}

fn run(seed: u64, fault: Option<Fault>, aloud: bool) -> Result<Tally, Violation> {
    without_panic(|| World::new(seed, fault, aloud).run())
}

#[test]
fn purchases_are_all_or_nothing_whatever_happens() {
    if let Some((seed, aloud)) = chosen() {
        let result = run(seed, None, aloud);
        return assert!(result.is_ok(), "seed {seed}: {result:?}");
    }
    let seeds = seeds();
    let (tally, broken) = play(seeds, |seed| run(seed, None, false), |_| true);
    if let Some((seed, Violation { rule, detail })) = broken {
        panic!("SEED={seed}: the rule {rule:?} is broken: {detail}");
    }
    eprintln!("simulation: {seeds} seeds, {tally:?}");
    // A simulation in which nothing happens proves nothing.
    let enough = [tally.purchases, tally.undone, tally.frontend_crashes, tally.customer_crashes, tally.product_crashes];
    assert!(enough.iter().all(|count| *count > seeds), "{tally:?}");
    assert!(tally.store_failures.min(tally.takeovers).min(tally.declined) > seeds / 2, "{tally:?}");
    assert!(tally.completed_by_others > seeds / 20, "{tally:?}");
}

#[test]
fn a_seed_of_the_shop_plays_the_same_every_time() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", run(seed, None, false)), format!("{:?}", run(seed, None, false)));
    }
}

mod a_broken_rule_is_caught {
    use super::*;

    fn caught(fault: Fault, rules: &[&str]) {
        let (_, broken) = play(300, |seed| run(seed, Some(fault), false), |broken| rules.contains(&broken.rule));
        assert!(broken.is_some(), "{fault:?} broke none of {rules:?} in 300 seeds");
    }

    #[test]
    fn a_row_that_never_reaches_the_disk() {
        caught(Fault::LoseRecords, &["the bank is asked for what is on disk"]);
        caught(Fault::LosePaid, &["what was answered is on disk", "nothing is held for what is over"]);
    }

    #[test]
    fn a_cart_that_keeps_what_was_bought() {
        caught(Fault::KeepCart, &["one state of a cart is charged once"]);
    }

    #[test]
    fn a_bank_that_is_asked_too_early() {
        caught(Fault::BankBeforeDisk, &["the bank is asked for what is on disk"]);
    }

    #[test]
    fn an_answer_that_leaves_too_early() {
        caught(Fault::AnswerBeforeDisk, &["what was answered is on disk"]);
    }

    #[test]
    fn a_failure_that_lets_nothing_go() {
        caught(Fault::SkipVoid, &["nothing stays authorised"]);
    }

    #[test]
    fn a_charge_that_is_not_asked_for_again() {
        caught(Fault::CaptureOnce, &["every attempt ends"]);
    }

    #[test]
    fn a_driver_that_completes_what_is_not_sold() {
        caught(Fault::BelieveSold, &["sold if and only if purchased"]);
    }

    #[test]
    fn a_driver_that_puts_units_back_before_it_is_undone() {
        caught(Fault::ReleaseFirst, &["sold if and only if purchased", "every attempt ends"]);
    }

    #[test]
    fn units_that_are_not_put_back() {
        caught(Fault::SkipRelease, &["stock is back before a refusal"]);
        caught(Fault::SkipRelease, &["nothing is held for what is over"]);
    }

    #[test]
    fn a_release_that_is_forgotten() {
        caught(Fault::ForgetReleased, &["nothing is held for what is over"]);
    }

    #[test]
    fn two_purchases_of_one_cart_at_once() {
        caught(Fault::TwoAtOnce, &["one purchase of a buyer at a time", "one state of a cart is charged once"]);
    }

    #[test]
    fn a_key_that_is_forgotten() {
        caught(Fault::ForgetKeys, &["a key is one purchase"]);
    }

    #[test]
    fn purchases_that_nobody_takes_over() {
        caught(Fault::LeaveOrphans, &["every attempt ends"]);
    }

    #[test]
    fn a_driver_that_lost_its_lease() {
        caught(Fault::IgnoreLease, &["only the lease's holder drives"]);
    }
}
