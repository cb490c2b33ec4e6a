//! An adapter's `adapter_config.json`, proven: only plain LoRA over linear layers passes.
//!
//! Source of the keys and of what they mean: PEFT's `LoraConfig` and `LoraLayer`; of the usual values: the published
//! `finetune.py` of Qwen-VL.

use std::path::Path;

use qvl::error::Result;
use regex::Regex;
use serde_json::Value;

use crate::json::Fields;

/// The file's name.
pub const FILE: &str = "adapter_config.json";
/// Highest rank that is read: far beyond any use.
pub const MAX_RANK: u64 = 1 << 14;
/// Largest α and largest scale that are read.
pub const MAX_ALPHA: f64 = 1e6;

/// What of α and rank a product B·A is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// α / r.
    Rank,
    /// α / √r (rank-stabilised).
    RootOfRank,
}

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct LoraConfig {
    rank: u64,
    alpha: f64,
    scaling: Scaling,
    rank_pattern: Vec<(Regex, u64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Ends of the names of the modules that it adapts; empty where the configuration has a pattern instead.
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// Reads `dir/adapter_config.json`. Errors (kind model) name the key, what was found and what was expected.
    pub fn read(dir: &Path) -> Result<Self> {
        prove(&Fields::read(&dir.join(FILE))?)
    }

    /// Rank of a module's adapter.
    pub fn rank(&self, module: &str) -> u64 {
        matching(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// α of a module's adapter.
    pub fn alpha(&self, module: &str) -> f64 {
        matching(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }

    /// What a module's B·A is multiplied by.
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        self.alpha(module)
            / match self.scaling {
                Scaling::Rank => rank,
                Scaling::RootOfRank => rank.sqrt(),
            }
    }

    /// `rank 8, alpha 16`
    pub fn summary(&self) -> String {
        let root = if self.scaling == Scaling::RootOfRank { " (rank-stabilised)" } else { "" };
        let more = if self.rank_pattern.is_empty() && self.alpha_pattern.is_empty() { "" } else { ", others by name" };
        format!("rank {}, alpha {}{root}{more}", self.rank, self.alpha)
    }
}

/// The value of the first pattern that matches the end of a module's name, as PEFT's `get_pattern_key` has it.
fn matching<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

fn prove(config: &Fields) -> Result<LoraConfig> {
    let kind = config.opt_str("peft_type")?.unwrap_or("none");
    if kind != "LORA" {
        return Err(config.error(format!("peft_type is {kind:?} (expected \"LORA\")")));
    }
    refuse_other_variants(config)?;
    let scaling = if config.bool_or("use_rslora", false)? { Scaling::RootOfRank } else { Scaling::Rank };
    let rank = config.count("r", 1..=MAX_RANK)?;
    let alpha = config.number_or("lora_alpha", 8.0, 1e-6..=MAX_ALPHA)?;
    let rank_pattern = patterns(config, "rank_pattern", |fields, key| fields.count(key, 1..=MAX_RANK))?;
    let alpha_pattern = patterns(config, "alpha_pattern", |f, key| f.number_or(key, alpha, 1e-6..=MAX_ALPHA))?;
    Ok(LoraConfig { rank, alpha, scaling, rank_pattern, alpha_pattern, targets: targets(config)? })
}

/// Options that change more than W + s·B·A on linear layers would tell.
fn refuse_other_variants(config: &Fields) -> Result<()> {
    for key in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "megatron_config", "layer_replication"] {
        match config.get(key) {
            None | Some(Value::Bool(false)) => {}
            Some(other) => return Err(config.error(format!("{key} is {other} (only plain LoRA is supported)"))),
        }
    }
    for key in ["alora_invocation_tokens", "trainable_token_indices", "target_parameters"] {
        if config.get(key).is_some() {
            return Err(config.error(format!("{key} is not supported (only plain LoRA is)")));
        }
    }
    let bias = config.opt_str("bias")?.unwrap_or("none");
    if bias != "none" {
        return Err(config.error(format!("bias is {bias:?} (only \"none\" is supported)")));
    }
    // Others take a part out of the base model's own weights, which the adapter then does not fit any more.
    let keeps_the_base = |how: &str| ["gaussian", "eva", "orthogonal"].contains(&how.to_ascii_lowercase().as_str());
    match config.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(how)) if keeps_the_base(how) => Ok(()),
        Some(other) => Err(config.error(format!(
            "init_lora_weights is {other}, which changes the base model; convert the adapter to plain LoRA with PEFT"
        ))),
    }
}

fn patterns<T>(config: &Fields, key: &str, value: impl Fn(&Fields, &str) -> Result<T>) -> Result<Vec<(Regex, T)>> {
    let Some(object) = config.object(key)? else { return Ok(Vec::new()) };
    let compiled = |pattern: &str| {
        Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
            .map_err(|_| config.error(format!("{key}: {pattern:?} is not a pattern that is understood")))
    };
    object.keys().map(|pattern| Ok((compiled(pattern)?, value(&object, pattern)?))).collect()
}

fn targets(config: &Fields) -> Result<Vec<String>> {
    match config.get("target_modules") {
        Some(Value::Array(all)) => {
            let name = |v: &Value| v.as_str().map(str::to_owned);
            let names: Option<Vec<String>> = all.iter().map(name).collect();
            names.ok_or_else(|| config.error("target_modules holds what is no name"))
        }
        None | Some(Value::String(_)) => Ok(Vec::new()),
        Some(_) => Err(config.error("target_modules is no list of names")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rest: &str) -> Result<LoraConfig> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 8, "lora_alpha": 16{rest}}}"#);
        prove(&Fields::parse(&text, FILE).unwrap())
    }

    #[test]
    fn scales_follow_rank_alpha_and_patterns() {
        let module = "transformer.h.10.attn.c_attn";
        assert_eq!(of("").unwrap().scale(module), 2.0);
        let rest = r#", "use_rslora": true, "rank_pattern": {"attn.c_attn": 4}, "alpha_pattern": {"h\\.1\\..*": 1}"#;
        let config = of(rest).unwrap();
        assert_eq!((config.rank(module), config.scale(module)), (4, 8.0));
        assert_eq!((config.rank("transformer.h.0.mlp.w1"), config.alpha("transformer.h.1.mlp.w1")), (8, 1.0));
        // The end of a name, not of a part of it.
        assert_eq!(of(r#", "rank_pattern": {"w1": 4}"#).unwrap().rank("transformer.h.0.mlp.xw1"), 8);
    }

    #[test]
    fn what_is_more_than_lora_is_refused() {
        let check = |rest: &str, part: &str| {
            let error = of(rest).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        check(r#", "use_dora": true"#, "use_dora");
        check(r#", "bias": "all""#, "bias");
        check(r#", "init_lora_weights": "pissa""#, "pissa");
        check(r#", "rank_pattern": {"(": 4}"#, "rank_pattern");
        check(r#", "rank_pattern": {"w1": 0}"#, "w1");
        check(r#", "target_modules": 3"#, "target_modules");
        assert!(of(r#", "bias": "none", "use_dora": false, "init_lora_weights": "gaussian""#).is_ok());
    }
}
