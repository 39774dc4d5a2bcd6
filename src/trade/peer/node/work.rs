//! A peer at work: events taken one after the other, and their effects made real.

use crossbeam_channel::Receiver;

use super::{BATCH_MAX, Inner, NodeError, TICK_EVERY};
use crate::storage::CoreState;
use crate::trade::client::Client;
use crate::trade::client::messages::Answer;
use crate::trade::peer::{Core, Effects, Event, Note, Refused, store};

impl Inner {
    pub(super) fn client(&self) -> &Client {
        match self.client.get() {
            Some(client) => client,
            // `Node::open` sets it before anyone else has the `Inner` but the client's own threads,
            // which reach it only through events that the worker, started later, takes up.
            None => unreachable!("the client is there before the worker is"),
        }
    }

    /// Takes events one after the other, and time with them.
    pub(super) fn work(&self, incoming: &Receiver<Event>, stopped: &Receiver<()>) {
        let ticks = crossbeam_channel::tick(TICK_EVERY);
        loop {
            let mut events = Vec::new();
            let ends = crossbeam_channel::select! {
                recv(incoming) -> event => { events.extend(event); false }
                recv(ticks) -> _ => { events.push(Event::Tick); false }
                recv(stopped) -> _ => true,
            };
            events.extend(incoming.try_iter().take(BATCH_MAX - 1));
            if let Err(error) = self.step(events) {
                self.tell(&Note::Trouble { rq: None, reason: error.to_string() });
            }
            if ends && incoming.is_empty() {
                return;
            }
        }
    }

    /// Handles events and makes their effects real.
    pub(super) fn step(&self, events: Vec<Event>) -> Result<(), NodeError> {
        let effects = self.stored(events)?;
        self.carry_out(effects);
        Ok(())
    }

    /// A person's command: its request is waited for. Nothing if it needed none.
    pub(super) fn command(&self, event: Event) -> Result<Option<Answer>, NodeError> {
        // Before anything is noted of what would never be asked.
        self.client().check_trust()?;
        let mut effects = self.stored(vec![event])?;
        let request = if effects.requests.is_empty() { None } else { Some(effects.requests.remove(0)) };
        self.carry_out(effects);
        let Some((rq, ask)) = request else { return Ok(None) };
        let answer = self.client().call(rq, ask.clone());
        let mut effects = self.stored(vec![Event::Answered { rq, ask, answer: answer.clone() }])?;
        // Who gave the command gets this as its answer.
        effects.notes.retain(|note| note.rq() != Some(rq) && !matches!(note, Note::Trouble { .. }));
        self.carry_out(effects);
        Ok(Some(answer?))
    }

    /// Handles events; what they change is on disk when this returns.
    fn stored(&self, events: Vec<Event>) -> Result<Effects, NodeError> {
        let now = self.clock.now();
        let (effects, refused) = self.core.update(|core| {
            let mut effects = Effects::default();
            let mut refused = None;
            for event in events {
                match core.handle(now, event) {
                    Ok(more) => effects.absorb(more),
                    Err(error) => refused = Some(error),
                }
            }
            hand_over(core, &mut effects);
            (effects, refused)
        })?;
        match refused {
            Some(refused) if effects.is_empty() => Err(refused.into()),
            _ => Ok(effects),
        }
    }

    fn carry_out(&self, effects: Effects) {
        let client = self.client();
        for mid in effects.acks {
            client.ack(mid);
        }
        for (rq, ask) in effects.requests {
            let events = self.events.clone();
            client.post(rq, ask.clone(), move |answer| {
                // Nobody reads any more only once the peer has closed.
                let _ = events.send(Event::Answered { rq, ask, answer });
            });
        }
        for note in &effects.notes {
            self.tell(note);
        }
        // Last, so that who waits for an end hears of it first.
        self.core.notify();
    }

    pub(super) fn tell(&self, note: &Note) {
        (self.observer)(note);
    }

    pub(super) fn trouble(&self, rq: Option<u64>, reason: impl Into<String>) {
        self.tell(&Note::Trouble { rq, reason: reason.into() });
    }

    /// A number for a request that is not a deal's.
    pub(super) fn number(&self) -> Result<u64, NodeError> {
        let number = self.core.update(|core| {
            let mut effects = Effects::default();
            let rq = core.number(&mut effects);
            hand_over(core, &mut effects);
            rq
        })?;
        Ok(number?)
    }

    pub(super) fn unexpected(&self, answer: Answer) -> NodeError {
        let (server, name) = (self.settings.server.clone(), self.settings.client.name.clone());
        match answer {
            Answer::Error { code, reason, .. } => NodeError::Server { code, reason },
            Answer::RegisterDenied { reason, .. } | Answer::LoginDenied { reason, .. } => {
                NodeError::Denied { server, name, reason }
            }
            // The client lets through only what fits the request.
            _ => NodeError::Denied { server, name, reason: "its answer makes no sense".to_owned() },
        }
    }

    pub(super) fn unexpected_or_none(&self, answer: Option<Answer>) -> NodeError {
        answer.map_or_else(|| Refused("nothing was to be asked".to_owned()).into(), |answer| self.unexpected(answer))
    }
}

fn hand_over(core: &mut CoreState<Core>, effects: &mut Effects) {
    let changes = std::mem::take(&mut effects.changes);
    if !changes.is_empty() {
        core.append(move |tx| store::write(tx, &changes));
    }
}
