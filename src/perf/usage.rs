//! What a process uses: CPU time, memory, context switches.

#[cfg(target_os = "linux")]
use std::fs;

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// User and system CPU time in seconds.
    pub cpu_s: f64,
    /// Peak resident memory in MB (10^6 bytes).
    pub peak_rss_mb: f64,
    /// Voluntary and involuntary context switches of the threads that exist now.
    pub switches: u64,
}

impl Usage {
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            cpu_s: self.cpu_s + other.cpu_s,
            peak_rss_mb: self.peak_rss_mb + other.peak_rss_mb,
            switches: self.switches + other.switches,
        }
    }

    /// The difference to an earlier reading; the peak is kept.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu_s: (self.cpu_s - before.cpu_s).max(0.0),
            peak_rss_mb: self.peak_rss_mb,
            // Threads that ended in between took their counts with them.
            switches: self.switches.saturating_sub(before.switches),
        }
    }

    /// What a process has used since its start; `None` if the system does not tell.
    #[cfg(target_os = "linux")]
    pub(super) fn of(pid: u32) -> Option<Usage> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name, in parentheses, may contain anything; the fields after it are numbered from 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // SAFETY: a query that touches no memory.
        let ticks_per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread may end while the list is read.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            switches += field(&status, "voluntary_ctxt_switches:").unwrap_or(0)
                + field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
        }
        Some(Usage {
            cpu_s: ticks as f64 / ticks_per_s.max(1) as f64,
            peak_rss_mb: field(&status, "VmHWM:")? as f64 * 1024.0 / 1e6,
            switches,
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn of(_pid: u32) -> Option<Usage> {
        None
    }
}

#[cfg(target_os = "linux")]
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn usage_of_a_process_is_read() {
        let before = Usage::of(std::process::id()).unwrap();
        let started = Instant::now();
        while Usage::of(std::process::id()).unwrap().since(before).cpu_s < 0.05 {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        let used = Usage::of(std::process::id()).unwrap();
        assert!(used.peak_rss_mb > 1.0 && used.switches > 0, "{used:?}");
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
