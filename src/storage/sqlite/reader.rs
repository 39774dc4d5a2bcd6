use std::path::Path;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags, ToSql};

use super::super::engine::ReadConnection;
use super::super::value::{Columns, RowCallback};
use super::super::{Reader, Row, StoreError, Value};
use super::{
    BUSY_TIMEOUT, STATEMENT_CACHE_CAPACITY, execute_cached, file_name_of, store_error, use_stable_query_plans,
};

/// A connection that can only read.
#[derive(Debug)]
pub struct SqliteReader(Connection);

impl SqliteReader {
    pub(super) fn new(connection: Connection) -> SqliteReader {
        SqliteReader(connection)
    }
}

impl Reader for SqliteReader {
    fn query(&self, sql: &str, parameters: &[Value<'_>], each: &mut RowCallback<'_>) -> Result<(), StoreError> {
        each_row(&self.0, &mut prepare(&self.0, sql, parameters)?, each)
    }
}

impl ReadConnection for SqliteReader {
    fn begin(&self) -> Result<(), StoreError> {
        execute_cached(&self.0, "BEGIN")
    }

    fn end(&self) -> Result<(), StoreError> {
        execute_cached(&self.0, "COMMIT")
    }

    fn reset(&self) -> bool {
        self.0.is_autocommit() || execute_cached(&self.0, "ROLLBACK").is_ok()
    }
}

/// [`open_writer`](super::open_writer) must have opened the file before.
pub(in crate::storage) fn open_reader(path: &Path) -> Result<SqliteReader, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
        use_stable_query_plans(&connection)?;
        connection.pragma_update(None, "query_only", "ON")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(connection)
    };
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    open().map(SqliteReader::new).map_err(|error: rusqlite::Error| StoreError::from_sqlite(&file, &error))
}

impl Columns for rusqlite::Row<'_> {
    fn column(&self, column: usize) -> Result<Value<'_>, &'static str> {
        match self.get_ref(column).map_err(|_| "to exist")? {
            ValueRef::Integer(number) => Ok(Value::Int(number)),
            ValueRef::Text(bytes) => std::str::from_utf8(bytes).map(Value::Text).map_err(|_| "UTF-8 text"),
            ValueRef::Blob(bytes) => Ok(Value::Blob(bytes)),
            ValueRef::Null => Ok(Value::Null),
            ValueRef::Real(_) => Err("a whole number, a text or bytes"),
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Value::Int(number) => ValueRef::Integer(number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
            Value::Null => ValueRef::Null,
        }))
    }
}

pub(super) fn prepare<'c>(
    connection: &'c Connection,
    sql: &str,
    parameters: &[Value<'_>],
) -> Result<CachedStatement<'c>, StoreError> {
    let failed = |error: rusqlite::Error| store_error(connection, &error);
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    // A missing parameter would silently be NULL.
    let wanted = statement.parameter_count();
    if wanted != parameters.len() {
        return Err(StoreError::Invalid(format!(
            "{} parameters for a statement with {wanted}: {sql}",
            parameters.len()
        )));
    }
    for (place, parameter) in (1..).zip(parameters) {
        // SQLite numbers parameters by first appearance, PostgreSQL by name: both must agree. Every statement runs in
        // tests, so that checking in debug builds is enough.
        if cfg!(debug_assertions) && statement.parameter_name(place) != Some(&format!("${place}")) {
            return Err(StoreError::Invalid(format!("parameters out of order: {sql}")));
        }
        statement.raw_bind_parameter(place, parameter).map_err(failed)?;
    }
    Ok(statement)
}

pub(super) fn each_row(
    connection: &Connection,
    statement: &mut CachedStatement<'_>,
    each: &mut RowCallback<'_>,
) -> Result<(), StoreError> {
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(|error| store_error(connection, &error))? {
        each(&Row { columns: row }).map_err(|error| error.into_corruption_of(file_name_of(connection)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;
    use rusqlite::config::DbConfig;

    use super::super::open_writer;
    use super::*;

    const TERMS: &str = "CREATE TABLE terms (kind BIGINT NOT NULL, term TEXT NOT NULL, price BIGINT NOT NULL,
         PRIMARY KEY (kind, term, price)) WITHOUT ROWID";
    const RANGE: &str = "SELECT price FROM terms WHERE kind = $1 AND term > $2 AND term <= $3 ORDER BY price LIMIT $4";

    #[test]
    fn other_parameters_compile_nothing_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("terms.db");
        let compiled = |connection: &Connection| {
            for kind in 0..5_i64 {
                let values = [kind.into(), Value::from("a"), Value::from("b"), (kind + 1).into()];
                each_row(connection, &mut prepare(connection, RANGE, &values).unwrap(), &mut |_| Ok(())).unwrap();
            }
            connection.prepare_cached(RANGE).unwrap().get_status(StatementStatus::RePrepare)
        };
        let writer = open_writer(&path, &[TERMS]).unwrap().connection;
        assert_eq!((compiled(&writer), compiled(&open_reader(&path).unwrap().0)), (0, 0));
        // Without the setting they do: else this test would prove nothing.
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false).unwrap();
        writer.flush_prepared_statement_cache();
        assert!(compiled(&writer) > 0);
    }
}
