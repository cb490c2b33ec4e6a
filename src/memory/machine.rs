//! What the system tells about memory. Linux does; elsewhere nothing is known.

use std::fs;
use std::path::{Path, PathBuf};

/// Highest resident set of this process so far, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// What this process has of its own now, in bytes: private memory, and its program's pages. Pages of other mapped files, which
/// may be most of its resident set, do not count.
pub fn own_bytes() -> Option<u64> {
    let field = |name| kib_field("/proc/self/status", name);
    let program = std::env::current_exe().and_then(fs::metadata).map_or(0, |file| file.len());
    Some(field("RssAnon:")? + field("RssFile:")?.min(program))
}

/// Memory that could be taken without swapping, in bytes: what the kernel says is available, or what a control group leaves
/// if that is less. Pages of files count as available, since the kernel gives them back. `None` where the system does not
/// tell.
pub fn available_bytes() -> Option<u64> {
    let machine = kib_field("/proc/meminfo", "MemAvailable:")?;
    Some(groups().filter_map(|group| group.left()).fold(machine, u64::min))
}

/// Memory that this process may have at most: the machine's, or a control group's if that is less.
pub fn total_bytes() -> Option<u64> {
    let machine = kib_field("/proc/meminfo", "MemTotal:")?;
    Some(groups().filter_map(|group| group.limit()).fold(machine, u64::min))
}

fn kib_field(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A control group that limits memory, by its directory and its version's file names.
struct Group {
    dir: PathBuf,
    files: &'static Files,
}

struct Files {
    limit: &'static str,
    used: &'static str,
    /// Fields of `memory.stat` whose pages the kernel takes back.
    reclaimable: [&'static str; 2],
}

const V2: Files = Files { limit: "memory.max", used: "memory.current", reclaimable: ["active_file", "inactive_file"] };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_active_file", "total_inactive_file"],
};

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// `None` without one ("max", or a number beyond any memory).
    fn limit(&self) -> Option<u64> {
        self.number(self.files.limit).filter(|n| *n < 1 << 60)
    }

    fn left(&self) -> Option<u64> {
        let (limit, used) = (self.limit()?, self.number(self.files.used)?);
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
        };
        let files: u64 = self.files.reclaimable.into_iter().map(field).sum();
        Some(limit.saturating_sub(used.saturating_sub(files)))
    }
}

/// The groups that this process is in, from its own one up: each may set a limit.
fn groups() -> impl Iterator<Item = Group> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own_groups(&text);
    own.into_iter().flat_map(|(root, path, files)| {
        let path = PathBuf::from(path.trim_start_matches('/'));
        let up: Vec<PathBuf> = path.ancestors().map(|part| Path::new(root).join(part)).collect();
        up.into_iter().map(move |dir| Group { dir, files })
    })
}

/// Mount point, path below it and version of each group that may limit memory, from `/proc/self/cgroup`.
fn own_groups(text: &str) -> Vec<(&'static str, String, &'static Files)> {
    let group = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        match controllers {
            "" => Some(("/sys/fs/cgroup", path.to_owned(), &V2)),
            list if list.split(',').any(|name| name == "memory") => {
                Some(("/sys/fs/cgroup/memory", path.to_owned(), &V1))
            }
            _ => None,
        }
    };
    text.lines().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        assert!(peak_rss_bytes().is_some_and(|n| n > 1 << 20));
        assert!(own_bytes().is_some_and(|n| n > 1 << 19) && own_bytes() <= peak_rss_bytes());
        assert!(available_bytes() < total_bytes());
    }

    #[test]
    fn groups_of_both_versions() {
        let found = own_groups("9:name=systemd:/\n4:cpu,memory:/a/b\n0::/user.slice/x\nrubbish\n");
        let found: Vec<_> = found.iter().map(|(root, path, files)| (*root, path.as_str(), files.limit)).collect();
        let v1 = ("/sys/fs/cgroup/memory", "/a/b", "memory.limit_in_bytes");
        assert_eq!(found, [v1, ("/sys/fs/cgroup", "/user.slice/x", "memory.max")]);
    }

    #[test]
    fn pages_of_files_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 100\nfile 800\nactive_file 300\ninactive_file 450\ninactive_file_x 7\n");
        let group = Group { dir: dir.path().to_owned(), files: &V2 };
        assert_eq!(group.left(), Some(850));
        write("memory.max", "max\n");
        assert_eq!(group.left(), None);
    }
}
