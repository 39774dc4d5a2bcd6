//! Accounts: creating them, finding them, logging in.

use super::*;

#[test]
fn a_user_name_is_unique_within_its_role_and_a_repeated_request_gets_the_same_account() {
    let mut db = Db::new();
    let first: Account = db.ask(create("r1", Role::Buyer, "ann")).unwrap();
    assert_eq!((first.user_id, first.name.as_str()), (1, "ann"));
    assert_eq!(db.ask(create("r1", Role::Buyer, "ann")), Ok(first.clone()));
    db.restart();
    assert_eq!(db.ask(create("r1", Role::Buyer, "ann")), Ok(first.clone()));
    assert_eq!(db.create(Role::Buyer, "ann"), Err(ErrorCode::UsernameTaken));
    assert_eq!(db.create(Role::Seller, "ann").map(|account| account.user_id), Ok(1));
    assert_eq!(db.create(Role::Buyer, "bob").map(|account| account.user_id), Ok(2));
    assert_eq!(db.count("shop_user"), 3);

    let find = |username: Option<&str>, user_id| {
        let username = username.map(str::to_owned);
        db.ask::<Account>(CustomerOp::FindUser { role: Role::Buyer, username, user_id })
    };
    assert_eq!(find(Some("ann"), None), Ok(first.clone()));
    assert_eq!(find(None, Some(1)), Ok(first));
    for (username, user_id) in [(Some("Ann"), None), (None, Some(3)), (None, Some(u64::MAX)), (None, None)] {
        assert_eq!(find(username, user_id), Err(ErrorCode::NotFound));
    }
}

#[test]
fn ids_are_never_given_twice_not_even_after_a_backup() {
    let mut db = Db::new();
    let id = |db: &mut Db, role, name: &str| db.create(role, name).unwrap().user_id;
    assert_eq!((id(&mut db, Role::Buyer, "a"), id(&mut db, Role::Buyer, "b")), (1, 2));
    db.config.first_id_range = 1;
    db.restart();
    // Of each role, also of one that nobody had.
    assert_eq!(id(&mut db, Role::Buyer, "c"), 1 + ID_RANGE_SIZE);
    assert_eq!(id(&mut db, Role::Seller, "c"), 1 + ID_RANGE_SIZE);
    // The same stretch again is not begun anew.
    db.restart();
    assert_eq!(id(&mut db, Role::Buyer, "d"), 2 + ID_RANGE_SIZE);
    db.config.first_id_range = 0;
    db.restart();
    assert_eq!(id(&mut db, Role::Buyer, "e"), 3 + ID_RANGE_SIZE);
}

#[test]
fn many_at_once_create_one_account_a_name() {
    let db = Db::new();
    let created: usize = thread::scope(|scope| {
        let db = &db;
        let threads: Vec<_> = (0..8)
            .map(|n| scope.spawn(move || db.ask::<Account>(create(&n.to_string(), Role::Buyer, "ann"))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count()
    });
    assert_eq!((created, db.count("shop_user")), (1, 1));
}

#[test]
fn a_user_is_one_however_name_and_password_are_spelled() {
    let mut db = Db::new();
    let (composed, apart) = ("zoë", "zoe\u{308}");
    let mut op = create("r", Role::Buyer, apart);
    if let CustomerOp::Create { password, .. } = &mut op {
        *password = "Gro\u{308}ße".to_owned();
    }
    let made: Account = db.ask(op).unwrap();
    assert_eq!(made.username, apart, "as it was given");
    assert_eq!(db.create(Role::Buyer, composed), Err(ErrorCode::UsernameTaken));
    for spelled in [composed, apart] {
        let logged_in: NewSession = db.ask(login(Role::Buyer, spelled, "Größe", "::1")).unwrap();
        assert_eq!(logged_in.user_id, made.user_id);
    }
    let hidden = db.customers().handle(create("s", Role::Buyer, "zo\u{200b}e")).unwrap_err();
    assert!(hidden.message.starts_with("username: "), "{hidden:?}");
}

#[test]
fn users_of_before_keys_are_found_by_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let (composed, apart) = ("zoë", "zoe\u{308}");
    let kept = PasswordHasher::with_own_threads(CHEAP, 1)
        .unwrap()
        .hash("secret", crate::net::source::key_of([127, 0, 0, 1].into()))
        .unwrap();
    // As the version before wrote them: also two of two spellings.
    let before = Store::open(&dir.path().join("customer.db"), &MIGRATIONS[..MIGRATIONS.len() - 1]).unwrap();
    before
        .write(move |tx| -> Result<(), StoreError> {
            for (id, role, name) in
                [(1, "buyer", "ann"), (2, "buyer", apart), (1, "seller", apart), (2, "seller", composed)]
            {
                tx.execute(
                    "INSERT INTO shop_user (role, user_id, username, password, request, created_at)
                     VALUES ($1, $2, $3, $4, 'r', 1)",
                    &[role.into(), id.into(), name.into(), (&kept).into()],
                )?;
            }
            Ok(())
        })
        .unwrap();
    drop(before);
    let mut db = Db {
        dir,
        running: None,
        config: CustomerDbConfig { password_cost: CHEAP, ..CustomerDbConfig::default() },
        requests: 0,
    };
    db.open();
    let id = |role, name: &str| db.ask::<NewSession>(login(role, name, "secret", "::1")).map(|user| user.user_id);
    assert_eq!(id(Role::Buyer, "ann"), Ok(1));
    assert_eq!((id(Role::Buyer, composed), id(Role::Buyer, apart)), (Ok(2), Ok(2)));
    assert_eq!((id(Role::Seller, composed), id(Role::Seller, apart)), (Ok(2), Ok(1)), "each is found as it is written");
}

#[test]
fn two_hundred_who_come_at_once_as_in_the_documents_all_get_in() {
    let db = Db::new();
    // Each signs in, makes the account when that is refused, and signs in again; all of a role share a name.
    let refused: Vec<ErrorCode> = thread::scope(|scope| {
        let db = &db;
        let threads: Vec<_> = (0..200)
            .map(|n: usize| {
                scope.spawn(move || {
                    let role = [Role::Buyer, Role::Seller][n % 2];
                    let enter = || db.ask::<NewSession>(login(role, "one", "secret", "127.0.0.1"));
                    if enter().is_ok() {
                        return None;
                    }
                    drop(db.ask::<Account>(create(&n.to_string(), role, "one")));
                    enter().err()
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(refused, []);
    assert_eq!((db.count("shop_user"), db.count("shop_session") >= 200), (2, true));
}

#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    let refused = |op| db.customers().handle(op).unwrap_err();
    let wrong = refused(login(Role::Buyer, "ann", "secres", "::1"));
    assert_eq!(wrong.code, ErrorCode::BadCredentials);
    assert_eq!(refused(login(Role::Buyer, "nobody", "secret", "::1")), wrong);
    assert_eq!(refused(login(Role::Seller, "ann", "secret", "::1")), wrong, "a buyer is no seller");
    assert!(refused(login(Role::Buyer, "", "secret", "::1")).message.starts_with("username: "));
    assert!(refused(login(Role::Buyer, "ann", &"x".repeat(257), "::1")).message.starts_with("password: "));
    let nameless = CustomerOp::Create {
        request: "r".to_owned(),
        role: Role::Buyer,
        username: "eve".to_owned(),
        password: "p".to_owned(),
        name: Some("a\nb".to_owned()),
        source: String::new(),
    };
    assert!(refused(nameless).message.starts_with("name: "));
}

#[test]
fn who_fails_ten_times_waits_but_only_that_user_from_there() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    db.create(Role::Buyer, "bob").unwrap();
    for _ in 0..10 {
        let guess = db.ask::<NewSession>(login(Role::Buyer, "ann", "guess", "10.0.0.1"));
        assert_eq!(guess.map(|_| ()), Err(ErrorCode::BadCredentials));
    }
    let try_it = |username, source| db.ask::<NewSession>(login(Role::Buyer, username, "secret", source)).map(|_| ());
    assert_eq!(try_it("ann", "10.0.0.1"), Err(ErrorCode::Busy), "also with the right password");
    assert_eq!(try_it("ann", "10.0.0.2"), Ok(()));
    assert_eq!(try_it("bob", "10.0.0.1"), Ok(()));
}

#[test]
fn guesses_at_once_are_not_more_than_ten_that_are_answered() {
    let mut db = Db::new();
    db.create(Role::Buyer, "ann").unwrap();
    let told = thread::scope(|scope| {
        let db = &db;
        let guess = || db.ask::<NewSession>(login(Role::Buyer, "ann", "guess", "10.0.0.1")).map(|_| ());
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(guess)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|told| *told == Err(ErrorCode::BadCredentials))
            .count()
    });
    assert_eq!(told, 10);
}

#[test]
fn neither_passwords_nor_session_ids_are_in_the_file() {
    let mut db = Db::new();
    let sid = db.buyer("ann");
    db.add(&sid, false, "1-1", 1).unwrap();
    let kept = db
        .store()
        .read(|reader| reader.first("SELECT password FROM shop_user", &[], |row| Ok(row.text(0)?.to_owned())));
    assert!(kept.unwrap().unwrap().starts_with("$argon2id$"));
    let dir = db.dir.path().to_owned();
    db.running = None;
    let file = std::fs::read(dir.join("customer.db")).unwrap();
    let holds = |text: &str| file.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(holds("ann") && holds(&SessionKey::of(&sid).to_text()));
    assert!(!holds("secret") && !holds(&sid));
}

#[test]
fn an_operator_sees_who_has_an_account() {
    let mut db = Db::new();
    for (role, username) in [(Role::Seller, "sue"), (Role::Buyer, "bob"), (Role::Buyer, "ann")] {
        db.create(role, username).unwrap();
    }
    let mut shown = Vec::new();
    let mut show = |role: Role, account: Account, created_at: Millis| {
        assert!(created_at.until(db.config.clock.now()) < Duration::from_secs(600));
        shown.push(format!("{} {} {}", role.as_str(), account.user_id, account.username));
    };
    db.store().read(|reader| store::for_each_user(reader, &mut show)).unwrap();
    assert_eq!(shown, ["buyer 1 bob", "buyer 2 ann", "seller 1 sue"]);
}
