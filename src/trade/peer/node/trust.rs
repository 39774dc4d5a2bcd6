//! Whether a server is the one that it was, and settles as configured.

use super::{NodeConfig, NodeError, NodeInner};
use crate::trade::client::SettlementSecurity;

impl NodeInner {
    /// The first fingerprint that the server presents is pinned (`docs/spec/trade.md`). An untrusted server is ignored
    /// until it, or the right one, presents the right fingerprint.
    pub(super) fn trust(&self, presented: Option<&str>) -> Result<(), NodeError> {
        let NodeConfig { server, plaintext, server_cert, no_server_cert, data_dir, .. } = &self.config;
        let pinned = self.store.pin(server)?;
        let judged = match presented {
            // Pinned now, it would pass for one that a person has confirmed.
            Some(presented) if *no_server_cert => Err(format!(
                "the server at {server} shows the certificate {presented}, but was confirmed as one that has none: this \
                 may be another server that pretends to be it; start with --server {server}, and --server-cert HEX \
                 as its operator tells it"
            )),
            presented => judge(server, presented, *plaintext, server_cert.as_deref(), pinned.as_deref(), data_dir),
        };
        let security = match judged {
            Ok(security) => security,
            Err(why) => {
                self.client().set_security(SettlementSecurity::Untrusted(why.as_str().into()));
                return Err(NodeError::Security(why));
            }
        };
        if let SettlementSecurity::Pinned(pin) = &security
            && pinned.as_deref() != Some(&**pin)
        {
            self.store.set_pin(server, pin)?;
        }
        self.client().set_security(security);
        Ok(())
    }
}

/// Where a fingerprint that is known in advance comes from; part of error texts.
const EXPECTED: &str = "by --server-cert, or confirmed with --server auto";

fn judge(
    server: &str,
    presented: Option<&str>,
    plaintext: bool,
    expected: Option<&str>,
    pinned: Option<&str>,
    data_dir: &std::path::Path,
) -> Result<SettlementSecurity, String> {
    let Some(presented) = presented else {
        if let Some(expected) = expected {
            return Err(format!("the server at {server} settles without TLS, but {expected} is expected ({EXPECTED})"));
        }
        return if plaintext {
            Ok(SettlementSecurity::Plaintext)
        } else {
            Err(format!(
                "the server at {server} settles without TLS, so that anyone on the way could read card numbers: \
                 start with --plaintext if you want that"
            ))
        };
    };
    let is_pin = presented.len() == 64 && presented.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_pin {
        return Err(format!("the server at {server} told no fingerprint: expected 64 hex digits"));
    }
    let matches = |other: &str| other.eq_ignore_ascii_case(presented);
    match (expected, pinned) {
        (Some(expected), _) if !matches(expected) => Err(format!(
            "the server at {server} shows the certificate {presented}, but {expected} is expected ({EXPECTED}): \
             this may be another server that pretends to be it"
        )),
        (None, Some(pinned)) if !matches(pinned) => Err(format!(
            "the server at {server} shows the certificate {presented}, but it was {pinned} when we first met: this may be \
             another server that pretends to be it. If its operator confirms the new one, start once with \
             --server-cert {presented} (kept in {})",
            data_dir.display()
        )),
        _ => Ok(SettlementSecurity::Pinned(presented.into())),
    }
}
