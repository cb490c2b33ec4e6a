//! `qvl bench`: numbers that can be true, and two results held against each other. No number is held against a clock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::models::{Model, tiny};
use crate::programs::{Ran, qvl, repository, run, run_with_input};

/// Small enough for a busy machine.
const QUICK: [&str; 8] = ["-r", "2", "-n", "3", "-p", "24", "-d", "0,16"];
/// The least that can be measured.
const LEAST: [&str; 9] = ["--text-only", "-r", "1", "-n", "1", "-p", "8", "-d", "0"];

fn model() -> Model {
    tiny("q4_k_m", "q8_0")
}

fn bench(args: &[&str]) -> Command {
    let mut command = qvl();
    command.args(["bench", "-q", "-m"]).arg(model().text).args(args);
    command
}

/// A result as `--json` prints it, with [`QUICK`].
fn result() -> Value {
    run(bench(&QUICK).arg("--json")).json()
}

fn rows(result: &Value) -> &Vec<Value> {
    result["results"].as_array().expect("rows")
}

fn names(row: &Value) -> (String, String) {
    let name = |key: &str| row[key].as_str().expect("a name").to_owned();
    (name("case"), name("measure"))
}

fn median(result: &Value, case: &str, measure: &str) -> f64 {
    let row = rows(result).iter().find(|row| row["case"] == case && row["measure"] == measure);
    row.and_then(|row| row["median"].as_f64()).unwrap_or_else(|| panic!("no {case}, {measure}: {result}"))
}

#[test]
fn json_says_what_was_measured_and_on_what() {
    let result = result();
    assert_eq!(result["format"], "qvl-bench 1");
    assert_eq!(result["version"], env!("CARGO_PKG_VERSION"));
    assert!(result["unix_time"].as_u64() > Some(1_700_000_000));
    for (key, file) in [("text", model().text), ("vision", model().mmproj)] {
        let described = &result["model"][key];
        assert_eq!(described["bytes"].as_u64(), Some(std::fs::metadata(&file).unwrap().len()));
        assert!(described["path"].as_str().is_some_and(|path| Path::new(path).ends_with(file.file_name().unwrap())));
        assert_eq!(described["id"].as_str().map(str::len), Some(16));
    }
    assert_eq!(
        (&result["model"]["text"]["type"], &result["model"]["vision"]["type"]),
        (&json!("q4_k_m"), &json!("q8_0"))
    );
    let settings = &result["settings"];
    assert_eq!((&settings["threads"], &settings["repack"]), (&json!(1), &json!("auto")));
    assert_eq!((&settings["answer_tokens"], &settings["pictures"]), (&json!(3), &json!(["640 x 480"])));
    let machine = &result["machine"];
    assert!(machine["cpu"].as_str().is_some_and(|name| !name.is_empty()));
    assert!(machine["logical_cores"].as_u64() >= machine["physical_cores"].as_u64());
    assert!(machine["simd"].is_array() && result["warnings"].is_array());
    // Either the energy comes from somewhere, or it is said why not.
    assert_ne!(result["energy"]["source"].is_string(), result["energy"]["reason"].is_string());
}

#[test]
fn numbers_are_possible() {
    let result = result();
    let cases: BTreeSet<String> = rows(&result).iter().map(|row| names(row).0).collect();
    let expect = ["decode 3 @ 0", "decode 3 @ 16", "prefill 24", "question"].map(str::to_owned);
    assert_eq!(cases, BTreeSet::from(expect));
    for row in rows(&result) {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        let runs: Vec<f64> = row["runs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert!(number("min") <= number("median") && number("median") <= number("max"), "{row}");
        assert_eq!(runs.iter().copied().fold(f64::INFINITY, f64::min), number("min"), "{row}");
        assert_eq!(runs.iter().copied().fold(0.0, f64::max), number("max"), "{row}");
        let in_one_process = row["case"] != "question" && row["unit"] == "bytes";
        assert_eq!(runs.len(), if in_one_process { 1 } else { 2 }, "{row}");
        if row["unit"] == "tokens/s" || row["unit"] == "ms" {
            assert!(number("min") > 0.0, "{row}");
        }
    }
    let of = |measure: &str| median(&result, "question", measure);
    // Times of one run add up, so their medians cannot contradict it.
    assert!(of("first_token") >= of("encode") && of("answer") >= of("first_token"));
}

/// Half the size of a file in bytes.
#[cfg(target_os = "linux")]
fn half_of(file: &Path) -> f64 {
    std::fs::metadata(file).unwrap().len() as f64 / 2.0
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_told_by_kind() {
    let result = result();
    for case in ["question", "prefill 24", "decode 3 @ 0", "decode 3 @ 16"] {
        let of = |measure: &str| median(&result, case, measure);
        assert!(of("anonymous") > 0.0 && of("files") > 0.0, "{case}");
        assert!(of("peak") >= of("anonymous") && of("peak") >= of("files"), "{case}");
        // Kinds may be largest at different times, but never are less together than at any one time.
        assert!(of("peak") <= of("anonymous") + of("files") + of("shared") + COUNTED_IN_BATCHES, "{case}");
        // Most weights are touched: all but rows of tokens that do not occur.
        assert!(of("files") >= half_of(&model().text), "{case}");
    }
    let of = |measure: &str| median(&result, "question", measure);
    assert!(of("peak") >= of("peak_seeing") && of("peak") >= of("peak_answering"));
    assert!(of("peak_seeing") >= half_of(&model().mmproj));
    assert!(result["control_group_peak_bytes"].is_null() || result["control_group_peak_bytes"].as_u64() > Some(0));

    /// The kernel adds up what each processor counted only now and then, and a look may fall between two changes.
    const COUNTED_IN_BATCHES: f64 = 4.0 * 1024.0 * 1024.0;
}

#[test]
fn tables_have_the_rows_of_the_json() {
    let expect: Vec<(String, String)> = rows(&run(bench(&LEAST).arg("--json")).json()).iter().map(names).collect();
    let csv = run(bench(&LEAST).arg("--csv")).ok().out;
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines[0], ["case", "measure", "unit", "median", "min", "max", "runs"]);
    let found: Vec<(String, String)> = lines[1..].iter().map(|l| (l[0].to_owned(), l[1].to_owned())).collect();
    assert_eq!(found, expect);
    for line in &lines[1..] {
        assert_eq!(line.len(), 7, "{line:?}");
        assert!(line[3..].iter().all(|n| n.parse::<f64>().is_ok_and(|n| n >= 0.0)), "{line:?}");
    }

    let markdown = run(bench(&LEAST).arg("--markdown")).ok().out;
    let table: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table.iter().all(|line| line.matches('|').count() == 5 && line.ends_with('|')), "{markdown}");
    assert!(table[1].chars().all(|c| "|-: ".contains(c)), "{markdown}");
    // What is always zero (swapped memory, mostly) is not shown to people.
    assert!((4..=2 + expect.len()).contains(&table.len()), "{markdown}");
    assert!(markdown.starts_with("- machine: "), "{markdown}");

    let text = run(&mut bench(&LEAST)).ok().out;
    for part in ["machine  ", "text  ", "prefill 8 ", "decode 1 @ 0 ", "tokens/s", "one run"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(!text.contains("vision"), "{text}");
}

#[test]
fn pictures_come_as_everywhere() {
    let least = ["-r", "1", "-n", "1", "-p", "0", "-d", "0"];
    let path = repository("tests/data/pictures/shapes.png");
    let args = [&least[..], &["--json", "-i", path.to_str().unwrap()]].concat();
    let from_file = run(&mut bench(&args)).json();
    assert!(rows(&from_file).iter().all(|row| row["case"] != "prefill 0"));
    let size = &from_file["settings"]["pictures"];
    // A picture that can be read once is there for each process that measures.
    let mut command = bench(&least);
    command.args(["--json", "-i", "-", "-i", path.to_str().unwrap()]);
    let from_stdin = run_with_input(&mut command, &std::fs::read(&path).unwrap()).json();
    assert_eq!(from_stdin["settings"]["pictures"], json!([size[0], size[0]]));
    assert!(median(&from_stdin, "question", "first_token") > 0.0);
    bench(&["-i", repository("README.md").to_str().unwrap()]).fails(4, "README.md");
    bench(&["-i", "missing.png"]).fails(4, "missing.png");
}

trait Fails {
    fn fails(&mut self, code: i32, part: &str);
}

impl Fails for Command {
    #[track_caller]
    fn fails(&mut self, code: i32, part: &str) {
        Ran::fails(run(self), code, part);
    }
}

#[test]
fn what_cannot_be_measured_is_said_before() {
    for (args, part) in [
        (&["-r", "0"][..], "--repetitions"),
        (&["-r", "-1"], "--repetitions"),
        (&["-p", "1000000"], "--n-prompt"),
        (&["-p", "8,x"], "--n-prompt"),
        (&["-p", "9000"], "prefill 9000 takes 9000 positions"),
        (&["-p", "64", "-c", "32"], "the context holds 32"),
        (&["-d", "8192"], "decode 32 @ 8192"),
        (&["-n", "9000"], "decode 9000 @ 0"),
        (&["-n", "-4"], "--n-gen"),
        (&["-n", "0", "-p", "0", "--text-only"], "nothing is left"),
        (&["--text-only", "-i", "a.png"], "--text-only"),
        (&["-p", "0", "-d", "0", "-n", "8", "-c", "40"], "raise -c"),
        (&["--json", "--csv"], "--csv"),
        (&["--force"], "--compare"),
        (&["-fa", "off", "-ctv", "q8_0"], "-fa on"),
        (&["--measure", "nonsense"], "nonsense"),
    ] {
        match args[0] {
            // Only a process that measures is told what, and it answers its parent.
            "--measure" => assert!(run(&mut bench(args)).ok().out.contains(part)),
            _ => bench(args).fails(2, part),
        }
    }
    run(qvl().args(["bench", "-m", "missing.gguf"])).fails(3, "missing.gguf");
    run(qvl().arg("bench")).fails(2, "--model");
    let mut command = bench(&LEAST[1..]);
    command.arg("--mmproj").arg(model().text).fails(3, "mmproj");
    // What only the measuring process finds comes through.
    bench(&[&LEAST[..], &["-dev", "gpu9"]].concat()).fails(2, "gpu9");
}

/// A result in a file, as it is or changed.
fn written(dir: &Path, name: &str, result: &Value) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, result.to_string()).unwrap();
    path
}

fn compare(files: &[&Path], args: &[&str]) -> Command {
    let mut command = qvl();
    command.args(["bench", "-q", "--compare"]).args(files).args(args);
    command
}

#[test]
fn two_results_are_held_against_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old.json");
    let args = ["--text-only", "-r", "2", "-n", "1", "-p", "8", "-d", "0"];
    run(bench(&args).arg("-o").arg(&old)).ok();
    let result: Value = serde_json::from_str(&std::fs::read_to_string(&old).unwrap()).unwrap();

    let same = run(&mut compare(&[&old, &old], &["--json"])).json();
    let lines = same["comparison"].as_array().unwrap();
    assert_eq!(lines.iter().map(names).collect::<Vec<_>>(), rows(&result).iter().map(names).collect::<Vec<_>>());
    for line in lines {
        assert!(line["ratio"] == 1.0 || line["old"] == 0.0, "{line}");
        assert_eq!(line["verdict"], "same", "{line}");
    }

    // Ten times of everything, far beyond any spread.
    let with_runs = |low: f64, high: f64| {
        let mut result = result.clone();
        for row in result["results"].as_array_mut().unwrap() {
            let numbers = json!({"median": high, "min": low, "max": high, "runs": [low, high]});
            row.as_object_mut().unwrap().extend(numbers.as_object().unwrap().clone());
        }
        result
    };
    let (before, after) = (with_runs(99.0, 100.0), with_runs(999.0, 1000.0));
    let [before, after] = [("before.json", &before), ("after.json", &after)].map(|(n, r)| written(dir.path(), n, r));
    let changed = run(&mut compare(&[&before, &after], &["--json"])).json();
    for line in changed["comparison"].as_array().unwrap() {
        let speed = line["unit"] == "tokens/s";
        assert_eq!(line["verdict"], if speed { "better" } else { "worse" }, "{line}");
        assert_eq!(line["ratio"], 10.0, "{line}");
    }
    let text = run(&mut compare(&[&before, &after], &[])).ok().out;
    assert!(text.contains("better") && text.contains("worse") && text.contains("10.000"), "{text}");
    let csv = run(&mut compare(&[&before, &after], &["--csv"])).ok().out;
    assert!(csv.starts_with("case,measure,unit,old,new,ratio,verdict\n"), "{csv}");
    assert!(csv.lines().all(|line| line.matches(',').count() == 6), "{csv}");
    let markdown = run(&mut compare(&[&before, &after], &["--markdown"])).ok().out;
    assert!(markdown.lines().any(|line| line.starts_with("| ---")), "{markdown}");

    // Against now.
    let mut now = bench(&args);
    now.args(["--json", "--compare"]).arg(&old);
    let now = run(&mut now).json();
    assert_eq!(now["comparison"].as_array().unwrap().len(), lines.len());
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old.json");
    run(bench(&LEAST).arg("-o").arg(&old)).ok();
    let result: Value = serde_json::from_str(&std::fs::read_to_string(&old).unwrap()).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut result = result.clone();
        change(&mut result);
        written(dir.path(), name, &result)
    };
    let threads = changed("threads.json", &|r| r["settings"]["threads"] = json!(7));
    let other = changed("other.json", &|r| r["model"]["text"]["id"] = json!("0123456789abcdef"));
    for (file, part) in [(&threads, "threads: 1, now 7"), (&other, "text: ")] {
        compare(&[&old, file], &[]).fails(2, part);
        let forced = run(&mut compare(&[&old, file], &["--force"])).ok().out;
        assert!(forced.contains(&format!("note: {part}")), "{forced}");
    }
    // Found before anything is measured.
    let mut now = bench(&LEAST);
    now.arg("--compare").arg(&threads).fails(2, "--force");
    let nothing = changed("nothing.json", &|r| r["results"] = json!([]));
    compare(&[&old, &nothing], &[]).fails(2, "nothing in common");

    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let damaged: [Damage; 6] = [
        ("no results", &|r| drop(r.as_object_mut().unwrap().remove("results"))),
        ("text", &|r| r["results"] = json!("many")),
        ("unit", &|r| r["results"][0]["unit"] = json!("parsecs")),
        ("median", &|r| r["results"][0]["median"] = json!(-1.0)),
        ("runs", &|r| r["results"][0]["runs"] = json!([])),
        ("range", &|r| r["results"][0]["max"] = json!(0.0)),
    ];
    for (name, damage) in damaged {
        compare(&[&old, &changed(name, damage)], &[]).fails(2, "damaged");
    }
    let newer = changed("newer.json", &|r| r["format"] = json!("qvl-bench 2"));
    compare(&[&newer, &old], &[]).fails(2, "another version");
    for content in ["", "{", "[1]", "{\"text\": \"hello\"}", "\u{0}\u{1}"] {
        let path = dir.path().join("junk.json");
        std::fs::write(&path, content).unwrap();
        compare(&[&path, &old], &[]).fails(2, "junk.json");
    }
    compare(&[&dir.path().join("missing.json")], &[]).fails(2, "missing.json");
    compare(&[dir.path()], &[]).fails(2, "cannot read");
    compare(&[&old], &[]).fails(2, "-m");
    compare(&[&old, &old, &old], &[]).fails(2, "error");
}

#[test]
fn a_result_is_written_in_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let mut command = bench(&LEAST);
    command.arg("-o").arg(dir.path().join("none/result.json")).fails(1, "cannot write");
    let old = dir.path().join("old.json");
    std::fs::write(&old, "{}").unwrap();
    let mut command = compare(&[&old, &old], &[]);
    command.arg("-o").arg(&path).fails(2, "old.json");
    // A run that fails half-way.
    bench(&[&LEAST[..], &["-dev", "gpu9", "-o", path.to_str().unwrap()]].concat()).fails(2, "gpu9");
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only old.json");
}

#[test]
#[cfg(unix)]
fn a_bench_that_is_interrupted_leaves_nothing() {
    use std::io::Read;
    use std::process::Stdio;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    // Thousands of tokens, at a depth that takes a while.
    let args = ["-v", "--text-only", "-n", "4000", "-p", "0", "-d", "4000", "-r", "9", "--json", "-o"];
    let mut command = bench(&args);
    command.arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // With -v the measuring process is heard as soon as it loads the model.
    child.stderr.as_mut().unwrap().read_exact(&mut [0; 64]).unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    // It ends only when the measuring process, which has the same stderr, has ended as well.
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.out.as_str()), (130, ""));
    assert!(ran.err.ends_with("error: interrupted\n"), "{ran:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
