//! The customer database's tables except those of purchases. Accounts are read when needed. Open sessions, their carts
//! and their buyers' saved carts are held in memory and loaded from here at the start.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::sales::{self, PurchaseWrites, to_quantity};
use crate::identity::SessionKey;
use crate::model::text::nfc;
use crate::model::{Clock, Millis};
use crate::shop::ops::{Account, Role};
use crate::shop::purchase::Purchase;
use crate::storage::{self, Journal, Reader, ReaderExt, Row, StoreError, StoredChange, Tx, bigint};

/// `shop_session.session` is [`SessionKey::to_text`]; the session id that clients know is not in the file.
pub const MIGRATION: &str = "
    CREATE TABLE shop_user (role TEXT NOT NULL, user_id BIGINT NOT NULL, username TEXT NOT NULL, name TEXT,
        password TEXT NOT NULL, request TEXT NOT NULL, created_at BIGINT NOT NULL,
        PRIMARY KEY (role, user_id), UNIQUE (role, username));
    CREATE TABLE shop_session (session TEXT PRIMARY KEY, role TEXT NOT NULL, user_id BIGINT NOT NULL,
        used_at BIGINT NOT NULL);
    CREATE TABLE shop_flush (id INTEGER PRIMARY KEY, at BIGINT NOT NULL);
    CREATE TABLE shop_cart (session TEXT NOT NULL, item_id TEXT NOT NULL, quantity BIGINT NOT NULL,
        PRIMARY KEY (session, item_id));
    CREATE TABLE shop_saved (user_id BIGINT NOT NULL, item_id TEXT NOT NULL, quantity BIGINT NOT NULL,
        PRIMARY KEY (user_id, item_id));
    CREATE TABLE shop_request (session TEXT NOT NULL, slot BIGINT NOT NULL, number BIGINT NOT NULL,
        request TEXT NOT NULL, at BIGINT NOT NULL, quantity BIGINT, PRIMARY KEY (session, slot))";

/// User ids to skip, by role: see [`skip_user_ids`].
pub const MIGRATION_SKIPPED: &str = "CREATE TABLE shop_user_skipped (role TEXT PRIMARY KEY, up_to BIGINT NOT NULL)";

/// User names get a key by which they are compared: the name in Unicode's form C. An ASCII name, recognised by its
/// length in bytes, is its own key; [`backfill_username_keys`] adds the others.
pub const MIGRATION_KEYS: &str = "
    ALTER TABLE shop_user ADD COLUMN username_key TEXT;
    UPDATE shop_user SET username_key = username WHERE length(CAST(username AS BLOB)) = length(username);
    CREATE INDEX shop_user_key ON shop_user (role, username_key);
    CREATE INDEX shop_user_without_key ON shop_user (role, user_id) WHERE username_key IS NULL";

/// Adds the keys that [`MIGRATION_KEYS`] has left out.
pub fn backfill_username_keys(tx: &mut dyn Tx) -> Result<(), StoreError> {
    let sql = "SELECT role, user_id, username FROM shop_user WHERE username_key IS NULL";
    let missing = tx.all(sql, &[], |row| Ok((role_from_row(row, 0)?, row.uint(1)?, row.text(2)?.to_owned())))?;
    for (role, user_id, username) in missing {
        tx.execute(
            "UPDATE shop_user SET username_key = $1 WHERE role = $2 AND user_id = $3",
            &[nfc(&username).as_ref().into(), role.as_str().into(), bigint(user_id)?.into()],
        )?;
    }
    Ok(())
}

pub type StoreJournal = storage::StoreJournal<CustomerChange>;

/// A journal whose commits are `C`.
pub trait CustomerJournal<C>: Journal<Change = CustomerChange, Commit = C> {}

impl<C, J: Journal<Change = CustomerChange, Commit = C>> CustomerJournal<C> for J {}

impl StoredChange for CustomerChange {
    type Prepared = CustomerChange;

    /// A purchase bears a date instead of the instant by which its lease is measured.
    fn prepare(mut self, clock: &Clock) -> CustomerChange {
        if let CustomerChange::Purchase(writes) = &mut self {
            writes.convert_time(|instant| clock.date_of(instant));
        }
        self
    }

    fn write(change: &CustomerChange, tx: &mut dyn Tx) -> Result<(), StoreError> {
        change.write_rows(tx)
    }
}

/// A change of a session, a cart, a remembered response or a purchase. The end of a session takes its cart and its
/// remembered responses along; a line of no units is deleted.
#[derive(Debug, Clone)]
pub enum CustomerChange {
    OpenSession {
        session: SessionKey,
        role: Role,
        user_id: u64,
        at: Millis,
    },
    CloseSession(SessionKey),
    CartLine {
        session: SessionKey,
        item_id: Arc<str>,
        quantity: u32,
    },
    SavedCartLine {
        user_id: u64,
        item_id: Arc<str>,
        quantity: u32,
    },
    /// The response is the remaining quantity, if it returns one.
    AnsweredRequest {
        session: SessionKey,
        slot: u32,
        number: u64,
        request: String,
        at: Millis,
        quantity: Option<u32>,
    },
    Purchase(Box<PurchaseWrites>),
}

impl CustomerChange {
    fn write_rows(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        match self {
            CustomerChange::Purchase(writes) => return writes.write(tx),
            CustomerChange::OpenSession { session, role, user_id, at } => tx.execute(
                "INSERT INTO shop_session (session, role, user_id, used_at) VALUES ($1, $2, $3, $4)",
                &[(&session.to_text()).into(), role.as_str().into(), bigint(*user_id)?.into(), (*at).into()],
            ),
            CustomerChange::CloseSession(session) => {
                let session = session.to_text();
                tx.execute("DELETE FROM shop_cart WHERE session = $1", &[(&session).into()])?;
                tx.execute("DELETE FROM shop_request WHERE session = $1", &[(&session).into()])?;
                tx.execute("DELETE FROM shop_session WHERE session = $1", &[(&session).into()])
            }
            CustomerChange::CartLine { session, item_id, quantity: 0 } => tx.execute(
                "DELETE FROM shop_cart WHERE session = $1 AND item_id = $2",
                &[(&session.to_text()).into(), (&**item_id).into()],
            ),
            CustomerChange::CartLine { session, item_id, quantity } => tx.execute(
                "INSERT INTO shop_cart (session, item_id, quantity) VALUES ($1, $2, $3)
                 ON CONFLICT (session, item_id) DO UPDATE SET quantity = excluded.quantity",
                &[(&session.to_text()).into(), (&**item_id).into(), (*quantity).into()],
            ),
            CustomerChange::SavedCartLine { user_id, item_id, quantity: 0 } => tx.execute(
                "DELETE FROM shop_saved WHERE user_id = $1 AND item_id = $2",
                &[bigint(*user_id)?.into(), (&**item_id).into()],
            ),
            CustomerChange::SavedCartLine { user_id, item_id, quantity } => tx.execute(
                "INSERT INTO shop_saved (user_id, item_id, quantity) VALUES ($1, $2, $3)
                 ON CONFLICT (user_id, item_id) DO UPDATE SET quantity = excluded.quantity",
                &[bigint(*user_id)?.into(), (&**item_id).into(), (*quantity).into()],
            ),
            CustomerChange::AnsweredRequest { session, slot, number: n, request, at, quantity } => tx.execute(
                "INSERT INTO shop_request (session, slot, number, request, at, quantity) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (session, slot) DO UPDATE SET number = excluded.number, request = excluded.request,
                     at = excluded.at, quantity = excluded.quantity",
                &[
                    (&session.to_text()).into(),
                    (*slot).into(),
                    bigint(*n)?.into(),
                    request.into(),
                    (*at).into(),
                    (*quantity).into(),
                ],
            ),
        }
        .map(|_rows| ())
    }
}

#[derive(Debug)]
pub struct SessionRow {
    pub session: SessionKey,
    pub role: Role,
    pub account: Account,
    /// The last use, as far as it was written.
    pub used_at: Millis,
    /// It had expired when last uses were written.
    pub was_over: bool,
}

/// A consistent snapshot of what is held in memory.
#[derive(Debug, Default)]
pub struct CustomerSnapshot {
    /// They include those whose end was not written.
    pub sessions: Vec<SessionRow>,
    /// The lines of the sessions' carts.
    pub lines: Vec<(SessionKey, Arc<str>, u32)>,
    /// The saved carts of buyers who have a session or an open purchase.
    pub saved: Vec<(u64, Arc<str>, u32)>,
    /// They are ordered by session, then by request.
    pub answered: Vec<AnsweredRow>,
    pub open_purchases: Vec<Purchase>,
}

#[derive(Debug)]
pub struct AnsweredRow {
    pub session: SessionKey,
    pub number: u64,
    pub request: String,
    pub at: Millis,
    pub quantity: Option<u32>,
}

/// What is held in memory.
pub fn load(reader: &dyn Reader, timeout: Duration) -> Result<CustomerSnapshot, StoreError> {
    let flushed_at = reader.first("SELECT at FROM shop_flush WHERE id = 1", &[], |row| row.millis(0))?;
    let flushed_at = flushed_at.unwrap_or_default();
    let sessions = reader.all(
        "SELECT u.user_id, u.username, u.name, s.session, s.role, s.used_at FROM shop_session s
         JOIN shop_user u ON u.role = s.role AND u.user_id = s.user_id",
        &[],
        |row| {
            let used_at = row.millis(5)?;
            let was_over = used_at.plus(timeout) <= flushed_at;
            Ok(SessionRow {
                session: session_key(row, 3)?,
                role: role_from_row(row, 4)?,
                account: account_from_row(row)?,
                used_at,
                was_over,
            })
        },
    )?;
    let lines = reader.all("SELECT session, item_id, quantity FROM shop_cart", &[], |row| {
        Ok((session_key(row, 0)?, Arc::from(row.text(1)?), to_quantity(row.uint(2)?)?))
    })?;
    let open_purchases = sales::open_purchases(reader)?;
    let mut saved = reader.all(
        "SELECT user_id, item_id, quantity FROM shop_saved
         WHERE user_id IN (SELECT user_id FROM shop_session WHERE role = 'buyer')",
        &[],
        |row| Ok((row.uint(0)?, Arc::from(row.text(1)?), to_quantity(row.uint(2)?)?)),
    )?;
    let mut loaded: HashSet<u64> =
        sessions.iter().filter(|row: &&SessionRow| row.role == Role::Buyer).map(|row| row.account.user_id).collect();
    for buyer_id in open_purchases.iter().map(|purchase| purchase.buyer.user_id) {
        if loaded.insert(buyer_id) {
            let lines = saved_cart(reader, buyer_id)?.into_iter();
            saved.extend(lines.map(|(item_id, quantity)| (buyer_id, item_id, quantity)));
        }
    }
    let answered = reader.all(
        "SELECT session, number, request, at, quantity FROM shop_request ORDER BY session, number",
        &[],
        |row| {
            let quantity = row.opt_int(4)?.map(|_| to_quantity(row.uint(4)?)).transpose()?;
            let (number, request, at) = (row.uint(1)?, row.text(2)?.to_owned(), row.millis(3)?);
            Ok(AnsweredRow { session: session_key(row, 0)?, number, request, at, quantity })
        },
    )?;
    Ok(CustomerSnapshot { sessions, lines, saved, answered, open_purchases })
}

pub fn saved_cart(reader: &dyn Reader, user_id: u64) -> Result<Vec<(Arc<str>, u32)>, StoreError> {
    let sql = "SELECT item_id, quantity FROM shop_saved WHERE user_id = $1";
    reader.all(sql, &[bigint(user_id)?.into()], |row| Ok((Arc::from(row.text(0)?), to_quantity(row.uint(1)?)?)))
}

/// Sessions that have ended stay deleted.
pub fn write_last_uses(tx: &mut dyn Tx, uses: &[(SessionKey, Millis)]) -> Result<(), StoreError> {
    for (session, at) in uses {
        let session = session.to_text();
        tx.execute("UPDATE shop_session SET used_at = $1 WHERE session = $2", &[(*at).into(), (&session).into()])?;
    }
    Ok(())
}

/// All last uses up to this time are written.
pub fn write_flush_time(tx: &mut dyn Tx, at: Millis) -> Result<(), StoreError> {
    let sql = "INSERT INTO shop_flush (id, at) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    tx.execute(sql, &[at.into()]).map(|_rows| ())
}

#[derive(Clone)]
pub struct UserRow {
    pub account: Account,
    /// The password's hash.
    pub password: String,
    /// Which created the account.
    pub request: String,
    pub created_at: Millis,
}

/// The name may have any Unicode spelling. Earlier versions could create two users with different spellings of a name;
/// then this is the one with exactly this spelling, or else the older.
pub fn user_by_name(reader: &dyn Reader, role: Role, username: &str) -> Result<Option<UserRow>, StoreError> {
    let sql = "SELECT user_id, username, name, password, request, created_at FROM shop_user
               WHERE role = $1 AND username_key = $2 ORDER BY username <> $3, user_id LIMIT 1";
    reader.first(sql, &[role.as_str().into(), nfc(username).as_ref().into(), username.into()], |row| {
        let (password, request) = (row.text(3)?.to_owned(), row.text(4)?.to_owned());
        Ok(UserRow { account: account_from_row(row)?, password, request, created_at: row.millis(5)? })
    })
}

pub fn account_by_id(reader: &dyn Reader, role: Role, user_id: u64) -> Result<Option<Account>, StoreError> {
    // No id is that large.
    let Ok(user_id) = i64::try_from(user_id) else { return Ok(None) };
    let sql = "SELECT user_id, username, name FROM shop_user WHERE role = $1 AND user_id = $2";
    reader.first(sql, &[role.as_str().into(), user_id.into()], account_from_row)
}

/// Lists all accounts for the operator.
pub fn for_each_user(reader: &dyn Reader, each: &mut dyn FnMut(Role, Account, Millis)) -> Result<(), StoreError> {
    let sql = "SELECT user_id, username, name, role, created_at FROM shop_user ORDER BY role, user_id";
    reader.query(sql, &[], &mut |row| {
        each(role_from_row(row, 3)?, account_from_row(row)?, row.millis(4)?);
        Ok(())
    })
}

/// Assigned or to be skipped.
fn last_user_id(tx: &mut dyn Tx, role: Role) -> Result<u64, StoreError> {
    let sql = "SELECT COALESCE(MAX(id), 0) FROM (SELECT MAX(user_id) AS id FROM shop_user WHERE role = $1
               UNION ALL SELECT up_to FROM shop_user_skipped WHERE role = $1) AS ids";
    Ok(tx.first(sql, &[role.as_str().into()], |row| row.uint(0))?.unwrap_or(0))
}

/// The ids of each role up to this one may have been assigned by a lost file or after the backup that this file is
/// from.
pub fn skip_user_ids(tx: &mut dyn Tx, up_to: u64) -> Result<(), StoreError> {
    for role in [Role::Buyer, Role::Seller] {
        if last_user_id(tx, role)? >= up_to {
            continue;
        }
        let up_to = bigint(up_to)?;
        tx.execute(
            "INSERT INTO shop_user_skipped (role, up_to) VALUES ($1, $2)
             ON CONFLICT (role) DO UPDATE SET up_to = excluded.up_to",
            &[role.as_str().into(), up_to.into()],
        )?;
    }
    Ok(())
}

/// Adds a user with the next id of the role.
pub fn add_user(
    tx: &mut dyn Tx,
    role: Role,
    username: &str,
    name: Option<&str>,
    (password, request): (&str, &str),
    at: Millis,
) -> Result<Account, StoreError> {
    let user_id = last_user_id(tx, role)? + 1;
    tx.execute(
        "INSERT INTO shop_user (role, user_id, username, name, password, request, created_at, username_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            role.as_str().into(),
            bigint(user_id)?.into(),
            username.into(),
            name.into(),
            password.into(),
            request.into(),
            at.into(),
            nfc(username).as_ref().into(),
        ],
    )?;
    Ok(Account { user_id, username: username.to_owned(), name: name.unwrap_or(username).to_owned() })
}

/// Reads the first three columns: `user_id`, `username`, `name`.
fn account_from_row(row: &Row<'_>) -> Result<Account, StoreError> {
    let username = row.text(1)?.to_owned();
    let name = row.opt_text(2)?.map_or_else(|| username.clone(), str::to_owned);
    Ok(Account { user_id: row.uint(0)?, username, name })
}

fn role_from_row(row: &Row<'_>, column: usize) -> Result<Role, StoreError> {
    let text = row.text(column)?;
    let found = [Role::Buyer, Role::Seller].into_iter().find(|role| role.as_str() == text);
    found.ok_or_else(|| StoreError::Invalid(format!("the store names the unknown role {text:?}")))
}

fn session_key(row: &Row<'_>, column: usize) -> Result<SessionKey, StoreError> {
    let key = SessionKey::from_text(row.text(column)?);
    key.ok_or_else(|| StoreError::Invalid("the store holds a session without a key".to_owned()))
}
