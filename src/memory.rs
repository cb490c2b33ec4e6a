//! What memory there is and what this process took of it.

use std::fs;

/// Highest resident set of this process so far, in bytes; `None` where the system does not tell (Linux does).
pub fn peak_rss_bytes() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// Memory that could be taken without swapping, in bytes: what the kernel says is available, or what a control group
/// leaves if that is less. `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    let machine = kib_field("/proc/meminfo", "MemAvailable:")?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    Some(group.map_or(machine, |(max, used)| machine.min(max.saturating_sub(used))))
}

/// All memory of the machine in bytes.
pub fn total_bytes() -> Option<u64> {
    kib_field("/proc/meminfo", "MemTotal:")
}

fn kib_field(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes for people: 1023 B, 1.5 KiB, 4.71 GiB.
pub fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (n.checked_ilog2().unwrap_or(0) / 10).min(4) as usize;
    let scaled = n as f64 / (1u64 << (10 * unit)) as f64;
    match unit {
        0 => format!("{n} B"),
        _ if scaled >= 100.0 => format!("{scaled:.0} {}", UNITS[unit]),
        _ => format!("{scaled:.2} {}", UNITS[unit]),
    }
}

/// Bytes from people: `512M`, `2G`, `1536` or `64KiB`; K, M, G and T are powers of 1024, in capitals or not. `None` if it is
/// no such size or beyond 64 bits.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let n_digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(n_digits);
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").filter(|rest| !rest.is_empty()).or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match letter {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5_057_000_000, "4.71 GiB")];
        for (n, expect) in cases {
            assert_eq!(human_bytes(n), expect);
        }
    }

    #[test]
    fn sizes_are_understood() {
        let cases = [
            ("0", Some(0)),
            ("1536", Some(1536)),
            ("7B", Some(7)),
            ("64KiB", Some(64 << 10)),
            ("512M", Some(512 << 20)),
            ("512mb", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("16777215T", Some(16777215 << 40)),
            ("16777216T", None),
            ("99999999999999999999", None),
            ("", None),
            ("M", None),
            ("1iB", None),
            ("1.5G", None),
            ("-1", None),
            ("+1", None),
            ("1 G", None),
            ("1GG", None),
            ("1é", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse_bytes(text), expect, "{text:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        assert!(peak_rss_bytes().is_some_and(|n| n > 1 << 20));
        assert!(available_bytes() < total_bytes());
    }
}
