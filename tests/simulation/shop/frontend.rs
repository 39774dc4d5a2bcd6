//! The simulated frontends, which are stateless and run a thread for each purchase and each look for orphans.

use std::time::Duration;

use p2s2::internals::shop::ops::{
    BeginResponse, CardDetails, CompletedPurchase, ErrorCode, HoldState, Refusal, ShopResult,
};
use p2s2::internals::shop::product::ProductOp;
use p2s2::internals::shop::purchase::RENEW_MS;
use p2s2::internals::shop::purchase::driver::{DatabaseOp, Driver, DriverStep, OpResponse};

use super::Fault;
use super::buyers::PurchaseIntent;
use super::world::{DatabaseRequest, DatabaseResponse, Event, Weather, World};

/// How long a frontend waits for a response; a Begin may have to wait for the buyer's open purchase.
const ANSWER_MS: u64 = 700;
const BEGIN_ANSWER_MS: u64 = 10_000;

pub struct FrontendThread {
    pub frontend: usize,
    seq: u32,
    work: ThreadWork,
}

enum ThreadWork {
    Beginning { client: usize, intent: PurchaseIntent },
    Driving { for_client: Option<(usize, u64)>, driver: Box<Driver>, last_op: DatabaseOp },
    TakingOver,
}

impl World {
    pub fn start_frontend(&mut self, frontend: usize) {
        self.frontends[frontend].is_up = true;
        self.frontends[frontend].starts += 1;
        let start = self.frontends[frontend].starts;
        self.schedule(37 * frontend as u64, Event::LookForOrphans { frontend, start });
        self.schedule(RENEW_MS, Event::RenewLeases { frontend, start });
    }

    pub fn frontend_crashes(&mut self, frontend: usize, down: u64) {
        if std::mem::take(&mut self.frontends[frontend].is_up) {
            self.note(|| format!("-- frontend {frontend} dies"));
            self.tally.frontend_crashes += 1;
            self.threads.retain(|_, thread| thread.frontend != frontend);
            self.schedule(down, Event::StartFrontend(frontend));
        }
    }

    pub fn begin_purchase(&mut self, frontend: usize, client: usize, intent: PurchaseIntent) {
        if self.frontends[frontend].is_up {
            let thread = self.thread(frontend, ThreadWork::Beginning { client, intent: intent.clone() });
            self.schedule_request(thread, Duration::ZERO, DatabaseRequest::Begin(intent));
        }
    }

    pub fn look_for_orphans(&mut self, frontend: usize, start: u32) {
        if self.frontends[frontend].is_up && self.frontends[frontend].starts == start {
            if self.fault != Some(Fault::LeaveOrphans) {
                let thread = self.thread(frontend, ThreadWork::TakingOver);
                self.schedule_request(thread, Duration::ZERO, DatabaseRequest::TakeOver);
            }
            self.schedule(500, Event::LookForOrphans { frontend, start });
        }
    }

    pub fn renew_leases(&mut self, frontend: usize, start: u32) {
        if self.frontends[frontend].is_up && self.frontends[frontend].starts == start {
            let own = self.threads.values().filter(|thread| thread.frontend == frontend);
            let leases: Vec<(String, u64)> = own
                .filter_map(|thread| match &thread.work {
                    ThreadWork::Driving { driver, .. } => Some((driver.purchase_id().to_owned(), driver.lease())),
                    ThreadWork::Beginning { .. } | ThreadWork::TakingOver => None,
                })
                .collect();
            if !leases.is_empty() {
                // The response is ignored.
                self.network(Event::RequestArrives {
                    thread: 0,
                    seq: 0,
                    request: Box::new(DatabaseRequest::Renew(leases)),
                });
            }
            self.schedule(RENEW_MS, Event::RenewLeases { frontend, start });
        }
    }

    fn thread(&mut self, frontend: usize, work: ThreadWork) -> u64 {
        self.threads_begun += 1;
        self.threads.insert(self.threads_begun, FrontendThread { frontend, seq: 0, work });
        self.threads_begun
    }

    fn schedule_request(&mut self, thread: u64, after: Duration, request: DatabaseRequest) {
        let Some(state) = self.threads.get_mut(&thread) else { return };
        state.seq += 1;
        let seq = state.seq;
        self.schedule(after.as_millis() as u64, Event::SendRequest { thread, seq, request: Box::new(request) });
    }

    pub fn send_request(&mut self, thread: u64, seq: u32, request: DatabaseRequest) {
        if self.threads.contains_key(&thread) {
            let releases = matches!(request, DatabaseRequest::Op(DatabaseOp::Product(ProductOp::Release { .. })));
            if releases && self.fault == Some(Fault::SkipRelease) {
                return self.respond(thread, seq, DatabaseResponse::OpResponse(OpResponse::Hold(HoldState::Released)));
            }
            let patience = if matches!(request, DatabaseRequest::Begin(_)) { BEGIN_ANSWER_MS } else { ANSWER_MS };
            self.schedule(patience, Event::NoAnswer { thread, seq });
            self.network(Event::RequestArrives { thread, seq, request: Box::new(request) });
        }
    }

    pub fn no_answer(&mut self, thread: u64, seq: u32) {
        let Some(state) = self.threads.get(&thread).filter(|state| state.seq == seq) else { return };
        let away = Refusal::new(ErrorCode::Unavailable, "no answer came");
        let response = match &state.work {
            ThreadWork::Beginning { .. } => DatabaseResponse::Begun(Err(away)),
            ThreadWork::TakingOver => DatabaseResponse::OrphanedPurchase(Err(away)),
            ThreadWork::Driving { .. } => DatabaseResponse::OpResponse(OpResponse::Refused(away)),
        };
        self.handle_response(thread, seq, response);
    }

    pub fn handle_response(&mut self, thread: u64, seq: u32, response: DatabaseResponse) {
        let now = self.time();
        if let Some(frontend) = self.threads.get(&thread).map(|state| state.frontend)
            && self.rng.permille(self.weather.crash)
        {
            // The frontend crashes between a response and its next request.
            let down = self.rng.range(10, 6_000);
            self.frontend_crashes(frontend, down);
        }
        let Some(state) = self.threads.get_mut(&thread).filter(|state| state.seq == seq) else { return };
        match (&mut state.work, response) {
            (
                ThreadWork::Beginning { client, intent },
                DatabaseResponse::Begun(Ok(BeginResponse::Drive { purchase_id, lease, lines, .. })),
            ) => {
                let card =
                    CardDetails { number: intent.card.to_owned(), exp: "12/79".to_owned(), name: "b".to_owned() };
                let for_client = Some((*client, intent.serial));
                let (driver, step) = Driver::begin(now, purchase_id, lease, lines, self.hold_ms, card);
                self.drive(thread, for_client, driver, step);
            }
            (ThreadWork::Beginning { client, intent }, DatabaseResponse::Begun(begun)) => {
                let (client, serial) = (*client, intent.serial);
                let answer = begun.map(|begun| match begun {
                    BeginResponse::Done { purchased } => purchased,
                    BeginResponse::Drive { .. } => unreachable!("above"),
                });
                self.threads.remove(&thread);
                self.answer(client, serial, answer);
            }
            (ThreadWork::TakingOver, DatabaseResponse::OrphanedPurchase(Ok(Some(mut orphan)))) => {
                self.tally.takeovers += 1;
                if self.fault == Some(Fault::ReleaseFirst) {
                    orphan.is_undone = true;
                }
                let (driver, step) = Driver::take_over(now, orphan);
                self.drive(thread, None, driver, step);
            }
            (ThreadWork::TakingOver, _) => drop(self.threads.remove(&thread)),
            (ThreadWork::Driving { driver, last_op, for_client }, DatabaseResponse::OpResponse(mut response)) => {
                let looks = matches!(last_op, DatabaseOp::Product(ProductOp::HoldState { .. }));
                if looks && self.fault == Some(Fault::BelieveSold) {
                    response = OpResponse::Hold(HoldState::Sold);
                }
                if matches!(response, OpResponse::Purchased(_)) && for_client.is_none() {
                    self.tally.completed_by_others += 1;
                }
                let step = driver.handle_response(now, response);
                self.take_step(thread, step);
            }
            (_, response) => panic!("{response:?} answers nothing that was asked"),
        }
    }

    fn drive(&mut self, thread: u64, for_client: Option<(usize, u64)>, driver: Driver, step: DriverStep) {
        let last_op = match &step {
            DriverStep::Send { op, .. } => op.clone(),
            DriverStep::Finished(_) => panic!("a driver begins with a question"),
        };
        if let Some(state) = self.threads.get_mut(&thread) {
            state.work = ThreadWork::Driving { for_client, driver: Box::new(driver), last_op };
        }
        self.take_step(thread, step);
    }

    fn take_step(&mut self, thread: u64, step: DriverStep) {
        match step {
            DriverStep::Send { after, op } => {
                if let Some(FrontendThread { work: ThreadWork::Driving { last_op, .. }, .. }) =
                    self.threads.get_mut(&thread)
                {
                    *last_op = op.clone();
                }
                self.schedule_request(thread, after, DatabaseRequest::Op(op));
            }
            DriverStep::Finished(answer) => {
                let Some(FrontendThread { work: ThreadWork::Driving { for_client, driver, .. }, .. }) =
                    self.threads.remove(&thread)
                else {
                    return;
                };
                let id = driver.purchase_id();
                match &answer {
                    Ok(purchased) => {
                        let is_sold = self.product.holds.get(id).is_some_and(|record| record.state == HoldState::Sold);
                        self.rules.check_purchased(&self.customer.disk.lock().rows, &self.bank, is_sold, purchased);
                    }
                    Err(refusal) if refusal.code != ErrorCode::Unavailable => {
                        self.tally.declined += u64::from(refusal.code == ErrorCode::PaymentDeclined);
                        let hold = self.product.holds.get(id).map(|record| record.state);
                        // With faults, a driver may give up before the units are released.
                        let all_answer = !self.healed && self.weather == Weather::default();
                        self.rules.check_refused(
                            &self.bank,
                            id,
                            refusal,
                            !all_answer || hold == Some(HoldState::Released),
                        );
                    }
                    Err(_) => {}
                }
                if let Some((client, serial)) = for_client {
                    self.answer(client, serial, answer);
                }
            }
        }
    }

    fn answer(&mut self, client: usize, serial: u64, answer: ShopResult<CompletedPurchase>) {
        self.network(Event::Answered { client, serial, answer });
    }
}
