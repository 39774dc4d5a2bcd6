use super::*;
use crate::net::threads::Executor;
use crate::share::transfer::{ContentIdentity, FetchTiming};
use crate::share::wire::HostEntry;
use crate::share::wire::{FileName, Seconds};

struct Nobody;

impl SourceFinder for Nobody {
    fn find_hosts(&self, _fname: &FileName) -> Result<Vec<HostEntry>, String> {
        Ok(Vec::new())
    }
}

#[test]
fn a_fetch_without_threads_is_refused_as_such_and_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let names = || std::fs::read_dir(dir.path()).unwrap().count();
    let content = ContentIdentity { size: 5, modified: Seconds::new(7.0).unwrap(), blake3: None, pieces_root: None };
    let spec = FetchSpec {
        id: "f-1".to_owned(),
        fname: FileName::new("a").unwrap(),
        hostname: "ann".to_owned(),
        save_path: dir.path().join("a"),
        content,
        is_owner_named: false,
        is_paused: true,
    };
    let start = |threads: usize| {
        let context = FetchContext { executor: Executor::new("few", threads), timing: FetchTiming::default() };
        Fetch::start(spec.clone(), Arc::new(Nobody), Arc::new(|_: &FetchProgress| {}), context)
    };
    for threads in [0, 1] {
        let refused = start(threads).err().unwrap();
        assert!(matches!(refused, StartFetchError::Full(_)), "{refused}");
        assert_eq!(names(), 0, "{threads}");
    }
    // Data of an earlier run is not lost by it.
    assert!(start(2).unwrap().stop(Duration::from_secs(10)));
    assert_eq!(names(), 2);
    for threads in [0, 1] {
        assert!(start(threads).is_err());
        assert_eq!(names(), 2, "{threads}");
    }
}
