//! A bank with a database of its own, which commits independently of the rooms.

use std::path::Path;

use super::{AuthorisationOutcome, CaptureOutcome, Gateway, GatewayError, VoidOutcome};
use crate::model::{Cents, Millis, PaymentCard, named, text};
#[cfg(any(test, feature = "internals"))]
use crate::storage::Reader;
use crate::storage::{OpenError, ReaderExt, Store, StoreError, Tx};

pub const BANK_DB: &str = "bank.db";
/// A key has room for any id with a prefix.
const KEY_CHARS_MAX: usize = 128;
/// The well-known test number of a card that is always declined.
const ALWAYS_DECLINED: &str = "4000000000000002";
/// The schema, one migration per version.
pub const MIGRATIONS: &[&str] = &["
    CREATE TABLE charge (
        charge_key TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('authorised', 'captured', 'voided', 'declined')),
        cents BIGINT,          -- NULL: voided before it was ever authorised
        last4 TEXT,            -- all of the card that is kept
        reason TEXT,           -- why it was declined
        created_ms BIGINT NOT NULL,
        changed_ms BIGINT NOT NULL
    )"];

/// Checks the number (Luhn) and the expiry, declines one test number, and accepts all other cards.
#[derive(Debug)]
pub struct BuiltinGateway {
    store: Store,
}

named! {
    pub enum ChargeState {
        Authorised = "authorised",
        Captured = "captured",
        /// Released, or never to be authorised.
        Voided = "voided",
        Declined = "declined",
    }
}

/// A charge as the bank stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg(any(test, feature = "internals"))]
pub struct Charge {
    pub key: String,
    pub state: ChargeState,
    /// `None` if it was voided before it was ever authorised.
    pub amount: Option<Cents>,
    /// `None` like `amount`.
    pub last4: Option<String>,
}

impl BuiltinGateway {
    pub fn open(dir: &Path) -> Result<BuiltinGateway, OpenError> {
        BuiltinGateway::open_file(&dir.join(BANK_DB))
    }

    pub fn open_file(path: &Path) -> Result<BuiltinGateway, OpenError> {
        Ok(BuiltinGateway { store: Store::open(path, MIGRATIONS)? })
    }

    #[cfg(any(test, feature = "internals"))]
    pub fn charges(&self) -> Result<Vec<Charge>, StoreError> {
        self.store.read(charges)
    }

    /// The largest number N of all keys `{prefix}N` that the bank was ever asked for: a room that numbers its purchases
    /// must continue above it.
    pub fn highest_number(&self, prefix: &str) -> Result<Option<u64>, StoreError> {
        self.store.read(|reader| {
            let mut highest = None;
            reader.query("SELECT charge_key FROM charge", &[], &mut |row| {
                let number = row.text(0)?.strip_prefix(prefix).and_then(|number| number.parse::<u64>().ok());
                highest = highest.max(number);
                Ok(())
            })?;
            Ok(highest)
        })
    }

    pub fn close(&self) {
        self.store.close();
    }

    /// Finds the charge and decides about it in one transaction.
    fn with_charge<T: Send + 'static>(
        &self,
        key: &str,
        decide: impl FnOnce(&mut dyn Tx, &str, Option<StoredCharge>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, GatewayError> {
        let key = key.to_owned();
        self.store.write(move |tx| {
            let charge = find_charge(tx, &key)?;
            Ok(decide(tx, &key, charge)?)
        })
    }
}

/// All charges, ordered by key.
#[cfg(any(test, feature = "internals"))]
pub fn charges(reader: &dyn Reader) -> Result<Vec<Charge>, StoreError> {
    reader.all("SELECT charge_key, state, cents, last4 FROM charge ORDER BY charge_key", &[], |row| {
        Ok(Charge {
            key: row.text(0)?.to_owned(),
            state: ChargeState::from_stored(row.text(1)?)?,
            amount: row.opt_int(2)?.map(Cents),
            last4: row.opt_text(3)?.map(str::to_owned),
        })
    })
}

struct StoredCharge {
    state: ChargeState,
    amount: Option<Cents>,
    last4: Option<String>,
    reason: Option<String>,
}

fn find_charge(tx: &dyn Tx, key: &str) -> Result<Option<StoredCharge>, StoreError> {
    tx.first("SELECT state, cents, last4, reason FROM charge WHERE charge_key = $1", &[key.into()], |row| {
        Ok(StoredCharge {
            state: ChargeState::from_stored(row.text(0)?)?,
            amount: row.opt_int(1)?.map(Cents),
            last4: row.opt_text(2)?.map(str::to_owned),
            reason: row.opt_text(3)?.map(str::to_owned),
        })
    })
}

fn decline_reason(card: &PaymentCard, now: Millis) -> Option<&'static str> {
    if !card.number.passes_luhn() {
        Some("card number is not valid")
    } else if card.expiry.is_expired(now) {
        Some("card expired")
    } else if card.number.reveal() == ALWAYS_DECLINED {
        Some("card declined")
    } else {
        None
    }
}

fn key_error(key: &str) -> Option<String> {
    text::check(key, 1, KEY_CHARS_MAX).err().map(|rule| format!("key: {rule}"))
}

fn set_state(tx: &mut dyn Tx, key: &str, state: ChargeState, now: Millis) -> Result<(), StoreError> {
    let parameters = [state.as_text().into(), now.into(), key.into()];
    let rows = tx.execute("UPDATE charge SET state = $1, changed_ms = $2 WHERE charge_key = $3", &parameters)?;
    if rows == 1 { Ok(()) } else { Err(StoreError::Invalid(format!("{rows} charges with one key"))) }
}

fn declined(reason: impl Into<String>) -> AuthorisationOutcome {
    AuthorisationOutcome::Declined { reason: reason.into() }
}

impl Gateway for BuiltinGateway {
    fn authorise(
        &self,
        key: &str,
        amount: Cents,
        card: &PaymentCard,
        now: Millis,
    ) -> Result<AuthorisationOutcome, GatewayError> {
        if let Some(reason) = key_error(key) {
            return Ok(declined(reason));
        }
        if amount.0 <= 0 {
            return Ok(declined("amount: expected more than 0.00"));
        }
        // The card number stays here: only what may be stored goes to the writer.
        let (last4, objection) = (card.number.last4().to_owned(), decline_reason(card, now));
        self.with_charge(key, move |tx, key, charge| {
            if let Some(charge) = charge {
                return Ok(match charge.state {
                    ChargeState::Voided => declined("the charge was voided"),
                    _ if charge.amount != Some(amount) => declined("the key was used for another amount"),
                    _ if charge.last4.as_ref() != Some(&last4) => declined("the key was used for another card"),
                    ChargeState::Authorised | ChargeState::Captured => AuthorisationOutcome::Authorised,
                    ChargeState::Declined => declined(charge.reason.unwrap_or_default()),
                });
            }
            let state = if objection.is_some() { ChargeState::Declined } else { ChargeState::Authorised };
            tx.execute(
                "INSERT INTO charge (charge_key, state, cents, last4, reason, created_ms, changed_ms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &[
                    key.into(),
                    state.as_text().into(),
                    amount.into(),
                    (&last4).into(),
                    objection.into(),
                    now.into(),
                    now.into(),
                ],
            )?;
            Ok(objection.map_or(AuthorisationOutcome::Authorised, declined))
        })
    }

    fn capture(&self, key: &str, now: Millis) -> Result<CaptureOutcome, GatewayError> {
        let refused = |reason: &str| CaptureOutcome::Refused { reason: reason.to_owned() };
        self.with_charge(key, move |tx, key, charge| match charge.map(|charge| charge.state) {
            None => Ok(refused("nothing was authorised")),
            Some(ChargeState::Declined) => Ok(refused("the charge was declined")),
            Some(ChargeState::Voided) => Ok(refused("the charge was voided")),
            Some(ChargeState::Captured) => Ok(CaptureOutcome::Captured),
            Some(ChargeState::Authorised) => {
                set_state(tx, key, ChargeState::Captured, now)?;
                Ok(CaptureOutcome::Captured)
            }
        })
    }

    fn void(&self, key: &str, now: Millis) -> Result<VoidOutcome, GatewayError> {
        if key_error(key).is_some() {
            // No such key is ever authorised.
            return Ok(VoidOutcome::Voided);
        }
        self.with_charge(key, move |tx, key, charge| match charge.as_ref().map(|charge| charge.state) {
            None => {
                tx.execute(
                    "INSERT INTO charge (charge_key, state, created_ms, changed_ms) VALUES ($1, $2, $3, $4)",
                    &[key.into(), ChargeState::Voided.as_text().into(), now.into(), now.into()],
                )?;
                Ok(VoidOutcome::Voided)
            }
            Some(ChargeState::Authorised) => {
                set_state(tx, key, ChargeState::Voided, now)?;
                Ok(VoidOutcome::Voided)
            }
            // Nothing is reserved under a declined key, nor ever will be.
            Some(ChargeState::Voided | ChargeState::Declined) => Ok(VoidOutcome::Voided),
            Some(ChargeState::Captured) => match charge.and_then(|charge| charge.amount) {
                Some(amount) => Ok(VoidOutcome::Captured { amount }),
                None => Err(StoreError::Invalid("a captured charge has no amount".to_owned())),
            },
        })
    }
}

impl ChargeState {
    fn from_stored(text: &str) -> Result<ChargeState, StoreError> {
        ChargeState::from_text(text)
            .ok_or_else(|| StoreError::Invalid(format!("a charge in the unknown state {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{CardNumber, Expiry};

    const GOOD: &str = "4111111111111111";
    /// November 2026; the good card's last month is December 2026.
    const NOW: Millis = Millis(1_795_253_400_000);

    fn card(number: &str) -> PaymentCard {
        PaymentCard { number: CardNumber::new(number).unwrap(), expiry: Expiry::parse("12/26").unwrap() }
    }

    #[test]
    fn cards_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let bank = BuiltinGateway::open(dir.path()).unwrap();
        let ask = |key: &str, card: &PaymentCard| bank.authorise(key, Cents(100), card, NOW).unwrap();
        assert_eq!(ask("good", &card(GOOD)), AuthorisationOutcome::Authorised);
        assert_eq!(ask("luhn", &card("4111111111111112")), declined("card number is not valid"));
        assert_eq!(ask("test", &card(ALWAYS_DECLINED)), declined("card declined"));
        let last_month = PaymentCard { expiry: Expiry::parse("10/26").unwrap(), ..card(GOOD) };
        assert_eq!(ask("old", &last_month), declined("card expired"));
        let this_month = PaymentCard { expiry: Expiry::parse("11/26").unwrap(), ..card(GOOD) };
        assert_eq!(ask("last", &this_month), AuthorisationOutcome::Authorised);
        for (key, amount) in [("", 1), ("a\nb", 1), ("zero", 0), ("negative", -5)] {
            let answer = bank.authorise(key, Cents(amount), &card(GOOD), NOW).unwrap();
            assert!(matches!(answer, AuthorisationOutcome::Declined { .. }), "{key} {amount}");
        }
        assert_eq!(bank.void(&"k".repeat(129), NOW), Ok(VoidOutcome::Voided));
        assert_eq!(bank.charges().unwrap().len(), 5);
    }

    #[test]
    fn a_key_stands_for_one_amount_and_card() {
        let dir = tempfile::tempdir().unwrap();
        let bank = BuiltinGateway::open(dir.path()).unwrap();
        assert_eq!(bank.authorise("k", Cents(100), &card(GOOD), NOW), Ok(AuthorisationOutcome::Authorised));
        assert_eq!(bank.authorise("k", Cents(100), &card(GOOD), NOW), Ok(AuthorisationOutcome::Authorised));
        for (amount, number) in [(101, GOOD), (100, "5555555555554444")] {
            let answer = bank.authorise("k", Cents(amount), &card(number), NOW).unwrap();
            assert!(matches!(answer, AuthorisationOutcome::Declined { .. }));
        }
        assert_eq!(bank.capture("k", NOW), Ok(CaptureOutcome::Captured));
        assert_eq!(bank.authorise("k", Cents(100), &card(GOOD), NOW), Ok(AuthorisationOutcome::Authorised));
        let answer = bank.authorise("k", Cents(101), &card(GOOD), NOW).unwrap();
        assert!(matches!(answer, AuthorisationOutcome::Declined { .. }));
        assert_eq!(
            bank.void("k", NOW),
            Ok(VoidOutcome::Captured { amount: Cents(100) }),
            "what was taken, not what was asked"
        );
        let (state, amount) = (ChargeState::Captured, Some(Cents(100)));
        let expected = Charge { key: "k".to_owned(), state, amount, last4: Some("1111".to_owned()) };
        assert_eq!(bank.charges(), Ok(vec![expected]));
    }

    #[test]
    fn the_highest_number_of_a_prefix_is_known_whatever_became_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let bank = BuiltinGateway::open(dir.path()).unwrap();
        assert_eq!(bank.highest_number("trade-"), Ok(None));
        for key in ["trade-9", "trade-10", "trade-x", "trade--70", "trade-", "shop-99", "99"] {
            bank.authorise(key, Cents(100), &card(GOOD), NOW).unwrap();
        }
        assert_eq!(bank.highest_number("trade-"), Ok(Some(10)), "as a number, not as a text");
        bank.void("trade-12", NOW).unwrap();
        bank.authorise("trade-11", Cents(100), &card(ALWAYS_DECLINED), NOW).unwrap();
        assert_eq!(bank.highest_number("trade-"), Ok(Some(12)));
    }

    #[test]
    fn of_a_card_only_four_digits_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let bank = BuiltinGateway::open(dir.path()).unwrap();
        bank.authorise("k", Cents(100), &card(GOOD), NOW).unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(8).any(|window| window == b"41111111"));
        }
        bank.close();
        assert!(matches!(bank.capture("k", NOW), Err(GatewayError::Unreachable(_))));
    }

    #[derive(Debug, Clone)]
    enum Call {
        Authorise { key: usize, cents: i64, number: usize },
        Capture { key: usize },
        Void { key: usize },
        Reopen,
    }

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let call = prop_oneof![
            6 => (0..3usize, 1..3i64, 0..3usize)
                .prop_map(|(key, cents, number)| Call::Authorise { key, cents, number }),
            4 => (0..3usize).prop_map(|key| Call::Capture { key }),
            4 => (0..3usize).prop_map(|key| Call::Void { key }),
            1 => Just(Call::Reopen),
        ];
        prop::collection::vec(call, 0..40)
    }

    /// A model of the rules, as simple as possible: what has ever happened to a key.
    #[derive(Debug, Default)]
    struct History {
        authorised: Option<(i64, usize)>,
        declined: Option<(i64, usize)>,
        captured: bool,
        voided: bool,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_order_of_calls_keeps_the_rules(calls in calls()) {
            let numbers = [GOOD, "5555555555554444", ALWAYS_DECLINED];
            let dir = tempfile::tempdir().unwrap();
            let mut bank = BuiltinGateway::open(dir.path()).unwrap();
            let mut model: BTreeMap<usize, History> = BTreeMap::new();
            for call in calls {
                match call {
                    Call::Reopen => {
                        drop(bank);
                        bank = BuiltinGateway::open(dir.path()).unwrap();
                    }
                    Call::Authorise { key, cents, number } => {
                        let answer = bank.authorise(&key.to_string(), Cents(cents), &card(numbers[number]), NOW);
                        let history = model.entry(key).or_default();
                        let asked = (cents, number);
                        let first = history.authorised.is_none() && history.declined.is_none() && !history.voided;
                        if first && number == 2 {
                            history.declined = Some(asked);
                        } else if first {
                            history.authorised = Some(asked);
                        }
                        let passes = history.authorised == Some(asked) && !history.voided;
                        prop_assert_eq!(answer.unwrap() == AuthorisationOutcome::Authorised, passes);
                    }
                    Call::Capture { key } => {
                        let answer = bank.capture(&key.to_string(), NOW).unwrap();
                        let history = model.entry(key).or_default();
                        history.captured |= history.authorised.is_some() && !history.voided;
                        prop_assert_eq!(answer == CaptureOutcome::Captured, history.captured);
                    }
                    Call::Void { key } => {
                        let answer = bank.void(&key.to_string(), NOW).unwrap();
                        let history = model.entry(key).or_default();
                        history.voided |= !history.captured && history.declined.is_none();
                        prop_assert_eq!(answer == VoidOutcome::Voided, !history.captured);
                    }
                }
                let expected: Vec<_> = model
                    .iter()
                    .filter_map(|(key, history)| {
                        let state = match history {
                            History { captured: true, .. } => ChargeState::Captured,
                            History { voided: true, .. } => ChargeState::Voided,
                            History { declined: Some(_), .. } => ChargeState::Declined,
                            History { authorised: Some(_), .. } => ChargeState::Authorised,
                            _ => return None,
                        };
                        let amount = history.authorised.or(history.declined).map(|(cents, _)| Cents(cents));
                        Some((key.to_string(), state, amount))
                    })
                    .collect();
                let found: Vec<_> = bank.charges().unwrap().into_iter().map(|c| (c.key, c.state, c.amount)).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
