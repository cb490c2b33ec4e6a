//! How a program ends, whatever happens: one line and a promised exit code, never a backtrace or a signal.

use std::any::Any;
use std::io::Write;
use std::panic::{PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind};
use crate::{ggml, image, mmap, temporary};

/// Runs a program's `main`. A mapped file that becomes shorter, an `abort()` of a library and a panic end it with a message
/// from here on; the last two are bugs, which the message says. `advice` is what it says where there is no memory.
pub fn explained(main: fn() -> ExitCode, advice: &'static str) -> ExitCode {
    mmap::explain_faults();
    ggml::explain_aborts(advice);
    set_hook(Box::new(tell));
    catch_unwind(main).unwrap_or(ExitCode::from(ErrorKind::Other.exit_code()))
}

/// Ends a program in the middle, leaving no [temporary files](temporary).
pub fn exit(code: u8) -> ! {
    temporary::remove_all();
    std::process::exit(code.into())
}

/// Says it once: where one thread panics, those that wait for it do as well. A picture's decoder may: its picture is damaged.
fn tell(panic: &PanicHookInfo<'_>) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if image::is_contained() || TOLD.swap(true, Ordering::Relaxed) {
        return;
    }
    // Rust itself panics in a thread that it finds no memory for.
    if !ggml::memory_is_left() {
        ggml::no_memory();
    }
    // The path on the machine that built it is of no use.
    let place = panic.location().map(|at| (at.file().rsplit('/').next().unwrap_or_default(), at.line()));
    let place = place.map(|(file, line)| format!(" ({file}:{line})")).unwrap_or_default();
    let error = Error::other(format!("this is a bug, please report it: {}{place}", message(panic.payload())));
    // At once, so that no other thread's line comes in between.
    let _ = std::io::stderr().write_all(format!("error: {error}\n").as_bytes());
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set for the process that [`a_panic_is_one_line`] starts.
    const PANICS: &str = "QVL_TEST_PANIC";

    fn panics() -> ExitCode {
        let thread = std::thread::spawn(|| panic!("one\ntwo {}", 3));
        thread.join().unwrap();
        ExitCode::SUCCESS
    }

    /// Nothing by itself: what the next test starts.
    #[test]
    fn ends() {
        if std::env::var_os(PANICS).is_some() {
            let code = explained(panics, "take less");
            std::process::exit(if code == ExitCode::from(1) { 41 } else { 42 });
        }
    }

    #[test]
    fn a_panic_is_one_line() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ends::tests::ends", "--nocapture"]).env(PANICS, "1").env("RUST_BACKTRACE", "1");
        let output = command.output().unwrap();
        let found = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(41), "{found}");
        assert!(found.starts_with("error: this is a bug, please report it: one two 3 (ends.rs:"), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}
