//! One conversation of many turns: a turn reads what is new, and memory is the KV cache's and no more.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::models::tiny;
use crate::programs::{qvl, repository};

const N_TURNS: usize = 50;
/// What stands around a question that is read, its own words and the end of the answer before it.
const MOST_NEW: usize = 24;
/// The same of the first one: the system message and a picture come with it.
const MOST_FIRST: usize = 2 * MOST_NEW + 64 + 8;
/// What may be added from the tenth turn to the last: what was said, and what was read as marks of 40 bytes. The KV cache has
/// 16 MiB here, all of it from the beginning. One row of logits (3.8 KB) kept for each token would be 1.2 MB.
const MAX_GROWTH_BYTES: u64 = 512 << 10;

/// Memory of a process' own.
fn anonymous_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// `note: read 20 of 300 tokens, the others were there` → 20 and 300.
fn n_read(line: &str) -> Option<(usize, usize)> {
    let (n_new, rest) = line.strip_prefix("note: read ")?.split_once(" of ")?;
    let n_prompt = rest.strip_suffix(" tokens, the others were there")?;
    Some((n_new.parse().unwrap(), n_prompt.parse().unwrap()))
}

#[test]
fn fifty_turns_read_what_is_new_and_take_no_more_memory() {
    let mut command = qvl();
    command.args(["chat", "-v", "--temp", "0", "-n", "8", "-c", "4096", "-m"]).arg(tiny("q4_k_m", "q8_0").text);
    // As in `steady`: what is freed is gone.
    command.envs([("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "1")]);
    command.current_dir(repository("models/qvl-tiny/demo"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let (mut questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut answers, mut notes) =
        (BufReader::new(answers).lines(), BufReader::new(child.stderr.take().unwrap()).lines());
    let mut n_before = 0;
    let mut memory = Vec::new();
    for turn in 0..N_TURNS {
        let question = match turn {
            0 => "shapes.png What does the word say?",
            turn if turn % 5 == 1 => "Where is it?",
            _ => "Is there a red circle?",
        };
        writeln!(questions, "{question}").unwrap();
        let (n_new, n_prompt) = notes.by_ref().find_map(|line| n_read(&line.unwrap())).expect("a note");
        assert!(!answers.next().expect("an answer").unwrap().is_empty());
        assert!(n_new <= if turn == 0 { MOST_FIRST } else { MOST_NEW }, "turn {turn}: {n_new} of {n_prompt}");
        // All of the prompt before was there, and the answer to it.
        assert!(n_prompt - n_new >= n_before, "turn {turn}: {n_new} of {n_prompt}, {n_before} before");
        n_before = n_prompt;
        memory.push(anonymous_bytes(child.id()));
    }
    drop(questions);
    assert!(child.wait().unwrap().success());
    assert!(n_before > 1000, "{n_before}");
    let least = |looks: &[u64]| looks.iter().copied().min().unwrap();
    let (before, after) = (least(&memory[5..15]), least(&memory[N_TURNS - 10..]));
    println!("{n_before} tokens in the last prompt; {before} bytes around turn 10, {after} in the last ten");
    assert!(after < before + MAX_GROWTH_BYTES, "{memory:?}");
}
