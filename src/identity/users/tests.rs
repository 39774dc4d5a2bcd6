use std::time::Duration;

use super::*;
use crate::identity::password::HashCost;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

fn open(dir: &Path) -> Users {
    open_for(dir, Duration::from_secs(3600))
}

fn open_for(dir: &Path, life: Duration) -> Users {
    let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 8, passes: 1 }, 2).unwrap();
    Users::open(dir, Clock::start(), passwords, Jwt::load_or_create(dir, life).unwrap()).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn no_admin_is_made(_: &NewAdmin) -> Result<(), UserError> {
    panic!("an admin was made")
}

#[test]
fn an_account_is_made_once_and_signs_in_with_its_password_alone() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    assert!(!users.account_exists("ann") && users.count() == 0);
    let user = users.register("ann", "secret", Some("Ann B."), HERE).unwrap();
    assert_eq!((user.username.as_str(), user.display_name.as_str(), user.last_login), ("ann", "Ann B.", None));
    assert!(users.account_exists("ann") && !users.account_exists("Ann"));
    assert_eq!(users.register("ann", "other", None, THERE), Err(UserError::UsernameTaken(name("ann"))));
    let signed_in = users.login("ann", "secret", HERE).unwrap();
    assert!(signed_in.last_login >= Some(user.created_at));
    assert_eq!(User { last_login: None, ..signed_in.clone() }, user);
    for (username, password) in [("ann", "Secret"), ("ann", "secret "), ("Ann", "secret"), ("bob", "secret")] {
        assert_eq!(users.login(username, password, HERE), Err(UserError::WrongCredentials), "{username} {password}");
    }
    users.close();
    // The same holds after a restart, and the password is stored nowhere.
    let users = open(dir.path());
    assert!(users.account_exists("ann") && users.count() == 1);
    assert_eq!(users.accounts_by_hostname(&["ann", "bob"]).unwrap()["ann"], signed_in);
    assert!(users.login("ann", "secret", HERE).is_ok());
    users.close();
    let file = std::fs::read(dir.path().join(USERS_DB)).unwrap();
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"));
}

#[test]
fn what_is_no_name_or_password_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    let long = "x".repeat(65);
    for (username, password, display_name, field) in [
        ("", "p", None, "username: "),
        (&*long, "p", None, "username: "),
        ("a\nb", "p", None, "username: "),
        ("a", "", None, "password: "),
        ("a", &"p".repeat(257), None, "password: "),
        ("a", "p", Some(""), "display_name: "),
        ("a", "p", Some(&*long), "display_name: "),
    ] {
        let error = users.register(username, password, display_name, HERE).unwrap_err();
        assert!(matches!(&error, UserError::InvalidField(reason) if reason.starts_with(field)), "{error}");
    }
    assert!(users.count() == 0);
    assert!(users.register("a", &"ü".repeat(256), None, HERE).is_ok());
    assert_eq!(users.accounts_by_hostname(&["a"]).unwrap()["a"].display_name, name("a"));
}

#[test]
fn a_token_is_its_users_and_an_admins_is_an_admins() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    let user = users.register("admin", "p", None, HERE).unwrap();
    let settings = AdminCredentials { username: None, password: Some("root".to_owned()) };
    users.ensure_admin(settings, no_admin_is_made).unwrap();
    let (token, claims) = users.issue_token(&user.username, Role::User);
    assert_eq!(users.authenticate_user(token.reveal()), Ok((user, claims)));
    assert_eq!(users.hostname_of_token(token.reveal()).as_deref(), Some("admin"));
    // A user with the admin's name is not the admin.
    assert_eq!(users.authenticate_admin(token.reveal()), Err(UserError::WrongRole("an admin")));
    let admin = users.admin_login("admin", "root", HERE).unwrap();
    let (token, _) = users.issue_token(&admin, Role::Admin);
    assert_eq!(users.authenticate_admin(token.reveal()), Ok(admin));
    assert_eq!(users.authenticate_user(token.reveal()), Err(UserError::WrongRole("a user")));
    assert_eq!(users.hostname_of_token(token.reveal()), None, "the admin is no host");
    // A token of an account that does not exist (any more), and one of another secret.
    let (ghost, _) = users.issue_token(&name("ghost"), Role::User);
    assert_eq!(users.authenticate_user(ghost.reveal()), Err(UserError::Token(TokenError::Invalid)));
    assert_eq!(users.hostname_of_token(ghost.reveal()), None);
    let foreign =
        Jwt::with_secret(b"foreign", Duration::from_secs(60)).issue(Clock::start().now(), "admin", Role::Admin).0;
    assert_eq!(users.authenticate_admin(foreign.reveal()), Err(UserError::Token(TokenError::Invalid)));
    assert_eq!(users.hostname_of_token("nonsense"), None);
    // Nobody can register under the admin's name.
    let settings = AdminCredentials { username: Some(name("boss")), password: Some("root".to_owned()) };
    users.ensure_admin(settings, no_admin_is_made).unwrap();
    assert_eq!(users.register("boss", "p", None, HERE), Err(UserError::UsernameTaken(name("boss"))));
}

#[test]
fn an_admin_is_made_up_once_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    // If the password could not be announced, no admin is stored.
    let refused = users.ensure_admin(AdminCredentials::default(), |_| Err(UserError::Unavailable));
    assert_eq!(refused, Err(UserError::Unavailable));
    assert!(users.admin.read().is_none());
    let mut told = None;
    users
        .ensure_admin(AdminCredentials::default(), |made| {
            told = Some(made.clone());
            Ok::<_, UserError>(())
        })
        .unwrap();
    let made = told.unwrap();
    assert_eq!(made.username.as_str(), "admin");
    assert!(users.admin_login("admin", made.password.reveal(), HERE).is_ok());
    assert_eq!(users.admin_login("admin", "admin123", HERE), Err(UserError::WrongCredentials));
    assert_eq!(users.admin_login("root", made.password.reveal(), HERE), Err(UserError::WrongCredentials));
    assert_eq!(users.login("admin", made.password.reveal(), HERE), Err(UserError::WrongCredentials));
    users.close();
    let users = open(dir.path());
    users.ensure_admin(AdminCredentials::default(), no_admin_is_made).unwrap();
    let (token, _) = users.issue_token(&users.admin_login("admin", made.password.reveal(), HERE).unwrap(), Role::Admin);
    // The operator names another admin: the former one's password and tokens are rejected.
    let given = AdminCredentials { username: Some(name("root")), password: Some("hunter2".to_owned()) };
    users.ensure_admin(given.clone(), no_admin_is_made).unwrap();
    assert!(users.admin_login("root", "hunter2", HERE).is_ok());
    assert_eq!(users.admin_login("admin", made.password.reveal(), HERE), Err(UserError::WrongCredentials));
    assert_eq!(users.authenticate_admin(token.reveal()), Err(UserError::Token(TokenError::Invalid)));
    users.close();
    let users = open(dir.path());
    users.ensure_admin(given, no_admin_is_made).unwrap();
    users.ensure_admin(AdminCredentials::default(), no_admin_is_made).unwrap();
    assert!(users.admin_login("root", "hunter2", HERE).is_ok());
    let empty = AdminCredentials { username: None, password: Some(String::new()) };
    assert!(matches!(users.ensure_admin(empty, no_admin_is_made), Err(UserError::InvalidField(_))));
}

#[test]
fn who_guesses_waits_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    users.register("ann", "right", None, HERE).unwrap();
    for n in 0..10 {
        assert_eq!(users.login("ann", "wrong", HERE), Err(UserError::WrongCredentials), "{n}");
    }
    assert!(matches!(users.login("ann", "right", HERE), Err(UserError::LockedOut(_))), "also the right one waits");
    assert!(users.login("ann", "right", THERE).is_ok(), "from elsewhere it does not");
    assert_eq!(users.admin_login("ann", "wrong", HERE), Err(UserError::WrongCredentials), "the admin is another");
    // Guesses at many other users, and a name that is registered after it was guessed at.
    users.register("bob", "right", None, HERE).unwrap();
    for n in 0..110 {
        assert_eq!(users.login(&format!("user{n}"), "wrong", HERE), Err(UserError::WrongCredentials), "{n}");
    }
    assert!(users.login("bob", "right", HERE).is_ok());
    for _ in 0..10 {
        assert_eq!(users.login("cid", "right", HERE), Err(UserError::WrongCredentials));
    }
    assert!(matches!(users.login("cid", "right", HERE), Err(UserError::LockedOut(_))));
    users.register("cid", "right", None, THERE).unwrap();
    assert!(users.login("cid", "right", HERE).is_ok(), "the failures were those of nobody");
}

#[test]
fn a_user_is_one_however_name_and_password_are_spelled() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    let (composed, apart) = ("jürgen", "ju\u{308}rgen");
    users.register(apart, "Gro\u{308}ße", None, HERE).unwrap();
    assert_eq!(users.register(composed, "other", None, HERE), Err(UserError::UsernameTaken(name(composed))));
    users.close();
    let users = open(dir.path());
    for spelled in [composed, apart] {
        let user = users.login(spelled, "Größe", HERE).unwrap();
        assert_eq!(user.username.as_str(), apart, "as it was given");
        assert!(users.account_exists(spelled) && users.has_signed_in_from(spelled, HERE));
        let (token, _) = users.issue_token(&name(spelled), Role::User);
        assert_eq!(users.authenticate_user(token.reveal()).unwrap().0.username.as_str(), apart);
        assert_eq!(users.accounts_by_hostname(&[spelled]).unwrap()[spelled].username.as_str(), apart);
    }
    assert_eq!(users.login("jurgen", "Größe", HERE), Err(UserError::WrongCredentials));
    for n in 0..10 {
        assert_eq!(users.login([composed, apart][n % 2], "wrong", THERE), Err(UserError::WrongCredentials));
    }
    assert!(matches!(users.login(apart, "Größe", THERE), Err(UserError::LockedOut(_))), "one user, not two");
    assert!(matches!(users.register("a\u{200b}b", "p", None, HERE), Err(UserError::InvalidField(_))));
    // If both spellings are registered at once, one succeeds.
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let users = &users;
                scope.spawn(move || users.register(["zoë", "zoe\u{308}"][n % 2], "p", None, HERE).is_ok())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count()
    });
    assert_eq!(made, 1);
}

#[test]
fn two_accounts_of_two_spellings_of_one_name_stay_two_and_the_older_has_the_hostname() {
    let (composed, apart) = ("zoë", "zoe\u{308}");
    // Which one is older must not depend on their order in the file.
    for (older, younger) in [(composed, apart), (apart, composed)] {
        let dir = tempfile::tempdir().unwrap();
        let users = open(dir.path());
        users.register(older, "older's", Some("Older"), HERE).unwrap();
        // Written as an earlier version did.
        let hash = users.logins.passwords.hash("younger's", source::key_of(HERE)).unwrap();
        let row = younger.to_owned();
        users
            .store
            .write(move |tx| -> Result<(), StoreError> {
                let sql = "INSERT INTO users (username, display_name, password, created_at) \
                           SELECT $1, 'Younger', $2, created_at + 1 FROM users";
                tx.execute(sql, &[(&row).into(), (&hash).into()]).map(drop)
            })
            .unwrap();
        users.close();
        let users = open(dir.path());
        assert_eq!((users.count(), users.accounts_without_hostname()), (2, vec![younger.to_owned()]));
        for (spelled, password, others) in [(older, "older's", "younger's"), (younger, "younger's", "older's")] {
            let user = users.login(spelled, password, THERE).unwrap();
            assert_eq!(user.username.as_str(), spelled);
            assert_eq!(users.login(spelled, others, HERE), Err(UserError::WrongCredentials));
            let (token, _) = users.issue_token(&user.username, Role::User);
            assert_eq!(users.authenticate_user(token.reveal()).unwrap().0.username.as_str(), spelled);
            assert_eq!(users.hostname_of_token(token.reveal()).as_deref(), (spelled == older).then_some(older));
            assert_eq!(users.has_hostname(&user.username), spelled == older);
            assert_eq!(
                users.accounts_by_hostname(&[spelled]).unwrap()[spelled].username.as_str(),
                older,
                "who has the hostname"
            );
            assert!(users.account_exists(spelled));
            assert_eq!(users.register(spelled, "p", None, HERE), Err(UserError::UsernameTaken(name(spelled))));
        }
        // Sign-ins of the younger account do not count for the hostname.
        let elsewhere = "192.0.2.9".parse().unwrap();
        users.login(younger, "younger's", elsewhere).unwrap();
        users.close();
        let users = open(dir.path());
        for spelled in [composed, apart] {
            assert!(users.has_signed_in_from(spelled, THERE) && !users.has_signed_in_from(spelled, elsewhere));
        }
        assert_eq!(all_names(&users), [apart, composed]);
    }
    // A third spelling refers to the oldest account.
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    let all = ["a\u{327}\u{301}", "á\u{327}"].map(name);
    *users.names.write() = AccountNames::from_oldest_first(all.to_vec());
    let meant = |text: &str| users.names.read().resolve(&name(text)).map(Name::to_string);
    for (asked, expected) in [(all[0].as_str(), 0), (all[1].as_str(), 1), ("a\u{301}\u{327}", 0)] {
        assert_eq!(meant(asked).as_deref(), Some(all[expected].as_str()));
    }
}

fn all_names(users: &Users) -> Vec<String> {
    users.list_page(None, 10).unwrap().into_iter().map(|user| user.username.to_string()).collect()
}

#[test]
fn an_address_counts_for_the_life_of_a_token_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    users.register("ann", "p", None, HERE).unwrap();
    assert!(users.has_signed_in_from("ann", HERE) && !users.has_signed_in_from("ann", THERE));
    assert!(!users.has_signed_in_from("bob", HERE));
    users.login("ann", "p", "::ffff:192.0.2.2".parse().unwrap()).unwrap();
    assert!(users.has_signed_in_from("ann", THERE), "the same address however it came");
    let _ = users.login("ann", "wrong", "192.0.2.3".parse().unwrap());
    assert!(!users.has_signed_in_from("ann", "192.0.2.3".parse().unwrap()));
    // The oldest address beyond the limit is forgotten.
    for n in 0..ADDRESSES_MAX {
        users.login("ann", "p", IpAddr::from([198, 51, 100, n as u8])).unwrap();
    }
    assert!(!users.has_signed_in_from("ann", HERE) && users.has_signed_in_from("ann", [198, 51, 100, 0].into()));
    users.close();
    let users = open(dir.path());
    assert!(!users.has_signed_in_from("ann", HERE) && users.has_signed_in_from("ann", [198, 51, 100, 0].into()));
    users.close();
    // With a token lifetime of one millisecond it has expired.
    std::thread::sleep(Duration::from_millis(5));
    let users = open_for(dir.path(), Duration::from_millis(1));
    assert!(!users.has_signed_in_from("ann", [198, 51, 100, 0].into()));
    // Also for sign-ins since the start.
    users.login("ann", "p", HERE).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(!users.has_signed_in_from("ann", HERE));
}

#[test]
fn tokens_go_by_the_wall_also_after_the_machine_has_slept() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 8, passes: 1 }, 2).unwrap();
    let jwt = || Jwt::load_or_create(dir.path(), Duration::from_secs(3600)).unwrap();
    let users = Users::open(dir.path(), Clock::behind(Duration::from_secs(2 * 3600)), passwords, jwt()).unwrap();
    let ann = users.register("ann", "p", None, HERE).unwrap();
    let (token, claims) = users.issue_token(&ann.username, Role::User);
    let wall = Clock::wall().0 / 1000;
    let is_now = |at: Millis| at.0.abs_diff(Clock::wall().0) < 60_000;
    assert!(is_now(ann.created_at), "{ann:?}");
    let ann = users.login("ann", "p", HERE).unwrap();
    assert!(is_now(ann.created_at) && ann.last_login.is_some_and(is_now), "{ann:?}");
    assert!((wall - 10..=wall).contains(&claims.iat), "{claims:?} at {wall}");
    assert_eq!(jwt().verify(Clock::wall(), token.reveal()), Ok(claims));
    assert!(users.authenticate_user(token.reveal()).is_ok());
    // Tokens that expired during the sleep are rejected.
    let (old, _) = jwt().issue(Millis((wall - 3600) * 1000), "ann", Role::User);
    assert_eq!(users.authenticate_user(old.reveal()), Err(UserError::Token(TokenError::Expired)));
    assert!(users.hostname_of_token(old.reveal()).is_none());
    let (old, _) = jwt().issue(Millis((wall - 3600) * 1000), "admin", Role::Admin);
    assert_eq!(users.authenticate_admin(old.reveal()), Err(UserError::Token(TokenError::Expired)));
}

#[test]
fn of_many_who_want_a_name_at_once_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let users = open(dir.path());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn({
                    let users = &users;
                    move || users.register("ann", &format!("p{n}"), None, HERE)
                })
            })
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    assert!(users.login("ann", &format!("p{winner}"), HERE).is_ok());
}
