//! Attention by AMX: tiles of 32 queries by 32 keys, and of 32 queries by 32 values of a head.
//!
//! Keys and values of a head are rounded a block at a time, and all queries of a share look at them, so that room does not grow with the
//! context. Whenever a query meets a larger score than before, what it has summed up is brought to that (Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", 2018).
//!
//! Pictures are computed in bf16 ([`Digits::One`]). Texts have a cache in f16, which has more bits: there, every number is two of bf16, the second being
//! what the first has left, and a product is three of them ([`Digits::Two`]). That is 16 bits, as good as ggml's own loops in f32.

mod operands;
mod room;
mod split;

use super::amx::{SIDE, Shapes};
use super::panel::ROWS;
use crate::ggml::{Custom, Share, Task};

#[cfg(text_kernels)]
pub use operands::Float;
pub use operands::{Mask, Vectors};
#[cfg(text_kernels)]
pub use room::bytes_of;
pub use split::Digits;

use operands::Sight;
use room::Room;

/// Shares that a thread gets at least, if there are as many: a busy core takes fewer. Each share rounds the keys and values of its head.
const SHARES: usize = 4;

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
    /// [`is_available`](super::amx::is_available).
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
