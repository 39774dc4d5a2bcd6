//! The customer database's tables but for those of purchases: every statement that touches them.
//!
//! Accounts are read from disk when they are asked for; sessions that are alive are held in memory, with
//! their carts and their buyers' saved ones, and built from here at start.

use std::sync::Arc;
use std::time::Duration;

use super::sales::{self, PurchaseRows, number, quantity};
use crate::identity::SessionKey;
use crate::model::text::nfc;
use crate::model::{Clock, Millis};
use crate::shop::ops::{Account, Role};
use crate::shop::purchase::Purchase;
use crate::storage::{Appender, CommitHandle, CommitState, Journal, Query, Reader, Row, StoreError, Tx};

/// Accounts, sessions and carts, for the migrations of the customer database.
///
/// `shop_session.session` is [`SessionKey::to_text`]: the id that a client shows is not in the file.
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

/// Up to which number ids are not given out, by role: see [`skip_user_ids`].
pub const MIGRATION_SKIPPED: &str = "CREATE TABLE shop_user_skipped (role TEXT PRIMARY KEY, up_to BIGINT NOT NULL)";

/// User names as they are compared: in form C. Those that may not be in it yet have none until
/// [`fill_in_keys`]; what is of ASCII alone is, and is told by its length.
pub const MIGRATION_KEYS: &str = "
    ALTER TABLE shop_user ADD COLUMN username_key TEXT;
    UPDATE shop_user SET username_key = username WHERE length(CAST(username AS BLOB)) = length(username);
    CREATE INDEX shop_user_key ON shop_user (role, username_key);
    CREATE INDEX shop_user_without_key ON shop_user (role, user_id) WHERE username_key IS NULL";

/// Gives each user name of before [`MIGRATION_KEYS`] its key.
///
/// # Errors
/// The store's.
pub fn fill_in_keys(tx: &mut dyn Tx) -> Result<(), StoreError> {
    let sql = "SELECT role, user_id, username FROM shop_user WHERE username_key IS NULL";
    let missing = tx.all(sql, &[], |row| Ok((role(row, 0)?, row.uint(1)?, row.text(2)?.to_owned())))?;
    for (role, user_id, username) in missing {
        tx.execute(
            "UPDATE shop_user SET username_key = $1 WHERE role = $2 AND user_id = $3",
            &[nfc(&username).as_ref().into(), role.as_text().into(), number(user_id)?.into()],
        )?;
    }
    Ok(())
}

/// The way of the core's changes to the store's writer.
#[derive(Debug, Clone)]
pub struct StoreJournal {
    appender: Appender,
    clock: Clock,
}

impl StoreJournal {
    /// A journal in the appender's epoch, for a core that goes by this clock.
    pub fn new(appender: Appender, clock: Clock) -> StoreJournal {
        StoreJournal { appender, clock }
    }

    /// The way to the writer itself.
    #[cfg(test)]
    pub fn appender(&self) -> &Appender {
        &self.appender
    }
}

impl Journal for StoreJournal {
    type Change = Change;
    type Receipt = CommitHandle;

    fn append(&self, mut changes: Vec<Change>) -> CommitHandle {
        for change in &mut changes {
            // What was purchased bears a date, not the time that leases are measured by.
            if let Change::Purchase(rows) = change {
                rows.shift(|instant| self.clock.dated(instant));
            }
        }
        self.appender.append(move |tx| changes.iter().try_for_each(|change| change.write(tx)))
    }

    fn later(a: CommitHandle, b: CommitHandle) -> CommitHandle {
        CommitHandle::later(a, b)
    }

    fn is_committed(&self, receipt: &CommitHandle) -> bool {
        receipt.state() == CommitState::Committed
    }
}

/// What is stored of a change of the core.
#[derive(Debug, Clone)]
pub enum Change {
    /// Someone has signed in.
    Open { session: SessionKey, role: Role, user_id: u64, at: Millis },
    /// A session is over: it goes with its cart and its answers.
    Close(SessionKey),
    /// So many of an item are in a session's cart; none: the line goes.
    Line { session: SessionKey, item_id: Arc<str>, quantity: u32 },
    /// The same in a buyer's saved cart.
    Saved { user_id: u64, item_id: Arc<str>, quantity: u32 },
    /// A request was answered, with the quantity that was left if it asked for one.
    Answered { session: SessionKey, slot: u32, number: u64, request: String, at: Millis, quantity: Option<u32> },
    /// What a step of a purchase writes.
    Purchase(Box<PurchaseRows>),
}

impl Change {
    fn write(&self, tx: &mut dyn Tx) -> Result<(), StoreError> {
        match self {
            Change::Purchase(rows) => return rows.write(tx),
            Change::Open { session, role, user_id, at } => tx.execute(
                "INSERT INTO shop_session (session, role, user_id, used_at) VALUES ($1, $2, $3, $4)",
                &[(&session.to_text()).into(), role.as_text().into(), number(*user_id)?.into(), (*at).into()],
            ),
            Change::Close(session) => {
                let session = session.to_text();
                tx.execute("DELETE FROM shop_cart WHERE session = $1", &[(&session).into()])?;
                tx.execute("DELETE FROM shop_request WHERE session = $1", &[(&session).into()])?;
                tx.execute("DELETE FROM shop_session WHERE session = $1", &[(&session).into()])
            }
            Change::Line { session, item_id, quantity: 0 } => tx.execute(
                "DELETE FROM shop_cart WHERE session = $1 AND item_id = $2",
                &[(&session.to_text()).into(), (&**item_id).into()],
            ),
            Change::Line { session, item_id, quantity } => tx.execute(
                "INSERT INTO shop_cart (session, item_id, quantity) VALUES ($1, $2, $3)
                 ON CONFLICT (session, item_id) DO UPDATE SET quantity = excluded.quantity",
                &[(&session.to_text()).into(), (&**item_id).into(), (*quantity).into()],
            ),
            Change::Saved { user_id, item_id, quantity: 0 } => tx.execute(
                "DELETE FROM shop_saved WHERE user_id = $1 AND item_id = $2",
                &[number(*user_id)?.into(), (&**item_id).into()],
            ),
            Change::Saved { user_id, item_id, quantity } => tx.execute(
                "INSERT INTO shop_saved (user_id, item_id, quantity) VALUES ($1, $2, $3)
                 ON CONFLICT (user_id, item_id) DO UPDATE SET quantity = excluded.quantity",
                &[number(*user_id)?.into(), (&**item_id).into(), (*quantity).into()],
            ),
            Change::Answered { session, slot, number: n, request, at, quantity } => tx.execute(
                "INSERT INTO shop_request (session, slot, number, request, at, quantity) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (session, slot) DO UPDATE SET number = excluded.number, request = excluded.request,
                     at = excluded.at, quantity = excluded.quantity",
                &[
                    (&session.to_text()).into(),
                    (*slot).into(),
                    number(*n)?.into(),
                    request.into(),
                    (*at).into(),
                    (*quantity).into(),
                ],
            ),
        }
        .map(|_rows| ())
    }
}

/// A session as it is read at start.
#[derive(Debug)]
pub struct SessionRow {
    /// Which one.
    pub session: SessionKey,
    /// For whom it is good.
    pub role: Role,
    /// Whose it is.
    pub account: Account,
    /// When it was used last, as far as that was written.
    pub used_at: Millis,
    /// Whether its time was up when that was written.
    pub was_over: bool,
}

/// What memory is built from, all of one instant.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every session, also those whose end was not written.
    pub sessions: Vec<SessionRow>,
    /// Lines of sessions' carts.
    pub lines: Vec<(SessionKey, Arc<str>, u32)>,
    /// Lines of the saved carts of buyers who have a session or a purchase under way.
    pub saved: Vec<(u64, Arc<str>, u32)>,
    /// What was answered lately, in its order.
    pub answered: Vec<AnsweredRow>,
    /// Every purchase under way.
    pub under_way: Vec<Purchase>,
}

/// A request that was answered.
#[derive(Debug)]
pub struct AnsweredRow {
    pub session: SessionKey,
    pub number: u64,
    pub request: String,
    pub at: Millis,
    pub quantity: Option<u32>,
}

/// Reads everything that memory is built from.
///
/// # Errors
/// The store's; `Invalid` for a row that this program did not write.
pub fn load(reader: &dyn Reader, timeout: Duration) -> Result<Snapshot, StoreError> {
    let flushed_at = reader.first("SELECT at FROM shop_flush WHERE id = 1", &[], |row| row.millis(0))?;
    let flushed_at = flushed_at.unwrap_or_default();
    let sessions = reader.all(
        "SELECT u.user_id, u.username, u.name, s.session, s.role, s.used_at FROM shop_session s
         JOIN shop_user u ON u.role = s.role AND u.user_id = s.user_id",
        &[],
        |row| {
            let used_at = row.millis(5)?;
            let was_over = used_at.plus(timeout) <= flushed_at;
            Ok(SessionRow { session: key(row, 3)?, role: role(row, 4)?, account: account(row)?, used_at, was_over })
        },
    )?;
    let lines = reader.all("SELECT session, item_id, quantity FROM shop_cart", &[], |row| {
        Ok((key(row, 0)?, Arc::from(row.text(1)?), quantity(row.uint(2)?)?))
    })?;
    let under_way = sales::under_way(reader)?;
    let mut saved = reader.all(
        "SELECT user_id, item_id, quantity FROM shop_saved
         WHERE user_id IN (SELECT user_id FROM shop_session WHERE role = 'buyer')",
        &[],
        |row| Ok((row.uint(0)?, Arc::from(row.text(1)?), quantity(row.uint(2)?)?)),
    )?;
    let has_session = |user_id| {
        let buyers = sessions.iter().filter(|row| row.role == Role::Buyer);
        buyers.map(|row| row.account.user_id).any(|other| other == user_id)
    };
    for buyer_id in under_way.iter().map(|purchase| purchase.buyer.user_id).filter(|id| !has_session(*id)) {
        let lines = saved_of(reader, buyer_id)?.into_iter();
        saved.extend(lines.map(|(item_id, quantity)| (buyer_id, item_id, quantity)));
    }
    let answered = reader.all(
        "SELECT session, number, request, at, quantity FROM shop_request ORDER BY session, number",
        &[],
        |row| {
            let quantity = row.opt_int(4)?.map(|_| quantity(row.uint(4)?)).transpose()?;
            let (number, request, at) = (row.uint(1)?, row.text(2)?.to_owned(), row.millis(3)?);
            Ok(AnsweredRow { session: key(row, 0)?, number, request, at, quantity })
        },
    )?;
    Ok(Snapshot { sessions, lines, saved, answered, under_way })
}

/// The saved cart of one buyer.
///
/// # Errors
/// The store's.
pub fn saved_of(reader: &dyn Reader, user_id: u64) -> Result<Vec<(Arc<str>, u32)>, StoreError> {
    let sql = "SELECT item_id, quantity FROM shop_saved WHERE user_id = $1";
    reader.all(sql, &[number(user_id)?.into()], |row| Ok((Arc::from(row.text(0)?), quantity(row.uint(1)?)?)))
}

/// Writes when sessions were last used, to rows that still exist.
///
/// # Errors
/// The store's.
pub fn write_uses(tx: &mut dyn Tx, uses: &[(SessionKey, Millis)]) -> Result<(), StoreError> {
    for (session, at) in uses {
        let session = session.to_text();
        tx.execute("UPDATE shop_session SET used_at = $1 WHERE session = $2", &[(*at).into(), (&session).into()])?;
    }
    Ok(())
}

/// Every last use up to this time is written.
///
/// # Errors
/// The store's.
pub fn write_flushed(tx: &mut dyn Tx, at: Millis) -> Result<(), StoreError> {
    let sql = "INSERT INTO shop_flush (id, at) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    tx.execute(sql, &[at.into()]).map(|_rows| ())
}

/// An account with what proves it.
#[derive(Clone)]
pub struct UserRow {
    /// The account.
    pub account: Account,
    /// The password's hash.
    pub password: String,
    /// The request that created it.
    pub request: String,
    /// When that was.
    pub created_at: Millis,
}

/// A user by name, however it is spelled. Earlier versions made two of two spellings: then it is the one that
/// has this, else the older.
///
/// # Errors
/// The store's.
pub fn user_named(reader: &dyn Reader, role: Role, username: &str) -> Result<Option<UserRow>, StoreError> {
    let sql = "SELECT user_id, username, name, password, request, created_at FROM shop_user
               WHERE role = $1 AND username_key = $2 ORDER BY username <> $3, user_id LIMIT 1";
    reader.first(sql, &[role.as_text().into(), nfc(username).as_ref().into(), username.into()], |row| {
        let (password, request) = (row.text(3)?.to_owned(), row.text(4)?.to_owned());
        Ok(UserRow { account: account(row)?, password, request, created_at: row.millis(5)? })
    })
}

/// An account by its id.
///
/// # Errors
/// The store's.
pub fn account_of(reader: &dyn Reader, role: Role, user_id: u64) -> Result<Option<Account>, StoreError> {
    // No id is that large: there is nobody.
    let Ok(user_id) = i64::try_from(user_id) else { return Ok(None) };
    let sql = "SELECT user_id, username, name FROM shop_user WHERE role = $1 AND user_id = $2";
    reader.first(sql, &[role.as_text().into(), user_id.into()], account)
}

/// Calls `each` with every account and when it was created: for an operator.
///
/// # Errors
/// The store's.
pub fn users(reader: &dyn Reader, each: &mut dyn FnMut(Role, Account, Millis)) -> Result<(), StoreError> {
    let sql = "SELECT user_id, username, name, role, created_at FROM shop_user ORDER BY role, user_id";
    reader.query(sql, &[], &mut |row| {
        each(role(row, 3)?, account(row)?, row.millis(4)?);
        Ok(())
    })
}

/// The last id of a role that was given out, or may have been.
fn last_id(tx: &mut dyn Tx, role: Role) -> Result<u64, StoreError> {
    let sql = "SELECT COALESCE(MAX(id), 0) FROM (SELECT MAX(user_id) AS id FROM shop_user WHERE role = $1
               UNION ALL SELECT up_to FROM shop_user_skipped WHERE role = $1) AS ids";
    Ok(tx.first(sql, &[role.as_text().into()], |row| row.uint(0))?.unwrap_or(0))
}

/// Leaves the ids of each role out up to this one: they may have been given out by a file that is lost, or since the
/// backup that this one is from.
///
/// # Errors
/// The store's.
pub fn skip_user_ids(tx: &mut dyn Tx, up_to: u64) -> Result<(), StoreError> {
    for role in [Role::Buyer, Role::Seller] {
        if last_id(tx, role)? >= up_to {
            continue;
        }
        let up_to = number(up_to)?;
        tx.execute(
            "INSERT INTO shop_user_skipped (role, up_to) VALUES ($1, $2)
             ON CONFLICT (role) DO UPDATE SET up_to = excluded.up_to",
            &[role.as_text().into(), up_to.into()],
        )?;
    }
    Ok(())
}

/// A new user, with the next id of the role.
///
/// # Errors
/// The store's.
pub fn add_user(
    tx: &mut dyn Tx,
    role: Role,
    username: &str,
    name: Option<&str>,
    (password, request): (&str, &str),
    at: Millis,
) -> Result<Account, StoreError> {
    let user_id = last_id(tx, role)? + 1;
    tx.execute(
        "INSERT INTO shop_user (role, user_id, username, name, password, request, created_at, username_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            role.as_text().into(),
            number(user_id)?.into(),
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

impl Role {
    /// As it is stored and shown.
    pub fn as_text(self) -> &'static str {
        match self {
            Role::Buyer => "buyer",
            Role::Seller => "seller",
        }
    }
}

/// `user_id`, `username`, `name` of a row's first three columns.
fn account(row: &Row<'_>) -> Result<Account, StoreError> {
    let username = row.text(1)?.to_owned();
    let name = row.opt_text(2)?.map_or_else(|| username.clone(), str::to_owned);
    Ok(Account { user_id: row.uint(0)?, username, name })
}

fn role(row: &Row<'_>, column: usize) -> Result<Role, StoreError> {
    let text = row.text(column)?;
    let found = [Role::Buyer, Role::Seller].into_iter().find(|role| role.as_text() == text);
    found.ok_or_else(|| StoreError::Invalid(format!("the store names the unknown role {text:?}")))
}

fn key(row: &Row<'_>, column: usize) -> Result<SessionKey, StoreError> {
    let key = SessionKey::from_text(row.text(column)?);
    key.ok_or_else(|| StoreError::Invalid("the store holds a session without a key".to_owned()))
}
