//! The frontends: a thread for each purchase and each look for orphans. They keep nothing.

use std::time::Duration;

use p2s2::shop::ops::{Answer, Begun, Code, Hold, LinkCard, ProductOp, Purchased, Refusal};
use p2s2::shop::purchase::RENEW_MS;
use p2s2::shop::purchase::driver::{Driver, Heard, Op, Step};

use super::Fault;
use super::buyers::Wish;
use super::world::{Ask, Event, Said, Weather, World};

/// How long an answer is waited for; Begin may have to wait for the buyer's purchase before.
const ANSWER_MS: u64 = 700;
const BEGIN_ANSWER_MS: u64 = 10_000;

pub struct Thread {
    pub frontend: usize,
    seq: u32,
    work: Work,
}

enum Work {
    Beginning { hand: usize, wish: Wish },
    Driving { for_hand: Option<(usize, u64)>, driver: Box<Driver>, asked: Op },
    TakingOver,
}

impl World {
    pub fn start_frontend(&mut self, frontend: usize) {
        self.frontends[frontend].is_up = true;
        self.frontends[frontend].starts += 1;
        let start = self.frontends[frontend].starts;
        self.at(37 * frontend as u64, Event::LookForOrphans { frontend, start });
        self.at(RENEW_MS, Event::RenewLeases { frontend, start });
    }

    pub fn frontend_crashes(&mut self, frontend: usize, down: u64) {
        if std::mem::take(&mut self.frontends[frontend].is_up) {
            self.note(|| format!("-- frontend {frontend} dies"));
            self.tally.frontend_crashes += 1;
            self.threads.retain(|_, thread| thread.frontend != frontend);
            self.at(down, Event::StartFrontend(frontend));
        }
    }

    pub fn purchase_is_wanted(&mut self, frontend: usize, hand: usize, wish: Wish) {
        if self.frontends[frontend].is_up {
            let thread = self.thread(frontend, Work::Beginning { hand, wish: wish.clone() });
            self.ask(thread, Duration::ZERO, Ask::Begin(wish));
        }
    }

    pub fn look_for_orphans(&mut self, frontend: usize, start: u32) {
        if self.frontends[frontend].is_up && self.frontends[frontend].starts == start {
            if self.fault != Some(Fault::LeaveOrphans) {
                let thread = self.thread(frontend, Work::TakingOver);
                self.ask(thread, Duration::ZERO, Ask::TakeOver);
            }
            self.at(500, Event::LookForOrphans { frontend, start });
        }
    }

    pub fn renew_leases(&mut self, frontend: usize, start: u32) {
        if self.frontends[frontend].is_up && self.frontends[frontend].starts == start {
            let own = self.threads.values().filter(|thread| thread.frontend == frontend);
            let leases: Vec<(String, u64)> = own
                .filter_map(|thread| match &thread.work {
                    Work::Driving { driver, .. } => Some((driver.purchase_id().to_owned(), driver.lease())),
                    Work::Beginning { .. } | Work::TakingOver => None,
                })
                .collect();
            if !leases.is_empty() {
                // Nobody waits for the answer.
                self.network(Event::Asked { thread: 0, seq: 0, ask: Box::new(Ask::Renew(leases)) });
            }
            self.at(RENEW_MS, Event::RenewLeases { frontend, start });
        }
    }

    fn thread(&mut self, frontend: usize, work: Work) -> u64 {
        self.threads_begun += 1;
        self.threads.insert(self.threads_begun, Thread { frontend, seq: 0, work });
        self.threads_begun
    }

    fn ask(&mut self, thread: u64, after: Duration, ask: Ask) {
        let Some(state) = self.threads.get_mut(&thread) else { return };
        state.seq += 1;
        let seq = state.seq;
        self.at(after.as_millis() as u64, Event::AskNow { thread, seq, ask: Box::new(ask) });
    }

    pub fn ask_now(&mut self, thread: u64, seq: u32, ask: Ask) {
        if self.threads.contains_key(&thread) {
            let releases = matches!(ask, Ask::Op(Op::Product(ProductOp::Release { .. })));
            if releases && self.fault == Some(Fault::SkipRelease) {
                return self.say(thread, seq, Said::Heard(Heard::Hold(Hold::Released)));
            }
            let patience = if matches!(ask, Ask::Begin(_)) { BEGIN_ANSWER_MS } else { ANSWER_MS };
            self.at(patience, Event::NoAnswer { thread, seq });
            self.network(Event::Asked { thread, seq, ask: Box::new(ask) });
        }
    }

    pub fn no_answer(&mut self, thread: u64, seq: u32) {
        let Some(state) = self.threads.get(&thread).filter(|state| state.seq == seq) else { return };
        let away = Refusal::new(Code::Unavailable, "no answer came");
        let said = match &state.work {
            Work::Beginning { .. } => Said::Begun(Err(away)),
            Work::TakingOver => Said::Orphan(Err(away)),
            Work::Driving { .. } => Said::Heard(Heard::Refused(away)),
        };
        self.said(thread, seq, said);
    }

    pub fn said(&mut self, thread: u64, seq: u32, said: Said) {
        let now = self.time();
        if let Some(frontend) = self.threads.get(&thread).map(|state| state.frontend)
            && self.rng.permille(self.weather.crash)
        {
            // It dies between an answer and what it would have asked next.
            let down = self.rng.range(10, 6_000);
            self.frontend_crashes(frontend, down);
        }
        let Some(state) = self.threads.get_mut(&thread).filter(|state| state.seq == seq) else { return };
        match (&mut state.work, said) {
            (Work::Beginning { hand, wish }, Said::Begun(Ok(Begun::Drive { purchase_id, lease, lines, .. }))) => {
                let card = LinkCard { number: wish.card.to_owned(), exp: "12/79".to_owned(), name: "b".to_owned() };
                let for_hand = Some((*hand, wish.serial));
                let (driver, step) = Driver::begin(now, purchase_id, lease, lines, self.hold_ms, card);
                self.drive(thread, for_hand, driver, step);
            }
            (Work::Beginning { hand, wish }, Said::Begun(begun)) => {
                let (hand, serial) = (*hand, wish.serial);
                let answer = begun.map(|begun| match begun {
                    Begun::Done { purchased } => purchased,
                    Begun::Drive { .. } => unreachable!("above"),
                });
                self.threads.remove(&thread);
                self.answer(hand, serial, answer);
            }
            (Work::TakingOver, Said::Orphan(Ok(Some(mut orphan)))) => {
                self.tally.takeovers += 1;
                if self.fault == Some(Fault::ReleaseFirst) {
                    orphan.is_undone = true;
                }
                let (driver, step) = Driver::take_over(now, orphan);
                self.drive(thread, None, driver, step);
            }
            (Work::TakingOver, _) => drop(self.threads.remove(&thread)),
            (Work::Driving { driver, asked, for_hand }, Said::Heard(mut heard)) => {
                let looks = matches!(asked, Op::Product(ProductOp::HoldState { .. }));
                if looks && self.fault == Some(Fault::BelieveSold) {
                    heard = Heard::Hold(Hold::Sold);
                }
                if matches!(heard, Heard::Purchased(_)) && for_hand.is_none() {
                    self.tally.completed_by_others += 1;
                }
                let step = driver.heard(now, heard);
                self.go_on(thread, step);
            }
            (_, said) => panic!("{said:?} answers nothing that was asked"),
        }
    }

    fn drive(&mut self, thread: u64, for_hand: Option<(usize, u64)>, driver: Driver, step: Step) {
        let asked = match &step {
            Step::Ask { op, .. } => op.clone(),
            Step::Over(_) => panic!("a driver begins with a question"),
        };
        if let Some(state) = self.threads.get_mut(&thread) {
            state.work = Work::Driving { for_hand, driver: Box::new(driver), asked };
        }
        self.go_on(thread, step);
    }

    fn go_on(&mut self, thread: u64, step: Step) {
        match step {
            Step::Ask { after, op } => {
                if let Some(Thread { work: Work::Driving { asked, .. }, .. }) = self.threads.get_mut(&thread) {
                    *asked = op.clone();
                }
                self.ask(thread, after, Ask::Op(op));
            }
            Step::Over(answer) => {
                let Some(Thread { work: Work::Driving { for_hand, driver, .. }, .. }) = self.threads.remove(&thread)
                else {
                    return;
                };
                let id = driver.purchase_id();
                match &answer {
                    Ok(purchased) => {
                        let is_sold = self.product.holds.get(id).is_some_and(|record| record.hold == Hold::Sold);
                        self.rules.purchased(&self.customer.disk.lock().rows, &self.bank, is_sold, purchased);
                    }
                    Err(refusal) if refusal.code != Code::Unavailable => {
                        self.tally.declined += u64::from(refusal.code == Code::PaymentDeclined);
                        let hold = self.product.holds.get(id).map(|record| record.hold);
                        // Where a component does not answer, the buyer does not wait for it for ever.
                        let all_answer = !self.healed && self.weather == Weather::default();
                        self.rules.refused(&self.bank, id, refusal, !all_answer || hold == Some(Hold::Released));
                    }
                    Err(_) => {}
                }
                if let Some((hand, serial)) = for_hand {
                    self.answer(hand, serial, answer);
                }
            }
        }
    }

    fn answer(&mut self, hand: usize, serial: u64, answer: Answer<Purchased>) {
        self.network(Event::Answered { hand, serial, answer });
    }
}
