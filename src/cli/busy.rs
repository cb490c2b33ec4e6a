//! A machine that has other work to do.
//!
//! ggml's threads wait for each other after every operation, some hundred times a token. GNU OpenMP lets them spin for
//! milliseconds before they give their core away, and on a busy machine that is the core which the late thread needs: with one
//! other process on two cores, decoding fell to a third. How long they spin is read from the environment when the library is
//! loaded, before `main`; so the program starts itself once more, with a short time. What the user has set stays.

/// Turns of the waiting loop, some microseconds: shorter than the pauses between operations of a large model are not worth
/// sleeping for, and longer ones take more from others than they give. Measured by `benches/busy.sh`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SPIN_COUNT: &str = "1000";

/// Replaces this process by one whose threads spin shortly, unless it is such a one. Returns where that is not needed or not
/// possible: waiting costs speed only.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share_cores() {
    use std::os::unix::process::CommandExt;
    let is_set = |name| std::env::var_os(name).is_some();
    if is_set("GOMP_SPINCOUNT") || is_set("OMP_WAIT_POLICY") {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(program);
    command.arg0(args.next().unwrap_or_default()).args(args).env("GOMP_SPINCOUNT", SPIN_COUNT);
    // Comes back only when it fails.
    let _ = command.exec();
}

/// Elsewhere another OpenMP, or none, is used.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_cores() {}
