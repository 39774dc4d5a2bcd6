//! What this machine allows: how many threads and connections a server may promise.
//!
//! A thread that cannot be had while memory maps run out aborts the whole process, so the bound must
//! be known at the start, not found out.

use std::io;

/// Descriptors left for files, databases, listeners and links.
const SPARE_FILES: u64 = 128;

/// A thread's maps: its stack, the guard beneath it, its signal stack and the guard of that.
const MAPS_A_THREAD: u64 = 4;

/// Maps left for the program itself, its libraries and its heap.
const SPARE_MAPS: u64 = 4096;

/// Threads left for timers, writers, acceptors, and the user's other programs.
const SPARE_THREADS: u64 = 128;

/// Raises the bound on open files to its hard limit; what it is then.
///
/// # Errors
/// The system's. Where there is no such bound: `u64::MAX`.
pub fn raise_open_files() -> io::Result<u64> {
    sys::raise_open_files()
}

/// How many threads or connections of the `wanted` ones this machine allows (each connection costs a
/// descriptor and a thread), at least 1; and why, when it is fewer.
pub fn machine_bound(wanted: usize) -> (usize, Option<String>) {
    lowest(wanted, &allowances())
}

/// One resource: how many threads or connections it is enough for, and its name with its figure.
struct Allowance {
    enough_for: u64,
    what: String,
}

fn lowest(wanted: usize, allowances: &[Allowance]) -> (usize, Option<String>) {
    let Some(tightest) = allowances.iter().min_by_key(|allowance| allowance.enough_for) else { return (wanted, None) };
    let bound = usize::try_from(tightest.enough_for).unwrap_or(usize::MAX).max(1);
    if bound >= wanted {
        return (wanted, None);
    }
    (bound, Some(format!("{wanted} lowered to {bound}: {}", tightest.what)))
}

fn allowances() -> Vec<Allowance> {
    let mut all = Vec::new();
    let mut add = |limit: Option<u64>, spare: u64, each: u64, what: &str| {
        if let Some(limit) = limit {
            // Where little is allowed, the spare must not be all of it.
            let enough_for = (limit - spare.min(limit / 2)) / each;
            all.push(Allowance { enough_for, what: format!("{what} is {limit}") });
        }
    };
    add(sys::open_files(), SPARE_FILES, 1, "the limit of open files (ulimit -n)");
    add(sys::processes(), SPARE_THREADS, 1, "the limit of processes (ulimit -u)");
    add(number_in("/proc/sys/vm/max_map_count"), SPARE_MAPS, MAPS_A_THREAD, "vm.max_map_count");
    add(number_in("/proc/sys/kernel/threads-max"), SPARE_THREADS, 1, "kernel.threads-max");
    add(cgroup_pids_max(), SPARE_THREADS, 1, "the control group's pids.max");
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
    use crate::net::testing::in_own_process;

    #[test]
    fn the_tightest_resource_sets_the_bound_and_is_named() {
        let allowance = |enough_for, what: &str| Allowance { enough_for, what: what.to_owned() };
        let all = [allowance(500, "files are 628"), allowance(300, "maps are 5296")];
        assert_eq!(lowest(100, &all), (100, None));
        assert_eq!(lowest(300, &all), (300, None));
        assert_eq!(lowest(400, &all), (300, Some("400 lowered to 300: maps are 5296".to_owned())));
        assert_eq!(lowest(5, &[allowance(0, "none")]).0, 1);
        assert_eq!(lowest(5, &[]), (5, None));
    }

    #[test]
    fn this_machine_allows_something_and_not_everything() {
        assert_eq!(machine_bound(1), (1, None));
        if cfg!(target_os = "linux") {
            let (bound, why) = machine_bound(usize::MAX);
            assert!(bound > 10 && bound < 10_000_000, "{bound}");
            assert!(why.is_some_and(|why| why.contains("lowered to")));
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
    }
}
