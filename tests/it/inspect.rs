//! `qvl inspect`: what is in a file, and whether it is sound.

use std::path::Path;

use qvl::gguf::{Gguf, Layout, Metadata, TensorInfo, TensorSpec, Value};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::models::{random, random_as};
use crate::programs::{Ran, qvl, run};

fn inspect(file: &Path, args: &[&str]) -> Ran {
    run(qvl().arg("inspect").args(args).arg(file))
}

#[test]
fn text_and_json_agree() {
    let model = random_as("q4_k_m", "q8_0");
    for file in [&model.text, &model.mmproj] {
        let json = inspect(file, &["--json", "--tensors", "--verify"]).json();
        assert_eq!(json["bytes"].as_u64(), Some(std::fs::metadata(file).unwrap().len()));
        assert_eq!((&json["verified"], &json["checksum"]), (&true.into(), &"ok".into()));
        let tensors = json["tensors"].as_array().unwrap();
        assert_eq!(json["n_tensors"].as_u64(), Some(tensors.len() as u64));
        let counted: u64 = json["types"].as_object().unwrap().values().map(|t| t["tensors"].as_u64().unwrap()).sum();
        assert_eq!(counted, tensors.len() as u64);

        let text = inspect(file, &["--tensors", "--verify"]).ok().out;
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        for tensor in tensors {
            let name = tensor["name"].as_str().unwrap();
            let row = words.iter().find(|row| row.first() == Some(&name)).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(row[1], tensor["type"], "{name}");
            assert_eq!(row[row.len() - 2], tensor["bytes"].to_string(), "{name}");
        }
        for key in json["metadata"].as_object().unwrap().keys() {
            assert!(words.iter().any(|row| row.first() == Some(&key.as_str())), "{key}");
        }
        assert!(text.contains("verified") && text.ends_with("checksum ok\n"), "{text}");
    }
}

#[test]
fn tensors_and_verification_only_when_asked_for() {
    let json = inspect(&random().text, &["--json"]).json();
    assert_eq!((&json["tensors"], &json["verified"]), (&Json::Null, &Json::Null));
    assert!(!inspect(&random().text, &[]).ok().out.contains("verified"));
}

/// A copy of `file` whose tensor `name` has `bytes` at its start.
fn patched(file: &Path, name: &str, bytes: &[u8]) -> tempfile::NamedTempFile {
    let json = inspect(file, &["--json", "--tensors"]).json();
    let tensor = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap().clone();
    let offset = tensor["offset"].as_u64().unwrap() as usize;
    let mut content = std::fs::read(file).unwrap();
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(copy.path(), content).unwrap();
    copy
}

#[test]
fn verification_finds_what_is_no_number() {
    let check = |file: &Path, name: &str, bytes: &[u8]| {
        let copy = patched(file, name, bytes);
        inspect(copy.path(), &[]).ok();
        inspect(copy.path(), &["--verify"]).fails(3, name);
        inspect(copy.path(), &["--verify", "--json"]).fails(3, name);
    };
    let exact = random();
    check(&exact.text, "blk.1.ffn_norm.weight", &f32::NAN.to_le_bytes());
    check(&exact.text, "output.weight", &f32::INFINITY.to_le_bytes());
    check(&exact.mmproj, "v.blk.2.attn_qkv.weight", &f32::NEG_INFINITY.to_le_bytes());
    // The f16 scale of a quantised block.
    let quantised = random_as("q8_0", "q8_0");
    check(&quantised.text, "token_embd.weight", &[0x00, 0x7e]);
    check(&quantised.mmproj, "v.blk.0.ffn_up.weight", &[0x00, 0x7c]);
}

/// Every bit counts, also where any bits are numbers.
#[test]
fn verification_finds_what_is_another_number() {
    let model = random_as("q8_0", "q8_0");
    let check = |file: &Path, name: &str, byte: usize| {
        let bytes = std::fs::read(file).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let tensor = gguf.tensors().iter().find(|t| t.name == name).unwrap();
        let at = (tensor.offset + tensor.n_bytes) as usize - 1 - byte;
        let copy = patched(file, name, &bytes[tensor.offset as usize..at + 1]);
        inspect(copy.path(), &["--verify"]).ok();
        let copy = patched(file, name, &[&bytes[tensor.offset as usize..at], &[bytes[at] ^ 1]].concat());
        inspect(copy.path(), &[]).ok();
        inspect(copy.path(), &["--verify"]).fails(3, "the file is damaged: the checksum");
        inspect(copy.path(), &["--verify", "--json"]).fails(3, &copy.path().display().to_string());
    };
    check(&model.text, "output.weight", 0);
    check(&model.text, "blk.0.attn_qkv.weight", 5);
    check(&model.mmproj, "resampler.proj.weight", 1);
}

/// The digits are those of the data alone, as llama.cpp's `gguf-hash --sha256 --no-layer` has them.
#[test]
fn the_checksum_is_of_the_data() {
    let model = random_as("q4_k_m", "q8_0");
    for file in [&model.text, &model.mmproj] {
        let bytes = std::fs::read(file).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut hash = Sha256::new();
        gguf.tensors().iter().for_each(|tensor| hash.update(tensor.bytes(&bytes)));
        let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(gguf.str("qvl.sha256").unwrap(), digits);
    }
}

#[test]
fn checksums_of_other_forms() {
    let model = random_as("q8_0", "q8_0");
    let bytes = std::fs::read(&model.text).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let copy = tempfile::NamedTempFile::new().unwrap();
    let with = |checksum: Option<Value>| {
        let mut metadata = Metadata(gguf.metadata().to_vec());
        metadata.0.retain(|(key, _)| key != "qvl.sha256");
        metadata.set_opt("qvl.sha256", checksum);
        let spec = |t: &TensorInfo| TensorSpec { name: t.name.clone(), dims: t.dims.clone(), ty: t.ty };
        let specs: Vec<TensorSpec> = gguf.tensors().iter().map(spec).collect();
        let mut content = Layout::new(&metadata, &specs, gguf.alignment()).unwrap().header;
        content.extend_from_slice(&bytes[gguf.data_offset() as usize..]);
        std::fs::write(copy.path(), content).unwrap();
        inspect(copy.path(), &["--verify"])
    };
    assert!(with(None).ok().out.ends_with("no checksum in the file\n"));
    assert_eq!(inspect(copy.path(), &["--verify", "--json"]).json()["checksum"], "none");
    let stated = gguf.str("qvl.sha256").unwrap();
    with(Some(stated.into())).ok();
    with(Some("0".repeat(64).into())).fails(3, "the file is damaged");
    for bad in ["", &stated[1..], &stated.replace(|_| true, "é"), &stated.to_uppercase()] {
        with(Some(bad.into())).fails(3, "qvl.sha256");
    }
    with(Some(7u32.into())).fails(3, "metadata key qvl.sha256 is U32(7) (expected a string)");
}

#[test]
fn other_files_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for content in [&b""[..], b"GGUF", b"not a GGUF file at all, but long enough to hold a header"] {
        std::fs::write(file.path(), content).unwrap();
        inspect(file.path(), &[]).fails(3, &file.path().display().to_string());
    }
    let whole = std::fs::read(random().text).unwrap();
    std::fs::write(file.path(), &whole[..whole.len() - 1]).unwrap();
    inspect(file.path(), &["--json"]).fails(3, &file.path().display().to_string());
    inspect(Path::new("missing.gguf"), &[]).fails(3, "missing.gguf");
}
