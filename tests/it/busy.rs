//! A busy machine: how the threads wait is set before the library that makes them is loaded.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::models::random;
use crate::programs::qvl;

/// The environment of a chat that waits for its first line, as the system tells it.
fn environment(change: impl Fn(&mut Command)) -> String {
    let mut command = qvl();
    command.args(["chat", "-q", "-n", "1", "-m"]).arg(random().text).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.env_remove("GOMP_SPINCOUNT").env_remove("OMP_WAIT_POLICY");
    change(&mut command);
    let mut chat = command.spawn().unwrap();
    let path = format!("/proc/{}/environ", chat.id());
    // An answer says that it runs; it is the same process however often it has started itself.
    let mut stdin = chat.stdin.take().unwrap();
    stdin.write_all(b"Hello\n").unwrap();
    let mut first = [0u8; 1];
    std::io::Read::read_exact(chat.stdout.as_mut().unwrap(), &mut first).unwrap();
    let environment = std::fs::read(path).unwrap();
    drop(stdin);
    assert!(chat.wait_with_output().unwrap().status.success());
    String::from_utf8_lossy(&environment).replace('\0', "\n")
}

#[test]
fn threads_spin_shortly_unless_told() {
    let count = |text: &str, start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    let own = environment(|_| {});
    assert_eq!(count(&own, "GOMP_SPINCOUNT=1000"), 1, "{own}");
    let told = environment(|command| {
        command.env("OMP_WAIT_POLICY", "active");
    });
    assert_eq!((count(&told, "GOMP_SPINCOUNT"), count(&told, "OMP_WAIT_POLICY=active")), (0, 1), "{told}");
    let told = environment(|command| {
        command.env("GOMP_SPINCOUNT", "7");
    });
    assert_eq!(count(&told, "GOMP_SPINCOUNT=7"), 1, "{told}");
}
