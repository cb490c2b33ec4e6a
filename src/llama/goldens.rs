//! What is kept, against the reference's filters (`../shared/goldens/sampling`), when that is there.

use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;

use super::{Sampler, SamplerSettings};

#[derive(Deserialize)]
struct Goldens {
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
struct Filter {
    row: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    kept_ids: Vec<u32>,
    probs: Vec<f32>,
}

/// Largest difference of a probability: f32 softmax here, f64 there.
const PROBABILITY_TOLERANCE: f32 = 2e-5;

#[test]
fn filters_keep_what_the_reference_keeps() {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens");
    let dir = std::env::var_os("QVL_GOLDENS").map_or(default, Into::into);
    let Ok(json) = std::fs::read_to_string(dir.join("sampling/sampling.json")) else {
        println!("skipped: {} is not there", dir.display());
        return;
    };
    let goldens: Goldens = serde_json::from_str(&json).unwrap();
    let bytes = std::fs::read(dir.join("tiny-a/golden/text.text_short.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("gen_logits").unwrap();
    let n_vocab = logits.shape()[1];
    for filter in &goldens.filters {
        let row = logits.data().chunks_exact(4 * n_vocab).nth(filter.row).unwrap();
        let row: Vec<f32> = row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let (temp, top_k, top_p) = (filter.temperature, filter.top_k, filter.top_p);
        let settings = SamplerSettings { temp, top_k, top_p, min_p: 0.0, repeat_penalty: 1.0, seed: 1 };
        let mut kept = Sampler::new(settings, n_vocab).kept(&row);
        let mut expect: Vec<_> = filter.kept_ids.iter().copied().zip(filter.probs.iter().copied()).collect();
        kept.sort_by_key(|(id, _)| *id);
        expect.sort_by_key(|(id, _)| *id);
        let ids = |list: &[(u32, f32)]| list.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&kept), ids(&expect), "temperature {temp}, top-k {top_k}, top-p {top_p}");
        let worst = kept.iter().zip(&expect).map(|(a, b)| (a.1 - b.1).abs()).fold(0.0, f32::max);
        assert!(worst < PROBABILITY_TOLERANCE, "a probability differs by {worst}");
    }
}
