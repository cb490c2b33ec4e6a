//! Prompts and flags at their edges.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::support::{Outcome, picture, q8_0, qvl, run, temp_dir};

fn command(name: &str) -> Command {
    let mut command = qvl();
    command.arg(name).arg("-m").arg(&q8_0().text).arg("-q");
    command
}

fn ask(args: &[&str]) -> Outcome {
    run(command("ask").args(args))
}

#[test]
fn texts() {
    ask(&["-n", "1", ""]).succeeds();
    ask(&["-n", "1", " \n\t "]).succeeds();
    ask(&["-n", "1", "--raw", ""]).fails(2, "empty");
    ask(&["-n", "1", "--raw", " "]).succeeds();
    ask(&["-n", "1", "<|im_end|><|endoftext|><img>x</img><box>(1,"]).succeeds();
    ask(&["-n", "1", "--raw", "</img><imgpad><|im_start|><|extra_204|>"]).succeeds();
    ask(&["-n", "1", "\u{feff}\u{200b}\u{301}\u{10ffff}\r"]).succeeds();
    ask(&["-n", "1", "--", "-dash"]).succeeds();
    run(command("ask").args(["-n", "1"]).arg(OsStr::from_bytes(b"\xff\xfe"))).fails(2, "UTF-8");
}

#[test]
fn texts_from_files() {
    let dir = temp_dir();
    let path = dir.path().join("prompt.txt");
    let from = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        run(command("ask").args(["-n", "1", "-f"]).arg(&path))
    };
    from(b"a\0b\0").succeeds();
    from(b"").succeeds();
    from(b"\xff\xfe").fails(2, "UTF-8");
    from(&b"word ".repeat(200_000)).fails(2, "tokens but the context holds");
    from(&b" ".repeat(1 << 20)).ends_well();
    from(&b"a".repeat(1 << 20)).fails(2, "tokens but the context holds");
    from(&"\u{301}".repeat(200_000).into_bytes()).fails(2, "tokens but the context holds");
    run(command("ask").args(["-n", "1", "-f", "no/such.txt"])).fails(2, "no/such.txt");
    run(command("ask").args(["-n", "1", "-f"]).arg(dir.path())).fails(2, "irectory");
    run(command("ask").args(["-n", "1", "-f", "/dev/zero"])).fails(2, "larger than");
}

#[test]
fn numbers() {
    for flags in [
        &["-c", "0"][..],
        &["-c", "40000"],
        &["-c", "-1"],
        &["-t", "0"],
        &["-t", "9999"],
        &["-n", "-1"],
        &["-n", "99999999999999999999999"],
        &["--temp", "NaN"],
        &["--temp", "inf"],
        &["--temp", "-1"],
        &["--temp", "1e9"],
        &["--top-p", "2"],
        &["--top-p", "-0.1"],
        &["--top-k", "-1"],
        &["--min-p", "nan"],
        &["--repeat-penalty", "0"],
        &["--repeat-penalty", "inf"],
        &["-s", "-1"],
        &["-ctk", "q3_k"],
        &["-ctv", "q8_0", "-fa", "off"],
        &["-ngl", "x"],
        &["-dev", "cuda9"],
        &["--nonsense"],
    ] {
        ask(&[flags, &["hi"]].concat()).fails(2, "error: ");
    }
    ask(&["-c", "1", "hi"]).fails(2, "the context holds 1");
    for flags in [
        &["-n", "0"][..],
        &["-c", "64", "-n", "18446744073709551615"],
        &["-c", "32767", "-n", "1"],
        &["-n", "1", "-t", "512"],
        &["-n", "3", "--temp", "1e-40", "-s", "1"],
        &["-n", "3", "--temp", "100", "--top-k", "4294967295", "--top-p", "0", "--min-p", "1"],
        &["-n", "3", "--temp", "1", "--repeat-penalty", "0.01", "-s", "7"],
        &["-n", "3", "--temp", "0", "--repeat-penalty", "100"],
        &["-n", "3", "--stop", "", "--stop", "\u{301}"],
        &["-n", "1", "-sys", ""],
        &["-n", "1", "-ctk", "q4_0", "-ctv", "q4_0"],
    ] {
        ask(&[flags, &["hi"]].concat()).succeeds();
    }
}

#[test]
fn traces() {
    let dir = temp_dir();
    let (ids, out) = (dir.path().join("ids.json"), dir.path().join("out.safetensors"));
    let of_ids = |json: &str| {
        std::fs::write(&ids, json).unwrap();
        run(command("trace").arg("-o").arg(&out).arg("--ids").arg(&ids))
    };
    for bad in ["", "[", "{}", "[1.5]", "[-1]", "[\"a\"]", "[4294967296]", "[[1]]", "null"] {
        of_ids(bad).fails(2, "ids.json");
    }
    of_ids("[]").fails(2, "empty");
    of_ids("[1408]").fails(2, "1408");
    of_ids("[4294967295]").fails(2, "4294967295");
    of_ids("[1314, 5, 1315]").fails(2, "picture 0");
    of_ids("[1314]").fails(2, "picture 0");
    of_ids(&format!("[1314, {}1315]", "1, ".repeat(25))).fails(2, "shows 1 pictures, 0 were given");
    of_ids(&format!("[{}1]", "1, ".repeat(9000))).fails(2, "context holds");
    of_ids("[1315, 1407, 0]").succeeds();
    std::fs::remove_file(&out).unwrap();

    let trace = |flags: &[&str], out: &std::path::Path| run(command("trace").args(flags).arg("-o").arg(out).arg("hi"));
    trace(&["-n", "18446744073709551615"], &out).fails(2, "context holds");
    trace(&["-n", "1152921504606846976", "-c", "100"], &out).fails(2, "context holds");
    trace(&[], &dir.path().join("no/such/out")).fails(1, "no/such");
    trace(&[], dir.path()).fails(1, "irectory");
    trace(&[], "/proc/out".as_ref()).fails(1, "/proc");
    trace(&["--raw", "-i", "no.png"], &out).fails(4, "no.png");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["ids.json"], "nothing half-written");
}

/// Pipes that nobody reads and disks that are full.
#[test]
fn outputs_that_cannot_be_written() {
    let shell = |script: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -o pipefail; {script}"), "bash", env!("CARGO_BIN_EXE_qvl")]);
        command.arg(&q8_0().text).arg(picture()).arg(&q8_0().mmproj).env("QVL_CACHE_SIZE", "0").stdin(Stdio::null());
        run(&mut command)
    };
    for closed in [
        "ask -q -m $2 -n 20 hi",
        "ask -q -m $2 -n 5 --json hi",
        "inspect $2",
        "inspect $2 --json",
        "doctor",
        "completions bash",
        "--help",
        "--version",
    ] {
        shell(&format!("$1 {closed} | head -c0")).succeeds();
        let full = shell(&format!("$1 {closed} > /dev/full"));
        assert!(full.complaint().is_none() || closed.starts_with("--"), "{closed}: {full:?}");
    }
    shell("yes '{\"text\":\"hi\"}' | head -n 100000 | $1 tokenize -m $2 | head -c0; exit ${PIPESTATUS[2]}").succeeds();
    // Nobody to tell, but the exit code still tells.
    for stderr in ["/dev/full", "/dev/null"] {
        let code = |args: &str| shell(&format!("$1 {args} 2>{stderr} >/dev/null")).code;
        assert_eq!(code("ask -m $2 -n 1 hi"), Some(0));
        assert_eq!(code("ask -m $2 -n 1 -v hi"), Some(0));
        assert_eq!(code("ask -m $3 -n 1 hi"), Some(3));
        assert_eq!(code("ask -m $2 -i $2 hi"), Some(4));
        assert_eq!(code("--nonsense"), Some(2));
    }
    assert_eq!(shell("$1 ask -m $2 -n 1 -v hi 2>&- >&-").code, Some(0));
}

/// The first Ctrl-C keeps what came.
#[test]
fn interrupted() {
    for name in ["ask", "trace"] {
        let dir = temp_dir();
        let mut command = Command::new("timeout");
        command.args(["--preserve-status", "-s", "INT", "0.4", env!("CARGO_BIN_EXE_qvl"), name, "-q", "-m"]);
        command.arg(&q8_0().text).args(["-n", "8000", "hi", "-t", "1"]);
        match name {
            "trace" => command.arg("-o").arg(dir.path().join("out")),
            _ => command.args(["--temp", "1"]),
        };
        let outcome = run(&mut command);
        // The small model may have ended its answer before.
        if outcome.code != Some(0) {
            outcome.fails(130, "interrupted");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn tokenize_lines() {
    let dir = temp_dir();
    let input = dir.path().join("in.jsonl");
    std::fs::write(
        &input,
        b"\n\xff\nnull\n{\"text\":\"\\u0000\"}\n{\"ids\":[4294967295]}\n{\"ids\":[1314]}\n{\"text\":\"hi\"}",
    )
    .unwrap();
    let outcome = run(command("tokenize").stdin(File::open(&input).unwrap()));
    outcome.succeeds();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 7, "{lines:?}");
    assert_eq!(lines.iter().filter(|l| l.starts_with("{\"error\":")).count(), 5, "{lines:?}");
    run(command("tokenize").stdin(File::open(dir.path()).unwrap())).fails(1, "standard input");
}
