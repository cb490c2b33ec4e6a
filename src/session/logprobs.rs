//! How likely tokens were.

use crate::tokenizer::TokenId;

/// A sampled token, and what else was likely in its place. Natural logarithms of the model's own probabilities over the
/// used vocabulary: before temperature, penalty, filters and grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: TokenId,
    /// Its log-probability.
    pub logprob: f64,
    /// The most likely tokens with theirs, best first, equal ones by id.
    pub top: Vec<(TokenId, f64)>,
}

/// Those of `id`, with the `n_top` most likely. `logits` are finite and `id` is one of them. Cost: two passes, and
/// sorting the best.
pub(super) fn logprobs(logits: &[f32], id: TokenId, n_top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit) - f64::from(max);
    let log_sum = logits.iter().map(|logit| above(*logit).exp()).sum::<f64>().ln();
    let of = |id: u32| logits.get(id as usize).map_or(f64::NEG_INFINITY, |logit| above(*logit) - log_sum);
    let mut ids: Vec<u32> = if n_top > 0 { (0..logits.len() as u32).collect() } else { Vec::new() };
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n_top < ids.len() && n_top > 0 {
        ids.select_nth_unstable_by(n_top - 1, order);
        ids.truncate(n_top);
    }
    ids.sort_unstable_by(order);
    let top = ids.into_iter().map(|id| (TokenId(id), of(id))).collect();
    TokenLogprobs { id, logprob: of(id.to_u32()), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_those_of_the_softmax() {
        let logits: Vec<f32> = [0.125f32, 0.5, 0.125, 0.25].iter().map(|p| p.ln() + 7.0).collect();
        let found = logprobs(&logits, TokenId(2), 3);
        let near = |a: f64, b: f64| (a - b.ln()).abs() < 1e-6;
        assert!(near(found.logprob, 0.125));
        assert_eq!(found.top.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(near(found.top[0].1, 0.5) && near(found.top[1].1, 0.25));
        assert_eq!(logprobs(&logits, TokenId(1), 0).top, []);
        assert_eq!(logprobs(&logits, TokenId(1), 20).top.len(), 4);
        // f32 would overflow.
        assert_eq!(logprobs(&[1e30, -1e30], TokenId(1), 0).logprob, -2.0 * f64::from(1e30f32));
    }
}
