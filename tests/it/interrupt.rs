//! Ctrl-C keeps what came.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::models::random;
use crate::programs::{Ran, qvl, repository};

/// An answer that goes on for thousands of tokens.
fn long_answer(more: &[&str]) -> Child {
    long_answer_of(&random().text, more)
}

fn long_answer_of(model: &Path, more: &[&str]) -> Child {
    let mut command = qvl();
    command.args(["ask", "--raw", "--temp", "0", "-c", "8192", "-n", "8000", "There is", "-m"]).arg(model);
    command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Interrupts it once it has begun.
fn interrupted(mut child: Child) -> Ran {
    // It has begun to answer.
    let mut first = [0; 64];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let mut output = child.wait_with_output().unwrap();
    output.stdout.splice(0..0, first);
    Ran::from(output)
}

#[test]
fn the_first_one_ends_the_answer_and_keeps_it() {
    let ran = interrupted(long_answer(&[]));
    // After 8000 tokens it would be 0.
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(ran.out.ends_with('\n'), "{ran:?}");
    assert_eq!(ran.err, "error: interrupted\n");
}

#[test]
fn what_came_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let picture = repository("tests/data/pictures/shapes.png");
    let ran = interrupted(long_answer(&["-i", picture.to_str().unwrap(), "-q", "--annotate", path.to_str().unwrap()]));
    assert_eq!((ran.code, ran.err.as_str()), (130, "error: interrupted\n"));
    assert!(path.is_file());
}

/// No signal: the pages that are gone are told.
#[test]
fn a_model_that_becomes_shorter_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    fs::copy(random().text, &model).unwrap();
    let mut child = long_answer_of(&model, &[]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 64]).unwrap();
    File::options().write(true).open(&model).unwrap().set_len(4096).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.trim_start().starts_with("error: a mapped file (the model"), "{ran:?}");
}
