//! A file with other metadata and the same tensors.

use std::io::{BufWriter, Write};

use super::{Gguf, Layout, Metadata, TensorSpec};
use crate::error::{Error, Result};

/// Writes the file that `gguf` is the header of once more, with the keys of `more` set. Tensors keep their order and alignment.
/// Cost: a copy of all of it.
pub fn rewrite(gguf: &Gguf, file: &[u8], more: &Metadata, out: impl Write) -> Result<()> {
    let mut metadata = Metadata(gguf.metadata().to_vec());
    more.0.iter().for_each(|(key, value)| metadata.set(key.as_str(), value.clone()));
    let spec = |t: &super::TensorInfo| TensorSpec { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
    let specs: Vec<TensorSpec> = gguf.tensors().iter().map(spec).collect();
    let layout = Layout::new(&metadata, &specs, gguf.alignment())?;
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        out.write_all(&layout.header)?;
        let mut at = layout.header.len() as u64;
        for (tensor, (offset, n_bytes)) in gguf.tensors().iter().zip(&layout.places) {
            out.write_all(&vec![0; (offset - at) as usize])?;
            out.write_all(tensor.bytes(file))?;
            at = offset + n_bytes;
        }
        out.write_all(&vec![0; (layout.file_bytes - at) as usize])?;
        out.flush()
    };
    write().map_err(|e| Error::other("cannot write the file").because(e))
}
