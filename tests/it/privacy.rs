//! What stays with the user: no network, no file but those that were named and the cache's, no prompt where it does not belong.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::models::random_as;
use crate::programs::{Ran, qvl, qvl_convert, repository, run};

/// A word that is in no file of this repository's models.
const SECRET: &str = "zyzzyva";

/// Directories that a program may look for: of its own, empty, and looked at afterwards.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        ["home", "tmp", "work", "told"].iter().for_each(|name| fs::create_dir(world.path(name)).unwrap());
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that knows no other place than these; the cache is where it is by default.
    fn at_home(&self, mut command: Command) -> Command {
        command.current_dir(self.path("work")).env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"].iter().for_each(
            |name| {
                command.env_remove(name);
            },
        );
        command.env("QVL_CACHE_SIZE", "1G");
        command
    }

    /// All files in it.
    fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.insert(path);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(self.dir.path(), &mut found);
        found
    }
}

fn picture() -> PathBuf {
    repository("tests/data/pictures/shapes.png")
}

fn ask(world: &World) -> Command {
    let model = random_as("q8_0", "q8_0");
    let mut command = world.at_home(qvl());
    command.args(["ask", "-n", "3", "--temp", "0", "-i"]).arg(picture()).arg("-m").arg(model.text);
    command.arg("--mmproj").arg(model.mmproj).arg(format!("What is the {SECRET}?"));
    command
}

/// Nothing is left but what was asked for, and no prompt in what nobody asked for.
#[test]
fn files_are_written_where_told_and_in_the_cache() {
    let world = World::new();
    run(&mut ask(&world)).ok();
    run(ask(&world).arg("--cache-prompt")).ok();
    let cached = world.files();
    let cache = world.path("home").join(".cache/qvl");
    assert!(cached.len() == 2 && cached.iter().all(|path| path.starts_with(&cache)), "{cached:?}");
    for path in &cached {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "others may read {}", path.display());
        let bytes = fs::read(path).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "{}", path.display());
    }
    assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);

    let told = |name: &str| world.path("told").join(name);
    fs::write(told("in.jsonl"), format!("{{\"prompt\": \"{SECRET}\"}}\n")).unwrap();
    let mut batch = world.at_home(qvl());
    batch.args(["batch", "-n", "2", "--temp", "0", "-m"]).arg(random_as("q8_0", "q8_0").text).arg(told("in.jsonl"));
    run(batch.arg("-o").arg(told("out.jsonl"))).ok();
    run(ask(&world).arg("--session").arg(told("s")).arg("--annotate").arg(told("a.png"))).ok();
    let mut convert = world.at_home(qvl_convert());
    convert.arg(repository("models/qvl-random")).args(["-t", "q4_0", "--name", "n", "-o"]).arg(told("out"));
    run(&mut convert).ok();
    let more: Vec<_> = world.files().difference(&cached).cloned().collect();
    let expect = ["a.png", "in.jsonl", "out/mmproj-n-Q8_0.gguf", "out/n-Q4_0.gguf", "out.jsonl", "s"].map(told);
    assert_eq!(BTreeSet::from_iter(more), BTreeSet::from_iter(expect));
}

#[test]
fn prompts_and_pictures_are_in_no_log() {
    let world = World::new();
    let name = "shapes.png";
    let is_quiet = |ran: &Ran| !ran.err.contains(SECRET) && !ran.err.contains(name);
    let ran = run(&mut ask(&world)).ok();
    assert!(is_quiet(&ran), "{ran:?}");
    // Nor in what is said when it does not work.
    let ran = run(ask(&world).args(["-c", "8"]));
    assert!(ran.code == 2 && is_quiet(&ran), "{ran:?}");
    let ran = run(ask(&world).args(["--max-memory", "1M"]));
    assert!(ran.code == 5 && is_quiet(&ran), "{ran:?}");
}

/// In a network namespace in which there is nothing, not even this machine.
#[test]
fn no_network_is_needed() {
    let world = World::new();
    let expect = run(&mut ask(&world)).ok().out;
    let alone = |command: &Command| {
        let mut inside = Command::new("unshare");
        inside.args(["-r", "-n"]).arg(command.get_program()).args(command.get_args());
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(inside.env(name, value)),
            None => drop(inside.env_remove(name)),
        });
        inside.current_dir(world.path("work"));
        run(&mut inside)
    };
    let ran = alone(&ask(&world));
    if ran.code != 0 && ran.err.starts_with("unshare") {
        return println!("skipped: no namespaces here: {}", ran.err.trim());
    }
    assert_eq!(ran.ok().out, expect);
    let mut convert = world.at_home(qvl_convert());
    convert.arg(repository("models/qvl-random")).args(["-t", "q4_0", "--name", "n", "-o"]).arg(world.path("told"));
    alone(&convert).ok();
}

/// That no socket is made at all, where the system can be watched.
#[test]
fn no_socket_is_made() {
    let world = World::new();
    let log = world.path("log");
    let watched = |command: &Command| {
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-q", "-e", "trace=%network", "-o"])
            .arg(&log)
            .arg(command.get_program())
            .args(command.get_args());
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(strace.env(name, value)),
            None => drop(strace.env_remove(name)),
        });
        strace.current_dir(world.path("work"));
        strace.output().ok().map(Ran::from).filter(|ran| !ran.err.starts_with("strace"))
    };
    let Some(ran) = watched(&ask(&world)) else { return println!("skipped: no strace here") };
    ran.ok();
    let calls = fs::read_to_string(&log).unwrap();
    let calls: Vec<&str> = calls.lines().filter(|line| line.contains("AF_INET") || line.contains("AF_UNIX")).collect();
    assert!(calls.is_empty(), "{calls:?}");
}
