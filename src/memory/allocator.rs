//! Rust's allocator, which ends the process with a line where it would have ended it with a backtrace.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::ggml::no_memory;

/// The system's allocator; where it has no memory left, the process ends with a message and the exit code that says so. For
/// the programs, not the library: `#[global_allocator]`.
pub struct Allocator;

/// What the system gave, which is something.
fn given(pointer: *mut u8) -> *mut u8 {
    if pointer.is_null() {
        no_memory();
    }
    pointer
}

// SAFETY: every call is the system allocator's own, under the conditions that the caller gave.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's conditions are the same.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's conditions are the same.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        // SAFETY: the caller's conditions are the same.
        given(unsafe { System.realloc(pointer, layout, n_bytes) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's conditions are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
