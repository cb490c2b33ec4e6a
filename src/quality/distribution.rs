//! A distribution over the next token, in a few numbers: its most likely tokens and what is left for all others.

use std::cmp::Ordering;

/// Log-probabilities below this are as good as none; it keeps the mass of the others finite where they have none.
const LEAST: f64 = -700.0;

/// The most likely tokens of a distribution and the mass of all others together. Natural logarithms.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Ids, the most likely first, equal ones by id.
    pub ids: Vec<u32>,
    /// Their log-probabilities, rounded to f32.
    pub logprobs: Vec<f32>,
    /// The log-probability of any other token, rounded to f32; `-inf` if there is no other.
    pub rest: f32,
}

impl Distribution {
    /// The `k` most likely of these finite logits. Cost: two passes, and sorting the best.
    pub fn of(logits: &[f32], k: usize) -> Self {
        let k = k.min(logits.len());
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if (1..ids.len()).contains(&k) {
            ids.select_nth_unstable_by(k - 1, order);
        }
        ids.truncate(k);
        ids.sort_unstable_by(order);
        Self::at(logits, ids)
    }

    /// What these logits say about the same tokens, which are below their number.
    pub fn at(logits: &[f32], ids: Vec<u32>) -> Self {
        let total = log_sum(logits.iter().copied());
        let logprob = |id: &u32| (f64::from(logits[*id as usize]) - total).max(LEAST) as f32;
        let logprobs = ids.iter().map(logprob).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        let is_other = |id: usize| sorted.binary_search(&(id as u32)).is_err();
        let others = logits.iter().enumerate().filter(|(id, _)| is_other(*id)).map(|(_, logit)| *logit);
        let rest = match sorted.len() < logits.len() {
            true => (log_sum(others) - total).max(LEAST) as f32,
            false => f32::NEG_INFINITY,
        };
        Distribution { ids, logprobs, rest }
    }

    /// Kullback-Leibler divergence of the model with these `logits` from this one, in nats, with all tokens that are not among
    /// [`ids`](Self::ids) taken as one: never more than that over all tokens, and equal where both share the rest alike. It is
    /// exactly 0 for the logits that this was made of.
    pub fn divergence(&self, logits: &[f32]) -> f64 {
        let other = Self::at(logits, self.ids.clone());
        let term = |p: f32, q: f32| f64::from(p).exp() * (f64::from(p) - f64::from(q));
        let named: f64 = self.logprobs.iter().zip(&other.logprobs).map(|(p, q)| term(*p, *q)).sum();
        let rest = if self.rest.is_finite() { term(self.rest, other.rest) } else { 0.0 };
        // Rounding may leave it some 1e-7 below zero, where it cannot be.
        (named + rest).max(0.0)
    }

    /// The most likely token.
    pub fn best(&self) -> Option<u32> {
        self.ids.first().copied()
    }

    /// Log-probability of a token, rounded to f32.
    pub fn logprob(logits: &[f32], id: u32) -> f32 {
        (f64::from(logits[id as usize]) - log_sum(logits.iter().copied())).max(LEAST) as f32
    }
}

fn log_sum(logits: impl Iterator<Item = f32> + Clone) -> f64 {
    let max = logits.clone().max_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    let max = f64::from(max.unwrap_or(f32::NEG_INFINITY));
    max + logits.map(|logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln() + 3.0).collect()
    }

    /// Logits are f32: their logarithms carry 1e-7.
    const ROUNDING: f64 = 1e-6;

    #[test]
    fn the_best_and_the_rest() {
        let found = Distribution::of(&logits(&[0.125, 0.5, 0.125, 0.25]), 2);
        assert_eq!((found.ids.as_slice(), found.best()), (&[1, 3][..], Some(1)));
        let near = |a: f32, b: f64| (f64::from(a) - b.ln()).abs() < ROUNDING;
        assert!(near(found.logprobs[0], 0.5) && near(found.logprobs[1], 0.25) && near(found.rest, 0.25), "{found:?}");
        let all = Distribution::of(&logits(&[0.25, 0.75]), 9);
        assert_eq!((all.ids.as_slice(), all.rest), (&[1, 0][..], f32::NEG_INFINITY));
        assert!(near(Distribution::logprob(&logits(&[0.25, 0.75]), 0), 0.25));
    }

    #[test]
    fn divergence_is_that_of_the_merged_distributions() {
        let (p, q) = ([0.4f32, 0.3, 0.2, 0.1], [0.1f32, 0.5, 0.1, 0.3]);
        let term = |p: f32, q: f32| f64::from(p) * (f64::from(p) / f64::from(q)).ln();
        let full: f64 = p.iter().zip(&q).map(|(p, q)| term(*p, *q)).sum();
        let check = |k: usize, expect: f64| {
            let found = Distribution::of(&logits(&p), k).divergence(&logits(&q));
            assert!((found - expect).abs() < ROUNDING, "{k}: {found} and not {expect}");
        };
        check(4, full);
        check(2, term(0.4, 0.1) + term(0.3, 0.5) + term(0.3, 0.4));
        check(1, term(0.4, 0.1) + term(0.6, 0.9));
    }

    #[test]
    fn of_itself_it_is_exactly_zero_and_never_infinite() {
        let far: Vec<f32> = (0..50).map(|i| (i * 37 % 50) as f32 * 40.0 - 1e3).collect();
        for k in [1, 7, 49, 50] {
            assert_eq!(Distribution::of(&far, k).divergence(&far), 0.0);
            let turned: Vec<f32> = far.iter().map(|x| -x).collect();
            let found = Distribution::of(&far, k).divergence(&turned);
            assert!(found.is_finite() && found > 100.0, "{found}");
        }
        assert_eq!(Distribution::of(&[1e30, -1e30], 1).divergence(&[1e30, -1e30]), 0.0);
    }
}
