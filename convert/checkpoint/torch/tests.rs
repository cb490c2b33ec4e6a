//! A file of PyTorch's own, with what PyTorch says is in it.

use std::path::Path;

use crate::checkpoint::{Checkpoint, DType, Kind};

/// `tests/data/torch/layouts.bin`; its README says how it was made.
#[test]
fn reads_what_torch_wrote() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch");
    let expect = std::fs::read_to_string(data.join("layouts.json")).unwrap();
    let expect: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&expect).unwrap();
    let file = Checkpoint::open_files(vec![data.join("layouts.bin")], Kind::Torch).unwrap();
    assert!(file.tensors().keys().eq(expect.keys().collect::<std::collections::BTreeSet<_>>()));
    for (name, tensor) in file.tensors() {
        assert_eq!(serde_json::json!(tensor.shape), expect[name]["shape"], "{name}");
        let n = tensor.n_values() as usize;
        let found: Vec<f32> = if tensor.dtype == DType::I32 {
            let mut ints = vec![0u32; n];
            file.read_ints(tensor, 0, &mut ints).unwrap();
            ints.into_iter().map(|i| i as i32 as f32).collect()
        } else {
            let mut values = vec![0f32; n];
            file.read_values(tensor, 0, &mut values).unwrap();
            values
        };
        assert_eq!(serde_json::json!(found), expect[name]["values"], "{name}");
    }
}
