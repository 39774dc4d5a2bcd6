//! One peer's view of the network: whom it knows, what it says to whom, what it believes. SPEC section 5.
//! No I/O here.
//!
//! Whoever drives it tells it what happens ([`Node::handle`]) and what a person wants ([`Node::command`]),
//! makes the [`Effect`]s real in their order, and calls [`Event::Tick`] when [`Node::next_deadline`] has
//! come. `random` gives 64 random bits each time it is called.

use crate::model::{Millis, Name};

mod counters;
mod words;

pub use self::counters::{Cause, Counters};
pub use self::words::{
    Command, CommandError, Done, Door, Effect, Entry, Event, Interface, Kind, Known, Left, Settings, Shown,
};

/// One peer's view.
pub struct Node {
    settings: Settings,
    counters: Counters,
}

impl Node {
    /// A node that has not begun: it is told its [`Event::Interfaces`], then [`Event::Started`].
    /// `remember`ed messages may come before.
    pub fn new(settings: Settings) -> Node {
        Node { settings, counters: Counters::default() }
    }

    /// Takes one event.
    pub fn handle(&mut self, _now: Millis, _event: Event, _random: &mut dyn FnMut() -> u64) -> Vec<Effect> {
        Vec::new()
    }

    /// Takes what a person wants. An `Err` means that nothing changed, and nothing is sent.
    pub fn command(
        &mut self,
        _now: Millis,
        _command: Command,
        _random: &mut dyn FnMut() -> u64,
    ) -> Result<(Done, Vec<Effect>), CommandError> {
        Err(CommandError::Alone)
    }

    /// A message that was kept before this start: its repeats are not shown again.
    pub fn remember(&mut self, _entry: &Entry) {}

    /// When it wants an [`Event::Tick`], if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Millis> {
        None
    }

    /// Everyone it knows, servers too, by name and address.
    pub fn peers(&self) -> Vec<Known> {
        Vec::new()
    }

    /// What it goes by now: the name of its settings, or that with a number behind.
    pub fn name(&self) -> &Name {
        &self.settings.name
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
