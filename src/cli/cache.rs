//! `qvl cache`: what is kept of pictures that were seen, and of prompts that were read.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use qvl::cache::{Store, directory};
use qvl::error::Result;
use qvl::memory::human_bytes;
use serde_json::json;

use super::args::{CacheCommand, CacheInfoArgs};
use super::{print, print_json};

/// Runs it.
pub fn run(command: &CacheCommand) -> Result<()> {
    match command {
        CacheCommand::Info(args) => info(args),
        CacheCommand::Clear => clear(),
    }
}

fn store(limit_bytes: u64) -> Result<Store> {
    Ok(Store::new(directory(|name| std::env::var_os(name))?, limit_bytes))
}

fn info(args: &CacheInfoArgs) -> Result<()> {
    let store = store(args.limit.cache_size)?;
    let usage = store.usage()?;
    if args.json {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        return print_json(&json!({
            "directory": store.directory().display().to_string(),
            "entries": usage.n_entries,
            "prompts": usage.n_prompts,
            "bytes": usage.n_bytes,
            "limit_bytes": store.limit_bytes(),
            "oldest_use": usage.oldest.map(seconds),
            "newest_use": usage.newest.map(seconds),
        }));
    }
    let entries = match usage.n_prompts {
        0 => usage.n_entries.to_string(),
        n => format!("{} ({} and {})", usage.n_entries, embeddings(usage.n_entries - n), prompts(n)),
    };
    let mut text = format!("directory  {}\nentries    {entries}\n", store.directory().display());
    let limit = match store.limit_bytes() {
        0 => "off".to_owned(),
        n => human_bytes(n),
    };
    let _ = writeln!(text, "size       {}\nlimit      {limit}", human_bytes(usage.n_bytes));
    if let Some((oldest, newest)) = usage.oldest.zip(usage.newest) {
        let now = SystemTime::now();
        let _ = writeln!(text, "last used  the oldest {}, the newest {}", ago(now, oldest), ago(now, newest));
    }
    print(&text)
}

fn clear() -> Result<()> {
    // The limit is for what is put.
    let cleared = store(0)?.clear()?;
    let mut removed = embeddings(cleared.n_embeddings);
    if cleared.n_prompts > 0 {
        let _ = write!(removed, " and {}", prompts(cleared.n_prompts));
    }
    if cleared.n_temporary > 0 {
        let _ = write!(removed, " and {} half-written", cleared.n_temporary);
    }
    print(&format!("removed {removed}, {}\n", human_bytes(cleared.n_bytes)))
}

fn embeddings(n: usize) -> String {
    if n == 1 { "1 embedding".to_owned() } else { format!("{n} embeddings") }
}

fn prompts(n: usize) -> String {
    if n == 1 { "1 prompt".to_owned() } else { format!("{n} prompts") }
}

/// How long ago, in the largest unit of which it is at least two.
fn ago(now: SystemTime, time: SystemTime) -> String {
    let seconds = now.duration_since(time).map_or(0, |age| age.as_secs());
    let units = [("days", 86_400), ("hours", 3_600), ("minutes", 60)];
    match units.iter().find(|(_, n)| seconds >= 2 * n) {
        Some((unit, n)) => format!("{} {unit} ago", seconds / n),
        None => format!("{seconds} s ago"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_are_for_people() {
        let now = UNIX_EPOCH + Duration::from_secs(10_000_000);
        let check = |seconds: u64, expect: &str| assert_eq!(ago(now, now - Duration::from_secs(seconds)), expect);
        check(0, "0 s ago");
        check(119, "119 s ago");
        check(120, "2 minutes ago");
        check(7_199, "119 minutes ago");
        check(90_000, "25 hours ago");
        check(1_000_000, "11 days ago");
        assert_eq!(ago(now, now + Duration::from_secs(9)), "0 s ago");
    }
}
