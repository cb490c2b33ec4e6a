//! The file: for each weight NAME the tensors `NAME.in_sum2` `[columns, 1]` and `NAME.counts` `[1, 1]`, f32.

use std::io::Write;
use std::path::Path;

use byteorder::{ByteOrder, LittleEndian as LE, WriteBytesExt};

use super::{Entry, Imatrix};
use crate::error::{Error, Result};
use crate::gguf::{Array, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorInfo, TensorSpec, Value};
use crate::mmap::MappedFile;
use crate::names::{general, imatrix as key};
use crate::quant::GgmlType;

impl Imatrix {
    /// Reads `path`. Tensors of other endings (newer tools write some) are passed over. Errors (kind model) name the file
    /// and the tensor: no such file, no importance matrix, or one with numbers that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let read = || -> Result<Self> {
            let gguf = Gguf::parse(&file)?;
            if gguf.opt_str(general::TYPE)? != Some(key::TYPE) {
                return Err(Error::model(format!(
                    "not an importance matrix ({} is not {:?}); make one with qvl imatrix",
                    general::TYPE,
                    key::TYPE
                )));
            }
            let number = |key| Ok(gguf.opt_u64(key)?.and_then(|n| u32::try_from(n).ok()).unwrap_or_default());
            let datasets = match gguf.get(key::DATASETS) {
                Some(Value::Array(Array::String(names))) => names.clone(),
                _ => Vec::new(),
            };
            let (n_chunks, chunk_size) = (number(key::CHUNK_COUNT)?, number(key::CHUNK_SIZE)?);
            let mut imatrix = Imatrix { datasets, n_chunks, chunk_size, ..Imatrix::default() };
            for tensor in gguf.tensors() {
                if let Some(name) = tensor.name.strip_suffix(key::SUMS) {
                    imatrix.entries.insert(name.to_owned(), entry(&gguf, &file, name, tensor)?);
                }
            }
            if imatrix.entries.is_empty() {
                return Err(Error::model("this importance matrix knows no tensor"));
            }
            Ok(imatrix)
        };
        read().map_err(|e| e.at(path))
    }

    /// Writes it. Errors: kind other when `out` cannot be written.
    pub fn write(&self, mut out: impl Write) -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set(general::TYPE, key::TYPE);
        metadata.set(key::DATASETS, Value::Array(Array::String(self.datasets.clone())));
        metadata.set(key::CHUNK_COUNT, self.n_chunks);
        metadata.set(key::CHUNK_SIZE, self.chunk_size);
        let spec = |name: String, n: usize| TensorSpec { name, dims: vec![n as u64, 1], ty: GgmlType::F32 };
        let specs: Vec<TensorSpec> = self
            .entries()
            .flat_map(|(name, e)| {
                [(key::SUMS, e.sums.len()), (key::COUNTS, 1)].map(|(end, n)| (format!("{name}{end}"), n))
            })
            .map(|(name, n)| spec(name, n))
            .collect();
        let layout = Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT)?;
        let mut bytes = layout.header;
        let values = self.entries().flat_map(|(_, e)| [e.sums.clone(), vec![e.n_rows as f64]]);
        for (values, (offset, _)) in values.zip(&layout.places) {
            bytes.resize(*offset as usize, 0);
            // Into a Vec nothing fails.
            values.iter().try_for_each(|x| bytes.write_f32::<LE>(*x as f32)).unwrap_or_default();
        }
        bytes.resize(layout.file_bytes as usize, 0);
        out.write_all(&bytes).map_err(|e| Error::other("cannot write the importance matrix").because(e))
    }
}

fn entry(gguf: &Gguf, file: &[u8], name: &str, sums: &TensorInfo) -> Result<Entry> {
    let counts = format!("{name}{}", key::COUNTS);
    let counts = gguf.tensor(&counts).ok_or_else(|| Error::model(format!("tensor {counts:?} is missing")))?;
    if counts.n_values() != 1 || sums.dims[0] != sums.n_values() {
        let message = format!("{name:?} has sums for {} matrices (expected one)", counts.n_values());
        return Err(Error::model(message));
    }
    let n_rows = numbers(file, counts)?[0];
    Ok(Entry { sums: numbers(file, sums)?, n_rows: n_rows as u64 })
}

/// Values of a tensor, finite and not negative.
fn numbers(file: &[u8], tensor: &TensorInfo) -> Result<Vec<f64>> {
    let TensorInfo { name, ty, .. } = tensor;
    if *ty != GgmlType::F32 {
        return Err(Error::model(format!("tensor {name:?} has type {ty} (expected f32)")));
    }
    let values: Vec<f64> = tensor.bytes(file).chunks_exact(4).map(|b| f64::from(LE::read_f32(b))).collect();
    match values.iter().position(|x| !x.is_finite() || *x < 0.0) {
        None => Ok(values),
        Some(at) => {
            Err(Error::model(format!("tensor {name:?} holds {} in column {at} (expected 0 or more)", values[at])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of these tensors (name, extents, values), with `general.type` as given.
    fn read(ty: &str, tensors: &[(&str, &[u64], &[f32])]) -> Result<Imatrix> {
        let mut metadata = Metadata::default();
        metadata.set(general::TYPE, ty);
        metadata.set(key::CHUNK_COUNT, 7u32);
        let spec = |(name, dims, _): &(&str, &[u64], &[f32])| {
            let (name, dims) = (name.to_string(), dims.to_vec());
            TensorSpec { name, dims, ty: GgmlType::F32 }
        };
        let layout = Layout::new(&metadata, &tensors.iter().map(spec).collect::<Vec<_>>(), DEFAULT_ALIGNMENT).unwrap();
        let mut bytes = layout.header;
        for ((.., values), (offset, _)) in tensors.iter().zip(&layout.places) {
            bytes.resize(*offset as usize, 0);
            bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        }
        bytes.resize(layout.file_bytes as usize, 0);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Imatrix::read(file.path())
    }

    /// As `llama-imatrix` writes it: sums of the inputs themselves too, and no dataset where none was named.
    #[test]
    fn files_of_other_tools_are_read() {
        let sums: (&str, &[u64], &[f32]) = ("a.weight.in_sum2", &[2, 1], &[4.0, 9.0]);
        let counts: (&str, &[u64], &[f32]) = ("a.weight.counts", &[1, 1], &[2.0]);
        let found = read("imatrix", &[sums, counts, ("a.weight.in_sum", &[2, 1], &[-1.0, 3.0])]).unwrap();
        assert_eq!(found.entry("a.weight"), Some(&Entry { sums: vec![4.0, 9.0], n_rows: 2 }));
        assert_eq!((found.n_chunks, found.entries().len()), (7, 1));
        let fails = |ty: &str, tensors: &[(&str, &[u64], &[f32])], part: &str| {
            let error = read(ty, tensors).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        fails("model", &[sums, counts], "not an importance matrix");
        fails("imatrix", &[sums], "\"a.weight.counts\" is missing");
        fails("imatrix", &[counts], "knows no tensor");
        let two: [(&str, &[u64], &[f32]); 2] =
            [("a.weight.in_sum2", &[1, 2], &[4.0, 9.0]), ("a.weight.counts", &[1, 2], &[2.0, 1.0])];
        fails("imatrix", &two, "sums for 2 matrices");
        fails("imatrix", &[sums, ("a.weight.counts", &[1, 1], &[-2.0])], "expected 0 or more");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut imatrix =
            Imatrix { datasets: vec!["a.jsonl".into()], n_chunks: 3, chunk_size: 5, ..Imatrix::default() };
        imatrix.entries.insert("b".into(), Entry { sums: vec![1.5, 0.0, 2.0], n_rows: 9 });
        imatrix.entries.insert("a".into(), Entry { sums: vec![0.25], n_rows: 1 });
        let file = tempfile::NamedTempFile::new().unwrap();
        imatrix.write(file.as_file()).unwrap();
        assert_eq!(Imatrix::read(file.path()).unwrap(), imatrix);
    }
}
