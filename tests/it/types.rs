//! Every TYPE: its blocks are ggml's own and its file answers.

use std::path::Path;

use qvl::ggml::{dequantize_row, quantize_rows};
use qvl::gguf::Gguf;
use qvl::quant::GgmlType;

use crate::models::{Model, random, random_as};
use crate::programs::{EXACT, qvl, repository, run};
use crate::tensors::{Values, relative_l2, traced};

/// (TYPE, the largest relative L2 of the logits of [`logits`] against f32 with both files in that type)
///
/// A weight of b bits is off by about 2^-b of its block's range, and ggml rounds what it is multiplied with as well: to
/// bf16 for bf16, to 8 bits for every quantised type. Layers multiply that; the weights here are random, with no structure
/// that a quantiser could profit from. Measured: f16 5e-4, bf16 4e-3, q8_0 2e-2, q6_k 5e-2, 5 bits 1.1e-1 to 1.3e-1, 4 bits
/// 2.0e-1 to 2.4e-1; the bounds are at least twice that, for other CPUs. Logits of unrelated values differ by 1.4.
const TYPES: [(&str, f64); 15] = [
    ("f32", 1e-9),
    ("f16", 2e-3),
    ("bf16", 1e-2),
    ("q8_0", 5e-2),
    ("q6_k", 1e-1),
    ("q5_k_m", 2.5e-1),
    ("q5_k_s", 2.5e-1),
    ("q5_1", 2.5e-1),
    ("q5_0", 2.5e-1),
    ("q4_k_m", 5e-1),
    ("q4_k_s", 5e-1),
    ("q4_1", 5e-1),
    ("q4_0", 5e-1),
    ("iq4_nl", 5e-1),
    ("iq4_xs", 5e-1),
];

/// Logits of a chat turn about a picture.
fn logits(model: &Model) -> Values {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures"));
    command.args(["trace", "-i", "shapes.png", "What is this?", "-m"]).arg(&model.text).args(EXACT);
    traced(&mut command).f32s("logits")
}

#[test]
fn every_type_answers_and_is_near_f32() {
    let exact = logits(&random());
    let mut one_answer_differs = false;
    for (ty, bound) in TYPES {
        let model = random_as(ty, ty);
        let distance = relative_l2(&logits(&model).data, &exact.data);
        println!("{ty}: {distance:.1e}");
        assert!(distance <= bound, "{ty}: relative L2 {distance:.1e} (expected below {bound:.0e})");

        let mut ask = qvl();
        ask.current_dir(repository("tests/data/pictures")).args(["ask", "--json", "--temp", "0", "-n", "12"]);
        let answer = run(ask.args(["-i", "shapes.png", "What is this?", "-m"]).arg(&model.text)).json();
        assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{ty}");
        one_answer_differs |= distance > 1e-2;
    }
    // The files are not all the same one.
    assert!(one_answer_differs);
}

/// One file's tensors.
struct File {
    bytes: Vec<u8>,
    gguf: Gguf,
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        File { bytes, gguf }
    }
}

/// Every tensor of `found` holds the blocks that ggml makes of the f32 file's rows; returns the types that were seen.
fn check_blocks(found: &Path, exact: &Path) -> Vec<GgmlType> {
    let (found, exact) = (File::read(found), File::read(exact));
    assert_eq!(found.gguf.tensors().len(), exact.gguf.tensors().len());
    let mut types = Vec::new();
    for tensor in found.gguf.tensors() {
        let source = exact.gguf.tensor(&tensor.name).unwrap();
        // Rows that hold no whole blocks may have zeros behind them, until they do.
        let whole = source.dims[0].next_multiple_of(tensor.ty.block_size());
        assert_eq!((source.ty, &source.dims[1..]), (GgmlType::F32, &tensor.dims[1..]), "{}", tensor.name);
        assert!([source.dims[0], whole].contains(&tensor.dims[0]), "{} {:?}", tensor.name, tensor.dims);
        let n_per_row = tensor.dims[0] as usize;
        let mut values = Vec::new();
        for row in source.bytes(&exact.bytes).chunks_exact(4 * source.dims[0] as usize) {
            values.extend(row.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())));
            values.resize(values.len().next_multiple_of(n_per_row), 0.0);
        }
        let mut expect = vec![0; tensor.n_bytes as usize];
        quantize_rows(tensor.ty, &values, n_per_row, None, &mut expect);
        assert!(tensor.bytes(&found.bytes) == expect, "{} {}: blocks differ from ggml's", tensor.name, tensor.ty);
        check_values(tensor.ty, &expect, &values, n_per_row, &tensor.name);
        types.push(tensor.ty);
    }
    types.sort();
    types.dedup();
    types
}

/// What the blocks mean is near what went in: no type is off by more than a few bits.
fn check_values(ty: GgmlType, blocks: &[u8], values: &[f32], n_per_row: usize, name: &str) {
    let row_bytes = ty.row_bytes(n_per_row as u64).unwrap() as usize;
    let mut back = vec![0.0; values.len()];
    for (row, out) in blocks.chunks_exact(row_bytes).zip(back.chunks_exact_mut(n_per_row)) {
        dequantize_row(ty, row, out);
    }
    if values.iter().any(|v| *v != 0.0) {
        let distance = relative_l2(&back, values);
        assert!(distance < 0.15, "{name} {ty}: {distance:.1e}");
    }
}

#[test]
fn blocks_are_ggmls_own() {
    use GgmlType::*;
    let exact = random();
    for (ty, _) in TYPES {
        let model = random_as(ty, ty);
        let text = check_blocks(&model.text, &exact.text);
        let vision = check_blocks(&model.mmproj, &exact.mmproj);
        // The mixes are llama.cpp's. In the vision tower rows of 472 are padded; rows of 96 become blocks of 32.
        let (expect_text, expect_vision): (&[GgmlType], &[GgmlType]) = match ty {
            "f16" => (&[F32, F16], &[F32, F16]),
            "q8_0" => (&[F32, Q8_0], &[F32, Q8_0]),
            "q5_1" => (&[F32, Q5_1, Q6_K], &[F32, Q5_1]),
            "q4_k_m" => (&[F32, Q4_K, Q5_K, Q6_K], &[F32, Q5_0, Q4_K]),
            "iq4_xs" => (&[F32, Q6_K, IQ4_XS], &[F32, IQ4_NL, IQ4_XS]),
            _ => continue,
        };
        assert_eq!((text.as_slice(), vision.as_slice()), (expect_text, expect_vision), "{ty}");
    }
}
