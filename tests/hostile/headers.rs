//! Headers made by hand: each says in its error what is wrong with it.

use crate::gguf::{Encoded, File, Tensor, array_head, bytes, f32, str, u32, u64};
use crate::support::{ask, q8_0, qvl, run, temp_dir};

/// Writes bytes and lets every command that takes a text file or an mmproj look at them.
fn check(file: &[u8], expect: &str) {
    let dir = temp_dir();
    let path = dir.path().join("bad.gguf");
    std::fs::write(&path, file).unwrap();
    run(qvl().arg("inspect").arg(&path)).fails(3, expect);
    run(qvl().args(["tokenize", "-m"]).arg(&path)).fails(3, expect);
    run(&mut ask(&path, &q8_0().mmproj)).fails(3, expect);
    run(&mut ask(&q8_0().text, &path)).fails(3, expect);
}

fn check_file(change: impl FnOnce(&mut File), expect: &str) {
    let mut file = File::empty();
    change(&mut file);
    check(&file.encode(), expect);
}

fn check_key(name: impl AsRef<[u8]>, value: Encoded, expect: &str) {
    check_file(|f| f.push(name, value), expect);
}

fn check_tensor(dims: &[u64], ty: u32, offset: u64, expect: &str) {
    let tensor = Tensor { name: b"t".to_vec(), dims: dims.to_vec(), ty, offset };
    check_file(|f| (f.tensors, f.data) = (vec![tensor], vec![0; 256]), expect);
}

#[test]
fn the_beginning() {
    check(b"", "empty");
    check(b"G", "not a GGUF file");
    check(b"GGUF", "the file ends inside the version");
    check(b"GGML\x03\0\0\0", "expected \"GGUF\"");
    check(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull");
    check(b"<!doctype html>\n<title>404</title>\n", "not a GGUF file");
    check(&[0xFF; 64], "not a GGUF file");
    check_file(|f| f.version = 1, "version 1 is not supported");
    check_file(|f| f.version = 4, "version 4 is not supported");
    check_file(|f| f.version = u32::MAX, "is not supported");
    check_file(|f| f.version = 3u32.swap_bytes(), "big-endian");
    let header = File::empty().encode();
    for length in 4..24 {
        check(&header[..length], "the file ends inside");
    }
}

#[test]
fn counts() {
    for n in [1 << 21, u64::MAX, i64::MAX as u64] {
        check_file(|f| f.n_keys = Some(n), "the metadata count is");
        check_file(|f| f.n_tensors = Some(n), "the tensor count is");
    }
    check_file(|f| f.n_keys = Some(5), "has an empty name");
    check_file(|f| f.n_tensors = Some(1 << 20), "has an empty name");
}

#[test]
fn keys() {
    check_key("", u32(1), "has an empty name");
    check_key("general.alignment\0x", u32(8), "zero byte");
    check_key(b"\xff\xfe", u32(1), "not UTF-8");
    check_key("k", (13, vec![0; 8]), "unknown value type 13");
    check_key("k", (u32::MAX, vec![0; 8]), "unknown value type");
    check_key("k", (7, vec![2]), "bool of value 2");
    check_key("k", str(b"\xc3"), "not UTF-8");
    check_key("k", (8, u64::MAX.to_le_bytes().to_vec()), "the file ends inside");
    check_key("k", (9, array_head(9, 1)), "array of arrays");
    check_key("k", (9, array_head(77, 1)), "unknown value type 77");
    check_key("k", (9, array_head(4, u64::MAX)), "more than the file can hold");
    check_key("k", (9, array_head(8, 1 << 61)), "more than the file can hold");
    check_key("k", (9, array_head(7, u64::MAX)), "the file ends inside");
    check_key("k", (9, [array_head(8, 1), bytes(b"\xff")].concat()), "not UTF-8");
    check_file(|f| (0..2).for_each(|n| f.push("twice", u32(n))), "listed twice");
    let mut long = File::empty().header();
    long[16] = 1;
    long.truncate(24);
    long.extend(u64::MAX.to_le_bytes());
    check(&long, "bytes long");
}

#[test]
fn escapes_in_names_do_not_reach_the_terminal() {
    check_key("a\u{1b}[2J\nerror: b", (13, vec![]), "\\u{1b}[2J");
    check_key("a\u{2028}b\u{9b}", (13, vec![]), "unknown value type 13");
}

#[test]
fn alignments() {
    for bad in [u32(0), u32(3), u32(4), u32(1 << 31), u64(32), f32(32.0), str("32")] {
        check_key("general.alignment", bad, "general.alignment is");
    }
}

#[test]
fn tensors() {
    check_tensor(&[], 0, 0, "0 dimensions");
    check_tensor(&[1; 5], 0, 0, "5 dimensions");
    check_tensor(&[0], 0, 0, "impossible extents");
    check_tensor(&[u64::MAX], 0, 0, "impossible extents");
    check_tensor(&[1 << 32, 1 << 32], 0, 0, "impossible extents");
    check_tensor(&[1 << 20, 1 << 20, 1 << 20, 1 << 20], 8, 0, "impossible extents");
    check_tensor(&[33], 8, 0, "impossible extents");
    check_tensor(&[32], 4, 0, "unsupported type 4");
    check_tensor(&[32], 999, 0, "unsupported type 999");
    check_tensor(&[32], 0, 7, "not at a multiple");
    check_tensor(&[32], 0, 1 << 40, "is it truncated?");
    check_tensor(&[32], 0, u64::MAX - 31, "is it truncated?");
    check_tensor(&[65], 0, 0, "is it truncated?");
    let tensor = |name: &[u8], offset| Tensor { name: name.to_vec(), dims: vec![32], ty: 0, offset };
    let with = |list: Vec<Tensor>, expect: &str| check_file(|f| (f.tensors, f.data) = (list, vec![0; 256]), expect);
    with(vec![tensor(b"a", 0), tensor(b"a", 128)], "listed twice");
    with(vec![tensor(b"a", 0), tensor(b"b", 96)], "overlap");
    with(vec![tensor(b"a", 0), tensor(b"b", 0)], "overlap");
    with(vec![tensor(&[b'n'; 64], 0)], "64 bytes long");
    with(vec![tensor(b"\xff", 0)], "not UTF-8");
    with(vec![tensor(b"", 0)], "has an empty name");
    with(vec![tensor(b"a\0b", 0)], "zero byte");
}

#[test]
fn nothing_inside() {
    let dir = temp_dir();
    let path = dir.path().join("empty.gguf");
    std::fs::write(&path, File::empty().encode()).unwrap();
    run(qvl().arg("inspect").args(["--verify", "--tensors"]).arg(&path)).succeeds();
    run(&mut ask(&path, &q8_0().mmproj)).fails(3, "general.architecture is missing");
    run(&mut ask(&q8_0().text, &path)).fails(3, "general.architecture is missing");
}
