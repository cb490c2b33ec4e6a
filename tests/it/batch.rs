//! `qvl batch`: what comes out is what `ask` says, and a run may be killed at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use qvl::image::{FileFormat, Picture, encode};
use serde_json::{Value, json};

use crate::models::random;
use crate::programs::{EXACT, Ran, qvl, repository, run};

/// `qvl batch` of short greedy answers, exact so that several at a time are as one.
fn batch(input: &Path, output: &Path) -> Command {
    batch_of("8", input, output)
}

/// The same with answers of this length.
fn batch_of(n_predict: &str, input: &Path, output: &Path) -> Command {
    let mut command = qvl();
    command.args(["batch", "--temp", "0", "-n", n_predict]).args(EXACT).arg("-m").arg(random().text);
    command.current_dir(repository("tests/data/pictures")).arg(input).arg("-o").arg(output);
    command
}

fn ask(args: &[&str]) -> String {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["ask", "-q", "--temp", "0", "-n", "8"]).args(EXACT);
    run(command.arg("-m").arg(random().text).args(args)).ok().out.trim_end_matches('\n').to_owned()
}

/// Lines of an output by their id.
fn results(path: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line");
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut found = BTreeMap::new();
    for line in text.lines().map(parse) {
        let before = found.insert(line["id"].to_string(), line.clone());
        assert!(before.is_none(), "twice: {line}");
    }
    found
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn input(&self, lines: &[Value]) -> PathBuf {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(self.path("in.jsonl"), text).unwrap();
        self.path("in.jsonl")
    }
}

/// Questions about four pictures.
fn questions(n: usize) -> Vec<Value> {
    let pictures = ["shapes.png", "gradient.png", "stripes.png", "turned.jpg"];
    (0..n).map(|k| json!({"id": k, "image": pictures[k % 4], "prompt": format!("What is number {k}?")})).collect()
}

#[test]
fn answers_are_those_of_ask() {
    let dir = Dir::new();
    let mut lines = questions(10);
    lines.push(json!({"id": "two", "images": ["shapes.png", "stripes.png"], "prompt": "What differs?"}));
    lines.push(json!({"id": "none", "prompt": "Hello", "n": 3, "mine": {"kept": "to myself"}}));
    let input = dir.input(&lines);
    for parallel in ["1", "4"] {
        let output = dir.path(parallel);
        let ran = run(batch(&input, &output).args(["--parallel", parallel])).ok();
        assert!(ran.out.is_empty() && ran.err.contains("12 answered, in"), "{ran:?}");
        let found = results(&output);
        assert_eq!(found.len(), 12);
        for k in [0, 5] {
            let line = &lines[k];
            let text = ask(&["-i", line["image"].as_str().unwrap(), line["prompt"].as_str().unwrap()]);
            assert_eq!(found[&k.to_string()]["text"], text, "{k}");
        }
        assert_eq!(found["\"two\""]["text"], ask(&["-i", "shapes.png", "-i", "stripes.png", "What differs?"]));
        assert_eq!(found["\"none\""]["usage"]["completion_tokens"], 3);
        let usage = &found["\"two\""]["usage"];
        assert_eq!((usage["image_tokens"].as_u64(), usage["completion_tokens"].as_u64()), (Some(50), Some(8)));
        for key in ["encode_ms", "ttft_ms", "answer_ms"] {
            assert!(found["3"]["timings"][key].as_f64().is_some_and(|ms| ms > 0.0), "{key}");
        }
    }
}

#[test]
fn what_is_wrong_with_one_does_not_stop_the_others() {
    let dir = Dir::new();
    let input = dir.path("in.jsonl");
    let good = json!({"id": "good", "image": "shapes.png", "prompt": "What?"});
    let long = json!({"id": "long", "image": "shapes.png", "prompt": "word ".repeat(2000)});
    let gone = json!({"id": "gone", "image": "nothing.png", "prompt": "What?"});
    let text = json!({"id": "text", "image": "../text.json", "prompt": "What?"});
    fs::write(dir.path("text.json"), "{}").unwrap();
    let text = text.to_string().replace("../text.json", &dir.path("text.json").to_string_lossy());
    fs::write(&input, format!("{gone}\n{{broken\n\n{long}\n{text}\n{good}\n{good}\n{{\"id\": 5}}")).unwrap();
    let output = dir.path("out.jsonl");
    let ran = run(batch(&input, &output).args(["-c", "300"])).ok();
    assert!(ran.err.contains("1 answered, 6 failed"), "{ran:?}");
    let found = results(&output);
    let check = |id: &str, code: u64, part: &str| {
        let line = &found[id];
        let error = line["error"].as_str().unwrap_or_else(|| panic!("{line}"));
        assert!(error.contains(part) && line["code"] == code && line.get("text").is_none(), "{line}");
    };
    check("\"gone\"", 4, "nothing.png");
    check("\"line 2\"", 2, "line 2: not an item");
    check("\"long\"", 2, "the context holds 300");
    check("\"text\"", 4, "not a picture");
    check("\"item 6\"", 2, "the id \"good\" was used before");
    check("5", 2, "line 8: it has no prompt");
    assert!(found["\"good\""]["text"].is_string());
    // All were done, whatever came of it. With --retry-errors those that failed are tried again.
    let again = run(batch(&input, &output).args(["-c", "300"])).ok();
    assert!(again.err.contains("0 answered, 7 were done before"), "{again:?}");
    let retried = run(batch(&input, &output).args(["-c", "300", "--retry-errors"])).ok();
    assert!(retried.err.contains("0 answered, 6 failed"), "{retried:?}");
}

/// Every kind of line that is no item: it is named by its number, and the next one is answered.
#[test]
fn bad_lines_are_named_and_passed_over() {
    let dir = Dir::new();
    let deep = "[".repeat(100_000);
    let bad: [(&[u8], &str); 16] = [
        (b"not JSON", "not an item"),
        (b"{\"prompt\": \"cut", "not an item"),
        (b"\xff\xfe{}", "not an item"),
        (b"{\"prompt\": \"\xc3\x28\"}", "not an item"),
        (b"null", "not an item"),
        (b"17", "not an item"),
        (b"[\"shapes.png\"]", "not an item"),
        (b"\0", "not an item"),
        (deep.as_bytes(), "not an item"),
        (b"{\"prompt\": \"a\", \"prompt\": \"b\"}", "not an item"),
        (b"{\"prompt\": 3}", "not an item"),
        (b"{\"prompt\": \"a\", \"n\": -1}", "not an item"),
        (b"{\"prompt\": \"a\", \"images\": \"shapes.png\"}", "not an item"),
        (b"{\"prompt\": \"a\", \"id\": {}}", "its id is neither text nor a number"),
        (b"{\"prompt\": \"a\", \"region\": [1, 2]}", "expected a region"),
        (b"{\"prompt\": \"a\", \"temp\": 1e9}", "temp"),
    ];
    // A byte order mark, lines that end as on Windows, and empty ones.
    let mut file = b"\xef\xbb\xbf{\"id\": \"first\", \"prompt\": \"Hello\"}\r\n".to_vec();
    for (nth, (line, _)) in bad.iter().enumerate() {
        file.extend_from_slice(line);
        file.extend_from_slice(format!("\n \r\n{{\"id\": {nth}, \"prompt\": \"Hello\"}}\n").as_bytes());
    }
    let (input, output) = (dir.path("in.jsonl"), dir.path("out.jsonl"));
    fs::write(&input, file).unwrap();
    let ran = run(&mut batch_of("1", &input, &output)).ok();
    assert!(ran.err.contains("17 answered, 16 failed"), "{ran:?}");
    let found = results(&output);
    assert!(found["\"first\""]["text"].is_string());
    for (nth, (_, part)) in bad.iter().enumerate() {
        assert!(found[&nth.to_string()]["text"].is_string(), "{nth}");
        let number = 2 + 3 * nth;
        let line = &found[&format!("\"line {number}\"")];
        let error = line["error"].as_str().unwrap();
        assert!(error.starts_with(&format!("line {number}: ")) && error.contains(part), "{error}");
        assert!(line["code"] == 2 && error.len() < 300, "{error}");
    }
}

/// A raw prompt of nothing has no position to answer from; the next item has.
#[test]
fn an_empty_raw_prompt_does_not_stop_the_others() {
    let dir = Dir::new();
    let input = dir.input(&[json!({"id": 1, "prompt": ""}), json!({"id": 2, "prompt": "The picture shows"})]);
    let output = dir.path("out.jsonl");
    run(batch(&input, &output).arg("--raw")).ok();
    let found = results(&output);
    assert!(found["1"]["error"].as_str().is_some_and(|e| e.contains("the prompt is empty")), "{found:?}");
    assert_eq!(found["2"]["usage"]["completion_tokens"], 8);
}

#[test]
fn a_directory_is_one_question_about_each_picture() {
    let dir = Dir::new();
    let pictures = dir.path("pictures");
    fs::create_dir(&pictures).unwrap();
    for name in ["b.png", "a.PNG", "notes.txt"] {
        fs::copy(repository("tests/data/pictures/shapes.png"), pictures.join(name)).unwrap();
    }
    fs::write(pictures.join("broken.jpg"), b"\xff\xd8\xff what?").unwrap();
    let output = dir.path("out.jsonl");
    run(batch(&pictures, &output).args(["-p", "What is this?"])).ok();
    let found = results(&output);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["\"a.PNG\"", "\"b.png\"", "\"broken.jpg\""]);
    assert_eq!(found["\"a.PNG\""]["text"], ask(&["-i", "shapes.png", "What is this?"]));
    assert!(found["\"broken.jpg\""]["error"].as_str().unwrap().contains("broken.jpg"));
    run(&mut batch(&pictures, &dir.path("other"))).fails(2, "give it with -p");
    fs::create_dir(dir.path("empty")).unwrap();
    run(batch(&dir.path("empty"), &dir.path("other")).args(["-p", "What?"])).fails(2, "no pictures");
}

/// Pictures as people have them by the thousand: some are none. Each is answered or named, once.
#[test]
fn a_directory_of_a_thousand_is_gone_through() {
    let dir = Dir::new();
    let pictures = dir.path("pictures");
    fs::create_dir(&pictures).unwrap();
    // Eight different ones, which the cache knows again: looking at a thousand is not what is tested.
    let good = |k: usize| {
        let pixels = (0..5 * 4 * 3).map(|i| (i * 7 + k % 8 * 31) as u8).collect();
        let mut bytes = Vec::new();
        encode(&Picture::new(5, 4, pixels).unwrap(), FileFormat::Png, &mut bytes).unwrap();
        bytes
    };
    let broken = |k: usize| match k % 5 {
        0 => Vec::new(),
        1 => good(k)[..40].to_vec(),
        2 => b"<html>Not Found</html>".to_vec(),
        3 => b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(),
        _ => vec![0; 100],
    };
    for k in 0..1000 {
        let bytes = if k % 16 == 3 { broken(k) } else { good(k) };
        fs::write(pictures.join(format!("{k:04}.png")), bytes).unwrap();
    }
    fs::write(pictures.join("notes.txt"), "not asked about").unwrap();
    fs::create_dir(pictures.join("directory.png")).unwrap();
    let output = dir.path("out.jsonl");
    let run = || {
        let mut command = batch_of("1", &pictures, &output);
        command.env("QVL_CACHE_SIZE", "1G").env("QVL_CACHE_DIR", dir.path("cache"));
        run(command.args(["-p", "What?", "--parallel", "32"])).ok()
    };
    let ran = run();
    assert!(ran.err.contains("937 answered, 63 failed"), "{ran:?}");
    let found = results(&output);
    assert_eq!(found.len(), 1000);
    for k in 0..1000 {
        let name = format!("{k:04}.png");
        let line = &found[&format!("\"{name}\"")];
        match k % 16 {
            3 => assert!(line["code"] == 4 && line["error"].as_str().unwrap().contains(&name), "{line}"),
            _ => assert!(line["text"].is_string(), "{line}"),
        }
    }
    assert!(run().err.contains("0 answered, 1000 were done before"));
}

#[test]
fn shards_are_the_whole_together() {
    let dir = Dir::new();
    let input = dir.input(&questions(7));
    let whole = dir.path("whole");
    run(&mut batch(&input, &whole)).ok();
    let together = dir.path("together");
    for shard in ["1/3", "2/3", "3/3"] {
        run(batch(&input, &together).args(["--shard", shard])).ok();
    }
    let texts = |path: &Path| -> BTreeMap<String, Value> {
        results(path).into_iter().map(|(id, line)| (id, line["text"].clone())).collect()
    };
    assert_eq!(texts(&together), texts(&whole));
    assert_eq!(results(&whole).len(), 7);
    run(batch(&input, &together).args(["--shard", "4/3"])).fails(2, "i/n");
}

/// Killed again and again at any moment, it ends with every answer once.
#[test]
fn a_killed_run_goes_on() {
    let dir = Dir::new();
    let input = dir.input(&questions(24));
    let whole = dir.path("whole");
    run(&mut batch_of("24", &input, &whole)).ok();
    let output = dir.path("out.jsonl");
    let mut n_before = 0;
    for nth in 0..60u64 {
        let mut command = batch_of("24", &input, &output);
        command.args(["--parallel", "3"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // From before the model is open to the middle of the answers.
        std::thread::sleep(Duration::from_millis(5 + nth * nth * 7 % 230));
        child.kill().unwrap();
        child.wait().unwrap();
        if !output.exists() {
            continue;
        }
        let text = fs::read_to_string(&output).unwrap();
        let n_lines = text.matches('\n').count();
        assert!(n_lines >= n_before, "nothing that was done is lost");
        n_before = n_lines;
    }
    let ran = run(batch_of("24", &input, &output).args(["--parallel", "3"])).ok();
    let (found, expect) = (results(&output), results(&whole));
    assert_eq!(found.len(), 24, "{ran:?}");
    for (id, line) in found {
        assert_eq!(line["text"], expect[&id]["text"], "{id}");
    }
}

#[test]
#[cfg(unix)]
fn the_first_ctrl_c_ends_it_and_says_how_to_go_on() {
    let dir = Dir::new();
    let input = dir.input(&questions(40));
    let output = dir.path("out.jsonl");
    let mut command = batch_of("200", &input, &output);
    command.args(["-q"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let n_lines = || fs::read_to_string(&output).map_or(0, |text| text.matches('\n').count());
    while n_lines() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (130, "error: interrupted; the same command goes on from here\n"));
    assert!((1..40).contains(&results(&output).len()));
}

/// The second of two runs on one output says so and touches nothing; a first one that was killed is in nobody's way.
#[test]
fn one_output_is_one_runs() {
    let dir = Dir::new();
    let input = dir.input(&questions(24));
    let output = dir.path("out.jsonl");
    // Long answers: it is still at work when the second begins.
    let mut first = batch_of("400", &input, &output).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while fs::read_to_string(&output).map_or(0, |text| text.matches('\n').count()) == 0 {
        assert!(first.try_wait().unwrap().is_none(), "it has more to do");
        std::thread::sleep(Duration::from_millis(2));
    }
    run(&mut batch_of("24", &input, &output)).fails(1, "another qvl batch is writing this output");
    first.kill().unwrap();
    first.wait().unwrap();
    run(&mut batch_of("24", &input, &output)).ok();
    assert_eq!(results(&output).len(), 24);

    // Half a line may be one that the other run is writing.
    let whole = fs::read_to_string(&output).unwrap();
    let cut = &whole[..whole.len() - 3];
    fs::write(&output, cut).unwrap();
    let held = fs::OpenOptions::new().read(true).write(true).open(&output).unwrap();
    held.lock().unwrap();
    run(&mut batch_of("24", &input, &output)).fails(1, "out.jsonl: another qvl batch");
    assert_eq!(fs::read_to_string(&output).unwrap(), cut);
    drop(held);
    run(&mut batch_of("24", &input, &output)).ok();
    assert_eq!(results(&output).len(), 24);
}

#[test]
fn files_that_are_something_else_stay_as_they_are() {
    let dir = Dir::new();
    let input = dir.input(&questions(2));
    run(&mut batch(&input, &input)).fails(2, "would overwrite the input");
    let notes = dir.path("notes.jsonl");
    fs::write(&notes, "{\"id\": 1, \"image\": \"a.png\"}\nhalf").unwrap();
    run(&mut batch(&input, &notes)).fails(2, "line 1 is not from qvl batch");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "{\"id\": 1, \"image\": \"a.png\"}\nhalf");
    run(&mut batch(&dir.path("none.jsonl"), &dir.path("out"))).fails(2, "none.jsonl");
    run(&mut batch(&input, dir.0.path())).fails(2, "directory");
    run(&mut batch(&input, &dir.path("none/out.jsonl"))).fails(1, "cannot write");
}

/// A grammar holds for every answer.
#[test]
fn answers_follow_a_grammar() {
    let dir = Dir::new();
    let input = dir.input(&questions(5));
    let grammar = dir.path("g.gbnf");
    fs::write(&grammar, "root ::= \"yes\" | \"no\"").unwrap();
    let output = dir.path("out.jsonl");
    run(batch(&input, &output).arg("--grammar").arg(&grammar)).ok();
    let found = results(&output);
    assert_eq!(found.len(), 5);
    assert!(found.values().all(|line| line["text"] == "yes" || line["text"] == "no"), "{found:?}");
}
