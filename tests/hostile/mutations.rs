//! Random damage to sound pairs and checkpoints, each from its seed: `QVL_MUTATIONS=N` runs N of them, `QVL_MUTATION=SEED` one.

use std::time::Duration;

use crate::adapters::adapter;
use crate::gguf::File;
use crate::random::Random;
use crate::support::{Pair, ask, checkpoint, convert, f32, q8_0, qvl, run, run_for, temp_dir};

/// Runs without the variable.
const N_DEFAULT: u64 = 40;

/// Changes one field of the header.
fn mutate_field(file: &mut File, r: &mut Random) {
    match r.below(14) {
        0..=4 => {
            let at = r.below(file.keys.len());
            let (value, key) = (r.odd_number().to_le_bytes(), &mut file.keys[at]);
            // Long values are arrays: their beginning holds type and count.
            let at = if key.ty == 9 && r.below(2) == 0 { r.below(12) } else { r.below(key.value.len()) };
            key.value[at..].iter_mut().zip(value).for_each(|(b, v)| *b = v);
        }
        5 => {
            let at = r.below(file.keys.len());
            file.keys[at].ty = r.below(14) as u32;
        }
        6 => drop(file.keys.remove(r.below(file.keys.len()))),
        7 => {
            let (from, to) = (r.below(file.keys.len()), r.below(file.keys.len()));
            (file.keys[to].ty, file.keys[to].value) = (file.keys[from].ty, file.keys[from].value.clone());
        }
        8 => {
            let at = r.below(file.tensors.len());
            let (n, dims) = (r.odd_number(), &mut file.tensors[at].dims);
            match r.below(3) {
                0 => dims.reverse(),
                1 => dims.push(n),
                _ => dims[0] = n,
            }
        }
        9 => {
            let at = r.below(file.tensors.len());
            file.tensors[at].ty = r.below(40) as u32;
        }
        10 => {
            let at = r.below(file.tensors.len());
            file.tensors[at].offset = r.odd_number() & !31;
        }
        11 => {
            let (a, b) = (r.below(file.tensors.len()), r.below(file.tensors.len()));
            let name = file.tensors[a].name.clone();
            file.tensors[a].name = std::mem::replace(&mut file.tensors[b].name, name);
        }
        12 => {
            let (a, b) = (r.below(file.keys.len()), r.below(file.keys.len()));
            file.keys.swap(a, b);
        }
        _ => {
            let at = r.below(file.keys.len());
            let name = &mut file.keys[at].name;
            let at = r.below(name.len());
            name[at] = r.next() as u8 & 0x7F;
        }
    }
}

/// The damaged file of this seed.
fn mutated(seed: u64, pair: &Pair) -> (Vec<u8>, bool) {
    let mut r = Random(seed);
    let text = r.below(3) > 0;
    let mut file = File::read(if text { &pair.text } else { &pair.mmproj });
    let structured = r.below(3) > 0;
    if structured {
        for _ in 0..=r.below(3) {
            mutate_field(&mut file, &mut r);
        }
    }
    let n_header = file.header().len();
    let mut bytes = file.encode();
    if !structured || r.below(4) == 0 {
        for _ in 0..=r.below(4) {
            let at = r.below(n_header);
            bytes[at] = if r.below(2) == 0 { bytes[at] ^ (1 << r.below(8)) } else { r.next() as u8 };
        }
    }
    if r.below(10) == 0 {
        // Damaged weights.
        let at = n_header + r.below(bytes.len() - n_header - 64);
        bytes[at..at + 64].fill(r.next() as u8);
    }
    (bytes, text)
}

/// What is wrong with how the programs take the file of this seed, the converter as its source included.
fn complaint(seed: u64) -> Option<String> {
    let pair = if seed.is_multiple_of(4) { f32() } else { q8_0() };
    let (bytes, text) = mutated(seed, pair);
    let dir = temp_dir();
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, bytes).unwrap();
    let mut command = if text { ask(&bad, &pair.mmproj) } else { ask(&pair.text, &bad) };
    let flags = [&[][..], &["-fa", "off"], &["--temp", "1", "-s", "1", "--repeat-penalty", "1.1"]];
    let asked = run_for(command.args(flags[(seed % 3) as usize]), Duration::from_secs(60)).complaint();
    let inspected = run(qvl().args(["inspect", "--verify", "--tensors"]).arg(&bad)).complaint();
    let out = temp_dir();
    let (text, mmproj) = if text { (&bad, &pair.mmproj) } else { (&pair.text, &bad) };
    let mut command = convert();
    command
        .arg(text)
        .arg("--mmproj")
        .arg(mmproj)
        .args(["-q", "-j", "1", "-t", "q4_0", "--name", "n", "-o"])
        .arg(out.path());
    let converted = run(&mut command);
    let n_left = std::fs::read_dir(out.path()).unwrap().count();
    let left = (converted.code != Some(0) && n_left > 0).then(|| format!("{n_left} files are left: {converted:?}"));
    asked.or(inspected).or(converted.complaint()).or(left).map(|what| format!("seed {seed}: {what}"))
}

/// What is wrong with how the converter takes the checkpoint of this seed, or the programs what it made of it.
fn complaint_of_checkpoint(seed: u64) -> Option<String> {
    let mut r = Random(!seed);
    let (dir, out) = (temp_dir(), temp_dir());
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    const FILES: [&str; 5] =
        ["config.json", "model.safetensors", "qwen.tiktoken", "generation_config.json", "tokenizer_config.json"];
    let path = dir.path().join(FILES[[0, 0, 1, 1, 2, 3, 4][r.below(7)]]);
    let mut bytes = std::fs::read(&path).unwrap();
    let n_damaged = if path.ends_with("model.safetensors") {
        8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
    } else {
        bytes.len()
    };
    for _ in 0..=r.below(3) {
        let digits: Vec<usize> = (0..n_damaged).filter(|i| bytes[*i].is_ascii_digit()).collect();
        match (r.below(3), digits.is_empty()) {
            (0 | 1, false) => bytes[digits[r.below(digits.len())]] = b"0123456789-.e"[r.below(13)],
            _ => bytes[r.below(n_damaged)] = r.next() as u8,
        }
    }
    if r.below(12) == 0 {
        bytes.truncate(r.below(bytes.len()));
    }
    std::fs::write(&path, bytes).unwrap();
    let mut command = convert();
    command.arg(dir.path()).args(["-q", "--name", "m", "-t", "q8_0"]).arg("-o").arg(out.path());
    let outcome = run(&mut command);
    let n_left = std::fs::read_dir(out.path()).unwrap().count();
    let wrong = match (outcome.complaint(), outcome.code) {
        (Some(complaint), _) => Some(complaint),
        (None, Some(0)) => {
            run(&mut ask(&out.path().join("m-Q8_0.gguf"), &out.path().join("mmproj-m-Q8_0.gguf"))).complaint()
        }
        (None, _) => (n_left > 0).then(|| format!("{n_left} files are left: {outcome:?}")),
    };
    wrong.map(|what| format!("seed {seed}, {}: {what}", path.file_name().unwrap().display()))
}

/// What is wrong with how the program takes the adapter of this seed.
fn complaint_of_adapter(seed: u64) -> Option<String> {
    let mut r = Random(seed ^ 0xADA);
    let mut file = File::read(adapter());
    (0..=r.below(3)).for_each(|_| mutate_field(&mut file, &mut r));
    let mut bytes = file.encode();
    if r.below(3) == 0 {
        let at = r.below(file.header().len());
        bytes[at] ^= 1 << r.below(8);
    }
    let dir = temp_dir();
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, bytes).unwrap();
    let mut command = qvl();
    command.arg("ask").arg("-m").arg(&q8_0().text).args(["-q", "-n", "2", "--temp", "0", "-t", "1", "hi", "--lora"]);
    let asked = run_for(command.arg(&bad), Duration::from_secs(60)).complaint();
    let inspected = run(qvl().args(["inspect", "--verify", "--tensors"]).arg(&bad)).complaint();
    asked.or(inspected).map(|what| format!("seed {seed}: {what}"))
}

fn check(complaint: fn(u64) -> Option<String>) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let seeds = match number("QVL_MUTATION") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QVL_MUTATIONS").unwrap_or(N_DEFAULT),
    };
    let complaints: Vec<String> = seeds.filter_map(complaint).collect();
    assert!(complaints.is_empty(), "{} failures:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn damaged_files_end_well() {
    check(complaint);
}

#[test]
fn damaged_adapters_end_well() {
    check(complaint_of_adapter);
}

#[test]
fn damaged_checkpoints_end_well() {
    check(complaint_of_checkpoint);
}
