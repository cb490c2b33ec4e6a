//! `--cache-prompt`: a warm answer is the cold one to the last bit, neither picture nor prompt is read again for it, and nothing
//! that happens to its files is more than a miss.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qvl::cache::Store;
use qvl::ggml::has_amx;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::adapter_files::{config, text_factors, write};
use crate::cache::{cached, temp_dir};
use crate::models::{Model, N_QUERIES, random, random_as};
use crate::programs::{EXACT, Ran, repository, run};

/// Bytes before an entry's state.
const N_HEAD: usize = 44;

/// A greedy answer of `model` that keeps its prompt.
fn ask_of(model: &Model, dir: &Path, args: &[&str]) -> Command {
    let mut command = cached(dir);
    command.args(["ask", "--cache-prompt", "--temp", "0", "--json", "--logprobs", "5", "-m"]).arg(&model.text);
    command.arg("--mmproj").arg(&model.mmproj).args(args);
    if !args.contains(&"-n") {
        command.args(["-n", "16"]);
    }
    command
}

/// The same of `models/qvl-random`, about a picture of shapes.
fn ask(dir: &Path, args: &[&str]) -> Ran {
    run(&mut ask_of(&random(), dir, &[&["-i", "shapes.png"], args].concat()))
}

fn usage(json: &Value, name: &str) -> usize {
    json["usage"][name].as_u64().unwrap_or_else(|| panic!("{name}: {json}")) as usize
}

/// Positions of the prompt that came from the cache.
fn n_cached(json: &Value) -> usize {
    json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() as usize
}

/// Text and all log-probabilities, which differ if a bit of any logit does.
fn said(json: &Value) -> (&Value, &Value) {
    (&json["text"], &json["logprobs"])
}

/// Prompts in a directory.
fn prompts(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|e| e.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "kv")).collect()
}

fn the_prompt(dir: &Path) -> PathBuf {
    let found = prompts(dir);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Files that are being written.
fn n_half_written(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "tmp")).count()
}

/// Proves that every prompt is sound.
#[track_caller]
fn all_sound(dir: &Path) {
    let store = Store::new(dir.to_owned(), 1 << 30);
    for path in prompts(dir) {
        let key = path.file_stem().unwrap().to_str().unwrap().parse().expect("named by a key");
        assert!(store.get_prompt(&key, 1 << 30).unwrap().is_some(), "{}", path.display());
    }
}

#[test]
fn a_warm_answer_is_the_cold_one_to_the_last_bit() {
    let exact = ["-i", "shapes.png", "-fa", "off", "-ctk", "f32", "-ctv", "f32"];
    for args in [
        &["-i", "shapes.png"][..],
        &exact,
        &["-i", "shapes.png", "-ctk", "q8_0", "-ctv", "q8_0"],
        &["-i", "stripes.png", "-i", "gradient.png", "-i", "turned.jpg", "-sys", "Be brief."],
        &["-i", "shapes.png", "--raw"],
    ] {
        let (dir, other) = (temp_dir(), temp_dir());
        let answer =
            |dir: &TempDir, more: &[&str]| run(&mut ask_of(&random(), dir.path(), &[args, more].concat())).json();
        let cold = answer(&dir, &["What is this?"]);
        assert_eq!(n_cached(&cold), 0, "{args:?}");
        let warm = answer(&dir, &["What is this?"]);
        assert_eq!(said(&warm), said(&cold), "{args:?}");
        let n_pictures = args.iter().filter(|arg| **arg == "-i").count();
        assert!(n_cached(&warm) >= n_pictures * (N_QUERIES + 2), "{warm}");
        assert_eq!(usage(&warm, "cached_image_tokens"), n_pictures * N_QUERIES);
        // Only the question and what stands around it are read.
        assert!(usage(&warm, "prompt_tokens") - n_cached(&warm) < 20, "{warm}");
        // Another question, a longer answer, another number of threads.
        let question = ["How many of them are there, and where?", "-n", "24", "-t", "2"];
        let (warm, cold) = (answer(&dir, &question), answer(&other, &question));
        assert_eq!((n_cached(&warm) > 0, n_cached(&cold)), (true, 0), "{args:?}");
        assert_eq!(said(&warm), said(&cold), "{args:?}");
        assert_eq!(prompts(dir.path()).len(), 1, "{args:?}");
        all_sound(dir.path());
        // Written by one thread and by two: the same file.
        let bytes = |dir: &TempDir| fs::read(the_prompt(dir.path())).unwrap();
        assert!(bytes(&dir) == bytes(&other), "{args:?}");
        // As if nothing were kept, but for rounding; exact sums have none that changes a token.
        let mut without = cached(dir.path());
        without.args(["ask", "--temp", "0", "--json", "-m"]).arg(random().text).args(args).args(question);
        let without = run(&mut without).json();
        assert_eq!(n_cached(&without), 0);
        assert_eq!(without["text"], warm["text"], "{args:?}");
    }
}

/// Prompts beyond the training length have another rotary base: another beginning. A prompt may end with its picture.
#[test]
fn lengths_and_ends() {
    let dir = temp_dir();
    let words = "word ".repeat(200);
    for question in [words.as_str(), "What is this?", &words] {
        let (first, second) = (ask(dir.path(), &[question]).json(), ask(dir.path(), &[question]).json());
        assert_eq!(said(&first), said(&second));
        assert!(n_cached(&second) > 0);
    }
    assert_eq!(prompts(dir.path()).len(), 2);

    let dir = temp_dir();
    let raw = || run(&mut ask_of(&random(), dir.path(), &["--raw", "<img>shapes.png</img>"])).json();
    let (cold, warm) = (raw(), raw());
    assert_eq!(said(&warm), said(&cold));
    assert_eq!((n_cached(&cold), n_cached(&warm)), (0, usage(&warm, "prompt_tokens") - 1));
    // No picture, nothing kept.
    let dir = temp_dir();
    run(&mut ask_of(&random(), dir.path(), &["Hello?"])).json();
    assert!(!dir.path().join("x").exists() && fs::read_dir(dir.path()).unwrap().count() == 0);
}

/// What is in the file is what is used: other values, other answer. And no vision weight is.
#[test]
fn nothing_is_computed_again() {
    let dir = temp_dir();
    let (cache, mmproj) = (dir.path().join("cache"), dir.path().join("mmproj-copy.gguf"));
    fs::copy(random().mmproj, &mmproj).unwrap();
    let model = Model { text: random().text, mmproj: mmproj.clone() };
    let answer = || run(&mut ask_of(&model, &cache, &["-i", "shapes.png", "What is this?"])).json();
    let cold = answer();
    let modified = mmproj.metadata().unwrap().modified().unwrap();
    let mut bytes = fs::read(&mmproj).unwrap();
    let start = qvl::gguf::Gguf::parse(&bytes).unwrap().data_offset() as usize;
    bytes[start..].fill(0);
    fs::write(&mmproj, bytes).unwrap();
    fs::File::options().write(true).open(&mmproj).unwrap().set_modified(modified).unwrap();
    assert_eq!(said(&answer()), said(&cold));

    let path = the_prompt(&cache);
    let mut bytes = fs::read(&path).unwrap();
    let n = bytes.len() - 32;
    // The values of the last layer.
    bytes[n - 2000..n].fill(0);
    let checksum = Sha256::digest(&bytes[..n]);
    bytes[n..].copy_from_slice(&checksum);
    fs::write(&path, bytes).unwrap();
    let changed = answer();
    assert!(n_cached(&changed) > N_QUERIES);
    assert_ne!(said(&changed), said(&cold));
}

#[test]
fn another_prompt_model_or_setting_is_a_miss() {
    let dir = temp_dir();
    let adapter = dir.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    write(&adapter, &config(4, 8.0, json!({})), &text_factors(4));
    let lora = dir.path().join("lora.gguf");
    let mut export = Command::new(env!("CARGO_BIN_EXE_qvl-convert"));
    export.args(["lora", "-q"]).arg(&adapter).arg("--base").arg(repository("models/qvl-random")).arg("-o").arg(&lora);
    run(&mut export).ok();
    let lora = lora.to_str().unwrap();
    let half = format!("{lora}=0.5");

    let cache = dir.path().join("cache");
    let misses = |n_before: usize, model: &Model, args: &[&str]| {
        let args = [args, &["What is this?"]].concat();
        let cold = run(&mut ask_of(model, &cache, &args)).json();
        assert_eq!((n_cached(&cold), prompts(&cache).len()), (0, n_before + 1), "{args:?}");
        let warm = run(&mut ask_of(model, &cache, &args)).json();
        assert!(n_cached(&warm) > 0, "{args:?}");
        assert_eq!(said(&warm), said(&cold), "{args:?}");
    };
    let shapes = ["-i", "shapes.png"];
    let with = |more: &[&'static str]| [&shapes[..], more].concat();
    for (n, args) in [
        with(&[]),
        with(&["-sys", "Be brief."]),
        with(&["-i", "stripes.png"]),
        vec!["-i", "stripes.png"],
        with(&["-ctk", "q8_0"]),
        with(&["-ctv", "q8_0"]),
        with(&["-fa", "off"]),
        with(if has_amx() { &["-ctk", "q4_0"] } else { &["--repack", "on"] }),
        with(&["--raw"]),
        [&shapes[..], &["--lora", lora]].concat(),
        [&shapes[..], &["--lora", &half]].concat(),
    ]
    .into_iter()
    .enumerate()
    {
        misses(n, &random(), &args);
    }
    misses(11, &Model { text: random_as("q8_0", "f32").text, ..random() }, &shapes);
}

#[test]
fn damage_is_one_warning_and_made_good() {
    let dir = temp_dir();
    let cold = ask(dir.path(), &["What is this?"]).json();
    let path = the_prompt(dir.path());
    let sound = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        bytes
    };
    // A checksum that is right, over a state that is not.
    let lie = |at: usize| {
        let mut bytes = flipped(at);
        let n = bytes.len() - 32;
        let checksum = Sha256::digest(&bytes[..n]);
        bytes[n..].copy_from_slice(&checksum);
        bytes
    };
    let n = sound.len();
    for bytes in [
        vec![],
        sound[..20].to_vec(),
        sound[..n / 2].to_vec(),
        sound[..n - 1].to_vec(),
        [&sound[..], &[0]].concat(),
        flipped(0),
        flipped(20),
        flipped(n / 2),
        flipped(n - 1),
        lie(N_HEAD),
        lie(N_HEAD + 8),
        lie(N_HEAD + 12),
        b"this is no entry".to_vec(),
    ] {
        fs::write(&path, bytes).unwrap();
        let ran = ask(dir.path(), &["What is this?"]).ok();
        let warnings: Vec<_> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(warnings.len() == 1 && warnings[0].ends_with("; reading it again"), "{ran:?}");
        let again = ran.json();
        assert_eq!((n_cached(&again), said(&again)), (0, said(&cold)));
        assert!(fs::read(&path).unwrap() == sound);
        let warm = ask(dir.path(), &["What is this?", "-q"]).ok();
        assert_eq!(warm.err, "");
        assert!(n_cached(&warm.json()) > 0);
    }
}

#[test]
fn it_is_on_where_it_is_asked_for() {
    let dir = temp_dir();
    let question = ["-i", "shapes.png", "What is this?"];
    let mut plain = cached(dir.path());
    plain.args(["ask", "-q", "-n", "4", "--json", "-m"]).arg(random().text).args(question);
    for (value, n) in [("", 0), ("0", 0), ("off", 0), ("1", 1)] {
        run(plain.env("QVL_CACHE_PROMPT", value)).ok();
        assert_eq!(prompts(dir.path()).len(), n, "{value:?}");
    }
    assert!(n_cached(&run(&mut plain).json()) > 0);
    // No cache is no cache.
    let off = temp_dir();
    for args in [&["--no-cache"][..], &["--cache-size", "0"]] {
        assert_eq!(n_cached(&ask(off.path(), &[args, &["What?"]].concat()).json()), 0);
        assert_eq!(fs::read_dir(off.path()).unwrap().count(), 0);
    }
    // detect asks about a picture in the same way, in other words.
    let mut detect = cached(dir.path());
    detect.args(["detect", "--cache-prompt", "--json", "-n", "8", "-m"]).arg(random().text).args([
        "-i",
        "shapes.png",
        "star",
    ]);
    assert!(n_cached(&run(&mut detect).json()) > N_QUERIES);
}

/// A session's first question takes it up; the next ones have the session's own.
#[test]
fn sessions_begin_with_it() {
    let dir = temp_dir();
    let session = dir.path().join("s");
    let say = |session: &Path, args: &[&str]| {
        let mut command = ask_of(&random(), &dir.path().join("cache"), args);
        run(command.args(EXACT).arg("--session").arg(session)).json()
    };
    let first = ["-i", "shapes.png", "What is this?"];
    let cold = say(&session, &first);
    let next = say(&session, &["Where?"]);
    let other = dir.path().join("t");
    let warm = say(&other, &first);
    assert_eq!(said(&warm), said(&cold));
    assert!(n_cached(&warm) > N_QUERIES && n_cached(&warm) == usage(&warm, "reused_tokens"));
    assert_eq!(said(&say(&other, &["Where?"])), said(&next));
    assert_eq!(prompts(&dir.path().join("cache")).len(), 1);
}

#[test]
fn what_does_not_fit_is_not_kept() {
    let dir = temp_dir();
    let size = |args: &[&str]| ask(dir.path(), &[args, &["--cache-size", "20000", "What is this?"]].concat()).ok();
    assert!(!size(&[]).err.contains("kept"));
    let told = size(&["-v"]).err;
    assert_eq!(told.matches("is not kept: the cache may hold 19.53 KiB").count(), 1, "{told}");
    assert_eq!(prompts(dir.path()).len(), 0);
    // The least recently used leaves, of both kinds.
    ask(dir.path(), &["What is this?"]).ok();
    let n_bytes = the_prompt(dir.path()).metadata().unwrap().len() + 40_000;
    let other = ["-i", "stripes.png", "--cache-size", &n_bytes.to_string(), "What is this?"];
    run(&mut ask_of(&random(), dir.path(), &other)).ok();
    let usage = Store::new(dir.path().to_owned(), n_bytes).usage().unwrap();
    assert!(usage.n_prompts == 1 && usage.n_bytes <= n_bytes, "{usage:?}");
    assert_eq!(n_cached(&ask(dir.path(), &["What is this?"]).json()), 0, "the first one left");
}

#[test]
fn info_and_clear_count_it() {
    let dir = temp_dir();
    ask(dir.path(), &["What is this?"]).ok();
    let cache = |args: &[&str]| run(cached(dir.path()).arg("cache").args(args));
    let info = cache(&["info", "--json"]).json();
    assert_eq!((&info["entries"], &info["prompts"]), (&2.into(), &1.into()));
    let text = cache(&["info"]).ok().out;
    assert!(text.contains("entries    2 (1 embedding and 1 prompt)\n"), "{text}");
    let removed = cache(&["clear"]).ok().out;
    assert!(removed.starts_with("removed 1 embedding and 1 prompt, "), "{removed}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A place that takes embeddings but no prompt: one warning, the answer, nothing half-written.
#[test]
#[cfg(unix)]
fn a_prompt_that_cannot_be_written_is_a_warning() {
    let dir = temp_dir();
    let qvl = ask_of(&random(), dir.path(), &["-i", "shapes.png", "What is this?"]);
    // As a full disk: writing beyond so many blocks of 512 bytes fails.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$@\"", "sh"]).arg(qvl.get_program()).args(qvl.get_args());
    command.envs(qvl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(qvl.get_current_dir().unwrap());
    let ran = run(&mut command).ok();
    let warnings: Vec<_> = ran.err.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].ends_with("; going on without the cache"), "{ran:?}");
    assert!(warnings[0].contains("cannot keep prompts here"), "{ran:?}");
    assert_eq!((prompts(dir.path()).len(), n_half_written(dir.path())), (0, 0));
    assert_eq!(said(&ran.json()), said(&ask(&dir.path().join("other"), &["What is this?"]).json()));
    // One that takes nothing: still one.
    let ran = ask(&repository("Cargo.toml"), &["What is this?"]).ok();
    assert_eq!(ran.err.lines().filter(|line| line.starts_with("warning: ")).count(), 1, "{ran:?}");
}

#[test]
fn two_processes_at_once() {
    let dir = temp_dir();
    for question in ["What is this?", "Where?"] {
        let start = || {
            let mut command = ask_of(&random(), dir.path(), &["-i", "shapes.png", question]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let [a, b] = [start(), start()].map(|child| Ran::from(child.wait_with_output().unwrap()).json());
        assert_eq!(said(&a), said(&b));
    }
    all_sound(dir.path());
    assert_eq!((prompts(dir.path()).len(), n_half_written(dir.path())), (1, 0));
}

/// kill -9 at any moment leaves no prompt or a sound one.
#[test]
fn a_killed_process_leaves_nothing_unsound() {
    const N_RUNS: u32 = 30;
    let dir = temp_dir();
    let start = |n: u32| {
        let system = format!("Be brief, {n}.");
        let mut command = ask_of(&random(), dir.path(), &["-i", "shapes.png", "-q", "-sys", &system, "What is this?"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Converted before the clock runs.
    random();
    let begin = Instant::now();
    let cold = Ran::from(start(1000).wait_with_output().unwrap()).json();
    let whole = begin.elapsed();
    let mut n_killed = 0;
    for n in 0..N_RUNS {
        let mut child = start(n);
        // From the start of a run to its end, evenly.
        std::thread::sleep(whole * n / N_RUNS);
        child.kill().unwrap();
        n_killed += u32::from(!child.wait().unwrap().success());
    }
    println!("{n_killed} of {N_RUNS} killed, {} prompts, a run takes {whole:?}", prompts(dir.path()).len());
    assert!(n_killed > 0);
    all_sound(dir.path());
    let warm = Ran::from(start(1000).wait_with_output().unwrap()).json();
    assert!(n_cached(&warm) > 0);
    assert_eq!(said(&warm), said(&cold));
}

/// Names the directory that [`writes_for_ever`] writes into.
const WRITER: &str = "QVL_TEST_PROMPT_WRITER";

/// Nothing by itself: the process that the next test starts and kills.
#[test]
fn writes_for_ever() {
    let Some(dir) = std::env::var_os(WRITER) else { return };
    let store = Store::new(dir.into(), 64 << 20);
    for n in 0..u64::MAX {
        store.put_prompt(&format!("{:064x}", n % 9).parse().unwrap(), &vec![n as u8; 16 << 20]).unwrap();
    }
}

/// A small model's prompt is written in no time: this one does nothing but write large ones.
#[test]
fn a_killed_writer_leaves_nothing_unsound() {
    let dir = temp_dir();
    for n in 0..10 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "prompt_cache::writes_for_ever"]).env(WRITER, dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while prompts(dir.path()).is_empty() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(20_000 + 7_300 * n));
        assert!(child.try_wait().unwrap().is_none(), "it writes for ever");
        child.kill().unwrap();
        child.wait().unwrap();
        all_sound(dir.path());
    }
    println!("{} prompts, {} half-written", prompts(dir.path()).len(), n_half_written(dir.path()));
    assert!(!prompts(dir.path()).is_empty());
}
