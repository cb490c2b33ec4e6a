//! Random damage to sound pairs, checkpoints, adapters and pictures, each from its seed: `QVL_MUTATIONS=N` runs N of each,
//! `QVL_MUTATIONS_FROM=SEED` from another seed than 0 on, `QVL_MUTATION=SEED` one.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use crate::adapters::adapter;
use crate::gguf::File;
use crate::random::Random;
use crate::support::{Pair, ask, checkpoint, convert, f32, q8_0, qvl, run, run_for, temp_dir, tiny};

/// Runs without the variable, each of several programs.
const N_DEFAULT: u64 = 40;
/// And of one program.
const N_QUICK: u64 = 150;

impl Random {
    /// A number that programs stumble over.
    fn odd_number(&mut self) -> u64 {
        let some = self.next();
        [0, 1, 2, 3, 7, 31, 63, 255, 256, 257, 1 << 15, 1 << 31, u32::MAX.into(), 1 << 32, 1 << 62, u64::MAX, some]
            [self.below(17)]
    }
}

/// Changes one field of the header.
fn mutate_field(file: &mut File, r: &mut Random) {
    // A mutation before this one may have taken the last.
    if file.keys.is_empty() || file.tensors.is_empty() {
        return;
    }
    match r.below(17) {
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
        13 => match r.below(2) {
            0 => file.n_keys = Some(r.odd_number()),
            _ => file.n_tensors = Some(r.odd_number()),
        },
        14 => match r.below(2) {
            0 => drop(file.tensors.remove(r.below(file.tensors.len()))),
            _ => file.tensors.push(file.tensors[r.below(file.tensors.len())].clone()),
        },
        15 => {
            // Dimensions: a sound number that is another one's.
            let numbers: Vec<usize> = (0..file.keys.len()).filter(|k| [4, 6].contains(&file.keys[*k].ty)).collect();
            if let (Some(&a), Some(&b)) = (numbers.get(r.below(numbers.len())), numbers.get(r.below(numbers.len()))) {
                let mut value = file.keys[a].value.clone();
                if r.below(2) == 0 {
                    value[0] = value[0].wrapping_add(1 << r.below(8));
                }
                file.keys[b].value = value;
            }
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
        // Damaged weights, which are no longer numbers at times.
        let at = n_header + r.below(bytes.len() - n_header - 64);
        let byte = if r.below(2) == 0 { 0xff } else { r.next() as u8 };
        bytes[at..at + 64].fill(byte);
    }
    if r.below(16) == 0 {
        let end = if r.below(2) == 0 { r.below(n_header) } else { r.below(bytes.len()) };
        bytes.truncate(end);
    }
    (bytes, text)
}

/// What is wrong with how the programs take the file of this seed, the converter as its source included.
fn complaint(seed: u64) -> Option<String> {
    let pair = match seed % 8 {
        0 | 4 => f32(),
        1 => tiny(),
        _ => q8_0(),
    };
    let (bytes, text) = mutated(seed, pair);
    let dir = temp_dir();
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, bytes).unwrap();
    let mut command = if text { ask(&bad, &pair.mmproj) } else { ask(&pair.text, &bad) };
    let flags = [&[][..], &["-fa", "off"], &["--temp", "1", "-s", "1", "--repeat-penalty", "1.1"]];
    let asked = run_for(command.args(flags[(seed % 3) as usize]), Duration::from_secs(60)).complaint();
    let how = [&["--verify", "--tensors"][..], &["--json"]][(seed % 2) as usize];
    let inspected = run(qvl().arg("inspect").args(how).arg(&bad)).complaint();
    let (model, mmproj) = if text { (&bad, &pair.mmproj) } else { (&pair.text, &bad) };
    let planned = run(qvl().args(["plan", "--json", "-m"]).arg(model).arg("--mmproj").arg(mmproj)).complaint();
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
    asked.or(inspected).or(planned).or(converted.complaint()).or(left).map(|what| format!("seed {seed}: {what}"))
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

/// Sound pictures in every format that is read.
fn pictures() -> &'static [Vec<u8>] {
    use image::{DynamicImage, ImageFormat::*, Rgb, RgbImage};
    static PICTURES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PICTURES.get_or_init(|| {
        let colour: DynamicImage = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, 90])).into();
        let alpha = DynamicImage::from(colour.to_rgba8());
        let deep = DynamicImage::from(colour.to_luma16());
        let kinds = [(&colour, Png), (&colour, Jpeg), (&colour, WebP), (&colour, Bmp), (&colour, Tiff), (&colour, Pnm)];
        let more =
            [(&colour, Qoi), (&alpha, Png), (&alpha, Gif), (&alpha, Bmp), (&alpha, Tiff), (&deep, Png), (&deep, Tiff)];
        let written = |(picture, format): (&DynamicImage, image::ImageFormat)| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, format).unwrap();
            bytes.into_inner()
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let read = files.into_iter().map(|path| std::fs::read(path).unwrap());
        kinds.into_iter().chain(more).map(written).chain(read).collect()
    })
}

/// What is wrong with how the program takes the picture of this seed: it is seen, or refused with the exit code of a picture.
fn complaint_of_picture(seed: u64) -> Option<String> {
    let mut r = Random(seed ^ 0x91C);
    let pictures = pictures();
    let mut bytes = pictures[r.below(pictures.len())].clone();
    for _ in 0..=r.below(6) {
        // Most of what can be wrong stands in front.
        let n = if r.below(3) > 0 { bytes.len().min(64) } else { bytes.len() };
        let at = r.below(n);
        match r.below(8) {
            0 => bytes.truncate(at.max(1)),
            1 => drop(bytes.drain(at..(at + 1 + r.below(9)).min(bytes.len()))),
            2 | 3 => {
                let number = r.odd_number().to_le_bytes();
                let n_bytes = 1 << r.below(4);
                bytes[at..].iter_mut().zip(&number[..n_bytes]).for_each(|(b, v)| *b = *v);
            }
            4 => bytes[at] = r.next() as u8,
            _ => bytes[at] ^= 1 << r.below(8),
        }
        if bytes.is_empty() {
            break;
        }
    }
    let dir = temp_dir();
    let path = dir.path().join("picture");
    std::fs::write(&path, bytes).unwrap();
    let mut command = qvl();
    command.args(["ask", "-q", "-n", "1", "--temp", "0", "-t", "1", "hi", "-m"]).arg(&q8_0().text).arg("-i").arg(&path);
    let asked = run_for(command.arg("--mmproj").arg(&q8_0().mmproj), Duration::from_secs(60));
    let wrong = || format!("an exit code that pictures do not have: {asked:?}");
    let wrong = (!matches!(asked.code, Some(0 | 4))).then(wrong);
    asked.complaint().or(wrong).map(|what| format!("seed {seed}: {what}"))
}

fn check(n: u64, complaint: fn(u64) -> Option<String>) {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let seeds = match number("QVL_MUTATION") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("QVL_MUTATIONS_FROM").unwrap_or(0);
            from..from + number("QVL_MUTATIONS").unwrap_or(n)
        }
    };
    let complaints: Vec<String> = seeds.filter_map(complaint).collect();
    assert!(complaints.is_empty(), "{} failures:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn damaged_files_end_well() {
    check(N_DEFAULT, complaint);
}

#[test]
fn damaged_adapters_end_well() {
    check(N_DEFAULT, complaint_of_adapter);
}

#[test]
fn damaged_pictures_end_well() {
    check(N_QUICK, complaint_of_picture);
}

#[test]
fn damaged_checkpoints_end_well() {
    check(N_DEFAULT, complaint_of_checkpoint);
}
