//! How many threads and connections a server may promise on this machine. If memory maps run out when a thread is
//! started, the whole process aborts, so the bound must be known at the start.

use super::threads::STACK_BYTES;

/// Descriptors for files, databases, listeners and links.
const RESERVED_FILES: u64 = 128;
/// Descriptors for a few clients, and for both ends of the links between components, beside what is always open.
const FILES_FOR_CONNECTIONS: u64 = 24;
/// A thread has a stack with its guard, and a signal stack with its guard.
const MAPS_PER_THREAD: u64 = 4;
/// Maps of the program itself, its libraries and its heap.
const RESERVED_MAPS: u64 = 4096;
/// Threads of timers, writers, acceptors, and the user's other programs.
const RESERVED_THREADS: u64 = 128;
/// What the program, its libraries, databases and the work areas of password hashing take.
const RESERVED_ADDRESS_SPACE_BYTES: u64 = 512 << 20;
/// A thread's stack, and the memory it works on.
const ADDRESS_SPACE_PER_THREAD_BYTES: u64 = 2 * STACK_BYTES as u64;
/// By default glibc takes 64 MiB of addresses for each thread that allocates, up to eight arenas per core, whether they
/// are used or not.
const ARENAS_WHEN_LIMITED: i32 = 2;

pub use sys::{ignore_file_size_signal, raise_open_files};
/// From this size on, a block of memory is mapped separately and returned to the system when it is freed.
const MMAP_THRESHOLD_BYTES: i32 = 256 << 10;

/// Raises the limits of this process, which keeps `own_files` files open all the time. To be called before any thread
/// is started and before any long-lived file is opened: a failure half-way would name a file that has nothing to do
/// with it. Fails if those files and a few connections may not be opened.
pub fn prepare_process(own_files: u64) -> Result<(), TooFewFiles> {
    limit_arenas();
    tune_allocator();
    if let Err(error) = raise_open_files() {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    check_open_files(own_files)
}

/// Makes the allocator return the memory of long messages. By default it takes the size of the first long block that
/// is freed as common, takes the next ones from the arena of whichever thread asks, and keeps them there.
fn tune_allocator() {
    if !malloc::set_mmap_threshold(MMAP_THRESHOLD_BYTES) {
        log::warn!("the allocator keeps the memory of long messages");
    }
}

fn limit_arenas() {
    if sys::address_space().is_some() && !malloc::set_arena_max(ARENAS_WHEN_LIMITED) {
        log::warn!("the allocator keeps as many heaps as it likes: memory may run out early");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of open files (ulimit -n) is {limit}, and {wanted} are wanted at least")]
pub struct TooFewFiles {
    pub limit: u64,
    pub wanted: u64,
}

fn check_open_files(own_files: u64) -> Result<(), TooFewFiles> {
    let wanted = own_files + FILES_FOR_CONNECTIONS;
    match sys::open_files() {
        Some(limit) if limit < wanted => Err(TooFewFiles { limit, wanted }),
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessUsage {
    pub threads: Option<u64>,
    pub memory: Option<u64>,
    pub files: Option<u64>,
}

/// Only Linux reports them (in `/proc`).
pub fn process_usage() -> ProcessUsage {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    ProcessUsage { threads: number("Threads"), memory: number("VmRSS").map(|kib| kib * 1024), files: open_file_count() }
}

fn open_file_count() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match std::fs::metadata(FOLDER).ok()?.len() {
        // Before Linux 6.2 they must be counted. One of them is the folder itself.
        0 => Some((std::fs::read_dir(FOLDER).ok()?.count() as u64).saturating_sub(1)),
        files => Some(files),
    }
}

#[derive(Debug, Clone, Copy)]
pub struct RequestedBounds {
    /// Each needs a descriptor and a thread.
    pub connections: usize,
    /// Files that are always open: databases, listeners, locks.
    pub own_files: u64,
    /// Threads in addition to those of connections.
    pub other_threads: usize,
    /// Descriptors in addition to those of connections.
    pub other_files: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineBounds {
    /// At least 1.
    pub connections: usize,
    pub threads: usize,
    /// The limit, with its figure, for which there are fewer connections than requested.
    pub why: Option<String>,
}

/// What is left is mostly far more than needed: it is a warning only if less than a quarter is left.
pub fn warn_lowered(what: &str, wanted: usize, allowed: usize, why: &str) {
    let level = if allowed < wanted / 4 { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "{what} {wanted} lowered to {allowed}: {why}");
}

pub fn machine_bounds(wanted: RequestedBounds) -> MachineBounds {
    bounds(wanted, &allowances(wanted.own_files))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Descriptors,
    Threads,
}

/// A resource, how many it is enough for, and the limit's name with its figure.
struct Allowance {
    resource: Resource,
    enough_for: u64,
    what: String,
}

fn bounds(wanted: RequestedBounds, allowances: &[Allowance]) -> MachineBounds {
    let mut bounds = MachineBounds { connections: wanted.connections, threads: usize::MAX, why: None };
    for Allowance { resource: of, enough_for, what } in allowances {
        let enough_for = usize::try_from(*enough_for).unwrap_or(usize::MAX);
        let others = match of {
            Resource::Descriptors => wanted.other_files,
            Resource::Threads => {
                bounds.threads = bounds.threads.min(enough_for.max(1));
                wanted.other_threads
            }
        };
        // Where little is allowed, the other uses must not take all of it.
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
            // As above; but the files that are always open count in full, however little is allowed.
            let kept = if of == Resource::Descriptors { own_files.min(limit) } else { 0 };
            let enough_for = (limit - spare.min(limit / 2).max(kept)) / each;
            all.push(Allowance { resource: of, enough_for, what: format!("{what} is {limit}") });
        }
    };
    use Resource::{Descriptors, Threads};
    add(Descriptors, sys::open_files(), RESERVED_FILES, 1, "the limit of open files (ulimit -n)");
    add(Threads, sys::processes(), RESERVED_THREADS, 1, "the limit of processes (ulimit -u)");
    add(
        Threads,
        sys::address_space(),
        RESERVED_ADDRESS_SPACE_BYTES,
        ADDRESS_SPACE_PER_THREAD_BYTES,
        "the limit of address space (ulimit -v)",
    );
    add(Threads, read_number("/proc/sys/vm/max_map_count"), RESERVED_MAPS, MAPS_PER_THREAD, "vm.max_map_count");
    add(Threads, read_number("/proc/sys/kernel/threads-max"), RESERVED_THREADS, 1, "kernel.threads-max");
    add(Threads, cgroup_pids_max(), RESERVED_THREADS, 1, "the control group's pids.max");
    all
}

/// `None` if there is no such file, or another word in it ("max").
fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The smallest limit of our control group (version 2) and those above it.
fn cgroup_pids_max() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let upwards = std::path::Path::new(own).ancestors();
    upwards.filter_map(|group| read_number(&format!("/sys/fs/cgroup{}/pids.max", group.display()))).min()
}

#[cfg(unix)]
mod sys {
    use std::io;
    use std::mem::MaybeUninit;

    /// Soft and hard limit; `RLIM_INFINITY` is the largest number there is.
    macro_rules! get {
        ($resource:expr) => {{
            let mut limit = MaybeUninit::<libc::rlimit>::uninit();
            // SAFETY: the call writes one rlimit, and there is room for one.
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

    /// Makes a write past the file size limit (`ulimit -f`) fail like one to a full disk: by default the system kills
    /// the process silently.
    pub fn ignore_file_size_signal() {
        // SAFETY: plain numbers; nothing of ours handles that signal. It cannot fail for a signal that there is.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }

    pub(super) fn processes() -> Option<u64> {
        // SAFETY: no argument, no failure.
        let is_root = unsafe { libc::geteuid() } == 0;
        // Root is exempt from it.
        if is_root { None } else { get!(libc::RLIMIT_NPROC).ok().map(|limit| limit.rlim_cur) }
    }

    /// Raises the limit to its hard limit and returns it; `u64::MAX` where there is no such limit.
    pub fn raise_open_files() -> io::Result<u64> {
        let mut limit = get!(libc::RLIMIT_NOFILE)?;
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // SAFETY: the call reads one rlimit, which is there.
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

    pub fn ignore_file_size_signal() {}

    pub(super) fn processes() -> Option<u64> {
        None
    }

    pub fn raise_open_files() -> std::io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc {
    /// Returns false on failure.
    pub(super) fn set_arena_max(most: i32) -> bool {
        set_option(libc::M_ARENA_MAX, most)
    }

    /// Returns false on failure.
    pub(super) fn set_mmap_threshold(bytes: i32) -> bool {
        set_option(libc::M_MMAP_THRESHOLD, bytes)
    }

    fn set_option(what: i32, value: i32) -> bool {
        // SAFETY: it takes two numbers and keeps the second.
        unsafe { libc::mallopt(what, value) == 1 }
    }
}

/// Other allocators reserve no addresses per thread and return the memory of long messages by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod malloc {
    pub(super) fn set_arena_max(_most: i32) -> bool {
        true
    }

    pub(super) fn set_mmap_threshold(_bytes: i32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_used_is_known() {
        let before = process_usage();
        assert!(before.threads.unwrap() >= 1 && before.memory.unwrap() > 1 << 20, "{before:?}");
        let many: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests open and close some meanwhile.
        assert!(process_usage().files.unwrap() >= before.files.unwrap() + 20, "{before:?}");
        drop(many);
    }
    use crate::net::testing::in_own_process;

    const OTHERS: RequestedBounds =
        RequestedBounds { connections: 400, own_files: 0, other_threads: 100, other_files: 20 };

    fn descriptors(enough_for: u64) -> Allowance {
        Allowance { resource: Resource::Descriptors, enough_for, what: format!("files are {enough_for}") }
    }

    fn threads(enough_for: u64) -> Allowance {
        Allowance { resource: Resource::Threads, enough_for, what: format!("threads are {enough_for}") }
    }

    #[test]
    fn the_tightest_resource_sets_the_bound_and_is_named() {
        let of = |connections| RequestedBounds { connections, ..OTHERS };
        let all = [descriptors(520), threads(400)];
        assert_eq!(bounds(of(300), &all), MachineBounds { connections: 300, threads: 400, why: None });
        let why = Some("threads are 400".to_owned());
        assert_eq!(bounds(of(301), &all), MachineBounds { connections: 300, threads: 400, why });
        let why = Some("files are 320".to_owned());
        assert_eq!(
            bounds(of(400), &[threads(450), descriptors(320)]),
            MachineBounds { connections: 300, threads: 400, why }
        );
        assert_eq!(bounds(of(5), &[]), MachineBounds { connections: 5, threads: 105, why: None });
    }

    #[test]
    fn threads_take_no_descriptors_and_descriptors_no_threads() {
        let many_threads =
            RequestedBounds { connections: 12_000, own_files: 0, other_threads: 1_408, other_files: 600 };
        let why = Some("files are 896".to_owned());
        let expected = MachineBounds { connections: 448, threads: 448 + 1_408, why };
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
        let one = RequestedBounds { connections: 1, own_files: 0, other_threads: 0, other_files: 0 };
        assert_eq!(machine_bounds(one), MachineBounds { connections: 1, threads: 1, why: None });
        if cfg!(target_os = "linux") {
            let MachineBounds { connections, why, .. } =
                machine_bounds(RequestedBounds { connections: usize::MAX, ..one });
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
        // Files that are always open are not available to connections, and too few files are reported in advance.
        let Some(limit) = sys::open_files() else { return };
        let of = |own_files| RequestedBounds { connections: usize::MAX, own_files, other_threads: 0, other_files: 0 };
        assert_eq!(machine_bounds(of(limit - 30)).connections, 30);
        assert_eq!(check_open_files(limit - FILES_FOR_CONNECTIONS), Ok(()));
        let too_few = TooFewFiles { limit, wanted: limit + 1 };
        assert_eq!(check_open_files(limit + 1 - FILES_FOR_CONNECTIONS), Err(too_few));
    }
}
