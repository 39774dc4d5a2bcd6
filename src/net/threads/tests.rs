use super::*;
use crate::net::testing::eventually;
use crossbeam_channel::{bounded, unbounded};

#[test]
fn a_panic_harms_no_other_and_its_thread_works_on() {
    let executor = Executor::new("test", 1);
    for round in 1..=3 {
        executor.execute(|| panic!("on purpose")).unwrap();
        eventually(|| executor.running_jobs() == 0);
        assert_eq!(executor.counters().panics.get(), round);
        let (tell, told) = bounded(1);
        executor.execute(move || tell.send(7).unwrap()).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(7));
        eventually(|| executor.running_jobs() == 0);
    }
    assert_eq!(executor.threads(), 1);
    assert_eq!(executor.counters().threads_started.get(), 1);
}

#[test]
fn ten_thousand_jobs_use_few_threads_again() {
    let executor = Executor::new("test", 8);
    let (tell, told) = unbounded();
    for n in 0..10_000_u32 {
        let tell = tell.clone();
        let mut job: Job = Box::new(move || tell.send(n).unwrap());
        while let Err(refused) = executor.try_execute(job) {
            job = refused;
            thread::yield_now();
        }
    }
    drop(tell);
    let mut seen: Vec<u32> = told.iter().collect();
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..10_000));
    assert!(executor.counters().threads_started.get() <= 8);
    assert!(executor.threads() <= 8);
}

#[test]
fn full_at_the_bound_and_free_again() {
    let executor = Executor::new("test", 2);
    let (release, wait) = bounded::<()>(0);
    for _ in 0..2 {
        let wait = wait.clone();
        executor.execute(move || wait.recv().unwrap()).unwrap();
    }
    assert_eq!(executor.execute(|| {}), Err(ExecutorFull));
    assert_eq!(executor.counters().full.get(), 1);
    release.send(()).unwrap();
    eventually(|| executor.execute(|| {}).is_ok());
    release.send(()).unwrap();
    assert_eq!(executor.shut_down(Duration::from_secs(5)), 0);
}

#[test]
fn idle_threads_retire() {
    let executor = Executor::with_retirement("test", 4, Duration::from_millis(10));
    let (release, wait) = bounded::<()>(0);
    for _ in 0..4 {
        let wait = wait.clone();
        executor.execute(move || wait.recv().unwrap()).unwrap();
    }
    assert_eq!(executor.threads(), 4);
    (0..4).for_each(|_| release.send(()).unwrap());
    eventually(|| executor.threads() == 0);
    executor.execute(|| {}).unwrap();
    eventually(|| executor.running_jobs() == 0);
}

#[test]
fn jobs_arriving_while_threads_retire_are_all_done() {
    let executor = Executor::with_retirement("test", 4, Duration::from_micros(50));
    let (tell, told) = unbounded();
    for n in 0..3000_u32 {
        let tell = tell.clone();
        // Lets threads come close to their retirement.
        let until = Instant::now() + Duration::from_micros(u64::from(n % 100));
        while Instant::now() < until {
            thread::yield_now();
        }
        let mut job: Job = Box::new(move || tell.send(n).unwrap());
        while let Err(refused) = executor.try_execute(job) {
            job = refused;
        }
    }
    drop(tell);
    assert_eq!(told.iter().count(), 3000);
    eventually(|| executor.threads() == 0);
}

#[test]
fn finishing_waits_refuses_and_says_what_is_left() {
    let executor = Executor::new("test", 4);
    let (release, wait) = bounded::<()>(0);
    executor.execute(|| {}).unwrap();
    executor.execute(move || wait.recv().unwrap()).unwrap();
    assert_eq!(executor.shut_down(Duration::from_millis(20)), 1);
    assert_eq!(executor.execute(|| {}), Err(ExecutorFull));
    assert!(executor.is_closed());
    release.send(()).unwrap();
    assert_eq!(executor.shut_down(Duration::from_secs(5)), 0);
    eventually(|| executor.threads() == 0);
}

#[test]
fn the_job_last_done_gives_its_thread_to_the_next() {
    let executor = Executor::new("test", 4);
    let (tell, told) = bounded(4);
    let (release, wait) = bounded::<()>(0);
    for _ in 0..3 {
        let (tell, wait) = (tell.clone(), wait.clone());
        executor
            .execute(move || {
                wait.recv().unwrap();
                tell.send(thread::current().id()).unwrap();
            })
            .unwrap();
    }
    let mut last = None;
    for left in (0..3).rev() {
        release.send(()).unwrap();
        last = told.recv().ok();
        eventually(|| executor.running_jobs() == left);
    }
    executor.execute(move || tell.send(thread::current().id()).unwrap()).unwrap();
    assert_eq!(told.recv().ok(), last);
}

#[test]
fn a_long_lived_thread_may_fail_or_panic() {
    spawn("test", || {}).unwrap().join().unwrap();
    spawn("test", || Err::<(), _>("no luck")).unwrap().join().unwrap();
    spawn("test", || -> () { panic!("on purpose") }).unwrap().join().unwrap();
}
