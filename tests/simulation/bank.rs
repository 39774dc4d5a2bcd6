//! A remote bank: it commits by itself, may be unavailable, and its answers may be lost.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Asks for an authorisation; the flag tells whether the card is good.
    Authorise(bool),
    Capture,
    Void,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Authorised,
    Declined,
    Captured,
    CaptureRefused,
    Voided,
    AlreadyCaptured,
}

/// What the bank has done under one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    pub authorised: u32,
    pub captured: u32,
    pub voided: u32,
    pub declined: bool,
    pub refused: bool,
}

#[derive(Default)]
pub struct Bank {
    pub accounts: BTreeMap<String, Account>,
    pub away_until_ms: u64,
}

impl Bank {
    /// One key serves all three calls, and every call may be repeated. With `refuses`, a first capture is definitely
    /// refused.
    pub fn call(&mut self, key: &str, call: Call, refuses: bool) -> Answer {
        let account = self.accounts.entry(key.to_owned()).or_default();
        match call {
            Call::Authorise(_) if account.voided > 0 || account.declined => Answer::Declined,
            Call::Authorise(_) if account.authorised > 0 => Answer::Authorised,
            Call::Authorise(false) => {
                account.declined = true;
                Answer::Declined
            }
            Call::Authorise(true) => {
                account.authorised += 1;
                Answer::Authorised
            }
            Call::Capture if account.captured > 0 => Answer::Captured,
            Call::Capture if refuses || account.refused || account.voided > 0 || account.authorised == 0 => {
                account.refused = true;
                Answer::CaptureRefused
            }
            Call::Capture => {
                account.captured += 1;
                Answer::Captured
            }
            Call::Void if account.captured > 0 => Answer::AlreadyCaptured,
            Call::Void => {
                account.voided = 1;
                Answer::Voided
            }
        }
    }
}
