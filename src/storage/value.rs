//! The rooms' interface to a database, in a dialect that SQLite and PostgreSQL share.
//!
//! Parameters are written `$1, $2, …`, each for the first time in this order. A sum needs a cast (`CAST(SUM(x) AS
//! BIGINT)`), an upsert is `INSERT … ON CONFLICT (…) DO UPDATE SET x = excluded.x`. A list of numbers is one JSON
//! parameter, read by `json_each($1)`: rows with a `value`, in the list's order.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::model::{Cents, Millis, Name};

/// It borrows texts and bytes, so that a change copies none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Booleans are 0 and 1.
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
    Null,
}

macro_rules! value_from {
    ($($from:ty, $given:ident => $value:expr;)*) => {$(
        impl<'a> From<$from> for Value<'a> {
            fn from($given: $from) -> Value<'a> {
                $value
            }
        }
    )*};
}
macro_rules! value_from_int {
    ($($int:ty),*) => { value_from! { $($int, number => Value::Int(i64::from(number));)* } };
}

value_from_int!(i64, i32, i16, i8, u32, u16, u8, bool);
value_from! {
    Cents, cents => Value::Int(cents.0);
    // Instants after the year 292,000,000 become the last one that fits.
    Millis, instant => Value::Int(i64::try_from(instant.0).unwrap_or(i64::MAX));
    &'a str, text => Value::Text(text);
    &'a String, text => Value::Text(text);
    &'a Name, name => Value::Text(name.as_str());
    &'a [u8], bytes => Value::Blob(bytes);
    &'a Vec<u8>, bytes => Value::Blob(bytes);
}

impl<'a, const N: usize> From<&'a [u8; N]> for Value<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Value::Blob(bytes)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// A row as a database gives it.
pub(super) trait Columns: fmt::Debug {
    /// The error tells what was expected of the column instead.
    fn column(&self, column: usize) -> Result<Value<'_>, &'static str>;
}

/// Columns count from 0. One of another type, or that does not exist, is [`StoreError::Invalid`]: data that this
/// program did not write, or a programming error.
#[derive(Debug)]
pub struct Row<'a> {
    pub(super) columns: &'a dyn Columns,
}

impl Row<'_> {
    pub fn int(&self, column: usize) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or_else(|| invalid_column(column, "a whole number"))
    }

    pub fn opt_int(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.get(column)? {
            Value::Int(number) => Ok(Some(number)),
            Value::Null => Ok(None),
            _ => Err(invalid_column(column, "a whole number")),
        }
    }

    pub fn uint(&self, column: usize) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_| invalid_column(column, "a number that is not negative"))
    }

    /// A boolean is stored as 0 or 1.
    pub fn bool(&self, column: usize) -> Result<bool, StoreError> {
        match self.int(column)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(invalid_column(column, "0 or 1")),
        }
    }

    pub fn cents(&self, column: usize) -> Result<Cents, StoreError> {
        self.int(column).map(Cents)
    }

    /// An instant is stored in milliseconds since 1970.
    pub fn millis(&self, column: usize) -> Result<Millis, StoreError> {
        self.uint(column).map(Millis)
    }

    pub fn text(&self, column: usize) -> Result<&str, StoreError> {
        self.opt_text(column)?.ok_or_else(|| invalid_column(column, "a text"))
    }

    pub fn opt_text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        match self.get(column)? {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(invalid_column(column, "a text")),
        }
    }

    /// The name is validated again.
    pub fn name(&self, column: usize) -> Result<Name, StoreError> {
        Name::from_stored(self.text(column)?).map_err(|rule| invalid_column(column, &format!("a name ({rule})")))
    }

    pub fn blob(&self, column: usize) -> Result<&[u8], StoreError> {
        self.opt_blob(column)?.ok_or_else(|| invalid_column(column, "bytes"))
    }

    pub fn opt_blob(&self, column: usize) -> Result<Option<&[u8]>, StoreError> {
        match self.get(column)? {
            Value::Blob(bytes) => Ok(Some(bytes)),
            Value::Null => Ok(None),
            _ => Err(invalid_column(column, "bytes")),
        }
    }

    fn get(&self, column: usize) -> Result<Value<'_>, StoreError> {
        self.columns.column(column).map_err(|expected| invalid_column(column, expected))
    }
}

/// An unsigned number, for a column that is signed.
pub fn bigint(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Invalid(format!("{number} is no number of this program")))
}

/// For a text column.
pub fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Invalid(error.to_string()))
}

/// `what` is at fault if this is not what [`to_json`] writes.
pub fn from_json<T: DeserializeOwned>(what: &str, json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Invalid(format!("{what}: {error}")))
}

fn invalid_column(column: usize, expected: &str) -> StoreError {
    StoreError::Invalid(format!("column {column} of a row in the store: expected {expected}"))
}

/// An error ends the query and becomes its result.
pub type RowCallback<'a> = dyn FnMut(&Row<'_>) -> Result<(), StoreError> + 'a;

/// All queries see one snapshot.
pub trait Reader {
    /// Calls `each` with every row of the result, in order.
    fn query(&self, sql: &str, parameters: &[Value<'_>], each: &mut RowCallback<'_>) -> Result<(), StoreError>;
}

/// A change in progress: it sees its own writes; nobody else does before the commit.
pub trait Tx: Reader {
    /// Runs a statement that returns no rows; returns how many it inserted, changed or deleted.
    fn execute(&mut self, sql: &str, parameters: &[Value<'_>]) -> Result<u64, StoreError>;
}

pub trait ReaderExt: Reader {
    /// Say `LIMIT 1` where there may be many rows.
    fn first<T>(
        &self,
        sql: &str,
        parameters: &[Value<'_>],
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut first = None;
        self.query(sql, parameters, &mut |row| {
            if first.is_none() {
                first = Some(read(row)?);
            }
            Ok(())
        })?;
        Ok(first)
    }

    /// All rows, in order.
    fn all<T>(
        &self,
        sql: &str,
        parameters: &[Value<'_>],
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.query(sql, parameters, &mut |row| {
            all.push(read(row)?);
            Ok(())
        })?;
        Ok(all)
    }
}

impl<R: Reader + ?Sized> ReaderExt for R {}
