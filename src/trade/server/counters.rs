//! What the trade server did so far.

use crate::net::counters::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the trade server did so far.
        #[derive(Debug, Default)]
        pub struct TradeCounters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl TradeCounters {
            /// Every counter with its name.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Requests that were understood.
    requests,
    /// Refusals, sent or withheld.
    errors,
    /// Refusals that were not sent: ten a second went to that address already.
    errors_withheld,
    /// Answers that were not sent: three times what came from that address is not enough.
    answers_too_long,
    /// Server's types and errors, which are never answered.
    ignored,
    /// Pushes sent, repeats included.
    pushes,
    /// Pushes sent again.
    pushes_repeated,
    /// Pushes that were not sent, being more than three times what came from an address that has not proved
    /// that it hears.
    pushes_withheld,
    /// Pushes acknowledged.
    acks,
    /// Acknowledgements of what is not outstanding, or from someone else.
    acks_unknown,
    /// Datagrams that the system did not take.
    sends_failed,
    /// Connections that failed: handshake, reading or writing.
    connections_failed,
    /// Requests that could not be stored.
    unavailable,
    /// Settlements begun.
    settlements,
    /// Settlements that ended with a charge.
    settlements_paid,
    /// Settlements that ended without one.
    settlements_failed,
    /// Calls to the bank that got no answer.
    bank_unreachable,
}
