//! Looks at the small tensors of every quantised matrix, which say whether it can be kept as it is.

use std::collections::BTreeMap;

use qvl::error::{Error, Result};

use super::{Gptq, MODULES, WITH_BIAS};
use crate::checkpoint::{Checkpoint, DType, Stored};

/// Eight nibbles of zero − 1 where every zero is 8.
const SYMMETRIC: u32 = 0x7777_7777;
/// Values read at a time.
const CHUNK: u64 = 1 << 16;

/// `gptq` with what the weights say. Who calls has proven that the tensors of all `n_layer` layers are there, with their
/// types and shapes.
///
/// Errors (kind model): a column of no group; a bias that is not zero where the model has none. Cost: reads `qzeros`,
/// `g_idx` and biases, 0.5 % of the quants.
pub fn look(gptq: &Gptq, checkpoint: &Checkpoint, n_layer: u64) -> Result<Gptq> {
    let mut found = BTreeMap::new();
    for module in (0..n_layer).flat_map(|il| MODULES.map(|part| format!("transformer.h.{il}.{part}"))) {
        if !module.ends_with(WITH_BIAS) {
            refuse_bias(checkpoint, &format!("{module}.bias"))?;
        }
        let stored = |part: &str| checkpoint.tensor(&format!("{module}.{part}"));
        let (g_idx, scales) = (stored("g_idx")?, stored("scales")?);
        let in_order = groups_in_order(gptq, checkpoint, g_idx, scales.shape[0])?;
        let reason = if !in_order {
            "its groups are not in order"
        } else if !is_symmetric(checkpoint, stored("qzeros")?)? {
            "its zeros are not 8"
        } else if scales.dtype != DType::F16 {
            "its scales are not F16"
        } else {
            continue;
        };
        found.insert(module, reason.to_owned());
    }
    Ok(gptq.found(found))
}

/// Whether column i is of group i / group_size throughout.
fn groups_in_order(gptq: &Gptq, checkpoint: &Checkpoint, g_idx: &Stored, n_groups: u64) -> Result<bool> {
    let mut groups = vec![0u32; g_idx.n_values() as usize];
    checkpoint.read_ints(g_idx, 0, &mut groups)?;
    if let Some(i) = groups.iter().position(|g| u64::from(*g) >= n_groups) {
        let message =
            format!("tensor {}: column {i} is of group {} (expected below {n_groups})", g_idx.name, groups[i]);
        return Err(Error::model(message).at(checkpoint.path_of(g_idx)));
    }
    let size = gptq.group_size(groups.len() as u64);
    Ok((0..).zip(&groups).all(|(i, g): (u64, &u32)| u64::from(*g) == i / size))
}

fn is_symmetric(checkpoint: &Checkpoint, qzeros: &Stored) -> Result<bool> {
    let mut words = Vec::new();
    for first in (0..qzeros.n_values()).step_by(CHUNK as usize) {
        words.resize(CHUNK.min(qzeros.n_values() - first) as usize, 0);
        checkpoint.read_ints(qzeros, first, &mut words)?;
        if words.iter().any(|word| *word != SYMMETRIC) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Refuses a bias that Qwen has no place for, unless it is zero.
fn refuse_bias(checkpoint: &Checkpoint, name: &str) -> Result<()> {
    let Some(bias) = checkpoint.tensors().get(name) else { return Ok(()) };
    let wrong = |what: String| Error::model(format!("tensor {name} {what}")).at(checkpoint.path_of(bias));
    if !bias.dtype.is_float() {
        return Err(wrong(format!("is of type {} (expected F32, F16 or BF16)", bias.dtype)));
    }
    let mut values = Vec::new();
    for first in (0..bias.n_values()).step_by(CHUNK as usize) {
        values.resize(CHUNK.min(bias.n_values() - first) as usize, 0f32);
        checkpoint.read_values(bias, first, &mut values)?;
        if let Some(value) = values.iter().find(|v| **v != 0.0) {
            return Err(wrong(format!("holds {value} (expected zeros: Qwen-VL has no bias there)")));
        }
    }
    Ok(())
}
