//! `qvl-convert` on `.bin` files that are not what `torch.save` makes of a state dict.

use std::fs;
use std::path::Path;

use crate::checkpoints::check_dir;
use crate::support::{checkpoint, convert, run, temp_dir};
use crate::torch::{StateDict, Storage, Tensor, Width, archive, archive_as};

const NAME: &str = "pytorch_model.bin";

/// A checkpoint whose weights are this file; proves the refusal, and that a dry run ends well too.
fn check(file: &[u8], expect: &str) {
    let dir = temp_dir();
    for name in ["config.json", "qwen.tiktoken"] {
        fs::copy(checkpoint().join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join(NAME), file).unwrap();
    check_dir(dir.path(), &[], 3, expect);
}

/// Two vectors of four values.
fn small() -> StateDict {
    let mut dict = StateDict::default();
    dict.push("a", "FloatStorage", &[4], vec![0; 16]);
    dict.push("b", "HalfStorage", &[4], vec![0; 8]);
    dict
}

fn entries(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut entries = small().entries();
    change(&mut entries);
    archive(&entries)
}

/// The archive with this pickle.
fn pickle(pickle: &[u8]) -> Vec<u8> {
    entries(|entries| entries[0].1 = pickle.to_vec())
}

fn replaced(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut file = file.to_vec();
    let at: Vec<usize> = (0..=file.len() - from.len()).filter(|at| file[*at..].starts_with(from)).collect();
    assert!(!at.is_empty(), "nothing to replace");
    at.into_iter().for_each(|at| file[at..at + to.len()].copy_from_slice(to));
    file
}

#[test]
fn a_small_state_dict_is_read() {
    // That everything else below is refused for its own reason.
    check(&archive(&small().entries()), "are missing");
}

#[test]
fn other_files() {
    let sound = archive(&small().entries());
    check(b"", "the file is empty");
    check(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull");
    check(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "PyTorch before 1.6");
    check(&[0xff; 4096], "not a file of torch.save");
    check(b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "expected NAME/data.pkl");
    for n in [3, 30, 1000, sound.len() / 2, sound.len() - 22, sound.len() - 1] {
        check(&sound[..n], "truncated");
    }
    check(&[&sound[..], &[0]].concat(), "truncated");
    check(&entries(|e| e.iter_mut().for_each(|e| e.0 = e.0.replace("data.pkl", "x.pkl"))), "expected NAME/data.pkl");
    check(&entries(|e| e.push(("other/data.pkl".into(), b"\x80\x02}.".to_vec()))), "more than one data.pkl");
    check(&entries(|e| e[1].1 = b"big".to_vec()), "big-endian");
}

#[test]
fn archives() {
    let sound = archive(&small().entries());
    let central = |at: usize, to: &[u8]| {
        let mut file = sound.clone();
        // The record of data/0, which is the third.
        let record = (0..file.len()).filter(|at| file[*at..].starts_with(b"PK\x01\x02")).nth(2).unwrap();
        file[record + at..record + at + to.len()].copy_from_slice(to);
        file
    };
    check(&central(10, &[8, 0]), "archive/data/0 is compressed (zip method 8)");
    check(&central(8, &[1, 0]), "encrypted");
    check(&central(20, &[0, 0, 0, 1]), "two sizes");
    check(&central(20, &[0xff; 8]), "no zip64 sizes");
    check(&central(20, &[0xf0; 8]), "not inside the file");
    check(&central(42, &[0xf0; 4]), "no local header");
    check(&central(42, &[1, 0, 0, 0]), "no local header");
    check(&central(42, &[0, 0, 0, 0]), "another name in its local header");
    check(&central(28, &[0xff, 0xff]), "cut off");
    check(&central(46, b"archivE"), "another name");
    let end = sound.len() - 22;
    let ending = |at: usize, to: &[u8]| [&sound[..end + at], to, &sound[end + at + to.len()..]].concat();
    check(&ending(4, &[1]), "several parts");
    check(&ending(10, &[99, 0]), "cut off");
    check(&ending(10, &[1, 0]), "holds more than its entries");
    check(&ending(12, &[0xff; 4]), "not inside the file");
    check(&ending(16, &[0xff; 4]), "not inside the file");
    let wide = archive_as(&small().entries(), Width::Zip64);
    check(&wide, "are missing");
    // The locator's place of the end record, and that record's entries and places.
    let end = wide.len() - 22 - 20 - 56;
    let widely = |at: usize, to: &[u8]| [&wide[..end + at], to, &wide[end + at + to.len()..]].concat();
    check(&widely(56 + 8, &[0xff; 8]), "zip64 end record is missing");
    check(&widely(32, &[0xff; 8]), "entries (expected at most");
    check(&widely(40, &[0xff; 8]), "not inside the file");
    check(&widely(48, &[0xff; 8]), "not inside the file");
    let twice = |e: &mut Vec<(String, Vec<u8>)>| e.push(("archive/data/0".into(), vec![0; 16]));
    check(&entries(twice), "archive/data/0 is in the archive twice");
    // A second entry whose local header lies in the data of the first.
    let inner = archive(&[("archive/data/9".into(), vec![])]);
    let at = inner.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let file = entries(|e| {
        e[2].1 = inner[..at].to_vec();
        e.push(("archive/data/9".into(), vec![]));
    });
    let (first, second) = {
        let mut at = (0..file.len()).filter(|at| file[*at..].starts_with(b"PK\x03\x04"));
        let all: Vec<usize> = at.by_ref().collect();
        (all[3], *all.last().unwrap())
    };
    check(&replaced(&file, &(second as u32).to_le_bytes(), &(first as u32).to_le_bytes()), "overlap");
}

#[test]
fn pickles() {
    check(&pickle(b""), "byte 0 of its pickle: the pickle is cut off");
    check(&pickle(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."), "posix.system");
    check(&pickle(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."), "posix.system");
    check(&pickle(b"(X\x04\0\0\0trueiposix\nsystem\n."), "posix.system");
    check(&pickle(b"cbuiltins\neval\n."), "builtins.eval");
    check(&pickle(b"ctorch._utils\n_rebuild_tensor_v3\n."), "_rebuild_tensor_v3");
    check(&pickle(b"}}\x81."), "opcode 0x81");
    check(&pickle(b"}2."), "opcode '2'");
    check(&pickle(b"N."), "it holds None (expected a state dict)");
    check(&pickle(b"}X\x05\0\0\0epochK\x03s."), "epoch is a number");
    check(&pickle(b"}X\x0a\0\0\0state_dict}s."), "state_dict is a dict");
    check(&pickle(b"}K\x01K\x03s."), "not a text");
    for wrong in
        [&b"}K\x01u."[..], b"(u.", b"h\x07.", b"0.", b"t.", b"K\x01s.", b"}(K\x01u.", b"Na.", b"(N(\x85.", b"NNb."]
    {
        check(&pickle(wrong), "of its pickle");
    }
    check(&pickle(b"X\x09\0\0\0a."), "cut off");
    check(&pickle(b"X\xff\xff\xff\xffa."), "a text of 4294967295 bytes (expected at most 4096)");
    check(&pickle(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa."), "a text of 18446744073709551615 bytes");
    check(&pickle(b"X\x01\0\0\0\xff."), "not UTF-8");
    check(&pickle(b"\x8a\xff."), "a number of 255 bytes");
    check(&pickle(&[&b"N"[..], &[0x85; 1 << 21], b"."].concat()), "more than 1048576 steps");
    check(&pickle(&vec![b'N'; 17 << 20]), "larger than any state dict's");
}

#[test]
fn tensors() {
    let changed = |change: &dyn Fn(&mut Tensor, &mut Storage)| {
        let mut dict = small();
        change(&mut dict.tensors[0], &mut dict.storages[0]);
        archive(&dict.entries())
    };
    let outside = "do not fit its storage of 4 values";
    check(&changed(&|t, _| t.first = 1), outside);
    check(&changed(&|t, _| t.first = u64::MAX), outside);
    check(&changed(&|t, _| t.shape = vec![5]), outside);
    check(&changed(&|t, _| t.strides = vec![2]), outside);
    check(&changed(&|t, _| t.strides = vec![u64::MAX]), outside);
    check(&changed(&|t, _| t.strides = vec![i64::MAX as u64]), outside);
    check(&changed(&|t, _| t.strides = vec![]), outside);
    check(&changed(&|t, _| (t.shape, t.strides) = (vec![1 << 40; 4], vec![0; 4])), outside);
    check(&changed(&|t, _| (t.shape, t.strides) = (vec![1; 99], vec![0; 99])), outside);
    check(&changed(&|_, s| s.n_values = 5), "its storage has 16 bytes (expected 5 values of 4 bytes)");
    check(&changed(&|_, s| s.n_values = i64::MAX as u64), "its storage has 16 bytes");
    check(&changed(&|_, s| s.bytes.truncate(15)), "its storage has 15 bytes");
    check(&changed(&|t, _| t.name = "b".into()), "tensor b is in the file twice");
    check(&changed(&|_, s| s.class = "QUInt4x2Storage"), "torch.QUInt4x2Storage");
    check(&changed(&|t, _| t.wrapped = &["_rebuild_sparse_tensor"]), "_rebuild_sparse_tensor");
    check(&entries(|e| e.retain(|e| e.0 != "archive/data/1")), "archive/data/1 is not in the archive");
    // A tensor that looks 2^50 values large, all of them one.
    check(&changed(&|t, _| (t.shape, t.strides) = (vec![1 << 50], vec![0])), "missing");
}

/// The whole state dict of the small checkpoint.
fn whole() -> StateDict {
    StateDict::of_safetensors(&checkpoint().join("model.safetensors"))
}

#[test]
fn weights_of_another_type_or_shape() {
    let check_whole = |change: &dyn Fn(&mut StateDict), expect: &str| {
        let mut dict = whole();
        change(&mut dict);
        check(&archive(&dict.entries()), expect);
    };
    let norm = |dict: &StateDict| dict.tensors.iter().position(|t| t.name == "transformer.ln_f.weight").unwrap();
    check_whole(
        &|dict| {
            let at = norm(dict);
            let tensor = &dict.tensors[at];
            dict.storages[tensor.storage] = Storage { class: "DoubleStorage", n_values: 256, bytes: vec![0; 2048] };
        },
        "transformer.ln_f.weight is of type float64",
    );
    check_whole(
        &|dict| {
            let at = norm(dict);
            (dict.tensors[at].shape, dict.tensors[at].strides) = (vec![16, 16], vec![1, 16]);
        },
        "transformer.ln_f.weight has shape [16, 16] (expected [256])",
    );
    check_whole(
        &|dict| {
            let storage = dict.tensors[norm(dict)].storage;
            dict.storages[storage].bytes.fill(0xff);
        },
        "transformer.ln_f.weight holds NaN",
    );
}

#[test]
fn shards_of_torch() {
    let index = |map: &[(&str, &str)], files: &[(&str, Vec<u8>)], expect: &str| {
        let dir = temp_dir();
        for name in ["config.json", "qwen.tiktoken"] {
            fs::copy(checkpoint().join(name), dir.path().join(name)).unwrap();
        }
        let map: serde_json::Map<String, serde_json::Value> =
            map.iter().map(|(name, shard)| (name.to_string(), (*shard).into())).collect();
        let json = serde_json::json!({ "weight_map": map }).to_string();
        fs::write(dir.path().join("pytorch_model.bin.index.json"), json).unwrap();
        files.iter().for_each(|(name, file)| fs::write(dir.path().join(name), file).unwrap());
        check_dir(dir.path(), &[], 3, expect);
    };
    let small = || archive(&small().entries());
    index(&[("a", "1.bin"), ("b", "2.bin")], &[("1.bin", small())], "1 of 2 named in pytorch_model.bin.index.json");
    index(&[("a", "1.bin"), ("c", "1.bin")], &[("1.bin", small())], "tensor c is not in 1.bin");
    index(&[("a", "1.bin"), ("b", "2.bin")], &[("1.bin", small()), ("2.bin", small())], "is also in another shard");
    index(&[("a", "../1.bin")], &[], "expected a file name");
    index(&[("a", "1.bin")], &[("1.bin", b"version https://git-lfs.github.com/spec/v1\n".to_vec())], "git lfs pull");
    index(&[("a", "1.bin")], &[("1.bin", small()[..500].to_vec())], "1.bin: the shard is truncated");
    let dir = temp_dir();
    fs::copy(checkpoint().join("config.json"), dir.path().join("config.json")).unwrap();
    fs::write(dir.path().join("pytorch_model-00001-of-00010.bin"), small()).unwrap();
    check_dir(dir.path(), &[], 3, "pytorch_model.bin.index.json is missing");
}

/// Bytes all over the small file, changed in three ways: only promised exit codes.
#[test]
fn mutated() {
    let sound = archive(&small().entries());
    let dir = temp_dir();
    fs::copy(checkpoint().join("config.json"), dir.path().join("config.json")).unwrap();
    let path: &Path = &dir.path().join(NAME);
    for at in (0..sound.len()).step_by(11) {
        for change in [0x01, 0x80, 0xff] {
            let mut file = sound.clone();
            file[at] ^= change;
            fs::write(path, &file).unwrap();
            run(convert().arg(dir.path()).args(["--dry-run", "-q"])).ends_well();
        }
    }
}
