//! Safetensors files, streamed: threads make blocks of numbers, one thread writes them in order.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use qvl::error::{Error, Result};
use serde_json::{Map, json};

use crate::numbers::{Dtype, block, key};
use crate::tensors::Tensor;

/// Values made at a time: at most 4 MiB. With two blocks waiting for each thread, memory stays at some tens of MiB.
const BLOCK_VALUES: u64 = 1 << 20;

/// Writes `tensors` to `model.safetensors` in `out`, or to `n_shards` files of about equal size and their index.
/// (Fewer files where single tensors are larger than a share.) Returns the bytes of all tensors.
///
/// Errors: the disk's.
pub fn shards(out: &Path, tensors: &[Tensor], dtype: Dtype, n_shards: u64, seed: u64) -> Result<u64> {
    let bytes = |tensor: &Tensor| tensor.n_values() * dtype.bytes();
    let total: u64 = tensors.iter().map(bytes).sum();
    let mut groups: Vec<(u64, Vec<&Tensor>)> = Vec::new();
    let mut before = 0;
    for tensor in tensors {
        let share = (u128::from(before) * u128::from(n_shards) / u128::from(total)) as u64;
        match groups.last_mut() {
            Some((last, group)) if *last == share => group.push(tensor),
            _ => groups.push((share, vec![tensor])),
        }
        before += bytes(tensor);
    }

    let n = groups.len();
    let mut weight_map = Map::new();
    for (i, (_, group)) in groups.iter().enumerate() {
        let name = match n {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let path = out.join(&name);
        eprintln!("{}", path.display());
        write_file(&path, group, dtype, seed).map_err(|e| Error::other("cannot write").because(e).at(&path))?;
        weight_map.extend(group.iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    if n > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        crate::save(&out.join("model.safetensors.index.json"), crate::pretty(&index).as_bytes())?;
    }
    Ok(total)
}

/// One safetensors file: the header's length (u64), the header (JSON, filled up to a multiple of 8), the tensors in order.
fn write_file(path: &Path, tensors: &[&Tensor], dtype: Dtype, seed: u64) -> std::io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.n_values() * dtype.bytes();
        let entry = json!({"dtype": dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        // Thread t makes the blocks t, t + n, t + 2n, ...; taking from each in turn gives them in order.
        let receivers: Vec<_> = (0..n_threads)
            .map(|t| {
                let (sender, receiver) = sync_channel(2);
                scope.spawn(move || {
                    // A send fails when the writer has given up; then there is nothing left to do.
                    blocks(tensors).skip(t).step_by(n_threads).try_for_each(|(tensor, begin, end)| {
                        sender.send(block(tensor.fill, key(&tensor.name, seed), begin, end, dtype)).ok()
                    })
                });
                receiver
            })
            .collect();
        let mut turn = receivers.iter().cycle();
        while let Some(Ok(bytes)) = turn.next().map(|receiver| receiver.recv()) {
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

/// The blocks of all tensors, in order: tensor, first value, one past the last.
fn blocks<'a>(tensors: &'a [&'a Tensor]) -> impl Iterator<Item = (&'a Tensor, u64, u64)> {
    tensors.iter().flat_map(|tensor| {
        let n_values = tensor.n_values();
        let starts = (0..n_values).step_by(BLOCK_VALUES as usize);
        starts.map(move |begin| (*tensor, begin, (begin + BLOCK_VALUES).min(n_values)))
    })
}
