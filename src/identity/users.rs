//! Accounts and the admin, see `docs/spec/share.md`. Accounts are on disk, and exist once they are; all names are in
//! memory too, because the registry looks them up at every REGISTER.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::jwt::{Claims, Jwt, Role, TokenError};
use super::login_verifier::LoginVerifier;
use super::password::PasswordHasher;
use crate::model::text::{self, TextFilter};
use crate::model::{Clock, Millis, Name, Token, debug_fields};
use crate::net::source;
use crate::storage::{ReaderExt, Store, StoreError, Value};

mod error;
mod names;
mod rows;

pub use error::{OpenUsersError, UserError};
use names::AccountNames;
pub use rows::{MIGRATIONS, all_users};
use rows::{SELECT_USERS, find_account, user_from_row, write_sign_in};

pub const USERS_DB: &str = "users.db";
/// The longest password that is accepted, in characters.
pub const PASSWORD_CHARS_MAX: usize = 256;
pub const ACCOUNTS_MAX: usize = 500_000;
/// The admin's name if the operator gave none.
pub const DEFAULT_ADMIN_NAME: &str = "admin";
/// How many addresses of its last sign-ins are kept per account.
const ADDRESSES_MAX: usize = 16;
/// An account without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub username: Name,
    /// The name shown to people.
    pub display_name: Name,
    pub created_at: Millis,
    /// When it last signed in; `None` if it has only registered.
    pub last_login: Option<Millis>,
    /// Whether the operator has blocked it from signing in.
    pub is_blocked: bool,
}

/// The admin as the operator configured them.
#[derive(Clone, Default)]
pub struct AdminCredentials {
    /// If `None`, the stored one or [`DEFAULT_ADMIN_NAME`].
    pub username: Option<Name>,
    /// If `None`, the stored one or a new random one.
    pub password: Option<String>,
}

// The password is left out.
debug_fields!(AdminCredentials, |credentials| username: credentials.username);

/// An admin whose password is shown once.
#[derive(Clone)]
pub struct NewAdmin {
    pub username: Name,
    /// Only its hash is stored.
    pub password: Token,
}

pub struct Users {
    store: Arc<Store>,
    clock: Clock,
    /// An admin is not the user of the same name.
    logins: LoginVerifier<LoginSubject>,
    jwt: Jwt,
    names: RwLock<AccountNames>,
    /// Names of accounts that are being created: of two concurrent requests with different spellings, one succeeds.
    reserved_names: Mutex<HashSet<Name>>,
    admin: RwLock<Option<Admin>>,
    /// Keyed by the name as it is spelled on disk.
    addresses: Mutex<HashMap<String, SignInAddresses>>,
    /// Names of accounts, as they are spelled on disk.
    blocked: RwLock<HashSet<Box<str>>>,
}

#[derive(Clone)]
struct Admin {
    username: Name,
    password: String,
}

/// The exclusive right to create an account of a name; released on drop.
struct NameReservation<'u>(&'u Users, Name);

impl Drop for NameReservation<'_> {
    fn drop(&mut self) {
        self.0.reserved_names.lock().remove(&self.1);
    }
}

/// The role and name that a login is tried for, and whether there is such an account: one created later has none of
/// the failures counted before it existed.
type LoginSubject = (Role, Name, bool);

/// Addresses with the time of the sign-in, latest last.
type SignInAddresses = VecDeque<(IpAddr, Millis)>;

impl Users {
    pub fn open(data_dir: &Path, clock: Clock, passwords: PasswordHasher, jwt: Jwt) -> Result<Users, OpenUsersError> {
        let store = Arc::new(Store::open(&data_dir.join(USERS_DB), MIGRATIONS)?);
        let since = Millis(clock.now().0.saturating_sub(u64::try_from(jwt.life.as_millis()).unwrap_or(u64::MAX)));
        let (names, sign_ins, admin, blocked) = store.read(|reader| -> Result<_, StoreError> {
            let names =
                reader.all("SELECT username FROM users ORDER BY created_at, username", &[], |row| row.name(0))?;
            let sql = "SELECT username, ip, at FROM sign_ins WHERE at > $1 ORDER BY at";
            let sign_ins = reader.all(sql, &[since.into()], |row| {
                Ok((row.text(0)?.to_owned(), row.text(1)?.parse::<IpAddr>().ok(), row.millis(2)?))
            })?;
            let admin = reader.first("SELECT username, password FROM admin", &[], |row| {
                Ok(Admin { username: row.name(0)?, password: row.text(1)?.to_owned() })
            })?;
            let sql = "SELECT username FROM users WHERE blocked_at IS NOT NULL";
            let blocked = reader.all(sql, &[], |row| Ok(Box::from(row.text(0)?)))?;
            Ok((names, sign_ins, admin, blocked))
        })?;
        let names = AccountNames::from_oldest_first(names);
        for other in names.other_spellings.values() {
            log::warn!("accounts: there are two of the name {other}, in two spellings: the older one has the hostname");
        }
        let mut addresses: HashMap<String, SignInAddresses> = HashMap::new();
        for (name, ip, at) in sign_ins {
            if let Some(ip) = ip {
                remember_address(addresses.entry(name).or_default(), ip, at);
            }
        }
        Ok(Users {
            store,
            clock,
            logins: LoginVerifier::new(passwords, clock),
            jwt,
            names: RwLock::new(names),
            admin: RwLock::new(admin),
            reserved_names: Mutex::default(),
            addresses: Mutex::new(addresses),
            blocked: RwLock::new(blocked.into_iter().collect()),
        })
    }

    /// Stores the admin as the operator configured it. If there is none and no password was given, a random one is
    /// generated: `announce` must have shown it before its hash is stored.
    pub fn ensure_admin<E: From<UserError>>(
        &self,
        credentials: AdminCredentials,
        announce: impl FnOnce(&NewAdmin) -> Result<(), E>,
    ) -> Result<(), E> {
        let stored = self.admin.read().clone();
        let local = source::key_of(Ipv4Addr::LOCALHOST.into());
        let name = |text| Name::new(text).map_err(UserError::InvalidField);
        let username = match (credentials.username, &stored) {
            (Some(username), _) => username,
            (None, Some(admin)) => admin.username.clone(),
            (None, None) => name(DEFAULT_ADMIN_NAME)?,
        };
        let password = match (credentials.password, &stored) {
            (Some(given), stored) => {
                check_password("ADMIN_PASSWORD", &given)?;
                let stored = stored.as_ref().map(|admin| admin.password.clone());
                let is_the_same = stored.is_some()
                    && self.logins.passwords.verify(&given, stored.as_deref(), local).map_err(UserError::from)?;
                match stored {
                    Some(stored) if is_the_same => stored,
                    _ => self.logins.passwords.hash(&given, local).map_err(UserError::from)?,
                }
            }
            (None, Some(admin)) => admin.password.clone(),
            (None, None) => {
                let new_admin = NewAdmin { username: username.clone(), password: Token::random() };
                let hash = self.logins.passwords.hash(new_admin.password.reveal(), local).map_err(UserError::from)?;
                announce(&new_admin)?;
                hash
            }
        };
        if stored.is_none_or(|stored| stored.username != username || stored.password != password) {
            let admin = Admin { username, password };
            let row = admin.clone();
            self.store
                .write(move |tx| {
                    let sql = "INSERT INTO admin (id, username, password) VALUES (1, $1, $2) \
                               ON CONFLICT (id) DO UPDATE SET username = excluded.username, password = excluded.password";
                    tx.execute(sql, &[(&row.username).into(), (&row.password).into()]).map(drop)
                })
                .map_err(|error: StoreError| UserError::from(error))?;
            *self.admin.write() = Some(admin);
        }
        Ok(())
    }

    /// The account has thereby signed in from `source`.
    pub fn register(
        &self,
        username: &str,
        password: &str,
        display_name: Option<&str>,
        source: IpAddr,
    ) -> Result<User, UserError> {
        let named = |field: &str, text: &str| {
            Name::new(text).map_err(|rule| UserError::InvalidField(format!("{field}: {rule}")))
        };
        let username = named("username", username)?;
        let display_name = display_name.map_or_else(|| Ok(username.clone()), |text| named("display_name", text))?;
        check_password("password", password)?;
        // A taken name costs no hash.
        let is_admins = self.admin.read().as_ref().is_some_and(|admin| admin.username == username);
        // No user may impersonate the operator.
        if is_admins || self.names.read().resolve(&username).is_some() {
            return Err(UserError::UsernameTaken(username));
        }
        let _reservation = self.reserve_name(&username)?;
        if self.names.read().len() >= ACCOUNTS_MAX {
            return Err(UserError::Busy("there are as many accounts as there may be".to_owned()));
        }
        let hash = self.logins.passwords.hash(password, source::key_of(source))?;
        let now = Clock::wall();
        let user =
            User { username: username.clone(), display_name, created_at: now, last_login: None, is_blocked: false };
        let row = user.clone();
        self.store.write(move |tx| {
            // Another request may have been faster.
            if find_account(tx, &row.username)?.is_some() {
                return Err(UserError::UsernameTaken(row.username));
            }
            let sql = "INSERT INTO users (username, display_name, password, created_at) VALUES ($1, $2, $3, $4)";
            let User { username, display_name, created_at, .. } = &row;
            tx.execute(sql, &[username.into(), display_name.into(), (&hash).into(), (*created_at).into()])?;
            Ok(write_sign_in(tx, username, source, now)?)
        })?;
        self.names.write().oldest.insert(username.clone());
        self.logins.reset(&(Role::User, username.clone(), true));
        self.record_sign_in(&username, source);
        Ok(user)
    }

    /// From then on the account has signed in from `source`.
    pub fn login(&self, username: &str, password: &str, source: IpAddr) -> Result<User, UserError> {
        check_password("password", password)?;
        let name = Name::from_stored(username).map_err(|rule| UserError::InvalidField(format!("username: {rule}")))?;
        // As it was spelled when the account was created.
        let account = self.names.read().resolve(&name).cloned();
        let subject = (Role::User, name, account.is_some());
        self.logins.check(&subject, source::key_of(source))?;
        let found = match &account {
            Some(name) => self.store.read(|reader| find_account(reader, name))?,
            None => None,
        };
        let (user, stored_hash) = found.unzip();
        let is_right = self.logins.verify(subject, source::key_of(source), password, stored_hash.as_deref())?;
        let mut user = user.filter(|_| is_right).ok_or(UserError::WrongCredentials)?;
        // Revealed only to those who know the password.
        if self.is_blocked(&user.username) {
            return Err(UserError::Blocked);
        }
        let name = user.username.clone();
        let now = Clock::wall();
        self.store.write({
            let oldest = Millis(now.0.saturating_sub(u64::try_from(self.jwt.life.as_millis()).unwrap_or(u64::MAX)));
            move |tx| -> Result<(), StoreError> {
                tx.execute("UPDATE users SET last_login = $1 WHERE username = $2", &[now.into(), (&name).into()])?;
                tx.execute("DELETE FROM sign_ins WHERE at <= $1", &[oldest.into()])?;
                write_sign_in(tx, &name, source, now)
            }
        })?;
        self.record_sign_in(&user.username, source);
        user.last_login = Some(now);
        Ok(user)
    }

    /// Returns the admin's name.
    pub fn admin_login(&self, username: &str, password: &str, source: IpAddr) -> Result<Name, UserError> {
        check_password("password", password)?;
        let name = Name::from_stored(username).map_err(|rule| UserError::InvalidField(format!("username: {rule}")))?;
        let admin = self.admin.read().clone().filter(|admin| admin.username == name);
        let subject = (Role::Admin, name, admin.is_some());
        let source = source::key_of(source);
        self.logins.check(&subject, source)?;
        let stored_hash = admin.as_ref().map(|admin| admin.password.as_str());
        let is_right = self.logins.verify(subject, source, password, stored_hash)?;
        admin.filter(|_| is_right).map(|admin| admin.username).ok_or(UserError::WrongCredentials)
    }

    /// The name is reserved until the result is dropped.
    fn reserve_name(&self, name: &Name) -> Result<NameReservation<'_>, UserError> {
        if !self.reserved_names.lock().insert(name.clone()) {
            return Err(UserError::UsernameTaken(name.clone()));
        }
        Ok(NameReservation(self, name.clone()))
    }

    /// The subject must just have been authenticated. Times are wall-clock times, because nodes on other machines use
    /// them.
    pub fn issue_token(&self, sub: &Name, role: Role) -> (Token, Claims) {
        self.jwt.issue(Clock::wall(), sub.as_str(), role)
    }

    /// Fails with `WrongRole` if the token is an admin's.
    pub fn authenticate_user(&self, token: &str) -> Result<(User, Claims), UserError> {
        let claims = self.jwt.verify(Clock::wall(), token)?;
        if claims.role != Role::User {
            return Err(UserError::WrongRole("a user"));
        }
        // An account that is missing from a restored backup has no valid token.
        let name = Name::from_stored(&claims.sub).map_err(|_| TokenError::Invalid)?;
        let name = self.names.read().resolve(&name).cloned().ok_or(UserError::Token(TokenError::Invalid))?;
        if self.is_blocked(&name) {
            return Err(TokenError::Blocked.into());
        }
        let found = self.store.read(|reader| find_account(reader, &name))?;
        found.map(|(user, _)| (user, claims)).ok_or(UserError::Token(TokenError::Invalid))
    }

    fn is_blocked(&self, account: &Name) -> bool {
        self.blocked.read().contains(account.as_str())
    }

    /// Returns the name as it is stored.
    pub fn account_to_block(&self, username: &str, blocked: bool) -> Result<Name, UserError> {
        let unknown = || UserError::UnknownUser(username.to_owned());
        let name = Name::from_stored(username).map_err(|_| unknown())?;
        let is_admin = self.admin.read().as_ref().is_some_and(|admin| admin.username == name);
        if is_admin && blocked {
            return Err(UserError::IsAdmin(name));
        }
        self.names.read().resolve(&name).cloned().ok_or_else(unknown)
    }

    /// Blocks an account, so that it can no longer sign in and its tokens are rejected, or unblocks it, so that its
    /// unexpired tokens are valid again. Repeating it changes nothing. Returns the account in its new state. (Of two
    /// concurrent calls either may be the last.)
    pub fn set_blocked(&self, username: &str, blocked: bool) -> Result<User, UserError> {
        let account = self.account_to_block(username, blocked)?;
        let user = self.store.write({
            let (account, now) = (account.clone(), Clock::wall());
            move |tx| -> Result<_, StoreError> {
                let at = blocked.then_some(now);
                // If it is blocked again, the time of the first block stays.
                let sql = "UPDATE users SET blocked_at = $1 \
                           WHERE username = $2 AND (blocked_at IS NULL) <> ($1 IS NULL)";
                tx.execute(sql, &[at.into(), (&account).into()])?;
                Ok(find_account(tx, &account)?.map(|(user, _)| user))
            }
        })?;
        let mut all_blocked = self.blocked.write();
        if blocked {
            all_blocked.insert(account.as_str().into());
        } else {
            all_blocked.remove(account.as_str());
        }
        drop(all_blocked);
        user.ok_or_else(|| UserError::UnknownUser(username.to_owned()))
    }

    /// Fails with `WrongRole` if the token is a user's.
    pub fn authenticate_admin(&self, token: &str) -> Result<Name, UserError> {
        self.authenticate_admin_with_claims(token).map(|(admin, _)| admin)
    }

    pub fn authenticate_admin_with_claims(&self, token: &str) -> Result<(Name, Claims), UserError> {
        let claims = self.jwt.verify(Clock::wall(), token)?;
        if claims.role != Role::Admin {
            return Err(UserError::WrongRole("an admin"));
        }
        // A replaced admin is no longer accepted.
        let admin = self.admin.read();
        let sub = Name::from_stored(&claims.sub).map_err(|_| TokenError::Invalid)?;
        let is_he = |admin: &&Admin| admin.username == sub;
        let name = admin.as_ref().filter(is_he).map(|admin| admin.username.clone());
        name.map(|name| (name, claims)).ok_or(UserError::Token(TokenError::Invalid))
    }

    pub fn account_exists(&self, name: &str) -> bool {
        Name::from_stored(name).is_ok_and(|name| self.names.read().resolve(&name).is_some())
    }

    /// An account has no hostname if an older one of another spelling has it.
    pub fn has_hostname(&self, account: &Name) -> bool {
        self.names.read().has_hostname(account)
    }

    pub fn accounts_without_hostname(&self) -> Vec<String> {
        self.names.read().other_spellings.keys().map(|name| String::from(&**name)).collect()
    }

    /// The hostname of the account, if the token is valid.
    pub fn hostname_of_token(&self, token: &str) -> Option<String> {
        let claims = self.jwt.verify(Clock::wall(), token).ok()?;
        let sub = Name::from_stored(&claims.sub).ok().filter(|_| claims.role == Role::User)?;
        let names = self.names.read();
        let may_have = |account: &&Name| names.has_hostname(account) && !self.is_blocked(account);
        names.resolve(&sub).filter(may_have).map(Name::to_string)
    }

    /// Whether the account of a hostname has signed in from an address within the lifetime of a token.
    pub fn has_signed_in_from(&self, hostname: &str, source: IpAddr) -> bool {
        let Ok(hostname) = Name::from_stored(hostname) else { return false };
        let Some(account) = self.names.read().oldest.get(&hostname).cloned() else { return false };
        if self.is_blocked(&account) {
            return false;
        }
        let (now, source) = (self.clock.now(), source.to_canonical());
        let addresses = self.addresses.lock();
        let is_alive = |(ip, at): &(IpAddr, Millis)| *ip == source && now < at.plus(self.jwt.life);
        addresses.get(account.as_str()).is_some_and(|addresses| addresses.iter().any(is_alive))
    }

    pub fn record_sign_in(&self, name: &Name, source: IpAddr) {
        let mut addresses = self.addresses.lock();
        remember_address(addresses.entry(name.to_string()).or_default(), source.to_canonical(), self.clock.now());
    }

    /// The accounts of those hostnames that have one, by the hostname as it was given.
    pub fn accounts_by_hostname(&self, hostnames: &[&str]) -> Result<HashMap<String, User>, UserError> {
        let accounts: Vec<(&str, Name)> = {
            let names = self.names.read();
            let account = |asked: &str| names.oldest.get(&Name::from_stored(asked).ok()?).cloned();
            hostnames.iter().filter_map(|asked| Some((*asked, account(asked)?))).collect()
        };
        let found = self.store.read(|reader| -> Result<_, StoreError> {
            let mut found = HashMap::new();
            for (asked, name) in &accounts {
                if let Some((user, _)) = find_account(reader, name)? {
                    found.insert((*asked).to_owned(), user);
                }
            }
            Ok(found)
        })?;
        Ok(found)
    }

    /// The next accounts by name.
    pub fn list_page(&self, after: Option<&Name>, at_most: usize) -> Result<Vec<User>, UserError> {
        let sql = format!("{SELECT_USERS} WHERE username > $1 ORDER BY username LIMIT $2");
        let after = after.map_or("", Name::as_str);
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        Ok(self.store.read(|reader| reader.all(&sql, &[after.into(), at_most.into()], user_from_row))?)
    }

    /// The accounts whose name or display name contains a text, ordered by name: up to `limit` from position `offset`
    /// on, and the total number.
    pub fn search(&self, sought: &TextFilter, offset: usize, limit: usize) -> Result<(Vec<User>, usize), UserError> {
        if sought.matches_everything() {
            let sql = format!("{SELECT_USERS} ORDER BY username LIMIT $1 OFFSET $2");
            let page = [limit, offset].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            let found = self.store.read(|reader| reader.all(&sql, &page.map(Value::from), user_from_row))?;
            return Ok((found, self.count()));
        }
        let (mut found, mut total) = (Vec::new(), 0);
        self.store.read(|reader| {
            reader.query(&format!("{SELECT_USERS} ORDER BY username"), &[], &mut |row| {
                if sought.matches(row.text(0)?) || sought.matches(row.text(1)?) {
                    if total >= offset && found.len() < limit {
                        found.push(user_from_row(row)?);
                    }
                    total += 1;
                }
                Ok(())
            })
        })?;
        Ok((found, total))
    }

    pub fn count(&self) -> usize {
        self.names.read().len()
    }

    pub fn close(&self) {
        self.store.close();
    }
}

fn remember_address(addresses: &mut SignInAddresses, ip: IpAddr, at: Millis) {
    addresses.retain(|(known, _)| *known != ip);
    addresses.push_back((ip, at));
    if addresses.len() > ADDRESSES_MAX {
        addresses.pop_front();
    }
}

/// A password may contain any characters.
fn check_password(field: &str, password: &str) -> Result<(), UserError> {
    text::check_length(password, 1, PASSWORD_CHARS_MAX)
        .map_err(|rule| UserError::InvalidField(format!("{field}: {rule}")))
}

debug_fields!(Users, |users| accounts: users.count());

#[cfg(test)]
mod tests;
