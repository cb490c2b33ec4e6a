//! What half precision, quantised caches, fused attention and threads cost in accuracy.

use crate::models::random;
use crate::programs::{EXACT, qvl, repository};
use crate::tensors::{Values, relative_l2, traced};

/// A prompt with a picture that is longer than seq_length, so that logn and NTK take part.
const CASE: &str = "long";

/// Logits of every position of [`CASE`] on the f32 files.
fn logits(args: &[&str]) -> Values {
    let cases = std::fs::read_to_string(repository("tests/data/goldens/cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
    let case = cases["cases"].as_array().unwrap().iter().find(|case| case["name"] == CASE).unwrap();
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["trace", "--raw", "-m"]).arg(random().text);
    traced(command.args(args).arg(case["text"].as_str().unwrap())).f32s("logits")
}

/// f16 rounds to 2^-11 of a value, q8_0 to 1/254 of a block's largest one; flash attention on a CPU computes with K and V
/// in f16 whatever the cache holds. Measured, in this order: 2e-4, 7e-4, 7e-4, 2e-3, 5e-3, 6e-2. The bounds are three times
/// that: they catch a wrong type or a wrong graph (1e-1 and more), not the rounding of another CPU.
#[test]
fn cheaper_caches_and_fused_attention_stay_near() {
    let exact = logits(&EXACT);
    let check = |args: &[&str], bound: f64| {
        let distance = relative_l2(&logits(args).data, &exact.data);
        println!("{}: {distance:.1e}", args.join(" "));
        assert!(distance < bound, "{args:?}: relative L2 {distance:.1e} (expected below {bound:.0e})");
        // Not the same computation under another name.
        assert!(distance > 1e-6, "{args:?}: relative L2 {distance:.1e}");
    };
    check(&["-fa", "off"], 1e-3);
    check(&["-fa", "on", "-ctk", "f32", "-ctv", "f32"], 2e-3);
    check(&[], 2e-3);
    check(&["-fa", "on", "-ctk", "bf16", "-ctv", "bf16"], 6e-3);
    check(&["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"], 1.5e-2);
    check(&["-fa", "on", "-ctk", "q4_0", "-ctv", "q4_0"], 2e-1);
}

/// Threads share rows; what one of them sums does not change.
#[test]
fn the_number_of_threads_changes_nothing() {
    const BOUND: f64 = 1e-6;
    for args in [&EXACT[..], &[]] {
        let one = logits(&[args, &["-t", "1"]].concat());
        let two = logits(&[args, &["-t", "2"]].concat());
        let distance = relative_l2(&two.data, &one.data);
        println!("{args:?}: threads differ by {distance:.1e}");
        assert!(distance <= BOUND, "{args:?}: {distance:.1e}");
    }
}
