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
