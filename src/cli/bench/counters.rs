//! What Linux counts: memory by kind, time of processors, peaks of a control group. `None` where a system does not tell.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory of this process in bytes, by kind. All pages are counted, those of mapped files too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of its own: heap, stacks, KV cache, buffers, copied weights.
    pub anonymous: u64,
    /// Pages of mapped files (weights, the program): in the page cache, and droppable.
    pub files: u64,
    /// Shared with other processes.
    pub shared: u64,
    /// Moved to swap; not resident.
    pub swapped: u64,
    /// The most that was resident at a time, exactly, since the process began.
    pub peak: u64,
}

impl Memory {
    /// Now. Cost: some 30 µs.
    pub fn now() -> Option<Memory> {
        Self::parse(&fs::read_to_string("/proc/self/status").ok()?)
    }

    /// What is resident.
    pub fn resident(&self) -> u64 {
        self.anonymous + self.files + self.shared
    }

    /// The larger of each kind.
    pub fn max(self, other: Memory) -> Memory {
        Memory {
            anonymous: self.anonymous.max(other.anonymous),
            files: self.files.max(other.files),
            shared: self.shared.max(other.shared),
            swapped: self.swapped.max(other.swapped),
            peak: self.peak.max(other.peak),
        }
    }

    /// From the text of `/proc/PID/status`.
    fn parse(status: &str) -> Option<Memory> {
        let mut memory = Memory::default();
        let mut n_found = 0;
        for line in status.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let field = match name {
                "RssAnon" => &mut memory.anonymous,
                "RssFile" => &mut memory.files,
                "RssShmem" => &mut memory.shared,
                "VmSwap" => &mut memory.swapped,
                "VmHWM" => &mut memory.peak,
                _ => continue,
            };
            *field = value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)?;
            n_found += 1;
        }
        (n_found == 5).then_some(memory)
    }
}

/// Ticks of processor time so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// Of all processors, working.
    busy: u64,
    /// Of all processors.
    all: u64,
    /// Of this process, all its threads.
    own: u64,
    /// How many processors.
    n_cores: u64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Option<Ticks> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// How many cores worked for others, on average, since `before`. Both files count in the same ticks, so that their
    /// length does not matter.
    pub fn cores_of_others(&self, before: &Ticks) -> Option<f64> {
        let of = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let all = of(self.all, before.all);
        let others = (of(self.busy, before.busy) - of(self.own, before.own)).max(0.0);
        (all > 0.0).then(|| others / all * self.n_cores as f64)
    }

    fn parse(machine: &str, process: &str) -> Option<Ticks> {
        let total = machine.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; what follows is counted in user and nice already.
        let total: Vec<u64> = total.split_whitespace().take(8).map(|n| n.parse().ok()).collect::<Option<_>>()?;
        let idle = total.get(3)? + total.get(4)?;
        let all: u64 = total.iter().sum();
        let n_cores = machine.lines().skip(1).take_while(|line| line.starts_with("cpu")).count() as u64;
        // The program's name, in parentheses, may hold anything.
        let fields: Vec<&str> = process.rsplit_once(')')?.1.split_whitespace().collect();
        let own = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Ticks { busy: all - idle, all, own, n_cores })
    }
}

/// How many programs wanted a processor in the last minute, on average.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The most memory, in bytes, that the control group of this process ever took: all its processes and their page cache.
pub fn control_group_peak() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    peak_files(&groups).iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Where that may stand, by the text of `/proc/self/cgroup`. Inside a container the path in there may be the host's, and
/// what is mounted the container's own.
fn peak_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let Some((controllers, path)) = parts.next().zip(parts.next()) else { continue };
        let (mount, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.peak"),
            list if list.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.max_usage_in_bytes"),
            _ => continue,
        };
        files.push(Path::new(mount).join(path.trim_start_matches('/')).join(name));
        files.push(Path::new(mount).join(name));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_memory_are_told_apart() {
        let status = "Name:\tqvl\nVmHWM:\t    9 kB\nVmRSS:\t 7 kB\nRssAnon:\t 4 kB\nRssFile:\t 2 kB\nRssShmem:\t 1 kB\nVmSwap:\t 3 kB\n";
        let expect = Memory { anonymous: 4096, files: 2048, shared: 1024, swapped: 3072, peak: 9216 };
        assert_eq!(Memory::parse(status), Some(expect));
        assert_eq!(expect.resident(), 7168);
        assert_eq!(Memory::parse("VmHWM:\t9 kB\n"), None);
        assert_eq!(Memory::parse(&status.replace("4 kB", "-4 kB")), None);
    }

    #[test]
    fn what_others_take_is_what_is_left() {
        let stat = |user: u64, idle: u64| format!("cpu  {user} 0 0 {idle} 0 0 0 0 5 5\ncpu0 1\ncpu1 1\nintr 9\n");
        let own = |n: u64| format!("1 (a) b) R 0 0 0 0 0 0 0 0 0 0 {n} 10 0");
        let before = Ticks::parse(&stat(100, 100), &own(0)).expect("is well formed");
        // 100 of 200 ticks of two cores were idle; of the others, 60 were its own.
        let after = Ticks::parse(&stat(200, 200), &own(60)).expect("is well formed");
        assert_eq!(after.cores_of_others(&before), Some(0.4));
        assert_eq!(after.cores_of_others(&after), None);
        assert_eq!(Ticks::parse("cpu  1 2\n", &own(0)), None);
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let expect = ["/sys/fs/cgroup/a/b/memory.peak", "/sys/fs/cgroup/memory.peak"].map(PathBuf::from);
        assert_eq!(peak_files("0::/a/b\n"), expect);
        let old = "5:cpu:/x\n4:cpu,memory:/x:y\nnonsense\n";
        let expect = ["/sys/fs/cgroup/memory/x:y", "/sys/fs/cgroup/memory"];
        assert_eq!(peak_files(old), expect.map(|dir| Path::new(dir).join("memory.max_usage_in_bytes")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        let memory = Memory::now().expect("is told");
        assert!(memory.anonymous > 0 && memory.files > 0);
        assert!(Ticks::now().is_some() && load_average().is_some());
    }
}
