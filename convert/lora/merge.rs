//! A checkpoint's weights with adapters merged in, as they are read: nothing is merged that is not being converted.

use qvl::error::{Error, Result};

use super::{Adapter, Factors};
use crate::checkpoint::{Checkpoint, Stored};

/// Values of A that are held at a time: 4 MiB in f32.
const A_VALUES: u64 = 1 << 20;

/// Where weights come from: a checkpoint, with what adapters change.
pub struct Weights {
    checkpoint: Checkpoint,
    adapters: Vec<Adapter>,
}

impl Weights {
    /// Adapters count in their order. Each must have been [proven](Adapter::prove) against this checkpoint.
    pub fn new(checkpoint: Checkpoint, adapters: Vec<Adapter>) -> Self {
        Weights { checkpoint, adapters }
    }

    /// The checkpoint without the adapters.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The adapters.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// The checkpoint's tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<&Stored> {
        self.checkpoint.tensor(name)
    }

    /// As [`Checkpoint::read_values`], of the merged weight; of an adapted weight whole rows only. Errors moreover: a sum is
    /// not finite. Cost: rank multiply-adds a value, a few MiB.
    pub fn read_values(&self, tensor: &Stored, first: u64, out: &mut [f32]) -> Result<()> {
        let weight = tensor.name.as_str();
        let replaced = self.adapters.iter().find_map(|a| a.whole.get(weight).map(|stored| (a, stored)));
        match replaced {
            Some((adapter, stored)) => adapter.checkpoint.read_values(stored, first, out)?,
            None => self.checkpoint.read_values(tensor, first, out)?,
        }
        for adapter in &self.adapters {
            let Some(factors) = adapter.factors.get(weight) else { continue };
            add(adapter, factors, tensor.width(), first, out)?;
            if out.iter().any(|x| !x.is_finite()) {
                let message = format!("{weight} is no longer finite with this adapter (scale {})", adapter.scale);
                return Err(Error::model(message).at(&adapter.dir));
            }
        }
        Ok(())
    }
}

/// Adds scale·B·A to the rows of `width` values in `out`, the first of which begins at value `first`.
fn add(adapter: &Adapter, factors: &Factors, width: u64, first: u64, out: &mut [f32]) -> Result<()> {
    let (row, n_rows) = (first / width, out.len() as u64 / width);
    assert!(first.is_multiple_of(width) && n_rows * width == out.len() as u64, "whole rows");
    let (rank, scale) = (factors.rank(), adapter.scale_of(factors));
    let mut b = vec![0f32; (n_rows * rank) as usize];
    adapter.checkpoint.read_values(&factors.b, row * rank, &mut b)?;
    let n_at_once = (A_VALUES / width).clamp(1, rank);
    let mut a = vec![0f32; (n_at_once * width) as usize];
    let mut sums = vec![0f32; out.len()];
    let (width, rank) = (width as usize, rank as usize);
    for k in (0..rank).step_by(n_at_once as usize) {
        let n = (n_at_once as usize).min(rank - k);
        let a = &mut a[..n * width];
        adapter.checkpoint.read_values(&factors.a, (k * width) as u64, a)?;
        for (sum, b) in sums.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
            for (b, a) in b[k..k + n].iter().zip(a.chunks_exact(width)) {
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
        }
    }
    out.iter_mut().zip(&sums).for_each(|(value, sum)| *value += scale * sum);
    Ok(())
}
