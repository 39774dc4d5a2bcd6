//! Payment cards. Only the last four digits of a card number are ever shown, logged or stored.

use std::fmt;

use super::serde_as_text;

/// A card number: 12–19 digits, without spaces and dashes. `Debug` and `Display` show only the last four digits.
#[derive(Clone, PartialEq, Eq)]
pub struct CardNumber(String);

impl CardNumber {
    /// Checks the form, not the check digit: whether a card is valid is decided by the bank.
    pub fn new(text: &str) -> Result<CardNumber, String> {
        let digits: String = text.chars().filter(|c| *c != ' ' && *c != '-').collect();
        if !(12..=19).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("expected a card number of 12 to 19 digits".to_owned());
        }
        Ok(CardNumber(digits))
    }

    /// Whether the last digit is the check digit of the others (Luhn).
    pub fn passes_luhn(&self) -> bool {
        let doubled = |digit: u32| if digit > 4 { 2 * digit - 9 } else { 2 * digit };
        let digits = self.0.bytes().rev().map(|byte| u32::from(byte - b'0')).enumerate();
        let sum: u32 = digits.map(|(place, digit)| if place % 2 == 1 { doubled(digit) } else { digit }).sum();
        sum.is_multiple_of(10)
    }

    /// The only part of a number that may be stored.
    pub fn last4(&self) -> &str {
        &self.0[self.0.len() - 4..]
    }

    /// The whole number, for the wire and the bank. It must not be logged or stored.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CardNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CardNumber(…{})", self.last4())
    }
}

impl fmt::Display for CardNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "…{}", self.last4())
    }
}

serde_as_text!(CardNumber, CardNumber::new, |number, serializer| serializer.serialize_str(number.reveal()));

/// The last month in which a card is valid: `MM/YY` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    year: u16,
    month: u8,
}

impl Expiry {
    /// Parses `MM/YY`.
    pub fn parse(text: &str) -> Result<Expiry, String> {
        let read = || {
            let (month, year) = text.split_once('/')?;
            if month.len() != 2 || year.len() != 2 || !text.is_ascii() {
                return None;
            }
            let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(month) || !digits(year) {
                return None;
            }
            let expiry = Expiry { year: 2000 + year.parse::<u16>().ok()?, month: month.parse().ok()? };
            (1..=12).contains(&expiry.month).then_some(expiry)
        };
        read().ok_or_else(|| "expected a card's expiry as MM/YY".to_owned())
    }

    /// Whether the month has ended at this time (UTC).
    pub fn is_expired(self, now: super::Millis) -> bool {
        let today = now.to_utc();
        (today.year(), u8::from(today.month())) > (i32::from(self.year), self.month)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}/{:02}", self.month, self.year % 100)
    }
}

serde_as_text!(Expiry, Expiry::parse, |expiry, serializer| serializer.collect_str(expiry));

/// What a bank needs to charge a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentCard {
    pub number: CardNumber,
    pub expiry: Expiry,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Millis;

    #[test]
    fn numbers_are_checked_and_hidden() {
        let good = CardNumber::new("4111 1111-1111 1111").unwrap();
        assert!(good.passes_luhn());
        assert!(!CardNumber::new("4111111111111112").unwrap().passes_luhn());
        assert_eq!(format!("{good:?} {good}"), "CardNumber(…1111) …1111");
        for text in ["", "411111", "41111111111111111111", "4111x11111111111", "４111111111111111"] {
            assert!(CardNumber::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_card_is_good_to_the_end_of_its_month() {
        let expiry = Expiry::parse("11/26").unwrap();
        let end_of_november = Millis::from_unix_s(1_796_083_199);
        assert!(!expiry.is_expired(end_of_november));
        assert!(expiry.is_expired(end_of_november.plus_ms(1000)));
        assert_eq!(expiry.to_string(), "11/26");
        for text in ["", "13/26", "00/26", "1/26", "11/2026", "11-26", "aa/bb", "+1/26"] {
            assert!(Expiry::parse(text).is_err(), "{text}");
        }
    }
}
