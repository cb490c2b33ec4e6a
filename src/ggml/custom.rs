//! Operations of our own inside ggml's graphs, run by ggml's threads.

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use super::{Context, Tensor, c_type};
use crate::quant::GgmlType;

/// An operation. Every thread of the backend calls [`run`](Custom::run) once a computation, and all come back before the next
/// operation starts.
pub trait Custom: Send + Sync {
    /// This thread's part.
    fn run(&self, task: &Task<'_>);
}

/// What a thread of an operation sees.
pub struct Task<'a> {
    args: [Operand<'a>; 4],
    out: *mut u8,
    out_bytes: usize,
    /// Threads that run the operation.
    pub n_threads: usize,
}

/// A tensor that an operation reads.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// From its first value to its last, strides included.
    pub bytes: &'a [u8],
    /// Extents, ne0 first.
    pub dims: [usize; 4],
    /// Bytes from one value to the next along each of them.
    pub strides: [usize; 4],
}

impl<'a> Task<'a> {
    /// The `i`-th argument.
    pub fn arg(&self, i: usize) -> Operand<'a> {
        self.args[i]
    }

    /// `n` values of the result from the `first` on.
    ///
    /// # Safety
    /// No other thread of the operation has or gets a slice that overlaps, and bytes of the type `T` are a value whatever they
    /// are.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn out<T>(&self, first: usize, n: usize) -> &mut [T] {
        let end = first.checked_add(n).and_then(|n| n.checked_mul(size_of::<T>()));
        assert!(end.is_some_and(|end| end <= self.out_bytes), "a slice inside the result");
        // SAFETY: inside the result (asserted), which ggml allocates aligned to 32 bytes; exclusive by this function's contract.
        unsafe { slice::from_raw_parts_mut(self.out.cast::<T>().add(first), n) }
    }
}

impl<'a> Operand<'a> {
    /// All values of a contiguous one as `T`: f32, or what an operation of ours has written.
    ///
    /// # Safety
    /// The tensor holds values of this type.
    pub unsafe fn values<T>(&self) -> &'a [T] {
        if self.bytes.is_empty() {
            return &[];
        }
        assert!(self.bytes.as_ptr().cast::<T>().is_aligned(), "tensors are aligned");
        // SAFETY: aligned (asserted), of this type by this function's contract.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / size_of::<T>()) }
    }
}

/// Hands out the numbers 0, 1, 2 .. to the threads of an operation, and starts anew for its next computation.
#[derive(Default)]
pub struct Share {
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Share {
    /// Numbers below `n` that no other of the `n_threads` threads gets. Every thread has to take them to the end.
    pub fn take(&self, n: usize, n_threads: usize) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i < n {
                return Some(i);
            }
            // The last one to finish; ggml's barrier after the operation orders this before the next computation.
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == n_threads {
                self.next.store(0, Ordering::Relaxed);
                self.done.store(0, Ordering::Relaxed);
            }
            None
        })
        .fuse()
    }
}

impl<'d> Context<'d> {
    /// The result of `op` on `args` (at most 4; views may be among them), of type `ty` and these extents.
    pub fn custom<'c>(
        &'c self,
        ty: GgmlType,
        dims: [usize; 2],
        args: &[Tensor<'c>],
        op: impl Custom + 'static,
    ) -> Tensor<'c> {
        assert!((1..=4).contains(&args.len()), "1 to 4 arguments");
        let data = self.keep_custom(Box::new(op));
        let mut args: Vec<*mut sys::ggml_tensor> = args.iter().map(|t| t.ptr.as_ptr()).collect();
        let [ne0, ne1] = dims.map(|d| d as i64);
        // SAFETY: operands belong to this context; `data` lives as long as it, and with it as any graph over the tensor.
        self.tensor(unsafe {
            let (args, n) = (args.as_mut_ptr(), args.len() as c_int);
            sys::ggml_custom_4d(self.c(), c_type(ty), ne0, ne1, 1, 1, args, n, Some(run), EVERY_THREAD, data)
        })
    }
}

/// `GGML_N_TASKS_MAX`: as many tasks as the backend has threads.
const EVERY_THREAD: c_int = -1;

/// Calls the operation that `data` points to.
///
/// # Safety
/// Called by ggml on a tensor that [`Context::custom`] has made.
unsafe extern "C" fn run(dst: *mut sys::ggml_tensor, _ith: c_int, nth: c_int, data: *mut c_void) {
    let nothing = Operand { bytes: &[], dims: [0; 4], strides: [0; 4] };
    // SAFETY: `dst` and its sources are allocated tensors while ggml computes; the result is contiguous; `data` is what
    // keep_custom gave, and its operation lives as long as the context.
    unsafe {
        let mut args = [nothing; 4];
        for (arg, t) in args.iter_mut().zip((*dst).src).filter(|(_, t)| !t.is_null()) {
            let bytes = slice::from_raw_parts((*t).data.cast::<u8>(), sys::ggml_nbytes(t));
            *arg = Operand { bytes, dims: (*t).ne.map(|n| n as usize), strides: (*t).nb };
        }
        let (out, out_bytes) = ((*dst).data.cast(), sys::ggml_nbytes(dst));
        let op = &*data.cast::<Box<dyn Custom>>();
        op.run(&Task { args, out, out_bytes, n_threads: nth as usize });
    }
}
