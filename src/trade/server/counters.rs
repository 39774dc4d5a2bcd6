//! The counters of the trade server.

use crate::net::counters::counters;

counters! {
    /// The counters of the trade server.
    pub struct TradeCounters {
        /// Requests that could be parsed.
        requests,
        /// ERROR responses, sent or withheld.
        errors,
        /// ERROR responses that were not sent because of the limit of ten a second for each address.
        errors_withheld,
        /// Responses that were not sent because of the amplification limit.
        answers_too_long,
        /// Ignored messages: server types and errors, which are never answered.
        ignored,
        /// Notifications sent, including repeats.
        pushes,
        /// Repeated notifications.
        pushes_repeated,
        /// Notifications that were not sent because of the amplification limit for addresses that are not validated.
        pushes_withheld,
        /// Acknowledged notifications.
        acks,
        /// Acknowledgements of notifications that are not outstanding, or by others than their recipients.
        acks_unknown,
        /// Datagrams that the system refused to send.
        sends_failed,
        /// Connections that failed during the handshake, reading or writing.
        connections_failed,
        /// Requests whose changes could not be stored.
        unavailable,
        /// Settlements that have begun.
        settlements,
        /// Settlements that ended with a charge.
        settlements_paid,
        /// Settlements that ended without a charge.
        settlements_failed,
        /// Calls to the bank that were not answered.
        bank_unreachable,
    }
}
