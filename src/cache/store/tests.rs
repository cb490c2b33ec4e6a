//! Order, limits, damage, and many at once.

use tempfile::TempDir;

use super::*;
use crate::cache::round;

/// Bytes of an entry of [`embedding`].
const N_BYTES: u64 = 52 + 2 * 8 + 32;

fn key(n: u8) -> Key {
    Key::of_bytes(&[n])
}

fn embedding(n: u8) -> ImageEmbedding {
    let data = (0..8).map(|i| f32::from(n) + i as f32 * 0.1).collect();
    round(&ImageEmbedding { n_queries: 2, d_out: 4, data }).unwrap()
}

/// A store that holds this many entries.
fn store(n_entries: u64) -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned(), n_entries * N_BYTES);
    (dir, store)
}

fn set_age(path: &Path, seconds: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_put_is_there() {
    let (_dir, store) = store(3);
    assert_eq!(store.get(&key(1)), None);
    store.put(&key(1), &embedding(1)).unwrap();
    store.put(&key(1), &embedding(1)).unwrap();
    assert_eq!(store.get(&key(1)), Some(embedding(1)));
    assert_eq!(store.get(&key(2)), None);
    let usage = store.usage().unwrap();
    assert_eq!((usage.n_entries, usage.n_bytes), (1, N_BYTES));
}

#[test]
fn the_least_recently_used_leaves_first() {
    let (_dir, store) = store(3);
    for n in 1..=3 {
        store.put(&key(n), &embedding(n)).unwrap();
        set_age(&store.path(&key(n), EMBEDDING), 100 - u64::from(n));
    }
    assert!(store.get(&key(1)).is_some(), "a hit renews");
    store.put(&key(4), &embedding(4)).unwrap();
    let there = |n| store.path(&key(n), EMBEDDING).exists();
    assert_eq!([1, 2, 3, 4].map(there), [true, false, true, true]);
    // One whose time lies far ahead leaves before all others.
    let file = File::options().write(true).open(store.path(&key(4), EMBEDDING)).unwrap();
    file.set_modified(SystemTime::now() + 2 * HOUR).unwrap();
    store.put(&key(5), &embedding(5)).unwrap();
    assert_eq!([1, 3, 4, 5].map(there), [true, true, false, true]);
}

#[test]
fn the_limit_holds() {
    let (dir, two) = store(2);
    for n in 0..9 {
        two.put(&key(n), &embedding(n)).unwrap();
        assert!(two.usage().unwrap().n_bytes <= two.limit_bytes());
    }
    assert_eq!(two.usage().unwrap().n_entries, 2);
    // A smaller limit counts from the next put on.
    let one = Store::new(dir.path().to_owned(), 2 * N_BYTES - 1);
    one.put(&key(20), &embedding(20)).unwrap();
    assert_eq!(names(&dir), [format!("{}.emb", key(20))]);
    // What is larger than all of it is not kept, and nothing leaves for it.
    let none = Store::new(dir.path().to_owned(), N_BYTES - 1);
    none.put(&key(21), &embedding(21)).unwrap();
    assert_eq!(names(&dir), [format!("{}.emb", key(20))]);
}

#[test]
fn what_is_not_sound_is_a_miss_and_removed() {
    let (_dir, store) = store(9);
    let path = store.path(&key(1), EMBEDDING);
    store.put(&key(1), &embedding(1)).unwrap();
    let sound = fs::read(&path).unwrap();
    let other = entry::encode(&key(2), &embedding(2));
    let changed = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] ^= byte;
        bytes
    };
    // A head that promises 2 GiB of values.
    let mut huge = sound.clone();
    huge[12..20].copy_from_slice(&[0, 0, 1, 0, 0, 64, 0, 0]);
    for (what, bytes) in [
        ("empty", vec![]),
        ("a head", sound[..20].to_vec()),
        ("torn", sound[..70].to_vec()),
        ("one byte short", sound[..sound.len() - 1].to_vec()),
        ("one byte long", [&sound[..], &[0]].concat()),
        ("magic", changed(0, 1)),
        ("version", changed(8, 1)),
        ("shape", changed(12, 1)),
        ("a value", changed(60, 1)),
        ("checksum", changed(sound.len() - 1, 128)),
        ("of another key", other),
        ("huge", huge),
        ("zeros", vec![0; sound.len()]),
        ("text", b"hello\n".repeat(50)),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.get(&key(1)), None, "{what}");
        assert!(!path.exists(), "{what}");
    }
    fs::write(&path, &sound).unwrap();
    assert_eq!(store.get(&key(1)), Some(embedding(1)));
}

#[test]
#[cfg(unix)]
fn a_pipe_or_a_link_under_the_name_is_no_entry() {
    let (dir, store) = store(9);
    let path = store.path(&key(1), EMBEDDING);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(store.get(&key(1)), None);
    assert!(!path.exists());
    let target = dir.path().join("target");
    fs::write(&target, entry::encode(&key(1), &embedding(1))).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    assert_eq!(store.get(&key(1)), None);
    assert!(target.exists() && !path.exists());
    // A directory is in the way: told, and left alone.
    fs::create_dir(&path).unwrap();
    assert_eq!(store.get(&key(1)), None);
    assert!(store.put(&key(1), &embedding(1)).is_err());
    assert_eq!(store.usage().unwrap().n_entries, 0);
    assert_eq!(names(&dir).len(), 2, "no temporary file is left");
}

#[test]
#[cfg(unix)]
fn directory_and_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("a/b"), 1 << 20);
    store.put(&key(1), &embedding(1)).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("a")), 0o700);
    assert_eq!(mode(store.directory()), 0o700);
    assert_eq!(mode(&store.path(&key(1), EMBEDDING)), 0o600);
}

#[test]
fn only_our_own_files_are_removed() {
    let (dir, store) = store(1);
    let others = ["notes.emb", "x.tmp", ".emb-x", &format!("{}.EMB", key(1)), &format!("{}.emb.bak", key(1))];
    for name in others {
        fs::write(dir.path().join(name), [0; 1000]).unwrap();
    }
    for (name, age) in [(".emb-old.tmp", 3700), (".emb-new.tmp", 3500)] {
        fs::write(dir.path().join(name), [0; 10]).unwrap();
        set_age(&dir.path().join(name), age);
    }
    store.put(&key(1), &embedding(1)).unwrap();
    store.put(&key(2), &embedding(2)).unwrap();
    assert!(store.get(&key(2)).is_some());
    let left = |name: &str| dir.path().join(name).exists();
    assert!(left(".emb-new.tmp"), "it may still be written");
    assert!(!left(".emb-old.tmp"), "its process was killed");

    let expect = Cleared { n_embeddings: 1, n_prompts: 0, n_temporary: 1, n_bytes: N_BYTES + 10 };
    assert_eq!(store.clear().unwrap(), expect);
    let mut others = others.map(str::to_owned);
    others.sort();
    assert_eq!(names(&dir), others);
    assert_eq!(store.usage().unwrap(), Usage::default());
}

#[test]
fn no_directory_is_an_empty_cache_and_a_file_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Store::new(dir.path().join("missing"), 1 << 20);
    assert_eq!(missing.get(&key(1)), None);
    assert_eq!(missing.usage().unwrap(), Usage::default());
    assert_eq!(missing.clear().unwrap(), Cleared::default());
    assert!(!missing.directory().exists());

    fs::write(dir.path().join("file"), "text").unwrap();
    let file = Store::new(dir.path().join("file"), 1 << 20);
    assert_eq!(file.get(&key(1)), None);
    for failure in [file.put(&key(1), &embedding(1)).err(), file.usage().err(), file.clear().err()] {
        let failure = failure.unwrap().to_string();
        assert!(failure.starts_with(&dir.path().join("file").display().to_string()), "{failure}");
    }
    assert_eq!(fs::read(file.directory()).unwrap(), b"text");
}

/// Puts, gets, evictions, damage and clearing, all at once: an answer is right or a miss, and nobody fails.
#[test]
fn many_at_once() {
    let (dir, store) = store(3);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let store = &store;
            scope.spawn(move || {
                let mut n_hits = 0;
                for round in 0..300u16 {
                    let n = ((round * 7 + u16::from(thread) * 3) % 6) as u8;
                    match store.get(&key(n)) {
                        Some(found) => {
                            assert_eq!(found, embedding(n));
                            n_hits += 1;
                        }
                        None => store.put(&key(n), &embedding(n)).unwrap(),
                    }
                    match (thread, round % 50) {
                        (0, 49) => drop(store.clear().unwrap()),
                        (1, 49) => drop(fs::write(store.path(&key(n), EMBEDDING), b"torn")),
                        _ => {}
                    }
                }
                assert!(n_hits > 0);
            });
        }
    });
    store.put(&key(9), &embedding(9)).unwrap();
    let usage = store.usage().unwrap();
    assert!(usage.n_bytes <= store.limit_bytes(), "{usage:?}");
    assert!(names(&dir).iter().all(|name| name.ends_with(".emb")), "{:?}", names(&dir));
}
