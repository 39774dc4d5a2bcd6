//! Accounts, and the admin: who there is, and who has proved to be it. SPEC.md section 6.
//!
//! Accounts are on disk; the names of all are in memory too, because the registry asks for them at every
//! REGISTER. An account is there once it is on disk.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::attempts::Attempts;
use super::jwt::{BadToken, Claims, Jwt, Role};
use super::password::{PasswordError, Passwords};
use crate::model::text::{self, Sought};
use crate::model::{Clock, Millis, Name, Token};
use crate::net::source;
use crate::storage::{OpenError, Query, Reader, Row, Store, StoreError, Tx, Value};

/// The file in a data dir.
pub const USERS_DB: &str = "users.db";
/// Most characters of a password.
pub const PASSWORD_MAX: usize = 256;
/// Most accounts.
pub const ACCOUNTS_MAX: usize = 500_000;
/// The admin's name where nobody gave another.
pub const ADMIN: &str = "admin";
/// Addresses remembered of an account: those from which it signed in last.
const ADDRESSES_MAX: usize = 16;

/// Every step of the file's schema, one string a version.
pub const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE users (
    username     TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    password     TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    last_login   INTEGER
) WITHOUT ROWID;
CREATE TABLE sign_ins (
    username TEXT NOT NULL,
    ip       TEXT NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (username, ip)
) WITHOUT ROWID;
CREATE INDEX sign_ins_at ON sign_ins (at);
CREATE TABLE admin (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    username TEXT NOT NULL,
    password TEXT NOT NULL
);
",
    "
-- Since when the operator lets it sign in no more.
ALTER TABLE users ADD COLUMN blocked_at INTEGER;
",
];

/// An account, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name, which is nobody else's.
    pub username: Name,
    /// The name for people.
    pub display_name: Name,
    /// When it was made.
    pub created_at: Millis,
    /// When it last signed in; never yet, if it only registered.
    pub last_login: Option<Millis>,
    /// The operator lets it sign in no more.
    pub is_blocked: bool,
}

/// Why it was not to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A field is not what it must be; it is named.
    #[error("{0}")]
    Bad(String),
    /// There is an account of that name.
    #[error("username: {0} is taken")]
    Taken(Name),
    /// Whether it was the name or the password is not told.
    #[error("user name or password is wrong")]
    WrongCredentials,
    /// The password is right, but the operator lets this account sign in no more.
    #[error("this account is blocked: ask the operator")]
    Blocked,
    /// There is no account of that name.
    #[error("username: there is no account {0}")]
    Unknown(String),
    /// The operator would lock himself out.
    #[error("username: {0} is the admin, who cannot be blocked")]
    IsAdmin(Name),
    /// The token is none.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The token is good, but not for this.
    #[error("the token is not {0}'s")]
    NotForThis(&'static str),
    /// Too many have failed.
    #[error("too many failed logins: try again in {} s", UserError::seconds(*.0))]
    Paused(Duration),
    /// More than can be done at once.
    #[error("{0}")]
    Busy(String),
    /// It could not be stored or read; nothing was changed.
    #[error("accounts are not available at the moment: try again")]
    Unavailable,
}

impl UserError {
    /// A time to wait in whole seconds, not a moment too short.
    pub fn seconds(wait: Duration) -> u64 {
        wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
    }
}

impl From<StoreError> for UserError {
    fn from(error: StoreError) -> UserError {
        log::error!("accounts: {error}");
        UserError::Unavailable
    }
}

impl From<PasswordError> for UserError {
    fn from(error: PasswordError) -> UserError {
        match error {
            PasswordError::Busy | PasswordError::NotWanted => UserError::Busy(error.to_string()),
            PasswordError::Failed(_) => {
                log::error!("accounts: {error}");
                UserError::Unavailable
            }
        }
    }
}

/// The admin's name and password as the operator gives them.
#[derive(Clone, Default)]
pub struct AdminSettings {
    /// The name; else the one of before, or [`ADMIN`].
    pub username: Option<Name>,
    /// The password; else the one of before, or a new one.
    pub password: Option<String>,
}

impl fmt::Debug for AdminSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the password.
        f.debug_struct("AdminSettings").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An admin that was just made: to be told once.
#[derive(Clone)]
pub struct NewAdmin {
    /// The name.
    pub username: Name,
    /// The password; only its hash is kept.
    pub password: Token,
}

/// Everybody who may sign in.
pub struct Users {
    store: Arc<Store>,
    clock: Clock,
    passwords: Passwords,
    jwt: Jwt,
    names: RwLock<AccountNames>,
    /// Those of accounts that are being made: of two that come at once, spelled differently, one is.
    making: Mutex<HashSet<Name>>,
    admin: RwLock<Option<Admin>>,
    /// Failed sign-ins of one user from one source. (An admin is not a user of the same name.)
    guesses: Arc<Mutex<Attempts<Guessed>>>,
    /// By the name as it is spelled on disk.
    addresses: Mutex<HashMap<String, Addresses>>,
    /// Those who are blocked, as they are spelled on disk.
    blocked: RwLock<HashSet<Box<str>>>,
}

/// The names of all accounts, spelled as on disk. An earlier version made two accounts of two spellings of one name.
#[derive(Default)]
struct AccountNames {
    /// By the name as it is compared: the oldest account of each. It is this one that has the hostname, for the
    /// registry has one host of all spellings.
    oldest: HashSet<Name>,
    /// The others, by their spelling.
    others: HashMap<Box<str>, Name>,
}

impl AccountNames {
    /// Of names in the order in which the accounts were made.
    fn of(names: Vec<Name>) -> AccountNames {
        let mut all = AccountNames::default();
        for name in names {
            if all.oldest.contains(&name) {
                all.others.insert(name.as_str().into(), name);
            } else {
                all.oldest.insert(name);
            }
        }
        all
    }

    /// The account that is meant by a name: the one of just this spelling, else the oldest.
    fn meant_by(&self, name: &Name) -> Option<&Name> {
        self.others.get(name.as_str()).or_else(|| self.oldest.get(name))
    }

    /// Whether that account, as it is spelled on disk, has the hostname of its name.
    fn has_hostname(&self, account: &Name) -> bool {
        self.oldest.get(account).is_some_and(|oldest| oldest.as_str() == account.as_str())
    }

    fn len(&self) -> usize {
        self.oldest.len() + self.others.len()
    }
}

#[derive(Clone)]
struct Admin {
    username: Name,
    password: String,
}

/// The right to make an account of a name; goes back whatever happens.
struct Making<'u>(&'u Users, Name);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.making.lock().remove(&self.1);
    }
}

/// Whose password is guessed, and whether there is such an account: who is made later has none of the failures of
/// those who guessed at nobody.
type Guessed = (Role, Name, bool);

/// From where an account signed in and when, the latest at the back.
type Addresses = VecDeque<(IpAddr, Millis)>;

impl Users {
    /// The accounts of a data dir; a new file if there is none.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn open(data_dir: &Path, clock: Clock, passwords: Passwords, jwt: Jwt) -> Result<Users, OpenUsersError> {
        let store = Arc::new(Store::open(&data_dir.join(USERS_DB), MIGRATIONS)?);
        let since = Millis(clock.now().0.saturating_sub(u64::try_from(jwt.life().as_millis()).unwrap_or(u64::MAX)));
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
        let names = AccountNames::of(names);
        for other in names.others.values() {
            log::warn!("accounts: there are two of the name {other}, in two spellings: the older one has the hostname");
        }
        let mut addresses: HashMap<String, Addresses> = HashMap::new();
        for (name, ip, at) in sign_ins {
            if let Some(ip) = ip {
                remember(addresses.entry(name).or_default(), ip, at);
            }
        }
        Ok(Users {
            store,
            clock,
            passwords,
            jwt,
            names: RwLock::new(names),
            admin: RwLock::new(admin),
            making: Mutex::default(),
            guesses: Arc::default(),
            addresses: Mutex::new(addresses),
            blocked: RwLock::new(blocked.into_iter().collect()),
        })
    }

    /// Makes the admin who the operator wants it to be. Where there is none and no password was given, one is
    /// made up: `tell` must have told it before it is kept.
    ///
    /// # Errors
    /// That of `tell`, or that it could not be stored.
    pub fn settle_admin<E: From<UserError>>(
        &self,
        settings: AdminSettings,
        tell: impl FnOnce(&NewAdmin) -> Result<(), E>,
    ) -> Result<(), E> {
        let kept = self.admin.read().clone();
        let operator = source::of(Ipv4Addr::LOCALHOST.into());
        let name = |text| Name::new(text).map_err(UserError::Bad);
        let username = match (settings.username, &kept) {
            (Some(username), _) => username,
            (None, Some(admin)) => admin.username.clone(),
            (None, None) => name(ADMIN)?,
        };
        let password = match (settings.password, &kept) {
            (Some(given), kept) => {
                check_password("ADMIN_PASSWORD", &given)?;
                let kept = kept.as_ref().map(|admin| admin.password.clone());
                let is_the_same = kept.is_some()
                    && self.passwords.check(&given, kept.as_deref(), operator).map_err(UserError::from)?;
                match kept {
                    Some(kept) if is_the_same => kept,
                    _ => self.passwords.hash(&given, operator).map_err(UserError::from)?,
                }
            }
            (None, Some(admin)) => admin.password.clone(),
            (None, None) => {
                let made = NewAdmin { username: username.clone(), password: Token::random() };
                let hash = self.passwords.hash(made.password.reveal(), operator).map_err(UserError::from)?;
                tell(&made)?;
                hash
            }
        };
        if kept.is_none_or(|kept| kept.username != username || kept.password != password) {
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

    /// A new account, which has signed in with that.
    ///
    /// # Errors
    /// `Bad`, `Taken`, `Busy` or `Unavailable`.
    pub fn register(
        &self,
        username: &str,
        password: &str,
        display_name: Option<&str>,
        source: IpAddr,
    ) -> Result<User, UserError> {
        let named =
            |field: &str, text: &str| Name::new(text).map_err(|rule| UserError::Bad(format!("{field}: {rule}")));
        let username = named("username", username)?;
        let display_name = display_name.map_or_else(|| Ok(username.clone()), |text| named("display_name", text))?;
        check_password("password", password)?;
        // A name that is taken costs no hash.
        let is_admins = self.admin.read().as_ref().is_some_and(|admin| admin.username == username);
        // Nobody is to pass for the operator.
        if is_admins || self.names.read().meant_by(&username).is_some() {
            return Err(UserError::Taken(username));
        }
        let _making = self.begin_to_make(&username)?;
        if self.names.read().len() >= ACCOUNTS_MAX {
            return Err(UserError::Busy("there are as many accounts as there may be".to_owned()));
        }
        let hash = self.passwords.hash(password, source::of(source))?;
        let now = Clock::wall();
        let user =
            User { username: username.clone(), display_name, created_at: now, last_login: None, is_blocked: false };
        let row = user.clone();
        self.store.write(move |tx| {
            // Someone may have been quicker.
            if find(tx, &row.username)?.is_some() {
                return Err(UserError::Taken(row.username));
            }
            let sql = "INSERT INTO users (username, display_name, password, created_at) VALUES ($1, $2, $3, $4)";
            let User { username, display_name, created_at, .. } = &row;
            tx.execute(sql, &[username.into(), display_name.into(), (&hash).into(), (*created_at).into()])?;
            Ok(write_sign_in(tx, username, source, now)?)
        })?;
        self.names.write().oldest.insert(username.clone());
        self.guesses.lock().begin_anew(&(Role::User, username.clone(), true));
        self.note_sign_in(&username, source);
        Ok(user)
    }

    /// Whose name and password these are. From then on the account has signed in from there.
    ///
    /// # Errors
    /// `WrongCredentials`, `Blocked`, `Paused`, `Bad`, `Busy` or `Unavailable`.
    pub fn login(&self, username: &str, password: &str, source: IpAddr) -> Result<User, UserError> {
        check_password("password", password)?;
        let name = Name::kept(username).map_err(|rule| UserError::Bad(format!("username: {rule}")))?;
        // As it was spelled when the account was made.
        let known = self.names.read().meant_by(&name).cloned();
        let who = (Role::User, name, known.is_some());
        self.may_guess(&who, source)?;
        let name = known;
        let found = match &name {
            Some(name) => self.store.read(|reader| find(reader, name))?,
            None => None,
        };
        let (user, kept) = found.unzip();
        let is_right = self.is_right(&who, password, kept.as_deref(), source)?;
        let Some(mut user) = self.outcome(who, source, is_right.then_some(user).flatten())? else {
            return Err(UserError::WrongCredentials);
        };
        // Told to nobody but whoever knows the password.
        if self.is_blocked(&user.username) {
            return Err(UserError::Blocked);
        }
        let name = user.username.clone();
        let now = Clock::wall();
        self.store.write({
            let oldest = Millis(now.0.saturating_sub(u64::try_from(self.jwt.life().as_millis()).unwrap_or(u64::MAX)));
            move |tx| -> Result<(), StoreError> {
                tx.execute("UPDATE users SET last_login = $1 WHERE username = $2", &[now.into(), (&name).into()])?;
                tx.execute("DELETE FROM sign_ins WHERE at <= $1", &[oldest.into()])?;
                write_sign_in(tx, &name, source, now)
            }
        })?;
        self.note_sign_in(&user.username, source);
        user.last_login = Some(now);
        Ok(user)
    }

    /// The admin's name, if name and password are his.
    ///
    /// # Errors
    /// `WrongCredentials`, `Paused`, `Bad`, `Busy` or `Unavailable`.
    pub fn admin_login(&self, username: &str, password: &str, source: IpAddr) -> Result<Name, UserError> {
        check_password("password", password)?;
        let name = Name::kept(username).map_err(|rule| UserError::Bad(format!("username: {rule}")))?;
        let admin = self.admin.read().clone().filter(|admin| admin.username == name);
        let who = (Role::Admin, name, admin.is_some());
        self.may_guess(&who, source)?;
        let kept = admin.as_ref().map(|admin| admin.password.as_str());
        let is_right = self.is_right(&who, password, kept, source)?;
        let proved = self.outcome(who, source, admin.filter(|_| is_right))?;
        proved.map(|admin| admin.username).ok_or(UserError::WrongCredentials)
    }

    fn may_guess(&self, who: &Guessed, source: IpAddr) -> Result<(), UserError> {
        self.guesses.lock().check(self.clock.now(), who, source::of(source)).map_err(UserError::Paused)
    }

    /// Whether it is the password. Whoever is paused when its turn comes costs no hash.
    fn is_right(&self, who: &Guessed, password: &str, kept: Option<&str>, source: IpAddr) -> Result<bool, UserError> {
        let may_guess = {
            let (guesses, clock, who) = (Arc::clone(&self.guesses), self.clock, who.clone());
            move || guesses.lock().check(clock.now(), &who, source::of(source)).is_ok()
        };
        self.passwords.check_if(password, kept, source::of(source), may_guess).or_else(|error| {
            self.may_guess(who, source)?;
            Err(error.into())
        })
    }

    /// Tells what came of an attempt, unless others have failed too often meanwhile. Under one lock, so that no
    /// more are told than may be.
    fn outcome<T>(&self, who: Guessed, source: IpAddr, proved: Option<T>) -> Result<Option<T>, UserError> {
        let (source, mut guesses, now) = (source::of(source), self.guesses.lock(), self.clock.now());
        guesses.check(now, &who, source).map_err(UserError::Paused)?;
        if proved.is_none() {
            guesses.failed(now, who, source);
        }
        Ok(proved)
    }

    /// The name is that of an account that is being made, until what is returned goes.
    fn begin_to_make(&self, name: &Name) -> Result<Making<'_>, UserError> {
        if !self.making.lock().insert(name.clone()) {
            return Err(UserError::Taken(name.clone()));
        }
        Ok(Making(self, name.clone()))
    }

    /// A token for somebody who has just proved who he is, and what it says. Its times are those of the wall: nodes
    /// on other machines go by them.
    pub fn issue(&self, sub: &Name, role: Role) -> (Token, Claims) {
        self.jwt.issue(Clock::wall(), sub.as_str(), role)
    }

    /// The account whose token it is, and what the token says.
    ///
    /// # Errors
    /// `Token`, `NotForThis` if it is an admin's, `Unavailable`.
    pub fn user_of(&self, token: &str) -> Result<(User, Claims), UserError> {
        let claims = self.jwt.verify(Clock::wall(), token)?;
        if claims.role != Role::User {
            return Err(UserError::NotForThis("a user"));
        }
        // An account that a restored backup does not know has no token.
        let name = Name::kept(&claims.sub).map_err(|_| BadToken::Invalid)?;
        let name = self.names.read().meant_by(&name).cloned().ok_or(UserError::Token(BadToken::Invalid))?;
        if self.is_blocked(&name) {
            return Err(BadToken::Blocked.into());
        }
        let found = self.store.read(|reader| find(reader, &name))?;
        found.map(|(user, _)| (user, claims)).ok_or(UserError::Token(BadToken::Invalid))
    }

    fn is_blocked(&self, account: &Name) -> bool {
        self.blocked.read().contains(account.as_str())
    }

    /// The account that is to be blocked, or to be no more: its name as it is kept.
    ///
    /// # Errors
    /// `Unknown`, `IsAdmin`.
    pub fn to_be_blocked(&self, username: &str, blocked: bool) -> Result<Name, UserError> {
        let unknown = || UserError::Unknown(username.to_owned());
        let name = Name::kept(username).map_err(|_| unknown())?;
        let is_admin = self.admin.read().as_ref().is_some_and(|admin| admin.username == name);
        if is_admin && blocked {
            return Err(UserError::IsAdmin(name));
        }
        self.names.read().meant_by(&name).cloned().ok_or_else(unknown)
    }

    /// From now on this account signs in no more and its tokens are none; or it does again, and those that have not
    /// expired are. To do so again changes nothing. The account as it is then. (Of two who do this at once it is not
    /// known who was last.)
    ///
    /// # Errors
    /// Those of [`Users::to_be_blocked`], `Unavailable`.
    pub fn set_blocked(&self, username: &str, blocked: bool) -> Result<User, UserError> {
        let account = self.to_be_blocked(username, blocked)?;
        let user = self.store.write({
            let (account, now) = (account.clone(), Clock::wall());
            move |tx| -> Result<_, StoreError> {
                let at = blocked.then_some(now);
                // Blocked once more, it stays blocked since then.
                let sql = "UPDATE users SET blocked_at = $1 \
                           WHERE username = $2 AND (blocked_at IS NULL) <> ($1 IS NULL)";
                tx.execute(sql, &[at.into(), (&account).into()])?;
                Ok(find(tx, &account)?.map(|(user, _)| user))
            }
        })?;
        let mut all = self.blocked.write();
        if blocked {
            all.insert(account.as_str().into());
        } else {
            all.remove(account.as_str());
        }
        drop(all);
        user.ok_or_else(|| UserError::Unknown(username.to_owned()))
    }

    /// The admin whose token it is.
    ///
    /// # Errors
    /// `Token`, `NotForThis` if it is a user's.
    pub fn admin_of(&self, token: &str) -> Result<Name, UserError> {
        self.admin_with(token).map(|(admin, _)| admin)
    }

    /// The same, and what the token says.
    ///
    /// # Errors
    /// As those of [`Users::admin_of`].
    pub fn admin_with(&self, token: &str) -> Result<(Name, Claims), UserError> {
        let claims = self.jwt.verify(Clock::wall(), token)?;
        if claims.role != Role::Admin {
            return Err(UserError::NotForThis("an admin"));
        }
        // One who was replaced is none any more.
        let admin = self.admin.read();
        let sub = Name::kept(&claims.sub).map_err(|_| BadToken::Invalid)?;
        let is_he = |admin: &&Admin| admin.username == sub;
        let name = admin.as_ref().filter(is_he).map(|admin| admin.username.clone());
        name.map(|name| (name, claims)).ok_or(UserError::Token(BadToken::Invalid))
    }

    /// Whether there is an account of that name.
    pub fn is_account(&self, name: &str) -> bool {
        Name::kept(name).is_ok_and(|name| self.names.read().meant_by(&name).is_some())
    }

    /// Whether an account has the hostname of its name: not where an older one of another spelling has it.
    pub fn has_hostname(&self, account: &Name) -> bool {
        self.names.read().has_hostname(account)
    }

    /// The accounts that have not the hostname of their name.
    pub fn namesakes(&self) -> Vec<String> {
        self.names.read().others.keys().map(|name| String::from(&**name)).collect()
    }

    /// The hostname that a token gives, if it is good: that of its account.
    pub fn owner_of(&self, token: &str) -> Option<String> {
        let claims = self.jwt.verify(Clock::wall(), token).ok()?;
        let sub = Name::kept(&claims.sub).ok().filter(|_| claims.role == Role::User)?;
        let names = self.names.read();
        let may_have = |account: &&Name| names.has_hostname(account) && !self.is_blocked(account);
        names.meant_by(&sub).filter(may_have).map(Name::to_string)
    }

    /// Whether the account that has a hostname has signed in from there within the life of a token.
    pub fn signed_in_from(&self, hostname: &str, source: IpAddr) -> bool {
        let Ok(hostname) = Name::kept(hostname) else { return false };
        let Some(account) = self.names.read().oldest.get(&hostname).cloned() else { return false };
        if self.is_blocked(&account) {
            return false;
        }
        let (now, source) = (self.clock.now(), source.to_canonical());
        let addresses = self.addresses.lock();
        let is_alive = |(ip, at): &(IpAddr, Millis)| *ip == source && now < at.plus(self.jwt.life());
        addresses.get(account.as_str()).is_some_and(|addresses| addresses.iter().any(is_alive))
    }

    /// The account signs in from there (again).
    pub fn note_sign_in(&self, name: &Name, source: IpAddr) {
        let mut addresses = self.addresses.lock();
        remember(addresses.entry(name.to_string()).or_default(), source.to_canonical(), self.clock.now());
    }

    /// Those of the hostnames that are accounts', each under the name that was asked for.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn accounts(&self, hostnames: &[&str]) -> Result<HashMap<String, User>, UserError> {
        let known: Vec<(&str, Name)> = {
            let all = self.names.read();
            let account = |asked: &str| all.oldest.get(&Name::kept(asked).ok()?).cloned();
            hostnames.iter().filter_map(|asked| Some((*asked, account(asked)?))).collect()
        };
        let found = self.store.read(|reader| -> Result<_, StoreError> {
            let mut found = HashMap::new();
            for (asked, name) in &known {
                if let Some((user, _)) = find(reader, name)? {
                    found.insert((*asked).to_owned(), user);
                }
            }
            Ok(found)
        })?;
        Ok(found)
    }

    /// The next accounts by name, `at_most` so many.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn page(&self, after: Option<&Name>, at_most: usize) -> Result<Vec<User>, UserError> {
        let sql = format!("{SELECT} WHERE username > $1 ORDER BY username LIMIT $2");
        let after = after.map_or("", Name::as_str);
        let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
        Ok(self.store.read(|reader| reader.all(&sql, &[after.into(), at_most.into()], user))?)
    }

    /// Those of the accounts by name whose name, or name for people, has this in it: so many from the `offset`-th
    /// on, and how many there are.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn search(&self, sought: &Sought, offset: usize, limit: usize) -> Result<(Vec<User>, usize), UserError> {
        if sought.is_anything() {
            let sql = format!("{SELECT} ORDER BY username LIMIT $1 OFFSET $2");
            let page = [limit, offset].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            let found = self.store.read(|reader| reader.all(&sql, &page.map(Value::from), user))?;
            return Ok((found, self.len()));
        }
        let (mut found, mut total) = (Vec::new(), 0);
        self.store.read(|reader| {
            reader.query(&format!("{SELECT} ORDER BY username"), &[], &mut |row| {
                if sought.is_in(row.text(0)?) || sought.is_in(row.text(1)?) {
                    if total >= offset && found.len() < limit {
                        found.push(user(row)?);
                    }
                    total += 1;
                }
                Ok(())
            })
        })?;
        Ok((found, total))
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.names.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes the file.
    pub fn close(&self) {
        self.store.close();
    }
}

/// Why accounts could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenUsersError {
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is in it could not be read.
    #[error("accounts: {0}")]
    Read(#[from] StoreError),
}

/// Every account of a file, by name.
///
/// # Errors
/// The store's.
pub fn all(reader: &dyn Reader) -> Result<Vec<User>, StoreError> {
    reader.all(&format!("{SELECT} ORDER BY username"), &[], user)
}

const SELECT: &str = "SELECT username, display_name, created_at, last_login, password, blocked_at FROM users";

fn user(row: &Row<'_>) -> Result<User, StoreError> {
    let last_login = row.opt_int(3)?.map(|_| row.millis(3)).transpose()?;
    Ok(User {
        username: row.name(0)?,
        display_name: row.name(1)?,
        created_at: row.millis(2)?,
        last_login,
        is_blocked: row.opt_int(5)?.is_some(),
    })
}

/// An account and the hash of its password.
fn find(reader: &(impl Reader + ?Sized), name: &Name) -> Result<Option<(User, String)>, StoreError> {
    let sql = format!("{SELECT} WHERE username = $1");
    reader.first(&sql, &[name.into()], |row| Ok((user(row)?, row.text(4)?.to_owned())))
}

fn write_sign_in(tx: &mut dyn Tx, name: &Name, source: IpAddr, at: Millis) -> Result<(), StoreError> {
    let ip = source.to_canonical().to_string();
    // Each later than the one before, also within a millisecond: else the oldest would be any of them.
    let newest = tx.first("SELECT max(at) FROM sign_ins WHERE username = $1", &[name.into()], |row| {
        row.opt_int(0)?.map(|_| row.millis(0)).transpose()
    })?;
    let at = newest.flatten().map_or(at, |newest| at.max(newest.plus_ms(1)));
    let sql = "INSERT INTO sign_ins (username, ip, at) VALUES ($1, $2, $3) \
               ON CONFLICT (username, ip) DO UPDATE SET at = excluded.at";
    tx.execute(sql, &[name.into(), (&ip).into(), at.into()])?;
    // The others beyond the bound: the oldest.
    let sql = "DELETE FROM sign_ins WHERE username = $1 AND ip NOT IN \
               (SELECT ip FROM sign_ins WHERE username = $1 ORDER BY at DESC LIMIT $2)";
    tx.execute(sql, &[name.into(), (ADDRESSES_MAX as i64).into()]).map(drop)
}

fn remember(addresses: &mut Addresses, ip: IpAddr, at: Millis) {
    addresses.retain(|(known, _)| *known != ip);
    addresses.push_back((ip, at));
    if addresses.len() > ADDRESSES_MAX {
        addresses.pop_front();
    }
}

/// A password may have any characters.
fn check_password(field: &str, password: &str) -> Result<(), UserError> {
    text::check_length(password, 1, PASSWORD_MAX).map_err(|rule| UserError::Bad(format!("{field}: {rule}")))
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("accounts", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
