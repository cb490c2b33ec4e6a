//! Computing a graph.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::{Graph, Tensor};
use crate::error::{Error, ErrorKind, Result};

/// Something that computes graphs; for now the CPU.
pub struct Backend<'a> {
    pub(super) ptr: NonNull<sys::ggml_backend>,
    stop: PhantomData<&'a AtomicBool>,
}

impl<'a> Backend<'a> {
    /// The CPU with `n_threads` threads; a computation ends early once `stop` is set.
    pub fn cpu(n_threads: usize, stop: &'a AtomicBool) -> Result<Self> {
        // SAFETY: no arguments; a null result is handled.
        let ptr = NonNull::new(unsafe { sys::ggml_backend_cpu_init() })
            .ok_or_else(|| Error::memory("cannot start ggml's CPU backend"))?;
        // SAFETY: the backend is valid; `stop` outlives it ('a) and the callback only reads it.
        unsafe {
            sys::ggml_backend_cpu_set_n_threads(ptr.as_ptr(), n_threads.clamp(1, 512) as i32);
            let data = std::ptr::from_ref(stop).cast_mut().cast::<c_void>();
            sys::ggml_backend_cpu_set_abort_callback(ptr.as_ptr(), Some(is_set), data);
        }
        Ok(Backend { ptr, stop: PhantomData })
    }

    /// Bytes that [`allocate`](Self::allocate) would take. Allocates nothing of that size.
    pub fn measure(&self, graph: &Graph<'_>) -> usize {
        // SAFETY: backend and graph are valid; null buffer ids mean the one buffer there is, whose size is written to `n`.
        unsafe {
            let buft = sys::ggml_backend_get_default_buffer_type(self.ptr.as_ptr());
            let allocator = sys::ggml_gallocr_new(buft);
            let mut n = 0;
            if !allocator.is_null() {
                let none = std::ptr::null();
                sys::ggml_gallocr_reserve_n_size(allocator, graph.ptr.as_ptr(), none, none, &raw mut n);
                sys::ggml_gallocr_free(allocator);
            }
            n
        }
    }

    /// Allocates what `graph` needs between its inputs and outputs. Errors (kind memory): it does not fit.
    pub fn allocate<'c>(&self, graph: Graph<'c>) -> Result<Allocated<'_, 'c>> {
        // SAFETY: backend and graph are valid; a null or failed allocation is handled.
        let allocator = unsafe {
            let buft = sys::ggml_backend_get_default_buffer_type(self.ptr.as_ptr());
            NonNull::new(sys::ggml_gallocr_new(buft))
        };
        let allocator = allocator.ok_or_else(|| Error::memory("cannot allocate a ggml graph allocator"))?;
        let allocated = Allocated { backend: self.ptr, allocator, graph, lifetime: PhantomData };
        // SAFETY: allocator and graph are valid and stay together in `allocated`.
        if !unsafe { sys::ggml_gallocr_alloc_graph(allocator.as_ptr(), allocated.graph.ptr.as_ptr()) } {
            return Err(Error::memory("cannot allocate the compute buffer"));
        }
        Ok(allocated)
    }
}

impl Drop for Backend<'_> {
    fn drop(&mut self) {
        // SAFETY: made by us, not used again.
        unsafe { sys::ggml_backend_free(self.ptr.as_ptr()) }
    }
}

/// ggml's abort callback over an `AtomicBool`; also handed to llama.cpp.
///
/// # Safety
/// `data` points to an `AtomicBool` that lives as long as the callback is installed.
pub(crate) unsafe extern "C" fn is_set(data: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    unsafe { (*data.cast::<AtomicBool>()).load(Ordering::Relaxed) }
}

/// A graph with memory for its tensors.
pub struct Allocated<'b, 'c> {
    backend: NonNull<sys::ggml_backend>,
    allocator: NonNull<sys::ggml_gallocr>,
    graph: Graph<'c>,
    lifetime: PhantomData<&'b ()>,
}

impl Allocated<'_, '_> {
    /// Fills an input of this graph.
    pub fn set(&mut self, input: Tensor<'_>, values: &[f32]) {
        assert_eq!(input.dims().iter().product::<usize>(), values.len(), "values of the input");
        // SAFETY: the tensor is f32 (inputs are), allocated, and holds as many values (asserted).
        unsafe {
            sys::ggml_backend_tensor_set(input.ptr.as_ptr(), values.as_ptr().cast(), 0, size_of_val(values));
        }
    }

    /// Runs the graph. Errors: stopped (kind interrupted), or failed.
    pub fn compute(&mut self) -> Result<()> {
        // SAFETY: backend and graph are valid, every tensor is allocated.
        match unsafe { sys::ggml_backend_graph_compute(self.backend.as_ptr(), self.graph.ptr.as_ptr()) } {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            sys::GGML_STATUS_ALLOC_FAILED => Err(Error::memory("ggml could not allocate its work buffer")),
            status => Err(Error::other(format!("ggml could not compute the graph (status {status})"))),
        }
    }

    /// Copies an f32 output.
    pub fn get(&self, output: Tensor<'_>) -> Vec<f32> {
        let mut values = vec![0.0f32; output.dims().iter().product()];
        // SAFETY: the tensor is f32 and contiguous (checked), allocated, and holds as many values.
        unsafe {
            let t = output.ptr.as_ptr();
            assert!((*t).type_ == sys::GGML_TYPE_F32 && sys::ggml_is_contiguous(t), "a contiguous f32 output");
            sys::ggml_backend_tensor_get(t, values.as_mut_ptr().cast(), 0, size_of_val(&values[..]));
        }
        values
    }
}

impl Drop for Allocated<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: made by us, not used again.
        unsafe { sys::ggml_gallocr_free(self.allocator.as_ptr()) }
    }
}
