//! Looking at the process that measures, from a thread beside: memory by kind, energy, and what other programs take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::counters::{Memory, Ticks};
use super::energy::Meter;

/// Shortest and longest time between two looks. It grows with what has passed, a hundredth of it: a short phase is not
/// missed, and in a long one a look (some 30 µs) takes a thousandth of a core.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(40));

/// A thread that looks. Dropped, it ends.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    start: Instant,
    ticks: Option<Ticks>,
}

struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

struct Seen {
    /// When, and what was resident then; 16 bytes for each look.
    resident: Vec<(Instant, u64)>,
    /// The most of each kind.
    most: Option<Memory>,
    meter: Option<Meter>,
}

/// What was seen.
pub struct Observed {
    /// The most of each kind, not necessarily at the same time; `peak` is exact.
    pub memory: Option<Memory>,
    /// Cores that other programs took, on average.
    pub cores_of_others: Option<f64>,
    /// For how long.
    pub duration: Duration,
    resident: Vec<(Instant, u64)>,
}

impl Watch {
    /// Begins.
    pub fn start() -> Watch {
        let seen = Seen { resident: Vec::new(), most: None, meter: Meter::open().ok() };
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), seen: Mutex::new(seen) });
        let start = Instant::now();
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    shared.look();
                    thread::park_timeout((start.elapsed() / 100).clamp(INTERVAL.0, INTERVAL.1));
                }
            }
        });
        Watch { shared, thread: Some(thread), start, ticks: Ticks::now() }
    }

    /// Looks now, whatever the thread does.
    pub fn look(&self) {
        self.shared.look();
    }

    /// Joules since the beginning; `None` where they are not told.
    pub fn joules(&self) -> Option<f64> {
        self.shared.with(|seen| seen.meter.as_mut().map(Meter::joules))
    }

    /// Ends.
    pub fn end(mut self) -> Observed {
        self.look();
        self.join();
        let cores_of_others = Ticks::now().zip(self.ticks).and_then(|(now, before)| now.cores_of_others(&before));
        let (memory, resident) = self.shared.with(|seen| (seen.most, std::mem::take(&mut seen.resident)));
        // The kernel counts in batches, so a look may have seen a little more than its exact peak.
        let most_seen = resident.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let memory = memory.map(|m| Memory { peak: m.peak.max(most_seen), ..m });
        Observed { memory, cores_of_others, duration: self.start.elapsed(), resident }
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.join();
    }
}

impl Observed {
    /// The most that was seen resident from `start` on and before `end`, in bytes. `None` if nobody looked then.
    pub fn peak_between(&self, start: Instant, end: Instant) -> Option<u64> {
        let inside = self.resident.iter().filter(|(at, _)| (start..end).contains(at));
        inside.map(|(_, bytes)| *bytes).max()
    }
}

impl Shared {
    fn look(&self) {
        self.with(|seen| {
            if let Some(memory) = Memory::now() {
                seen.resident.push((Instant::now(), memory.resident()));
                seen.most = Some(seen.most.map_or(memory, |most| most.max(memory)));
            }
            if let Some(meter) = &mut seen.meter {
                meter.joules();
            }
        });
    }

    /// What was seen stays usable if a thread that looked at it panicked.
    fn with<T>(&self, use_it: impl FnOnce(&mut Seen) -> T) -> T {
        use_it(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_taken_and_given_back_is_seen() {
        const N_BYTES: usize = 48 << 20;
        let watch = Watch::start();
        let start = Instant::now();
        let taken = std::hint::black_box(vec![1u8; N_BYTES]);
        watch.look();
        drop(taken);
        let end = Instant::now();
        watch.look();
        let seen = watch.end();
        let memory = seen.memory.expect("Linux tells");
        assert!(memory.anonymous >= N_BYTES as u64 && memory.peak >= memory.anonymous, "{memory:?}");
        assert!(seen.peak_between(start, end) >= Some(N_BYTES as u64));
        assert_eq!(seen.peak_between(end, end), None);
    }
}
