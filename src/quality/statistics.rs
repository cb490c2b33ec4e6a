//! Mean, median and the far end of many numbers.

/// Numbers, as they come.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Vec<f64>);

impl Statistics {
    /// One more.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their mean; 0 of none.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// The value that a share `q` (0 to 1) of them does not exceed, without interpolation; 0 of none. Cost: sorts a copy.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = ((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().unwrap_or(0.0)
    }

    /// The largest; 0 of none.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// The smallest; 0 of none.
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_some_numbers() {
        let mut s = Statistics::default();
        assert_eq!((s.mean(), s.quantile(0.5), s.max()), (0.0, 0.0, 0.0));
        (1..=200).rev().for_each(|n| s.add(f64::from(n)));
        assert_eq!((s.len(), s.mean(), s.quantile(0.5), s.quantile(0.99)), (200, 100.5, 100.0, 198.0));
        assert_eq!((s.min(), s.max()), (1.0, 200.0));
    }
}
