//! What this machine allows: how many threads and connections a server may promise.
//!
//! A thread that cannot be had while memory maps run out aborts the whole process, so the bound must
//! be known at the start, not found out.

use std::io;

use super::threads::STACK_BYTES;

/// Descriptors left for files, databases, listeners and links.
const SPARE_FILES: u64 = 128;

/// Descriptors that connections want at least, beside what a process keeps open: for a few clients, and for both
/// ends of the links between components of one process.
const FILES_FOR_CONNECTIONS: u64 = 24;

/// A thread's maps: its stack, the guard beneath it, its signal stack and the guard of that.
const MAPS_A_THREAD: u64 = 4;

/// Maps left for the program itself, its libraries and its heap.
const SPARE_MAPS: u64 = 4096;

/// Threads left for timers, writers, acceptors, and the user's other programs.
const SPARE_THREADS: u64 = 128;

/// Address space left for the program, its libraries, databases and the work areas of passwords, bytes.
const SPARE_ADDRESSES: u64 = 512 << 20;

/// What a thread takes of it: its stack, and what it works on.
const ADDRESSES_A_THREAD: u64 = 2 * STACK_BYTES as u64;

/// Heaps that the allocator may keep where the address space is bounded. By default it takes 64 MiB of addresses for
/// each thread that allocates, up to eight a core, whether they are used or not.
const HEAPS_WHERE_BOUNDED: i32 = 2;

/// Has a write past the limit of a file's size (`ulimit -f`) fail, as one to a full disk does: by default the system
/// kills the process for it, without a word.
pub fn survive_file_limit() {
    sys::ignore_file_limit_signal();
}

/// From this size on a block of memory is taken from the system by itself, and given back when it is freed, bytes.
const OWN_MAPPING_BYTES: i32 = 256 << 10;

/// Makes the most of what the system allows this process, which keeps so many files open at any rate. To be called
/// before any thread is started, and before anything is opened that is to stay open: what fails half-way names some
/// file that has nothing to do with it.
///
/// # Errors
/// It may not open those, and a few connections beside them.
pub fn prepare(own_files: u64) -> Result<(), TooFewFiles> {
    fit_address_space();
    give_memory_back();
    if let Err(error) = raise_open_files() {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    check_open_files(own_files)
}

/// Has the allocator give long messages' memory back. By default it takes the size of the first long block that is
/// freed for usual, takes the next ones from the heap of whichever thread asks, and keeps them there.
fn give_memory_back() {
    if !sys::map_blocks_from(OWN_MAPPING_BYTES) {
        log::warn!("the allocator keeps the memory of long messages");
    }
}

/// Has the allocator do with what address space there is, where it is bounded (`ulimit -v`).
fn fit_address_space() {
    if sys::address_space().is_some() && !sys::bound_heaps(HEAPS_WHERE_BOUNDED) {
        log::warn!("the allocator keeps as many heaps as it likes: memory may run out early");
    }
}

/// Raises the bound on open files to its hard limit; what it is then.
///
/// # Errors
/// The system's. Where there is no such bound: `u64::MAX`.
pub fn raise_open_files() -> io::Result<u64> {
    sys::raise_open_files()
}

/// The system allows too few open files for what is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of open files (ulimit -n) is {limit}, and {wanted} are wanted at least")]
pub struct TooFewFiles {
    /// What is allowed.
    pub limit: u64,
    /// What it takes.
    pub wanted: u64,
}

/// Whether a process may open the files that it keeps open, and a few connections beside them.
fn check_open_files(own_files: u64) -> Result<(), TooFewFiles> {
    let wanted = own_files + FILES_FOR_CONNECTIONS;
    match sys::open_files() {
        Some(limit) if limit < wanted => Err(TooFewFiles { limit, wanted }),
        _ => Ok(()),
    }
}

/// What this process uses, as far as the system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Threads, idle ones too.
    pub threads: Option<u64>,
    /// Memory that is really there, bytes.
    pub memory: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
}

/// What this process uses now. (Linux says it in files; elsewhere it is not known.)
pub fn usage() -> Usage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Usage { threads: number("Threads"), memory: number("VmRSS").map(|kib| kib * 1024), files: open_now() }
}

fn open_now() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match std::fs::metadata(FOLDER).ok()?.len() {
        // Before Linux 6.2 they have to be counted. One of them is the folder itself.
        0 => Some((std::fs::read_dir(FOLDER).ok()?.count() as u64).saturating_sub(1)),
        files => Some(files),
    }
}

/// What a server would like to have at once.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Connections to it; each takes a descriptor and a thread.
    pub connections: usize,
    /// What it keeps open at any rate: databases, listeners, locks.
    pub own_files: u64,
    /// Threads beside those.
    pub other_threads: usize,
    /// Descriptors beside those.
    pub other_files: usize,
}

/// What it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, at least 1.
    pub connections: usize,
    /// Threads in all.
    pub threads: usize,
    /// What made it fewer connections than wanted, with its figure.
    pub why: Option<String>,
}

/// Tells that a bound is lower than it was to be. What is left is mostly far more than anybody needs: a warning only
/// where little is left of what was wanted.
pub fn tell_lowered(what: &str, wanted: usize, allowed: usize, why: &str) {
    let level = if allowed < wanted / 4 { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "{what} {wanted} lowered to {allowed}: {why}");
}

/// How much of what is wanted this machine allows.
pub fn machine_bounds(wanted: Wanted) -> Bounds {
    bounds(wanted, &allowances(wanted.own_files))
}

/// What connections use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Descriptors,
    Threads,
}

/// One limit: of what it is one, how many of those it is enough for, and its name with its figure.
struct Allowance {
    of: Resource,
    enough_for: u64,
    what: String,
}

fn bounds(wanted: Wanted, allowances: &[Allowance]) -> Bounds {
    let mut bounds = Bounds { connections: wanted.connections, threads: usize::MAX, why: None };
    for Allowance { of, enough_for, what } in allowances {
        let enough_for = usize::try_from(*enough_for).unwrap_or(usize::MAX);
        let others = match of {
            Resource::Descriptors => wanted.other_files,
            Resource::Threads => {
                bounds.threads = bounds.threads.min(enough_for.max(1));
                wanted.other_threads
            }
        };
        // Where little is allowed, the others must not take all of it.
        let connections = (enough_for - others.min(enough_for / 2)).max(1);
        if connections < bounds.connections {
            (bounds.connections, bounds.why) = (connections, Some(what.clone()));
        }
    }
    bounds.threads = bounds.threads.min(bounds.connections.saturating_add(wanted.other_threads));
    bounds
}

fn allowances(own_files: u64) -> Vec<Allowance> {
    let mut all = Vec::new();
    let mut add = |of, limit: Option<u64>, spare: u64, each: u64, what: &str| {
        if let Some(limit) = limit {
            // As above; but what is open at any rate is so however little is allowed.
            let kept = if of == Resource::Descriptors { own_files.min(limit) } else { 0 };
            let enough_for = (limit - spare.min(limit / 2).max(kept)) / each;
            all.push(Allowance { of, enough_for, what: format!("{what} is {limit}") });
        }
    };
    use Resource::{Descriptors, Threads};
    add(Descriptors, sys::open_files(), SPARE_FILES, 1, "the limit of open files (ulimit -n)");
    add(Threads, sys::processes(), SPARE_THREADS, 1, "the limit of processes (ulimit -u)");
    add(Threads, sys::address_space(), SPARE_ADDRESSES, ADDRESSES_A_THREAD, "the limit of address space (ulimit -v)");
    add(Threads, number_in("/proc/sys/vm/max_map_count"), SPARE_MAPS, MAPS_A_THREAD, "vm.max_map_count");
    add(Threads, number_in("/proc/sys/kernel/threads-max"), SPARE_THREADS, 1, "kernel.threads-max");
    add(Threads, cgroup_pids_max(), SPARE_THREADS, 1, "the control group's pids.max");
    all
}

/// A file with one number in it; none where there is no such file, or another word ("max").
fn number_in(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The smallest bound on our control group (version 2) and those above it.
fn cgroup_pids_max() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let upwards = std::path::Path::new(own).ancestors();
    upwards.filter_map(|group| number_in(&format!("/sys/fs/cgroup{}/pids.max", group.display()))).min()
}

#[cfg(unix)]
mod sys {
    use std::io;
    use std::mem::MaybeUninit;

    /// The two bounds of one resource; `RLIM_INFINITY` is the largest number there is.
    macro_rules! get {
        ($resource:expr) => {{
            let mut limit = MaybeUninit::<libc::rlimit>::uninit();
            // SAFETY: the call writes one rlimit to where the pointer points, which is room for one.
            if unsafe { libc::getrlimit($resource, limit.as_mut_ptr()) } == 0 {
                // SAFETY: the call succeeded, and then it has written the whole struct.
                Ok(unsafe { limit.assume_init() })
            } else {
                Err(io::Error::last_os_error())
            }
        }};
    }

    pub(super) fn open_files() -> Option<u64> {
        get!(libc::RLIMIT_NOFILE).ok().map(|limit| limit.rlim_cur)
    }

    pub(super) fn address_space() -> Option<u64> {
        get!(libc::RLIMIT_AS).ok().map(|limit| limit.rlim_cur).filter(|limit| *limit != libc::RLIM_INFINITY)
    }

    pub(super) fn ignore_file_limit_signal() {
        // SAFETY: plain numbers; nothing of ours handles that signal. It cannot fail for a signal that there is.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }

    /// False where it cannot be done.
    pub(super) fn bound_heaps(most: i32) -> bool {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        return set_allocator(libc::M_ARENA_MAX, most);
        #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
        {
            // Other allocators do not take addresses for each thread.
            let _ = most;
            true
        }
    }

    /// False where it cannot be done.
    pub(super) fn map_blocks_from(bytes: i32) -> bool {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        return set_allocator(libc::M_MMAP_THRESHOLD, bytes);
        #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
        {
            // Other allocators have ways of their own.
            let _ = bytes;
            true
        }
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn set_allocator(what: i32, value: i32) -> bool {
        // SAFETY: it takes two numbers and keeps the second.
        unsafe { libc::mallopt(what, value) == 1 }
    }

    pub(super) fn processes() -> Option<u64> {
        // SAFETY: no argument, no failure.
        let is_root = unsafe { libc::geteuid() } == 0;
        // Root is not bound by it.
        if is_root { None } else { get!(libc::RLIMIT_NPROC).ok().map(|limit| limit.rlim_cur) }
    }

    pub(super) fn raise_open_files() -> io::Result<u64> {
        let mut limit = get!(libc::RLIMIT_NOFILE)?;
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // SAFETY: the call reads one rlimit from where the pointer points, which holds one.
            if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(limit.rlim_cur)
    }
}

#[cfg(not(unix))]
mod sys {
    pub(super) fn open_files() -> Option<u64> {
        None
    }

    pub(super) fn address_space() -> Option<u64> {
        None
    }

    pub(super) fn bound_heaps(_most: i32) -> bool {
        true
    }

    pub(super) fn map_blocks_from(_bytes: i32) -> bool {
        true
    }

    pub(super) fn ignore_file_limit_signal() {}

    pub(super) fn processes() -> Option<u64> {
        None
    }

    pub(super) fn raise_open_files() -> std::io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_used_is_known() {
        let before = usage();
        assert!(before.threads.unwrap() >= 1 && before.memory.unwrap() > 1 << 20, "{before:?}");
        let many: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close some meanwhile.
        assert!(usage().files.unwrap() >= before.files.unwrap() + 20, "{before:?}");
        drop(many);
    }
    use crate::net::testing::in_own_process;

    const OTHERS: Wanted = Wanted { connections: 400, own_files: 0, other_threads: 100, other_files: 20 };

    fn descriptors(enough_for: u64) -> Allowance {
        Allowance { of: Resource::Descriptors, enough_for, what: format!("files are {enough_for}") }
    }

    fn threads(enough_for: u64) -> Allowance {
        Allowance { of: Resource::Threads, enough_for, what: format!("threads are {enough_for}") }
    }

    #[test]
    fn the_tightest_resource_sets_the_bound_and_is_named() {
        let of = |connections| Wanted { connections, ..OTHERS };
        let all = [descriptors(520), threads(400)];
        assert_eq!(bounds(of(300), &all), Bounds { connections: 300, threads: 400, why: None });
        let why = Some("threads are 400".to_owned());
        assert_eq!(bounds(of(301), &all), Bounds { connections: 300, threads: 400, why });
        let why = Some("files are 320".to_owned());
        assert_eq!(bounds(of(400), &[threads(450), descriptors(320)]), Bounds { connections: 300, threads: 400, why });
        assert_eq!(bounds(of(5), &[]), Bounds { connections: 5, threads: 105, why: None });
    }

    #[test]
    fn threads_take_no_descriptors_and_descriptors_no_threads() {
        let many_threads = Wanted { connections: 12_000, own_files: 0, other_threads: 1_408, other_files: 600 };
        let why = Some("files are 896".to_owned());
        let expected = Bounds { connections: 448, threads: 448 + 1_408, why };
        assert_eq!(bounds(many_threads, &[descriptors(896), threads(15_000)]), expected);
    }

    #[test]
    fn where_little_is_allowed_half_of_it_is_for_connections() {
        assert_eq!(bounds(OTHERS, &[threads(60)]).connections, 30);
        assert_eq!(bounds(OTHERS, &[threads(60)]).threads, 60);
        assert_eq!(bounds(OTHERS, &[descriptors(10)]).connections, 5);
        let none = bounds(OTHERS, &[descriptors(0), threads(0)]);
        assert_eq!((none.connections, none.threads), (1, 1));
    }

    #[test]
    fn this_machine_allows_something_and_not_everything() {
        let one = Wanted { connections: 1, own_files: 0, other_threads: 0, other_files: 0 };
        assert_eq!(machine_bounds(one), Bounds { connections: 1, threads: 1, why: None });
        if cfg!(target_os = "linux") {
            let Bounds { connections, why, .. } = machine_bounds(Wanted { connections: usize::MAX, ..one });
            assert!(connections > 10 && connections < 10_000_000, "{connections}");
            assert!(why.is_some_and(|why| why.contains(" is ")));
        }
    }

    #[test]
    fn open_files_are_raised_as_far_as_allowed() {
        if !in_own_process("net::limits::tests::open_files_are_raised_as_far_as_allowed") {
            return;
        }
        let raised = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), raised);
        assert!(sys::open_files().is_none_or(|now| now == raised));
        // Of what is open at any rate nothing is left for connections, and too little is told beforehand.
        let Some(limit) = sys::open_files() else { return };
        let of = |own_files| Wanted { connections: usize::MAX, own_files, other_threads: 0, other_files: 0 };
        assert_eq!(machine_bounds(of(limit - 30)).connections, 30);
        assert_eq!(check_open_files(limit - FILES_FOR_CONNECTIONS), Ok(()));
        let too_few = TooFewFiles { limit, wanted: limit + 1 };
        assert_eq!(check_open_files(limit + 1 - FILES_FOR_CONNECTIONS), Err(too_few));
    }
}
