//! Connections to machines that are switched off, or whose cable is pulled, end with an error. ggml waits for an answer for ever, and
//! keeps its sockets to itself: they are found among those of the process.

use std::sync::Once;
use std::thread;
use std::time::Duration;

/// From now on the system closes connections of this process whose other end is silent for half a minute: not one that computes, whose
/// system answers for it. A thread looks for new ones every second. Nothing where the system has no list of open files.
pub(super) fn notice_losses() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let look = || {
            loop {
                guard_all();
                thread::sleep(Duration::from_secs(1));
            }
        };
        // Without the thread a loss is noticed by the user.
        let _ = thread::Builder::new().name("connections".to_owned()).spawn(look);
    });
}

#[cfg(not(unix))]
fn guard_all() {}

/// Guards all connections of this process.
#[cfg(unix)]
fn guard_all() {
    let Ok(files) = std::fs::read_dir("/dev/fd") else { return };
    for number in files.flatten().filter_map(|file| file.file_name().to_str()?.parse().ok()) {
        // SAFETY: the number was open a moment ago. Should it be closed by now, or be another file, the calls below fail or
        // give another connection the same guard.
        guard(unsafe { std::os::fd::BorrowedFd::borrow_raw(number) });
    }
}

/// Asks after the other end, if `file` is a connection over a network.
#[cfg(unix)]
fn guard(file: std::os::fd::BorrowedFd<'_>) {
    use rustix::net::{AddressFamily, getpeername, sockopt};
    const FIRST: Duration = Duration::from_secs(10);
    const NEXT: Duration = Duration::from_secs(5);
    const TIMES: u32 = 4;
    let is_remote = |family| matches!(family, AddressFamily::INET | AddressFamily::INET6);
    if !getpeername(file).ok().flatten().is_some_and(|peer| is_remote(peer.address_family())) {
        return;
    }
    let _ = sockopt::set_socket_keepalive(file, true);
    let _ = sockopt::set_tcp_keepidle(file, FIRST);
    let _ = sockopt::set_tcp_keepintvl(file, NEXT);
    let _ = sockopt::set_tcp_keepcnt(file, TIMES);
    // What was sent and not confirmed; others than Linux have their own patience for it.
    #[cfg(target_os = "linux")]
    let _ = sockopt::set_tcp_user_timeout(file, (FIRST + NEXT * TIMES).as_millis() as u32);
}

#[cfg(all(test, unix))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt;

    use super::*;

    #[test]
    fn both_ends_are_guarded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let (pipe, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        guard_all();
        for end in [&near, &far] {
            assert!(sockopt::socket_keepalive(end).unwrap());
            assert_eq!(sockopt::tcp_keepidle(end).unwrap(), Duration::from_secs(10));
            #[cfg(target_os = "linux")]
            assert_eq!(sockopt::tcp_user_timeout(end).unwrap(), 30_000);
        }
        assert!(!sockopt::socket_keepalive(&pipe).unwrap());
    }
}
