//! Choosing a token from logits, with the samplers of the crate `llama-cpp-2` in the reference's order.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerSettings {
    /// Divides logits; 0 (and anything below [`MIN_TEMP`]) always takes the most likely token.
    pub temp: f32,
    /// Most likely tokens kept; 0 keeps all.
    pub top_k: u32,
    /// Probability mass kept; 1 keeps all.
    pub top_p: f32,
    /// Tokens kept are at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits of tokens that occurred (multiplies negative ones); 1 is none.
    pub repeat_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u32,
}

/// Temperatures below are 0: the quotients would leave f32, and there is no other choice left anyway.
pub const MIN_TEMP: f32 = 1e-4;

/// A chain of samplers: repetition penalty, temperature, top-k, top-p, min-p, then a draw, as the reference orders them.
pub struct Sampler {
    chain: LlamaSampler,
    settings: SamplerSettings,
}

impl Sampler {
    /// A chain for these settings over `n_vocab` logits.
    pub fn new(mut settings: SamplerSettings, n_vocab: usize) -> Self {
        /// Tokens that the repetition penalty looks back at: all, since no context is longer.
        const PENALTY_WINDOW: i32 = 1 << 16;
        if settings.temp < MIN_TEMP {
            settings.temp = 0.0;
        }
        let s = settings;
        let mut chain = Vec::new();
        if s.repeat_penalty != 1.0 {
            chain.push(LlamaSampler::penalties(n_vocab as i32, PENALTY_WINDOW, s.repeat_penalty, 0.0, 0.0));
        }
        if s.temp > 0.0 {
            chain.push(LlamaSampler::temp(s.temp));
            if s.top_k > 0 {
                chain.push(LlamaSampler::top_k(s.top_k.min(i32::MAX as u32) as i32));
            }
            if s.top_p < 1.0 {
                chain.push(LlamaSampler::top_p(s.top_p, 1));
            }
            if s.min_p > 0.0 {
                chain.push(LlamaSampler::min_p(s.min_p, 1));
            }
            chain.push(LlamaSampler::dist(s.seed));
        }
        Sampler { chain: LlamaSampler::chain(chain, true), settings }
    }

    /// Chooses among `logits`, all ids that may be chosen. Ties of the greedy choice go to the smallest id.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.settings.temp <= 0.0 && self.settings.repeat_penalty == 1.0 {
            return argmax(logits.iter().copied());
        }
        let candidates = self.candidates(logits);
        match candidates.selected_token() {
            Some(token) => token.0 as u32,
            None => {
                let best = candidates.data.iter().map(|d| d.logit());
                candidates.data.get(argmax(best) as usize).map_or(0, |d| d.id().0 as u32)
            }
        }
    }

    /// Tells the chain that a token occurred, in the prompt or as an answer.
    pub fn accept(&mut self, id: u32) {
        if self.settings.repeat_penalty != 1.0 {
            self.chain.accept(LlamaToken(id as i32));
        }
    }

    fn candidates(&mut self, logits: &[f32]) -> LlamaTokenDataArray {
        let data = (0..).zip(logits).map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0));
        let mut candidates = LlamaTokenDataArray::from_iter(data, false);
        candidates.apply_sampler(&mut self.chain);
        candidates
    }

    /// What is left of `logits` after filtering: (id, probability), most likely first.
    pub fn kept(&mut self, logits: &[f32]) -> Vec<(u32, f32)> {
        let mut data = self.candidates(logits).data;
        data.sort_by(|a, b| b.p().total_cmp(&a.p()));
        data.into_iter().map(|d| (d.id().0 as u32, d.p())).collect()
    }
}

fn argmax(values: impl Iterator<Item = f32>) -> u32 {
    let best = (0u32..).zip(values).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(temp: f32, top_k: u32, top_p: f32) -> SamplerSettings {
        SamplerSettings { temp, top_k, top_p, min_p: 0.0, repeat_penalty: 1.0, seed: 7 }
    }

    /// Probabilities 1/2, 1/4, 1/8, 1/8 at ids 2, 0, 3, 1.
    fn logits() -> Vec<f32> {
        [0.25f32, 0.125, 0.5, 0.125].iter().map(|p| p.ln()).collect()
    }

    fn check(settings: SamplerSettings, expect: &[u32]) {
        let mut kept: Vec<u32> = Sampler::new(settings, 4).kept(&logits()).into_iter().map(|(id, _)| id).collect();
        kept.sort_unstable();
        assert_eq!(kept, expect, "{settings:?}");
    }

    #[test]
    fn filters_keep_what_they_say() {
        check(settings(1.0, 0, 1.0), &[0, 1, 2, 3]);
        check(settings(1.0, 2, 1.0), &[0, 2]);
        check(settings(1.0, 0, 0.3), &[2]);
        check(settings(1.0, 0, 0.7), &[0, 2]);
        // Temperature comes before top-p: at 0.25 the best token alone has 0.94.
        check(settings(0.25, 0, 0.9), &[2]);
        check(SamplerSettings { min_p: 0.4, ..settings(1.0, 0, 1.0) }, &[0, 2]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(settings(0.0, 0, 1.0), 4);
        assert_eq!(sampler.sample(&logits()), 2);
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]), 1);
    }

    #[test]
    fn draws_follow_seed_and_probabilities() {
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerSettings { seed, ..settings(1.0, 0, 1.0) }, 4);
            (0..400).map(|_| sampler.sample(&logits())).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let n_best = draw(3).iter().filter(|id| **id == 2).count();
        assert!((140..=260).contains(&n_best), "half of 400 draws, found {n_best}");
    }

    #[test]
    fn repeated_tokens_are_penalised() {
        let mut sampler = Sampler::new(SamplerSettings { repeat_penalty: 4.0, ..settings(0.0, 0, 1.0) }, 4);
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.5, 0.0]), 1);
        sampler.accept(1);
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.5, 0.0]), 2);
    }
}
