//! Damaged weights in a sound file: a clear error, or an answer; no crash, and no answer from numbers that are none.

use crate::gguf::File;
use crate::support::{ask, f32, qvl, run, temp_dir};

/// How much of the file is overwritten.
#[derive(Clone, Copy)]
enum Where {
    AllText,
    AllVision,
    OneText,
    OneVision,
}

use Where::*;

fn outcome(at: Where, value: f32, flags: &[&str]) -> crate::support::Outcome {
    let dir = temp_dir();
    let path = dir.path().join("bad.gguf");
    let text = matches!(at, AllText | OneText);
    let mut file = File::read(if text { &f32().text } else { &f32().mmproj });
    let range = match at {
        AllText | AllVision => 0..file.data.len() / 4,
        // A norm that every position passes through.
        OneText => (file.tensor("output_norm.weight").offset as usize / 4..).take(1).last().map(|i| i..i + 1).unwrap(),
        OneVision => (file.tensor("v.pre_ln.weight").offset as usize / 4..).take(1).last().map(|i| i..i + 1).unwrap(),
    };
    file.data[range.start * 4..range.end * 4].chunks_mut(4).for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
    std::fs::write(&path, file.encode()).unwrap();
    run(qvl().args(["inspect", "--verify"]).arg(&path)).ends_well();
    let mut command = if text { ask(&path, &f32().mmproj) } else { ask(&f32().text, &path) };
    run(command.args(flags))
}

const SAMPLED: [&str; 6] = ["--top-k", "40", "--top-p", "0.9", "-s", "1"];

#[test]
fn not_a_number() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for flags in [&[][..], &["-fa", "off"], &SAMPLED] {
            for at in [AllText, OneText] {
                outcome(at, value, flags).fails(3, "logits");
            }
            for at in [AllVision, OneVision] {
                outcome(at, value, flags).fails(3, "picture");
            }
        }
    }
}

#[test]
fn zeros_answer() {
    for at in [AllText, AllVision, OneText, OneVision] {
        outcome(at, 0.0, &[]).succeeds();
        outcome(at, 0.0, &SAMPLED).succeeds();
    }
}

#[test]
fn huge_numbers_end_well() {
    for value in [f32::MAX, -1e30, 1e20, f32::MIN_POSITIVE] {
        for at in [AllText, AllVision, OneText, OneVision] {
            outcome(at, value, &[]).ends_well();
            outcome(at, value, &SAMPLED).ends_well();
            outcome(at, value, &["-fa", "off", "-ctk", "f32", "-ctv", "f32"]).ends_well();
        }
    }
}
