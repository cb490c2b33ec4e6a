//! Pillow's `Image.resize(size, BICUBIC)` on RGB8, byte for byte: across, then down, with bytes in between.
//!
//! Source: Pillow `Resample.c` (versions 10 to 12; Pillow 13 may go down first). The work is done row by row: a source row
//! is shrunk across once, and only the rows that the next output row can see are kept.

use std::collections::VecDeque;
use std::ops::Range;

use super::Picture;
use super::taps::{FRACTION_BITS, taps};

/// Half a unit: what every accumulator starts from, so that the shift rounds.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Values that are summed side by side: 8 RGB pixels across, and as many bytes of a row down. Three AVX2 registers.
const LANES: usize = 24;

/// `picture` at exactly `width` × `height` pixels; the aspect ratio is not kept, as in the reference.
///
/// An axis that keeps its size is not filtered. A zero is taken as 1. Cost: beside the result some rows (about
/// `4 · height_in / height` of them) and 48 bytes of weights a source column; about 4 ns a source pixel (AVX2).
pub fn resize(picture: &Picture, width: u32, height: u32) -> Picture {
    let (width, height) = (width.max(1), height.max(1));
    let (n_in, n_out) = (picture.height() as usize, height as usize);
    let mut across = (picture.width() != width).then(|| Across::new(picture.width() as usize, width as usize));
    let stride = width as usize * 3;
    let mut narrow = |y: usize, out: &mut [u8]| match &mut across {
        Some(across) => across.row(picture.row(y), out),
        None => out.copy_from_slice(picture.row(y)),
    };

    let mut pixels = vec![0; stride * n_out];
    let rows_out = pixels.chunks_exact_mut(stride).enumerate();
    if n_in == n_out {
        rows_out.for_each(|(y, out)| narrow(y, out));
        return Picture { width, height, pixels };
    }
    // The rows that have gone across and may still be seen: `first`, `first + 1`, ...
    let mut rows: VecDeque<Vec<u8>> = VecDeque::new();
    let mut first = 0;
    for (y, out) in rows_out {
        let taps = taps(n_in, n_out, y);
        let mut spare = Vec::new();
        while first < taps.first {
            spare.extend(rows.pop_front());
            first += 1;
        }
        while first + rows.len() < taps.end() {
            let mut row = spare.pop().unwrap_or_else(|| vec![0; stride]);
            narrow(first + rows.len(), &mut row);
            rows.push_back(row);
        }
        down(&taps.weights, &rows, out);
    }
    Picture { width, height, pixels }
}

/// One output row from the source rows `rows`, one weight each; all rows as long as `out`.
fn down(weights: &[i32], rows: &VecDeque<Vec<u8>>, out: &mut [u8]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    for (i, out) in whole.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (&weight, row) in weights.iter().zip(rows) {
            let bytes: &[u8] = &row[i * LANES..][..LANES];
            for lane in 0..LANES {
                sums[lane] += weight * i32::from(bytes[lane]);
            }
        }
        *out = sums.map(to_byte);
    }
    let start = whole.len() * LANES;
    for (i, out) in rest.iter_mut().enumerate() {
        let sum = weights.iter().zip(rows).map(|(&weight, row)| weight * i32::from(row[start + i])).sum::<i32>();
        *out = to_byte(HALF + sum);
    }
}

/// The first pass: every row of one width to another.
struct Across {
    /// For each output pixel: the source byte where it starts to read, and its part of `weights`.
    taps: Vec<(usize, Range<usize>)>,
    /// Each weight three times, for R, G and B, in blocks of 8 pixels, the last one filled up with zeros.
    weights: Vec<[i32; LANES]>,
    /// A source row with room behind it, because the last block may reach beyond the end.
    padded: Vec<u8>,
}

impl Across {
    /// Prepares for rows of `n_in` pixels that become `n_out`.
    fn new(n_in: usize, n_out: usize) -> Across {
        let mut weights = Vec::new();
        let mut all = Vec::with_capacity(n_out);
        for at in 0..n_out {
            let taps = taps(n_in, n_out, at);
            let begin = weights.len();
            weights.extend(taps.weights.chunks(LANES / 3).map(|eight| {
                let mut block = [0; LANES];
                block.chunks_exact_mut(3).zip(eight).for_each(|(rgb, &weight)| rgb.fill(weight));
                block
            }));
            all.push((taps.first * 3, begin..weights.len()));
        }
        Across { taps: all, weights, padded: vec![0; n_in * 3 + LANES] }
    }

    /// One row: `source` is `[n_in, 3]`, `out` is `[n_out, 3]`.
    fn row(&mut self, source: &[u8], out: &mut [u8]) {
        self.padded[..source.len()].copy_from_slice(source);
        for ((start, range), rgb) in self.taps.iter().zip(out.as_chunks_mut::<3>().0) {
            let (blocks, _) = self.padded[*start..].as_chunks::<LANES>();
            let sums = weigh(&self.weights[range.clone()], blocks);
            // Lane i belongs to channel i mod 3: fold the halves while they are multiples of 3.
            let six: [i32; 6] = std::array::from_fn(|i| sums[i] + sums[i + 6] + sums[i + 12] + sums[i + 18]);
            *rgb = std::array::from_fn(|c| to_byte(HALF + six[c] + six[c + 3]));
        }
    }
}

/// Σ weight · byte, lane by lane. Not inlined: merged with the sum over the lanes, the compiler makes shuffles of it and it
/// takes twice as long.
#[inline(never)]
fn weigh(weights: &[[i32; LANES]], blocks: &[[u8; LANES]]) -> [i32; LANES] {
    let mut sums = [0; LANES];
    for (weights, bytes) in weights.iter().zip(blocks) {
        for lane in 0..LANES {
            sums[lane] += weights[lane] * i32::from(bytes[lane]);
        }
    }
    sums
}

/// Fixed point to a byte, clipped to 0..=255.
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of test bytes (xorshift).
    fn bytes(seed: u64) -> impl Iterator<Item = u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
    }

    fn random(width: u32, height: u32, seed: u64) -> Picture {
        // Half of the pictures hold only black and white, where clipping matters.
        let hard = |b: u8| if seed.is_multiple_of(2) { b } else { (b >> 7) * 255 };
        let pixels = bytes(seed).take((width * height * 3) as usize).map(hard).collect();
        Picture::new(width, height, pixels).expect("fits")
    }

    /// The specification once more, in exact integers and without any float: with D = 2·max(in, out), source position i
    /// lies n/D filter units from output position o, n = (2i+1)·out − (2o+1)·in, and twice the kernel times D³ is an integer.
    fn slow_axis(values: &[u8], n_out: usize) -> Vec<u8> {
        let n_in = values.len() as i128;
        let (n_out, d) = (n_out as i128, 2 * n_in.max(n_out as i128));
        let kernel = |n: i128| match n.abs() {
            n if n < d => 3 * n * n * n - 5 * n * n * d + 2 * d * d * d,
            n if n < 2 * d => -n * n * n + 5 * n * n * d - 8 * n * d * d + 4 * d * d * d,
            _ => 0,
        };
        let output = |o: i128| {
            let weight = |i: i128| kernel((2 * i + 1) * n_out - (2 * o + 1) * n_in);
            let total: i128 = (0..n_in).map(weight).sum();
            let fixed = |w: i128| w.signum() * ((w.abs() * (1 << 23) + total) / (2 * total));
            let sum: i128 = (0..n_in).map(|i| fixed(weight(i)) * i128::from(values[i as usize])).sum();
            ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        (0..n_out).map(output).collect()
    }

    fn slow(picture: &Picture, width: u32, height: u32) -> Vec<u8> {
        let (w, h) = (picture.width as usize, picture.height as usize);
        let (w_out, h_out) = (width as usize, height as usize);
        let mut middle = vec![0; h * w_out * 3];
        for y in 0..h {
            for c in 0..3 {
                let line: Vec<u8> = (0..w).map(|x| picture.pixels[(y * w + x) * 3 + c]).collect();
                let line = if w == w_out { line } else { slow_axis(&line, w_out) };
                line.iter().enumerate().for_each(|(x, &v)| middle[(y * w_out + x) * 3 + c] = v);
            }
        }
        let mut result = vec![0; h_out * w_out * 3];
        for i in 0..w_out * 3 {
            let line: Vec<u8> = (0..h).map(|y| middle[y * w_out * 3 + i]).collect();
            let line = if h == h_out { line } else { slow_axis(&line, h_out) };
            line.iter().enumerate().for_each(|(y, &v)| result[y * w_out * 3 + i] = v);
        }
        result
    }

    #[test]
    fn equals_the_slow_restatement() {
        let mut sizes = bytes(7).map(|b| u32::from(b) % 53 + 1);
        let mut size = || sizes.next().unwrap_or(1);
        let random_sizes = (0..120).map(|_| [size(), size(), size(), size()]);
        let special = [
            [1, 1, 5, 7],
            [1, 90, 28, 28],
            [300, 1, 14, 14],
            [1, 1000, 8, 3],
            [9, 9, 9, 9],
            [9, 5, 9, 11],
            [9, 5, 7, 5],
        ];
        for (seed, [w, h, w_out, h_out]) in random_sizes.chain(special).enumerate() {
            let picture = random(w, h, seed as u64);
            let fast = resize(&picture, w_out, h_out);
            assert_eq!((fast.width, fast.height), (w_out, h_out));
            assert!(fast.pixels == slow(&picture, w_out, h_out), "{w}x{h} -> {w_out}x{h_out}, seed {seed}");
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let picture = random(31, 17, 4);
        assert_eq!(resize(&picture, 31, 17), picture);
    }

    #[test]
    fn extreme_shapes_keep_a_flat_colour() {
        for (w, h) in [(200_000, 1), (1, 200_000), (3, 50_000)] {
            let picture = Picture::new(w, h, [9, 128, 255].repeat((w * h) as usize)).expect("fits");
            assert_eq!(resize(&picture, 20, 30).pixels, [9, 128, 255].repeat(600));
        }
    }
}
