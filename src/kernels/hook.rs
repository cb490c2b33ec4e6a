//! What stands in front of ggml's own way to compute a node: products of quantised weights with a few columns, or with many, are ours.
//!
//! ggml asks for every node first how much room an extra kind of buffer wants for it, and then, on every thread, whether that kind
//! computes it; the linker puts our answers in front of those (`build.rs`, `--wrap`), in programs, tests and benchmarks.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use super::{few, many};
use crate::quant::GgmlType;

/// ggml's `ggml_compute_params`; a test would fail if it were another one.
#[repr(C)]
pub struct Params {
    pub ith: c_int,
    pub nth: c_int,
    pub wsize: usize,
    pub wdata: *mut c_void,
    threadpool: *mut c_void,
    use_ref: bool,
}

unsafe extern "C" {
    fn __real_ggml_cpu_extra_work_size(n_threads: c_int, op: *const sys::ggml_tensor, size: *mut usize) -> bool;
    fn __real_ggml_cpu_extra_compute_forward(params: *mut Params, op: *mut sys::ggml_tensor) -> bool;
    fn ggml_barrier(threadpool: *mut c_void);
    fn ggml_threadpool_chunk_set(threadpool: *mut c_void, value: c_int);
    fn ggml_threadpool_chunk_add(threadpool: *mut c_void, value: c_int) -> c_int;
}

/// What ggml calls before it plans the room of a node.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_ggml_cpu_extra_work_size(
    n_threads: c_int,
    op: *const sys::ggml_tensor,
    size: *mut usize,
) -> bool {
    // SAFETY: called by ggml with a node of a graph that it plans, and its size. Repacked weights come first. ggml promises not to change
    // the node; the parameter that is set here belongs to no operation of its own.
    unsafe {
        if __real_ggml_cpu_extra_work_size(n_threads, op, size) {
            return true;
        }
        let Some(node) = Node::of(&*op) else { return false };
        let plan = many::plan(&node);
        (&raw mut (*op.cast_mut()).op_params[MARK]).write(plan.as_ref().map_or(0, |plan| plan.mark));
        plan.is_some_and(|plan| {
            *size = plan.n_bytes;
            true
        })
    }
}

/// Where a product is marked that is planned for many columns: ggml uses the first two.
const MARK: usize = 15;

/// What ggml calls before it computes a node itself, on every thread.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_ggml_cpu_extra_compute_forward(params: *mut Params, op: *mut sys::ggml_tensor) -> bool {
    // SAFETY: called by ggml with a node of the graph that it computes. Repacked weights come first, whose rows are no rows.
    unsafe {
        if __real_ggml_cpu_extra_compute_forward(params, op) {
            return true;
        }
        let params = &*params;
        let Some(node) = Node::of(&*op).filter(|_| !params.use_ref) else { return false };
        if let Some(product) = few::Product::of(&node, params) {
            product.compute(params);
            return true;
        }
        many::compute(&node, params, (*op).op_params[MARK])
    }
}

/// A product of a matrix of quantised weights with columns of f32.
pub struct Node {
    pub ty: GgmlType,
    /// Values of a row, and of a column.
    pub k: usize,
    /// Rows of whole blocks, `w_stride` bytes apart.
    pub w: *const u8,
    pub w_stride: usize,
    pub n_rows: usize,
    /// Columns of f32, `x_stride` bytes apart.
    pub x: *const u8,
    pub x_stride: usize,
    pub n_columns: usize,
    /// Sums in f32 are asked for, on every device: our own graphs do, which choose their kernels themselves.
    pub is_exact: bool,
    /// The result's columns of f32.
    pub out: *mut u8,
    pub out_stride: usize,
}

impl Node {
    /// None if it is another kind of node, a product with more than one matrix, or one whose shapes do not go together.
    ///
    /// # Safety
    /// `op` is a node of a graph.
    unsafe fn of(op: &sys::ggml_tensor) -> Option<Self> {
        if op.op != sys::GGML_OP_MUL_MAT || op.op_params[1] != 0 {
            return None;
        }
        // SAFETY: a product has two sources.
        let (w, x) = unsafe { (&*op.src[0], &*op.src[1]) };
        let ty = GgmlType::from_id(w.type_)?;
        let [k, n_columns, ..] = x.ne.map(|n| n as usize);
        let is_flat = |t: &sys::ggml_tensor| t.ne[2] == 1 && t.ne[3] == 1;
        let has_floats = |t: &sys::ggml_tensor| t.type_ == sys::GGML_TYPE_F32 && t.nb[0] == size_of::<f32>();
        let has_rows = w.nb[0] as u64 == ty.block_bytes();
        // ggml has proven what its own functions make; a worker's graphs come from another machine.
        let fits = k > 0 && w.ne[0] == x.ne[0] && w.ne[1] > 0 && op.ne == [w.ne[1], x.ne[1], 1, 1];
        let is_ours = fits && has_rows && is_flat(w) && is_flat(x) && has_floats(x) && has_floats(op);
        is_ours.then_some(Node {
            ty,
            k,
            w: w.data.cast(),
            w_stride: w.nb[1],
            n_rows: w.ne[1] as usize,
            x: x.data.cast(),
            x_stride: x.nb[1],
            n_columns,
            is_exact: op.op_params[0] == sys::GGML_PREC_F32 as i32,
            out: op.data.cast(),
            out_stride: op.nb[1],
        })
    }
}

impl Params {
    /// Waits until all threads are here, and begins to count for [`share`](Self::share).
    ///
    /// # Safety
    /// ggml has given these parameters; all threads call it, once before they share.
    pub unsafe fn wait(&self) {
        // SAFETY: by this function's contract. The counter is set before the threads meet; each begins with its own number.
        unsafe {
            if self.ith == 0 {
                ggml_threadpool_chunk_set(self.threadpool, self.nth);
            }
            ggml_barrier(self.threadpool);
        }
    }

    /// Numbers below `n` that no other thread gets.
    ///
    /// # Safety
    /// After [`wait`](Self::wait), once.
    pub unsafe fn share(&self, n: usize) -> impl Iterator<Item = usize> {
        let mut next = self.ith as usize;
        std::iter::from_fn(move || {
            let i = next;
            if i >= n {
                return None;
            }
            // SAFETY: by this function's contract, the threads' pool is at work.
            next = unsafe { ggml_threadpool_chunk_add(self.threadpool, 1) } as usize;
            Some(i)
        })
    }
}

/// Products that were computed by kernels of ours.
pub struct Count(AtomicUsize);

impl Count {
    pub const fn new() -> Self {
        Count(AtomicUsize::new(0))
    }

    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
