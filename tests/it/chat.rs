//! `qvl chat` from a pipe: turns, commands, files.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use qvl::grounding;
use qvl::image::{Orientation, load};
use serde_json::{Value, json};

use crate::models::{Model, base, random, tiny};
use crate::programs::{EXACT, Ran, qvl, repository, run, run_with_input};

/// `qvl chat`, greedy, at most 24 tokens an answer, among the pictures.
fn chat(model: &Model) -> Command {
    chat_as(model, &["--temp", "0", "-n", "24"])
}

/// `qvl chat` with these flags, among the pictures.
fn chat_as(model: &Model, flags: &[&str]) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures"));
    command.args(["chat", "-q", "-m"]).arg(&model.text).args(flags);
    command
}

/// Says these lines.
fn say(command: &mut Command, lines: &[&str]) -> Ran {
    run_with_input(command, (lines.join("\n") + "\n").as_bytes())
}

/// What was said in the end, after lines that all went well.
fn turns(command: &mut Command, lines: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.json");
    let save = format!("/save {}", path.display());
    let ran = say(command, &[lines, &[&save]].concat()).ok();
    assert_eq!(ran.err, "", "nothing but answers with -q");
    saved(&path)["turns"].as_array().unwrap().clone()
}

fn saved(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn answers(turns: &[Value]) -> Vec<&str> {
    turns.iter().map(|turn| turn["answer"].as_str().unwrap()).collect()
}

#[test]
fn answers_come_line_by_line() {
    let lines = ["/image shapes.png", "What is this?", "stripes.png turned.jpg Compare.", "", "And\\", "now?"];
    let all = turns(&mut chat(&random()), &lines);
    let said: Vec<_> = all.iter().map(|turn| turn["question"].as_str().unwrap()).collect();
    assert_eq!(said, ["What is this?", "Compare.", "And\nnow?"]);
    let path = |name: &str| repository("tests/data/pictures").join(name).to_str().unwrap().to_owned();
    assert_eq!(all[0]["pictures"], json!([path("shapes.png")]));
    assert_eq!(all[1]["pictures"], json!([path("stripes.png"), path("turned.jpg")]));
    assert_eq!(all[2]["pictures"], json!([]));
    let ran = say(&mut chat(&random()), &lines).ok();
    assert_eq!(ran.out, answers(&all).iter().map(|answer| format!("{answer}\n")).collect::<String>());
    // The same as ask, where there is but one question.
    let mut ask = qvl();
    ask.current_dir(repository("tests/data/pictures")).args(["ask", "-q", "--temp", "0", "-n", "24", "-m"]);
    let ran = run(ask.arg(random().text).args(["-i", "shapes.png", "What is this?"])).ok();
    assert_eq!(ran.out.trim(), all[0]["answer"]);
}

#[test]
fn pictures_of_the_command_line_belong_to_the_first_question() {
    let expect = turns(&mut chat(&random()), &["/image shapes.png", "/image stripes.png", "What?"]);
    let found = turns(chat(&random()).args(["-i", "shapes.png", "-i", "stripes.png"]), &["What?"]);
    assert_eq!(found, expect);
}

/// The whole history read at once, in a process of its own, gives the same answer as what was read bit by bit.
#[test]
fn a_later_answer_is_that_of_the_whole_history() {
    let model = tiny("f16", "f16");
    let picture = repository("models/qvl-tiny/demo/shapes.png");
    let picture = picture.to_str().unwrap();
    let show = format!("{picture} What does the word say?");
    let questions = ["What does the word say?", "Where is it?", "Is there a red circle?"];
    let all = turns(chat(&model).args(EXACT), &[&show, questions[1], questions[2]]);
    assert_eq!(all[0]["answer"], "WATER");
    let mut text = String::from("<|im_start|>system\nYou are a helpful assistant.<|im_end|>");
    let mut head = format!("Picture 1: <img>{picture}</img>\n");
    for (question, answer) in questions.iter().zip(answers(&all)) {
        text +=
            &format!("\n<|im_start|>user\n{}{question}<|im_end|>\n<|im_start|>assistant\n", std::mem::take(&mut head));
        let mut ask = qvl();
        ask.args(["ask", "-q", "--temp", "0", "-n", "24", "--raw", &text, "-m"]).arg(&model.text).args(EXACT);
        assert_eq!(run(&mut ask).ok().out.trim(), answer, "{text}");
        text += &format!("{answer}<|im_end|>");
    }
}

#[test]
fn undo_takes_back_what_came_last() {
    let expect = turns(&mut chat(&random()), &["One?", "Two?"]);
    let lines = ["One?", "shapes.png Wrong?", "/undo", "/image stripes.png", "/undo", "Two?"];
    assert_eq!(turns(&mut chat(&random()), &lines), expect);
    assert!(turns(&mut chat(&random()), &["One?", "/undo", "/undo", "/undo"]).is_empty());
    assert_eq!(turns(&mut chat(&random()), &["Wrong?", "shapes.png Wrong?", "/clear", "One?", "Two?"]), expect);
}

#[test]
fn retry_answers_again_with_another_seed() {
    let greedy = turns(&mut chat(&random()), &["shapes.png One?", "/image stripes.png", "Two?"]);
    let lines = ["shapes.png One?", "/image stripes.png", "/retry", "Two?", "/retry"];
    assert_eq!(turns(&mut chat(&random()), &lines), greedy);
    let sampled = |n_retries: usize| {
        let mut command = chat_as(&random(), &["-n", "24", "--temp", "1.5", "--top-p", "1", "-s", "7"]);
        let lines = [&["One?"], vec!["/retry"; n_retries].as_slice()].concat();
        turns(&mut command, &lines)
    };
    let found = [0, 1, 2, 2].map(sampled);
    assert!(found.iter().all(|turns| turns.len() == 1));
    assert!(found[0] != found[1] && found[1] != found[2] && found[2] == found[3], "{found:?}");
}

#[test]
fn a_saved_chat_goes_on_as_if_it_had_not_ended() {
    let model = tiny("f16", "f16");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my chat.json");
    let picture = repository("models/qvl-tiny/demo/shapes.png");
    let first = format!("{} What does the word say?", picture.display());
    let expect = turns(chat(&model).args(EXACT), &[&first, "Where is it?", "How many objects are there?"]);
    let save = format!("/save '{}'", path.display());
    let ran = say(chat(&model).args(EXACT).args(["-sys", "You are a helpful assistant."]), &[&first, &save]);
    assert_eq!(ran.ok().out, "WATER\n");
    let load = format!("/load '{}'", path.display());
    let lines = ["Forget this.", &load, "Where is it?", "How many objects are there?"];
    assert_eq!(turns(chat(&model).args(EXACT), &lines), expect);
}

#[test]
fn what_cannot_be_loaded_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        format!("/load {}", path.display())
    };
    let chat_of = |picture: &str| {
        let turn = json!({"pictures": [picture], "question": "What?", "answer": "That."});
        json!({"format": "qvl-chat", "version": 1, "system": "x", "turns": [turn]}).to_string()
    };
    let loads = [
        file("damaged.json", chat_of("a.png")[..40].to_owned()),
        file("other.json", "{\"format\": \"x\"}".to_owned()),
        file("missing-picture.json", chat_of("missing.png")),
        file("address.json", chat_of("http://127.0.0.1:9/a.png")),
        format!("/load {}", dir.path().join("none.json").display()),
        format!("/load {}", dir.path().display()),
    ];
    let path = dir.path().join("after.json");
    let mut lines = vec!["One?"];
    lines.extend(loads.iter().map(String::as_str));
    let save = format!("/save {}", path.display());
    lines.push(&save);
    let ran = say(&mut chat(&random()), &lines).ok();
    let errors: Vec<&str> = ran.err.lines().collect();
    assert_eq!(errors.len(), loads.len(), "{ran:?}");
    let names = ["damaged.json", "other.json", "missing.png", "http://", "none.json", "error"];
    for (error, part) in errors.iter().zip(names) {
        assert!(error.starts_with("error: ") && error.contains(part), "{error} lacks {part}");
    }
    assert_eq!(saved(&path)["turns"], json!(turns(&mut chat(&random()), &["One?"])));
    assert_eq!(saved(&path)["system"], "You are a helpful assistant.");
}

#[test]
fn boxes_are_drawn_on_the_picture_of_the_last_answer() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let picture = repository("models/qvl-tiny/demo/shapes.png");
    fs::copy(&picture, file("a.png")).unwrap();
    let answer = "<ref>purple star</ref><box>(72,143),(374,411)</box> and <box>(1,2)</box>";
    // Relative to the file.
    let turn = json!({"pictures": ["a.png"], "question": "Where is it?", "answer": answer});
    let text = json!({"format": "qvl-chat", "version": 1, "system": "x", "turns": [turn]}).to_string();
    fs::write(file("chat.json"), text).unwrap();
    let (load_chat, out) = (format!("/load {}", file("chat.json").display()), file("out.png"));
    let boxes = format!("/boxes {}", out.display());
    let over = format!("/boxes {}", file("a.png").display());
    let lines = ["/boxes early.png", &load_chat, &over, &boxes, "/boxes x.txt"];
    let ran = say(&mut chat(&random()), &lines).ok();
    let errors: Vec<&str> = ran.err.lines().collect();
    assert_eq!(errors.len(), 3, "{ran:?}");
    for (error, part) in errors.iter().zip(["no answer yet", "would replace it", "x.txt"]) {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    let (regions, _) = grounding::regions(answer);
    let mut expect = load(&picture, Orientation::Upright).unwrap();
    grounding::draw(&mut expect, &regions);
    assert!(load(&out, Orientation::Upright).unwrap() == expect);
    fs::remove_file(&out).unwrap();

    // The picture that waits is not the one that was asked about, so that one is read again.
    let again = [load_chat.as_str(), "/image shapes.png", &boxes];
    say(&mut chat(&random()), &again).ok();
    assert!(load(&out, Orientation::Upright).unwrap() == expect);
}

#[test]
fn settings_change_the_next_answer() {
    let expect = turns(&mut chat_as(&random(), &["--temp", "0", "-n", "5"]), &["One?"]);
    assert_eq!(turns(&mut chat(&random()), &["/set predict 5", "One?"]), expect);
    assert_eq!(answers(&turns(&mut chat(&random()), &["/set predict 0", "One?"])), [""]);
    let lines = ["One?", "/set temp hot", "/set heat 1", "/set top-p 0.5", "/set"];
    let ran = say(&mut chat(&random()), &lines).ok();
    let (errors, shown): (Vec<&str>, Vec<&str>) = ran.err.lines().partition(|line| line.starts_with("error: "));
    assert_eq!(errors.len(), 2, "{ran:?}");
    assert_eq!(shown[..3], ["temp 0", "top-k 0", "top-p 0.5"]);
    let by_flag = turns(chat(&random()).args(["-sys", "Be brief."]), &["One?"]);
    assert_eq!(turns(&mut chat(&random()), &["/system Be brief.", "One?"]), by_flag);
    assert_eq!(say(&mut chat(&random()), &["/system"]).ok().err, "You are a helpful assistant.\n");
}

#[test]
fn a_line_that_fails_does_not_end_the_chat() {
    let lines =
        ["/foo", "/image missing.png", "/image", "/retry", "/save /no/such/place/a.json", "/boxes a.png", "One?"];
    let ran = say(&mut chat(&random()), &lines).ok();
    assert_eq!(ran.err.lines().filter(|line| line.starts_with("error: ")).count(), 6, "{ran:?}");
    assert_eq!(ran.out.trim(), answers(&turns(&mut chat(&random()), &["One?"]))[0]);
    let ran = run_with_input(&mut chat(&random()), b"caf\xe9\nOne?").ok();
    assert!(ran.err.contains("UTF-8") && !ran.out.is_empty(), "{ran:?}");
    // A picture that came with a question that failed is not left over.
    let mut small = chat(&random());
    small.args(["-c", "64"]);
    let long = format!("shapes.png {}", "word ".repeat(200));
    let ran = say(&mut small, &[&long, "/tokens"]).ok();
    assert!(ran.err.contains("the context holds 64") && ran.err.contains("0 pictures"), "{ran:?}");
    assert_eq!(run(&mut chat(&random())).ok().out, "");
}

#[test]
fn the_context_grows_and_forgets_the_oldest_turns_at_its_end() {
    let tokens = |ran: &Ran| ran.err.lines().last().unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    let question = format!("Say {}?", "word ".repeat(120));
    let many = |n: usize, args: &[&str]| {
        let lines = [vec![question.as_str(); n], vec!["/tokens"]].concat();
        say(chat_as(&random(), &["--temp", "0", "-n", "4"]).args(args), &lines).ok()
    };
    // Beyond the 1024 positions it begins with.
    let ran = many(12, &[]);
    assert!(tokens(&ran) > 1500 && ran.err.lines().count() == 1, "{ran:?}");
    let ran = many(12, &["-c", "600"]);
    assert!(tokens(&ran) <= 600 && ran.err.lines().count() == 1, "{ran:?}");
}

#[test]
fn wrong_flags_are_found_before_anything_is_loaded() {
    say(chat(&random()).args(["-i", "-"]), &["One?"]).fails(2, "stdin");
    say(chat(&random()).args(["-i", "missing.png"]), &["One?"]).fails(4, "missing.png");
    say(chat(&random()).args(["-fa", "off", "-ctv", "q8_0"]), &["One?"]).fails(2, "flash attention");
    say(&mut chat(&base("qvl-random", "f32", "f32")), &["One?"]).fails(2, "ask --raw");
}

/// A chat that is still open. What only some systems' tests use is there on all.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct Open {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
impl Open {
    fn new(command: &mut Command) -> Open {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let err = BufReader::new(child.stderr.take().unwrap());
        Open { child, err }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until everything before was done.
    fn tokens(&mut self) -> String {
        self.say("/tokens");
        let mut line = String::new();
        self.err.read_line(&mut line).unwrap();
        assert!(line.contains(" tokens: "), "{line}");
        line
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_turns() {
    /// What an allocator may keep over 40 turns. An embedding of this model is 64 KiB, its KV cache 4 MiB.
    const MOST_BYTES: u64 = 6 << 20;
    let mut open = Open::new(&mut chat_as(&tiny("f16", "f16"), &["-n", "8", "-c", "1024"]));
    let mut stdout = open.child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let peak = |open: &Open| {
        let text = fs::read_to_string(format!("/proc/{}/status", open.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let mut peaks = Vec::new();
    for turn in 1..=50 {
        let line = if turn % 5 == 1 { "shapes.png What does the word say?" } else { "How many objects are there?" };
        open.say(line);
        if turn % 10 == 0 {
            open.tokens();
            peaks.push(peak(&open));
            open.say("/clear");
        }
    }
    drop(open.child.stdin.take());
    assert!(open.child.wait().unwrap().success());
    reader.join().unwrap().unwrap();
    assert!(peaks[4] - peaks[0] <= MOST_BYTES, "{peaks:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_answer_and_the_chat_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.json");
    let mut open = Open::new(&mut chat_as(&random(), &["--temp", "0", "-c", "8192", "-n", "8000"]));
    open.say("There is");
    let mut first = [0; 64];
    open.child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let kill = Command::new("kill").args(["-INT", &open.child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    open.say("/set predict 4");
    open.say("And?");
    open.say(&format!("/save {}", path.display()));
    drop(open.child.stdin.take());
    let ran = Ran::from(open.child.wait_with_output().unwrap()).ok();
    let turns = saved(&path)["turns"].as_array().unwrap().clone();
    assert_eq!(turns.len(), 2, "{turns:?} {ran:?}");
    let kept = turns[0]["answer"].as_str().unwrap();
    assert!(kept.len() >= 32 && kept.len() < 40_000, "{} bytes were kept", kept.len());
}
