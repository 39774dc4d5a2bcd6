//! Whether a server is who it was, and settles as we want.

use super::{Inner, NodeError, Settings};
use crate::trade::client::Security;

impl Inner {
    /// Judges the fingerprint that the server told (SPEC section 3: the first one is kept). A server that is
    /// not trusted is not heard until it, or the right one, tells the right fingerprint.
    pub(super) fn trust(&self, told: Option<&str>) -> Result<(), NodeError> {
        let Settings { server, plaintext, server_cert, no_server_cert, data_dir, .. } = &self.settings;
        let kept = self.store.pin(server)?;
        let judged = match told {
            // Kept at first sight it would be taken for one that a person has confirmed.
            Some(told) if *no_server_cert => Err(format!(
                "the server at {server} shows the certificate {told}, but was confirmed as one that has none: this \
                 may be another server that pretends to be it; start with --server {server}, and --server-cert HEX \
                 as its operator tells it"
            )),
            told => judge(server, told, *plaintext, server_cert.as_deref(), kept.as_deref(), data_dir),
        };
        let security = match judged {
            Ok(security) => security,
            Err(why) => {
                self.client().set_security(Security::Refused(why.as_str().into()));
                return Err(NodeError::Security(why));
            }
        };
        if let Security::Pinned(pin) = &security
            && kept.as_deref() != Some(&**pin)
        {
            self.store.set_pin(server, pin)?;
        }
        self.client().set_security(security);
        Ok(())
    }
}

/// Where a fingerprint that is known beforehand comes from.
const EXPECTED: &str = "by --server-cert, or confirmed with --server auto";

fn judge(
    server: &str,
    told: Option<&str>,
    plaintext: bool,
    given: Option<&str>,
    kept: Option<&str>,
    data_dir: &std::path::Path,
) -> Result<Security, String> {
    let Some(told) = told else {
        if let Some(given) = given {
            return Err(format!("the server at {server} settles without TLS, but {given} is expected ({EXPECTED})"));
        }
        return if plaintext {
            Ok(Security::Plaintext)
        } else {
            Err(format!(
                "the server at {server} settles without TLS, so that anyone on the way could read card numbers: \
                 start with --plaintext if you want that"
            ))
        };
    };
    let is_pin = told.len() == 64 && told.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_pin {
        return Err(format!("the server at {server} told no fingerprint: expected 64 hex digits"));
    }
    let told_is = |other: &str| other.eq_ignore_ascii_case(told);
    match (given, kept) {
        (Some(given), _) if !told_is(given) => Err(format!(
            "the server at {server} shows the certificate {told}, but {given} is expected ({EXPECTED}): \
             this may be another server that pretends to be it"
        )),
        (None, Some(kept)) if !told_is(kept) => Err(format!(
            "the server at {server} shows the certificate {told}, but it was {kept} when we first met: this may be \
             another server that pretends to be it. If its operator confirms the new one, start once with \
             --server-cert {told} (kept in {})",
            data_dir.display()
        )),
        _ => Ok(Security::Pinned(told.into())),
    }
}
