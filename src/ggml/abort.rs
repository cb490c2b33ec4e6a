//! Where C and C++ would end the process in their own way: a message and a promised exit code instead of a signal and a
//! backtrace. A net below the proofs of every header, not in their place: what it says is a bug, unless memory ran out.

use std::ffi::{CStr, c_char};
#[cfg(unix)]
use std::io::IoSlice;
#[cfg(not(unix))]
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use crate::error::ErrorKind;
use crate::temporary;

/// From now on the process ends with one line on stderr and exit code 5 where C++ gets no memory, 1 where an assertion of ggml
/// fails, a library calls `abort()`, or the program was built for another CPU and comes to an instruction that this one lacks.
/// There is no way back: C has nothing to return to. `advice` says what to do where there is no memory.
pub fn explain_aborts(advice: &'static str) {
    // Once a process; a second one has nothing else to say.
    let _ = ADVICE.set(advice);
    // SAFETY: the callback is a plain function that may be called from any thread; ggml keeps it for good.
    unsafe { sys::ggml_set_abort_callback(Some(assertion_failed)) };
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            // `std::set_new_handler`, of libstdc++, which llama.cpp is linked to.
            #[link_name = "_ZSt15set_new_handlerPFvvE"]
            fn set_new_handler(handler: extern "C" fn()) -> Option<extern "C" fn()>;
        }
        // SAFETY: the name is that of the C++ ABI for a function of this type; the handler does not return.
        unsafe { set_new_handler(no_memory) };
    }
    #[cfg(unix)]
    {
        let handlers: [(libc::c_int, extern "C" fn(libc::c_int)); 2] =
            [(libc::SIGABRT, aborted), (libc::SIGILL, of_another_cpu)];
        for (signal, handler) in handlers {
            // SAFETY: the handler only calls what may be called there, and does not return.
            unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        }
    }
}

unsafe extern "C" fn assertion_failed(message: *const c_char) {
    // SAFETY: ggml passes a terminated string that lives during the call.
    let message = unsafe { CStr::from_ptr(message) }.to_bytes();
    // The assertion that fails for lack of memory: ggml's own contexts.
    const RPC: &[u8] = b"ggml-rpc.cpp";
    const NO_BUFFER: &[u8] = b"mem_buffer != NULL";
    if message.windows(NO_BUFFER.len()).any(|part| part == NO_BUFFER) {
        no_memory();
    }
    // What ggml says of another machine, which it cannot do without: no bug of this program.
    if message.windows(RPC.len()).any(|part| part == RPC) {
        end(
            &[b"error: a machine of --rpc has gone away, or what listens there is no qvl worker of this version\n"],
            ErrorKind::Other,
        );
    }
    // Where it stands is of use, the path on the machine that built it is not.
    let place = message.rsplit(|byte| *byte == b'/').next().unwrap_or(message);
    end(
        &[b"error: memory ran out, or this is a bug: please report it: ggml stopped at ", place, b"\n"],
        ErrorKind::Other,
    )
}

/// What to do where there is no memory.
static ADVICE: OnceLock<&str> = OnceLock::new();

/// Ends the process for lack of memory, wherever that shows.
pub extern "C" fn no_memory() {
    let advice = ADVICE.get().copied().unwrap_or("close other programs");
    end(&[b"error: out of memory; ", advice.as_bytes(), b"\n"], ErrorKind::Memory)
}

#[cfg(unix)]
extern "C" fn aborted(_signal: libc::c_int) {
    // The C library stops a thread that it finds no memory for, after a line of its own.
    if !memory_is_left() {
        no_memory();
    }
    end(&[b"\nerror: this is a bug, please report it: a library stopped the program\n"], ErrorKind::Other)
}

/// Whether the system still gives some, which may be asked in a handler of a signal. It always seems so where nobody can tell.
pub fn memory_is_left() -> bool {
    #[cfg(unix)]
    {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        const N_BYTES: usize = 1 << 20;
        // SAFETY: a new mapping at an address of the system's choice, which nobody has used when it goes.
        unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let map = mmap_anonymous(std::ptr::null_mut(), N_BYTES, protection, MapFlags::PRIVATE);
            map.is_ok_and(|map| munmap(map, N_BYTES).is_ok())
        }
    }
    #[cfg(not(unix))]
    true
}

/// Where features are asked for at run time this does not happen; the compilers were told which ones there are.
#[cfg(unix)]
extern "C" fn of_another_cpu(_signal: libc::c_int) {
    const MESSAGE: &[u8] = b"\nerror: this program was built for another CPU: this one lacks an instruction that it uses; build it on this machine\n";
    end(&[MESSAGE], ErrorKind::Other)
}

/// Parts that a message may have.
const MOST_PARTS: usize = 4;

/// Ends the process with a line on stderr and the exit code of `kind`, leaving no [temporary files](crate::temporary). Allocates nothing; it may
/// be called in a handler of a signal. Where two threads come here, the line is the first one's.
pub fn end<const N: usize>(message: &[&[u8]; N], kind: ErrorKind) -> ! {
    const { assert!(N <= MOST_PARTS) };
    static ENDS: AtomicBool = AtomicBool::new(false);
    if ENDS.swap(true, Ordering::Relaxed) {
        // More than it takes to remove files. If it was this very thread, nobody else ends the process.
        std::thread::sleep(Duration::from_secs(10));
    } else {
        temporary::remove_all();
        write(message);
    }
    #[cfg(unix)]
    // SAFETY: it may be called in a signal handler.
    unsafe {
        libc::_exit(kind.exit_code().into())
    }
    #[cfg(not(unix))]
    std::process::exit(kind.exit_code().into())
}

/// To stderr, at once where the system can, so that no other thread's line comes in between; failure is ignored.
fn write(message: &[&[u8]]) {
    #[cfg(unix)]
    {
        let mut parts = [IoSlice::new(b""); MOST_PARTS];
        parts.iter_mut().zip(message).for_each(|(part, bytes)| *part = IoSlice::new(bytes));
        let _ = rustix::io::writev(rustix::stdio::stderr(), &parts);
    }
    #[cfg(not(unix))]
    message.iter().for_each(|part| drop(std::io::stderr().write_all(part)));
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Says how the process that [`ends`] starts is to end.
    const END: &str = "QVL_TEST_ABORT";

    /// Nothing by itself: what the next test starts.
    #[test]
    fn stops() {
        let Ok(how) = std::env::var(END) else { return };
        explain_aborts("take less");
        match how.as_str() {
            // SAFETY: they are terminated strings without a placeholder.
            "ggml" => unsafe {
                sys::ggml_abort(c"/home/x/ops.cpp".as_ptr(), 7, c"GGML_ASSERT(a == b) failed".as_ptr())
            },
            // SAFETY: as above.
            "worker" => unsafe {
                sys::ggml_abort(c"x/ggml-rpc.cpp".as_ptr(), 7, c"Remote RPC server crashed".as_ptr())
            },
            // SAFETY: as above.
            "memory" => unsafe { sys::ggml_abort(c"ggml.c".as_ptr(), 7, c"ctx->mem_buffer != NULL".as_ptr()) },
            // SAFETY: the signal that such an instruction is.
            "instruction" => unsafe {
                libc::raise(libc::SIGILL);
            },
            _ => std::process::abort(),
        }
    }

    #[test]
    fn ends() {
        let check = |how: &str, code: i32, line: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "ggml::abort::tests::stops", "--nocapture"]).env(END, how);
            let output = command.output().unwrap();
            let found = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), found.trim()), (Some(code), line), "{how}");
        };
        let bug = "error: memory ran out, or this is a bug: please report it: ggml stopped at ops.cpp:7: GGML_ASSERT(a == b) failed";
        check("ggml", 1, bug);
        let memory = "error: out of memory; take less";
        check("memory", 5, memory);
        let worker = "error: a machine of --rpc has gone away, or what listens there is no qvl worker of this version";
        check("worker", 1, worker);
        let cpu = "error: this program was built for another CPU: this one lacks an instruction that it uses; build it on this machine";
        check("instruction", 1, cpu);
        check("abort", 1, "error: this is a bug, please report it: a library stopped the program");
    }
}
