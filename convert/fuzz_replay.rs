//! What fuzzing begins with and what it found, once more: on stable, in every run of the tests.

use std::path::Path;

use crate::fuzz::seeds::seeds;
use crate::fuzz::{TARGETS, target};

/// Damaged copies of each seed.
const N_DAMAGED: u64 = 200;

/// The next number of a 64-bit generator (splitmix64).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) as usize
}

/// `seed` with some bytes changed, taken out or doubled.
fn damaged(seed: &[u8], state: &mut u64) -> Vec<u8> {
    const ODD: [u8; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, b'0', b'9', b'<', b'"', b'{', b','];
    let mut bytes = seed.to_vec();
    for _ in 0..=next(state) % 4 {
        if bytes.is_empty() {
            break;
        }
        let at = next(state) % bytes.len();
        let end = (at + 1 + next(state) % 16).min(bytes.len());
        match next(state) % 6 {
            0 => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes[at] = ODD[next(state) % ODD.len()],
            2 => bytes[at..end].fill(ODD[next(state) % ODD.len()]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Runs a target on all of it, and names what it fails on.
fn check(name: &str) {
    let run = |what: &str, data: &[u8]| {
        let outcome = std::panic::catch_unwind(|| target(name)(data));
        assert!(outcome.is_ok(), "{name}: {what}: {}", data.escape_ascii());
    };
    for (nth, seed) in seeds(name).iter().enumerate() {
        run(&format!("seed {nth}"), seed);
        let mut state = nth as u64;
        (0..N_DAMAGED).for_each(|i| run(&format!("seed {nth}, damage {i}"), &damaged(seed, &mut state)));
    }
    let findings = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/findings").join(name);
    for entry in std::fs::read_dir(findings).into_iter().flatten() {
        let path = entry.unwrap().path();
        run(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
}

/// A test for each target, so that they run side by side; one that has none fails the last.
macro_rules! replay {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            assert_eq!([$(stringify!($name)),*], TARGETS.map(|(name, _)| name));
        }
    };
}

replay!(batch boxes cache gguf grammar index picture pickle prompt safetensors session source torch vocabulary);

/// Were the seeds refused, fuzzing would begin with nothing.
#[test]
fn seeds_are_sound() {
    use qvl::gguf::Gguf;
    use qvl::image::{Orientation, decode};
    assert!(seeds("gguf").iter().all(|seed| Gguf::parse(seed).is_ok()));
    assert!(seeds("picture").iter().all(|seed| decode(seed, Orientation::Upright).is_ok()));
    let dir = tempfile::tempdir().unwrap();
    for (name, file) in [("safetensors", "m.safetensors"), ("torch", "m.bin")] {
        for seed in seeds(name) {
            let path = dir.path().join(file);
            std::fs::write(&path, seed).unwrap();
            let kind = crate::checkpoint::Kind::of(&path).unwrap();
            assert!(!crate::checkpoint::Checkpoint::open_files(vec![path], kind).unwrap().tensors().is_empty());
        }
    }
}
