//! Attention by AMX: tiles of 32 queries by 32 keys, and of 32 queries by 32 values of a head.
//!
//! Keys and values of a head are rounded a block at a time, and all queries of a share look at them, so that room does not grow with the
//! context. Whenever a query meets a larger score than before, what it has summed up is brought to that (Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", 2018).
//!
//! Pictures are computed in bf16 ([`Digits::One`]). Texts have a cache in f16, which has more bits: there, every number is two of bf16, the second being
//! what the first has left, and a product is three of them ([`Digits::Two`]). That is 16 bits, as good as ggml's own loops in f32.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::amx::{self, SIDE, Shapes, Sums, TILE_ROWS, Tile, Tiles};
use super::avx512::{self, LANES, load};
use super::panel::{DEPTH, ROWS};
use crate::ggml::{Custom, Operand, Share, Task};

/// Shares that a thread gets at least, if there are as many: a busy core takes fewer. Each share rounds the keys and values of its head.
const SHARES: usize = 4;

/// Keys of a block, for each digit: with heads of 128 they and their values take 512 KiB, which stay in the second cache.
const KEYS: usize = 1024;

/// The vision tower's operation; its arguments are those of [`attention`](super::attention()).
#[derive(Default)]
pub struct Attention {
    share: Share,
}

impl Custom for Attention {
    fn run(&self, task: &Task<'_>) {
        let [q, k, v] = [0, 1, 2].map(|i| task.arg(i));
        let [d, n_heads, n_q, _] = q.dims;
        let problem = Problem {
            q: Vectors::of_heads(q),
            k: Vectors::of_heads(k),
            v: Vectors::of_heads(v),
            mask: None,
            d,
            n_heads,
            n_kv_heads: n_heads,
            n_streams: 1,
            n_q,
            n_kv: k.dims[2],
            scale: 1.0 / (d as f32).sqrt(),
            digits: Digits::One,
        };
        let shares = self.share.take(problem.n_shares(task.n_threads), task.n_threads);
        // SAFETY: `attention` has seen what the CPU needs; a query of a head belongs to the one thread that took its share.
        unsafe { problem.attend(task.n_threads, shares, |vector| task.out(vector * d, d)) };
    }
}

/// How many bf16 a number is made of.
#[cfg_attr(not(text_kernels), allow(dead_code))] // Two are those of texts, and so is F16.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// Rounded to one.
    One,
    /// And what that leaves, rounded to another.
    Two,
}

/// What numbers are.
#[cfg_attr(not(text_kernels), allow(dead_code))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Float {
    F32,
    F16,
}

/// Vectors of heads, their values side by side.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    pub bytes: &'a [u8],
    pub ty: Float,
    /// Bytes from one position to the next, from one head, and from one stream.
    pub strides: [usize; 3],
}

impl<'a> Vectors<'a> {
    /// Those of `[d, head, position]`, f32.
    fn of_heads(t: Operand<'a>) -> Self {
        Vectors { bytes: t.bytes, ty: Float::F32, strides: [t.strides[2], t.strides[1], 0] }
    }

    /// The values of a vector of a stream's head in f32; zeros behind the `n`-th.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn take(&self, [stream, head]: [usize; 2], i: usize, n: usize, to: &mut [f32]) {
        if i >= n {
            return to.fill(0.0);
        }
        let value_bytes = if self.ty == Float::F32 { size_of::<f32>() } else { size_of::<f16>() };
        let at = i * self.strides[0] + head * self.strides[1] + stream * self.strides[2];
        let bytes = &self.bytes[at..at + to.len() * value_bytes];
        if self.ty == Float::F32 {
            // SAFETY: as many bytes; any are numbers.
            return unsafe { to.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        let (lines, last) = bytes.as_chunks::<{ 2 * LANES }>();
        let n_whole = lines.len() * LANES;
        for (to, line) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(lines) {
            // SAFETY: 16 numbers of each kind.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(line.as_ptr().cast()))) };
        }
        for (to, value) in to[n_whole..].iter_mut().zip(last.as_chunks::<2>().0) {
            *to = f16::from_le_bytes(*value).to_f32();
        }
    }
}

/// What is added to scores, in f16: at `[query][key]` of each stream, or of all.
#[derive(Clone, Copy)]
pub struct Mask<'a> {
    pub bytes: &'a [u8],
    /// Bytes from one query to the next, and from one stream; keys are side by side.
    pub strides: [usize; 2],
}

/// softmax(scale · qᵀk + mask) v, for all heads of all streams. A query that sees nothing gets zeros.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    pub q: Vectors<'a>,
    pub k: Vectors<'a>,
    pub v: Vectors<'a>,
    pub mask: Option<Mask<'a>>,
    /// Values of a vector.
    pub d: usize,
    pub n_heads: usize,
    /// A divisor of them: so many neighbours share keys and values.
    pub n_kv_heads: usize,
    /// Sequences that do not see each other.
    pub n_streams: usize,
    /// Of each stream.
    pub n_q: usize,
    pub n_kv: usize,
    pub scale: f32,
    pub digits: Digits,
}

impl Problem<'_> {
    /// Groups of 32 queries of a share, at most.
    fn n_groups(&self, n_threads: usize) -> usize {
        let (n_groups, n_heads) = (self.n_q.div_ceil(SIDE), self.n_heads * self.n_streams);
        let n_parts = (SHARES * n_threads).div_ceil(n_heads.max(1)).clamp(1, n_groups.max(1));
        n_groups.div_ceil(n_parts)
    }

    /// Shares of the work for so many threads.
    pub fn n_shares(&self, n_threads: usize) -> usize {
        let n_parts = self.n_q.div_ceil(SIDE).div_ceil(self.n_groups(n_threads).max(1));
        n_parts * self.n_heads * self.n_streams
    }

    /// Computes some of [`n_shares`](Self::n_shares), `d` values each into `out`: of the vectors of a query's heads, one query after the other.
    ///
    /// # Safety
    /// [`amx::is_available`].
    pub unsafe fn attend<'o>(
        &self,
        n_threads: usize,
        shares: impl Iterator<Item = usize>,
        out: impl Fn(usize) -> &'o mut [f32],
    ) {
        let (n_groups, n_all) = (self.n_groups(n_threads), self.n_q.div_ceil(SIDE));
        let n_parts = n_all.div_ceil(n_groups.max(1));
        // SAFETY: by this function's contract.
        let shapes = unsafe { Shapes::set() };
        let mut room = Room::new(self, n_groups);
        let mut seen = None;
        for i in shares {
            let (at, part) = (i / n_parts, i % n_parts);
            let (stream, head) = (at / self.n_heads, at % self.n_heads);
            let sights = match &mut seen {
                Some((of, sights)) if *of == stream => sights,
                // SAFETY: as above.
                seen => &mut seen.insert((stream, unsafe { self.sights(stream) })).1,
            };
            let groups = part * n_groups..n_all.min((part + 1) * n_groups);
            // SAFETY: as above.
            unsafe { room.attend(self, &shapes, [stream, head], groups.clone(), sights) };
            for (group, slot) in groups.zip(0..) {
                for (query, j) in (group * SIDE..self.n_q.min((group + 1) * SIDE)).zip(0..) {
                    room.take(slot, j, out((stream * self.n_q + query) * self.n_heads + head));
                }
            }
        }
    }

    /// What each 32 queries see of each 32 keys.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW.
    unsafe fn sights(&self, stream: usize) -> Vec<Sight> {
        let key_tiles = self.n_kv.div_ceil(ROWS);
        let mut sights = vec![Sight::All; self.n_q.div_ceil(SIDE) * key_tiles];
        let Some(mask) = &self.mask else { return sights };
        for (group, sights) in sights.chunks_exact_mut(key_tiles.max(1)).enumerate() {
            for (tile, sight) in sights.iter_mut().enumerate() {
                let rows = (group * SIDE..self.n_q.min((group + 1) * SIDE))
                    // SAFETY: by this function's contract.
                    .map(|query| unsafe { mask.look(stream, query, tile * ROWS, self.n_kv) });
                *sight = rows.reduce(|all, one| if all == one { all } else { Sight::Some }).unwrap_or(Sight::None);
            }
        }
        sights
    }
}

/// What queries see of keys, as a mask has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// All, and as they are.
    All,
    /// Nothing: skipped, but between keys that are seen.
    None,
    /// Some, or not as they are.
    Some,
}

/// What is added to 32 scores of which `n` belong to keys, in f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ends(n: usize) -> __m512i {
    let infinity = _mm512_set1_epi16(f16::NEG_INFINITY.to_bits() as i16);
    _mm512_mask_mov_epi16(infinity, (1u64 << n.min(ROWS)).wrapping_sub(1) as u32, _mm512_setzero_si512())
}

impl Mask<'_> {
    /// What is added to the scores of 32 keys from `key` on; beyond the last there is nothing to see.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn row(&self, stream: usize, query: usize, key: usize, n_kv: usize) -> __m512i {
        let at = query * self.strides[0] + stream * self.strides[1] + key * size_of::<f16>();
        let row = &self.bytes[at..at + ROWS.min(n_kv - key) * size_of::<f16>()];
        let mut values = [f16::NEG_INFINITY; ROWS];
        // SAFETY: at most 32 numbers of any bits, and 32.
        unsafe {
            if row.len() == size_of_val(&values) {
                return _mm512_loadu_si512(row.as_ptr().cast());
            }
            values.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(row.as_ptr(), row.len());
            _mm512_loadu_si512(values.as_ptr().cast())
        }
    }

    /// What a query sees of them.
    ///
    /// # Safety
    /// As [`row`](Self::row).
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn look(&self, stream: usize, query: usize, key: usize, n_kv: usize) -> Sight {
        // SAFETY: by this function's contract.
        let row = unsafe { self.row(stream, query, key, n_kv) };
        let is = |value: f16| _mm512_cmpeq_epi16_mask(row, _mm512_set1_epi16(value.to_bits() as i16));
        match (is(f16::ZERO), is(f16::NEG_INFINITY)) {
            (u32::MAX, _) => Sight::All,
            (_, u32::MAX) => Sight::None,
            _ => Sight::Some,
        }
    }
}

/// Numbers as tiles: rounded to bf16, and, if they have two digits, what that leaves.
struct Split {
    high: Vec<Tiles>,
    low: Vec<Tiles>,
}

impl Split {
    fn new(digits: Digits, n: usize) -> Self {
        let tiles = |n| vec![[Tile::ZERO; 2]; n];
        Split { high: tiles(n), low: tiles(if digits == Digits::Two { n } else { 0 }) }
    }

    /// 32 values as a row of the `i`-th tile on the left.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn put_row(&mut self, i: usize, row: usize, values: [__m512; 2]) {
        // SAFETY: by this function's contract.
        unsafe {
            amx::put_row(&mut self.high[i][row / TILE_ROWS], row % TILE_ROWS, values);
            if let Some(tiles) = self.low.get_mut(i) {
                amx::put_row(&mut tiles[row / TILE_ROWS], row % TILE_ROWS, rests(values));
            }
        }
    }

    /// 32 values of each of two positions as a line of the `i`-th tile on the right.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn put_pair(&mut self, i: usize, line: usize, even: [__m512; 2], odd: [__m512; 2]) {
        put_pairs(&mut self.high[i], line, even, odd);
        if let Some(tiles) = self.low.get_mut(i) {
            put_pairs(tiles, line, rests(even), rests(odd));
        }
    }

    /// Makes tiles on the left tiles on the right: rows are columns then.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    unsafe fn turn(&mut self, tiles: Range<usize>) {
        for all in [&mut self.high, &mut self.low] {
            if let Some(tiles) = all.get_mut(tiles.clone()) {
                // SAFETY: by this function's contract.
                tiles.as_flattened_mut().iter_mut().for_each(|tile| unsafe { amx::turn(tile) });
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn put_pairs(tiles: &mut Tiles, line: usize, even: [__m512; 2], odd: [__m512; 2]) {
    for (half, tile) in tiles.iter_mut().enumerate() {
        let pairs = amx::interleaved(even[half], odd[half]);
        // SAFETY: a row of a tile is 64 bytes.
        unsafe { _mm512_storeu_si512(tile.0[line].as_mut_ptr().cast(), pairs) };
    }
}

/// Some tiles, in all their digits.
#[derive(Clone)]
struct Part<'a>(&'a Split, Range<usize>);

/// Adds rows times columns to `sums`, or sets them, where they are the `first`: products of all digits, but for low with low, which
/// are too small to matter.
fn multiply(shapes: &Shapes, rows: Part<'_>, columns: Part<'_>, sums: &mut Sums, first: bool) {
    let (Part(rows, i), Part(columns, j)) = (rows, columns);
    amx::multiply(shapes, &rows.high[i.clone()], &columns.high[j.clone()], sums, first);
    if let (Some(low_rows), Some(low_columns)) = (rows.low.get(i.clone()), columns.low.get(j.clone())) {
        amx::multiply(shapes, &rows.high[i], low_columns, sums, false);
        amx::multiply(shapes, low_rows, &columns.high[j], sums, false);
    }
}

/// What rounding to bf16 leaves.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rests(values: [__m512; 2]) -> [__m512; 2] {
    values.map(|values| _mm512_sub_ps(values, avx512::rounded(values)))
}

/// A block of a head, and what its queries have of it.
struct Room {
    /// Tiles along a vector.
    d_tiles: usize,
    /// Tiles of keys that a block has at most.
    key_tiles: usize,
    /// `[32 keys][32 of d]`, on the right.
    keys: Split,
    /// `[32 of d][32 keys]`, on the right.
    values: Split,
    /// `[32 of d]` of 32 queries, on the left.
    queries: Split,
    /// `[32 keys]`, each `[query][key]`.
    scores: Vec<Sums>,
    /// `[32 keys]` of 32 queries, on the left.
    weights: Split,
    /// `[group]`.
    found: Vec<Found>,
    /// `[group][32 of d]`, each `[query][of d]`.
    sums: Vec<Sums>,
    /// Two vectors and zeros, in f32.
    rows: [Vec<f32>; 2],
}

/// What 32 queries have met.
#[derive(Clone)]
struct Found {
    /// Their largest scores.
    largest: [f32; SIDE],
    /// Sums of their weights.
    totals: [f32; SIDE],
}

impl Found {
    const NOTHING: Self = Found { largest: [f32::NEG_INFINITY; SIDE], totals: [0.0; SIDE] };
}

/// Tiles of keys that a block has at most.
fn key_tiles(digits: Digits, n_kv: usize) -> usize {
    let n_keys = if digits == Digits::One { KEYS } else { KEYS / 2 };
    n_kv.min(n_keys).div_ceil(ROWS)
}

/// Bytes that a thread has at most for vectors of `d` values, `n_q` queries of each stream among them.
#[cfg(text_kernels)]
pub fn bytes_of(digits: Digits, d: usize, n_q: usize) -> usize {
    let (d_tiles, key_tiles, n_groups) = (d.div_ceil(DEPTH), key_tiles(digits, KEYS), n_q.div_ceil(SIDE));
    let n_digits = if digits == Digits::One { 1 } else { 2 };
    let n_tiles = n_digits * (2 * key_tiles * d_tiles + d_tiles + key_tiles);
    let n_sums = key_tiles + n_groups * d_tiles;
    n_tiles * size_of::<Tiles>() + n_sums * size_of::<Sums>() + n_groups * size_of::<Found>()
}

impl Room {
    fn new(p: &Problem<'_>, n_groups: usize) -> Self {
        let (d_tiles, key_tiles) = (p.d.div_ceil(DEPTH), key_tiles(p.digits, p.n_kv));
        Room {
            d_tiles,
            key_tiles,
            keys: Split::new(p.digits, key_tiles * d_tiles),
            values: Split::new(p.digits, d_tiles * key_tiles),
            queries: Split::new(p.digits, d_tiles),
            scores: vec![Sums::ZERO; key_tiles],
            weights: Split::new(p.digits, key_tiles),
            found: vec![Found::NOTHING; n_groups],
            sums: vec![Sums::ZERO; n_groups * d_tiles],
            rows: [(); 2].map(|()| vec![0.0; d_tiles * DEPTH]),
        }
    }

    /// Computes some groups of 32 queries of a head, into their order's slots.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    unsafe fn attend(
        &mut self,
        p: &Problem<'_>,
        shapes: &Shapes,
        [stream, head]: [usize; 2],
        groups: Range<usize>,
        sights: &[Sight],
    ) {
        let all_tiles = p.n_kv.div_ceil(ROWS);
        self.found[..groups.len()].fill(Found::NOTHING);
        self.sums[..groups.len() * self.d_tiles].fill(Sums::ZERO);
        for block in (0..all_tiles).step_by(self.key_tiles) {
            let block = block..all_tiles.min(block + self.key_tiles);
            // A block's tiles from the first that any of the 32 queries sees to the last.
            let seen = |group: usize| {
                let sights = &sights[group * all_tiles..][block.clone()];
                let is_seen = |sight: &Sight| *sight != Sight::None;
                let first = sights.iter().position(is_seen)?;
                sights.iter().rposition(is_seen).map(|last| first..last + 1)
            };
            if groups.clone().all(|group| seen(group).is_none()) {
                continue;
            }
            // SAFETY: by this function's contract.
            unsafe { self.fill(p, [stream, head * p.n_kv_heads / p.n_heads], block.clone()) };
            for (slot, group) in groups.clone().enumerate() {
                let Some(tiles) = seen(group) else { continue };
                let sights = &sights[group * all_tiles..][block.clone()];
                // SAFETY: as above.
                unsafe { self.look(p, shapes, ([stream, head], group, slot), (block.start, tiles), sights) };
            }
        }
    }

    /// Takes keys and values.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn fill(&mut self, p: &Problem<'_>, at: [usize; 2], tiles: Range<usize>) {
        // SAFETY: by this function's contract, all of it; what is taken and put is of whole rows.
        unsafe {
            for (i, tile) in tiles.enumerate() {
                for j in 0..ROWS {
                    p.k.take(at, tile * ROWS + j, p.n_kv, &mut self.rows[0][..p.d]);
                    for (t, values) in self.rows[0].as_chunks::<DEPTH>().0.iter().enumerate() {
                        self.keys.put_row(i * self.d_tiles + t, j, [load(values, 0), load(values, 1)]);
                    }
                }
                self.keys.turn(i * self.d_tiles..(i + 1) * self.d_tiles);
                for pair in 0..ROWS / 2 {
                    for (j, row) in self.rows.iter_mut().enumerate() {
                        p.v.take(at, tile * ROWS + 2 * pair + j, p.n_kv, &mut row[..p.d]);
                    }
                    let [even, odd] = self.rows.each_ref().map(|row| row.as_chunks::<DEPTH>().0);
                    for (t, (even, odd)) in even.iter().zip(odd).enumerate() {
                        let [even, odd] = [even, odd].map(|row| [load(row, 0), load(row, 1)]);
                        self.values.put_pair(t * self.key_tiles + i, pair, even, odd);
                    }
                }
            }
        }
    }

    /// Lets 32 queries look at some tiles of the block that begins with the tile `start`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn look(
        &mut self,
        p: &Problem<'_>,
        shapes: &Shapes,
        (at, group, slot): ([usize; 2], usize, usize),
        (start, tiles): (usize, Range<usize>),
        sights: &[Sight],
    ) {
        let scale = _mm512_set1_ps(p.scale);
        for j in 0..SIDE {
            // SAFETY: by this function's contract.
            unsafe {
                p.q.take(at, group * SIDE + j, p.n_q, &mut self.rows[0][..p.d]);
                for (t, values) in self.rows[0].as_chunks::<DEPTH>().0.iter().enumerate() {
                    self.queries.put_row(t, j, [0, 1].map(|half| _mm512_mul_ps(load(values, half), scale)));
                }
            }
        }
        for tile in tiles.clone() {
            let keys = Part(&self.keys, tile * self.d_tiles..(tile + 1) * self.d_tiles);
            multiply(shapes, Part(&self.queries, 0..self.d_tiles), keys, &mut self.scores[tile], true);
        }
        let sums = &mut self.sums[slot * self.d_tiles..][..self.d_tiles];
        for j in 0..SIDE {
            let found = &mut self.found[slot];
            let (query, mut largest) = (group * SIDE + j, _mm512_set1_ps(f32::NEG_INFINITY));
            for tile in tiles.clone() {
                let (scores, key) = (&mut self.scores[tile].0[j], (start + tile) * ROWS);
                let mut halves = [load(scores, 0), load(scores, 1)];
                let mask = p.mask.filter(|_| sights[tile] != Sight::All && query < p.n_q);
                if mask.is_some() || p.n_kv - key < ROWS {
                    // SAFETY: by this function's contract.
                    let added =
                        mask.map_or_else(|| ends(p.n_kv - key), |m| unsafe { m.row(at[0], query, key, p.n_kv) });
                    let added = [_mm512_castsi512_si256(added), _mm512_extracti64x4_epi64::<1>(added)];
                    halves = [0, 1].map(|half| _mm512_add_ps(halves[half], _mm512_cvtph_ps(added[half])));
                    for (to, half) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(halves) {
                        // SAFETY: 16 numbers.
                        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), half) };
                    }
                }
                largest = _mm512_max_ps(largest, _mm512_max_ps(halves[0], halves[1]));
            }
            let largest = found.largest[j].max(_mm512_reduce_max_ps(largest));
            if largest > found.largest[j] {
                let factor = (found.largest[j] - largest).exp();
                found.totals[j] *= factor;
                if found.largest[j] > f32::NEG_INFINITY {
                    sums.iter_mut().for_each(|sums| sums.0[j].iter_mut().for_each(|sum| *sum *= factor));
                }
                found.largest[j] = largest;
            }
            // Who has seen nothing yet takes nothing from anything: e^(-∞) of all scores.
            let largest = _mm512_set1_ps(if largest == f32::NEG_INFINITY { 0.0 } else { largest });
            let mut total = _mm512_setzero_ps();
            for tile in tiles.clone() {
                let scores = &self.scores[tile].0[j];
                let weights = [0, 1].map(|half| avx512::exp(_mm512_sub_ps(load(scores, half), largest)));
                total = _mm512_add_ps(total, _mm512_add_ps(weights[0], weights[1]));
                // SAFETY: this function has the features.
                unsafe { self.weights.put_row(tile, j, weights) };
            }
            found.totals[j] += _mm512_reduce_add_ps(total);
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            let values = Part(&self.values, t * self.key_tiles + tiles.start..t * self.key_tiles + tiles.end);
            multiply(shapes, Part(&self.weights, tiles.clone()), values, sums, false);
        }
    }

    /// The result of the `j`-th query of a group, `d` values.
    fn take(&self, slot: usize, j: usize, out: &mut [f32]) {
        let total = self.found[slot].totals[j];
        let inverse = if total == 0.0 { 0.0 } else { 1.0 / total };
        for (to, sums) in out.chunks_mut(ROWS).zip(&self.sums[slot * self.d_tiles..]) {
            to.iter_mut().zip(&sums.0[j]).for_each(|(to, sum)| *to = sum * inverse);
        }
    }
}
