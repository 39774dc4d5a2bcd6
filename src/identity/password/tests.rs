use std::thread;

use crossbeam_channel::unbounded;

use super::*;

const CHEAP: HashCost = HashCost { memory_kib: 8, passes: 1 };

fn from(address: &str) -> SourceKey {
    source::key_of(address.parse().unwrap())
}

fn here() -> SourceKey {
    from("127.0.0.1")
}

/// Fills all worker threads with jobs that end only when the returned sender is dropped.
fn hold(passwords: &PasswordHasher) -> Sender<()> {
    let (release, held) = bounded::<()>(0);
    for _ in 0..passwords.workers.thread_count {
        let held = held.clone();
        let work = HashTask::Test(Box::new(move || assert!(held.recv().is_err())));
        drop(passwords.submit(work, from("10.9.9.9"), || true).unwrap());
    }
    while passwords.running_and_queued() != (passwords.workers.thread_count, 0) {
        thread::yield_now();
    }
    release
}

#[test]
fn a_password_is_kept_as_argon2id_and_told_from_others() {
    let passwords = PasswordHasher::with_own_threads(HashCost::default(), 2).unwrap();
    let stored_hash = passwords.hash("correct horse", here()).unwrap();
    assert!(stored_hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored_hash}");
    assert!(!stored_hash.contains("horse"));
    assert_ne!(stored_hash, passwords.hash("correct horse", here()).unwrap(), "each has a salt of its own");
    assert_eq!(passwords.verify("correct horse", Some(&stored_hash), here()), Ok(true));
    assert_eq!(passwords.verify("correct horsf", Some(&stored_hash), here()), Ok(false));
    assert_eq!(passwords.verify("", Some(&stored_hash), here()), Ok(false));
}

#[test]
fn it_is_the_hash_that_everybody_computes() {
    use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
    let theirs = Argon2::default();
    let passwords = PasswordHasher::with_own_threads(HashCost::default(), 1).unwrap();
    let stored_hash = passwords.hash("correct horse", here()).unwrap();
    assert!(theirs.verify_password(b"correct horse", stored_hash.as_str()).is_ok(), "{stored_hash}");
    let stored_hash = theirs.hash_password(b"correct horse").unwrap().to_string();
    assert_eq!(passwords.verify("correct horse", Some(&stored_hash), here()), Ok(true), "as earlier versions kept it");
}

#[test]
fn both_forms_of_a_password_are_one_also_where_the_other_was_kept() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
    let (composed, apart) = ("Müßiggänger", "Mu\u{308}ßigga\u{308}nger");
    let as_typed = |password| hash(&passwords.argon2, password, &mut Vec::new()).unwrap();
    for stored_hash in
        [passwords.hash(composed, here()).unwrap(), passwords.hash(apart, here()).unwrap(), as_typed(apart)]
    {
        for typed in [composed, apart] {
            assert_eq!(passwords.verify(typed, Some(&stored_hash), here()), Ok(true));
        }
        assert_eq!(passwords.verify("Mussigganger", Some(&stored_hash), here()), Ok(false));
    }
    // Neither form C nor D: typed the same way, it still matches.
    let mixed = "Mu\u{308}ßiggänger";
    assert_eq!(passwords.verify(mixed, Some(&as_typed(mixed)), here()), Ok(true));
}

#[test]
fn the_threads_that_compute_are_few_and_end_with_it() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 3).unwrap();
    let (told, tell) = unbounded();
    for _ in 0..20 {
        let told = told.clone();
        let work = HashTask::Test(Box::new(move || told.send(thread::current().id()).unwrap()));
        assert_eq!(passwords.run(work, here(), || true), Ok(HashOutput::Matches(true)));
    }
    let failing = passwords.run(HashTask::Test(Box::new(|| panic!("a test's panic"))), here(), || true);
    assert!(matches!(failing, Err(PasswordError::Failed(_))), "{failing:?}");
    assert!(passwords.hash("p", here()).is_ok(), "and the thread goes on");
    // Dropping the hasher drops the remaining jobs and their senders, so the receiver ends.
    drop((passwords, told));
    let threads: std::collections::HashSet<_> = tell.iter().collect();
    assert!(threads.len() <= 3 && !threads.contains(&thread::current().id()), "{threads:?}");
}

#[test]
fn a_work_area_is_used_again() {
    let mut memory = Vec::new();
    let argon2 = |memory| Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(memory, 1, 1, None).unwrap());
    let stored_hash = hash(&argon2(64), "p", &mut memory).unwrap();
    let (place, room) = (memory.as_ptr(), memory.capacity());
    for password in ["p", "q"] {
        let stored_hash = PasswordHash::new(&stored_hash).unwrap();
        assert_eq!(
            matches_hash(password, &stored_hash, &mut memory),
            Ok(password == "p"),
            "what was left there does not matter"
        );
    }
    hash(&argon2(8), "p", &mut memory).unwrap();
    assert_eq!((memory.as_ptr(), memory.capacity()), (place, room));
}

#[test]
fn what_was_kept_at_another_cost_is_still_good() {
    let stored_hash = PasswordHasher::with_own_threads(CHEAP, 1).unwrap().hash("p", here()).unwrap();
    let passwords = PasswordHasher::with_own_threads(HashCost { memory_kib: 64, passes: 2 }, 1).unwrap();
    assert_eq!(passwords.verify("p", Some(&stored_hash), here()), Ok(true));
    assert!(passwords.verify("p", Some("plain text"), here()).is_err());
}

#[test]
fn an_unknown_user_has_a_hash_computed_at_the_same_cost() {
    let cost = HashCost { memory_kib: 4096, passes: 2 };
    let passwords = PasswordHasher::with_own_threads(cost, 1).unwrap();
    assert!(passwords.dummy_hash.contains("m=4096,t=2,p=1"), "{}", passwords.dummy_hash);
    assert_eq!(passwords.verify("anything", None, here()), Ok(false));
}

#[test]
fn the_queue_is_as_long_as_can_be_answered_in_time() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 2).unwrap();
    let release = hold(&passwords);
    passwords.workers.queue.state.lock().recent_hash_time = Duration::from_millis(100);
    // Twice 5 s of two threads at 100 ms each.
    let waiting: Vec<_> =
        (0..200).map(|_| passwords.submit(HashTask::Hash("p".to_owned()), here(), || true).unwrap()).collect();
    assert_eq!(passwords.hash("p", here()), Err(PasswordError::Busy));
    assert_eq!(passwords.verify("p", None, here()), Err(PasswordError::Busy));
    assert_eq!(passwords.running_and_queued(), (2, 200));
    drop(release);
    for answer in waiting {
        assert!(matches!(answer.recv(), Ok(Ok(HashOutput::Hash(_)))));
    }
    assert!(passwords.hash("p", here()).is_ok());
}

#[test]
fn who_has_waited_too_long_is_told_and_costs_no_hash() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
    let release = hold(&passwords);
    let answer = passwords.submit(HashTask::Test(Box::new(|| panic!("it is computed"))), here(), || true).unwrap();
    for jobs in passwords.workers.queue.state.lock().jobs.values_mut() {
        jobs[0].queued_at -= WAIT_MAX + Duration::from_millis(1);
    }
    drop(release);
    assert!(answer.recv().is_err(), "dropped, which is Busy");
    assert!(passwords.hash("p", here()).is_ok());
}

#[test]
fn what_is_not_wanted_when_its_turn_comes_costs_no_hash() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
    let release = hold(&passwords);
    let (asked, turns) = unbounded();
    let begin = |number: usize| {
        let asked = asked.clone();
        let is_still_needed = move || {
            asked.send(number).unwrap();
            number == 2
        };
        passwords.submit(HashTask::Hash("p".to_owned()), here(), is_still_needed).unwrap()
    };
    let answers: Vec<_> = (0..4).map(begin).collect();
    assert!(turns.is_empty(), "asked when its turn comes, not before");
    drop(release);
    for (number, answer) in answers.into_iter().enumerate() {
        match answer.recv().unwrap() {
            Ok(HashOutput::Hash(_)) => assert_eq!(number, 2),
            other => assert_eq!((other, number == 2), (Err(PasswordError::NoLongerNeeded), false)),
        }
    }
    assert_eq!(turns.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(passwords.hash("p", here()).is_ok());
}

#[test]
fn one_source_has_half_of_the_queue_while_others_wait_and_turns_are_taken() {
    let passwords = PasswordHasher::with_own_threads(CHEAP, 1).unwrap();
    let release = hold(&passwords);
    // Room for ten.
    passwords.workers.queue.state.lock().recent_hash_time = OVERCOMMIT_FACTOR as u32 * WAIT_MAX / 10;
    let (order, ended) = unbounded();
    let begin = |source: &str, n: usize| {
        let (order, who) = (order.clone(), (source.to_owned(), n));
        passwords.submit(HashTask::Test(Box::new(move || order.send(who).unwrap())), from(source), || true)
    };
    let many: Vec<_> = (0..10).map(|n| begin("10.0.0.1", n).unwrap()).collect();
    assert!(begin("10.0.0.1", 10).is_err(), "alone it has all of it, and no more");
    // A second source comes: the newest jobs of the first give way, and the second gets no more than half.
    let others: Vec<_> = (0..5).map(|n| begin("10.0.0.2", n).unwrap()).collect();
    assert!(begin("10.0.0.2", 5).is_err() && begin("10.0.0.1", 11).is_err());
    let third = begin("10.0.0.3", 0);
    assert!(third.is_ok(), "and there is room for a third");
    assert_eq!(passwords.running_and_queued(), (1, 10));
    drop(release);
    let answers: Vec<bool> = many.iter().chain(&others).map(|answer| answer.recv().is_ok()).collect();
    drop(order);
    let ended: Vec<(String, usize)> = ended.try_iter().collect();
    assert_eq!(answers.iter().filter(|is_ok| **is_ok).count() + 1, 10, "{answers:?}");
    // Sources take turns, and each source's oldest job comes first.
    let turn = |source: &str, n| (source.to_owned(), n);
    assert_eq!(ended[..3], [turn("10.0.0.1", 0), turn("10.0.0.2", 0), turn("10.0.0.3", 0)]);
    assert!(ended.contains(&turn("10.0.0.1", 4)) || ended.contains(&turn("10.0.0.2", 4)));
    assert!(!ended.iter().any(|(source, n)| source == "10.0.0.1" && *n >= 5));
}
