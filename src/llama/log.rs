//! llama.cpp's and ggml's log: kept for error messages, handed on to whoever wants it. Nothing is printed here.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

type Listener = Box<dyn Fn(LogLevel, &str) + Send>;

struct State {
    listener: Option<Listener>,
    last_error: String,
}

static STATE: Mutex<State> = Mutex::new(State { listener: None, last_error: String::new() });

/// Every later log text goes to `listener`, which must not log itself. A text may be part of a line. Before the first call, ggml logs to
/// stderr while it looks for devices.
pub fn set_log(listener: impl Fn(LogLevel, &str) + Send + 'static) {
    install();
    if let Ok(mut state) = STATE.lock() {
        state.listener = Some(Box::new(listener));
    }
}

/// Takes the last error that was logged since the last call, for the message of ours that follows.
pub(super) fn take_last_error() -> String {
    STATE.lock().map(|mut state| std::mem::take(&mut state.last_error)).unwrap_or_default()
}

pub(super) fn install() {
    // SAFETY: the callback is a plain function that needs no data and may be called from any thread.
    unsafe {
        sys::llama_log_set(Some(receive), std::ptr::null_mut());
        sys::ggml_log_set(Some(receive), std::ptr::null_mut());
    }
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // SAFETY: ggml passes a terminated string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let level = match level {
        sys::GGML_LOG_LEVEL_ERROR => LogLevel::Error,
        sys::GGML_LOG_LEVEL_WARN => LogLevel::Warning,
        sys::GGML_LOG_LEVEL_DEBUG => LogLevel::Debug,
        _ => LogLevel::Info,
    };
    // A poisoned lock means that a listener panicked; logging is not worth a second panic across C frames.
    let Ok(mut state) = STATE.lock() else { return };
    if level == LogLevel::Error {
        state.last_error = text.trim().to_owned();
    }
    if let Some(listener) = &state.listener {
        listener(level, &text);
    }
}
