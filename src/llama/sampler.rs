//! Choosing a token from logits, with the samplers of the crate `llama-cpp-2` in the reference's order.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use crate::error::Result;
use crate::grammar::Matcher;

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
    matcher: Option<Matcher>,
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
        Sampler { chain: LlamaSampler::chain(chain, true), settings, matcher: None }
    }

    /// From now on only what `matcher` allows is chosen. Tokens accepted before, a prompt's, are no part of its answer.
    pub fn constrain(&mut self, matcher: Matcher) {
        self.matcher = Some(matcher);
    }

    /// Chooses among `logits`, all ids that may be chosen. Ties of the greedy choice go to the smallest id.
    ///
    /// Under a grammar the choice is made freely first, and again among what is allowed only if it was refused: mostly
    /// one token is looked at, not all. Without filters the odds are the same: a refused draw is shared out among the
    /// allowed tokens by their odds. Errors: those of [`Matcher::allowed`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let id = self.draw((0..).zip(logits.iter().copied()));
        let Some(matcher) = &mut self.matcher else { return Ok(id) };
        if matcher.allows(id)? {
            return Ok(id);
        }
        let allowed = matcher.allowed()?;
        // Refused tokens are left out, not made improbable: a random number of exactly 0 takes the first, whatever it is.
        Ok(self.draw(allowed.iter().filter_map(|id| Some((*id, *logits.get(*id as usize)?)))))
    }

    /// Tells the chain that a token occurred, in the prompt or as an answer.
    pub fn accept(&mut self, id: u32) {
        if self.settings.repeat_penalty != 1.0 {
            self.chain.accept(LlamaToken(id as i32));
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.accept(id);
        }
    }

    /// Whether a grammar lets nothing follow what was accepted.
    pub fn must_end(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::must_end)
    }

    /// One of these ids with their logits.
    fn draw(&mut self, logits: impl Iterator<Item = (u32, f32)>) -> u32 {
        if self.settings.temp <= 0.0 && self.settings.repeat_penalty == 1.0 {
            return best(logits);
        }
        let candidates = self.candidates(logits);
        match candidates.selected_token() {
            Some(token) => token.0 as u32,
            None => best(candidates.data.iter().map(|d| (d.id().0 as u32, d.logit()))),
        }
    }

    fn candidates(&mut self, logits: impl Iterator<Item = (u32, f32)>) -> LlamaTokenDataArray {
        let data = logits.map(|(id, logit)| LlamaTokenData::new(LlamaToken(id as i32), logit, 0.0));
        let mut candidates = LlamaTokenDataArray::from_iter(data, false);
        candidates.apply_sampler(&mut self.chain);
        candidates
    }

    /// What is left of `logits` after filtering: (id, probability), most likely first.
    pub fn kept(&mut self, logits: &[f32]) -> Vec<(u32, f32)> {
        let mut data = self.candidates((0..).zip(logits.iter().copied())).data;
        data.sort_by(|a, b| b.p().total_cmp(&a.p()));
        data.into_iter().map(|d| (d.id().0 as u32, d.p())).collect()
    }
}

/// The id of the largest logit, the first of equal ones.
fn best(logits: impl Iterator<Item = (u32, f32)>) -> u32 {
    logits.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(0, |(id, _)| id)
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
        assert_eq!(sampler.sample(&logits()).unwrap(), 2);
        assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_seed_and_probabilities() {
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerSettings { seed, ..settings(1.0, 0, 1.0) }, 4);
            (0..400).map(|_| sampler.sample(&logits()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let n_best = draw(3).iter().filter(|id| **id == 2).count();
        assert!((140..=260).contains(&n_best), "half of 400 draws, found {n_best}");
    }

    #[test]
    fn repeated_tokens_are_penalised() {
        let mut sampler = Sampler::new(SamplerSettings { repeat_penalty: 4.0, ..settings(0.0, 0, 1.0) }, 4);
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.5, 0.0]).unwrap(), 1);
        sampler.accept(1);
        assert_eq!(sampler.sample(&[1.0, 3.0, 2.5, 0.0]).unwrap(), 2);
    }
}
