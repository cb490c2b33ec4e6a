//! The cache of embeddings: a warm answer is the cold one, no weight of the tower is touched for it, and nothing that
//! happens to its files is more than a miss.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use qvl::cache::Store;
use qvl::gguf::Gguf;
use qvl::vision::ImageEmbedding;
use serde_json::Value;
use tempfile::TempDir;

use crate::models::{Model, N_QUERIES, random};
use crate::programs::{Ran, qvl, repository, run};

/// `qvl` with a cache in `dir`, among the pictures.
pub fn cached(dir: &Path) -> Command {
    let mut command = qvl();
    command.env("QVL_CACHE_DIR", dir).env("QVL_CACHE_SIZE", "64M");
    command.current_dir(repository("tests/data/pictures"));
    command
}

/// A greedy answer about these arguments.
fn ask_of(model: &Model, dir: &Path, args: &[&str]) -> Command {
    let mut command = cached(dir);
    command.args(["ask", "--temp", "0", "-n", "24", "--json", "-m"]).arg(&model.text);
    command.arg("--mmproj").arg(&model.mmproj).args(args).arg("What is this?");
    command
}

/// The same of `models/qvl-random`, quietly.
fn ask(dir: &Path, args: &[&str]) -> Ran {
    run(ask_of(&random(), dir, args).arg("-q"))
}

/// Pictures that came from the cache.
fn n_cached(json: &Value) -> usize {
    let n_tokens = json["usage"]["cached_image_tokens"].as_u64().expect("a count") as usize;
    assert_eq!(n_tokens % N_QUERIES, 0);
    n_tokens / N_QUERIES
}

/// Names of the files in a directory; none if there is no directory.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Entries in a directory.
fn entries(dir: &Path) -> Vec<PathBuf> {
    names(dir).into_iter().filter(|name| name.ends_with(".emb")).map(|name| dir.join(name)).collect()
}

/// Proves that every entry is sound.
#[track_caller]
fn all_sound(dir: &Path) {
    let store = Store::new(dir.to_owned(), 1 << 30);
    for path in entries(dir) {
        let key = path.file_stem().unwrap().to_str().unwrap().parse().expect("named by a key");
        assert!(store.get(&key).is_some(), "{}", path.display());
    }
}

/// A directory of a test's own.
pub fn temp_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_warm_answer_is_the_cold_one() {
    let dir = temp_dir();
    let cache = dir.path().join("cache");
    for (nth, args) in [
        &["-i", "shapes.png"][..],
        &["-i", "shapes.png", "-fa", "off"],
        &["-i", "stripes.png", "-i", "gradient.png", "-i", "turned.jpg"],
        &["-i", "turned.jpg", "--no-auto-orient"],
    ]
    .into_iter()
    .enumerate()
    {
        let n_pictures = args.iter().filter(|arg| **arg == "-i").count();
        let cold = ask(&cache, args).json();
        assert_eq!(n_cached(&cold), 0, "{args:?}");
        let warm = ask(&cache, args).json();
        assert_eq!(n_cached(&warm), n_pictures, "{args:?}");
        assert_eq!(warm["usage"]["image_tokens"], n_pictures * N_QUERIES);
        assert_eq!(warm["text"], cold["text"], "{args:?}");
        // A cache that cannot be used does not change the answer either.
        let broken = ask(&repository("Cargo.toml"), args).json();
        assert_eq!((n_cached(&broken), &broken["text"]), (0, &cold["text"]), "{args:?}");
        assert_eq!(entries(&cache).len(), [1, 2, 5, 6][nth], "{args:?}");
    }
    all_sound(&cache);
    // Of some that are there and one that is not, one is encoded.
    let mixed = ask(&cache, &["-i", "shapes.png", "-i", "grey16.png", "-i", "stripes.png"]).json();
    assert_eq!(n_cached(&mixed), 2);
    assert_eq!(ask(&cache, &["-i", "grey16.png"]).json()["usage"]["cached_image_tokens"], N_QUERIES);
}

/// The threads of a run are no part of a key: they must not matter.
#[test]
fn threads_do_not_change_an_embedding() {
    let (one, two) = (temp_dir(), temp_dir());
    for flash in ["on", "off"] {
        for (dir, threads) in [(&one, "1"), (&two, "2")] {
            ask(dir.path(), &["-i", "shapes.png", "-fa", flash, "-t", threads]).ok();
        }
    }
    assert_eq!(names(one.path()).len(), 2);
    assert_eq!(names(one.path()), names(two.path()));
    for name in names(one.path()) {
        assert!(fs::read(one.path().join(&name)).unwrap() == fs::read(two.path().join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn the_same_picture_twice_is_encoded_once() {
    let dir = temp_dir();
    let path = dir.path().join("copy.png");
    fs::copy(repository("tests/data/pictures/shapes.png"), &path).unwrap();
    let args = ["-i", "shapes.png", "-i", path.to_str().unwrap(), "-i", "stripes.png", "-i", "shapes.png"];
    let cache = dir.path().join("cache");
    let cold = ask(&cache, &args).json();
    assert_eq!((n_cached(&cold), entries(&cache).len()), (2, 2));
    let warm = ask(&cache, &args).json();
    assert_eq!((n_cached(&warm), &warm["text"]), (4, &cold["text"]));
    let without = ask(&cache, &[&args[..], &["--no-cache"]].concat()).json();
    assert_eq!(n_cached(&without), 0);
    assert_eq!(without["usage"]["image_tokens"], 4 * N_QUERIES);
}

#[test]
fn off_is_off() {
    let dir = temp_dir();
    let cache = dir.path().join("cache");
    for args in [["--no-cache"].as_slice(), &["--cache-size", "0"]] {
        for _ in 0..2 {
            assert_eq!(n_cached(&ask(&cache, &[&["-i", "shapes.png"], args].concat()).json()), 0);
        }
        assert!(!cache.exists(), "{args:?}");
    }
    run(ask_of(&random(), &cache, &["-i", "shapes.png"]).env("QVL_CACHE_SIZE", "0")).ok();
    // Nothing to see, nothing made.
    ask(&cache, &[]).ok();
    assert!(!cache.exists());
    // The argument wins.
    run(ask_of(&random(), &cache, &["-i", "shapes.png", "--cache-size", "1M"]).env("QVL_CACHE_SIZE", "0")).ok();
    assert_eq!(entries(&cache).len(), 1);
    ask(&cache, &["--cache-size", "lots"]).fails(2, "--cache-size");
    // The tower's own numbers are in a trace, warm or not.
    let mut trace = cached(&cache);
    trace.args(["trace", "-q", "-m"]).arg(random().text).args(["-i", "shapes.png", "x", "-o"]);
    run(trace.arg(dir.path().join("out.safetensors"))).ok();
    run(cached(&cache).args(["trace", "--no-cache"])).fails(2, "--no-cache");
    assert_eq!(entries(&cache).len(), 1);
}

/// A copy of `models/qvl-random` whose vision weights can be destroyed.
fn copy(dir: &Path) -> Model {
    let model = random();
    let mmproj = dir.join("mmproj-copy.gguf");
    fs::copy(&model.mmproj, &mmproj).unwrap();
    Model { text: model.text, mmproj }
}

/// Overwrites the data of every tensor with zeros; header, length and time stay.
fn wipe(mmproj: &Path) {
    let modified = mmproj.metadata().unwrap().modified().unwrap();
    let mut bytes = fs::read(mmproj).unwrap();
    let start = Gguf::parse(&bytes).unwrap().data_offset() as usize;
    assert!(bytes[start..].iter().any(|&b| b != 0));
    bytes[start..].fill(0);
    fs::write(mmproj, bytes).unwrap();
    File::options().write(true).open(mmproj).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_warm_answer_touches_no_vision_weight() {
    let dir = temp_dir();
    let (cache, model) = (dir.path().join("cache"), copy(dir.path()));
    let answer = |args: &[&str]| run(ask_of(&model, &cache, args).arg("-q"));
    let cold = answer(&["-i", "shapes.png"]).json();
    wipe(&model.mmproj);
    let warm = answer(&["-i", "shapes.png"]).json();
    assert_eq!((n_cached(&warm), &warm["text"]), (1, &cold["text"]));
    // The weights are gone indeed.
    let blind = answer(&["-i", "shapes.png", "--no-cache"]);
    assert!(blind.code != 0 || blind.json()["text"] != cold["text"]);
    // A file of another time is another file.
    File::options().write(true).open(&model.mmproj).unwrap().set_modified(SystemTime::now()).unwrap();
    let other = answer(&["-i", "shapes.png"]);
    assert!(other.code != 0 || n_cached(&other.json()) == 0);
}

/// A warm cache is no way around the check that both files are of one model.
#[test]
fn a_warm_answer_needs_the_right_mmproj() {
    let dir = temp_dir();
    let (cache, model) = (dir.path().join("cache"), copy(dir.path()));
    run(&mut ask_of(&model, &cache, &["-i", "shapes.png"])).ok();
    let modified = model.mmproj.metadata().unwrap().modified().unwrap();
    let mut bytes = fs::read(&model.mmproj).unwrap();
    let key = b"qvl.vision_id";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 12;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    fs::write(&model.mmproj, bytes).unwrap();
    File::options().write(true).open(&model.mmproj).unwrap().set_modified(modified).unwrap();
    run(ask_of(&model, &cache, &["-i", "shapes.png"]).arg("-q")).fails(3, "another model");
    fs::remove_file(&model.mmproj).unwrap();
    run(ask_of(&model, &cache, &["-i", "shapes.png"]).arg("-q")).fails(3, "mmproj-copy.gguf");
}

#[test]
fn a_damaged_entry_is_a_miss_and_made_again() {
    let dir = temp_dir();
    let cold = ask(dir.path(), &["-i", "shapes.png"]).json();
    let [path] = &entries(dir.path())[..] else { panic!("{:?}", names(dir.path())) };
    let sound = fs::read(path).unwrap();
    let mut flipped = sound.clone();
    flipped[1000] ^= 4;
    for bytes in [&sound[..sound.len() / 2], &flipped, b"", b"this is no entry"] {
        fs::write(path, bytes).unwrap();
        let again = run(&mut ask_of(&random(), dir.path(), &["-i", "shapes.png"]));
        assert!(!again.err.contains("cache"), "{again:?}");
        let again = again.json();
        assert_eq!((n_cached(&again), &again["text"]), (0, &cold["text"]));
        assert!(fs::read(path).unwrap() == sound);
    }
}

/// One warning, no error; none with -q.
#[test]
fn a_cache_that_cannot_be_used_is_a_warning() {
    let dir = temp_dir();
    let file = dir.path().join("file");
    fs::write(&file, "text").unwrap();
    let read_only = dir.path().join("read-only");
    fs::create_dir(&read_only).unwrap();
    let mut permissions = read_only.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&read_only, permissions).unwrap();
    // A file, below a file, and (where permissions bind: not for root) a directory that is read-only.
    let mut broken = vec![file.clone(), file.join("below")];
    if fs::write(read_only.join("test"), "").is_err() {
        broken.push(read_only);
    }
    #[cfg(target_os = "linux")]
    broken.push("/proc/qvl".into());
    let args = ["-i", "shapes.png", "-i", "stripes.png"];
    let warned = |command: &mut Command, about: &str| {
        let ran = run(command).ok();
        let warnings: Vec<_> = ran.err.lines().filter(|line| line.contains("cache")).collect();
        assert!(warnings.len() == 1 && warnings[0].starts_with("warning: "), "{ran:?}");
        assert!(warnings[0].ends_with("; going on without the cache") && warnings[0].contains(about), "{ran:?}");
        let quiet = run(command.arg("-q")).ok();
        assert_eq!(quiet.err, "");
        assert_eq!(n_cached(&quiet.json()), 0);
    };
    for dir in broken {
        warned(&mut ask_of(&random(), &dir, &args), dir.to_str().unwrap());
    }
    assert_eq!(fs::read(&file).unwrap(), b"text");
    if cfg!(all(unix, not(target_os = "macos"))) {
        let mut homeless = ask_of(&random(), &file, &args);
        homeless.env_remove("QVL_CACHE_DIR").env_remove("XDG_CACHE_HOME").env_remove("HOME");
        warned(&mut homeless, "QVL_CACHE_DIR");
    }
}

#[test]
fn where_it_is_by_default() {
    if !cfg!(all(unix, not(target_os = "macos"))) {
        return;
    }
    let dir = temp_dir();
    let info = |name: &str| {
        let mut command = qvl();
        command.env_remove("XDG_CACHE_HOME").env(name, dir.path()).args(["cache", "info", "--json"]);
        run(&mut command).json()["directory"].as_str().unwrap().to_owned()
    };
    assert_eq!(Path::new(&info("HOME")), dir.path().join(".cache/qvl"));
    assert_eq!(Path::new(&info("XDG_CACHE_HOME")), dir.path().join("qvl"));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn info_and_clear() {
    let dir = temp_dir();
    let cache = dir.path().join("cache");
    let info = |args: &[&str]| run(cached(&cache).args(["cache", "info"]).args(args));
    let clear = || run(cached(&cache).args(["cache", "clear"])).ok().out;
    let empty = info(&["--json"]).json();
    assert_eq!((&empty["entries"], &empty["bytes"], &empty["oldest_use"]), (&0.into(), &0.into(), &Value::Null));
    assert_eq!(empty["limit_bytes"], 64 << 20);
    assert_eq!(clear(), "removed 0 embeddings, 0 B\n");
    assert!(!cache.exists());

    ask(&cache, &["-i", "shapes.png", "-i", "stripes.png"]).ok();
    fs::write(cache.join("notes.emb"), "mine").unwrap();
    fs::write(cache.join(".emb-killed.tmp"), "half").unwrap();
    let n_bytes: u64 =
        entries(&cache).iter().filter(|p| !p.ends_with("notes.emb")).map(|p| p.metadata().unwrap().len()).sum();
    let full = info(&["--json", "--cache-size", "2G"]).json();
    assert_eq!((&full["entries"], &full["bytes"]), (&2.into(), &n_bytes.into()));
    assert_eq!((full["directory"].as_str(), full["limit_bytes"].as_u64()), (cache.to_str(), Some(2 << 30)));
    let time = |key: &str| full[key].as_u64().unwrap();
    assert!(time("oldest_use") <= time("newest_use") && time("oldest_use") > 1_700_000_000);
    let text = info(&[]).ok().out;
    assert!(text.contains("entries    2\n") && text.contains("64.00 MiB") && text.contains(" s ago"), "{text}");

    assert!(clear().starts_with("removed 2 embeddings and 1 half-written, "));
    assert_eq!(names(&cache), ["notes.emb"]);
    let again = ask(&cache, &["-i", "shapes.png"]).json();
    assert_eq!(n_cached(&again), 0);

    let file = |command: &str| run(cached(&cache.join("notes.emb")).args(["cache", command]));
    file("info").fails(1, "notes.emb");
    file("clear").fails(1, "notes.emb");
    assert_eq!(fs::read(cache.join("notes.emb")).unwrap(), b"mine");
}

#[test]
fn the_limit_holds_on_disk() {
    let dir = temp_dir();
    // An entry of this model is a few KiB: two fit.
    ask(dir.path(), &["-i", "shapes.png"]).ok();
    let n_bytes = entries(dir.path())[0].metadata().unwrap().len();
    let size = (2 * n_bytes + 1).to_string();
    let pictures = ["gradient.png", "stripes.png", "shapes.png", "turned.jpg"].map(|file| ["-i", file]).concat();
    ask(dir.path(), &[&pictures[..], &["--cache-size", &size]].concat()).ok();
    assert_eq!(entries(dir.path()).len(), 2);
    ask(dir.path(), &["-i", "grey16.png", "--cache-size", &(n_bytes - 1).to_string()]).ok();
    assert_eq!(entries(dir.path()).len(), 2, "what is larger than the limit is not kept, and nothing leaves for it");
}

/// Another picture for each number.
fn picture(dir: &Path, n: usize) -> PathBuf {
    let path = dir.join(format!("{n}.ppm"));
    let pixels: Vec<u8> = (0..48).map(|i| (i * 5 + n * 37) as u8).collect();
    fs::write(&path, [b"P6 4 4 255\n", &pixels[..]].concat()).unwrap();
    path
}

/// Starts `qvl ask` about this picture.
fn start(dir: &Path, picture: &Path) -> Child {
    let mut command = ask_of(&random(), dir, &["-q", "-i", picture.to_str().unwrap()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn two_processes_at_once() {
    let dir = temp_dir();
    let cache = dir.path().join("cache");
    let paths: Vec<_> = (0..4).map(|n| picture(dir.path(), n)).collect();
    for path in paths.iter().chain(&paths) {
        let both = [start(&cache, path), start(&cache, path)];
        let [a, b] = both.map(|child| Ran::from(child.wait_with_output().unwrap()).json());
        assert_eq!(a["text"], b["text"]);
    }
    assert_eq!(names(&cache).len(), paths.len(), "{:?}", names(&cache));
    all_sound(&cache);
}

/// kill -9 at any moment leaves sound entries, or files that a later run removes.
#[test]
fn a_killed_process_leaves_nothing_unsound() {
    const N_RUNS: u32 = 40;
    let dir = temp_dir();
    let cache = dir.path().join("cache");
    let json = |n: usize| Ran::from(start(&cache, &picture(dir.path(), n)).wait_with_output().unwrap()).json();
    let begin = Instant::now();
    json(1000);
    let whole = begin.elapsed();
    let mut n_killed = 0;
    for n in 0..N_RUNS {
        let mut child = start(&cache, &picture(dir.path(), n as usize));
        // From the start of a run to its end, evenly.
        std::thread::sleep(whole * n / N_RUNS);
        child.kill().unwrap();
        n_killed += u32::from(!child.wait().unwrap().success());
    }
    println!("{n_killed} of {N_RUNS} killed, {} entries, a run takes {whole:?}", entries(&cache).len());
    assert!(n_killed > 0);
    all_sound(&cache);
    // What a kill left half-written is removed an hour later.
    let left = cache.join(".emb-left.tmp");
    fs::write(&left, "half").unwrap();
    let old = SystemTime::now() - Duration::from_secs(4000);
    File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();
    assert_eq!([2000, 2000].map(|n| n_cached(&json(n))), [0, 1]);
    assert!(!left.exists());
}

/// Names the directory that [`writes_for_ever`] writes into.
const WRITER: &str = "QVL_TEST_CACHE_WRITER";

/// Nothing by itself: the process that the next test starts and kills.
#[test]
fn writes_for_ever() {
    let Some(dir) = std::env::var_os(WRITER) else { return };
    let store = Store::new(dir.into(), 16 << 20);
    for n in 0..u64::MAX {
        let embedding = ImageEmbedding { n_queries: 256, d_out: 4096, data: vec![n as f32 % 2048.0; 256 * 4096] };
        store.put(&format!("{:064x}", n % 100).parse().unwrap(), &embedding).unwrap();
    }
}

/// `qvl ask` spends little of its time on a small model's entry: this one does nothing but write large ones.
#[test]
fn a_killed_writer_leaves_nothing_unsound() {
    let dir = temp_dir();
    let writer = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cache::writes_for_ever"]).env(WRITER, dir.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for n in 0..20 {
        // Two side by side, each of which evicts what the other wrote.
        let mut both = [writer(), writer()];
        let begin = Instant::now();
        while entries(dir.path()).is_empty() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(20_000 + 7_300 * n));
        for child in &mut both {
            assert!(child.try_wait().unwrap().is_none(), "it writes for ever");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        all_sound(dir.path());
    }
    let n_half_written = names(dir.path()).len() - entries(dir.path()).len();
    println!("{} entries, {n_half_written} half-written", entries(dir.path()).len());
    assert!(!entries(dir.path()).is_empty());
}
