//! Values of safetensors files and how far they are apart.

use std::path::Path;
use std::process::Command;

use safetensors::{Dtype, SafeTensors};

use crate::programs::run;

/// A safetensors file in memory.
pub struct Tensors(Vec<u8>);

/// Row-major values.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// PyTorch shape: (rows, columns) where there are two.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Vec<f32>,
}

impl Values {
    /// Row `i` of all axes but the last.
    pub fn row(&self, i: usize) -> &[f32] {
        let n = self.shape[self.shape.len() - 1];
        &self.data[i * n..(i + 1) * n]
    }

    /// The first `n` columns of every row.
    pub fn columns(&self, n: usize) -> Vec<f32> {
        self.data.chunks_exact(self.shape[1]).flat_map(|row| &row[..n]).copied().collect()
    }
}

impl Tensors {
    /// Reads a file.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        Tensors(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// Shape, type and little-endian bytes of a tensor.
    #[track_caller]
    pub fn bytes(&self, name: &str) -> (Vec<usize>, Dtype, &[u8]) {
        let tensors = SafeTensors::deserialize(&self.0).expect("is a safetensors file");
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        (tensor.shape().to_vec(), tensor.dtype(), tensor.data())
    }

    /// A tensor of floats.
    #[track_caller]
    pub fn f32s(&self, name: &str) -> Values {
        let (shape, dtype, bytes) = self.bytes(name);
        assert_eq!(dtype, Dtype::F32, "{name}");
        let data = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Values { shape, data }
    }

    /// A list of ids.
    #[track_caller]
    pub fn ids(&self, name: &str) -> Vec<i32> {
        let (_, dtype, bytes) = self.bytes(name);
        assert_eq!(dtype, Dtype::I32, "{name}");
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.0).expect("is a safetensors file");
        tensors.names().into_iter().map(str::to_owned).collect()
    }
}

/// Runs a `qvl trace` command, but for its `-o`, and reads what it wrote.
#[track_caller]
pub fn traced(command: &mut Command) -> Tensors {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = dir.path().join("trace.safetensors");
    run(command.arg("-o").arg(&path)).ok();
    Tensors::read(&path)
}

/// |found − expect| / |expect|; infinite where something is not a number.
#[track_caller]
pub fn relative_l2(found: &[f32], expect: &[f32]) -> f64 {
    assert_eq!(found.len(), expect.len(), "lengths");
    let norm = |squares: f64| squares.sqrt();
    let difference: f64 = found.iter().zip(expect).map(|(f, e)| (f64::from(*f) - f64::from(*e)).powi(2)).sum();
    let ratio = norm(difference) / norm(expect.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>());
    if ratio.is_finite() { ratio } else { f64::INFINITY }
}

/// Proves that two tensors have one shape and are near.
#[track_caller]
pub fn check_near(what: &str, found: &Values, expect: &Values, bound: f64) {
    assert_eq!(found.shape, expect.shape, "{what}");
    let distance = relative_l2(&found.data, &expect.data);
    println!("{what}: {distance:.1e}");
    assert!(distance < bound, "{what}: relative L2 {distance:.2e} (expected below {bound:.0e})");
}
