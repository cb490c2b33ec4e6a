//! Against ggml, byte by byte.

use super::x86::{Level, quantise_rows};
use crate::ggml;
use crate::quant::GgmlType::{self, *};

const TYPES: [GgmlType; 10] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];

/// xorshift64*
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// 0 .. 1
    fn part(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }

    /// Nearly normal, of deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.part()).sum::<f32>() - 6.0
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.bits() as usize % choices.len()]
    }

    /// 2 to some power between these.
    fn power(&mut self, from: f32, to: f32) -> f32 {
        (from + (to - from) * self.part()).exp2()
    }
}

fn levels() -> Vec<Level> {
    match Level::detect() {
        Level::Avx512 => vec![Level::Avx512, Level::Avx2],
        Level::Avx2 => vec![Level::Avx2],
        Level::None => vec![],
    }
}

fn check(types: &[GgmlType], values: &[f32], n_per_row: usize, importance: Option<&[f32]>, what: &str) {
    for (level, ty) in levels().into_iter().flat_map(|level| types.iter().map(move |ty| (level, *ty))) {
        let row_bytes = ty.row_bytes(n_per_row as u64).unwrap() as usize;
        let mut expect = vec![0; values.len() / n_per_row * row_bytes];
        let mut found = vec![0xaa; expect.len()];
        ggml::quantize_rows(ty, values, n_per_row, importance, &mut expect);
        assert!(quantise_rows(level, ty, values, n_per_row, importance, &mut found), "{ty} is made here");
        if let Some(at) = (0..expect.len()).find(|i| expect[*i] != found[*i]) {
            let block = at / ty.block_bytes() as usize;
            let size = ty.block_size() as usize;
            let weighted = if importance.is_some() { ", weighted" } else { "" };
            panic!(
                "{ty}{weighted}, {level:?}, {what}: byte {} of block {block}: {:#04x} (expected {:#04x}) of {:?}",
                at % ty.block_bytes() as usize,
                found[at],
                expect[at],
                &values[block * size..(block + 1) * size]
            );
        }
    }
}

/// Without and with importance of three kinds.
fn check_all(values: &[f32], n_per_row: usize, what: &str) {
    let types: Vec<GgmlType> = TYPES.into_iter().filter(|ty| ty.holds_rows_of(n_per_row as u64)).collect();
    check(&types, values, n_per_row, None, what);
    let mut random = Random(77);
    let importances: [Vec<f32>; 3] = [
        (0..n_per_row).map(|_| random.normal().powi(2) + 1e-6).collect(),
        (0..n_per_row).map(|_| random.power(-30.0, 30.0)).collect(),
        (0..n_per_row).map(|_| random.one_of(&[0.0, 1.0])).collect(),
    ];
    for (importance, kind) in importances.iter().zip(["usual", "wide", "many zeros"]) {
        check(&types, values, n_per_row, Some(importance), &format!("{what}, importance: {kind}"));
    }
}

#[test]
fn weights_as_models_have_them() {
    let mut random = Random(1);
    for name in ["f32", "bf16", "f16"] {
        let grid = |x: f32| match name {
            "bf16" => half::bf16::from_f32(x).to_f32(),
            "f16" => half::f16::from_f32(x).to_f32(),
            _ => x,
        };
        // 43 super-blocks and 344 blocks a row, as in the real model's: no whole number of lanes.
        let values: Vec<f32> = (0..4 * 11008).map(|_| grid(0.02 * random.normal())).collect();
        check_all(&values, 11008, &format!("normal, {name}"));
        // The padded rows of the vision tower.
        let padded = |i: usize, x: f32| if i % 1792 < 1664 { x } else { 0.0 };
        let values: Vec<f32> = (0..5 * 1792).map(|i| padded(i, grid(0.03 * random.normal().powi(3)))).collect();
        check_all(&values, 1792, &format!("heavy tails, padded, {name}"));
    }
    let values: Vec<f32> = (0..3 * 1664).map(|_| random.part()).collect();
    check_all(&values, 1664, "rows of 52 blocks");
}

#[test]
fn blocks_that_are_hard() {
    let mut random = Random(2);
    let mut check = |what: &str, value: &mut dyn FnMut(&mut Random, usize) -> f32| {
        let values: Vec<f32> = (0..3 * 768).map(|i| value(&mut random, i)).collect();
        check_all(&values, 768, what);
    };
    check("zeros", &mut |_, _| 0.0);
    check("zeros of both signs", &mut |r, _| r.one_of(&[0.0, -0.0]));
    check("one value", &mut |_, _| 0.37);
    check("one negative value", &mut |_, _| -0.37);
    check("a value a block", &mut |_, i| (i / 16) as f32 - 71.0);
    check("two values", &mut |r, _| r.one_of(&[-0.25, 0.75]));
    check("the same magnitude", &mut |r, _| r.one_of(&[-1.5, 1.5]));
    check("ties between levels", &mut |r, _| (r.bits() % 64) as f32 / 2.0 - 16.0);
    check("all positive, far from zero", &mut |r, _| 100.0 + r.part());
    check("all negative, far from zero", &mut |r, _| -100.0 - r.part());
    check("nearly the same", &mut |r, _| -1.0 - r.one_of(&[0.0, 1.0, 2.0]) * f32::EPSILON);
    check("one outlier in 100", &mut |r, _| if r.bits() % 100 == 0 { 50.0 * r.normal() } else { 0.01 * r.normal() });
    check("nearly all zero", &mut |r, _| if r.bits() % 40 == 0 { r.normal() } else { 0.0 });
    check("denormal", &mut |r, _| f32::from_bits(r.bits() & 0x8000_ffff));
    check("at the border of zero", &mut |r, _| 1e-15 * r.normal());
    check("at the border of f16", &mut |r, _| 65504.0 * r.normal());
    check("huge", &mut |r, _| r.one_of(&[-1.0, 1.0]) * r.power(100.0, 127.9));
    check("the largest there is", &mut |r, _| r.one_of(&[f32::MAX, -f32::MAX, 0.0]));
    check("a slope", &mut |_, i| i as f32 * 1e-3);
}

/// Every exponent that there is, wide apart and close together, blocks of all kinds beside each other in the lanes.
#[test]
fn any_floats_at_all() {
    let mut random = Random(3);
    for round in 0..24 {
        let mut values = vec![0f32; 4 * 1024];
        for block in values.chunks_exact_mut(16) {
            let (middle, width) = (random.power(-140.0, 127.0), random.one_of(&[0.0, 0.5, 4.0, 40.0]));
            let offset = random.one_of(&[0.0, 0.0, 1.0, -3.0]);
            for x in block {
                let x_ = (random.normal() + offset) * random.power(-width, 0.0) * middle;
                *x = x_.clamp(-f32::MAX, f32::MAX);
            }
        }
        check_all(&values, 1024, &format!("round {round}"));
    }
}

#[test]
fn what_is_not_made_here_is_left_alone() {
    let mut out = [7; 84];
    assert!(!quantise_rows(Level::detect(), Q2_K, &[0.5; 256], 256, None, &mut out));
    assert!(!quantise_rows(Level::None, Q8_0, &[0.5; 32], 32, None, &mut out[..34]));
    assert_eq!(out, [7; 84]);
}
