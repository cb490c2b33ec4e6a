//! Memory of one process over many answers.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::models::tiny;
use crate::programs::{qvl, repository};

/// Answers after which everything that is made once is there: the KV cache, compute buffers, the allocator's arenas.
const N_FIRST: usize = 20;
/// Answers in between.
const N_MORE: usize = 100;
/// Answers over which the least memory counts: what is needed in the middle of an answer comes and goes, and whoever looks
/// from outside sees it or not.
const N_LOOKS: usize = 10;
/// What may be added. One row of this model's logits (3.8 KB) kept for each token, or one picture's embedding (64 KiB) for
/// each answer about one, would be five times as much and more. Measured were 0 to 160 KiB in eight runs.
const MAX_GROWTH_BYTES: u64 = 512 << 10;

/// Memory of a process' own.
fn anonymous_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_answers_take_no_more_memory_than_twenty() {
    let mut command = qvl();
    command.args(["chat", "-q", "--temp", "0", "-n", "16", "-m"]).arg(tiny("q4_k_m", "q8_0").text);
    // glibc moves its own thresholds with what it sees, and keeps 1.5 MB more or less from one look to the next; with fixed
    // ones, what is freed is gone, and what is left is ours (within 0.2 MB).
    command.envs([("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "1")]);
    command.current_dir(repository("tests/data/pictures")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let (mut questions, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut answers = BufReader::new(answers).lines();
    let mut ask = |nth: usize| {
        // Two of five are about a picture; conversations are five questions long.
        let question = match nth % 5 {
            0 => "/clear\nshapes.png Describe the picture.".to_owned(),
            1 => "stripes.png What is the colour?".to_owned(),
            _ => format!("Hello {nth}, how many?"),
        };
        writeln!(questions, "{question}").unwrap();
        answers.next().expect("an answer").unwrap();
        anonymous_bytes(child.id())
    };
    let memory: Vec<u64> = (0..N_FIRST + N_MORE).map(&mut ask).collect();
    drop(questions);
    assert!(child.wait().unwrap().success());
    let least = |looks: &[u64]| looks[looks.len() - N_LOOKS..].iter().copied().min();
    let (before, after) = (least(&memory[..N_FIRST]).unwrap(), least(&memory).unwrap());
    assert!(after < before + MAX_GROWTH_BYTES, "{before} bytes after {N_FIRST} answers, {after} after {N_MORE} more");
}
