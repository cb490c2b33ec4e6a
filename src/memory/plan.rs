//! What a run will take, computed before it takes it.

use std::borrow::Cow;

use super::human_bytes;

/// Whether the system can have it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pages of a file: dropped under pressure and read again, which is slow.
    Mapped,
    /// The process's own.
    Private,
    /// A device's, not the machine's.
    Device,
}

/// One thing that takes memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is, for people and in JSON.
    pub name: Cow<'static, str>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whose pages.
    pub kind: Kind,
}

/// What is in memory at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// When: `vision`, `text`.
    pub name: &'static str,
    /// What.
    pub items: Vec<Item>,
}

/// Phases that follow each other: what one has taken is given back before the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In their order.
    pub phases: Vec<Phase>,
}

impl Phase {
    /// One that holds nothing yet.
    pub fn new(name: &'static str) -> Self {
        Phase { name, items: Vec::new() }
    }

    /// With one thing more.
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, bytes: u64, kind: Kind) -> Self {
        self.items.push(Item { name: name.into(), bytes, kind });
        self
    }

    /// Bytes of the machine's memory.
    pub fn bytes(&self) -> u64 {
        self.of_machine().fold(0, |sum, item| sum.saturating_add(item.bytes))
    }

    fn of_machine(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.kind != Kind::Device)
    }

    /// Bytes of one thing.
    pub fn bytes_of(&self, name: &str) -> u64 {
        self.items.iter().filter(|item| item.name == name).map(|item| item.bytes).sum()
    }

    /// `4.40 GiB weights, 1.00 GiB KV cache`: what takes most, largest first.
    pub fn summary(&self) -> String {
        let mut items: Vec<&Item> = self.of_machine().filter(|item| item.bytes >= self.bytes() / 50).collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.bytes));
        let parts = items.iter().map(|item| format!("{} {}", human_bytes(item.bytes), item.name));
        parts.collect::<Vec<_>>().join(", ")
    }
}

impl Plan {
    /// The largest phase, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.phases.iter().map(Phase::bytes).max().unwrap_or(0)
    }

    /// All that files have in memory if nothing is given back between phases, and what else the largest phase takes.
    pub fn kept_bytes(&self) -> u64 {
        let sum = |phase: &Phase, kind| phase.items.iter().filter(|i| i.kind == kind).map(|i| i.bytes).sum::<u64>();
        let mapped: u64 = self.phases.iter().map(|phase| sum(phase, Kind::Mapped)).sum();
        mapped + self.phases.iter().map(|phase| sum(phase, Kind::Private)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_phase_counts() {
        let vision = Phase::new("vision").with("weights", 20, Kind::Mapped).with("compute", 5, Kind::Private);
        let text = Phase::new("text").with("weights", 40, Kind::Mapped).with("KV cache", 8, Kind::Private);
        let text = text.with("on CUDA0", 1000, Kind::Device);
        assert_eq!(text.bytes_of("KV cache"), 8);
        assert_eq!(text.summary(), "40 B weights, 8 B KV cache");
        let plan = Plan { phases: vec![vision, text] };
        assert_eq!((plan.peak_bytes(), plan.kept_bytes()), (48, 68));
        assert_eq!(Plan::default().peak_bytes(), 0);
    }
}
