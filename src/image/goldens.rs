//! Comparison with the reference's own numbers, where they are at hand: in the folder that `QVL_GOLDENS` names, or in
//! `../shared/goldens` beside the repository.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::{Orientation, load, normalise, resize};

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// JPEG decoders differ from each other by a few levels at edges; a wrong size, turn or filter costs far more than one.
const JPEG_MEAN_DIFFERENCE: f64 = 1.0;

/// The folder `name` of the goldens, or `None` after saying that the test is skipped.
fn folder(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/goldens");
    let path = std::env::var_os("QVL_GOLDENS").map_or_else(beside, PathBuf::from).join(name);
    if !path.is_dir() {
        println!("skipped: no goldens at {}", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn resized_bytes_equal_the_reference() {
    let Some(folder) = folder("images") else { return };
    let file = std::fs::read(folder.join("resized.safetensors")).expect("reads");
    let tensors = SafeTensors::deserialize(&file).expect("parses");
    let mut n_compared = 0;
    for (key, tensor) in tensors.tensors() {
        let (name, _) = key.split_once('/').expect("NAME/u8_SIZE");
        let (height, width) = (tensor.shape()[0] as u32, tensor.shape()[1] as u32);
        let picture = load(&folder.join(name), Orientation::AsStored).expect("loads");
        let resized = resize(&picture, width, height);
        if name.ends_with(".jpg") {
            let pairs = resized.pixels().iter().zip(tensor.data());
            let total: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = total as f64 / tensor.data().len() as f64;
            println!("{key}: mean difference {mean:.4}");
            assert!(mean < JPEG_MEAN_DIFFERENCE, "{key}: {mean}");
        } else {
            assert!(resized.pixels() == tensor.data(), "{key} differs");
        }
        n_compared += 1;
    }
    assert!(n_compared >= 20);
}

#[test]
fn pixel_values_equal_the_reference() {
    let (Some(images), Some(golden)) = (folder("images"), folder("tiny-a/golden")) else { return };
    for name in ["a.png", "b.png", "c.png", "e112.png", "rgba.png"] {
        let file = std::fs::read(golden.join(format!("vision.{name}.safetensors"))).expect("reads");
        let tensors = SafeTensors::deserialize(&file).expect("parses");
        let tensor = tensors.tensor("pixel_values").expect("is there");
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, [3, 112, 112].as_slice()));
        let picture = load(&images.join(name), Orientation::AsStored).expect("loads");
        let values = normalise(&resize(&picture, 112, 112), MEAN, STD);
        let bytes: Vec<u8> = values.data().iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(bytes == tensor.data(), "{name} differs");
    }
}

#[test]
fn exif_turns_the_picture_upright() {
    let Some(folder) = folder("images") else { return };
    let stored = load(&folder.join("exif6.jpg"), Orientation::AsStored).expect("loads");
    let upright = load(&folder.join("exif6.jpg"), Orientation::Upright).expect("loads");
    assert_eq!((upright.width(), upright.height()), (stored.height(), stored.width()));
    // Orientation 6: the stored left column, from the bottom up, is the upright top row.
    let bottom_left = stored.row(stored.height() as usize - 1);
    assert_eq!(upright.row(0)[..3], bottom_left[..3]);
}
