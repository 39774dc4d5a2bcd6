use crate::net::counters::counters;

counters! {
    /// The counters of the trade server.
    pub struct TradeCounters {
        requests,
        /// ERROR responses, sent or withheld.
        errors,
        /// ERROR responses past ten a second for an address.
        errors_withheld,
        /// Responses withheld by the amplification limit.
        answers_too_long,
        /// Server types and errors, which are never answered.
        ignored,
        /// Notifications, including repeats.
        pushes,
        pushes_repeated,
        /// Notifications withheld by the amplification limit.
        pushes_withheld,
        acks,
        /// Acknowledgements of notifications that are not outstanding, or from others than their recipients.
        acks_unknown,
        sends_failed,
        /// Connections that failed in the handshake, reading or writing.
        connections_failed,
        /// Changes could not be stored.
        unavailable,
        settlements,
        /// Settlements that ended with a charge.
        settlements_paid,
        /// Settlements that ended without one.
        settlements_failed,
        /// Calls that were not answered.
        bank_unreachable,
    }
}
