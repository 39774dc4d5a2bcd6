//! The worker: handles inputs one after the other and applies their effects.

use crossbeam_channel::Receiver;

use super::{BATCH_MAX, NodeError, NodeInner, TICK_INTERVAL};
use crate::storage::CoreState;
use crate::trade::client::Client;
use crate::trade::peer::{CommandError, PeerCore, PeerEffects, PeerEvent, PeerInput, store};
use crate::trade::wire::Response;

impl NodeInner {
    pub(super) fn client(&self) -> &Client {
        match self.client.get() {
            Some(client) => client,
            // `Node::open` sets it while only the client's own threads have the `NodeInner`, and they use it only
            // through inputs, which the worker handles later.
            None => unreachable!("the client is there before the worker is"),
        }
    }

    pub(super) fn run_worker(&self, incoming: &Receiver<PeerInput>, stopped: &Receiver<()>) {
        let ticks = crossbeam_channel::tick(TICK_INTERVAL);
        loop {
            let mut inputs = Vec::new();
            let ends = crossbeam_channel::select! {
                recv(incoming) -> input => { inputs.extend(input); false }
                recv(ticks) -> _ => { inputs.push(PeerInput::Tick); false }
                recv(stopped) -> _ => true,
            };
            inputs.extend(incoming.try_iter().take(BATCH_MAX - 1));
            if let Err(error) = self.step(inputs) {
                self.emit_trouble(None, error.to_string());
            }
            if ends && incoming.is_empty() {
                return;
            }
        }
    }

    pub(super) fn step(&self, inputs: Vec<PeerInput>) -> Result<(), NodeError> {
        let effects = self.handle_inputs(inputs)?;
        self.apply_effects(effects);
        Ok(())
    }

    /// Waits for the response to a command's request; `None` if it needed none.
    pub(super) fn command(&self, input: PeerInput) -> Result<Option<Response>, NodeError> {
        // It is checked before anything is recorded for a request that would never be sent.
        self.client().check_trust()?;
        let mut effects = self.handle_inputs(vec![input])?;
        let request = if effects.requests.is_empty() { None } else { Some(effects.requests.remove(0)) };
        self.apply_effects(effects);
        let Some((rq, body)) = request else { return Ok(None) };
        let response = self.client().call(rq, body.clone());
        let answered = PeerInput::ResponseReceived { rq, body, response: response.clone() };
        let mut effects = self.handle_inputs(vec![answered])?;
        // These are the result of the command.
        effects.events.retain(|event| event.rq() != Some(rq) && !matches!(event, PeerEvent::Trouble { .. }));
        self.apply_effects(effects);
        Ok(Some(response?))
    }

    /// The changes are on disk when this returns.
    fn handle_inputs(&self, inputs: Vec<PeerInput>) -> Result<PeerEffects, NodeError> {
        let now = self.clock.now();
        let (effects, refused) = self.core.update(|core| {
            let mut effects = PeerEffects::default();
            let mut refused = None;
            for input in inputs {
                match core.handle(now, input) {
                    Ok(more) => effects.absorb(more),
                    Err(error) => refused = Some(error),
                }
            }
            append_changes(core, &mut effects);
            (effects, refused)
        })?;
        match refused {
            Some(refused) if effects.is_empty() => Err(refused.into()),
            _ => Ok(effects),
        }
    }

    fn apply_effects(&self, effects: PeerEffects) {
        let client = self.client();
        for mid in effects.acks {
            client.ack(mid);
        }
        for (rq, body) in effects.requests {
            let inputs = self.inputs.clone();
            client.post(rq, body.clone(), move |response| {
                // Fails only if the peer has closed.
                let _ = inputs.send(PeerInput::ResponseReceived { rq, body, response });
            });
        }
        for event in &effects.events {
            self.emit(event);
        }
        // Last, so that events are reported before waiting threads wake up.
        self.core.notify();
    }

    pub(super) fn emit(&self, event: &PeerEvent) {
        (self.observer)(event);
    }

    pub(super) fn emit_trouble(&self, rq: Option<u64>, reason: impl Into<String>) {
        self.emit(&PeerEvent::Trouble { rq, reason: reason.into() });
    }

    /// A number for a request that does not concern a deal.
    pub(super) fn next_rq(&self) -> Result<u64, NodeError> {
        let rq = self.core.update(|core| {
            let mut effects = PeerEffects::default();
            let rq = core.next_rq(&mut effects);
            append_changes(core, &mut effects);
            rq
        })?;
        Ok(rq?)
    }

    pub(super) fn response_error(&self, response: Response) -> NodeError {
        let (server, name) = (self.config.server.clone(), self.config.client.name.clone());
        match response {
            Response::Error { code, reason, .. } => NodeError::Server { code, reason },
            Response::RegisterDenied { reason, .. } | Response::LoginDenied { reason, .. } => {
                NodeError::Denied { server, name, reason }
            }
            _ => NodeError::Denied { server, name, reason: "its answer makes no sense".to_owned() },
        }
    }

    pub(super) fn response_error_or_none(&self, response: Option<Response>) -> NodeError {
        response.map_or_else(
            || CommandError("nothing was to be asked".to_owned()).into(),
            |response| self.response_error(response),
        )
    }
}

fn append_changes(core: &mut CoreState<PeerCore>, effects: &mut PeerEffects) {
    let changes = std::mem::take(&mut effects.changes);
    if !changes.is_empty() {
        core.append(move |tx| store::write(tx, &changes));
    }
}
