//! Tensors and operations: the description of a computation, before anything is allocated or run.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::{Backend, Custom, c_type};
use crate::error::{Error, Result};
use crate::gguf::TensorInfo;
use crate::quant::GgmlType;

/// Where tensors and a graph of them are described. `'d` is the data that bound tensors point to.
///
/// Cost: some 400 bytes a tensor; tensor data is not allocated here.
pub struct Context<'d> {
    ptr: NonNull<sys::ggml_context>,
    n_nodes: usize,
    buffers: RefCell<Vec<sys::ggml_backend_buffer_t>>,
    // Boxed twice: the graph points to the inner box, which must not move.
    #[allow(clippy::vec_box)]
    customs: RefCell<Vec<Box<Box<dyn Custom>>>>,
    data: PhantomData<&'d [u8]>,
}

/// A tensor of a [`Context`], a handle that is cheap to copy.
#[derive(Clone, Copy)]
pub struct Tensor<'c> {
    pub(super) ptr: NonNull<sys::ggml_tensor>,
    context: PhantomData<&'c ()>,
}

/// The operations that some outputs need, in the order in which they will run.
pub struct Graph<'c> {
    pub(super) ptr: NonNull<sys::ggml_cgraph>,
    context: PhantomData<&'c ()>,
}

impl<'d> Context<'d> {
    /// A context with room for `n_tensors` tensors, bound ones and results of operations together.
    pub fn new(n_tensors: usize) -> Result<Self> {
        let params = sys::ggml_init_params {
            // SAFETY: both only compute sizes.
            mem_size: unsafe {
                n_tensors * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead_custom(n_tensors, false)
            },
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: parameters are valid; a null result is handled.
        let ptr = NonNull::new(unsafe { sys::ggml_init(params) });
        let ptr = ptr.ok_or_else(|| Error::memory("cannot allocate the description of a ggml graph"))?;
        Ok(Context {
            ptr,
            n_nodes: n_tensors,
            buffers: RefCell::default(),
            customs: RefCell::default(),
            data: PhantomData,
        })
    }

    pub(super) fn c(&self) -> *mut sys::ggml_context {
        self.ptr.as_ptr()
    }

    pub(super) fn tensor<'c>(&'c self, ptr: *mut sys::ggml_tensor) -> Tensor<'c> {
        // ggml aborts rather than returning null when a context is full, so null cannot be seen here.
        Tensor { ptr: NonNull::new(ptr).expect("ggml returns tensors, never null"), context: PhantomData }
    }

    /// Keeps an operation as long as this context; where it lies, for the graph.
    pub(super) fn keep_custom(&self, op: Box<dyn Custom>) -> *mut std::ffi::c_void {
        let op = Box::new(op);
        let data = std::ptr::from_ref(&*op).cast_mut().cast();
        self.customs.borrow_mut().push(op);
        data
    }

    /// An input that is filled before computing: f32 of these extents.
    pub fn input(&self, dims: &[usize]) -> Tensor<'_> {
        let ne: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
        // SAFETY: 1 to 4 extents (GGML_MAX_DIMS), read during the call only.
        let ptr = unsafe {
            assert!((1..=4).contains(&ne.len()), "1 to 4 extents");
            let t = sys::ggml_new_tensor(self.c(), c_type(GgmlType::F32), ne.len() as i32, ne.as_ptr());
            sys::ggml_set_input(t);
            t
        };
        self.tensor(ptr)
    }

    /// FileWeights of `file`, the mapped bytes of a GGUF file, for graphs that `backend` computes: where it can, they point into the
    /// file; else an [`Upload`] copies them to the device. Call once a file.
    ///
    /// Errors (kind model): the data is not aligned as ggml's CPU kernels need it.
    pub fn weights<'b>(&self, file: &'d [u8], backend: &'b Backend<'_>) -> Result<FileWeights<'_, 'd, 'b>> {
        const CPU_ALIGNMENT: usize = 32;
        if !file.as_ptr().addr().is_multiple_of(CPU_ALIGNMENT) {
            return Err(Error::other("the mapped file is not aligned to 32 bytes"));
        }
        // SAFETY: `file` outlives `self` ('d). The buffer is only ever read through weight tensors: no operation of
        // this module writes to a bound tensor, so casting constness away is sound. A device's buffer over memory of the machine is
        // asked for only where the device says that it has such, and may be refused.
        let buffer = unsafe {
            let data = file.as_ptr().cast_mut().cast();
            match backend.is_cpu() {
                true => sys::ggml_backend_cpu_buffer_from_ptr(data, file.len()),
                false if backend.device().maps_memory() => {
                    sys::ggml_backend_dev_buffer_from_host_ptr(backend.device().c(), data, file.len(), file.len())
                }
                false => ptr::null_mut(),
            }
        };
        if buffer.is_null() && backend.is_cpu() {
            return Err(Error::memory("cannot make a ggml buffer over the mapped file"));
        }
        if let Some(buffer) = NonNull::new(buffer) {
            self.keep(buffer);
        }
        Ok(FileWeights { context: self, backend, buffer: NonNull::new(buffer), file, pending: RefCell::default() })
    }

    /// Frees the buffer of weights with this context.
    fn keep(&self, buffer: NonNull<sys::ggml_backend_buffer>) {
        // SAFETY: the buffer is valid. The scheduler computes where weights lie.
        unsafe { sys::ggml_backend_buffer_set_usage(buffer.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        self.buffers.borrow_mut().push(buffer.as_ptr());
    }

    /// The graph that computes `outputs`, whose data stay readable after it ran.
    pub fn graph<'c>(&'c self, outputs: &[Tensor<'c>]) -> Graph<'c> {
        // SAFETY: the context has room for a graph of n_nodes (see new); outputs belong to it.
        let ptr = unsafe {
            let graph = sys::ggml_new_graph_custom(self.c(), self.n_nodes, false);
            for output in outputs {
                sys::ggml_set_output(output.ptr.as_ptr());
                sys::ggml_build_forward_expand(graph, output.ptr.as_ptr());
            }
            graph
        };
        Graph { ptr: NonNull::new(ptr).expect("ggml returns graphs, never null"), context: PhantomData }
    }

    /// Matrix product: `a` `[k, m, ..]` and `b` `[k, n, ..]` give `[m, n, ..]`, f32, summed in f32 on every device.
    pub fn mul_mat<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Tensor<'c> {
        let product = self.mul_mat_as_fast(a, b);
        // GPUs would sum in f16 where they can, which costs 0.7 % of an embedding.
        // SAFETY: a product.
        unsafe { sys::ggml_mul_mat_set_prec(product.ptr.as_ptr(), sys::GGML_PREC_F32) };
        product
    }

    /// As [`mul_mat`](Self::mul_mat), summed as the device does it fastest: what llama.cpp's graphs have.
    pub fn mul_mat_as_fast<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Tensor<'c> {
        let (x, y) = (a.dims(), b.dims());
        assert!(x[0] == y[0] && y[2] % x[2] == 0 && y[3] % x[3] == 0, "mul_mat of {x:?} and {y:?}");
        // SAFETY: operands belong to this context and fit together (asserted).
        self.tensor(unsafe { sys::ggml_mul_mat(self.c(), a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    /// `a` with `n` zeros behind each of its rows: `[ne0, ..]` gives `[ne0 + n, ..]`. Copies.
    pub fn pad<'c>(&'c self, a: Tensor<'c>, n: usize) -> Tensor<'c> {
        assert!(a.is_contiguous(), "pad of a view");
        // SAFETY: the operand belongs to this context; extents from files are capped far below i32.
        self.tensor(unsafe { sys::ggml_pad(self.c(), a.ptr.as_ptr(), n as i32, 0, 0, 0) })
    }

    /// `a + b`, `b` repeated over `a` where it is smaller.
    pub fn add<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Tensor<'c> {
        assert!(b.repeats_into(a), "add of {:?} and {:?}", a.dims(), b.dims());
        // SAFETY: operands belong to this context and fit together (asserted).
        self.tensor(unsafe { sys::ggml_add(self.c(), a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    /// `a · b` element by element, `b` repeated over `a` where it is smaller.
    pub fn mul<'c>(&'c self, a: Tensor<'c>, b: Tensor<'c>) -> Tensor<'c> {
        assert!(b.repeats_into(a), "mul of {:?} and {:?}", a.dims(), b.dims());
        // SAFETY: operands belong to this context and fit together (asserted).
        self.tensor(unsafe { sys::ggml_mul(self.c(), a.ptr.as_ptr(), b.ptr.as_ptr()) })
    }

    /// (a − mean) / sqrt(biased variance + eps) along ne0.
    pub fn norm<'c>(&'c self, a: Tensor<'c>, eps: f32) -> Tensor<'c> {
        // SAFETY: the operand belongs to this context.
        self.tensor(unsafe { sys::ggml_norm(self.c(), a.ptr.as_ptr(), eps) })
    }

    /// GELU in its exact form, x·Φ(x) by erf.
    pub fn gelu_erf<'c>(&'c self, a: Tensor<'c>) -> Tensor<'c> {
        // SAFETY: the operand belongs to this context.
        self.tensor(unsafe { sys::ggml_gelu_erf(self.c(), a.ptr.as_ptr()) })
    }

    /// softmax(a·scale) along ne0, without mask.
    pub fn soft_max<'c>(&'c self, a: Tensor<'c>, scale: f32) -> Tensor<'c> {
        assert!(a.is_contiguous(), "soft_max of a view");
        // SAFETY: the operand belongs to this context; no mask, no ALiBi.
        self.tensor(unsafe { sys::ggml_soft_max_ext(self.c(), a.ptr.as_ptr(), ptr::null_mut(), scale, 0.0) })
    }

    /// Fused attention without mask: `q` `[d, n_q, heads]`, `k` and `v` `[d, n_kv, heads]` give `[d, heads, n_q]`.
    pub fn flash_attn<'c>(&'c self, q: Tensor<'c>, k: Tensor<'c>, v: Tensor<'c>, scale: f32) -> Tensor<'c> {
        let (x, y, z) = (q.dims(), k.dims(), v.dims());
        assert!(x[0] == y[0] && y == z && x[2] == y[2], "flash_attn of {x:?}, {y:?}, {z:?}");
        // SAFETY: operands belong to this context and fit together (asserted); no mask.
        self.tensor(unsafe {
            let (q, k, v) = (q.ptr.as_ptr(), k.ptr.as_ptr(), v.ptr.as_ptr());
            let attention = sys::ggml_flash_attn_ext(self.c(), q, k, v, ptr::null_mut(), scale, 0.0, 0.0);
            sys::ggml_flash_attn_ext_set_prec(attention, sys::GGML_PREC_F32);
            attention
        })
    }

    /// Converts to another type, contiguous.
    pub fn cast<'c>(&'c self, a: Tensor<'c>, ty: GgmlType) -> Tensor<'c> {
        // SAFETY: the operand belongs to this context.
        self.tensor(unsafe { sys::ggml_cast(self.c(), a.ptr.as_ptr(), c_type(ty)) })
    }

    /// Axis `i` of `a` becomes axis `axes[i]` of the result; a view.
    pub fn permute<'c>(&'c self, a: Tensor<'c>, axes: [i32; 4]) -> Tensor<'c> {
        let mut seen = axes;
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3], "a permutation");
        // SAFETY: the operand belongs to this context; axes are a permutation (asserted).
        self.tensor(unsafe { sys::ggml_permute(self.c(), a.ptr.as_ptr(), axes[0], axes[1], axes[2], axes[3]) })
    }

    /// A contiguous copy.
    pub fn cont<'c>(&'c self, a: Tensor<'c>) -> Tensor<'c> {
        // SAFETY: the operand belongs to this context.
        self.tensor(unsafe { sys::ggml_cont(self.c(), a.ptr.as_ptr()) })
    }

    /// The same contiguous values with other extents.
    pub fn reshape_2d<'c>(&'c self, a: Tensor<'c>, ne0: usize, ne1: usize) -> Tensor<'c> {
        assert!(a.is_contiguous() && a.dims().iter().product::<usize>() == ne0 * ne1, "reshape of {:?}", a.dims());
        // SAFETY: the operand belongs to this context, is contiguous and has as many values (asserted).
        self.tensor(unsafe { sys::ggml_reshape_2d(self.c(), a.ptr.as_ptr(), ne0 as i64, ne1 as i64) })
    }

    /// The first `ne0` values of each row of `a`; a view.
    pub fn view_first<'c>(&'c self, a: Tensor<'c>, ne0: usize) -> Tensor<'c> {
        let [width, ne1, ne2, ne3] = a.dims();
        assert!(ne0 <= width, "view of {:?}", a.dims());
        // SAFETY: the operand belongs to this context and the view lies inside it (asserted).
        self.tensor(unsafe {
            let (a, [_, nb1, nb2, nb3]) = (a.ptr.as_ptr(), (*a.ptr.as_ptr()).nb);
            let [ne0, ne1, ne2, ne3] = [ne0, ne1, ne2, ne3].map(|n| n as i64);
            sys::ggml_view_4d(self.c(), a, ne0, ne1, ne2, ne3, nb1, nb2, nb3, 0)
        })
    }

    /// Splits ne0 of `a` `[.., n]` into heads: values `first ..` of each row, seen as `[d, n_head, n]`; a view.
    pub fn view_heads<'c>(&'c self, a: Tensor<'c>, first: usize, d: usize, n_head: usize) -> Tensor<'c> {
        let [ne0, n, ..] = a.dims();
        assert!(first + d * n_head <= ne0 && a.is_contiguous(), "view of {:?}", a.dims());
        let f32_bytes = size_of::<f32>();
        // SAFETY: the operand belongs to this context, is f32 and contiguous, and the view lies inside it (asserted).
        self.tensor(unsafe {
            let nb1 = (*a.ptr.as_ptr()).nb[1];
            let (a, d_bytes, first_bytes) = (a.ptr.as_ptr(), d * f32_bytes, first * f32_bytes);
            sys::ggml_view_3d(self.c(), a, d as i64, n_head as i64, n as i64, d_bytes, nb1, first_bytes)
        })
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: both were made by this context; tensors that pointed to them cannot outlive it ('c).
        unsafe {
            self.buffers.get_mut().iter().for_each(|b| sys::ggml_backend_buffer_free(*b));
            sys::ggml_free(self.ptr.as_ptr());
        }
    }
}

/// FileWeights of a mapped file.
pub struct FileWeights<'c, 'd, 'b> {
    context: &'c Context<'d>,
    backend: &'b Backend<'b>,
    /// Over the file itself; `None` where weights are copied.
    buffer: Option<NonNull<sys::ggml_backend_buffer>>,
    file: &'d [u8],
    /// Tensors that want their bytes.
    pending: RefCell<Vec<(Tensor<'c>, &'d [u8])>>,
}

impl<'c, 'd, 'b> FileWeights<'c, 'd, 'b> {
    /// The tensor that `info`, from this file's own header, describes. Cost: none, it points into the mapped file, or gets its bytes
    /// by [`upload`](Self::upload).
    pub fn tensor(&self, info: &TensorInfo) -> Tensor<'c> {
        let ne: Vec<i64> = info.dims.iter().map(|d| *d as i64).collect();
        let bytes = info.bytes(self.file);
        assert!(bytes.as_ptr().addr().is_multiple_of(32), "tensor data aligned to 32 bytes");
        // SAFETY: 1 to 4 extents and a row of whole blocks (a TensorInfo proves both); the data lie inside the
        // buffer, sized as ggml computes it (the sizes of `quant` are ggml's; a test says so).
        let tensor = self.context.tensor(unsafe {
            let t = sys::ggml_new_tensor(self.context.c(), c_type(info.ty), ne.len() as i32, ne.as_ptr());
            assert_eq!(sys::ggml_nbytes(t), bytes.len(), "ggml's tensor size");
            // At most 63 bytes, as ggml's own buffer holds; a longer one would be cut, not overrun.
            if let Ok(name) = std::ffi::CString::new(info.name.as_str()) {
                sys::ggml_set_name(t, name.as_ptr());
            }
            if let Some(buffer) = self.buffer {
                sys::ggml_backend_tensor_alloc(buffer.as_ptr(), t, bytes.as_ptr().cast_mut().cast());
            }
            t
        });
        if self.buffer.is_none() {
            self.pending.borrow_mut().push((tensor, bytes));
        }
        tensor
    }

    /// What brings the tensors made so far to where they are computed with.
    pub fn upload(self) -> Upload<'c, 'd, 'b> {
        let FileWeights { context, backend, pending, .. } = self;
        Upload { context, backend, pending: pending.into_inner(), is_done: Cell::new(false) }
    }
}

/// Weights on their way to a device; none where they are mapped.
pub struct Upload<'c, 'd, 'b> {
    context: &'c Context<'d>,
    backend: &'b Backend<'b>,
    pending: Vec<(Tensor<'c>, &'d [u8])>,
    is_done: Cell<bool>,
}

impl Upload<'_, '_, '_> {
    /// Copies to the device what does not point into the file, the first time. Errors (kind memory): it does not fit there. Cost: one
    /// pass over the file and the way to the device; none where weights are mapped.
    pub fn once(&self) -> Result<()> {
        if self.is_done.get() || self.pending.is_empty() {
            return Ok(());
        }
        // SAFETY: the context holds these tensors only, unallocated; a null result is handled.
        let buffer = unsafe { sys::ggml_backend_alloc_ctx_tensors(self.context.c(), self.backend.c()) };
        let buffer = NonNull::new(buffer).ok_or_else(|| {
            Error::memory(format!("the weights of the vision tower do not fit on {}", self.backend.device().name()))
        })?;
        self.context.keep(buffer);
        for (tensor, bytes) in &self.pending {
            // SAFETY: the tensor is allocated and as large as its bytes (asserted when it was made).
            unsafe { sys::ggml_backend_tensor_set(tensor.ptr.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len()) };
        }
        self.is_done.set(true);
        Ok(())
    }
}

impl Tensor<'_> {
    /// All four extents, missing ones 1.
    pub fn dims(&self) -> [usize; 4] {
        // SAFETY: the tensor lives as long as its context ('c).
        unsafe { (*self.ptr.as_ptr()).ne.map(|n| n as usize) }
    }

    /// Its type, where this project knows it.
    pub fn ty(&self) -> Option<GgmlType> {
        // SAFETY: as in dims.
        GgmlType::from_id(unsafe { (*self.ptr.as_ptr()).type_ })
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        // SAFETY: as in dims.
        unsafe { sys::ggml_is_contiguous(self.ptr.as_ptr()) }
    }

    fn repeats_into(&self, other: Tensor<'_>) -> bool {
        self.dims().iter().zip(other.dims()).all(|(small, large)| large % small == 0)
    }
}
